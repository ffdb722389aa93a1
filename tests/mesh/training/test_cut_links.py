"""Training over links that are cut for a while: who is given up then is asked again as soon as it is reached again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from orbitmesh import Link, LocalTraining, Mesh, TrainingStatus
from tests.mesh.support import until

NODES = ["sat-1", "sat-2"]
PATIENCE_S = 1.0
WITHIN_S = 90.0


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose links can be cut."""
    link = Link(latency_ms=1, rate_mbps=1000)
    with Mesh.local(nodes=3, link=link, directory=tmp_path_factory.mktemp("cut")) as mesh:
        yield mesh


def test_a_node_that_was_given_up_is_asked_again_when_its_link_is_back(linked: Mesh) -> None:
    """A cut that is shorter than what a session outlives: rounds go on without the node, and then with it."""
    run = linked.train(
        "cut", task="digits", rounds=100_000, local=LocalTraining(steps=1, lr=0.01), nodes=NODES, quorum=1,
        patience_s=PATIENCE_S, evaluate=False,
    )  # fmt: skip

    def last(holds: Callable[[TrainingStatus], bool]) -> Callable[[], bool]:
        def look() -> bool:
            status = run.status()
            assert not status.ended, status.why
            return bool(status.rounds) and holds(status)

        return look

    until(last(lambda status: sorted(status.rounds[-1].contributed) == NODES), WITHIN_S)
    linked.local.cut("aggregator", "sat-1")
    until(last(lambda status: status.rounds[-1].cohort == ("sat-2",)), "one is not asked any more", WITHIN_S)
    linked.local.restore("aggregator", "sat-1")
    until(last(lambda status: sorted(status.rounds[-1].contributed) == NODES), WITHIN_S)
    run.cancel()
