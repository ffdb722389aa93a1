"""`python -m services.slices --identity DIR --listen HOST:PORT --state DIR --scheduler HOST:PORT`."""

from __future__ import annotations

import sys

from services.runtime.process import run_service
from services.slices.server import run
from services.slices.settings import SlicesSettings

if __name__ == "__main__":
    sys.exit(
        run_service("services.slices", "Promises parts of nodes to tenants and keeps account.", SlicesSettings, run)
    )
