"""The breakdown of generations that stalled, moved or lost a node, against what really happened."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.breakdown import breakdown
from gateway.record import HAND_OVER, RECOVER, WAITING_FOR_CONTACT, ClockReading, GenerationRecord, Stall
from gateway.spans import spans
from orbitmesh._from_proto import breakdown as from_proto
from orbitmesh.v1 import executor_pb2, gateway_pb2
from tests.gateway.stories import MS, Story
from tests.gateway.test_breakdown import rows_of

S = 1000 * MS
SEEDS = pytest.mark.parametrize("seed", range(5))


def checked(story: Story) -> gateway_pb2.Breakdown:
    """The breakdown of a story whose clocks are known exactly: every row is what was spent there."""
    message = breakdown(story.end())
    found = rows_of(message)
    truth = {key: spent for key, spent in story.truth.items() if spent}
    assert found.keys() == truth.keys()
    for key, spent in truth.items():
        assert found[key] == pytest.approx(spent, abs=100), key
    whole(message)
    return message


def whole(message: gateway_pb2.Breakdown) -> None:
    """Rows sum to the total, none is negative, tokens do not overlap."""
    assert all(row.total_s >= 0 and row.median_s >= 0 for row in message.rows)
    assert sum(row.total_s for row in message.rows) == pytest.approx(message.total_s, rel=0.01)
    assert len(message.token_s) == len(message.token_attributed) == message.new_tokens
    assert all(wall >= 0 for wall in message.token_s)
    assert all(0 <= part <= 1 for part in message.token_attributed)
    assert sum(message.token_s) <= message.total_s * 1.000001


@SEEDS
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("reached", [0, 1, 2])
def test_a_node_killed_in_mid_sentence_is_a_detect_and_a_recover_row(seed: int, stage: int, reached: int) -> None:
    """Wherever the token was: what stages did before and after counts as in quiet times, the rest is the stall."""
    story = Story(seed, "abc")
    story.tokens(4)
    story.run(reached)
    story.unnoticed(800 * MS)
    nodes = "abc"[:stage] + "d" + "abc"[stage + 1 :]
    story.stall(RECOVER, 300 * MS, nodes, replays=(stage,))
    story.tokens(3)
    if reached <= stage:
        # What was computed for this token before the kill is on its way; nothing was thrown away.
        message = checked(story)
    else:
        message = breakdown(story.end())
        whole(message)
        found = rows_of(message)
        assert found["gateway", RECOVER] == pytest.approx(300 * MS)
        assert found["gateway", "detect"] >= 800 * MS
    assert not message.incomplete
    assert message.attributed == pytest.approx(1.0)
    assert message.token_s[4] == max(message.token_s)
    stalled = {row.what: row for row in message.rows if row.what in {RECOVER, "detect"}}
    assert all(row.wait and row.count == 1 and row.place == "gateway" for row in stalled.values())


@SEEDS
def test_the_steps_of_a_killed_node_are_its_unreported_row(seed: int) -> None:
    """A node in the middle took its timings with it: its time and that of its links is one row of its name."""
    story = Story(seed, "abc", untold="b")
    story.tokens(4)
    story.run(1)
    story.unnoticed(800 * MS)
    before = dict(story.truth)
    story.stall(RECOVER, 300 * MS, "adc", replays=(1,))
    story.tokens(3)
    message = breakdown(story.end())
    whole(message)
    found, truth = rows_of(message), story.truth
    assert message.incomplete
    untold = sum(spent for (place, _), spent in before.items() if place in {"b", "a>b", "b>c"})
    assert found["b", "unreported"] == pytest.approx(untold, rel=0.001)
    assert not any(place in {"a>b", "b>c"} or (place == "b" and what != "unreported") for place, what in found)
    for key in truth:
        if key[0] not in {"b", "a>b", "b>c"}:
            assert found[key] == pytest.approx(truth[key], abs=100), key


@SEEDS
def test_a_killed_last_node_leaves_the_others_rows_as_they_were(seed: int) -> None:
    """The end of its work is not known: what lies between the stage before it and the first is its own."""
    story = Story(seed, "abc", untold="c")
    story.tokens(4)
    story.run(2)
    story.unnoticed(800 * MS)
    story.stall(RECOVER, 300 * MS, "abd", replays=(2,))
    story.tokens(3)
    message = breakdown(story.end())
    whole(message)
    assert message.incomplete
    found, truth = rows_of(message), story.truth
    for key in (("a", "compute"), ("b", "compute"), ("d", "compute"), ("a>b", "link"), ("gateway", RECOVER)):
        assert found[key] == pytest.approx(truth[key], abs=100), key
    untold = sum(spent for (place, _), spent in truth.items() if place in {"c", "b>c", "c>a"})
    assert found["c", "unreported"] + found.get(("c>a", "link"), 0) == pytest.approx(untold, rel=0.01)
    assert ("", "unattributed") not in found


@SEEDS
def test_a_long_outage_is_one_row_and_no_token_is_counted_twice(seed: int) -> None:
    """85 minutes without a path, the same nodes after it: the row is the outage, the others are as ever."""
    story = Story(seed, "abc")
    story.tokens(3)
    story.run(1)
    story.unnoticed(2 * S)
    story.stall(RECOVER, 1 * S)
    story.stall(WAITING_FOR_CONTACT, 5100 * S)
    story.stall(RECOVER, 200 * MS)
    story.tokens(3)
    message = checked(story)
    rows = {row.what: row for row in message.rows if row.place == "gateway"}
    assert rows[WAITING_FOR_CONTACT].count == 1
    assert rows[WAITING_FOR_CONTACT].wait
    assert rows[RECOVER].count == 2
    assert rows["detect"].count == 1


@SEEDS
@pytest.mark.parametrize("nodes", ["dbc", "adc", "abd", "def"])
def test_a_move_without_a_stop_leaves_no_stall_and_names_the_new_links(seed: int, nodes: str) -> None:
    """A token crosses from the old last node to the new first one, and each link has its own row."""
    story = Story(seed, "abc")
    story.tokens(4)
    story.move(nodes)
    story.tokens(4)
    message = checked(story)
    found = rows_of(message)
    assert (f"c>{nodes[0]}", "link") in found
    assert not any(what in {RECOVER, HAND_OVER, "detect"} for _, what in found)


@SEEDS
def test_two_stalls_in_one_token_are_two_occurrences(seed: int) -> None:
    """A second node dies while the first is being made up for; what lies between counts where it was spent."""
    story = Story(seed, "abc")
    story.tokens(2)
    story.run(1)
    story.unnoticed(500 * MS)
    story.stall(RECOVER, 300 * MS, "adc", replays=(1,))
    story.run(1)
    story.unnoticed(400 * MS)
    story.stall(RECOVER, 200 * MS, "ade", replays=(2,))
    story.tokens(3)
    message = checked(story)
    rows = {(row.place, row.what): row for row in message.rows}
    assert rows["gateway", RECOVER].count == rows["gateway", "detect"].count == 2


@SEEDS
@pytest.mark.parametrize("reached", [0, 1, 2])
def test_a_stall_before_the_first_token_is_apart_from_admission(seed: int, reached: int) -> None:
    """Admission, the prompt's way so far, the time until it was noticed and the stall are rows of their own."""
    story = Story(seed, "abc")
    story.run(reached)
    story.unnoticed(700 * MS)
    story.stall(WAITING_FOR_CONTACT, 30 * S)
    story.tokens(3)
    if reached:
        checked(story)
    else:
        # The prompt was under way: how much of the time until the stall that took is not known to anybody.
        story.truth["gateway", "detect"] += story.truth["gateway", "send"]
        del story.truth["gateway", "send"]
        checked(story)


def test_a_single_node_that_restarts_has_no_link_to_itself() -> None:
    """One stage, suspended and fed again by the gateway."""
    story = Story(1, "a")
    story.tokens(3)
    story.unnoticed(400 * MS)
    story.stall(WAITING_FOR_CONTACT, 3 * S)
    story.tokens(3)
    checked(story)


def test_without_any_timings_stalls_are_named_and_nobody_is_blamed() -> None:
    """A client that wanted no timings still sees the stall."""
    story = Story(1, "abc", untold="abcd")
    story.tokens(3)
    story.unnoticed(400 * MS)
    story.stall(RECOVER, 300 * MS, "abd")
    story.tokens(3)
    message = breakdown(story.end())
    whole(message)
    assert {row.what for row in message.rows} == {"unattributed", RECOVER, "detect", "admit"}
    assert rows_of(message)["gateway", RECOVER] == pytest.approx(300 * MS)


def test_a_generation_given_up_while_it_waits_shows_what_for() -> None:
    """The stall after the last token is a row, also where the end was not noted."""
    story = Story(3, "abc")
    story.tokens(3)
    record = story.end()
    arrived = record.arrived_ns[-1]
    record.stalls.append(Stall(WAITING_FOR_CONTACT, arrived + S, arrived + 61 * S))
    record.ended_ns = 0
    message = breakdown(record)
    whole(message)
    found = rows_of(message)
    assert found["gateway", WAITING_FOR_CONTACT] == pytest.approx(60 * S)
    assert found["gateway", "detect"] == pytest.approx(S)
    assert message.total_s == pytest.approx((arrived + 61 * S - record.began_ns) / 1e9)


def test_a_prompt_that_waited_in_vain_shows_the_wait() -> None:
    """No token ever: admission, and the outage by its name."""
    record = GenerationRecord("ab" * 16, "demo", [(0, ("a",))], 3, began_ns=5, began_at_ns=0, ended_ns=5 + 70 * S)
    record.stalls.append(Stall(WAITING_FOR_CONTACT, 5 + S, 5 + 70 * S))
    message = breakdown(record)
    assert rows_of(message) == pytest.approx({("gateway", "admit"): S, ("gateway", WAITING_FOR_CONTACT): 69 * S})


def test_a_gateway_that_took_a_generation_up_counts_from_there() -> None:
    """Only what this record saw is explained, by the steps of those positions."""
    story = Story(4, "abc", taken_up=5)
    story.tokens(4)
    checked(story)


@SEEDS
def test_what_a_new_node_computes_again_after_the_stall_is_work(seed: int) -> None:
    """The stages were told to go on, and the new one computes what the old one had before it gets to the token."""
    story = Story(seed, "abc")
    story.tokens(5)
    story.run(1)
    story.unnoticed(800 * MS)
    story.stall(RECOVER, 300 * MS, "adc")
    story.run(1, backlog_ns=90 * MS)
    story.tokens(3)
    found = rows_of(checked(story))
    assert found["d", "compute"] >= 89 * MS


@SEEDS
def test_of_two_steps_for_one_token_the_one_that_made_it_counts(seed: int) -> None:
    """The last stage had computed the token when everything was stopped, and computes it again."""
    story = Story(seed, "abc")
    story.tokens(3)
    story.run(2)
    story.in_vain(1)
    story.unnoticed(800 * MS)
    story.stall(RECOVER, 300 * MS)
    story.tokens(2)
    checked(story)


@SEEDS
def test_a_step_in_a_stall_is_the_stalls(seed: int) -> None:
    """A stage went on while the gateway took it for lost: its time is not added to that of the stall."""
    story = Story(seed, "abc")
    story.tokens(3)
    story.run(1)
    story.unnoticed(800 * MS)
    story.stall(RECOVER, 300 * MS, within=1)
    story.tokens(2)
    checked(story)


@SEEDS
def test_a_stall_that_two_tokens_see_is_one_occurrence(seed: int) -> None:
    """The token under way was made in the stall and came after it: the stall is part of both tokens' time."""
    story = Story(seed, "abc")
    story.tokens(3)
    story.run(1)
    story.unnoticed(800 * MS)
    story.stall(RECOVER, 300 * MS, within=2)
    story.tokens(2)
    message = checked(story)
    row = next(row for row in message.rows if row.what == RECOVER)
    assert row.count == 1
    assert row.median_s == pytest.approx(0.3)


@SEEDS
def test_a_step_that_waits_through_a_stall_is_cut_at_its_edges(seed: int) -> None:
    """A stage held the token in its queue before, through and after the stall."""
    story = Story(seed, "abc")
    story.tokens(3)
    story.run(2)
    timings = story.told[1, "b"]
    began = story.now - timings.compute_ns[-1] + 100 * MS
    timings.queue_ns[-1] += 500 * MS
    story.now += 500 * MS
    story.record.stalls.append(Stall(RECOVER, began, began + 300 * MS))
    story.truth["gateway", RECOVER] += 300 * MS
    story.truth["b", "queue"] += 200 * MS
    story.tokens(2)
    checked(story)


@SEEDS
@pytest.mark.parametrize("drift_ms", [-200, 200])
def test_clocks_that_ran_apart_in_an_outage_spoil_no_token_before_it(seed: int, drift_ms: int) -> None:
    """Clocks are read once: what they drifted in 85 minutes is found where the tokens came."""
    story = Story(seed, "abc")
    story.tokens(4)
    quiet = [later - earlier for earlier, later in pairwise(story.record.arrived_ns)]
    story.unnoticed(800 * MS)
    story.stall(WAITING_FOR_CONTACT, 5100 * S)
    for node in story.offsets:
        story.offsets[node] += drift_ms * MS
    story.tokens(4)
    message = breakdown(story.end())
    whole(message)
    assert list(message.token_s)[1:4] == pytest.approx([wall / 1e9 for wall in quiet], rel=1e-6)
    found = rows_of(message)
    assert found["gateway", WAITING_FOR_CONTACT] == pytest.approx(5100 * S)


@SEEDS
def test_a_token_told_after_the_move_was_made_on_the_old_nodes(seed: int) -> None:
    """The last stage had a token that never came: it tells of it when asked, after the pipeline was changed. The
    stages that made it are named, and who was lost is blamed, not who took its place."""
    story = Story(seed, "abc", untold="b")
    story.tokens(3)
    story.run()
    position = story.position - 1
    story.unnoticed(800 * MS)
    story.record.arrived_ns[-1] = story.now + 100 * MS
    story.stall(RECOVER, 300 * MS, "ade")
    story.record.pipelines[-1] = (position, story.nodes)
    story.tokens(2)
    message = breakdown(story.end())
    whole(message)
    found, truth = rows_of(message), story.truth
    untold = sum(spent for (place, _), spent in truth.items() if place in {"b", "a>b", "b>c"})
    assert found["b", "unreported"] == pytest.approx(untold, rel=0.001)
    for key in (("c", "compute"), ("d", "compute"), ("e", "compute"), ("c>a", "link"), ("gateway", "detect")):
        assert found[key] == pytest.approx(truth[key], abs=100), key


def test_what_people_see_says_what_held_it_up() -> None:
    """The table has the stall's row, and a line sums the stalls up; lost timings are named too."""
    story = Story(1, "abc", untold="b")
    story.tokens(3)
    story.unnoticed(900 * MS)
    story.stall(RECOVER, 250 * MS, "adc")
    story.stall(WAITING_FOR_CONTACT, 20 * S)
    story.stall(RECOVER, 150 * MS)
    story.tokens(3)
    shown = from_proto(breakdown(story.end()))
    text = str(shown)
    assert re.search(r"waiting for contact +20\.0 s +93\.\d% +1 +20\.0 s +█{22}", text)
    assert "unreported (wait)" in text
    assert "stalled for 21.3 s: recover 400.0 ms (2 times), waiting for contact 20.0 s, noticed after 900.0 ms" in text
    assert "incomplete" in text
    assert shown.stalled_s == pytest.approx(21.3)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    stages=st.integers(1, 4),
    error=st.sampled_from([0, MS, 40 * MS]),
    untold=st.sampled_from(["", "a", "b", "d", "x", "ab", "abcdxyz"]),
    script=st.lists(
        st.sampled_from(["token", "part", "unnoticed", "stall", "wait", "replace", "move", "again"]), max_size=14
    ),
)
def test_rows_sum_to_the_total_whatever_happens(
    seed: int, stages: int, error: int, untold: str, script: list[str]
) -> None:
    """Any order of kills, moves, outages and lost timings, with clocks that are read wrong: rows sum to the total, and
    stalls take exactly what they took."""
    story = Story(seed, "abcd"[:stages], clock_error_ns=error, untold=untold)
    for event in script:
        if event == "token":
            story.run()
        elif event == "part":
            story.run(story.chance.randint(0, 1) if story.stage + 1 < stages else 0)
        elif event == "again":
            story.run(backlog_ns=story.chance.randrange(S))
        elif event == "unnoticed":
            story.unnoticed(story.chance.randrange(S))
        elif event == "wait":
            story.stall(WAITING_FOR_CONTACT, story.chance.randrange(1, 100 * S))
        elif event == "stall":
            story.stall(RECOVER, story.chance.randrange(1, S))
        else:
            stage = story.chance.randrange(stages)
            nodes = "".join((*story.nodes[:stage], story.chance.choice("xyzabcd"), *story.nodes[stage + 1 :]))
            if event == "move":
                story.move(nodes)
            else:
                story.stall(RECOVER, story.chance.randrange(1, S), nodes, replays=(stage,))
    story.tokens(2)
    message = breakdown(story.end())
    whole(message)
    found = rows_of(message)
    for what in (RECOVER, WAITING_FOR_CONTACT):
        assert found.get(("gateway", what), 0) == pytest.approx(story.truth["gateway", what], abs=100)


@settings(max_examples=300)
@given(data=st.data(), stages=st.integers(1, 3))
def test_rows_sum_to_the_total_whatever_nodes_claim(data: st.DataObject, stages: int) -> None:
    """Timings that make no sense at all change rows, never the sum."""
    times = st.integers(0, 10 * S)
    record = GenerationRecord("ab" * 16, "demo", [(0, tuple("abc"[:stages]))], 2, began_ns=0, began_at_ns=0)
    record.admitted_ns, record.fed_ns = data.draw(times), data.draw(times)
    record.arrived_ns = sorted(data.draw(st.lists(st.integers(1, 10 * S), min_size=1, max_size=5)))
    edges = sorted(data.draw(st.lists(times, max_size=6, unique=True)))
    record.stalls = [Stall(RECOVER, *pair) for pair in zip(edges[::2], edges[1::2], strict=False)]
    record.ended_ns = data.draw(st.sampled_from([0, record.arrived_ns[-1], 11 * S]))
    part = data.draw(st.sampled_from([st.integers(0, 100 * MS), st.integers(0, 4 * S)]))
    for index, name in enumerate("abc"[:stages]):
        timings = executor_pb2.StageTimings(stage_index=index)
        extra = data.draw(st.lists(st.integers(0, 6), max_size=3))
        told = range(1, 1 + len(record.arrived_ns) - data.draw(st.integers(0, 1)) * len(extra))
        for position in (*told, *extra):
            timings.position.append(position)
            timings.rows.append(1)
            timings.received_ns.append(data.draw(st.one_of(st.integers(0, 500 * MS), st.integers(-S, 4 * S))))
            for what in ("open", "queue", "compute", "codec", "seal", "credit", "send"):
                getattr(timings, f"{what}_ns").append(data.draw(part))
        record.stages[index, name] = timings
        record.clocks[name] = ClockReading(0, 1000, 500)
    message = breakdown(record)
    whole(message)
    assert list(spans(record, message, "gateway"))
