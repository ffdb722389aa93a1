"""Memory for transfers: large runs of it at once, and messages that come and go by the thousand."""

from __future__ import annotations

import contextlib
import mmap

HUGE_FROM_BYTES = 4 << 20
"""From this size on, the memory of a transfer is asked for as huge pages, of 2 MiB on most machines."""

KEPT_BLOCK_BYTES = 31 << 20
"""A block whose size glibc takes as a sign of what the program uses: it looks at those of less than 32 MiB."""


def allocate(size_bytes: int) -> memoryview:
    """Memory for a transfer, writable; zeros.

    Large ones come as huge pages where the system gives them: to touch 64 MiB in pages of 4 KiB for the first time
    costs more than to decrypt it.
    """
    if size_bytes < HUGE_FROM_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size_bytes))
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: the usual pages do
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def expect_large_messages() -> None:
    """Makes the allocator keep the memory of messages for the next ones.

    glibc hands blocks of 128 KiB and more back to the system at once, until the program has freed a larger one: from
    then on it keeps blocks of that size (mallopt(3), M_MMAP_THRESHOLD). A frame's message would otherwise be mapped and
    touched page by page, each time anew. The block is never touched, so it takes no memory itself.
    """
    block = bytes(KEPT_BLOCK_BYTES)
    del block
