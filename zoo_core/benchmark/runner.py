"""Runs a grid into a run folder: missing trials are run, each result is stored at once, a killed run can continue.

The folder holds results.jsonl and zoo.lock. Only this process writes to it, and only one process at a time. Scores do
not depend on the number of workers: each has the same number of threads, and a trial draws only from its own seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo_core.benchmark import forking
from zoo_core.benchmark.grid import Grid, Refusal, Suite, expand
from zoo_core.benchmark.groups import Group
from zoo_core.benchmark.halving import Leg
from zoo_core.benchmark.pool import run_all
from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.provenance import without_score
from zoo_core.benchmark.rounds import Rounds
from zoo_core.contracts.old_words import current_text
from zoo_core.errors import AccessError, NotFoundError, UsageError, ZooError
from zoo_core.lock import check_lock, lock_of, part_key, pins_of, read_lock, read_pins, told_apart, write_lock
from zoo_core.plan.plan import Plan
from zoo_core.registry.local_plugins import check_files
from zoo_core.results.outdated import marks
from zoo_core.results.store import UNMEASURED, Result, RunLock, amend, append, latest, read
from zoo_core.run_layout import LOCK, RESULTS, RUN

if TYPE_CHECKING:
    from zoo_core.files.fetch import DownloadProgress
    from zoo_core.registry.bind import Bound

__all__ = ["RunEvent", "open_grid", "prepare_folder", "run_grid"]


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """The progress of a run: how many of all trials are done, and what is new.

    download: the progress of a download. report: the progress of the trial `plan`. result: the result of that trial.
    superseded: the number of stored results that were just found to be made from files that have changed.
    num_waiting: of the trials that are not done, those of which something waits at a rung, when the run begins.
    waiting: what the trial `plan` has reached at a rung of halving.
    """

    done: int
    total: int
    superseded: int = 0
    num_waiting: int = 0
    download: DownloadProgress | None = None
    plan: Plan | None = None
    report: TrialProgress | None = None
    result: Result | None = None
    waiting: Result | None = None


def open_grid(suite: Suite, out: Path, *, lock: Path | None = None, frozen: bool = False) -> Grid:
    """The trials of a suite with the files of each pinned: by the lock of a continued run, by `lock`, or by asking.

    frozen: send no request and download nothing. What no lock pins, or is not here, raises NotFoundError.
    """
    pins = read_pins(lock) | told_apart(pins_of(read_lock(out / LOCK)))[0]  # folders are looked at anew

    def pin(plan: Plan) -> Plan:
        from zoo_core.files.fetch import pin_plan  # a quarter of a second, for grids that need it

        return pin_plan(plan)

    grid = expand(suite, pins=pins, pin=None if frozen else pin, offline=frozen)
    if frozen and any(plan.sources for plan in grid.plans):
        from zoo_core.files.fetch import files_of, pin_plans  # as above

        plans = {_key(plan): plan for plan in pin_plans(grid.plans, frozen=True)}
        grid = replace(grid, plans=tuple(plans.values()))
        for plan, part in _distinct_parts(grid.plans):
            files_of(plan, part, offline=True)
    return grid


def run_grid(
    grid: Grid,
    out: Path,
    *,
    num_workers: int,
    threads: int = 1,
    device: str = "cpu",
    retry: bool = False,
    share: bool = True,
    trial_time_limit: float | None = None,
    watch: Callable[[RunEvent], None] = lambda _: None,
) -> list[Result]:
    """Runs what is missing of a grid. Returns all results, old and new, in the order of the grid.

    threads: of each worker. Another number may change the last bits of a score on a CPU.
    retry: run failed trials again. Otherwise a failure is a result like any other.
    share: whether trials share work. A group of which a result is missing is run whole, as it was planned, and what is
    missing is kept of it.
    trial_time_limit: in s of wall time; an attempt at a trial that takes longer is ended, and failed. None: no limit.
    Raises UsageError (the folder holds a fitted model), AccessError (it cannot be written), IntegrityError (damaged
    results), IncompatibleError (it was made with other versions or weights). Stored results are never lost.
    """
    if trial_time_limit is not None and not trial_time_limit > 0:
        raise UsageError(f"trial_time_limit={trial_time_limit}: allowed: a number of seconds above 0")
    if (out / RUN).exists():
        raise UsageError(f"{out} holds a fitted model ({RUN}), and a bench stores results; give --out another folder")
    for plan in grid.plans:
        check_files(plan.parts, elsewhere=True)
    prepare_folder(out)
    with RunLock(out):
        path, num_superseded = out / RESULTS, _supersede(grid, out)
        known = _known(out)
        missing = _missing(grid, known, retry=retry)
        rounds = Rounds(grid.plans, out, known, missing, share=share)
        earlier = max((row.after_seconds or 0.0 for row in known.values()), default=0.0)
        began = time.monotonic() - max(earlier, rounds.seconds)

        def timed(result: Result) -> Result:
            return replace(result, after_seconds=round(time.monotonic() - began, 3))

        def keep(result: Result) -> None:
            append(path, result)
            known[result.digest] = result

        for refused in map(_refused, grid.refusals):
            if refused.digest not in known or known[refused.digest].reason != refused.reason:
                keep(refused)
        done, total = len(grid.plans) - len(missing), len(grid.plans)
        watch(RunEvent(done=done, total=total, superseded=num_superseded, num_waiting=rounds.num_waiting))

        def tell(progress: DownloadProgress) -> None:
            watch(RunEvent(done=done, total=total, download=progress))

        def close(plan: Plan, result: Result) -> RunEvent:
            nonlocal done
            result = rounds.with_rungs(result)
            keep(timed(result))
            rounds.forget(result.digest)
            done += 1
            return RunEvent(done=done, total=total, plan=plan, result=result)

        plans = {_key(plan): plan for plan in grid.plans}
        options: dict[str, Any] = {"num_workers": num_workers, "threads": threads, "device": device}
        options["trial_time_limit"] = trial_time_limit
        for now in rounds:
            with closing(_run(grid.plans, rounds.groups(now), tell, leg=rounds.leg(now), **options)) as events:
                for plan, report, result in events:
                    if result is None:
                        watch(RunEvent(done=done, total=total, plan=plan, report=report))
                    elif rounds.is_wanted(plan):
                        waits = rounds.waits(plan, timed(result), now)
                        event = RunEvent(done=done, total=total, plan=plan, waiting=result)
                        watch(event if waits else close(plan, result))
            for result in rounds.decided(now):
                watch(close(plans[result.digest], result))
    wanted = [*(_key(plan) for plan in grid.plans), *(_refused(refusal).digest for refusal in grid.refusals)]
    return [known[digest] for digest in wanted]


def _run(
    plans: Sequence[Plan],
    groups: Sequence[Group],
    tell: Callable[[DownloadProgress], None],
    *,
    num_workers: int,
    threads: int,
    device: str,
    trial_time_limit: float | None,
    leg: Leg | None,
) -> Generator[tuple[Plan, TrialProgress | None, Result | None]]:
    """Runs groups of plans: what is new of which. Those whose files cannot be had come first. tell: is told of
    downloads. leg: how far trials go.
    """
    if not groups:
        return
    forking.begin()
    wanted = [position for group in groups for position in group.positions]
    lost = _fetch({position: plans[position] for position in wanted}, tell)
    for position, reason in lost.items():
        yield plans[position], None, without_score(plans[position], reason, device=device, threads=threads)
    left = [replace(group, positions=tuple(each for each in group.positions if each not in lost)) for group in groups]
    left = [group for group in left if group.positions]
    running = run_all(
        plans,
        left,
        num_workers=num_workers,
        device=device,
        threads=threads,
        trial_time_limit=trial_time_limit,
        leg=leg,
    )
    with closing(running) as events:
        for event in events:
            yield plans[event.position], event.report, event.result


def prepare_folder(out: Path) -> None:
    """Creates the folder of a run. Raises UsageError or AccessError if that is not possible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{out} is a file, or lies in one; give --out a folder") from None
    except OSError as error:
        raise AccessError(f"{out} cannot be made ({error.strerror}); give --out another folder") from error


def _fetch(plans: Mapping[int, Plan], report: Callable[[DownloadProgress], None]) -> dict[int, str]:
    """Downloads the files of all plans before any of them runs. Returns why those of some are missing, by position.

    A backbone that must be inspected before its weights are fetched is left to the worker that builds it.
    """
    parts = [
        (plan, part)
        for plan, part in _distinct_parts(list(plans.values()))
        if not (plan.deferred and part is plan.backbone)
    ]
    if not parts:
        return {}
    from zoo_core.files.fetch import files_of  # a quarter of a second, for runs that need it

    reasons: dict[str, str] = {}
    for plan, part in parts:
        try:
            files_of(plan, part, progress=report)
        except ZooError as error:
            reasons[part_key(part)] = str(error)
    lost = {
        position: [reasons[part_key(part)] for part in plan.parts if part_key(part) in reasons]
        for position, plan in plans.items()
    }
    return {position: why[0] for position, why in lost.items() if why}


def _distinct_parts(plans: Sequence[Plan]) -> list[tuple[Plan, Bound]]:
    """Each part that has files, with one of its plans, where plans with pre-trained weights come first."""
    found: dict[str, tuple[Plan, Bound]] = {}
    for plan in sorted(plans, key=lambda plan: plan.weights == "random"):
        for part in plan.parts:
            if part_key(part) in plan.sources:
                found.setdefault(part_key(part), (plan, part))
    return list(found.values())


def _supersede(grid: Grid, out: Path) -> int:
    """Writes what the grid is made from into the run's lock, and marks outdated rows. Returns the number newly marked.

    The rows are written first: after a kill in between, the old lock is still there, and the next call does both.
    """
    parts = [part for plan in grid.plans for part in plan.parts]
    pins = {key: pin for plan in grid.plans for key, pin in plan.pins.items()}
    path, wanted = out / LOCK, lock_of(parts, pins)
    held = read_lock(path)
    if held is not None and not (out / RESULTS).exists():
        raise UsageError(f"{out} holds a {LOCK} and no {RESULTS}, so it is of no bench; give --out another folder")
    (out / RESULTS).touch()  # which tells from now on whose the lock is
    lock = wanted if held is None else check_lock(path, held, wanted)
    rows = read(out / RESULTS)
    refused = [current_text(str(refusal.trial)) for refusal in grid.refusals]
    changes = marks(rows, grid.plans, refused, held=held, lock=lock)
    if changes:
        amend(out / RESULTS, changes)
    if lock != held:
        write_lock(path, lock)
    return sum(bool(change["superseded"]) and rows[position].superseded is None for position, change in changes.items())


def _key(plan: Plan) -> str:
    assert plan.digest is not None, "a grid holds pinned plans"
    return plan.digest


def _known(out: Path) -> dict[str, Result]:
    try:
        return latest(read(out / RESULTS))
    except (NotFoundError, UsageError):  # no results yet, or no folder, which prepare_folder tells of
        return {}


def _missing(grid: Grid, known: Mapping[str, Result], *, retry: bool) -> frozenset[str]:
    """The digests of the trials that are to be run."""
    results = {_key(plan): known.get(_key(plan)) for plan in grid.plans}
    return frozenset(
        digest for digest, found in results.items() if found is None or (retry and found.status == "failed")
    )


def _refused(refusal: Refusal) -> Result:
    """A refused trial as a result. It has no plan, so its text serves as its digest."""
    trial, text = refusal.trial, current_text(str(refusal.trial))
    backbone, *rest = trial.spec.parts
    return Result(
        **UNMEASURED,
        trial=text,
        digest=f"refused: {text}",
        record=None,
        status="refused",
        reason=refusal.reason,
        metric="",
        versions={},
        device="",
        threads=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        backbone=str(backbone),
        adapters="+".join(str(part) for part in rest),
        head="",
        task=current_text(str(trial.task)),
        seed=trial.seed,
        weights="random" if dict(backbone.arguments).get("weights") == "random" else "pretrained",
        sources={},
    )
