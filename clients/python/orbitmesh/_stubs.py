"""The connection of a client to a gateway: one channel, the services behind it, and who is at both ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc.aio

from orbitmesh.rpc import open_channel
from orbitmesh.trust import Identity, Role
from orbitmesh.v1 import aggregator_pb2_grpc, gateway_pb2_grpc, scheduler_pb2_grpc, slices_pb2_grpc

IDEMPOTENT = (
    "/orbitmesh.v1.AggregatorService/CancelRun",
    "/orbitmesh.v1.AggregatorService/GetLedger",
    "/orbitmesh.v1.AggregatorService/GetRun",
    "/orbitmesh.v1.AggregatorService/ListRuns",
    "/orbitmesh.v1.AggregatorService/Predict",
    "/orbitmesh.v1.AggregatorService/ResumeRun",
    "/orbitmesh.v1.AggregatorService/StartRun",
    "/orbitmesh.v1.GatewayService/Explain",
    "/orbitmesh.v1.GatewayService/GetStatus",
    "/orbitmesh.v1.PackService/CreatePack",
    "/orbitmesh.v1.PackService/ListPacks",
    "/orbitmesh.v1.SchedulerService/DeleteDeployment",
    "/orbitmesh.v1.SchedulerService/GetDeployment",
    "/orbitmesh.v1.SchedulerService/ListDeployments",
    "/orbitmesh.v1.SchedulerService/ListNodes",
    "/orbitmesh.v1.SchedulerService/Plan",
    "/orbitmesh.v1.SlicesService/Admit",
    "/orbitmesh.v1.SlicesService/Apply",
    "/orbitmesh.v1.SlicesService/DefineSlice",
    "/orbitmesh.v1.SlicesService/GetSlice",
    "/orbitmesh.v1.SlicesService/ListSlices",
    "/orbitmesh.v1.SlicesService/ListTemplates",
    "/orbitmesh.v1.SlicesService/Optimize",
    "/orbitmesh.v1.SlicesService/Release",
    "/orbitmesh.v1.SlicesService/Resize",
    "/orbitmesh.v1.SlicesService/Withdraw",
)
"""What may be sent again while the gateway is unavailable: it changes nothing, or carries a request id."""


@dataclass(frozen=True)
class Stubs:
    """The services of one gateway. The stubs are of generated code, which is not typed for asyncio."""

    address: str
    """The gateway, host:port."""
    identity: Identity
    """Who we are."""
    channel: grpc.aio.Channel
    """The connection."""
    gateway: Any
    """`GatewayService`."""
    scheduler: Any
    """`SchedulerService`, which the gateway answers too."""
    packs: Any
    """`PackService`."""
    aggregator: Any
    """`AggregatorService`, which the gateway answers too."""
    slices: Any
    """`SlicesService`, which the gateway answers too."""

    @classmethod
    def open(cls, address: str, identity: Identity) -> Stubs:
        """A channel to the gateway; it connects at the first call.

        Raises:
            IdentityError: our own certificate is outside its time.
        """
        make_gateway: Any = gateway_pb2_grpc.GatewayServiceStub
        make_scheduler: Any = scheduler_pb2_grpc.SchedulerServiceStub
        make_packs: Any = gateway_pb2_grpc.PackServiceStub
        make_aggregator: Any = aggregator_pb2_grpc.AggregatorServiceStub
        make_slices: Any = slices_pb2_grpc.SlicesServiceStub
        channel = open_channel(address, identity, Role.GATEWAY, None, idempotent_methods=IDEMPOTENT)
        return cls(
            address=address,
            identity=identity,
            channel=channel,
            gateway=make_gateway(channel),
            scheduler=make_scheduler(channel),
            packs=make_packs(channel),
            aggregator=make_aggregator(channel),
            slices=make_slices(channel),
        )

    async def close(self) -> None:
        """Ends the connection; calls under way end with CANCELLED."""
        await self.channel.close()
