"""What the weights of a run make of inputs: asked by an aggregator, answered by a model that is kept in memory.

A node answers without having joined the run. It keeps the model that it was asked last, so that only the first question
after new weights waits for them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from orbitmesh.errors import CapacityError, InvalidInputError, MeshError, PermissionError_
from orbitmesh.v1 import training_pb2, wire_pb2
from orbitmesh.wire.session import Session
from services.executor.training.refusals import refusal
from services.executor.training.thread import TrainingThread
from services.executor.training.work import check_values
from services.executor.training.worker import TurnsOf
from services.runtime.logs import EventLog
from services.training import turns
from services.training.turns import by_turns
from services.updates.spans import SPAN_VALUES, span_count, span_slice

if TYPE_CHECKING:
    from torch import nn

    from services.training.task import Task

PREFIX = "predict:"
"""With which the names of such questions begin; the rest is the asker's choice."""
QUESTIONS_MAX = 16
"""Questions that wait for weights or answers at a time."""
INPUT_VALUES_MAX = 1 << 19
"""Values of one question's inputs at most."""
MODELS_MAX = 2
"""Models that are kept in memory."""


@dataclass
class _Question:
    work: training_pb2.TrainingWork
    sender: str
    values: np.ndarray[tuple[int], np.dtype[np.float32]] = field(repr=False)
    spans: int = 0


class Predictor:
    """Answers questions about inputs.

    Args:
        thread: Where torch computes.
        device: On what.
        log: Where to say what happened.
        turns: When it may compute.
    """

    def __init__(self, thread: TrainingThread, device: str, log: EventLog, turns: TurnsOf) -> None:
        self._thread = thread
        self._turns = turns
        self._device = device
        self._log = log
        self._questions: dict[str, _Question] = {}
        self._models: OrderedDict[tuple[str, bytes], tuple[Task, nn.Module]] = OrderedDict()
        self._answering: set[asyncio.Task[None]] = set()

    async def take(self, info: training_pb2.TrainingInfo, data: memoryview, session: Session) -> None:
        """Takes a question, or a span of the weights that one waits for."""
        try:
            if info.HasField("order"):
                await self._asked(info, data, session)
            elif info.HasField("weights"):
                self._span(info, data, session)
        except MeshError as error:
            self._questions.pop(info.run, None)
            await session.send(wire_pb2.TransferInfo(training=refusal(info.run, info.round, error)))

    async def close(self) -> None:
        """Answers nothing more."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _asked(self, info: training_pb2.TrainingInfo, data: memoryview, session: Session) -> None:
        work = training_pb2.TrainingWork()
        try:
            work.MergeFromString(bytes(data))
        except DecodeError:
            raise InvalidInputError("a question to a model is no TrainingWork") from None
        values = check_values(work.weights.values)
        _check_inputs(work.inputs)
        if info.run not in self._questions and len(self._questions) >= QUESTIONS_MAX:
            raise CapacityError(f"this node answers {QUESTIONS_MAX} questions already: ask again, or another node")
        known = (work.spec.task, work.weights.sha256) in self._models
        held = np.empty(0 if known else values, np.float32)
        question = self._questions[info.run] = _Question(work, session.peer.spiffe, held)
        have = training_pb2.WeightsHeld(sha256=work.weights.sha256, spans=span_count(values) if known else 0)
        await session.send(_message(info, have=have))
        if known:
            self._answer(info, question, session)

    def _span(self, info: training_pb2.TrainingInfo, data: memoryview, session: Session) -> None:
        question = self._questions.get(info.run)
        if question is None:
            return
        if question.sender != session.peer.spiffe:
            raise PermissionError_("weights came from another than asked", reason="NOT_YOURSELF")
        size = question.values.size
        if info.weights.index != question.spans or question.spans >= span_count(size):
            raise InvalidInputError(
                f"span {info.weights.index} of weights came; {question.spans} was due", reason="UPDATE_MALFORMED"
            )
        where = span_slice(question.spans, size)
        if len(data) != 4 * (where.stop - where.start):
            raise InvalidInputError(
                f"a span of weights has {len(data)} bytes; spans have {SPAN_VALUES} values of 4 bytes, the last fewer",
                reason="UPDATE_MALFORMED",
            )
        question.values[where] = np.frombuffer(data, "<f4")
        question.spans += 1
        if question.spans == span_count(size):
            self._answer(info, question, session)

    def _answer(self, info: training_pb2.TrainingInfo, question: _Question, session: Session) -> None:
        task = asyncio.create_task(self._answered(info, question, session), name=f"answer to {info.run}")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answered(self, info: training_pb2.TrainingInfo, question: _Question, session: Session) -> None:
        try:
            try:
                outputs = await self._thread.run_short(lambda: self._compute(question))
            except (RuntimeError, MemoryError) as error:
                raise InvalidInputError(f"the model cannot take these inputs: {error}") from error
            said = training_pb2.Predicted(sha256=question.work.weights.sha256)
            await session.send(_message(info, predicted=said), outputs.SerializeToString())
        except MeshError as error:
            self._log.warning("prediction_failed", run=info.run, reason=error.reason, detail=error.message)
            if session.error is None and not session.closed:
                await session.send(wire_pb2.TransferInfo(training=refusal(info.run, info.round, error)))
        finally:
            self._questions.pop(info.run, None)

    def _compute(self, question: _Question) -> training_pb2.Inputs:
        """On the training thread."""
        import torch

        work = question.work
        task, model = self._model(question)
        inputs = np.frombuffer(work.inputs.data, "<f4").reshape(list(work.inputs.shape)).copy()
        # Whoever asks need not be whose run it is: it is in no slice.
        with torch.no_grad(), by_turns(self._turns("", lambda: False)):
            turns.take()
            outputs = task.predict(model, torch.from_numpy(inputs).to(self._device)).float().numpy(force=True)
        return training_pb2.Inputs(shape=outputs.shape, data=np.ascontiguousarray(outputs, "<f4").tobytes())

    def _model(self, question: _Question) -> tuple[Task, nn.Module]:
        from services.training import flat
        from services.training.task import find_task

        work = question.work
        key = (work.spec.task, work.weights.sha256)
        if key not in self._models:
            if hashlib.sha256(question.values.astype("<f4", copy=False).data).digest() != work.weights.sha256:
                raise InvalidInputError("the weights are others than their digest says", reason="DIGEST_MISMATCH")
            task = find_task(work.spec.task)
            model = task.model(work.spec.seed)
            flat.load_flat(model, question.values)
            self._models[key] = (task, model.to(self._device).eval())
            while len(self._models) > MODELS_MAX:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return self._models[key]


def _check_inputs(inputs: training_pb2.Inputs) -> None:
    count = 1
    for length in inputs.shape:
        count *= length
    if not inputs.shape or not 1 <= count <= INPUT_VALUES_MAX or len(inputs.data) != 4 * count:
        raise InvalidInputError(
            f"inputs of shape {list(inputs.shape)} came as {len(inputs.data)} bytes; expected 1 to {INPUT_VALUES_MAX} "
            "values of 4 bytes"
        )


def _message(
    info: training_pb2.TrainingInfo,
    *,
    have: training_pb2.WeightsHeld | None = None,
    predicted: training_pb2.Predicted | None = None,
) -> wire_pb2.TransferInfo:
    answer = training_pb2.TrainingInfo(run=info.run, round=info.round, have=have, predicted=predicted)
    return wire_pb2.TransferInfo(training=answer)
