"""Lets a path be given where a task is expected: finds the plugin's reader for its files, which names the task.

`./flowers` may stand for `image-folder(path="./flowers")`. The choice of a reader depends only on the names of the
files and on the suffixes and file names that readers declare. Everything else is inferred by the recipe of the task,
which reports what it inferred.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from zoo_core.errors import AmbiguousError, NotFoundError, SpecError, UsageError, ZooError
from zoo_core.registry.bind import Bound
from zoo_core.registry.index import reserved_names
from zoo_core.registry.recipe_checks import broken, check_reader, plugin_call
from zoo_core.registry.registry import Registry
from zoo_core.registry.registry import registry as default_registry
from zoo_core.registry.scan import normalise
from zoo_core.registry.settings import settings_file
from zoo_core.spec.parser import Part, parse_part

__all__ = ["contested", "is_path", "task_part"]

Readers: TypeAlias = tuple[Bound, ...]

LOOKED_AT = 5000  # files of a folder; by then it is known what most of them are


def is_path(text: str, registry: Registry | None = None) -> bool:
    """Whether a text that should name a task is a path.

    A text that is `.` or `..` or starts with `./`, `../`, `/` or `~` is a path, unless it has a `(` and nothing lies
    there. Any other text is one only if it exists, has no `(`, and has a `/` or a suffix that a reader reads. So a
    folder in the working directory never hides a task of the same name.
    """
    if text.startswith(("./", "../", "/", "~")) or text in (".", ".."):
        return "(" not in text or Path(text).expanduser().exists()
    suffix = Path(text).suffix.lower()
    if "(" in text or not ("/" in text or os.sep in text or suffix) or not Path(text).exists():
        return False
    return "/" in text or os.sep in text or any(suffix in each.recipe.suffixes for each in _readers(registry))


def task_part(text: str, registry: Registry | None = None) -> Part:
    """The task that a text names: a part of a spec, or a path.

    Raises SpecError, NotFoundError (no such path, or no reader installed), UsageError (no reader reads it),
    AmbiguousError if several readers read the same files and the settings choose none of them, and PluginError if a
    reader fails.
    """
    if not is_path(text, registry):
        return parse_part(text)
    path = Path(text).expanduser()
    if not path.exists():
        raise NotFoundError(f"no file or folder {text}; `zoo list task` shows the tasks that have names")
    registry = registry or default_registry()
    readers = tuple(_readers(registry))
    if not readers:
        raise NotFoundError(f"no plugin that is installed reads paths{_install(registry)}; {text} was to be read")
    for candidates, files in _candidates(path, readers):
        reader = candidates[0] if len(candidates) == 1 else _settled(candidates, files, registry)
        part = _told(reader, path, files)
        if part is not None:
            given = () if "path" in dict(part.arguments) else (("path", text),)
            return replace(part, arguments=(*part.arguments, *given))
    known = sorted({suffix for each in readers for suffix in (*each.recipe.suffixes, *each.recipe.below)})
    write = f"read are {', '.join(known)}; write the recipe, as 'NAME(path=\"{text}\")': `zoo list task`"
    if not path.is_dir():
        raise UsageError(
            f"{text}: nothing tells how to read a file {path.suffix.lower() or 'without a suffix'}; {write}"
        )
    if not any(files for _, _, files in os.walk(path)):
        raise UsageError(f"{text} is an empty folder; a task needs files, such as a folder of pictures for each class")
    raise UsageError(f"{text} holds no file whose suffix tells how to read it; {write}")


def contested(registry: Registry) -> Iterator[str]:
    """A message for each suffix that several readers read while the settings choose none of them."""
    readers = tuple(_readers(registry))
    for fact in ("suffixes", "below"):
        claims: dict[str, list[Bound]] = {}
        for reader in readers:
            for suffix in sorted(getattr(reader.recipe, fact)):
                claims.setdefault(suffix, []).append(reader)
        for suffix, rivals in sorted(claims.items()):
            if len(rivals) > 1:
                try:
                    _settled(tuple(rivals), (f"x{suffix}",), registry)
                except AmbiguousError as error:
                    yield str(error)


def _readers(registry: Registry | None) -> Iterator[Bound]:
    """The usable readers. Unusable ones are skipped here; `zoo doctor` reports them."""
    registry = registry or default_registry()
    for provider in registry.providers("reader"):
        try:
            reader = registry.bind(Part(provider.name), "reader")
            check_reader(reader)
        except ZooError:
            continue
        yield reader


def _candidates(path: Path, readers: Readers) -> Iterator[tuple[Readers, tuple[str, ...]]]:
    """Groups of readers that read the same files, with the names of these files. The most reliable group comes first.

    Suffixes of files in the folder itself come before those of all files in and below it, because a table beside
    folders of pictures describes them. File names come last, because any text may be called train.txt.
    """
    if not path.is_dir():
        found = tuple(each for each in readers if path.suffix.lower() in each.recipe.suffixes)
        yield from [(found, (path.name,))] if found else []
        return
    beside, below = _files(path)
    yield from _by_suffix(beside, [(each, each.recipe.suffixes) for each in readers])
    yield from _by_suffix(below, [(each, each.recipe.below) for each in readers])
    here = set(beside)
    named = tuple(each for each in readers if here & set(each.recipe.names))
    if named:
        yield named, tuple(name for name in beside if any(name in each.recipe.names for each in named))


def _files(path: Path) -> tuple[list[str], list[str]]:
    """The names of the files in a folder, and the paths of all files in and below it, up to about LOOKED_AT."""
    beside: list[str] = []
    below: list[str] = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(folder)
        if place == path:
            beside = sorted(files)
        below += [(place / name).relative_to(path).as_posix() for name in sorted(files)]
        if len(below) > LOOKED_AT:
            break
    return beside, below


def _by_suffix(
    names: Sequence[str], readers: Iterable[tuple[Bound, frozenset[str]]]
) -> Iterator[tuple[Readers, tuple[str, ...]]]:
    """Readers with the files that they read, the most files first. Readers of the same suffixes form one group."""
    counts: Counter[str] = Counter(Path(name).suffix.lower() for name in names)
    claims = {suffix: tuple(each for each, own in readers if suffix in own) for suffix in counts}
    nums: dict[tuple[str, ...], int] = {}
    groups: dict[tuple[str, ...], Readers] = {}
    for suffix, found in claims.items():
        if found:
            key = tuple(each.name for each in found)
            nums[key], groups[key] = nums.get(key, 0) + counts[suffix], found
    for key in sorted(nums, key=lambda key: -nums[key]):
        yield groups[key], tuple(name for name in names if claims[Path(name).suffix.lower()] == groups[key])


def _settled(readers: Readers, files: Sequence[str], registry: Registry) -> Bound:
    """The one of several readers that the settings name for the suffix of the files. Raises AmbiguousError if none."""
    suffix = Path(files[0]).suffix.lower()
    owner = registry.index.owners.get(f"reader:{suffix}")
    chosen = [each for each in readers if owner and normalise(each.provider.distribution) == normalise(owner)]
    if len(chosen) == 1:
        return chosen[0]
    claims = " and ".join(f"{each.name} of {each.provider.distribution} {each.provider.version}" for each in readers)
    raise AmbiguousError(
        f"files {suffix} are read by {claims}, so none is used; leave one out of ZOO_PLUGINS, or write "
        f'`"reader:{suffix}" = "{readers[0].provider.distribution}"` below [names] in {settings_file()}'
    )


def _told(reader: Bound, path: Path, files: Sequence[str]) -> Part | None:
    """The task that a reader gives for a path. None if the reader says that the path is not a task."""
    with plugin_call(reader):
        found = reader.recipe.task(path, files)
    if found is None:
        return None
    if not isinstance(found, str):
        raise broken(reader, f"task gave {type(found).__name__}; allowed: text, or None")
    try:
        return parse_part(found)
    except SpecError as error:
        raise broken(reader, f"task gave {found!r:.60}, which names no task: {error.reason}") from error


def _install(registry: Registry) -> str:
    """The command that installs the first-party readers, for a message. Empty if all are installed."""
    installed = {normalise(each["name"]) for each in registry.index.distributions}
    owners = {owner for name, owner in reserved_names().items() if name.startswith("reader:")} - installed
    return f": pip install {' '.join(sorted(owners))}" if owners else ""
