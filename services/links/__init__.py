"""The link emulator: TCP between real processes, made late, thin, damaged, cut or silent, by hand or by a contact plan.
Development and tests only."""

from services.links.client import LinksProcess
from services.links.core import LaneStats, RelayStats
from services.links.engine import Engine
from services.links.following import ScheduleStats
from services.links.relay import Relay
from services.links.schedule import Schedule
from services.links.shaper import Shape
from services.links.spec import RelaySpec

__all__ = [
    "Engine", "LaneStats", "LinksProcess", "Relay", "RelaySpec", "RelayStats", "Schedule", "ScheduleStats", "Shape"
]  # fmt: skip
