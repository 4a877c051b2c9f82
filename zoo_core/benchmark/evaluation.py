"""Scores a stored run: on a split of the task that it was fitted on, or on another task, matched by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo_core.benchmark.loaders import open_task, plain_loader
from zoo_core.contracts import Split, Target, TaskRecipe
from zoo_core.data.splits import Splits, carve, rows_of
from zoo_core.errors import RefusedError, UsageError
from zoo_core.files.fetch import pin_plan
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import bind_task, resolve
from zoo_core.plan.teachers import common_outputs
from zoo_core.registry.registry import registry
from zoo_core.runs.stored_run import StoredRun, load_stored, read_run
from zoo_core.toolkit.table_encoding import encoding_of
from zoo_core.training.metrics import confusion, per_class, predict, score
from zoo_core.training.timing import precision_of

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The score of a stored model on a split.

    For classes there are also one row for each class, and the confusion matrix [true, predicted].
    """

    metric: str
    score: float
    split: str
    num_examples: int
    names: tuple[str, ...]
    per_class: tuple[Mapping[str, Any], ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()


def evaluate(
    path: str | Path, *, split: str = "test", task: str | TaskRecipe | None = None, device: str = "cpu"
) -> Evaluation:
    """Scores a stored run on the train, val or test split of its task.

    split: of another task also `all`, every example of it; not for token classes.
    task: another task, whose outputs are matched by name with what the run predicts, as after learning without labels.
    Of classes that the run does not know the examples count as wrong, and what it knows besides is not looked at; of
    labels and values it must know all.
    """
    run = read_run(Path(path), needs_task=task is None)
    if run.target.kind == "unlabelled":
        raise UsageError(
            f"{path} predicts nothing: it is a backbone; fit a head on it: zoo fit 'run(path=\"{path}\")' --task T"
        )
    plan = run.plan if task is None else _on_task(run, task)
    if plan.task is None:
        raise UsageError(f"{path} was not fitted on a task; --task names one")
    if plan.task.target.kind == "unlabelled":
        what = "was fitted without labels" if task is None else f"was to be scored on {plan.task.name}, without labels"
        raise UsageError(f"{path} {what}, so nothing says what is right; zoo evaluate {path} --task T scores it on T")
    learner = load_stored(run).to(device)
    splits = carve(open_task(plan), seed=plan.seed, **plan.task.common)
    if split == "all" and (task is None or splits.target.kind == "token_classes"):
        raise UsageError("split all is for another task than the fit's own, and not for token classes; take test")
    chosen = [_split(splits, each) for each in (("train", "val", "test") if split == "all" else (split,))]
    target = run.target if task is None else splits.target
    own = encoding_of(rows_of(chosen[0])[0])
    if task is not None and run.encoding is not None and own is not None and own.columns != run.encoding.columns:
        raise RefusedError(
            f"{path} reads columns as they were scaled for its own table, and those of {plan.task.name} are scaled by "
            f"other rows; zoo predict {path} FILE.csv encodes a table as the run was fitted"
        )
    loaders = [plain_loader(plan, learner, each, target, torch.device(device)) for each in chosen]
    precision = precision_of(plan.budget.precision, torch.device(device))
    assert plan.metric is not None, "a task names its metric"
    predictions = torch.cat([predict(learner, loader, precision=precision)[0] for loader in loaders])
    truth = torch.cat([loader.targets for loader in loaders])
    if task is not None:
        predictions = _in_order(str(path), predictions, run.target, target)
    classes = target.kind == "classes"
    names = target.names or tuple(str(index) for index in range(target.size or 0))
    return Evaluation(
        metric=plan.metric_name,
        score=score(plan.metric, predictions, truth, target),
        split=split,
        num_examples=len(truth),
        names=names,
        per_class=tuple(per_class(predictions, truth, names)) if classes else (),
        confusion=tuple(tuple(row) for row in confusion(predictions, truth).tolist()) if classes else (),
    )


def _on_task(run: StoredRun, task: str | TaskRecipe) -> Plan:
    """The plan of a stored run with another task, pinned."""
    bound = bind_task(task, {}, offline=False, registry=registry())
    plan = resolve(
        run.plan.spec,
        task=bound,
        target=run.target,
        budget=replace(run.plan.budget, augment="none"),
        seed=run.plan.seed,
        pins=run.plan.pins,
        afresh=False,
        stored=f"the run {run.path}",
        learns=False,
    )
    return pin_plan(plan)


def _in_order(path: str, predictions: Tensor, own: Target, wanted: Target) -> Tensor:
    """Predictions of a run, float32 [N, ..., C], in the order of another target's outputs; -inf for unknown classes."""
    theirs, places = common_outputs(path, own, wanted, called="the run")
    size = wanted.size or 0
    if len(places) < size and wanted.kind in ("multilabel", "regression"):
        lacking = [name for place, name in enumerate(wanted.names) if place not in places]
        raise RefusedError(f"{path} does not predict {', '.join(lacking)}; it predicts {', '.join(own.names)}")
    found = predictions.new_full((*predictions.shape[:-1], size), -torch.inf)
    found[..., list(places)] = predictions[..., list(theirs)]
    return found


def _split(splits: Splits, name: str) -> Split:
    named = {"train": splits.train, "val": splits.val, "test": splits.test}
    if name not in named:
        raise UsageError(f"unknown split {name!r}; there are {', '.join(named)}")
    return named[name]
