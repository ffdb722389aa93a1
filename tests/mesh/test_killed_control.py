"""The gateway and the scheduler are killed and started again: what was being answered goes on from where it was."""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from orbitmesh import Mesh, Token
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import Identity, Role, issue, load_identity
from orbitmesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.mesh.support import Model, Models, channel_to, deployed, expect_idle, is_idle, until
from tests.mesh.surviving import (
    NEW_TOKENS,
    beside,
    endless,
    expect_answer,
    listen,
    pipeline_of,
    strike,
    until_whole,
)

SECRET = "Aurora borealis over Tromsoe, 0451"
LONG = 1200
"""New tokens of an answer that must still be under way when something is done about it."""


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("llama", seed=4, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Mesh]:
    how = {"stages": 3, "standbys": 1, "kv_tokens": 8192}
    with Mesh.local(nodes=4, directory=tmp_path_factory.mktemp("control")) as mesh, deployed(mesh, model, "ctl", **how):
        yield mesh


def anew(mesh: Mesh, process: str) -> Callable[[], None]:
    """Kills it and starts it again."""

    def blow() -> None:
        strike(mesh, process)
        mesh.local.restart(process)

    return blow


@pytest.mark.parametrize(
    "index", [pytest.param(-1, marks=pytest.mark.soak), 20, pytest.param(NEW_TOKENS - 2, marks=pytest.mark.soak)]
)
def test_the_gateway_is_killed_and_the_answer_goes_on(fragile: Mesh, model: Model, index: int) -> None:
    """The client's stream waits and goes on behind its last token, with the tokens of an undisturbed answer."""
    until_whole(fragile, "ctl")
    prompt = model.prompt(1000 if index < 0 else 7, 10 + index)
    heard = listen(fragile, "ctl", prompt, {index: anew(fragile, "gateway")})
    expect_answer(heard, model, prompt)
    expect_idle(fragile, "ctl", pipeline_of(fragile, "ctl"))


@pytest.mark.soak
def test_the_gateway_is_killed_again_and_again(fragile: Mesh, model: Model) -> None:
    """One answer, three gateways, and a second client's answer beside it."""
    until_whole(fragile, "ctl")
    prompts = [model.prompt(6, 21), model.prompt(9, 22)]
    blows = {index: anew(fragile, "gateway") for index in (5, 200, 590)}
    beside_it = lambda: expect_answer(  # noqa: E731
        listen(fragile, "ctl", prompts[1], {}, max_new_tokens=600), model, prompts[1], 600
    )
    with beside(beside_it):
        heard = listen(fragile, "ctl", prompts[0], blows, max_new_tokens=600)
    expect_answer(heard, model, prompts[0], 600)


def test_the_gateway_dies_between_the_last_token_and_the_end(fragile: Mesh, model: Model) -> None:
    """The last token is with the client, the word that it was the last is not: the next gateway says it."""
    until_whole(fragile, "ctl")
    prompt = model.prompt(5, 31)
    heard = listen(fragile, "ctl", prompt, {NEW_TOKENS - 1: anew(fragile, "gateway")})
    expect_answer(heard, model, prompt)


@pytest.mark.parametrize("lost", [pytest.param("scheduler", marks=pytest.mark.soak), "gateway"])
def test_control_and_a_node_are_lost_together(fragile: Mesh, model: Model, lost: str) -> None:
    """A stage's node dies while the scheduler, or the gateway, is away: it is replaced as soon as that is back."""
    until_whole(fragile, "ctl")
    prompt = model.prompt(8, 41)
    victim = pipeline_of(fragile, "ctl")[1]

    def blow() -> None:
        strike(fragile, lost)
        strike(fragile, victim)
        fragile.local.restart(lost)

    heard = listen(fragile, "ctl", prompt, {10: blow})
    fragile.local.restart(victim)
    expect_answer(heard, model, prompt)


def test_the_scheduler_is_killed_and_nobody_notices(fragile: Mesh, model: Model) -> None:
    """Generations that run, and those that begin when it is back, do not depend on its process."""
    until_whole(fragile, "ctl")
    prompt = model.prompt(8, 42)
    heard = listen(fragile, "ctl", prompt, {10: anew(fragile, "scheduler")})
    expect_answer(heard, model, prompt)
    until_whole(fragile, "ctl")
    expect_answer(listen(fragile, "ctl", prompt, {}), model, prompt)


# What a program without the SDK sees.


class Raw:
    """Calls to the gateway as any gRPC client would make them."""

    def __init__(self, mesh: Mesh, identity: Identity | None = None) -> None:
        self._mesh = mesh
        self._identity = identity or load_identity(mesh.local.identity)

    def __enter__(self) -> gateway_pb2_grpc.GatewayServiceStub:
        self._channel = channel_to(self._mesh.local.gateway, self._identity, Role.GATEWAY, "gateway")
        return gateway_pb2_grpc.GatewayServiceStub(self._channel.__enter__())

    def __exit__(self, *_: object) -> None:
        self._channel.__exit__(None, None, None)


def request_for(
    prompt: list[int], name: str = "", linger_s: int = 0, new_tokens: int = LONG
) -> gateway_pb2.GenerateRequest:
    request = gateway_pb2.GenerateRequest(
        deployment="ctl",
        token_ids=gateway_pb2.TokenIds(ids=prompt),
        max_new_tokens=new_tokens,
        ignore_end=True,
        request_id=name,
    )
    if linger_s:
        request.linger.FromSeconds(linger_s)
    return request


def take(call: grpc.CallIterator, count: int) -> list[int]:
    """The next so many tokens."""
    said: list[int] = []
    for event in call:
        if event.HasField("token"):
            said.append(event.token.id)
        if len(said) == count:
            break
    return said


def test_a_stream_that_was_not_named_ends_with_an_error(fragile: Mesh, model: Model) -> None:
    """Without a name there is nothing to take up: the client is told that it may ask again, and the nodes, which
    nobody can tell any more, free it when its time is over."""
    until_whole(fragile, "ctl")
    with Raw(fragile) as stub:
        call = stub.Generate(request_for(model.prompt(5)), timeout=5)
        assert take(call, 3) == endless(model, model.prompt(5), 3)
        anew(fragile, "gateway")()
        with pytest.raises(grpc.RpcError) as cut:
            list(call)
        assert map_rpc_error(cut.value).retryable
    expect_idle(fragile, "ctl", pipeline_of(fragile, "ctl"))


@pytest.mark.soak
def test_a_second_stream_of_the_same_name_sees_the_same_generation(fragile: Mesh, model: Model, tmp_path: Path) -> None:
    """Of the same caller: from the beginning, or behind what it holds. Another caller's is its own generation."""
    until_whole(fragile, "ctl")
    prompt, name = model.prompt(6, 51), secrets.token_hex(8)
    expected = endless(model, prompt, LONG)
    stranger = issue(fragile.local.directory / "ca", Role.CLIENT, "stranger", tmp_path / "stranger")
    with Raw(fragile) as one, Raw(fragile) as two, Raw(fragile, stranger) as other:
        first = one.Generate(request_for(prompt, name, 30), timeout=60)
        number = next(first).started.generation
        assert take(first, 5) == expected[:5]
        second = two.Generate(request_for(prompt, name, 30), timeout=60)
        assert next(second).started.generation == number
        behind = request_for(prompt, name, 30)
        behind.received.ids.extend(expected[:100])
        third = two.Generate(behind, timeout=60)
        assert next(third).started.generation == number
        foreign = other.Generate(request_for(prompt, name, 30, 4), timeout=60)
        assert next(foreign).started.generation not in (number, 0)
        other.CancelGeneration(gateway_pb2.CancelGenerationRequest(request_id=name), timeout=60)
        assert take(third, LONG - 100) == expected[100:]
        assert take(second, LONG) == expected
        assert take(first, LONG - 5) == expected[5:]
        assert [take(call, 1) for call in (first, second, third)] == [[], [], []], "they end"
    expect_idle(fragile, "ctl", pipeline_of(fragile, "ctl"))


def test_a_generation_that_is_cancelled_by_name_frees_the_nodes(fragile: Mesh, model: Model) -> None:
    """Also one that was taken up by a new gateway and that nobody listens to."""
    until_whole(fragile, "ctl")
    name = secrets.token_hex(8)
    with Raw(fragile) as stub:
        call = stub.Generate(request_for(model.prompt(5), name, 60), timeout=60)
        take(call, 3)
        call.cancel()
        anew(fragile, "gateway")()
    with Raw(fragile) as stub:
        until(lambda: fragile.status().scheduler_up, "the gateway is back")
        stub.CancelGeneration(gateway_pb2.CancelGenerationRequest(request_id=name), timeout=60)
        stub.CancelGeneration(gateway_pb2.CancelGenerationRequest(request_id=name), timeout=60)
    expect_idle(fragile, "ctl", pipeline_of(fragile, "ctl"))
    assert not list(fragile.local.directory.glob("state/gateway/generations/*"))


def test_a_generation_whose_caller_stays_away_ends_by_itself(fragile: Mesh, model: Model) -> None:
    """After the time that the caller gave it, the nodes and the disk hold nothing of it."""
    until_whole(fragile, "ctl")
    nodes = pipeline_of(fragile, "ctl")
    with Raw(fragile) as stub:
        call = stub.Generate(request_for(model.prompt(5), secrets.token_hex(8), 2, 1900), timeout=60)
        take(call, 2)
        call.cancel()
        assert not is_idle(fragile, "ctl", nodes), "it ended at once"
    expect_idle(fragile, "ctl", nodes)
    until(lambda: not list(fragile.local.directory.glob("state/gateway/generations/*")), "the gateway forgets it")


def test_nothing_of_prompt_or_answer_is_in_plain_on_any_disk(fragile: Mesh, shipped: Path) -> None:
    """What gateway and executors keep of a generation that waits is sealed; it goes on from there all the same."""
    with deployed(fragile, shipped, "text", stages=2, kv_tokens=1024):
        expected = list(fragile.generate("text", SECRET, max_new_tokens=NEW_TOKENS, ignore_end=True).wait().token_ids)
        state = fragile.local.directory / "state"
        holders = [state / node / "generations" for node in {*pipeline_of(fragile, "text")}]
        generation = fragile.generate("text", SECRET, max_new_tokens=NEW_TOKENS, ignore_end=True)
        said: list[Token] = []

        def written() -> bool:
            return all(any(file.suffix != ".new" for file in where.glob("*")) for where in holders)

        def look() -> None:
            strike(fragile, "gateway")
            until(written, "both executors have written the generation down")
            files = [file for where in (*holders, state / "gateway" / "generations") for file in where.glob("*")]
            read_all(files, said_so_far="".join(each.text for each in said), ids=expected)

        for token in generation:
            said.append(token)
            if len(said) == 5:
                try:
                    look()
                finally:
                    fragile.local.restart("gateway")
        assert [token.id for token in said] == expected
        processes = ("gateway", *pipeline_of(fragile, "text"))
        logs = {name: told_of(fragile, name, generation.trace_id) for name in processes}
        assert "generation_taken_up" in logs.pop("gateway")
        assert all("generation_saved" in events for events in logs.values()), logs


def told_of(mesh: Mesh, process: str, trace_id: str) -> set[str]:
    """The events in a process's log that are of one trace."""
    text = (mesh.local.directory / "logs" / f"{process}.log").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {line["event"] for line in lines if line.get("trace_id") == trace_id}


def read_all(files: list[Path], said_so_far: str, ids: list[int]) -> None:
    """Looks for the prompt, the answer's text and its ids, as text and as numbers, in every file."""
    assert len(files) >= 2
    run = ids[1:5]
    texts = [SECRET, SECRET[:12], said_so_far, ", ".join(map(str, run)), ",".join(map(str, run))]
    needles = [text.encode() for text in texts]
    needles += [struct.pack(f"{order}4I", *run) for order in "<>"]
    for file in files:
        data = file.read_bytes()
        assert len(data) > 200
        assert not [needle for needle in needles if needle in data], file
