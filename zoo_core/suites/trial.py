"""One trial: fit a candidate for each learning rate, choose on validation, score the chosen one on test, once.

The choice sees the training and validation splits alone: `choose` is not given the test split.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo_core.build import build
from zoo_core.contracts import METRICS, Split, Target, TaskData
from zoo_core.data import Loader, Splits, carve
from zoo_core.declarations import blaming
from zoo_core.errors import DivergedError
from zoo_core.learner import Learner
from zoo_core.lock import part_key
from zoo_core.measure import (
    INFERENCE_BATCH,
    count_parameters,
    inference_rate,
    peak_memory_bytes,
    precision_of,
    predict,
    reset_peak_memory,
    score,
)
from zoo_core.plan import Plan
from zoo_core.registry import Bound
from zoo_core.spec import Part
from zoo_core.store import Result
from zoo_core.suites.grid import weights_of
from zoo_core.train import Fitted, Progress, calibrate, fit
from zoo_core.unpublished import files_of

__all__ = ["Chosen", "Report", "choose", "open_task", "provenance", "run_trial", "score_split"]

PACKAGES = ("zoo-core", "torch", "torchvision", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Progress of a trial: which candidate of how many, and where its fit stands."""

    candidate: int
    num_candidates: int
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The learner that validation picked, how it was fitted, and every candidate's validation score."""

    learner: Learner
    fitted: Fitted
    train_seconds: float
    candidates: tuple[dict[str, Any], ...]
    best: int


def open_task(plan: Plan) -> TaskData:
    """The task's data, its files verified."""
    assert plan.task is not None, "a trial has a task"
    files = None
    if part_key(plan.task) in plan.sources:
        from zoo_core.hub import files_of  # a quarter of a second, for plans that need it

        files = files_of(plan, plan.task)
    with blaming(plan.task):
        data: TaskData = plan.task.recipe.open(files)
    return data


def run_trial(
    plan: Plan,
    *,
    data: TaskData | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    report: Callable[[Report], None] = lambda _: None,
) -> tuple[Result, Learner, Splits]:
    """The result of a trial with its chosen learner, in evaluation mode on the device, and the splits it saw."""
    assert plan.task is not None, "a trial has a task"
    device = torch.device(device)
    data = data or open_task(plan)
    splits = carve(data, seed=plan.seed, shots=plan.task.common["shots"], limit=plan.task.common["limit"])
    reset_peak_memory(device)
    chosen = choose(
        plan, splits.train, splits.val, splits.target, device=device, num_workers=num_workers, report=report
    )
    peak = peak_memory_bytes(device)
    metric = plan.task.recipe.metric
    precision = precision_of(plan.budget.precision, device)
    loader = _loader(plan, chosen.learner, splits.test, splits.target, device, num_workers)
    found, _ = score_split(chosen.learner, loader, metric, splits.target, precision)
    trainable, total = count_parameters(chosen.learner)
    result = replace(
        provenance(plan, device),
        status="ok",
        metric=metric,
        score=found,
        split="test",
        num_examples=splits.test.num,
        chosen={**chosen.candidates[chosen.best], "candidates": list(chosen.candidates)},
        num_trainable=trainable,
        num_parameters=total,
        train_seconds=chosen.train_seconds,
        training=chosen.fitted.training,
        inference=inference_rate(chosen.learner, loader, precision=precision),
        peak_memory_bytes=peak,
        coverage=_coverage(chosen.learner),
    )
    return result, chosen.learner, splits


def choose(
    plan: Plan,
    train: Split,
    val: Split,
    target: Target,
    *,
    device: torch.device,
    num_workers: int = 0,
    report: Callable[[Report], None] = lambda _: None,
) -> Chosen:
    """Fits one candidate for each learning rate and keeps the best on validation; on a tie the one nearest the middle.

    Every candidate starts from the same state, sees the same examples in the same order, and ends with its last epoch,
    or with the best on validation, as the budget says; then its "epoch" says which of how many "epochs" that was.
    One that diverges, in training or in what it predicts, is not chosen; its score is None.
    Raises DivergedError when that is so for all of them.
    """
    assert plan.task is not None, "a trial has a task"
    learner = build(plan, target=target).to(device)
    fitting = _training_loader(plan, learner, train, target, device, num_workers)
    validating = _loader(plan, learner, val, target, device, num_workers)
    if plan.weights == "random":
        calibrate(learner, fitting)
    rates: tuple[float | None, ...] = plan.learning_rates or (None,)
    start, projectors = _snapshot(learner), _projectors(learner)
    order = sorted(range(len(rates)), key=lambda index: abs(index - len(rates) // 2))
    candidates: list[dict[str, Any]] = [{} for _ in rates]
    best: tuple[float, int, dict[str, Tensor], Fitted] | None = None
    diverged: DivergedError | None = None
    began = time.perf_counter()
    for position, index in enumerate(order):
        if position:
            learner.load_delta(start)
            _put_projectors(learner, projectors)

        def tell(progress: Progress, position: int = position) -> None:
            report(Report(candidate=position + 1, num_candidates=len(rates), progress=progress))

        candidates[index] = {"learning_rate": rates[index], "validation_score": None}
        try:
            fitted, found = _fit_candidate(plan, learner, fitting, validating, rates[index], tell)
        except DivergedError as error:
            diverged = error
            continue
        candidates[index]["validation_score"] = found
        if plan.budget.keep == "best" and fitted.epoch is not None:
            candidates[index] |= {"epoch": fitted.epoch, "epochs": len(fitted.losses)}
        worth = found if METRICS[plan.task.recipe.metric].higher_is_better else -found
        if best is None or worth > best[0]:
            best = (worth, index, _snapshot(learner), fitted)
    if best is None:
        assert diverged is not None, "there is at least one candidate"
        raise diverged
    learner.eval()  # a fit that diverged left it in training mode
    learner.load_delta(best[2])
    return Chosen(
        learner=learner,
        fitted=best[3],
        train_seconds=time.perf_counter() - began,
        candidates=tuple(candidates),
        best=best[1],
    )


def _fit_candidate(
    plan: Plan,
    learner: Learner,
    fitting: Loader,
    validating: Loader,
    rate: float | None,
    progress: Callable[[Progress], None],
) -> tuple[Fitted, float]:
    """Fits at one learning rate; what the fit did, and the validation score of the weights that it kept."""
    assert plan.task is not None, "a trial has a task"
    metric = plan.task.recipe.metric
    precision = precision_of(plan.budget.precision, fitting.device)
    sign = 1 if METRICS[metric].higher_is_better else -1

    def validate(candidate: Learner) -> float:
        return sign * score_split(candidate, validating, metric, learner.target, precision)[0]

    fitted = fit(
        learner,
        fitting,
        budget=plan.budget,
        learning_rate=rate,
        seed=plan.seed,
        validate=validate,
        progress=progress,
    )
    return fitted, sign * (validate(learner) if fitted.score is None else fitted.score)


def score_split(learner: Learner, loader: Loader, metric: str, target: Target, precision: str) -> tuple[float, Tensor]:
    """The metric on a whole split, and the predictions it was computed from, float32 [N, C] on the CPU."""
    predictions, _ = predict(learner, loader, precision=precision)
    return score(metric, predictions, loader.targets, target), predictions


def _training_loader(
    plan: Plan, learner: Learner, split: Split, target: Target, device: torch.device, num_workers: int
) -> Loader:
    assert plan.task is not None, "a trial has a task"
    return Loader(
        split,
        modality=plan.task.recipe.modality,
        target=target,
        preparation=learner.source.preparation,
        batch_size=plan.budget.batch_size,
        device=device,
        shuffled=bool(plan.learning_rates),
        augment=plan.budget.augment,
        seed=plan.seed,
        num_workers=num_workers,
    )


def _loader(
    plan: Plan, learner: Learner, split: Split, target: Target, device: torch.device, num_workers: int
) -> Loader:
    assert plan.task is not None, "a trial has a task"
    return Loader(
        split,
        modality=plan.task.recipe.modality,
        target=target,
        preparation=learner.source.preparation,
        batch_size=INFERENCE_BATCH,
        device=device,
        num_workers=num_workers,
    )


def _snapshot(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.delta().items()}


def _projectors(learner: Learner) -> dict[str, Tensor]:
    """What trains in the objective, which is not in the delta, and its buffers; a frozen teacher's weights are not."""
    if learner.objective is None:
        return {}
    frozen = {name for name, parameter in learner.objective.named_parameters() if not parameter.requires_grad}
    state: dict[str, Tensor] = learner.objective.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if name not in frozen}


def _put_projectors(learner: Learner, state: dict[str, Tensor]) -> None:
    if learner.objective is not None:
        learner.objective.load_state_dict(state, strict=False)


def _coverage(learner: Learner) -> dict[str, int]:
    """How much of the backbone trains: tensors and all tensors. Added modules count as trained tensors."""
    parameters = list(learner.backbone.parameters())
    return {"trained": sum(parameter.requires_grad for parameter in parameters), "of": len(parameters)}


def provenance(plan: Plan, device: torch.device | str) -> Result:
    """A result without measurements: what was run, on what, with which versions. Its status is failed."""
    device = torch.device(device)
    return Result(
        trial=str(plan.trial),
        digest=plan.digest or "",
        record=plan.entry.name if plan.entry else None,
        status="failed",
        reason=None,
        metric=plan.task.recipe.metric if plan.task else "",
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
        versions=_versions() | {part.provider.distribution: part.provider.version for part in _parts(plan)},
        device=_device_name(device),
        threads=torch.get_num_threads(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        backbone=str(_without_weights(plan.backbone.canonical())),
        adapters="+".join(str(part.canonical()) for part in plan.adapters) or "probe",
        head=str(plan.head.canonical()),
        task=str(plan.task.canonical()) if plan.task else "",
        seed=plan.seed,
        weights=weights_of(plan),
        unpublished=files_of(plan.parts),
    )


def _without_weights(part: Part) -> Part:
    return replace(part, arguments=tuple(argument for argument in part.arguments if argument[0] != "weights"))


def _parts(plan: Plan) -> list[Bound]:
    return [plan.backbone, *plan.adapters, plan.head, *([plan.task] if plan.task else [])]


@cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@cache
def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu: {_processor()}"


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
