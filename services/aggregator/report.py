"""What is shown of a run: its rounds and nodes as messages."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from orbitmesh.v1 import aggregator_pb2
from services.aggregator.rounds import Phase, Round

STATES = {
    "running": aggregator_pb2.RUN_STATE_RUNNING,
    "paused": aggregator_pb2.RUN_STATE_PAUSED,
    "done": aggregator_pb2.RUN_STATE_DONE,
    "cancelled": aggregator_pb2.RUN_STATE_CANCELLED,
    "failed": aggregator_pb2.RUN_STATE_FAILED,
}
ENDED = frozenset({"done", "cancelled", "failed"})
"""The states in which nothing more happens by itself."""


@dataclass(frozen=True)
class Timing:
    """Where the time of a contribution went, in nanoseconds since 1970."""

    ordered_ns: int
    """The order was given."""
    weights_ns: int
    """The node had the weights."""
    announced_ns: int
    """It said that it has a contribution."""
    stored_ns: int
    """That was durable."""
    train_s: float
    """Seconds of training, as the node says."""


@dataclass
class RoundReport:
    """What is shown of a round beside its record."""

    up_bytes: int = 0
    """Bytes of contributions that count."""
    down_bytes: int = 0
    """Bytes of weights and orders that went out during it."""
    figures: dict[str, float] = field(default_factory=dict)
    """What the weights after it are worth, by name."""
    train_loss: float | None = None
    """Mean training loss of the contributions, weighted by examples."""
    seconds: float = 0.0
    """From the first order to the new weights."""
    epsilon: float = 0.0
    """What the promise of privacy has cost after it."""
    done_ns: int = 0
    """When it was done, in nanoseconds since 1970."""
    trace_id: str = ""
    """Its trace, in hexadecimal."""
    began_ns: int = 0
    """When it began, in nanoseconds since 1970."""
    sum_s: float = 0.0
    """From the last contribution to the new weights."""
    timings: dict[str, Timing] = field(default_factory=dict)
    """By node."""

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def report_from(written: dict[str, Any]) -> RoundReport:
    """What `RoundReport.to_json` wrote; an empty one where nothing was."""
    timings = {node: Timing(**each) for node, each in written.get("timings", {}).items()}
    return RoundReport(**{**written, "timings": timings})


def round_message(state: Round, report: RoundReport) -> aggregator_pb2.RunRound:
    """A round as others see it."""
    message = aggregator_pb2.RunRound(
        index=state.index,
        cohort=state.cohort,
        contributed=[node for node in state.cohort if node in state.stored],
        given_up=dict(state.given_up),
        up_bytes=report.up_bytes,
        down_bytes=report.down_bytes,
        figures=report.figures,
        train_loss=report.train_loss,
        seconds=report.seconds,
        epsilon=report.epsilon,
        trace_id=report.trace_id,
        sum_s=report.sum_s,
        contributions=[
            _contribution(state, node, report.timings.get(node)) for node in state.cohort if node in state.stored
        ],
    )
    if state.phase is Phase.DONE and report.done_ns:
        message.done_at.FromNanoseconds(report.done_ns)
    return message


def _contribution(state: Round, node: str, timing: Timing | None) -> aggregator_pb2.RunContribution:
    stored = state.stored[node]
    message = aggregator_pb2.RunContribution(
        node=node,
        examples=stored.examples,
        size_bytes=stored.size_bytes,
        staleness=max(0, state.index - stored.begun),
        via=stored.via,
    )
    if timing is not None:
        message.train_s = timing.train_s
        message.down_s = (timing.weights_ns - timing.ordered_ns) / 1e9
        message.wait_s = max(0.0, (timing.announced_ns - timing.weights_ns) / 1e9 - timing.train_s)
        message.up_s = (timing.stored_ns - timing.announced_ns) / 1e9
    return message
