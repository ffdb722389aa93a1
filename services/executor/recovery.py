"""Stopping a generation in a stage, letting it go on elsewhere or from another position, and feeding a stage that takes
over. The gateway decides; `progress` says what each act means."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import PREFILL_CHUNK_TOKENS
from orbitmesh.v1 import executor_pb2
from services.executor import progress as transitions
from services.executor.cachemove import send_cache
from services.executor.generation import Generation, route_of
from services.executor.onward import finish_at
from services.executor.progress import Phase
from services.executor.runner import StageRunner

Learn = Callable[[Sequence[executor_pb2.PeerAddress]], None]
"""Takes note of where peers are reached."""


class Recovery:
    """Acts of gateways on the generations of one stage.

    Args:
        runner: The stage.
        learn: Told of the peers that a request names.
    """

    def __init__(self, runner: StageRunner, learn: Learn) -> None:
        self._runner = runner
        self._learn = learn

    async def stop(
        self, request: executor_pb2.StopGenerationRequest, gateway: str
    ) -> executor_pb2.StopGenerationResponse:
        """Holds a generation under a new epoch and says how far it got.

        Raises:
            InvalidInputError: `NOT_FOUND`, it is not open here; `STALE_EPOCH`, a newer epoch has begun.
        """
        generation = self._find(request.generation, gateway)
        again = generation.progress.epoch == request.epoch
        generation.progress = transitions.stop(generation.progress, request.epoch)
        self._learn(request.pipeline)
        if not again:
            generation.run += 1
            generation.route = route_of(request.stage_index, request.pipeline)
            generation.next_route = generation.feed_to = None
            generation.held.clear()
        await self._runner.engine.run(lambda: None)  # what was being computed has ended and is counted
        if generation.progress.epoch != request.epoch:
            raise transitions.stale(request.epoch, generation.progress.epoch)
        length = generation.progress.length
        answer = executor_pb2.StopGenerationResponse(
            length=length,
            journal_start=min(generation.journal.start, length),
            tokens=generation.known_tokens(request.position),
            clock_ns=time.monotonic_ns(),
        )
        if answer.tokens:
            answer.finish = finish_at(generation, answer.tokens[-1], request.position + len(answer.tokens) - 1)
        return answer

    def go_on(self, request: executor_pb2.ContinueGenerationRequest, gateway: str) -> None:
        """Lets a stopped generation go on, or plans the position from which it goes another way.

        Raises:
            InvalidInputError: `NOT_FOUND`, `STALE_EPOCH`, or positions that the stage does not have.
        """
        generation = self._find(request.generation, gateway)
        if request.switch_at:
            self._plan_switch(generation, request)
            return
        if generation.progress.epoch == request.epoch and generation.running:
            return
        generation.progress = transitions.go_on(
            generation.progress, request.epoch, request.length, request.push_from, request.sample_from
        )
        # No step of it is under way since it was stopped: the cache can be cut here.
        if generation.cache.length > request.length:
            generation.cache.truncate(request.length)
        generation.journal.truncate(request.length)
        if self._runner.stage.is_last and not self._runner.stage.is_first:
            generation.cut_tokens(request.sample_from)
            if generation.tokens_from + len(generation.tokens) != request.sample_from:
                generation.tokens, generation.tokens_from = [], request.sample_from
        if self._runner.stage.is_first:
            generation.cut_tokens(request.length)
        if not self._runner.stage.is_last:
            self._replay(generation, generation.route.next_node, request.push_from, request.length)
        held, generation.held = generation.held, []
        for work in held:
            work()

    def _plan_switch(self, generation: Generation, request: executor_pb2.ContinueGenerationRequest) -> None:
        generation.progress = transitions.plan_switch(
            generation.progress, request.epoch, request.switch_at, request.sample_from
        )
        self._learn(request.pipeline)
        names = {peer.name: index for index, peer in enumerate(request.pipeline)}
        if generation.progress.switch is not None and names:
            generation.next_route = route_of(request.stage_index, request.pipeline)
            if self._runner.stage.is_last and generation.progress.phase is Phase.STANDBY:
                generation.tokens, generation.tokens_from = [], request.sample_from

    async def feed(
        self, request: executor_pb2.FeedGenerationRequest, gateway: str
    ) -> executor_pb2.FeedGenerationResponse:
        """Feeds a stage that will take over: what the journal holds and all that follows, or the cache.

        Raises:
            InvalidInputError: `NOT_FOUND`, `STALE_EPOCH`, or the journal does not reach back so far.
        """
        generation = self._find(request.generation, gateway)
        if request.epoch != generation.progress.epoch:
            raise transitions.stale(request.epoch, generation.progress.epoch)
        if not request.target.name:
            generation.feed_to = None
            return executor_pb2.FeedGenerationResponse(position=generation.journal.stop)
        self._learn([request.target])
        before = generation.wire_bytes
        if request.mode == executor_pb2.FEED_MODE_CACHE:
            stop = await send_cache(self._runner, generation, request.target.name, request.from_position)
        else:
            if request.from_position < generation.journal.start:
                raise InvalidInputError(
                    f"the journal begins at position {generation.journal.start}: it does not hold "
                    f"{request.from_position}; move the cache instead",
                    reason="FAILED_PRECONDITION",
                )
            # In one turn of the loop: what the journal does not hold yet will be sent along when it is computed.
            stop = generation.journal.stop
            self._replay(generation, request.target.name, request.from_position, stop, feed=True)
            generation.feed_to = request.target.name
        return executor_pb2.FeedGenerationResponse(position=stop, wire_bytes=generation.wire_bytes - before)

    def _replay(self, generation: Generation, node: str, start: int, stop: int, *, feed: bool = False) -> None:
        if start < stop:
            for position, data in generation.journal.read(start, stop, PREFILL_CHUNK_TOKENS):
                self._runner.onward.send_rows(generation, node, position, data, feed=feed)

    def _find(self, number: int, gateway: str) -> Generation:
        generation = self._runner.generations.get(number)
        if generation is None or generation.gateway != gateway:
            raise InvalidInputError(
                f"generation {number:016x} is not open in stage {self._runner.stage_index} of "
                f"{self._runner.key[0]!r} on this node",
                reason="NOT_FOUND",
            )
        return generation

