"""Text in pieces, with the shipped model's tokenizer and with bytes that no tokenizer would choose."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.text import TEXT_BYTES_MAX, Text, TextStream
from orbitmesh.errors import InvalidInputError, PackError

TOKENIZER = Path(__file__).parents[2] / "models" / "pydoc" / "tokenizer.json"


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(TOKENIZER)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_of_a_stream_make_the_whole_text(prompt: str, answer: str) -> None:
    """Tokens given one by one add up to what decoding them at once gives, for any text with any characters."""
    text = Text(TOKENIZER)
    ids, tokens = text.encode(prompt), text.encode(answer)
    stream = TextStream(text, ids)
    pieces = [stream.add(token, last=index == len(tokens) - 1) for index, token in enumerate(tokens)]
    assert "".join(pieces) == text.decode(tokens)


def test_a_character_of_several_tokens_is_given_whole(text: Text) -> None:
    """No piece holds a replacement character while the rest of its bytes is still to come."""
    answer = "naïve 漢字 🛰️ done"
    tokens = text.encode(answer)
    stream = TextStream(text, text.encode("x"))
    pieces = [stream.add(token) for token in tokens]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == answer


def test_random_tokens_never_break_the_stream(text: Text) -> None:
    """A model may produce any sequence of tokens; every one gives some text and no error."""
    chance = random.Random(7)
    stream = TextStream(text, [])
    for _ in range(500):
        assert isinstance(stream.add(chance.randrange(2048)), str)


def test_without_a_tokenizer_pieces_are_empty() -> None:
    """A pack without a tokenizer still streams token ids."""
    assert TextStream(None, [1, 2]).add(3) == ""


def test_a_prompt_beyond_the_bound_is_refused(text: Text) -> None:
    """Text is bounded before it is tokenised."""
    with pytest.raises(InvalidInputError) as caught:
        text.encode("a" * (TEXT_BYTES_MAX + 1))
    assert caught.value.reason == "PROMPT_TOO_LONG"


def test_a_damaged_tokenizer_is_a_pack_error(tmp_path: Path) -> None:
    """Whatever the library raises becomes an error of ours that names the file."""
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    with pytest.raises(PackError, match=r"tokenizer\.json"):
        Text(broken)
