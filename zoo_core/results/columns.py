"""Rows of text as a table for people: columns under each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["aligned"]


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A line for each row, two blanks between its cells and none at its end.

    right: the places of the columns, counted from 0, whose cells end below each other; those of the others begin so.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, right)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], right: Collection[int]) -> list[str]:
    places = enumerate(zip(row, widths, strict=True))
    return [cell.rjust(width) if place in right else cell.ljust(width) for place, (cell, width) in places]
