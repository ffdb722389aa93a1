"""The async client of a mesh: the one core that every face of the SDK stands on."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from orbitmesh import _from_proto, _packs, _requests, _training_proto
from orbitmesh._connection import Connection, Remote
from orbitmesh._deadlines import bounded
from orbitmesh._deploying import deploy
from orbitmesh._generation import AsyncGeneration
from orbitmesh._local_entry import AsyncLocalAccess
from orbitmesh._resuming import RESUME_S, ResumingCall
from orbitmesh._slices import AsyncSlices
from orbitmesh._training import AsyncTraining
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.local import AsyncLocal
from orbitmesh.results import Deployment, Node, OnProgress, OnWaiting, Plan, Progress, Status
from orbitmesh.trace.breakdown import Breakdown
from orbitmesh.training_results import LocalTraining, Privacy, SecureSums, TrainingStatus
from orbitmesh.v1 import aggregator_pb2, gateway_pb2, scheduler_pb2

GENERATE_DEADLINE_S = 600.0
"""How long a generation may take where the caller names no time, in seconds."""
DEPLOY_DEADLINE_S = 3600.0
"""How long packing, sending and loading a model may take together where the caller names no time, in
seconds."""

class AsyncMesh:
    """A connection to a mesh. Use it as a context manager, or call `open` and `close`.

    Example:
        >>> async with AsyncMesh.connect("gateway.example:7443", identity="~/.orbitmesh/me") as mesh:
        ...     generation = await mesh.generate("demo", prompt="Space is")
        ...     async for token in generation:
        ...         print(token.text, end="")
    """

    local = AsyncLocalAccess()

    def __init__(
        self,
        target: Remote | AsyncLocal,
        *,
        timeout: float = CONTROL_DEADLINE_S,
        open_timeout: float | None = None,
        patience: float = RESUME_S,
    ) -> None:
        self._connection = Connection(target, timeout=timeout, open_timeout=open_timeout, patience=patience)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        identity: str | Path,
        timeout: float = CONTROL_DEADLINE_S,
        patience: float = RESUME_S,
    ) -> AsyncMesh:
        """A mesh by the address of its gateway. Nothing is sent until it is entered, opened or called.

        Args:
            address: The gateway, host:port; where the mesh has several, all of them, with commas between them: the
                one that leads is called, and the next one when it is gone.
            identity: The directory of an identity that `orbitmesh pki issue` made.
            timeout: How long a control call may take, in seconds.
            patience: How long a control call that may be sent twice is asked again, within its time, while a gateway
                that has answered before cannot be reached, in seconds; 0 makes that an error at once.

        Raises:
            InvalidInputError: the address is not host:port, the timeout not above 0, or the patience below it.

        Example:
            >>> async with AsyncMesh.connect("gateway.example:7443", identity="~/.orbitmesh/me") as mesh:
            ...     print(await mesh.status())
        """
        for each in address.removeprefix("dns:///").split(","):
            host, colon, port = each.strip().rpartition(":")
            if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
                raise InvalidInputError(
                    f"the address is {address!r:.80}; expected host:port, such as gateway.example:7443, or several "
                    "with commas between them"
                )
        return cls(Remote(address=address, identity=Path(identity).expanduser()), timeout=timeout, patience=patience)

    async def __aenter__(self) -> AsyncMesh:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects and makes sure that the gateway answers; starts the processes of a local mesh. Repeating
        it is harmless.

        Raises:
            IdentityError: our identity is missing, expired or of another mesh.
            TransportError: the gateway cannot be reached.
            DeadlineError: it did not answer in time.

        Example:
            >>> mesh = AsyncMesh.connect("gateway.example:7443", identity="~/.orbitmesh/me")
            >>> await mesh.open()
        """
        await self._connection.ready()

    async def close(self) -> None:
        """Ends the connection, and the processes of a local mesh. Repeating it changes nothing.

        Example:
            >>> await mesh.close()
        """
        await self._connection.close()

    async def status(self, *, timeout: float | None = None) -> Status:
        """What the gateway is doing.

        Example:
            >>> (await mesh.status()).generations
            2
        """
        stubs = await self._connection.ready()
        request = gateway_pb2.GetStatusRequest()
        return _from_proto.status(await self._connection.call(stubs.gateway.GetStatus, request, timeout))

    async def nodes(self, *, timeout: float | None = None) -> list[Node]:
        """The nodes of the mesh with what they measured, by name.

        Example:
            >>> [node.name for node in await mesh.nodes()]
            ['ground-1', 'sat-1', 'sat-2', 'sat-3']
        """
        stubs = await self._connection.ready()
        answer = await self._connection.call(stubs.scheduler.ListNodes, scheduler_pb2.ListNodesRequest(), timeout)
        return [_from_proto.node(message) for message in answer.nodes]

    async def deployments(self, *, timeout: float | None = None) -> list[Deployment]:
        """The deployments, by name.

        Example:
            >>> [(deployment.name, deployment.state) for deployment in await mesh.deployments()]
            [('demo', 'ready')]
        """
        stubs = await self._connection.ready()
        request = scheduler_pb2.ListDeploymentsRequest()
        answer = await self._connection.call(stubs.scheduler.ListDeployments, request, timeout)
        return [_from_proto.deployment(message) for message in answer.deployments]

    async def deployment(self, name: str, *, timeout: float | None = None) -> Deployment:
        """One deployment.

        Raises:
            UnknownModelError: there is none of this name.

        Example:
            >>> (await mesh.deployment("demo")).stages[0].node
            'sat-1'
        """
        stubs = await self._connection.ready()
        request = scheduler_pb2.GetDeploymentRequest(name=_requests.checked_name(name, "the deployment's name"))
        answer = await self._connection.call(stubs.scheduler.GetDeployment, request, timeout)
        return _from_proto.deployment(answer.deployment)

    async def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Takes a deployment down on every node. Repeating it changes nothing.

        Example:
            >>> await mesh.delete("demo")
        """
        stubs = await self._connection.ready()
        request = scheduler_pb2.DeleteDeploymentRequest(
            request_id=str(uuid.uuid4()), name=_requests.checked_name(name, "the deployment's name")
        )
        await self._connection.call(stubs.scheduler.DeleteDeployment, request, timeout)

    async def plan(
        self,
        source: str | Path,
        *,
        stages: int | None = None,
        objective: str = "latency",
        nodes: Sequence[str] | None = None,
        kv_tokens: int | None = None,
        work_s: float | None = None,
        work_tokens: int | None = None,
        timeout: float = DEPLOY_DEADLINE_S,
        on_progress: OnProgress | None = None,
    ) -> Plan:
        """How a model would be cut over the nodes, and why; changes nothing in the mesh.

        Args:
            source: A pack, a model directory or a hub id, as for `deploy`.
            stages: How many stages; None lets the planner choose.
            objective: `latency` of one generation or `throughput` of many.
            nodes: Only these nodes; None means all that are up.
            kv_tokens: Tokens of cache that each stage must hold; None means the model's context length.
            work_s: For how long the links must last, in real seconds from the start of the work, where the mesh
                knows a contact plan; None means a minute.
            work_tokens: How many tokens the work is, for the time at which it finishes; None means 256.
            timeout: How long packing and planning may take together, in seconds.
            on_progress: Called while a model directory is packed.

        Raises:
            InfeasiblePlanError: no placement satisfies this; the message names what binds.

        Example:
            >>> (await mesh.plan("models/pydoc", stages=3)).reasons[0]
            'Stage 0 is on sat-1: ...'
        """
        request = _requests.plan_request(
            b"",
            stages=stages,
            objective=objective,
            nodes=nodes,
            kv_tokens=kv_tokens,
            work_s=work_s,
            work_tokens=work_tokens,
        )
        async with bounded(timeout, f"planning {source}"):
            stubs = await self._connection.ready()
            pack = await _packs.signed_pack(source, stubs.identity, on_progress or _silent)
            request.manifest = pack.manifest_bytes
            answer = await self._connection.call(stubs.scheduler.Plan, request, None)
        return _from_proto.plan(answer.plan)

    async def deploy(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        stages: int | None = None,
        objective: str = "latency",
        codec: str = "auto",
        nodes: Sequence[str] | None = None,
        kv_tokens: int | None = None,
        standbys: int = 0,
        work_s: float | None = None,
        work_tokens: int | None = None,
        slice: str | None = None,  # noqa: A002
        timeout: float = DEPLOY_DEADLINE_S,
        on_progress: OnProgress | None = None,
    ) -> Deployment:
        """Packs a model where needed, sends what the mesh lacks of it, plans, places, loads and verifies it.

        Args:
            source: A pack (it holds manifest.json), a model directory in Hugging Face layout, or a hub id.
                The latter two are packed first, into `$XDG_CACHE_HOME/orbitmesh/packs`, which needs
                `orbitmesh[mesh]`.
            name: The deployment's name; None takes the model's.
            stages: How many stages; None lets the planner choose.
            objective: `latency` of one generation or `throughput` of many.
            codec: How tensors cross links: `auto` (lossless), `raw`, `zstd`, `exponent-split`, `bf16`,
                `fp16`, `int8`.
            nodes: Only these nodes; None means all that are up.
            kv_tokens: Tokens of cache that each stage must hold, over all generations; None means four
                contexts.
            standbys: 1 loads each stage on a second node too, which takes over at once where the first is lost.
            work_s: For how long the links must last, in real seconds from the start of the work, where the mesh
                knows a contact plan; None means a minute.
            work_tokens: How many tokens the work is, for the time at which it finishes; None means 256.
            slice: The slice in which the files go from the gateway to the nodes, one of `slices`; it counts as one
                piece of its work until the deployment serves. None for what no slice has.
            timeout: How long all of it may take, in seconds.
            on_progress: Called as it goes on.

        Raises:
            UnknownModelError: there is no such model.
            InfeasiblePlanError: no placement satisfies this; the message names what binds.
            PackError: the pack is damaged, or its signer is not trusted by this mesh.
            CapacityError: a node has no room, or the slice takes no more work now.
            PermissionError_: the slice is somebody else's.

        Example:
            >>> deployment = await mesh.deploy("models/pydoc", name="demo", stages=3)
            >>> deployment.stages[0]
            Stage(node='sat-1', layers=range(0, 2), ...)
        """
        request = _requests.deployment_request(
            name or "model",
            stages=stages,
            objective=objective,
            codec=codec,
            nodes=nodes,
            kv_tokens=kv_tokens,
            standbys=standbys,
            work_s=work_s,
            work_tokens=work_tokens,
            in_slice=slice,
            request_id=str(uuid.uuid4()),
        )
        return await deploy(self._connection, source, name, request, timeout, on_progress or _silent)

    async def generate(
        self,
        name: str,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        ignore_end: bool = False,
        timings: bool = True,
        slice: str | None = None,  # noqa: A002
        timeout: float | None = None,
        on_waiting: OnWaiting | None = None,
    ) -> AsyncGeneration:
        """Answers a prompt; returns once every stage has accepted it. Iterate over the result to get the
        tokens.

        Args:
            name: The deployment.
            prompt: Text, or token ids that are taken as they are.
            max_new_tokens: How many tokens to produce at the most.
            temperature: 0 takes the most probable token; otherwise logits are divided by it and a token is
                drawn.
            top_p: Draw from the smallest set of most probable tokens with at least this probability.
            seed: The random number of each position is a function of this seed and the position.
            ignore_end: True goes on past the model's end token.
            timings: False leaves out the timings, and with them the breakdown.
            slice: The slice whose time and memory it uses, one of `slices`, on the nodes where that has some; None for
                what no slice has.
            timeout: How long the whole answer may take, in seconds; None means 600.
            on_waiting: Called with a sentence when the answer waits (for a contact, for a node that is replaced, for
                the gateway) and with None when it goes on; `generation.waiting` says the same.

        Raises:
            UnknownModelError: there is no such deployment.
            InvalidInputError: the prompt is empty or longer than the context, or a number is out of range.
            CapacityError: the caches are full, or the slice is; `metadata` says what is free.

        Example:
            >>> generation = await mesh.generate("demo", prompt="Space is", max_new_tokens=64)
            >>> async for token in generation:
            ...     print(token.text, end="")
        """
        request = _requests.generate_request(
            name,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            ignore_end=ignore_end,
            timings=timings,
            in_slice=slice,
        )
        bound = _requests.checked_timeout(GENERATE_DEADLINE_S if timeout is None else timeout)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + bound
        async with bounded(bound, f"the answer of {name}"):
            stubs = await self._connection.ready()
            left = max(deadline - loop.time(), 0.001)
            call = ResumingCall(stubs.gateway, request, left, self._connection.farewells)
            generation = AsyncGeneration(call, on_waiting)
            await generation._begin()
        return generation

    async def explain(self, trace_id: str | None = None, *, timeout: float | None = None) -> Breakdown:
        """Where the time of a generation went: rows that sum to the total, ready to print.

        Args:
            trace_id: The generation's `.trace_id`; None means the last one that ended.
            timeout: How long the call may take, in seconds.

        Raises:
            InvalidInputError: the gateway does not remember this trace.

        Example:
            >>> print(await mesh.explain(generation.trace_id))
        """
        stubs = await self._connection.ready()
        request = gateway_pb2.ExplainRequest(trace_id=_requests.checked_trace(trace_id))
        answer = await self._connection.call(stubs.gateway.Explain, request, timeout)
        return _from_proto.breakdown(answer.breakdown)

    async def train(
        self,
        name: str,
        *,
        task: str,
        rounds: int,
        nodes: Sequence[str] | None = None,
        strategy: str = "fedavg",
        strategy_options: Mapping[str, float] | None = None,
        local: LocalTraining | None = None,
        compression: str = "fp32",
        secure_sums: SecureSums | None = None,
        privacy: Privacy | None = None,
        alpha: float | None = None,
        seed: int = 0,
        quorum: int = 0,
        cohort: int = 0,
        patience_s: float = 0.0,
        evaluate: bool = True,
        slice: str | None = None,  # noqa: A002
        timeout: float | None = None,
    ) -> AsyncTraining:
        """Begins a run of federated training: nodes train on what they have, and only what they learn travels. The run
        goes on in the mesh until its last round, whatever is restarted, also without this client.

        Args:
            name: What to call the run: 1 to 63 of a-z, 0-9 and -.
            task: An entry point of the group `orbitmesh.tasks` that is installed on the nodes. No code travels.
            rounds: How many rounds there are at the most.
            nodes: The nodes of the run; None means all that are up.
            strategy: What turns contributions into weights: `fedavg`, `fedprox`, `fedadam`, `fedyogi`, `fedbuff`,
                `diloco`, `trimmed_mean`, `krum`.
            strategy_options: Its options by name, such as `{"mu": 0.1}` of fedprox.
            local: What a node does in a round; None means one pass over its examples, with SGD.
            compression: How contributions are compressed: `fp32`, `fp16`, `int8`, `int4`, `topk:0.01`,
                `blocks:0.25+int4`, ...
            secure_sums: Hides what each node adds, also from the aggregator.
            privacy: Bounds what the weights give away.
            alpha: Skew of labels between nodes, the concentration of a Dirichlet distribution; None gives all alike.
            seed: What splits, first weights and the order of examples follow from.
            quorum: How many contributions a round needs at the least; 0 means all, and with secure sums as many as
                unmask.
            cohort: How many nodes a round asks; 0 means all.
            patience_s: Seconds of contact without progress after which a round goes on without a node; 0 means the
                aggregator's own.
            evaluate: Whether the weights are measured after every round.
            slice: The slice that it trains and sends in, one of `slices`, on the nodes where that has some; it counts
                as one piece of its work until it has ended. None for what no slice has.
            timeout: How long the call may take, in seconds.

        Raises:
            InvalidInputError: something is out of range or does not go together, there is a run of that name, the slice
                is not active, or this mesh has no aggregator.
            PermissionError_: `SLICE_NOT_YOURS`, the slice is somebody else's.
            CapacityError: `SLICE_FULL`, it takes no more work now; or too many runs go on.

        Example:
            >>> training = await mesh.train("run", task="digits", rounds=20, compression="topk:0.01")
            >>> (await training.wait()).rounds[-1].figures["accuracy"]
            0.94
        """
        request = _training_proto.start_request(
            name,
            task=task,
            rounds=rounds,
            nodes=nodes,
            strategy=strategy,
            strategy_options=strategy_options,
            local=local,
            compression=compression,
            secure_sums=secure_sums,
            privacy=privacy,
            alpha=alpha,
            seed=seed,
            quorum=quorum,
            cohort=cohort,
            patience_s=patience_s,
            evaluate=evaluate,
            in_slice=slice,
            request_id=str(uuid.uuid4()),
        )
        stubs = await self._connection.ready()
        await self._connection.call(stubs.aggregator.StartRun, request, timeout)
        return AsyncTraining(self._connection, name)

    async def training(self, name: str, *, timeout: float | None = None) -> AsyncTraining:
        """The handle on a run that was begun before, here or elsewhere.

        Raises:
            InvalidInputError: `NOT_FOUND`, there is none of this name.

        Example:
            >>> training = await mesh.training("run")
        """
        training = AsyncTraining(self._connection, _training_proto.run_name(name))
        await training.status(timeout=timeout)
        return training

    async def trainings(self, *, timeout: float | None = None) -> list[TrainingStatus]:
        """The runs, by name, without their rounds.

        Example:
            >>> [(run.name, run.state) for run in await mesh.trainings()]
            [('run', 'done')]
        """
        stubs = await self._connection.ready()
        answer = await self._connection.call(stubs.aggregator.ListRuns, aggregator_pb2.ListRunsRequest(), timeout)
        return [_training_proto.status(message) for message in answer.runs]

    @property
    def slices(self) -> AsyncSlices:
        """The slices of the mesh: shares of its CPU, GPU, memory and bandwidth, each promised to one tenant.

        Example:
            >>> [template.name for template in await mesh.slices.templates()]
            ['urllc', 'embb', 'mmtc']
        """
        return AsyncSlices(self._connection)

    def _local_handle(self) -> AsyncLocal:
        if not isinstance(self._connection.target, AsyncLocal):
            raise InvalidInputError(
                "this mesh runs elsewhere: only a mesh made with `local(...)` has processes to look at",
                reason="FAILED_PRECONDITION",
            )
        return self._connection.target


def _silent(_: Progress) -> None:
    """Where nobody wants to know."""
