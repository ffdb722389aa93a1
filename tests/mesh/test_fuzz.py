"""Every method of every process, and every session, against what nobody meant to send: refused by name, nothing falls.

`make fuzz` does the same in large.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orbitmesh.trust import Role
from tests.fuzz.place import Place, place
from tests.fuzz.rpcs import Method, Outcomes, calling, defects_in, fuzz_rpcs, runs
from tests.fuzz.sessions import SessionTally, attack_session, of_sessions, talk_nonsense

PROTOS = Path(__file__).parents[2] / "protos" / "orbitmesh" / "v1"
SEEDS = st.integers(0, 2**64 - 1)
FEW = settings(max_examples=2, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("fuzz")) as found:
        yield found


@pytest.fixture(scope="module")
def methods(whole: Place) -> list[Method]:
    return whole.methods()


@pytest.fixture(autouse=True)
def nothing_fell(whole: Place) -> Iterator[None]:
    """Every process is there afterwards, and no log has a traceback or an error."""
    starts = {server.name: server.log.stat().st_size for server in whole.servers}
    yield
    for server in whole.servers:
        assert runs(server), f"{server.name} is gone"
        assert defects_in(server.log, starts[server.name]) == []


def test_reflection_names_every_method_that_may_be_called(methods: list[Method]) -> None:
    """A method that nobody thought of here is found all the same: what is called is what the processes offer."""
    declared = {
        f"/orbitmesh.v1.{service}/{method}"
        for file in PROTOS.glob("*.proto")
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", file.read_text(), re.MULTILINE | re.DOTALL)
        for method in re.findall(r"^  rpc (\w+)\(", body, re.MULTILINE)
    }
    assert len(declared) > 50
    assert {method.full for method in methods} >= declared
    assert {method.server.role for method in methods} == {
        Role.GATEWAY, Role.SCHEDULER, Role.AGGREGATOR, Role.SLICES, Role.EXECUTOR, Role.CONSTELLATION,
    }  # fmt: skip


def test_every_method_refuses_by_name_what_it_cannot_take(whole: Place, methods: list[Method]) -> None:
    """Well-formed nonsense, damaged messages and noise, to every method of every process, as a role that may."""
    outcomes = Outcomes()

    @FEW
    @given(SEEDS)
    def run(seed: int) -> None:
        asyncio.run(fuzz_rpcs(methods, whole.identities, 2, seed, outcomes))
        assert outcomes.wrong == []

    run()
    assert set(outcomes.calls) == {method.title for method in methods}
    assert outcomes.outcomes["INVALID_INPUT"] > 0 < outcomes.outcomes["OK"]


def test_no_process_takes_a_changed_frame(whole: Place, methods: list[Method]) -> None:
    """Over mTLS, into every method that carries sessions: each is refused by name, and the true one is taken then."""
    tally = SessionTally()

    async def all_of(seed: int) -> None:
        async with calling(whole.identities, Outcomes()) as caller:
            for method in of_sessions(methods):
                await attack_session(caller, method, whole.identities[method.role], seed, tally)
                await talk_nonsense(caller, method, whole.identities[method.role], seed, tally)

    @FEW
    @given(SEEDS)
    def run(seed: int) -> None:
        asyncio.run(all_of(seed))

    run()
    assert tally.refused.total() > 100
    assert tally.nonsense.total() > 50
