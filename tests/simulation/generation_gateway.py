"""The gateway of a simulated generation: the real `course`, driven as the gateway drives it, with what it writes down,
a client that asks again, and a scheduler that finds other nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway import course as transitions
from gateway.course import Course, Emit, FindNode, GoOn, Phase, Standing, StopAll
from tests.simulation.generation_world import CHUNK, DETECTION_S, GATEWAY, Story
from tests.simulation.world import Timer

CLIENT = "client"
CALL_S = 2.0
"""How long a call may take, in seconds."""
SILENCE_S = 10.0
"""How long nothing may come while it runs, in seconds."""
QUIET_S = 3.0
"""How long a client hears nothing before it asks again, in seconds."""
RETRY_S = (0.1, 0.5)
"""The first and the longest pause before nodes are asked again, in seconds."""
MARGIN = 6
"""How many tokens ahead a planned move is, in positions."""

Done = Callable[[str, Any], object]
"""Told what became of a call: "ok", or the reason why not, and what came with it."""


@dataclass
class Log:
    """What the gateway wrote down: it outlives the process."""

    tokens: list[int] = field(default_factory=list)
    epoch: int = 0
    ended: bool = False


class Client:
    """Whoever reads the tokens. It asks again, with those that it has, when the gateway is gone."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.got: list[int] = []
        self.ended = False
        self._stream = 0
        self._endpoint = story.wires.sessions.add(CLIENT, self._heard)
        story.wires.sessions.watch(CLIENT, GATEWAY, self._ask, detection_s=DETECTION_S)
        self._endpoint.every(QUIET_S, self._ask_when_quiet)
        self._quiet = False
        self._ask()

    def _ask(self) -> None:
        if not self.ended:
            self._stream += 1
            self.story.wires.send(CLIENT, GATEWAY, ("ask", self._stream, len(self.got)), None)

    def _ask_when_quiet(self) -> None:
        if self._quiet:
            self._ask()
        self._quiet = True

    def _heard(self, source: str, message: Any) -> None:
        stream, at, token, ended = message
        if stream != self._stream:
            return
        self._quiet = False
        assert not self.ended, "a token behind the last one"
        assert at == len(self.got), f"token {at} came where {len(self.got)} was next"
        truth = self.story.truth
        assert token == truth.tokens[truth.prompt + at], f"token {at} is a wrong one"
        self.got.append(token)
        self.ended = ended


class Scheduler:
    """Knows who holds which place; every place has one spare node."""

    def __init__(self, story: Story, nodes: Sequence[str], spares: Sequence[str], slow_s: float) -> None:
        self.story = story
        self.places = list(nodes)
        self.pairs = [frozenset(pair) for pair in zip(nodes, spares, strict=True)]
        self.spares_left = True
        self.slow_s = slow_s

    def other(self, index: int) -> str:
        """The node that could take a place."""
        (other,) = self.pairs[index] - {self.places[index]}
        return other

    def replace(self, index: int, node: str) -> bool:
        """Fills a place anew; False where nobody is there for it."""
        if self.places[index] != node:
            return True
        other = self.other(index)
        if not self.spares_left or not self.story.wires.sessions.alive(other):
            return False
        self.places[index] = other
        return True


@dataclass
class Move:
    """A planned hand-over that is under way."""

    index: int
    target: str
    old: str
    epoch: int
    nodes: tuple[str, ...]
    cache: bool
    """Whether its cache is moved; else it is computed from the journal before it."""
    fed: int | None = None
    """The first stage's successor is fed by the gateway up to here; None where another stage feeds it."""
    planned: bool = False


class Gateway:
    """One life of the gateway's process."""

    def __init__(self, story: Story, log: Log, scheduler: Scheduler) -> None:
        self.story = story
        self.log = log
        self.scheduler = scheduler
        self.moved = 0
        self.gathered = 0
        self.skipped = 0
        self._pending: dict[int, tuple[Done, Timer]] = {}
        self._reader: tuple[int, int] | None = None
        self._retry_s = RETRY_S[0]
        self._silence: Timer | None = None
        self.move: Move | None = None
        self._session = story.wires.sessions.add(GATEWAY, self._heard)
        self._calls = story.wires.calls.add(GATEWAY, self._answered)
        known = story.truth.prompt + len(log.tokens)
        self.course = Course(tuple(scheduler.places), known, story.stop, log.epoch, finished=log.ended)
        for pair in scheduler.pairs:
            for node in sorted(pair):
                watch = functools.partial(self._lost, node)
                story.wires.sessions.watch(GATEWAY, node, watch, detection_s=DETECTION_S)
        self._apply(transitions.gather)

    # What happens.

    def _heard(self, source: str, message: Any) -> None:
        if message[0] == "ask":
            _, stream, have = message
            self._reader = stream, have
            self._serve()
        elif message[0] == "token":
            _, epoch, position, token, ended = message
            running = self.course.phase is Phase.RUNNING and epoch == self.course.epoch
            self.story.doubles += running and position < self.course.known
            self._apply(transitions.token, epoch, position, token, ended)
        elif self.move is not None and source == self.move.target and not self.move.planned:
            self._give_up_move()
        else:
            self._apply(transitions.trouble, message[1])

    def _lost(self, node: str) -> None:
        if node in self.course.nodes or (self.course.switch is not None and node in self.course.switch.nodes):
            if self.story.world.chance(0.5):
                self._apply(transitions.lost, self.course.epoch, node)
            else:
                self._apply(transitions.trouble, self.course.epoch)

    def _silent(self) -> None:
        self._apply(transitions.trouble, self.course.epoch)

    def _apply(self, transition: Callable[..., transitions.Step], *arguments: Any) -> None:
        before = self.course
        self.course, commands = transition(before, *arguments)
        course = self.course
        assert course.known >= before.known and course.epoch >= before.epoch
        if course.epoch != before.epoch:
            self.log.epoch = course.epoch  # before anything is done with it
        for command in commands:
            self._perform(course, command)
        if before.switch is not None and course.switch is None:
            self._moved(before)
        if self._silence is not None:
            self._silence.cancel()
        self._silence = None
        if course.phase is Phase.RUNNING and not course.finished:
            self._silence = self._session.after(SILENCE_S, self._silent)
        if course.finished and not before.finished:
            for node in sorted(frozenset().union(*self.scheduler.pairs)):
                self.call(node, "close", (), lambda *_: None)

    def _perform(self, course: Course, command: transitions.Command) -> None:
        if isinstance(command, Emit):
            self._emit(command)
        elif isinstance(command, StopAll):
            self.gathered += 1
            self._stop_all(course)
        elif isinstance(command, GoOn):
            self._retry_s = RETRY_S[0]
            self._go_on(course, command)
        elif isinstance(command, FindNode):
            self._session.after(self.scheduler.slow_s, self._found, command)

    def _emit(self, command: Emit) -> None:
        assert command.position == self.story.truth.prompt + len(self.log.tokens), "a token out of order"
        assert command.token == self.story.truth.tokens[command.position], "a wrong token"
        self.log.tokens.append(command.token)
        self.log.ended = self.course.finished
        self._serve()
        move = self.move
        if move is not None and move.fed is not None and self.course.epoch == move.epoch:
            self._feed(move.target, move.fed, command.position + 1, move.epoch, feed=True)
            move.fed = command.position + 1

    def _serve(self) -> None:
        if self._reader is None:
            return
        stream, have = self._reader
        last = self.story.stop - self.story.truth.prompt
        for at in range(have, len(self.log.tokens)):
            message = stream, at, self.log.tokens[at], at + 1 == last
            self.story.wires.send(GATEWAY, CLIENT, message, functools.partial(self._hung_up, stream))
        self._reader = stream, len(self.log.tokens)

    def _hung_up(self, stream: int) -> None:
        if self._reader is not None and self._reader[0] == stream:
            self._reader = None

    # What is done.

    def call(self, node: str, method: str, arguments: tuple[Any, ...], done: Done) -> None:
        """Calls a node; what became of it may stay unknown."""
        self.story.calls += 1
        number = self.story.calls
        timer = self._session.after(CALL_S, self._timed_out, number)
        self._pending[number] = done, timer
        self._calls.send(node, (number, method, arguments))

    def _timed_out(self, number: int) -> None:
        done, _ = self._pending.pop(number)
        done("TIMEOUT", None)

    def _answered(self, source: str, message: Any) -> None:
        number, outcome = message
        found = self._pending.pop(number, None)
        if found is not None:
            done, timer = found
            timer.cancel()
            if outcome[0] == "ok":
                done("ok", outcome[1])
            else:
                done(outcome[1], outcome[2])

    def _stop_all(self, course: Course) -> None:
        for index in range(len(course.nodes)):
            if course.epoch == 1:
                self._open(course, index)
            else:
                self._stop(course, index)

    def _stop(self, course: Course, index: int) -> None:
        epoch, known, nodes = course.epoch, course.known, course.nodes

        def done(what: str, value: Any) -> None:
            if what == "ok":
                length, journal_start, tokens, ended = value
                standing = Standing(length, journal_start)
                self._apply(transitions.standing, epoch, index, standing, tokens, known, bool(tokens) and ended)
            elif what == "NOT_FOUND":
                if self.course.epoch == epoch:
                    self._open(course, index)
            elif what == "STALE_EPOCH" and int(value) >= epoch:
                self.skipped += 1
                self._apply(skip_to, epoch, int(value))
            else:
                self._apply(transitions.silent, epoch, index)

        self.call(nodes[index], "stop", (epoch, known, nodes), done)

    def _open(self, course: Course, index: int) -> None:
        def done(what: str, _: Any) -> None:
            if what == "ok":
                self._apply(transitions.standing, course.epoch, index, Standing(), (), 0, False)
            else:
                self._apply(transitions.silent, course.epoch, index)

        self.call(course.nodes[index], "open", (course.epoch, course.nodes, False, ""), done)

    def _go_on(self, course: Course, command: GoOn) -> None:
        def done(what: str, _: Any) -> None:
            if what != "ok":
                self._apply(transitions.trouble, course.epoch)

        if course.epoch > 1:
            for node, start in zip(course.nodes, command.starts, strict=True):
                self.call(node, "go_on", (course.epoch, start.length, start.push_from, course.known), done)
        self._feed(course.nodes[0], command.feed_from, course.known, course.epoch, feed=False)

    def _feed(self, node: str, start: int, stop: int, epoch: int, *, feed: bool) -> None:
        tokens = [*self.story.truth.tokens[: self.story.truth.prompt], *self.log.tokens]

        def failed() -> None:
            if self._session.alive and not feed:
                self._apply(transitions.trouble, epoch)

        for low in range(start, stop, CHUNK):
            rows = tuple(tokens[low : min(stop, low + CHUNK)])
            self.story.wires.send(GATEWAY, node, ("step", epoch, low, rows, feed), failed)

    def _found(self, command: FindNode) -> None:
        if self.scheduler.replace(command.stage_index, command.node):
            self._apply(transitions.gather, tuple(self.scheduler.places))
        else:
            self._session.after(self._retry_s, lambda: self._apply(transitions.gather, tuple(self.scheduler.places)))
            self._retry_s = min(RETRY_S[1], 2 * self._retry_s)

    # Planned moves.

    def begin_move(self, index: int, *, cache: bool) -> None:
        """Opens the successor of a stage, feeds it, and plans the switch."""
        course = self.course
        if course.phase is not Phase.RUNNING or course.finished or self.move is not None:
            return
        target, old = self.scheduler.other(index), course.nodes[index]
        if target == old or not self.story.wires.sessions.alive(target):
            return
        nodes = (*course.nodes[:index], target, *course.nodes[index + 1 :])
        self.move = move = Move(index, target, old, course.epoch, nodes, cache)
        # What an earlier attempt left there is of no use.
        self.call(target, "close", (), functools.partial(self._move_closed, move))

    def _move_closed(self, move: Move, what: str, _: Any) -> None:
        if self._moving(move, what):
            arguments = move.epoch, move.nodes, True, move.old if move.cache else ""
            self.call(move.target, "open", arguments, functools.partial(self._move_opened, move))

    def _move_opened(self, move: Move, what: str, _: Any) -> None:
        if not self._moving(move, what):
            return
        if move.cache:
            self.call(move.old, "move", (move.epoch, move.target), functools.partial(self._move_cached, move))
        else:
            self._move_cached(move, "ok", 0)

    def _move_cached(self, move: Move, what: str, start: Any) -> None:
        if not self._moving(move, what):
            return
        if move.index == 0:
            move.fed = self.course.known
            self._feed(move.target, start, move.fed, move.epoch, feed=True)
            self._move_fed(move, "ok", None)
        else:
            feeder, arguments = self.course.nodes[move.index - 1], (move.epoch, move.target, start)
            self.call(feeder, "feed", arguments, functools.partial(self._move_fed, move))

    def _move_fed(self, move: Move, what: str, _: Any) -> None:
        if not self._moving(move, what):
            return
        at = self.course.known + MARGIN
        if at + 1 >= self.story.stop:
            self._give_up_move()
            return
        move.planned = True
        self.log.epoch = move.epoch + 1  # before anything is done with it
        told = functools.partial(self._move_told, move)
        for node in (*self.course.nodes, move.target):
            self.call(node, "switch", (move.epoch + 1, at, at + 1, move.nodes), told)
        self.course = transitions.plan_switch(self.course, at, move.nodes)

    def _move_told(self, move: Move, what: str, _: Any) -> None:
        if what != "ok" and self.course.epoch in (move.epoch, move.epoch + 1):
            self._apply(transitions.trouble, self.course.epoch)

    def _moving(self, move: Move, what: str) -> bool:
        if self.move is not move:
            return False
        if what != "ok" or self.course.epoch != move.epoch or self.course.phase is not Phase.RUNNING:
            self._give_up_move()
            return False
        return True

    def _give_up_move(self) -> None:
        if self.move is not None and self.move.target not in self.course.nodes:
            self.call(self.move.target, "close", (), lambda *_: None)
        self.move = None

    def _moved(self, before: Course) -> None:
        move, self.move = self.move, None
        if move is not None and before.switch is not None:
            self.scheduler.places[move.index] = move.target
            if self.course.phase is Phase.RUNNING:
                self.moved += 1
                self.call(move.old, "close", (), lambda *_: None)


def skip_to(course: Course, epoch: int, current: int) -> transitions.Step:
    """A stage is in a later epoch than was written down: go on behind it."""
    if course.epoch != epoch:
        return course, []
    return transitions.gather(replace(course, epoch=current))
