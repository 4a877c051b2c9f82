"""Runs that were fitted on runs: the digests of the whole lineage, and where the folders of its runs are now."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError
from zoo_core.files.fetch import files_of
from zoo_core.lock import Pinned, part_key
from zoo_core.plan.plan import Plan
from zoo_core.run_layout import RUN
from zoo_core.spec.parser import Part, Spec, Value, parse_part

__all__ = ["check_links", "links_of", "moved", "places_of"]


def links_of(plan: Plan) -> list[dict[str, Any]]:
    """The stored runs that a plan's backbone is made of, nearest first; none for any other backbone.

    Each has its name, its digest, the digest of its base, and the sha256 of its delta. The nearest is read and its file
    verified; it names those below it.
    Raises what `zoo_core.files.fetch.folder` raises, which names the file that is missing or changed.
    """
    pin = plan.pins.get(part_key(plan.backbone))
    if pin is None or RUN not in pin.files:
        return []
    folder = files_of(plan, plan.backbone, weights="random")
    assert folder is not None, "a run has files"
    try:
        table = json.loads((folder / RUN).read_text(encoding="utf-8"))
        own = {"digest": table["digest"], "base_digest": table["base_digest"], "delta": table["delta"]["sha256"]}
        return [{"name": str(plan.backbone.canonical()), **own}, *table.get("chain", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder / RUN} is damaged ({type(error).__name__}: {error}); copy it again") from error


def check_links(path: Path, then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> None:
    """Raises IncompatibleError that names the first run of the lineage that is not what the run was fitted on."""
    nothing: Mapping[str, Any] = {}
    for number, (before, link) in enumerate(zip_longest(then, now, fillvalue=nothing), 1):
        changed = [key for key in ("digest", "base_digest", "delta") if before.get(key) != link.get(key)]
        if changed:
            name = link.get("name") or before.get("name")
            told = (str(each.get(changed[0]))[:12] for each in (before, link))
            raise IncompatibleError(
                f"{path} was fitted on another {name}, link {number} of {len(then)} below it: {changed[0]} "
                f"{' then, '.join(told)} now; put back what it was, or fit the model again"
            )


def places_of(plan: Plan, path: Path) -> dict[str, str]:
    """Where the local folders that a run is built from are, relative to its own folder, by each as it was written."""
    parts = (plan.backbone, *plan.adapters, plan.head)
    written = [pin.folder for part in parts if (pin := plan.pins.get(part_key(part)))]
    return {
        folder: os.path.relpath(Path(folder).expanduser().resolve(), path.resolve()) for folder in written if folder
    }


def moved(
    path: Path, spec: Spec, pins: Mapping[str, Pinned], places: Mapping[str, str]
) -> tuple[Spec, dict[str, Pinned]]:
    """A run's spec and pins with the present places of its local folders: relative to the run, or else as written.

    So a tree of runs may be moved or copied as a whole, and loaded from any folder. Hashes check the content later.
    Raises NotFoundError if a folder is at neither place.
    """
    now: dict[str, str] = {}
    for folder, place in places.items():
        beside = path / place
        held = [pin for pin in pins.values() if pin.folder == folder]
        if beside.is_dir() and all((beside / name).is_file() for pin in held for name in pin.files):
            now[folder] = folder if _is_same(beside, folder) else os.path.normpath(beside)
        elif not Path(folder).expanduser().is_dir():
            raise NotFoundError(
                f"{path} was fitted on {folder}, which is not there, and not at {os.path.normpath(beside)}; "
                f"put it back at either place"
            )
    parts = tuple(_at(part, now) for part in spec.parts)
    return Spec(parts), {_key(key, pin, now): _pin(pin, now) for key, pin in pins.items()}


def _is_same(beside: Path, folder: str) -> bool:
    written = Path(folder).expanduser()
    return written.is_dir() and beside.samefile(written)


def _at(part: Part, now: Mapping[str, str]) -> Part:
    """A part whose arguments name the folders, and files in them, where they are now."""
    return replace(part, arguments=tuple((key, _place(value, now)) for key, value in part.arguments))


def _place(value: Value, now: Mapping[str, str]) -> Value:
    for folder, place in now.items():
        if isinstance(value, str) and value == folder:
            return place
        if isinstance(value, str) and Path(value).parent == Path(folder) and Path(place, Path(value).name).is_file():
            return os.path.join(place, Path(value).name)  # noqa: PTH118 - as it was written, `./` included
    return value


def _key(key: str, pin: Pinned, now: Mapping[str, str]) -> str:
    """The key of a part in a lock, whose arguments name its folder; in locks before December 2026 it ended with it."""
    if not pin.folder or pin.folder not in now:
        return key
    end = f"({pin.folder})"
    if key.endswith(end):
        return f"{key.removesuffix(end)}({now[pin.folder]})"
    kind, _, text = key.partition(":")
    return f"{kind}:{_at(parse_part(text), now)}"


def _pin(pin: Pinned, now: Mapping[str, str]) -> Pinned:
    return replace(pin, folder=now[pin.folder]) if pin.folder and pin.folder in now else pin
