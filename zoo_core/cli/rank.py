"""`zoo rank` says which backbone suits a task, from one pass of each over some of its training examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo_core.cli.completion import complete_backbones, complete_tasks
from zoo_core.cli.config import effective
from zoo_core.cli.data import told
from zoo_core.cli.downloads import count_text, downloading, size_text
from zoo_core.cli.options import (
    DURATION,
    Measure,
    check_device,
    device_option,
    lock_file,
    lock_options,
    prepare_process,
    threads_option,
)
from zoo_core.errors import UsageError
from zoo_core.results.columns import aligned
from zoo_core.results.report import render

if TYPE_CHECKING:
    from zoo_core.results.store import Result
    from zoo_core.selection.candidates import LeftOut
    from zoo_core.selection.rank import Ranked, RankEvent, Ranking, Shortlist

__all__ = ["rank"]

SHOWN = 12  # backbones left out, or parts to download, that people are shown; JSON has them all
MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
SCHEMA = 1


@click.command()
@click.option("--task", required=True, help="A task or a path.", shell_complete=complete_tasks)
@click.option(
    "--backbones",
    required=True,
    help="Names and patterns with commas between: 'timm/*tiny*,starter/vit-nano(until=2)'.",
    shell_complete=complete_backbones,
)
@click.option("--scores", help="What is computed: `zoo list score`.  [default: knn,ridge,logme]")
@click.option("--by", help="The score that orders.  [default: the first of --scores]")
@click.option("--licence", "licences", multiple=True, help="Only backbones with this licence; may be given again.")
@click.option("--max-parameters", type=Measure("count", MULTIPLES), help="Only backbones up to this size, as 30M.")
@click.option("--input-size", type=int, help="Only backbones for pictures of so many pixels.")
@click.option("--examples", type=int, default=1000, show_default=True, help="Training examples that are looked at.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which examples are drawn.")
@click.option("--time-limit", type=DURATION, help="Begin no backbone after this time, as 90s or 10m.")
@click.option("--then", type=click.Choice(["bench"]), help="Go on with a bench of the first third, two at least.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of that bench; else runs/rank.")
@click.option("--trial-time-limit", type=DURATION, help="End a trial of that bench that takes longer, as 90s or 10m.")
@click.option("--dry-run", is_flag=True, help="Say what would be compared and downloaded, and stop.")
@threads_option
@device_option
@lock_options
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
def rank(
    task: str,
    backbones: str,
    scores: str | None,
    by: str | None,
    licences: tuple[str, ...],
    max_parameters: float | None,
    input_size: int | None,
    examples: int,
    seed: int,
    time_limit: float | None,
    then: str | None,
    out: Path | None,
    trial_time_limit: float | None,
    dry_run: bool,
    threads: int | None,
    device: str,
    lock: Path | None,
    frozen: bool,
    as_json: bool,
) -> int:
    """Rank backbones for your data without training: scores of their features, beside the order by size alone.

    Each backbone passes once over at most 1,000 training examples; a second call reads what the first one stored. The
    test split is not looked at. ~ marks what is not told apart from the first. The exit code is 1 if a backbone failed.

    \b
    zoo rank --task digits --backbones 'starter/*'
    zoo rank --task ./photos --backbones 'timm/*tiny*,timm/resnet18.a1_in1k' --max-parameters 30M --time-limit 10m
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from zoo_core.lock import read_pins
    from zoo_core.selection.candidates import Filters
    from zoo_core.selection.rank import SCORES, run_shortlist, shortlisted

    for name, given in (("--out is the folder", out), ("--trial-time-limit ends trials", trial_time_limit)):
        if given is not None and then is None:
            raise UsageError(f"{name} of a bench; add --then bench")
    limit = None if max_parameters is None else int(max_parameters)
    filters = Filters(licences=licences, max_parameters=limit, input_size=input_size)
    pins = lock_file(lock)
    bound = told(task, lock=pins, frozen=frozen)
    shortlist = shortlisted(
        backbones,
        task=bound,
        filters=filters,
        scores=scores or SCORES,
        by=by,
        pins=read_pins(pins),
        frozen=frozen,
    )
    for line in _before(shortlist):
        click.echo(line, err=True)
    if dry_run:
        if as_json:
            click.echo(json.dumps(_planned(shortlist), indent=2))
        return 0
    prepare_process(threads)
    device = check_device(device)
    with downloading() as arriving:

        def watch(event: RankEvent) -> None:
            if event.download is not None:
                arriving(event.download)
            if event.row is not None:
                click.echo(f"[{event.done}/{event.total}] {_outcome(event.row)}", err=True)

        found = run_shortlist(
            shortlist,
            num_examples=examples,
            seed=seed,
            time_limit=time_limit,
            device=device,
            frozen=frozen,
            watch=watch,
        )
    if not as_json:
        click.echo(_table(found))
    benched = None
    if then == "bench":
        benched = _bench(found, str(bound.canonical()), out, device, pins, frozen, trial_time_limit)
    if as_json:
        click.echo(json.dumps(_json(found, benched), indent=2))
    elif benched is not None:
        click.echo(render(benched, form="table"))
    return int(any(row.status == "failed" for row in (*found.rows, *(benched or ()))))


def _bench(
    found: Ranking,
    task: str,
    out: Path | None,
    device: str,
    lock: Path | None,
    frozen: bool,
    trial_time_limit: float | None,
) -> list[Result]:
    """The results of a bench of the first of a ranking, by probes with three seeds and halving."""
    from zoo_core.benchmark.forking import num_processors
    from zoo_core.benchmark.grid import suite_from
    from zoo_core.benchmark.runner import RunEvent, open_grid, run_grid

    def watch(event: RunEvent) -> None:
        if event.result is not None:
            score = event.result.status if event.result.score is None else f"{event.result.score:.4g}"
            click.echo(f"[{event.done}/{event.total}] {event.result.trial}: {score}", err=True)

    names = found.first()
    if not names:
        raise UsageError("no backbone has a score, so there is nothing to go on with")
    folder = out or Path(str(effective()["runs"].value)) / "rank"
    click.echo(f"a bench of {', '.join(names)}, probes with three seeds and halving, into {folder}", err=True)
    table = {"tasks": [task], "backbones": list(names), "budget": {"halving": True}}
    grid = open_grid(suite_from(table, name="rank"), folder, lock=lock, frozen=frozen)
    workers = num_processors() if device == "cpu" else 1
    return run_grid(grid, folder, num_workers=workers, device=device, trial_time_limit=trial_time_limit, watch=watch)


# --- text for people --------------------------------------------------------------------------------------------------


def _before(shortlist: Shortlist) -> Iterator[str]:
    """What is compared, what is left out, and what will be downloaded."""
    yield from _left_out(shortlist.left_out)
    yield f"{count_text(len(shortlist.candidates), 'backbone')} to compare"
    missing = shortlist.downloads
    if missing:
        yield f"{size_text(missing.values())} to download"
        yield from _some([f"  {key}  {size_text([size])}" for key, size in missing.items()])


def _left_out(rows: Sequence[LeftOut]) -> Iterator[str]:
    yield from _some([f"left out: {row.name}: {row.reason}" for row in rows])


def _some(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:SHOWN]
    if len(lines) > SHOWN:
        yield f"  and {len(lines) - SHOWN} more; --dry-run --json has them all"


def _outcome(row: Ranked) -> str:
    if row.status != "ok":
        return f"{row.name}: {row.status}: {row.reason}"
    source = f"{row.num_made:,} examples" if row.num_made else "stored features"
    return f"{row.name}: {source} in {row.seconds:.1f} s"


def _table(found: Ranking) -> str:
    """The table of a ranking, with what it cannot say below it."""
    header = ("", "backbone", *found.scores, "parameters", "by size")
    rows = [header]
    for place, row in enumerate(found.rows, 1):
        if row.status != "ok":
            continue
        cells = [_cell(row, name) for name in found.scores]
        size = f"{row.num_parameters:,}" if row.num_parameters is not None else ""
        rows.append((str(place), row.name, *cells, size, str(row.size_place or "")))
    width = len(header)
    lines = [f"{found.task}: {found.num_examples:,} training examples, {found.num_outputs} {found.target}"]
    lines += aligned(rows, right={0, width - 2, width - 1}) if len(rows) > 1 else []
    lines += [f"{row.status}: {row.name}: {row.reason}" for row in found.rows if row.status != "ok"]
    lines += [
        f"without {name}: {row.name}: {why}"
        for row in found.rows
        if row.status == "ok"
        for name, why in row.unscored.items()
    ]
    lines += _remarks(found)
    return "\n".join(lines)


def _cell(row: Ranked, name: str) -> str:
    score = row.scores.get(name)
    if score is None:
        return "-"
    mark = " " if score.is_apart else "~"
    return f"{mark}{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _remarks(found: Ranking) -> list[str]:
    scored = [row for row in found.rows if found.by in row.scores]
    if not scored:
        return []
    alike = sum(not row.scores[found.by].is_apart for row in scored) - 1
    largest = next((row.name for row in scored if row.size_place == 1), None)
    lines = [f"ordered by {found.by}, with 95 % intervals; ~ is not told apart from the best of its column"]
    if alike:
        lines.append(f"{scored[0].name} is not told apart from {count_text(alike, 'other')}")
    if largest is not None:
        lines.append(f"by size alone {largest} would come first")
    return lines


def _planned(shortlist: Shortlist) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "task": str(shortlist.task.canonical()),
        "candidates": [candidate.name for candidate in shortlist.candidates],
        "left_out": [asdict(row) for row in shortlist.left_out],
        "downloads": dict(shortlist.downloads),
    }


def _json(found: Ranking, benched: Sequence[Result] | None) -> dict[str, Any]:
    """bench: its results as results.jsonl has them; None without --then bench."""
    rows = [{"place": place if row.status == "ok" else None, **asdict(row)} for place, row in enumerate(found.rows, 1)]
    bench = None if benched is None else [asdict(result) for result in benched]
    return {"schema": SCHEMA, **asdict(found), "rows": rows, "bench": bench}
