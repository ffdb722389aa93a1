"""The course of one generation as its gateway steers it: pure transitions, no clock, no calls.

The gateway is the one that knows every token that a client was given, so it decides from where a generation goes on:

    GATHERING   every stage was told to stop under a new epoch; their answers are awaited
    RUNNING     tokens come
    WAITING     a stage has no node that answers: another one is asked for, or time has to pass

A loss, a gap or silence leads from RUNNING back to GATHERING under the next epoch, and so does another pipeline. When
all stages have answered, `settle` works out from where each goes on. Planned moves go without stopping: `switch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Phase(Enum):
    """What a generation waits for."""

    GATHERING = "gathering"
    """The answers of its stages."""
    RUNNING = "running"
    """Tokens."""
    WAITING = "waiting"
    """A node, or a path to one."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a stage got, as it answered."""

    length: int = 0
    """Positions in its cache."""
    journal_start: int = 0
    """The first position that it can send on without computing it; up to `length`."""


@dataclass(frozen=True, slots=True)
class Start:
    """From where one stage goes on."""

    length: int
    """Its cache and its journal are cut to so many positions."""
    push_from: int
    """It sends on what it has from this position on, and everything after."""


def settle(standings: Sequence[Standing], known: int) -> tuple[Start, ...]:
    """From where each stage goes on, so that no row that is still good is computed or sent again.

    Args:
        standings: The stages' answers, in order of the pipeline.
        known: How many positions, prompt and tokens, have a known token.

    From the last stage to the first: a stage keeps what it has, but no position whose token is not known; and where its
    journal does not reach back to what the next one lacks, it gives up its cache from there on and computes again. The
    last stage gives up one more, because the row before an unknown token has to be computed to sample it.
    """
    lengths = [min(standing.length, known) for standing in standings]
    lengths[-1] = min(lengths[-1], known - 1)
    for index in range(len(lengths) - 2, -1, -1):
        needed = lengths[index + 1]
        if standings[index].journal_start > needed:
            lengths[index] = min(lengths[index], needed)
    return tuple(
        Start(length, lengths[index + 1] if index + 1 < len(lengths) else 0) for index, length in enumerate(lengths)
    )


@dataclass(frozen=True, slots=True)
class Switch:
    """A planned move."""

    at: int
    """The first position of the new way."""
    nodes: tuple[str, ...]
    """The nodes from then on."""


@dataclass(frozen=True, slots=True)
class Course:
    """Where a generation stands."""

    nodes: tuple[str, ...]
    """Its nodes, one per stage."""
    known: int
    """How many positions have a known token."""
    stop: int
    """The position after which nothing is produced."""
    epoch: int = 0
    """The current run."""
    phase: Phase = Phase.WAITING
    """What it waits for."""
    standings: tuple[Standing | None, ...] = ()
    """The stages' answers so far."""
    switch: Switch | None = None
    """A planned move."""
    finished: bool = False
    """Whether the last token is known."""


@dataclass(frozen=True, slots=True)
class StopAll:
    """Stop every stage under the course's epoch, opening the generation where it is not known."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """Let every stage go on, and feed the first one what is known from `feed_from` on."""

    starts: tuple[Start, ...]
    """From where each goes on."""
    feed_from: int
    """The first position that the first stage lacks."""


@dataclass(frozen=True, slots=True)
class FindNode:
    """Ask for another node in the place of one that does not answer."""

    stage_index: int
    """The place."""
    node: str
    """Who does not answer."""


@dataclass(frozen=True, slots=True)
class Emit:
    """A token is new: keep it and hand it out."""

    position: int
    """Its position."""
    token: int
    """Its id."""


Command = StopAll | GoOn | FindNode | Emit
Step = tuple[Course, list[Command]]


def gather(course: Course, nodes: Sequence[str] | None = None) -> Step:
    """Begins a new epoch, with these nodes or the same: at first, after a loss, when a node was found."""
    if course.finished:
        return course, []
    course = _settled(course)
    gathering = replace(
        course,
        nodes=tuple(nodes) if nodes is not None else course.nodes,
        epoch=course.epoch + 1,
        phase=Phase.GATHERING,
        standings=(None,) * len(course.nodes),
    )
    return gathering, [StopAll()]


def _settled(course: Course) -> Course:
    """A planned move counts as made: some stages may run in its epoch already, so the next one must be above it."""
    if course.switch is None:
        return course
    return replace(course, nodes=course.switch.nodes, epoch=course.epoch + 1, switch=None)


def standing(
    course: Course, epoch: int, stage_index: int, found: Standing, tokens: Sequence[int], at: int, ended: bool
) -> Step:
    """A stage has stopped.

    Args:
        course: Where the generation stands.
        epoch: The epoch that it stopped under.
        stage_index: Its place.
        found: How far it got.
        tokens: Tokens that it knows, from position `at` on.
        at: The position of the first of them.
        ended: Whether the last of them ends the generation.
    """
    if course.phase is not Phase.GATHERING or epoch != course.epoch:
        return course, []
    commands: list[Command] = []
    for position, token in enumerate(tokens, at):
        if position == course.known:
            commands.append(Emit(position, token))
            course = replace(course, known=position + 1)
    if ended and at + len(tokens) == course.known:
        return replace(course, finished=True), commands
    standings = list(course.standings)
    standings[stage_index] = found
    course = replace(course, standings=tuple(standings))
    complete = [one for one in standings if one is not None]
    if len(complete) < len(standings):
        return course, commands
    starts = settle(complete, course.known)
    return replace(course, phase=Phase.RUNNING), [*commands, GoOn(starts, starts[0].length)]


def silent(course: Course, epoch: int, stage_index: int) -> Step:
    """A stage's node did not answer, or says that it cannot."""
    if course.phase is not Phase.GATHERING or epoch != course.epoch or course.finished:
        return course, []
    return replace(course, phase=Phase.WAITING), [FindNode(stage_index, course.nodes[stage_index])]


def token(course: Course, epoch: int, position: int, value: int, ended: bool) -> Step:
    """The last stage sampled a token."""
    if course.finished or course.phase is not Phase.RUNNING:
        return course, []
    if course.switch is not None and position >= course.switch.at and epoch == course.epoch + 1:
        course = replace(course, epoch=epoch, nodes=course.switch.nodes, switch=None)
    if epoch != course.epoch or position < course.known:
        return course, []
    if position > course.known:
        return gather(course)  # one before it was lost on its way here: the stages know it
    course = replace(course, known=position + 1, finished=ended)
    return course, [Emit(position, value)]


def trouble(course: Course, epoch: int) -> Step:
    """A stage reports that something was lost, a session broke, or nothing came for too long."""
    behind = course.switch is not None and epoch == course.epoch + 1
    if course.phase is not Phase.RUNNING or (epoch != course.epoch and not behind):
        return course, []
    return gather(course)


def lost(course: Course, epoch: int, node: str) -> Step:
    """A node is known to be lost and its place has a standby: there is no use in asking it first."""
    behind = course.switch is not None and epoch == course.epoch + 1
    if course.phase is not Phase.RUNNING or (epoch != course.epoch and not behind) or course.finished:
        return course, []
    course = _settled(course)
    if node not in course.nodes:
        return gather(course)
    return replace(course, phase=Phase.WAITING), [FindNode(course.nodes.index(node), node)]


def plan_switch(course: Course, at: int, nodes: Sequence[str]) -> Course:
    """From position `at` on the generation goes another way; every stage is told before it gets there."""
    return replace(course, switch=Switch(at, tuple(nodes)))
