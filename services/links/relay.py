"""A relay: one emulated link in front of one TCP address, for development and tests.

    relay = await Relay.start(RelaySpec("sat-1>sat-2", target="127.0.0.1:5000", forward=Shape(latency_ms=20)))
    ... connect to relay.address instead of 127.0.0.1:5000 ...
    await relay.cut()        # connections are reset, new ones refused
    await relay.restore()
    await relay.close()

    await relay.follow(Schedule(plan, "sat-1", "sat-2", clock))   # open, closed, late and thin as the plan says

What it does not emulate: a TCP handshake costs no latency (the client is connected to the relay at once);
nothing is lost or repeated (TCP would hide it; say it as rate and jitter; damage it would
hide too, but `corrupt_per_mib` shows what a broken checksum lets through); each relay has its own rate, also
where two relays stand for the same physical link. Only TCP, only Linux.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from services.links.core import RelayCore, RelayStats
from services.links.engine import Engine
from services.links.schedule import Schedule
from services.links.shaper import Shape
from services.links.spec import RelaySpec, resolve

_T = TypeVar("_T")


class Relay:
    """The asynchronous face of one relay. Use `await Relay.start(spec)`, or `async with await
    Relay.start(spec)`."""

    def __init__(self, core: RelayCore, engine: Engine, owns_engine: bool) -> None:
        self._core = core
        self._engine = engine
        self._owns_engine = owns_engine
        self._closed = False

    @classmethod
    async def start(cls, spec: RelaySpec, engine: Engine | None = None) -> Relay:
        """Listen and relay, on `engine` where given (it may host many relays), else on an engine of its own.

        Raises:
            TransportError: the target's name is unknown, or the address to listen on is not free.
        """
        running = engine or Engine()
        try:
            core = await asyncio.to_thread(RelayCore, spec, running)
        except BaseException:
            if engine is None:
                running.close()
            raise
        relay = cls(core, running, owns_engine=engine is None)
        try:
            await relay._on_engine(core.open)
        except BaseException:
            await relay.close()
            raise
        return relay

    @property
    def spec(self) -> RelaySpec:
        """The link as it is now."""
        return self._core.spec

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return int(self._core.port)

    @property
    def address(self) -> str:
        """`host:port` that clients connect to."""
        return self._core.address

    async def cut(self) -> None:
        """Reset every connection and refuse new ones until `restore`."""
        await self._on_engine(self._core.cut)

    async def pause(self) -> None:
        """Hold all bytes where they are until `restore`; connections stay and see silence."""
        await self._on_engine(self._core.pause)

    async def restore(self) -> None:
        """End a cut or a pause; an outage of the plan that is followed stays."""
        await self._on_engine(self._core.restore)

    async def follow(self, schedule: Schedule) -> None:
        """Open and close, and take latency and rate, as a contact plan says, from now on.

        Raises:
            InvalidInputError: the emulator cannot carry a contact of the plan.
        """
        await self._on_engine(lambda: self._core.follow(schedule))

    async def unfollow(self) -> None:
        """Follow no plan any more: up, with the shapes of the spec."""
        await self._on_engine(self._core.unfollow)

    async def set(
        self, *, forward: Shape | None = None, reverse: Shape | None = None, target: str | None = None
    ) -> None:
        """Change a direction at once, or the target for connections to come.

        Bytes already on the link keep their times, and none overtakes them.

        Raises:
            TransportError: the target's name is unknown.
        """
        now = self._core.spec
        spec = replace(now, forward=forward or now.forward, reverse=reverse or now.reverse, target=target or now.target)
        found = await asyncio.to_thread(resolve, spec.target)
        await self._on_engine(lambda: self._core.set(spec, found))

    async def stats(self) -> RelayStats:
        """What the relay has done and holds."""
        return await self._on_engine(self._core.stats)

    async def close(self) -> None:
        """Reset what is connected and give the port back. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        await self._on_engine(self._core.close)
        if self._owns_engine:
            await asyncio.to_thread(self._engine.close)

    async def __aenter__(self) -> Relay:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _on_engine(self, command: Callable[[], _T]) -> _T:
        return await asyncio.wrap_future(self._engine.submit(command))
