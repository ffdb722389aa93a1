"""Services that are forked from one process behave as processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orbitmesh.errors import TransportError
from services.localmesh import forks as forking
from services.localmesh.forks import SUPPORTED, WARM, Forks, start_warm

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="processes are forked on Linux only")

SLEEPER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
sys.stderr.write(f"{__name__} {sys.argv[1:]} {os.getpgrp() == os.getpid()} {'json.tool' in sys.modules}\\n")
sys.stderr.flush()
time.sleep(60)
"""


@pytest_asyncio.fixture(params=["of its own", "of one for many"])
async def forks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Forks]:
    """A server that imports for one mesh, and one that was forked from where many meshes have theirs."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "faulty.py").write_text("raise ValueError('on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv(WARM, raising=False)
    warm = None
    if request.param == "of one for many":
        monkeypatch.setattr(forking, "EVERYTHING", ("json.tool",))
        warm = start_warm(tmp_path / "warm", tmp_path / "warm.log")
        monkeypatch.setenv(WARM, str(tmp_path / "warm"))
    started = await Forks.start(("json.tool",), tmp_path / "forks.log", 1)
    assert started.is_warm == (warm is not None)
    yield started
    await started.close()
    if warm is not None:
        assert warm.poll() is None
        warm.kill()
        warm.wait()


def command_line(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")


async def test_a_child_runs_the_module_with_its_arguments(forks: Forks) -> None:
    """It is `__main__`, leads its own process group, and finds what was imported."""
    process, said = await forks.fork(["sleeper", "--name", "sat-1"])
    assert await said.readline() == b"__main__ ['--name', 'sat-1'] True True\n"
    assert command_line(process.pid)[1:] == [b"-m", b"sleeper", b"--name", b"sat-1"]
    assert process.returncode is None
    process.terminate()
    assert await process.wait() == process.returncode == 7
    process.terminate()  # too late is no error
    assert await said.read() == b""


async def test_a_kill_is_reported_as_a_signal_whoever_sent_it(forks: Forks) -> None:
    """Also one that did not come from the supervisor."""
    (ours, _), (theirs, said) = await asyncio.gather(forks.fork(["sleeper"]), forks.fork(["sleeper"]))
    ours.kill()
    await said.readline()
    os.kill(theirs.pid, signal.SIGKILL)
    assert await ours.wait() == await theirs.wait() == -signal.SIGKILL


async def test_an_error_is_in_its_log_and_its_exit_code(forks: Forks) -> None:
    """As Python would do it."""
    process, said = await forks.fork(["faulty"])
    assert b"ValueError: on purpose" in await said.read()
    assert await process.wait() == 1
    process, said = await forks.fork(["no.such.module"])
    assert b"No module named 'no'" in await said.read()
    assert await process.wait() == 1


async def test_more_orders_than_a_socket_takes_wait_for_their_turn(tmp_path: Path, forks: Forks) -> None:
    """The command lines of a large mesh, asked for while the server still imports: every child is the one asked for."""
    (tmp_path / "teller.py").write_text("import sys; sys.stderr.write(sys.argv[1])")

    async def told(name: str) -> str:
        process, said = await forks.fork(["teller", name, "-" * 16_000])
        text = (await said.read()).decode()
        assert await process.wait() == 0
        return text

    names = [f"sat-{number}" for number in range(40)]
    assert await asyncio.gather(*map(told, names)) == names


async def test_children_end_with_their_server(forks: Forks) -> None:
    """No orphan stays, and who asks for another child hears why there is none."""
    process, said = await forks.fork(["sleeper"])
    await said.readline()
    os.kill(forks.pid, signal.SIGKILL)
    assert await said.read() == b""
    assert await process.wait() == -signal.SIGKILL
    with pytest.raises(TransportError, match=r"forks\.log"):
        await forks.fork(["sleeper"])


async def test_a_mesh_keeps_its_own_environment_and_directory(
    tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of whoever started it, also where it is forked from what many meshes have in common; two of them do not
    know each other."""
    (tmp_path / "teller.py").write_text(
        "import os, sys; sys.stderr.write(os.getcwd() + ' ' + os.environ.get('OURS', ''))"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("OURS", "a word")
    other = await Forks.start(("json.tool",), tmp_path / "other.log", 1)
    _, said = await other.fork(["teller"])
    assert (await said.read()).decode() == f"{tmp_path / 'here'} a word"
    await other.close()
    _, said = await forks.fork(["teller"])
    assert not (await said.read()).decode().endswith("a word")


async def test_nothing_at_the_socket_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, with the way out."""
    monkeypatch.setenv(WARM, str(tmp_path / "nothing"))
    with pytest.raises(TransportError, match=f"unset|{WARM}"):
        await Forks.start(("json.tool",), tmp_path / "forks.log", 1)


async def test_a_module_that_cannot_be_imported_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log says which."""
    monkeypatch.delenv(WARM, raising=False)
    forks = await Forks.start(("no.such.module",), tmp_path / "forks.log", 1)
    with pytest.raises(TransportError, match=r"forks\.log"):
        await forks.fork(["json.tool"])
    await forks.close()
    assert "No module named 'no'" in (tmp_path / "forks.log").read_text()
