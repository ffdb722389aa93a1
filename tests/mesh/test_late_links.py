"""Over links that are late, thin and cut: the same tokens, an honest breakdown, few bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orbitmesh import Link, Mesh
from services.executor.membership import PROBE_INTERVAL_S
from tests.mesh.support import Model, Models, deployed, expect_idle, nodes_of, tokens_of, until

LATENCY_S = 0.020
"""One way."""
NEW_TOKENS = 12
CUT_TOKENS = 32
"""Enough to be cut off in the midst of, and twice that in less time than lies between two measurements of a link."""
ROUNDS_MAX = 4
REPORTED_WITHIN_S = 1.0
"""How late a measurement may be seen here."""


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh.local(
        nodes=3, link=Link(latency_ms=LATENCY_S * 1000, rate_mbps=100), directory=tmp_path_factory.mktemp("late")
    ) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("deepseek_v3", seed=8)


@pytest.fixture(scope="module")
def pipeline(late: Mesh, model: Model) -> Iterator[list[str]]:
    with deployed(late, model, "late", stages=3, kv_tokens=4096) as deployment:
        yield nodes_of(deployment)


def test_tokens_are_the_same_over_late_links(late: Mesh, model: Model, pipeline: list[str]) -> None:
    """A prompt of several pieces, too."""
    for length in (1, 300):
        prompt = model.prompt(length)
        assert tokens_of(late, "late", prompt, 5) == model.answer(prompt, 5)
    expect_idle(late, "late", pipeline)


def test_the_breakdown_names_every_part_of_the_time(late: Mesh, model: Model, pipeline: list[str]) -> None:
    """Rows sum to the total, every token is attributed, links show at least their latency, nodes their work."""
    generation = late.generate("late", model.prompt(20), max_new_tokens=NEW_TOKENS, ignore_end=True)
    list(generation)
    found = late.explain(generation.trace_id)
    assert not found.incomplete
    assert found.new_tokens == len(found.token_s) == NEW_TOKENS
    assert sum(row.total_s for row in found.rows) == pytest.approx(found.total_s, rel=0.01)
    assert found.total_s == pytest.approx(generation.total_s, rel=0.01)
    assert found.attributed >= 0.95
    assert all(part >= 0.95 for part in found.token_attributed)
    rows = {(row.place, row.what): row for row in found.rows}
    assert {row.place for row in found.rows if row.what == "compute"} == set(pipeline)
    assert all(rows[node, "compute"].total_s > 0 for node in pipeline)
    ring = [(a, b) for a, b in zip(pipeline, [*pipeline[1:], pipeline[0]], strict=True)]
    for a, b in ring:
        link = rows[f"{a}>{b}", "link"]
        assert link.wait
        # The clocks are compared over links of the same latency: they cannot be wrong by more than that is uneven.
        assert LATENCY_S * 0.8 <= link.median_s <= LATENCY_S * 3, (a, b, link)
    crossings = [rows[f"{a}>{b}", "link"].total_s for a, b in ring]
    # What the clocks are wrong by cancels out round the ring, but for how it changes while the answer goes on.
    assert sum(crossings) >= (3 * NEW_TOKENS - 1) * LATENCY_S * 0.95, "light is not that fast"
    places = {*pipeline, "gateway", ""} | {f"{a}>{b}" for a in [*pipeline, "gateway"] for b in [*pipeline, "gateway"]}
    assert {row.place for row in found.rows} <= places


def test_a_decode_step_costs_few_bytes_beyond_its_values(late: Mesh, model: Model, pipeline: list[str]) -> None:
    """Header, seal and framing of one hop are at most 160 bytes."""

    def sent(new_tokens: int) -> tuple[int, int]:
        generation = late.generate("late", model.prompt(4), max_new_tokens=new_tokens, ignore_end=True)
        list(generation)
        assert generation.raw_bytes is not None
        assert generation.wire_bytes is not None
        return generation.raw_bytes, generation.wire_bytes

    short, long = sent(2), sent(12)
    hops = 10 * 3  # two of hidden states and one of a token, per step
    raw, wire = long[0] - short[0], long[1] - short[1]
    assert raw == 10 * (2 * 48 * 4 + 4)
    assert 0 < (wire - raw) / hops <= 160


def stream(mesh: Mesh, name: str, model: Model, new_tokens: int, said: list[int], ended: list[Any]) -> threading.Thread:
    def run() -> None:
        try:
            for token in mesh.generate(name, model.prompt(6), max_new_tokens=new_tokens, ignore_end=True):
                said.append(token.id)
            ended.append(None)
        except Exception as error:  # the test looks at it
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_link_that_is_cut_for_a_moment_costs_time_and_no_token(late: Mesh, model: Model, pipeline: list[str]) -> None:
    """The session is taken up again in the middle of the answer; the relays carried hardly more than without a cut.

    Nodes also measure their links, with 1.6 MB each time: bytes are compared where both have just done that and are
    not due again.
    """
    a, b = pipeline[0], pipeline[1]
    for _ in range(ROUNDS_MAX):
        due_s = measured_anew(late, a, b) + PROBE_INTERVAL_S - REPORTED_WITHIN_S
        before = carried(late, a, b)
        assert len(tokens_of(late, "late", model.prompt(6), CUT_TOKENS, ignore_end=True)) == CUT_TOKENS
        between = carried(late, a, b)
        answer_over_a_cut(late, model, a, b)
        expect_idle(late, "late", pipeline)
        usual, cut = between - before, carried(late, a, b) - between
        if time.monotonic() < due_s:
            break
    else:
        pytest.fail(f"two answers took longer than the {PROBE_INTERVAL_S:g} s between two measurements, each time")
    # What is sent again is what was under way, at most a step; the rest are handshakes: sessions and calls both ways
    # connect anew, each with certificates of both ends.
    assert cut <= usual + 60_000


def answer_over_a_cut(mesh: Mesh, model: Model, a: str, b: str) -> None:
    """An answer in whose midst the link is cut for half a second: late, and the same."""
    said: list[int] = []
    ended: list[Any] = []
    thread = stream(mesh, "late", model, CUT_TOKENS, said, ended)
    while len(said) < 8:
        time.sleep(0.01)
    mesh.local.cut(a, b)
    time.sleep(0.5)
    held = len(said)
    assert held < CUT_TOKENS - 4, "the cut did not hold it up"
    mesh.local.restore(a, b)
    thread.join(60)
    assert ended == [None]
    assert said[:20] == model.answer(model.prompt(6), 20)
    assert len(said) == CUT_TOKENS


def measured_anew(mesh: Mesh, a: str, b: str) -> float:
    """Waits until both nodes have measured the link between them once more; when the first of them was seen to have."""

    def measures() -> list[Any]:
        links = {(node.name, link.peer): link for node in mesh.nodes() for link in node.links}
        return [links[a, b], links[b, a]]

    began, seen_s = measures(), [0.0, 0.0]

    def both() -> bool:
        for index, (old, new) in enumerate(zip(began, measures(), strict=True)):
            if new.up and new != old and not seen_s[index]:
                seen_s[index] = time.monotonic()
        return all(seen_s)

    until(both, f"{a} and {b} measured the link between them", 3 * PROBE_INTERVAL_S)
    return min(seen_s)


def carried(mesh: Mesh, a: str, b: str) -> int:
    """Bytes that the emulator let through between two nodes, in both directions."""
    relays = mesh.local.stats()["relays"]
    return sum(_bytes(relays[key]) for key in (f"{a}>{b}", f"{b}>{a}"))


def _bytes(facts: Any) -> int:
    if isinstance(facts, dict):
        return sum(
            int(value) if isinstance(value, int | float) else _bytes(value)
            for key, value in facts.items()
            if isinstance(value, dict) or "bytes" in key
        )
    return 0
