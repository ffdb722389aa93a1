"""What gateways share through a database: generations that can be taken up again, packs and their files.

One of them leads and writes; the next one finds here what it acknowledged. What is said of generations is sealed with
a key that every gateway of the mesh has by file, so that whoever runs the database reads no prompt. Packs lie there as
they are: they are signed, and nobody uses a byte of them that does not fit the manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, MetaData, Table, Text, delete, select

from orbitmesh.errors import IntegrityError, InvalidInputError, PackError, SealError
from orbitmesh.trust.files import read_private
from services.runtime.store import Database, Layout, Location
from services.runtime.store.layout import NUMBER

CHUNK_BYTES = 1 << 20
"""How much of a file is in one row, in bytes."""
KEY_BYTES = 32
NONCE_BYTES = 12
KEY_CURE = "write 32 random bytes into it as 64 hexadecimal digits (openssl rand -hex 32), the same for every gateway"
_CHECK = b"orbitmesh"

TABLES = MetaData()
FACTS = Table("facts", TABLES, Column("name", Text, primary_key=True), Column("value", LargeBinary, nullable=False))
GENERATIONS = Table(
    "generations", TABLES, Column("number", Text, primary_key=True), Column("head", LargeBinary, nullable=False)
)
PROGRESS = Table(
    "progress",
    TABLES,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("number", Text, ForeignKey("generations.number", ondelete="CASCADE"), nullable=False, index=True),
    Column("record", LargeBinary, nullable=False),
)
MANIFESTS = Table(
    "manifests", TABLES, Column("sha256", Text, primary_key=True), Column("manifest", LargeBinary, nullable=False)
)
FILES = Table(
    "files", TABLES, Column("sha256", Text, primary_key=True), Column("size_bytes", BigInteger, nullable=False)
)
"""The files that are there whole."""
CHUNKS = Table(
    "chunks",
    TABLES,
    Column("sha256", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
LAYOUT = Layout("gateway", TABLES)


class RecordKey:
    """Seals records: AES-256-GCM under a random nonce, bound to what the record is of.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def read(cls, path: Path | None) -> RecordKey:
        """The key in a file.

        Raises:
            InvalidInputError: No file was named, or it holds no key.
            IdentityError: It cannot be read, or everybody can read it.
        """
        if path is None:
            raise InvalidInputError(
                f"gateways that share a store need the same key for it: --record-key FILE; {KEY_CURE}"
            )
        text = read_private(path, cure=KEY_CURE).strip()
        try:
            key = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise InvalidInputError(f"{path} holds no key of records: {KEY_CURE}")
        return cls(key)

    def seal(self, data: bytes, of: str) -> bytes:
        """A record that opens as the same thing only."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, _bound(of))

    def open(self, sealed: bytes, of: str) -> bytes:
        """What was sealed.

        Raises:
            SealError: It was sealed with another key, as something else, or was changed.
        """
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(of))
        except (InvalidTag, ValueError):
            raise SealError(f"the record of {of} was sealed with another key, or was changed") from None


class SharedStore:
    """The database of the gateways. Blocks; safe from any thread.

    Args:
        location: Where.
        key: What seals.

    Raises:
        MeshError: It cannot be opened.
    """

    def __init__(self, location: Location, key: RecordKey) -> None:
        self.database = Database(location, LAYOUT)
        self._key = key

    def check_key(self) -> None:
        """Looks whether the key is that of the gateways before; the first one leaves a proof of its own.

        Raises:
            InvalidInputError: It is another one.
        """
        with self.database.transaction() as connection:
            put = self.database.insert(FACTS).on_conflict_do_nothing()
            connection.execute(put, {"name": "key", "value": self._key.seal(_CHECK, "key")})
            sealed = connection.execute(select(FACTS.c.value).where(FACTS.c.name == "key")).scalar_one()
        try:
            self._key.open(sealed, "key")
        except SealError:
            raise InvalidInputError(
                f"--record-key is another key than the gateways of {self.database.where} had: give each of them the "
                "same file"
            ) from None

    # Generations.

    def begin(self, number: str, head: bytes) -> None:
        """Writes a new generation down; durable on return."""
        with self.database.transaction() as connection:
            connection.execute(GENERATIONS.insert(), {"number": number, "head": self._key.seal(head, number)})

    def go_on(self, progress: Mapping[str, Sequence[bytes]], gone: Sequence[str]) -> None:
        """Writes down how far generations are, and forgets others; all or nothing."""
        rows = [
            {"number": number, "record": self._key.seal(record, number)}
            for number, records in progress.items()
            for record in records
            if number not in gone
        ]
        with self.database.transaction() as connection:
            if rows:
                connection.execute(PROGRESS.insert(), rows)
            for number in gone:
                connection.execute(delete(GENERATIONS).where(GENERATIONS.c.number == number))

    def generations(self) -> list[tuple[str, bytes, list[bytes]]]:
        """Every generation: its number, its head, how far it got; sealed."""
        with self.database.reading() as connection:
            heads = connection.execute(GENERATIONS.select().order_by(GENERATIONS.c.number)).all()
            told: dict[str, list[bytes]] = {}
            asked = select(PROGRESS.c.number, PROGRESS.c.record).order_by(PROGRESS.c.id)
            for number, record in connection.execute(asked):
                told.setdefault(number, []).append(record)
        return [(number, head, told.get(number, [])) for number, head in heads]

    def opened(self, sealed: bytes, number: str) -> bytes:
        """A record of a generation.

        Raises:
            SealError: It was changed.
        """
        return self._key.open(sealed, number)

    # Packs.

    def put_manifest(self, manifest: bytes) -> None:
        """Registers a pack; durable on return."""
        row = {"sha256": hashlib.sha256(manifest).hexdigest(), "manifest": manifest}
        with self.database.transaction() as connection:
            connection.execute(self.database.insert(MANIFESTS).on_conflict_do_nothing(), row)

    def manifests(self) -> dict[str, bytes]:
        """Every pack, by the hash of its manifest."""
        with self.database.reading() as connection:
            rows = connection.execute(MANIFESTS.select().order_by(MANIFESTS.c.sha256)).all()
        found = {sha256: bytes(manifest) for sha256, manifest in rows}
        for sha256, manifest in found.items():
            if hashlib.sha256(manifest).hexdigest() != sha256:
                raise IntegrityError(f"a manifest in {self.database.where} was changed: restore it from a backup")
        return found

    def has(self, sha256: bytes) -> bool:
        """Whether all of a file is there."""
        asked = select(FILES.c.size_bytes).where(FILES.c.sha256 == sha256.hex())
        with self.database.reading() as connection:
            return connection.execute(asked).first() is not None

    def put(self, sha256: bytes, path: Path, first: int, size_bytes: int | None) -> int:
        """Writes the rows of a file that is arriving, or has arrived; durable on return.

        Args:
            sha256: The file.
            path: Where its bytes are, as far as they have come.
            first: The first row that is not written yet.
            size_bytes: Its size where all of it is there and its hash is right: then it counts. None: only whole rows
                are written, and it counts as not there.

        Returns:
            The first row that is not written yet, afterwards.
        """
        put = self.database.insert(CHUNKS)
        put = put.on_conflict_do_update(
            index_elements=[CHUNKS.c.sha256, CHUNKS.c.number], set_={"data": put.excluded.data}
        )
        number = first
        with path.open("rb") as file:
            file.seek(number * CHUNK_BYTES)
            while data := file.read(CHUNK_BYTES):
                if len(data) < CHUNK_BYTES and size_bytes is None:
                    return number
                # A transaction each: none lasts long, whatever the file's size.
                with self.database.transaction() as connection:
                    connection.execute(put, {"sha256": sha256.hex(), "number": number, "data": data})
                number += 1
        if size_bytes is not None:
            with self.database.transaction() as connection:
                row = {"sha256": sha256.hex(), "size_bytes": size_bytes}
                connection.execute(self.database.insert(FILES).on_conflict_do_nothing(), row)
        return number

    def read(self, sha256: bytes, offset: int, count: int) -> bytes:
        """A piece of a file that is there; fewer bytes than asked for, but at least one, where there are any.

        Raises:
            PackError: A part of it is missing.
        """
        number, skip = divmod(offset, CHUNK_BYTES)
        asked = select(CHUNKS.c.data).where(CHUNKS.c.sha256 == sha256.hex(), CHUNKS.c.number == number)
        with self.database.reading() as connection:
            data = connection.execute(asked).scalar_one_or_none()
        if data is None:
            if offset == 0:
                return b""
            raise PackError(
                f"a part of file {sha256.hex()[:12]} is not in {self.database.where}: restore it from a backup"
            )
        return bytes(data[skip : skip + count])

    def size_bytes(self, sha256: bytes) -> int | None:
        """How many bytes a file has; None where it is not there."""
        asked = select(FILES.c.size_bytes).where(FILES.c.sha256 == sha256.hex())
        with self.database.reading() as connection:
            return connection.execute(asked).scalar_one_or_none()

    def close(self) -> None:
        """Closes it."""
        self.database.close()


def _bound(of: str) -> bytes:
    return b"orbitmesh/v1/gateway-store\x00" + of.encode()
