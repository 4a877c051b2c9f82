"""A local folder as a source: the files in it that a part reads, each with its hash, checked on every use.

A lock states what a folder held when it was written; this module finds what it holds now. If nothing has changed since
the last check, that costs one stat call for each file. No torch, no network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo_core.contracts import Source, Weights
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, SpecError
from zoo_core.files.hashing import hashes_of, some
from zoo_core.lock import Pinned, pins_of, read_lock
from zoo_core.plan.plan import fits_weights, literal, needed
from zoo_core.run_layout import LOCK, RUN
from zoo_core.spec.parser import parse

__all__ = ["called", "check_locked", "check_weights", "is_locked", "look"]


def look(source: Source, weights: Weights = "pretrained") -> Pinned:
    """The files of a local source as they are now. weights: "random" means that the folder need not contain weights.

    If the folder is a stored run, the folders that it was fitted on, which its own lock names, are checked as well.
    Raises NotFoundError (no such folder, no weights in it), AccessError, IncompatibleError (what a run was fitted on
    has changed).
    """
    assert source.folder is not None, "a repository is pinned by its commit"
    root = Path(source.folder).expanduser()
    if not root.is_dir():
        raise NotFoundError(f"no folder {source.folder}; files=DIR takes one that is laid out like a repository")
    wanted = (*source.patterns, *source.weights)
    named = [name for pattern in wanted if (name := literal(pattern)) is not None]
    names = {name for name in named if (root / name).is_file()}
    if len(named) < len(wanted) or len(names) < len(set(named)):  # no walk if all names are known
        names |= set(_walk(str(root), "", frozenset()))
    check_weights(source, names, weights)
    found = Pinned(folder=source.folder, files=hashes_of(root, needed(source, "pretrained", dict.fromkeys(names))))
    if wanted and not found.files:
        raise NotFoundError(f"{source.folder} holds no file of {some(wanted)}")
    if weights == "pretrained" and {RUN, LOCK} <= found.files.keys():
        _check_below(root, {root.resolve()})
    return found


def check_locked(key: str, locked: Mapping[str, Pinned], found: Pinned) -> None:
    """Raises IntegrityError if a folder holds other content than the user's lock states.

    locked: what the lock states about folders, by key. Under the same key, the files must be exactly the same, so a new
    file is a difference too. Under any other key of the same folder, only the files that both name must be the same.
    """
    differ: set[str] = set()
    for other, held in locked.items():
        if other == key:
            differ |= {*held.files, *found.files} - _equal(held, found)
        elif _is_same(held, found):
            differ |= (held.files.keys() & found.files.keys()) - _equal(held, found)
    if differ:
        raise IntegrityError(
            f"{key}: {some(sorted(differ))} in {found.folder} is not what the lock pins; restore what was there, or "
            f"make the lock again: zoo lock SPEC, and of a stored run zoo fit"
        )


def is_locked(key: str, locked: Mapping[str, Pinned], found: Pinned) -> bool:
    """Whether the lock names every file that was found, either under this key or under another key of the folder."""
    named = {name for other, held in locked.items() if other == key or _is_same(held, found) for name in held.files}
    return found.files.keys() <= named


def _equal(held: Pinned, found: Pinned) -> set[str]:
    return {name for name, file in held.files.items() if found.files.get(name) == file}


def _is_same(held: Pinned, found: Pinned) -> bool:
    """Whether two pins are of the same folder, even if its path is written differently."""
    places = [Path(pin.folder).expanduser().resolve() for pin in (held, found) if pin.folder is not None]
    return len(places) == 2 and places[0] == places[1]


def check_weights(source: Source, names: Iterable[str], weights: Weights) -> None:
    """Raises NotFoundError if pre-trained weights are wanted, and none of the names is that of a file of weights."""
    names = sorted(names)
    is_there = any(fits_weights(name, pattern) for pattern in source.weights for name in names)
    if weights == "pretrained" and source.weights and not is_there:
        raise NotFoundError(
            f"{called(source)} has no weights: no file fits {', '.join(source.weights)}{_pickles(names)}"
        )


def called(source: Source) -> str:
    """The name of a source in error messages."""
    if source.repository is None:
        return str(source.folder)
    return source.repository + (f" at {source.revision}" if source.revision else "")


def _pickles(names: Iterable[str]) -> str:
    found = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    return f"; it has {some(found)}, which is read only with allow_pickle=true" if found else ""


def _walk(root: str, below: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """The paths of the files below a folder, with `/` between names. Links to folders are followed, as readers do.

    above: device and inode of each folder that contains this one. A link back to one of them is skipped.
    """
    here = os.path.join(root, below)  # noqa: PTH118 - there may be 100,000
    stat = os.stat(here)  # noqa: PTH116 - as above
    if (stat.st_dev, stat.st_ino) in above:
        return
    above |= {(stat.st_dev, stat.st_ino)}
    with os.scandir(here) as entries:
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if _is_folder(entry):
                yield from _walk(root, name, above)
            elif entry.is_file():
                yield name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _check_below(run: Path, seen: set[Path]) -> None:
    """Raises IncompatibleError if the folder of a stored run's base has changed, and NotFoundError if files are gone.

    The folders of its data and its teachers are not checked, because a fitted model does not need them. Neither is a
    base with random weights, because the run itself holds all of those.
    """
    wanted, places = _base_in_run(run)
    held = {key: pin for key, pin in pins_of(read_lock(run / LOCK)).items() if key in wanted}
    for pin in held.values():
        if pin.folder is None:
            continue
        beside, written = run / places.get(pin.folder, pin.folder), Path(pin.folder).expanduser()
        root = beside if beside.is_dir() else written
        gone = [name for name in pin.files if not (root / name).is_file()]
        if gone:
            raise NotFoundError(f"{run} was fitted on {pin.folder}, and {some(gone)} is not there; put it back")
        found = hashes_of(root, tuple(pin.files))
        changed = [name for name in pin.files if found[name] != pin.files[name]]
        if changed:
            raise IncompatibleError(
                f"{run} was fitted on {pin.folder}, whose {some(changed)} is not what it was; put that back, or fit "
                f"the model again"
            )
        if RUN in pin.files and root.resolve() not in seen:
            _check_below(root, {*seen, root.resolve()})


def _base_in_run(run: Path) -> tuple[set[str], Mapping[str, Any]]:
    """The keys that a run's base may have in its lock, and the places of its folders relative to the run's own folder.

    Both are empty for a damaged run, which is reported when it is loaded, and for a base with random weights.
    """
    try:
        table = json.loads((run / RUN).read_text(encoding="utf-8"))
        base, places = parse(table["spec"]).parts[0], dict(table.get("places", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SpecError):
        return set(), {}
    arguments = dict(base.arguments)
    if arguments.get("weights") == "random":
        return set(), {}
    own = tuple((name, value) for name, value in base.arguments if name not in ("weights", "until"))
    named = {f"backbone:{replace(base, kind=None, arguments=own)}"}
    named |= {f"backbone:{base.name}({value})" for value in arguments.values()}  # the key before December 2026
    return named, {folder: place for folder, place in places.items() if isinstance(place, str)}
