"""Columns of numbers and categories -> rows of numbers, with what the training rows say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zoo_core.toolkit.files import cache_path
from zoo_core.toolkit.table_encoding import Category, Encoding, Number, encoding_from
from zoo_tasks.store import key_of, put

__all__ = ["RARE", "encode", "stored"]

FORMAT = 2  # raised when the same columns give other numbers

RARE = 0.01  # of the training rows; rarer categories are one together, so that a country with two people is no input


def encode(
    columns: Sequence[tuple[str, bool, Sequence[Any]]], train: np.ndarray
) -> tuple[np.ndarray, tuple[Number | Category, ...]]:
    """The matrix float32 [N, K] of some columns, and how a row of it is made.

    columns: (name, whether it holds numbers, values). train: the rows that scale and count.
    Numbers get mean 0 and deviation 1 over the training rows that have one; a missing one is 0, and where more than one
    in a hundred are missing, a column says so. Of categories each has a column of 0 and 1, but the commonest, which is
    where all the others are 0; rare ones share one. What never varies in training is left out.
    """
    made: list[np.ndarray] = []
    fitted: list[Number | Category] = []

    def add(column: np.ndarray) -> bool:
        numbers = column.astype(np.float32)
        varies = bool(np.ptp(numbers[train]) > 0)
        if varies:
            made.append(numbers)
        return varies

    for name, is_numeric, values in columns:
        if is_numeric:
            numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            missing = np.isnan(numbers)
            seen = numbers[train][~missing[train]]
            if not len(seen):
                continue
            mean, deviation = float(seen.mean()), float(seen.std()) or 1.0
            scaled = add(np.where(missing, 0, (numbers - mean) / deviation))
            told = bool(missing[train].mean() > RARE) and add(missing)
            fitted.append(Number(name=name, mean=mean, deviation=deviation, scaled=scaled, missing=told))
            continue
        array = np.array(values, dtype=object)
        counts = Counter(array[train].tolist())
        usual = tuple(sorted(category for category, num in counts.items() if num >= RARE * len(train)))
        is_rare = ~np.isin(array.astype(str), np.array(usual, dtype=str)) if usual else np.ones(len(array), dtype=bool)
        commonest = counts.most_common(1)[0][0]
        shown = tuple(category for category in usual if category != commonest and add(array == category))
        fitted.append(Category(name=name, shown=shown, usual=usual, rare=add(is_rare)))
    if not made:
        return np.zeros((len(columns[0][2]) if columns else 0, 0), dtype=np.float32), ()
    return np.stack(made, axis=1), tuple(fitted)


def stored(
    key: str,
    columns: Callable[[], Sequence[tuple[str, bool, Sequence[Any]]]],
    train: np.ndarray,
    *,
    names: Sequence[str],
    separator: str = ",",
) -> tuple[str, Encoding]:
    """The file of the matrix of some columns, in numpy's format below the cache folder, and how its rows were made.

    key: depends on all that decides the matrix. columns: asked for what `encode` takes where there is no such file.
    names: of all columns of the rows that were read.
    """
    path = cache_path("tables", f"{key_of(key, FORMAT)}.npy")
    told = path.with_suffix(".json")
    if not path.exists() or not told.exists():
        x, fitted = encode(columns(), train)
        encoding = Encoding(columns=fitted, names=tuple(names), separator=separator)
        put(told, lambda stream: stream.write(json.dumps(encoding.as_json()).encode()))
        put(path, lambda stream: np.save(stream, x))
    return str(path), encoding_from(json.loads(told.read_text(encoding="utf-8")))
