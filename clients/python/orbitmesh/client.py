"""The sync client of a mesh. Made by `python -m orbitmesh._generate_sync`: change `aio.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from orbitmesh._generation import AsyncGeneration
from orbitmesh._loop import LoopThread, end_of, next_of
from orbitmesh._resuming import RESUME_S
from orbitmesh._slices_sync import Slices
from orbitmesh._training import WEIGHTS_DEADLINE_S, AsyncTraining
from orbitmesh.aio import DEPLOY_DEADLINE_S, AsyncMesh, Remote
from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.local import START_DEADLINE_S, AsyncLocal, local_sky, local_target
from orbitmesh.results import Deployment, Link, LocalNode, Node, OnProgress, OnWaiting, Plan, Status, Token
from orbitmesh.trace.breakdown import Breakdown
from orbitmesh.training_results import Ledger, LocalTraining, Privacy, SavedWeights, SecureSums, TrainingStatus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Local:
    """The processes under a local mesh: which they are, and how to break them. `Mesh.local` has made it.

    Example:
        >>> with Mesh.local(nodes=4) as mesh:
        ...     mesh.local.kill("sat-2")
    """

    def __init__(self, core: AsyncLocal, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

    @property
    def gateway(self) -> str:
        """Where the gateway listens, host:port.

        Example:
            >>> mesh.local.gateway
            '127.0.0.1:40771'
        """
        return self._core.gateway

    @property
    def identity(self) -> Path:
        """The directory of the identity that this mesh gave its user.

        Example:
            >>> mesh.local.identity.name
            'client-local'
        """
        return self._core.identity

    @property
    def operator_identity(self) -> Path:
        """The directory of the identity that this mesh gave its operator.

        Example:
            >>> mesh.local.operator_identity.name
            'operator-local'
        """
        return self._core.operator_identity

    @property
    def directory(self) -> Path:
        """Where it keeps its state.

        Example:
            >>> (mesh.local.directory / "ca").is_dir()
            True
        """
        return self._core.directory

    @property
    def pid(self) -> int:
        """The supervisor's process, 0 before the mesh has started.

        Example:
            >>> mesh.local.pid
            40310
        """
        return self._core.pid

    def processes(self) -> dict[str, LocalNode]:
        """The nodes' processes by name, as they were started last.

        Example:
            >>> sorted(mesh.local.processes())
            ['ground-1', 'sat-1', 'sat-2', 'sat-3']
        """
        return self._core.processes()

    def services(self) -> dict[str, int]:
        """The processes of the services that run once, as they were started last.

        Example:
            >>> sorted(mesh.local.services())
            ['aggregator', 'gateway', 'scheduler', 'slices']
        """
        return self._core.services()

    def kill(self, node: str) -> None:
        """Kills the process of a node, or of one of the services, with SIGKILL, as a failing machine would.

        Args:
            node: A node's name, `gateway`, `scheduler`, `aggregator` or `slices`.

        Raises:
            InvalidInputError: there is no node of this name.

        Example:
            >>> mesh.local.kill("sat-2")
        """
        self._loop.run(lambda: self._core.kill(node))

    def restart(self, node: str, *, gracefully: bool = False) -> None:
        """Kills a process with SIGKILL and starts it again: it comes back without what it held in memory, and with what
        it keeps on disk. The services that run once come back at the address they had.

        Args:
            node: A node's name, `gateway`, `scheduler`, `aggregator` or `slices`.
            gracefully: End it with SIGTERM, as an upgrade would: it gives away or ends what it has under way, for up
                to its grace of 25 s.

        Raises:
            InvalidInputError: there is no node of this name.
            TransportError: it does not come up again; the message quotes its log.

        Example:
            >>> mesh.local.restart("sat-2")
        """
        self._loop.run(lambda: self._core.restart(node, gracefully=gracefully))

    def cut(self, a: str, b: str, *, both_ways: bool = True) -> None:
        """Cuts the link between two nodes: what is under way is lost and nothing passes until `restore`.

        Args:
            a: A node.
            b: Another node.
            both_ways: False cuts only the direction from `a` to `b`.

        Raises:
            InvalidInputError: there is no node of one of these names, or the mesh was made without `link`.

        Example:
            >>> mesh.local.cut("sat-1", "sat-2")
        """
        self._loop.run(lambda: self._core.cut(a, b, both_ways=both_ways))

    def restore(self, a: str, b: str, *, both_ways: bool = True) -> None:
        """Brings a link back that was cut.

        Args:
            a: A node.
            b: Another node.
            both_ways: False restores only the direction from `a` to `b`.

        Raises:
            InvalidInputError: there is no node of one of these names, or the mesh was made without `link`.

        Example:
            >>> mesh.local.restore("sat-1", "sat-2")
        """
        self._loop.run(lambda: self._core.restore(a, b, both_ways=both_ways))

    def contact(self, a: str, b: str) -> Mapping[str, Any]:
        """Where two nodes stand to each other in the contact plan, at this moment of mesh time.

        Args:
            a: A node, `gateway`, `scheduler`, `aggregator`, `slices`, or a site of the plan.
            b: Another one.

        Returns:
            `open`; `window` (what is open: start_s, end_s, latency_ms, rate_bps, ... or None), `next` (the next
            window or None), `next_change_s` in mesh time and `next_change_in_s` in real seconds, `mesh_s`, `planned`
            (False where the plan does not speak of the pair).

        Raises:
            InvalidInputError: there is no such place, or the mesh was made without `contacts`.

        Example:
            >>> mesh.local.contact("sat-1", "gateway")["open"]
            True
        """
        return self._loop.run(lambda: self._core.contact(a, b))

    def clock(self) -> MeshClock:
        """The clock of this mesh, for which its contact plan is told.

        Raises:
            InvalidInputError: the mesh was made without `contacts`.

        Example:
            >>> clock = mesh.local.clock()
            >>> clock.factor
            60.0
        """
        return self._loop.run(lambda: self._core.clock())

    def stats(self) -> Mapping[str, Any]:
        """What the supervisor and the link emulator have counted.

        Example:
            >>> sorted(mesh.local.stats())
            ['ok', 'relays']
        """
        return self._loop.run(lambda: self._core.stats())


class Generation:
    """An answer on its way. Iterate to get its tokens as they are produced; afterwards it knows its figures.

    Leaving the loop early, an exception in it, `cancel()` and the end of a `with` block stop the work on
    every node.

    Example:
        >>> generation = mesh.generate("demo", prompt="Space is", max_new_tokens=64)
        >>> for token in generation:
        ...     print(token.text, end="")
        >>> generation.tokens_per_second
        14.2
    """

    def __init__(self, core: AsyncGeneration, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

    @property
    def trace_id(self) -> str:
        """The trace of this generation, 32 hex digits: what `explain` asks for.

        Example:
            >>> generation.trace_id
            '5b8aa5a2d2c872e8321cf37308d69df2'
        """
        return self._core.trace_id

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has.

        Example:
            >>> generation.prompt_tokens
            3
        """
        return self._core.prompt_tokens

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens that have arrived so far.

        Example:
            >>> generation.tokens[0]
            Token(id=262, text=' the', position=3)
        """
        return self._core.tokens

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that have arrived so far.

        Example:
            >>> generation.token_ids
            (262, 17, 904)
        """
        return self._core.token_ids

    @property
    def text(self) -> str:
        """The text that has arrived so far, without the prompt.

        Example:
            >>> generation.text
            ' the place between the stars'
        """
        return self._core.text

    @property
    def waiting(self) -> str | None:
        """What it waits for right now, as a sentence: a node that is being replaced, a contact, the gateway; None while
        tokens come and after the end. Known as far as the answer was read.

        Example:
            >>> generation.waiting
            'sat-2 does not answer; no other node is in contact'
        """
        return self._core.waiting

    @property
    def waiting_until(self) -> datetime | None:
        """When what it waits for is expected, in UTC; None where nobody knows.

        Example:
            >>> generation.waiting_until
            datetime.datetime(2026, 3, 1, 12, 8, tzinfo=datetime.timezone.utc)
        """
        return self._core.waiting_until

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: `length`, `stop` (the model's end token), `cancelled`, `failed`; None while it goes
        on.

        Example:
            >>> generation.finish_reason
            'length'
        """
        return self._core.finish_reason

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second after the first, as the gateway measured them; None until it ended well.

        Example:
            >>> generation.tokens_per_second
            14.2
        """
        return self._core.tokens_per_second

    @property
    def first_token_s(self) -> float | None:
        """From the request to the first token, in seconds; None until it ended well.

        Example:
            >>> generation.first_token_s
            0.212
        """
        return self._core.first_token_s

    @property
    def total_s(self) -> float | None:
        """From the request to the last token, in seconds; None until it ended well.

        Example:
            >>> generation.total_s
            4.71
        """
        return self._core.total_s

    @property
    def raw_bytes(self) -> int | None:
        """Bytes of hidden states and tokens that crossed links, before codec and seal; None until it ended
        well.

        Example:
            >>> generation.raw_bytes
            98816
        """
        return self._core.raw_bytes

    @property
    def wire_bytes(self) -> int | None:
        """The same as messages on the wire: headers, bodies and seals; None until it ended well.

        Example:
            >>> generation.wire_bytes
            91204
        """
        return self._core.wire_bytes

    def __iter__(self) -> Iterator[Token]:
        index = 0
        try:
            while (token := self._loop.run(partial(self._core._token, index))) is not None:
                yield token
                index += 1
        finally:
            self.cancel()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def wait(self) -> Generation:
        """Waits for the end, keeping the tokens, and returns the generation itself.

        Raises:
            MeshError: as iterating does.

        Example:
            >>> generation.wait().text
            ' the place between the stars'
        """
        self._loop.run(lambda: self._core.wait())
        return self

    def cancel(self) -> None:
        """Stops the work on every node and frees its caches; what has arrived stays readable. Repeating it
        changes nothing.

        Example:
            >>> generation.cancel()
            >>> generation.finish_reason
            'cancelled'
        """
        # Where the mesh is closed already, the call went with it.
        if self.finish_reason is None and not self._loop.stopped:
            self._loop.run(lambda: self._core.cancel())


class Training:
    """A run of federated training. It goes on in the mesh whether or not anybody looks: a handle may be dropped, and
    had again with `training(name)`.

    Example:
        >>> training = mesh.train("run", task="digits", rounds=20, nodes=["sat-1", "sat-2", "sat-3"])
        >>> for update in training.watch():
        ...     print(update.rounds_done, update.state)
        >>> weights = training.weights()
    """

    def __init__(self, core: AsyncTraining, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

    @property
    def name(self) -> str:
        """What the run is called.

        Example:
            >>> training.name
            'run'
        """
        return self._core.name

    def status(self, *, timeout: float | None = None) -> TrainingStatus:
        """How the run is, with all its rounds.

        Raises:
            InvalidInputError: `NOT_FOUND`, there is no such run any more.

        Example:
            >>> training.status().rounds_done
            12
        """
        return self._loop.run(lambda: self._core.status(timeout=timeout))

    def watch(self, from_round: int = 0) -> Iterator[TrainingStatus]:
        """How the run is now, and again whenever that changes, until it has ended.

        `rounds` of an update are those that are new or have changed since the one before. A gateway or an aggregator
        that is started anew is asked again; only when neither has answered for 120 s the loop ends with an error.
        Leaving the loop leaves the run as it is.

        Args:
            from_round: Rounds with a lower index are not told.

        Raises:
            InvalidInputError: there is no such run any more.
            TransportError: the mesh could not be reached for 120 s.

        Example:
            >>> for update in training.watch():
            ...     for each in update.rounds:
            ...         print(each.index, each.figures.get("accuracy"), each.up_bytes)
        """
        updates = self._core._watch(from_round)
        try:
            while (update := self._loop.run(lambda: next_of(updates))) is not None:
                yield update
        finally:
            # Where the mesh is closed already, the stream went with it.
            if not self._loop.stopped:
                self._loop.run(lambda: end_of(updates))

    def wait(self, *, timeout: float | None = None) -> TrainingStatus:
        """Waits until the run is done, and returns how it ended, with all its rounds.

        Args:
            timeout: How long to wait, in seconds; None waits as long as the run takes.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, it failed: the message says why.
            CancelledError_: it was cancelled.
            DeadlineError: it had not ended in that time; it goes on.
            TransportError: the mesh could not be reached for 120 s.

        Example:
            >>> training.wait().rounds[-1].figures["accuracy"]
            0.94
        """
        return self._loop.run(lambda: self._core.wait(timeout=timeout))

    def cancel(self, *, timeout: float | None = None) -> TrainingStatus:
        """Ends the run before its last round; its weights stay. Repeating it changes nothing.

        Example:
            >>> training.cancel().state
            'cancelled'
        """
        return self._loop.run(lambda: self._core.cancel(timeout=timeout))

    def resume(self, rounds: int | None = None, *, timeout: float | None = None) -> TrainingStatus:
        """Lets a run that was cancelled or has failed go on from its last whole round.

        Args:
            rounds: How many rounds there are to be in all; None leaves it as it was.
            timeout: How long the call may take, in seconds.

        Raises:
            InvalidInputError: it cannot go on; the message says why.

        Example:
            >>> training.resume(rounds=40).state
            'running'
        """
        return self._loop.run(lambda: self._core.resume(rounds, timeout=timeout))

    def delete(self, *, timeout: float | None = None) -> tuple[str, ...]:
        """Removes the run, which has ended: its weights, and what its nodes keep of it. Its name is free again.

        Returns:
            The nodes that could not be told, which keep what they have.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, it goes on: cancel it first.

        Example:
            >>> training.delete()
            ()
        """
        return self._loop.run(lambda: self._core.delete(timeout=timeout))

    def predict(self, inputs: npt.ArrayLike, *, timeout: float | None = None) -> npt.NDArray[np.float32]:
        """What the run's model says of inputs, computed by a node with the weights of the moment. Needs numpy.

        Args:
            inputs: As the task takes them, an example in each row: for `mnist5k` pictures of (n, 28, 28), 0 to 255.
            timeout: How long it may take, in seconds.

        Returns:
            Float32, a row for each example: for a classification the probability of each class.

        Raises:
            InvalidInputError: the task cannot take such inputs, or says nothing of single ones.
            NodeLostError: no node could be asked.

        Example:
            >>> training.predict(pictures).argmax(axis=1)
            array([7, 2, 1])
        """
        return self._loop.run(lambda: self._core.predict(inputs, timeout=timeout))

    def ledger(self, *, timeout: float | None = None) -> Ledger:
        """What the run's promise of privacy has cost so far, round by round.

        Example:
            >>> training.ledger().epsilon
            1.7
        """
        return self._loop.run(lambda: self._core.ledger(timeout=timeout))

    def weights(self, *, timeout: float = WEIGHTS_DEADLINE_S) -> npt.NDArray[np.float32]:
        """The weights after the last whole round: one vector, the model's floating tensors one after another in the
        order of its `state_dict`. Their SHA-256 was compared. Needs numpy.

        Args:
            timeout: How long getting them may take, in seconds.

        Raises:
            InvalidInputError: there are none yet, or they are larger than 8 GiB.
            IntegrityError: what came is not what its digest says.

        Example:
            >>> training.weights().shape
            (4810,)
        """
        return self._loop.run(lambda: self._core.weights(timeout=timeout))

    def save_weights(self, path: str | Path, *, timeout: float = WEIGHTS_DEADLINE_S) -> SavedWeights:
        """Writes the weights after the last whole round to a file that `numpy.load` reads, however large they are. The
        file is there whole, its SHA-256 compared, or not at all.

        Args:
            path: The file; one that is there is replaced.
            timeout: How long getting them may take, in seconds.

        Raises:
            InvalidInputError: there are none yet, or the file cannot be written.
            IntegrityError: what came is not what its digest says.

        Example:
            >>> training.save_weights("run.npy").values
            4810
        """
        return self._loop.run(lambda: self._core.save_weights(path, timeout=timeout))


class LocalEntry:
    """What `Mesh.local` is on the class: a call that makes a mesh of real processes on this machine.

    Example:
        >>> with Mesh.local(nodes=4, link=Link(latency_ms=20, rate_mbps=100)) as mesh:
        ...     print(mesh.nodes())
    """

    def __call__(
        self,
        nodes: int = 4,
        link: Link | None = None,
        *,
        node_names: Sequence[str] | None = None,
        contacts: ContactPlan | str | Path | None = None,
        time_factor: float = 1.0,
        start: float | datetime | None = None,
        gateway_at: str | None = None,
        outage: str = "cut",
        directory: str | Path | None = None,
        torch_threads: int = 1,
        otlp_endpoint: str = "",
        allow_faults: bool = False,
        timeout: float = CONTROL_DEADLINE_S,
        start_timeout: float = START_DEADLINE_S,
        on_progress: OnProgress | None = None,
    ) -> Mesh:
        """A mesh of real processes with real gRPC on this machine; it starts on entering and ends on leaving.

        Args:
            nodes: How many executors: satellites, and one ground node.
            link: What an emulator puts between every two of them; None joins them directly.
            node_names: The executors' names, in place of sat-1, sat-2, ..., ground-1 and of `nodes`.
            contacts: A contact plan, or the file that holds one: every link between nodes that it knows opens, closes,
                and is late and thin as it says; nodes that have no contact in it have no way to each other.
            time_factor: Mesh seconds per real second: at 60 an orbit of 95 minutes passes in 95 seconds. Latencies and
                rates stay real.
            start: The mesh time at the moment at which the mesh is up, as seconds since 1970 or a datetime; None takes
                the beginning of the plan.
            gateway_at: The node or site of the plan beside which gateway, scheduler and aggregator stand; None takes
                ground-1, or the last node where there is none.
            outage: What the end of a contact does to connections: `cut` resets them, `hold` keeps them and all bytes.
            directory: Where it keeps its state; None takes a temporary directory and removes it at the end.
            torch_threads: Threads that each executor computes with.
            otlp_endpoint: An OpenTelemetry collector, http://host:port, that its processes send spans and metrics to.
            allow_faults: Whether operators may break its processes on purpose, with `OpsService` `InjectFault`.
            timeout: How long a control call may take, in seconds.
            start_timeout: How long the start may take, in seconds.
            on_progress: Called as its processes start.

        Raises:
            InvalidInputError: a number is out of range, or the contact plan is wrong.
        """
        target = local_target(
            nodes,
            link,
            directory,
            torch_threads,
            on_progress,
            node_names=node_names,
            sky=local_sky(contacts, time_factor, start, outage),
            gateway_at=gateway_at,
            otlp_endpoint=otlp_endpoint,
            allow_faults=allow_faults,
        )
        return Mesh(target, timeout=timeout, open_timeout=start_timeout)


class LocalAccess:
    """`Mesh.local` makes a local mesh; `mesh.local` is the handle on the processes of one.

    Example:
        >>> with Mesh.local(nodes=4) as mesh:
        ...     mesh.local.kill("sat-2")
    """

    @overload
    def __get__(self, mesh: None, owner: type[Mesh]) -> LocalEntry: ...

    @overload
    def __get__(self, mesh: Mesh, owner: type[Mesh]) -> Local: ...

    def __get__(self, mesh: Mesh | None, owner: type[Mesh]) -> LocalEntry | Local:
        return LocalEntry() if mesh is None else mesh._local_handle()


class Mesh:
    """A connection to a mesh. Use it as a context manager, or call `open` and `close`.

    Example:
        >>> with Mesh.connect("gateway.example:7443", identity="~/.orbitmesh/me") as mesh:
        ...     generation = mesh.generate("demo", prompt="Space is")
        ...     for token in generation:
        ...         print(token.text, end="")
    """

    local = LocalAccess()

    def __init__(
        self,
        target: Remote | AsyncLocal,
        *,
        timeout: float = CONTROL_DEADLINE_S,
        open_timeout: float | None = None,
        patience: float = RESUME_S,
    ) -> None:
        self._core = AsyncMesh(target, timeout=timeout, open_timeout=open_timeout, patience=patience)
        self._loop = LoopThread()

    def _local_handle(self) -> Local:
        return Local(self._core._local_handle(), self._loop)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        identity: str | Path,
        timeout: float = CONTROL_DEADLINE_S,
        patience: float = RESUME_S,
    ) -> Mesh:
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
            >>> with Mesh.connect("gateway.example:7443", identity="~/.orbitmesh/me") as mesh:
            ...     print(mesh.status())
        """
        core = AsyncMesh.connect(
            address, identity=identity, timeout=timeout, patience=patience
        )
        return cls(core._target, timeout=timeout, patience=patience)

    def __enter__(self) -> Mesh:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connects and makes sure that the gateway answers; starts the processes of a local mesh. Repeating
        it is harmless.

        Raises:
            IdentityError: our identity is missing, expired or of another mesh.
            TransportError: the gateway cannot be reached.
            DeadlineError: it did not answer in time.

        Example:
            >>> mesh = Mesh.connect("gateway.example:7443", identity="~/.orbitmesh/me")
            >>> mesh.open()
        """
        self._loop.run(lambda: self._core.open())

    def close(self) -> None:
        """Ends the connection, and the processes of a local mesh. Repeating it changes nothing.

        Example:
            >>> mesh.close()
        """
        if not self._loop.stopped:
            self._loop.run(lambda: self._core.close())
            self._loop.stop()

    def status(self, *, timeout: float | None = None) -> Status:
        """What the gateway is doing.

        Example:
            >>> mesh.status().generations
            2
        """
        return self._loop.run(lambda: self._core.status(timeout=timeout))

    def nodes(self, *, timeout: float | None = None) -> list[Node]:
        """The nodes of the mesh with what they measured, by name.

        Example:
            >>> [node.name for node in mesh.nodes()]
            ['ground-1', 'sat-1', 'sat-2', 'sat-3']
        """
        return self._loop.run(lambda: self._core.nodes(timeout=timeout))

    def deployments(self, *, timeout: float | None = None) -> list[Deployment]:
        """The deployments, by name.

        Example:
            >>> [(deployment.name, deployment.state) for deployment in mesh.deployments()]
            [('demo', 'ready')]
        """
        return self._loop.run(lambda: self._core.deployments(timeout=timeout))

    def deployment(self, name: str, *, timeout: float | None = None) -> Deployment:
        """One deployment.

        Raises:
            UnknownModelError: there is none of this name.

        Example:
            >>> mesh.deployment("demo").stages[0].node
            'sat-1'
        """
        return self._loop.run(lambda: self._core.deployment(name, timeout=timeout))

    def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Takes a deployment down on every node. Repeating it changes nothing.

        Example:
            >>> mesh.delete("demo")
        """
        self._loop.run(lambda: self._core.delete(name, timeout=timeout))

    def plan(
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
            >>> mesh.plan("models/pydoc", stages=3).reasons[0]
            'Stage 0 is on sat-1: ...'
        """
        return self._loop.run(
            lambda: self._core.plan(
                source,
                stages=stages,
                objective=objective,
                nodes=nodes,
                kv_tokens=kv_tokens,
                work_s=work_s,
                work_tokens=work_tokens,
                timeout=timeout,
                on_progress=on_progress,
            )
        )

    def deploy(
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
            >>> deployment = mesh.deploy("models/pydoc", name="demo", stages=3)
            >>> deployment.stages[0]
            Stage(node='sat-1', layers=range(0, 2), ...)
        """
        return self._loop.run(
            lambda: self._core.deploy(
                source,
                name=name,
                stages=stages,
                objective=objective,
                codec=codec,
                nodes=nodes,
                kv_tokens=kv_tokens,
                standbys=standbys,
                work_s=work_s,
                work_tokens=work_tokens,
                slice=slice,
                timeout=timeout,
                on_progress=on_progress,
            )
        )

    def generate(
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
    ) -> Generation:
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
            >>> generation = mesh.generate("demo", prompt="Space is", max_new_tokens=64)
            >>> for token in generation:
            ...     print(token.text, end="")
        """
        core = self._loop.run(
            lambda: self._core.generate(
                name,
                prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                ignore_end=ignore_end,
                timings=timings,
                slice=slice,
                timeout=timeout,
                on_waiting=on_waiting,
            )
        )
        return Generation(core, self._loop)

    def explain(self, trace_id: str | None = None, *, timeout: float | None = None) -> Breakdown:
        """Where the time of a generation went: rows that sum to the total, ready to print.

        Args:
            trace_id: The generation's `.trace_id`; None means the last one that ended.
            timeout: How long the call may take, in seconds.

        Raises:
            InvalidInputError: the gateway does not remember this trace.

        Example:
            >>> print(mesh.explain(generation.trace_id))
        """
        return self._loop.run(lambda: self._core.explain(trace_id, timeout=timeout))

    def train(
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
    ) -> Training:
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
            >>> training = mesh.train("run", task="digits", rounds=20, compression="topk:0.01")
            >>> training.wait().rounds[-1].figures["accuracy"]
            0.94
        """
        core = self._loop.run(
            lambda: self._core.train(
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
                slice=slice,
                timeout=timeout,
            )
        )
        return Training(core, self._loop)

    def training(self, name: str, *, timeout: float | None = None) -> Training:
        """The handle on a run that was begun before, here or elsewhere.

        Raises:
            InvalidInputError: `NOT_FOUND`, there is none of this name.

        Example:
            >>> training = mesh.training("run")
        """
        core = self._loop.run(lambda: self._core.training(name, timeout=timeout))
        return Training(core, self._loop)

    def trainings(self, *, timeout: float | None = None) -> list[TrainingStatus]:
        """The runs, by name, without their rounds.

        Example:
            >>> [(run.name, run.state) for run in mesh.trainings()]
            [('run', 'done')]
        """
        return self._loop.run(lambda: self._core.trainings(timeout=timeout))

    @property
    def slices(self) -> Slices:
        """The slices of the mesh: shares of its CPU, GPU, memory and bandwidth, each promised to one tenant.

        Example:
            >>> [template.name for template in mesh.slices.templates()]
            ['urllc', 'embb', 'mmtc']
        """
        return Slices(self._core.slices, self._loop)
