"""Grid -> run folder: what is missing is run, each result is written as it comes, and a killed run goes on.

The folder holds results.jsonl and zoo.lock. Only this process writes to it, and only one at a time. Scores do not
depend on the number of workers: each has the same number of threads, and a trial draws from its own seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zoo_core.errors import AccessError, NotFoundError, UsageError
from zoo_core.interrupts import held_back
from zoo_core.lock import check_lock, lock_of, read_lock, write_lock
from zoo_core.resolve import Plan
from zoo_core.store import Result, RunLock, append, latest, read
from zoo_core.suites import forking
from zoo_core.suites.grid import Grid, Refusal

if TYPE_CHECKING:
    from zoo_core.suites.trial import Report

__all__ = ["News", "prepare_folder", "run_grid"]

RESULTS = "results.jsonl"
MODEL = "run.json"  # what a fit writes last; runs.py needs torch, and a mistake is told before that


@dataclass(frozen=True, kw_only=True)
class News:
    """Where a run stands: trials done of all, and what is new: a report of a plan under way, or a result."""

    done: int
    total: int
    plan: Plan | None = None
    report: Report | None = None
    result: Result | None = None


def run_grid(
    grid: Grid,
    out: Path,
    *,
    num_workers: int,
    threads: int = 1,
    device: str = "cpu",
    retry: bool = False,
    watch: Callable[[News], None] = lambda _: None,
) -> list[Result]:
    """Every result of a grid, those that were there and those run now, in the order of the grid.

    threads: of each worker; another number may change the last bits of a score on a CPU.
    retry: run again what failed before; otherwise a failure is a result like any other.
    Raises UsageError (the folder holds a fitted model), AccessError (it cannot be written), IntegrityError (damaged
    results), IncompatibleError (it was made with other versions or weights). Nothing that was there is lost.
    """
    if (out / MODEL).exists():
        raise UsageError(f"{out} holds a fitted model ({MODEL}), and a bench stores results; give --out another folder")
    prepare_folder(out)
    with RunLock(out):
        _lock(grid.plans, out)
        path, known = out / RESULTS, _known(out)
        for refused in map(_refused, grid.refusals):
            if refused.digest not in known:
                append(path, refused)
                known[refused.digest] = refused
        missing = _missing(grid, known, retry=retry)
        done, total = len(grid.plans) - len(missing), len(grid.plans)
        watch(News(done=done, total=total))
        if missing:
            forking.begin()
            with held_back():
                from zoo_core.suites.workers import run_all  # torch: what is told before this point is told at once

            with closing(run_all(missing, num_workers=num_workers, device=device, threads=threads)) as events:
                for event in events:
                    if event.result is not None:
                        append(path, event.result)
                        known[event.result.digest] = event.result
                        done += 1
                    plan = missing[event.position]
                    watch(News(done=done, total=total, plan=plan, report=event.report, result=event.result))
    wanted = [*(_key(plan) for plan in grid.plans), *(_refused(refusal).digest for refusal in grid.refusals)]
    return [known[digest] for digest in wanted]


def prepare_folder(out: Path) -> None:
    """Makes a run's folder; raises UsageError or AccessError when that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{out} is a file, or lies in one; give --out a folder") from None
    except OSError as error:
        raise AccessError(f"{out} cannot be made ({error.strerror}); give --out another folder") from error


def _lock(plans: Sequence[Plan], out: Path) -> None:
    parts = [part for plan in plans for part in plan.parts]
    pins = {key: pin for plan in plans for key, pin in plan.pins.items()}
    path, wanted = out / "zoo.lock", lock_of(parts, pins)
    held = read_lock(path)
    write_lock(path, wanted if held is None else check_lock(path, held, wanted))


def _key(plan: Plan) -> str:
    assert plan.digest is not None, "a grid holds pinned plans"
    return plan.digest


def _known(out: Path) -> dict[str, Result]:
    try:
        return latest(read(out / RESULTS))
    except (NotFoundError, UsageError):  # no results yet, or no folder, which prepare_folder tells of
        return {}


def _missing(grid: Grid, known: Mapping[str, Result], *, retry: bool) -> list[Plan]:
    results = ((plan, known.get(_key(plan))) for plan in grid.plans)
    return [plan for plan, result in results if result is None or (retry and result.status == "failed")]


def _refused(refusal: Refusal) -> Result:
    """A refused trial as a result; its digest is its text, since it has no plan."""
    trial = refusal.trial
    backbone, *rest = trial.spec.parts
    return Result(
        trial=str(trial),
        digest=f"refused: {trial}",
        record=None,
        status="refused",
        reason=refusal.reason,
        metric="",
        score=None,
        split="test",
        num_examples=0,
        chosen=None,
        num_trainable=None,
        num_parameters=None,
        train_seconds=None,
        training=None,
        inference=None,
        peak_memory_bytes=None,
        coverage=None,
        versions={},
        device="",
        threads=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        backbone=str(backbone),
        adapters="+".join(str(part) for part in rest),
        head="",
        task=str(trial.task),
        seed=trial.seed,
        weights="random" if dict(backbone.arguments).get("weights") == "random" else "pretrained",
    )
