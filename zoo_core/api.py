"""The Python calls behind the commands: load, load_backbone, load_run, fit, evaluate, predict, bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.build import build, build_backbone
from zoo_core.contracts import Split, Target
from zoo_core.data import Loader, Splits, carve, decode
from zoo_core.errors import UsageError
from zoo_core.learner import Learner
from zoo_core.lock import lock_of, write_lock
from zoo_core.measure import INFERENCE_BATCH, confusion, per_class, precision_of
from zoo_core.resolve import Budget, resolve
from zoo_core.runs import load_stored, read_run, save_run
from zoo_core.spec import Spec
from zoo_core.store import Result, RunLock, append
from zoo_core.suites.grid import Suite, expand, load_suite, starter_suite
from zoo_core.suites.runner import News, prepare_folder, run_grid
from zoo_core.suites.trial import Report, open_task, run_trial, score_split

__all__ = ["Evaluation", "Prediction", "bench", "evaluate", "fit", "load", "load_backbone", "load_run", "predict"]


def load(
    spec: str | Spec,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    target: Target | None = None,
    seed: int = 0,
) -> Learner:
    """A learner ready to train: pre-trained backbone, adapters, a new head.

    num_classes, classes, target: exactly one says what is predicted. seed: decides every new weight.
    Example: `zoo_core.load("starter/vit-nano+partial(n=2)", num_classes=3)`.
    """
    if sum(given is not None for given in (num_classes, classes, target)) != 1:
        raise UsageError("load takes exactly one of num_classes=N, classes=[...] and target=Target(...)")
    if target is None:
        target = Target(kind="classes", names=tuple(classes)) if classes else Target(kind="classes", size=num_classes)
    if not target.size or target.size < 1:
        raise UsageError(f"the number of outputs is {target.size}; allowed: 1 or more")
    return build(resolve(spec, target=target, seed=seed))


def load_backbone(name: str) -> nn.Module:
    """A frozen backbone by name, in evaluation mode: see zoo_core.contracts.Backbone."""
    return build_backbone(resolve(name, target=Target(kind="classes", size=1)))


def load_run(path: str | Path) -> Learner:
    """The fitted learner that `fit` stored in a folder, for use; its target holds the ordered class names."""
    return load_stored(read_run(Path(path)))


def fit(
    spec: str | Spec,
    *,
    task: str,
    out: str | Path | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    device: str = "cpu",
    num_workers: int = 0,
    report: Callable[[Report], None] = lambda _: None,
) -> tuple[Learner, Result]:
    """Fits one model, its learning rate chosen on validation; stores it when `out` names a folder.

    Returns the learner, in evaluation mode, and its result on the test split. Raises UsageError for a folder that
    already holds a run; that one stays as it is.
    """
    plan = resolve(spec, task=task, budget=budget, seed=seed)
    if out is None:
        result, learner, _ = run_trial(plan, device=device, num_workers=num_workers, report=report)
        return learner, result
    folder = Path(out)
    prepare_folder(folder)
    _refuse_a_run(folder)  # before the lock too, which would mend a torn line of that run
    with RunLock(folder):
        _refuse_a_run(folder)
        result, learner, splits = run_trial(plan, device=device, num_workers=num_workers, report=report)
        assert plan.task is not None, "fit has a task"
        is_table = plan.task.recipe.modality == "table"
        save_run(learner, plan, folder, num_columns=len(splits.train.raw(0)) if is_table else None)
        append(folder / "results.jsonl", result)
        parts = [(plan.backbone, plan.entry), *((part, None) for part in (*plan.adapters, plan.head, plan.task))]
        write_lock(folder / "zoo.lock", lock_of(parts))
    return learner, result


def _refuse_a_run(folder: Path) -> None:
    held = [name for name in ("run.json", "results.jsonl", "zoo.lock") if (folder / name).exists()]
    if held:
        raise UsageError(f"{folder} already holds a run ({held[0]}); give --out a new folder, or remove that one")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A stored model's score on a split; for classes also a row for each and the confusion matrix [true, predicted]."""

    metric: str
    score: float
    split: str
    num_examples: int
    names: tuple[str, ...]
    per_class: tuple[Mapping[str, Any], ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()


def evaluate(path: str | Path, *, split: str = "test", device: str = "cpu") -> Evaluation:
    """Scores a stored run on the train, val or test split of its task."""
    run = read_run(Path(path))
    if run.plan.task is None:
        raise UsageError(f"{path} was not fitted on a task")
    learner = load_stored(run).to(device)
    splits = carve(open_task(run.plan), seed=run.plan.seed, **run.plan.task.common)
    chosen = _split(splits, split)
    recipe = run.plan.task.recipe
    loader = Loader(
        chosen,
        modality=recipe.modality,
        target=run.target,
        preparation=learner.source.preparation,
        batch_size=INFERENCE_BATCH,
        device=device,
    )
    precision = precision_of(run.plan.budget.precision, torch.device(device))
    score, predictions = score_split(learner, loader, recipe.metric, run.target, precision)
    classes = run.target.kind == "classes"
    names = run.target.names or tuple(str(index) for index in range(run.target.size or 0))
    return Evaluation(
        metric=recipe.metric,
        score=score,
        split=split,
        num_examples=chosen.num,
        names=names,
        per_class=tuple(per_class(predictions, loader.targets, names)) if classes else (),
        confusion=tuple(tuple(row) for row in confusion(predictions, loader.targets).tolist()) if classes else (),
    )


def _split(splits: Splits, name: str) -> Split:
    named = {"train": splits.train, "val": splits.val, "test": splits.test}
    if name not in named:
        raise UsageError(f"unknown split {name!r}; there are {', '.join(named)}")
    return named[name]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One item's prediction: of classes the likeliest, of labels those above one half, of values all their names."""

    item: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]


def predict(
    learner: Learner, items: Sequence[Any], *, names: Sequence[str] | None = None, device: str = "cpu"
) -> list[Prediction]:
    """Predictions for raw items (pictures or arrays, rows of numbers), in their order.

    learner: from `fit` or `load_run`. names: what to call each item; its position otherwise.
    A prediction's scores are one for each output, in the order of the target.
    Example: `zoo_core.predict(zoo_core.load_run("runs/my-digits"), [picture])`.
    """
    learner.to(device).eval()
    target, preparation, modality = learner.target, learner.source.preparation, learner.source.modality
    called = list(names) if names is not None else [str(position) for position in range(len(items))]
    outputs = target.names or tuple(str(index) for index in range(target.size or 0))
    found: list[Prediction] = []
    for start in range(0, len(items), INFERENCE_BATCH):
        decoded = [decode(modality, item) for item in items[start : start + INFERENCE_BATCH]]
        collated = preparation.collate(preparation.prepare(decoded))
        inputs = preparation.normalise({name: x.to(device) for name, x in collated.items()})
        with torch.inference_mode():
            scores = _scores(target, learner(inputs).predictions)
        for item, row in zip(called[start:], scores.tolist(), strict=False):
            found.append(Prediction(item=item, labels=_labels(target, outputs, row), scores=tuple(row)))
    return found


def _scores(target: Target, predictions: Tensor) -> Tensor:
    if target.kind == "classes":
        return predictions.softmax(-1)
    return predictions.sigmoid() if target.kind == "labels" else predictions


def _labels(target: Target, names: Sequence[str], row: Sequence[float]) -> tuple[str, ...]:
    if target.kind == "classes":
        return (names[max(range(len(row)), key=row.__getitem__)],)
    return tuple(name for name, score in zip(names, row, strict=True) if target.kind == "values" or score > 0.5)


def bench(
    suite: Suite | str | Path | None = None,
    *,
    out: str | Path | None = None,
    num_workers: int = 1,
    threads: int = 1,
    device: str = "cpu",
    retry: bool = False,
    watch: Callable[[News], None] = lambda _: None,
) -> list[Result]:
    """Runs a suite (a file's path, or the starter suite) and returns its results; a second call runs what is missing.

    out: the run's folder, `runs/NAME` when None. num_workers: processes; threads: of each. Scores do not depend on the
    number of processes.
    """
    if not isinstance(suite, Suite):
        suite = load_suite(Path(suite) if suite is not None else starter_suite())
    folder = Path(out) if out is not None else Path("runs") / suite.name
    return run_grid(
        expand(suite), folder, num_workers=num_workers, threads=threads, device=device, retry=retry, watch=watch
    )
