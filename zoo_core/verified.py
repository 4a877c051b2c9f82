"""Files whose content is known: hashed and looked at once, and remembered for as long as the file is the same one.

A file is the same while its device, inode, size and both times are (a write changes the time of change, which no
program can set back). The memory lies in the cache folder, one small file for each; where that cannot be written,
nothing is remembered and everything works.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from zoo_core.contracts import FileHash
from zoo_core.errors import AccessError, IntegrityError, NotFoundError
from zoo_core.settings import cache_folder
from zoo_core.writing import write_whole

__all__ = [
    "check",
    "git_sha1",
    "hash_of",
    "is_noted",
    "note",
    "read_memory",
    "safe_name",
    "some",
    "write_memory",
]

# A file that changed so shortly ago may change again within one tick of the clock that stamps it, unseen.
RACY_NS = 20_000_000
SHOWN = 3  # names in a message


def check(path: Path, expected: FileHash, *, again: bool = False) -> None:
    """Raises IntegrityError unless a file has the size and the sha256 expected, NotFoundError if it is missing.

    again: hash it even if it is known to be right. The file is left where it is.
    """
    found = hash_of(path, again=again, expected_size=expected.size)
    if found.size != expected.size:
        raise IntegrityError(f"{path} has {found.size} bytes, expected {expected.size}")
    if found.sha256 != expected.sha256:
        raise IntegrityError(f"{path} has sha256 {found.sha256[:12]}..., expected {expected.sha256[:12]}...")


def hash_of(path: Path, *, again: bool = False, expected_size: int | None = None) -> FileHash:
    """The sha256 and size of a file; from memory where the file has not changed, unless `again`.

    expected_size: a file of another size is not read, and its sha256 is empty.
    Raises NotFoundError if it is missing, AccessError if it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            before = os.fstat(stream.fileno())
            if expected_size not in (None, before.st_size):
                return FileHash(sha256="", size=before.st_size)
            known = None if again else _recall(before)
            if known is None:
                known = hashlib.file_digest(stream, "sha256").hexdigest()
                after = os.fstat(stream.fileno())
                if _stamp(before) == _stamp(after):
                    _remember(after, known)
            return FileHash(sha256=known, size=before.st_size)
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing") from None
    except OSError as error:
        raise AccessError(f"{path} cannot be read ({error.strerror}); mend its rights") from error


def git_sha1(content: bytes) -> str:
    """The name that git gives a content: what the Hub tells of files that are not in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def safe_name(name: str, where: str) -> str:
    """The name of a file inside a folder, as it is. Raises IntegrityError if it would lead out of the folder."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or set(name) & {"\\", "\0", ":"}:
        raise IntegrityError(f"{where} names a file {name!r:.80}, which is no path inside a folder; it is not used")
    assert not PurePosixPath(name).is_absolute()
    return name


def some(names: Sequence[str]) -> str:
    """The first few of some names of files, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def is_noted(paths: Iterable[Path], fact: str) -> bool:
    """Whether this was noted of every file, and none has changed since."""
    return all(_recall_facts(_stat(path)).get(fact) is True for path in paths)


def note(paths: Iterable[Path], fact: str) -> None:
    """Notes what was found out of the content of files, so that it need not be found out again."""
    for path in paths:
        stat = _stat(path)
        if stat is not None and time.time_ns() - stat.st_ctime_ns > RACY_NS:
            facts = {**_recall_facts(stat), fact: True}
            write_memory({"stamp": _stamp(stat), "facts": facts}, *_place(stat, "noted"))


# --- memory ----------------------------------------------------------------------------------------------------------


def read_memory(*place: str) -> Any:
    """What write_memory has written, or None where there is nothing or it is damaged."""
    try:
        return json.loads(Path(cache_folder(), *place).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_memory(value: object, *place: str) -> None:
    """Writes a value in JSON below the cache folder, whole or not at all; a folder that cannot be written is fine."""
    path = Path(cache_folder(), *place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(value))
    except OSError:
        return


def _stamp(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _place(stat: os.stat_result, room: str = "verified") -> tuple[str, str]:
    return room, f"{stat.st_dev:x}-{stat.st_ino:x}.json"


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _recall_facts(stat: os.stat_result | None) -> dict[str, object]:
    row = None if stat is None else read_memory(*_place(stat, "noted"))
    if stat is None or not isinstance(row, dict) or row.get("stamp") != _stamp(stat):
        return {}
    facts = row.get("facts")
    return facts if isinstance(facts, dict) else {}


def _recall(stat: os.stat_result) -> str | None:
    row = read_memory(*_place(stat))
    if not isinstance(row, dict) or row.get("stamp") != _stamp(stat) or not isinstance(row.get("sha256"), str):
        return None
    return str(row["sha256"])


def _remember(stat: os.stat_result, sha256: str) -> None:
    if time.time_ns() - stat.st_ctime_ns > RACY_NS:
        write_memory({"stamp": _stamp(stat), "sha256": sha256}, *_place(stat))
