"""Packed words, against numpy's bits and Python's big integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from services.securesum.packing import lane, pack, packed_bytes, to_signed, to_words, unpack, word_bits


@settings(deadline=None)
@given(st.integers(4, 32), st.lists(st.integers(0, 2**32 - 1), max_size=70))
def test_packed_words_are_one_big_integer(bits: int, values: list[int]) -> None:
    """Word k stands at bit k * b of the little-endian integer, and unpacking gives it back."""
    words = np.array(values, np.uint64).astype(lane(bits))
    cut = [int(word) & ((1 << bits) - 1) for word in words]
    whole = sum(word << (bits * place) for place, word in enumerate(cut))
    data = pack(words, bits)
    assert data == whole.to_bytes(packed_bytes(len(words), bits), "little")
    back = unpack(data, len(words), bits)
    assert back.dtype == lane(bits)
    assert back.tolist() == cut


@pytest.mark.parametrize("bits", range(4, 33))
def test_a_span_packs_as_numpys_bits(bits: int) -> None:
    """65,536 random words of every width, against numpy's packbits."""
    rng = np.random.default_rng(bits)
    words = rng.integers(0, 1 << bits, 65_536, dtype=np.uint64).astype(lane(bits))
    planes = (words.astype(np.uint64)[:, None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    assert pack(words, bits) == np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


@given(st.integers(0, 2**24), st.integers(1, 200))
def test_no_sum_overflows_the_width(largest: int, nodes: int) -> None:
    """The extreme sums come back exactly; one bit less could not hold them, except at the least width."""
    if nodes * largest >= 2**31:
        with pytest.raises(InvalidInputError, match="needs"):
            word_bits(largest, nodes)
        return
    bits = word_bits(largest, nodes)
    for extreme in (largest, -largest):
        words = to_words(np.array([extreme], np.int64), largest, bits)
        total = np.zeros(1, lane(bits))
        total += (words.astype(np.uint64) * np.uint64(nodes)).astype(lane(bits))
        assert to_signed(total, bits).tolist() == [extreme * nodes]
    assert bits == 4 or nodes * largest >= 2 ** (bits - 2)


def test_widths_of_the_usual_rounds() -> None:
    """int8 and int4 of eight nodes: value bits plus the logarithm of the nodes."""
    assert [word_bits(127, 8), word_bits(7, 8), word_bits(127, 128), word_bits(0, 1)] == [11, 7, 15, 4]


@given(st.lists(st.integers(-8, 7)))
def test_signed_values_go_through_words(values: list[int]) -> None:
    """Every value that 4 bits hold comes back with its sign."""
    assert to_signed(to_words(np.array(values, np.int64), 8, 4), 4).tolist() == values


@pytest.mark.parametrize("value", [128, -128])
def test_a_value_above_the_promise_is_refused(value: int) -> None:
    """The width was chosen for smaller ones: the sum might wrap around."""
    with pytest.raises(InvalidInputError) as caught:
        to_words(np.array([0, value]), 127, 11)
    assert caught.value.reason == "LIMIT_EXCEEDED"


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_only_signed_integers_are_summed(dtype: type) -> None:
    """Floats would lose what is behind the point, and NaN would pass any comparison."""
    with pytest.raises(InvalidInputError) as caught:
        to_words(np.zeros(2, dtype), 127, 11)
    assert caught.value.reason == "DTYPE_MISMATCH"


@pytest.mark.parametrize("data", [b"", b"\0" * 5, b"\0" * 7, b"\0" * 5 + b"\x10"])
def test_bytes_that_are_no_words_are_refused(data: bytes) -> None:
    """Too few, too many, or a bit behind the last word: two encodings of one thing would be one too many."""
    with pytest.raises(InvalidInputError):
        unpack(data, 4, 11)


@pytest.mark.parametrize("bits", [3, 33, 0, -1])
def test_other_widths_are_refused(bits: int) -> None:
    """Words have 4 to 32 bits."""
    with pytest.raises(InvalidInputError, match="expected 4 to 32"):
        unpack(b"", 0, bits)
