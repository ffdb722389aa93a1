"""What an order says, checked: the run's name, the plan of local training and the seeds."""

from __future__ import annotations

import hashlib
import json
import re
import struct

from google.protobuf.message import DecodeError

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.executor.training.terms import check_protection
from services.training.plan import LocalPlan
from services.updates.scheme import Scheme
from services.updates.spans import span_count

RUN_CHARACTERS = 81
"""Characters of a run's name at most."""
WORK_BYTES = 16 << 20
"""The largest order that is read, in bytes: a plan of secure sums names every span and every node."""
OVERRIDES_CHARACTERS = 4_096
"""Characters of overrides at most."""
SPANS_MAX = 1 << 20
"""Spans of a vector at most: 2**36 values."""
DIGEST_BYTES = 32
_RUN = re.compile(r"[a-z0-9][a-z0-9.-]{0,80}")
_LOCAL_SEED = b"orbitmesh/v1/local-seed\x00"
_ROUNDING_SEED = b"orbitmesh/v1/rounding-seed\x00"


def check_run(name: str) -> str:
    """The name of a run, which is also that of a directory.

    Raises:
        InvalidInputError: It is none that a directory may have.
    """
    if not _RUN.fullmatch(name):
        raise InvalidInputError(
            f"{name[:RUN_CHARACTERS]!r} is no name of a run: expected 1 to {RUN_CHARACTERS} of a-z, 0-9, dot and "
            "hyphen, a letter or digit first"
        )
    return name


def parse_work(data: bytes | bytearray | memoryview) -> training_pb2.TrainingWork:
    """The body of an order.

    Raises:
        InvalidInputError: It is none, or too large (`LIMIT_EXCEEDED`).
    """
    if len(data) > WORK_BYTES:
        raise InvalidInputError(
            f"an order of {len(data)} bytes came, at most {WORK_BYTES} are read", reason="LIMIT_EXCEEDED"
        )
    try:
        return training_pb2.TrainingWork.FromString(bytes(data))
    except DecodeError as error:
        raise InvalidInputError(
            f"the body of an order is no TrainingWork ({error}); both ends need the same version"
        ) from None


def check_terms(work: training_pb2.TrainingWork) -> None:
    """Refuses what no round could be worked on, before a node says that it takes part.

    Raises:
        InvalidInputError: Plan, compression or kinds of protection make no sense.
    """
    Scheme.parse(work.spec.compression)
    check_protection(work.spec, local_plan(work, 0))


def check_weights(weights: training_pb2.WeightsInfo, values: int) -> None:
    """Refuses weights that the run's model cannot have.

    Raises:
        InvalidInputError: `LAYOUT_MISMATCH`, there are more or fewer; or they have no digest.
    """
    if weights.values != values:
        raise InvalidInputError(
            f"the weights have {weights.values} values, the model of this task has {values}: both ends need the same "
            "task in the same version",
            reason="LAYOUT_MISMATCH",
        )
    if len(weights.sha256) != DIGEST_BYTES:
        raise InvalidInputError(
            f"weights are named by the {DIGEST_BYTES} bytes of their SHA-256, not {len(weights.sha256)}"
        )


def check_values(values: int) -> int:
    """The number of values of a model that can travel.

    Raises:
        InvalidInputError: There are none, or too many (`LIMIT_EXCEEDED`).
    """
    if not 0 < span_count(values) <= SPANS_MAX:
        raise InvalidInputError(
            f"a model of {values} values was asked for, and 1 to {SPANS_MAX} spans of them travel",
            reason="LIMIT_EXCEEDED",
        )
    return values


def local_plan(work: training_pb2.TrainingWork, round_index: int) -> LocalPlan:
    """How a node trains in a round.

    Raises:
        InvalidInputError: A number is out of its range, or the overrides are no fields of a plan.
    """
    asked = work.spec.local
    plan = LocalPlan(
        epochs=asked.epochs or None,
        steps=asked.steps or None,
        batch_size=asked.batch_size or 32,
        optimiser=asked.optimiser or "sgd",
        lr=asked.lr or 0.05,
        momentum=asked.momentum,
        weight_decay=asked.weight_decay,
        gradient_norm=asked.gradient_norm,
        dtype=asked.dtype or "fp32",
        keep_optimiser=asked.keep_optimiser,
        seed=local_seed(work.spec.seed, round_index, work.node_index),
    )
    return plan.with_overrides(_overrides(work.overrides))


def local_seed(run_seed: int, round_index: int, node_index: int) -> int:
    """What a node's order of examples follows from in a round: below 2**63, another for each node and round."""
    digest = hashlib.sha256(_LOCAL_SEED + struct.pack(">QQQ", run_seed, round_index, node_index)).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rounding_seed(run: str, round_index: int, node: str) -> int:
    """What stochastic rounding follows from: the same again for a round that is encoded again after a crash."""
    digest = hashlib.sha256(_ROUNDING_SEED + json.dumps([run, round_index, node]).encode()).digest()
    return int.from_bytes(digest, "big")


def _overrides(text: str) -> dict[str, object]:
    if not text:
        return {}
    if len(text) > OVERRIDES_CHARACTERS:
        raise InvalidInputError(
            f"overrides of {len(text)} characters came, at most {OVERRIDES_CHARACTERS} are read",
            reason="LIMIT_EXCEEDED",
        )
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"the overrides of the local plan are no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInputError("the overrides of the local plan are no JSON object of fields")
    return fields
