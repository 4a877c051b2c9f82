"""What a process has one of: a lock that a forked child has anew, and what one thread makes while others wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Lock", "Once"]

T = TypeVar("T")


class Lock:
    """A lock for threads that a thread may take again. A process that is forked while one holds it has it free.

    Of a plain lock the child would have a copy that nobody is left to release. `with lock.held:` takes it, by Python's
    own lock itself, which an interrupt cannot part from the block.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):  # Windows does not fork
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.held = threading.RLock()


class Once(Generic[T]):
    """A function without arguments whose first result is that of every call; functools.cache lets threads make two.

    Example: `@Once` above a function.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self.__doc__ = make.__doc__
        self._make = make
        self._made: list[T] = []  # at most one
        self._lock = Lock()

    def __call__(self) -> T:
        with self._lock.held:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def cache_clear(self) -> None:
        """Forgets what was made; the next call makes another."""
        with self._lock.held:
            self._made.clear()
