"""Many relays in one process, spoken to in JSON lines.

In, one object per line: `{"op": "add", "name": "sat-1>sat-2", "target": "127.0.0.1:5000", "latency_ms": 20}`,
then `set` (any field of the relay but `listen`), `cut`, `pause`, `restore`, `stats` (all relays without a
`name`), `remove`. An `id` comes back unchanged.

`{"op": "schedule", "name": "sat-1>sat-2", "source": "sat-1", "target": "sat-2", "plan": "/path/contacts.json",
"origin_mesh_s": 1.7e9, "origin_wall_s": 1.8e9, "factor": 60}` lets a relay follow a contact plan (a path, or the plan
itself where a line holds it), with `outage` ("cut" or "hold") and `ramp_s` where wanted; `unschedule` ends that.

Out, one line each: `{"ok": true, "result": {...}}` or
`{"ok": false, "error": {"reason": "NOT_FOUND", "message": "...", "metadata": {}}}`. The first line of the
process says `{"event": "ready", "relays": {...}}`.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from orbitmesh.contacts import ContactPlan
from orbitmesh.errors import CapacityError, InvalidInputError, MeshError, TransportError
from services.links.core import RelayCore
from services.links.engine import Engine
from services.links.schedule import parse_schedule
from services.links.spec import RelaySpec, resolve

MAX_RELAYS = 1024
"""Relays of one process."""
MAX_LINE_BYTES = 64 * 1024
"""The longest control line."""

CALLERS = 8
"""How many callers of the control socket may wait for their turn."""
SILENT_S = 10.0
"""How long a caller of the control socket may be silent before the next one's turn, in seconds."""

Fields = Mapping[str, object]
Result = dict[str, object]


class Links:
    """The relays of one process, on one engine. For one controlling thread."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._relays: dict[str, RelayCore] = {}
        self._plan: tuple[tuple[str, int, int], ContactPlan] | None = None  # the file read last: relays share one
        self._operations: Mapping[str, Callable[[Fields], Result]] = {
            "add": self._add,
            "set": self._set,
            "cut": self._cut,
            "pause": self._pause,
            "restore": self._restore,
            "stats": self._stats,
            "schedule": self._schedule,
            "unschedule": self._unschedule,
            "remove": self._remove,
        }

    def perform(self, request: Fields) -> Result:
        """Carry out one control object and give its result.

        Raises:
            InvalidInputError: the object is wrong, or names a relay that is not there or is there already.
            TransportError: an address cannot be looked up or listened on.
        """
        name = request.get("op")
        operation = self._operations.get(name) if isinstance(name, str) else None
        if operation is None:
            raise InvalidInputError(f"op is {name!r}; expected one of {', '.join(self._operations)}")
        return operation({key: value for key, value in request.items() if key not in ("op", "id")})

    def addresses(self) -> dict[str, str]:
        """Where each relay listens."""
        return {name: core.address for name, core in self._relays.items()}

    def close(self) -> None:
        """Reset all connections and stop the engine."""
        for core in self._relays.values():
            self._engine.submit(core.close).result()
        self._relays.clear()
        self._engine.close()

    def _add(self, fields: Fields) -> Result:
        spec = RelaySpec.parse(fields)
        if spec.name in self._relays:
            raise InvalidInputError(
                f"there is a relay {spec.name!r} already; set or remove it", reason="ALREADY_EXISTS"
            )
        if len(self._relays) >= MAX_RELAYS:
            raise CapacityError(f"{MAX_RELAYS} relays run in this process already; remove some or start another")
        core = RelayCore(spec, self._engine)
        try:
            self._engine.submit(core.open).result()
        except MeshError:
            self._engine.submit(core.close).result()
            raise
        self._relays[spec.name] = core
        return {"name": spec.name, "listen": core.address}

    def _set(self, fields: Fields) -> Result:
        core = self._find(fields)
        spec = RelaySpec.parse(fields, core.spec)
        for fixed in ("listen", "forward_medium", "reverse_medium"):
            if getattr(spec, fixed) != getattr(core.spec, fixed):
                raise InvalidInputError(f"{fixed} cannot be changed; remove the relay and add it again")
        target = resolve(spec.target)
        self._engine.submit(lambda: core.set(spec, target)).result()
        return {"name": spec.name, "listen": core.address}

    def _cut(self, fields: Fields) -> Result:
        return self._state(fields, RelayCore.cut)

    def _pause(self, fields: Fields) -> Result:
        return self._state(fields, RelayCore.pause)

    def _restore(self, fields: Fields) -> Result:
        return self._state(fields, RelayCore.restore)

    def _state(self, fields: Fields, change: Callable[[RelayCore], None]) -> Result:
        core = self._find(fields, only_name=True)
        self._engine.submit(lambda: change(core)).result()
        return self._describe(core)

    def _schedule(self, fields: Fields) -> Result:
        core = self._find(fields)
        plan = self._read_plan(fields.get("plan"))
        schedule = parse_schedule({key: value for key, value in fields.items() if key != "name"}, plan)
        self._engine.submit(lambda: core.follow(schedule)).result()
        return {**self._describe(core), "warnings": list(schedule.warnings())}

    def _unschedule(self, fields: Fields) -> Result:
        return self._state(fields, RelayCore.unfollow)

    def _read_plan(self, given: object) -> ContactPlan:
        if isinstance(given, dict):
            return ContactPlan.parse(json.dumps(given))
        if not isinstance(given, str) or not given:
            raise InvalidInputError(f"plan is {given!r:.80}; expected the path of a contact plan, or the plan itself")
        try:
            facts = Path(given).stat()
            version = (given, facts.st_mtime_ns, facts.st_ino)
        except (OSError, ValueError):
            return ContactPlan.load(given)  # which says what is wrong
        if self._plan is None or self._plan[0] != version:
            self._plan = version, ContactPlan.load(given)
        return self._plan[1]

    def _stats(self, fields: Fields) -> Result:
        if "name" in fields:
            return self._describe(self._find(fields, only_name=True))
        return {"relays": {name: self._describe(core) for name, core in self._relays.items()}}

    def _remove(self, fields: Fields) -> Result:
        core = self._find(fields, only_name=True)
        self._engine.submit(core.close).result()
        del self._relays[core.spec.name]
        return {"name": core.spec.name}

    def _describe(self, core: RelayCore) -> Result:
        return {
            "name": core.spec.name,
            "listen": core.address,
            **asdict(self._engine.submit(core.stats).result()),
        }

    def _find(self, fields: Fields, only_name: bool = False) -> RelayCore:
        name = fields.get("name")
        core = self._relays.get(name) if isinstance(name, str) else None
        if core is None:
            known = ", ".join(self._relays) or "none"
            raise InvalidInputError(f"there is no relay {name!r}; there are: {known}", reason="NOT_FOUND")
        if only_name and len(fields) > 1:
            extra = sorted(set(fields) - {"name"})
            raise InvalidInputError(f"unknown field {extra[0]!r}; this op takes a name only")
        return core


def serve_control(links: Links, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer control lines until `requests` ends; a line that is too long ends it too, after a typed
    error."""
    while line := requests.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            write_line(
                answers,
                _failure(
                    InvalidInputError(
                        f"a control line is longer than {MAX_LINE_BYTES} bytes; send shorter ones",
                        reason="LIMIT_EXCEEDED",
                    )
                ),
            )
            return
        if line.strip():
            write_line(answers, _answer(links, line))


def serve_socket(links: Links, path: Path) -> None:
    """Answer control lines of one caller after the other on a Unix socket, for ever; who is silent for long is let go.

    Raises:
        TransportError: the socket cannot be made.
    """
    try:
        # What an emulator that was killed has left behind.
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
    except OSError as error:
        raise TransportError(f"cannot listen on {path}: {error}; choose another --control-socket") from error
    with listener:
        listener.listen(CALLERS)
        while True:
            caller, _ = listener.accept()
            with caller, contextlib.suppress(OSError):
                caller.settimeout(SILENT_S)
                with caller.makefile("rb") as requests, caller.makefile("wb") as answers:
                    serve_control(links, requests, answers)


def write_line(stream: BinaryIO, value: Result) -> None:
    """Write one JSON line and pass it on at once."""
    stream.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
    stream.flush()


def _answer(links: Links, line: bytes) -> Result:
    request: object = None
    try:
        try:
            request = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"a control line is not JSON: {error}") from error
        if not isinstance(request, dict):
            raise InvalidInputError('a control line holds no object; expected {"op": ...}')
        answer: Result = {"ok": True, "result": links.perform(request)}
    except MeshError as error:
        answer = _failure(error)
    if isinstance(request, dict) and "id" in request:
        answer["id"] = request["id"]
    return answer


def _failure(error: MeshError) -> Result:
    return {
        "ok": False,
        "error": {"reason": error.reason, "message": error.message, "metadata": error.metadata},
    }
