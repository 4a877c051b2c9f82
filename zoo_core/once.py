"""What a process has one of, made on the first call, by one thread while the others wait for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Once"]

T = TypeVar("T")


class Once(Generic[T]):
    """A function without arguments whose first result is that of every call; functools.cache lets threads make two.

    Example: `@Once` above a function.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self.__doc__ = make.__doc__
        self._make = make
        self._made: list[T] = []  # at most one
        self._renew()
        if hasattr(os, "register_at_fork"):  # Windows does not fork
            os.register_at_fork(after_in_child=self._renew)

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def cache_clear(self) -> None:
        """Forgets what was made; the next call makes another."""
        with self._lock:
            self._made.clear()

    def _renew(self) -> None:
        """A forked process has none of the threads that held the lock."""
        self._lock = threading.RLock()
