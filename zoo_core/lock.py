"""zoo.lock: what a run was made with. JSON, sorted: each part's distribution, version, and files by sha256 and size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo_core.errors import AccessError, IncompatibleError, IntegrityError

if TYPE_CHECKING:
    from zoo_core.catalog import Entry
    from zoo_core.registry import Bound

__all__ = ["check_lock", "lock_of", "read_lock", "write_lock"]

FORMAT = 1


def lock_of(parts: Iterable[tuple[Bound, Entry | None]]) -> dict[str, Any]:
    """The lock of some bound parts, by `kind:name`."""
    locked: dict[str, Any] = {}
    for bound, entry in parts:
        row: dict[str, Any] = {"distribution": bound.provider.distribution, "version": bound.provider.version}
        if entry is not None and entry.files:
            row["files"] = {name: asdict(file) for name, file in sorted(entry.files.items())}
        if entry is not None and entry.repository:
            row |= {"repository": entry.repository, "revision": entry.revision}
        locked[f"{bound.kind}:{bound.name}"] = row
    return {"format": FORMAT, "parts": dict(sorted(locked.items()))}


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
        raise IntegrityError(f"{path} is damaged (a part without its distribution and version); {mend}")
    return lock


def _holds_rows(parts: object) -> bool:
    return isinstance(parts, dict) and all(isinstance(row, dict) for row in parts.values())


def write_lock(path: Path, lock: Mapping[str, Any]) -> None:
    """Writes a lock whole: a reader sees the old file or the new one."""
    fresh = path.with_suffix(".lock.new")
    fresh.write_text(json.dumps(lock, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)


def check_lock(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Both locks together. Raises IncompatibleError when a part is not what the run began with."""
    for name, row in wanted["parts"].items():
        before = held["parts"].get(name)
        if before is not None and before != row:
            changed = sorted(key for key in before.keys() | row.keys() if before.get(key) != row.get(key))
            raise IncompatibleError(
                f"{path} was made with {name} of another {changed[0]}: {before.get(changed[0])} then, "
                f"{row.get(changed[0])} now; install what it was made with, or use a new --out"
            )
    return {"format": FORMAT, "parts": dict(sorted({**held["parts"], **wanted["parts"]}.items()))}


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and isinstance(row.get("distribution"), str) and isinstance(row.get("version"), str)
