"""The data sets of scikit-learn as splits of arrays held in memory, each checked against the bytes it had here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes, load_digits

from zoo_core.contracts import Split, Target
from zoo_core.errors import IntegrityError
from zoo_starter.digits_split import split_digits

__all__ = ["ArrayData", "ArraySplit", "diabetes", "digits"]

DIGITS_SHA256 = "f19a7d92591ca0a1ffc65ec172e8149afdff995e0d2c4cb0afd151f38471ff90"
DIABETES_SHA256 = "e9c1f7559552854a24dc45b41c446ce5f79f96e5da081bcce24b57492720b3f7"
DIABETES_SEED = 20261121


@dataclass(frozen=True)
class ArraySplit:
    """Rows of arrays. x: [num, ...]; targets: int64 [num] or float32 [num, C]."""

    x: np.ndarray
    targets: np.ndarray
    ids: Sequence[str]
    groups: None = None

    @property
    def num(self) -> int:
        return len(self.x)

    def raw(self, index: int) -> Any:
        return self.x[index]


@dataclass(frozen=True)
class ArrayData:
    """A task whose splits are arrays."""

    target: Target
    splits: Mapping[str, Split] = field(default_factory=dict)


def digits(target: Target, of_labels: Callable[[np.ndarray], np.ndarray]) -> ArrayData:
    """The digits: uint8 [N, 8, 8], the 17 grey levels spread over 0 to 255; targets made from the labels."""
    bunch = load_digits()
    _check("digits", DIGITS_SHA256, bunch.images, bunch.target)
    x = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    names = {"train": "train", "val": "validation", "test": "test"}
    parts = split_digits(labels)
    return _data(target, x, of_labels(labels), {name: parts[there] for name, there in names.items()})


def diabetes(target: Target) -> ArrayData:
    """The patients: float32 [N, 10], in each column mean 0 and deviation 1 over train; targets float32 [N, 1]."""
    bunch = load_diabetes(scaled=False)  # as measured: what is checked does not hang on how numpy sums
    _check("diabetes", DIABETES_SHA256, bunch.data, bunch.target)
    order = np.random.RandomState(DIABETES_SEED).permutation(len(bunch.data))
    parts = {"train": np.sort(order[176:]), "val": np.sort(order[88:176]), "test": np.sort(order[:88])}
    seen = bunch.data[parts["train"]]
    x = ((bunch.data - seen.mean(axis=0)) / seen.std(axis=0)).astype(np.float32)
    return _data(target, x, bunch.target.astype(np.float32)[:, None], parts)


def _data(target: Target, x: np.ndarray, targets: np.ndarray, parts: Mapping[str, np.ndarray]) -> ArrayData:
    splits = {name: ArraySplit(x[rows], targets[rows], [str(row) for row in rows]) for name, rows in parts.items()}
    return ArrayData(target, splits)


def _check(name: str, expected: str, *arrays: np.ndarray) -> None:
    """Raises IntegrityError unless the arrays hold the numbers that every published result was made with."""
    found = hashlib.sha256(b"".join(np.ascontiguousarray(array, dtype="<f8").tobytes() for array in arrays)).hexdigest()
    if found != expected:
        raise IntegrityError(
            f"scikit-learn's {name} is not the data set this version knows (sha256 {found[:12]}..., "
            f"expected {expected[:12]}...); install the scikit-learn of constraints.txt"
        )
