"""Identities: made, read, refused. OpenSSL's command line is the second opinion on certificates."""

from __future__ import annotations

import base64
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import IdentityError, InvalidInputError, MeshError
from orbitmesh.trust import (
    Identity,
    IdentitySource,
    Role,
    Usage,
    init_mesh,
    issue,
    load_identity,
    parse_spiffe,
    spiffe_id,
    verify_leaf,
)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    return init_mesh(tmp_path / "ca", mesh="leo-1")


def openssl(*arguments: str | Path) -> str:
    if shutil.which("openssl") is None:
        pytest.skip("this machine has no openssl command")
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_openssl_accepts_what_was_issued(ca: Path, tmp_path: Path) -> None:
    """Each certificate verifies against the CA, for its purpose only, and carries the names it should."""
    out = tmp_path / "sat-1"
    issue(ca, "executor", "sat-1", out)
    for usage in Usage:
        assert "OK" in openssl(
            "verify", "-x509_strict", "-CAfile", out / "ca.pem", out / f"{usage.value}.pem"
        )
    for purpose in ("sslserver", "sslclient"):
        assert "OK" in openssl("verify", "-purpose", purpose, "-CAfile", out / "ca.pem", out / "tls.pem")
        assert "OK" not in openssl("verify", "-purpose", purpose, "-CAfile", out / "ca.pem", out / "sign.pem")
    text = openssl("x509", "-in", out / "tls.pem", "-noout", "-text")
    for word in (
        "URI:spiffe://orbitmesh/executor/sat-1",
        "DNS:sat-1.executor.orbitmesh",
        "CA:FALSE",
        "prime256v1",
    ):
        assert word in text
    assert "X25519" in openssl("x509", "-in", out / "seal.pem", "-noout", "-text")
    assert "ED25519" in openssl("x509", "-in", out / "sign.pem", "-noout", "-text")


def test_what_is_issued_loads_and_shows_no_secret(ca: Path, tmp_path: Path) -> None:
    """An identity knows who it is, its files are closed to others, and its text holds no key."""
    issued = issue(ca, Role.GATEWAY, "g", tmp_path / "g")
    loaded = load_identity(tmp_path / "g")
    assert (loaded.role, loaded.name, loaded.spiffe) == (Role.GATEWAY, "g", "spiffe://orbitmesh/gateway/g")
    assert loaded.mesh == "leo-1" and loaded.ca_fingerprint == issued.ca_fingerprint
    assert timedelta(hours=23) < loaded.not_after - datetime.now(UTC) <= timedelta(hours=24)
    assert stat.S_IMODE((tmp_path / "g").stat().st_mode) == 0o700
    assert stat.S_IMODE(ca.stat().st_mode) == 0o700
    for path in (*tmp_path.glob("g/*.key"), ca / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key_line = loaded.tls_key_pem.decode().splitlines()[1]
    for text in (repr(loaded), str(loaded)):
        assert key_line not in text and "PRIVATE" not in text and "private" not in text
    assert not [path for path in (tmp_path / "g").iterdir() if path.name.startswith(".")]


def test_a_mesh_is_never_overwritten(ca: Path) -> None:
    """Making a CA where one is, is refused and leaves it as it was."""
    before = (ca / "ca.key").read_bytes()
    with pytest.raises(InvalidInputError, match="never overwritten") as caught:
        init_mesh(ca)
    assert caught.value.reason == "ALREADY_EXISTS"
    assert (ca / "ca.key").read_bytes() == before


def test_an_expired_identity_says_when_and_how_to_renew(ca: Path, tmp_path: Path) -> None:
    """Outside its time an identity is refused; renewing it in place cures it."""
    start = datetime.now(UTC) - timedelta(hours=30)
    identity = issue(ca, "executor", "sat-1", tmp_path / "x", now=start)
    with pytest.raises(IdentityError, match=r"expired at .*6 hours ago.*pki issue CA_DIR executor/sat-1"):
        load_identity(tmp_path / "x")
    assert load_identity(tmp_path / "x", allow_expired=True).not_after == identity.not_after
    assert load_identity(tmp_path / "x", now=start).name == "sat-1"
    with pytest.raises(IdentityError, match=r"begins only at .*clock"):
        load_identity(tmp_path / "x", now=start - timedelta(hours=1))
    issue(ca, "executor", "sat-1", tmp_path / "x")
    assert load_identity(tmp_path / "x").name == "sat-1"


def test_an_identity_of_another_mesh_names_both(ca: Path, tmp_path: Path) -> None:
    """A leaf under the CA of another mesh is refused with both fingerprints; so is a forged one of the same
    CA name."""
    other = init_mesh(tmp_path / "other", mesh="leo-1")
    mine = issue(ca, "client", "c", tmp_path / "c")
    theirs = issue(other, "client", "c", tmp_path / "t")
    shutil.copy(other / "ca.pem", tmp_path / "c" / "ca.pem")
    with pytest.raises(IdentityError) as caught:
        load_identity(tmp_path / "c")
    assert mine.ca_fingerprint[:16] in str(caught.value) and theirs.ca_fingerprint[:16] in str(caught.value)
    with pytest.raises(IdentityError, match="another mesh"):
        verify_leaf(mine.seal_cert_pem, theirs.ca, usage=Usage.SEAL)


@pytest.mark.parametrize(
    "name", ["ca.pem", "tls.key", "tls.pem", "seal.key", "seal.pem", "sign.key", "sign.pem"]
)
def test_each_missing_or_broken_file_is_named(ca: Path, tmp_path: Path, name: str) -> None:
    """A missing, empty or garbled file is an IdentityError that names it and says what to do."""
    out = tmp_path / "x"
    issue(ca, "executor", "sat-1", out)
    path = out / name
    for content in (b"", b"junk", b"\xff" * 100_000):
        path.write_bytes(content)
        with pytest.raises(IdentityError, match=name.replace(".", r"\.")) as caught:
            load_identity(out)
        assert "issue" in str(caught.value)
    path.unlink()
    with pytest.raises(IdentityError, match=f"there is no file .*{name}"):
        load_identity(out)
    shutil.rmtree(out)
    with pytest.raises(IdentityError, match="no identity directory"):
        load_identity(out)


@pytest.mark.parametrize("usage", list(Usage))
def test_a_key_of_another_certificate_is_refused(ca: Path, tmp_path: Path, usage: Usage) -> None:
    """A key that does not belong to its certificate, or a certificate in another's place, does not load."""
    issue(ca, "executor", "sat-1", tmp_path / "a")
    issue(ca, "executor", "sat-2", tmp_path / "b")
    shutil.copy(tmp_path / "b" / f"{usage.value}.key", tmp_path / "a" / f"{usage.value}.key")
    with pytest.raises(IdentityError, match="does not belong"):
        load_identity(tmp_path / "a")
    shutil.copy(tmp_path / "b" / f"{usage.value}.pem", tmp_path / "a" / f"{usage.value}.pem")
    with pytest.raises(IdentityError, match="several identities"):
        load_identity(tmp_path / "a")


def test_a_key_that_everybody_may_read_is_refused(ca: Path, tmp_path: Path) -> None:
    """Permission for others is refused with the cure; for a group it is allowed."""
    issue(ca, "executor", "sat-1", tmp_path / "x")
    key = tmp_path / "x" / "seal.key"
    key.chmod(0o640)
    assert load_identity(tmp_path / "x").name == "sat-1"
    key.chmod(0o644)
    with pytest.raises(IdentityError, match=r"chmod 600 .*seal\.key"):
        load_identity(tmp_path / "x")


def test_a_leaf_counts_for_its_use_role_and_name_only(ca: Path, tmp_path: Path) -> None:
    """`verify_leaf` refuses every other use, role and name, CA certificates, and edited bytes."""
    identity = issue(ca, "executor", "sat-1", tmp_path / "x")
    pems = {
        Usage.TLS: identity.tls_cert_pem,
        Usage.SEAL: identity.seal_cert_pem,
        Usage.SIGN: identity.sign_cert_pem,
    }
    for have, pem in pems.items():
        for want in Usage:
            if have is want:
                peer = verify_leaf(pem, identity.ca_pem, usage=want, role=Role.EXECUTOR, name="sat-1")
                assert (peer.title, peer.spiffe) == ("executor/sat-1", identity.spiffe)
            else:
                with pytest.raises(IdentityError, match=f"not one for {want.value}"):
                    verify_leaf(pem, identity.ca_pem, usage=want)
    seal = identity.seal_cert_pem
    assert verify_leaf(seal, identity.ca, usage=Usage.SEAL).seal_public == identity.seal_private.public_key()
    with pytest.raises(IdentityError, match="sealing key"):
        _ = verify_leaf(identity.tls_cert_pem, identity.ca, usage=Usage.TLS).seal_public
    for role, name in ((Role.GATEWAY, None), (None, "sat-2")):
        with pytest.raises(IdentityError, match=r"executor/sat-1 where .* was expected"):
            verify_leaf(seal, identity.ca, usage=Usage.SEAL, role=role, name=name)
    with pytest.raises(IdentityError):
        verify_leaf(identity.ca_pem, identity.ca, usage=Usage.TLS)
    with pytest.raises(IdentityError):
        verify_leaf(b"", identity.ca, usage=Usage.TLS)


def test_a_leaf_with_any_flipped_byte_is_refused(ca: Path, tmp_path: Path) -> None:
    """No single flipped byte of a certificate goes through."""
    identity = issue(ca, "executor", "sat-1", tmp_path / "x")
    der = x509.load_pem_x509_certificate(identity.seal_cert_pem).public_bytes(Encoding.DER)
    for index in range(len(der)):
        bad = bytearray(der)
        bad[index] ^= 0x01
        pem = (
            b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(bad)) + b"-----END CERTIFICATE-----\n"
        )
        with pytest.raises(IdentityError):
            verify_leaf(pem, identity.ca, usage=Usage.SEAL)


@pytest.mark.parametrize("name", ["", "A", "a_b", "a/b", "a.b", "ä", "x" * 64, "a b", "..", "a\n"])
def test_names_that_could_be_misread_are_refused(ca: Path, tmp_path: Path, name: str) -> None:
    """Only 1 to 63 of a-z, 0-9 and hyphen make a name; nothing is written for another."""
    with pytest.raises(InvalidInputError, match="a-z"):
        issue(ca, "executor", name, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(InvalidInputError, match="the roles are"):
        issue(ca, "admin", "a", tmp_path / "x")


@given(st.sampled_from(list(Role)), st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True))
def test_a_spiffe_identifier_reads_back(role: Role, name: str) -> None:
    """Role and name survive the way to text and back."""
    assert parse_spiffe(spiffe_id(role, name)) == (role, name)


@given(st.text(max_size=80))
def test_other_text_is_no_identifier(text: str) -> None:
    """What is not exactly an identifier is refused, never guessed at."""
    for uri in (text, "spiffe://orbitmesh/" + text, spiffe_id(Role.CLIENT, "c") + "/" + text):
        try:
            role, name = parse_spiffe(uri)
        except IdentityError:
            continue
        assert spiffe_id(role, name) == uri


def test_a_leaf_cannot_outlive_its_ca_nor_live_for_nothing(tmp_path: Path) -> None:
    """Lifetimes past the CA's end, or not above zero, are refused."""
    ca = init_mesh(tmp_path / "ca", lifetime=timedelta(hours=2))
    with pytest.raises(IdentityError, match="CA ends at"):
        issue(ca, "executor", "e", tmp_path / "x")
    with pytest.raises(InvalidInputError, match="above zero"):
        issue(ca, "executor", "e", tmp_path / "x", timedelta(0))
    assert issue(ca, "executor", "e", tmp_path / "x", timedelta(hours=1)).name == "e"
    (ca / "ca.key").chmod(0o644)
    with pytest.raises(IdentityError, match="every user"):
        issue(ca, "executor", "e", tmp_path / "x", timedelta(hours=1))
    with pytest.raises(IdentityError, match="pki init"):
        issue(tmp_path / "none", "executor", "e", tmp_path / "x")


def test_a_source_follows_renewals_and_keeps_what_works(ca: Path, tmp_path: Path) -> None:
    """`current` is the newest good identity; a broken renewal is told and the old one stays."""
    refused: list[MeshError] = []
    first = issue(ca, "executor", "e", tmp_path / "x")
    source = IdentitySource(tmp_path / "x", on_refused=refused.append)
    assert source.current() is source.current()
    second = issue(ca, "executor", "e", tmp_path / "x")
    assert source.current(max_age_s=60).tls_cert_pem == first.tls_cert_pem
    assert source.current().tls_cert_pem == second.tls_cert_pem
    (tmp_path / "x" / "tls.key").unlink()
    assert source.current().tls_cert_pem == second.tls_cert_pem
    assert "tls.key" in str(refused[-1])
    third = issue(ca, "executor", "e", tmp_path / "x")
    assert source.current().tls_cert_pem == third.tls_cert_pem


def rest_of(identity: Identity) -> bytes:
    return identity.rest_private.private_bytes_raw()


def test_a_renewal_keeps_the_key_for_files(ca: Path, tmp_path: Path) -> None:
    """Every other key is a fresh one; a directory that is issued for another mesh gets a new key for files, too."""
    first, second = (issue(ca, "executor", "sat-1", tmp_path / "x") for _ in range(2))
    assert rest_of(first) == rest_of(second) != rest_of(issue(ca, "executor", "sat-1", tmp_path / "y"))
    assert first.seal_private.private_bytes_raw() != second.seal_private.private_bytes_raw()
    assert rest_of(first) != first.seal_private.private_bytes_raw()
    other = issue(init_mesh(tmp_path / "other"), "executor", "sat-1", tmp_path / "x")
    assert rest_of(other) != rest_of(first)


def test_a_directory_without_a_key_for_files_goes_on_with_its_sealing_key(ca: Path, tmp_path: Path) -> None:
    """As earlier versions wrote it: files were protected by the sealing key, and stay readable when it is renewed."""
    before = issue(ca, "executor", "sat-1", tmp_path / "x")
    (tmp_path / "x" / "rest.key").unlink()
    seal = before.seal_private.private_bytes_raw()
    assert rest_of(load_identity(tmp_path / "x")) == seal
    assert rest_of(issue(ca, "executor", "sat-1", tmp_path / "x")) == seal


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100_000])
def test_a_broken_key_for_files_is_named(ca: Path, tmp_path: Path, content: bytes) -> None:
    """It is an IdentityError with the file's name, and so is a key of another kind."""
    out = tmp_path / "x"
    issue(ca, "executor", "sat-1", out)
    (out / "rest.key").write_bytes(content)
    with pytest.raises(IdentityError, match=r"rest\.key"):
        load_identity(out)
    shutil.copy(out / "sign.key", out / "rest.key")
    with pytest.raises(IdentityError, match=r"rest\.key is no X25519 key"):
        load_identity(out)
