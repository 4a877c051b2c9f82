"""`zoo fit` and `zoo distill` train, score and store one model; `zoo evaluate` scores a stored one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zoo_core._process.interrupts import held_back
from zoo_core.benchmark.grid import check_shots
from zoo_core.cli.completion import complete_backbones, complete_spec, complete_tasks
from zoo_core.cli.data import told
from zoo_core.cli.downloads import downloading
from zoo_core.cli.options import (
    check_device,
    device_option,
    fitting,
    lock_file,
    lock_options,
    memory_options,
    passes_text,
    prepare_process,
    taken_micro_batch,
    threads_option,
)
from zoo_core.cli.plan import lines_of
from zoo_core.errors import ZooError
from zoo_core.lock import part_key, read_pins
from zoo_core.plan.plan import Budget, budget_from
from zoo_core.plan.resolve import resolve
from zoo_core.run_layout import UNFINISHED, refuse_held

if TYPE_CHECKING:
    from zoo_core.benchmark.evaluation import Evaluation
    from zoo_core.plan.plan import Plan
    from zoo_core.results.store import Result

__all__ = ["distill", "evaluate", "fit"]

Command = TypeVar("Command", bound=Callable[..., Any])

SHOWN = 6  # classes that a line names


def fit_options(command: Command) -> Command:
    """Adds the options that `zoo fit` and `zoo distill` share, behind what they fit on."""
    dry_run = "Show the plan, the download, memory and time; store and fetch nothing."
    for option in (
        device_option,
        threads_option,
        click.option("--num-workers", type=int, default=0, show_default=True, help="Processes that prepare ahead."),
        lock_options,
        click.option("--dry-run", is_flag=True, help=dry_run),
        memory_options,
        click.option("--no-share", is_flag=True, help="Run a frozen backbone again in every epoch, for reference."),
        click.option("--seed", type=int, default=0, show_default=True, help="Decides draws, new weights and order."),
        click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the fitted model."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What the options of `fit_options` say. lock: the file of an own lock that was named or lies here."""

    out: Path
    seed: int
    budget: Budget
    micro_batch: int | str | None
    checkpoint_activations: bool
    no_share: bool
    dry_run: bool
    lock: Path | None
    frozen: bool
    num_workers: int
    device: str

    @classmethod
    def of(cls, *, threads: int | None, **given: Any) -> FitOptions:
        """Checks what click has read, and sets the threads of this process. Raises UsageError."""
        budget = {field.name: given.pop(field.name) for field in fields(Budget) if field.name in given}
        given["micro_batch"] = taken_micro_batch(budget, given["micro_batch"])
        chosen = budget_from({name: value for name, value in budget.items() if value is not None})
        given["device"] = check_device(given["device"])
        prepare_process(threads)
        given["lock"] = lock_file(given["lock"])
        return cls(budget=chosen.for_fit(), **given)

    def trial(self) -> dict[str, Any]:
        """What a plan is made from, beside spec and task."""
        return {"budget": self.budget, "seed": self.seed, "pins": read_pins(self.lock), "offline": self.frozen}


@click.command()
@click.argument("spec", shell_complete=complete_spec)
@click.option(
    "--task",
    required=True,
    help="What to fit on: a task, 'digits(shots=10)', or the path of your files.",
    shell_complete=complete_tasks,
)
@fit_options
def fit(spec: str, task: str, **given: Any) -> None:
    """Fit one model: a learning rate is chosen on validation, the model is scored on test and stored.

    Interrupted or killed, the same command goes on after the last epoch that was stored, in OUT/unfinished.

    \b
    zoo fit 'starter/vit-nano+partial(n=2)' --task digits --out runs/my-digits
    """  # noqa: D301 - click reads the character \b as: keep these lines
    options = FitOptions.of(**given)
    plan = resolve(spec, task=told(task, lock=options.lock, frozen=options.frozen), **options.trial())
    _fit(plan, options, title=spec)


@click.command()
@click.argument("teacher", shell_complete=complete_backbones)
@click.argument("student", shell_complete=complete_spec)
@click.option(
    "--data",
    required=True,
    help="Examples: a folder or file of pictures, sounds, texts or arrays, or a task, whose labels are not looked at.",
    shell_complete=complete_tasks,
)
@fit_options
def distill(teacher: str, student: str, data: str, **given: Any) -> None:
    """Fit a student that learns what a teacher says of examples, without any label.

    TEACHER is a folder that `zoo fit` made, hub/ORG/NAME, or the name of a backbone. From a fitted model comes one that
    predicts the same; from a backbone a run that is a backbone too. STUDENT is a spec that opens its backbone, of any
    family and input size. Rate and epoch are chosen by agreement with the teacher on held-out examples.

    \b
    zoo distill runs/big 'starter/convnet-nano+full' --data ./photos --out runs/small
    zoo distill starter/vit-nano 'starter/convnet-nano+full' --data digits --out runs/backbone
    """  # noqa: D301 - click reads the character \b as: keep these lines
    with held_back():
        from zoo_core.benchmark.distilling import plan_distillation, unlabelled_part

    options = FitOptions.of(**given)
    task = told(data, lock=options.lock, frozen=options.frozen, reads=unlabelled_part)
    plan = plan_distillation(teacher, student, task=task, **options.trial())
    _fit(plan, options, title=student)
    if options.dry_run:
        return
    if plan.target.kind == "unlabelled":
        click.echo(f"it is a backbone: 'run(path=\"{options.out}\")' in a spec, or zoo embed {options.out} FILE...")
    else:
        click.echo(f"it predicts {_shown_target(plan)}: zoo predict {options.out} FILE...")


def _shown_target(plan: Plan) -> str:
    names = plan.target.names
    if not names:
        return f"{plan.target.kind}, {plan.target.size} outputs"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{plan.target.kind}, {', '.join(names[:SHOWN])}{more}"


def _fit(plan: Plan, options: FitOptions, *, title: str) -> None:
    """Fetches what a plan needs, runs it, stores the model, and prints what came of it; or tells what it would do."""
    if options.dry_run:
        _dry_run(plan, options)
        return
    with held_back():
        from zoo_core.api import fetch
        from zoo_core.api import fit as run
        from zoo_core.files.fetch import pin_plan
        from zoo_core.training.snapshots import standing

    out = options.out
    plan = pin_plan(plan, frozen=options.frozen)
    with downloading() as progress:
        fetch(plan, frozen=options.frozen, progress=progress)
    stands = standing(out / UNFINISHED)
    if stands is not None:
        click.echo(f"an unfinished fit is in {out}: {stands}", err=True)
    with fitting(title) as report:
        _, result = run(
            plan,
            out=out,
            device=options.device,
            num_workers=options.num_workers,
            frozen=options.frozen,
            micro_batch=options.micro_batch,
            checkpoint_activations=options.checkpoint_activations,
            share=not options.no_share,
            report=report,
        )
    for line in _result_lines(result, plan):
        click.echo(line)
    click.echo(f"{result.num_trainable} of {result.num_parameters} parameters trained; stored in {out}")


def _result_lines(result: Result, plan: Plan) -> Iterator[str]:
    """Lines with the test score, the validation score of each candidate, the micro-batch if one was asked for, and what
    teachers were asked for.
    """
    assert result.chosen is not None, "a fit that came back chose something"
    assert plan.task is not None, "a trial has a task"
    held_out = "held-out examples, with the teacher" if plan.task.target.kind == "unlabelled" else "test examples"
    yield f"{result.metric} {result.score:.4f} on {result.num_examples} {held_out}"
    for candidate in result.chosen["candidates"]:
        rate = candidate["learning_rate"]
        mark = " <- chosen" if rate == result.chosen["learning_rate"] else ""
        name = "closed form" if rate is None else f"learning rate {rate:g}"
        found = candidate["validation_score"]
        kept = f" after epoch {candidate['epoch']} of {candidate['epochs']}" if "epoch" in candidate else ""
        kept += f", stopped after epoch {candidate['stopped_after']}" if "stopped_after" in candidate else ""
        yield f"  {name}: {'diverged' if found is None else f'validation {found:.4f}'}{kept}{mark}"
    if "micro_batch" in result.chosen:
        yield f"{result.chosen['micro_batch']} examples in a pass, {plan.budget.batch_size} in a step"
    if result.teachers is not None:
        yield passes_text(result.teachers)


def _dry_run(plan: Plan, options: FitOptions) -> None:
    """Prints what a fit would build and download, and its memory and time, and refuses a folder that it would refuse.

    What cannot be known without a download is printed as not known, with the reason.
    """
    from zoo_core.benchmark.dry_run import downloads, forecast, shown
    from zoo_core.training.gradient_trainer import MemoryOptions

    if not (options.out / UNFINISHED).is_dir():
        refuse_held(options.out)
    check_shots(plan)
    for line in lines_of(plan):
        click.echo(line)
    for key, size in downloads(plan).items():
        found = "nothing, it is here" if size == 0 else f"{size / 2**20:,.1f} MiB" if size else "unknown"
        if size is None and plan.entry and plan.entry.num_parameters and key == part_key(plan.backbone):
            found += f"; {plan.entry.num_parameters * 4 / 2**20:,.0f} MiB if its weights are float32"
        click.echo(f"{'download:':21}{key}, {found}")
    if not plan.sources:
        click.echo(f"{'download:':21}nothing")
    memory = MemoryOptions(micro_batch=options.micro_batch, checkpoint_activations=options.checkpoint_activations)
    try:
        expected = forecast(
            plan,
            device=options.device,
            num_workers=options.num_workers,
            memory=memory,
            share=not options.no_share,
        )
        measured = shown(expected)
    except ZooError as error:
        measured = {"memory and time": f"not known: {error}"}
    for name, text in measured.items():
        click.echo(f"{name + ':':21}{text}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    default="test",
    show_default=True,
    help="Which examples; those of the fit's own draw. all: every example of another task.",
)
@click.option(
    "--task",
    help="Another task than the fit's own, whose outputs are matched by name, or the path of labelled files.",
    shell_complete=complete_tasks,
)
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
@threads_option
@device_option
def evaluate(folder: Path, split: str, task: str | None, as_json: bool, threads: int | None, device: str) -> None:
    """Score a fitted model on a split of its task, with a report for each class and a confusion matrix.

    \b
    zoo evaluate runs/my-digits
    zoo evaluate runs/my-digits --task digits
    """  # noqa: D301 - click reads the character \b as: keep these lines
    with held_back():
        from zoo_core.api import evaluate as run

    prepare_process(threads)
    found = run(folder, split=split, task=task, device=check_device(device))
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
