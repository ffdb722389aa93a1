"""The health check of containers, as the process that a container engine starts, against a real service."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orbitmesh.trust import Role, dns_name, init_mesh, issue
from services.runtime.healthcheck import server_name
from services.runtime.server import ServiceHost


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A gateway's identity."""
    init_mesh(tmp_path / "ca")
    return issue(tmp_path / "ca", Role.GATEWAY, "main", tmp_path / "gateway").directory


@pytest.fixture
async def host(identity: Path) -> AsyncIterator[ServiceHost]:
    """A service that answers health and nothing else."""
    async with ServiceHost(identity) as host:
        yield host


async def check(host: ServiceHost, identity: Path, *more: str, name: str = "main") -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.runtime.healthcheck", "--address", f"127.0.0.1:{host.port}",
        "--identity", str(identity), "--role", "gateway", "--name", name, *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert output == b""
    return process.returncode or 0, errors.decode()


async def test_a_service_that_serves_is_healthy(host: ServiceHost, identity: Path) -> None:
    """Exit code 0, without a word."""
    assert await check(host, identity) == (0, "")


async def test_one_service_of_a_process_is_asked_by_its_name(host: ServiceHost, identity: Path) -> None:
    """A service that says NOT_SERVING is unhealthy while the process is healthy; an unknown one is too."""
    await host.set_serving("orbitmesh.v1.GatewayService", True)
    assert await check(host, identity, "--service", "orbitmesh.v1.GatewayService") == (0, "")
    await host.set_serving("orbitmesh.v1.GatewayService", False)
    code, words = await check(host, identity, "--service", "orbitmesh.v1.GatewayService")
    assert (code, "does not serve" in words) == (1, True)
    code, words = await check(host, identity, "--service", "orbitmesh.v1.Nothing")
    assert (code, "NOT_FOUND" in words) == (1, True)
    assert await check(host, identity) == (0, "")


async def test_another_identity_at_the_address_is_not_the_service(host: ServiceHost, identity: Path) -> None:
    """The name in the certificate counts, not the address."""
    code, words = await check(host, identity, name="other")
    assert (code, "UNAVAILABLE" in words) == (1, True)


async def test_another_mesh_cannot_ask(host: ServiceHost, tmp_path: Path) -> None:
    """An identity of another CA neither believes the service nor is believed."""
    init_mesh(tmp_path / "other-ca")
    other = issue(tmp_path / "other-ca", Role.GATEWAY, "main", tmp_path / "other").directory
    code, words = await check(host, other)
    assert (code, "UNAVAILABLE" in words) == (1, True)


async def test_a_missing_identity_is_named(host: ServiceHost, tmp_path: Path) -> None:
    """The message says which file is missing and what makes it."""
    code, words = await check(host, tmp_path / "nobody")
    assert code == 1
    assert "ca.pem" in words
    assert "orbitmesh pki issue" in words


async def test_nobody_at_the_address_is_unhealthy(host: ServiceHost, identity: Path) -> None:
    """A service that has ended does not answer."""
    await host.drain(0)
    code, words = await check(host, identity)
    assert (code, "did not answer" in words) == (1, True)


def test_the_check_expects_the_name_that_certificates_carry() -> None:
    """It spells the name itself, to import nothing; it must be the one that `orbitmesh pki` writes."""
    assert server_name("executor", "sat-1") == dns_name(Role.EXECUTOR, "sat-1")
