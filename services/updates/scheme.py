"""How an update is encoded, as users write it.

fp32  fp16  int8  int4     every value, in that number format
topk:0.01                  the 1 % of values that are largest, int8; each node chooses its own
blocks:0.25                a quarter of the values, int8; all nodes send the same ones, another quarter each round
topk:0.01+fp16             the same with another number format
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Self

from orbitmesh.errors import InvalidInputError

MAX_CYCLE_ROUNDS = 1_024
"""Rounds until every value was sent once, at most."""
MIN_FRACTION = 1e-9
"""The smallest share of the values that can be asked for."""
CYCLE_TOLERANCE = 0.05
"""How far, relatively, a fraction may be from 1 / a whole number of rounds."""
MAX_TEXT_CHARACTERS = 64
"""Characters of a scheme's text at most."""
_FRACTION = re.compile(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,2})?")


class Kind(Enum):
    """Which values are sent."""

    DENSE = "dense"
    """All of them."""
    TOPK = "topk"
    """The largest ones, chosen by each node for itself. Not for secure sums: the choice gives values away."""
    BLOCKS = "blocks"
    """Those whose turn it is: the same for all nodes."""


class Number(Enum):
    """What each value becomes."""

    FP32 = "fp32"
    """As it is: 4 bytes."""
    FP16 = "fp16"
    """2 bytes, with a power of two per span so that neither small nor large values are lost."""
    INT8 = "int8"
    """255 steps, with a scale per 256 values."""
    INT4 = "int4"
    """15 steps, with a scale per 256 values."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to encode an update.

    Raises:
        InvalidInputError: The fraction does not fit the kind (SCHEME_INVALID).
    """

    kind: Kind
    """Which values are sent."""
    number: Number
    """What each of them becomes."""
    fraction: float = 1.0
    """The share of the values that is sent, MIN_FRACTION to 1; 1 where the kind is dense."""

    def __post_init__(self) -> None:
        if not MIN_FRACTION <= self.fraction <= 1:
            raise _refused(f"a share of {self.fraction} of the values was asked for, expected {MIN_FRACTION} to 1")
        if self.kind is Kind.DENSE and self.fraction != 1:
            raise _refused(f"a dense scheme sends every value, and a share of {self.fraction} was given")
        if self.kind is Kind.BLOCKS:
            self._check_cycle()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The scheme that a text names; `str` of it is the text's shortest form.

        Raises:
            InvalidInputError: There is no such scheme; the message lists what there is (SCHEME_INVALID).
        """
        if len(text) > MAX_TEXT_CHARACTERS:
            raise _refused(f"a compression of {len(text)} characters was given, at most {MAX_TEXT_CHARACTERS} are read")
        head, plus, tail = text.strip().lower().partition("+")
        name, colon, share = head.partition(":")
        if name in _NUMBERS and not colon and not plus:
            return cls(Kind.DENSE, Number(name))
        if name not in (Kind.TOPK.value, Kind.BLOCKS.value) or (plus and tail not in _NUMBERS):
            raise _refused(f"there is no compression {text!r}")
        if not _FRACTION.fullmatch(share):
            raise _refused(f"the compression {text!r} says no share of the values, for instance {name}:0.25")
        return cls(Kind(name), Number(tail) if plus else Number.INT8, float(share))

    @property
    def cycle_rounds(self) -> int:
        """After how many rounds every value has been sent once; 1 where nothing is sent in turns."""
        return round(1 / self.fraction) if self.kind is Kind.BLOCKS else 1

    def top_count(self, size: int) -> int:
        """How many of `size` values are the top share, rounded up and at least 1."""
        return min(size, max(1, math.ceil(self.fraction * size - 1e-9)))

    def __str__(self) -> str:
        if self.kind is Kind.DENSE:
            return self.number.value
        head = f"{self.kind.value}:{self.fraction!r}".removesuffix(".0")
        return head if self.number is Number.INT8 else f"{head}+{self.number.value}"

    def _check_cycle(self) -> None:
        cycle = round(1 / self.fraction) if self.fraction * MAX_CYCLE_ROUNDS >= 1 else 0
        if not 1 <= cycle <= MAX_CYCLE_ROUNDS:
            raise _refused(f"a share of {self.fraction} takes more than {MAX_CYCLE_ROUNDS} rounds to send every value")
        if abs(self.fraction * cycle - 1) > CYCLE_TOLERANCE:
            near = f"1/{max(1, math.floor(1 / self.fraction))} or 1/{math.ceil(1 / self.fraction)}"
            raise _refused(
                f"a share of {self.fraction} sends no value exactly once in a whole number of rounds: take {near}, "
                "written as a decimal"
            )


_NUMBERS = frozenset(number.value for number in Number)


def _refused(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{what}; there are fp32, fp16, int8 and int4 for every value, topk:SHARE and blocks:SHARE for some of them, "
        "and both with +fp32, +fp16, +int8 (the default) or +int4",
        reason="SCHEME_INVALID",
    )
