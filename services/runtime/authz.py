"""Who may call what: one table, and everything that is not in it is refused.

The table names methods in full (`/orbitmesh.v1.SchedulerService/Plan`); a row `/package.Service/*` stands
for those methods of a service that have no row of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from google.protobuf import descriptor_pool

from orbitmesh.errors import InternalError, PermissionError_
from orbitmesh.trust.certificates import Peer
from orbitmesh.trust.names import Role

HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
CHANNELZ = "grpc.channelz.v1.Channelz"
OPS = "orbitmesh.v1.OpsService"
ADMIN_SERVICES = frozenset({HEALTH, *REFLECTION, CHANNELZ, OPS})
"""Services that every process offers about itself: answered while draining, and without a deadline."""

Table = Mapping[str, frozenset[Role]]

_EVERYBODY = frozenset(Role)
_OPERATOR = frozenset({Role.OPERATOR})
_USERS = frozenset({Role.CLIENT, Role.OPERATOR})
_USERS_AND_GATEWAY = _USERS | {Role.GATEWAY}
_EXECUTOR = frozenset({Role.EXECUTOR})
_SCHEDULER = frozenset({Role.SCHEDULER})
_AGGREGATOR = frozenset({Role.AGGREGATOR})
_MESH = frozenset({Role.SCHEDULER, Role.GATEWAY, Role.EXECUTOR})

ALLOWED: Table = MappingProxyType(
    {
        f"/{HEALTH}/*": _EVERYBODY,
        f"/{REFLECTION[0]}/*": _OPERATOR,
        f"/{REFLECTION[1]}/*": _OPERATOR,
        f"/{CHANNELZ}/*": _OPERATOR,
        # A gateway asks other processes for operators that ask it.
        f"/{OPS}/*": _OPERATOR | {Role.GATEWAY},
        "/orbitmesh.v1.SchedulerService/Heartbeat": _EXECUTOR,
        "/orbitmesh.v1.SchedulerService/ListNodes": _USERS_AND_GATEWAY | _AGGREGATOR | {Role.SLICES},
        "/orbitmesh.v1.SchedulerService/Plan": _USERS_AND_GATEWAY,
        "/orbitmesh.v1.SchedulerService/CreateDeployment": _USERS_AND_GATEWAY,
        "/orbitmesh.v1.SchedulerService/ListDeployments": _USERS_AND_GATEWAY,
        "/orbitmesh.v1.SchedulerService/GetDeployment": _USERS_AND_GATEWAY,
        "/orbitmesh.v1.SchedulerService/DeleteDeployment": _USERS_AND_GATEWAY,
        "/orbitmesh.v1.SchedulerService/ReplaceStage": frozenset({Role.GATEWAY}),
        "/orbitmesh.v1.SchedulerService/WatchDeployments": _USERS_AND_GATEWAY,
        "/orbitmesh.v1.ExecutorService/LoadStage": _SCHEDULER,
        "/orbitmesh.v1.ExecutorService/UnloadStage": _SCHEDULER,
        "/orbitmesh.v1.ExecutorService/ListStages": _MESH | _OPERATOR,
        "/orbitmesh.v1.ExecutorService/OpenGeneration": frozenset({Role.GATEWAY}),
        "/orbitmesh.v1.ExecutorService/CloseGeneration": frozenset({Role.GATEWAY}),
        "/orbitmesh.v1.ExecutorService/StopGeneration": frozenset({Role.GATEWAY}),
        "/orbitmesh.v1.ExecutorService/ContinueGeneration": frozenset({Role.GATEWAY}),
        "/orbitmesh.v1.ExecutorService/FeedGeneration": frozenset({Role.GATEWAY}),
        "/orbitmesh.v1.ExecutorService/Relay": _MESH,
        "/orbitmesh.v1.ExecutorService/Exchange": frozenset({Role.GATEWAY, Role.EXECUTOR}) | _AGGREGATOR,
        "/orbitmesh.v1.ExecutorService/Probe": _MESH,
        "/orbitmesh.v1.AggregatorService/*": _USERS_AND_GATEWAY,
        "/orbitmesh.v1.ConstellationService/*": _EVERYBODY,
        "/orbitmesh.v1.SlicesService/ReportTraffic": _EXECUTOR | _AGGREGATOR | {Role.GATEWAY},
        "/orbitmesh.v1.SlicesService/WatchSlices": _USERS_AND_GATEWAY | _EXECUTOR | _AGGREGATOR,
        "/orbitmesh.v1.SlicesService/Admit": _USERS_AND_GATEWAY | _AGGREGATOR,
        "/orbitmesh.v1.SlicesService/Renew": _USERS_AND_GATEWAY | _AGGREGATOR,
        "/orbitmesh.v1.SlicesService/Withdraw": _USERS_AND_GATEWAY | _AGGREGATOR,
        "/orbitmesh.v1.SlicesService/*": _USERS_AND_GATEWAY,
        "/orbitmesh.v1.GatewayService/*": _USERS,
        "/orbitmesh.v1.PackService/CreatePack": _USERS,
        "/orbitmesh.v1.PackService/ListPacks": _USERS | _SCHEDULER,
        "/orbitmesh.v1.PackService/Transfer": _USERS | _EXECUTOR,
    }
)
"""Which roles may call which methods."""


def roles_for(method: str, table: Table = ALLOWED) -> frozenset[Role]:
    """The roles that may call a method; none where the table does not know it."""
    row = table.get(method)
    if row is None:
        row = table.get(f"{method.rpartition('/')[0]}/*", frozenset())
    return row


def authorize(caller: Peer, method: str, table: Table = ALLOWED) -> None:
    """Let an allowed caller pass.

    Raises:
        PermissionError_: The role may not call this method; the message says which may.
    """
    allowed = roles_for(method, table)
    if caller.role in allowed:
        return
    may = ", ".join(sorted(role.value for role in allowed)) or "nobody"
    raise PermissionError_(
        f"{caller.title} may not call {method}; allowed roles: {may}; use an identity of such a role",
        metadata={
            "role": caller.role.value,
            "identity": caller.spiffe,
            "method": method,
            "allowed_roles": may,
        },
    )


def methods_of(services: Iterable[str]) -> tuple[str, ...]:
    """Full names of all methods of services whose descriptors are loaded.

    Raises:
        InternalError: There is no descriptor of a service.
    """
    found = []
    for service in services:
        try:
            descriptor = descriptor_pool.Default().FindServiceByName(service)
        except KeyError:
            raise InternalError(f"there is no descriptor of {service}; import its generated module") from None
        found += [f"/{service}/{method.name}" for method in descriptor.methods]
    return tuple(found)


def check_complete(services: Iterable[str], table: Table = ALLOWED) -> None:
    """Refuse to start a service with a method that nobody may call: a row was forgotten.

    Raises:
        InternalError: The table lacks rows; the message lists them.
    """
    missing = [method for method in methods_of(services) if not roles_for(method, table)]
    if missing:
        raise InternalError(
            f"the authorization table has no row for {', '.join(missing)}; add them to ALLOWED"
        )
