"""What a job on the training thread works with. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.executor.training.files import RunFiles
from services.executor.training.secrets import RunSecrets
from services.executor.training.shop import Shop
from services.runtime.logs import EventLog


@dataclass(frozen=True)
class Bench:
    """One run's, for one job."""

    shop: Shop
    """The run's task and examples."""
    files: RunFiles
    """Its directory."""
    run: str
    """Its name."""
    node: str
    """This node's name."""
    secrets: RunSecrets | None
    """Its secrets; None where it has none."""
    stopped: Callable[[], bool]
    """Whether the work is no longer wanted."""
    between: Callable[[], None]
    """Called between two steps: others' short work."""
    log: EventLog
    """Where to say what happened."""
