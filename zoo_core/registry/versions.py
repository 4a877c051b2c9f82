"""Checks whether a version lies in a range, by release numbers only, which is enough for the ranges of plugins.

This does not use `packaging`, because importing that takes longer than all of `zoo list` may. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

__all__ = ["in_range"]


@cache
def in_range(version: str, wanted: str) -> bool | None:
    """Whether a version lies in a range such as `>=0.1,<0.2`. None if the version or the range cannot be read.

    Only release numbers are compared, so 0.2.0rc1 counts as 0.2.0.
    Operators: >= <= > < == != ~= ===, and == or != with `.*`.
    """
    found = _release(version)
    if found is None:
        return None
    fits = True
    for clause in filter(None, (clause.strip() for clause in wanted.split(","))):
        operator = next((known for known in _OPERATORS if clause.startswith(known)), "")
        text = clause.removeprefix(operator).strip()
        limit = _release(text.removesuffix(".*"))
        if not operator or limit is None or (text.endswith(".*") and operator not in ("==", "!=")):
            return None
        fits = fits and _OPERATORS[operator](found, limit, text.endswith(".*"))
    return fits


_Release: TypeAlias = tuple[int, ...]

# Longer operators come first, because `>=` starts with `>`. Third argument: whether the limit ends in `.*`.
_OPERATORS: dict[str, Callable[[_Release, _Release, bool], bool]] = {
    "===": lambda found, limit, star: _compare(found, limit) == 0,
    "~=": lambda found, limit, star: _compare(found, limit) >= 0 and found[: len(limit) - 1] == limit[:-1],
    "==": lambda found, limit, star: found[: len(limit)] == limit if star else _compare(found, limit) == 0,
    "!=": lambda found, limit, star: found[: len(limit)] != limit if star else _compare(found, limit) != 0,
    ">=": lambda found, limit, star: _compare(found, limit) >= 0,
    "<=": lambda found, limit, star: _compare(found, limit) <= 0,
    ">": lambda found, limit, star: _compare(found, limit) > 0,
    "<": lambda found, limit, star: _compare(found, limit) < 0,
}


def _compare(one: _Release, other: _Release) -> int:
    """-1, 0 or 1 if the first is lower, equal or higher. 1.2 equals 1.2.0."""
    length = max(len(one), len(other))
    left, right = one + (0,) * (length - len(one)), other + (0,) * (length - len(other))
    return (left > right) - (left < right)


def _release(version: str) -> _Release | None:
    """The release numbers of a version, such as (1, 2, 0) for v1.2.0rc1+local. None if it cannot be read."""
    if "!" in version:
        return None
    numbers: list[int] = []
    for piece in version.strip().removeprefix("v").partition("+")[0].partition("-")[0].split("."):
        digits = len(piece) - len(piece.lstrip("0123456789"))
        if digits > 9:
            return None
        if digits:
            numbers.append(int(piece[:digits]))
        if digits < len(piece):
            break
    return tuple(numbers) or None
