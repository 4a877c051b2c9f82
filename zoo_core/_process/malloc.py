"""What becomes of memory that a CPU's tensors no longer need.

glibc maps every large block anew and gives it back when it is freed, so a pass over a batch of pictures spends up to
half of its time on pages that the kernel fills with zeros. The processes of zoo that train or predict keep what was
freed for the next batch. zoo_core as a library leaves the caller's process as it is.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["give_back_freed", "keep_freed", "keeping_large_blocks"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
MAPPED_BLOCKS = 65_536  # what malloc maps at most, if nobody says otherwise
LARGEST = 1 << 25  # bytes; a larger block is mapped and given back as ever, or the heap would grow in pieces
CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Has this process keep freed memory; False where malloc is not glibc's, or the environment says how it works."""
    if any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    mallopt = _of_libc("mallopt")
    return mallopt is not None and all(
        mallopt(parameter, value) for parameter, value in ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, -1))
    )


@contextmanager
def keeping_large_blocks() -> Iterator[None]:
    """While open, a process that keeps freed memory keeps blocks of any size; then it gives back what is free.

    For passes without gradients, whose blocks have few sizes and short lives: 64 photographs of 224 pixels make blocks
    of 300 MB, and mapping them took more time than computing. Training would take a quarter more memory in this way.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is None or not keep_freed():
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, MAPPED_BLOCKS)
        give_back_freed()


def give_back_freed() -> None:
    """Gives the kernel back what was kept, so that it does not count as what comes next."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_libc(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of this process's C library that only glibc has."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
