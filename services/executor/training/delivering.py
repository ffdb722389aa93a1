"""How a node brings its masked contribution to the head of its group, over a session of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orbitmesh.errors import InvalidInputError, MeshError, TransportError, error_for
from orbitmesh.v1 import training_pb2, wire_pb2
from orbitmesh.wire.session import Session
from services.executor.training.contribution import ContributionFile
from services.executor.training.sending import header, updates
from services.executor.training.worker import Reach
from services.runtime.logs import EventLog
from services.runtime.roomy import send_when_room

REACH_S = 15.0
"""How long a head that is not reached, or was not told to collect yet, is tried before the contribution goes to the
aggregator; counted anew whenever it has taken something."""
PAUSE_S = 0.25
"""Between two tries."""
ANSWER_S = 120.0
"""How long a head may take to answer: it may have to read all that it has of the contribution."""

LATER = frozenset({"FAILED_PRECONDITION", "STALE_ROUND", "DIGEST_MISMATCH"})
"""Refusals after which it may still work: the head is behind, or was started anew, or what came was damaged."""

Tell = Callable[[], None]


class Delivery:
    """One contribution on its way to a head.

    Args:
        run: The run.
        slice_name: Its slice, which it goes in; empty for none.
        head: Who is to add it to its own.
        file: The contribution.
        tell: Called before all of it has left, and it may count; blocks.
        reach: How the head is reached.
        log: Where to say what happened.
    """

    def __init__(
        self,
        run: str,
        slice_name: str,
        head: training_pb2.GroupHead,
        file: ContributionFile,
        tell: Tell,
        reach: Reach,
        log: EventLog,
    ) -> None:
        self._run, self._slice, self._head, self._file = run, slice_name, head, file
        self._tell, self._reach, self._log = tell, reach, log
        self._deadline_s = 0.0

    async def bring(self) -> bool:
        """Brings it; False where the head is not reached, or refuses it."""
        clock = asyncio.get_running_loop().time
        self._deadline_s = clock() + REACH_S
        while True:
            try:
                await self._try()
                return True
            except MeshError as error:
                late = clock() > self._deadline_s or not (error.retryable or error.reason in LATER)
                if late:
                    self._log.warning(
                        "head_not_reached",
                        run=self._run,
                        round=self._file.facts.round_index,
                        head=self._head.name,
                        reason=error.reason,
                        detail=error.message,
                    )
                    return False
            await asyncio.sleep(PAUSE_S)

    async def _try(self) -> None:
        session = await self._reach(self._head.name, self._head.address)
        try:
            await self._hand_over(session)
        finally:
            await session.close() if session.attached else session.end()

    async def _hand_over(self, session: Session) -> None:
        await self._send(session, header(self._run, self._file))
        answer = await self._answer(session)
        if answer.HasField("stored"):
            await asyncio.to_thread(self._tell)
            return
        first = min(answer.held.spans, self._file.spans - 1)
        ending = asyncio.create_task(self._answer(session))
        try:
            async for info, data in updates(self._run, self._file, first, self._tell):
                if ending.done():
                    break
                await self._send(session, info, data)
                self._deadline_s = asyncio.get_running_loop().time() + REACH_S
            answer = await ending
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
        if not answer.HasField("stored"):
            raise InvalidInputError(f"{self._head.name} answered {answer.WhichOneof('what')!r}, expected stored")

    async def _send(self, session: Session, info: training_pb2.TrainingInfo, data: bytes = b"") -> None:
        await send_when_room(session, wire_pb2.TransferInfo(training=info, slice=self._slice), data)

    async def _answer(self, session: Session) -> training_pb2.TrainingInfo:
        """What the head says next.

        Raises:
            MeshError: It refuses, says nothing, or is lost.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                while True:
                    received = await session.receive()
                    info = received.info.training
                    if (info.run, info.round) == (self._run, self._file.facts.round_index):
                        break
        except TimeoutError:
            raise TransportError(f"{self._head.name} has not answered for {ANSWER_S:g} s") from None
        if info.HasField("refused"):
            raise error_for(info.refused.reason, info.refused.message, dict(info.refused.metadata))
        return info
