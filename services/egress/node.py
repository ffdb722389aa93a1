"""The ways out of one sender: it keeps to the slices that have bandwidth there; while none has, everything passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2
from orbitmesh.wire.egress import Turn
from services.egress.gate import Gate
from services.egress.link import LinkEgress
from services.egress.links import LINKS_MAX, LinkRates
from services.egress.port import USED
from services.egress.rules import by_node, capacity_bps, port_spec
from services.egress.spec import RATE_MIN_BPS, PortSpec
from services.egress.traffic import Traffic, added

SLEEP_MAX_S = 3600.0
"""The longest timer, in seconds."""
SPECS_MAX = 2048
"""How many rules are kept that were worked out, by node and rate."""

_NOTHING = slices_pb2.WatchSlicesResponse()


class Senders:
    """What those that send through ports have in common: the last word of the slices' service, and the timer for when
    a link changes."""

    def __init__(self) -> None:
        self._told = slices_pb2.WatchSlicesResponse()
        self._nodes: dict[str, slices_pb2.WatchSlicesResponse] = {}
        self._rates = LinkRates()
        self._specs: dict[tuple[str, float], PortSpec] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self, told: slices_pb2.WatchSlicesResponse) -> None:
        """Keeps to the slices and links as they are now; nothing that waits is lost.

        Raises:
            InvalidInputError: They contradict themselves; the rules stay as they were.
        """
        if told == self._told:
            return
        before = self._told, self._nodes, self._rates, self._specs
        rates = LinkRates.told(told, time.monotonic_ns(), time.time_ns())
        self._told, self._nodes, self._rates = told, by_node(told), rates
        same = {node for node, on_it in self._nodes.items() if on_it == before[1].get(node)}
        self._specs = {key: spec for key, spec in before[3].items() if key[0] in same}
        try:
            self._rule()
        except InvalidInputError:
            self._told, self._nodes, self._rates, self._specs = before
            raise
        self._set_timer()

    def close(self) -> None:
        """Wakes nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _rule(self) -> None:
        """Takes the rules of now; all or none."""
        raise NotImplementedError

    def _rate_bps(self, peer: str) -> float | None:
        return self._rates.rate_bps(peer, time.monotonic_ns())

    def _capacity_bps(self, node: str) -> float:
        """What leaves a node in all; 0 where that is not known."""
        return capacity_bps(self._nodes.get(node, _NOTHING), node)

    def _spec(self, node: str, rate_bps: float | None) -> PortSpec | None:
        """The rules of a node on a link; None where nothing is known of its rate."""
        if not rate_bps:
            return None
        found = self._specs.get((node, rate_bps))
        if found is None:
            if len(self._specs) >= SPECS_MAX:
                self._specs.clear()
            told = self._nodes.get(node, _NOTHING)
            found = self._specs[node, rate_bps] = port_spec(told, node, max(rate_bps * USED, RATE_MIN_BPS))
        return found

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_ns = time.monotonic_ns()
        next_ns = self._rates.next_ns(now_ns)
        if next_ns is not None:
            delay_s = min((next_ns - now_ns) / 1e9, SLEEP_MAX_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._changed)

    def _changed(self) -> None:
        self._rule()
        self._set_timer()


class NodeEgress(Senders):
    """All that a node sends, in its sessions with whomever. It is an `orbitmesh.wire.egress.Egress`, for peers of whose
    links nothing is known.

    Args:
        node: The node's name.
    """

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node
        self._out = Gate()
        self._links: dict[str, LinkEgress] = {}

    @property
    def traffic(self) -> dict[str, Traffic]:
        """What was measured of each slice while rules held; each frame counts once, with both of its waits."""
        return added(self._out.traffic, *(_before_out(each.link.traffic) for each in self._links.values()))

    @property
    def spec(self) -> PortSpec | None:
        """The rules of the way out as they are now; None where none hold."""
        return self._out.spec

    def towards(self, peer: str) -> LinkEgress:
        """The way to a peer: over the link to it, where it is thinner than the way out.

        Args:
            peer: The name of a node or service.
        """
        found = self._links.get(peer)
        if found is None:
            found = LinkEgress(peer, Gate(departs=True), self._out)
            if len(self._links) < LINKS_MAX:
                self._links[peer] = found
                found.link.rule(self._link_spec(peer))
        return found

    def frame_bytes(self, slice_name: str) -> int:
        """How large the frames of a slice should be."""
        return self._out.frame_bytes(slice_name)

    def ask(self, slice_name: str, size: int) -> Turn | asyncio.Future[Turn]:
        """Asks for the turn of a frame on the way out.

        Raises:
            CapacityError: Too much of the slice waits already (SLICE_FULL).
        """
        return self._out.ask(slice_name, size)

    def give_back(self, turn: Turn) -> None:
        """The frame of a turn will not be sent."""
        self._out.give_back(turn)

    def occupy(self, size: int) -> None:
        """Something goes out without a turn, in bytes."""
        self._out.occupy(size)

    def close(self) -> None:
        """Wakes nobody any more."""
        super().close()
        for each in self._links.values():
            each.link.close()
        self._out.close()

    def _rule(self) -> None:
        out = self._spec(self._node, self._capacity_bps(self._node))
        links = {peer: self._link_spec(peer) for peer in self._links}
        self._out.rule(out)
        for peer, spec in links.items():
            self._links[peer].link.rule(spec)

    def _link_spec(self, peer: str) -> PortSpec | None:
        """The rules of a link that is thinner than the way out; None where it is not, or nothing is known of it."""
        rate_bps = self._rate_bps(peer)
        thin = rate_bps is not None and rate_bps < self._capacity_bps(self._node)
        return self._spec(self._node, rate_bps) if thin else None


class FarEgress(Senders):
    """What a service sends to nodes: to each as much as its own bandwidth and the link to it carry, by the rules of the
    slices on that node."""

    def __init__(self) -> None:
        super().__init__()
        self._gates: dict[str, Gate] = {}

    @property
    def traffic(self) -> dict[str, Traffic]:
        """What was measured of each slice while rules held, to all nodes."""
        return added(*(gate.traffic for gate in self._gates.values()))

    def towards(self, node: str) -> Gate:
        """The way to a node."""
        found = self._gates.get(node)
        if found is None:
            found = Gate()
            if len(self._gates) < LINKS_MAX:
                self._gates[node] = found
                found.rule(self._far_spec(node))
        return found

    def close(self) -> None:
        """Wakes nobody any more."""
        super().close()
        for gate in self._gates.values():
            gate.close()

    def _rule(self) -> None:
        specs = {node: self._far_spec(node) for node in self._gates}
        for node, spec in specs.items():
            self._gates[node].rule(spec)

    def _far_spec(self, node: str) -> PortSpec | None:
        rates = [rate for rate in (self._capacity_bps(node), self._rate_bps(node)) if rate]
        return self._spec(node, min(rates, default=None))


def _before_out(traffic: Mapping[str, Traffic]) -> dict[str, Traffic]:
    """What the way out has not counted of a link: what still waits for the link, or was refused there."""
    return {
        name: Traffic(offered_bytes=each.offered_bytes - each.sent_bytes, dropped_bytes=each.dropped_bytes)
        for name, each in traffic.items()
    }
