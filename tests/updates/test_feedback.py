"""Error feedback: nothing is lost over the rounds, and no crash loses, doubles or breaks what is kept on disk."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.updates.codec import encode
from services.updates.feedback import Residual
from services.updates.layout import Layout
from services.updates.scheme import Scheme
from services.updates.spans import SPAN_VALUES

SIZE = 3_000
LAYOUT = Layout.of({"weight": np.zeros((50, 59), np.float32), "bias": np.zeros(50, np.float32)})


def delta(round_index: int, size: int = SIZE) -> np.ndarray:
    return (np.random.default_rng(round_index).laplace(size=size) * 1e-3).astype(np.float32)


def take_part(residual: Residual, scheme: Scheme, round_index: int) -> np.ndarray:
    """One round of one node; what the other end sees."""
    corrected = delta(round_index, residual.carried(round_index).size) + residual.carried(round_index)
    decoded = encode(scheme, corrected, round_index=round_index, rng=np.random.default_rng(round_index)).decoded
    residual.commit(round_index, corrected, decoded)
    return decoded


@pytest.mark.parametrize("text", ["topk:0.01", "topk:0.1+int4", "blocks:0.25", "blocks:0.25+int4", "int4", "fp16"])
def test_over_the_rounds_nothing_is_lost(text: str, tmp_path: Path) -> None:
    """All that was decoded plus the last residual is all deltas, although a process does one round only, and rounds are
    repeated after crashes."""
    scheme = Scheme.parse(text)
    seen = np.zeros(SIZE, np.float64)
    rounds = 12
    for round_index in range(rounds):
        for _ in range(1 + round_index % 3):
            decoded = take_part(Residual(tmp_path / "run", LAYOUT), scheme, round_index)
        seen += decoded
    left = Residual(tmp_path / "run", LAYOUT).carried(rounds)
    total = np.sum([delta(round_index) for round_index in range(rounds)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(seen + left, total, atol=1e-7)
    assert np.linalg.norm(left) > 0


def test_without_feedback_the_test_above_would_fail() -> None:
    """What top-k leaves out of one round is most of it."""
    values = delta(0)
    assert np.abs(encode(Scheme.parse("topk:0.01"), values, round_index=0, rng=None).decoded - values).max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(acts=st.lists(st.sampled_from(["next", "again", "skip", "give back", "restart"]), max_size=12))
def test_whatever_happens_to_rounds_nothing_is_lost(acts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rounds that follow, are repeated, are left out, or do not count, with restarts anywhere: what counted, and the
    residual, are all deltas of the rounds that the node took part in."""
    path = tmp_path_factory.mktemp("residual") / "run"
    scheme = Scheme.parse("topk:0.02")
    residual = Residual(path, LAYOUT)
    counted: dict[int, np.ndarray] = {}
    took_part: set[int] = set()
    current = 0
    for act in ["next", *acts]:
        if act == "restart":
            residual = Residual(path, LAYOUT)
        elif act == "give back":
            decoded = counted.get(current, np.zeros(SIZE, np.float32))
            for _ in range(2):
                residual.give_back(current, decoded)
            counted.pop(current, None)
        else:
            current += {"next": 1, "again": 0, "skip": 3}[act]
            counted[current] = take_part(residual, scheme, current)
            took_part.add(current)
    left = Residual(path, LAYOUT).carried(current + 1)
    total = np.sum([delta(index) for index in took_part], axis=0, dtype=np.float64)
    np.testing.assert_allclose(left + sum(counted.values()), total, atol=1e-7)


def test_a_repeated_round_begins_where_it_began(tmp_path: Path) -> None:
    """Before the first round the residual is zero; the round that was committed last begins from the same as before,
    to the bit, and only the next one from what it left."""
    residual = Residual(tmp_path / "new" / "run", LAYOUT)
    assert residual.round_index is None and not residual.carried(0).any()
    take_part(residual, Scheme.parse("topk:0.01"), 0)
    first = residual.carried(1)
    take_part(residual, Scheme.parse("topk:0.01"), 1)
    again = Residual(tmp_path / "new" / "run", LAYOUT)
    assert again.round_index == 1
    np.testing.assert_array_equal(again.carried(1), first)
    assert (again.carried(2) != first).any()
    np.testing.assert_array_equal(again.carried(9), again.carried(2))


def test_rounds_only_go_on(tmp_path: Path) -> None:
    """An earlier round is refused, and only the last contribution can be given back."""
    residual = Residual(tmp_path / "run", LAYOUT)
    zeros = np.zeros(SIZE, np.float32)
    calls = [lambda: residual.carried(-1), lambda: residual.give_back(0, zeros)]
    take_part(residual, Scheme.parse("int4"), 5)
    calls += [lambda: residual.carried(4), lambda: residual.commit(4, zeros, zeros)]
    calls += [lambda: residual.give_back(4, zeros), lambda: residual.give_back(6, zeros)]
    for call in calls:
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert caught.value.reason == "STALE_ROUND"


def test_a_residual_is_never_poisoned(tmp_path: Path) -> None:
    """NaN, infinities, wrong sizes and a difference beyond float32 are refused, and the file stays as it was."""
    residual = Residual(tmp_path / "run", LAYOUT)
    take_part(residual, Scheme.parse("int4"), 0)
    before = (tmp_path / "run").read_bytes()
    zeros = np.zeros(SIZE, np.float32)
    huge = np.full(SIZE, 3e38, np.float32)
    bad = [(np.full(SIZE, np.nan, np.float32), zeros), (zeros, np.full(SIZE, np.inf, np.float32))]
    for corrected, decoded in [*bad, (zeros[1:], zeros), (zeros, zeros.astype(np.float64)), (huge, -huge)]:
        with pytest.raises(InvalidInputError) as caught:
            residual.commit(1, corrected, decoded)
        assert caught.value.reason in ("NOT_FINITE", "LAYOUT_MISMATCH")
    assert (tmp_path / "run").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_nobody_else_reads_a_residual(tmp_path: Path) -> None:
    """It says as much as the update does; other users of the machine cannot open it, whatever the umask."""
    old = os.umask(0)
    try:
        take_part(Residual(tmp_path / "run", LAYOUT), Scheme.parse("int4"), 0)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o600


def test_a_residual_of_another_model_is_refused(tmp_path: Path) -> None:
    """The message says what to do."""
    take_part(Residual(tmp_path / "run", LAYOUT), Scheme.parse("int4"), 0)
    other = Layout.of({"weight": np.zeros((59, 50), np.float32), "bias": np.zeros(50, np.float32)})
    with pytest.raises(InvalidInputError, match="remove it to begin from zero") as caught:
        Residual(tmp_path / "run", other)
    assert caught.value.reason == "LAYOUT_MISMATCH"


def test_damage_anywhere_is_found(tmp_path: Path) -> None:
    """Any cut, any surplus and any flipped bit: a typed error, never a wrong residual."""
    path = tmp_path / "run"
    take_part(Residual(path, LAYOUT), Scheme.parse("int4"), 3)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(60), len(whole) - 1, *rng.integers(60, len(whole), 40).tolist()]
    damaged = [whole[:place] for place in places] + [whole + b"\0"]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match="remove it to begin from zero") as caught:
            Residual(path, LAYOUT)
        assert caught.value.reason == "RESIDUAL_DAMAGED"
    path.write_bytes(whole)
    assert Residual(path, LAYOUT).round_index == 3


@pytest.mark.parametrize("first", [True, False])
def test_whatever_a_crash_leaves_is_the_old_file_or_the_new(first: bool, tmp_path: Path) -> None:
    """A crash in a write leaves a part of a file beside the old one: it counts for nothing, and the next round writes
    over it."""
    path = tmp_path / "run"
    if not first:
        take_part(Residual(path, LAYOUT), Scheme.parse("int4"), 0)
    old = path.read_bytes() if not first else None
    take_part(Residual(path, LAYOUT), Scheme.parse("int4"), 1)
    new = path.read_bytes()
    for length in (0, 1, 4, 53, 54, 55, 5_000, len(new) - 32, len(new) - 1, len(new)):
        if old is None:
            path.unlink()
        else:
            path.write_bytes(old)
        path.with_name("run.new").write_bytes(new[:length])
        restarted = Residual(path, LAYOUT)
        assert restarted.round_index == (None if first else 0)
        take_part(restarted, Scheme.parse("int4"), 1)
        assert path.read_bytes() == new
        assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_residual_follows_its_file_where_only_its_directory_could_not_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the new one by then: taken for the old one, what it left would be added a second time."""
    residual = Residual(tmp_path / "run", LAYOUT)
    take_part(residual, Scheme.parse("int4"), 0)
    began, flush = residual.carried(1), os.fsync

    def fail_on_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "no disk")
        flush(descriptor)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail_on_directories)
        with pytest.raises(OSError, match="no disk"):
            take_part(residual, Scheme.parse("int4"), 1)
    assert residual.round_index == 1
    assert np.array_equal(residual.carried(1), began)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from services.updates.feedback import Residual
from services.updates.layout import Layout
size = int(sys.argv[2])
layout = Layout.of({"w": np.zeros(size, np.float32)})
residual = Residual(Path(sys.argv[1]), layout)
start = 0 if residual.round_index is None else residual.round_index + 1
for index in range(start, start + 100_000):
    carried = residual.carried(index)
    assert (carried == carried[0]).all()
    residual.commit(index, carried + np.float32(1), np.zeros(size, np.float32))
    print(index, flush=True)
"""


def test_a_killed_node_keeps_every_round_that_it_committed(tmp_path: Path) -> None:
    """kill -9 at any moment of writing: the file opens, is of the last round that was reported or the one after, and
    holds exactly that many rounds' deltas."""
    size = 4 * SPAN_VALUES + 5
    layout = Layout.of({"w": np.zeros(size, np.float32)})
    path = tmp_path / "run"
    for attempt in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(size)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdout is not None
        last = max(int(child.stdout.readline()) for _ in range(3 + attempt))
        child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0].splitlines()
        last = max([last, *map(int, rest)])
        residual = Residual(path, layout)
        assert residual.round_index is not None and residual.round_index in (last, last + 1)
        assert (residual.carried(residual.round_index + 1) == residual.round_index + 1).all()
        assert (residual.carried(residual.round_index) == residual.round_index).all()
