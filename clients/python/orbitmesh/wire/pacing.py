"""How large the frames of a large transfer are: as much as its link carries in an eighth of a second.

On a fast link frames of 1 MiB cost least. On a thin one a frame must not take so long that the other end seems to be
gone, nor that a token waits behind it. What the link carries is seen from the acknowledgements.
"""

from __future__ import annotations

from orbitmesh.limits import FRAME_BODY_BYTES

FRAME_S = 0.125
"""How long a frame should take, in seconds."""

FRAME_FIRST_BYTES = 16 << 10
"""The size before anything was acknowledged, in bytes."""

FRAME_MIN_BYTES = 4 << 10
"""The least, in bytes; sizes are multiples of it, so no element and no block of a codec is torn."""

COUNTED_FROM_BYTES = 4 << 10
"""Smaller messages say nothing of the rate, in bytes."""

BATCH_BYTES = 32 << 10
"""So much must be acknowledged before the rate is judged, in bytes."""

BATCH_MIN_S = 0.005
"""Less time than this is not believed, in seconds."""


class Pace:
    """The size of the next frame of one direction; `frame_bytes` is it."""

    __slots__ = ("_acked_s", "_bytes", "_since_s", "frame_bytes")

    def __init__(self) -> None:
        self.frame_bytes = FRAME_FIRST_BYTES
        self._bytes = 0
        self._since_s = 0.0
        self._acked_s = 0.0

    def acknowledged(self, size_bytes: int, written_s: float, now: float, delay_s: float) -> None:
        """Large frames were acknowledged.

        Args:
            size_bytes: Their size.
            written_s: When the first of them began to be written.
            now: The same clock.
            delay_s: What the round trip and the wait for others to share an acknowledgement take at most.
        """
        if not self._bytes:
            # A burst that began after all before it was acknowledged has its way there and back in it.
            self._since_s = max(self._acked_s, min(written_s + delay_s, now))
        self._bytes += size_bytes
        self._acked_s = now
        if self._bytes < BATCH_BYTES:
            return
        fits = int(self._bytes / max(now - self._since_s, BATCH_MIN_S) * FRAME_S)
        self._bytes = 0
        # Down at once, up by half of the way: too large costs more than too small.
        size = fits if fits < self.frame_bytes else (fits + self.frame_bytes) // 2
        size -= size % FRAME_MIN_BYTES
        self.frame_bytes = min(max(size, FRAME_MIN_BYTES), FRAME_BODY_BYTES)
