"""A link that is thinner than the way out of its node: each frame has its turn on both, on the link first.

Were it asked for on the way out first, a thin link's queue would take the node's time long before it sends. In between
a frame waits for the way out alone, and is on its link from when it leaves (`depart`): a slice that waits there holds
up its own frames on that link, nobody else's, and at the way out the same slices go first as on the link.
"""

from __future__ import annotations

import asyncio

from orbitmesh.errors import MeshError
from orbitmesh.wire.egress import Turn
from services.egress.gate import Gate
from services.egress.port import EgressPort


class LinkEgress:
    """The way to one peer. It is an `orbitmesh.wire.egress.Egress`.

    Args:
        peer: Its name; on the way out, peers share what a slice gets.
        link: The link's own port, made with `departs`.
        out: The way out of the node, for all links.
    """

    def __init__(self, peer: str, link: Gate, out: Gate) -> None:
        self.link = link
        self._peer = peer
        self._out = out

    def frame_bytes(self, slice_name: str) -> int:
        """How large the frames of a slice should be: as the slower of the two has it."""
        return min(self.link.frame_bytes(slice_name), self._out.frame_bytes(slice_name))

    def ask(self, slice_name: str, size: int) -> Turn | asyncio.Future[Turn]:
        """Asks for a frame's turn on the link and then on the way out.

        Raises:
            CapacityError: Too much of the slice waits already (SLICE_FULL); it may also come with the future.
        """
        port = self.link.port
        if port is None:
            return self._out.ask(slice_name, size, None, self._peer)
        passage = _Passage(self._peer, port, self._out, slice_name, size)
        asked = port.ask(slice_name, size)
        if not isinstance(asked, Turn):
            return passage.wait_for_link(asked)
        return passage.go_out(asked)

    def give_back(self, turn: Turn) -> None:
        """The frame of a turn will not be sent."""
        if isinstance(turn, _Both):
            turn.port.give_back(turn.first)
            turn = turn.second
        self._out.give_back(turn)

    def occupy(self, size: int) -> None:
        """Something goes on the link without a turn, in bytes."""
        self.link.occupy(size)
        self._out.occupy(size)


class _Both(Turn):
    """A turn on a link and on the way out."""

    __slots__ = ("first", "port", "second")

    def __init__(self, port: EgressPort, first: Turn, second: Turn) -> None:
        longer, shorter = (first, second) if first.waited_ns >= second.waited_ns else (second, first)
        super().__init__(first.waited_ns + second.waited_ns, longer.why or shorter.why)
        self.port = port
        self.first = first
        self.second = second


class _Passage:
    """One frame on its way through both."""

    def __init__(self, peer: str, link: EgressPort, out: Gate, slice_name: str, size: int) -> None:
        self._peer = peer
        self._link = link
        self._out = out
        self._name = slice_name
        self._size = size
        self._since_ns = link.now_ns
        self._first: Turn | None = None
        self._asked: asyncio.Future[Turn] | None = None
        self._outer: asyncio.Future[Turn] | None = None

    def wait_for_link(self, asked: asyncio.Future[Turn]) -> asyncio.Future[Turn]:
        """The turn on the link is still to come."""
        self._asked = asked
        outer = self._future()
        asked.add_done_callback(self._linked)
        return outer

    def go_out(self, first: Turn) -> Turn | asyncio.Future[Turn]:
        """The turn on the link is there.

        Raises:
            CapacityError: Too much of the slice waits for the way out already (SLICE_FULL).
        """
        try:
            asked = self._out.ask(self._name, self._size, self._since_ns, self._peer)
        except MeshError:
            self._link.give_back(first)
            raise
        self._first = first
        if not isinstance(asked, Turn):
            self._asked = asked
            outer = self._future()
            asked.add_done_callback(self._released)
            return outer
        both = _Both(self._link, first, asked)
        if self._outer is None:
            self._link.depart(first)
            return both
        self._asked = None
        self._outer.set_result(both)
        return self._outer

    def _future(self) -> asyncio.Future[Turn]:
        if self._outer is None:
            self._outer = asyncio.get_running_loop().create_future()
            self._outer.add_done_callback(self._over)
        return self._outer

    def _linked(self, asked: asyncio.Future[Turn]) -> None:
        outer = self._future()
        if asked.cancelled():
            outer.cancel()
        elif outer.done():  # given up as the turn came
            self._link.give_back(asked.result())
        else:
            try:
                self.go_out(asked.result())
            except MeshError as error:
                outer.set_exception(error)

    def _released(self, asked: asyncio.Future[Turn]) -> None:
        outer = self._future()
        if asked.cancelled():
            outer.cancel()
        elif outer.done():
            self._out.give_back(asked.result())
        elif self._first is not None:
            outer.set_result(_Both(self._link, self._first, asked.result()))

    def _over(self, outer: asyncio.Future[Turn]) -> None:
        """Both turns are there, and whoever waits for them is woken next; or they were given up."""
        given_up = outer.cancelled() or outer.exception() is not None
        if given_up and self._asked is not None:
            self._asked.cancel()
        if self._first is not None:
            (self._link.give_back if given_up else self._link.depart)(self._first)
