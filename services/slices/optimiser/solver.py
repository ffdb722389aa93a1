"""Linear and mixed-integer programs for HiGHS: columns, rows and entries by array; the answer says what it proves.

HiGHS runs on one thread with its fixed seed, so that the same program gets the same answer; only a time limit that
ends a search can make two runs differ, and then the answer says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import highspy
import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InternalError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

INF = float(highspy.kHighsInf)
EXACT = 1e-9
"""Rows of linear programs hold to within this."""
ROUGH = 1e-7
"""Nor is one refused that misses them by no more."""


class End(Enum):
    """How a search ended."""

    BEST = "best"
    """What was found is proven to be the best, to within the gap that was asked for."""
    LIMIT = "limit"
    """A limit of nodes ended it: the same again ends the same way."""
    TIME = "time"
    """The time limit ended it."""
    INFEASIBLE = "infeasible"
    """There is no solution."""


@dataclass(frozen=True)
class Answer:
    """What a search found."""

    end: End
    """How it ended."""
    values: Floats | None
    """[columns]; None where nothing was found."""
    objective: float
    """Of `values`; NaN without any."""
    bound: float
    """No solution is better."""
    duals: Floats
    """[rows], of a linear program; empty for others."""
    prices: Floats
    """[columns], reduced costs of a linear program; empty for others."""


class Program:
    """Columns with bounds, costs and a kind; rows with bounds; entries. To be maximised or minimised.

    Args:
        maximise: Which of the two.
    """

    def __init__(self, *, maximise: bool) -> None:
        self.maximise = maximise
        self._columns: list[tuple[Floats, Floats, Floats, Bools]] = []
        self._bounds: list[tuple[Floats, Floats]] = []
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self.columns = 0
        self.rows = 0

    def add_columns(
        self,
        count: int,
        lower: float | Floats = 0.0,
        upper: float | Floats = INF,
        cost: float | Floats = 0.0,
        whole: bool = False,
    ) -> Ints:
        """Adds columns and returns their numbers; `whole` ones take whole numbers only."""
        made = np.arange(self.columns, self.columns + count)
        self._columns.append((_full(count, lower), _full(count, upper), _full(count, cost), np.full(count, whole)))
        self.columns += count
        return made

    def add_rows(self, count: int, lower: float | Floats = -INF, upper: float | Floats = INF) -> Ints:
        """Adds rows, empty as yet, and returns their numbers."""
        made = np.arange(self.rows, self.rows + count)
        self._bounds.append((_full(count, lower), _full(count, upper)))
        self.rows += count
        return made

    def put(self, rows: Ints, columns: Ints, values: float | Floats) -> None:
        """Entries at the given places, each at most once."""
        self._entries.append((rows, columns, _full(len(rows), values)))

    def solve(
        self,
        *,
        seconds: float = INF,
        gap: float = 0.0,
        nodes: int | None = None,
        start: tuple[Ints, Floats] | None = None,
    ) -> Answer:
        """Runs HiGHS.

        Args:
            seconds: The most it may take.
            gap: What it may be off the best, as a part of the objective.
            nodes: The most nodes of the search tree.
            start: Columns and their values, to begin from; HiGHS finds the others, or ignores it where there are none.

        Raises:
            InternalError: HiGHS ended in a way that the program cannot have caused.
        """
        lp = self.model()
        whole = bool(len(lp.integrality_))
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, value in {
            "output_flag": False,
            "threads": 1,
            "random_seed": 0,
            "time_limit": max(0.0, min(seconds, 1e6)),
            "mip_rel_gap": gap,
            "mip_abs_gap": 1e-9,
            "mip_feasibility_tolerance": 1e-7,
            **({"mip_max_nodes": nodes} if nodes is not None else {}),
        }.items():
            solver.setOptionValue(name, value)
        solver.passModel(lp)
        if start is not None and whole:
            solver.setSolution(len(start[0]), start[0].astype(np.int32), start[1])
        solver.run()
        answer = answer_of(solver, maximise=self.maximise, whole=whole)
        left = seconds - solver.getRunTime()
        if whole and answer.end in (End.BEST, End.INFEASIBLE) and not math.isfinite(answer.bound) and left > 0:
            # Presolve takes some programs that have solutions for infeasible: without it.
            solver.clearSolver()
            solver.setOptionValue("presolve", "off")
            solver.setOptionValue("time_limit", solver.getRunTime() + min(left, 1e6))
            if start is not None:
                solver.setSolution(len(start[0]), start[0].astype(np.int32), start[1])
            solver.run()
            answer = answer_of(solver, maximise=self.maximise, whole=whole)
        return answer

    def model(self) -> highspy.HighsLp:
        """The program in the form that HiGHS takes."""
        lower, upper, cost, whole = (np.concatenate(part) for part in zip(*self._columns, strict=True))
        row_lower, row_upper = (np.concatenate(part) for part in zip(*self._bounds, strict=True))
        rows, columns, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        kept = values != 0
        rows, columns, values = rows[kept], columns[kept], values[kept]
        order = np.lexsort((rows, columns))
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self.columns, self.rows
        lp.sense_ = highspy.ObjSense.kMaximize if self.maximise else highspy.ObjSense.kMinimize
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, lower, upper
        lp.row_lower_, lp.row_upper_ = row_lower, row_upper
        if whole.any():
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            lp.integrality_ = [kinds[int(each)] for each in whole]
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=self.columns))])
        lp.a_matrix_.index_ = rows[order]
        lp.a_matrix_.value_ = values[order]
        return lp


class Live:
    """A linear program that is solved again and again: each solution is the start of the next.

    Args:
        program: The program as it is at first; it must have no whole columns.
    """

    def __init__(self, program: Program) -> None:
        self._solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, value in (
            ("output_flag", False), ("threads", 1), ("random_seed", 0), ("primal_feasibility_tolerance", EXACT)
        ):  # fmt: skip
            self._solver.setOptionValue(name, value)
        self._solver.passModel(program.model())
        self._maximise = program.maximise

    def add_columns(self, costs: Floats, starts: Ints, rows: Ints, values: Floats) -> None:
        """Adds columns of at least 0: the entries of column k are at starts[k] up to starts[k + 1] or the end."""
        count = len(costs)
        self._solver.addCols(
            count, costs, np.zeros(count), np.full(count, INF), len(rows),
            starts.astype(np.int32), rows.astype(np.int32), values,
        )  # fmt: skip

    def add_rows(self, lower: Floats, upper: Floats) -> None:
        """Adds rows, empty as yet."""
        none = np.empty(0, dtype=np.int32)
        self._solver.addRows(len(lower), lower, upper, 0, none, none, np.empty(0))

    def set_bounds(self, columns: Ints, lower: Floats, upper: Floats) -> None:
        """New bounds of some columns."""
        self._solver.changeColsBounds(len(columns), columns.astype(np.int32), lower, upper)

    def set_costs(self, columns: Ints, costs: Floats) -> None:
        """New costs of some columns."""
        self._solver.changeColsCost(len(columns), columns.astype(np.int32), costs)

    def set_row(self, row: int, lower: float, upper: float) -> None:
        """New bounds of a row."""
        self._solver.changeRowBounds(row, lower, upper)

    def solve(self, seconds: float = INF) -> Answer:
        """Solves it as it is now; the time is that of this solution alone."""
        self._solver.setOptionValue("time_limit", self._solver.getRunTime() + max(0.0, min(seconds, 1e6)))
        self._solver.run()
        status, found = self._solver.getModelStatus(), self._solver.getInfo().primal_solution_status
        rough = found != highspy.SolutionStatus.kSolutionStatusFeasible
        if status == highspy.HighsModelStatus.kUnknown or (status == highspy.HighsModelStatus.kOptimal and rough):
            self._solver.clearSolver()  # the last basis led nowhere, or astray by roundings: from the beginning
            self._solver.run()
        return answer_of(self._solver, maximise=self._maximise, whole=False)


def answer_of(solver: highspy.Highs, *, maximise: bool, whole: bool) -> Answer:
    """What HiGHS has found.

    Raises:
        InternalError: it ended in a way that the program cannot have caused.
    """
    status, info, solution = solver.getModelStatus(), solver.getInfo(), solver.getSolution()
    ends = {
        highspy.HighsModelStatus.kOptimal: End.BEST,
        highspy.HighsModelStatus.kSolutionLimit: End.LIMIT,
        highspy.HighsModelStatus.kIterationLimit: End.LIMIT,
        highspy.HighsModelStatus.kTimeLimit: End.TIME,
        highspy.HighsModelStatus.kUnknown: End.LIMIT,
        highspy.HighsModelStatus.kInfeasible: End.INFEASIBLE,
        highspy.HighsModelStatus.kUnboundedOrInfeasible: End.INFEASIBLE,
    }
    if status not in ends:
        raise InternalError(f"the solver ended with {solver.modelStatusToString(status)}")
    end = ends[status]
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    found |= status == highspy.HighsModelStatus.kOptimal and info.max_primal_infeasibility <= ROUGH
    if end is End.INFEASIBLE:
        found = False
    worst = INF if maximise else -INF
    bound = info.mip_dual_bound if whole else (info.objective_function_value if end is End.BEST else worst)
    return Answer(
        end,
        np.asarray(solution.col_value) if found else None,
        info.objective_function_value if found else float("nan"),
        float(bound),
        np.asarray(solution.row_dual) if not whole else np.empty(0),
        np.asarray(solution.col_dual) if not whole else np.empty(0),
    )


def _full(count: int, value: float | Floats) -> Floats:
    return np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (count,)))
