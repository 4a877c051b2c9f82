"""Folders of media files as a task: looked at, divided, opened, surveyed."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from zoo_core.contracts import Modality, Survey, Target, TaskData
from zoo_core.errors import NotFoundError, UsageError, nearest
from zoo_tasks.class_folders import ClassFolders, is_split, some
from zoo_tasks.media_check import FileCheck, check_files, pictures, sizes, sounds
from zoo_tasks.splitting import NAMES, Division, Items, Rules, divide, save_split

__all__ = ["Media", "rate_problems", "read_split", "surveyed"]


MANY = 5000  # names that a wrong one is compared with; more would take seconds


class Recipe(Protocol):
    """The arguments that image-folder and audio-folder share."""

    @property
    def path(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def split(self) -> str | None: ...
    @property
    def group(self) -> str | None: ...
    @property
    def test(self) -> tuple[str, ...]: ...
    @property
    def val(self) -> tuple[str, ...]: ...
    @property
    def duplicates(self) -> Literal["leave-out", "keep"]: ...
    @property
    def unreadable(self) -> Literal["stop", "skip"]: ...
    @property
    def modality(self) -> Modality: ...
    @property
    def metric(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Media:
    """The files of a folder with their classes."""

    recipe: Recipe
    found: ClassFolders
    target: Target
    form: Literal["pictures", "sounds"]
    one_rate: bool

    @property
    def root(self) -> Path:
        return Path(self.recipe.path).expanduser()

    @cached_property
    def checks(self) -> list[FileCheck]:
        return check_files(self.root, self.found.names, pictures if self.form == "pictures" else sounds, self.form)

    @cached_property
    def readable(self) -> list[int]:
        return [position for position, check in enumerate(self.checks) if not check.problem]

    @property
    def unreadable(self) -> dict[str, str]:
        return {name: check.problem for name, check in zip(self.found.names, self.checks, strict=True) if check.problem}

    @cached_property
    def items(self) -> Items:
        names = [self.found.names[i] for i in self.readable]
        place = {name: label for label, name in enumerate(self.target.names)}
        splits = [self.found.splits[i] for i in self.readable] if self.found.splits else None
        if self.recipe.split:
            splits = read_split(self.root / self.recipe.split, self.found.names, names)
        groups = self._groups()
        if (self.recipe.test or self.recipe.val) and groups is None:
            raise UsageError("test= and val= name groups to hold out, and group= does not say what the groups are")
        return Items(
            ids=names,
            contents=[self.checks[i].sha256 for i in self.readable],
            targets=np.array([place.get(self.found.labels[i], 0) for i in self.readable], dtype=np.int64),
            groups=groups,
            splits=splits,
        )

    def _groups(self) -> list[str] | None:
        group, fields = self.recipe.group, self.found.fields
        if group is None:
            return None
        if group not in fields:
            known = ", ".join(fields) or 'no pattern, as in pattern="{patient}_*"'
            raise UsageError(f"group={group} names a field of pattern=, and there is {known}")
        return [fields[group][i] for i in self.readable]

    @cached_property
    def division(self) -> Division:
        recipe = self.recipe
        rules = Rules(seed=recipe.seed, test=recipe.test, val=recipe.val, drop_copies=recipe.duplicates == "leave-out")
        return divide(self.items, self.target, rules)

    def problems(self) -> tuple[str, ...]:
        """What stops a fit, the worst first."""
        bad = self.unreadable
        found = []
        if bad and self.recipe.unreadable == "stop":
            told = some([f"{name} ({problem})" for name, problem in bad.items()])
            found.append(
                f"{len(bad)} of {len(self.found.names)} {self.form} cannot be read: {told}; mend or remove "
                f"them, or leave them out: unreadable=skip"
            )
        if not self.readable:
            return tuple(found)
        found += rate_problems(self.checks, self.recipe.path) if self.one_rate else []
        return (*found, *(f"{self.recipe.path}: {problem}" for problem in self.division.problems))

    def open(self) -> TaskData:
        """Raises UsageError for the first of the problems."""
        from zoo_tasks.task_data import pictures_store, sounds_store, split_data

        for problem in self.problems():
            raise UsageError(problem)
        if not self.readable:
            raise UsageError(f"{self.recipe.path}: none of its {len(self.checks)} {self.form} can be read")
        make = pictures_store if self.form == "pictures" else sounds_store
        store = make(self.root, self.items.ids, [self.checks[i] for i in self.readable])
        save_split(self.division, self.items.ids)
        return split_data(self.items, self.target, self.division, store)

    def survey(self, inferred: tuple[str, ...]) -> Survey:
        if not self.readable:
            raise UsageError(
                f"{self.recipe.path}: none of its {len(self.checks)} {self.form} can be read: "
                f"{some([f'{name} ({problem})' for name, problem in self.unreadable.items()])}"
            )
        return surveyed(
            self.recipe,
            self.target,
            self.items,
            self.division,
            num_bytes=sum(check.num_bytes for check in self.checks),
            sizes=sizes(self.checks, unit="pixels" if self.form == "pictures" else "seconds"),
            inferred=inferred,
            unreadable=self.unreadable,
            ignored=self.found.ignored,
            problems=self.problems(),
        )


def rate_problems(checks: Sequence[FileCheck], where: str) -> list[str]:
    """What is said of sounds with several sampling rates."""
    rates = Counter(check.size[0] for check in checks if not check.problem)
    if len(rates) < 2:
        return []
    shown = ", ".join(f"{num} at {rate} Hz" for rate, num in rates.most_common())
    return [
        f"{where} has mixed sampling rates ({shown}); convert them to one, or leave it to each backbone: rates=mixed"
    ]


class Scored(Protocol):
    """What a survey takes over from a recipe."""

    @property
    def modality(self) -> Modality: ...
    @property
    def metric(self) -> str: ...


def surveyed(
    recipe: Scored,
    target: Target,
    items: Items,
    division: Division,
    *,
    num_bytes: int,
    sizes: str,
    inferred: tuple[str, ...],
    unreadable: dict[str, str],
    ignored: tuple[str, ...],
    problems: tuple[str, ...],
) -> Survey:
    """A survey of examples that were divided."""
    classes: dict[str, int] = {}
    if target.kind == "classes":
        counts = np.bincount(np.asarray(items.targets), minlength=len(target.names))
        classes = {name: int(count) for name, count in zip(target.names, counts, strict=True)}
    elif target.kind == "multilabel":
        classes = {name: int(n) for name, n in zip(target.names, np.asarray(items.targets).sum(0), strict=True)}
    elif target.kind == "token_classes":
        tags = Counter(tag for row in items.targets for tag in row)
        classes = {name: tags[place] for place, name in enumerate(target.names)}
    digest, file = save_split(division, items.ids)
    return Survey(
        modality=recipe.modality,
        target=target,
        metric=recipe.metric,
        num_items=len(items.ids) + len(unreadable),
        num_bytes=num_bytes,
        sizes=sizes,
        classes=classes,
        splits={name: len(index) for name, index in division.splits.items()},
        given=division.given,
        split_digest=digest,
        split_file=file,
        inferred=inferred,
        copies=division.copies,
        conflicting=division.conflicting,
        leaking=division.leaking,
        left_out=division.left_out,
        unreadable=unreadable,
        ignored=ignored,
        problems=problems,
    )


def read_split(file: Path, known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The split of each wanted item, as a CSV file of `item,split` says.

    known: all items. Raises NotFoundError (no file), and UsageError for an item that is not there or not in the file.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except FileNotFoundError:
        raise NotFoundError(f"no split file {file}; it holds a line `item,split` for each item") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} cannot be read as a CSV file of `item,split`: {error}") from error
    if rows and [cell.strip().lower() for cell in rows[0]] == ["item", "split"]:
        rows = rows[1:]
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        split = is_split(row[1].strip()) if len(row) == 2 else None
        if split is None:
            raise UsageError(f"{file}, row {number}: wanted `item,split` with a split of {', '.join(NAMES)}, not {row}")
        if found.setdefault(row[0], split) != split:
            raise UsageError(f"{file}, row {number}: {row[0]} is in {found[row[0]]} and in {split}")
    names = set(known)
    missing = [name for name in found if name not in names]
    if missing:
        raise UsageError(
            f"{file} names {len(missing)} items that are not there: {some(missing)}{nearest(missing[0], known[:MANY])}"
        )
    untold = [name for name in wanted if name not in found]
    if untold:
        raise UsageError(f"{file} does not say where {len(untold)} items belong: {some(untold)}")
    return [found[name] for name in wanted]
