"""A port that is there while rules hold; else everything passes."""

from __future__ import annotations

import asyncio

from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.wire.egress import Turn
from services.egress.port import EgressPort
from services.egress.spec import DEFAULT_SLICE, PortSpec
from services.egress.traffic import Traffic

_AT_ONCE = Turn(0, "")


class Gate:
    """One way out, with rules or without. It is an `orbitmesh.wire.egress.Egress`.

    Args:
        departs: Whether frames that had their turn wait for another one (see `EgressPort`).
    """

    def __init__(self, *, departs: bool = False) -> None:
        self._departs = departs
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

    @property
    def port(self) -> EgressPort | None:
        """The port that turns have to be asked of; None while no rules hold and none that waited under rules is
        left."""
        return self._port if self._port is not None and (self._ruled or not self._port.idle) else None

    def rule(self, spec: PortSpec | None) -> None:
        """Takes other rules from now on, or none; nothing that waits is lost."""
        ruled = spec is not None and any(name != DEFAULT_SLICE for name in spec.slices)
        if spec is not None and self._port is not None:
            if spec != self._port.spec:
                self._port.change(spec)
        elif spec is not None and ruled:
            self._port = EgressPort(spec, departs=self._departs)
        self._ruled = ruled

    def frame_bytes(self, slice_name: str) -> int:
        """How large the frames of a slice should be."""
        return FRAME_BODY_BYTES if self._port is None or not self._ruled else self._port.frame_bytes(slice_name)

    def ask(
        self, slice_name: str, size: int, since_ns: int | None = None, flow: str = ""
    ) -> Turn | asyncio.Future[Turn]:
        """Asks for the turn of a frame; while no rules hold, and none that waited under rules is left, it is there.

        Raises:
            CapacityError: Too much of the slice waits already (SLICE_FULL).
        """
        port = self.port
        return _AT_ONCE if port is None else port.ask(slice_name, size, since_ns, flow)

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
