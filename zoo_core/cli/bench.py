"""`zoo bench` runs a grid with live progress and prints its table; `zoo report` prints the table of stored runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo_core.cli.completion import complete_adapters, complete_backbones, complete_heads, complete_tasks
from zoo_core.cli.config import effective
from zoo_core.cli.data import told
from zoo_core.cli.options import (
    DURATION,
    budget_options,
    check_count,
    check_device,
    device_option,
    lock_file,
    lock_options,
    passes_text,
    typed,
)
from zoo_core.errors import NotFoundError, UsageError
from zoo_core.registry.readers import is_path
from zoo_core.results.report import render
from zoo_core.results.waiting import num_epochs_text
from zoo_core.run_layout import RESULTS

if TYPE_CHECKING:
    from zoo_core.benchmark.grid import Suite
    from zoo_core.benchmark.runner import RunEvent
    from zoo_core.files.fetch import DownloadProgress
    from zoo_core.results.store import Result

__all__ = ["bench", "report"]

FORMATS = ("table", "md", "csv", "json")


@click.command()
@click.argument("suite", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; else runs/NAME, see `zoo config`.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    help="A task or a path, in place of a suite file; may be given again.",
    shell_complete=complete_tasks,
)
@click.option(
    "--backbones",
    help="Backbones with commas between: 'starter/vit-nano,starter/convnet-nano'.",
    shell_complete=complete_backbones,
)
@click.option(
    "--adapters", help="Adapters or chains: 'probe,full,partial(n=2)+norm'.", shell_complete=complete_adapters
)
@click.option("--heads", help="Heads: 'linear,ncm'; without it the target picks one.", shell_complete=complete_heads)
@click.option("--seeds", type=int, help="How many seeds, from 0.")
@budget_options
@click.option("--workers", type=int, help="Processes; one for each processor on a CPU, one on a GPU.")
@click.option(
    "--threads", type=int, help="Threads of each process; on a CPU 1, so that scores never depend on --workers."
)
@device_option
@lock_options
@click.option("--no-share", is_flag=True, help="Run each trial by itself, the reference for what sharing gives.")
@click.option(
    "--trial-time-limit",
    type=DURATION,
    help="End a trial that takes longer, as 90s or 10m; it has failed then.  [default: none]",
)
@click.option("--retry", is_flag=True, help="Run again what failed before.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", help="How the results are printed.")
def bench(
    suite: Path | None,
    out: Path | None,
    tasks: tuple[str, ...],
    backbones: str | None,
    adapters: str | None,
    heads: str | None,
    seeds: int | None,
    workers: int | None,
    threads: int | None,
    device: str,
    lock: Path | None,
    frozen: bool,
    no_share: bool,
    trial_time_limit: float | None,
    retry: bool,
    form: str,
    **budget: Any,
) -> int:
    """Compare transfer methods: run every combination of a grid, and print a ranked table.

    SUITE is a TOML file; without one and without flags, the starter suite runs, with no network. The grid may be
    given by flags instead, and a flag of the budget replaces what the suite says. The same command again runs only
    what is missing. The exit code is 1 if a trial failed; one that makes no sense is refused, which is no failure.

    \b
    zoo bench
    zoo bench --task 'digits(shots=5)' --backbones starter/vit-nano --adapters 'probe,full' --seeds 5
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from zoo_core.benchmark.runner import open_grid, run_grid

    # Defaults from settings do not change a suite; only flags typed on the command line do.
    if suite is not None or not (tasks or backbones or adapters or heads):
        seeds, budget = typed("seeds", seeds), {name: typed(name, value) for name, value in budget.items()}
    grid = {"backbones": backbones, "adapters": adapters, "heads": heads}
    chosen = _suite(suite, tasks, grid, seeds, {name: value for name, value in budget.items() if value is not None})
    folder = out or Path(str(effective()["runs"].value)) / chosen.name
    expanded = open_grid(chosen, folder, lock=lock_file(lock), frozen=frozen)
    device = check_device(device)
    workers, threads = _shared(workers, threads, device)
    new: list[Result] = []
    with _watching(chosen.name, folder) as shown:

        def watch(event: RunEvent) -> None:
            shown(event)
            if event.result is not None:
                new.append(event.result)

        results = run_grid(
            expanded,
            folder,
            num_workers=workers,
            threads=threads,
            device=device,
            retry=retry,
            share=not no_share,
            trial_time_limit=trial_time_limit,
            watch=watch,
        )
    click.echo(render(results, form=form))
    click.echo(f"{len(results)} results in {folder}; `zoo report {folder} --format md` prints them again", err=True)
    taught = [result.teachers for result in new if result.teachers is not None]
    if taught:
        click.echo(passes_text({name: sum(row[name] for row in taught) for name in taught[0]}), err=True)
    num_stopped = sum(result.status == "stopped" for result in results)
    if num_stopped:
        click.echo(f"{num_stopped} of them were stopped by validation and have no test score (halving)", err=True)
    num_failed = sum(result.status == "failed" for result in results)
    if num_failed:
        click.echo(f"{num_failed} of them failed; the same command with --retry runs those again", err=True)
    return 1 if num_failed else 0


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", help="How the results are printed.")
def report(folders: tuple[Path, ...], form: str) -> None:
    """Print the table of one or several runs.

    Results that are superseded are left out, and those whose files have changed or are gone since are named.

    \b
    zoo report runs/starter --format md
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from zoo_core.results.outdated import standing_of

    found = []
    for folder in folders:
        if not (folder / RESULTS).is_file():
            raise NotFoundError(f"{folder} holds no {RESULTS}; `zoo bench --out {folder}` makes one")
        found.append(standing_of(folder))
    rows = [row for each in found for row in each.rows]
    if len(folders) > 1:  # each has a clock of its own
        rows = [replace(row, after_seconds=None) for row in rows]
    outdated = frozenset(digest for each in found for digest in each.outdated)
    remarks = [remark for each in found for remark in each.remarks]
    click.echo(render(rows, form=form, outdated=outdated, remarks=remarks))
    for remark in remarks if form == "csv" else ():  # a CSV table has no place for remarks
        click.echo(f"note: {remark}", err=True)


def _suite(
    file: Path | None,
    tasks: tuple[str, ...],
    grid: Mapping[str, str | None],
    seeds: int | None,
    budget: Mapping[str, object],
) -> Suite:
    """The suite of a file, or the one that the flags describe.

    --seeds and the flags of the budget replace what a file says. Without a file and flags it is the starter suite.
    Raises UsageError if both a file and flags give the grid, or if --task or --backbones is missing.
    """
    from zoo_core.benchmark.grid import PATTERN, chains_in, load_suite, starter_suite, suite_from
    from zoo_core.spec.parser import parse_parts, parse_specs

    flags = [f"--{name}" for name, text in grid.items() if text is not None] + ["--task"] * bool(tasks)
    changes: dict[str, Any] = {"seeds": tuple(range(seeds))} if seeds is not None and seeds > 0 else {}
    if seeds is not None and seeds < 1:
        raise UsageError(f"--seeds {seeds}: allowed: 1 or more")
    if file is not None and flags:
        raise UsageError(f"a suite file and {flags[0]} both give the grid; use one of them")
    if not flags:
        suite = load_suite(file or starter_suite())
        return replace(suite, budget=replace(suite.budget, **budget), **changes)  # type: ignore[arg-type]
    if not tasks or grid["backbones"] is None:
        raise UsageError("a grid by flags needs --task and --backbones; `zoo list task` and `zoo list backbone` help")
    named = [str(told(task).written) if is_path(task) else task for task in tasks]
    table: dict[str, Any] = {"tasks": named, "budget": budget, "seeds": seeds or 3}
    for name, text in grid.items():
        if name == "backbones" and text is not None and PATTERN & set(text):
            table[name] = list(chains_in(text))
        elif text is not None:
            parts = parse_parts(text) if name == "heads" else parse_specs(text)
            table[name] = [str(part) for part in parts]
    return suite_from(table, name="bench")


def _shared(workers: int | None, threads: int | None, device: str) -> tuple[int, int]:
    """The number of worker processes, and the number of threads of each. Raises UsageError for a bad count."""
    from zoo_core.benchmark.forking import num_processors

    for name, wanted in (("workers", workers), ("threads", threads)):
        check_count(name, wanted)
    on_cpu = device == "cpu"
    workers = workers or (num_processors() if on_cpu else 1)
    return workers, threads or (1 if on_cpu else max(1, num_processors() // workers))


@contextmanager
def _watching(name: str, folder: Path) -> Iterator[Callable[[RunEvent], None]]:
    """Shows a progress bar on a terminal, and prints a line for each result elsewhere. Yields the `watch` of a run."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"{name} -> {folder}", total=None, now="")

        def watch(event: RunEvent) -> None:
            progress.update(bar, completed=event.done, total=event.total)
            if event.superseded:
                progress.console.print(_superseded(event), highlight=False, style="dim")
            if event.download is not None:
                progress.update(bar, now=_arriving(event.download))
            if event.report is not None and event.plan is not None:
                plan, rate = event.plan, event.report.progress.examples_per_second
                progress.update(bar, now=f"{plan.spec} seed {plan.seed} {rate:.0f} ex/s")
            if event.result is not None or event.waiting is not None:
                progress.console.print(_result_line(event), highlight=False, style="dim")

        yield watch


def _line(event: RunEvent) -> None:
    if event.result is not None or event.waiting is not None:
        click.echo(_result_line(event), err=True)
    elif event.plan is None and event.download is None:
        if event.superseded:
            click.echo(_superseded(event), err=True)
        waiting = f", {event.num_waiting} wait at a rung of halving" if event.num_waiting else ""
        click.echo(f"{event.done} of {event.total} trials are done already{waiting}", err=True)


def _superseded(event: RunEvent) -> str:
    count = "1 stored result is" if event.superseded == 1 else f"{event.superseded} stored results are"
    return f"{count} superseded: what they were made from holds something else now; `zoo report` tells more"


def _arriving(download: DownloadProgress) -> str:
    return f"{download.repository} {download.file} {download.done_bytes / max(1, download.total_bytes):.0%}"


def _result_line(event: RunEvent) -> str:
    if event.waiting is not None:
        rung = (event.waiting.rungs or [{}])[-1]
        so_far = f"{event.waiting.metric} {rung['score']:.4g} on validation at its rung, after"
        so_far += f" {num_epochs_text(rung['epochs'])}"
        return f"[{event.done}/{event.total}] {event.waiting.trial}: {so_far}"
    result = event.result
    assert result is not None, "told of a result"
    outcome = f"{result.metric} {result.score:.4g}" if result.score is not None else f"{result.status}: {result.reason}"
    return f"[{event.done}/{event.total}] {result.trial}: {outcome}"
