"""A port on an event loop: whoever sends asks for a turn, and waits until the frame may go.

Timers of an event loop come up to a millisecond late, and later where the machine is busy. Frames are therefore handed
over up to `AHEAD_NS` before the link is free, and what came late catches up: the rate is kept, and no more than a frame
and that time lies below.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from orbitmesh.wire.egress import Turn
from services.egress.lanes import Cause, State, Ticket
from services.egress.scheduler import Port
from services.egress.spec import PortSpec
from services.egress.traffic import Traffic

AHEAD_NS = 500_000
"""How long before the link is free a frame is handed over, in nanoseconds."""

USED = 0.97
"""The part of a link's rate that a port gives away: acknowledgements, pings and what TCP adds need the rest, and what
lies in buffers below must get less with time, not more."""


class EgressPort:
    """One link of a node, for all sessions that use it. It is an `orbitmesh.wire.egress.Egress`.

    Args:
        spec: The link and its slices; its rate is what the port gives away (see `USED`).
        clock: A monotonic clock, in nanoseconds.
        departs: Whether frames that had their turn wait for another one, and leave when `depart` says so.
    """

    def __init__(
        self, spec: PortSpec, *, clock: Callable[[], int] = time.monotonic_ns, departs: bool = False
    ) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._port = Port(spec, clock(), ahead_ns=AHEAD_NS, departs=departs)
        self._waiting: dict[Ticket, asyncio.Future[Turn]] = {}
        self._resuming = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._due_soon = False

    @property
    def spec(self) -> PortSpec:
        """The rules as they are now."""
        return self._port.spec

    @property
    def traffic(self) -> dict[str, Traffic]:
        """What was measured, by slice."""
        return self._port.traffic

    @property
    def queued(self) -> int:
        """How many frames wait."""
        return self._port.queued

    @property
    def idle(self) -> bool:
        """Whether nobody waits, and nobody whose turn has come is still to be woken, or to leave."""
        return not self._port.queued and not self._resuming and not self._port.departing

    @property
    def now_ns(self) -> int:
        """The time on this port's clock."""
        return self._clock()

    def frame_bytes(self, slice_name: str) -> int:
        """How large the frames of a slice should be."""
        return self._port.frame_bytes(slice_name)

    def change(self, spec: PortSpec) -> None:
        """Takes other rules from now on; no frame that waits is lost."""
        self._port.change(spec, self._clock())
        self._pump()

    def ask(
        self, slice_name: str, size: int, since_ns: int | None = None, flow: str = ""
    ) -> Turn | asyncio.Future[Turn]:
        """Asks for the turn of a frame: it is there at once, or comes with a future, and cancelling that gives it back.

        Args:
            slice_name: Empty for the default one.
            size: What it takes on the link, in bytes.
            since_ns: From when on its wait counts in what is measured, by this port's clock; None: from now on.
            flow: Frames of a slice keep their order within a flow; flows take turns.

        Raises:
            CapacityError: Too much of the slice waits already (SLICE_FULL).
        """
        now_ns = self._clock()
        ticket = self._port.offer(slice_name, size, now_ns, since_ns, flow)
        # Nobody may overtake a sender whose turn has come and who has not been woken yet.
        if self._port.queued == 1 and not self._resuming and self._port.next(now_ns) is ticket:
            return _Granted(0, "", ticket)
        future: asyncio.Future[Turn] = self._loop.create_future()
        self._waiting[ticket] = future
        future.add_done_callback(lambda done: self._done(ticket))
        self._look_soon()
        return future

    async def turn(self, slice_name: str, size: int) -> Turn:
        """Waits for the turn of a frame; a call that is cancelled gives its place back.

        Raises:
            CapacityError: Too much of the slice waits already (SLICE_FULL).
        """
        asked = self.ask(slice_name, size)
        if isinstance(asked, Turn):
            return asked
        try:
            return await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled() and asked.exception() is None:
                self.give_back(asked.result())
            raise

    def give_back(self, turn: Turn) -> None:
        """The frame of a turn will not be sent."""
        if isinstance(turn, _Granted):
            self._port.withdraw(turn.ticket, self._clock())
            self._pump()

    def depart(self, turn: Turn) -> None:
        """The frame of a turn leaves now."""
        if isinstance(turn, _Granted):
            self._port.depart(turn.ticket, self._clock())
            self._look_soon()

    def occupy(self, size: int) -> None:
        """Something goes on the link without a turn, for instance what was written again after a cut."""
        self._port.occupy(size, self._clock())

    def close(self) -> None:
        """Wakes nobody any more: those who wait are cancelled."""
        if self._timer is not None:
            self._timer.cancel()
        for future in list(self._waiting.values()):
            future.cancel()

    def _pump(self) -> None:
        """Gives all turns that are due, and sets the timer for the next one."""
        now_ns = self._clock()
        while isinstance(found := self._port.next(now_ns), Ticket):
            future = self._waiting.pop(found)
            if future.done():  # given up, and the callback that says so has not run yet
                self._port.withdraw(found, now_ns)
            else:
                self._resuming += 1
                future.set_result(_Granted(found.waited_ns, self._why(found), found))
        if found is not None and (self._timer is None or found < self._timer_ns):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ns = found
            self._timer = self._loop.call_later((found - now_ns) / 1e9, self._due)

    def _look_soon(self) -> None:
        # Not now: a turn that came in this call would be taken before those that others have not been woken for.
        if not self._due_soon:
            self._due_soon = True
            self._loop.call_soon(self._soon)

    def _soon(self) -> None:
        self._due_soon = False
        self._pump()

    def _due(self) -> None:
        self._timer = None
        self._pump()

    def _done(self, ticket: Ticket) -> None:
        """A future is done, and whoever waits for it is woken next; or it was given up."""
        if ticket.state is State.SENT:
            self._resuming -= 1
            self._port.begin(ticket, self._clock())
        elif ticket.state is State.WAITS:
            self._waiting.pop(ticket, None)
            self._port.withdraw(ticket, self._clock())
            self._pump()

    def _why(self, ticket: Ticket) -> str:
        """What a frame waited for, for traces."""
        if ticket.cause is Cause.CEILING:
            return f"slice ceiling {rate_text(ticket.lane.rule.ceiling_bps or self.spec.rate_bps)}"
        return "" if ticket.cause is None else _WHY[ticket.cause]


class _Granted(Turn):
    """A turn, and the place that it was."""

    __slots__ = ("ticket",)

    def __init__(self, waited_ns: int, why: str, ticket: Ticket) -> None:
        super().__init__(waited_ns, why)
        self.ticket = ticket


_WHY = {
    Cause.URGENT: "urllc first",
    Cause.LINK: "link busy",
    Cause.DEDICATED: "the rest is dedicated to other slices",
}


def rate_text(rate_bps: float) -> str:
    """A rate for people: 4 Mbit/s."""
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if rate_bps >= factor:
            return f"{rate_bps / factor:.4g} {unit}"
    return f"{rate_bps:.4g} bit/s"
