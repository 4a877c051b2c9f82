"""Columns of numbers and categories -> rows of numbers, with what the training rows say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["RARE", "encode"]

RARE = 0.01  # of the training rows; rarer categories are one together, so that a country with two people is no input


def encode(columns: Sequence[tuple[str, bool, Sequence[Any]]], train: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The matrix float32 [N, K] of some columns, and what each of its columns is.

    columns: (name, whether it holds numbers, values). train: the rows that scale and count.
    Numbers get mean 0 and deviation 1 over the training rows that have one; a missing one is 0, and where more than one
    in a hundred are missing, a column says so. Of categories each has a column of 0 and 1, but the commonest, which is
    where all the others are 0; rare ones share one. What never varies in training is left out.
    """
    made: list[np.ndarray] = []
    names: list[str] = []

    def add(name: str, column: np.ndarray) -> None:
        numbers = column.astype(np.float32)
        if np.ptp(numbers[train]) > 0:
            made.append(numbers)
            names.append(name)

    for name, is_numeric, values in columns:
        if is_numeric:
            numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            missing = np.isnan(numbers)
            seen = numbers[train][~missing[train]]
            if not len(seen):
                continue
            deviation = seen.std()
            add(name, np.where(missing, 0, (numbers - seen.mean()) / (deviation or 1)))
            if missing[train].mean() > RARE:
                add(f"{name} is missing", missing)
            continue
        array = np.array(values, dtype=object)
        counts = Counter(array[train].tolist())
        usual = sorted(category for category, num in counts.items() if num >= RARE * len(train))
        is_rare = ~np.isin(array.astype(str), np.array(usual, dtype=str)) if usual else np.ones(len(array), dtype=bool)
        for category in usual:
            if category == counts.most_common(1)[0][0]:
                continue
            add(f"{name}={category}", array == category)
        add(f"{name} is rare", is_rare)
    if not made:
        return np.zeros((len(columns[0][2]) if columns else 0, 0), dtype=np.float32), ()
    return np.stack(made, axis=1), tuple(names)
