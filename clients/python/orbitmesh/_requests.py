"""From what a user asks for to the messages of the wire, checked before anything is sent. Pure."""

from __future__ import annotations

import math
import operator
import re
import secrets
import sys
from collections.abc import Sequence
from typing import SupportsIndex

from orbitmesh import _from_proto
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import CONTEXT_TOKENS
from orbitmesh.v1 import executor_pb2, gateway_pb2, scheduler_pb2

STAGES_MAX = 4096
"""The most stages that may be asked for."""
STANDBYS_MAX = 1
"""The most standbys that a stage may have."""
WORK_S_MAX = 366 * 86400.0
"""The longest work that may be planned for, in seconds."""
WORK_TOKENS_MAX = (1 << 32) - 1
"""The most tokens that may be planned for."""
LINGER_S = 30
"""How long the gateway goes on with a generation whose stream was cut, in seconds."""
PROMPT_BYTES = 1 << 21
"""The longest prompt as text, in bytes of UTF-8."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SLICE = re.compile(r"[a-z0-9-]{1,63}")
_TRACE = re.compile(r"[0-9a-f]{32}")


def generate_request(
    deployment: str,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    ignore_end: bool,
    timings: bool,
    in_slice: str | None = None,
) -> gateway_pb2.GenerateRequest:
    """The request for one answer.

    Raises:
        InvalidInputError: an argument is out of range; the message names it.
    """
    request = gateway_pb2.GenerateRequest(
        deployment=checked_name(deployment, "the deployment's name"),
        max_new_tokens=whole(max_new_tokens, "max_new_tokens", 1, CONTEXT_TOKENS),
        sampling=executor_pb2.Sampling(
            temperature=between(temperature, "temperature", 0.0, 1e3),
            top_p=between(top_p, "top_p", 0.0, 1.0),
            seed=whole(seed, "seed", 0, (1 << 64) - 1),
        ),
        ignore_end=ignore_end,
        no_timings=not timings,
        slice="" if in_slice is None else slice_name(in_slice),
        request_id=secrets.token_hex(16),
    )
    request.linger.FromSeconds(LINGER_S)
    if isinstance(prompt, str):
        request.text = _checked_text(prompt)
    else:
        request.token_ids.CopyFrom(gateway_pb2.TokenIds(ids=_checked_ids(prompt)))
    return request


def plan_request(
    manifest: bytes,
    *,
    stages: int | None,
    objective: str,
    nodes: Sequence[str] | None,
    kv_tokens: int | None,
    work_s: float | None,
    work_tokens: int | None,
) -> scheduler_pb2.PlanRequest:
    """The request for a plan.

    Raises:
        InvalidInputError: an argument is out of range; the message names it.
    """
    return scheduler_pb2.PlanRequest(
        manifest=manifest,
        objective=_from_proto.objective_number(objective),
        stages=_optional(stages, "stages", STAGES_MAX),
        nodes=checked_nodes(nodes),
        kv_tokens=_optional(kv_tokens, "kv_tokens", 1 << 40),
        work_s=_work_s(work_s),
        work_tokens=_optional(work_tokens, "work_tokens", WORK_TOKENS_MAX),
    )


def deployment_request(
    name: str,
    *,
    stages: int | None,
    objective: str,
    codec: str,
    nodes: Sequence[str] | None,
    kv_tokens: int | None,
    standbys: int,
    work_s: float | None,
    work_tokens: int | None,
    in_slice: str | None = None,
    request_id: str,
) -> scheduler_pb2.CreateDeploymentRequest:
    """The request for a deployment, still without its pack.

    Raises:
        InvalidInputError: an argument is out of range; the message names it.
    """
    return scheduler_pb2.CreateDeploymentRequest(
        request_id=request_id,
        slice="" if in_slice is None else slice_name(in_slice),
        name=checked_name(name, "the deployment's name"),
        objective=_from_proto.objective_number(objective),
        stages=_optional(stages, "stages", STAGES_MAX),
        nodes=checked_nodes(nodes),
        kv_tokens=_optional(kv_tokens, "kv_tokens", 1 << 40),
        codec=_from_proto.codec_number(codec),
        standbys=whole(standbys, "standbys", 0, STANDBYS_MAX),
        work_s=_work_s(work_s),
        work_tokens=_optional(work_tokens, "work_tokens", WORK_TOKENS_MAX),
    )


def checked_name(name: str, what: str) -> str:
    """The name, where it is one.

    Raises:
        InvalidInputError: it is not.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{what} is {name!r:.80}; expected a letter or digit and then up to 62 letters, digits, dots, "
            "underscores or hyphens"
        )
    return name


def slice_name(name: str, what: str = "the slice's name") -> str:
    """The name, where a slice may be called that.

    Raises:
        InvalidInputError: It may not.
    """
    if not isinstance(name, str) or not _SLICE.fullmatch(name):
        raise InvalidInputError(f"{what} is {name!r:.80}; expected 1 to 63 of a-z, 0-9 and -")
    return name


def deployment_name(model: str) -> str:
    """A deployment's name for a model that was not given one."""
    return re.sub(r"[^a-z0-9._-]+", "-", model.rpartition("/")[2].lower()).lstrip("._-")[:63] or "model"


def checked_trace(trace_id: str | None) -> str:
    """The trace id, empty for the last one that ended.

    Raises:
        InvalidInputError: it is not 32 hex digits.
    """
    if trace_id is None or trace_id == "":
        return ""
    if not isinstance(trace_id, str) or not _TRACE.fullmatch(trace_id.lower()):
        raise InvalidInputError(f"{trace_id!r:.80} is no trace id; expected 32 hexadecimal digits")
    return trace_id.lower()


def checked_timeout(timeout: float, what: str = "timeout") -> float:
    """The time, where it is one that ends.

    Raises:
        InvalidInputError: it is not above 0 and finite.
    """
    if not isinstance(timeout, int | float) or not math.isfinite(timeout) or timeout <= 0:
        raise InvalidInputError(f"{what} is {timeout!r}; expected seconds, above 0 and finite")
    return float(timeout)


def checked_patience(patience: float) -> float:
    """The time for which is asked again, where it is one.

    Raises:
        InvalidInputError: it is below 0 or not finite.
    """
    if not isinstance(patience, int | float) or not math.isfinite(patience) or patience < 0:
        raise InvalidInputError(f"patience is {patience!r}; expected seconds, 0 or more and finite")
    return float(patience)


def _checked_text(prompt: str) -> str:
    if not prompt:
        raise InvalidInputError("the prompt is empty; give some text or token ids", reason="EMPTY_PROMPT")
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError:
        raise InvalidInputError(
            "the prompt holds half a surrogate pair and is no valid Unicode text"
        ) from None
    if size > PROMPT_BYTES:
        raise InvalidInputError(
            f"the prompt is {size} bytes; at most {PROMPT_BYTES} are accepted", reason="PROMPT_TOO_LONG"
        )
    return prompt


def _checked_ids(prompt: Sequence[SupportsIndex]) -> list[int]:
    try:
        # `operator.index` takes every kind of whole number, numpy's and torch's too, and refuses 1.5 and "1".
        ids = [operator.index(token) for token in prompt]
    except TypeError as error:
        raise InvalidInputError(f"the prompt is neither text nor a sequence of token ids ({error})") from None
    if not ids:
        raise InvalidInputError("the prompt is empty; give some text or token ids", reason="EMPTY_PROMPT")
    if len(ids) > CONTEXT_TOKENS:
        raise InvalidInputError(
            f"the prompt has {len(ids)} tokens; at most {CONTEXT_TOKENS} are served", reason="PROMPT_TOO_LONG"
        )
    for token in ids:
        if not 0 <= token < 1 << 32:
            raise InvalidInputError(f"{token} is no token id; expected 0 to {(1 << 32) - 1}")
    return ids


def checked_nodes(nodes: Sequence[str] | None) -> list[str]:
    """The nodes' names; none for None, which stands for all that are up.

    Raises:
        InvalidInputError: they are no list of names, or an empty one.
    """
    if nodes is None:
        return []
    if isinstance(nodes, str) or not nodes:
        raise InvalidInputError(
            f"nodes is {nodes!r:.80}; expected a list of node names, or None for all that are up"
        )
    return [checked_name(node, "a node's name") for node in nodes]


def _work_s(value: float | None) -> float:
    return 0.0 if value is None else between(value, "work_s", 1e-3, WORK_S_MAX)


def _optional(value: int | None, what: str, most: int) -> int:
    return 0 if value is None else whole(value, what, 1, most)


def whole(value: int, what: str, least: int, most: int) -> int:
    """The value as an `int`, where it is a whole number in its range.

    Raises:
        InvalidInputError: it is not; the message names `what`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidInputError(f"{what} is {value!r:.80}; expected a whole number") from None
    if not least <= number <= most:
        raise InvalidInputError(f"{what} is {number}; expected {least} to {most}")
    return number


def between(value: float, what: str, least: float, most: float) -> float:
    """The value as a `float`, where it is a finite number in its range.

    Raises:
        InvalidInputError: it is not; the message names `what`.
    """
    # An integer may be larger than any float, which no function of `math` takes.
    finite = isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max
    if not finite or not least <= value <= most:
        raise InvalidInputError(f"{what} is {value!r:.80}; expected a number from {least:g} to {most:g}")
    return float(value)
