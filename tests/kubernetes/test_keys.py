"""The job that makes keys, against an API that keeps secrets as a cluster does: over TLS, for a token, by version; and
the handing over of a pod's own keys."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from orbitmesh.errors import InvalidInputError
from orbitmesh.trust import IdentitySource, init_mesh, issue, load_identity
from services.kubernetes import own_identity, pki
from tests.kubernetes.checking import VERSIONS

TOKEN = "of-this-pod"
SECRETS = ["identity-gateway=gateway/gateway", "identities-executor=executor/executor-0..2"]


class Api(ThreadingHTTPServer):
    """Secrets of the namespace `mesh`: a write is judged by the published schema and the version that it replaces."""

    daemon_threads = True

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.kept: dict[str, dict[str, Any]] = {}
        self.writes: list[str] = []
        self.before_write: dict[str, Any] = {}
        """What somebody else writes just before the next write of a name."""
        self.forbidden: set[str] = set()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Api
    _PATH = "/api/v1/namespaces/mesh/secrets"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        name = self.path.removeprefix(f"{self._PATH}/")
        if self._let_in(name):
            found = self.server.kept.get(name)
            self._answer(*((200, found) if found else (404, {"message": f'secrets "{name}" not found'})))

    def do_POST(self) -> None:
        self._write("")

    def do_PUT(self) -> None:
        self._write(self.path.removeprefix(f"{self._PATH}/"))

    def _write(self, addressed: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        if not self._let_in(name):
            return
        kubernetes_validate.validate(body, VERSIONS[-1], strict=True)
        if name in self.server.before_write:
            self.server.kept[name] = self.server.before_write.pop(name)
        here = self.server.kept.get(name, {"metadata": {"resourceVersion": ""}})["metadata"]["resourceVersion"]
        assert addressed in ("", name) and bool(addressed) == bool(body["metadata"].get("resourceVersion"))
        if body["metadata"].get("resourceVersion", "") != here:
            self._answer(409, {"message": "the object has been modified"})
            return
        self.server.writes.append(name)
        body["metadata"]["resourceVersion"] = str(len(self.server.writes))
        self.server.kept[name] = body
        self._answer(200 if addressed else 201, body)

    def _let_in(self, name: str) -> bool:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"message": "Unauthorized"})
        elif name in self.server.forbidden:
            self._answer(403, {"message": f"cannot touch {name}"})
        else:
            return True
        return False

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What a pod is given to speak to its cluster with, and beside it the key of the API."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "api.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "namespace").write_text("mesh\n")
    return tmp_path


@pytest.fixture
def api(account: Path) -> Iterator[Api]:
    """The cluster's API."""
    server = Api(account / "ca.crt", account / "api.key")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def job(api: Api, account: Path, work: Path, *more: str, secrets: list[str] = SECRETS) -> int:
    return pki.main(["--api", api.url, "--account", str(account), "--work", str(work), *more, "--secrets", *secrets])


def mounted(api: Api, secret: str, to: Path) -> Path:
    """A secret as a kubelet shows it: links to files in a directory that is changed as a whole."""
    data = {name: base64.b64decode(text) for name, text in api.kept[secret]["data"].items()}
    new = to / f"..{len(api.writes)}"
    new.mkdir(parents=True)
    for name, value in data.items():
        (new / name).write_bytes(value)
        (new / name).chmod(0o440)
    (to / "..new").symlink_to(new.name)
    (to / "..new").replace(to / "..data")
    for name in data:
        if not (to / name).is_symlink():
            (to / name).symlink_to(f"..data/{name}")
    return to


def test_keys_are_made_once_and_are_good_as_a_pod_gets_them(api: Api, account: Path, tmp_path: Path) -> None:
    """One authority, one secret a service; a second run of the job finds all good and writes nothing."""
    assert job(api, account, tmp_path / "work") == 0
    assert api.writes == ["mesh-ca", "identity-gateway", "identities-executor"]
    assert job(api, account, tmp_path / "again") == 0
    assert len(api.writes) == 3
    gateway = load_identity(mounted(api, "identity-gateway", tmp_path / "gateway"))
    assert gateway.title == "gateway/gateway"
    names = set(api.kept["identities-executor"]["data"])
    assert {"executor-0.tls.key", "executor-2.rest.key"} <= names and len(names) == 24
    assert set(api.kept["mesh-ca"]["data"]) == {"ca.pem", "ca.key"}


def test_what_has_half_of_its_life_behind_it_is_renewed_and_opens_its_old_files(
    api: Api, account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New keys under the same authority, but the one for files on disk; the rest stays."""
    assert job(api, account, tmp_path / "work", "--days", "30") == 0
    before = dict(api.kept["identity-gateway"]["data"])
    monkeypatch.setattr("orbitmesh.cli.pki.datetime", _In20Days)
    assert job(api, account, tmp_path / "later", "--days", "30") == 0
    after = api.kept["identity-gateway"]["data"]
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "rest.key"}
    assert api.writes == ["mesh-ca", *(["identity-gateway", "identities-executor"] * 2)]


class _In20Days:
    """The clock of the command that decides what is due."""

    @staticmethod
    def now(zone: Any) -> Any:
        return datetime.now(zone) + timedelta(days=20)


def test_of_two_jobs_at_once_the_second_goes_on_with_what_the_first_made(
    api: Api, account: Path, tmp_path: Path
) -> None:
    """The authority that was kept first is the mesh's: nothing is issued from one that is nobody's."""
    first = Api(account / "ca.crt", account / "api.key")
    threading.Thread(target=first.serve_forever, daemon=True).start()
    assert job(first, account, tmp_path / "first") == 0
    first.shutdown()
    first.server_close()
    api.before_write = {name: dict(first.kept[name]) for name in ("mesh-ca", "identity-gateway")}
    assert job(api, account, tmp_path / "second") == 0
    assert api.kept["mesh-ca"]["data"] == first.kept["mesh-ca"]["data"]
    assert api.kept["identity-gateway"]["data"] == first.kept["identity-gateway"]["data"]
    one = load_identity(mounted(api, "identity-gateway", tmp_path / "gateway"))
    own_identity.hand(own_identity.take(mounted(api, "identities-executor", tmp_path / "all"), "executor-1"), tmp_path)
    assert load_identity(tmp_path).ca_fingerprint == one.ca_fingerprint


def test_an_api_that_refuses_or_is_not_there_ends_the_job_with_a_line(
    api: Api, account: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and what to look at; no key is in what it says."""
    api.forbidden = {"identity-gateway"}
    assert job(api, account, tmp_path / "work") == 1
    said = capsys.readouterr()
    assert "cannot touch identity-gateway; see the role `pki`" in said.err
    (account / "token").write_text("of-another")
    assert job(api, account, tmp_path / "work") == 1
    assert "Unauthorized" in capsys.readouterr().err
    gone = ["--api", "https://localhost:1", "--account", str(account), "--work", str(tmp_path)]
    gone += ["--secrets", *SECRETS]
    assert pki.main(gone) == 1
    assert "network policy `pki`" in capsys.readouterr().err
    (account / "token").unlink()
    assert pki.main(gone) == 2
    assert "automountServiceAccountToken" in capsys.readouterr().err
    assert "PRIVATE KEY" not in said.out + said.err


@pytest.mark.parametrize("entry", ["nonsense", "x=", "x=poet/me", "x=executor/e-5..4", "x=executor/e-0..1000"])
def test_an_entry_that_is_none_is_named(entry: str) -> None:
    """With what was expected instead."""
    with pytest.raises(InvalidInputError):
        pki.parse_entry(entry)


def test_a_pod_gets_its_own_keys_and_their_renewals_while_it_serves(
    api: Api, account: Path, tmp_path: Path
) -> None:
    """Of the secret of all executors, the files of one, closed to others; a running service takes what is renewed."""
    ca, secret, own = init_mesh(tmp_path / "ca"), tmp_path / "secret", tmp_path / "own"
    own.mkdir()

    def renew() -> None:
        for name in ("executor-1", "executor-10"):
            issue(ca, "executor", name, tmp_path / name)
        files = {
            f"{name}.{path.name}": base64.b64encode(path.read_bytes()).decode()
            for name in ("executor-1", "executor-10") for path in (tmp_path / name).iterdir()
        }  # fmt: skip
        api.writes.append("renewed")
        api.kept["all"] = {"data": files}
        mounted(api, "all", secret)

    renew()
    module = [sys.executable, "-m", "services.kubernetes.own_identity", "--secret", str(secret), "--to", str(own)]
    subprocess.run([*module, "--name", "executor-1"], check=True, timeout=60, capture_output=True)
    assert {path.name for path in own.iterdir()} == {path.name for path in (tmp_path / "executor-1").iterdir()}
    assert {path.stat().st_mode & 0o777 for path in own.iterdir()} == {0o600}
    identity = IdentitySource(own)
    assert identity.current().title == "executor/executor-1"
    with subprocess.Popen([*module, "--name", "executor-1", "--every", "0.02"], stderr=subprocess.DEVNULL) as beside:
        first = identity.current().tls_cert_pem
        renew()
        renewed = (tmp_path / "executor-1" / "tls.pem").read_bytes()
        deadline = time.monotonic() + 60
        while identity.current().tls_cert_pem != renewed:
            assert time.monotonic() < deadline, "the renewal has not come"
            time.sleep(0.01)
        assert first != renewed
        beside.terminate()
        assert beside.wait(60) == 0


def test_a_name_without_an_identity_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and which job issues it; also where the secret is not there at all."""
    (tmp_path / "executor-1.tls.key").write_bytes(b"x")
    words = ["--secret", str(tmp_path), "--to", str(tmp_path)]
    assert own_identity.main([*words, "--name", "executor-7"]) == 1
    assert "no identity 'executor-7': have the job pki issue it" in capsys.readouterr().err
    assert own_identity.main(["--secret", str(tmp_path / "none"), "--to", str(tmp_path), "--name", "executor-1"]) == 1
    assert "No such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["executor-1.tls.key"]
