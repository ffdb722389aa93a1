"""Starting, renewing and stopping a service while calls are under way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orbitmesh.errors import TransportError
from orbitmesh.rpc import STATUS_DETAILS_KEY, mapped_errors
from tests.runtime.conftest import MeshDir, call, until
from tests.runtime.test_gate import check_health

Serving = Callable[..., Any]
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def served_certificate(address: str) -> bytes:
    """What the server shows to a new connection, by Python's own ssl module."""
    import ssl

    host, _, port = address.partition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=60).encode()


async def test_a_renewed_certificate_is_served_without_a_restart(mesh: MeshDir, serving: Serving) -> None:
    """New connections see the new certificate; calls under way and old connections go on, none fails."""
    async with serving() as running:
        client = mesh.identity("client/c")
        channel = running.channel(client)
        release = asyncio.Event()
        running.echo.act = release.wait
        held = asyncio.ensure_future(call(channel, "StreamStream"))
        await until(lambda: running.echo.calls > 0)
        before = await asyncio.to_thread(served_certificate, running.address)
        running.echo.act = None
        stop, count = asyncio.Event(), 0

        async def keep_calling() -> None:
            nonlocal count
            while not stop.is_set():
                fresh = running.channel(client)
                assert await call(fresh, "UnaryUnary") == [b"a"]
                await fresh.close()
                count += 1

        caller = asyncio.ensure_future(keep_calling())
        for _ in range(3):
            renewed = await asyncio.to_thread(mesh.identity, "scheduler/s1")
            seen = count
            await until(lambda seen=seen: count >= seen + 3)
        stop.set()
        await caller
        after = await asyncio.to_thread(served_certificate, running.address)
        assert before != after == renewed.tls_cert_pem
        assert await call(channel, "UnaryUnary") == [b"a"]
        release.set()
        assert await held == [b"a", b"b"]
        await channel.close()
        assert "identity_renewed" in running.log.getvalue()


async def test_a_broken_renewal_leaves_the_old_certificate_in_use(mesh: MeshDir, serving: Serving) -> None:
    """Files that do not fit together are told in the log, and the service goes on as before."""
    async with serving() as running:
        before = await asyncio.to_thread(served_certificate, running.address)
        mesh.identity("scheduler/s2")
        (mesh.path("scheduler/s1") / "tls.pem").write_bytes(
            (mesh.path("scheduler/s2") / "tls.pem").read_bytes()
        )
        assert await asyncio.to_thread(served_certificate, running.address) == before
        channel = running.channel(mesh.identity("client/c"))
        assert await call(channel, "UnaryUnary") == [b"a"]
        await channel.close()
        assert "identity_renewal_refused" in running.log.getvalue()
        assert "PRIVATE KEY" not in running.log.getvalue()


async def test_draining_lets_calls_end_and_takes_no_new_ones(serving: Serving) -> None:
    """Health says NOT_SERVING, a new call gets DRAINING with a time to retry, the one under way ends well."""
    async with serving() as running:
        release = asyncio.Event()
        running.echo.act = release.wait
        channel = running.channel(running.mesh.identity("client/c"))
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        held = asyncio.ensure_future(call(channel, "UnaryStream"))
        await until(lambda: running.host.in_flight.count == 1)
        hooked = asyncio.Event()

        async def hook() -> None:
            hooked.set()

        running.host.on_drain(hook)
        draining = asyncio.ensure_future(running.host.drain(20))
        await hooked.wait()
        assert running.host.draining.is_set()
        assert (await watch.read()).status == NOT_SERVING
        assert await check_health(channel) == NOT_SERVING
        with pytest.raises(TransportError) as caught, mapped_errors():
            await call(channel, "UnaryUnary")
        assert caught.value.reason == "DRAINING" and caught.value.retryable
        cause = caught.value.__cause__
        assert isinstance(cause, grpc.aio.AioRpcError)
        assert b"RetryInfo" in dict(cause.trailing_metadata())[STATUS_DETAILS_KEY]
        assert not draining.done()
        release.set()
        assert await held == [b"a", b"a"]
        await draining
        watch.cancel()
        await channel.close()


async def test_what_leaves_is_given_away_while_calls_are_taken_and_what_finishes_work_also_later(
    serving: Serving,
) -> None:
    """Hooks of leaving come first, with health at NOT_SERVING and calls still answered; afterwards only methods that
    bring work to its end are taken."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        running.host.in_flight.finish_by(["/test.v1.Echo/UnaryUnary"])
        told: list[object] = []

        async def leave() -> None:
            told.extend([await check_health(channel), await call(channel, "StreamUnary")])

        async def drained() -> None:
            told.append(await call(channel, "UnaryUnary"))
            with pytest.raises(TransportError) as refused, mapped_errors():
                await call(channel, "StreamUnary")
            told.append(refused.value.reason)

        running.host.on_drain(drained)
        running.host.on_leave(leave)
        await running.host.drain(20)
        assert told == [NOT_SERVING, [b"ab"], [b"a"], "DRAINING"]
        await channel.close()


async def test_a_call_that_does_not_end_is_cut_after_the_grace(serving: Serving) -> None:
    """Draining is bounded: the handler is cancelled and its caller learns that the server went away."""
    async with serving() as running:
        running.echo.act = asyncio.Event().wait
        channel = running.channel(running.mesh.identity("client/c"))
        held = asyncio.ensure_future(call(channel, "UnaryUnary", timeout=60))
        await until(lambda: running.host.in_flight.count == 1)
        await running.host.drain(0.2)
        with pytest.raises(TransportError), mapped_errors():
            await held
        await running.echo.cancelled.wait()
        assert "drain_grace_spent" in running.log.getvalue()
        await channel.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_a_second_one_hurries(serving: Serving, number: signal.Signals) -> None:
    """SIGTERM and SIGINT start the draining; the same again ends it at once."""
    async with serving() as running:
        running.echo.act = asyncio.Event().wait
        channel = running.channel(running.mesh.identity("client/c"))
        serve = asyncio.ensure_future(running.host.run_until_stopped(grace_s=60))
        held = asyncio.ensure_future(call(channel, "UnaryUnary", timeout=100))
        await until(lambda: running.host.in_flight.count == 1)
        os.kill(os.getpid(), number)
        await running.host.draining.wait()
        assert not serve.done()
        os.kill(os.getpid(), number)
        await serve
        with pytest.raises(TransportError), mapped_errors():
            await held
        await channel.close()


async def test_a_service_can_say_that_it_is_not_ready(serving: Serving) -> None:
    """Health follows `set_serving` for each service by name; a service that was never added is unknown."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        await running.host.set_serving("orbitmesh.v1.X", False)
        assert await check_health(channel, "orbitmesh.v1.X") == NOT_SERVING
        await running.host.set_serving("orbitmesh.v1.X", True)
        assert await check_health(channel, "orbitmesh.v1.X") == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check_health(channel, "orbitmesh.v1.Y")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await channel.close()


async def test_the_log_is_json_and_holds_no_secret(mesh: MeshDir, serving: Serving) -> None:
    """Every line parses, names the service, and none holds a key."""
    async with serving(identity=mesh.identity("scheduler/s1", lifetime=timedelta(hours=1))) as running:
        channel = running.channel(mesh.identity("executor/e"))
        with pytest.raises(grpc.aio.AioRpcError):
            await call(channel, "UnaryUnary")
        await channel.close()
        await running.host.drain(1)
        lines = [json.loads(line) for line in running.log.getvalue().splitlines()]
        assert {"call_failed", "draining", "stopped"} <= {line["event"] for line in lines}
        assert {line["service"] for line in lines} == {"scheduler/s1"}
        assert "PRIVATE KEY" not in running.log.getvalue()


async def test_retries_are_for_named_methods_only(serving: Serving) -> None:
    """A method named idempotent is sent again while UNAVAILABLE; another fails at once."""
    from orbitmesh.errors import TransportError as Broken

    async with serving() as running:
        for idempotent, calls in (((), 1), (("/test.v1.Echo/UnaryUnary",), 3)):
            running.echo.calls = 0

            async def fail_twice() -> None:
                if running.echo.calls < 3:
                    raise Broken("not yet")

            running.echo.act = fail_twice
            channel = running.channel(running.mesh.identity("client/c"), idempotent_methods=idempotent)
            if idempotent:
                assert await call(channel, "UnaryUnary") == [b"a"]
            else:
                with pytest.raises(Broken), mapped_errors():
                    await call(channel, "UnaryUnary")
            assert running.echo.calls == calls
            await channel.close()
