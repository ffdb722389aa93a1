"""The shipped model's shape, and what training adds to transformers' DeepSeek-V3: start, dropout, balance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3MLP,
    DeepseekV3RMSNorm,
)

from models.training.tokens import BEGIN_ID, END_ID

SHIPPED: dict[str, int] = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "moe_intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 2048,
}
"""Sizes of the model in this repository."""

TINY: dict[str, int] = SHIPPED | {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
}
"""The same shape small enough for a test."""


def make_config(sizes: dict[str, int]) -> DeepseekV3Config:
    """transformers' configuration for the sizes; what is not a size is as in DeepSeek-V3 unless said here."""
    settings: dict[str, Any] = dict(sizes)
    return DeepseekV3Config(
        **settings,
        n_group=1,  # groups keep experts of one token on few machines; with a handful of experts there is one
        topk_group=1,
        routed_scaling_factor=2.0,
        num_mtp_layers=0,
        tie_word_embeddings=False,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
        use_cache=True,
    )


def make_model(sizes: dict[str, int]) -> DeepseekV3ForCausalLM:
    """A model at random, from torch's global generator, in float32.

    What writes into the residual stream starts smaller by sqrt(2 layers), as in GPT-2.
    """
    model = DeepseekV3ForCausalLM(make_config(sizes))
    shrink = 1 / math.sqrt(2 * sizes["num_hidden_layers"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                parameter.mul_(shrink)
    return model


def add_dropout(model: DeepseekV3ForCausalLM, probability: float) -> None:
    """Drop channels of what attention and feed-forward add to the residual stream, in training mode only.

    DeepSeek-V3 has none, since it never sees a text twice; this corpus is seen many times. One mask serves a
    whole sequence (arXiv 1512.05287): drawing one per token costs a tenth of the training time.
    """

    def drop(output: torch.Tensor) -> torch.Tensor:
        mask = torch.full((output.shape[0], 1, output.shape[2]), 1 - probability).bernoulli_()
        return output * mask.div_(1 - probability).to(output.dtype)

    def after_attention(module: nn.Module, inputs: Any, output: tuple[torch.Tensor, Any]) -> Any:
        return (drop(output[0]), output[1]) if module.training else output

    def after_feed_forward(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return drop(output) if module.training else output

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(after_attention)
        layer.mlp.register_forward_hook(after_feed_forward)


def compile_parts(model: DeepseekV3ForCausalLM) -> None:
    """Let torch fuse the element-wise work of attention, norms and dense feed-forwards.

    A third more tokens a second. The experts stay as they are, since how many tokens each gets changes from
    step to step. Needs a C++ compiler.
    """
    kinds = (DeepseekV3Attention, DeepseekV3RMSNorm, DeepseekV3MLP)
    for module in model.modules():
        if isinstance(module, kinds):
            module.compile(dynamic=False)


class ExpertBalance:
    """DeepSeek-V3's balancing without an auxiliary loss (arXiv 2412.19437, section 2.1.2).

    After each step, the selection bias of an expert that got fewer tokens than its share is raised by
    `speed`, and lowered for one that got more. The bias decides who is chosen, never the weight.
    """

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        self._routers = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self._counts: dict[nn.Module, torch.Tensor] = {}
        self.imbalance = 0.0
        """Tokens of the busiest expert over the mean, less one, at the last step; 0 is perfect."""
        for router in self._routers:
            router.register_forward_hook(self._count)

    def _count(self, router: nn.Module, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        if router.training:
            self._counts[router] = torch.bincount(output[2].flatten(), minlength=len(output[0][0]))

    def update(self, speed: float) -> None:
        """Move every router's bias by `speed` against what it routed in the last forward pass."""
        worst = 0.0
        for router in self._routers:
            load = self._counts[router].float()
            router.e_score_correction_bias += speed * torch.sign(load.mean() - load)
            worst = max(worst, float(load.max() / load.mean()) - 1)
        self.imbalance = worst
