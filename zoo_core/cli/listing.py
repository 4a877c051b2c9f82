"""What `zoo list` prints. Click is not imported, because that takes longer than all the rest of a listing."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zoo_core.errors import NotFoundError, UsageError, nearest
from zoo_core.registry.index import PART_KINDS, Index, list_names, load_index
from zoo_core.results.columns import aligned

if TYPE_CHECKING:
    from zoo_core.contracts import PartKind

__all__ = ["Wanted", "plain_arguments", "run"]

COLUMNS = ("name", "kind", "distribution", "version", "state", "summary")
MANY = 30  # names of a namespace; if it has more, a list without a pattern shows one line for all of them


class Wanted(NamedTuple):
    """The words after `zoo list` without --json, and whether JSON was asked for."""

    words: tuple[str, ...]
    as_json: bool


def plain_arguments(words: Sequence[str]) -> Wanted | None:
    """What is wanted if the words are `list [KIND] [PATTERN] [--json]`, or None if click has to read them."""
    if not words or words[0] != "list":
        return None
    rest = [word for word in words[1:] if word != "--json"]
    if len(rest) > 2 or any(word.startswith("-") for word in rest):
        return None
    return Wanted(tuple(rest), "--json" in words)


def run(words: Sequence[str], *, as_json: bool, index: Index | None = None) -> None:
    """Prints what can be named.

    words: nothing, a kind, a pattern, or a kind and a pattern. index: None means that of this process.
    Without a pattern, the table has one line for a namespace with more than MANY names; JSON has every name.
    If nothing fits, JSON is an empty array, and the table raises NotFoundError. Raises UsageError for an unknown kind.
    """
    kind, pattern = _kind_and_pattern(words)
    collects = gc.isenabled()
    gc.disable()  # nothing becomes garbage here, and collecting would take a fifth of the time
    try:
        index = index or load_index()
        rows = list_names(kind, pattern, index=index)
    finally:
        if collects:
            if "torch" not in sys.modules:  # frozen objects of triton's bindings would be reported as leaked
                gc.freeze()  # otherwise the interpreter would collect once more at its exit
            gc.enable()
    if as_json:
        # The separators make the line ends: indent=2 would not use the C encoder, and take as long as all the rest.
        sys.stdout.write(json.dumps(rows, separators=(",\n", ": ")) + "\n")
    elif rows:
        sys.stdout.write(_table(rows if pattern else _folded(rows)))
    else:
        raise NotFoundError(_nothing(index, kind, pattern))


def _kind_and_pattern(words: Sequence[str]) -> tuple[PartKind | None, str | None]:
    """The kind and the pattern that the words after `zoo list` ask for.

    A single word is a kind if it names one, in singular or plural, and a pattern otherwise.
    Raises UsageError if the first of two words is not a kind.
    """
    named = {name: kind for kind in PART_KINDS for name in (kind, f"{kind}s")}
    if not words:
        return None, None
    if len(words) == 1:
        kind = named.get(words[0])
        return kind, None if kind else words[0]
    if words[0] not in named:
        raise UsageError(f"unknown kind {words[0]!r}; allowed are {', '.join(PART_KINDS)}{nearest(words[0], named)}")
    return named[words[0]], words[1]


def _nothing(index: Index, kind: str | None, pattern: str | None) -> str:
    if not index.providers:
        return "no plugin is installed that provides a name; `pip install zoo-starter zoo-adapters` is a beginning"
    if pattern is None:
        return f"no plugin provides a {kind}; `zoo list` shows what there is"
    known = {provider.name for provider in index.providers if kind in (None, provider.kind)} | set(PART_KINDS)
    return f"no {kind or 'name'} fits {pattern!r}{nearest(pattern, known)}; `zoo list` shows what there is"


def _folded(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The rows, with one row in place of each namespace that has more than MANY names; it says how to list them."""
    spaces = [(row["kind"], row["name"].partition("/")[0]) if "/" in row["name"] else None for row in rows]
    counts = Counter(spaces)
    many = {space for space, count in counts.items() if space is not None and count > MANY}
    folded: list[Mapping[str, str]] = []
    shown: set[tuple[str, str]] = set()
    for row, space in zip(rows, spaces, strict=True):
        if space is None and (row["kind"], row["name"]) in many:
            continue  # a name equal to the namespace; the row of the namespace stands for it
        if space is None or space not in many:
            folded.append(row)
        elif space not in shown:
            shown.add(space)
            told = {"name": f"{space[1]}/...", "summary": f"{counts[space]:,} names: zoo list '{space[1]}/*'"}
            folded.append({**row, **told})
    return folded


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as aligned columns, cut to the width of the terminal if standard output is one."""
    lines = aligned([COLUMNS, *([row[column] for column in COLUMNS] for row in rows)])
    if sys.stdout.isatty():
        width = os.get_terminal_size().columns
        lines = [line if len(line) <= width else f"{line[: width - 3]}..." for line in lines]
    return "\n".join(lines) + "\n"
