"""The process that workers are forked from, which imports what they need once, and how many there may be. No torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType

from zoo_core._process.import_path import same_path

__all__ = ["begin", "context", "num_processors", "without_main"]

PRELOADED = "zoo_core.benchmark.preloaded"
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def context() -> ForkServerContext:
    """The context that starts workers, from a process without torch threads; a fork of one with them would hang."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([PRELOADED])
    return found


def begin() -> None:
    """Starts those imports now, in parallel to this process. The server ends when this process does."""
    context()
    with same_path():
        forkserver.ensure_running()


@contextmanager
def without_main() -> Iterator[None]:
    """Starts processes without running the user's script again, so it needs no `if __name__ == "__main__"`.

    Workers need nothing of the script: what a plan holds comes from plugins, which are imported by name from the places
    where this process finds them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with same_path():  # the server may have died since `begin`
            yield
    finally:
        sys.modules["__main__"] = main


def num_processors() -> int:
    """The number of processors that this process may use: its affinity, limited by the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or "max": no quota
        return allowed
