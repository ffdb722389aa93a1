"""`grpcurl` where there is none: the flags of the runbook, given to `buf curl`, which knows the same reflection."""

from __future__ import annotations

import os
import sys

VALUED = {"-max-time", "-cacert", "-cert", "-key", "-servername", "-d"}


def main(arguments: list[str]) -> None:
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0] in VALUED:
        given[rest[0]] = rest[1]
        del rest[:2]
    address, what = rest
    command = ["buf", "curl", "--protocol", "grpc", "--timeout", f"{given['-max-time']}s"]
    for flag in ("-cacert", "-cert", "-key", "-servername"):
        command += [f"-{flag}", given[flag]]
    if what == "list":
        command += ["--list-services", f"https://{address}"]
    else:
        command += ["-d", given.get("-d", "{}"), f"https://{address}/{what}"]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
