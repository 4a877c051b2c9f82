"""The splits of a trial: validation is carved from train, then shots or a limit are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from zoo_core.contracts import Raw, Split, Target, TaskData
from zoo_core.data.randomness import derive_seed
from zoo_core.errors import RefusedError, UsageError

__all__ = [
    "Splits",
    "Subset",
    "Unlabelled",
    "carve",
    "num_unknown",
    "rows_of",
]
UNKNOWN = -100  # in place of a class that is not known; a value that is not known is NaN
VALIDATION_SHARE = 0.2  # of the training split, where a task brings no validation split of its own


@dataclass(frozen=True)
class Subset:
    """Some examples of a split, in a given order. index: int64 [num] into the split."""

    split: Split
    index: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def num(self) -> int:
        return len(self.index)

    @property
    def targets(self) -> Any:
        found = self.split.targets
        if isinstance(found, list | tuple):  # of token classes one list for each example, of any length
            return [found[int(i)] for i in self.index]
        return np.asarray(found)[self.index]

    @property
    def groups(self) -> Any | None:
        return None if self.split.groups is None else np.asarray(self.split.groups)[self.index]

    @property
    def ids(self) -> Sequence[str]:
        ids = self.split.ids
        return [ids[int(i)] for i in self.index]

    def raw(self, index: int) -> Raw:
        return self.split.raw(int(self.index[index]))


@dataclass(frozen=True)
class Unlabelled:
    """A split whose labels are known of some examples only. known: bool [num]; target: what the labels are of."""

    split: Split
    known: np.ndarray[Any, np.dtype[np.bool_]]
    target: Target

    @property
    def num(self) -> int:
        return self.split.num

    @property
    def targets(self) -> Any:
        if self.target.kind == "token_classes":
            told = self.split.targets if self.known.any() else [()] * self.num
            return [
                tags if known else [UNKNOWN] * len(self.split.raw(i))
                for i, (tags, known) in enumerate(zip(told, self.known, strict=True))
            ]
        if self.target.kind in ("classes", "unlabelled"):
            found = np.full(self.num, UNKNOWN, dtype=np.int64)
        else:
            found = np.full((self.num, self.target.size or 0), np.nan, dtype=np.float32)
        if self.known.any():
            found[self.known] = np.asarray(self.split.targets)[self.known]
        return found

    @property
    def groups(self) -> Any | None:
        return self.split.groups

    @property
    def ids(self) -> Sequence[str]:
        return self.split.ids

    def raw(self, index: int) -> Raw:
        return self.split.raw(index)


def num_unknown(targets: Any, target: Target) -> int:
    """The number of examples whose label, or one of whose labels, is not known."""
    if target.kind == "unlabelled":
        return len(targets)
    if target.kind == "token_classes":
        return sum(UNKNOWN in list(tags) for tags in targets)
    found = np.asarray(targets)
    unknown = found == UNKNOWN if target.kind == "classes" else np.isnan(found.astype(np.float64))
    return int(unknown.reshape(len(found), -1).any(axis=1).sum())


@dataclass(frozen=True)
class Splits:
    """What a trial may see: train to fit, val to choose, and test, which is used once, after the choice."""

    target: Target
    train: Split
    val: Split
    test: Split


def carve(
    data: TaskData,
    *,
    seed: int,
    shots: int | None = None,
    limit: int | None = None,
    rest: Literal["drop", "unlabelled"] = "drop",
    labels: Literal["keep", "drop"] = "keep",
    target: Target | None = None,
) -> Splits:
    """The splits of a trial. Validation is carved from train if the task has none, then shots or a limit are drawn.

    shots: the number of examples of each class that stay in train (classes only). limit: the number of examples that
    stay in train. rest: whether the others are dropped, or stay in train without their labels.
    labels: whether those of the task are kept, or nothing is seen of them. target: what is predicted of a task
    without labels; None: nothing.
    Both are drawn anew for each seed. The validation split depends on the task alone. Groups are never divided.
    """
    for name in ("train", "test"):
        if name not in data.splits:
            raise UsageError(f"the task has no {name} split; it has {', '.join(data.splits)}")
    train: Split = data.splits["train"]
    told = Target(kind="unlabelled") if labels == "drop" else data.target
    if "val" in data.splits:
        val: Split = data.splits["val"]
    else:
        kept, held = _held_out(train, told)
        train, val = Subset(train, kept), Subset(train, held)
    rng = np.random.default_rng(derive_seed("draw", seed))
    drawn = train
    if shots is not None:
        drawn = Subset(drawn, _shots(drawn, told, shots, rng))
    if limit is not None and limit < drawn.num:
        drawn = Subset(drawn, np.sort(rng.permutation(drawn.num)[:limit]))
    if rest == "unlabelled":
        known = np.zeros(train.num, dtype=bool)
        known[_places(drawn, train)] = True
        drawn = Unlabelled(train, known, told)
    splits = Splits(told, drawn, val, data.splits["test"])
    return _unlabelled(splits, target) if told.kind == "unlabelled" else splits


def _places(drawn: Split, train: Split) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows of train that were drawn from it."""
    rows = np.arange(drawn.num)
    while drawn is not train:
        assert isinstance(drawn, Subset), "it was drawn from train"
        rows, drawn = drawn.index[rows], drawn.split
    return rows


def _unlabelled(splits: Splits, target: Target | None) -> Splits:
    """The splits of a task without labels, all of them unknown, in the form that a target has."""
    wanted = target or splits.target
    parts = (splits.train, splits.val, splits.test)
    return Splits(wanted, *(Unlabelled(part, np.zeros(part.num, dtype=bool), wanted) for part in parts))


def rows_of(split: Split) -> tuple[Split, np.ndarray[Any, np.dtype[np.int64]]]:
    """The split of the task itself that a split was drawn from, and the row there of each example, int64 [num].

    Splits of different seeds, shots and limits share those rows, and so whatever is stored by row.
    """
    rows = np.arange(split.num, dtype=np.int64)
    while isinstance(split, Subset | Unlabelled):
        if isinstance(split, Subset):
            rows = np.asarray(split.index, dtype=np.int64)[rows]
        split = split.split
    return split, rows


def _held_out(train: Split, target: Target) -> tuple[Any, Any]:
    """The indices to keep and to hold out: whole groups, with each class as close to its share as groups allow.

    A group that holds the last examples of a class stays in train.
    """
    rng = np.random.default_rng(derive_seed("validation", train.num))
    groups = np.arange(train.num) if train.groups is None else np.unique(train.groups, return_inverse=True)[1]
    labels = np.zeros(train.num, dtype=np.int64)
    if target.kind == "classes":
        labels = np.unique(train.targets, return_inverse=True)[1]
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])  # rows of each group
    left = np.bincount(labels)  # examples of each class that are still in train
    wanted = left - np.round(VALIDATION_SHARE * left).astype(np.int64)
    held = np.zeros(train.num, dtype=bool)
    for label in range(len(left)):
        for group in rng.permutation(np.unique(groups[labels == label])):
            if left[label] <= wanted[label]:
                break
            rows = members[group]
            classes, counts = np.unique(labels[rows], return_counts=True)
            if not held[rows[0]] and (left[classes] > counts).all():
                held[rows] = True
                left[classes] -= counts
    if held.all() or not held.any():
        raise RefusedError(f"{train.num} training examples are too few to carve a validation split from")
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shots(train: Split, target: Target, shots: int, rng: np.random.Generator) -> Any:
    if target.kind != "classes":
        raise RefusedError(f"shots={shots} needs classes and the target is {target.kind}; use limit=N")
    labels = np.asarray(train.targets)
    drawn = []
    for label in np.unique(labels):
        index = np.flatnonzero(labels == label)
        if len(index) < shots:
            name = target.names[label] if target.names else label
            raise RefusedError(f"shots={shots}, and class {name} has {len(index)} training examples")
        drawn.append(rng.permutation(index)[:shots])
    return np.sort(np.concatenate(drawn))
