"""The way out of one node: it keeps to the slices that have bandwidth there; while none has, everything passes."""

from __future__ import annotations

import asyncio

from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.v1 import slices_pb2
from orbitmesh.wire.egress import Turn
from services.egress.port import USED, EgressPort
from services.egress.rules import capacity_bps, port_spec
from services.egress.spec import DEFAULT_SLICE, PortSpec
from services.egress.traffic import Traffic

_AT_ONCE = Turn(0, "")


class NodeEgress:
    """All that a node sends, in its sessions with whomever. It is an `orbitmesh.wire.egress.Egress`.

    Args:
        node: The node's name.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._port: EgressPort | None = None
        self._ruled = False

    @property
    def traffic(self) -> dict[str, Traffic]:
        """What was measured of each slice while rules held."""
        return {} if self._port is None else self._port.traffic

    @property
    def spec(self) -> PortSpec | None:
        """The rules as they are now; None where none hold."""
        return self._port.spec if self._port is not None and self._ruled else None

    def take(self, told: slices_pb2.WatchSlicesResponse) -> None:
        """Keeps to the slices as they are now; nothing that waits is lost.

        Raises:
            InvalidInputError: They contradict themselves; the rules stay as they were.
        """
        rate_bps = capacity_bps(told, self._node) * USED
        spec = port_spec(told, self._node, rate_bps) if rate_bps > 0 else None
        ruled = spec is not None and any(name != DEFAULT_SLICE for name in spec.slices)
        if spec is not None and self._port is not None:
            if spec != self._port.spec:
                self._port.change(spec)
        elif spec is not None and ruled:
            self._port = EgressPort(spec)
        self._ruled = ruled

    def frame_bytes(self, slice_name: str) -> int:
        """How large the frames of a slice should be."""
        return FRAME_BODY_BYTES if self._port is None or not self._ruled else self._port.frame_bytes(slice_name)

    def ask(self, slice_name: str, size: int) -> Turn | asyncio.Future[Turn]:
        """Asks for the turn of a frame; while no rules hold, and none that waited under rules is left, it is there.

        Raises:
            CapacityError: Too much of the slice waits already (SLICE_FULL).
        """
        if self._port is None or (not self._ruled and self._port.idle):
            return _AT_ONCE
        return self._port.ask(slice_name, size)

    def give_back(self, turn: Turn) -> None:
        """The frame of a turn will not be sent."""
        if self._port is not None:
            self._port.give_back(turn)

    def occupy(self, size: int) -> None:
        """Something goes on the link without a turn, in bytes."""
        if self._port is not None and self._ruled:
            self._port.occupy(size)

    def close(self) -> None:
        """Wakes nobody any more."""
        if self._port is not None:
            self._port.close()
