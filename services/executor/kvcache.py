"""The memory of running generations: preallocated key/value caches under one stated bound.

What the bound covers: every key and value that this stage keeps for its open generations. A generation
reserves room for all tokens it may ever hold when it opens; each layer's buffers are allocated once, at
that size, on the first step, and are written in place. Nothing is concatenated or grown, so no copy of a
cache ever exists beside it, unlike transformers' own `DynamicCache`, which holds two for a moment on every
token. Layers with a sliding window keep the whole generation rather than the window, which costs what was
reserved and lets a generation be rolled back.

What it does not cover: weights, the activations of the step that is running, and expanded keys and values
that some families (multi-head latent attention) make from their cached latents within one layer's step and
drop again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from orbitmesh.errors import CapacityError, InvalidInputError

GENERATIONS_MAX = 1024
"""How many generations one pool holds open at once, whatever their size."""
GENERATION_TOKENS_MAX = 1 << 24
"""How many tokens one generation may reserve."""


class _Buffers:
    """One layer's keys and values, allocated once for all tokens that the generation may hold."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.length = 0
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> int:
        """Copies new rows (1, heads, n, width) in behind the old ones; returns the new length in tokens."""
        if self.keys is None or self.values is None:
            # Keys and values may differ in heads and width (latent attention caches two unlike tensors).
            self.keys = keys.new_empty((*keys.shape[:2], self.capacity_tokens, keys.shape[3]))
            self.values = values.new_empty((*values.shape[:2], self.capacity_tokens, values.shape[3]))
        start, count = self.length, keys.shape[2]
        self.keys.narrow(2, start, count).copy_(keys)
        self.values.narrow(2, start, count).copy_(values)
        self.length = start + count
        return self.length

    def put(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes rows that were computed elsewhere, from position `start` on; the length is set by `truncate`."""
        if self.keys is None or self.values is None:
            self.keys = keys.new_empty((*keys.shape[:2], self.capacity_tokens, keys.shape[3]))
            self.values = values.new_empty((*values.shape[:2], self.capacity_tokens, values.shape[3]))
        count = keys.shape[2]
        self.keys.narrow(2, start, count).copy_(keys)
        self.values.narrow(2, start, count).copy_(values)

    def view(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.keys is None or self.values is None:
            raise InvalidInputError("the cache holds nothing yet")
        return self.keys.narrow(2, start, end - start), self.values.narrow(2, start, end - start)


class FullLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer that returns everything seen so far, from a buffer that never moves."""

    def __init__(self, capacity_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers = _Buffers(capacity_tokens)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends and returns all keys and values, each (1, heads, tokens, width)."""
        return self.buffers.view(0, self.buffers.append(key_states, value_states))

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.buffers.length

    def truncate(self, length: int) -> None:
        """Forgets every token from `length` on."""
        self.buffers.length = length


class SlidingLayer(DynamicSlidingWindowLayer):  # type: ignore[no-untyped-call]
    """A cache layer that returns what a sliding window sees: the rows that transformers' own returns."""

    def __init__(self, capacity_tokens: int, sliding_window: int) -> None:
        super().__init__(sliding_window=sliding_window)
        self.buffers = _Buffers(capacity_tokens)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends and returns the last `sliding_window - 1` old rows and the new ones."""
        start = max(self.buffers.length - self.sliding_window + 1, 0)
        self.cumulative_length = self.buffers.append(key_states, value_states)
        return self.buffers.view(start, self.cumulative_length)

    def truncate(self, length: int) -> None:
        """Forgets every token from `length` on."""
        self.buffers.length = self.cumulative_length = length


def make_layers(capacity_tokens: int, windows: tuple[int | None, ...]) -> Cache:
    """A cache with one layer per entry of `windows`: the window in tokens, or None for full attention."""
    return Cache(
        layers=[
            FullLayer(capacity_tokens) if window is None else SlidingLayer(capacity_tokens, window)
            for window in windows
        ]
    )


@dataclass
class GenerationCache:
    """What one stage remembers of one generation. One step at a time may use it."""

    generation_id: str
    """Whose it is."""
    capacity_tokens: int
    """How many tokens it may ever hold."""
    reserved_bytes: int
    """What it takes from the pool, in bytes."""
    slice_name: str = ""
    """Whose part of the pool it takes; empty for what no slice has a part of."""
    length: int = 0
    """How many tokens it holds: the position of the next one."""
    closed: bool = False
    """True once the pool has taken it back."""
    _layers: Cache | None = field(default=None, repr=False)

    def layers(self, make: Callable[[int], Cache]) -> Cache:
        """The transformers cache, made on first use by `make(capacity_tokens)`.

        Raises:
            InvalidInputError: `NOT_FOUND`, the generation was closed.
        """
        if self.closed:
            raise InvalidInputError(f"generation {self.generation_id!r} is closed", reason="NOT_FOUND")
        if self._layers is None:
            self._layers = make(self.capacity_tokens)
        return self._layers

    def truncate(self, length: int) -> None:
        """Rolls back so that `length` tokens are held: after a step that failed, or to replay.

        Raises:
            InvalidInputError: there are fewer than `length` tokens.
        """
        if not 0 <= length <= self.length:
            raise InvalidInputError(f"cannot roll back to {length} tokens: {self.length} are held")
        self._set_length(length)

    def rows(self, layer: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each (1, heads, stop - start, width), for another node or for the disk."""
        if self._layers is None or not 0 <= start <= stop <= self.length:
            raise InvalidInputError(f"positions {start} to {stop} are not in a cache of {self.length} tokens")
        return cast("FullLayer | SlidingLayer", self._layers.layers[layer]).buffers.view(start, stop)

    def put_rows(
        self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor, make: Callable[[int], Cache]
    ) -> None:
        """Takes keys and values that were computed elsewhere; they count once `adopt` is told.

        Raises:
            InvalidInputError: They are outside of what was reserved.
        """
        if start < 0 or start + keys.shape[2] > self.capacity_tokens:
            raise InvalidInputError("rows of a cache are outside of the positions that were reserved")
        past = self.layers(make)
        cast("FullLayer | SlidingLayer", past.layers[layer]).buffers.put(start, keys, values)

    def adopt(self, length: int) -> None:
        """Every layer has been given `length` positions."""
        if not 0 <= length <= self.capacity_tokens:
            raise InvalidInputError("a cache cannot be longer than what was reserved")
        self._set_length(length)

    def _set_length(self, length: int) -> None:
        self.length = length
        if self._layers is not None:
            for layer in cast("list[FullLayer | SlidingLayer]", self._layers.layers):
                layer.truncate(length)

    def release(self) -> None:
        """Drops the buffers; a step that is still running keeps them until it ends."""
        self.closed = True
        self._layers = None


@dataclass(frozen=True, slots=True)
class CacheShare:
    """What a slice has of a pool, as parts from 0 to 1. A cache cannot be taken back from a running generation, so what
    is guaranteed is kept free and never lent."""

    guaranteed: float = 0.0
    """Kept free for it."""
    most: float = 1.0
    """What its generations reserve together at the most."""


class CachePool:
    """All generation caches of one stage, under one bound on bytes and one on their count, and under the shares of
    slices where there are some. Safe to use from threads.

    Args:
        budget_bytes: How many bytes all caches together may reserve.
        bytes_per_token: What one token takes on this stage: `Stage.kv_bytes_per_token()`.
        generations_max: How many generations may be open at once.
    """

    def __init__(
        self, budget_bytes: int, bytes_per_token: int, generations_max: int = GENERATIONS_MAX
    ) -> None:
        if budget_bytes < 0 or bytes_per_token < 1 or generations_max < 1:
            raise InvalidInputError(
                f"a cache pool needs budget_bytes >= 0, bytes_per_token >= 1 and generations_max >= 1; found "
                f"{budget_bytes}, {bytes_per_token}, {generations_max}"
            )
        self.budget_bytes = budget_bytes
        self.bytes_per_token = bytes_per_token
        self.generations_max = generations_max
        self._lock = threading.Lock()
        self._open: dict[str, GenerationCache] = {}
        self._used_bytes = 0
        self._shares: Mapping[str, CacheShare] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def free_bytes(self) -> int:
        """What is left to reserve, in bytes."""
        return self.budget_bytes - self._used_bytes

    def set_shares(self, shares: Mapping[str, CacheShare]) -> None:
        """Divides the pool among slices from now on. Generations that are open keep what they have, also where that is
        more than their slice may reserve now."""
        with self._lock:
            self._shares = dict(shares)

    def used_bytes(self, slice_name: str) -> int:
        """What the open generations of a slice have reserved, in bytes."""
        return sum(cache.reserved_bytes for cache in self._open.values() if cache.slice_name == slice_name)

    def open(
        self, generation_id: str, tokens: int, slice_name: str = "", *, admitted: bool = False
    ) -> GenerationCache:
        """Reserves room for a generation of at most `tokens` tokens, prompt and answer together.

        Args:
            generation_id: Its name.
            tokens: How many tokens it may ever hold.
            slice_name: Whose part it takes; a slice without a share here counts as none.
            admitted: It was let in before, as one that comes back from disk: shares are not looked at.

        Raises:
            CapacityError: `KV_MEMORY_EXHAUSTED`; message and metadata say what is needed, free and the
                budget, or of which slice's part.
            InvalidInputError: `ALREADY_EXISTS`, or a number of tokens out of range.
        """
        if not 1 <= tokens <= GENERATION_TOKENS_MAX:
            raise InvalidInputError(
                f"a generation reserves 1 to {GENERATION_TOKENS_MAX} tokens, found {tokens}"
            )
        needed = tokens * self.bytes_per_token
        with self._lock:
            if generation_id in self._open:
                raise InvalidInputError(
                    f"generation {generation_id!r} is already open", reason="ALREADY_EXISTS"
                )
            if needed > self.free_bytes:
                raise self._full(
                    f"{tokens} tokens need {needed} bytes of cache; {self.free_bytes} of "
                    f"{self.budget_bytes} are free",
                    needed,
                )
            if self._shares and not admitted:
                self._check_share(slice_name, needed)
            if len(self._open) >= self.generations_max:
                raise self._full(
                    f"{self.generations_max} generations are open, the most this node holds", needed
                )
            cache = GenerationCache(generation_id, tokens, needed, slice_name)
            self._open[generation_id] = cache
            self._used_bytes += needed
            return cache

    def get(self, generation_id: str) -> GenerationCache:
        """The cache of an open generation.

        Raises:
            InvalidInputError: `NOT_FOUND`, no such generation is open here.
        """
        try:
            return self._open[generation_id]
        except KeyError:
            raise InvalidInputError(
                f"no generation {generation_id!r} is open here", reason="NOT_FOUND"
            ) from None

    def close(self, generation_id: str) -> None:
        """Frees a generation's memory. Closing one that is not open does nothing."""
        with self._lock:
            cache = self._open.pop(generation_id, None)
            if cache is not None:
                self._used_bytes -= cache.reserved_bytes
                cache.release()

    def _check_share(self, slice_name: str, needed: int) -> None:
        """Refuses what is above the slice's most, or would take what is guaranteed to others."""
        used = dict.fromkeys(self._shares, 0)
        for cache in self._open.values():
            if cache.slice_name in used:
                used[cache.slice_name] += cache.reserved_bytes
        kept_free = sum(
            max(0, int(share.guaranteed * self.budget_bytes) - used[name])
            for name, share in self._shares.items()
            if name != slice_name
        )
        share = self._shares.get(slice_name)
        own = self.used_bytes(slice_name) if share is None else used[slice_name]
        most = self.budget_bytes if share is None else int(share.most * self.budget_bytes)
        free = max(0, min(most - own, self.free_bytes - kept_free))
        if needed <= free:
            return
        who = f"slice {slice_name!r}" if slice_name else "what is in no slice"
        rule = f"it may use {most}" if most - own <= free else f"{kept_free} are kept free for other slices"
        raise CapacityError(
            f"the key/value memory of {who} is full: {needed} bytes are needed, {own} of {self.budget_bytes} are used "
            f"by it, and {rule}; wait for its other generations to end, ask for fewer tokens, or resize the slice",
            reason="KV_MEMORY_EXHAUSTED",
            metadata={
                "slice": slice_name,
                "needed_bytes": needed,
                "used_bytes": own,
                "allowed_bytes": min(most, own + free),
                "budget_bytes": self.budget_bytes,
            },
        )

    def _full(self, why: str, needed: int) -> CapacityError:
        return CapacityError(
            f"the key/value memory is full: {why}; wait for other generations to end, ask for fewer tokens, "
            "or give the node a larger budget",
            reason="KV_MEMORY_EXHAUSTED",
            metadata={
                "needed_bytes": needed,
                "free_bytes": self.free_bytes,
                "budget_bytes": self.budget_bytes,
                "open_generations": len(self._open),
            },
        )
