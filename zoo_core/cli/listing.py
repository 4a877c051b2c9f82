"""What `zoo list` prints. Without click, which costs more than everything else that a listing does."""

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

if TYPE_CHECKING:
    from zoo_core.contracts import PartKind

__all__ = ["Wanted", "plain_arguments", "run"]

COLUMNS = ("name", "kind", "distribution", "version", "state", "summary")
MANY = 30  # names of one namespace; beyond, a list of everything shows the namespace alone


class Wanted(NamedTuple):
    """The words after `list`, and whether they ask for JSON."""

    words: tuple[str, ...]
    as_json: bool


def plain_arguments(words: Sequence[str]) -> Wanted | None:
    """What is wanted if the words are `list [KIND] [PATTERN] [--json]`; None for anything that click must see."""
    if not words or words[0] != "list":
        return None
    rest = [word for word in words[1:] if word != "--json"]
    if len(rest) > 2 or any(word.startswith("-") for word in rest):
        return None
    return Wanted(tuple(rest), "--json" in words)


def run(words: Sequence[str], *, as_json: bool, index: Index | None = None) -> None:
    """Prints what can be named. words: a kind, a pattern, or a kind and a pattern. index: None: that of this process.

    Without a pattern, people are shown one line for a namespace with many names; JSON has them all.
    JSON is an array, empty if nothing fits; otherwise a pattern that fits nothing raises NotFoundError.
    """
    kind, pattern = _kind_and_pattern(words)
    collects = gc.isenabled()
    gc.disable()  # nothing here is garbage before the end, and looking for it takes a fifth of the time
    try:
        index = index or load_index()
        rows = list_names(kind, pattern, index=index)
    finally:
        if collects:
            if "torch" not in sys.modules:  # what triton's bindings hold would be reported as leaked
                gc.freeze()  # or the interpreter looks for garbage once more on its way out
            gc.enable()
    if as_json:
        # Line ends by separators: indent=2 leaves the C encoder and would take as long as all the rest.
        sys.stdout.write(json.dumps(rows, separators=(",\n", ": ")) + "\n")
    elif rows:
        sys.stdout.write(_aligned(rows if pattern else _folded(rows)))
    else:
        raise NotFoundError(_nothing(index, kind, pattern))


def _kind_and_pattern(words: Sequence[str]) -> tuple[PartKind | None, str | None]:
    """One word is a kind if it is the name of one, in singular or plural, else a pattern."""
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
    """The rows, those of a namespace with many names as one that says how to see them."""
    spaces = [(row["kind"], row["name"].partition("/")[0]) if "/" in row["name"] else None for row in rows]
    counts = Counter(spaces)
    many = {space for space, count in counts.items() if space is not None and count > MANY}
    folded: list[Mapping[str, str]] = []
    shown: set[tuple[str, str]] = set()
    for row, space in zip(rows, spaces, strict=True):
        if space is None and (row["kind"], row["name"]) in many:
            continue  # the line of its names tells of it
        if space is None or space not in many:
            folded.append(row)
        elif space not in shown:
            shown.add(space)
            told = {"name": f"{space[1]}/...", "summary": f"{counts[space]:,} names: zoo list '{space[1]}/*'"}
            folded.append({**row, **told})
    return folded


def _aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """Columns under each other, clipped to the terminal's width if there is one."""
    columns = [[column, *(row[column] for row in rows)] for column in COLUMNS]
    padded = [[cell.ljust(width) for cell in cells] for cells in columns for width in [max(map(len, cells))]]
    lines = [line.rstrip() for line in map("  ".join, zip(*padded, strict=True))]
    if sys.stdout.isatty():
        width = os.get_terminal_size().columns
        lines = [line if len(line) <= width else f"{line[: width - 3]}..." for line in lines]
    return "\n".join(lines) + "\n"
