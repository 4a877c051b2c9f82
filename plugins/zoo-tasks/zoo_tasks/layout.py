"""What a table is, before its rows are read: its files, how they are written, and what its columns are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from zoo_core.contracts import Modality, TargetKind
from zoo_core.errors import UsageError
from zoo_tasks.columns import LOOKED_AT, Columns, Given, infer
from zoo_tasks.reading import File, Form, Row, rows_of

__all__ = ["Copies", "Layout", "Recipe", "Unreadable", "check_classes", "stamp"]

Copies = Literal["auto", "leave-out", "keep"]
Unreadable = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of a table, how they are written, and what the user says of their columns.

    called: what errors call it; empty: its path. looked_at: the files that tell of the columns; none: all of them.
    """

    path: Path
    files: tuple[File, ...]
    form: Form
    given: Given
    called: str = ""
    looked_at: tuple[File, ...] = ()

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def columns(self) -> Columns:
        """What the columns are, from a look at the first rows; remembered while the files stay as they are."""
        return _look(self, tuple(stamp(file.path) for file in self.looked_at or self.files))

    def media(self) -> tuple[str, ...]:
        """The files that rows name in a column of pictures or sounds, as it names them; remembered likewise."""
        return _media(self, tuple(stamp(file.path) for file in self.files))


def stamp(path: Path) -> tuple[int, ...]:
    """What tells that a file is as it was: it is not written, moved or replaced without another one."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=64)
def _media(layout: Layout, stamps: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
    column = layout.columns().inputs[0]
    rows = (row for file in layout.files for _, row in rows_of(file.path, layout.form))
    return tuple(sorted({str(row[column]) for row in rows if row.get(column)}))


@lru_cache(maxsize=64)
def _look(layout: Layout, stamps: tuple[tuple[int, ...], ...]) -> Columns:
    rows: list[Row] = []
    complete = not layout.looked_at or layout.looked_at == layout.files
    for file in layout.looked_at or layout.files:
        found = rows_of(file.path, replace(layout.form, media=False))
        rows += [row for _, row in islice(found, LOOKED_AT)]
        complete = complete and next(found, None) is None
    return infer(rows, layout.given, where=layout.called or str(layout.path), complete=complete)


class Recipe(Protocol):
    """What is needed of each recipe of a table."""

    @property
    def path(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def test(self) -> tuple[str, ...]: ...
    @property
    def val(self) -> tuple[str, ...]: ...
    @property
    def duplicates(self) -> Copies: ...
    @property
    def unreadable(self) -> Unreadable: ...
    @property
    def modality(self) -> Modality: ...
    @property
    def metric(self) -> str: ...
    def layout(self) -> Layout: ...


def check_classes(kind: TargetKind, names: Sequence[str], where: str, target: Sequence[str]) -> None:
    """Raises UsageError for a target that nothing can be learnt about."""
    called = ", ".join(target)
    if kind == "classes" and len(names) < 2:
        found = f"one class, {names[0]}" if names else "no values at all"
        raise UsageError(f"{where}: column {called} has {found}; a classifier needs two or more; target= names another")
    if kind in ("multilabel", "token_classes") and not names:
        raise UsageError(f"{where}: column {called} has no labels at all; target= names another")
