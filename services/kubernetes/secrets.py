"""Secrets of one namespace, over the cluster's own API: read, make, replace. Nothing else of it is needed, so no client
library is."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from orbitmesh.errors import InvalidInputError, PermissionError_, TransportError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod has its token, the API's CA and its namespace."""
DEADLINE_S = 30.0
"""How long the API may take for one call, in seconds."""
ANSWER_BYTES_MAX = 4 << 20
"""The largest answer that is read, in bytes; a secret holds at most 1 MiB, in base64."""
LABELS = {"app.kubernetes.io/name": "orbitmesh", "app.kubernetes.io/component": "pki"}
"""What secrets are marked with."""


class ConflictError(Exception):
    """Somebody else made or replaced the secret in between."""


class Secrets:
    """The secrets of a namespace.

    Args:
        api: The API's address, `https://host:port`.
        account: A directory with `token`, `ca.crt` and `namespace`.

    Raises:
        InvalidInputError: The address is none, or the directory is not whole.
    """

    def __init__(self, api: str, account: Path = ACCOUNT) -> None:
        parts = urlsplit(api)
        if parts.scheme != "https" or not parts.hostname:
            raise InvalidInputError(f"--api is {api!r}; expected https://host:port")
        try:
            self._token_file = account / "token"
            self._token_file.read_text(encoding="ascii")
            self._namespace = (account / "namespace").read_text(encoding="ascii").strip()
            self._context = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"{account} holds no account of a pod ({error}); set automountServiceAccountToken: true"
            ) from error
        self._host, self._port = parts.hostname, parts.port or 443

    def read(self, name: str) -> tuple[dict[str, bytes], str]:
        """The files of a secret and its version; nothing and no version where there is none.

        Raises:
            TransportError: The API does not answer, or not what it should.
            PermissionError_: It refuses.
        """
        status, answer = self._call("GET", name)
        if status == 404:
            return {}, ""
        self._expect(status, answer, f"read the secret {name}")
        try:
            files = {key: base64.b64decode(text, validate=True) for key, text in (answer.get("data") or {}).items()}
            return files, str(answer["metadata"]["resourceVersion"])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise TransportError(f"the API's answer for the secret {name} is none: {error!r:.80}") from error

    def write(self, name: str, files: dict[str, bytes], version: str) -> None:
        """Make a secret, or replace the version that was read.

        Raises:
            ConflictError: Another one is there.
            TransportError: The API does not answer.
            PermissionError_: It refuses.
        """
        metadata: dict[str, Any] = {"name": name, "namespace": self._namespace, "labels": LABELS}
        if version:
            metadata["resourceVersion"] = version
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": metadata,
            "data": {key: base64.b64encode(value).decode() for key, value in sorted(files.items())},
        }
        status, answer = self._call("PUT", name, secret) if version else self._call("POST", "", secret)
        if status == 409:
            raise ConflictError(name)
        self._expect(status, answer, f"write the secret {name}")

    def _call(self, method: str, name: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        path = f"/api/v1/namespaces/{quote(self._namespace)}/secrets" + (f"/{quote(name)}" if name else "")
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=DEADLINE_S, context=self._context)
        # Read again for every call: the cluster renews it.
        headers = {
            "Authorization": f"Bearer {self._token_file.read_text(encoding='ascii').strip()}",
            "Content-Type": "application/json",
        }
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read(ANSWER_BYTES_MAX + 1)
            if len(data) > ANSWER_BYTES_MAX:
                raise TransportError(f"the API answers {method} {path} with more than {ANSWER_BYTES_MAX} bytes")
            answer = json.loads(data) if data else {}
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TransportError(
                f"the cluster's API at {self._host}:{self._port} does not answer {method} {path}: {error}; the network "
                "policy `pki` must let the job reach it"
            ) from error
        finally:
            connection.close()
        return response.status, answer if isinstance(answer, dict) else {}

    @staticmethod
    def _expect(status: int, answer: dict[str, Any], what: str) -> None:
        if 200 <= status < 300:
            return
        said = str(answer.get("message", ""))[:200]
        if status in (401, 403):
            raise PermissionError_(f"the cluster does not let this job {what}: {said}; see the role `pki`")
        raise TransportError(f"the cluster's API cannot {what}: {status} {said}")
