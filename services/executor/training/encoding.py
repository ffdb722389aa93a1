"""From a node's delta to the spans of its contribution, and what is kept of what they leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from services.executor.training.contribution import ContributionFile, ContributionWriter
from services.updates.codec import Encoded, decode_span, encode
from services.updates.feedback import Residual
from services.updates.layout import Layout
from services.updates.scheme import Kind, Number, Scheme
from services.updates.spans import Floats, span_slice

TRIES_MAX = 4
"""How often a top-k encoding is cut down to fit a contact."""
_FIT = 0.95
"""The part of a contact that is aimed at: indices take more for each value the fewer there are."""


@dataclass(frozen=True)
class Care:
    """What is done about what an encoding leaves out."""

    feedback: float
    """The part of it that goes into the next round's update; 0 where none of it is kept."""
    by_chance: bool
    """Whether integers are rounded by chance, so that their mean over nodes and rounds is right; else to nearest."""


BLOCKS_FEEDBACK = 0.5
"""With blocks, a value that waited for its turn counts as two rounds' updates at most."""


def care_of(scheme: Scheme, *, masked: bool = False) -> Care:
    """How what a scheme leaves out is made good.

    fp32 leaves out nothing, fp16 a ten-thousandth; and dense int8 and int4 rounded by chance learn as well as with
    feedback, which would cost two vectors on the disk in each round. Top-k lives by it. Dense masked integers have one
    scale for all nodes, and what is beyond the largest of them is cut off: that must not be lost.

    With blocks, a value whose turn comes every L rounds would with all of its feedback carry L rounds' updates at once,
    all but the last computed from weights that did not have them: it overshoots. Without any it learns from one round
    in L. Half of it is better than both (CNN on MNIST-5k, 8 nodes, skewed labels, a quarter of the values, 20 rounds of
    3 epochs with momentum: loss 0.117, without feedback 0.126, with all of it 0.485; of 1 epoch: 0.26, 0.43, 0.24).

    Args:
        scheme: How the run compresses.
        masked: Whether the values are masked: they are integers then, whatever the scheme says.
    """
    is_integer = masked or scheme.number in (Number.INT8, Number.INT4)
    if scheme.kind is Kind.BLOCKS:
        return Care(BLOCKS_FEEDBACK, by_chance=is_integer)
    if scheme.kind is Kind.TOPK or masked:
        return Care(1.0, by_chance=False)
    return Care(0.0, by_chance=is_integer)


def encode_delta(
    scheme: Scheme,
    delta: Floats,
    writer: ContributionWriter,
    *,
    round_index: int,
    seed: int,
    residual: Path,
    layout: Layout,
    payload_bytes: int = 0,
) -> Callable[[], None] | None:
    """Writes the spans of a delta.

    Args:
        scheme: How the run compresses.
        delta: Float32 of shape (d,).
        writer: Takes the spans.
        round_index: The round.
        seed: What rounding by chance follows from.
        residual: The file of what is left out.
        layout: The model's.
        payload_bytes: What the coming contact carries; 0 where that is not known.

    Returns:
        What keeps durably what the spans leave out, to be called before any of them is sent; None where nothing is
        kept.

    Raises:
        InvalidInputError: The delta cannot be encoded (`NOT_FINITE`), or the residual is of a later round.
        IntegrityError: The residual was damaged.
    """
    care = care_of(scheme)
    rng = np.random.default_rng(seed) if care.by_chance else None
    if not care.feedback:
        for _, data in encode(scheme, delta, round_index=round_index, rng=rng).spans():
            writer.add(data)
        return None
    kept = Residual(residual, layout)
    corrected = delta + np.float32(care.feedback) * kept.carried(round_index)
    encoded = _fitting(scheme, corrected, round_index, payload_bytes, rng)
    for _, data in encoded.spans():
        writer.add(data)
    return lambda: kept.commit(round_index, corrected, encoded.decoded)


def decode_contribution(file: ContributionFile, values: int) -> Floats:
    """What the other end sees of a contribution, float32 of shape (values,)."""
    scheme = Scheme.parse(file.facts.scheme)
    decoded = np.empty(values, np.float32)
    for span in range(file.spans):
        decoded[span_slice(span, values)] = decode_span(
            scheme, file.span(span), span, values, round_index=file.facts.round_index
        )
    return decoded


def _fitting(
    scheme: Scheme, values: Floats, round_index: int, payload_bytes: int, rng: np.random.Generator | None
) -> Encoded:
    """Encoded, with fewer of the largest values where more would not pass in a contact: the rest follows later."""
    encoded = encode(scheme, values, round_index=round_index, rng=rng)
    for _ in range(TRIES_MAX if payload_bytes and scheme.kind is Kind.TOPK else 0):
        if encoded.wire_bytes <= payload_bytes:
            break
        fraction = scheme.fraction * _FIT * payload_bytes / encoded.wire_bytes
        scheme = replace(scheme, fraction=max(fraction, 1 / values.size))
        encoded = encode(scheme, values, round_index=round_index, rng=rng)
    return encoded
