"""What is asked of a run is checked before it begins, and what is left out has a stated default."""

from __future__ import annotations

from typing import Any

import pytest

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.aggregator.spec import PATIENCE_S, check_spec, from_json

UP = ["ground-1", "sat-1", "sat-2", "sat-3"]
RECORD, NODE = training_pb2.PRIVACY_UNIT_RECORD, training_pb2.PRIVACY_UNIT_NODE


def spec(**fields: Any) -> training_pb2.TrainingSpec:
    return training_pb2.TrainingSpec(**{"task": "digits", "rounds": 3, **fields})


def test_what_is_left_out_has_its_default() -> None:
    """All nodes that are up, federated averaging of float32, one epoch, every node's contribution."""
    found = check_spec(spec(), UP)
    assert found.nodes == tuple(UP) and found.quorum == len(UP) == found.message.cohort
    assert (found.message.strategy, found.message.compression, found.message.local.epochs) == ("fedavg", "fp32", 1)
    assert found.message.patience_s == PATIENCE_S and not found.secure and not found.private


def test_secure_sums_need_as_many_as_unmask() -> None:
    """Two thirds and one of the nodes, 8 bits of each, 4 where the compression says int4; a quorum below is refused."""
    found = check_spec(spec(secure_sums={}, compression="int8"), UP)
    assert (found.threshold, found.quorum, found.sum_bits) == (3, 3, 8)
    assert check_spec(spec(secure_sums={}, compression="blocks:0.25+int4"), UP).sum_bits == 4
    with pytest.raises(InvalidInputError, match="unmask"):
        check_spec(spec(secure_sums={}, compression="int8", quorum=2), UP)


def test_it_is_there_again_as_it_was_written_down() -> None:
    """Through JSON, with every field."""
    asked = spec(
        alpha=0.5, strategy="fedprox", strategy_options={"mu": 0.25}, compression="topk:0.01", seed=7, patience_s=2.5,
        local={"steps": 4, "lr": 0.1, "optimiser": "adamw"}, privacy={"unit": RECORD, "epsilon": 2.0}, evaluate=True,
    )  # fmt: skip
    found = check_spec(asked, UP)
    assert from_json(found.to_json()) == found
    assert found.strategy().options["mu"] == 0.25


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"task": ""}, "task"),
        ({"rounds": 0}, "rounds"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"strategy": "sgd"}, "fedavg"),
        ({"strategy": "fedprox", "strategy_options": {"eta": 1.0}}, "eta"),
        ({"compression": "zip"}, "topk"),
        ({"nodes": ["sat-1", "sat-1"]}, "once"),
        ({"nodes": ["Sat 1"]}, "name"),
        ({"quorum": 5}, "quorum"),
        ({"cohort": 5}, "cohort"),
        ({"cohort": 2, "quorum": 3}, "quorum"),
        ({"patience_s": -1.0}, "patience_s"),
        ({"patience_s": float("inf")}, "patience_s"),
        ({"local": {"epochs": 1, "steps": 1}}, "not both"),
        ({"local": {"lr": float("nan")}}, "lr"),
        ({"local": {"momentum": 1.0}}, "momentum"),
        ({"local": {"optimiser": "lion"}}, "adamw"),
        ({"local": {"dtype": "fp8"}}, "bf16"),
        ({"local": {"batch_size": 70_000}}, "batch_size"),
        ({"secure_sums": {}, "strategy": "krum"}, "krum"),
        ({"secure_sums": {}, "compression": "topk:0.01"}, "blocks"),
        ({"secure_sums": {}, "nodes": ["sat-1", "sat-2"]}, "hides nobody"),
        ({"secure_sums": {"threshold": 5}}, "threshold"),
        ({"secure_sums": {"bits": 25}}, "bits"),
        ({"secure_sums": {"groups": [{"nodes": ["sat-1"]}]}}, "2 to"),
        ({"secure_sums": {"groups": [{"nodes": ["sat-1", "sat-9"]}]}}, "sat-9"),
        ({"secure_sums": {"groups": [{"nodes": ["sat-1", "sat-2"]}, {"nodes": ["sat-3", "sat-1"]}]}}, "one group"),
        ({"secure_sums": {"groups": [{"nodes": [f"sat-{n}" for n in range(65)]}]}}, "64"),
        ({"privacy": {"epsilon": 1.0}}, "unit"),
        ({"privacy": {"unit": RECORD}}, "epsilon"),
        ({"privacy": {"unit": RECORD, "epsilon": 2.0, "delta": 0.5}}, "delta"),
        ({"privacy": {"unit": RECORD, "epsilon": 2.0, "clip": -1.0}}, "clip"),
        ({"privacy": {"unit": NODE, "epsilon": 2.0}}, "secure sums"),
        ({"strategy": "fedbuff", "strategy_options": {"buffer_size": 9}}, "buffer of 9"),
        ({"strategy": "fedbuff", "strategy_options": {"buffer_size": 2}, "quorum": 3}, "quorum"),
        ({"strategy": "fedbuff", "strategy_options": {"buffer_size": 2}, "secure_sums": {}}, "unmask"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_message_names_it(fields: dict[str, Any], word: str) -> None:
    """Before anything is written down or any node is asked."""
    with pytest.raises(InvalidInputError, match=word):
        check_spec(spec(**fields), UP)


def test_a_mesh_without_nodes_is_told_so() -> None:
    """Where none is named and none is up there is nobody to ask."""
    with pytest.raises(InvalidInputError, match="no node is up") as caught:
        check_spec(spec(), [])
    assert caught.value.reason == "FAILED_PRECONDITION"
