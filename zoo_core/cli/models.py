"""`zoo fit`, `zoo evaluate`, `zoo predict`: one model, trained, scored, used."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo_core.cli.options import budget_options, check_device, device_option, fitting
from zoo_core.errors import NotFoundError, UsageError
from zoo_core.resolve import budget_from

if TYPE_CHECKING:
    from zoo_core.api import Evaluation, Prediction

__all__ = ["evaluate", "fit", "predict"]


@click.command()
@click.argument("spec")
@click.option("--task", required=True, help="What to fit on: a task by name, 'digits(shots=10)'.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the fitted model.")
@click.option("--seed", type=int, default=0, show_default=True)
@budget_options
@click.option("--num-workers", type=int, default=0, show_default=True, help="Processes that prepare data ahead.")
@device_option
def fit(spec: str, task: str, out: Path, seed: int, num_workers: int, device: str, **budget: Any) -> None:
    r"""Fit one model: a learning rate is chosen on validation, the model is scored on test and stored.

    \b
    zoo fit 'starter/vit-nano+partial(n=2)' --task digits --out runs/my-digits
    """
    from zoo_core.api import fit as run

    chosen = budget_from({name: value for name, value in budget.items() if value is not None})
    with fitting(spec) as report:
        _, result = run(
            spec,
            task=task,
            out=out,
            budget=chosen,
            seed=seed,
            device=check_device(device),
            num_workers=num_workers,
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
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
@device_option
def evaluate(folder: Path, split: str, as_json: bool, device: str) -> None:
    r"""Score a fitted model on a split of its task, with a report for each class and a confusion matrix.

    \b
    zoo evaluate runs/my-digits
    """
    from zoo_core.api import evaluate as run

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
@click.option("--format", "form", type=click.Choice(["table", "csv", "jsonl"]), default="table", show_default=True)
@device_option
def predict(folder: Path, files: tuple[Path, ...], form: str, device: str) -> None:
    r"""Predict with a fitted model: pictures, or CSV files of numbers (a row an example) for a table model.

    One line for each item, in the order given.

    \b
    zoo predict runs/my-digits scan1.png scan2.png --format csv
    """
    from zoo_core.api import load_run
    from zoo_core.api import predict as run

    learner = load_run(folder)
    modality = learner.source.modality
    names, items = _rows(files) if modality == "table" else _pictures(files, modality)
    _write(run(learner, items, names=names, device=check_device(device)), form)


def _pictures(files: Sequence[Path], modality: str) -> tuple[list[str], list[Any]]:
    if modality != "image":
        raise UsageError(f"zoo predict reads pictures and tables; this model reads {modality}")
    from PIL import Image, UnidentifiedImageError

    pictures = []
    for file in files:
        try:
            with Image.open(file) as picture:
                pictures.append(picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB"))
        except FileNotFoundError as error:
            raise NotFoundError(f"no file {file}") from error
        except (UnidentifiedImageError, OSError) as error:
            raise UsageError(f"{file} is not a picture that can be read: {error}") from error
    return [str(file) for file in files], pictures


def _rows(files: Sequence[Path]) -> tuple[list[str], list[list[float]]]:
    names, rows = [], []
    for file in files:
        if not file.is_file():
            raise NotFoundError(f"no file {file}")
        with file.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), 1):
                try:
                    rows.append([float(value) for value in row])
                except ValueError as error:
                    raise UsageError(f"{file}, line {number}: {error}; a table holds numbers and no header") from error
                names.append(f"{file}:{number}")
    return names, rows


def _write(found: Iterable[Prediction], form: str) -> None:
    writer = csv.writer(sys.stdout)
    if form == "csv":
        writer.writerow(["item", "label", "score"])
    for one in found:
        label = ", ".join(one.labels)
        best = max(one.scores)
        if form == "jsonl":
            click.echo(json.dumps(asdict(one)))
        elif form == "csv":
            writer.writerow([one.item, label, f"{best:.6g}"])
        else:
            click.echo(f"{one.item}  {label}  {best:.4g}")
