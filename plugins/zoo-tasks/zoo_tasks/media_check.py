"""Checks each media file once: the sha256 of its content, whether it can be read to its end, and its size.

The results are kept below the cache folder, one file for each data set, and used again as long as a file's size, times
and inode stay the same. 4,317 photographs then take a moment the second time.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zoo_core.errors import ZooError
from zoo_core.toolkit.files import is_settled, read_memory, write_memory
from zoo_core.toolkit.sounds import open_sound
from zoo_tasks.store import key_of

__all__ = ["FileCheck", "check_files", "pictures", "sizes", "sounds"]

FORMAT = 3  # raised when a check would find something else in the same file
THREADS = 4  # PIL and hashlib let others run while they work
PIECE = 64  # files that a thread takes at once
REDUCED = 32  # pixels; a JPEG is decoded to no less than this, which finds damage all the same
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, ZooError)  # as PIL and open_sound tell of it

Check = Callable[[Path, bytes], tuple[int, int]]
Row = list[int | str]  # size, times and inode of a file as os.stat tells them; then what a FileCheck holds


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """One file. size: (columns, rows) of a picture, (Hz, samples) of a sound. problem: why it cannot be read."""

    sha256: str
    num_bytes: int
    size: tuple[int, int] = (0, 0)
    problem: str = ""


def check_files(root: Path, names: Sequence[str], check: Check, kind: str) -> list[FileCheck]:
    """Checks each file, in order. check: returns the size, or raises for content that cannot be read to its end."""
    place = ("looks", f"{kind}-{key_of(str(root.resolve()))}.json")
    held = read_memory(*place)
    known = held.get("files", {}) if isinstance(held, dict) and held.get("format") == FORMAT else {}

    def some(piece: Sequence[str]) -> list[tuple[FileCheck, Row | None]]:
        return [_check_file(root / name, known.get(name), check) for name in piece]

    pieces = [names[start : start + PIECE] for start in range(0, len(names), PIECE)]
    with ThreadPoolExecutor(THREADS) as threads:
        found = [one for piece in threads.map(some, pieces) for one in piece]
    rows = {name: row for name, (_, row) in zip(names, found, strict=True) if row is not None}
    if rows != known:
        write_memory({"format": FORMAT, "files": rows}, *place)
    return [one for one, _ in found]


def _check_file(path: Path, known: object, check: Check) -> tuple[FileCheck, Row | None]:
    """The check of a file, and the row to remember; None if it changed so recently that a next change may go unseen."""
    try:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        if isinstance(known, list) and known[:4] == stamp and [type(x) for x in known[4:]] == [str, int, int, str]:
            return FileCheck(
                sha256=known[4], num_bytes=stat.st_size, size=(known[5], known[6]), problem=known[7]
            ), known
        content = path.read_bytes()
    except OSError as error:
        return FileCheck(sha256="", num_bytes=0, problem=f"cannot be opened ({error.strerror})"), None
    size, problem = (0, 0), "" if content else "has no bytes"
    if content:
        try:
            size = check(path, content)
        except DAMAGE as error:
            problem = " ".join(str(error).removeprefix(f"{path} ").split()) or type(error).__name__
    sha256 = hashlib.sha256(content).hexdigest()
    one = FileCheck(sha256=sha256, num_bytes=len(content), size=size, problem=problem)
    whole = is_settled(stat) and len(content) == stat.st_size
    return one, [*stamp, sha256, *size, problem] if whole else None


def pictures(path: Path, content: bytes) -> tuple[int, int]:
    """The columns and rows of a picture, which is decoded to its end. Raises what PIL raises for a damaged one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as picture:
            size = picture.size
            if picture.mode in ("I", "F"):
                raise ValueError("has pixels of 32 bits, whose range is unknown; save it with 8 or 16 bits")
            picture.draft(None, (REDUCED, REDUCED))
            picture.load()
            return size
    except UnidentifiedImageError as error:  # its own message names the object in memory that PIL was given
        raise ValueError("is no picture, or one of a kind that PIL does not read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def sounds(path: Path, content: bytes) -> tuple[int, int]:
    """The rate in Hz and the number of samples of a sound, decoded to its end. Raises what open_sound raises."""
    sound = open_sound(path)
    return sound["sampling_rate"], len(sound["array"])


def sizes(checks: Sequence[FileCheck], *, unit: str) -> str:
    """The sizes of items in words: the one they have, or the smallest, the middle and the largest."""
    found = Counter(one.size for one in checks if not one.problem)
    if not found:
        return "none"
    if len(found) == 1:
        return f"all {_size(next(iter(found)), unit)}"
    ordered = sorted(found.elements(), key=lambda size: size[0] * size[1])
    small, middle, large = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return f"{_size(small, unit)} to {_size(large, unit)}, median {_size(middle, unit)}"


def _size(size: tuple[int, int], unit: str) -> str:
    return f"{size[0]} x {size[1]} pixels" if unit == "pixels" else f"{size[1] / size[0]:.2f} s at {size[0]} Hz"
