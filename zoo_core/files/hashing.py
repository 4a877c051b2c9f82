"""Hashes files, and remembers each result until the file changes.

A file counts as unchanged while its device, inode, size, modification time and change time (ctime) are the same. Every
write updates the change time, which no program can set back. Results are kept in the cache folder, one small file for
each file or folder. If that folder cannot be written, nothing is remembered and everything else works.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from zoo_core._process.atomic_files import write_whole
from zoo_core.contracts import FileHash
from zoo_core.errors import AccessError, IntegrityError, NotFoundError, ZooError
from zoo_core.registry.settings import cache_folder

__all__ = [
    "check",
    "git_sha1",
    "hash_of",
    "hashes_of",
    "is_noted",
    "is_settled",
    "note",
    "read_memory",
    "safe_name",
    "sha256_of",
    "some",
    "verify",
    "write_memory",
    "wrong_in",
]

# A file that changed less long ago may change again within one tick of its clock, so that its times stay the same.
RACY_NS = 20_000_000
SHOWN = 3  # the number of names in a message
THREADS = 4
PIECE = 64  # the number of files that a thread hashes at a time


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hex, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path, expected: FileHash) -> None:
    """Raises NotFoundError for a missing file, and IntegrityError for one with another size or sha256 than expected."""
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; install its package again")
    size = path.stat().st_size
    if size != expected.size:
        raise IntegrityError(f"{path} has {size} bytes, expected {expected.size}: truncated; get it again")
    found = sha256_of(path)
    if found != expected.sha256:
        raise IntegrityError(f"{path} has sha256 {found[:12]}..., expected {expected.sha256[:12]}...; get it again")


def check(path: Path, expected: FileHash, *, again: bool = False) -> None:
    """Raises NotFoundError if the file is missing, and IntegrityError if it has another size or sha256 than expected.

    again: hash the file even if its hash is remembered. A wrong file is left where it is.
    """
    _compare(path, hash_of(path, again=again, expected_size=expected.size), expected)


def wrong_in(root: Path, expected: Mapping[str, FileHash], *, again: bool = False) -> dict[str, ZooError]:
    """The wrong files of a folder, by name: a NotFoundError if one is missing, an IntegrityError for other content.

    again: as for `check`.
    """
    wrong: dict[str, ZooError] = {
        name: NotFoundError(f"{root / name} is missing") for name in expected if not (root / name).is_file()
    }
    found = hashes_of(root, [name for name in expected if name not in wrong], again=again)
    for name, file in found.items():
        try:
            _compare(root / name, file, expected[name])
        except IntegrityError as error:
            wrong[name] = error
    return wrong


def _compare(path: Path, found: FileHash, expected: FileHash) -> None:
    if found.size != expected.size:
        raise IntegrityError(f"{path} has {found.size} bytes, expected {expected.size}")
    if found.sha256 != expected.sha256:
        raise IntegrityError(f"{path} has sha256 {found.sha256[:12]}..., expected {expected.sha256[:12]}...")


def hash_of(path: Path, *, again: bool = False, expected_size: int | None = None) -> FileHash:
    """The sha256 and size of a file. The remembered sha256 is used if the file has not changed, unless `again`.

    expected_size: a file of another size is not read, and its sha256 is returned empty.
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


def hashes_of(root: Path, names: Sequence[str], *, again: bool = False) -> dict[str, FileHash]:
    """The sha256 and size of files in a folder, by name. For unchanged files they are remembered, unless `again`.

    The results of a folder are remembered in one file, so 100,000 unchanged files cost only one stat call each.
    Raises NotFoundError and AccessError as `hash_of` does.
    """
    place = "verified", f"folder-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"
    held = read_memory(*place)
    known: dict[str, Any] = {} if again or not isinstance(held, dict) else held
    start, found, unknown = f"{root}{os.sep}", dict[str, FileHash](), list[str]()
    for name in names:
        row = known.get(name)
        try:
            stat = os.stat(start + name if name[0] != "/" else name)  # noqa: PTH116 - a third of the time of pathlib
        except OSError:
            unknown.append(name)  # hashing it below raises the reason
            continue
        if isinstance(row, list) and row[5:] and row[:5] == [stat.st_dev, stat.st_ino, *_stamp(stat)]:
            found[name] = FileHash(sha256=row[5], size=stat.st_size)
        else:
            unknown.append(name)
    if unknown:
        pieces = [unknown[start : start + PIECE] for start in range(0, len(unknown), PIECE)]
        with ThreadPoolExecutor(THREADS) as threads:  # hashing releases the interpreter lock
            hashed = [one for piece in threads.map(partial(_hashed, root), pieces) for one in piece]
        found |= {name: file for name, (file, _) in zip(unknown, hashed, strict=True)}
        rows = {name: row for name, (_, row) in zip(unknown, hashed, strict=True) if row is not None}
        if rows:
            write_memory((held if isinstance(held, dict) else {}) | rows, *place)
    return {name: found[name] for name in names}


def _hashed(root: Path, names: Sequence[str]) -> list[tuple[FileHash, list[Any] | None]]:
    """The hash of each file, and what to remember of it. None if it changed too recently: see `is_settled`."""
    found: list[tuple[FileHash, list[Any] | None]] = []
    for name in names:
        path = root / name
        try:
            with path.open("rb", buffering=0) as stream:
                before = os.fstat(stream.fileno())
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                after = os.fstat(stream.fileno())
        except FileNotFoundError:
            raise NotFoundError(f"{path} is missing") from None
        except OSError as error:
            raise AccessError(f"{path} cannot be read ({error.strerror}); mend its rights") from error
        settled = _stamp(before) == _stamp(after) and is_settled(after)
        row = [after.st_dev, after.st_ino, *_stamp(after), sha256] if settled else None
        found.append((FileHash(sha256=sha256, size=after.st_size), row))
    return found


def git_sha1(content: bytes) -> str:
    """The sha1 by which git names a content. The Hub states it for files that are not in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def safe_name(name: str, where: str) -> str:
    """Returns the name of a file in a folder unchanged. Raises IntegrityError if it could lead out of the folder."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or set(name) & {"\\", "\0", ":"}:
        raise IntegrityError(f"{where} names a file {name!r:.80}, which is no path inside a folder; it is not used")
    assert not PurePosixPath(name).is_absolute()
    return name


def some(names: Sequence[str]) -> str:
    """The first few of the names of files, and how many more there are, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def is_noted(paths: Iterable[Path], fact: str) -> bool:
    """Whether this fact was noted for every file, and none of them has changed since."""
    return all(_recall_facts(_stat(path)).get(fact) is True for path in paths)


def note(paths: Iterable[Path], fact: str) -> None:
    """Notes a fact about the content of files, so that `is_noted` can tell it as long as they do not change."""
    for path in paths:
        stat = _stat(path)
        if stat is not None and is_settled(stat):
            facts = {**_recall_facts(stat), fact: True}
            write_memory({"stamp": _stamp(stat), "facts": facts}, *_place(stat, "noted"))


# --- memory ----------------------------------------------------------------------------------------------------------


def is_settled(stat: os.stat_result) -> bool:
    """Whether a file changed so long ago that a later change would show in its times. Only then is it remembered."""
    return time.time_ns() - stat.st_ctime_ns > RACY_NS


def read_memory(*place: str) -> Any:
    """The value that write_memory wrote at a place. None if there is nothing, or if it is damaged."""
    try:
        return json.loads(Path(cache_folder(), *place).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_memory(value: object, *place: str) -> None:
    """Writes a value as JSON below the cache folder, in one step. Does nothing if the folder cannot be written.

    place: the folders and the name of the file, such as `"looks", "1f.json"`.
    """
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
    if is_settled(stat):
        write_memory({"stamp": _stamp(stat), "sha256": sha256}, *_place(stat))
