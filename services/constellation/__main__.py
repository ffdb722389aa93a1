"""`python -m services.constellation --identity DIR --listen HOST:PORT --scenario FILE`: the constellation."""

from __future__ import annotations

import sys

from services.constellation.server import run
from services.constellation.settings import ConstellationSettings
from services.runtime.process import run_service

if __name__ == "__main__":
    sys.exit(
        run_service(
            "services.constellation",
            "Knows where satellites and sites are, and when the links between them are open.",
            ConstellationSettings,
            run,
        )
    )
