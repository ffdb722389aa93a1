"""What a node lets go of leaves its memory, while it lives on."""

from __future__ import annotations

from pathlib import Path

import psutil

from orbitmesh import Mesh
from tests.mesh.support import Models, deployed

WIDE = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
ROUNDS = 4


def test_stages_that_come_and_go_leave_no_weights_behind(mesh: Mesh, models: Models) -> None:
    """One node has the same model again and again: after the first time, what it holds does not grow by a model."""
    model = models.get("llama", seed=31, num_hidden_layers=6, **WIDE)
    weights = sum(file.stat().st_size for file in Path(model.pack).glob("*.safetensors"))
    assert weights > 50 << 20
    node = psutil.Process(mesh.local.processes()["sat-1"].pid)
    held = []
    for number in range(ROUNDS):
        with deployed(mesh, model, f"round-{number}", stages=1, nodes=["sat-1"], kv_tokens=64):
            assert node.memory_full_info().uss > weights
        held.append(node.memory_full_info().uss)
    assert held[-1] - held[0] < weights, f"{[each >> 20 for each in held]} MiB after each round"
