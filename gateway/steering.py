"""Steers one generation: what its stages say goes into its `course`, what the course decides is done.

Everything that happens becomes an event in one queue, so that transitions run one after another. Calls run beside it
and end in events of their own; a call of an epoch that is over says nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway import course as transitions
from gateway.course import Course, Emit, FindNode, GoOn, Phase, StopAll
from gateway.record import RECOVER, WAITING_FOR_CONTACT, GenerationRecord, StallNotes
from gateway.stages import Stages
from gateway.upstream import Arrival, Trouble, Upstream
from orbitmesh.errors import MeshError, TransportError, UnknownModelError
from orbitmesh.v1 import executor_pb2, scheduler_pb2
from services.runtime.logs import EventLog

RETRY_MIN_S = 0.1
"""The first pause before stages that could not be reached are asked again."""
RETRY_MAX_S = 0.2
"""The longest: how late the opening of a window may be noticed."""
REPLACING_S = 1.0
"""How long another node is waited for before the same ones are asked again; it is prepared meanwhile."""
SILENCE_S = 10.0
"""How long nothing may come before all stages are asked how far they are, at the least."""
SILENCE_FIRST_S = 120.0
"""The same before the first token: a long prompt has to get through."""
SILENCE_STEPS = 20
"""The same in tokens, where those are slow by nature."""

AGAIN = frozenset({"STALE_EPOCH", "NOT_FOUND"})
"""Answers of a stage that was stopped meanwhile, or whose node was started anew: all stages are asked again."""

Event = Callable[[Course], transitions.Step]


@dataclass(frozen=True)
class Hooks:
    """Who is told of what."""

    emit: Callable[[int, int], None]
    """A token is new: its position and id. Called once for each, in order."""
    finish: Callable[[int], None]
    """Told a `FinishReason` before the last token is emitted."""
    epoch: Callable[[int], None]
    """A run is about to begin."""
    waiting: Callable[[str], None]
    """It does not get on, and why; empty when it does again."""
    admitted: Callable[[], None]
    """Every stage has reserved its cache."""


class Steering:
    """Runs one generation to its last token.

    `tokens` are the prompt and what is known behind it; `record` is what was noted; `feed_along` names the node that
    is about to take over the first stage, which gets every new token too, and the epoch that it is fed in.

    Args:
        upstream: The ways to nodes and scheduler.
        stages: The generation's calls.
        deployment: Where it runs.
        tokens: The prompt and what is known behind it; grows.
        course: Where it stands.
        record: Where stalls and pipelines are noted.
        hooks: Who is told of what.
        log: Where to say what happened.
    """

    def __init__(
        self,
        upstream: Upstream,
        stages: Stages,
        deployment: scheduler_pb2.Deployment,
        tokens: list[int],
        course: Course,
        record: GenerationRecord,
        hooks: Hooks,
        log: EventLog,
    ) -> None:
        self._upstream = upstream
        self._stages = stages
        self.tokens = tokens
        self.record = record
        self.feed_along: tuple[executor_pb2.PeerAddress, int] | None = None
        self._deployment = deployment
        self._pipeline: tuple[executor_pb2.PeerAddress, ...] = tuple(deployment.pipeline)
        self._course = course
        self._hooks = hooks
        self._log = log
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._retry_s = RETRY_MIN_S
        self._waited = False
        self._replacing: dict[FindNode, asyncio.Future[scheduler_pb2.Deployment]] = {}
        self._stalls = StallNotes(record.stalls)
        self._tasks: asyncio.TaskGroup | None = None
        self._next_pipeline: tuple[executor_pb2.PeerAddress, ...] = ()
        self._at_ns = 0
        self._news = asyncio.Event()

    @property
    def course(self) -> Course:
        """Where the generation stands."""
        return self._course

    @property
    def pipeline(self) -> tuple[executor_pb2.PeerAddress, ...]:
        """The nodes that it goes through."""
        return self._pipeline

    async def run(self) -> None:
        """Steers until the last token is known.

        Raises:
            MeshError: It cannot go on, not even later.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._listen()
                self._apply(transitions.gather)
                while not self._course.finished:
                    self._apply(await self._next())
                raise _DoneError
        except* _DoneError:
            pass
        except* MeshError as group:
            raise _first(group) from None
        finally:
            for replacing in self._replacing.values():
                replacing.cancel()
            self._stalls.end()
            self._upstream.forget(self._stages.number)

    # Events.

    async def _next(self) -> Event:
        if self._course.phase is not Phase.RUNNING:
            return await self._events.get()
        try:
            async with asyncio.timeout(self._patience_s()):
                return await self._events.get()
        except TimeoutError:
            self._log.warning("generation_silent", generation=self._stages.number, position=self._course.known)
            return lambda course: transitions.trouble(course, course.epoch)

    def _patience_s(self) -> float:
        arrived = self.record.arrived_ns
        if len(arrived) < 2:
            return SILENCE_FIRST_S
        mean_s: float = (arrived[-1] - arrived[0]) / 1e9 / (len(arrived) - 1)
        return max(SILENCE_S, SILENCE_STEPS * mean_s)

    def _listen(self) -> None:
        self._upstream.listen(self._stages.number, {node.name for node in self._pipeline}, self._heard)

    def _heard(self, what: Arrival | Trouble) -> None:
        if isinstance(what, Arrival):
            self._events.put_nowait(lambda course: self._token(course, what))
        else:
            self._events.put_nowait(lambda course: self._trouble(course, what))

    def _token(self, course: Course, arrival: Arrival) -> transitions.Step:
        ended = arrival.finish != 0
        self._at_ns = arrival.at_ns
        after = transitions.token(course, arrival.epoch, arrival.position, arrival.token, ended)
        if ended and after[0].finished:
            self._hooks.finish(arrival.finish)
        return after

    def _trouble(self, course: Course, trouble: Trouble) -> transitions.Step:
        epoch = trouble.epoch or course.epoch
        if not trouble.error.retryable:
            raise trouble.error
        if course.phase is not Phase.RUNNING:
            return course, []
        node = trouble.error.metadata.get("node", trouble.node)
        self._log.info(
            "generation_troubled", generation=self._stages.number, node=node, detail=trouble.error.message
        )
        self._stalls.begin(RECOVER, trouble.error.message)
        places = [index for index, name in enumerate(course.nodes) if name == node]
        if any(each.ready and each.stage_index in places for each in self._deployment.standbys):
            return transitions.lost(course, epoch, node)
        return transitions.trouble(course, epoch)

    # Commands.

    def _apply(self, event: Event) -> None:
        before = self._course
        self._course, commands = event(before)
        if self._course.epoch != before.epoch:
            self._hooks.epoch(self._course.epoch)
        if self._course.nodes != before.nodes:
            self._moved(before)
        if self._course is not before:
            self._tell_news()
        for command in commands:
            self._perform(command)

    def _perform(self, command: transitions.Command) -> None:
        epoch = self._course.epoch
        if isinstance(command, Emit):
            self.tokens.append(command.token)
            self.record.arrived_ns.append(self._at_ns)
            self._hooks.emit(command.position, command.token)
            if self.feed_along is not None:
                self._spawn(self._tee(*self.feed_along, command))
            self._tell_news()
        elif isinstance(command, StopAll):
            self._pipeline = self._addresses()  # a node that came back may be at another one
            if epoch > 1:
                self._stalls.begin(RECOVER, "the stages are stopped and asked how far they are")
            self._spawn(self._gather(epoch))
        elif isinstance(command, GoOn):
            self._retry_s = RETRY_MIN_S
            self._waited = False
            self._stalls.end()
            self.record.admitted_ns = self.record.admitted_ns or time.monotonic_ns()
            self._hooks.admitted()
            self._hooks.waiting("")
            self._spawn(self._go_on(epoch, command))
        elif isinstance(command, FindNode):
            self._spawn(self._find_node(command))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            raise AssertionError("steering has not begun")
        self._tasks.create_task(work)

    async def _gather(self, epoch: int) -> None:
        """Stops every stage, or opens the generation in it where it never was."""
        if epoch == 1:
            await self._open_all()
            return
        known = self._course.known
        async with asyncio.TaskGroup() as calls:
            for index in range(len(self._pipeline)):
                calls.create_task(self._stop_one(index, epoch, known))

    async def _open_all(self) -> None:
        outcomes = await asyncio.gather(
            *(self._stages.open(self._pipeline, index, 1) for index in range(len(self._pipeline))),
            return_exceptions=True,
        )
        failures = [(index, found) for index, found in enumerate(outcomes) if isinstance(found, BaseException)]
        for _, failure in failures:
            # What a stage said about itself counts; one that is not there may be replaced before anything was computed.
            if not (isinstance(failure, TransportError) or _not_there(failure)):
                raise failure
        if failures:
            index, failure = failures[0]
            self._log.info(
                "stage_silent", generation=self._stages.number, node=self._pipeline[index].name, detail=str(failure)
            )
            self._stalls.begin(RECOVER, str(failure))
            self._put(transitions.silent, 1, index)
            return
        self.record.admitted_ns = time.monotonic_ns()
        self._hooks.admitted()
        for index, found in enumerate(outcomes):
            if isinstance(found, transitions.Standing):
                self._put(transitions.standing, 1, index, found, (), 0, False)

    async def _stop_one(self, index: int, epoch: int, known: int) -> None:
        node = self._pipeline[index]
        try:
            answer = await self._stages.stop(self._pipeline, index, epoch, known)
        except MeshError as error:
            current = int(error.metadata.get("current_epoch", 0))
            if error.reason == "STALE_EPOCH" and current >= epoch:
                self._put(_skip_to, epoch, current)
                return
            self.record.clocks.pop(node.name, None)  # whatever comes back may have another clock
            if not self._waited:
                self._log.info("stage_silent", generation=self._stages.number, node=node.name, detail=error.message)
            self._put(transitions.silent, epoch, index)
            return
        found = transitions.Standing(answer.length, answer.journal_start)
        ended = answer.finish != 0

        def event(course: Course) -> transitions.Step:
            self._at_ns = time.monotonic_ns()
            after = transitions.standing(course, epoch, index, found, answer.tokens, known, ended)
            if after[0].finished and not course.finished:
                self._hooks.finish(answer.finish)
            return after

        self._events.put_nowait(event)

    async def _go_on(self, epoch: int, command: GoOn) -> None:
        pipeline, known = self._pipeline, self._course.known
        try:
            if epoch > 1:
                async with asyncio.TaskGroup() as calls:
                    calls.create_task(self._stages.go_on(pipeline, epoch, command.starts, known))
                    calls.create_task(self._feed(epoch, command.feed_from, known))
            else:
                await self._feed(epoch, command.feed_from, known)
        except* MeshError as group:
            error = _first(group)
            if not error.retryable and error.reason not in AGAIN:
                raise error from None
            self._put(transitions.trouble, epoch)
        else:
            self.record.fed_ns = self.record.fed_ns or time.monotonic_ns()

    async def _feed(self, epoch: int, start: int, known: int) -> None:
        if start < known:
            await self._stages.feed_tokens(self._pipeline[0], self.tokens[start:known], start, epoch)

    async def _find_node(self, command: FindNode) -> None:
        """Asks for another node; while none is found, asks the same ones again, which may have come back meanwhile."""
        why = f"{command.node} does not answer"
        found = self._replacing.get(command)
        if found is None:
            name = self._deployment.name
            found = asyncio.ensure_future(
                self._upstream.replace_stage(name, command.stage_index, command.node, why)
            )
            found.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may want it by then
            self._replacing[command] = found
        await asyncio.wait([found], timeout=REPLACING_S)
        if not found.done():
            self._wait_for(f"{why}; another node is being prepared")
            self._put(transitions.gather)
            return
        del self._replacing[command]
        error = found.exception()
        if error is None:
            self._deployment = await self._with_its_other_places(found.result(), command.node, why)
        elif isinstance(error, UnknownModelError) or not isinstance(error, MeshError):
            raise error
        else:
            self._wait_for(f"{why}; {error.message}")
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(RETRY_MAX_S, self._retry_s * 2)
            self._deployment = await self._as_it_is()
        names = tuple(node.name for node in self._deployment.pipeline)
        self._put(transitions.gather, names)

    def _wait_for(self, what: str) -> None:
        if not self._waited:
            self._log.info("generation_waits", generation=self._stages.number, detail=what)
        self._waited = True
        self._stalls.begin(WAITING_FOR_CONTACT, what)
        self._hooks.waiting(what)

    async def _with_its_other_places(
        self, deployment: scheduler_pb2.Deployment, node: str, why: str
    ) -> scheduler_pb2.Deployment:
        """Replaces a lost node wherever else a standby is ready: each place would cost another round of asking."""
        for index, held in enumerate(deployment.pipeline):
            if held.name == node and any(each.ready and each.stage_index == index for each in deployment.standbys):
                with contextlib.suppress(MeshError):  # it will be found again, and what is wrong said then
                    deployment = await self._upstream.replace_stage(deployment.name, index, node, why)
        return deployment

    async def _as_it_is(self) -> scheduler_pb2.Deployment:
        """The deployment now, as far as the scheduler can be reached: a node may be back at another address."""
        try:
            return await self._upstream.describe(self._deployment.name)
        except UnknownModelError:
            raise
        except MeshError:
            return self._deployment

    # Planned moves.

    def layers(self, index: int) -> range:
        """The layers of a stage."""
        stage = self._deployment.plan.stages[index]
        return range(stage.layer_start, stage.layer_stop)

    def know(self, deployment: scheduler_pb2.Deployment) -> None:
        """The deployment has changed; this generation goes on as it does until it has to be stopped."""
        self._deployment = deployment

    async def news(self) -> None:
        """Waits for the next token or change of the course."""
        waiting = self._news
        await waiting.wait()

    def plan_switch(self, at: int, pipeline: Sequence[executor_pb2.PeerAddress]) -> None:
        """Every stage is about to be told to go along `pipeline` from position `at` on."""
        self._next_pipeline = tuple(pipeline)
        self._hooks.epoch(self._course.epoch + 1)
        self._course = transitions.plan_switch(self._course, at, [node.name for node in pipeline])

    async def _tee(self, to: executor_pb2.PeerAddress, epoch: int, token: Emit) -> None:
        switch = self._course.switch
        if epoch == self._course.epoch and (switch is None or token.position < switch.at):
            # A node that cannot be fed is not needed to go on; whoever moves the stage sees that it does not catch up.
            with contextlib.suppress(MeshError):
                await self._stages.feed_tokens(to, [token.token], token.position, epoch, feed=True)

    def _tell_news(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # Notes.

    def _moved(self, before: Course) -> None:
        self._pipeline = self._addresses()
        # After a stop, the new nodes begin with the row before the first unknown token.
        at = before.switch.at if before.switch is not None and self._course.epoch == before.epoch + 1 else None
        self.record.pipelines.append((self._course.known - 1 if at is None else at, self._course.nodes))
        self._listen()

    def _addresses(self) -> tuple[executor_pb2.PeerAddress, ...]:
        known = {node.name: node for node in (*self._pipeline, *self._next_pipeline, *self._deployment.pipeline)}
        return tuple(known[name] for name in self._course.nodes)

    def _put(self, transition: Callable[..., transitions.Step], *arguments: object) -> None:
        self._events.put_nowait(lambda course: transition(course, *arguments))


class _DoneError(Exception):
    """The last token is known: what still runs beside is not needed."""


def _not_there(error: BaseException) -> bool:
    """Whether a node says that it does not hold the stage: it was started anew and loads it again."""
    return isinstance(error, MeshError) and error.reason == "NOT_FOUND"


def _skip_to(course: Course, epoch: int, current: int) -> transitions.Step:
    """A stage is in a later epoch than was written down here: go on behind it."""
    if course.epoch != epoch:
        return course, []
    return transitions.gather(replace(course, epoch=current))


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
