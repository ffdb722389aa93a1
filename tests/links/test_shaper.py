"""When bytes leave a link, checked by arithmetic and by random traffic; no clock, no sockets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from services.links.shaper import BUFFER_BYTES, CATCH_UP_S, Pipe, Shape

START_S = 1000.0


def test_a_chunk_takes_its_serialisation_and_then_the_latency() -> None:
    """1250 bytes at 1 Mbit/s take 10 ms to enter the link and 20 ms to cross it."""
    pipe = Pipe(Shape(latency_ms=20, rate_bps=1e6))
    assert pipe.admit(1250, START_S, START_S) == pytest.approx(START_S + 0.030)
    assert pipe.admit(1250, START_S, START_S) == pytest.approx(START_S + 0.040)


def test_a_link_without_a_rate_only_delays() -> None:
    """Any number of bytes comes out after the latency."""
    pipe = Pipe(Shape(latency_ms=20))
    assert pipe.admit(10**9, START_S, START_S) == pytest.approx(START_S + 0.020)
    assert pipe.admit(1, START_S + 0.001, START_S + 0.001) == pytest.approx(START_S + 0.021)


def test_a_late_wake_up_costs_no_rate_and_idle_time_earns_none() -> None:
    """Waiting bytes are booked to when they could have started, but at most `CATCH_UP_S` back."""
    pipe = Pipe(Shape(rate_bps=8e6))
    pipe.admit(1000, START_S, START_S)
    assert pipe.admit(1000, START_S, START_S + 0.010) == pytest.approx(START_S + 0.002)
    assert pipe.admit(1000, START_S + 0.500, START_S + 0.500) == pytest.approx(START_S + 0.501)
    late_s = START_S + 10
    assert pipe.admit(1000, START_S, late_s) == pytest.approx(late_s - CATCH_UP_S + 0.001)


def test_a_shorter_latency_lets_nothing_overtake() -> None:
    """After a change from 100 ms to 1 ms the next chunk comes out with the one before it, not earlier."""
    pipe = Pipe(Shape(latency_ms=100))
    first_s = pipe.admit(10, START_S, START_S)
    pipe.reshape(Shape(latency_ms=1))
    assert pipe.admit(10, START_S + 0.01, START_S + 0.01) == first_s
    assert pipe.admit(10, START_S + 1, START_S + 1) == pytest.approx(START_S + 1.001)


def test_a_pause_moves_what_is_under_way() -> None:
    """After 3 s of standing still a busy link is free 3 s later."""
    pipe = Pipe(Shape(latency_ms=10, rate_bps=8e3))
    pipe.admit(1000, START_S, START_S)
    pipe.shift(3.0)
    assert pipe.admit(1000, START_S + 3, START_S + 3) == pytest.approx(START_S + 5.010)


chunks = st.lists(st.tuples(st.floats(0, 0.05), st.integers(0, 100_000)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(chunks, st.floats(0, 500), st.floats(0, 500), st.floats(1e4, 1e9), st.integers(0, 2**31))
def test_order_latency_and_rate_hold_for_any_traffic(
    traffic: list[tuple[float, int]], latency_ms: float, jitter_ms: float, rate_bps: float, seed: int
) -> None:
    """Whatever the jitter: no chunk is early, none overtakes, each obeys the recurrence of a FIFO queue."""
    pipe = Pipe(Shape(latency_ms, rate_bps, jitter_ms, seed))
    now_s = entered_s = previous_s = START_S
    for gap_s, size_bytes in traffic:
        now_s += gap_s
        due_s = pipe.admit(size_bytes, now_s, now_s)
        entered_s = max(entered_s, now_s) + size_bytes * 8 / rate_bps  # Lindley's recurrence, by hand
        assert due_s >= entered_s + latency_ms / 1000 - 1e-6
        assert due_s <= max(previous_s, entered_s + (latency_ms + jitter_ms) / 1000) + 1e-6
        assert due_s >= previous_s
        previous_s = due_s


def test_the_seed_decides_the_jitter() -> None:
    """The same seed repeats, another one differs, and the two directions differ."""

    def delays(seed: int, label: str) -> list[float]:
        pipe = Pipe(Shape(jitter_ms=10, seed=seed), label)
        return [pipe.admit(1, START_S + step, START_S + step) for step in range(20)]

    assert delays(1, "forward") == delays(1, "forward")
    assert delays(1, "forward") != delays(2, "forward")
    assert delays(1, "forward") != delays(1, "reverse")


def test_the_window_is_what_the_link_holds_and_one_buffer() -> None:
    """At 100 Mbit/s and 20 ms, 250 kB are on the link."""
    assert Pipe(Shape(latency_ms=20, rate_bps=100e6)).window_bytes == 250_000 + BUFFER_BYTES


@pytest.mark.parametrize(
    "fields",
    [
        {"latency_ms": -1}, {"latency_ms": "20"}, {"latency_ms": float("nan")}, {"latency_ms": True},
        {"rate_bps": 0}, {"rate_bps": float("inf")}, {"jitter_ms": -0.1}, {"seed": 1.5}, {"loss": 0.1},
        {"rate_bps": 1e9, "latency_ms": 10_000}, {"latency_ms": None},
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_is_refused_by_name(fields: dict[str, object]) -> None:
    """The error names the field that is wrong."""
    with pytest.raises(InvalidInputError, match=next(iter(fields))):
        Shape.parse(fields)
