"""`zoo predict` and `zoo embed` run a model over files, folders or standard input, and write results as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zoo_core._process.interrupts import held_back
from zoo_core.cli.completion import complete_backbones
from zoo_core.cli.downloads import count_text
from zoo_core.cli.lines import Lines, tell
from zoo_core.cli.options import (
    check_count,
    check_device,
    device_option,
    lock_file,
    lock_options,
    prepare_process,
    threads_option,
)
from zoo_core.errors import IntegrityError, NotFoundError, SpecError, UsageError
from zoo_core.run_layout import RUN
from zoo_core.spec.parser import parse, parse_part

if TYPE_CHECKING:
    from torch import nn

    from zoo_core.contracts import Modality, Target
    from zoo_core.runs.inference import Pool
    from zoo_core.runs.stored_run import StoredRun

__all__ = ["embed", "predict"]

Command = TypeVar("Command", bound=Callable[..., Any])

PUBLISHED = "hub/"  # prefix of the names of fitted models on the Hub
BATCH_SIZE = 64
LINE_SECONDS = 10.0


def _input_options(command: Command) -> Command:
    """Adds the argument for inputs, and the options that say how they are read, prepared and computed."""
    for option in (
        device_option,
        threads_option,
        click.option(
            "--num-workers", type=int, default=0, show_default=True, help="Processes that read and prepare ahead."
        ),
        click.option(
            "--batch-size",
            type=int,
            default=BATCH_SIZE,
            show_default=True,
            help="Items in a pass; with 1 each line of standard input is answered at once.",
        ),
        click.option(
            "--column", metavar="NAME", help="Of CSV and TSV files: the texts, or paths of pictures or sounds."
        ),
        click.argument("files", nargs=-1, required=True),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("run")
@_input_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl"]),
    default="table",
    show_default=True,
    help="jsonl has every score in full, and what is wrong with an item as its `error`.",
)
@click.option("--top-k", type=int, help="The K likeliest classes or labels, each with its probability.")
@click.option("--all-scores", is_flag=True, help="The probability of every class, by name.")
def predict(
    run: str,
    files: tuple[str, ...],
    form: str,
    top_k: int | None,
    all_scores: bool,
    column: str | None,
    batch_size: int,
    num_workers: int,
    threads: int | None,
    device: str,
) -> None:
    """Predict with a fitted model: a line for each item, in the order given, written as soon as it is known.

    RUN is a folder that `zoo fit` made, or hub/ORG/NAME. FILES are pictures, sounds, text files (a line an
    example), CSV or TSV files, folders of them, searched in order with all folders below, or `-`: standard input, a
    path, a text or a row on each line. CSV files for a model of tables are like those that it was fitted on, with
    numbers and categories, with a header or without, and need no target; for other models they have a header, and
    --column names the texts or paths, unless it is the column that the model was fitted on.

    A line has the likeliest class and its probability, the probability of each label, or each value; of token classes
    there is one for each word, with the characters from where to where it stands. An item that cannot be used is a line
    with its error, the others are done, and the exit code is 5 (in csv its cells are empty, and the error is on
    standard error).

    \b
    zoo predict runs/my-digits scan1.png scan2.png --format csv
    """  # noqa: D301 - click reads the character \b as: keep these lines
    _check_counts(batch_size, num_workers)
    with held_back():
        from zoo_core.cli.inputs import Inputs, check_given
        from zoo_core.runs.inference import SkippedItem, predicted
        from zoo_core.runs.stored_run import load_stored

    device = check_device(device)
    prepare_process(threads)
    stored = _stored(run)
    target = stored.target
    if target.kind == "unlabelled":
        spec = run if run.startswith(PUBLISHED) else f'run(path="{run}")'
        raise UsageError(
            f"{run} predicts nothing: it is a backbone; zoo embed {run} FILE... --out F.npy stores its features, and a "
            f"spec may begin with it, as '{spec}+linear'"
        )
    _check_scores(target, top_k, all_scores)
    check_given(files)
    learner = load_stored(stored)
    inputs = Inputs(
        files,
        learner.source.modality,
        num_columns=stored.num_columns,
        encoding=stored.encoding,
        column=column,
        needs_words=target.kind == "token_classes",
    )
    found = predicted(learner, inputs.items(), device=device, batch_size=batch_size, num_workers=num_workers)
    lines = Lines(form, target, top_k=top_k, all_scores=all_scores)
    num = num_failed = 0
    with _counting(run, inputs.num, shown=not sys.stdout.isatty()) as count, closing(found):
        for one in found:
            num += 1
            if isinstance(one, SkippedItem):
                num_failed += 1
                lines.fail(one.item, str(one.error))
            else:
                lines.add(one)
            count(num)
    _finish(inputs.told(), num, num_failed)


@click.command()
@click.argument("model", shell_complete=complete_backbones)
@_input_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="FILE.npy or FILE.parquet.")
@click.option(
    "--pool",
    type=click.Choice(["own", "mean"]),
    default="own",
    show_default=True,
    help="own: as the backbone does it; mean: over real tokens or positions.",
)
@click.option("--stage", type=int, help="The mean of what leaves this stage, counted from 1, instead.")
@lock_options
def embed(
    model: str,
    files: tuple[str, ...],
    out: Path,
    pool: Pool,
    stage: int | None,
    lock: Path | None,
    frozen: bool,
    column: str | None,
    batch_size: int,
    num_workers: int,
    threads: int | None,
    device: str,
) -> None:
    """Store the pooled features of each item, in the order given.

    MODEL is a folder that `zoo fit` made, hub/ORG/NAME, or the name of a backbone; FILES are as for `zoo predict`.
    FILE.npy is a matrix float32, and FILE.ids.txt has the id of each row; FILE.parquet has columns item and features.
    An item that cannot be used has no row, its error is on standard error, and the exit code is 5.

    \b
    zoo embed starter/vit-nano scan1.png scan2.png --out features.npy
    """  # noqa: D301 - click reads the character \b as: keep these lines
    _check_counts(batch_size, num_workers)
    with held_back():
        from zoo_core.cli.features import check_out, open_features
        from zoo_core.cli.inputs import Inputs, check_given
        from zoo_core.runs.inference import SkippedItem, embedded

    device = check_device(device)
    prepare_process(threads)
    check_given(files)
    check_out(out)
    network, modality, stored = _network(model, lock_file(lock), frozen)
    if pool != "own" and stage is not None:
        raise UsageError("--pool is of the backbone's features; of a stage it is always the mean, so leave it out")
    inputs = Inputs(
        files,
        modality,
        num_columns=stored.num_columns if stored else None,
        encoding=stored.encoding if stored else None,
        column=column,
    )
    found = embedded(
        network,
        inputs.items(),
        pool=pool,
        stage=stage,
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    num = num_failed = width = 0
    with open_features(out) as rows, _counting(model, inputs.num, shown=True) as count, closing(found):
        for one in found:
            num += 1
            if isinstance(one, SkippedItem):
                num_failed += 1
                tell(one.item, str(one.error))
            else:
                width = len(one.features)
                rows.add(one.item, one.features)
            count(num)
    if num > num_failed:
        click.echo(f"{count_text(num - num_failed, 'item')}, {width} features each, in {out}")
    else:
        click.echo(f"no item, so {out} was not written", err=True)
    _finish(inputs.told(), num, num_failed)


# -- models ---------------------------------------------------------------------------------------------------------


def _stored(run: str) -> StoredRun:
    """The stored run in a folder, or under a name on the Hub that begins with `hub/`."""
    from zoo_core.runs.stored_run import read_run

    if run.startswith(PUBLISHED):
        from zoo_core.files.fetch import fetch_run

        part = parse_part(run)
        return read_run(fetch_run(part.name.removeprefix(PUBLISHED), part.revision), needs_task=False)
    return read_run(Path(run), needs_task=False)


def _network(model: str, lock: Path | None, frozen: bool) -> tuple[nn.Module, Modality, StoredRun | None]:
    """A model, the modality that it reads, and its run.

    model: a fitted model's folder or name on the Hub, or the name of a backbone, for which the run is None.
    """
    from zoo_core.api import load_backbone
    from zoo_core.contracts import as_backbone
    from zoo_core.runs.stored_run import load_stored

    if model.startswith(PUBLISHED) or (Path(model) / RUN).is_file():
        stored = _stored(model)
        learner = load_stored(stored)
        return learner, learner.source.modality, stored
    try:
        if len(parse(model).parts) > 1:
            raise UsageError(f"{model} has parts that nothing has fitted; name the backbone alone, or a run's folder")
        backbone = load_backbone(model, lock=lock, frozen=frozen)
    except (NotFoundError, SpecError):
        if Path(model).exists() or model.startswith(("/", "./", "../")):
            _stored(model)  # raises the error that says what is wrong with that folder
        raise
    return backbone, as_backbone(backbone).modality, None


# -- checks and progress --------------------------------------------------------------------------------------------


def _check_counts(batch_size: int, num_workers: int) -> None:
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: allowed: 1 or more")
    check_count("num-workers", num_workers or None)


def _check_scores(target: Target, top_k: int | None, all_scores: bool) -> None:
    """Raises UsageError if --top-k or --all-scores does not fit the target, or if both are given."""
    if top_k is None and not all_scores:
        return
    flag = "--all-scores" if top_k is None else "--top-k"
    if top_k is not None and all_scores:
        raise UsageError("--top-k and --all-scores: give one of them")
    if target.kind not in ("classes", "multilabel"):
        raise UsageError(f"{flag} is for classes and multilabel, and this model predicts {target.kind}")
    if top_k is not None and not 1 <= top_k <= (target.size or 0):
        raise UsageError(f"--top-k {top_k}: allowed: 1 to {target.size}, the number of its outputs")


def _finish(passed: str | None, num: int, num_failed: int) -> None:
    """Prints the line about files that were passed over, and raises IntegrityError if any item failed.

    It is not a UsageError, which would mean that nothing was done, while here the bytes of some items are at fault.
    """
    if passed is not None:
        click.echo(passed, err=True)
    if num_failed:
        raise IntegrityError(f"{num_failed} of {count_text(num, 'item')} could not be used, each is told above")


@contextmanager
def _counting(title: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar if standard error is a terminal, and prints a line every LINE_SECONDS elsewhere.

    Yields the function to call with the number of items done so far.
    shown: False shows nothing, for results that go to the terminal themselves. total: None if it is not known.
    """
    if not shown:
        yield lambda num: None
        return
    if not sys.stderr.isatty():
        yield _count_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f} items, {task.fields[rate]:,.0f}/s, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar, start = progress.add_task(title, total=total, rate=0.0), time.monotonic()
        yield lambda num: progress.update(bar, completed=num, rate=num / (time.monotonic() - start))


def _count_lines() -> Callable[[int], None]:
    start = last = time.monotonic()

    def count(num: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            click.echo(f"{num:,} items, {num / (now - start):,.0f}/s", err=True)

    return count
