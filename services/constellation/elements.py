"""Two-line element sets, read so that none is dropped: what does not parse is an error with its line.

The format is that of Hoots and Roehrich, Spacetrack Report 3 (1980), as CelesTrak documents it: an optional name line,
then line 1 and line 2 of 69 characters each, the last a checksum. Catalogue numbers may be of the "alpha-5" form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sgp4.api import SGP4_ERRORS, Satrec

from orbitmesh.errors import InvalidInputError
from services.constellation import frames

TLE_MAX_BYTES = 16 * 1024 * 1024
"""Largest file of element sets that is read, in bytes."""

SATELLITES_MAX = 20_000
"""Most satellites of one file and of one scenario."""

FRESH_DAYS = 30.0
"""Element sets further than this from the scenario's start are warned about, in days."""

ERROR_KM_A_DAY = (1.0, 3.0)
"""How much an element set errs per day away from its epoch, in kilometres (README of the sgp4 package)."""

_LINE_1 = re.compile(
    r"1 [0-9A-Z ][0-9 ]{4}[A-Z ] .{8} [ \d]\d[ \d]{3}\.[\d ]{8} [ +-]\.\d{8} [ +-][ \d]{5}[ +-]\d [ +-][ \d]{5}[ +-]\d"
    r" [ \d] [ \d]{4}\d"
)
_LINE_2 = re.compile(
    r"2 [0-9A-Z ][0-9 ]{4} [ \d]{3}\.\d{4} [ \d]{3}\.\d{4} [ \d]{7} [ \d]{3}\.\d{4} [ \d]{3}\.\d{4} [ \d]{2}\.\d{8}"
    r"[ \d]{5}\d"
)
_LENGTH = 69


@dataclass(frozen=True)
class ElementSet:
    """One satellite's elements."""

    title: str
    """The name line, or the catalogue number where there is none."""
    satrec: Satrec
    """The elements, set up for SGP4 with WGS 72 constants, as element sets are made."""
    epoch_s: float
    """When the elements were true, mesh time in seconds."""
    line: int
    """Where line 1 stands in the file, counted from 1."""
    catalogue: str
    """The catalogue number, as the lines write it."""


def _refuse(message: str) -> InvalidInputError:
    return InvalidInputError(message, reason="SCENARIO_INVALID")


def read_elements(path: Path) -> tuple[ElementSet, ...]:
    """All element sets of a file, in its order.

    Raises:
        InvalidInputError: The file cannot be read, or a line of it is no part of an element set; the message names file
            and line, and says what was expected.
    """
    try:
        if path.stat().st_size > TLE_MAX_BYTES:
            raise _refuse(f"{path}: more than {TLE_MAX_BYTES} bytes; expected a file of two-line element sets")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise _refuse(f"{path}: cannot be read: {error.strerror}; give the path of a file of element sets") from None
    except UnicodeDecodeError:
        raise _refuse(f"{path}: is no text; expected two-line element sets") from None
    return parse_elements(text, str(path))


def parse_elements(text: str, name: str) -> tuple[ElementSet, ...]:
    """All element sets of a text; `name` is what errors call it. See `read_elements`."""
    lines = [(number, line.rstrip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    found: list[ElementSet] = []
    title: str | None = None
    index = 0
    while index < len(lines):
        number, line = lines[index]
        if line.startswith("1 ") and (title is not None or len(line) > _LENGTH // 2):
            second = lines[index + 1] if index + 1 < len(lines) else (number + 1, "")
            found.append(_element_set(title, (number, line), second, name))
            title, index = None, index + 2
        elif line.startswith("2 ") and len(line) > _LENGTH // 2:
            raise _refuse(f"{name}, line {number}: a line 2 without its line 1 before it; restore or remove the pair")
        elif title is not None:
            raise _refuse(
                f"{name}, line {number}: expected line 1 of the element set of {title!r}, which begins with '1 '; "
                "restore it, or remove the name"
            )
        else:
            title, index = line.removeprefix("0 ").strip(), index + 1
        if len(found) > SATELLITES_MAX:
            raise _refuse(f"{name}, line {number}: more than {SATELLITES_MAX} element sets; split the file")
    if title is not None:
        raise _refuse(f"{name}, line {lines[-1][0]}: the name {title[:80]!r} has no element set after it")
    if not found:
        raise _refuse(f"{name}: there is no element set in it; expected lines that begin with '1 ' and '2 '")
    return tuple(found)


def _element_set(title: str | None, first: tuple[int, str], second: tuple[int, str], name: str) -> ElementSet:
    if not second[1].startswith("2 "):
        raise _refuse(
            f"{name}, line {second[0]}: expected line 2 of the element set of line {first[0]}, which begins with '2 '"
        )
    for (number, line), form, which in ((first, _LINE_1, 1), (second, _LINE_2, 2)):
        _check_line(line, form, f"{name}, line {number}: line {which} of an element set")
    if first[1][2:7] != second[1][2:7]:
        raise _refuse(
            f"{name}, line {second[0]}: is of satellite {second[1][2:7]} and the line before it of {first[1][2:7]}; "
            "put the two lines of one satellite together"
        )
    try:
        satrec = Satrec.twoline2rv(first[1], second[1])
    except ValueError as error:
        raise _refuse(f"{name}, line {first[0]}: SGP4 cannot read it: {error}") from None
    error_code, _, _ = satrec.sgp4(satrec.jdsatepoch, satrec.jdsatepochF)
    if error_code:
        raise _refuse(
            f"{name}, line {first[0]}: SGP4 cannot propagate it at its own epoch: {SGP4_ERRORS[error_code]}; "
            "fetch the element set anew"
        )
    epoch_s = (satrec.jdsatepoch - frames.UNIX_EPOCH_JD + satrec.jdsatepochF) * frames.DAY_S
    catalogue = first[1][2:7].strip()
    return ElementSet(title or catalogue, satrec, epoch_s, first[0], catalogue)


def checksum(line: str) -> int:
    """The checksum of an element set's line: digits as they are, minus signs as 1, modulo 10."""
    return sum(int(each) if each in "0123456789" else each == "-" for each in line[: _LENGTH - 1]) % 10


def _check_line(line: str, form: re.Pattern[str], where: str) -> None:
    if len(line) != _LENGTH:
        raise _refuse(f"{where} has {len(line)} characters; expected {_LENGTH}: fetch the element set anew")
    if not line.isascii() or not line[-1].isdigit():
        raise _refuse(f"{where} must be ASCII and end in a digit, its checksum; fetch the element set anew")
    if int(line[-1]) != checksum(line):
        raise _refuse(
            f"{where} is damaged: its checksum is {line[-1]} and its characters give {checksum(line)}; "
            "fetch the element set anew"
        )
    if not form.fullmatch(line):
        raise _refuse(f"{where} has a field in the wrong columns; fetch the element set anew")


def age_warning(title: str, epoch_s: float, at_s: float) -> str | None:
    """What to say of elements that are old (or of the future) at a time; None where they are fresh."""
    days = abs(at_s - epoch_s) / frames.DAY_S
    if days <= FRESH_DAYS:
        return None
    low, high = (rate * days for rate in ERROR_KM_A_DAY)
    when = "older" if at_s > epoch_s else "newer"
    # Along the track at the 7.5 km/s of a low orbit.
    return (
        f"{title}: its elements are {days:.0f} days {when} than the start; expect positions off by {low:.0f} to "
        f"{high:.0f} km (1 to 3 km a day), and windows by {low / 7.5:.0f} to {high / 7.5:.0f} s; fetch newer elements"
    )
