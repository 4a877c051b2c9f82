"""Options that several commands share: the budget, the device, and how a fit shows its progress."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zoo_core.cli.completion import complete_augmentations
from zoo_core.errors import UsageError
from zoo_core.plan.plan import Budget
from zoo_core.run_layout import LOCK

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from zoo_core.benchmark.progress import TrialProgress

__all__ = [
    "DURATION",
    "Measure",
    "budget_options",
    "check_count",
    "check_device",
    "device_option",
    "fitting",
    "lock_file",
    "lock_option",
    "lock_options",
    "memory_options",
    "passes_text",
    "prepare_process",
    "taken_micro_batch",
    "threads_option",
    "typed",
]

Command = TypeVar("Command", bound=Callable[..., Any])

MAX_PROCESSES = 1024  # of processes or threads; a larger number is taken for a typing mistake
LINE_SECONDS = 10.0
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # CUDA, ROCm, WSL; without them torch is not asked


class Augmentation(click.types.StringParamType):
    """The text of an augmentation. A shell completes the names; they are looked up only when a plan is made."""

    name = "augmentation"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete_augmentations(ctx, param, incomplete)


BUDGET_FLAGS: tuple[tuple[str, Any, str], ...] = (
    ("--epochs", int, "Passes over the training split."),
    ("--batch-size", int, "Examples in a step."),
    ("--num-rates", int, "Learning rates tried, 1 to 5; validation chooses."),
    ("--weight-decay", float, "Of AdamW; biases and norms have none."),
    ("--warmup", float, "Share of the steps with a rising rate."),
    ("--clip", float, "Largest norm of the gradient."),
    ("--augment", Augmentation(), "How training examples are varied: `zoo list augmentation`."),
    ("--views", int, "Different draws of the augmentation, which epochs take in turn."),
    ("--patience", int, "Stop after so many epochs without a better validation score."),
    ("--precision", click.Choice(["auto", "float32", "bfloat16"]), "auto: bfloat16 on a GPU, float32 elsewhere."),
    ("--halving", bool, "Stop the worse half at rungs, by validation: of the rates, and in a bench of all that runs."),
    ("--keep", click.Choice(["best", "last"]), "Weights of the epoch that is best on validation, or of the last."),
)
WITHOUT = {
    "patience": "never",
    "views": "one for each epoch",
    "keep": "best in fit, last in bench",
}  # what a default of None means


def budget_options(command: Command, flags: tuple[tuple[str, Any, str], ...] = BUDGET_FLAGS) -> Command:
    """Adds a flag for each field of Budget; its help shows the default. A flag that is not given has the value None.

    One for a field that is true or false has an opposite.
    """
    defaults = Budget()
    for flag, kind, text in reversed(flags):
        name = flag.removeprefix("--").replace("-", "_")
        shown = f"{text}  [default: {WITHOUT.get(name, getattr(defaults, name))}]"
        words = f"{flag}/--no-{name}" if kind is bool else flag
        command = click.option(words, type=kind, default=None, help=shown)(command)
    return command


class Measure(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """A number with a unit behind it, as 10m or 30M."""

    def __init__(self, name: str, units: Mapping[str, float]) -> None:
        self.name, self.units = name, units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]?)", str(value).strip())
        if found is None or found[2].lower() not in self.units or not float(found[1]):
            self.fail(
                f"{value!r} is no {self.name}; allowed: a number above 0 and one of {self._allowed()}", param, ctx
            )
        return float(found[1]) * self.units[found[2].lower()]

    def _allowed(self) -> str:
        return ", ".join(unit or "nothing" for unit in self.units)


DURATION = Measure("time", {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0})


class CountOrAuto(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """A whole number, or the word auto."""

    name = "count"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "[INTEGER|auto]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)


def memory_options(command: Command) -> Command:
    """Adds the flags of the budget, with --batch-size also taking auto, and the flags by which a fit saves memory."""
    micro = "Examples in a pass; the gradients of a step's passes add up. auto: as many as fit into memory."
    recompute = "Keep only what enters each stage, and compute the rest again: less memory, more time, the same bits."
    command = click.option("--checkpoint-activations", is_flag=True, help=recompute)(command)
    command = click.option("--micro-batch", type=CountOrAuto(), default=None, help=micro)(command)
    flags = tuple(
        (flag, CountOrAuto(), f"{text} auto: the default, in passes that fit into memory.")
        if flag == "--batch-size"
        else (flag, kind, text)
        for flag, kind, text in BUDGET_FLAGS
    )
    return budget_options(command, flags)


def taken_micro_batch(budget: dict[str, Any], micro_batch: int | str | None) -> int | str | None:
    """The micro-batch that the flags of `memory_options` ask for: a number of examples, auto, or None.

    A batch size of auto means a micro-batch of auto unless one is given; in `budget` it is replaced by None, which
    stands for the default batch size. Raises UsageError for a micro-batch below 1.
    """
    if isinstance(micro_batch, int) and micro_batch < 1:
        raise UsageError(f"--micro-batch {micro_batch}: allowed: 1 or more, or auto")
    if budget.get("batch_size") != "auto":
        return micro_batch
    budget["batch_size"] = None
    return "auto" if micro_batch is None else micro_batch


def typed(name: str, value: Any) -> Any:
    """The value of an option, or None if the value comes from a settings file or a variable."""
    source = click.get_current_context().get_parameter_source(name)
    return None if source is click.core.ParameterSource.DEFAULT_MAP else value


def threads_option(command: Command) -> Command:
    """Adds `--threads` to a command that computes in this process; its value goes to `prepare_process`."""
    text = "Threads on a CPU, which may change the last bits of a score; without it torch takes all processors."
    return click.option("--threads", type=int, help=text)(command)


def prepare_process(threads: int | None) -> None:
    """Sets the number of threads of torch, and makes this process keep freed memory for later use.

    threads: None leaves the number as it is. Raises UsageError for a number below 1 or above MAX_PROCESSES.
    """
    from zoo_core._process.malloc import keep_freed

    check_count("threads", threads)
    keep_freed()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def check_count(name: str, found: int | None) -> None:
    """Raises UsageError for a number of processes or threads below 1 or above MAX_PROCESSES; None passes."""
    if found is not None and not 1 <= found <= MAX_PROCESSES:
        raise UsageError(f"--{name} {found}: allowed: 1 to {MAX_PROCESSES}")


def lock_option(command: Command) -> Command:
    """Adds `--lock` to a command that reads a lock; its value goes through `lock_file`."""
    text = f"The lock that pins commits and hashes; without it {LOCK} of this folder, if there is one."
    return click.option("--lock", type=click.Path(path_type=Path), help=text)(command)


def lock_options(command: Command) -> Command:
    """Adds `--lock` and `--frozen` to a command that builds from a lock."""
    frozen = click.option("--frozen", is_flag=True, help="No network, and nothing that the lock does not pin.")
    return lock_option(frozen(command))


def lock_file(given: Path | None) -> Path | None:
    """The lock to read: the given one, or the one in this folder, or None if there is neither."""
    usual = Path(LOCK)
    return given or (usual if usual.is_file() else None)


def device_option(command: Command) -> Command:
    """Adds `--device`, whose default auto means a GPU if there is one."""
    return click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")(command)


def check_device(name: str) -> str:
    """The name of a device that exists, with auto replaced by cuda or cpu. Raises UsageError for any other."""
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (index.isdecimal() and kind == "cuda")):
        raise UsageError(f"--device {name}: not a device; allowed: auto, cpu, cuda, cuda:N")
    if kind == "cpu" or (kind == "auto" and not any(Path(file).exists() for file in GPU_FILES)):
        return "cpu"
    import torch

    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs; use --device cpu")
    return name


def passes_text(teachers: Mapping[str, Any]) -> str:
    """A line of what teachers were asked for, as a result stores it."""
    made, saved = teachers["made"], teachers["saved"]
    line = f"teacher: {made:,} passes made in {teachers['seconds']:.3g} s"
    return f"{line}, {saved:,} saved, as what they gave was stored" if saved else line


@contextmanager
def fitting(title: str) -> Iterator[Callable[[TrialProgress], None]]:
    """Shows one trial as a progress bar if standard error is a terminal, and as lines elsewhere.

    Yields the function to give as `report`.
    """
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, {task.fields[rate]:.0f} examples/s, loss {task.fields[loss]:.3f}, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=None, rate=0.0, loss=0.0)

        def report(trial: TrialProgress) -> None:
            step, steps = trial.progress.step, trial.progress.num_steps
            if trial.candidate == 0:
                progress.update(bar, total=steps, completed=step, rate=trial.progress.examples_per_second)
                return
            progress.update(
                bar,
                total=steps * trial.num_candidates,
                completed=steps * (trial.candidate - 1) + step,
                rate=trial.progress.examples_per_second,
                loss=trial.progress.loss,
            )

        yield report


def _lines() -> Callable[[TrialProgress], None]:
    """Prints a line at the end of each candidate and of each split's features, and otherwise every LINE_SECONDS."""
    last = time.monotonic()

    def report(trial: TrialProgress) -> None:
        nonlocal last
        step, now = trial.progress, time.monotonic()
        if step.step == step.num_steps or now - last >= LINE_SECONDS:
            last = now
            if trial.candidate == 0:
                click.echo(
                    f"features of {step.step} of {step.num_steps} examples, {step.examples_per_second:.0f} examples/s",
                    err=True,
                )
                return
            click.echo(
                f"learning rate {trial.candidate} of {trial.num_candidates}: {step.step} of {step.num_steps} steps, "
                f"{step.examples_per_second:.0f} examples/s, loss {step.loss:.3f}",
                err=True,
            )

    return report
