"""What becomes of memory that a CPU's tensors no longer need.

glibc maps every large block anew and gives it back when it is freed, so a pass over a batch of pictures spends up to
half of its time on pages that the kernel fills with zeros. The processes of zoo that train or predict keep what was
freed for the next batch. zoo_core as a library leaves the caller's process as it is.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["give_back_freed", "keep_freed"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 1 << 25  # bytes; a larger block is mapped and given back as ever, or the heap would grow in pieces
CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Has this process keep freed memory; False where malloc is not glibc's, or the environment says how it works."""
    if any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    mallopt = _of_libc("mallopt")
    return mallopt is not None and all(
        mallopt(parameter, value) for parameter, value in ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, -1))
    )


def give_back_freed() -> None:
    """Gives the kernel back what was kept, so that it does not count as what comes next."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_libc(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of this process's C library that only glibc has."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
