"""Large memory from the operating system: zero-filled when first touched, in huge pages where there are some.

Weights and pages are read once a step from end to end; with 4 KiB pages a good part of that time goes to address
translation.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

from kvist.errors import CapacityError

ALIGNMENT = 64  # a cache line, and the widest vector


def map_memory(nbytes: int) -> mmap.mmap:
    """A private anonymous mapping. Raises CapacityError where the system refuses."""
    try:
        # Private, not Python's default of shared: shared memory gets no huge pages by default.
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise CapacityError(f"the system refuses {nbytes:,} bytes of memory ({error}): ask for less") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages: slower, nothing else
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def aligned_size(nbytes: int) -> int:
    """nbytes rounded up to whole cache lines."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
