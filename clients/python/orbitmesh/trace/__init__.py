"""Where time goes: the breakdown of a path and how it is shown."""

from orbitmesh.trace.breakdown import UNATTRIBUTED, Breakdown, BreakdownRow, ClockOffset

__all__ = ["UNATTRIBUTED", "Breakdown", "BreakdownRow", "ClockOffset"]
