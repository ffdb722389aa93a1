"""From a node's delta to masked words: what it adds to a sum that nobody sees a term of.

Without privacy of nodes, the update is weighted by the node's share of examples, and what is cut off, rounded or not
sent is fed back in the next round (`encoding.care_of`). With privacy of nodes, the
update is clipped, rounded so that its norm stays bounded, and this node's share of the noise is added; nothing is fed
back, since that would make a second release of the same data. Where single examples are hidden by noise in shares it is
the sum of their clipped gradients that is rounded, and nothing is clipped any more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.executor.training.terms import shares_noise, sum_bits
from services.privacy.clipping import clip_factor, squared_norm
from services.privacy.keystream import Keystream
from services.privacy.noise import DiscreteGaussian, share_variance
from services.privacy.rounding import round_span, rounded_norm
from services.securesum import RoundPlan, spans_of, to_words
from services.updates.blocks import shared_indices
from services.updates.integers import from_integers, largest_integer, to_integers
from services.updates.scheme import Kind, Scheme
from services.updates.spans import SPAN_VALUES, Floats, span_count, span_length, span_slice

_PURPOSE_ROUNDING = 0x726F756E
_FINE = 2.0**-53

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class SumRound:
    """What an order says about a sum, checked."""

    plan: RoundPlan
    """What is summed, and by whom."""
    scheme: Scheme
    """Which values are sent."""
    values: int
    """Values of the model."""
    scale: float
    """What a step is worth."""
    weight: float
    """What this node's update is multiplied with."""
    bits: int
    """Bits of one node's integers without noise."""
    survivors_promised: int
    """The fewest survivors that noise is sized for; 0 where there is none."""

    @property
    def room(self) -> int:
        """The largest magnitude of one node's words with which no sum wraps around."""
        return ((1 << (self.plan.bits - 1)) - 1) // len(self.plan.cohort)

    def sent(self, span: int) -> npt.NDArray[np.int64]:
        """Which values of a span are in the sum: increasing indices within it."""
        if self.scheme.kind is Kind.BLOCKS:
            return shared_indices(self.plan.round_index, self.scheme.cycle_rounds, span, self.values)
        return np.arange(span_length(span, self.values))


def check_sum(
    work: training_pb2.TrainingWork, round_index: int, scheme: Scheme, values: int, examples: int
) -> SumRound:
    """The sum that an order names.

    Args:
        work: The order.
        round_index: Its round.
        scheme: Which values are sent.
        values: Values of the model.
        examples: What this node has.

    Raises:
        InvalidInputError: It names none, another round's, or one of another model; or its numbers make no sense.
    """
    if not work.HasField("sums"):
        raise InvalidInputError(
            "this run has secure sums, and the order names none: no update leaves this node unmasked",
            reason="FAILED_PRECONDITION",
        )
    plan = RoundPlan.from_bytes(work.sums.plan)
    if plan.round_index != round_index or not plan.cohort or not 4 <= plan.bits <= 32:
        raise InvalidInputError(f"the plan of a sum is for round {plan.round_index}, ordered was round {round_index}")
    reference, promised, private = work.sums.examples_reference, work.sums.survivors_promised, shares_noise(work.spec)
    if not (reference or private) or promised > len(plan.cohort) or private != bool(promised):
        raise InvalidInputError(
            f"a sum with a reference of {reference} examples and noise for {promised} survivors of "
            f"{len(plan.cohort)} nodes makes no sense{' where nodes add shares of the noise' if private else ''}"
        )
    weight = 1.0 if private else min(1.0, examples / reference)
    made = SumRound(
        plan, scheme, values, work.sums.scale, weight, sum_bits(work.spec, scheme), work.sums.survivors_promised
    )
    sizes = spans_of(values)
    if scheme.kind is Kind.BLOCKS:
        sizes = tuple(made.sent(span).size for span in range(span_count(values)))
    if plan.spans != sizes:
        raise InvalidInputError(
            f"the plan of round {round_index} has {len(plan.spans)} spans of {sum(plan.spans)} words, and {scheme} of "
            f"this model has {len(sizes)} of {sum(sizes)}",
            reason="LAYOUT_MISMATCH",
        )
    if not private and largest_integer(made.bits) > made.room:
        raise InvalidInputError(
            f"words of {plan.bits} bits cannot hold the sum of {len(plan.cohort)} nodes' integers of {made.bits} bits"
        )
    return made


def quantised(sums: SumRound, update: Floats, seed: int | None) -> tuple[list[Integers], Floats]:
    """An update as this node adds it to a sum without noise.

    Args:
        sums: The round.
        update: Delta plus what was fed back, float32 of shape (d,).
        seed: What rounding by chance follows from; to nearest without.

    Returns:
        The integers span by span, and what they stand for of the update, float32 of shape (d,).
    """
    integers, decoded = [], np.zeros(sums.values, np.float32)
    for span in range(span_count(sums.values)):
        where, chosen = span_slice(span, sums.values), sums.sent(span)
        part = update[where][chosen] * np.float32(sums.weight)
        rng = np.random.default_rng([seed, span]) if seed is not None else None
        words, _ = to_integers(part, sums.scale, sums.bits, rng)
        integers.append(words)
        decoded[where][chosen] = from_integers(words, sums.scale) / np.float32(sums.weight)
    return integers, decoded


def noised(sums: SumRound, update: Floats, clip: float, noise_multiplier: float, seed: bytes) -> list[Integers]:
    """An update as this node adds it to a sum that hides nodes: clipped, rounded, with a share of the noise.

    Args:
        sums: The round.
        update: Delta, float32 of shape (d,).
        clip: The largest norm.
        noise_multiplier: Standard deviation of the noise of the sum, in clips.
        seed: 32 secret bytes of this round alone.

    Raises:
        InvalidInputError: The noise has no room in the words, is out of the sampler's range, or the update is not
            finite (`NOT_FINITE`).
    """
    _check_noise(sums, noise_multiplier)
    parts = _parts(sums, update)
    factor = clip_factor(math.sqrt(sum(squared_norm(part) for part in parts)), clip)
    # Of the whole vector, as the aggregator counts it: with blocks what is sent is shorter, and better covered.
    clip_steps = rounded_norm(clip / sums.scale, sums.values, SPAN_VALUES)
    sampler = _sampler(share_variance(noise_multiplier * clip_steps, sums.survivors_promised))
    integers = []
    for span, part in enumerate(parts):
        steps = part.astype(np.float64) * (factor / sums.scale)
        whole = round_span(steps, Keystream(seed, _PURPOSE_ROUNDING, span)) + sampler.span(seed, span, len(part))
        integers.append(_fitting(sums, whole))
    return integers


def noised_sum(sums: SumRound, total: Floats, clip: float, noise_multiplier: float, seed: bytes) -> list[Integers]:
    """A sum of clipped gradients as this node adds it to a sum that hides each example: rounded, with its share of the
    noise.

    Every value is rounded by one draw that does not depend on the data. Without any one example, of norm C in steps, a
    value then changes by at most its own change and one, so the whole by at most C plus the root of how many there are.

    Args:
        sums: The round.
        total: Float32 of shape (d,).
        clip: The largest norm of what one example adds.
        noise_multiplier: Standard deviation of the noise of the sum, in clips.
        seed: 32 secret bytes of this round alone.

    Raises:
        InvalidInputError: As `noised`.
    """
    _check_noise(sums, noise_multiplier)
    clip_steps = clip / sums.scale + math.sqrt(sums.values)
    sampler = _sampler(share_variance(noise_multiplier * clip_steps, sums.survivors_promised))
    integers = []
    for span, part in enumerate(_parts(sums, total)):
        squared_norm(part)  # raises where a value is not finite
        drawn = (Keystream(seed, _PURPOSE_ROUNDING, span).words(len(part)) >> np.uint64(11)).astype(np.float64) * _FINE
        whole = np.floor(part.astype(np.float64) / sums.scale + drawn).astype(np.int64)
        integers.append(_fitting(sums, whole + sampler.span(seed, span, len(part))))
    return integers


def _check_noise(sums: SumRound, noise_multiplier: float) -> None:
    if not (math.isfinite(sums.scale) and sums.scale > 0 and noise_multiplier > 0):
        raise InvalidInputError(
            f"noise of {noise_multiplier} clips in steps of {sums.scale} was ordered: both have to be above 0"
        )


def _parts(sums: SumRound, update: Floats) -> list[Floats]:
    return [update[span_slice(span, sums.values)][sums.sent(span)] for span in range(span_count(sums.values))]


def _fitting(sums: SumRound, whole: npt.NDArray[np.int64]) -> Integers:
    largest = int(np.abs(whole).max(initial=0))
    if largest > sums.room:
        raise InvalidInputError(
            f"words of {sums.plan.bits} bits have no room for {largest} steps, noise included, of each of "
            f"{len(sums.plan.cohort)} nodes: plan wider ones"
        )
    return whole.astype(np.int32)


def digest_of(integers: list[Integers]) -> bytes:
    """SHA-256 of an update as it is before it is masked, in full: a round's masks hide one update."""
    digest = hashlib.sha256()
    for span in integers:
        digest.update(span.astype("<i4", copy=False).tobytes())
    return digest.digest()


def masked(
    sums: SumRound,
    integers: list[Integers],
    mask: Callable[[int, npt.NDArray[np.unsignedinteger]], bytes],
    add: Callable[[bytes], None],
) -> None:
    """Masks an update span by span and hands each on."""
    for span, values in enumerate(integers):
        add(mask(span, to_words(values, sums.room, sums.plan.bits)))


@lru_cache(maxsize=1)
def _sampler(variance: int) -> DiscreteGaussian:
    # Its table takes up to a second to make, and is the same round after round.
    return DiscreteGaussian(variance)
