"""Settings name the line that is wrong; log lines are JSON and keep secrets out."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from orbitmesh.trust import Role
from services.runtime.config import field_help, load_config
from services.runtime.logs import FORBIDDEN_FIELDS, EventLog, Level, bridge_logging, log_trace


@dataclass(frozen=True)
class Planner:
    """A table."""

    cuts: int = 3
    """How many cuts are tried."""
    names: tuple[str, ...] = ()
    """Names of nodes."""


@dataclass(frozen=True)
class Settings:
    """What the tests read."""

    identity: Path
    """The identity directory."""
    listen: str = "127.0.0.1:0"
    """Where to listen, 100 % of the time."""
    rate_bps: float = 1.5
    """A rate, in bits per second."""
    trace: bool = True
    """Whether to trace."""
    role: Role | None = None
    """A role."""
    planner: Planner = field(default_factory=Planner)
    """The table."""


def load(tmp_path: Path, toml: str | None, *flags: str) -> Settings:
    words = list(flags)
    if toml is not None:
        (tmp_path / "c.toml").write_text(toml)
        words += ["--config", str(tmp_path / "c.toml")]
    return load_config(Settings, words, prog="t", description="d")


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    """Each setting comes from the flag, else the file, else the default, in its own type."""
    toml = 'identity = "/i"\nrate_bps = 2\ntrace = false\n[planner]\ncuts = 5\nnames = ["a", "b"]\n'
    got = load(tmp_path, toml, "--planner-cuts", "9", "--role", "executor")
    assert got == Settings(
        Path("/i"), rate_bps=2.0, trace=False, role=Role.EXECUTOR, planner=Planner(9, ("a", "b"))
    )
    assert isinstance(got.rate_bps, float)
    assert load(tmp_path, None, "--identity", "/i", "--no-trace") == Settings(Path("/i"), trace=False)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('identity = "/i"\n\nlisten = 5', r"line 3: listen is '5' where a text"),
        ('identity = "/i"\nlisten_on = "x"', r"line 2: there is no setting 'listen_on'.*listen"),
        ('identity = "/i"\n[planner]\ncats = 1', r"line 3: there is no setting 'planner.cats'"),
        ('identity = "/i"\n[plan]\ncuts = 1', r"line 3: there is no setting 'plan.cuts'"),
        ('identity = "/i"\n[plan]\n', r"line 2: there is no setting 'plan'"),
        ('identity = "/i"\nplanner = 3', r"line 2: there is no setting 'planner'"),
        ('identity = "/i"\n[planner]\ncuts = "many"', r"line 3: planner.cuts is 'many' where a whole number"),
        ('identity = "/i"\n[planner]\ncuts = 1.5', r"a whole number was expected"),
        ('identity = "/i"\ntrace = 1', r"line 2: trace is '1' where true or false"),
        ('identity = "/i"\nrole = "king"', r"one of scheduler"),
        ('identity = "/i"\n[planner]\nnames = [1]', r"a list of a text"),
        ("identity = ", r"is no TOML"),
        ('listen = "x"', r"'identity' is missing; give --identity"),
    ],
)
def test_a_wrong_file_names_line_and_key(tmp_path: Path, toml: str, words: str) -> None:
    """Unknown, missing and mistyped keys are told with the line, the key and what was expected."""
    with pytest.raises(InvalidInputError, match=words):
        load(tmp_path, toml)


def test_a_wrong_flag_or_missing_file_is_named(tmp_path: Path) -> None:
    """A flag of the wrong type names itself; a missing file its path."""
    with pytest.raises(InvalidInputError, match=r"flag --rate-bps: rate_bps is 'fast' where a number"):
        load(tmp_path, None, "--identity", "/i", "--rate-bps", "fast")
    with pytest.raises(InvalidInputError, match=r"none\.toml"):
        load(tmp_path, None, "--config", str(tmp_path / "none.toml"))


def test_help_shows_the_sentence_under_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    """Help needs no second text: it is the dataclass's own."""
    assert field_help(Planner) == {"cuts": "How many cuts are tried.", "names": "Names of nodes."}
    with pytest.raises(SystemExit):
        load_config(Settings, ["--help"], prog="t", description="d")
    text = " ".join(capsys.readouterr().out.split())
    assert "How many cuts are tried." in text and "100 % of the time" in text


def test_the_environment_sets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither settings nor secrets come by environment."""
    for name in ("LISTEN", "T_LISTEN", "ORBITMESH_LISTEN"):
        monkeypatch.setenv(name, "elsewhere:1")
    assert load(tmp_path, None, "--identity", "/i").listen == "127.0.0.1:0"


@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.text() | st.floats() | st.binary() | st.none() | st.booleans()
    )
)
def test_every_event_is_one_line_of_json(fields: dict[str, object]) -> None:
    """Whatever the values, a line parses by itself as strict JSON."""
    stream = io.StringIO()
    EventLog("s", stream=stream).info("e", **fields)
    text = stream.getvalue()
    assert text.endswith("\n") and text.count("\n") == 1

    def strict(word: str) -> None:
        raise AssertionError(word)

    line = json.loads(text, parse_constant=strict)
    assert set(fields) <= set(line)


def test_secrets_and_prompts_stay_out() -> None:
    """A field for a secret is refused by name, bytes are shown as a size, and a key in a text is cut out."""
    stream = io.StringIO()
    log = EventLog("s", stream=stream)
    for name in FORBIDDEN_FIELDS:
        with pytest.raises(ValueError, match="must not carry"):
            log.info("e", **{name: "x"})
    log.info("e", blob=b"hunter2", pem="x -----BEGIN PRIVATE KEY-----\nhunter2")
    try:
        raise ValueError("-----BEGIN PRIVATE KEY-----\nhunter2")
    except ValueError as error:
        log.error("e", error=error)
    assert "hunter2" not in stream.getvalue()
    assert "<7 bytes>" in stream.getvalue()


async def test_lines_carry_the_trace_that_their_task_works_for() -> None:
    """Those of tasks that it starts, too, and of threads; others' do not, and a line may name another trace."""
    stream = io.StringIO()
    log = EventLog("s", stream=stream)

    async def work(trace_id: str) -> None:
        log_trace(trace_id)
        log.info("task")
        await asyncio.gather(asyncio.to_thread(log.info, "thread"), asyncio.create_task(inner()))

    async def inner() -> None:
        log.info("inner", trace_id="another")

    await asyncio.create_task(work("a" * 32))
    log.info("outside")
    lines = {line["event"]: line.get("trace_id") for line in map(json.loads, stream.getvalue().splitlines())}
    assert lines == {"task": "a" * 32, "thread": "a" * 32, "inner": "another", "outside": None}


def test_levels_and_the_bridge() -> None:
    """Events below the level are dropped; what libraries log becomes events."""
    stream = io.StringIO()
    log = EventLog("s", level=Level.WARNING, stream=stream)
    log.info("quiet")
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        bridge_logging(log)
        logging.getLogger("lib").warning("look %s", "here")
        logging.getLogger("lib").info("not here")
    finally:
        root.handlers[:], _ = before, root.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["logger"], line["message"]) for line in lines] == [
        ("library", "lib", "look here")
    ]
