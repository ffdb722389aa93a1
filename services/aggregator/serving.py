"""Answers about inputs with the weights of a run: one node is asked, and another one where it cannot."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

from google.protobuf.message import DecodeError

from orbitmesh.errors import IntegrityError, InvalidInputError, MeshError, NodeLostError, error_for
from orbitmesh.v1 import aggregator_pb2, training_pb2, wire_pb2
from orbitmesh.wire.session import Session
from services.aggregator.weights import SentWeights
from services.runtime.logs import EventLog

PREFIX = "predict:"
"""With which the names of questions begin on the wire."""
TRIES = 3
"""How many nodes are asked at the most."""

Dial = Callable[[str], Awaitable[Session]]
"""Opens a session with the node of that name."""


class Serving:
    """Asks nodes.

    Args:
        dial: Opens sessions.
        log: Where to say what happened.
    """

    def __init__(self, dial: Dial, log: EventLog) -> None:
        self._dial = dial
        self._log = log
        self._sessions: dict[str, tuple[Session, asyncio.Lock]] = {}

    async def predict(
        self,
        spec: training_pb2.TrainingSpec,
        weights: SentWeights,
        inputs: training_pb2.Inputs,
        nodes: Sequence[str],
        rounds_done: int,
    ) -> aggregator_pb2.PredictResponse:
        """What the weights make of inputs.

        Args:
            spec: The run.
            weights: Its weights.
            inputs: What is asked about.
            nodes: Whom to ask, in order.
            rounds_done: The round that the weights are after.

        Raises:
            InvalidInputError: The task says that the inputs make no sense.
            NodeLostError: No node could be reached.
        """
        work = training_pb2.TrainingWork(spec=spec, weights=weights.info(), inputs=inputs)
        last: MeshError = NodeLostError("no node of the run is up: start its executors")
        for node in nodes[:TRIES]:
            try:
                outputs = await self._ask(node, work, weights)
            except MeshError as error:
                if not error.retryable:
                    raise
                self._log.info("prediction_moves_on", node=node, detail=error.message)
                last = error
                continue
            return aggregator_pb2.PredictResponse(outputs=outputs, node=node, rounds_done=rounds_done)
        raise last

    async def close(self) -> None:
        """Ends every session."""
        await asyncio.gather(*(session.close() for session, _ in self._sessions.values()))

    async def _ask(self, node: str, work: training_pb2.TrainingWork, weights: SentWeights) -> training_pb2.Inputs:
        held = self._sessions.get(node)
        if held is None or held[0].closed:
            held = self._sessions[node] = (await self._dial(node), asyncio.Lock())
        session, lock = held
        # One question at a time on a session: answers come in the order of the questions.
        async with lock:
            try:
                return await self._exchange(session, work, weights)
            except (MeshError, asyncio.CancelledError) as error:
                if not isinstance(error, InvalidInputError):
                    # What is still on its way must not be taken for the next answer.
                    session.end()
                raise

    async def _exchange(
        self, session: Session, work: training_pb2.TrainingWork, weights: SentWeights
    ) -> training_pb2.Inputs:
        run = PREFIX + secrets.token_hex(8)
        order = training_pb2.TrainingOrder(kind=training_pb2.TRAINING_KIND_PREDICT)
        await session.send(_message(training_pb2.TrainingInfo(run=run, order=order)), work.SerializeToString())
        while True:
            received = await session.receive()
            info = received.info.training
            if info.run != run:
                continue
            if info.HasField("have"):
                for index in range(info.have.spans, weights.spans):
                    span = training_pb2.SpanInfo(index=index)
                    await session.send(_message(training_pb2.TrainingInfo(run=run, weights=span)), weights.span(index))
            elif info.HasField("refused"):
                raise error_for(info.refused.reason, info.refused.message, dict(info.refused.metadata))
            elif info.HasField("predicted"):
                try:
                    return training_pb2.Inputs.FromString(bytes(received.data))
                except DecodeError:
                    raise IntegrityError("a node's answer is no message of this mesh") from None


def _message(info: training_pb2.TrainingInfo) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(training=info)
