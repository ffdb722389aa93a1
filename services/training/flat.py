"""A model's floating tensors as one flat vector: `state_dict()` order, each tensor in row order, float32.

Integer tensors (such as a batch norm's count of batches) stay at the node.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from orbitmesh.errors import InvalidInputError
from services.training.arrays import FloatArray


def floating(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that travel, by name and in order; they share memory with the model."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def count(model: nn.Module) -> int:
    """The length of the model's flat vector, in values."""
    return sum(tensor.numel() for tensor in floating(model).values())


def flatten(model: nn.Module) -> FloatArray:
    """The model's flat vector, a copy of shape (count(model),)."""
    parts = [tensor.detach().to("cpu", torch.float32).reshape(-1).numpy() for tensor in floating(model).values()]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


@torch.no_grad()
def load_flat(model: nn.Module, vector: FloatArray) -> None:
    """Put a flat vector into a model.

    Raises:
        InvalidInputError: `DTYPE_MISMATCH` or a wrong shape; `NOT_FINITE`, it has a NaN or an infinity.
    """
    expected = count(model)
    if vector.dtype != np.float32:
        raise InvalidInputError(f"weights are {vector.dtype}; they travel as float32", reason="DTYPE_MISMATCH")
    if vector.shape != (expected,):
        raise InvalidInputError(
            f"weights have shape {vector.shape}, but the model of this task takes ({expected},): both ends need the "
            "same task of the same version"
        )
    if not np.isfinite(vector).all():
        raise InvalidInputError("the weights contain NaN or infinity: go back to a sound round", reason="NOT_FINITE")
    start = 0
    for tensor in floating(model).values():
        part = torch.from_numpy(vector[start : start + tensor.numel()].copy())
        tensor.copy_(part.view(tensor.shape))
        start += tensor.numel()
