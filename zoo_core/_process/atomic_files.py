"""Files in places that several processes share: each is written under a name of its own, synced, and moved into place.

A reader sees the file of before or the whole new one, whoever else writes it at the same moment, and after a loss of
power too. The standard library and text paths alone: `zoo list` writes its index with it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["alone_in", "fresh_name", "move_into_place", "replacing", "sync", "write_whole"]

AnyPath = str | os.PathLike[str]


def fresh_name(path: AnyPath) -> str:
    """A name beside `path` that no other file has; files/cache.py knows such names as those of writes under way."""
    return f"{os.fspath(path)}.{os.urandom(4).hex()}"


def move_into_place(fresh: AnyPath, path: AnyPath) -> None:
    """Gives a file that is written the name `path`, in one step and once it is on disk. Raises OSError."""
    sync(fresh)
    os.replace(fresh, path)  # noqa: PTH105 - pathlib alone would cost a tenth of what `zoo list` may take
    sync(os.path.dirname(path) or ".")  # noqa: PTH120 - as above


@contextmanager
def replacing(path: AnyPath) -> Iterator[str]:
    """The name of a new file beside `path`, which takes the path's place when the block has written it.

    If the block raises, the new file is removed and what was at `path` stays. Raises OSError.
    """
    fresh = fresh_name(path)
    try:
        yield fresh
        move_into_place(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)  # noqa: PTH108 - as above
        raise


def write_whole(path: AnyPath, content: str | bytes) -> None:
    """Writes a whole file, text in UTF-8, in one step. Raises OSError."""
    with replacing(path) as fresh, open(fresh, "wb") as file:  # noqa: PTH123 - as above
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def alone_in(folder: AnyPath) -> Iterator[None]:
    """While the block reads a file in a folder and writes it anew, other such blocks wait. Raises OSError.

    Nothing is left behind: the folder itself is what is locked, and a kill releases it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync(path: AnyPath) -> None:
    """Waits until a file, or the names in a folder, are on disk; Windows syncs no folders. Raises OSError."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
