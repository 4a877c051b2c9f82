"""Worker processes: each plan has one result, whatever the plugin or the kernel does to its process."""

from __future__ import annotations

import multiprocessing
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from zoo_core.benchmark import forking
from zoo_core.benchmark.groups import Group, plan_groups
from zoo_core.benchmark.pool import _Pool, _Worker, run_all
from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.trial import run_trial
from zoo_core.benchmark.workers import attempt
from zoo_core.errors import DivergedError
from zoo_core.plan.plan import Budget, Plan
from zoo_core.results.store import Result
from zoo_core.training.progress import FitProgress

pytestmark = pytest.mark.usefixtures("nasty_in_workers")

TIMED = ("train_seconds", "training", "inference", "peak_memory_bytes", "created_at", "shared", "after_seconds")
BUDGET = Budget(epochs=2, num_rates=2)
FAILURES = {
    "raise": ("failed", "adapter 'trouble' of zoo-nasty 1.0 raised KeyError: 'a key\\nover two lines' at "),
    "raise nothing": ("failed", "adapter 'trouble' of zoo-nasty 1.0 raised RuntimeError at "),
    "refuse": ("refused", "this backbone has no such thing"),
    "nan": ("failed", "the loss is nan in epoch 2 at learning rate"),
    "exit": ("failed", "its process ended with exit code 3; run the same command with --retry to try it again"),
    "leave": ("failed", "SystemExit: leaving"),
    "kill": ("failed", "its process was killed by SIGKILL, perhaps for memory"),
    "segfault": ("failed", "its process was killed by SIGSEGV"),
    "memory": ("failed", "out of memory: "),
    "numpy": ("failed", "out of memory: Unable to allocate"),
}
Resolve = Callable[..., Plan]


@pytest.fixture(scope="module")
def plan(nasty: Any) -> Resolve:
    def resolved(spec: str = "nasty/tokens", **arguments: Any) -> Plan:
        found: Plan = nasty.resolve(spec, budget=BUDGET, **arguments)
        return found

    return resolved


def outcomes(
    plans: list[Plan], num_workers: int = 2, threads: int = 1, trial_time_limit: float | None = None
) -> list[Result]:
    """The result of each plan; each has exactly one."""
    found: dict[int, Result] = {}
    events = run_all(
        plans,
        plan_groups(plans),
        num_workers=num_workers,
        device="cpu",
        threads=threads,
        trial_time_limit=trial_time_limit,
    )
    for event in events:
        if event.result is not None:
            assert event.position not in found
            found[event.position] = event.result
    assert multiprocessing.active_children() == []
    return [found[position] for position in range(len(plans))]


def lasting(result: Result) -> dict[str, Any]:
    return {key: value for key, value in vars(result).items() if key not in TIMED}


@pytest.fixture(scope="module")
def failures(plan: Resolve) -> dict[str, Result]:
    """One trial for each way to fail, between trials that go well."""
    specs = ["nasty/tokens", *(f'nasty/tokens+trouble(how="{how}")' for how in FAILURES), "nasty/tokens+norm"]
    results = outcomes([plan(spec) for spec in specs])
    return dict(zip(["first", *FAILURES, "last"], results, strict=True))


@pytest.mark.parametrize("how", FAILURES)
def test_a_trial_that_goes_wrong_is_a_row_with_its_reason(failures: dict[str, Result], how: str) -> None:
    status, reason = FAILURES[how]
    result = failures[how]
    assert result.status == status
    assert reason in (result.reason or "")
    assert "\n" not in (result.reason or "")
    assert result.score is None
    assert f"nasty/tokens+trouble(how={how!r})".replace("'", "" if " " not in how else '"') in result.trial


def test_trials_before_and_after_go_on(failures: dict[str, Result]) -> None:
    assert (failures["first"].status, failures["last"].status) == ("ok", "ok")


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_workers_or_on_what_they_did_before(plan: Resolve) -> None:
    specs = ("nasty/tokens+full", "nasty/map(weights=random)+norm", "nasty/tokens+probe+ncm", "nasty/tokens+noise")
    plans = [plan(spec, seed=seed) for seed, spec in enumerate(specs)]
    one = outcomes(plans, num_workers=1)
    assert {result.status for result in one} == {"ok"}
    for results in (outcomes(plans, num_workers=3), outcomes(plans[::-1], num_workers=2)[::-1]):
        assert [lasting(result) for result in results] == [lasting(result) for result in one]


def test_a_trial_that_takes_too_long_is_ended(plan: Resolve) -> None:
    (result,) = outcomes([plan("nasty/tokens+trouble(how=sleep)")], trial_time_limit=1)
    assert (result.status, result.reason) == (
        "failed",
        "it was not done within 1 s; run the same command with --retry and a longer --trial-time-limit to try it again",
    )


@pytest.mark.parametrize(("num_trials", "again"), [(1, False), (2, True)])
def test_work_for_several_trials_has_its_time_again_with_each_report(
    plan: Resolve, num_trials: int, again: bool
) -> None:
    plans = [plan(), plan("nasty/tokens+probe+ncm")]
    pool = _Pool(plans, (), num_workers=1, device="cpu", threads=1, time_limit=60)
    ours, theirs = multiprocessing.Pipe()
    progress = FitProgress(step=1, num_steps=2, loss=0.0, examples_per_second=1.0)
    theirs.send((0, TrialProgress(candidate=0, num_candidates=1, progress=progress, num_trials=num_trials)))
    worker = _Worker(process=None, pipe=ours, group=plan_groups(plans)[0], left=[0, 1], began_at=0.0)
    assert [event.position for event in pool.hear(worker)] == [0]
    assert (worker.began_at > 0) == again


def test_a_group_that_is_taken_apart_stays_what_it_was_but_for_its_size(plan: Resolve) -> None:
    pool = _Pool([plan(), plan(seed=1)], (), num_workers=1, device="cpu", threads=1, time_limit=None)
    ours, _ = multiprocessing.Pipe()
    group = Group(id="some", positions=(0, 1), open_stages=2)
    worker = _Worker(process=None, pipe=ours, group=group, left=[1])
    pool._workers.append(worker)
    assert not list(pool._bury(worker, "it ended", "one ended", ""))
    assert list(pool._waiting) == [
        replace(group, positions=(1,), apart="one ended, so each of its trials ran by itself")
    ]


def test_reports_come_while_a_trial_runs_and_closing_ends_workers_that_are_busy(nasty: Any, plan: Resolve) -> None:
    slow = nasty.resolve("nasty/tokens+full", budget=Budget(epochs=60, batch_size=8, num_rates=1))
    plans = [slow, plan("nasty/tokens+trouble(how=sleep)")]
    events = run_all(plans, plan_groups(plans), num_workers=2, device="cpu", threads=1)
    reports = []
    for event in events:
        reports += [event.report] if event.report is not None and event.position == 0 else []
        if event.result is not None:
            break
    assert reports
    assert all(0 < report.progress.step <= report.progress.num_steps for report in reports)
    assert multiprocessing.active_children() != []
    began = time.monotonic()
    events.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - began < 10


@dataclass(frozen=True)
class Unsendable:
    """A recipe of a class that pickle does not find."""

    consumes = "pooled"


def test_a_plan_that_cannot_be_sent_or_read_fails_alone_and_each_row_says_its_threads(
    plan: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    Unsendable.__qualname__ = "nowhere.Unsendable"
    unsendable = plan()
    unsendable = replace(unsendable, head=replace(unsendable.head, recipe=Unsendable()))
    module = types.ModuleType("only_in_the_parent")

    @dataclass(frozen=True)
    class Recipe:
        consumes = "pooled"

    Recipe.__module__, Recipe.__qualname__ = "only_in_the_parent", "Recipe"
    module.Recipe = Recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_in_the_parent", module)
    unreadable = plan()
    unreadable = replace(unreadable, head=replace(unreadable.head, recipe=Recipe()))
    results = outcomes([unsendable, unreadable, plan(), plan(seed=1)], num_workers=1, threads=3)
    assert {result.threads for result in results} == {3}
    assert [result.status for result in results] == ["failed", "failed", "ok", "ok"]
    assert "its plan cannot be sent to a process: PicklingError" in (results[0].reason or "")
    assert "its plan cannot be read in a process: ModuleNotFoundError" in (results[1].reason or "")


def test_nothing_to_run_starts_nothing() -> None:
    assert outcomes([]) == []


# --- in this process -------------------------------------------------------------------------------------------------


def test_an_attempt_never_raises(plan: Resolve) -> None:
    for how in ("raise", "raise nothing", "refuse", "leave", "memory", "numpy"):
        result = attempt(plan(f'nasty/tokens+trouble(how="{how}")'), device="cpu")
        assert (result.status, FAILURES[how][1] in (result.reason or "")) == (FAILURES[how][0], True)


@pytest.mark.parametrize(
    ("task", "status", "reason"),
    [
        ("thirds(how=raise)", "failed", "task 'thirds' of zoo-nasty 1.0 raised ValueError: the disk is on fire at "),
        ('thirds(how="no test")', "failed", "the task has no test split; it has train, val"),
        ("thirds(shots=50)", "refused", "shots=50, and class left has 10 training examples"),
    ],
)
def test_a_task_that_goes_wrong_is_a_row_with_its_reason(plan: Resolve, task: str, status: str, reason: str) -> None:
    result = attempt(plan(task=task), device="cpu")
    assert result.status == status
    assert reason in (result.reason or "")


def test_a_rate_that_diverges_is_not_chosen_and_the_others_count(plan: Resolve) -> None:
    result, learner, _ = run_trial(plan("nasty/tokens+trouble(how=diverge)"))
    assert result.chosen is not None
    scores = [candidate["validation_score"] for candidate in result.chosen["candidates"]]
    assert [score is None for score in scores] == [True, False]  # the second of two rates is the default, fitted first
    assert result.chosen["validation_score"] == scores[1]
    assert not any(module.training for module in learner.modules())
    assert all(bool(tensor.isfinite().all()) for tensor in learner.delta().values() if tensor.is_floating_point())


def test_when_every_rate_diverges_the_trial_fails(plan: Resolve) -> None:
    with pytest.raises(DivergedError):
        run_trial(plan("nasty/tokens+trouble(how=nan)"))


def test_processors_are_those_of_the_affinity_and_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(forking, "QUOTA", quota)
    allowed = forking.num_processors()
    assert allowed >= 1
    for content, expected in (
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        (f"{allowed * 300000} 100000\n", allowed),
        ("max 100000\n", allowed),
        ("nonsense", allowed),
    ):
        quota.write_text(content)
        assert forking.num_processors() == expected
