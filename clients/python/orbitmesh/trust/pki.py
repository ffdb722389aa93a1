"""The mesh's certificate authority: `init_mesh` makes one, `issue` has it vouch for an identity.

The CA is a directory with `ca.pem` and `ca.key`; it stays on the operator's machine. Leaf certificates live
for hours, so a lost key is cured by waiting or by making the mesh anew, and there is no list of revoked ones.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from orbitmesh.durable import write_durably
from orbitmesh.errors import IdentityError, InvalidInputError
from orbitmesh.trust.certificates import Usage, build_ca, build_leaf, parse_certificate, stamp
from orbitmesh.trust.files import (
    PRIVATE_MODE,
    PUBLIC_MODE,
    make_directory,
    read_private,
    read_public,
)
from orbitmesh.trust.identity import REST_KEY, Identity, PrivateKey, load_identity
from orbitmesh.trust.names import Role, check_name, parse_role

CA_LIFETIME = timedelta(days=3650)
"""How long a mesh's CA lives unless asked otherwise."""
SERVICE_LIFETIME = timedelta(hours=24)
"""How long a service's certificates live unless asked otherwise."""
PERSON_LIFETIME = timedelta(days=30)
"""How long a client's or operator's certificates live unless asked otherwise."""

_PEOPLE = frozenset({Role.CLIENT, Role.OPERATOR})


def default_lifetime(role: Role) -> timedelta:
    """How long certificates of a role live where nothing was said."""
    return PERSON_LIFETIME if role in _PEOPLE else SERVICE_LIFETIME


def init_mesh(
    directory: Path | str,
    *,
    mesh: str = "orbitmesh",
    lifetime: timedelta = CA_LIFETIME,
    now: datetime | None = None,
) -> Path:
    """Make the CA of a new mesh.

    Args:
        directory: Where `ca.pem` and `ca.key` go; made where missing, closed to other users.
        mesh: The mesh's name, shown in messages.
        lifetime: How long the CA lives.
        now: The moment at which it begins; the present where left out.

    Returns:
        The directory.

    Raises:
        InvalidInputError: The directory already holds a CA (reason ALREADY_EXISTS), or the name is not
            allowed.
    """
    path = Path(directory).expanduser()
    check_name(mesh)
    if lifetime <= timedelta(0):
        raise InvalidInputError("a CA needs a lifetime above zero; give --days 1 or more")
    if (path / "ca.key").exists() or (path / "ca.pem").exists():
        raise InvalidInputError(
            f"{path} already holds a mesh's CA, which is never overwritten; choose another directory or "
            "remove it",
            reason="ALREADY_EXISTS",
            metadata={"path": path},
        )
    make_directory(path)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = build_ca(key, mesh, now or datetime.now(UTC), lifetime)
    write_durably(path / "ca.key", _key_pem(key), mode=PRIVATE_MODE)
    write_durably(path / "ca.pem", certificate.public_bytes(Encoding.PEM), mode=PUBLIC_MODE)
    return path


def issue(
    ca_dir: Path | str,
    role: Role | str,
    name: str,
    out_dir: Path | str,
    lifetime: timedelta | None = None,
    *,
    now: datetime | None = None,
) -> Identity:
    """Make, or renew with fresh keys, an identity directory. What the identity has on disk stays readable: `rest.key`
    is made once for each mesh.

    Args:
        ca_dir: What `init_mesh` made.
        role: What the identity is for.
        name: Its name: 1 to 63 characters of a-z, 0-9 and hyphen.
        out_dir: Where its eight files go; existing ones but `rest.key` are replaced, each at once.
        lifetime: How long the certificates live; a day for services, 30 for people where left out.
        now: The moment at which they begin; the present where left out.

    Returns:
        The identity as written, not checked against the present.

    Raises:
        IdentityError: The CA is missing, damaged or ends before the certificates would.
        InvalidInputError: Role, name or lifetime is not allowed.
    """
    role = parse_role(role)
    check_name(name)
    span = lifetime if lifetime is not None else default_lifetime(role)
    if span <= timedelta(0):
        raise InvalidInputError("an identity needs a lifetime above zero; give --hours or --days 1 or more")
    begin = now or datetime.now(UTC)
    source, target = Path(ca_dir).expanduser(), Path(out_dir).expanduser()
    cure = f"make the mesh first: `orbitmesh pki init {source}`"
    ca_pem = read_public(source / "ca.pem", cure)
    ca = parse_certificate(ca_pem, str(source / "ca.pem"))
    ca_key = _load_ca_key(source / "ca.key", cure)
    if ca_key.public_key() != ca.public_key():
        raise IdentityError(
            f"{source / 'ca.key'} does not belong to {source / 'ca.pem'}; restore both from one copy"
        )
    if begin + span > ca.not_valid_after_utc:
        raise IdentityError(
            f"the mesh's CA ends at {stamp(ca.not_valid_after_utc)}, before the certificates would at "
            f"{stamp(begin + span)}; ask for a shorter life or make the mesh anew"
        )
    make_directory(target)
    rest = _key_at_rest(target, ca_pem)
    # Certificates last, and the TLS pair first: a reader that meets the gap sees a key that does not match
    # and waits.
    if rest is not None:
        write_durably(target / REST_KEY, rest, mode=PRIVATE_MODE)
    write_durably(target / "ca.pem", ca_pem, mode=PUBLIC_MODE)
    for usage in Usage:
        key = _new_key(usage)
        certificate = build_leaf(ca, ca_key, key.public_key(), usage, role, name, begin, span)
        write_durably(target / f"{usage.value}.key", _key_pem(key), mode=PRIVATE_MODE)
        write_durably(target / f"{usage.value}.pem", certificate.public_bytes(Encoding.PEM), mode=PUBLIC_MODE)
    return load_identity(target, allow_expired=True)


def _key_at_rest(target: Path, ca_pem: bytes) -> bytes | None:
    """The key for files that an identity directory is to get; None where it has the one of this mesh already."""
    known = target / "ca.pem"
    if known.exists() and read_public(known, "") == ca_pem:
        if (target / REST_KEY).exists():
            return None
        # An earlier version protected files by the sealing key: what it wrote stays readable.
        if (target / "seal.key").exists():
            return read_private(target / "seal.key", "")
    return _key_pem(X25519PrivateKey.generate())


def _new_key(usage: Usage) -> PrivateKey:
    if usage is Usage.TLS:
        return ec.generate_private_key(ec.SECP256R1())
    return X25519PrivateKey.generate() if usage is Usage.SEAL else Ed25519PrivateKey.generate()


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_ca_key(path: Path, cure: str) -> EllipticCurvePrivateKey:
    pem = read_private(path, cure)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise IdentityError(f"{path} is no PEM private key; restore it or make the mesh anew") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise IdentityError(f"{path} holds no ECDSA key; restore it or make the mesh anew")
    return key
