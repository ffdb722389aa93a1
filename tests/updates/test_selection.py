"""Which values are sent: top-k beside numpy's argpartition, and shared blocks that cover everything in turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orbitmesh.errors import InvalidInputError
from services.updates.blocks import BLOCK_VALUES, shared_count, shared_indices
from services.updates.indices import BITMAP, index_bytes_bound, pack_indices, unpack_indices
from services.updates.spans import SPAN_VALUES, span_count, span_length, spans
from services.updates.topk import SAMPLE_VALUES, threshold

FEW_VALUES = hnp.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0, -0.0, 1, -1, 2, 1e-40, -3e38]))
ANY_VALUES = hnp.arrays(
    np.float32, st.integers(1, 200), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
)


def chosen(values: np.ndarray, count: int) -> np.ndarray:
    """Every index that is taken, of the whole vector."""
    found = threshold(values, count)
    parts = [found.select(values[where], span) + where.start for span, where in spans(values.size)]
    indices = np.concatenate(parts)
    assert indices.size == found.count
    return indices


def check_against_argpartition(values: np.ndarray, count: int) -> None:
    """The magnitudes taken are those that numpy takes, and there are exactly `count`, zeros aside."""
    indices = chosen(values, count)
    magnitudes = np.abs(values)
    reference = np.sort(magnitudes[np.argpartition(magnitudes, values.size - count)[values.size - count :]])
    assert (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(np.sort(magnitudes[indices]), reference[reference > 0])


@settings(max_examples=300)
@given(FEW_VALUES | ANY_VALUES, st.data())
def test_the_largest_are_taken_whatever_the_values(values: np.ndarray, data: st.DataObject) -> None:
    """Ties, zeros of both signs, subnormals and huge values included."""
    check_against_argpartition(values, data.draw(st.integers(1, values.size)))


def shapes_of_data(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(size).astype(np.float32)
    one_layer = np.where(np.arange(size) < size // 100, np.float32(1e3), np.float32(1e-3)) * normal
    return {
        "normal": normal,
        "heavy tails": rng.standard_cauchy(size).astype(np.float32),
        "sorted": np.sort(np.abs(normal)),
        "one layer a million times larger": one_layer.astype(np.float32),
        "mostly zero": np.where(rng.random(size) < 0.004, normal, np.float32(0)),
        "all equal": np.full(size, -0.5, np.float32),
        "few levels": np.round(normal * 4),
        "periodic": np.tile(np.arange(1_000, dtype=np.float32), size // 1_000 + 1)[:size],
    }


@pytest.mark.parametrize("data", sorted(shapes_of_data(1)))
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 1.0])
def test_the_count_is_exact_where_a_sample_guesses_the_threshold(data: str, share: float) -> None:
    """On vectors much larger than the sample, however uneven: exactly the k largest, a bound of 0 %."""
    size = 5 * SAMPLE_VALUES + 3 * SPAN_VALUES + 17
    check_against_argpartition(shapes_of_data(size)[data], max(1, int(share * size)))


def test_of_equal_values_those_in_front_are_taken() -> None:
    """The choice does not depend on anything but the values."""
    values = np.full(3 * SPAN_VALUES, 0.25, np.float32)
    values[::2] *= -1
    np.testing.assert_array_equal(chosen(values, SPAN_VALUES + 5), np.arange(SPAN_VALUES + 5))


@pytest.mark.parametrize("count", [0, 11, -1])
def test_more_than_there_are_cannot_be_taken(count: int) -> None:
    """Nor none at all."""
    with pytest.raises(InvalidInputError):
        threshold(np.ones(10, np.float32), count)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2 * SPAN_VALUES), st.integers(1, 12), st.integers(0, 1_000))
@example(size=1_000, cycle_rounds=1_024, cycle=3)
def test_blocks_cover_every_value_once_in_a_cycle(size: int, cycle_rounds: int, cycle: int) -> None:
    """Over the rounds of any cycle each value is sent exactly once, in whole blocks."""
    sent = np.zeros(size, np.int64)
    for turn in range(cycle_rounds):
        for span, where in spans(size):
            indices = shared_indices(cycle * cycle_rounds + turn, cycle_rounds, span, size)
            assert (np.diff(indices) > 0).all() and indices.size <= span_length(span, size)
            assert (indices[::BLOCK_VALUES] % BLOCK_VALUES == 0).all()
            sent[where][indices] += 1
    assert (sent == 1).all()


def test_nodes_agree_on_the_blocks_without_having_met() -> None:
    """The set of a round follows from its number alone; these were written down once, and nodes of any version of this
    code have to choose the same."""
    first = shared_indices(0, 4, 0, 2_048)[::BLOCK_VALUES] // BLOCK_VALUES
    assert first.tolist() == [0, 7, 8, 15, 16, 23, 26, 29]
    later = shared_indices(9, 4, 1, 70_000)[::BLOCK_VALUES] // BLOCK_VALUES
    assert later.tolist() == [1, 7, 11, 13, 17, 21, 24, 30, 35, 36, 43, 47, 48, 54, 56, 61, 67]


def test_each_round_sends_its_share() -> None:
    """The count of a round is 1 / L of the values, to within one block and what is left over at the end."""
    for round_index in range(12):
        assert abs(shared_count(round_index, 4, 1_000_000) - 250_000) <= 4 * BLOCK_VALUES


def test_a_node_with_every_fourth_pass_sends_everything_in_time() -> None:
    """Rounds 3, 7, 11... of a cycle of 4 are not the same blocks again and again: after 24 of them 99 % were sent."""
    size = 100_000
    sent = np.zeros(size, bool)
    for round_index in range(3, 4 * 24, 4):
        for span, where in spans(size):
            sent[where][shared_indices(round_index, 4, span, size)] = True
    assert sent.mean() > 0.99


def test_the_columns_of_a_matrix_get_their_turns_alike() -> None:
    """Rows of 256 values are a whole number of groups of 4 blocks; still no column of blocks is left out or preferred:
    chi-square of 4 columns over 2,000 rows below the 0.1 % point of 3 degrees of freedom."""
    size = 256 * 2_000
    hits = np.zeros(4)
    for span in range(span_count(size)):
        first = span * SPAN_VALUES // BLOCK_VALUES
        np.add.at(hits, (first + shared_indices(0, 4, span, size)[::BLOCK_VALUES] // BLOCK_VALUES) % 4, 1)
    assert ((hits - 500) ** 2 / 500).sum() < 16.27


@pytest.mark.parametrize(("round_index", "cycle_rounds", "span"), [(-1, 4, 0), (0, 0, 0), (1 << 48, 4, 0), (0, 4, 1)])
def test_rounds_that_there_are_not_have_no_blocks(round_index: int, cycle_rounds: int, span: int) -> None:
    """Negative rounds, empty cycles, spans beyond the end."""
    with pytest.raises(InvalidInputError):
        shared_indices(round_index, cycle_rounds, span, 1_000)


@settings(max_examples=200)
@given(st.integers(1, 3_000), st.floats(0, 1), st.integers(0, 2**32))
def test_indices_survive_as_bytes(length: int, density: float, seed: int) -> None:
    """Any set of indices comes back, from exactly as many bytes as were written, never more than a bitmap has."""
    mask = np.random.default_rng(seed).random(length) < density
    mask[seed % length] = True
    indices = np.flatnonzero(mask)
    lower_bits, data = pack_indices(indices, length)
    assert len(data) <= index_bytes_bound(length)
    back, used = unpack_indices(lower_bits, memoryview(data + b"\xff\xff"), indices.size, length)
    assert used == len(data)
    np.testing.assert_array_equal(back, indices)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.25, 0.4, 0.5, 0.6])
def test_indices_take_little_more_than_their_entropy(share: float) -> None:
    """Of a random choice, within 3.5 % of Shannon's bound; a bitmap where half are chosen."""
    mask = np.random.default_rng(5).random(SPAN_VALUES) < share
    lower_bits, data = pack_indices(np.flatnonzero(mask), SPAN_VALUES)
    actual = mask.mean()
    entropy_bytes = -(actual * np.log2(actual) + (1 - actual) * np.log2(1 - actual)) * SPAN_VALUES / 8
    assert len(data) < 1.035 * entropy_bytes
    if share >= 0.5:
        assert lower_bits == BITMAP
