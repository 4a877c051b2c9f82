"""`zoo fit`, `zoo evaluate`, `zoo predict`: one model, trained, scored, used."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo_core.cli.downloads import downloading
from zoo_core.cli.options import (
    budget_options,
    check_device,
    device_option,
    fitting,
    lock_file,
    lock_options,
    threads_option,
    use_threads,
)
from zoo_core.errors import AccessError, NotFoundError, UsageError
from zoo_core.interrupts import held_back
from zoo_core.plan import budget_from

if TYPE_CHECKING:
    from zoo_core.api import Evaluation, Prediction
    from zoo_core.contracts import Target

__all__ = ["evaluate", "fit", "predict"]


@click.command()
@click.argument("spec")
@click.option("--task", required=True, help="What to fit on: a task by name, 'digits(shots=10)'.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the fitted model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides draws, new weights and order.")
@budget_options
@lock_options
@click.option("--num-workers", type=int, default=0, show_default=True, help="Processes that prepare data ahead.")
@threads_option
@device_option
def fit(
    spec: str,
    task: str,
    out: Path,
    seed: int,
    lock: Path | None,
    frozen: bool,
    num_workers: int,
    threads: int | None,
    device: str,
    **budget: Any,
) -> None:
    """Fit one model: a learning rate is chosen on validation, the model is scored on test and stored.

    \b
    zoo fit 'starter/vit-nano+partial(n=2)' --task digits --out runs/my-digits
    """  # noqa: D301 - click reads the character \b as: keep these lines
    with held_back():
        from zoo_core.api import fetch
        from zoo_core.api import fit as run

    chosen = budget_from({name: value for name, value in budget.items() if value is not None})
    device = check_device(device)
    use_threads(threads)
    pins = lock_file(lock)
    with downloading() as progress:
        fetch(spec, task=task, lock=pins, frozen=frozen, progress=progress)
    with fitting(spec) as report:
        _, result = run(
            spec,
            task=task,
            out=out,
            budget=chosen,
            seed=seed,
            device=device,
            num_workers=num_workers,
            lock=pins,
            frozen=frozen,
            report=report,
        )
    assert result.chosen is not None, "a fit that came back chose something"
    click.echo(f"{result.metric} {result.score:.4f} on {result.num_examples} test examples")
    for candidate in result.chosen["candidates"]:
        rate = candidate["learning_rate"]
        mark = " <- chosen" if rate == result.chosen["learning_rate"] else ""
        name = "closed form" if rate is None else f"learning rate {rate:g}"
        found = candidate["validation_score"]
        click.echo(f"  {name}: {'diverged' if found is None else f'validation {found:.4f}'}{mark}")
    click.echo(f"{result.num_trainable} of {result.num_parameters} parameters trained; stored in {out}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which examples; those of the fit's own draw.",
)
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
@threads_option
@device_option
def evaluate(folder: Path, split: str, as_json: bool, threads: int | None, device: str) -> None:
    """Score a fitted model on a split of its task, with a report for each class and a confusion matrix.

    \b
    zoo evaluate runs/my-digits
    """  # noqa: D301 - click reads the character \b as: keep these lines
    with held_back():
        from zoo_core.api import evaluate as run

    use_threads(threads)
    found = run(folder, split=split, device=check_device(device))
    click.echo(json.dumps(asdict(found), indent=2) if as_json else _evaluation(found))


def _evaluation(found: Evaluation) -> str:
    lines = [f"{found.metric} {found.score:.4f} on {found.num_examples} {found.split} examples"]
    if found.per_class:
        width = max(len("class"), *(len(name) for name in found.names))
        lines.append(f"\n{'class':{width}}  precision  recall     f1    num")
        lines += [
            f"{row['class']:{width}}  {row['precision']:9.3f} {row['recall']:7.3f} {row['f1']:6.3f} {row['num']:6d}"
            for row in found.per_class
        ]
        lines.append("\nconfusion, rows true and columns predicted")
        lines += [
            f"{name:{width}}  " + " ".join(f"{count:5d}" for count in row)
            for name, row in zip(found.names, found.confusion, strict=True)
        ]
    return "\n".join(lines)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl"]),
    default="table",
    show_default=True,
    help="jsonl has every score in full.",
)
@threads_option
@device_option
def predict(folder: Path, files: tuple[Path, ...], form: str, threads: int | None, device: str) -> None:
    """Predict with a fitted model: pictures, text files (a line an example), CSV files of numbers (a row an example).

    One line for each item, in the order given: the likeliest class and its probability, the probability of each
    label, or each value.

    \b
    zoo predict runs/my-digits scan1.png scan2.png --format csv
    """  # noqa: D301 - click reads the character \b as: keep these lines
    with held_back():
        from zoo_core.api import predict as run
        from zoo_core.runs import load_stored, read_run

    device = check_device(device)
    use_threads(threads)
    stored = read_run(folder, needs_task=False)
    learner = load_stored(stored)
    modality = learner.source.modality
    if modality == "table":
        names, items = _rows(files, stored.num_columns)
    else:
        names, items = _texts(files) if modality == "text" else _pictures(files, modality)
    _write(run(learner, items, names=names, device=device), form, learner.target)


def _texts(files: Sequence[Path]) -> tuple[list[str], list[Any]]:
    """Every line that is not empty, and what to call it."""
    names, texts = [], []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")  # splitlines would part at U+2028 and its like too
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {file}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read as text ({error}); one text a line, in UTF-8") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                names.append(f"{file}:{number}")
                texts.append(line)
    return names, texts


def _pictures(files: Sequence[Path], modality: str) -> tuple[list[str], list[Any]]:
    if modality != "image":
        raise UsageError(
            f"zoo predict reads pictures, texts and tables, and this model reads {modality}; in Python: "
            f"zoo_core.predict(zoo_core.load_run(DIR), items)"
        )
    from zoo_core.pictures import open_picture

    return [str(file) for file in files], [open_picture(file) for file in files]


def _rows(files: Sequence[Path], num_columns: int | None) -> tuple[list[str], list[list[float]]]:
    """The rows of all files and what to call each; num_columns: how many the model was fitted on, None: unknown."""
    names, rows = [], []
    for file in files:
        for number, row in _numbers(file):
            if len(row) != (num_columns or len(row)):
                raise UsageError(f"{file}, line {number} has {len(row)} columns; the model was fitted on {num_columns}")
            num_columns = len(row)
            rows.append(row)
            names.append(f"{file}:{number}")
    return names, rows


def _numbers(file: Path) -> Iterator[tuple[int, list[float]]]:
    """Line number and numbers of each row of a CSV file that is not empty."""
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), 1):
                values = [float(value) for value in row]
                if not all(map(math.isfinite, values)):
                    raise ValueError("a number that is not finite")
                if values:
                    yield number, values
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {file}") from error
    except PermissionError as error:
        raise AccessError(f"{file} may not be read; change its rights") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not a table of text: {error}") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{file}, line {number}: {error}; a table holds numbers and no header") from error


def _write(found: Iterable[Prediction], form: str, target: Target) -> None:
    """jsonl: item, labels, scores. csv, table: item and label with its score, or item and a column for each output."""
    if form == "jsonl":
        for one in found:
            click.echo(json.dumps(asdict(one)))
        return
    names = target.names or tuple(map(str, range(target.size or 0)))
    is_classes = target.kind == "classes"
    header = ["item", "label", "score"] if is_classes else ["item", *names]
    rows = (
        [one.item, *(one.labels if is_classes else ()), *(f"{x:.6g}" for x in _shown(one, is_classes))] for one in found
    )
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        return
    for row in rows:
        cells = row if is_classes else [row[0], *(f"{name} {cell}" for name, cell in zip(names, row[1:], strict=True))]
        click.echo("  ".join(cells))


def _shown(one: Prediction, is_classes: bool) -> Sequence[float]:
    return (max(one.scores),) if is_classes else one.scores
