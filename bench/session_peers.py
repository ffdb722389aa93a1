"""What `bench/wire.py` and `bench/hop.py` share: the servers, a process each, and mTLS identities.

python bench/session_peers.py KIND IDENTITY_DIRECTORY        serves one kind; prints its port
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from orbitmesh.rpc import channel_options, open_channel
from orbitmesh.trust import Identity, Role, load_identity
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire import handshake as handshake_module
from orbitmesh.wire.seal import SessionKeys
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import SessionAcceptor, add_exchange, dial, open_exchange

UNSEALED = "ours-unsealed"
SEALED = "ours"
FLIGHT = "flight"
GRPC = "grpc"
TORCH = "torch"

HERE = str(Path(__file__).resolve())
ECHO_TAG = 1
SINK_TAG = 2


class NullCipher:
    """Copies instead of sealing, with a tag of zeros: only the cipher differs. For benches only."""

    def seal(self, index: int, last: bool, header: bytes, data: Any) -> bytes:
        """Copies."""
        return b"".join((data, bytes(16)))

    def seal_into(self, index: int, last: bool, header: bytes, data: Any, out: memoryview) -> None:
        """Copies."""
        out[:-16] = data
        out[-16:] = bytes(16)

    def open(self, index: int, last: bool, header: bytes, body: Any) -> bytes:
        """Copies."""
        return bytes(body[:-16])

    def open_into(self, index: int, last: bool, header: bytes, body: Any, out: memoryview) -> None:
        """Copies."""
        out[:] = body[:-16]


class NullKeys:
    """Gives every transfer the cipher that does nothing."""

    def transfer(self, number: int) -> NullCipher:
        """The cipher that does nothing."""
        return NullCipher()


def null_keys(*_arguments: Any, **_options: Any) -> SessionKeys:
    """Stands where keys are derived."""
    return SessionKeys(NullKeys(), NullKeys())  # type: ignore[arg-type]


async def answer(session: Session) -> None:
    """Sends back what is tagged so, confirms the rest with an empty transfer."""
    async for received in session:
        if received.info.blob.tag == ECHO_TAG:
            await session.send(received.info, received.data)
        else:
            await session.send(wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=SINK_TAG)))


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """mTLS, as a service of the mesh has it."""
    return grpc.ssl_server_credentials(
        [(identity.tls_key_pem, identity.tls_cert_pem)], identity.ca_pem, require_client_auth=True
    )


async def serve_grpc(identity: Identity, *, sealed: bool | None) -> None:
    """Our sessions (sealed or not), or plain gRPC where `sealed` is None."""
    server = grpc.aio.server(options=channel_options())
    if sealed is None:
        service, handlers = plain_handlers()
        server.add_registered_method_handlers(service, handlers)
    else:
        if not sealed:
            handshake_module.derive_keys = null_keys
        add_exchange(server, SessionAcceptor(identity, answer))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def plain_handlers() -> tuple[str, dict[str, Any]]:
    """A bare gRPC peer: bytes in, bytes out, nothing of ours."""

    async def unary(request: bytes, context: Any) -> bytes:
        return request

    async def bidi(requests: AsyncIterator[bytes], context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)

    async def sink(requests: AsyncIterator[bytes], context: Any) -> None:
        # Puts each tensor together, as any receiver must; an empty message ends it and is answered.
        size = int(dict(context.invocation_metadata())["size"])
        tensor, at = memoryview(bytearray(size)), 0
        while (message := await context.read()) is not grpc.aio.EOF:
            if message:
                tensor[at : at + len(message)] = message
                at += len(message)
            else:
                tensor, at = memoryview(bytearray(size)), 0
                await context.write(b"done")

    return "bench.Plain", {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
        "Sink": grpc.stream_stream_rpc_method_handler(sink),
    }


def serve_flight(identity: Identity) -> None:
    """An Arrow Flight server that takes record batches and confirms each tensor.

    Asked with `together`, it puts a tensor's batches into one piece of memory, as whoever computes with it needs it;
    else it drops each batch when the next one comes.
    """
    import numpy
    import pyarrow
    from pyarrow import flight

    class Server(flight.FlightServerBase):
        def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
            together, at = descriptor.command.startswith(b"together"), 0
            size = int(descriptor.command.rpartition(b" ")[2])
            tensor = numpy.empty(size, numpy.uint8)
            for chunk in reader:
                if together:
                    column = chunk.data.column(0)
                    tensor[at : at + len(column)] = column.to_numpy(zero_copy_only=True)
                    at += len(column)
                    if at == size:
                        tensor, at = numpy.empty(size, numpy.uint8), 0
                if chunk.app_metadata is not None and chunk.app_metadata.to_pybytes() == b"end":
                    writer.write(pyarrow.py_buffer(b"done"))

    pair = (identity.tls_cert_pem, identity.tls_key_pem)
    server = Server(
        "grpc+tls://127.0.0.1:0",
        tls_certificates=[pair],
        verify_client=True,
        root_certificates=identity.ca_pem,
    )
    print(server.port, flush=True)
    server.serve()


def serve_torch(port: int) -> None:
    """The other worker of torch.distributed.rpc."""
    import torch
    from torch.distributed import rpc

    torch.set_num_threads(1)
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://127.0.0.1:{port}", num_worker_threads=2)
    rpc.init_rpc("server", rank=1, world_size=2, rpc_backend_options=options)
    rpc.shutdown()


@asynccontextmanager
async def peer(kind: str, identity: Identity, extra: Sequence[str] = ()) -> AsyncIterator[int]:
    """Runs one server process while in use; gives its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        HERE,
        kind,
        str(identity.directory),
        *extra,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if kind == TORCH:
            yield 0
            return
        assert process.stdout is not None
        yield int(await asyncio.wait_for(process.stdout.readline(), 60))
    finally:
        if process.returncode is None and kind != TORCH:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)


@asynccontextmanager
async def our_session(port: int, identity: Identity, *, sealed: bool) -> AsyncIterator[Session]:
    """Our session to a server of `serve_grpc`."""
    derive = handshake_module.derive_keys
    async with open_channel(f"127.0.0.1:{port}", identity, Role.EXECUTOR, "two") as channel:
        if not sealed:
            handshake_module.derive_keys = null_keys
        try:
            session = await dial(
                open_exchange(channel), identity, receiver_role="executor", receiver_name="two"
            )
        finally:
            handshake_module.derive_keys = derive
        try:
            yield session
        finally:
            await session.close()


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "system": platform.system(),
        "load_average": os.getloadavg(),
    }


def main() -> None:
    """Serves one kind."""
    kind, directory, *rest = sys.argv[1:]
    identity = load_identity(directory)
    if kind == FLIGHT:
        serve_flight(identity)
    elif kind == TORCH:
        serve_torch(int(rest[0]))
    else:
        asyncio.run(serve_grpc(identity, sealed={SEALED: True, UNSEALED: False, GRPC: None}[kind]))


if __name__ == "__main__":
    main()
