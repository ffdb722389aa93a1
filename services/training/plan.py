"""How a node trains in one round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from orbitmesh.errors import InvalidInputError

OPTIMISERS = ("sgd", "adamw")
DTYPES = ("fp32", "bf16", "fp16")
STEPS_MAX = 10_000_000
"""The most steps of one round."""
EPOCHS_MAX = 10_000
"""The most passes over a shard in one round."""
BATCH_MAX = 65_536
"""The largest batch, in examples."""
SEED_MAX = 2**63 - 1


@dataclass(frozen=True)
class LocalPlan:
    """What one node does to the weights of one round; the same plan, shard and weights give the same result on a CPU.

    Raises:
        InvalidInputError: a number is out of its range; the message names it.
    """

    epochs: int | None = None
    """Passes over the shard; exactly one of `epochs` and `steps` is set."""
    steps: int | None = None
    """Optimiser steps."""
    batch_size: int = 32
    """Examples in a step; the last batch of a pass may have fewer."""
    optimiser: str = "sgd"
    """Either "sgd" or "adamw"."""
    lr: float = 0.05
    """Learning rate."""
    momentum: float = 0.0
    """Momentum of SGD, from 0 up to but not 1."""
    weight_decay: float = 0.0
    """L2 penalty for SGD, decoupled decay for AdamW."""
    prox_mu: float = 0.0
    """FedProx: weight of half the squared distance to the round's first weights (arXiv 1812.06127)."""
    gradient_norm: float = 0.0
    """Gradients are scaled down to this Euclidean norm; 0 leaves them as they are."""
    dtype: str = "fp32"
    """Type of the forward pass under autocast; weights and gradients stay float32."""
    keep_optimiser: bool = False
    """Whether momenta go on from the node's last round instead of starting at zero (DiLoCo)."""
    seed: int = 0
    """Of the order of examples and of dropout, from 0; each node and round needs its own."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise InvalidInputError(
                f"a local plan sets either epochs or steps; this one has epochs={self.epochs} and steps={self.steps}"
            )
        if self.epochs is not None:
            _check("epochs", self.epochs, 1, EPOCHS_MAX)
        if self.steps is not None:
            _check("steps", self.steps, 1, STEPS_MAX)
        _check("batch_size", self.batch_size, 1, BATCH_MAX)
        _check("lr", self.lr, 0.0, 1e6)
        _check("momentum", self.momentum, 0.0, math.nextafter(1.0, 0.0))
        _check("weight_decay", self.weight_decay, 0.0, 1e6)
        _check("prox_mu", self.prox_mu, 0.0, 1e6)
        _check("gradient_norm", self.gradient_norm, 0.0, 1e12)
        _check("seed", self.seed, 0, SEED_MAX)
        for name, value, known in (("optimiser", self.optimiser, OPTIMISERS), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise InvalidInputError(f"{name} is {value!r}; expected one of {', '.join(known)}")

    def with_overrides(self, overrides: Mapping[str, object]) -> LocalPlan:
        """The plan with some fields replaced, as a strategy's `configure` asks; `steps` takes the place of `epochs`.

        Raises:
            InvalidInputError: a field is unknown, of another type or out of range.
        """
        settings = asdict(self)
        for one, other in (("steps", "epochs"), ("epochs", "steps")):
            if overrides.get(one) is not None:
                settings[other] = None
        return parse_plan(settings | dict(overrides))

    def total_steps(self, examples: int) -> int:
        """Optimiser steps over a shard of that many examples."""
        if self.epochs is not None:
            return self.epochs * math.ceil(examples / self.batch_size)
        return self.steps or 0


def parse_plan(settings: Mapping[str, object]) -> LocalPlan:
    """A plan from plain settings, as they come out of JSON.

    Raises:
        InvalidInputError: a field is unknown, of another type or out of range.
    """
    kinds = {field.name: str(field.type).split(" | ")[0] for field in fields(LocalPlan)}
    optional = {field.name for field in fields(LocalPlan) if "None" in str(field.type)}
    taken: dict[str, object] = {}
    for name, value in settings.items():
        if name not in kinds:
            raise InvalidInputError(f"a local plan has no field {name[:64]!r}; it has {', '.join(kinds)}")
        if value is None and name in optional:
            continue
        taken[name] = _typed(name, value, kinds[name])
    return LocalPlan(**taken)  # type: ignore[arg-type]


def _typed(name: str, value: object, kind: str) -> object:
    wanted: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str, "bool": bool}
    if not isinstance(value, wanted[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise InvalidInputError(f"{name} is {value!r}; expected a value of type {kind}")
    return float(value) if kind == "float" else value  # type: ignore[arg-type]


def _check(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise InvalidInputError(f"{name} is {value}; it must be from {low} to {high}")
