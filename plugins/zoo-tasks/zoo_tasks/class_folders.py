"""What lies in a folder of class folders, by names of files alone: cheap, and the same for everybody who asks.

    flowers/rose/1.jpg            a folder for each class, or
    flowers/train/rose/1.jpg      the same below train, val (valid, validation, dev) and test

Names that start with a dot are left alone. A picture may lie deeper below its class folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo_core.errors import AccessError, NotFoundError, UsageError

__all__ = ["SPLITS", "ClassFolders", "files_below", "find_class_folders", "is_split", "some"]

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
IN_NAMES = 'say where their names hold it: pattern="{label}_*", or list them in a table: zoo show csv'


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """The files of class folders: names with `/`, relative to the folder, sorted; of each its class and split.

    splits: empty if nothing tells of any. fields: of each what a pattern finds in its name, by the pattern's fields.
    ignored: files that are none of those asked for, and empty folders.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels)))


def find_class_folders(root: Path, suffixes: Sequence[str], *, what: str, pattern: str | None = None) -> ClassFolders:
    """The files with these suffixes below class folders. what: what they are called, in plural.

    pattern: `{label}_{speaker}_*`, fitted to names without folders and suffix, or to paths without suffix if it has a
    `/`; where it has a field `label`, that is the class and folders are not; `split` likewise.
    Raises NotFoundError, AccessError, and UsageError where there are no class folders, or links to folders.
    """
    if not root.is_dir():
        word = "is a file" if root.exists() else "is not there"
        raise NotFoundError(f"{root} {word}; path= is a folder with a folder of {what} for each class")
    if pattern is not None and "{label}" in pattern:
        return _fitted(root, suffixes, pattern, what)
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
            inner = files_below(root, below)
            kept = [name for name in inner if name.lower().endswith(tuple(suffixes))]
            names += [(name, label, split or "") for name in kept]
            ignored += [name for name in inner if not name.lower().endswith(tuple(suffixes))]
            if not kept:
                ignored.append(f"{below}/")
    if not names:
        raise UsageError(_nothing(root, what, suffixes, loose, bool(folders)))
    if loose:
        raise UsageError(
            f"{root} holds {loose} {what} beside its class folders; put each into the folder of its class, or "
            f"{IN_NAMES}"
        )
    names.sort()
    files = tuple(name for name, _, _ in names)
    fields = _fields(pattern, files) if pattern is not None else {}
    splits = _splits(fields["split"]) if "split" in fields else tuple(split for _, _, split in names)
    return ClassFolders(
        names=files,
        labels=tuple(label for _, label, _ in names),
        splits=splits if has_splits or "split" in fields else (),
        fields=fields,
        ignored=tuple(ignored),
    )


def _fitted(root: Path, suffixes: Sequence[str], pattern: str, what: str) -> ClassFolders:
    """The files of a folder whose names hold their classes."""
    files = sorted(files_below(root, ""))
    names = tuple(name for name in files if name.lower().endswith(tuple(suffixes)))
    if not names:
        raise UsageError(f"{root} holds no {what} ({', '.join(suffixes)})")
    fields = _fields(pattern, names)
    return ClassFolders(
        names=names,
        labels=fields["label"],
        splits=_splits(fields["split"]) if "split" in fields else (),
        fields=fields,
        ignored=tuple(name for name in files if name not in set(names)),
    )


def _splits(words: Sequence[str]) -> tuple[str, ...]:
    wrong = next((word for word in words if is_split(word) is None), None)
    if wrong is not None:
        raise UsageError(f"{{split}} of the pattern is {wrong!r} for some file; wanted train, val or test")
    return tuple(is_split(word) or "" for word in words)


def _fields(pattern: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What each `{field}` of a pattern stands for in each name. Raises UsageError for a name that does not fit."""
    called = re.findall(r"\{(\w+)\}", pattern)
    if not called or len(set(called)) < len(called):
        raise UsageError(
            f'pattern="{pattern}" needs {{fields}}, each once, as "{{label}}_{{speaker}}_*"; * is any text'
        )
    pieces = re.split(r"(\{\w+\}|\*)", pattern)
    text = "".join("([^/]+?)" if "{" in each else ".*" if each == "*" else re.escape(each) for each in pieces)
    compiled, rows = re.compile(text), []
    for name in names:
        stem = name.rpartition(".")[0]
        match = compiled.fullmatch(stem if "/" in pattern else stem.rpartition("/")[2])
        if match is None:
            raise UsageError(f'pattern="{pattern}" does not fit {name}; it is fitted to names without suffix')
        rows.append(match.groups())
    return dict(zip(called, zip(*rows, strict=True), strict=True))


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
            f"{root} holds {loose} {what} and no class folders; put each into a folder named after its class, or "
            f"{IN_NAMES}; without labels they are unlabelled(path=...)"
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


def files_below(root: Path, below: str = "") -> list[str]:
    """The names of all files in a folder and those below it, with `/`, but hidden ones."""
    folders, files = _listed(root / below)
    above = f"{below}/" if below else ""
    found = [f"{above}{name}" for name in files]
    for folder in folders:
        found += files_below(root, f"{above}{folder}")
    return found
