"""Messages between named endpoints that are late, lost, doubled, overtaken, damaged, cut off, and killed: all by seed.

`Faults()` without arguments is a good link. A link that `holds` is like a session: what cannot pass waits in order
until it can, unless one of the two ends is killed. One that does not is like a datagram.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.world import Timer, World

Handler = Callable[[str, Any], object]
"""What takes a message: the sender's name and the message."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on a way, per message; probabilities from 0 to 1."""

    delay_s: tuple[float, float] = (0.001, 0.01)
    """The shortest and the longest delay, in seconds."""
    drop: float = 0.0
    """It is lost."""
    duplicate: float = 0.0
    """It comes twice."""
    reorder: float = 0.0
    """It is overtaken by what is sent up to `reorder_s` later; only where not `ordered`."""
    reorder_s: float = 0.2
    """By how much at most, in seconds."""
    corrupt: float = 0.0
    """It is changed by `Network.damage`."""
    ordered: bool = False
    """What was sent first arrives first, whatever the delays."""
    holds: bool = False
    """What meets a partition waits for its end, in order, and nothing is lost while both ends live; implies
    `ordered`."""


SESSION = Faults(holds=True, ordered=True)
"""A way like that of a session: whole, in order, once; late by partitions, lost only with an end."""


def flip_a_bit(world: World, message: Any) -> Any:
    """Damages bytes; other messages need a `damage` of their own."""
    if not isinstance(message, bytes):
        raise TypeError("this network corrupts, and its messages are no bytes: give it `damage`")
    if not message:
        return b"\0"
    at = world.random.randrange(len(message))
    return message[:at] + bytes((message[at] ^ (1 << world.random.randrange(8)),)) + message[at + 1 :]


class Endpoint:
    """A process of the simulation: its handler, its timers, and which of its lives this is."""

    def __init__(self, network: Network, name: str, handler: Handler, life: int) -> None:
        self.network = network
        self.name = name
        self.handler = handler
        self.life = life
        self.alive = True
        self.paused = False
        self._held: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def send(self, to: str, message: Any) -> None:
        """Sends a message; nothing happens where this life is over."""
        if self.alive:
            self.network.send(self.name, to, message)

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> Timer:
        """Does something later, unless this life ends before."""
        return self.network.world.after(delay_s, self.do, call, *args)

    def every(self, interval_s: float, call: Callable[[], object]) -> None:
        """Does something again and again, first after one interval, while this life lasts."""

        def again() -> None:
            call()
            self.after(interval_s, again)

        self.after(interval_s, again)

    def do(self, call: Callable[..., object], *args: Any) -> None:
        """Does something now; later where the process is paused, never where it is dead."""
        if self.paused and self.alive:
            self._held.append((call, args))
        elif self.alive:
            call(*args)

    def resume(self) -> None:
        """Ends a pause: what came meanwhile is done now, in order."""
        self.paused = False
        held, self._held = self._held, []
        for call, args in held:
            self.network.world.after(0.0, self.do, call, *args)


@dataclass(slots=True)
class Counts:
    """What the network did: a test that meant to see faults can ask."""

    sent: int = 0
    delivered: int = 0
    dropped: int = 0
    duplicated: int = 0
    corrupted: int = 0
    held: int = 0
    kills: int = 0
    partitions: int = 0


@dataclass(slots=True)
class _Way:
    faults: Faults
    closed: int = 0
    closures: int = 0
    resets: int = 0
    last_s: float = 0.0
    held: list[Any] = field(default_factory=list)
    flying: deque[tuple[Timer, Any, int]] = field(default_factory=deque)
    """Of a holding way: what is under way, in order."""


def _is_still_closed(way: _Way, closure: int) -> bool:
    return way.closed > 0 and way.closures == closure


class Network:
    """Endpoints and the ways between them.

    Args:
        world: Time and chance.
        faults: Of every way that has none of its own.
        damage: Changes a message that is corrupted.
    """

    def __init__(
        self,
        world: World,
        faults: Faults | None = None,
        *,
        damage: Callable[[World, Any], Any] = flip_a_bit,
    ) -> None:
        self.world = world
        self.faults = faults or Faults()
        self.counts = Counts()
        self._damage = damage
        self._endpoints: dict[str, Endpoint] = {}
        self._ways: dict[tuple[str, str], _Way] = {}
        self._watches: list[tuple[str, int, str, float, Callable[[], object]]] = []

    # --- endpoints
    # ---------------------------------------------------------------------------------------------------

    def add(self, name: str, handler: Handler) -> Endpoint:
        """Starts an endpoint, or starts one that was killed again, with nothing left of what it knew."""
        before = self._endpoints.get(name)
        if before is not None and before.alive:
            raise ValueError(f"{name} runs already; kill it first")
        endpoint = self._endpoints[name] = Endpoint(self, name, handler, before.life + 1 if before else 0)
        return endpoint

    def alive(self, name: str) -> bool:
        """Whether an endpoint runs."""
        endpoint = self._endpoints.get(name)
        return endpoint is not None and endpoint.alive

    def kill(self, name: str) -> None:
        """Ends an endpoint at once: its timers, what it holds, and what is under way to and from it on holding ways."""
        endpoint = self._endpoints[name]
        if not endpoint.alive:
            return
        endpoint.alive = False
        self.counts.kills += 1
        self.world.note("kill", name)
        for (source, target), way in self._ways.items():
            if name in (source, target):
                way.held.clear()
        self._watches = [each for each in self._watches if each[0] != name]
        self._unreachable(name, None, lambda: True)

    def restart(self, name: str, handler: Handler) -> Endpoint:
        """Kills and starts anew."""
        if self.alive(name):
            self.kill(name)
        self.world.note("start", name)
        return self.add(name, handler)

    def pause(self, name: str, for_s: float) -> None:
        """Stops an endpoint as SIGSTOP does: nothing is lost, everything is late, its timers too."""
        endpoint = self._endpoints[name]
        endpoint.paused = True
        self.world.note("pause", name, for_s)
        self.world.after(for_s, endpoint.resume)

    def watch(self, watcher: str, watched: str, lost: Callable[[], object], detection_s: float = 1.0) -> None:
        """Calls `lost` so long after `watched` was killed or became unreachable, as a session does that gives up.

        It is called for every such loss while this life of the watcher lasts. With it goes what was under way between
        the two: a session that is lost brings nothing later.
        """
        self._watches.append((watcher, self._endpoints[watcher].life, watched, detection_s, lost))

    def _unreachable(self, name: str, other: str | None, still: Callable[[], bool]) -> None:
        """Tells whoever watches `name` (only `other`, where it is named) unless it is `still` so no more by then."""
        for watcher, life, watched, detection_s, lost in self._watches:
            endpoint = self._endpoints[watcher]
            if watched == name and other in (None, watcher) and endpoint.life == life:
                endpoint.after(detection_s, self._tell_lost, watcher, watched, still, lost)

    def _tell_lost(self, watcher: str, watched: str, still: Callable[[], bool], lost: Callable[[], object]) -> None:
        if still():
            self.world.note("lost", watched, "says", watcher)
            self.reset(watcher, watched)
            lost()

    def reset(self, one: str, two: str) -> None:
        """Loses everything that is under way between two endpoints: their session was given up."""
        for way in (self.way(one, two), self.way(two, one)):
            way.resets += 1
            way.held.clear()
            way.flying.clear()

    # --- ways
    # --------------------------------------------------------------------------------------------------------

    def way(self, source: str, target: str) -> _Way:
        """The way from one endpoint to another."""
        way = self._ways.get((source, target))
        if way is None:
            way = self._ways[source, target] = _Way(self.faults)
        return way

    def set_faults(self, source: str, target: str, faults: Faults) -> None:
        """Changes what goes wrong on one way."""
        self.way(source, target).faults = faults

    def partition(self, one: str, two: str, for_s: float | None = None, *, one_way: bool = False) -> None:
        """Nothing passes from `one` to `two`, nor back unless `one_way`, for some time or until `heal`."""
        self.counts.partitions += 1
        self.world.note("partition", one, two, for_s, "one way" if one_way else "")
        for source, target in ((one, two),) if one_way else ((one, two), (two, one)):
            way = self.way(source, target)
            way.closed += 1
            if way.closed == 1:
                way.closures += 1
                # What is under way waits before what is sent from now on, whatever is left of its delay.
                for timer, message, life in way.flying:
                    if timer.pending:
                        timer.cancel()
                        way.held.append((message, life))
                way.flying.clear()
                still = functools.partial(_is_still_closed, way, way.closures)
                self._unreachable(source, target, still)
                self._unreachable(target, source, still)
            if for_s is not None:
                self.world.after(for_s, self._open, source, target)

    def heal(self, one: str, two: str) -> None:
        """Ends every partition between two endpoints."""
        for source, target in ((one, two), (two, one)):
            while self.way(source, target).closed:
                self._open(source, target)

    def _open(self, source: str, target: str) -> None:
        way = self.way(source, target)
        if way.closed:
            way.closed -= 1
        if not way.closed:
            held, way.held = way.held, []
            for message, life in held:
                self._pass(source, target, way, message, life)

    # --- messages
    # ----------------------------------------------------------------------------------------------------

    def send(self, source: str, target: str, message: Any) -> None:
        """Sends a message on its way."""
        self.counts.sent += 1
        way = self.way(source, target)
        endpoint = self._endpoints.get(target)
        life = endpoint.life if endpoint is not None else -1
        if way.closed:
            if way.faults.holds:
                self.counts.held += 1
                way.held.append((message, life))
            else:
                self.counts.dropped += 1
            return
        self._pass(source, target, way, message, life)

    def _pass(self, source: str, target: str, way: _Way, message: Any, life: int) -> None:
        world, faults = self.world, way.faults
        if not faults.holds:
            if world.chance(faults.drop):
                self.counts.dropped += 1
                world.note("drop", source, target, message)
                return
            if world.chance(faults.corrupt):
                self.counts.corrupted += 1
                message = self._damage(world, message)
                world.note("corrupt", source, target, message)
        copies = 1
        if not faults.holds and world.chance(faults.duplicate):
            self.counts.duplicated += 1
            copies = 2
        low, high = faults.delay_s
        for _ in range(copies):
            when_s = world.now_s + low + (high - low) * world.random.random()
            if faults.ordered or faults.holds:
                when_s = way.last_s = max(when_s, way.last_s)
            elif world.chance(faults.reorder):
                when_s += faults.reorder_s * world.random.random()
            timer = world.at(when_s, self._arrive, source, target, way, message, life, way.resets)
            if faults.holds:
                while way.flying and not way.flying[0][0].pending:
                    way.flying.popleft()
                way.flying.append((timer, message, life))

    def _arrive(self, source: str, target: str, way: _Way, message: Any, life: int, resets: int) -> None:
        endpoint = self._endpoints.get(target)
        gone = (
            endpoint is None
            or not endpoint.alive
            or (way.faults.holds and (endpoint.life != life or way.resets != resets))
        )
        if endpoint is None or gone:
            self.counts.dropped += 1
            return
        if way.closed:
            # What was under way when the way closed does not arrive either.
            if way.faults.holds:
                way.held.append((message, life))
            else:
                self.counts.dropped += 1
            return
        self.counts.delivered += 1
        self.world.note(source, ">", target, message)
        endpoint.do(endpoint.handler, source, message)
