"""From what a round's training gave to a contribution under its name, and back where it does not count.

The order is the same for all: the spans are written and durable but without a name, then what they leave out is kept,
then they get their name. Whatever a crash leaves can be told: spans without a name may have their rest in the residual,
and are given back as if they had been sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from orbitmesh.durable import write_durably
from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.executor.training.bench import Bench
from services.executor.training.contribution import ContributionFile, ContributionWriter, Facts
from services.executor.training.encoding import care_of, decode_contribution, encode_delta
from services.executor.training.files import INITIALISE, TRAIN
from services.executor.training.masking import SumRound, check_sum, digest_of, masked, noised, noised_sum, quantised
from services.executor.training.secrets import RunSecrets
from services.executor.training.sums import KEPT_ROUNDS
from services.executor.training.terms import clip_of, hides_nodes, is_secure, shares_noise, shares_records
from services.executor.training.work import rounding_seed
from services.privacy.events import RoundEvent, SharedNoise
from services.updates.feedback import Residual
from services.updates.scheme import Scheme
from services.updates.spans import Floats, spans

Commit = Callable[[], None]


@dataclass(frozen=True)
class Round:
    """An order to train, with what was checked of it before."""

    index: int
    """The round."""
    work: training_pb2.TrainingWork
    """The order."""
    scheme: Scheme
    """How the run compresses."""
    sums: SumRound | None
    """What is summed; None where the aggregator sees each contribution."""


def check_round(bench: Bench, work: training_pb2.TrainingWork, round_index: int) -> Round:
    """Refuses a round whose contribution could not be made, before it is trained for.

    Raises:
        InvalidInputError: The sum that is ordered makes no sense, or the promise of privacy is spent.
    """
    scheme = Scheme.parse(work.spec.compression)
    if not is_secure(work.spec):
        return Round(round_index, work, scheme, None)
    sums = check_sum(work, round_index, scheme, bench.shop.values, len(bench.shop.shard))
    if shares_noise(work.spec):
        secrets_of(bench).check_release(_shared(bench, work, sums), round_index, sums.plan.digest.hex())
    return Round(round_index, work, scheme, sums)


def write_initial(bench: Bench, round_index: int, weights: Floats) -> None:
    """Writes weights down as a contribution: raw float32, little-endian."""
    writer = ContributionWriter(bench.files.contribution_path(INITIALISE, round_index))
    try:
        for _, where in spans(weights.size):
            writer.add(weights[where].astype("<f4", copy=False).tobytes())
        writer.finish(Facts(round_index, "", "", len(bench.shop.shard)))
        writer.publish()
    finally:
        writer.abandon()


def contribute(bench: Bench, of: Round, delta: Floats, facts: Facts, released: Commit | None) -> None:
    """Makes a contribution of a delta, up to its name.

    Args:
        bench: The run's.
        of: The round.
        delta: Float32 of shape (d,).
        facts: What is known of it.
        released: What counts it as released, durably; None where it needs not be.
    """
    writer = ContributionWriter(bench.files.contribution_path(TRAIN, of.index))
    try:
        if of.sums is None:
            commit = encode_delta(
                of.scheme,
                delta,
                writer,
                round_index=of.index,
                seed=rounding_seed(bench.run, of.index, bench.node),
                residual=bench.files.residual,
                layout=bench.shop.layout,
                payload_bytes=of.work.payload_bytes,
            )
        else:
            facts, commit = _masked(bench, of, of.sums, delta, facts, writer)
        if released is not None:
            released()
        writer.finish(replace(facts, with_residual=commit is not None))
        if commit is not None:
            commit()
        writer.publish()
    finally:
        writer.abandon()


def settle(bench: Bench, round_index: int) -> None:
    """Lets go of contributions of other rounds: what never left this node in full did not count, and is given back."""
    bench.files.adopt_unpublished(round_index)
    for other in bench.files.rounds_contributed():
        if other != round_index:
            withdraw(bench, other, counted=bench.files.is_told(other))


def withdraw(bench: Bench, round_index: int, *, counted: bool = False) -> None:
    """Removes the contribution of a round; where it did not count, what was sent of it follows later."""
    file = bench.files.contribution(TRAIN, round_index)
    if file is not None and file.facts.with_residual and not counted:
        residual = Residual(bench.files.residual, bench.shop.layout)
        decoded = _decoded(bench, file)
        if residual.round_index == round_index and decoded is not None:
            residual.give_back(round_index, decoded)
    bench.files.drop_contribution(TRAIN, round_index)


def secrets_of(bench: Bench) -> RunSecrets:
    """The run's secrets.

    Raises:
        InvalidInputError: It has none.
    """
    if bench.secrets is None:
        raise InvalidInputError(f"this node has no secrets of the run {bench.run}", reason="FAILED_PRECONDITION")
    return bench.secrets


def _masked(
    bench: Bench, of: Round, sums: SumRound, delta: Floats, facts: Facts, writer: ContributionWriter
) -> tuple[Facts, Commit | None]:
    """Writes the masked words of a delta. That they were made is durable before any of them is on the disk."""
    secrets, spec = secrets_of(bench), of.work.spec
    commit: Commit | None = None
    if hides_nodes(spec):
        seed = secrets.round_seed("node", of.index)
        integers = noised(sums, delta, clip_of(spec), spec.privacy.noise_multiplier, seed)
    elif shares_records(spec):
        seed = secrets.round_seed("records", of.index)
        integers = noised_sum(sums, delta, clip_of(spec), spec.privacy.noise_multiplier, seed)
    else:
        care = care_of(of.scheme, masked=True)
        kept = Residual(bench.files.residual, bench.shop.layout)
        corrected = delta + np.float32(care.feedback) * kept.carried(of.index)
        seed_of_chance = rounding_seed(bench.run, of.index, bench.node) if care.by_chance else None
        integers, decoded = quantised(sums, corrected, seed_of_chance)

        def commit() -> None:
            write_durably(bench.files.decoded(of.index), decoded.astype("<f4", copy=False).data)
            kept.commit(of.index, corrected, decoded)

    with secrets.changing():
        if secrets.sums is None:
            raise InvalidInputError(f"the run {bench.run} was joined without secure sums", reason="FAILED_PRECONDITION")
        masker = secrets.sums.contribute(sums.plan, digest_of(integers))
        if shares_noise(spec):
            secrets.promise(of.index, sums.survivors_promised)
            secrets.release(_shared(bench, of.work, sums), of.index, sums.plan.digest.hex())
        secrets.retire(of.index - KEPT_ROUNDS)
    masked(sums, integers, masker.mask, writer.add)
    return replace(facts, sums_context=masker.context.hex()), commit


def _shared(bench: Bench, work: training_pb2.TrainingWork, sums: SumRound) -> Callable[[int], RoundEvent]:
    """What a sum releases of this node, or of its examples: with the noise that was promised, whoever else survives."""
    privacy, promised = work.spec.privacy, sums.survivors_promised
    account = None if hides_nodes(work.spec) else bench.node

    def make(attempt: int) -> RoundEvent:
        noise = SharedNoise(privacy.noise_multiplier, promised, promised)
        return RoundEvent(sums.plan.round_index, account, 1, 1.0, noise, clip_of(work.spec), attempt=attempt)

    return make


def _decoded(bench: Bench, file: ContributionFile) -> Floats | None:
    if not file.facts.sums_context:
        return decode_contribution(file, bench.shop.values)
    path = bench.files.decoded(file.facts.round_index)
    if not path.exists():
        return None
    return np.fromfile(path, "<f4").astype(np.float32, copy=False)
