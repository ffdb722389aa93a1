"""A contribution as it is sent: what it is, then its spans one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from orbitmesh.v1 import training_pb2
from services.executor.training.contribution import ContributionFile
from services.executor.training.outbox import Parcel


async def parcels(
    run: str, file: ContributionFile, first: int, tell: Callable[[], None] | None
) -> AsyncGenerator[Parcel, None]:
    """What is sent of a contribution.

    Args:
        run: The run.
        file: The contribution.
        first: The first span that the aggregator lacks.
        tell: Called before all of it has left, and it may count; blocks. None where nobody asks.
    """
    if tell is not None and first >= file.spans:
        await asyncio.to_thread(tell)
    yield header(run, file), b""
    async for parcel in updates(run, file, first, tell):
        yield parcel


def header(run: str, file: ContributionFile) -> training_pb2.TrainingInfo:
    """What a contribution is, as it is announced."""
    facts = file.facts
    info = training_pb2.ContributionInfo(
        examples=facts.examples,
        spans=file.spans,
        sha256=bytes.fromhex(facts.sha256),
        loss=facts.loss,
        steps=facts.steps,
        train_s=facts.train_s,
        sums_context=bytes.fromhex(facts.sums_context),
        release=facts.release,
        summed=[training_pb2.SummedContribution(**each) for each in facts.summed],
    )
    return training_pb2.TrainingInfo(run=run, round=facts.round_index, contribution=info)


async def updates(
    run: str, file: ContributionFile, first: int, tell: Callable[[], None] | None
) -> AsyncGenerator[Parcel, None]:
    """Its spans; arguments are those of `parcels`."""
    for index in range(first, file.spans):
        if tell is not None and index + 1 == file.spans:
            await asyncio.to_thread(tell)
        data = await asyncio.to_thread(file.span, index)
        span = training_pb2.SpanInfo(index=index)
        yield training_pb2.TrainingInfo(run=run, round=file.facts.round_index, update=span), data
