"""Contributions survive the process that takes them in, span by span, and nothing else passes for them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from orbitmesh.errors import InvalidInputError, SealError
from orbitmesh.trust import Identity, Role, init_mesh, issue
from services.aggregator.rounds import Stored
from services.aggregator.spool import Spool

SPANS = [random.Random(n).randbytes(1000 + n) for n in range(8)]
DIGEST = hashlib.sha256(b"".join(SPANS)).hexdigest()


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    home = tmp_path_factory.mktemp("mesh")
    return issue(init_mesh(home / "ca"), Role.AGGREGATOR, "aggregator", home / "aggregator")


@pytest.fixture
def spool(tmp_path: Path, identity: Identity) -> Callable[[], Spool]:
    """The spool as a process that has just started sees it."""
    return lambda: Spool(tmp_path / "run", lambda: identity)


def test_a_contribution_goes_on_behind_its_last_span_after_any_restart(spool: Callable[[], Spool]) -> None:
    """A new process for every span, each of which is sent twice."""
    for index, data in enumerate(SPANS):
        with closing(spool().open(0, "sat-1")) as incoming:
            assert incoming.spans == index
            incoming.add(index, data)
            incoming.add(index, data)
    with closing(spool().open(0, "sat-1")) as incoming:
        assert incoming.stored is None
        stored = incoming.finish(len(SPANS), DIGEST, 500)
    assert stored == Stored(DIGEST, 500, sum(map(len, SPANS)))
    with closing(spool().open(0, "sat-1")) as again:
        assert again.stored == again.finish(len(SPANS), DIGEST, 500) == stored
    assert list(spool().spans(0, "sat-1")) == SPANS


def test_what_came_of_a_sum_is_gone_on_with_in_the_same_sum_alone(spool: Callable[[], Spool]) -> None:
    """With other nodes in it, it begins anew; a whole one is found with who is in it, in any order of names."""
    with closing(spool().open(0, "sat-1", ["sat-2", "sat-3"])) as incoming:
        incoming.add(0, SPANS[0])
    with closing(spool().open(0, "sat-1")) as alone, closing(spool().open(0, "sat-1", ["sat-2"])) as other:
        assert alone.spans == other.spans == 0
    with closing(spool().open(0, "sat-1", ["sat-3", "sat-2"])) as incoming:
        assert incoming.spans == 1
        for index, data in enumerate(SPANS):
            incoming.add(index, data)
        incoming.finish(len(SPANS), DIGEST, 500, {"sat-2": 30, "sat-3": 40})
    stored = spool().stored(0, "sat-1")
    assert stored is not None and stored.others == {"sat-2": 30, "sat-3": 40}
    assert list(spool().spans(0, "sat-1", stored.others)) == SPANS
    spool().drop(0, "sat-1")
    assert spool().stored(0, "sat-1") is None


def take(spool: Spool, node: str, spans: list[bytes]) -> None:
    with closing(spool.open(0, node)) as incoming:
        for index, data in enumerate(spans):
            incoming.add(index, data)


@pytest.mark.parametrize("cut", [1, 7, 40, 900, 1500])
def test_a_torn_end_costs_the_torn_spans_alone(spool: Callable[[], Spool], tmp_path: Path, cut: int) -> None:
    """As a loss of power leaves it: the rest is there, and the whole is what was sent."""
    take(spool(), "sat-1", SPANS[:5])
    (path,) = (tmp_path / "run").glob("0/*")
    path.write_bytes(path.read_bytes()[:-cut])
    with closing(spool().open(0, "sat-1")) as incoming:
        assert incoming.spans == 4 - (cut > 1050)
        for index in range(incoming.spans, len(SPANS)):
            incoming.add(index, SPANS[index])
        assert incoming.finish(len(SPANS), DIGEST, 1).digest == DIGEST


def test_a_changed_byte_is_refused_and_the_file_can_be_dropped(spool: Callable[[], Spool], tmp_path: Path) -> None:
    """It is not taken for a torn end."""
    take(spool(), "sat-1", SPANS)
    (path,) = (tmp_path / "run").glob("0/*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SealError):
        spool().open(0, "sat-1")
    spool().drop(0, "sat-1")
    with closing(spool().open(0, "sat-1")) as incoming:
        assert incoming.spans == 0


def test_the_file_of_one_node_does_not_pass_for_anothers(spool: Callable[[], Spool], tmp_path: Path) -> None:
    """Moved to another name it does not open."""
    take(spool(), "sat-1", SPANS[:1])
    (tmp_path / "run/0/sat-1.spans").rename(tmp_path / "run/0/sat-2.spans")
    with pytest.raises(SealError):
        spool().open(0, "sat-2")


def test_gaps_wrong_digests_and_more_after_the_end_are_refused(spool: Callable[[], Spool]) -> None:
    """What is there already stays as it is."""
    digest = hashlib.sha256(SPANS[0]).hexdigest()
    with closing(spool().open(2, "sat-1")) as incoming:
        with pytest.raises(InvalidInputError):
            incoming.add(1, SPANS[1])
        incoming.add(0, SPANS[0])
        for spans, said in ((1, DIGEST), (2, digest)):
            with pytest.raises(InvalidInputError) as refused:
                incoming.finish(spans, said, 1)
            assert refused.value.reason == "DIGEST_MISMATCH"
        incoming.finish(1, digest, 1)
        with pytest.raises(InvalidInputError):
            incoming.add(1, SPANS[1])
    assert list(spool().spans(2, "sat-1")) == SPANS[:1]


def test_nothing_of_a_contribution_is_in_plain_on_the_disk(spool: Callable[[], Spool], tmp_path: Path) -> None:
    """And the rounds that are over leave nothing."""
    for index in (0, 1, 2):
        with closing(spool().open(index, "sat-1")) as incoming:
            incoming.add(0, b"the weights of a ward's patients" * 30)
    assert all(b"patients" not in path.read_bytes() for path in (tmp_path / "run").rglob("*.spans"))
    spool().clear(2)
    assert [path.name for path in (tmp_path / "run").glob("*")] == ["2"]
