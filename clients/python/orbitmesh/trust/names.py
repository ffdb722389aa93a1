"""Who may exist in a mesh: roles, names, and the SPIFFE identifier that ties both to a certificate.

An identity is called `role/name`, for instance `executor/sat-1`. Its certificates carry
`spiffe://orbitmesh/executor/sat-1`; which mesh that is is settled by the CA that signed them, never by the
text.
"""

from __future__ import annotations

import re
from enum import StrEnum

from orbitmesh.errors import IdentityError, InvalidInputError

TRUST_DOMAIN = "orbitmesh"
"""The authority part of every SPIFFE identifier of a mesh."""

NAME_MAX_CHARS = 63
"""Longest name of an identity, in characters: one DNS label."""

_NAME = re.compile(r"[a-z0-9-]{1,63}")
_SPIFFE = re.compile(rf"spiffe://{TRUST_DOMAIN}/([a-z0-9-]{{1,63}})/([a-z0-9-]{{1,63}})")


class Role(StrEnum):
    """What an identity is for; the authorization table grants methods to roles."""

    SCHEDULER = "scheduler"
    EXECUTOR = "executor"
    GATEWAY = "gateway"
    AGGREGATOR = "aggregator"
    SLICES = "slices"
    CONSTELLATION = "constellation"
    CLIENT = "client"
    OPERATOR = "operator"


def parse_role(text: str) -> Role:
    """The role of that name.

    Raises:
        InvalidInputError: There is no such role; the message lists those that exist.
    """
    try:
        return Role(text)
    except ValueError:
        known = ", ".join(role.value for role in Role)
        raise InvalidInputError(f"there is no role {text[:80]!r}; the roles are {known}") from None


def check_name(name: str) -> str:
    """`name` itself where it may be an identity's or a mesh's name.

    Raises:
        InvalidInputError: It is not 1 to 63 characters of a-z, 0-9 and hyphen.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name[:80]!r} cannot be a name; expected 1 to {NAME_MAX_CHARS} characters of a-z, 0-9 and '-'"
        )
    return name


def parse_identity_name(text: str) -> tuple[Role, str]:
    """Split `role/name` as people write it.

    Raises:
        InvalidInputError: It is not of that shape, or the role or name is not allowed.
    """
    role, slash, name = text.partition("/")
    if not slash:
        raise InvalidInputError(
            f"{text[:80]!r} is no identity; expected ROLE/NAME, for instance executor/sat-1"
        )
    return parse_role(role), check_name(name)


def spiffe_id(role: Role, name: str) -> str:
    """The SPIFFE identifier of an identity."""
    return f"spiffe://{TRUST_DOMAIN}/{role.value}/{check_name(name)}"


def dns_name(role: Role, name: str) -> str:
    """The DNS name in the TLS certificate: what a client expects of the server it dials, whatever its
    address."""
    return f"{check_name(name)}.{role.value}.{TRUST_DOMAIN}"


def role_dns_name(role: Role) -> str:
    """The DNS name that every TLS certificate of a role carries: for a client that takes any server of it."""
    return f"{role.value}.{TRUST_DOMAIN}"


def parse_spiffe(uri: str) -> tuple[Role, str]:
    """Role and name of a SPIFFE identifier.

    Raises:
        IdentityError: It is not `spiffe://orbitmesh/<role>/<name>` with a known role.
    """
    match = _SPIFFE.fullmatch(uri)
    roles = {role.value for role in Role}
    if match is None or match.group(1) not in roles:
        raise IdentityError(
            f"{uri[:200]!r} names no identity of a mesh; expected spiffe://{TRUST_DOMAIN}/<role>/<name>; "
            "issue certificates with `orbitmesh pki issue`"
        )
    return Role(match.group(1)), match.group(2)
