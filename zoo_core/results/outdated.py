"""Compares each stored row with the local files that it was made from, to find rows that are out of date. No torch.

A row stores a digest of that content for each part, in `sources`. A bench checks the files again: rows made from other
content stay in their file, marked as superseded, and their trials run again. A report only tells what the check finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from zoo_core.contracts import PART_KINDS, Located, Source, Weights
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, SpecError, UsageError, ZooError
from zoo_core.files.folders import look
from zoo_core.lock import pins_of, read_lock, told_apart, unpublished_in
from zoo_core.plan.plan import Plan, needed
from zoo_core.registry.bind import COMMON
from zoo_core.registry.registry import registry
from zoo_core.registry.trust import speaking_for
from zoo_core.results.store import Result, read
from zoo_core.results.waiting import undecided_in, waiting_text
from zoo_core.run_layout import LOCK, RESULTS
from zoo_core.spec.parser import parse_part, parse_specs

__all__ = ["Standing", "marks", "standing_of"]

OTHER = "the same trial is made from other parts now"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The rows of a folder that are not superseded, and the digests of those whose files have changed since.

    remarks: one line for each finding, and what waits until halving decides.
    """

    rows: tuple[Result, ...]
    outdated: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()


def marks(
    rows: Sequence[Result],
    plans: Iterable[Plan],
    refused: Iterable[str],
    *,
    held: Mapping[str, Any] | None,
    lock: Mapping[str, Any],
) -> dict[int, dict[str, Any]]:
    """The changes to stored rows, by their position, before a grid runs: new values of `sources` and `superseded`.

    plans: the plans of the grid, which are current. refused: the texts of its trials that are refused now. held, lock:
    the lock of the run as it was, and as it is now.
    """
    current = {plan.digest: plan for plan in plans}
    trials = {str(plan.trial): plan.digest for plan in current.values()} | dict.fromkeys(refused)
    contents = {key: content for plan in current.values() for key, content in plan.contents.items()}
    files = {row["distribution"]: row["sha256"] for row in unpublished_in(lock).values()}
    found: dict[int, dict[str, Any]] = {}
    for position, row in enumerate(rows):
        if row.digest in current:
            fresh: dict[str, Any] = {"sources": current[row.digest].contents, "superseded": None}
        else:
            sources = _sources(row, held)
            changed = [key for key, content in (sources or {}).items() if contents.get(key, content) != content]
            changed += [name for name, sha256 in row.unpublished.items() if files.get(name, sha256) != sha256]
            reason = f"{changed[0]} holds something else now" if changed else None
            if row.trial not in trials:  # nothing is known of it but its files
                reason = reason or (OTHER if row.superseded == OTHER else None)
            elif row.status != "refused" or trials[row.trial] is not None:
                reason = reason or OTHER
            fresh = {"sources": sources, "superseded": reason}
        before = {"sources": row.sources, "superseded": row.superseded}
        if fresh != before:
            found[position] = fresh
    return found


def standing_of(folder: Path) -> Standing:
    """The results of a folder, and what a check of the files that they were made from finds now.

    Raises what `zoo_core.results.store.read` raises.
    """
    rows, lock = read(folder / RESULTS), _lock_of(folder)
    looked: dict[str, str | ZooError] = {}
    given = {provider.distribution: provider.sha256 for provider in registry().providers() if provider.sha256}
    superseded, outdated, unchecked = Counter[str](), Counter[str](), Counter[str]()
    old: set[str] = set()

    def content_now(key: str) -> str | ZooError:
        if key not in looked:
            looked[key] = _content_now(key, lock)
        return looked[key]

    for row in rows:
        if row.superseded is not None:
            superseded[row.superseded] += 1
            continue
        sources = _sources(row, lock)
        if sources is None:
            unchecked["it was stored by an earlier version, which noted no files"] += 1
        for key, content in (sources or {}).items():
            now = content_now(key)
            if isinstance(now, ZooError) and type(now) is not IncompatibleError:  # which tells of another base
                unchecked[str(now)] += 1
            elif now != content:
                outdated[f"{key} holds something else now" if isinstance(now, str) else str(now)] += 1
                old.add(row.digest)
        for name, sha256 in row.unpublished.items():
            if name not in given:
                unchecked[f"the plugin file {name} was not given: --plugin {name}"] += 1
            elif given[name] != sha256:
                outdated[f"the plugin file {name} holds something else now"] += 1
                old.add(row.digest)
    return Standing(
        rows=tuple(row for row in rows if row.superseded is None),
        outdated=frozenset(old),
        remarks=(
            *(f"{_results(num)} superseded and left out: {reason}" for reason, num in sorted(superseded.items())),
            *(
                f"{_results(num)} out of date, as seen from this folder: {reason}; the same bench runs them again"
                for reason, num in sorted(outdated.items())
            ),
            *(f"{_results(num)} no longer checkable: {reason}" for reason, num in sorted(unchecked.items())),
            *_waiting(folder, rows, content_now),
        ),
    )


def _waiting(folder: Path, rows: Iterable[Result], content_now: Callable[[str], str | ZooError]) -> Iterator[str]:
    """What waits until halving decides, and what had waited and is made from other files now."""
    known = {row.digest for row in rows}
    try:
        held = [row for digest, row in undecided_in(folder).items() if digest not in known]
    except IntegrityError as error:
        yield f"{error}; the same bench begins anew with what had waited there"
        return
    changed: Counter[str] = Counter()
    waiting: list[Result] = []
    for row in held:
        keys = [key for key, content in (row.sources or {}).items() if content_now(key) != content]
        changed.update(keys[:1])
        waiting += [] if keys else [row]
    if waiting:
        yield f"{waiting_text(waiting)}; the same `zoo bench`, with --out {folder}, goes on with them"
    for key, num in sorted(changed.items()):
        told = "1 trial that waited at a rung begins" if num == 1 else f"{num} trials that waited at a rung begin"
        yield f"{told} anew with the same bench: {key} holds something else now, as seen from this folder"


def _results(num: int) -> str:
    return f"{num} result is" if num == 1 else f"{num} results are"


def _lock_of(folder: Path) -> Mapping[str, Any] | None:
    try:
        return read_lock(folder / LOCK)
    except IntegrityError:
        return None


def _content_now(key: str, lock: Mapping[str, Any] | None) -> str | ZooError:
    """A digest of the present content of the files behind a key, or the reason why it cannot be computed."""
    kind, _, text = key.partition(":")
    random: Weights = "random" if text.endswith("weights=random)") else "pretrained"
    held = pins_of(lock).get(key)
    try:
        try:
            (wanted,) = (each for each in PART_KINDS if each == kind)
            with speaking_for("a stored result"):
                part = registry().bind(parse_part(text), wanted)
            source = None if isinstance(part.recipe, Located) else part.source
        except (NotFoundError, SpecError, UsageError, ValueError) as error:
            if held is None:  # no key of an earlier version either, nor of a plugin that is not here
                return error if isinstance(error, ZooError) else NotFoundError(f"nothing is called {key}")
            source = Source(folder=held.folder, patterns=tuple(map(escape, held.files)))
        if source is None or source.folder is None:
            return NotFoundError(f"nothing tells which files {key} was made from")
        found = look(source, random)
        return found.content_of(needed(source, random, found.files))
    except ZooError as error:
        return error


def _sources(row: Result, lock: Mapping[str, Any] | None) -> Mapping[str, str] | None:
    """The content that a row was made from. For a row older than `sources` it comes from the lock, which held then.

    None if nothing tells it.
    """
    if row.sources is not None:
        return row.sources
    if lock is None:
        return None
    names = set(_keys(row))
    return {key: pin.content_of(pin.files) for key, pin in told_apart(pins_of(lock))[1].items() if key in names}


def _keys(row: Result) -> Iterator[str]:
    """The keys that a row's parts may have in its lock, now and in earlier versions."""
    try:
        chain = [part for spec in parse_specs(f"{row.backbone}+{row.adapters}") for part in spec.parts]
        parts = [("task", parse_part(row.task)), *((kind, part) for part in chain for kind in ("backbone", "adapter"))]
    except SpecError:
        return
    for kind, part in parts:
        own = {argument.name for arguments in COMMON.values() for argument in arguments}
        bare = replace(part, kind=None, arguments=tuple(pair for pair in part.arguments if pair[0] not in own))
        yield f"{kind}:{bare}"
        yield from (f"{kind}:{part.name}({value})" for _, value in part.arguments)
