"""Who may do what with which slice. Pure.

Operators do everything. A client does what it likes with slices of its own tenant, whose name is the one in its
certificate; it is told the same of the slices of others as of slices that do not exist. A gateway admits work, gives it
back and looks, for whomever it names; an aggregator admits and gives back. Nodes and the aggregator look and report.
"""

from __future__ import annotations

from dataclasses import dataclass

from orbitmesh.errors import InvalidInputError, PermissionError_
from orbitmesh.trust.names import Role, check_name
from services.slices.values import Book, Slice


@dataclass(frozen=True)
class Caller:
    """For whom a call is."""

    role: Role
    """Its role."""
    name: str
    """Its name; of a client and an operator also that of its tenant."""

    @property
    def title(self) -> str:
        """`role/name`."""
        return f"{self.role}/{self.name}"

    @property
    def bounded(self) -> bool:
        """Whether it sees the slices of its own tenant alone."""
        return self.role is Role.CLIENT


def may_change(caller: Caller) -> None:
    """Lets clients and operators pass: who changes slices is a person's identity.

    Raises:
        PermissionError_: The caller is a service.
    """
    if caller.role not in (Role.CLIENT, Role.OPERATOR):
        raise PermissionError_(
            f"{caller.title} may not define, compute or change slices; clients and operators may",
            metadata={"role": caller.role.value, "allowed_roles": "client, operator"},
        )


def own(caller: Caller, book: Book, name: str) -> Slice:
    """A slice that the caller may see and use.

    Raises:
        PermissionError_: `SLICE_NOT_YOURS`, for slices of others and for those that do not exist alike.
        InvalidInputError: `NOT_FOUND`, where the caller may know.
    """
    held = book.slices.get(name)
    if caller.bounded and (held is None or held.promise.tenant != caller.name):
        raise not_yours(caller, name)
    return book.get(name)


def not_yours(caller: Caller, name: str) -> PermissionError_:
    """The refusal of a slice of somebody else, or of nobody."""
    return PermissionError_(
        f"{caller.title} has no slice {name[:63]!r}; use one of your own, or ask an operator",
        reason="SLICE_NOT_YOURS",
        metadata={"slice": name[:63], "identity": caller.title},
    )


def visible(caller: Caller, book: Book, tenant: str = "") -> list[Slice]:
    """The slices that the caller may see, by name.

    Args:
        caller: Who.
        book: The state.
        tenant: Only of this tenant; empty means all.

    Raises:
        PermissionError_: `NOT_YOURSELF`, a client asks for those of another.
    """
    wanted = tenant_for(caller, tenant) if caller.bounded or tenant else ""
    return [book.slices[name] for name in sorted(book.slices) if wanted in ("", book.slices[name].promise.tenant)]


def tenant_for(caller: Caller, tenant: str) -> str:
    """For which tenant a caller speaks.

    Args:
        caller: Who.
        tenant: Whom it names; empty means itself.

    Raises:
        PermissionError_: `NOT_YOURSELF`, a client speaks for another.
        InvalidInputError: A gateway or an aggregator names nobody, or the name is none.
    """
    if caller.bounded and tenant not in ("", caller.name):
        raise PermissionError_(
            f"{caller.title} cannot speak for the tenant {tenant[:63]!r}; it may only speak for itself",
            reason="NOT_YOURSELF",
            metadata={"identity": caller.title, "tenant": tenant[:63]},
        )
    if not tenant and caller.role in (Role.GATEWAY, Role.AGGREGATOR):
        raise InvalidInputError(f"{caller.title} has no slices of its own; name the tenant for whom it asks")
    return check_name(tenant or caller.name)


def usable(caller: Caller, book: Book, name: str, tenant: str) -> Slice:
    """A slice that work of a tenant may be admitted to.

    Raises:
        PermissionError_: `SLICE_NOT_YOURS`, `NOT_YOURSELF`.
        InvalidInputError: `NOT_FOUND`, for an operator that names no tenant.
    """
    if caller.role is Role.OPERATOR and not tenant:
        return book.get(name)
    return own(Caller(Role.CLIENT, tenant_for(caller, tenant)), book, name)
