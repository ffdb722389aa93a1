"""What a run promises, as a node holds its aggregator to it: which terms it joined on, and which go together."""

from __future__ import annotations

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.privacy.events import Unit
from services.privacy.ledger import Budget
from services.training.plan import LocalPlan
from services.updates.integers import largest_integer
from services.updates.scheme import Kind, Number, Scheme

DELTA = 1e-5
"""The chance with which epsilon may not hold, where the run names none."""
CLIP = 1.0
"""The norm to which each unit is clipped, where the run names none."""
BITS = 8
"""Bits of one node's integers, where the run names none."""
BITS_INT4 = 4
"""The same where the compression says int4."""

_AGGREGATORS_OWN = (
    "rounds", "strategy", "strategy_options", "nodes", "quorum", "patience_s", "cohort", "evaluate",
)  # fmt: skip


def same_terms(one: training_pb2.TrainingWork, other: training_pb2.TrainingWork) -> bool:
    """Whether two orders are of the same run as far as a node is concerned: what it trains, on what, how protected.

    A node holds its aggregator to them: an order that leaves the privacy out does not get an update without noise.
    """
    return _terms(one) == _terms(other)


def check_protection(spec: training_pb2.TrainingSpec, plan: LocalPlan) -> None:
    """Refuses promises that cannot be kept together.

    Raises:
        InvalidInputError: Which of them do not go together.
    """
    scheme = Scheme.parse(spec.compression)
    if is_secure(spec):
        if scheme.kind is Kind.TOPK:
            raise InvalidInputError(
                f"with secure sums all nodes send the same values, and {scheme} lets each choose its own: use "
                "blocks:SHARE",
                reason="SCHEME_INVALID",
            )
        largest_integer(sum_bits(spec, scheme))
    if not is_private(spec):
        return
    budget(spec)
    if hides_nodes(spec) and not is_secure(spec):
        raise InvalidInputError(
            "privacy of nodes needs secure sums: a node adds a share of the noise, and only the sum of all protects",
            reason="FAILED_PRECONDITION",
        )
    if not hides_nodes(spec):
        check_private_plan(plan)
    if shares_records(spec) and (plan.momentum or plan.weight_decay or plan.optimiser != "sgd"):
        raise InvalidInputError(
            "with noise in shares the one step of a round is taken by the aggregator: momentum, weight decay and adamw "
            "of the nodes have no place in it; choose a strategy that has them (fedadam, diloco)",
            reason="FAILED_PRECONDITION",
        )


def check_group(work: training_pb2.TrainingWork, joined: training_pb2.TrainingSpec, node: str) -> None:
    """Refuses an order that sends a contribution to another node than those of the group that the run was joined with,
    or has others bring theirs.

    Raises:
        InvalidInputError: The run has no secure sums (`FAILED_PRECONDITION`): another node would see what this one
            learned. Or a node is of another group (`NOT_IN_COHORT`).
    """
    named = [*work.collect, *([work.deliver_to.name] if work.HasField("deliver_to") else [])]
    if not named:
        return
    if not is_secure(joined):
        raise InvalidInputError(
            "contributions are added up among nodes only where they are masked, and this run has no secure sums",
            reason="FAILED_PRECONDITION",
        )
    group = next((set(each.nodes) for each in joined.secure_sums.groups if node in each.nodes), set[str]())
    strangers = set(named) - (group - {node})
    if strangers or len(set(named)) < len(named) or (work.collect and work.HasField("deliver_to")):
        raise InvalidInputError(
            f"{', '.join(sorted(strangers)) or 'a node twice'} was named for a sum on the way, and the group of {node} "
            f"is {', '.join(sorted(group)) or 'empty'}: a node has one head, or is one, in its own group",
            reason="NOT_IN_COHORT",
        )


def check_private_plan(plan: LocalPlan) -> None:
    """Refuses a plan by which single examples cannot be hidden.

    Raises:
        InvalidInputError: Names what does not go with clipping each example's gradient.
    """
    for name, is_set in (
        ("gradient_norm", plan.gradient_norm > 0),
        ("prox_mu", plan.prox_mu > 0),
        ("keep_optimiser", plan.keep_optimiser),
        ("dtype", plan.dtype != "fp32"),
    ):
        if is_set:
            raise InvalidInputError(
                f"{name} does not go with privacy of records, where each example's own gradient is clipped: leave it "
                "out",
                reason="FAILED_PRECONDITION",
            )


def is_secure(spec: training_pb2.TrainingSpec) -> bool:
    """Whether the aggregator sees sums only."""
    return spec.HasField("secure_sums")


def is_private(spec: training_pb2.TrainingSpec) -> bool:
    """Whether something is promised about what the result gives away."""
    return spec.HasField("privacy")


def hides_nodes(spec: training_pb2.TrainingSpec) -> bool:
    """Whether all that a node has is hidden."""
    return is_private(spec) and spec.privacy.unit == training_pb2.PRIVACY_UNIT_NODE


def hides_records(spec: training_pb2.TrainingSpec) -> bool:
    """Whether each example is hidden."""
    return is_private(spec) and not hides_nodes(spec)


def shares_records(spec: training_pb2.TrainingSpec) -> bool:
    """Whether each example is hidden by noise that all nodes add in shares: in one step a round over all their
    examples, of which only the sum is seen."""
    return hides_records(spec) and is_secure(spec) and spec.local.steps == 1


def shares_noise(spec: training_pb2.TrainingSpec) -> bool:
    """Whether a node adds a share of the noise of a sum."""
    return hides_nodes(spec) or shares_records(spec)


def has_secrets(spec: training_pb2.TrainingSpec) -> bool:
    """Whether a node keeps what nobody else may learn."""
    return is_secure(spec) or is_private(spec)


def sum_bits(spec: training_pb2.TrainingSpec, scheme: Scheme) -> int:
    """Bits of one node's integers."""
    return spec.secure_sums.bits or (BITS_INT4 if scheme.number is Number.INT4 else BITS)


def clip_of(spec: training_pb2.TrainingSpec) -> float:
    """The norm to which each unit is clipped."""
    return spec.privacy.clip or CLIP


def budget(spec: training_pb2.TrainingSpec) -> Budget:
    """What may be spent of the run's promise.

    Raises:
        InvalidInputError: It names no unit, or a number that is none.
    """
    units = {training_pb2.PRIVACY_UNIT_RECORD: Unit.RECORD, training_pb2.PRIVACY_UNIT_NODE: Unit.NODE}
    unit = units.get(spec.privacy.unit)
    if unit is None:
        raise InvalidInputError("privacy has to say whose presence is hidden: a record's or a node's")
    return Budget(unit, spec.privacy.epsilon, spec.privacy.delta or DELTA)


def _terms(work: training_pb2.TrainingWork) -> training_pb2.TrainingWork:
    terms = training_pb2.TrainingWork(node_index=work.node_index, nodes=work.nodes)
    terms.spec.CopyFrom(work.spec)
    # What the aggregator alone goes by may change while the run goes on. The noise is found once it is known who takes
    # part; whatever it is, the node's own ledger says when the promise is spent.
    for field in _AGGREGATORS_OWN:
        terms.spec.ClearField(field)
    if terms.spec.HasField("privacy"):
        terms.spec.privacy.ClearField("noise_multiplier")
    return terms
