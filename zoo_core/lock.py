"""zoo.lock: what something was made with, as sorted JSON. For each part its distribution, version and files.

Files are pinned by sha256 and size: those of a Hub repository at a commit of 40 hex digits, those of a local folder, or
those inside the part's own package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo_core._process.atomic_files import write_whole
from zoo_core.contracts import FileHash
from zoo_core.contracts.old_words import current_text
from zoo_core.errors import AccessError, IncompatibleError, IntegrityError, NotFoundError

if TYPE_CHECKING:
    from zoo_core.registry.bind import Bound

__all__ = [
    "Pinned",
    "check_lock",
    "content_key",
    "lock_of",
    "part_key",
    "pin_of",
    "pins_of",
    "read_lock",
    "read_pins",
    "told_apart",
    "unpublished_in",
    "write_lock",
]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """The files of one part by name, each with its hash.

    repository, revision: the Hub repository and the commit. folder: the local folder, whose content may have changed
    since. If all are None, the files are inside the part's package.
    """

    files: Mapping[str, FileHash]
    repository: str | None = None
    revision: str | None = None
    folder: str | None = None

    def content_of(self, names: Iterable[str]) -> str:
        """128 bits, in hex, of the names of files and what they hold."""
        rows = sorted(f"{name}\0{self.files[name].sha256}" for name in names)
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:32]


def part_key(part: Bound) -> str:
    """The key of a part in a lock: `backbone:timm/resnet18`, with `@revision` if one was written.

    A part that reads files has its arguments in the key, `task:csv(path="a.csv")`, because they decide which files it
    reads.
    """
    if part.reads:
        written = part.canonical()
        arguments = tuple(argument for argument in written.arguments if argument[0] not in part.common)
        if arguments:
            return f"{part.kind}:{replace(written, kind=None, arguments=arguments)}"
    return _named(part)


def content_key(key: str, weights: str) -> str:
    """The key of a part's content in a result: its key in a lock, and the weights if they are random."""
    if weights != "random":
        return key
    return f"{key[:-1]},weights=random)" if key.endswith(")") else f"{key}(weights=random)"


def pin_of(pins: Mapping[str, Pinned], part: Bound) -> Pinned | None:
    """The pin of a part that reads files, also under the key that locks used for it before December 2026."""
    found = pins.get(part_key(part))
    if found is not None or part.source is None:
        return found
    place = part.source.folder or part.source.repository
    before = pins.get(_named(part) + (f"({part.source.folder})" if part.source.folder is not None else ""))
    return before if before is not None and place in (before.folder, before.repository) else None


def _named(part: Bound) -> str:
    return f"{part.kind}:{part.name}" + (f"@{part.revision}" if part.revision else "")


def told_apart(pins: Mapping[str, Pinned]) -> tuple[dict[str, Pinned], dict[str, Pinned]]:
    """The pins of commits and packages, which never change, and those of local folders, which are checked again."""
    fixed = {key: pin for key, pin in pins.items() if pin.folder is None}
    return fixed, {key: pin for key, pin in pins.items() if pin.folder is not None}


def lock_of(parts: Iterable[Bound], pins: Mapping[str, Pinned]) -> dict[str, Any]:
    """The lock of some parts, whose files are pinned by their keys."""
    locked: dict[str, Any] = {}
    for part in parts:
        row: dict[str, Any] = {"distribution": part.provider.distribution, "version": part.provider.version}
        if part.provider.sha256:  # of a plugin file, whose name stands for a distribution
            row["sha256"] = part.provider.sha256
        pin = pins.get(part_key(part))
        if pin is not None:
            row |= {key: value for key, value in asdict(pin).items() if value is not None}
            row["files"] = {name: asdict(file) for name, file in sorted(pin.files.items())}
        locked[part_key(part)] = row
    return {"format": FORMAT, "parts": dict(sorted(locked.items()))}


def pins_of(lock: Mapping[str, Any] | None) -> dict[str, Pinned]:
    """What a lock that was read pins, by key; nothing of no lock."""
    pins: dict[str, Pinned] = {}
    for key, row in (lock or {"parts": {}})["parts"].items():
        if "files" in row:
            files = {name: FileHash(**file) for name, file in row["files"].items()}
            place = {name: row.get(name) for name in ("repository", "revision", "folder")}
            pins[key] = Pinned(files=files, **place)
    return pins


def unpublished_in(lock: Mapping[str, Any] | None) -> dict[str, Any]:
    """The rows of a lock whose parts come from plugin files, which no package publishes, by key."""
    return {key: row for key, row in (lock or {"parts": {}})["parts"].items() if row.get("sha256")}


def read_lock(path: Path) -> dict[str, Any] | None:
    """The lock in a file, or None if there is none.

    Raises IntegrityError when it is damaged or of another format, AccessError when it may not be read.
    """
    if not path.exists():
        return None
    mend = "restore it, or use a new --out"
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AccessError(f"{path} cannot be read ({error.strerror}); mend its rights, or use a new --out") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged ({error}); {mend}") from error
    if not isinstance(lock, dict) or lock.get("format") != FORMAT or not isinstance(lock.get("parts"), dict):
        raise IntegrityError(f"{path} is not a lock of format {FORMAT}; {mend}")
    if not all(map(_is_row, lock["parts"].values())):
        raise IntegrityError(f"{path} is damaged (a part without its distribution, version or files); {mend}")
    return lock | {"parts": {current_text(key): row for key, row in lock["parts"].items()}}


def read_pins(path: Path | None) -> dict[str, Pinned]:
    """What the lock in a file pins, by key. Without a file it is empty. Raises NotFoundError if the file is missing."""
    if path is None:
        return {}
    lock = read_lock(path)
    if lock is None:
        raise NotFoundError(f"there is no lock {path}; `zoo lock SPEC --lock {path}` writes one")
    return pins_of(lock)


def write_lock(path: Path, lock: Mapping[str, Any]) -> None:
    """Writes a lock in one step: a reader sees either the old file or the new one."""
    write_whole(path, json.dumps(lock, indent=2, sort_keys=True) + "\n")


def check_lock(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two locks. For local folders and plugin files, the present content counts.

    Rows that were made from their earlier content are superseded, see results/outdated.py. Raises IncompatibleError if
    a part is of another distribution, version or commit than the run began with.
    """
    for name, row in wanted["parts"].items():
        before = held["parts"].get(name)
        if before is not None:
            kept = before.keys() | row.keys()
            if before.get("folder") is not None and row.get("folder") is not None:
                kept -= {"files", "folder"}
            if before.get("sha256") and row.get("sha256") and before["distribution"] == row["distribution"]:
                kept -= {"sha256"}
            changed = sorted(key for key in kept if before.get(key) != row.get(key))
            if not changed:
                continue
            raise IncompatibleError(
                f"{path} was made with {name} of another {changed[0]}: {before.get(changed[0])} then, "
                f"{row.get(changed[0])} now; install what it was made with, or use a new --out"
            )
    return {"format": FORMAT, "parts": dict(sorted({**held["parts"], **wanted["parts"]}.items()))}


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("distribution", "version")):
        return False
    if not all(isinstance(row.get(key), str | None) for key in ("repository", "revision", "folder", "sha256")):
        return False
    files = row.get("files", {})
    return isinstance(files, dict) and all(map(_is_file, files.values()))


def _is_file(file: object) -> bool:
    return (
        isinstance(file, dict)
        and file.keys() == {"sha256", "size"}
        and isinstance(file["sha256"], str)
        and type(file["size"]) is int
    )
