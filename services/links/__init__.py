"""The link emulator: TCP between real processes, made late, thin, cut or silent. Development and tests
only."""

from services.links.client import LinksProcess
from services.links.engine import Engine
from services.links.relay import LaneStats, Relay, RelaySpec, RelayStats
from services.links.shaper import Shape

__all__ = ["Engine", "LaneStats", "LinksProcess", "Relay", "RelaySpec", "RelayStats", "Shape"]
