"""`python -m gateway --identity DIR --listen HOST:PORT --state DIR --scheduler HOST:PORT`: the ground gateway."""

from __future__ import annotations

import sys

from gateway.server import GatewaySettings, run
from services.runtime.process import run_service

if __name__ == "__main__":
    sys.exit(run_service("gateway", "Where users meet the mesh.", GatewaySettings, run))
