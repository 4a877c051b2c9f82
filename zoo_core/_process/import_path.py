"""Where the Python processes that zoo starts find modules: where their parent does, not in the working directory.

What multiprocessing starts (a server of forks, a spawned worker, the tracker of shared memory) is a `python -c`, which
has the working directory first on its path until it has been told its parent's: a `random.py` that lies there would run
in it, with no word of the user's. Each start of such a process stands in `same_path`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from zoo_core._process.singletons import Lock
from zoo_core.errors import UsageError

__all__ = ["same_path"]

SAFE = "PYTHONSAFEPATH"  # Python's own: nothing is put in front of the path

_lock = Lock()  # around a change of the environment, which belongs to the process


@contextmanager
def same_path() -> Iterator[None]:
    """Python processes that the block starts have nothing in front of their path; multiprocessing then tells them ours.

    Raises UsageError where Python was told to heed no variable, `python -E`, so that its children would not either.
    """
    if sys.flags.safe_path:  # which children inherit
        yield
        return
    if sys.flags.ignore_environment:
        raise UsageError(
            "started as `python -E`, Python lets the processes that it starts import from the working directory; "
            "start it as `python -EP` or `python -I`, or leave -E out"
        )
    with _lock.held:
        before = os.environ.get(SAFE)
        os.environ[SAFE] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[SAFE]
            else:
                os.environ[SAFE] = before
