"""Tokens from text and back, with the tokenizer that came in the pack."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from orbitmesh.errors import InvalidInputError, PackError

TEXT_BYTES_MAX = 1 << 20
"""The longest prompt text in bytes."""
REPLACEMENT = "\ufffd"
"""What an incomplete character decodes to."""


class Text:
    """One pack's tokenizer; thread-safe."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise PackError(f"the pack's tokenizer.json cannot be read: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens as the tokenizer itself adds them.

        Raises:
            InvalidInputError: Where the text is too long.
        """
        if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
            raise InvalidInputError(f"the prompt is longer than {TEXT_BYTES_MAX} bytes", reason="PROMPT_TOO_LONG")
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class TextStream:
    """Turns tokens into text piece by piece: a piece is given only when its characters are complete."""

    def __init__(self, text: Text | None, prompt: list[int]) -> None:
        self._text = text
        # Some tokenizers write a word's space only where something stands before it: decode behind the prompt's end.
        self._ids = prompt[-4:]
        self._given = "" if text is None else text.decode(self._ids)

    def add(self, token: int, *, last: bool = False) -> str:
        """The text that a token adds; empty while a character is incomplete, unless it is the last token."""
        if self._text is None:
            return ""
        self._ids.append(token)
        now = self._text.decode(self._ids)
        if now.endswith(REPLACEMENT) and not last:
            return ""
        piece = now[len(self._given) :]
        # Keep the window short, so that a long answer does not cost its square.
        self._ids = self._ids[-8:]
        self._given = self._text.decode(self._ids)
        return piece
