"""Errors cross the wire as they were raised, and defects say nothing but a reference."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from orbitmesh.errors import REASONS, InternalError, InvalidInputError, MeshError, TransportError, error_for
from orbitmesh.rpc import keep_status, map_rpc_error, mapped_errors
from tests.runtime.conftest import KINDS, call

Serving = Callable[..., Any]


def raising(error: BaseException) -> Callable[[], Any]:
    async def act() -> None:
        raise error

    return act


async def test_every_reason_arrives_with_class_metadata_and_status(serving: Serving) -> None:
    """For each reason and each kind of RPC, the client gets the class, reason, message and facts that were
    raised."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        for reason, meaning in REASONS.items():
            for kind in KINDS:
                sent = error_for(reason, f"wrong: {reason}; do better", {"free_bytes": "12"})
                sent.trace_id = "ab" * 16
                running.echo.act = raising(sent)
                with pytest.raises(MeshError) as caught, mapped_errors(address=running.address):
                    await call(channel, kind)
                got = caught.value
                assert type(got) is meaning.error
                assert (got.reason, str(got), got.trace_id) == (reason, str(sent), "ab" * 16)
                assert got.metadata == {"free_bytes": "12"}
                cause = got.__cause__
                assert isinstance(cause, grpc.aio.AioRpcError) and cause.code() is meaning.code
        await channel.close()


async def test_the_details_are_what_other_clients_read(serving: Serving) -> None:
    """grpcio-status, which is not ours, reads ErrorInfo, and RetryInfo where a retry may help."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        for reason, delay_ms in (("KV_MEMORY_EXHAUSTED", 250), ("UNKNOWN_MODEL", None)):
            running.echo.act = raising(error_for(reason, "m", {"retry_after_ms": "250"}))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "UnaryUnary")
            status = rpc_status.from_call(caught.value)
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            assert status.details[0].Unpack(info)
            assert (info.reason, info.domain) == (reason, "orbitmesh")
            assert len(status.details) == (1 if delay_ms is None else 2)
            if delay_ms is not None:
                assert status.details[1].Unpack(retry)
                assert retry.retry_delay.ToMilliseconds() == delay_ms
        await channel.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_defect_tells_the_caller_a_reference_only(serving: Serving, kind: str) -> None:
    """What an unexpected exception says stays in the log, found by the reference that the caller gets."""
    async with serving() as running:
        running.echo.act = raising(KeyError("the inner detail"))
        channel = running.channel(running.mesh.identity("client/c"))
        with pytest.raises(InternalError) as caught, mapped_errors():
            await call(channel, kind)
        await channel.close()
        assert "the inner detail" not in str(caught.value)
        lines = [json.loads(line) for line in running.log.getvalue().splitlines()]
        (line,) = [each for each in lines if each["event"] == "call_defect"]
        assert line["reference"] == caught.value.metadata["reference"]
        assert line["reference"] in str(caught.value)
        assert "the inner detail" in line["traceback"] and "Traceback" in line["traceback"]


async def test_a_group_of_meant_errors_is_its_first(serving: Serving) -> None:
    """An error raised in a TaskGroup arrives as itself; a group that holds a defect is a defect."""
    meant = InvalidInputError("bad", reason="NOT_FINITE")
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        running.echo.act = raising(ExceptionGroup("g", [ExceptionGroup("h", [meant])]))
        with pytest.raises(InvalidInputError) as caught, mapped_errors():
            await call(channel, "UnaryUnary")
        assert caught.value.reason == "NOT_FINITE"
        running.echo.act = raising(ExceptionGroup("g", [meant, ZeroDivisionError()]))
        with pytest.raises(InternalError), mapped_errors():
            await call(channel, "UnaryUnary")
        await channel.close()


async def test_cancelling_a_call_cancels_its_handler(serving: Serving) -> None:
    """A caller that gives up, or whose deadline ends, stops the work, and the call leaves the count."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        started = asyncio.Event()

        async def wait() -> None:
            started.set()
            await asyncio.sleep(60)

        running.echo.act = wait
        task = asyncio.ensure_future(call(channel, "UnaryUnary"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await running.echo.cancelled.wait()
        running.echo.cancelled.clear()
        started.clear()
        timeout_s = 0.3
        while not started.is_set():  # on a busy machine a deadline may end before its handler has begun
            with pytest.raises(MeshError) as caught, mapped_errors():
                await call(channel, "UnaryUnary", timeout=timeout_s)
            assert caught.value.reason == "DEADLINE"
            timeout_s *= 2
        await running.echo.cancelled.wait()
        assert await running.host.in_flight.wait_idle(60)
        await channel.close()


async def test_a_writer_learns_why_its_stream_was_ended(serving: Serving) -> None:
    """A client that is still writing when the server refuses gets the server's reason, every time."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("executor/e"))
        for _ in range(50):
            stream = keep_status(channel.stream_stream("/test.v1.Echo/StreamStream")())
            with pytest.raises(MeshError) as caught, mapped_errors():
                for _ in range(1000):
                    try:
                        await stream.write(b"x" * 1000)
                    except asyncio.InvalidStateError:
                        break
                await stream.read()
            assert caught.value.reason == "ROLE_NOT_ALLOWED"
        await channel.close()


async def test_a_long_error_is_cut_and_still_arrives(serving: Serving) -> None:
    """Neither a huge message nor huge metadata can make the trailers too large to send."""
    async with serving() as running:
        facts = {f"k{index}": "v" * 5000 for index in range(200)}
        running.echo.act = raising(InvalidInputError("m" * 1_000_000, metadata=facts))
        channel = running.channel(running.mesh.identity("client/c"))
        with pytest.raises(InvalidInputError) as caught, mapped_errors():
            await call(channel, "UnaryUnary")
        await channel.close()
        assert len(str(caught.value)) <= 1024


async def test_what_the_handler_sends_home_survives_its_error(serving: Serving) -> None:
    """Trailers that a handler set (timings) travel beside the details of its error."""
    async with serving() as running:

        async def handler(request: bytes, context: Any) -> bytes:
            context.set_trailing_metadata((("timing-bin", b"\x01\x02"),))
            raise InvalidInputError("bad")

        handlers = {"Timed": grpc.unary_unary_rpc_method_handler(handler)}
        generic = grpc.method_handlers_generic_handler("test.v1.Echo", handlers)
        running.host.server.add_generic_rpc_handlers((generic,))
        channel = running.channel(running.mesh.identity("client/c"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.v1.Echo/Timed")(b"", timeout=60)
        await channel.close()
        assert ("timing-bin", b"\x01\x02") in list(caught.value.trailing_metadata())
        assert isinstance(map_rpc_error(caught.value), InvalidInputError)


async def test_a_server_that_is_not_there_is_named(serving: Serving) -> None:
    """Where nothing listens the error is a TransportError with the address."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        address = running.address
        await running.host.drain(0.1)
        with pytest.raises(TransportError, match=address) as caught, mapped_errors(address=address):
            await call(channel, "UnaryUnary")
        assert caught.value.retryable
        await channel.close()


def test_details_of_another_domain_or_broken_ones_are_not_believed() -> None:
    """The status code decides where ErrorInfo is of another domain or no protobuf at all."""
    info = error_details_pb2.ErrorInfo(reason="KV_MEMORY_EXHAUSTED", domain="elsewhere")
    from google.protobuf.any_pb2 import Any as Packed
    from google.rpc import status_pb2

    packed = Packed()
    packed.Pack(info)
    foreign = status_pb2.Status(code=5, message="m", details=[packed]).SerializeToString()
    for value in (foreign, b"\xff\xff\xff"):
        error = grpc.aio.AioRpcError(
            grpc.StatusCode.NOT_FOUND,
            initial_metadata=grpc.aio.Metadata(),
            trailing_metadata=grpc.aio.Metadata(("grpc-status-details-bin", value)),
            details="m",
        )
        assert map_rpc_error(error).reason == "NOT_FOUND"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_without_details_becomes_a_listed_reason(code: grpc.StatusCode) -> None:
    """No status code leaves a client with an error outside the table."""
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="why")
    mapped = map_rpc_error(error, address="far:1")
    assert isinstance(mapped, REASONS[mapped.reason].error)
    assert "why" in str(mapped)
