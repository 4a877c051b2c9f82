"""Arrays of npz files as a task: checked, divided, opened, surveyed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from zoo_core.contracts import Modality, Survey, Target, TaskData
from zoo_core.errors import UsageError
from zoo_core.toolkit.files import cache_path, hash_of
from zoo_tasks.encoding import stored
from zoo_tasks.media import surveyed
from zoo_tasks.reading import File
from zoo_tasks.splitting import Division, Items, Rules, divide, save_split
from zoo_tasks.store import key_of, put
from zoo_tasks.task_data import Store, split_data

__all__ = ["Matrices"]


class Recipe(Protocol):
    """What is needed of the recipe of the arrays."""

    @property
    def path(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def duplicates(self) -> Literal["auto", "leave-out", "keep"]: ...
    @property
    def modality(self) -> Modality: ...
    @property
    def metric(self) -> str: ...
    @property
    def target(self) -> Target: ...
    def arrays(self) -> tuple[str, str]: ...
    def files(self) -> tuple[File, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """The arrays of a recipe's files, one after the other."""

    recipe: Recipe

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
        """Inputs, targets, and of each row its id and its split."""
        x_name, y_name = self.recipe.arrays()
        xs: list[np.ndarray] = []
        ys: list[np.ndarray] = []
        ids: list[str] = []
        splits: list[str] = []
        for file in self.recipe.files():
            with np.load(file.path, allow_pickle=False) as archive:
                lacking = [name for name in (x_name, y_name) if name and name not in archive]
                if lacking:
                    raise UsageError(f"{file.path} has no array {lacking[0]!r}; it has {', '.join(archive)}")
                x = archive[x_name]
                y = archive[y_name] if y_name else np.zeros(len(x), dtype=np.int64)
            if len(x) != len(y):
                raise UsageError(f"{file.path}: {len(x)} rows of {x_name} and {len(y)} of {y_name}; each row has both")
            if xs and x.shape[1:] != xs[0].shape[1:]:
                raise UsageError(
                    f"{file.path}: rows of {x_name} are {list(x.shape[1:])}, before {list(xs[0].shape[1:])}"
                )
            xs.append(x)
            ys.append(y)
            stem = f"{file.path.stem}:" if file.split else ""
            ids += [f"{stem}{row}" for row in range(len(x))]
            splits += [file.split] * len(x)
        x = np.concatenate(xs)
        if not len(x):
            raise UsageError(f"{self.recipe.path} has no rows; a task needs examples")
        self._check(x, x_name)
        return x, np.concatenate(ys), ids, splits

    def _check(self, x: np.ndarray, name: str) -> None:
        if x.ndim in (3, 4) and (x.dtype != np.uint8 or (x.ndim == 4 and x.shape[3] not in (1, 3, 4))):
            raise UsageError(
                f"{self.recipe.path}: pictures are uint8 [N, H, W] or [N, H, W, 3], and {name} is {x.dtype} "
                f"{list(x.shape)}; save it so"
            )
        if x.ndim not in (2, 3, 4) or x.dtype.kind not in "uifb":
            raise UsageError(
                f"{self.recipe.path}: {name} is {x.dtype} {list(x.shape)}; wanted numbers [N, K] or pictures [N, H, W]"
            )

    @cached_property
    def target(self) -> Target:
        """With the classes that the numbers tell, where nobody named them."""
        known, y = self.recipe.target, self.arrays[1]
        if known.kind == "regression":
            bad = ~np.isfinite(y.astype(np.float64).reshape(len(y), -1)).all(axis=1)
            if bad.any():
                raise UsageError(
                    f"{self.recipe.path}: row {self.arrays[2][int(bad.argmax())]} has a target that is NaN"
                )
            return known
        if known.kind in ("multilabel", "unlabelled"):
            return known
        if y.ndim != 1 or y.dtype.kind not in "uifb" or not np.equal(y, np.round(y)).all():
            raise UsageError(f"{self.recipe.path}: classes are whole numbers [N], found {y.dtype} {list(y.shape)}")
        names = known.names or tuple(str(number) for number in np.unique(y.astype(np.int64)))
        if len(names) < 2:
            raise UsageError(f"{self.recipe.path} has one class, {names[0]}; a classifier needs two or more")
        if known.names and not np.isin(y, np.arange(len(names))).all():
            raise UsageError(
                f"{self.recipe.path}: classes are 0 to {len(names) - 1} by their names, found {int(y.max())}"
            )
        return Target(kind="classes", names=names)

    @cached_property
    def items(self) -> Items:
        x, y, ids, splits = self.arrays
        targets: np.ndarray
        if self.target.kind == "unlabelled":
            targets = y
        elif self.target.kind == "classes":
            numbers = y.astype(np.int64)
            targets = numbers if self.recipe.target.names else np.searchsorted(np.unique(numbers), numbers)
        else:
            targets = y.astype(np.float32).reshape(len(y), -1)
        flat = np.ascontiguousarray(x).reshape(len(x), -1)
        return Items(
            ids=ids,
            contents=[hashlib.sha256(row.tobytes()).hexdigest()[:32] for row in flat],
            targets=targets,
            splits=splits if any(splits) else None,
        )

    @cached_property
    def division(self) -> Division:
        is_image = self.recipe.modality == "image"
        drop = is_image if self.recipe.duplicates == "auto" else self.recipe.duplicates == "leave-out"
        return divide(self.items, self.target, Rules(seed=self.recipe.seed, drop_copies=drop))

    def problems(self) -> tuple[str, ...]:
        """What stops a fit."""
        return tuple(f"{self.recipe.path}: {problem}" for problem in self.division.problems)

    def open(self) -> TaskData:
        """Raises UsageError for the first of the problems."""
        for problem in self.problems():
            raise UsageError(problem)
        save_split(self.division, self.items.ids)
        return split_data(self.items, self.target, self.division, self._store())

    def _store(self) -> Store:
        """The inputs in a file that is mapped into memory; rows of numbers scaled by what the training rows say."""
        x, _, ids, _ = self.arrays
        files = [hash_of(file.path).sha256 for file in self.recipe.files()]
        key = key_of("npz", 1, files, self.division.digest(ids), self.recipe.arrays())
        if x.ndim == 2:
            numbers = x.astype(np.float64)

            def columns() -> list[tuple[str, bool, list[Any]]]:
                cells = [[value if np.isfinite(value) else None for value in column] for column in numbers.T]
                return [(name, True, column) for name, column in zip(names, cells, strict=True)]

            names = [f"column_{place}" for place in range(1, x.shape[1] + 1)]
            file, encoding = stored(key, columns, self.division.splits["train"], names=names)
            return Store(form="row", file=file, rows=np.arange(len(ids)), encoding=encoding)
        path = cache_path("tables", f"{key}.npy")
        if not path.exists():
            put(path, lambda stream: np.save(stream, x))
        return Store(form="row", file=str(path), rows=np.arange(len(ids)))

    def survey(self, inferred: tuple[str, ...]) -> Survey:
        x = self.arrays[0]
        return surveyed(
            self.recipe,
            self.target,
            self.items,
            self.division,
            num_bytes=sum(file.path.stat().st_size for file in self.recipe.files()),
            sizes=f"{x.dtype} {list(x.shape[1:])} each",
            inferred=inferred,
            unreadable={},
            ignored=(),
            problems=self.problems(),
        )
