"""What lies in a folder of class folders, by names of files alone: cheap, and the same for everybody who asks.

    flowers/rose/1.jpg            a folder for each class, or
    flowers/train/rose/1.jpg      the same below train, val (valid, validation, dev) and test

Names that start with a dot are left alone. A picture may lie deeper below its class folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo_core.errors import AccessError, NotFoundError, UsageError

__all__ = ["SPLITS", "Found", "find", "is_split", "some"]

SPLITS = {
    "dev": "val",
    "test": "test",
    "testing": "test",
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Found:
    """The files of class folders: names with `/`, relative to the folder, sorted; of each its class and split.

    splits: empty if the folders tell of none. ignored: files that are none of those asked for, and empty folders.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels)))


def find(root: Path, suffixes: Sequence[str], *, what: str) -> Found:
    """The files with these suffixes below class folders. what: what they are called, in plural.

    Raises NotFoundError, AccessError, and UsageError where there are no class folders, or links to folders.
    """
    if not root.is_dir():
        word = "is a file" if root.exists() else "is not there"
        raise NotFoundError(f"{root} {word}; path= is a folder with a folder of {what} for each class")
    folders, beside = _listed(root)
    named = {name: is_split(name) for name in folders}
    has_splits = "train" in named.values() and all(named.values())
    names: list[tuple[str, str, str]] = []
    ignored = [name for name in beside if not name.lower().endswith(tuple(suffixes))]
    loose = len(beside) - len(ignored)
    for folder in folders:
        split = named[folder] if has_splits else ""
        inside = _listed(root / folder)[0] if split else [folder]
        for label in inside:
            below = f"{folder}/{label}" if split else label
            files = list(_walk(root, below))
            kept = [name for name in files if name.lower().endswith(tuple(suffixes))]
            names += [(name, label, split or "") for name in kept]
            ignored += [name for name in files if not name.lower().endswith(tuple(suffixes))]
            if not kept:
                ignored.append(f"{below}/")
    if not names:
        raise UsageError(_nothing(root, what, suffixes, loose, bool(folders)))
    if loose:
        raise UsageError(
            f"{root} holds {loose} {what} beside its class folders; put each into the folder of its class, "
            f"or list all of them in a table: zoo show csv"
        )
    names.sort()
    return Found(
        names=tuple(name for name, _, _ in names),
        labels=tuple(label for _, label, _ in names),
        splits=tuple(split for _, _, split in names) if has_splits else (),
        ignored=tuple(ignored),
    )


def is_split(name: str) -> str | None:
    """The split that a folder's or file's name stands for, or None."""
    return SPLITS.get(name.lower())


def some(names: Sequence[str]) -> str:
    """The first few of some names, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _nothing(root: Path, what: str, suffixes: Sequence[str], loose: int, has_folders: bool) -> str:
    if loose:
        return (
            f"{root} holds {loose} {what} and no class folders; put each into a folder named after its class, "
            f"or list them in a table: zoo show csv"
        )
    state = f"holds folders and no {what} in them" if has_folders else "is empty or holds no class folders"
    return f"{root} {state}; wanted: {root}/CLASS/NAME{suffixes[0]} ({', '.join(suffixes)})"


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of folders and of files in a folder, sorted, without hidden ones."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif _is_folder(entry):
                    raise UsageError(
                        f"{entry.path} is a symbolic link to a folder, and those are not followed, since they may "
                        f"lead in circles; put the folder itself there"
                    )
                else:
                    files.append(entry.name)
    except PermissionError as error:
        raise AccessError(f"{folder} may not be read; change its rights") from error
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads to a folder, or in circles."""
    try:
        return entry.is_symlink() and (entry.is_dir() or _is_loop(entry.path))
    except OSError:
        return True


def _is_loop(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116 - Path.exists hides what went wrong
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _walk(root: Path, below: str) -> list[str]:
    folders, files = _listed(root / below)
    found = [f"{below}/{name}" for name in files]
    for folder in folders:
        found += _walk(root, f"{below}/{folder}")
    return found
