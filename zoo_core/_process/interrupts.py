"""A Ctrl-C that comes at a bad moment: kept until imports are over, and told from the mistakes of a plugin."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["held_back", "raise_interrupt"]


@contextmanager
def held_back() -> Iterator[None]:
    """Keeps a Ctrl-C until the block has ended; a second one ends it at once.

    For imports: large packages swallow an interrupt, turn it into errors of their own, or abort the process.
    Does nothing in other threads, and where SIGINT has a handler of its own.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed:
            raise KeyboardInterrupt


def raise_interrupt(error: BaseException) -> None:
    """Raises KeyboardInterrupt if a Ctrl-C lies at the root of an error, as when a plugin turned it into another.

    Called where whatever a plugin's code raises is told as the plugin's mistake.
    """
    link: BaseException | None = error
    for _ in range(100):  # a chain that somebody closed to a ring has no end
        if isinstance(link, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        link = None if link is None else link.__cause__ or link.__context__
