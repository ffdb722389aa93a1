"""What an executor keeps on disk to go on after it was started anew: which stages it held, and generations that wait.

A generation that does not get on, because no path exists or its gateway is away, is written to a sealed file once:
what it was opened with, how far it is, its tokens, its journal and its cache. A file belongs to one stage of one
generation and is removed with it. Formats are this version's own: a file of another one is left out, with a warning.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from orbitmesh.durable import write_durably
from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import executor_pb2
from services.executor.cachemove import layer_bytes, put_layer
from services.executor.generation import Generation, Route, about
from services.executor.progress import Phase, Progress
from services.executor.runner import StageRunner
from services.journal.sealed_file import SealedReader, SealedWriter
from services.runtime.logs import EventLog

IDLE_NS = 2_000_000_000
"""A generation that has not got on for so long, in nanoseconds, is written to disk; one whose steps are slow by nature
is given four of them."""
ROWS_PER_RECORD = 1024
"""Positions in one record."""
FORMAT = 1
PURPOSE = b"generation"
_CACHE = struct.Struct(">cIIIQ")
_ROWS = struct.Struct(">cI")


class Snapshots:
    """Files of one executor.

    Args:
        state: Its directory.
        identities: Whose key for files protects what is written.
        log: Where to say what was left out.
    """

    def __init__(self, state: Path, identities: IdentitySource, log: EventLog) -> None:
        self._stages = state / "stages"
        self._generations = state / "generations"
        self._identities = identities
        self._log = log

    # Stages.

    def keep_stage(self, request: executor_pb2.LoadStageRequest) -> None:
        """Remembers a stage; blocks."""
        self._stages.mkdir(parents=True, exist_ok=True)
        write_durably(self._stage_path(request.deployment, request.stage_index), request.SerializeToString())

    def stages(self) -> list[executor_pb2.LoadStageRequest]:
        """The stages that were held; blocks."""
        found = []
        for path in sorted(self._stages.glob("*.stage")):
            try:
                found.append(executor_pb2.LoadStageRequest.FromString(path.read_bytes()))
            except DecodeError:
                self._log.warning("stage_record_damaged", file=path.name)
        return found

    def forget_stages(self, deployment: str, stage_indexes: list[int]) -> None:
        """Forgets stages, all of the deployment's where none is named, with their generations; blocks."""
        for request in self.stages():
            if request.deployment == deployment and (not stage_indexes or request.stage_index in stage_indexes):
                self._stage_path(deployment, request.stage_index).unlink(missing_ok=True)
                for path in self._generations.glob(f"{_place(deployment, request.stage_index)}.*"):
                    path.unlink(missing_ok=True)

    def _stage_path(self, deployment: str, stage_index: int) -> Path:
        return self._stages / f"{_place(deployment, stage_index)}.stage"

    # Generations.

    async def save_idle(self, runner: StageRunner, idle_ns: int | None = None) -> None:
        """Writes the generations of a stage that do not get on and are not on disk as they are."""
        for generation in list(runner.generations.values()):
            patience_ns = max(IDLE_NS, 4 * generation.step_ns) if idle_ns is None else idle_ns
            mark = generation.mark
            if generation.saved == mark or time.monotonic_ns() - generation.changed_ns < patience_ns:
                continue
            path = self._generations / f"{_place(*runner.key)}.{generation.number:016x}"
            try:
                await asyncio.to_thread(self._write, runner, generation, path)
            except (OSError, MeshError) as error:
                self._log.warning("generation_not_saved", **about(generation), detail=str(error))
                continue
            if generation.closed or mark != generation.mark:
                path.unlink(missing_ok=True)  # it went on while it was written: the file may mix two states
                continue
            generation.saved, generation.snapshot = mark, path
            self._log.info("generation_saved", **about(generation), positions=generation.progress.length)

    def _write(self, runner: StageRunner, generation: Generation, path: Path) -> None:
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with SealedWriter(fresh, self._identities.current(), PURPOSE) as file:
            for record in _records(runner, generation):
                file.append(record)
            file.append(b"", durable=True)  # the end: a file without it was not finished
        fresh.replace(path)

    async def restore_generations(self, runner: StageRunner) -> None:
        """Opens the generations of a stage that are on disk and whose time is not over."""
        for path in sorted(self._generations.glob(f"{_place(*runner.key)}.*")):
            try:
                generation = await asyncio.to_thread(self._read, runner, path)
            except (OSError, MeshError, ValueError, KeyError, struct.error) as error:
                self._log.warning("generation_not_restored", file=path.name, detail=str(error))
                path.unlink(missing_ok=True)
                continue
            self._log.info("generation_restored", **about(generation), positions=generation.progress.length)

    def _read(self, runner: StageRunner, path: Path) -> Generation:
        records = iter(SealedReader(path, self._identities.current(), PURPOSE))
        head = json.loads(next(records, b"{}"))
        if head.get("format") != FORMAT or head["expires_at"] <= time.time():
            raise InvalidInputError("its time is over, or another version wrote it")
        request = executor_pb2.OpenGenerationRequest.FromString(base64.b64decode(head["request"]))
        expires_ns = time.monotonic_ns() + int((head["expires_at"] - time.time()) * 1e9)
        generation = runner.open(request, head["gateway"], expires_ns)
        try:
            if not _fill(runner, generation, head, records):
                raise InvalidInputError("it was not written to its end")
        except BaseException:
            runner.close(request.generation)
            raise
        generation.snapshot = path
        return generation


def _place(deployment: str, stage_index: int) -> str:
    """A stage in a file's name: deployments' names may have dots, and one may begin as another does."""
    return f"{hashlib.sha256(deployment.encode()).hexdigest()[:32]}.{stage_index}"


def _records(runner: StageRunner, generation: Generation) -> Iterator[bytes]:
    progress = generation.progress
    now = time.monotonic_ns()
    head = {
        "format": FORMAT,
        "request": base64.b64encode(generation.request.SerializeToString()).decode(),
        "gateway": generation.gateway,
        "expires_at": time.time() + (generation.expires_ns - now) / 1e9,
        "epoch": progress.epoch,
        "length": progress.length,
        "push_from": progress.push_from,
        "sample_from": progress.sample_from,
        "nodes": generation.route.nodes,
        "tokens": generation.tokens,
        "tokens_from": generation.tokens_from,
        "journal_start": generation.journal.start,
    }
    yield json.dumps(head).encode()
    start, stop = generation.journal.start, min(generation.journal.stop, progress.length)
    if start < stop:
        for position, data in generation.journal.read(start, stop, ROWS_PER_RECORD):
            yield _ROWS.pack(b"J", position) + data
    for low in range(0, progress.length, ROWS_PER_RECORD):
        rows = min(ROWS_PER_RECORD, progress.length - low)
        for layer in range(len(runner.cache_shapes)):
            keys, values = layer_bytes(generation, layer, low, low + rows)
            yield _CACHE.pack(b"C", layer, low, rows, len(keys)) + keys + values


def _fill(runner: StageRunner, generation: Generation, head: dict[str, object], records: Iterator[bytes]) -> bool:
    """Puts back what the records hold; False where the file ends before its end."""
    epoch, length = _number(head, "epoch"), _number(head, "length")
    nodes, tokens = head["nodes"], head["tokens"]
    if not isinstance(nodes, list) or not isinstance(tokens, list):
        return False
    generation.journal.skip(_number(head, "journal_start"))
    for record in records:
        if not record:
            generation.cache.adopt(length)
            generation.progress = Progress(
                epoch,
                Phase.STOPPED,
                length,
                length,
                _number(head, "push_from"),
                _number(head, "sample_from"),
            )
            generation.route = Route(runner.stage_index, tuple(str(node) for node in nodes))
            generation.tokens = [int(token) for token in tokens]
            generation.tokens_from = _number(head, "tokens_from")
            generation.saved = generation.mark
            return True
        if record[:1] == b"J":
            _, position = _ROWS.unpack_from(record)
            generation.journal.append(position, memoryview(record)[_ROWS.size :])
        else:
            _, layer, position, rows, key_bytes = _CACHE.unpack_from(record)
            put_layer(runner, generation, layer, position, rows, key_bytes, memoryview(record)[_CACHE.size :])
    return False


def _number(head: dict[str, object], key: str) -> int:
    value = head[key]
    if not isinstance(value, int):
        raise ValueError(f"{key} is not a number")
    return value
