"""The data plane by itself: two services, mutual TLS, and tensors in sealed frames, each there once and to the bit.

    python examples/transfer.py

Needs no mesh: it makes a certificate authority and two identities in a temporary directory.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import sys
import tempfile
from pathlib import Path

import grpc.aio

from orbitmesh.rpc import open_channel
from orbitmesh.trust import Identity, Role, init_mesh, issue
from orbitmesh.v1 import executor_pb2_grpc, wire_pb2
from orbitmesh.wire.catalog import CodecId
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import SessionAcceptor, add_exchange, dial, open_exchange

VALUES = 100_000


async def receive(session: Session) -> None:
    """Says what came, and sends its digest back."""
    async for received in session:
        shape = list(received.info.tensor.shape)
        print(f"  took {shape}: {len(received.data)} bytes, {received.wire_bytes} on the wire")
        digest = hashlib.sha256(received.data).digest()
        await session.send(wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=1)), digest)


async def serve(identity: Identity) -> tuple[grpc.aio.Server, SessionAcceptor, int]:
    """A service that takes sessions."""
    server, acceptor = grpc.aio.server(), SessionAcceptor(identity, receive)
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(executor_pb2_grpc.ExecutorServiceServicer(), server)
    add_exchange(server, acceptor)
    credentials = grpc.ssl_server_credentials(
        [(identity.tls_key_pem, identity.tls_cert_pem)], identity.ca_pem, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, acceptor, port


async def transfer(directory: Path) -> None:
    """From sat-1 to sat-2."""
    ca = init_mesh(directory / "ca")
    one, two = (issue(ca, Role.EXECUTOR, name, directory / name) for name in ("sat-1", "sat-2"))
    server, acceptor, port = await serve(two)
    tensor = b"".join(struct.pack("<f", value / VALUES) for value in range(VALUES))
    info = wire_pb2.TransferInfo(tensor=wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_FLOAT32, shape=[VALUES]))
    async with open_channel(f"127.0.0.1:{port}", one, Role.EXECUTOR, "sat-2") as channel:
        session = await dial(open_exchange(channel), one, receiver_role="executor", receiver_name="sat-2")
        for codec in (CodecId.RAW, CodecId.EXPONENT_SPLIT_ZSTD):
            await session.send(info, tensor, codec=codec)
            answer = await session.receive()
            same = bytes(answer.data) == hashlib.sha256(tensor).digest()
            print(f"{codec.name}: {'the same bytes' if same else 'OTHER BYTES'} at the other end")
        await session.close()
    await acceptor.close()
    await server.stop(None)


def main(arguments: list[str]) -> None:
    """The whole of it."""
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(transfer(Path(directory)))


if __name__ == "__main__":
    main(sys.argv[1:])
