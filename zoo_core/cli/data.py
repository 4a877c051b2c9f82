"""`zoo data` shows how a folder or a table is read as a task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo_core.contracts import Located, Survey, Surveyed
from zoo_core.errors import NotFoundError, UsageError
from zoo_core.lock import read_pins
from zoo_core.plan.extensions import metric_of
from zoo_core.plan.resolve import bind_task, inner_parts, located
from zoo_core.registry.readers import is_path, task_part
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import Part

if TYPE_CHECKING:
    from zoo_core.registry.bind import Bound

__all__ = ["data", "told"]

SHOWN = 5  # rows of a block, and items of a group, that people are shown; JSON has them all
MANY = 30  # classes that people are shown; JSON has them all


@click.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
def data(path: str, as_json: bool) -> int:
    """Show what a folder or a table is, as a task: kind, classes, sizes, copies, the split and its digest.

    PATH may also be a recipe, so that what was inferred can be corrected, or a data set of the Hub. The exit code is 2
    if a fit would stop.

    \b
    zoo data ./flowers
    zoo data 'csv(path="reviews.csv",text="body",target="stars")'
    zoo data hub-data/ORG/SET
    """  # noqa: D301 - click reads the character \b as: keep these lines
    part = _part(path)
    bound = registry().bind(part, "task")
    inner_parts(bound, registry())  # checked before any code of the recipe runs
    found_at = located(bound, {})
    recipe = found_at.recipe
    if not isinstance(recipe, Surveyed):
        raise UsageError(f"{part} does not read files of yours; `zoo show {part.name}` tells of it")
    source = found_at.source
    found = recipe.survey(Path(source.folder if source is not None and source.folder else "."))
    click.echo(json.dumps({"task": str(part), **asdict(found)}, indent=2) if as_json else _survey_text(part, found))
    return UsageError.exit_code if found.problems else 0


def told(
    task: str, *, lock: Path | None = None, frozen: bool = False, reads: Callable[[str], Part] = task_part
) -> Bound:
    """The task given on a command line, bound as `resolve` takes it, so that its files are looked at only once.

    reads: the part that a text stands for.
    For a path or a data set of the Hub, prints on standard error what was inferred.
    """
    given = is_path(task)
    try:
        part = reads(task)
        bound = registry().bind(part, "task")
    except NotFoundError as error:
        if given or not Path(task).exists():
            raise
        raise NotFoundError(f"{error}; what is here under that name is written ./{task}") from error
    found = bind_task(part, read_pins(lock), offline=frozen, registry=registry())
    if not given and not isinstance(bound.recipe, Located):
        return found
    recipe = found.recipe
    target = found.target
    size = "" if target.size is None else f"{target.size} "
    spelt = f" as '{part}'" if given else ""
    click.echo(
        f"{task} is read{spelt}: {recipe.modality}, {size}{target.kind}, {metric_of(found, registry()).name}", err=True
    )
    if isinstance(recipe, Surveyed):
        for line in recipe.inferred():
            click.echo(f"  {line}", err=True)
    return found


def _part(text: str) -> Part:
    """The part that names the task of a path. A bare name counts as a path if such a file or folder exists."""
    if is_path(text) or not Path(text).exists():
        return task_part(text)
    return task_part(f"./{text}")


def _survey_text(part: Part, found: Survey) -> str:
    lines = [str(part)]
    outputs = "" if found.target.kind == "unlabelled" else f", {found.target.size} outputs"
    kind = f"{found.target.kind}{outputs}"
    rows: list[tuple[str, str]] = [
        ("modality", found.modality),
        ("target", kind),
        ("metric", found.metric),
        ("items", f"{found.num_items:,}, {_bytes(found.num_bytes)}"),
        ("sizes", found.sizes),
        ("split", "given" if found.given else "proposed"),
        ("digest", found.split_digest),
        ("split file", found.split_file),
    ]
    rows[5] = ("split", f"{rows[5][1]}: {', '.join(f'{name} {num:,}' for name, num in found.splits.items())}")
    lines += [f"  {name:<11}{text}" for name, text in rows]
    if found.classes:
        width = max(map(len, found.classes))
        lines.append("classes")
        lines += [f"  {name:<{width}}  {num:,}" for name, num in list(found.classes.items())[:MANY]]
        if len(found.classes) > MANY:
            lines.append(f"  and {len(found.classes) - MANY} more")
    lines += _block("inferred", found.inferred)
    copies = f"copies: {sum(len(group) - 1 for group in found.copies)} items hold what another one holds"
    lines += _block(copies if found.copies else "copies: none", map(_group, found.copies))
    lines += _block("copies with several targets", map(_group, found.conflicting), found.conflicting)
    lines += _block("leakage: copies in several splits", map(_group, found.leaking), found.leaking)
    lines += _block("left out", [f"{item}: {why}" for item, why in found.left_out.items()], found.left_out)
    lines += _block("unreadable", [f"{item}: {why}" for item, why in found.unreadable.items()], found.unreadable)
    lines += _block("ignored files", found.ignored, found.ignored)
    lines += _block("a fit would stop", found.problems, found.problems)
    return "\n".join(lines)


def _block(title: str, rows: Any, shown: Any = True) -> list[str]:
    """A title, and below it the first SHOWN rows, or all rows of what was inferred.

    shown: if it is false or empty, there is no block at all.
    """
    if not shown:
        return []
    rows = list(rows)
    counted = f"{title} ({len(rows)})" if len(rows) > SHOWN and title != "inferred" else title
    kept = rows if title == "inferred" else rows[:SHOWN]
    more = [f"  and {len(rows) - len(kept)} more; --json has them all"] if len(rows) > len(kept) else []
    return [counted, *(f"  {row}" for row in kept), *more]


def _group(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _bytes(num: int) -> str:
    return f"{num / 1e6:,.1f} MB" if num >= 1e5 else f"{num:,} bytes"
