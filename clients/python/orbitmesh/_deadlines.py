"""Total deadlines: one time that bounds everything below it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from orbitmesh._requests import checked_timeout
from orbitmesh.errors import DeadlineError


@contextlib.asynccontextmanager
async def bounded(timeout: float, what: str) -> AsyncIterator[None]:
    """Ends what is within it when its time is spent.

    Args:
        timeout: The time, in seconds.
        what: What is bounded, for the error.

    Raises:
        InvalidInputError: The time is not above 0 and finite.
        DeadlineError: It was spent.
    """
    seconds = checked_timeout(timeout)
    try:
        async with asyncio.timeout(seconds) as bound:
            yield
    except TimeoutError:
        if not bound.expired():
            raise
        raise DeadlineError(f"{what} did not end within {seconds:g} s and was stopped; allow more time") from None
