"""What a simulated generation is made of: a model whose every number depends on everything before it, the ways between
the processes, and what a stage holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.executor.progress import Progress
from services.journal.rows import RowJournal
from tests.simulation.network import SESSION, Faults, Network
from tests.simulation.world import World

CHUNK = 8
"""Rows of one step of a prompt or a replay."""
DETECTION_S = 1.0
"""How long until a session that broke is given up, in seconds."""
GATEWAY = "gateway"


# --- the model


def mix(*numbers: int) -> int:
    """Numbers hashed to 63 bits; the same in every process."""
    return hash(numbers) & ((1 << 63) - 1)


@dataclass(frozen=True)
class Truth:
    """What every stage must hold and every token must be, from a plain loop without any mesh."""

    tokens: tuple[int, ...]
    """Prompt and tokens."""
    prompt: int
    """How many are the prompt's."""
    caches: tuple[tuple[int, ...], ...]
    """What each stage's cache holds, by position."""


@functools.cache
def truth(stages: int, prompt: int, new: int, seed: int = 0) -> Truth:
    """A whole generation, computed at one place."""
    tokens = [mix(seed, at) % 50_000 for at in range(prompt)]
    caches: list[list[int]] = [[] for _ in range(stages)]
    for position in range(prompt + new - 1):
        row = tokens[position]
        for stage, cache in enumerate(caches):
            row = forward(stage, cache, [row])[0]
        if position + 1 >= prompt:
            tokens.append(sampled(row))
    return Truth(tuple(tokens), prompt, tuple(map(tuple, caches)))


def forward(stage: int, cache: list[int], rows: Sequence[int]) -> list[int]:
    """Adds rows to a cache; each result depends on all rows so far."""
    made = []
    for row in rows:
        cache.append(mix(stage, row, cache[-1] if cache else 0, len(cache)))
        made.append(mix(cache[-1]))
    return made


def sampled(row: int) -> int:
    """The token behind a last stage's row."""
    return mix(row, 1) % 50_000


# --- the ways between processes


class Wires:
    """Sessions and calls between the same processes: a session is whole until it is lost, a call may be lost alone."""

    def __init__(self, world: World, delay_s: tuple[float, float], calls: Faults) -> None:
        self.world = world
        self.sessions = Network(world, replace(SESSION, delay_s=delay_s))
        self.calls = Network(world, calls)

    def kill(self, name: str) -> None:
        """kill -9."""
        self.sessions.kill(name)
        self.calls.kill(name)

    def partition(self, one: str, two: str, for_s: float, *, one_way: bool = False) -> None:
        """Nothing passes for a while."""
        self.sessions.partition(one, two, for_s, one_way=one_way)
        self.calls.partition(one, two, for_s, one_way=one_way)

    def send(self, source: str, target: str, message: Any, failed: Callable[[], object] | None) -> None:
        """Sends over the session, or over one that is dialled for it; `failed` where none comes about in time."""
        way = self.sessions.way(source, target)
        nobody, closures = not self.sessions.alive(target), way.closures
        if not nobody:
            self.sessions.send(source, target, message)
        if nobody or way.closed:

            def given_up() -> None:
                if not nobody and not (way.closed and way.closures == closures):
                    return
                way.resets += 1
                way.held.clear()
                way.flying.clear()
                if failed is not None:
                    failed()

            self.world.after(DETECTION_S, given_up)


@dataclass
class Story:
    """What one run is made of and what is counted in it."""

    world: World
    wires: Wires
    truth: Truth
    stages: int
    stop: int
    room_bytes: int
    compute_s: float
    disks: dict[str, Any] = field(default_factory=dict)
    computed: dict[tuple[str, int], int] = field(default_factory=dict)
    """How often a node computed a position, over all its lives."""
    steps: int = 0
    calls: int = 0
    gaps: int = 0
    """How often something came where something else was expected."""
    doubles: int = 0
    """How often a row or a token came, in its epoch, that was there already."""
    dropped_journals: int = 0
    restored: int = 0
    on_taken: Callable[[str, int, int], object] | None = None
    """Told (node, stage, position) when a step was accepted."""
    on_computed: Callable[[str, int, int], object] | None = None
    """Told (node, stage, end) after every step."""


# --- a stage


@dataclass
class Held:
    """A generation in a stage: what the executor's `Generation` is."""

    progress: Progress
    route: tuple[str, ...]
    journal: RowJournal
    fence: int
    """The latest epoch that the stage was told, kept apart from `progress` to judge it by."""
    tokens_from: int
    cache_from: str = ""
    next_route: tuple[str, ...] | None = None
    cache: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    run: int = 0
    feed_to: str | None = None
    waiting: list[Callable[[], None]] = field(default_factory=list)
    closed: bool = False
    changed_s: float = 0.0
    saved: Any = None

    def route_at(self, position: int) -> tuple[str, ...]:
        """The way of a step of this position."""
        if self.next_route is not None and self.progress.epoch_at(position) != self.progress.epoch:
            return self.next_route
        return self.route

    def settle_route(self) -> None:
        """Takes the new way once the switch is behind."""
        if self.next_route is not None and self.progress.switch is None:
            self.route, self.next_route, self.feed_to = self.next_route, None, None

    def note_tokens(self, position: int, ids: Sequence[int]) -> None:
        """Ids from a position on, as far as the stage knows."""
        self.cut_tokens(position)
        if position == self.tokens_from + len(self.tokens):
            self.tokens.extend(ids)

    def cut_tokens(self, position: int) -> None:
        """Forgets ids from a position on."""
        del self.tokens[max(0, position - self.tokens_from) :]
