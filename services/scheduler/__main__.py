"""`python -m services.scheduler --identity DIR --listen HOST:PORT --state DIR`: the scheduler."""

from __future__ import annotations

import sys

from services.runtime.process import run_service
from services.scheduler.server import SchedulerSettings, run

if __name__ == "__main__":
    sys.exit(
        run_service(
            "services.scheduler", "Knows nodes and links, plans pipelines and brings them up.", SchedulerSettings, run
        )
    )
