"""A stage: a run of a model's layers, loaded from a pack and stepped with positions that come from outside.

Loading avoids what fails silently: layers are numbered from 0 (`architecture.slice_config`), tensors go
layer by layer into modules built on the meta device, rotary buffers are built anew on the real device (a
meta build leaves garbage in them), and at the end nothing may be left on meta. Every byte is hashed before
it is parsed.

Stepping runs transformers' own layers, masks and rotary code, so the results are the same to the last bit.
Left out is what cannot change one: the outer model's wrappers, a mask that transformers would compute to be
None, the search for hooks that a stage never has; and the rotary values, the same for every generation, are
kept in a table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from orbitmesh.errors import InternalError, InvalidInputError, PackError
from orbitmesh.pack import Manifest, layer_file, read_verified
from orbitmesh.pack.manifest import CONFIG_NAME, EMBED_NAME, HEAD_NAME, check_layers
from services.executor.architecture import mask_kinds, parse_config, slice_config
from services.executor.kvcache import FullLayer, GenerationCache, SlidingLayer, make_layers

ROTARY_BLOCK_TOKENS = 1024
"""The rotary table grows by this many positions at a time."""
ALIGNMENT_BYTES = 64
"""What torch aligns its own allocations to, in bytes."""
MEASURE_STEPS_MAX = 64
"""How many steps `Stage.measure` runs at most."""
MEASURE_WARMUP_STEPS = 3
"""Steps that `Stage.measure` runs and does not count."""


@dataclass(frozen=True)
class StageTimes:
    """What a step of one token costs on this node, in seconds: medians of real steps."""

    layer_s: float
    """One decoder layer; the stage's layers averaged."""
    embed_s: float
    """The embedding; 0 unless this is the first stage."""
    head_s: float
    """Norm and head; 0 unless this is the last stage."""
    steps: int
    """How many steps were counted."""


class CacheShape(NamedTuple):
    """One token's row in a cache."""

    heads: int
    """How many heads."""
    width: int
    """Numbers per head."""
    dtype: torch.dtype
    """Their type."""

    def bytes_for(self, rows: int) -> int:
        """What so many tokens take."""
        return rows * self.heads * self.width * self.dtype.itemsize


def _cache_shape(tensor: torch.Tensor) -> CacheShape:
    return CacheShape(tensor.shape[1], tensor.shape[3], tensor.dtype)


class _Rotary:
    """The rotary values of all positions, computed in blocks by the model's own module and sliced per step.

    The values depend on the position alone, so a table gives the same bits as calling the module each step.
    """

    def __init__(self, module: nn.Module, context_tokens: int, like: torch.Tensor) -> None:
        self._module = module
        self._context_tokens = context_tokens
        self._like = like
        self._table: tuple[torch.Tensor, ...] = ()
        self._is_tuple = True

    def at(self, position: int, count: int) -> Any:
        # Read once: another thread may put a shorter table in its place.
        table = self._table
        if not table or position + count > table[0].shape[1]:
            table = self._grow(position + count)
        parts = tuple(part.narrow(1, position, count) for part in table)
        return parts if self._is_tuple else parts[0]

    def _grow(self, end: int) -> tuple[torch.Tensor, ...]:
        # Never past the context: rotary codes of type `dynamic` change their frequencies there.
        blocks = -(-end // ROTARY_BLOCK_TOKENS)
        end = min(blocks * ROTARY_BLOCK_TOKENS, self._context_tokens)
        positions = torch.arange(end, device=self._like.device).unsqueeze(0)
        values = self._module(self._like, positions)
        self._is_tuple = isinstance(values, tuple)
        self._table = values if isinstance(values, tuple) else (values,)
        return self._table


class Stage:
    """A run of decoder layers, with the embedding where it is the first and the head where it is the last.

    Make one with `Stage.load`. Steps of different generations may run on different threads.
    """

    def __init__(self, manifest: Manifest, layers: range, model: Any, head: nn.Module | None) -> None:
        self.manifest = manifest
        self.layers = layers
        self.dtype: torch.dtype = getattr(torch, manifest.dtype)
        self._config = model.config
        self._embed: nn.Module | None = model.embed_tokens
        # The bound method: calling the module would look for hooks that a stage never has.
        self._blocks: list[Callable[..., torch.Tensor]] = [layer.forward for layer in model.layers]
        self._norm: nn.Module | None = model.norm
        self._head = head
        self._kinds = mask_kinds(model.config)
        self._windows = tuple(
            model.config.sliding_window if kind == "sliding" else None for kind in self._kinds
        )
        self.device = next(model.layers.parameters()).device
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self._rotary = _Rotary(model.rotary_emb, manifest.context_tokens, like)

    @classmethod
    def load(
        cls,
        manifest: Manifest,
        directory: Path,
        layers: range,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> Self:
        """Verifies and loads the files that these layers need, and no others.

        Args:
            manifest: The pack's manifest, already trusted.
            directory: The pack.
            layers: Which layers, for instance `range(0, 4)`.
            device: A torch device.
            threads: How many threads torch may use in this process; unchanged where left out.

        Raises:
            InvalidInputError: the layers are not a run of this model's.
            PackError: `PACK_DAMAGED`; a file is missing, has another hash, or holds other tensors than this
                model's.
        """
        check_layers(manifest, layers)
        if threads is not None:
            torch.set_num_threads(threads)
        config = slice_config(parse_config(manifest, read_verified(manifest, directory, CONFIG_NAME)), layers)
        with torch.device("meta"):
            build: Any = AutoModel.from_config
            model = build(config, dtype=getattr(torch, manifest.dtype))
            head = nn.Linear(manifest.hidden_size, manifest.vocab_size, bias=False)

        def fill(module: nn.Module, name: str, tensors: dict[str, torch.Tensor]) -> None:
            try:
                module.load_state_dict(tensors, strict=True, assign=True)
            except RuntimeError as error:
                why = f"{name} does not hold this model's tensors: {error}"
                raise PackError(why, metadata={"file": name}) from None

        for index, layer in zip(layers, model.layers, strict=True):
            fill(layer, layer_file(index), _tensors(manifest, directory, layer_file(index), device))
        first, last = layers.start == 0, layers.stop == manifest.layer_count
        embedding = (
            _tensors(manifest, directory, EMBED_NAME, device) if first or (last and manifest.tied) else {}
        )
        if first:
            fill(
                model.embed_tokens, EMBED_NAME, {"weight": _one(embedding, "embed_tokens.weight", EMBED_NAME)}
            )
        else:
            model.embed_tokens = None
        if last:
            tensors = _tensors(manifest, directory, HEAD_NAME, device)
            fill(model.norm, HEAD_NAME, {"weight": _one(tensors, "norm.weight", HEAD_NAME)})
            weight = (
                _one(embedding, "embed_tokens.weight", EMBED_NAME)
                if manifest.tied
                else _one(tensors, "lm_head.weight", HEAD_NAME)
            )
            fill(head, HEAD_NAME, {"weight": weight})
        else:
            model.norm = None
        model.rotary_emb = type(model.rotary_emb)(config=config).to(device)
        used = head if last else None
        _check_loaded([model, *([used] if used is not None else [])], model.rotary_emb)
        model.eval().requires_grad_(False)
        for layer in model.layers:
            _shorten_calls(layer)
        return cls(manifest, layers, model, used.requires_grad_(False) if used is not None else None)

    @property
    def is_first(self) -> bool:
        """True where this stage takes token ids."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """True where this stage gives logits."""
        return self.layers.stop == self.manifest.layer_count

    def forward(
        self, x: torch.Tensor, cache: GenerationCache, position: int, *, need_logits: bool = True
    ) -> torch.Tensor:
        """Runs a prompt chunk or one token through the stage. After an error the cache is as it was before.

        Args:
            x: On the first stage token ids, (n,) int64; on the others hidden states, (n, hidden_size), of the
                pack's dtype.
            cache: What this stage remembers of the generation.
            position: The index in the sequence of the first row of `x`; must be what the cache holds.
            need_logits: False on all chunks of a prompt but the last one spares the head.

        Returns:
            Hidden states (n, hidden_size); on the last stage the logits of the last row, (vocab_size,)
            float32, or nothing, (0,), where they are not needed.

        Raises:
            InvalidInputError: `DTYPE_MISMATCH`, `PROMPT_TOO_LONG`, `LIMIT_EXCEEDED`, `NOT_FOUND`, or a
                position that is not the cache's.
        """
        self._check(x, cache, position)
        with torch.inference_mode():
            past = cache.layers(self.make_cache)
            x = _aligned(x.to(self.device))
            hidden = self._embed(x.unsqueeze(0)) if self._embed is not None else x.unsqueeze(0)
            try:
                hidden = self._run(hidden, past, position)
                out = self._output(hidden, need_logits)
            except BaseException:
                # Some layers have taken the rows and some have not.
                cache.truncate(position)
                raise
            cache.length = position + x.shape[0]
            return out

    def make_cache(self, capacity_tokens: int) -> Cache:
        """An empty transformers cache for this stage's layers, numbered from 0."""
        return make_layers(capacity_tokens, self._windows)

    def kv_bytes_per_token(self) -> int:
        """What one token of a generation takes in this stage's caches, in bytes: measured on a real step."""
        past = self._dummy_step()
        return sum(
            tensor.nbytes
            for layer in cast("list[FullLayer | SlidingLayer]", past.layers)
            for tensor in (layer.buffers.keys, layer.buffers.values)
            if tensor is not None
        )

    def cache_shapes(self) -> tuple[tuple[CacheShape, CacheShape], ...]:
        """What one token's keys and values look like in each layer's cache: measured on a real step."""
        past = self._dummy_step()
        shapes = []
        for layer in cast("list[FullLayer | SlidingLayer]", past.layers):
            keys, values = layer.buffers.view(0, 1)
            shapes.append((_cache_shape(keys), _cache_shape(values)))
        return tuple(shapes)

    def measure(self, *, limit_s: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> StageTimes:
        """Times real one-token steps, until `MEASURE_STEPS_MAX` of them or `limit_s` seconds have passed."""
        samples: list[tuple[float, float, float]] = []
        context = min(self.manifest.context_tokens, MEASURE_STEPS_MAX + MEASURE_WARMUP_STEPS)
        past = self.make_cache(context)
        began = clock()
        with torch.inference_mode():
            for position in range(context):
                if samples and clock() - began > limit_s:
                    break
                marks = [clock()]
                hidden = self._dummy_input()
                marks.append(self._settled(clock))
                hidden = self._run(hidden, past, position)
                marks.append(self._settled(clock))
                self._output(hidden, need_logits=True)
                marks.append(self._settled(clock))
                if position >= MEASURE_WARMUP_STEPS or context <= MEASURE_WARMUP_STEPS:
                    samples.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]))
        embed_s, layers_s, head_s = (statistics.median(column) for column in zip(*samples, strict=True))
        return StageTimes(
            layer_s=layers_s / len(self.layers),
            embed_s=embed_s if self.is_first else 0.0,
            head_s=head_s if self.is_last else 0.0,
            steps=len(samples),
        )

    def measure_layer_s(self) -> float:
        """The median seconds of a one-token step per layer."""
        return self.measure().layer_s

    def _run(self, hidden: torch.Tensor, past: Cache, position: int) -> torch.Tensor:
        """The layers over (1, n, hidden_size)."""
        rotary = self._rotary.at(position, hidden.shape[1])
        masks = {kind: self._mask(kind, hidden, past, position) for kind in dict.fromkeys(self._kinds)}
        for block, kind in zip(self._blocks, self._kinds, strict=True):
            hidden = block(
                hidden,
                attention_mask=masks[kind],
                position_embeddings=rotary,
                past_key_values=past,
                use_cache=True,
            )
        return hidden

    def _mask(self, kind: str, hidden: torch.Tensor, past: Cache, position: int) -> torch.Tensor | None:
        if kind == "full" and (hidden.shape[1] == 1 or position == 0):
            # transformers arrives at None too (attention then is causal by itself), after 40 microseconds.
            return None
        make = create_causal_mask if kind == "full" else create_sliding_window_causal_mask
        mask: Any = make(config=self._config, inputs_embeds=hidden, attention_mask=None, past_key_values=past)
        return cast("torch.Tensor | None", mask)

    def _output(self, hidden: torch.Tensor, need_logits: bool) -> torch.Tensor:
        if not self.is_last:
            return hidden[0]
        return self._logits(hidden) if need_logits else hidden.new_empty(0, dtype=torch.float32)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._norm is None or self._head is None:
            raise InternalError("a stage without a head was asked for logits")
        logits: torch.Tensor = self._head(self._norm(hidden)[:, -1:, :])
        return logits[0, -1].float()

    def _settled(self, clock: Callable[[], float]) -> float:
        """The time once the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return clock()

    def _dummy_input(self) -> torch.Tensor:
        if self._embed is not None:
            embedded: torch.Tensor = self._embed(torch.zeros((1, 1), dtype=torch.int64, device=self.device))
            return embedded
        return torch.full((1, 1, self.manifest.hidden_size), 0.01, dtype=self.dtype, device=self.device)

    def _dummy_step(self) -> Cache:
        past = self.make_cache(1)
        with torch.inference_mode():
            self._run(self._dummy_input(), past, 0)
        return past

    def _check(self, x: torch.Tensor, cache: GenerationCache, position: int) -> None:
        dtype, ndim = (torch.int64, 1) if self.is_first else (self.dtype, 2)
        width_wrong = ndim == 2 and x.ndim == 2 and x.shape[1] != self.manifest.hidden_size
        if x.dtype != dtype or x.ndim != ndim or x.shape[0] == 0 or width_wrong:
            wanted = "(n,) with n >= 1" if self.is_first else f"(n, {self.manifest.hidden_size}) with n >= 1"
            raise InvalidInputError(
                f"this stage takes {dtype} of shape {wanted}, found {x.dtype} of shape {tuple(x.shape)}",
                reason="DTYPE_MISMATCH",
            )
        if position != cache.length:
            raise InvalidInputError(
                f"the step is for position {position} but the cache of generation {cache.generation_id!r} "
                f"holds {cache.length} tokens; send the steps in order, or roll the cache back",
                metadata={"position": position, "cached_tokens": cache.length},
            )
        end = position + int(x.shape[0])
        if end > self.manifest.context_tokens:
            raise InvalidInputError(
                f"the sequence would be {end} tokens long; the context of {self.manifest.name!r} is "
                f"{self.manifest.context_tokens}",
                reason="PROMPT_TOO_LONG",
                metadata={"tokens": end, "context_tokens": self.manifest.context_tokens},
            )
        if end > cache.capacity_tokens:
            raise InvalidInputError(
                f"the sequence would be {end} tokens long; generation {cache.generation_id!r} reserved "
                f"{cache.capacity_tokens}",
                reason="LIMIT_EXCEEDED",
                metadata={"tokens": end, "reserved_tokens": cache.capacity_tokens},
            )
        if self.is_first:
            low, high = (int(bound) for bound in torch.aminmax(x))
            if low < 0 or high >= self.manifest.vocab_size:
                raise InvalidInputError(
                    f"token ids must be in 0..{self.manifest.vocab_size - 1}, "
                    f"found {low if low < 0 else high}"
                )


def _tensors(manifest: Manifest, directory: Path, name: str, device: str) -> dict[str, torch.Tensor]:
    """The tensors of one file, each in memory of its own.

    A tensor that lies where the file put it may be unaligned, and matrix kernels choose their path by
    alignment: the last bits of a result would depend on the lengths of file headers.
    """
    try:
        found = parse_safetensors(read_verified(manifest, directory, name))
    except (SafetensorError, ValueError, KeyError) as error:
        raise PackError(f"{name} is not a safetensors file: {error}", metadata={"file": name}) from None
    # A few parameters stay in float32 whatever the model's dtype is, as in transformers.
    allowed = (getattr(torch, manifest.dtype), torch.float32)
    for key, tensor in found.items():
        if tensor.dtype not in allowed:
            raise PackError(
                f"{name}: {key} is {tensor.dtype}, expected {manifest.dtype}", metadata={"file": name}
            )
    return {key: tensor.clone().to(device) for key, tensor in found.items()}


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory that kernels treat like any they allocated themselves.

    Hidden states arrive wherever a network buffer put them; there, a kernel might take another path.
    """
    if tensor.data_ptr() % ALIGNMENT_BYTES == 0 and tensor.is_contiguous():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _one(tensors: dict[str, torch.Tensor], key: str, name: str) -> torch.Tensor:
    if key not in tensors:
        raise PackError(f"{name} has no tensor {key}", metadata={"file": name})
    return tensors[key]


def _shorten_calls(layer: nn.Module) -> None:
    """Makes calls and lookups inside a layer plain Python ones; the arithmetic stays transformers' own.

    Every call of a module looks for hooks, and every parameter or submodule is found through three
    dictionaries after an ordinary lookup failed. A small model spends a tenth of a token's time on that,
    and a loaded stage has no hooks and never changes its parameters.
    """
    direct: dict[type[nn.Module], type[nn.Module]] = {}
    for module in list(layer.modules()):
        kind = type(module)
        if kind not in direct:
            direct[kind] = type(kind.__name__, (kind,), {"__call__": kind.forward})
        module.__dict__.update({**module._parameters, **module._modules, **module._buffers})
        module.__class__ = direct[kind]


def _check_loaded(modules: list[nn.Module], rotary: Any) -> None:
    for module in modules:
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_meta:
                raise InternalError(f"{key} was left without data by the loading")
    # A rotary buffer that was never filled is finite and tiny; the real one begins at 1, or 1/factor when
    # scaled.
    first = float(rotary.inv_freq[0])
    if not (torch.isfinite(rotary.inv_freq).all() and 1e-4 < first <= 1.0):
        raise InternalError(f"the rotary frequencies begin at {first}; expected a number near 1")
