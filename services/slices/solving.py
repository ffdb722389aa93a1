"""Lets other processes compute allocations: a few at once, each for a bounded time."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable, Mapping

from orbitmesh.errors import CapacityError, DeadlineError, InternalError, error_for
from services.runtime.logs import EventLog
from services.slices.amounts import NOTHING, Amounts, minus, plus, rounded_down
from services.slices.optimiser.problem import Outcome, Problem
from services.slices.optimiser.problem_json import dump_problem, load_outcome
from services.slices.optimiser.worker import LENGTH_BYTES, MESSAGE_BYTES_MAX

GRACE_S = 15.0
"""How long a process may take beside the solver's own time: to start, to put the problem together, to answer."""
IDLE_S = 60.0
"""How long a process that has nothing to do is kept."""


class Solvers:
    """The processes that compute.

    Args:
        count: How many compute at once.
        log: Where it is told that one died.
    """

    def __init__(self, count: int, log: EventLog) -> None:
        self._count = count
        self._log = log
        self._busy = 0
        self._idle: dict[Process, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[int]] = set()

    @property
    def busy(self) -> int:
        """How many allocations are being computed."""
        return self._busy

    async def solve(self, problem: Problem, time_limit_s: float) -> Outcome:
        """The best allocation that is found in time.

        Args:
            problem: What to solve.
            time_limit_s: How long the solver may take, in seconds.

        Raises:
            CapacityError: As many as may be are being computed.
            DeadlineError: It did not answer.
            MeshError: What the optimiser says: `SLICES_INFEASIBLE`, `LATENCY_BELOW_FLOOR`.
        """
        if self._busy >= self._count:
            raise CapacityError(
                f"{self._busy} allocations are being computed already; try again later", metadata={"busy": self._busy}
            )
        self._busy += 1
        process: Process | None = None
        whole = False
        try:
            async with asyncio.timeout(time_limit_s + GRACE_S):
                process = self._take() or await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "services.slices.optimiser.worker", stdin=PIPE, stdout=PIPE
                )
                answer = await _ask(process, dump_problem(problem, time_limit_s))
                whole = True
        except TimeoutError:
            raise DeadlineError(
                f"the solver found nothing within {time_limit_s:g} s; allow more time, or ask for fewer slices or nodes"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError, OSError) as error:
            self._log.error("solver_died", error=error)
            raise InternalError("the solver's process ended in the middle; see the log of the slices service") from None
        finally:
            self._busy -= 1
            if process is not None:
                self._keep(process) if whole else self._end(process)
        raw = json.loads(answer)
        if "error" in raw:
            told = raw["error"]
            raise error_for(told["reason"], told["message"], told["metadata"])
        return load_outcome(raw)

    async def close(self) -> None:
        """Ends the processes."""
        for process, timer in list(self._idle.items()):
            timer.cancel()
            self._end(process)
        self._idle.clear()
        await asyncio.gather(*self._ending)

    def _take(self) -> Process | None:
        while self._idle:
            process, timer = self._idle.popitem()
            timer.cancel()
            if process.returncode is None:
                return process
        return None

    def _keep(self, process: Process) -> None:
        self._idle[process] = asyncio.get_running_loop().call_later(IDLE_S, self._forget, process)

    def _forget(self, process: Process) -> None:
        del self._idle[process]
        self._end(process)

    def _end(self, process: Process) -> None:
        if process.returncode is None:
            process.kill()
        waiting = asyncio.ensure_future(process.wait())
        self._ending.add(waiting)
        waiting.add_done_callback(self._ending.discard)


async def _ask(process: Process, question: bytes) -> bytes:
    if process.stdin is None or process.stdout is None:
        raise InternalError("a solver's process has no pipes")
    process.stdin.write(len(question).to_bytes(LENGTH_BYTES, "big") + question)
    await process.stdin.drain()
    length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
    if length > MESSAGE_BYTES_MAX:
        raise InternalError(f"a solver answers with {length} bytes")
    return await process.stdout.readexactly(length)


def in_whole_amounts(outcome: Outcome, free: Mapping[str, Amounts]) -> dict[tuple[str, str], Amounts]:
    """What each slice gets on each node, in millionths, so that no node has to give more than is free.

    The solver's sums are exact to a billionth part; what that is too much is taken from who gets most.

    Args:
        outcome: What was found.
        free: What every node has left.
    """
    found = {(each.slice, each.node): rounded_down(each.resources) for each in outcome.allocations}
    taken: dict[str, Amounts] = {}
    for (_, node), amounts in found.items():
        taken[node] = plus(taken.get(node, NOTHING), amounts)
    for node, amounts in taken.items():
        over = [max(0, -left) for left in minus(free[node], amounts)]
        for index, too_much in enumerate(over):
            if too_much:
                _trim(found, [key for key in found if key[1] == node], index, too_much)
    return found


def _trim(found: dict[tuple[str, str], Amounts], keys: Iterable[tuple[str, str]], index: int, too_much: int) -> None:
    largest = max(keys, key=lambda key: found[key][index])
    amounts = list(found[largest])
    amounts[index] = max(0, amounts[index] - too_much)
    found[largest] = (amounts[0], amounts[1], amounts[2], amounts[3])
