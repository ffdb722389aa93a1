"""The first messages of a connection: who is there, the session's secret wrapped for it, and where to go on.

The acceptor says `Hello` with its seal certificate; the dialler checks it against the authority of the mesh,
wraps the secret of a new session to it by HPKE and says `Open`; the acceptor answers `Accept`. A session
that is taken up again needs no key: both still have it.
"""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass, field

from orbitmesh.errors import InvalidInputError, MeshError, PermissionError_, TransportError
from orbitmesh.trust import Identity, Usage, parse_spiffe, unwrap_key, verify_leaf, wrap_key
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.frames import control_message, malformed, parse_header, split_message
from orbitmesh.wire.records import CutError, SessionPeer, Wire
from orbitmesh.wire.seal import SECRET_BYTES, SessionKeys, derive_keys, session_context

VERSION = 1
"""The wire version that this module speaks."""

SESSION_ID_BYTES = 16
"""Size of a session's name."""

PROCESS_BYTES = 16
"""Size of what names an accepting process."""


@dataclass(frozen=True)
class Secret:
    """What the keys of one session come from, at the dialling end."""

    session_id: bytes = field(default_factory=lambda: secrets.token_bytes(SESSION_ID_BYTES))
    """The session's name."""
    key: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    """The secret that is wrapped."""
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES))
    """Salt of the derivation."""

    def keys(self, sender: str, receiver: str) -> SessionKeys:
        """The dialling end's keys."""
        context = session_context(self.session_id, sender, receiver, VERSION)
        return derive_keys(self.key, self.salt, context, dialler=True)


async def read_header(wire: Wire, kind: str) -> wire_pb2.FrameHeader:
    """The next message, which must be of one kind.

    Raises:
        CutError: The stream ended.
        SealError: It is another message (FRAME_MALFORMED).
    """
    message = await wire.read()
    if message is None:
        raise CutError(TransportError("the stream ended during the handshake"))
    header, body = split_message(message)
    parsed = parse_header(header)
    if not parsed.HasField(kind) or len(body):
        raise malformed(f"the handshake expected {kind}")
    return parsed


def hello(identity: Identity, process: bytes) -> bytes:
    """The acceptor's first message.

    Args:
        identity: Who it is.
        process: Random bytes that name its process.
    """
    der = ssl.PEM_cert_to_DER_cert(identity.seal_cert_pem.decode("ascii"))
    return control_message(
        wire_pb2.FrameHeader(hello=wire_pb2.Hello(seal_certificate=der, versions=[VERSION], process=process))
    )


def wrap_for(
    identity: Identity, message: wire_pb2.Hello, secret: Secret, role: str, name: str | None
) -> tuple[SessionPeer, wire_pb2.Open]:
    """Checks who says hello, and makes the message that opens a new session with it.

    Raises:
        IdentityError: The certificate is of another mesh, role or name, or outside its time.
        InvalidInputError: The acceptor does not speak our wire version (FAILED_PRECONDITION).
    """
    if VERSION not in message.versions:
        raise InvalidInputError(
            f"the peer speaks wire versions {list(message.versions)}, this end {VERSION}; run one version",
            reason="FAILED_PRECONDITION",
        )
    pem = ssl.DER_cert_to_PEM_cert(message.seal_certificate).encode("ascii")
    leaf = verify_leaf(
        pem, identity.ca, usage=Usage.SEAL, role=parse_spiffe(f"spiffe://orbitmesh/{role}/x")[0], name=name
    )
    peer = SessionPeer(leaf.spiffe, leaf.role.value, leaf.name)
    context = session_context(secret.session_id, identity.spiffe, peer.spiffe, VERSION)
    return peer, wire_pb2.Open(
        session_id=secret.session_id,
        version=VERSION,
        wrapped_key=wrap_key(secret.key, leaf.seal_public, context),
        salt=secret.salt,
        sender=identity.spiffe,
        receiver=peer.spiffe,
    )


def check_open(message: wire_pb2.Open, caller_spiffe: str, identity: Identity) -> SessionPeer:
    """Who opens a session, once it is who it says and means us.

    Raises:
        PermissionError_: It speaks for another than its TLS certificate names (NOT_YOURSELF).
        SealError: The message is malformed.
        InvalidInputError: It means another receiver or wire version (FAILED_PRECONDITION).
    """
    if message.sender != caller_spiffe:
        raise PermissionError_(
            f"{caller_spiffe} opens a session as {message.sender[:200]!r}; a peer may only speak for itself",
            reason="NOT_YOURSELF",
            metadata={"identity": caller_spiffe},
        )
    if message.receiver != identity.spiffe or message.version != VERSION:
        raise InvalidInputError(
            f"a session for {message.receiver[:200]!r} in version {message.version} came to "
            f"{identity.spiffe}, which speaks version {VERSION}; check the address",
            reason="FAILED_PRECONDITION",
        )
    if len(message.session_id) != SESSION_ID_BYTES:
        raise malformed(f"a session's name has {len(message.session_id)} bytes, expected {SESSION_ID_BYTES}")
    role, name = parse_spiffe(caller_spiffe)
    return SessionPeer(caller_spiffe, role.value, name)


def accept_keys(message: wire_pb2.Open, identity: Identity) -> SessionKeys:
    """The accepting end's keys.

    Raises:
        SealError: The wrapped key does not open or the salt has another size.
    """
    if len(message.salt) != SECRET_BYTES:
        raise malformed(f"a session's salt has {len(message.salt)} bytes, expected {SECRET_BYTES}")
    context = session_context(message.session_id, message.sender, message.receiver, VERSION)
    secret = unwrap_key(message.wrapped_key, identity.seal_private, context)
    return derive_keys(secret, message.salt, context, dialler=False)


def accept_message(next_number: int, credit_limit: int) -> bytes:
    """The answer to `Open`."""
    accept = wire_pb2.Accept(next_number=next_number, credit_limit_bytes=credit_limit)
    return control_message(wire_pb2.FrameHeader(accept=accept))


def resume_message(
    secret: Secret, sender: str, receiver: str, next_number: int, refused: MeshError | None, for_good: bool
) -> bytes:
    """What takes a session up again."""
    opening = wire_pb2.Open(
        session_id=secret.session_id,
        version=VERSION,
        sender=sender,
        receiver=receiver,
        resume=True,
        next_number=next_number,
        refused_reason=refused.reason if refused else "",
        refused_for_good=for_good,
    )
    return control_message(wire_pb2.FrameHeader(open=opening))
