"""Whom a call is for: a gateway hands its callers' calls on, and says whose each is.

A service that has to know whose a call is, and not only who brings it, takes the gateway's word for that: a gateway has
checked its caller's certificate. Whatever other callers say of themselves in this way is not read.
"""

from __future__ import annotations

from typing import Any

from orbitmesh.errors import IdentityError, PermissionError_
from orbitmesh.trust.names import Role, parse_spiffe, spiffe_id
from services.runtime.caller import current_caller

BEHALF_KEY = "orbitmesh-behalf"
"""The metadata key under which a gateway says for whom it calls; its value is that identity's SPIFFE identifier."""
FOR_WHOM = frozenset({Role.CLIENT, Role.OPERATOR})
"""For whom a gateway may call."""


def behalf_metadata(spiffe: str) -> tuple[tuple[str, str], ...]:
    """What a gateway adds to a call that it makes for the one with this SPIFFE identifier."""
    return ((BEHALF_KEY, spiffe),)


def called_for(context: Any) -> tuple[Role, str]:
    """Role and name of the one that this call is for: the caller itself, or whom the gateway that calls names.

    Args:
        context: The call's gRPC context.

    Raises:
        PermissionError_: A gateway names one for whom it may not call.
    """
    caller = current_caller()
    if caller.role is not Role.GATEWAY:
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
            f"{caller.title} cannot call for {spiffe_id(role, name)}; a gateway calls for one client or operator",
            reason="NOT_YOURSELF",
            metadata={"identity": caller.spiffe, "behalf": spiffe_id(role, name)},
        )
    return role, name
