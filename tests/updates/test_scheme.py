"""Schemes as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from services.updates.scheme import Kind, Number, Scheme


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("fp32", Scheme(Kind.DENSE, Number.FP32)),
        ("fp16", Scheme(Kind.DENSE, Number.FP16)),
        ("int8", Scheme(Kind.DENSE, Number.INT8)),
        ("int4", Scheme(Kind.DENSE, Number.INT4)),
        ("topk:0.01", Scheme(Kind.TOPK, Number.INT8, 0.01)),
        ("topk:0.01+fp16", Scheme(Kind.TOPK, Number.FP16, 0.01)),
        ("topk:1", Scheme(Kind.TOPK, Number.INT8, 1.0)),
        ("blocks:0.25", Scheme(Kind.BLOCKS, Number.INT8, 0.25)),
        ("blocks:0.25+int4", Scheme(Kind.BLOCKS, Number.INT4, 0.25)),
    ],
)
def test_a_text_names_a_scheme_and_the_scheme_its_text(text: str, scheme: Scheme) -> None:
    """Every form that the page shows means what it says, and is written the same way again."""
    assert Scheme.parse(text) == scheme
    assert str(scheme) == text


@given(st.floats(1e-9, 1), st.sampled_from(Number))
def test_any_share_survives_the_text(fraction: float, number: Number) -> None:
    """A scheme made anywhere is the same after it travelled as text."""
    scheme = Scheme(Kind.TOPK, number, fraction)
    assert Scheme.parse(str(scheme)) == scheme


def test_spelling_is_lenient_where_nothing_can_be_confused() -> None:
    """Capitals, blanks around it and the default said aloud change nothing."""
    assert Scheme.parse(" TopK:0.01+INT8 ") == Scheme.parse("topk:.01") == Scheme.parse("topk:1e-2")


NO_SCHEMES = """
    int5 int8:0.1 fp16+int8 topk topk: topk:0 topk:-0.1 topk:1.5 topk:nan topk:inf topk:0.1+ topk:0.1+int5
    topk:0.1+int8+int8 topk:0.1:0.2 topk:0x1 topk:1_0 topk:٣ topk:1e-12 topk:1e-99999
    blocks blocks:0.3 blocks:0.0001 blocks:1e-99
"""


@pytest.mark.parametrize("text", ["", " ", "x" * 500, *NO_SCHEMES.split()])
def test_what_is_no_scheme_is_refused_with_a_list_of_those_there_are(text: str) -> None:
    """Whatever is wrong with it, the message shows every form there is, and is short."""
    with pytest.raises(InvalidInputError, match=r"fp32, fp16, int8 and int4 .* topk:SHARE and blocks:SHARE") as caught:
        Scheme.parse(text)
    assert caught.value.reason == "SCHEME_INVALID"
    assert len(str(caught.value)) < 400


def test_a_dense_scheme_has_no_share() -> None:
    """A share would say that something is left out."""
    with pytest.raises(InvalidInputError, match="dense"):
        Scheme(Kind.DENSE, Number.INT8, 0.5)


@pytest.mark.parametrize(
    ("text", "rounds"), [("blocks:0.25", 4), ("blocks:0.33", 3), ("blocks:1", 1), ("topk:0.25", 1)]
)
def test_blocks_come_round_after_one_by_their_share(text: str, rounds: int) -> None:
    """A share near 1 / a whole number is taken for it; a share that is near none is refused above."""
    assert Scheme.parse(text).cycle_rounds == rounds


@pytest.mark.parametrize(("size", "count"), [(56_970, 570), (100, 1), (1, 1), (10_000, 100), (10_001, 101)])
def test_a_top_share_is_rounded_up(size: int, count: int) -> None:
    """1 % of anything is at least one value."""
    assert Scheme.parse("topk:0.01").top_count(size) == count
