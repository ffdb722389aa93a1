"""Files, addresses and directories that cannot be used end a service as it starts: one line, that says what to do."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orbitmesh.trust import init_mesh, issue

START_S = 120.0
SCENARIO = str(Path(__file__).parents[2] / "examples" / "iridium" / "scenario.toml")
SERVICES = {
    "scheduler": ["services.scheduler"],
    "gateway": ["gateway", "--scheduler", "127.0.0.1:1"],
    "slices": ["services.slices", "--scheduler", "127.0.0.1:1"],
    "aggregator": ["services.aggregator", "--scheduler", "127.0.0.1:1"],
    "executor": ["services.executor", "--scheduler", "127.0.0.1:1"],
    "constellation": ["services.constellation", "--hours", "0.1", "--scenario", SCENARIO],
}


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("identities")
    ca = init_mesh(base / "ca")
    for role in SERVICES:
        issue(ca, role, "one", base / role)
    return {role: base / role for role in SERVICES}


def start(service: str, identity: Path, *more: str) -> tuple[int, str]:
    """Starts a service that cannot start; gives its exit code and the one line that is no event of its log."""
    command = [sys.executable, "-m", *SERVICES[service], "--identity", str(identity), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    # gRPC's core writes a line of its own where it cannot bind.
    own = [line for line in done.stderr.splitlines() if line[:1] != "{" and ".cc:" not in line and "absl::" not in line]
    assert len(own) == 1, done.stderr
    assert own[0].startswith(f"{SERVICES[service][0]}: ")
    return done.returncode, own[0]


@pytest.mark.parametrize(
    ("break_key", "said"),
    [
        (lambda key: key.chmod(0o644), "chmod 600"),
        (lambda key: key.unlink(), "there is no file"),
        (lambda key: (key.unlink(), key.mkdir()), "cannot read"),
        (lambda key: key.write_bytes(b"no key"), "issue the identity"),
    ],
    ids=["world-readable", "missing", "unreadable", "damaged"],
)
def test_a_key_that_cannot_be_used_is_named(
    identities: dict[str, Path], tmp_path: Path, break_key: object, said: str
) -> None:
    """Readable by everybody, not there, not to be read, or no key: which file, and how to get a good one."""
    assert callable(break_key)
    mine = tmp_path / "mine"
    shutil.copytree(identities["scheduler"], mine)
    break_key(mine / "tls.key")
    code, line = start("scheduler", mine, "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"))
    assert code == 1
    assert said in line
    assert str(mine / "tls.key") in line


@pytest.mark.parametrize("service", ["scheduler", "gateway", "constellation"])
def test_an_address_that_is_taken_is_named(identities: dict[str, Path], tmp_path: Path, service: str) -> None:
    """Whether the service listens before or amid its other work."""
    state = [] if service == "constellation" else ["--state", str(tmp_path / "state")]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        code, line = start(service, identities[service], "--listen", address, *state)
    assert code == 1
    assert f"cannot listen on {address}" in line
    assert "choose another address" in line


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "constellation"])
def test_a_state_directory_that_cannot_be_is_named(identities: dict[str, Path], tmp_path: Path, service: str) -> None:
    """It cannot be made: as in a container whose file system is read-only, and that was given no volume."""
    (tmp_path / "file").write_text("in the way")
    state = tmp_path / "file" / "state"
    code, line = start(service, identities[service], "--listen", "127.0.0.1:0", "--state", str(state))
    assert code == 2
    assert str(state) in line
    assert "volume" in line


def test_a_state_directory_without_room_is_named(identities: dict[str, Path], tmp_path: Path) -> None:
    """A file system of no free byte; making one takes root."""
    tmp_path.joinpath("full").mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path / "full")], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        (tmp_path / "full" / "filler").write_bytes(bytes(4096))
        where = ("--listen", "127.0.0.1:0", "--state", str(tmp_path / "full"))
        code, line = start("scheduler", identities["scheduler"], *where)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "full")], check=True)
    assert code == 2
    assert "No space left" in line
