"""The rows of a breakdown as they are added, and how the time around a step is divided among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orbitmesh.trace.breakdown import RULED, UNREPORTED

GATEWAY = "gateway"
"""The place of what the gateway did or waited for."""

Row = tuple[str, str]
"""Place and what."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step on the gateway's clock, nanoseconds."""

    received: int
    """When its first frame was there."""
    opened: int
    """When it was decoded."""
    started: int
    """When the computation began."""
    ended: int
    """When it ended."""
    sent: int
    """When the last frame of the result was with the transport."""
    codec: int
    """Of sending: encoding."""
    seal: int
    """Of sending: sealing."""
    credit: int
    """Of sending: waiting for credit."""
    held: int = 0
    """Between `opened` and `started`: held back by a rule of slices."""
    held_by: str = ""
    """Which rule, for people."""
    turn: int = 0
    """Of sending: waiting for a turn on the link."""
    turn_for: str = ""
    """What for, for people."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One crossing, nanoseconds."""

    source: str
    """Who sends."""
    target: str
    """Who receives."""
    sending: int
    """From the end of the work until the sender had handed everything over."""
    step: Step | None
    """The sender's step, for the parts of `sending`."""
    crossing: int
    """From there to the receiver's first frame, by the two clocks; negative where they are read wrong, or where the
    receiver had it before the sender's call returned."""
    turn: int = 0
    """Of `sending`, where there is no step: waiting for a turn on the link."""
    turn_for: str = ""
    """What for, for people."""
    lost: tuple[str, ...] = ()
    """Nodes in between that never reported: what they did cannot be told from the crossing."""

    @property
    def row(self) -> Row:
        """Where the crossing is shown."""
        if self.lost:
            return ", ".join(self.lost), UNREPORTED
        return (self.target, "queue") if self.source == self.target else (f"{self.source}>{self.target}", "link")


class Ledger:
    """Collects (place, what) -> times in nanoseconds, in the order in which they first came."""

    def __init__(self) -> None:
        self.times: dict[Row, list[int]] = {}
        self._total = 0
        self._stalls: set[int] = set()

    def add(self, place: str, what: str, time_ns: int) -> None:
        """Adds one occurrence; nothing where it took no time."""
        if time_ns > 0:
            self._total += time_ns
            self.times.setdefault((place, what), []).append(time_ns)

    def add_stall(self, number: int, what: str, time_ns: int) -> None:
        """Adds a stall, or a further part of it: a stall that several tokens see is one occurrence."""
        if number not in self._stalls or (GATEWAY, what) not in self.times:
            self._stalls.add(number)
            self.add(GATEWAY, what, time_ns)
        else:
            self._total += time_ns
            self.times[GATEWAY, what][-1] += time_ns

    def total(self) -> int:
        """Nanoseconds added so far."""
        return self._total


def cross(ledger: Ledger, hops: Sequence[Hop], left: int) -> None:
    """Divides the time between the stages' work among sending and links, so that the parts sum to it.

    The sum is known exactly, from clocks that are read once each. Two things blur the parts: a sender's call returns
    after the receiver has the frame already, and an offset may be wrong by more than a fast link takes. So sending is
    cut first to what is there at all, and links share the rest in proportion to what the clocks say of each.
    """
    rest = send(ledger, hops, max(0, left))
    positive = [max(0, hop.crossing) for hop in hops]
    measured = sum(positive)
    for hop, crossing in zip(hops, positive, strict=True):
        share = crossing / measured if measured else 1 / len(hops)
        ledger.add(*hop.row, round(rest * share))


def cross_as_measured(ledger: Ledger, hops: Sequence[Hop], left: int) -> int:
    """The same where the hops need not fill the time: returns what is left after sending and links."""
    rest = send(ledger, hops, max(0, left))
    for hop in hops:
        crossing = min(rest, max(0, hop.crossing))
        ledger.add(*hop.row, crossing)
        rest -= crossing
    return rest


def send(ledger: Ledger, hops: Sequence[Hop], left: int) -> int:
    """Adds the senders' part of the hops, cut to `left` nanoseconds; returns what is left of them."""
    sending = sum(max(0, hop.sending) for hop in hops)
    scale = min(1.0, left / sending) if sending else 1.0
    for hop in hops:
        rest = max(0, hop.sending)
        step = hop.step
        parts: tuple[tuple[str, int], ...] = ((f"{RULED}{hop.turn_for}", hop.turn),) if step is None else (
            (f"{RULED}{step.turn_for}", step.turn),
            ("codec", step.codec),
            ("seal", step.seal),
            ("credit", step.credit),
        )  # fmt: skip
        for what, part in parts:
            ledger.add(hop.source, what, round(min(part, rest) * scale))
            rest -= min(part, rest)
        ledger.add(hop.source, "send", round(rest * scale))
    return max(0, left - round(sending * scale))


def work_parts(step: Step, own_steps: Iterable[Step], start: int, end: int) -> list[tuple[str, int]]:
    """What a stage did on one step between two times, as (what, nanoseconds).

    Args:
        step: The step.
        own_steps: Other steps of the same generation there. While this one waited, the stage computed earlier chunks
            of the same prompt: that is work on it, not a queue.
        start: What lies before is left out.
        end: What lies after is left out.
    """

    def within(began: int, ended: int) -> int:
        return max(0, min(ended, end) - max(began, start))

    waited = within(step.opened, step.started)
    own = 0
    if waited:
        own = sum(
            within(max(other.started, step.opened), min(other.ended, step.started))
            for other in own_steps
            if other != step and other.ended <= step.started
        )
    own = min(own, waited)
    held = min(step.held, waited - own)
    return [
        ("open", within(step.received, step.opened)),
        ("compute", own),
        (f"{RULED}{step.held_by}", held),
        ("queue", waited - own - held),
        ("compute", within(step.started, step.ended)),
    ]
