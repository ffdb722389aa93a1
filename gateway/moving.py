"""Moves a stage of running generations to another node before the window of its link closes, without stopping them.

The node that takes over is opened as a standby and fed while the old one goes on: the journal of the stage before it,
or the old one's cache, whichever is fewer bytes (`orbitmesh.feeding`). When it has caught up, every stage is told the
position from which the new way holds. If any of this fails nothing is lost: the generation is where it was, or its
stages find a gap and are stopped and asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import math

from gateway.course import Phase
from gateway.stages import Stages
from gateway.steering import Steering
from orbitmesh.errors import InvalidInputError, MeshError, NodeLostError
from orbitmesh.feeding import feed_mode
from orbitmesh.pack import Manifest
from orbitmesh.v1 import executor_pb2
from services.runtime.logs import EventLog

CATCH_UP_POLL_S = 0.02
"""How often a node that takes over is asked how far it is."""
CATCH_UP_MAX_S = 600.0
"""How long it may take."""
MARGIN_TOKENS = 2
"""Tokens between the telling and the switch, beside those that are produced while the stages are told."""


async def move(
    steering: Steering, stages: Stages, manifest: Manifest, index: int, to: executor_pb2.PeerAddress, log: EventLog
) -> bool:
    """Moves one stage of one generation; False where it stays: it ends before, or something was in the way."""
    course, old = steering.course, steering.pipeline
    if course.phase is not Phase.RUNNING or course.switch is not None or to.name in course.nodes or len(old) == 1:
        # A pipeline of one stage has nobody to switch around it: its loss is a stop and a replay.
        return False
    new = (*old[:index], to, *old[index + 1 :])
    epoch = course.epoch
    try:
        await _feed(steering, stages, manifest, index, new)
        at = _switch_at(steering)
        if steering.course.epoch != epoch or steering.course.phase is not Phase.RUNNING or at >= course.stop - 1:
            raise NodeLostError("the generation was stopped, or ends before the stage could move")
        ways = [*enumerate(old), (index, to)]
        steering.plan_switch(at, new)
        await stages.switch(ways, new, epoch + 1, at)
    except MeshError as error:
        log.info("stage_not_moved", generation=stages.number, stage=index, to=to.name, detail=error.message)
        steering.feed_along = None
        if index > 0 and steering.course.epoch == epoch:
            # Nobody is to be fed any more; where this is lost, the next stop ends it.
            with contextlib.suppress(MeshError):
                nobody = executor_pb2.PeerAddress()
                await stages.feed_stage(old[index - 1], index - 1, epoch, executor_pb2.FEED_MODE_JOURNAL, nobody, 0)
        if to.name not in steering.course.nodes:
            await stages.close((index, to.name))
        return False
    while not steering.course.finished and steering.course.known <= at + 1:
        await steering.news()
    steering.feed_along = None
    log.info("stage_moved", generation=stages.number, stage=index, to=to.name, switch_at=at)
    if old[index].name not in steering.course.nodes:
        await stages.close((index, old[index].name))
    return True


async def _feed(
    steering: Steering,
    stages: Stages,
    manifest: Manifest,
    index: int,
    new: tuple[executor_pb2.PeerAddress, ...],
) -> None:
    """Opens the node that takes over and brings it as far as the old one is."""
    course, old, to = steering.course, steering.pipeline, new[index]
    mode = feed_mode(manifest, steering.layers(index), first=index == 0)
    follow = executor_pb2.FEED_MODE_JOURNAL
    await stages.open(new, index, course.epoch, standby=True, cache_from=old[index].name)
    fed = 0
    if mode == executor_pb2.FEED_MODE_CACHE:
        fed = (await stages.feed_stage(old[index], index, course.epoch, mode, to, 0)).position
    if index == 0:
        # The first stage is fed with tokens, which the gateway has: those that are known and each that comes.
        steering.feed_along = (to, course.epoch)
        await stages.feed_tokens(to, steering.tokens[fed:], fed, course.epoch, feed=True)
    else:
        try:
            await stages.feed_stage(old[index - 1], index - 1, course.epoch, follow, to, fed)
        except InvalidInputError as error:
            if error.reason != "FAILED_PRECONDITION" or fed:
                raise
            # The journal does not reach back: the stage before took over itself, or its node ran out of room.
            cache = executor_pb2.FEED_MODE_CACHE
            fed = (await stages.feed_stage(old[index], index, course.epoch, cache, to, 0)).position
            await stages.feed_stage(old[index - 1], index - 1, course.epoch, follow, to, fed)
    async with asyncio.timeout(CATCH_UP_MAX_S):
        while (await stages.open(new, index, course.epoch, standby=True)).length < steering.course.known - 1:  # noqa: ASYNC110
            await asyncio.sleep(CATCH_UP_POLL_S)  # the node is asked: nothing here could wake us


def _switch_at(steering: Steering) -> int:
    """The position to switch at: behind what will be produced while the stages are told."""
    arrived = steering.record.arrived_ns[-8:]
    token_s = (arrived[-1] - arrived[0]) / 1e9 / (len(arrived) - 1) if len(arrived) > 1 else 1.0
    farthest_s = max((reading.round_trip_ns for reading in steering.record.clocks.values()), default=0) / 1e9
    return steering.course.known + MARGIN_TOKENS + math.ceil(2 * farthest_s / max(token_s, 1e-6))
