"""Every error a user can meet, and the exit code of each.

    ZooError                    1  anything else
      DivergedError             1  a training whose loss is no longer finite
      UsageError                2  an argument, a file or a folder that cannot be used as asked
        SpecError               2  text that is not a spec; carries the column
        SuiteError              2  a suite file with a wrong key, type or an empty grid
        AmbiguousError          2  one name, several owners or kinds
      NotFoundError             3  no plugin provides the name, no such run, no such file
      AccessError               4  not allowed: gated, private, read-only
      IntegrityError            5  bytes that are not what they should be: hash, size, coverage, torn results
      IncompatibleError         6  parts that do not go together
        RefusedError            6  a trial that makes no sense, with its reason
        PluginError             6  a plugin that is broken, or made for another zoo-core
        LawError                6  an adapter, head or backbone that broke a law of model/

A message says what was found, what is allowed and what to type next, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "AccessError",
    "AmbiguousError",
    "DivergedError",
    "IncompatibleError",
    "IntegrityError",
    "LawError",
    "NotFoundError",
    "PluginError",
    "RefusedError",
    "SpecError",
    "SuiteError",
    "UsageError",
    "ZooError",
    "nearest",
]


class ZooError(Exception):
    """A mistake that a user can correct, explained in one line. `exit_code` is that of the command line."""

    exit_code = 1


class DivergedError(ZooError):
    """The loss of a training is no longer finite. Another learning rate may work.

    rungs: of halving, as `Result.rungs` has them, which its trial had reached by then.
    """

    def __init__(self, reason: str, rungs: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(reason)
        self.rungs = tuple(rungs)


class UsageError(ZooError):
    """An argument, file or folder cannot be used as requested."""

    exit_code = 2


class SpecError(UsageError):
    """A text is not a spec. `column` counts from 0, and str() shows the text with a caret below that column."""

    def __init__(self, reason: str, text: str, column: int) -> None:
        self.reason = reason
        self.text = text
        self.column = column
        shown = "".join(letter if letter.isprintable() else " " for letter in text)
        start = max(0, column - 60)
        excerpt = shown[start : column + 60]
        super().__init__(f"{reason} at column {column + 1}\n  {excerpt}\n  {' ' * (column - start)}^")


class SuiteError(UsageError):
    """A suite file, or the same grid given by flags, does not describe a grid that can run."""


class AmbiguousError(UsageError):
    """Several distributions or kinds claim one name. zoo never guesses which one is meant."""


class NotFoundError(ZooError):
    """A name, run or file does not exist."""

    exit_code = 3


class AccessError(ZooError):
    """Something exists and may not be read or written."""

    exit_code = 4


class IntegrityError(ZooError):
    """Bytes are not what they should be. None of them were used."""

    exit_code = 5


class IncompatibleError(ZooError):
    """Parts do not fit together."""

    exit_code = 6


class RefusedError(IncompatibleError):
    """A trial makes no sense. It is refused with the reason, before anything is built."""


class PluginError(IncompatibleError):
    """A plugin cannot be used: its import fails, a name is missing, or it needs another version of zoo-core."""


class LawError(IncompatibleError):
    """A part broke a law: it froze something trainable, moved something frozen, or hid state from the delta."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean a, b or c?` for the nearest three known names, or nothing."""
    from difflib import get_close_matches  # 2 ms, which only an error need cost

    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not close:
        return ""
    shown = close[0] if len(close) == 1 else f"{', '.join(close[:-1])} or {close[-1]}"
    return f"; did you mean {shown}?"
