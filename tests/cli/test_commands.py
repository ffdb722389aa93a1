"""The command line: exit codes, the two forms of output, errors as one block, and what needs no mesh."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orbitmesh.cli import bench, demo, state
from orbitmesh.cli.main import build_parser, main
from orbitmesh.cli.output import advice, plain, size
from orbitmesh.errors import CapacityError, DeadlineError, InvalidInputError, MeshError, UnknownModelError
from orbitmesh.results import Link, Stage
from orbitmesh.trust import Role, init_mesh, issue
from tests.sdk.pattern_pack import write_pack

COMMANDS = (
    ["demo"],
    ["up"],
    ["down"],
    ["status"],
    ["nodes"],
    ["version"],
    ["deploy"],
    ["plan"],
    ["delete"],
    ["generate"],
    ["explain"],
    ["train", "start"],
    ["train", "status"],
    ["train", "watch"],
    ["train", "resume"],
    ["train", "cancel"],
    ["train", "delete"],
    ["train", "predict"],
    ["train", "ledger"],
    ["train", "curves"],
    ["train", "weights"],
    ["slices", "templates"],
    ["slices", "define"],
    ["slices", "list"],
    ["slices", "show"],
    ["slices", "optimize"],
    ["slices", "apply"],
    ["slices", "resize"],
    ["slices", "release"],
    ["slices", "top"],
    ["model", "pack"],
    ["model", "show"],
    ["model", "verify"],
    ["model", "sign"],
    ["pki", "init"],
    ["pki", "issue"],
    ["pki", "show"],
    ["bench"],
)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the mesh that may run on this machine; the handler of SIGTERM is put back."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` works for each, names `--json` and shows how it is called."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*command, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--json" in shown
    if command[0] != "pki":
        assert "examples:" in shown
        assert f"orbitmesh {' '.join(command)}" in shown.partition("examples:")[2]


def test_version_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for people, a document for machines."""
    assert run(capsys, "version") == (0, "0.1.0\n", "")
    assert run(capsys, "version", "--json") == (0, '{"version": "0.1.0"}\n', "")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["generate"],
        ["generate", "demo"],
        ["generate", "demo", "a", "--token-ids", "1"],
        ["deploy", "x", "--codec", "gzip"],
        ["deploy", "x", "--stages", "three"],
        ["train"],
        ["train", "start", "digits"],
        ["train", "start", "digits", "--rounds", "3", "--epochs", "1", "--steps", "1"],
        ["train", "start", "digits", "--rounds", "3", "--strategy", "fedprox:mu"],
        ["train", "start", "digits", "--rounds", "3", "--strategy", ":mu=1"],
        ["train", "weights", "run"],
        ["pki"],
    ],
)
def test_wrong_usage_is_exit_code_2_in_both_forms(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A block on stderr for people; one JSON document on stdout for machines."""
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "reason: INVALID_INPUT" in err
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 2
    assert err == ""
    assert json.loads(out)["error"]["reason"] == "INVALID_INPUT"


@pytest.mark.parametrize(
    "command",
    [["status"], ["nodes"], ["generate", "demo", "x"], ["explain"], ["delete", "x"], ["train", "status"],
     ["slices", "list"]],
    ids=" ".join,
)
def test_without_a_mesh_the_way_to_one_is_named(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and what to do."""
    code, out, err = run(capsys, *command)
    assert (code, out) == (1, "")
    assert "orbitmesh up" in err
    assert "--gateway" in err


def test_a_gateway_by_name_needs_an_identity_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """The identity of the local mesh is not shown to another."""
    state.write_state(_state())
    code, _, err = run(capsys, "status", "--gateway", "elsewhere:1")
    assert code == 1
    assert "--identity" in err


def _state() -> state.MeshState:
    import os

    started = state.process_started(os.getpid())
    assert started is not None
    return state.MeshState(os.getpid(), started, "127.0.0.1:9", "/none", "/none", "/none", ("sat-1",))


def test_the_state_survives_and_knows_its_process(tmp_path: Path) -> None:
    """What is written is read again, by its owner only; another process with the same number is not ours."""
    ours = _state()
    state.write_state(ours)
    assert state.read_state() == ours
    assert (tmp_path / "state" / "orbitmesh" / "mesh.json").stat().st_mode & 0o077 == 0
    assert state.is_running(ours)
    assert not state.is_running(replace(ours, started="1"))
    assert not state.is_running(replace(ours, pid=2**22 + 1))


def test_down_does_not_kill_a_process_that_only_has_the_number(capsys: pytest.CaptureFixture[str]) -> None:
    """A recorded process that has ended and whose number was given away is left alone."""
    state.write_state(replace(_state(), started="1"))
    code, out, _ = run(capsys, "down", "--json")
    assert code == 0
    assert json.loads(out) == {"event": "down", "was_running": False}
    assert state.read_state() is None


def test_a_mesh_that_has_ended_is_said_to_have(capsys: pytest.CaptureFixture[str]) -> None:
    """Commands after the background mesh died do not wait for it."""
    state.write_state(replace(_state(), started="1"))
    code, _, err = run(capsys, "status")
    assert code == 1
    assert "has ended" in err


def test_a_damaged_state_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Garbage in the state file is an error with the file's name, not a traceback."""
    (tmp_path / "state" / "orbitmesh").mkdir(parents=True)
    (tmp_path / "state" / "orbitmesh" / "mesh.json").write_text("{")
    code, _, err = run(capsys, "status")
    assert code == 1
    assert "mesh.json" in err


def test_packs_are_shown_signed_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`model show`, `sign` and `verify` agree on a pack, and a flipped byte is found."""
    write_pack(tmp_path / "pack", layer_bytes=4096)
    init_mesh(tmp_path / "ca")
    issue(tmp_path / "ca", Role.CLIENT, "me", tmp_path / "me")
    pack, me = str(tmp_path / "pack"), str(tmp_path / "me")
    code, out, _ = run(capsys, "model", "show", pack, "--json")
    shown = json.loads(out)
    assert (code, shown["name"], shown["signed"], len(shown["files"])) == (0, "pattern", False, 4)
    code, _, err = run(capsys, "model", "verify", pack, "--identity", me)
    assert code == 1
    assert "PACK_UNSIGNED" in err
    assert run(capsys, "model", "sign", pack, "--identity", me)[0] == 0
    code, out, _ = run(capsys, "model", "verify", pack, "--identity", me, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["signer"] == "client/me"
    data = bytearray((tmp_path / "pack" / "head.safetensors").read_bytes())
    data[9] ^= 4
    (tmp_path / "pack" / "head.safetensors").write_bytes(data)
    code, _, err = run(capsys, "model", "verify", pack)
    assert code == 1
    assert "head.safetensors is damaged" in err
    assert "PACK_DAMAGED" in err


def test_signing_needs_an_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without one, the command says how to get it."""
    write_pack(tmp_path / "pack", layer_bytes=4096)
    code, _, err = run(capsys, "model", "sign", str(tmp_path / "pack"))
    assert code == 1
    assert "--identity" in err


def test_a_bench_runs_in_its_own_process_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench NAME` runs the script of that name, hands `--json` on and returns its exit code."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "trial.py").write_text(
        "import sys, pathlib\n"
        "pathlib.Path(__file__).with_name('said').write_text(' '.join(sys.argv[1:]))\n"
        "sys.exit(7)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--json", "trial", "--", "--size", "3"]) == 7
    assert (tmp_path / "bench" / "said").read_text() == "--json --size 3"
    with pytest.raises(InvalidInputError, match="trial"):
        bench.find_bench("nothing")


def test_the_demo_without_a_model_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing model is an error before any process is started."""
    code, _, err = run(capsys, "demo", "--model", str(tmp_path))
    assert code == 1
    assert str(tmp_path) in err


def test_the_first_difference_is_found() -> None:
    """Also where one answer is the beginning of the other."""
    assert demo.first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert demo.first_difference([1, 2], [1, 2, 3]) == 2


def test_values_become_plain_json() -> None:
    """Dataclasses, ranges, times and paths as JSON knows them."""
    value = {"stage": Stage("sat-1", range(2, 5)), "at": datetime(2026, 1, 2, tzinfo=UTC), "path": Path("/a")}
    made = plain(value)
    assert made["stage"]["layers"] == [2, 5]
    assert made["at"] == "2026-01-02T00:00:00+00:00"
    assert made["path"] == "/a"
    assert plain(Link(20, 100)) == {"latency_ms": 20, "rate_mbps": 100}
    assert plain({"loss": float("nan"), "norm": -float("inf"), "count": 1.5}) == {
        "loss": None, "norm": None, "count": 1.5
    }  # fmt: skip
    json.dumps(made)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnknownModelError("x"), "orbitmesh status"),
        (DeadlineError("x"), "--timeout"),
        (CapacityError("x"), "--kv-tokens"),
        (InvalidInputError("x", reason="ALREADY_EXISTS"), "delete"),
        (MeshError("x"), "retry"),
    ],
)
def test_every_error_has_an_advice_of_its_kind(error: MeshError, words: str) -> None:
    """The most specific class decides."""
    assert words in advice(error)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (5368709, "5.4 MB"), (2e12, "2.0 TB")])
def test_sizes_take_the_unit_that_suits_them(count: float, text: str) -> None:
    """Decimal units."""
    assert size(count) == text
