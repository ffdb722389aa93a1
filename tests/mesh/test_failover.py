"""The leading scheduler and the leading gateway are killed under load: the others go on where they were."""

from __future__ import annotations

import asyncio
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh._packs import signed_pack
from orbitmesh._stubs import Stubs
from orbitmesh.errors import MeshError
from orbitmesh.pack import Manifest
from orbitmesh.transfer_files import upload
from orbitmesh.v1 import gateway_pb2, gateway_pb2_grpc, scheduler_pb2
from tests.mesh.ha_mesh import HaMesh
from tests.mesh.support import Model, Models, until
from tests.mesh.surviving import endless
from tests.postgres import Server

NEW_TOKENS = 150
LISTENERS = 3


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("llama", seed=4, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def two_of_each(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Iterator[HaMesh]:
    made = HaMesh(tmp_path_factory.mktemp("ha"), postgres.fresh())
    try:
        made.start()
        yield made
    finally:
        made.close()


class Load:
    """Generations, one after the other on each thread, each compared with the unsplit model."""

    def __init__(self, mesh: Mesh, model: Model) -> None:
        self.right = 0
        self.wrong: list[str] = []
        self.started = 0
        self._mesh = mesh
        self._model = model
        self._stop = threading.Event()
        self._lock = threading.Lock()
        prompts = [model.prompt(5 + index, 60 + index) for index in range(LISTENERS)]
        self._expected = [(prompt, endless(model, prompt, NEW_TOKENS)) for prompt in prompts]
        self._threads = [threading.Thread(target=self._run, args=each) for each in self._expected]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads)

    def until_more(self, count: int) -> None:
        """Waits until so many more generations have begun, and some of them have ended."""
        begun, ended = self.started, self.right
        until(lambda: bool(self.wrong) or (self.started >= begun + count and self.right > ended), "the load goes on")

    def _run(self, prompt: list[int], expected: list[int]) -> None:
        while not self._stop.is_set():
            with self._lock:
                self.started += 1
            try:
                generation = self._mesh.generate(
                    "ha", prompt, max_new_tokens=NEW_TOKENS, ignore_end=True, timeout=100.0
                )
                said = [token.id for token in generation]
            except MeshError as error:
                self.wrong.append(f"{type(error).__name__} {error.reason}: {error.message}")
                return
            with self._lock:
                if said == expected:
                    self.right += 1
                else:
                    self.wrong.append(f"{len(said)} tokens, of which not all are those of the unsplit model")


def create(mesh: HaMesh, request: scheduler_pb2.CreateDeploymentRequest) -> scheduler_pb2.Deployment:
    """Asks for a deployment as any gRPC client would; what it is in the end."""

    async def ask() -> scheduler_pb2.Deployment:
        stubs = Stubs.open(mesh.gateway, mesh.operator)
        try:
            last = scheduler_pb2.Deployment()
            async for answer in stubs.scheduler.CreateDeployment(request, timeout=100.0):
                last = answer.deployment
            return last
        finally:
            await stubs.close()

    return asyncio.run(ask())


def bring(mesh: HaMesh, model: Model) -> scheduler_pb2.CreateDeploymentRequest:
    """Uploads a pack; the request that deploys it, without a name."""

    async def send() -> scheduler_pb2.CreateDeploymentRequest:
        stubs = Stubs.open(mesh.gateway, mesh.operator)
        try:
            pack = await signed_pack(model.pack, mesh.operator, lambda progress: None)
            await upload(stubs, pack, lambda progress: None)
            status = await stubs.gateway.GetStatus(gateway_pb2.GetStatusRequest(), timeout=60.0)
        finally:
            await stubs.close()
        request = scheduler_pb2.CreateDeploymentRequest(
            request_id=secrets.token_hex(8), manifest=pack.manifest_bytes, signature=pack.signature, kv_tokens=4096
        )
        request.source.role, request.source.name, request.source.address = "gateway", status.name, status.address
        return request

    return asyncio.run(send())


def tokens(mesh: HaMesh, name: str, prompt: list[int], count: int) -> tuple[int, list[int]]:
    """A named generation's number and first tokens, from its beginning, over a stream that is then cut."""
    request = gateway_pb2.GenerateRequest(
        deployment="ha", token_ids=gateway_pb2.TokenIds(ids=prompt), max_new_tokens=1500, ignore_end=True,
        request_id=name,
    )  # fmt: skip
    request.linger.FromSeconds(90)

    async def read() -> tuple[int, list[int]]:
        stubs = Stubs.open(mesh.gateway, mesh.operator)
        stub: gateway_pb2_grpc.GatewayServiceStub = stubs.gateway
        number, said = 0, list[int]()
        call = stub.Generate(request, timeout=100.0)
        try:
            while len(said) < count:
                event = await call.read()
                assert event is not grpc.aio.EOF
                if event.HasField("started"):
                    number = event.started.generation
                elif event.HasField("token"):
                    said.append(event.token.id)
        finally:
            call.cancel()
            await stubs.close()
        return number, said

    return asyncio.run(read())


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_leaders_are_killed_under_load(two_of_each: HaMesh, model: Model, models: Models, rounds: int) -> None:
    """First the scheduler, then the gateway; both come back, to stand by: every generation ends with the tokens of the
    unsplit model, what was acknowledged is there, and a request that comes again gets the same answer and is done
    once."""
    ha = two_of_each
    request = bring(ha, model)
    request.name, request.stages, request.request_id = "ha", 2, "the one that made it"
    made = create(ha, request)
    assert made.state == scheduler_pb2.DEPLOYMENT_STATE_READY
    only_uploaded = bring(ha, models.get("llama", seed=9))
    only_uploaded.name, only_uploaded.stages = "later", 2
    named, prompt = secrets.token_hex(8), model.prompt(9, 77)
    expected = endless(model, prompt, 1500)
    number, said = tokens(ha, named, prompt, 40)
    assert said == expected[:40]

    with ha.connect() as mesh, Load(mesh, model) as load:
        load.until_more(2)
        for round_number in range(rounds):
            scheduler = ha.leader(ha.schedulers)
            ha.process(scheduler).kill()
            load.until_more(2)
            assert ha.leader(ha.schedulers) != scheduler
            # The request that made it, once more: it was done.
            again = create(ha, request)
            assert (again.created_at, again.state) == (made.created_at, scheduler_pb2.DEPLOYMENT_STATE_READY)

            gateway = ha.leader(ha.gateways)
            ha.process(gateway).kill()
            load.until_more(2)
            assert ha.leader(ha.gateways) != gateway
            # The generation of that name: the same one, from its beginning, also where it had gone on meanwhile.
            assert tokens(ha, named, prompt, 200) == (number, expected[:200])

            if round_number == 0:
                # Its files were acknowledged by a gateway that is gone, and lie on no other one's disk.
                other = next(name for name in ha.gateways if name != gateway)
                here = {path.name for path in (ha.directory / other / "state" / "packs" / "files").iterdir()}
                files = Manifest.parse(only_uploaded.manifest).files
                assert here.isdisjoint(each.sha256 for each in files if each.name.endswith(".safetensors"))
                late = create(ha, only_uploaded)
                assert late.state == scheduler_pb2.DEPLOYMENT_STATE_READY
                assert len(late.pipeline) == 2
            ha.start_one(scheduler)
            ha.start_one(gateway)
            for name in (scheduler, gateway):
                ha.process(name).wait_for("stands_by")
        assert sorted(each.name for each in mesh.deployments()) == ["ha", "later"]
        mesh.delete("later")
    assert load.wrong == []
    assert load.right >= 4


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_gateway_that_was_stopped_and_wakes_up_disturbs_nobody(two_of_each: HaMesh, model: Model) -> None:
    """SIGSTOP under load, another leads, SIGCONT: the old one ends, and no token is lost, doubled or another's."""
    ha = two_of_each
    request = bring(ha, model)
    request.name, request.stages, request.request_id = "ha", 2, "the one that made it"
    create(ha, request)
    with ha.connect() as mesh, Load(mesh, model) as load:
        load.until_more(2)
        stopped = ha.process(ha.leader(ha.gateways))
        stopped.signal(signal.SIGSTOP)
        others = [ha.process(name) for name in ha.gateways if ha.process(name) is not stopped]
        until(lambda: any(each.leads for each in others), "another leads")
        load.until_more(2)
        stopped.signal(signal.SIGCONT)
        assert stopped.wait() == 1
        load.until_more(2)
    assert load.wrong == []
    ha.start_one(next(name for name in ha.gateways if ha.process(name) is stopped))


def test_nothing_of_a_prompt_or_an_answer_is_in_plain_in_the_database(
    two_of_each: HaMesh, model: Model, postgres: Server
) -> None:
    """What the gateways share of a generation is sealed."""
    ha = two_of_each
    prompt = model.prompt(12, 88)
    expected = endless(model, prompt, 30)
    assert tokens(ha, secrets.token_hex(8), prompt, 30)[1] == expected
    dumped = postgres.dump(ha.database)
    assert b"orbitmesh_gateway" in dumped and b"progress" in dumped
    for ids in (prompt, expected):
        for needle in (", ".join(map(str, ids[:5])), "".join(f"{each:08x}" for each in ids[:2])):
            assert needle.encode() not in dumped


def test_a_gateway_with_another_key_does_not_lead(two_of_each: HaMesh, tmp_path: Path) -> None:
    """It could not go on with what the others hold: it ends with a line that says so, and the store is as it was."""
    ha = two_of_each
    standby = next(name for name in ha.gateways if name != ha.leader(ha.gateways))
    ha.process(standby).end()
    wrong = ha.start_one(standby, record_key=_a_key(tmp_path))
    wrong.wait_for("stands_by")
    ha.process(ha.leader({name: at for name, at in ha.gateways.items() if name != standby})).kill()
    assert wrong.wait() == 2
    assert "--record-key is another key" in wrong.log.splitlines()[-1]
    ha.start_one(standby)
    with ha.connect() as mesh:
        assert mesh.status().scheduler_up


def _a_key(directory: Path) -> Path:
    path = directory / "other.key"
    path.write_text("ab" * 32)
    path.chmod(0o600)
    return path
