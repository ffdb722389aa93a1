"""The errors that several modules of this folder raise alike."""

from __future__ import annotations

from orbitmesh.errors import IntegrityError


def malformed(what: str) -> IntegrityError:
    """The error for bytes that no encoder writes (UPDATE_MALFORMED)."""
    return IntegrityError(
        f"{what}: no encoder writes that; the sender has to encode its update again", reason="UPDATE_MALFORMED"
    )
