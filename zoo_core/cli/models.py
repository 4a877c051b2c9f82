"""`zoo fit` trains, scores and stores one model; `zoo evaluate` scores a stored one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo_core._process.interrupts import held_back
from zoo_core.benchmark.grid import check_shots
from zoo_core.cli.completion import complete_spec, complete_tasks
from zoo_core.cli.data import told
from zoo_core.cli.downloads import downloading
from zoo_core.cli.options import (
    check_device,
    device_option,
    fitting,
    lock_file,
    lock_options,
    memory_options,
    prepare_process,
    taken_micro_batch,
    threads_option,
)
from zoo_core.cli.plan import lines_of
from zoo_core.errors import ZooError
from zoo_core.lock import part_key, read_pins
from zoo_core.plan.plan import budget_from
from zoo_core.plan.resolve import resolve
from zoo_core.run_layout import UNFINISHED

if TYPE_CHECKING:
    from zoo_core.api import Evaluation
    from zoo_core.plan.plan import Plan
    from zoo_core.results.store import Result
    from zoo_core.training.gradient_trainer import MemoryOptions

__all__ = ["evaluate", "fit"]


@click.command()
@click.argument("spec", shell_complete=complete_spec)
@click.option(
    "--task",
    required=True,
    help="What to fit on: a task, 'digits(shots=10)', or the path of your files.",
    shell_complete=complete_tasks,
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the fitted model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides draws, new weights and order.")
@memory_options
@click.option("--dry-run", is_flag=True, help="Show the plan, the download, memory and time; store and fetch nothing.")
@lock_options
@click.option("--num-workers", type=int, default=0, show_default=True, help="Processes that prepare data ahead.")
@threads_option
@device_option
def fit(
    spec: str,
    task: str,
    out: Path,
    seed: int,
    micro_batch: int | str | None,
    checkpoint_activations: bool,
    dry_run: bool,
    lock: Path | None,
    frozen: bool,
    num_workers: int,
    threads: int | None,
    device: str,
    **budget: Any,
) -> None:
    """Fit one model: a learning rate is chosen on validation, the model is scored on test and stored.

    Interrupted or killed, the same command goes on after the last epoch that was stored, in OUT/unfinished.

    \b
    zoo fit 'starter/vit-nano+partial(n=2)' --task digits --out runs/my-digits
    """  # noqa: D301 - click reads the character \b as: keep these lines
    with held_back():
        from zoo_core.api import fetch
        from zoo_core.api import fit as run
        from zoo_core.files.fetch import pin_plan
        from zoo_core.training.gradient_trainer import MemoryOptions
        from zoo_core.training.snapshots import standing

    micro_batch = taken_micro_batch(budget, micro_batch)
    chosen = budget_from({name: value for name, value in budget.items() if value is not None})
    device = check_device(device)
    prepare_process(threads)
    pins = lock_file(lock)
    plan = resolve(
        spec,
        task=told(task, lock=pins, frozen=frozen),
        budget=chosen.for_fit(),
        seed=seed,
        pins=read_pins(pins),
        offline=frozen,
    )
    if dry_run:
        memory = MemoryOptions(micro_batch=micro_batch, checkpoint_activations=checkpoint_activations)
        _dry_run(plan, device, num_workers, memory)
        return
    plan = pin_plan(plan, frozen=frozen)
    with downloading() as progress:
        fetch(plan, frozen=frozen, progress=progress)
    stands = standing(out / UNFINISHED)
    if stands is not None:
        click.echo(f"an unfinished fit is in {out}: {stands}", err=True)
    with fitting(spec) as report:
        _, result = run(
            plan,
            out=out,
            device=device,
            num_workers=num_workers,
            frozen=frozen,
            micro_batch=micro_batch,
            checkpoint_activations=checkpoint_activations,
            report=report,
        )
    for line in _result_lines(result, chosen.batch_size):
        click.echo(line)
    click.echo(f"{result.num_trainable} of {result.num_parameters} parameters trained; stored in {out}")


def _result_lines(result: Result, batch_size: int) -> Iterator[str]:
    """Lines with the test score, the validation score of each candidate, and the micro-batch if one was asked for."""
    assert result.chosen is not None, "a fit that came back chose something"
    yield f"{result.metric} {result.score:.4f} on {result.num_examples} test examples"
    for candidate in result.chosen["candidates"]:
        rate = candidate["learning_rate"]
        mark = " <- chosen" if rate == result.chosen["learning_rate"] else ""
        name = "closed form" if rate is None else f"learning rate {rate:g}"
        found = candidate["validation_score"]
        kept = f" after epoch {candidate['epoch']} of {candidate['epochs']}" if "epoch" in candidate else ""
        yield f"  {name}: {'diverged' if found is None else f'validation {found:.4f}'}{kept}{mark}"
    if "micro_batch" in result.chosen:
        yield f"{result.chosen['micro_batch']} examples in a pass, {batch_size} in a step"


def _dry_run(plan: Plan, device: str, num_workers: int, memory: MemoryOptions) -> None:
    """Prints what a fit would build and download, and its memory and time.

    What cannot be known without a download is printed as not known, with the reason.
    """
    from zoo_core.benchmark.dry_run import downloads, forecast, shown

    check_shots(plan)
    lines = lines_of(plan)
    for key, size in downloads(plan).items():
        found = "nothing, it is here" if size == 0 else f"{size / 2**20:,.1f} MiB" if size else "unknown"
        if size is None and plan.entry and plan.entry.num_parameters and key == part_key(plan.backbone):
            found += f"; {plan.entry.num_parameters * 4 / 2**20:,.0f} MiB if its weights are float32"
        lines.append(f"{'download:':21}{key}, {found}")
    if not plan.sources:
        lines.append(f"{'download:':21}nothing")
    try:
        lines += [
            f"{name + ':':21}{text}"
            for name, text in shown(forecast(plan, device=device, num_workers=num_workers, memory=memory)).items()
        ]
    except ZooError as error:
        lines.append(f"{'memory and time:':21}not known: {error}")
    for line in lines:
        click.echo(line)


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

    prepare_process(threads)
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
