"""Several addresses of one role: what gRPC is given for them."""

from __future__ import annotations

import socket

import pytest

from orbitmesh.errors import InvalidInputError, TransportError
from orbitmesh.rpc import is_several, target_of


def test_several_addresses_become_one_target() -> None:
    """One stays as it is, names become addresses, and the same one counts once; the resolver has the same opinion."""
    assert target_of("gateway.example:7443") == "gateway.example:7443"
    assert target_of("dns:///gateways:7443") == "dns:///gateways:7443"
    assert target_of("10.0.0.1:1, 10.0.0.2:2") == "ipv4:10.0.0.1:1,10.0.0.2:2"
    assert target_of("[::1]:1,[::2]:2") == "ipv6:[::1]:1,[::2]:2"
    known = {found[4][0] for found in socket.getaddrinfo("localhost", 5, socket.AF_INET)}
    assert set(target_of("localhost:5,127.0.0.1:5").removeprefix("ipv4:").split(",")) == {f"{a}:5" for a in known}
    assert not is_several("a:1")
    assert all(is_several(each) for each in ("a:1,b:2", "dns:///a:1", "ipv4:1.2.3.4:1"))


def test_what_is_no_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is no host:port is a wrong setting; names that nobody knows are tried again."""
    with pytest.raises(InvalidInputError, match="'b' is no host:port"):
        target_of("10.0.0.1:1,b")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TransportError, match="a:1, b:2") as refused:
        target_of("a:1,b:2")
    assert refused.value.retryable
