"""`orbitmesh train` on a mesh of real processes, and what it shows where a gateway tells it what a test needs."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

from orbitmesh import Mesh, _training_proto
from orbitmesh._loop import LoopThread
from orbitmesh.cli import train_watch
from orbitmesh.cli.main import main
from orbitmesh.cli.output import Output
from orbitmesh.cli.train import strategy
from orbitmesh.trust import Role, init_mesh, issue
from orbitmesh.v1 import aggregator_pb2, training_pb2
from services.training.task import find_task
from tests.interruptible import interrupted, interruptible
from tests.sdk.small_aggregator import RUNNING, SmallAggregator, a_round, saying, told
from tests.sdk.small_gateway import SmallGateway, serve

WAIT_S = 60.0
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Two satellites and a ground node."""
    with Mesh.local(nodes=3) as local:
        yield local


@pytest.fixture(autouse=True)
def handler_is_put_back() -> Iterator[None]:
    """`main` takes SIGTERM; the test's own comes back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Commands:
    """Runs `orbitmesh train ...` against a mesh, in this process."""

    def __init__(self, where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        self._where = where
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = main(["train", *arguments, *self._where])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def documents(self, *arguments: str) -> list[dict[str, Any]]:
        """What it writes with `--json`, where it must succeed."""
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (0, ""), out
        return [json.loads(line) for line in out.splitlines()]

    def error(self, *arguments: str) -> dict[str, Any]:
        """The error that it must end with."""
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (1, "")
        error: dict[str, Any] = json.loads(out.splitlines()[-1])["error"]
        return error


@pytest.fixture
def train(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Against the mesh of real processes."""
    return Commands(["--gateway", mesh.local.gateway, "--identity", str(mesh.local.identity)], capsys)


@pytest.fixture(scope="module")
def trained(mesh: Mesh) -> str:
    """A run that is done: four rounds of digits."""
    return mesh.train("done", task="digits", rounds=4, seed=3).wait().name


def test_a_run_is_begun_and_watched_to_its_end(train: Commands) -> None:
    """One line for each round, in order, with what was measured and what it cost; then how it ended."""
    code, out, _ = train("start", "digits", "--name", "seen", "--rounds", "3", "--watch", "--nodes", "sat-1,sat-2")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("seen: digits on 2 nodes, 3 rounds of fedavg")
    rounds = [line for line in lines if line.startswith("round ")]
    assert [line.partition(":")[0] for line in rounds] == ["round 0", "round 1", "round 2"]
    for line in rounds:
        assert "accuracy 0." in line
        assert "train loss " in line
        assert " up, " in line
        assert "2 of 2 nodes" in line
    assert "seen is done after 3 rounds" in lines


def test_machines_get_every_update_as_a_document(train: Commands) -> None:
    """What was begun, how it went, and at last the run as it ended."""
    begun, *updates = train.documents("start", "digits", "--name", "machine", "--rounds", "2", "--watch")
    assert (begun["event"], begun["run"]["spec"]["task"]) == ("begun", "digits")
    assert {each["event"] for each in updates} == {"update"}
    assert updates[-1]["run"]["state"] == "done"
    done = {each["index"] for update in updates for each in update["run"]["rounds"] if each["done_at"]}
    assert done == {0, 1}


def test_runs_are_listed_and_one_is_shown_with_its_nodes_and_rounds(train: Commands, trained: str) -> None:
    """For people a table, for machines everything."""
    assert trained in train("status")[1]
    shown = train("status", trained)[1]
    assert all(word in shown for word in ("sat-1", "sat-2", "ground-1", "accuracy", "done after 4 rounds"))
    [document] = train.documents("status", trained)
    assert [each["index"] for each in document["run"]["rounds"]] == [0, 1, 2, 3]
    [listed] = train.documents("status")
    assert trained in [run["name"] for run in listed["runs"]]


def test_a_run_that_is_over_is_watched_from_a_round_on(train: Commands, trained: str) -> None:
    """Rounds before it are left out."""
    code, out, _ = train("watch", trained, "--from-round", "2")
    assert code == 0
    assert [line[:7] for line in out.splitlines() if line.startswith("round")] == ["round 2", "round 3"]


def test_weights_are_the_same_as_a_vector_and_by_name_and_worth_what_was_said(
    train: Commands, trained: str, tmp_path: Path
) -> None:
    """Loaded into a model of the task they give the figures that the mesh measured after the last round."""
    [vector] = train.documents("weights", trained, "--out", str(tmp_path / "w.npy"))
    [named] = train.documents("weights", trained, "--out", str(tmp_path / "w.safetensors"))
    assert (vector["rounds_done"], vector["sha256"]) == (4, named["sha256"])
    task = find_task("digits")
    model = task.model(0)
    model.load_state_dict(load_file(tmp_path / "w.safetensors"))
    flat = np.concatenate([tensor.numpy().reshape(-1) for tensor in model.state_dict().values()])
    assert flat.tobytes() == np.load(tmp_path / "w.npy", allow_pickle=False).tobytes()
    [document] = train.documents("status", trained)
    figures = document["run"]["rounds"][-1]["figures"]
    assert task.evaluate(model) == pytest.approx(figures, rel=1e-5)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["w.npy", "w.safetensors"]


def test_what_cannot_be_written_is_said_before_anything_is_fetched(
    train: Commands, trained: str, tmp_path: Path
) -> None:
    """A kind of file that is not known, a task that writes no directory, a folder that is not there."""
    assert ".npy" in train.error("weights", trained, "--out", str(tmp_path / "w.bin"))["message"]
    assert "no model directory" in train.error("weights", trained, "--out", f"{tmp_path}/")["message"]
    for name in ("w.npy", "w.safetensors"):
        error = train.error("weights", trained, "--out", str(tmp_path / "nowhere" / name))
        assert (error["reason"], "cannot write" in error["message"]) == ("INVALID_INPUT", True)


def test_curves_are_drawn_from_what_was_measured(train: Commands, trained: str, tmp_path: Path) -> None:
    """A picture, and the points in it: bytes add up over the rounds."""
    [document] = train.documents("curves", trained, "--out", str(tmp_path / "c.png"))
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)
    [curve] = document["runs"]
    [status] = train.documents("status", trained)
    sent = [each["up_bytes"] for each in status["run"]["rounds"]]
    assert curve["rounds"] == [1, 2, 3, 4]
    assert curve["up_bytes"] == np.cumsum(sent).tolist()
    assert [each["accuracy"] for each in curve["figures"]] == [
        each["figures"]["accuracy"] for each in status["run"]["rounds"]
    ]
    assert "PNG" in train.error("curves", trained, "--out", str(tmp_path / "c.gif"))["message"]


def test_a_run_is_cancelled_and_goes_on_for_more_rounds(train: Commands) -> None:
    """Cancelled it stays where it is; resumed it begins with the next round and ends with the last. It does not wait
    for its patience to be over, which here is longer than a test may take: nodes that were asked to join twice are
    given their work once, and keep it."""
    train("start", "mnist5k", "--name", "long", "--rounds", "1000", "--patience", "3600")
    code, out, _ = train("cancel", "long")
    assert code == 0
    assert "is cancelled after" in out
    [status] = train.documents("status", "long")
    done = status["run"]["rounds_done"]
    assert status["run"]["state"] == "cancelled"
    assert train("watch", "long")[0] == 1
    code, out, _ = train("resume", "long", "--rounds", str(done + 1), "--watch")
    assert code == 0
    assert f"goes on after {done} of {done + 1} rounds" in out
    assert [line.partition(":")[0] for line in out.splitlines() if line.startswith("round")] == [f"round {done}"]
    assert "had ended before: done" in train("cancel", "long")[1]


def test_a_run_in_a_slice_says_so(train: Commands, mesh: Mesh, trained: str) -> None:
    """In what begins it, lists it, shows it and watches it; one that is in none does not; and a slice that is nobody's
    lets none in."""
    assert train.error("start", "digits", "--name", "out", "--rounds", "1", "--slice", "no")["reason"] == (
        "SLICE_NOT_YOURS"
    )
    small = {"CPU": 0.01, "GPU": 0, "MemoryGB": 0.001, "BandwidthGbps": 0.001}
    mesh.slices.define("trains", resources=small, nodes=["sat-1"])
    mesh.slices.apply(mesh.slices.optimize(slices=["trains"]))
    code, out, _ = train(
        "start", "digits", "--name", "in", "--rounds", "1", "--nodes", "sat-1", "--slice", "trains", "--watch"
    )
    assert code == 0
    assert "in slice trains" in out
    assert "in slice trains" in train("status", "in")[1]
    assert "in slice" not in train("status", trained)[1]
    assert "trains" in train("status")[1]
    [document] = train.documents("status")
    assert {run["name"]: run["spec"]["slice"] for run in document["runs"] if run["name"] in ("in", trained)} == {
        "in": "trains", trained: None,
    }  # fmt: skip
    assert train.documents("watch", "in")[-1]["run"]["spec"]["slice"] == "trains"
    mesh.slices.release("trains")


def test_what_the_mesh_refuses_is_exit_code_1(train: Commands, trained: str) -> None:
    """Each with its reason."""
    assert train.error("watch", "nothing")["reason"] == "NOT_FOUND"
    assert train.error("start", "digits", "--name", trained, "--rounds", "2")["reason"] == "ALREADY_EXISTS"
    assert train.error("start", "digits", "--name", "Not a name", "--rounds", "2")["reason"] == "INVALID_INPUT"
    assert train.error("resume", trained)["reason"] == "FAILED_PRECONDITION"
    assert train.error("ledger", trained)["reason"] == "FAILED_PRECONDITION"
    error = train.error("start", "digits", "--name", "odd", "--rounds", "2", "--strategy", "sorcery:power=9")
    assert "fedavg" in error["message"]


def test_a_node_that_is_not_there_is_named_at_once(train: Commands) -> None:
    """A run waits for nodes that may come; a name that was mistyped would be waited for without a word."""
    _, out, _ = train("start", "digits", "--name", "typo", "--rounds", "2", "--nodes", "sat-1, sat-11")
    assert "not up: sat-11;" in out
    [begun] = train.documents("start", "digits", "--name", "typo2", "--rounds", "2", "--nodes", "sat-1,sat-11")
    assert begun["not_up"] == ["sat-11"]
    [begun] = train.documents("start", "digits", "--name", "right", "--rounds", "1", "--nodes", "sat-1,sat-2")
    assert begun["not_up"] == []
    assert "names no node" in train.error("start", "digits", "--name", "x", "--rounds", "2", "--nodes", ",")["message"]
    for name in ("typo", "typo2"):
        train("cancel", name)


def test_no_time_at_all_is_refused(train: Commands) -> None:
    """0 is not taken for the default."""
    for seconds in ("0", "-1", "nan"):
        error = train.error("status", "--timeout", seconds)
        assert (error["reason"], "--timeout" in error["message"]) == ("INVALID_INPUT", True)


def test_nodes_of_a_run_that_is_over_are_not_called_away(train: Commands, trained: str) -> None:
    """Nobody is connected to them any more, and that is as it should be."""
    assert "away" not in train("status", trained)[1]


def test_what_to_do_about_a_name_is_said_for_runs_too(train: Commands, trained: str) -> None:
    """One that is taken can be had by deleting the run; one that is not there is looked for in the list."""
    taken = train.error("start", "digits", "--name", trained, "--rounds", "2")
    assert "orbitmesh train delete" in taken["advice"]
    assert "orbitmesh train status" in train.error("watch", "nothing")["advice"]


def write_inputs(kind: str, path: Path) -> None:
    """A file that is no array that the model could be asked about."""
    arrays: dict[str, Any] = {
        "not finite": np.full((2, 64), np.nan),
        "too large for float32": np.full((2, 64), 1e300),
        "one example": np.zeros(64),
        "one number": np.float32(1),
        "no example": np.zeros((0, 64)),
        "complex": np.zeros((2, 64), complex),
        "text": np.array([["a", "b"]]),
        "another shape": np.zeros((2, 63)),
        "too many": np.zeros((10_000, 64)),
        "pickled objects": np.array([{}], object),
    }
    if kind in arrays:
        np.save(path, arrays[kind], allow_pickle=True)
    elif kind == "an archive":
        np.savez(path.with_suffix(".npz"), zeros=np.zeros((2, 64)))
        path.with_suffix(".npz").rename(path)
    elif kind == "cut off":
        np.save(path, np.zeros((2, 64)))
        path.write_bytes(path.read_bytes()[:200])
    elif kind != "missing":
        path.write_bytes({"empty": b"", "no array": b"hello"}[kind])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("not finite", "finite"),
        ("too large for float32", "finite"),
        ("one example", "first dimension of 1"),
        ("one number", "first dimension of 1"),
        ("no example", "an example in each row"),
        ("complex", "complex128"),
        ("text", "real numbers"),
        ("another shape", "expected 64 pixels"),
        ("too many", "ask about fewer at a time"),
        ("pickled objects", "numpy.save"),
        ("an archive", "numpy.save"),
        ("cut off", "numpy.save"),
        ("empty", "numpy.save"),
        ("no array", "numpy.save"),
        ("missing", "cannot be read: No such file"),
    ],
)
def test_what_no_model_can_be_asked_about_is_named(
    kind: str, words: str, train: Commands, trained: str, tmp_path: Path
) -> None:
    """Whatever lies in the file: an error that says what is wrong with it, and exit code 1."""
    write_inputs(kind, tmp_path / "inputs.npy")
    error = train.error("predict", trained, "--inputs", str(tmp_path / "inputs.npy"))
    assert error["reason"] in ("INVALID_INPUT", "LIMIT_EXCEEDED")
    assert words in error["message"]
    assert "pickle" not in error["message"]


def test_answers_are_written_where_it_was_said_or_not_at_all(train: Commands, trained: str, tmp_path: Path) -> None:
    """numpy would add the end of the name by itself; a place that is no good is seen before anybody is asked."""
    pictures, _ = find_task("digits").samples(3)
    np.save(tmp_path / "inputs.npy", pictures)
    for out in ("answers.txt", "nowhere/answers.npy", "inputs.npy/answers.npy"):
        error = train.error(
            "predict", trained, "--inputs", str(tmp_path / "inputs.npy"), "--out", str(tmp_path / out)
        )
        assert "give NAME.npy" in error["message"]
    assert [each.name for each in tmp_path.iterdir()] == ["inputs.npy"]
    code, out, _ = train(
        "predict", trained, "--inputs", str(tmp_path / "inputs.npy"), "--out", str(tmp_path / "answers.npy")
    )
    assert (code, "answers.npy, an array of 3 x 10" in out) == (0, True)
    assert np.load(tmp_path / "answers.npy").shape == (3, 10)


def test_a_watch_waits_for_an_aggregator_that_is_being_started_anew(
    train: Commands, mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is begun while the aggregator is gone: that is said, and the run is told to its end once it is back."""
    train("start", "digits", "--name", "back", "--rounds", "6")
    mesh.local.kill("aggregator")
    error = train.error("status")
    assert (error["reason"], "cannot reach the aggregator" in error["message"]) == ("TRANSPORT", True)
    starting = threading.Timer(2.0, mesh.local.restart, ("aggregator",))
    starting.start()
    code, out, err = train("watch", "back")
    starting.join(WAIT_S)
    assert code == 0
    assert "cannot reach the aggregator" in err
    assert [line.partition(":")[0] for line in out.splitlines() if line.startswith("round")] == [
        f"round {index}" for index in range(6)
    ]


def test_a_gateway_that_is_not_there_is_not_waited_for(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Its address may be wrong: an error at once, not after the patience with an aggregator."""
    began = time.monotonic()
    nowhere = ["--gateway", "127.0.0.1:9", "--identity", str(mesh.local.identity)]
    assert main(["train", "watch", "run", *nowhere]) == 1
    assert "cannot reach 127.0.0.1:9" in capsys.readouterr().err
    assert time.monotonic() - began < WAIT_S


def test_the_status_of_the_mesh_tells_of_the_runs_that_go_on(
    mesh: Mesh, train: Commands, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator sees them without asking for them; where the aggregator is gone the rest is shown all the same."""
    where = ["--gateway", mesh.local.gateway, "--identity", str(mesh.local.identity)]
    train("start", "mnist5k", "--name", "under-way", "--rounds", "1000")
    assert main(["status", *where]) == 0
    shown = capsys.readouterr().out
    assert "aggregator up" in shown
    assert "1 runs of training go on" in shown
    assert "under-way" in shown
    assert trained not in shown
    train("cancel", "under-way")
    assert main(["status", *where, "--json"]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    assert training["aggregator"] == "up"
    assert {"under-way": "cancelled", trained: "done"}.items() <= {
        run["name"]: run["state"] for run in training["runs"]
    }.items()
    mesh.local.kill("aggregator")
    try:
        assert main(["status", *where]) == 0
        assert "aggregator unreachable" in capsys.readouterr().out
    finally:
        mesh.local.restart("aggregator")


@pytest.mark.parametrize("nodes", [1, 4, 8, 100])
def test_the_newest_round_is_seen_on_a_small_terminal(nodes: int) -> None:
    """What is redrawn on 80 columns and 24 lines has a line for each round, and the last one is not cut off."""
    written = io.StringIO()
    output = Output(as_json=False)
    output.console = Console(file=written, force_terminal=True, width=80, height=24, color_system=None)
    names = [f"sat-{index}" for index in range(nodes)]
    figures = {"accuracy": 0.9876, "loss": 0.1234}
    rounds = [
        a_round(index, figures=figures, train_loss=0.1234, down_bytes=912_345, seconds=0.6543, contributed=names)
        for index in range(40)
    ]
    for each in rounds:
        each.up_bytes = 912_345
        each.given_up["sat-0"] = "silent for 60 s in contact"
    given_up = aggregator_pb2.RUN_NODE_STATE_GIVEN_UP
    nodes_of_run = [aggregator_pb2.RunNode(name=name, state=given_up, why="silent " * 20) for name in names]
    run = aggregator_pb2.Run(
        name="run", state=RUNNING, rounds=rounds, spec=spec(), rounds_done=40, nodes=nodes_of_run
    )
    view = train_watch._Redrawn(output)
    with view:
        view.show(_training_proto.status(run))
        view._live.refresh()
        drawn = written.getvalue()
    lines = [line for line in drawn.splitlines() if "0.9876" in line]
    assert "..." not in drawn
    assert len(lines) >= 3
    assert lines[-1].lstrip().startswith("39 ")
    assert all("912.3 kB" in line and "654.3 ms" in line for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threshold", "3"],
        ["--bits", "8"],
        ["--group", "sat-1,sat-2"],
        ["--epsilon", "3"],
        ["--clip", "1"],
        ["--privacy", "record"],
    ],
    ids=" ".join,
)
def test_options_that_mean_nothing_alone_are_refused(arguments: list[str], train: Commands) -> None:
    """The message names the one that lacks."""
    error = train.error("start", "digits", "--name", "half", "--rounds", "2", *arguments)
    assert "--secure-sums" in error["message"] or "--privacy" in error["message"]


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("fedavg", "fedavg", {}),
        ("fedprox:mu=0.1", "fedprox", {"mu": 0.1}),
        ("fedadam:lr=1e-2, beta1=0.9,", "fedadam", {"lr": 0.01, "beta1": 0.9}),
    ],
)
def test_a_strategy_is_written_with_its_options(text: str, name: str, options: dict[str, float]) -> None:
    """Name, colon, numbers by name."""
    assert strategy(text) == (name, options)


@pytest.mark.parametrize("text", ["", ":mu=1", "fedprox:mu", "fedprox:=1", "fedprox:mu=much", "fedprox:mu=1;b=2"])
def test_a_strategy_of_another_form_is_wrong_usage(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(argparse.ArgumentTypeError, match="expected such as"):
        strategy(text)


async def for_ever(request: Any, context: Any) -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
    """One round done, and then nothing more."""
    yield told(RUNNING, a_round(0, figures={"accuracy": 0.5}), a_round(1, done=False))
    await asyncio.Event().wait()


@pytest.fixture(scope="module")
def told_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SmallAggregator, list[str]]]:
    """An aggregator that tells what a test wants, and the options that lead to it."""
    base = tmp_path_factory.mktemp("pki")
    init_mesh(base / "ca")
    identity = issue(base / "ca", Role.GATEWAY, "gateway", base / "gateway")
    issue(base / "ca", Role.CLIENT, "me", base / "me")
    loop, gateway, small = LoopThread(), SmallGateway(), SmallAggregator(aggregator_pb2.Run(name="run"))
    server = loop.run(lambda: serve(gateway, identity, small))
    yield small, ["--gateway", gateway.address, "--identity", str(base / "me")]
    loop.run(lambda: server.stop(None))
    loop.stop()


def spec(**more: Any) -> training_pb2.TrainingSpec:
    return training_pb2.TrainingSpec(task="digits", rounds=4, evaluate=True, **more)


def test_stragglers_waits_and_what_privacy_costs_are_told(
    told_mesh: tuple[SmallAggregator, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A round is told once its figures are there, and a wait is no line of stdout."""
    small, where = told_mesh
    privacy = training_pb2.Privacy(unit=training_pb2.PRIVACY_UNIT_NODE, epsilon=8.0)
    asked = spec(privacy=privacy)
    late: dict[str, Any] = {"given_up": {"sat-2": "silent for 60 s"}, "contributed": ["sat-1"], "epsilon": 0.5}
    small.watching = [
        saying(
            told(RUNNING, a_round(0, **late), spec=asked),
            told(aggregator_pb2.RUN_STATE_PAUSED, why="sat-1 is out of sight", spec=asked),
            told(RUNNING, a_round(0, figures={"loss": 1.5, "accuracy": 0.25}, **late), spec=asked),
            told(RUNNING, a_round(1), spec=asked),
            told(aggregator_pb2.RUN_STATE_DONE, a_round(2), spec=asked, rounds_done=3, why="the budget is spent"),
        )
    ]
    code, out, err = Commands(where, capsys)("watch", "run")
    first, second, third, end = out.splitlines()[:4]
    assert code == 0
    assert first.startswith("round 0: accuracy 0.25, loss 1.5, 0 B up, 0 B down, epsilon 0.500 of 8, ")
    assert first.endswith("1 of 2 nodes; without sat-2 (silent for 60 s)")
    assert second.startswith("round 1: 10 B up")
    assert third.startswith("round 2: 20 B up")
    assert end == "run is done after 3 rounds: the budget is spent"
    assert err == "waiting: sat-1 is out of sight\n"


@pytest.mark.parametrize(
    ("state", "words"),
    [(aggregator_pb2.RUN_STATE_FAILED, "not finite"), (aggregator_pb2.RUN_STATE_CANCELLED, "cancelled after 2")],
)
def test_watching_a_run_that_does_not_get_done_ends_with_1(
    state: aggregator_pb2.RunState,
    words: str,
    told_mesh: tuple[SmallAggregator, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And says why."""
    small, where = told_mesh
    small.watching = [saying(told(state, why="the loss is not finite", rounds_done=2, spec=spec()))]
    code, out, err = Commands(where, capsys)("watch", "run")
    assert code == 1
    assert words in out + err


def test_a_loss_that_is_no_number_is_null_for_machines(
    told_mesh: tuple[SmallAggregator, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that diverges is not one whose JSON cannot be read."""
    small, where = told_mesh
    diverged = a_round(0, figures={"loss": float("nan")}, train_loss=float("inf"))
    small.watching = [saying(told(aggregator_pb2.RUN_STATE_DONE, diverged, spec=spec()))]
    [update] = Commands(where, capsys).documents("watch", "run")
    [told_round] = update["run"]["rounds"]
    assert (told_round["figures"], told_round["train_loss"]) == ({"loss": None}, None)


@pytest.mark.parametrize("where_to", ["a terminal", "a pipe", "machines"])
def test_ctrl_c_ends_the_watching_and_says_that_the_run_goes_on(
    where_to: str, told_mesh: tuple[SmallAggregator, list[str]]
) -> None:
    """Exit code 130, how to come back, and no request but the watch itself was sent."""
    small, where = told_mesh
    small.watching, small.asked[:] = [for_ever], []
    command = interruptible("-m", "orbitmesh.cli.main", "train", "watch", "run", *where)
    said, code = interrupted(
        [*command, "--json"] if where_to == "machines" else command,
        lambda said: "accuracy" in said and "0.5" in said,
        terminal=where_to == "a terminal",
    )
    assert code == 130, said
    if where_to == "machines":
        assert json.loads(said.splitlines()[-1]) == {"event": "interrupted", "run": "run"}
    else:
        assert "the run goes on" in said
        assert "orbitmesh train watch run" in said
        assert "Traceback" not in said
    assert {type(each).__name__ for each in small.asked} == {"GetRunRequest", "WatchRunRequest"}
