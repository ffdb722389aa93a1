"""From a node's delta to the spans of its contribution, and what is kept of what they leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
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


class Care(Enum):
    """What is done about what an encoding leaves out."""

    NONE = "none"
    """Nothing."""
    CHANCE = "chance"
    """Rounded by chance, so that the mean over nodes and rounds is right."""
    FEEDBACK = "feedback"
    """Rounded to nearest, and what is left out goes into the next round's update."""


def care_of(scheme: Scheme, *, masked: bool = False) -> Care:
    """How what a scheme leaves out is made good.

    fp32 leaves out nothing and fp16 a ten-thousandth, below what a residual's fsync is worth. Top-k and dense integers
    feed back: with it rounding to nearest does better than by chance, whose error is twice as large and comes again
    each round. Blocks do not: a value whose turn comes every L rounds would then carry L rounds' updates at once, all
    computed from weights that did not have them yet, and overshoots; their integers are rounded by chance instead.
    """
    is_exact = scheme.number in (Number.FP32, Number.FP16) and not masked  # masked values are always integers
    if scheme.kind is Kind.BLOCKS:
        return Care.NONE if is_exact else Care.CHANCE
    return Care.NONE if is_exact and scheme.kind is Kind.DENSE else Care.FEEDBACK


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
    if care is not Care.FEEDBACK:
        rng = np.random.default_rng(seed) if care is Care.CHANCE else None
        for _, data in encode(scheme, delta, round_index=round_index, rng=rng).spans():
            writer.add(data)
        return None
    kept = Residual(residual, layout)
    corrected = delta + kept.carried(round_index)
    encoded = _fitting(scheme, corrected, round_index, payload_bytes)
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


def _fitting(scheme: Scheme, values: Floats, round_index: int, payload_bytes: int) -> Encoded:
    """Encoded, with fewer of the largest values where more would not pass in a contact: the rest follows later."""
    encoded = encode(scheme, values, round_index=round_index, rng=None)
    for _ in range(TRIES_MAX if payload_bytes and scheme.kind is Kind.TOPK else 0):
        if encoded.wire_bytes <= payload_bytes:
            break
        fraction = scheme.fraction * _FIT * payload_bytes / encoded.wire_bytes
        scheme = replace(scheme, fraction=max(fraction, 1 / values.size))
        encoded = encode(scheme, values, round_index=round_index, rng=None)
    return encoded
