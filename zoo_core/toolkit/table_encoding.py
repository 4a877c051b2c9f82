"""Rows of a table as people have them -> the inputs that a model was fitted on: one way for training and for use.

A task that makes numbers of columns, or takes its texts from one, says how in an `Encoding`; it is stored with the run,
so that `zoo predict` takes files like those that the model was fitted on, wherever the run is moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from zoo_core.errors import UsageError, nearest

__all__ = ["Category", "Encoded", "Encoding", "Number", "encoding_from", "encoding_of", "is_missing", "number"]

_MISSING = frozenset({"", "na", "n/a", "nan", "none", "null"})
_LARGEST = 3.4e38  # of float32
_SHORT = 8  # characters, from which on a cell is no word for nothing


@dataclass(frozen=True, kw_only=True)
class Number:
    """A column of numbers: less the mean, over the deviation; a missing one is 0.

    scaled: whether that is an input; what never varies in training is none. missing: whether another input, 1 where the
    number is missing, follows it.
    """

    name: str
    mean: float
    deviation: float
    scaled: bool = True
    missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Category:
    """A column of categories: an input for each of `shown`, 1 where it is that one.

    usual: those that are not rare, shown or not. rare: whether another input, 1 for all the others, follows.
    """

    name: str
    shown: tuple[str, ...]
    usual: tuple[str, ...]
    rare: bool = False


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What makes an input of a row of cells: a row of numbers of several columns, or one cell as it is.

    names: of all columns of the files, in order. separator: between their cells. column: the one that is the input.
    """

    columns: tuple[Number | Category, ...] = ()
    names: tuple[str, ...]
    separator: str = ","
    column: str | None = None

    def is_header(self, cells: Sequence[str]) -> bool:
        """Whether a row names the columns. Raises UsageError where it names half of them and not all, or one twice."""
        wanted, found = [column.name for column in self.columns], [cell.strip() for cell in cells]
        lacking = [name for name in wanted if name not in found]
        if lacking and 2 * len(lacking) <= len(wanted):
            raise UsageError(
                f"no column {lacking[0]!r}, which the model was fitted on; there are {', '.join(sorted(found))}"
                f"{nearest(lacking[0], found)}"
            )
        twice = next((name for name in wanted if found.count(name) > 1), None)
        if twice is not None and not lacking:
            raise UsageError(f"column {twice!r} stands {found.count(twice)} times in the header; rename one")
        return not lacking

    def named(self, cells: Sequence[str], header: Sequence[str] | None) -> dict[str, str]:
        """The cells of a row by the names of their columns.

        header: the names; None for a row of all columns of the files that the model was fitted on, or of its inputs
        alone. Raises UsageError for another number of them.
        """
        inputs = tuple(column.name for column in self.columns)
        for names in (self.names, inputs) if header is None else (header,):
            if len(cells) == len(names):
                return dict(zip(names, cells, strict=True))
        wanted = self.names if header is None else header
        few = (
            f", or without those that are no inputs, {len(inputs)}"
            if header is None and len(inputs) < len(wanted)
            else ""
        )
        raise UsageError(f"{len(cells)} cells for {len(wanted)} columns ({', '.join(wanted)}{few})")

    def encode(self, cells: Mapping[str, Any]) -> list[float]:
        """The inputs of a row. Raises UsageError for a missing column, or a word where a number is."""
        found: list[float] = []
        for column in self.columns:
            if column.name not in cells:
                raise UsageError(f"no column {column.name!r}, which the model was fitted on")
            cell = cells[column.name]
            nothing = is_missing(cell)
            if isinstance(column, Number):
                value = None if nothing else number(cell)
                if value is None and not (nothing and not _is_infinite(cell)):
                    raise UsageError(f"{column.name} is {cell!r:.40}, not a number")
                scaled = 0.0 if value is None else (value - column.mean) / column.deviation
                if abs(scaled) > _LARGEST:
                    raise UsageError(f"{column.name} is {cell!r:.40}, too far from what the model was fitted on")
                found += [scaled] if column.scaled else []
                found += [float(nothing)] if column.missing else []
            else:
                text = "" if nothing else str(cell).strip()
                found += [float(text == each) for each in column.shown]
                found += [float(text not in column.usual)] if column.rare else []
        return found

    def as_json(self) -> dict[str, Any]:
        """As `encoding_from` reads it."""
        return asdict(self)


def encoding_from(table: Mapping[str, Any]) -> Encoding:
    """What `as_json` gave. Raises KeyError, TypeError and ValueError for what is none."""
    columns: list[Number | Category] = []
    for row in table["columns"]:
        if "shown" in row:
            shown, usual = (tuple(map(_string, row[key])) for key in ("shown", "usual"))
            columns.append(Category(name=_string(row["name"]), shown=shown, usual=usual, rare=bool(row["rare"])))
        else:
            mean, deviation = float(row["mean"]), float(row["deviation"])
            if not (math.isfinite(mean) and math.isfinite(deviation) and deviation):
                raise ValueError(f"a column of mean {mean} and deviation {deviation}")
            columns.append(
                Number(
                    name=_string(row["name"]),
                    mean=mean,
                    deviation=deviation,
                    scaled=bool(row["scaled"]),
                    missing=bool(row["missing"]),
                )
            )
    names = tuple(map(_string, table["names"]))
    column = None if table["column"] is None else _string(table["column"])
    return Encoding(columns=tuple(columns), names=names, separator=_string(table["separator"]), column=column)


@runtime_checkable
class Encoded(Protocol):
    """A split whose inputs were made of the cells of a table; None where they were not."""

    @property
    def encoding(self) -> Encoding | None: ...


def encoding_of(split: object) -> Encoding | None:
    """How the inputs of a split were made of cells, None where they were not."""
    return split.encoding if isinstance(split, Encoded) else None


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: empty, NA, NaN, none, null in any case, or a number that is not finite."""
    if isinstance(value, str):  # millions of cells pass here, and few are so short
        return (len(value) < _SHORT and value.strip().lower() in _MISSING) or value.isspace()
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def number(value: Any) -> float | None:
    """A cell as a finite number, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value
