"""`orbitmesh generate` while an answer waits: the text stays whole, the wait is told, on a terminal and elsewhere."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from orbitmesh._loop import LoopThread
from orbitmesh.trust import Role, init_mesh, issue
from orbitmesh.v1 import gateway_pb2, wire_pb2
from tests.sdk.small_gateway import SmallGateway, serve, started, token

REASON = "sat-2 does not answer; no other node is in contact"
KEEP, BACK, CLEAR = "\x1b7", "\x1b8", "\r\x1b[2K"


async def waits(request: gateway_pb2.GenerateRequest, context: Any) -> AsyncIterator[gateway_pb2.GenerateResponse]:
    """Two tokens, a wait, another reason to wait, two tokens, the end."""
    yield started()
    for number in range(2):
        yield token(number)
    for reason in (REASON, "the next window opens soon"):
        yield gateway_pb2.GenerateResponse(waiting=gateway_pb2.GenerationWaiting(reason=reason))
    for number in range(2, 4):
        yield token(number)
    finished = gateway_pb2.GenerationFinished(reason=wire_pb2.FINISH_REASON_LENGTH, new_tokens=4)
    yield gateway_pb2.GenerateResponse(finished=finished)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """`orbitmesh generate` against a gateway whose answer waits."""
    base = tmp_path_factory.mktemp("pki")
    init_mesh(base / "ca")
    identity = issue(base / "ca", Role.GATEWAY, "gateway", base / "gateway")
    issue(base / "ca", Role.CLIENT, "me", base / "me")
    loop, gateway = LoopThread(), SmallGateway(behaviour=waits)
    server = loop.run(lambda: serve(gateway, identity))
    where = ["--gateway", gateway.address, "--identity", str(base / "me")]
    yield [sys.executable, "-m", "orbitmesh.cli.main", "generate", "demo", "x", *where]
    loop.run(lambda: server.stop(None))
    loop.stop()


def test_elsewhere_than_on_a_terminal_the_text_stands_alone(command: list[str]) -> None:
    """stdout has the text, stderr a line for each thing that is waited for."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[0] == " 0 1 2 3"
    assert done.stderr.splitlines() == [f"waiting: {REASON}", "waiting: the next window opens soon"]


def test_machines_get_the_waits_as_events_in_their_place(command: list[str]) -> None:
    """Between the tokens, and every token once."""
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == [
        "started", "token", "token", "waiting", "waiting", "going_on", "token", "token", "finished"
    ]  # fmt: skip
    assert events[3]["reason"] == REASON
    assert done.stderr == ""


def test_on_a_terminal_the_line_comes_below_the_text_and_goes_again(command: list[str], tmp_path: Path) -> None:
    """The cursor's place is kept and taken up again, the line is emptied, and without it the text is whole."""
    own, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment) as running:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(own, 4096):
                shown += piece
        except OSError:
            pass  # the other end is closed
        finally:
            os.close(own)
    assert running.returncode == 0
    text = shown.decode()
    before, _, rest = text.partition("\x1bD\x1b[A" + KEEP)
    status, _, after = rest.partition(BACK)
    assert before == " 0 1"
    assert REASON in status
    assert "the next window opens soon" in status
    assert status.endswith(CLEAR)
    assert not any(number in status for number in ("\n 2", "\n 3"))
    assert after.splitlines()[0] == " 2 3"
