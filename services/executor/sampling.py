"""From logits to the next token: greedy, or drawn by temperature and top-p.

The random number of a draw depends on nothing but the seed and the position of the token. Whoever computes
the same logits draws the same token: however the model is cut, on whichever node, and again after a failed
node's work is replayed on another.
"""

from __future__ import annotations

import hashlib
import math
import struct

import torch

from orbitmesh.errors import InvalidInputError

SEED_MAX = (1 << 64) - 1
"""The largest seed."""
_DOMAIN = b"orbitmesh sample v1\0"


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a pure function of seed and position.

    The first 53 bits of SHA-256 over both as 64-bit big-endian numbers: every double of that grid is
    equally likely.

    Raises:
        InvalidInputError: either is not in 0..2^64-1.
    """
    if not (0 <= seed <= SEED_MAX and 0 <= position <= SEED_MAX):
        raise InvalidInputError(f"seed and position must be in 0..2^64-1, found {seed} and {position}")
    digest = hashlib.sha256(_DOMAIN + struct.pack(">QQ", seed, position)).digest()
    return float(int.from_bytes(digest[:8], "big") >> 11) / float(1 << 53)


def sample(logits: torch.Tensor, *, temperature: float, top_p: float, seed: int, position: int) -> int:
    """The next token.

    At temperature 0 it is the argmax, found by the same call as transformers' greedy search makes, so that
    ties fall the same way. Otherwise the logits are divided by the temperature, the smallest set of most
    likely tokens whose probability reaches `top_p` is kept (the token that crosses the line included, as in
    transformers' `TopPLogitsWarper`), and one is drawn by inverting the cumulative sum, in float64, over
    tokens ordered by falling probability and then by rising id.

    Args:
        logits: (vocab,) of any float dtype.
        temperature: 0 for greedy, else above 0.
        top_p: In (0, 1]; ignored when greedy.
        seed: In 0..2^64-1.
        position: The index in the sequence of the token that is drawn.

    Raises:
        InvalidInputError: `NOT_FINITE` where a logit is NaN or +infinity, or none is finite; or a setting
            is out of its range.
    """
    check_sampling(temperature=temperature, top_p=top_p, seed=seed)
    if logits.ndim != 1 or logits.numel() == 0 or not logits.is_floating_point():
        raise InvalidInputError(
            f"expected logits as floats of shape (vocab,), found {logits.dtype} {tuple(logits.shape)}",
            reason="DTYPE_MISMATCH",
        )
    # The maximum alone tells: NaN and +infinity carry over to it, and it is -infinity only if every logit is.
    if not math.isfinite(float(logits.max())):
        raise InvalidInputError(
            f"the logits of position {position} are not finite; the weights or an activation are damaged",
            reason="NOT_FINITE",
            metadata={"position": position},
        )
    if temperature == 0:
        return int(torch.argmax(logits.unsqueeze(0), dim=-1))
    ids, probabilities = nucleus(logits, temperature=temperature, top_p=top_p)
    sums = probabilities.cumsum(0)
    target = uniform(seed, position) * float(sums[-1])
    drawn = int(torch.searchsorted(sums, target, right=True))
    return int(ids[min(drawn, ids.numel() - 1)])


def nucleus(logits: torch.Tensor, *, temperature: float, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that top-p keeps and their probabilities before renormalising, most likely first.

    Returns:
        ids (n,) int64 and probabilities (n,) float64, ordered by falling probability, then by rising id.
    """
    # Subtracting first keeps a tiny temperature from overflowing.
    scaled = logits.to(torch.float64)
    scaled = (scaled - scaled.max()) / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    # All tokens at or below this line together weigh at most 1 - top_p, so none of them is kept: not
    # sorting them is what makes a large vocabulary cheap.
    line = (1.0 - top_p) / probabilities.numel()
    candidates = torch.nonzero(probabilities > line).flatten()
    falling, order = torch.sort(probabilities[candidates], descending=True, stable=True)
    before = falling.cumsum(0) - falling
    # At 1 nothing is cut, whatever the rounding of the sums says.
    kept = falling.numel() if top_p == 1 else max(int((before < top_p).sum()), 1)
    return candidates[order[:kept]], falling[:kept]


def check_sampling(*, temperature: float, top_p: float, seed: int) -> None:
    """Raises `InvalidInputError` where a setting is out of its range."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidInputError(f"temperature must be 0 (greedy) or above, found {temperature}")
    if not 0 < top_p <= 1:
        raise InvalidInputError(f"top_p must be above 0 and at most 1, found {top_p}")
    if not 0 <= seed <= SEED_MAX:
        raise InvalidInputError(f"seed must be in 0..2^64-1, found {seed}")
