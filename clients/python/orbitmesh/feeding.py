"""How a stage that takes over is fed: what it missed is computed again from the journal, or its cache is moved.

The rule is whichever is fewer bytes on the wire. For each position the journal holds one row of hidden states, `H x b`
bytes (H: hidden size, b: bytes of a number); the cache of a stage of n layers holds `n x 2 x heads x head size x b`
bytes for full keys and values, and `n x latent size x b` for latents (DeepSeek). Equal bytes go to the journal: it
needs nothing of the node that leaves, and the successor computes while it is fed.

Llama-3-8B (H 4096, 8 key-value heads of 128): 4096 b against 2048 n b, so the journal is cheaper above 2 layers and
equal at 2. DeepSeek-V3 (H 7168, 576 numbers a layer): break-even between 12 and 13 layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from orbitmesh.errors import InvalidInputError
from orbitmesh.pack.manifest import Manifest
from orbitmesh.v1 import executor_pb2

JOURNAL = executor_pb2.FEED_MODE_JOURNAL
"""The stage before it sends what it journalled; the successor computes it again."""
CACHE = executor_pb2.FEED_MODE_CACHE
"""The stage that it follows sends its cache."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TOKEN_BYTES = 4
"""What the journal of a first stage holds for a position: a token id."""


@dataclass(frozen=True)
class Feeding:
    """The rule's answer, with its arithmetic."""

    mode: executor_pb2.FeedMode
    """`JOURNAL` or `CACHE`."""
    journal_bytes: int
    """Bytes of the journal's rows, before the codec; 0 where the journal does not reach back far enough."""
    cache_bytes: int
    """Bytes of the cache, before the codec."""
    reason: str
    """Why, as a sentence."""


def feed_mode(
    manifest: Manifest, layers: range, *, first: bool = False, cache_reachable: bool = True
) -> executor_pb2.FeedMode:
    """How a stage of a model is fed, by the bytes of one position: `JOURNAL` or `CACHE`.

    Args:
        manifest: The model.
        layers: The stage's layers.
        first: Whether it is the first stage, whose journal holds token ids.
        cache_reachable: Whether the node that has the cache can be reached.
    """
    row_bytes = TOKEN_BYTES if first else manifest.hidden_size * ITEM_BYTES[manifest.dtype]
    kv_bytes = sum(manifest.kv_bytes_per_token[layers.start : layers.stop])
    return weigh(
        positions=1,
        hidden_bytes_per_token=row_bytes,
        kv_bytes_per_token_of_stage=kv_bytes,
        cache_reachable=cache_reachable,
    ).mode


def weigh(
    *,
    positions: int,
    hidden_bytes_per_token: int,
    kv_bytes_per_token_of_stage: int,
    journal_start: int = 0,
    cache_reachable: bool = True,
) -> Feeding:
    """Whether a stage that takes over is fed from the journal or by moving its cache.

    Args:
        positions: How many positions the cache of the stage holds.
        hidden_bytes_per_token: Of one row of the stage's input: H x b; for a first stage, bytes of one token id.
        kv_bytes_per_token_of_stage: What one position takes in the caches of all layers of the stage.
        journal_start: The first position that the journal before the stage still holds.
        cache_reachable: Whether the node that has the cache can be reached.

    Raises:
        InvalidInputError: A size is negative, the journal starts behind the last position, or neither can serve.
    """
    for name, value in (
        ("positions", positions),
        ("hidden_bytes_per_token", hidden_bytes_per_token),
        ("kv_bytes_per_token_of_stage", kv_bytes_per_token_of_stage),
        ("journal_start", journal_start),
    ):
        if value < 0:
            raise InvalidInputError(f"{name} is {value}; expected 0 or more")
    journal_bytes = positions * hidden_bytes_per_token
    cache_bytes = positions * kv_bytes_per_token_of_stage
    if journal_start > 0:
        if not cache_reachable:
            raise InvalidInputError(
                f"the journal begins at position {journal_start} and the cache is out of reach: neither can feed the "
                "stage; start the generation anew",
                reason="FAILED_PRECONDITION",
            )
        reason = f"the journal begins only at position {journal_start}: the cache is moved, {cache_bytes} bytes"
        return Feeding(CACHE, 0, cache_bytes, reason)
    if not cache_reachable:
        reason = f"the cache is out of reach: {positions} rows of the journal are replayed, {journal_bytes} bytes"
        return Feeding(JOURNAL, journal_bytes, cache_bytes, reason)
    if journal_bytes <= cache_bytes:
        reason = f"the journal is {journal_bytes} bytes, the cache {cache_bytes}: the journal is replayed"
        return Feeding(JOURNAL, journal_bytes, cache_bytes, reason)
    reason = f"the cache is {cache_bytes} bytes, the journal {journal_bytes}: the cache is moved"
    return Feeding(CACHE, journal_bytes, cache_bytes, reason)


def break_even_layers(hidden_bytes_per_token: int, kv_bytes_per_token_of_layer: int) -> float:
    """How many layers make journal and cache equal: with more, the journal is fewer bytes; `inf` without caches."""
    if kv_bytes_per_token_of_layer == 0:
        return float("inf")
    return hidden_bytes_per_token / kv_bytes_per_token_of_layer
