"""Opens the task of a trial and makes the loaders of its splits: drawn to train on, in order to score."""

from __future__ import annotations

from functools import partial

import torch

from zoo_core.benchmark.teaching import is_unlabelled, replay_of, with_truth
from zoo_core.contracts import Split, Target, TaskData
from zoo_core.data.augmentation import Augment
from zoo_core.data.loader import Beside, Loader
from zoo_core.errors import IntegrityError
from zoo_core.files.folders import look
from zoo_core.lock import part_key
from zoo_core.model.learner import Learner
from zoo_core.model.replay import Passes
from zoo_core.plan.plan import Plan
from zoo_core.registry.recipe_checks import broken, plugin_call
from zoo_core.training.timing import INFERENCE_BATCH

__all__ = ["check_still", "open_task", "plain_loader", "scoring_loader", "training_loader"]


def open_task(plan: Plan) -> TaskData:
    """The task's data, its files verified."""
    assert plan.task is not None, "a trial has a task"
    files = None
    if part_key(plan.task) in plan.sources:
        from zoo_core.files.fetch import files_of  # a quarter of a second, for plans that need it

        files = files_of(plan, plan.task)
    with plugin_call(plan.task):
        data: TaskData = plan.task.recipe.open(files)
        said, found = plan.task.recipe.target.kind, data.target.kind
    if found != said:
        raise broken(plan.task, f"it says that its target is {said}, and opened it is {found}")
    return data


def check_still(plan: Plan) -> None:
    """Raises IntegrityError if a local folder has changed since the plan was made.

    Some of its files are read while a trial runs, so nobody could say what its result was made from.
    """
    for key, source in plan.sources.items():
        pin = plan.pins.get(key)
        if source.folder is not None and pin is not None and look(source, "random").files != pin.files:
            raise IntegrityError(f"{key} has changed while the trial ran; give the same command again")


def training_loader(
    plan: Plan,
    learner: Learner,
    split: Split,
    target: Target,
    device: torch.device,
    num_workers: int,
    beside: Beside | None = None,
) -> Loader:
    """The batches that a trial trains on, drawn and augmented as its plan says; in order for a closed form."""
    return _loader(plan, learner, target, device, num_workers)(
        split,
        batch_size=plan.budget.batch_size,
        shuffled=bool(plan.learning_rates),
        augment=None if plan.augmentation is None else Augment(plan.augmentation),
        seed=plan.seed,
        views=plan.budget.views,
        beside=beside,
        may_lack=True,  # it was checked that somebody learns from such examples
    )


def scoring_loader(
    plan: Plan,
    learner: Learner,
    split: Split,
    target: Target,
    device: torch.device,
    num_workers: int,
    passes: Passes,
    *,
    role: str,
) -> Loader:
    """As `plain_loader`; where a task has no labels, its targets are what the teacher says of the examples.

    role: which split of the trial it is.
    """
    if not is_unlabelled(plan):
        return plain_loader(plan, learner, split, target, device, num_workers)
    beside = replay_of(plan, learner, split, device, passes, role=role)
    loader = _loader(plan, learner, target, device, num_workers)(
        split, batch_size=INFERENCE_BATCH, beside=beside, may_lack=True
    )
    return with_truth(loader, plan, target)


def plain_loader(
    plan: Plan, learner: Learner, split: Split, target: Target, device: torch.device, num_workers: int = 0
) -> Loader:
    """The batches that a trial is scored on: all examples in order."""
    make = _loader(plan, learner, target, device, num_workers)
    return make(split, batch_size=INFERENCE_BATCH, may_lack=is_unlabelled(plan))


def _loader(plan: Plan, learner: Learner, target: Target, device: torch.device, num_workers: int) -> partial[Loader]:
    """What makes the loader of a split: all that it has from the trial and its learner."""
    assert plan.task is not None, "a trial has a task"
    return partial(
        Loader,
        modality=plan.task.recipe.modality,
        target=target,
        preparation=learner.source.preparation,
        device=device,
        num_workers=num_workers,
    )
