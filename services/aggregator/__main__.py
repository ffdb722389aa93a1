"""`python -m services.aggregator --identity DIR --listen HOST:PORT --state DIR --scheduler HOST:PORT`."""

from __future__ import annotations

import sys

from services.aggregator.server import AggregatorSettings, run
from services.runtime.process import run_service

if __name__ == "__main__":
    sys.exit(
        run_service("services.aggregator", "Leads training runs and sums contributions.", AggregatorSettings, run)
    )
