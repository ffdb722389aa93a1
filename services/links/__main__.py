"""`python -m services.links`: the link emulator as a process of its own.

`--config FILE` holds `{"relays": [{...}, ...]}`; alone, the process runs until SIGTERM or SIGINT. With
`--control` it answers JSON lines on stdin (see `services.links.server`) and ends when stdin closes, so that
it never outlives the process that started it. With `--control-socket PATH` it answers the same lines on a Unix
socket, to one caller at a time, for whoever may open the file.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from orbitmesh.errors import InvalidInputError, MeshError
from services.links.server import Links, serve_control, serve_socket, write_line

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def _load(links: Links, path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInputError(f'{path} cannot be read: {error}; expected JSON such as {{"relays": []}}') from error
    relays = config.get("relays") if isinstance(config, dict) else None
    if not isinstance(relays, list) or set(config) != {"relays"}:
        raise InvalidInputError(f'{path} holds something else; expected {{"relays": [...]}}')
    for relay in relays:
        if not isinstance(relay, dict):
            raise InvalidInputError(f"{path}: a relay is {relay!r}; expected an object with name and target")
        schedule = relay.pop("schedule", None)
        links.perform({**relay, "op": "add"})
        if schedule is not None:
            if not isinstance(schedule, dict):
                raise InvalidInputError(f"{path}: a schedule is {schedule!r:.80}; expected an object with a plan")
            links.perform({**schedule, "name": relay.get("name"), "op": "schedule"})


def main() -> int:
    """Run the emulator; 0 after an orderly end, 2 where the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="python -m services.links", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, help="a JSON file with the relays to start with")
    parser.add_argument("--control", action="store_true", help="JSON lines on stdin; ends when stdin closes")
    parser.add_argument("--control-socket", type=Path, metavar="PATH", help="JSON lines on a Unix socket")
    arguments = parser.parse_args()
    if not (arguments.config or arguments.control or arguments.control_socket):
        parser.error("give --config FILE, --control or --control-socket PATH, or --config and one of these")
    if arguments.control and arguments.control_socket:
        parser.error("give --control or --control-socket PATH: relays are told by one")
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    links = Links()
    try:
        if arguments.config:
            _load(links, arguments.config)
        write_line(sys.stdout.buffer, {"event": "ready", "relays": links.addresses()})
        if arguments.control:
            serve_control(links, sys.stdin.buffer, sys.stdout.buffer)
        elif arguments.control_socket:
            serve_socket(links, arguments.control_socket)
        else:
            while True:
                signal.pause()
    except BrokenPipeError:
        return 0  # nobody listens to the answers any more: the same as the end of stdin
    except MeshError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        return 2
    finally:
        links.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
