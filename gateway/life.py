"""One generation from its beginning to its end, on a task of its own, whether or not somebody listens."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.admission import Admissions
from gateway.book import Entry, Page
from gateway.course import Course
from gateway.moving import move
from gateway.record import GenerationRecord
from gateway.stages import Stages
from gateway.steering import Hooks, Steering
from gateway.traces import Traces
from gateway.upstream import Upstream
from orbitmesh.errors import CancelledError_, DeadlineError, InternalError, MeshError, TransportError, UnknownModelError
from orbitmesh.pack import Manifest
from orbitmesh.v1 import executor_pb2, gateway_pb2, scheduler_pb2, wire_pb2
from services.runtime.logs import EventLog, log_trace

LIFE_MARGIN_S = 2.0
"""By how much a generation outlives its deadline on the nodes, so that they free it when the gateway cannot."""
SCHEDULER_LOOK_S = 5.0
"""How long the deployment of a generation that is ended is looked for."""
OUT_OF_SLICE_S = 1.0
"""How long whoever asked is not told of the end while the generation is not out of its slice."""
SCHEDULER_RETRY_S = 0.5
"""The pause before the scheduler is asked again for the deployment of a generation that is taken up."""


@dataclass(frozen=True)
class Parts:
    """What every generation of a gateway uses."""

    upstream: Upstream
    """The ways to nodes and scheduler."""
    traces: Traces
    """Where its record goes."""
    admissions: Admissions
    """Who lets it out of its slice."""
    tasks: asyncio.TaskGroup
    """Where it lives."""
    log: EventLog
    """Where to say what happened."""
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The tokens that were produced here, by deployment and slice."""


class Life:
    """A generation.

    Args:
        parts: What it uses.
        entry: What was asked and what is known; `entry.tokens` grows.
        page: Where it is written down; None where it cannot be taken up again.
        deployment: Where it runs; None asks the scheduler.
        began_ns: When the request came, on the monotonic clock; 0 means now.
    """

    def __init__(
        self,
        parts: Parts,
        entry: Entry,
        page: Page | None,
        *,
        deployment: scheduler_pb2.Deployment | None = None,
        began_ns: int = 0,
    ) -> None:
        self.entry = entry
        self.finish = 0
        self.waiting = ""
        self.news = asyncio.Event()
        self.over = False
        self._parts = parts
        self._page = page
        self._taken_up = deployment is None
        self._deployment = deployment
        self._error: BaseException | None = None
        self._record = GenerationRecord(
            trace_id=entry.trace_id,
            deployment=entry.request.deployment,
            pipelines=[],
            prompt_tokens=len(entry.prompt),
            began_ns=began_ns or time.monotonic_ns(),
            began_at_ns=time.time_ns(),
            taken_up_tokens=len(entry.tokens),
            slice=entry.request.slice,
        )
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._giving_back: asyncio.Task[None] | None = None
        self._gone: list[Callable[[], object]] = []
        self._ended: Callable[[], None] = lambda: None
        self._listeners = 0
        self._left = False
        self._lingering: asyncio.TimerHandle | None = None
        self._stages: Stages | None = None
        self.steering: Steering | None = None

    # For whoever listens.

    def begin(self, ended: Callable[[], None]) -> None:
        """Starts it; `ended` is called when its last token is known or it failed."""
        self._ended = ended
        self._task = self._parts.tasks.create_task(self._run(), name=f"generation {self.entry.number:016x}")

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Calls `callback` when nobody can ask for it any more."""
        self._gone.append(callback)

    def attach(self) -> None:
        """Somebody listens."""
        self._listeners += 1
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def detach(self, linger_s: float) -> None:
        """Somebody stopped listening; where nobody else does, it ends after `linger_s`."""
        self._listeners = max(0, self._listeners - 1)
        if self._listeners == 0 and self._lingering is None:
            if linger_s <= 0:
                self._stop()
            else:
                self._lingering = asyncio.get_running_loop().call_later(linger_s, self._stop)

    async def started(self) -> scheduler_pb2.Deployment:
        """Waits until every stage has admitted it.

        Raises:
            MeshError: Why it could not be.
        """
        while not self.over and not self._record.admitted_ns:
            await self.news.wait()
        await self._raise()
        if self._deployment is None:
            raise InternalError("a generation ended before it began")
        return self._deployment

    async def finished(self) -> gateway_pb2.GenerationFinished:
        """What is said at the end; the breakdown is there by then.

        Raises:
            MeshError: Why it ended before its last token.
        """
        await self._raise()
        await self._out_of_slice()
        if self._closing is not None:
            await asyncio.shield(self._closing)
        return _finished(self._record, self.entry, self._taken_up)

    @property
    def record(self) -> GenerationRecord:
        """What was noted of it so far."""
        return self._record

    async def end(self) -> None:
        """Ends it now, wherever it is; waits until the nodes were told."""
        self._stop()
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def hand_over(self, planned: scheduler_pb2.HandOver) -> None:
        """Moves a stage to the node that takes it over, where this generation goes through the old one."""
        steering, stages = self.steering, self._stages
        if steering is None or stages is None or self._deployment is None or self.over:
            return
        index = planned.stage_index
        if index < len(steering.pipeline) and steering.pipeline[index].name == getattr(planned, "from"):
            manifest = Manifest.parse(self._deployment.manifest)
            moving = asyncio.ensure_future(move(steering, stages, manifest, index, planned.to, self._parts.log))
            ended = asyncio.ensure_future(asyncio.wait([self._task] if self._task is not None else []))
            try:
                await asyncio.wait([moving, ended], return_when=asyncio.FIRST_COMPLETED)
            finally:
                moving.cancel()
                ended.cancel()
                await asyncio.gather(moving, ended, return_exceptions=True)

    def know(self, deployment: scheduler_pb2.Deployment) -> None:
        """The deployment has changed: other standbys, other addresses."""
        if self.steering is not None:
            self.steering.know(deployment)

    def leave(self) -> None:
        """This process ends: what can be taken up again is left running on the nodes, for the next one."""
        self._left = self._page is not None
        if self._task is not None:
            self._task.cancel()
        if self._lingering is not None:
            self._lingering.cancel()

    def forget(self) -> None:
        """The caller has everything."""
        if self._page is not None:
            self._page.remove()
            self._page = None
        for callback in self._gone:
            callback()
        self._gone.clear()

    async def _raise(self) -> None:
        if self._error is not None:
            await self._out_of_slice()
            raise self._error

    async def _out_of_slice(self) -> None:
        """Who hears that a generation has ended may release its slice, or begin the next one in it."""
        if self._giving_back is not None:
            await asyncio.wait([self._giving_back], timeout=OUT_OF_SLICE_S)

    def _stop(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
        self.forget()

    def _notify(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()

    # Living.

    async def _run(self) -> None:
        log_trace(self.entry.trace_id)
        try:
            limit_s = self.entry.expires_at - time.time()
            async with asyncio.timeout(limit_s):
                deployment = await self._find_deployment()
                manifest = Manifest.parse(deployment.manifest)
                self._finish(finish_of(self.entry, manifest))
                template = self._template(manifest, limit_s)
                self._stages = Stages(self._parts.upstream, template, self._record)
                if self._taken_up:
                    # The process before this one opened it, and may not have got to ending it.
                    self._stages.take_over(deployment.pipeline)
                if self.finish:
                    self._record.pipelines.append((0, tuple(node.name for node in deployment.pipeline)))
                else:
                    await self._steer(deployment, self._stages)
            arrived = self._record.arrived_ns
            self._record.ended_ns = arrived[-1] if arrived else time.monotonic_ns()
        except TimeoutError:
            self._error = DeadlineError(
                f"the deadline passed after {len(self.entry.tokens)} tokens; work was stopped on every node",
                metadata={"trace_id": self.entry.trace_id, "new_tokens": len(self.entry.tokens)},
            )
        except MeshError as error:
            self._error = error
        except asyncio.CancelledError:
            self._error = (
                TransportError("this gateway is going down; the generation goes on", reason="DRAINING")
                if self._left
                else CancelledError_("the generation was ended by its caller")
            )
        except Exception as error:
            self._error = InternalError(f"the generation failed: {type(error).__name__}: {error}")
            self._parts.log.error("generation_failed", generation=self.entry.number, detail=traceback.format_exc())
        finally:
            # On a task of its own: a generation that is cancelled must still tell the nodes.
            self._closing = self._parts.tasks.create_task(self._close(self._stages))
            if self.entry.request.slice and not self._left:
                self._giving_back = self._parts.tasks.create_task(self._parts.admissions.give_back(self.entry))
            if isinstance(self._error, MeshError):
                self._record.error_reason, self._record.error = self._error.reason, self._error.message
                self._error.trace_id = self._error.trace_id or self.entry.trace_id
            self.over = True
            self._ended()
            self._notify()

    async def _steer(self, deployment: scheduler_pb2.Deployment, stages: Stages) -> None:
        entry = self.entry
        tokens = [*entry.prompt, *entry.tokens]
        # What was running already may be under way in its stages: it is stopped first, under a new epoch.
        epoch = max(entry.epoch, 1 if self._taken_up or entry.tokens else 0)
        names = tuple(node.name for node in deployment.pipeline)
        self._record.pipelines.append((0, names))
        course = Course(nodes=names, known=len(tokens), stop=len(entry.prompt) + entry.new_tokens, epoch=epoch)
        self.steering = Steering(
            self._parts.upstream,
            stages,
            deployment,
            tokens,
            course,
            self._record,
            Hooks(self._emit, self._finish, self._epoch, self._wait, self._notify),
            self._parts.log,
        )
        await self.steering.run()

    async def _find_deployment(self) -> scheduler_pb2.Deployment:
        while self._deployment is None:
            try:
                self._deployment = await self._parts.upstream.describe(self.entry.request.deployment)
            except UnknownModelError:
                raise
            except MeshError as error:
                self._wait(error.message)
                await asyncio.sleep(SCHEDULER_RETRY_S)
        return self._deployment

    def _template(self, manifest: Manifest, life_s: float) -> executor_pb2.OpenGenerationRequest:
        entry, request = self.entry, self.entry.request
        bound = len(entry.prompt) + entry.new_tokens
        template = executor_pb2.OpenGenerationRequest(
            deployment=request.deployment,
            generation=entry.number,
            max_tokens=bound,
            stop_position=bound,
            prompt_tokens=len(entry.prompt),
            sampling=request.sampling,
            stop_token_ids=() if request.ignore_end else manifest.eos_token_ids,
            timings=not request.no_timings,
            slice=request.slice,
            owner=entry.owner,
            traceparent=f"00-{entry.trace_id}-{entry.number:016x}-01",
        )
        template.time_to_live.FromNanoseconds(int((life_s + LIFE_MARGIN_S) * 1e9))
        return template

    def _emit(self, position: int, token: int) -> None:
        if self._page is not None:
            self._page.token(token)
        self.entry.tokens.append(token)
        self._parts.tokens[self._record.deployment, self._record.slice] += 1
        self._notify()

    def _finish(self, reason: int) -> None:
        self.finish = self._record.finish = reason

    def _epoch(self, epoch: int) -> None:
        if self._page is not None:
            self._page.epoch(epoch)

    def _wait(self, why: str) -> None:
        if why != self.waiting:
            self.waiting = why
            self._notify()

    async def _close(self, stages: Stages | None) -> None:
        """Ends it on every node at once, takes their timings home and keeps the record."""
        if self._left:
            if self._page is not None:
                self._page.close()
            return
        if stages is None and self._taken_up:
            stages = await self._stages_of_before()
        if stages is not None:
            await stages.close()
        if not self.entry.request.request_id or self._error is not None:
            self.forget()
        if stages is not None:
            self._parts.traces.add(self._record)

    async def _stages_of_before(self) -> Stages | None:
        """The stages of a generation that was ended before this process had looked for them."""
        try:
            async with asyncio.timeout(SCHEDULER_LOOK_S):
                deployment = await self._find_deployment()
        except (TimeoutError, MeshError):
            return None  # the nodes free it when its time is over
        template = self._template(Manifest.parse(deployment.manifest), LIFE_MARGIN_S)
        stages = Stages(self._parts.upstream, template, self._record)
        stages.take_over(deployment.pipeline)
        return stages


def _finished(record: GenerationRecord, entry: Entry, taken_up: bool) -> gateway_pb2.GenerationFinished:
    arrived = record.arrived_ns
    total_s = (record.ended_ns - record.began_ns) / 1e9
    first_s = (arrived[0] - record.began_ns) / 1e9 if arrived else 0.0
    after_first = max(0, len(arrived) - 1)
    rate = after_first / (total_s - first_s) if after_first and total_s > first_s else len(arrived) / max(total_s, 1e-9)
    if taken_up:
        # When its tokens came is known only since this process began; the clock on the wall bridges the gap.
        total_s, first_s = max(time.time() - entry.began_at, 1e-9), 0.0
        rate = len(entry.tokens) / total_s
    return gateway_pb2.GenerationFinished(
        reason=wire_pb2.FinishReason.Name(record.finish),
        prompt_tokens=len(entry.prompt),
        new_tokens=len(entry.tokens),
        first_token_s=first_s,
        total_s=total_s,
        raw_bytes=record.raw_bytes,
        wire_bytes=record.wire_bytes,
        tokens_per_second=rate,
    )


def finish_of(entry: Entry, manifest: Manifest) -> int:
    """Why nothing follows the tokens that are known; 0 where something does."""
    if entry.tokens and not entry.request.ignore_end and entry.tokens[-1] in manifest.eos_token_ids:
        return wire_pb2.FINISH_REASON_STOP
    return wire_pb2.FINISH_REASON_LENGTH if len(entry.tokens) >= entry.new_tokens else 0
