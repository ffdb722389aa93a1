"""`python -m services.links.chaos`: makes emulated links worse and well again, one trouble after the other.

Which trouble comes when is drawn from a seed, so that the same seed gives the same weather. It tells the emulator over
its control socket (`python -m services.links --control-socket PATH`), says what it does in JSON, a line each, and
leaves all links as the configuration has them when it ends by SIGTERM. It kills no process: that is
`docker-compose kill`.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orbitmesh.errors import InvalidInputError, MeshError, TransportError
from services.links.spec import RelaySpec

ANSWER_S = 10.0
"""How long the emulator may take to answer, in seconds."""
ANSWER_BYTES_MAX = 64 * 1024
"""The longest answer, in bytes."""
LATER_MS = 200.0
"""What a late link is later by, in milliseconds."""
THINNER = 20.0
"""By what the rate of a thin link is divided."""

Request = dict[str, object]


@dataclass(frozen=True)
class Trouble:
    """What goes wrong for a while."""

    kind: str
    """late, thin, still, cut (one way, in both directions), or gone (every way of one place)."""
    where: str
    """The way, `a>b`, or the place."""
    relays: tuple[str, ...]
    """The relays that it is about."""


KINDS = ("late", "thin", "still", "cut", "gone")
"""late, thin: a way; still: nothing moves on it; cut: its connections are reset; gone: every way of a node is cut."""
SERVICES = frozenset({"gateway", "scheduler", "aggregator", "slices"})
"""Places that are never gone as a whole: without them there is nothing to look at."""


def troubles(relays: Mapping[str, RelaySpec], seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Trouble]:
    """Troubles without end, the same for the same seed. One is over before the next begins.

    Args:
        relays: What there is, by names `from>to`.
        seed: What they are drawn from.
        kinds: Which kinds.
    """
    # Not for secrets: weather is to be the same again.
    draw = random.Random(seed)  # noqa: S311
    ways = sorted({tuple(sorted(name.split(">"))) for name in relays})
    places = sorted({place for name in relays for place in name.split(">")} - SERVICES)
    while True:
        kind = draw.choice(kinds)
        if kind == "gone":
            place = draw.choice(places)
            yield Trouble(kind, place, tuple(name for name in relays if place in name.split(">")))
        else:
            way = draw.choice(ways)
            names = tuple(name for name in relays if tuple(sorted(name.split(">"))) == way)
            yield Trouble(kind, ">".join(way), names)


def orders(trouble: Trouble, relays: Mapping[str, RelaySpec]) -> list[Request]:
    """What the emulator is told for it to begin."""
    told: list[Request] = []
    for name in trouble.relays:
        spec = relays[name]
        if trouble.kind in ("cut", "gone"):
            told.append({"op": "cut", "name": name})
        elif trouble.kind == "still":
            told.append({"op": "pause", "name": name})
        else:
            worse: Request = {"op": "set", "name": name}
            for direction, shape in (("forward", spec.forward), ("reverse", spec.reverse)):
                if trouble.kind == "late":
                    worse[direction] = {"latency_ms": shape.latency_ms + LATER_MS}
                else:
                    worse[direction] = {"rate_bps": (shape.rate_bps or 100e6) / THINNER}
            told.append(worse)
    return told


def remedies(trouble: Trouble, relays: Mapping[str, RelaySpec]) -> list[Request]:
    """What the emulator is told for it to end: the links are as they were configured."""
    told: list[Request] = []
    for name in trouble.relays:
        spec = relays[name]
        told.append({"op": "restore", "name": name})
        told.append(
            {
                "op": "set",
                "name": name,
                "forward": {"latency_ms": spec.forward.latency_ms, "rate_bps": spec.forward.rate_bps},
                "reverse": {"latency_ms": spec.reverse.latency_ms, "rate_bps": spec.reverse.rate_bps},
            }
        )
    return told


def tell(path: Path, requests: Sequence[Request]) -> None:
    """Have the emulator do it all.

    Raises:
        TransportError: It is not there or does not answer.
        InvalidInputError: It refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
            way.settimeout(ANSWER_S)
            way.connect(str(path))
            with way.makefile("rwb") as lines:
                for request in requests:
                    lines.write(json.dumps(request).encode() + b"\n")
                    lines.flush()
                    line = lines.readline(ANSWER_BYTES_MAX)
                    answer = json.loads(line) if line.endswith(b"\n") else {"error": "no whole answer"}
                    if answer.get("ok") is not True:
                        raise InvalidInputError(f"the emulator refuses {request}: {answer.get('error')}")
    except (OSError, ValueError) as error:
        raise TransportError(f"the emulator does not answer on {path}: {error}; is it started with it?") from error


def load(path: Path) -> dict[str, RelaySpec]:
    """The relays of a configuration whose names are ways, `from>to`.

    Raises:
        InvalidInputError: It cannot be read, or has no such relay.
    """
    try:
        entries = json.loads(path.read_bytes())["relays"]
        specs = [RelaySpec.parse({key: entry[key] for key in entry if key != "schedule"}) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{path} holds no relays: {error!r:.200}") from error
    found = {spec.name: spec for spec in specs if spec.name.count(">") == 1}
    if not found:
        raise InvalidInputError(f"{path} has no relay that is called from>to")
    return found


def run(relays: Mapping[str, RelaySpec], socket_path: Path, given: argparse.Namespace, stop: threading.Event) -> None:
    """Trouble after trouble until told to stop, and then none."""
    # One that was killed has left its last trouble behind.
    heal(Trouble("any", "everywhere", tuple(relays)), relays, socket_path)
    for trouble in troubles(relays, given.seed, given.kinds):
        if stop.wait(given.every_s):
            return
        try:
            tell(socket_path, orders(trouble, relays))
            say("trouble", trouble)
            stop.wait(given.for_s)
        except MeshError as error:
            # An emulator that starts anew is well again by itself.
            sys.stderr.write(f"{error.message}\n")
        finally:
            heal(trouble, relays, socket_path)


def heal(trouble: Trouble, relays: Mapping[str, RelaySpec], socket_path: Path) -> None:
    """End a trouble; where the emulator does not hear of it, say so."""
    try:
        tell(socket_path, remedies(trouble, relays))
        say("over", trouble)
    except MeshError as error:
        sys.stderr.write(f"{error.message}\n")


def say(event: str, trouble: Trouble) -> None:
    """One line of what happens."""
    line = {"event": event, "kind": trouble.kind, "where": trouble.where, "relays": len(trouble.relays)}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def build_parser() -> argparse.ArgumentParser:
    """Its command line."""
    parser = argparse.ArgumentParser(prog="python -m services.links.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the emulator's own configuration")
    parser.add_argument("--control-socket", type=Path, required=True, metavar="PATH", help="the emulator's socket")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn from it is the same again (%(default)s)")
    parser.add_argument("--every-s", type=float, default=20, help="seconds without trouble in between (%(default)s)")
    parser.add_argument("--for-s", type=float, default=5, help="how long one lasts, in seconds (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which (all)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run it until SIGTERM; 0 then, 2 where something given is wrong."""
    given = build_parser().parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        relays = load(given.config)
    except InvalidInputError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    run(relays, given.control_socket, given, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
