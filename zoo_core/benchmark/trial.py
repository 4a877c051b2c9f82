"""Runs one trial: fits a candidate for each learning rate, chooses on validation, and scores the choice on test once.

The choice uses only the training and validation splits; `choose` does not get the test split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from zoo_core.benchmark.candidates import Candidates, Chosen, Waiting
from zoo_core.benchmark.groups import plan_groups
from zoo_core.benchmark.loaders import check_still, open_task, scoring_loader
from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.provenance import provenance
from zoo_core.benchmark.sharing import SharedWork, combination_of
from zoo_core.benchmark.start import Start, started
from zoo_core.benchmark.teaching import check_columns, check_enough, check_labels
from zoo_core.contracts import Split, Target, TaskData
from zoo_core.data.splits import Splits, carve
from zoo_core.model.learner import Learner
from zoo_core.model.replay import Passes
from zoo_core.plan.plan import Plan
from zoo_core.results.store import Result
from zoo_core.training.gradient_trainer import MemoryOptions
from zoo_core.training.metrics import score_split
from zoo_core.training.progress import FitProgress
from zoo_core.training.snapshots import Snapshot, UnfinishedFit
from zoo_core.training.timing import (
    count_parameters,
    inference_rate,
    inference_rate_of,
    peak_memory_bytes,
    precision_of,
    reset_peak_memory,
)

__all__ = [
    "choose",
    "run_on_features",
    "run_trial",
]


def run_trial(
    plan: Plan,
    *,
    data: TaskData | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    report: Callable[[TrialProgress], None] = lambda _: None,
    unfinished: UnfinishedFit | None = None,
    memory: MemoryOptions | None = None,
    shared: SharedWork | None = None,
    until: int | None = None,
) -> tuple[Result, Learner, Splits]:
    """Runs a trial. Returns its result, the chosen learner in evaluation mode on the device, and the splits it used.

    unfinished: the folder for snapshots; an interrupted trial continues from the last one.
    memory: how to save memory. The micro-batch that was given or found is in the result's `chosen`.
    shared: what it has in common with the trials of its group; None: it computes everything itself.
    until: the rung, in epochs, at which the trial waits unless it is on features. Its result then has the status
    stopped, no score, and what it has reached; the folder for snapshots has what it goes on from.
    """
    assert plan.task is not None, "a trial has a task"
    device = torch.device(device)
    data = (data or open_task(plan)) if shared is None else shared.data
    splits = carve(data, seed=plan.seed, target=plan.target, **plan.task.common)
    check_labels(plan, splits.train, splits.target)
    check_enough(splits.val, splits.test, splits.target)
    check_columns(plan, splits.train)
    reset_peak_memory(device)
    passes = Passes()
    examples = (splits.train, splits.val, splits.target)
    if until is not None:
        start = started(plan, *examples, device, num_workers, memory, passes, shared, until)
        waiting = _advance(start, None if start.is_on_features else until, report, unfinished)
        if isinstance(waiting, Waiting):
            check_still(plan)
            told = None
            if shared is not None:
                told = shared.told(plan, start.how, waiting.train_seconds, start.refusal)
            return replace(_so_far(plan, waiting, splits, device), shared=told), waiting.learner, splits
        chosen = waiting
    else:
        chosen = choose(
            plan,
            *examples,
            device=device,
            num_workers=num_workers,
            report=report,
            unfinished=unfinished,
            memory=memory,
            passes=passes,
            shared=shared,
        )
    result = _measured(plan, chosen, splits, device, num_workers, passes, shared)
    check_still(plan)
    return result, chosen.learner, splits


def run_on_features(
    plan: Plan,
    *,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    report: Callable[[TrialProgress], None] = lambda _: None,
    **given: Any,
) -> tuple[Result, Learner, Splits]:
    """As `run_trial`, which gets all else that is given; the frozen part, if all of it is, runs once over each example.

    The learning rates and epochs of the one trial share its features.
    """
    (group,) = plan_groups([plan])
    shared = None
    if group.shape == "features":
        shared = SharedWork(group, [plan], device=torch.device(device), num_workers=num_workers)
        shared.fill(report)
    return run_trial(plan, device=device, num_workers=num_workers, report=report, shared=shared, **given)


def _so_far(plan: Plan, waiting: Waiting, splits: Splits, device: torch.device) -> Result:
    """The row of a trial that waits at a rung. Nobody has looked at the test split."""
    trainable, total = count_parameters(waiting.learner)
    return replace(
        provenance(plan, device=str(device), threads=torch.get_num_threads()),
        status="stopped",
        num_trainable=trainable,
        num_parameters=total,
        train_seconds=waiting.train_seconds,
        rungs=waiting.rungs,
        work=_work(plan, splits, waiting.num_epochs),
    )


def _work(plan: Plan, splits: Splits, num_epochs: int, shared: SharedWork | None = None) -> dict[str, Any]:
    """What a result says of its examples, see Result.work. num_epochs: trained, of all candidates together."""
    num, most = splits.train.num, plan.budget.epochs * len(plan.learning_rates) or 1
    trained = num * (num_epochs if plan.learning_rates else 1)
    return {
        "all": num * most,
        "trained": trained,
        "passed": trained if shared is None else min(trained, shared.num_passed),
    }


def _measured(
    plan: Plan,
    chosen: Chosen,
    splits: Splits,
    device: torch.device,
    num_workers: int,
    passes: Passes,
    shared: SharedWork | None,
) -> Result:
    """What a fit that has just ended needed, and how good and how fast its learner is on the test split."""
    assert plan.metric is not None, "a task names its metric"
    peak = peak_memory_bytes(device)
    precision = precision_of(plan.budget.precision, device)
    plain = scoring_loader(plan, chosen.learner, splits.test, splits.target, device, num_workers, passes, role="test")
    on_features = chosen.how in ("features", "heads", "stages")
    loader = shared.features(plan, plain, splits.test, "test").loader() if shared and on_features else plain
    found = score_split(chosen.learner, loader, plan.metric, splits.target, precision)
    trainable, total = count_parameters(chosen.learner)
    result = replace(
        provenance(plan, device=str(device), threads=torch.get_num_threads()),
        status="ok",
        score=found,
        split="test",
        num_examples=splits.test.num,
        chosen=_chosen_row(chosen),
        num_trainable=trainable,
        num_parameters=total,
        train_seconds=chosen.train_seconds,
        training=chosen.fitted.training,
        peak_memory_bytes=peak,
        coverage=_coverage(chosen.learner),
        rungs=chosen.rungs or None,
        work=_work(plan, splits, chosen.num_epochs, shared if on_features and chosen.how != "stages" else None),
        teachers=asdict(passes) if plan.teachers else None,
    )
    if shared is None:
        return replace(result, inference=inference_rate(chosen.learner, plain, precision=precision))
    told = shared.told(plan, chosen.how, chosen.train_seconds, chosen.refusal)
    if not on_features:
        result = replace(result, inference=inference_rate(chosen.learner, plain, precision=precision), shared=told)
    if chosen.how == "alone":
        return result
    once = shared.measured[combination_of(plan)]
    if not on_features:
        return replace(result, training=once.training, peak_memory_bytes=once.peak_memory_bytes)
    if once.inference is None:
        watch = shared.watch(plan)
        known = watch and inference_rate_of(watch, chosen.learner, loader, precision=precision)
        once.inference = known or inference_rate(chosen.learner, plain, precision=precision)
    return replace(
        result,
        train_seconds=chosen.train_seconds + shared.pass_seconds,
        training=once.training,
        inference=once.inference,
        peak_memory_bytes=once.peak_memory_bytes,
        shared=told,
    )


def choose(
    plan: Plan,
    train: Split,
    val: Split,
    target: Target,
    *,
    device: torch.device,
    num_workers: int = 0,
    report: Callable[[TrialProgress], None] = lambda _: None,
    unfinished: UnfinishedFit | None = None,
    memory: MemoryOptions | None = None,
    passes: Passes | None = None,
    shared: SharedWork | None = None,
) -> Chosen:
    """Fits one candidate for each learning rate and keeps the best on validation; on a tie the one nearest the middle.

    Every candidate starts from the same state and sees the same examples in the same order. It ends with its last epoch
    or with the best on validation, as the budget says; its "epoch" of so many "epochs" then tells which. A candidate
    that diverges, in training or in its predictions, has the score None and is not chosen. Of those that halving stops
    the score is that of their last rung.
    unfinished, memory, shared: as for `run_trial`. passes: counts what teachers are asked for.
    Raises DivergedError if all candidates diverge.
    """
    start = started(plan, train, val, target, device, num_workers, memory, passes or Passes(), shared)
    chosen = _advance(start, None, report, unfinished)
    assert isinstance(chosen, Chosen), "it waits at no rung"
    return chosen


def _advance(
    start: Start, until: int | None, report: Callable[[TrialProgress], None], unfinished: UnfinishedFit | None
) -> Chosen | Waiting:
    """Fits candidates to the rung at which the trial waits, or to the end. Raises DivergedError if all diverge."""
    trying = Candidates.of(start.plan)
    state = unfinished.state if unfinished is not None else None
    under_way = None if state is None else trying.restore(state)
    has_begun = False

    def save_snapshot(make: Callable[[], Snapshot]) -> None:
        if unfinished is not None:
            unfinished.save_if_due(lambda: trying.state(make()))

    while trying.has_left(until):

        def tell(progress: FitProgress, candidate: int = trying.num_done + 1, of: int = len(trying.running)) -> None:
            report(TrialProgress(candidate=candidate, num_candidates=of, progress=progress))

        if has_begun:
            start.put_back()
        has_begun = True
        trying.fit_next(start, tell, under_way, save_snapshot)
        under_way = None
        if unfinished is not None:
            unfinished.save_if_due(trying.state)
    if until is None or not trying.has_left(None):
        return trying.chosen(start)
    if unfinished is not None:
        unfinished.save(trying.state())
    return trying.waiting(start)


def _chosen_row(chosen: Chosen) -> dict[str, Any]:
    """The choice of validation as a result stores it: every candidate, and the micro-batch if one was given."""
    micro = {} if chosen.fitted.micro_batch is None else {"micro_batch": chosen.fitted.micro_batch}
    return {**chosen.candidates[chosen.best], **micro, "candidates": list(chosen.candidates)}


def _coverage(learner: Learner) -> dict[str, int]:
    """How much of the backbone trains: the number of trained tensors and of all. Added tensors count as trained."""
    parameters = list(learner.backbone.parameters())
    return {"trained": sum(parameter.requires_grad for parameter in parameters), "of": len(parameters)}
