"""Whom a call is for: a gateway hands its callers' calls on, and says whose each is; an aggregator keeps the runs of
its callers in their slices.

A service that has to know whose a call is, and not only who brings it, takes their word for that: they have checked
their caller's certificate. Whatever other callers say of themselves in this way is not read.
"""

from __future__ import annotations

from typing import Any

from orbitmesh.errors import IdentityError, PermissionError_
from orbitmesh.trust.names import Role, parse_spiffe, spiffe_id
from services.runtime.caller import current_caller

BEHALF_KEY = "orbitmesh-behalf"
"""The metadata key that says for whom a call is; its value is that identity's SPIFFE identifier."""
SPEAKERS = frozenset({Role.GATEWAY, Role.AGGREGATOR})
"""Who may call for others; which methods, the table of authorization says."""
FOR_WHOM = frozenset({Role.CLIENT, Role.OPERATOR})
"""For whom they may."""


def behalf_metadata(spiffe: str) -> tuple[tuple[str, str], ...]:
    """What is added to a call that is made for the one with this SPIFFE identifier."""
    return ((BEHALF_KEY, spiffe),)


def called_for(context: Any) -> tuple[Role, str]:
    """Role and name of the one that this call is for: the caller itself, or whom the gateway or aggregator that calls
    names.

    Args:
        context: The call's gRPC context.

    Raises:
        PermissionError_: It names one for whom nobody may call.
    """
    caller = current_caller()
    if caller.role not in SPEAKERS:
        return caller.role, caller.name
    named = [value for key, value in (context.invocation_metadata() or ()) if key == BEHALF_KEY]
    if not named:
        return caller.role, caller.name
    try:
        role, name = parse_spiffe(str(named[0]))
    except IdentityError as error:
        raise PermissionError_(f"{caller.title} calls for nobody that is known: {error.message}") from None
    if len(named) > 1 or role not in FOR_WHOM:
        raise PermissionError_(
            f"{caller.title} cannot call for {spiffe_id(role, name)}; it calls for one client or operator",
            reason="NOT_YOURSELF",
            metadata={"identity": caller.spiffe, "behalf": spiffe_id(role, name)},
        )
    return role, name
