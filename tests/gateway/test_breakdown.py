"""The breakdown against a path whose every duration is known because the test made it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from gateway.breakdown import ClockReading, GenerationRecord, breakdown
from orbitmesh.v1 import executor_pb2, gateway_pb2

MS = 1_000_000


@dataclass
class Truth:
    """What really happened, in nanoseconds of one clock that nobody in the mesh has."""

    spent: dict[tuple[str, str], int] = field(default_factory=dict)
    """(place, what) -> time."""

    def add(self, place: str, what: str, time_ns: int) -> int:
        self.spent[place, what] = self.spent.get((place, what), 0) + time_ns
        return time_ns


def make_record(
    seed: int, stages: int, tokens: int, *, link_ns: int, clock_error_ns: int = 0
) -> tuple[GenerationRecord, Truth]:
    """A generation of `tokens` tokens; every node's clock is off by some seconds, known to within `clock_error_ns`."""
    chance = random.Random(seed)
    names = tuple(f"node-{index}" for index in range(stages))
    offsets = [chance.randrange(-(10**10), 10**10) for _ in names]
    truth, now, prompt = Truth(), chance.randrange(10**12), 9
    record = GenerationRecord("ab" * 16, "demo", [(0, names)], prompt, began_ns=now, began_at_ns=0)
    for name, offset in zip(names, offsets, strict=True):
        wrong = chance.randint(-clock_error_ns, clock_error_ns)
        trip = 2 * clock_error_ns + 1000
        record.clocks[name] = ClockReading(now, now + trip, now + trip // 2 + offset + wrong)
    columns = [executor_pb2.StageTimings(stage_index=index) for index in range(stages)]
    before = [0] * stages
    now += truth.add("gateway", "admit", chance.randrange(5 * MS))
    record.admitted_ns = now
    now += truth.add("gateway", "send", chance.randrange(MS))
    record.fed_ns = now
    source = "gateway"
    for token in range(tokens):
        for index, name in enumerate(names):
            crossing = link_ns + chance.randrange(MS)
            if stages == 1 and token:
                now += truth.add(name, "queue", crossing)
            else:
                now += truth.add(f"{source}>{name}", "link", crossing)
            column = columns[index]
            column.position.append(0 if token == 0 else prompt + token - 1)
            column.rows.append(prompt if token == 0 else 1)
            column.received_ns.append(now + offsets[index] - before[index])
            before[index] = now + offsets[index]
            parts = {
                what: chance.randrange(MS) for what in ("open", "queue", "compute", "codec", "seal", "credit", "send")
            }
            for what in ("open", "queue", "compute"):
                getattr(column, f"{what}_ns").append(parts[what])
                now += truth.add(name, what, parts[what])
            ends_ring = index == stages - 1
            if ends_ring:
                record.arrived_ns.append(now + link_ns)
            last = ends_ring and token == tokens - 1
            for what in ("codec", "seal", "credit"):
                getattr(column, f"{what}_ns").append(parts[what])
            column.send_ns.append(sum(parts[what] for what in ("codec", "seal", "credit", "send")))
            if not last and stages > 1:
                for what in ("codec", "seal", "credit", "send"):
                    now += truth.add(name, what, parts[what])
            source = name
    truth.add(f"{names[-1]}>gateway", "link", link_ns)
    record.ended_ns = record.arrived_ns[-1]
    record.stages = {(index, name): columns[index] for index, name in enumerate(names)}
    return record, truth


def rows_of(message: gateway_pb2.Breakdown) -> dict[tuple[str, str], float]:
    return {(row.place, row.what): row.total_s * 1e9 for row in message.rows}


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(10))
def test_with_exact_clocks_every_row_is_what_was_spent(seed: int, stages: int) -> None:
    """Where offsets are known exactly, each row equals the time that really passed there."""
    record, truth = make_record(seed, stages, tokens=12, link_ns=20 * MS)
    found = rows_of(breakdown(record))
    assert found.keys() == {key for key, spent in truth.spent.items() if spent > 0}
    for key, spent in truth.spent.items():
        assert found.get(key, 0.0) == pytest.approx(spent, abs=50), key


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(10))
def test_rows_sum_to_the_total_whatever_the_clocks_say(seed: int, stages: int) -> None:
    """With offsets wrong by more than a fast link takes, rows still sum to the total, and work rows are exact."""
    record, truth = make_record(seed, stages, tokens=12, link_ns=MS // 4, clock_error_ns=3 * MS)
    message = breakdown(record)
    assert sum(row.total_s for row in message.rows) == pytest.approx(message.total_s, rel=0.01)
    assert min(message.token_attributed) >= 0.95
    found = rows_of(message)
    for name in record.nodes:
        assert found[name, "compute"] == pytest.approx(truth.spent[name, "compute"], abs=50)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_what_the_prompt_waited_for_at_the_gateway_is_a_row_of_its_own(seed: int, stages: int) -> None:
    """Of the gateway's sending, the part for which the prompt's frames had no turn says what for; the sum stays."""
    record, truth = make_record(seed, stages, tokens=5, link_ns=20 * MS)
    sending = truth.spent["gateway", "send"]
    record.turn_ns, record.turn_for = sending // 3, "slice ceiling 4 Mbit/s"
    message = breakdown(record)
    row = next(row for row in message.rows if row.what == "waiting: slice ceiling 4 Mbit/s")
    assert (row.place, row.wait) == ("gateway", True)
    assert row.total_s * 1e9 == pytest.approx(sending // 3, abs=50)
    assert rows_of(message)["gateway", "send"] == pytest.approx(sending - sending // 3, abs=50)
    assert sum(each.total_s for each in message.rows) == pytest.approx(message.total_s, rel=0.01)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_what_a_rule_held_back_is_a_row_of_its_own(seed: int, stages: int) -> None:
    """The part of a queue that a rule of slices is to blame for has a row that names it, and counts as waiting."""
    record, truth = make_record(seed, stages, tokens=12, link_ns=20 * MS)
    node, rule = record.nodes[-1], "slice embb ceiling 30%"
    timings = record.stages[stages - 1, node]
    timings.held_by = rule
    timings.held_ns.extend(wait // 3 for wait in timings.queue_ns)
    message = breakdown(record)
    held = next(row for row in message.rows if row.what == f"waiting: {rule}")
    assert (held.place, held.wait) == (node, True)
    assert held.total_s * 1e9 == pytest.approx(sum(timings.held_ns), abs=50)
    found = rows_of(message)
    assert found[node, "queue"] == pytest.approx(truth.spent[node, "queue"] - sum(timings.held_ns), abs=50)
    assert found[node, "compute"] == pytest.approx(truth.spent[node, "compute"], abs=50)


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_what_waited_for_a_turn_on_the_link_is_a_row_of_its_own(seed: int, stages: int) -> None:
    """The part of sending in which frames waited for their turn has a row that says what for, and counts as waiting;
    what is left of sending is what it was without."""
    record, _ = make_record(seed, stages, tokens=12, link_ns=20 * MS)
    before = rows_of(breakdown(record))
    node, reason = record.nodes[0], "slice ceiling 4 Mbit/s"
    timings = record.stages[0, node]
    waited = 5 * MS
    timings.turn_for = reason
    timings.turn_ns.extend(waited for _ in timings.send_ns)
    for at in range(len(timings.send_ns)):
        timings.send_ns[at] += waited
    message = breakdown(record)
    found = rows_of(message)
    row = next(row for row in message.rows if row.what == f"waiting: {reason}")
    assert (row.place, row.wait) == (node, True)
    assert row.count >= 11
    assert row.median_s * 1e9 == pytest.approx(waited, rel=0.01)
    assert sum(row.total_s for row in message.rows) == pytest.approx(message.total_s, rel=0.01)
    assert found[node, "compute"] == pytest.approx(before[node, "compute"], abs=50)
    assert found.get((node, "send"), 0) == pytest.approx(before.get((node, "send"), 0), rel=0.1, abs=50)


@pytest.mark.parametrize("seed", range(5))
def test_the_sum_of_the_ring_links_does_not_depend_on_the_clocks(seed: int) -> None:
    """A wrong offset moves time between links of the ring and leaves their sum."""
    exact, _ = make_record(seed, 3, tokens=12, link_ns=20 * MS)
    wrong, _ = make_record(seed, 3, tokens=12, link_ns=20 * MS)
    wrong.clocks["node-1"] = ClockReading(0, 10 * MS, wrong.clocks["node-1"].offset_ns + 5 * MS + 4 * MS)
    inner = {("node-0>node-1", "link"), ("node-1>node-2", "link"), ("node-2>node-0", "link")}

    def ring(record: GenerationRecord) -> float:
        return sum(time for key, time in rows_of(breakdown(record)).items() if key in inner)

    assert ring(wrong) == pytest.approx(ring(exact), rel=0.01)


def test_waiting_for_own_earlier_chunks_counts_as_computing() -> None:
    """While the last chunk of a prompt waits for the chunks before it, the stage works on this very prompt."""
    record = GenerationRecord("ab" * 16, "demo", [(0, ("a",))], 512, began_ns=0, began_at_ns=0)
    record.clocks["a"] = ClockReading(0, 0, 0)
    record.admitted_ns, record.fed_ns = 1, 2
    timings = executor_pb2.StageTimings(
        position=[0, 256], rows=[256, 256], received_ns=[10, 5], open_ns=[0, 0], queue_ns=[0, 95],
        compute_ns=[100, 100],
        codec_ns=[0, 0], seal_ns=[0, 0], credit_ns=[0, 0], send_ns=[0, 0],
    )  # fmt: skip
    record.stages[0, "a"] = timings
    record.arrived_ns = [220]
    record.ended_ns = 220
    found = rows_of(breakdown(record))
    assert found["a", "compute"] == pytest.approx(195)
    assert ("a", "queue") not in found


def test_a_stage_that_never_reported_leaves_its_time_unattributed_and_says_so() -> None:
    """Lost timings are not guessed: the whole is unattributed and marked incomplete."""
    record, _ = make_record(1, 3, tokens=4, link_ns=MS)
    del record.stages[1, "node-1"]
    message = breakdown(record)
    assert message.incomplete
    assert message.attributed == 0.0
    assert [row.what for row in message.rows] == ["unattributed"]
    assert sum(row.total_s for row in message.rows) == pytest.approx(message.total_s)


def test_a_generation_without_a_token_has_a_breakdown_too() -> None:
    """A request that failed before its first token shows where it waited."""
    record, _ = make_record(1, 2, tokens=1, link_ns=MS)
    record.arrived_ns.clear()
    record.ended_ns = record.began_ns + 7 * MS
    message = breakdown(record)
    assert message.new_tokens == 0
    assert [(row.place, row.what, row.total_s) for row in message.rows] == [("gateway", "admit", pytest.approx(7e-3))]
