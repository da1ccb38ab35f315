"""Large memory from the operating system: zero-filled when first touched, in huge pages where there are some.

Weights and pages are read once a step from end to end; with 4 KiB pages a good part of that time goes to address
translation.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kvist.errors import CapacityError

Key = TypeVar("Key")
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


def allocate(arrays: Mapping[Key, tuple[tuple[int, ...], npt.DTypeLike]]) -> dict[Key, npt.NDArray[Any]]:
    """Arrays of zeros by key, given as (shape, dtype), each on a cache line's start, in one mapping.

    Side by side they share large pages, which small mappings do not get. What is not touched takes no memory.
    """
    sizes = {name: aligned_size(math.prod(shape) * np.dtype(dtype).itemsize) for name, (shape, dtype) in arrays.items()}
    memory, offset, made = map_memory(max(1, sum(sizes.values()))), 0, {}
    for name, (shape, dtype) in arrays.items():
        made[name] = np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)
        offset += sizes[name]
    return made
