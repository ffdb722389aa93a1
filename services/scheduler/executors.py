"""Calls to executors: a stage loaded, a stage let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc

from orbitmesh.errors import InvalidInputError, MeshError, NodeLostError
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, scheduler_pb2
from services.runtime.channels import ChannelPool
from services.scheduler.holdings import Holdings, Place

LOAD_DEADLINE_S = 3600.0
"""How long the loading of one stage may take: weights cross thin links."""
FIRST_ANSWER_S = 15.0
"""How long a node may say nothing at all before it counts as out of reach, in seconds."""
UNLOAD_DEADLINE_S = 5.0
"""How long one node is given to let a stage go."""

Tell = Callable[[executor_pb2.LoadStageResponse], None]


class Executors:
    """The scheduler's ways to the nodes."""

    def __init__(self, identities: IdentitySource, ways: dict[str, str], holdings: Holdings) -> None:
        self._channels = ChannelPool(identities, ways)
        self._holdings = holdings
        self.load_seconds: dict[Place, float] = {}

    async def load(
        self,
        deployment: scheduler_pb2.Deployment,
        request: scheduler_pb2.CreateDeploymentRequest,
        index: int,
        target: executor_pb2.PeerAddress,
        tell: Tell,
    ) -> executor_pb2.Stage:
        """Loads the stage of a place on a node, which need not be the one that has the place now.

        Raises:
            MeshError: Where the node refuses, has no room, or is out of reach; says which node.
        """
        place = (deployment.name, index, target.name)
        message = _message(deployment, request, index, (index, target))
        self._holdings.coming(place, deployment.plan.stages[index].memory_bytes)
        began_s = time.monotonic()
        try:
            try:
                stage = await self._load(message, target, tell)
            except InvalidInputError as error:
                if error.reason != "ALREADY_EXISTS":
                    raise
                # Left over from a deleted deployment of the same name: a name is taken once, so nobody wants it.
                await self.unload(deployment.name, target, [index])
                self._holdings.coming(place, deployment.plan.stages[index].memory_bytes)
                stage = await self._load(message, target, tell)
        except BaseException:
            self._holdings.gone(place)
            raise
        self._holdings.arrived(place, time.monotonic())
        self.load_seconds[place] = time.monotonic() - began_s
        return stage

    async def acquaint(
        self,
        deployment: scheduler_pb2.Deployment,
        request: scheduler_pb2.CreateDeploymentRequest,
        index: int,
        standby: executor_pb2.PeerAddress,
    ) -> None:
        """Lets the stage before a place open its way to the place's standby: a loss then waits for no handshakes.

        It holds its stage already, so nothing is loaded; where it cannot be reached, the way is opened when needed.
        """
        before = (index - 1) % len(deployment.pipeline)
        if before != index:
            message = _message(deployment, request, before, (index, standby))
            with suppress(MeshError):
                await self._load(message, deployment.pipeline[before], lambda answer: None)

    async def _load(
        self, message: executor_pb2.LoadStageRequest, target: executor_pb2.PeerAddress, tell: Tell
    ) -> executor_pb2.Stage:
        call = self._stub(target).LoadStage(message, timeout=LOAD_DEADLINE_S)
        wait_s: float | None = FIRST_ANSWER_S
        try:
            while True:
                answer = await asyncio.wait_for(call.read(), wait_s)
                if answer is grpc.aio.EOF:
                    break
                wait_s = None
                tell(answer)
                if answer.phase == executor_pb2.STAGE_PHASE_READY:
                    loaded: executor_pb2.Stage = answer.stage
                    return loaded
        except grpc.RpcError as error:
            raise _on_node(map_rpc_error(error, address=target.address), target.name) from error
        except TimeoutError:
            raise NodeLostError(
                f"{target.name} did not answer within {FIRST_ANSWER_S:g} s: see its log, or deploy without it",
                metadata={"node": target.name},
            ) from None
        finally:
            call.cancel()
        raise NodeLostError(f"{target.name} ended the loading of stage {message.stage_index} without a word")

    async def unload(self, name: str, node: executor_pb2.PeerAddress, indexes: Sequence[int] = ()) -> None:
        """Lets go of stages of a deployment on a node; all of them where none is named."""
        indexed = ",".join(str(index) for index in indexes)
        request = executor_pb2.UnloadStageRequest(
            request_id=f"unload/{name}/{indexed}", deployment=name, stage_indexes=indexes
        )
        # A node that is gone is told again when it comes back with the stage.
        with suppress(grpc.RpcError):
            await self._stub(node).UnloadStage(request, timeout=UNLOAD_DEADLINE_S)
        for index in indexes:
            self._holdings.gone((name, index, node.name))

    def _stub(self, node: executor_pb2.PeerAddress) -> executor_pb2_grpc.ExecutorServiceStub:
        return executor_pb2_grpc.ExecutorServiceStub(self._channels.get(Role.EXECUTOR, node.name, node.address))

    def forget(self, name: str) -> None:
        """Lets go of what is remembered of a deployment that is gone."""
        self.load_seconds = {place: spent for place, spent in self.load_seconds.items() if place[0] != name}

    async def close(self) -> None:
        """Closes connections."""
        await self._channels.close()


def _message(
    deployment: scheduler_pb2.Deployment,
    request: scheduler_pb2.CreateDeploymentRequest,
    index: int,
    instead: tuple[int, executor_pb2.PeerAddress],
) -> executor_pb2.LoadStageRequest:
    """Asks for the stage of a place, in the pipeline as it is but for one node."""
    place, node = instead
    planned = deployment.plan.stages[index]
    return executor_pb2.LoadStageRequest(
        request_id=f"{request.request_id}/{index}",
        deployment=deployment.name,
        manifest=request.manifest,
        signature=request.signature,
        layer_start=planned.layer_start,
        layer_stop=planned.layer_stop,
        stage_index=index,
        pipeline=[*deployment.pipeline[:place], node, *deployment.pipeline[place + 1 :]],
        source=request.source,
        kv_tokens=request.kv_tokens,
        codec=request.codec,
        # Whoever deployed has been let into it until all is there; what is loaded later is nobody's work in a slice.
        slice=request.slice if deployment.state == scheduler_pb2.DEPLOYMENT_STATE_LOADING else "",
    )


def _on_node(error: MeshError, node: str) -> MeshError:
    """The same error, saying where."""
    return type(error)(f"{node}: {error.message}", reason=error.reason, metadata={**error.metadata, "node": node})
