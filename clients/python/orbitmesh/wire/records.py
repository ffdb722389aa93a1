"""What users of a session see: its peer, its reports and counters; and the connection that it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from orbitmesh.errors import MeshError, TransportError
from orbitmesh.v1 import wire_pb2


class Wire(Protocol):
    """One connection that carries a session's messages."""

    awaits_end: bool
    """Whether the other end answers `finish` with the end of its stream."""

    async def read(self) -> bytes | None:
        """The next message, None at the end of the stream; `CutError` where the connection broke."""

    async def write(self, message: bytes) -> None:
        """Hands a message to the transport; `CutError` where the connection broke."""

    async def finish(self) -> None:
        """Says that nothing more will be written."""


class CutError(Exception):
    """The connection broke; `error` says how."""

    def __init__(self, error: MeshError) -> None:
        super().__init__(error.message)
        self.error = error


class SilentError(CutError):
    """The connection was given up because nothing was heard on it; `heard_s` says since when, by the event loop."""

    def __init__(self, error: MeshError, heard_s: float) -> None:
        super().__init__(error)
        self.heard_s = heard_s


class RefusedError(Exception):
    """This end refuses a frame and asks for it again, or gives the session up where `for_good`."""

    def __init__(self, error: MeshError, for_good: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.for_good = for_good


class SessionEndError(TransportError):
    """The other end closed the session in order and everything that it sent was received."""


@dataclass(frozen=True)
class SessionPeer:
    """Who is at the other end."""

    spiffe: str
    """`spiffe://orbitmesh/<role>/<name>`, as its certificate proves."""
    role: str
    """Its role."""
    name: str
    """Its name."""

    @property
    def title(self) -> str:
        """role/name."""
        return f"{self.role}/{self.name}"


@dataclass
class SessionStats:
    """What a session has carried so far, both ways."""

    sent_frames: int = 0
    """Data frames sealed."""
    sent_bytes: int = 0
    """The messages of these, each counted once."""
    received_frames: int = 0
    """Data frames opened."""
    received_bytes: int = 0
    """The messages of these."""
    control_bytes: int = 0
    """Messages of acknowledgements, written by this end."""
    resent_frames: int = 0
    """Frames that were written again after a cut."""
    resent_bytes: int = 0
    """The messages of these."""
    resumes: int = 0
    """How often the session was taken up again."""
    credit_ns: int = 0
    """How long transfers waited for the receiver's credit, in nanoseconds."""
    turn_ns: int = 0
    """How long frames waited for their turn on the link, in nanoseconds."""
    coded: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By codec: bytes before it, and bytes sealed after it."""

    def count(self, codec: int, raw_bytes: int, coded_bytes: int) -> None:
        """Counts what a codec has done."""
        raw, coded = self.coded.get(codec, (0, 0))
        self.coded[codec] = (raw + raw_bytes, coded + coded_bytes)

    def __add__(self, other: SessionStats) -> SessionStats:
        """Both together."""
        numbers = {
            name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__ if name != "coded"
        }
        codecs = {
            codec: tuple(map(sum, zip(self.coded.get(codec, (0, 0)), other.coded.get(codec, (0, 0)), strict=True)))
            for codec in {*self.coded, *other.coded}
        }
        return SessionStats(**numbers, coded={codec: (pair[0], pair[1]) for codec, pair in codecs.items()})


class SendReport(NamedTuple):
    """What it took to send a transfer."""

    raw_bytes: int
    """Before codec and seal."""
    wire_bytes: int
    """As messages: headers, bodies, seals and their framing."""
    frames: int
    """How many frames it took."""
    codec_ns: int
    """Work of encoding, in nanoseconds; in threads, so it may overlap the rest."""
    seal_ns: int
    """Work of sealing, in nanoseconds."""
    credit_ns: int
    """Waiting for the receiver's credit, in nanoseconds."""
    total_ns: int
    """From the call until the last frame was handed to the transport, in nanoseconds."""
    queue_ns: int = 0
    """Waiting for a turn on the link, in nanoseconds; 0 without an egress."""
    waited_for: str = ""
    """What it waited for longest there, in words."""


@dataclass(slots=True, eq=False)
class Sending:
    """A transfer of several frames that is being sent."""

    info: wire_pb2.TransferInfo
    """What it is for."""
    total_bytes: int
    """Its raw bytes."""
    began_ns: int
    """When it was asked for, on the monotonic clock."""
    done_bytes: int = 0
    """Raw bytes of the frames that were sealed."""
    waits_for: str = ""
    """`slot`, `credit` or `turn` while it waits for one; else empty."""


@dataclass(slots=True)
class Received:
    """A transfer that arrived whole."""

    info: wire_pb2.TransferInfo
    """What it is for."""
    data: memoryview
    """Its raw bytes, writable; the receiver owns them."""
    received_ns: int
    """When its first frame arrived, on the monotonic clock."""
    open_ns: int
    """Work of opening and decoding, in nanoseconds."""
    wire_bytes: int
    """The messages that brought it, in bytes."""
