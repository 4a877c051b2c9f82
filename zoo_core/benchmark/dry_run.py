"""Predicts what a fit will need, memory, time and downloads, from a few real steps of it. Nothing is stored.

The steps use the fit's own batch size if its activations fit into memory. Otherwise they use a smaller one, and the
figures are scaled.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from zoo_core.benchmark.groups import kinds_of, plan_groups
from zoo_core.benchmark.loaders import open_task, plain_loader, training_loader
from zoo_core.benchmark.sharing import backbone_draws, refusal
from zoo_core.benchmark.teaching import check_columns, check_labels, is_unlabelled, replay_of
from zoo_core.contracts import Split, TaskData
from zoo_core.data.decoding import decode
from zoo_core.data.loader import AS_IT_IS, KEEP_BYTES, Loader, drawn_view
from zoo_core.data.model_outputs import ModelOutputs, outputs_room
from zoo_core.data.randomness import forked_rng
from zoo_core.data.splits import Splits, Subset, carve
from zoo_core.errors import ZooError
from zoo_core.files.fetch import files_of, pin_plan
from zoo_core.lock import part_key
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.model.replay import Passes, Replay
from zoo_core.plan.plan import Plan, needed
from zoo_core.training.fit import fit
from zoo_core.training.frozen_features import FeatureMemory, FeaturePass, FrozenFeatures
from zoo_core.training.gradient_trainer import MemoryOptions, moving
from zoo_core.training.memory import activations, available_bytes, fitting_batch, state_bytes
from zoo_core.training.metrics import predict
from zoo_core.training.timing import (
    INFERENCE_BATCH,
    INFERENCE_SECONDS,
    count_parameters,
    peak_memory_bytes,
    precision_of,
    reset_peak_memory,
)

__all__ = ["Forecast", "downloads", "dry_run", "forecast", "shown"]

NUM_STEPS = 3  # of each of two epochs; the second one finds its examples prepared


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a fit will need.

    num_steps: for one learning rate. teacher_passes: examples that teachers have to look at, each view once where what
    they give is stored; stored_passes: those that are stored already. seconds: from the opened task to the result.
    peak_memory_bytes: measured as for a result. free_bytes: the memory that is free now.
    micro_batch: the one that was requested, or the one that fits. assumed: the assumptions behind the figures, one
    sentence each.
    """

    num_trainable: int
    num_parameters: int
    num_rates: int
    num_epochs: int
    num_steps: int
    batch_size: int
    micro_batch: int | None
    teacher_passes: int
    stored_passes: int
    seconds: float
    peak_memory_bytes: int
    free_bytes: int
    assumed: tuple[str, ...]


def downloads(plan: Plan) -> dict[str, int | None]:
    """The bytes to download for each part that has files, by its key: 0 if they are here, None if nobody knows."""
    found: dict[str, int | None] = {}
    for part in plan.parts:
        key = part_key(part)
        if key not in plan.sources:
            continue
        if _is_here(plan, key):
            found[key] = 0
        elif key in plan.pins:
            files = plan.pins[key].files
            weights = plan.weights if part is plan.backbone else "pretrained"
            found[key] = sum(files[name].size for name in needed(plan.sources[key], weights, files))
        else:
            found[key] = None
    return found


def forecast(
    plan: Plan,
    *,
    device: str = "cpu",
    num_workers: int = 0,
    memory: MemoryOptions | None = None,
    share: bool = True,
) -> Forecast:
    """Builds the model and does a dry run of its fit, offline. If its files are not here, the weights are random.

    Raises ZooError if the task's own files or the backbone's configuration are not here.
    """
    if all(plan.sources[key].repository is None for key in plan.unpinned):
        plan = pin_plan(plan)
    key = part_key(plan.backbone)
    assumed: tuple[str, ...] = ()
    if key in plan.sources and not _is_here(plan, key):
        sources = {name: source for name, source in plan.sources.items() if name != key}
        plan = replace(plan, sources=sources, weights="random", entry=None)
        assumed = ("random weights, as the backbone's files are not here",)
    found = dry_run(plan, open_task(plan), device=device, num_workers=num_workers, memory=memory, share=share)
    return replace(found, assumed=(*assumed, *found.assumed))


def _is_here(plan: Plan, key: str) -> bool:
    (part,) = (part for part in plan.parts if part_key(part) == key)
    if key not in plan.pins:
        return plan.sources[key].repository is None
    try:
        files_of(plan, part, offline=True)
    except ZooError:
        return False
    return True


def dry_run(
    plan: Plan,
    data: TaskData,
    *,
    device: str = "cpu",
    num_workers: int = 0,
    memory: MemoryOptions | None = None,
    share: bool = True,
) -> Forecast:
    """The forecast of a trial from a few of its own steps, on the task's own examples.

    share: whether features of a frozen backbone are computed once.
    """
    assert plan.task is not None, "a trial has a task"
    started = time.perf_counter()
    at = torch.device(device)
    splits = carve(data, seed=plan.seed, target=plan.target, **plan.task.common)
    check_labels(plan, splits.train, splits.target)
    check_columns(plan, splits.train)
    reset_peak_memory(at)
    learner = build(plan, target=splits.target).to(at)
    building = time.perf_counter() - started
    for_each, micro = _memory_of_an_example(plan, learner, splits, at, memory)
    free = available_bytes(at)
    size = min(plan.budget.batch_size, splits.train.num)
    dry_run_size = size
    if memory is None or memory.micro_batch is None:
        dry_run_size = max(2, fitting_batch(size, free=free - state_bytes(learner), for_each=for_each))
    small = replace(
        plan, budget=replace(plan.budget, batch_size=max(2, dry_run_size), epochs=2, keep="last", patience=None)
    )
    few = _few(splits.train, NUM_STEPS * dry_run_size)
    loading = _loading(training_loader(small, learner, few, splits.target, at, num_workers)) / few.num
    steps = training_loader(small, learner, few, splits.target, at, num_workers, _live(learner, few))
    step = _step_seconds(small, learner, steps, memory) / dry_run_size  # for each example
    looking_on = _pass_seconds(small, learner, few, splits, at, num_workers) / few.num
    step = max(0.0, step - looking_on)
    passes, stored = _passes(plan, learner, splits, at)
    reading, looking = _reading_seconds(plan, learner, splits, at, num_workers)
    budget, preparation = plan.budget, learner.source.preparation
    num_rates, epochs = max(1, len(plan.learning_rates)), budget.epochs if plan.learning_rates else 1
    again = plan.augmentation is not None or preparation.random  # each epoch prepares anew
    looks = epochs if budget.keep == "best" or budget.patience is not None else 1
    on_features = _on_features(small, learner, few, splits, at, num_workers) if share else None
    if on_features is None:
        training = num_rates * (epochs * splits.train.num * step + looks * splits.val.num * looking)
        training += splits.train.num * loading * (num_rates * epochs if again else 1)
    else:
        views = min(budget.epochs, budget.views or 1)
        training = splits.train.num * views * (loading + looking) + splits.val.num * looking
        step = _step_seconds(small, learner, on_features, memory) / dry_run_size
        training += num_rates * epochs * splits.train.num * step
    seconds = (
        building
        + training
        + (splits.val.num + splits.test.num) * reading
        + splits.test.num * looking
        + passes * looking_on
        + INFERENCE_SECONDS
    )
    peak = peak_memory_bytes(at) + int(for_each * (size - dry_run_size))
    if at.type == "cpu":
        peak += _kept_bytes(plan, learner, splits, few.num, again) + _weights_beside(plan, learner)
    elif plan.learning_rates:
        peak += _weights_beside(plan, learner)
    trainable, total = count_parameters(learner)
    return Forecast(
        num_trainable=trainable,
        num_parameters=total,
        num_rates=num_rates,
        num_epochs=epochs,
        num_steps=epochs * -(-splits.train.num // size),
        batch_size=size,
        micro_batch=micro,
        teacher_passes=passes,
        stored_passes=stored,
        seconds=seconds,
        peak_memory_bytes=peak,
        free_bytes=free,
        assumed=_assumed(plan, dry_run_size, size, again and on_features is None),
    )


def _memory_of_an_example(
    plan: Plan, learner: Learner, splits: Splits, device: torch.device, memory: MemoryOptions | None
) -> tuple[float, int | None]:
    """The bytes of activations that one example needs in a step, and the micro-batch that was requested or fits."""
    memory = memory or MemoryOptions()
    if not plan.learning_rates:
        return 0.0, None
    two = replace(plan, budget=replace(plan.budget, batch_size=2))
    some = _few(splits.train, 2)
    beside = _live(learner, some)
    batch = next(training_loader(two, learner, some, splits.target, device, 0, beside).epoch())
    learner.train()
    with forked_rng(device, "rehearsal"):
        found = activations(learner, lambda: learner.loss(learner(batch.inputs), batch), len(batch))
    learner.eval()
    for_each = found.bytes(recomputes=memory.checkpoint_activations)
    if memory.micro_batch != "auto":
        return for_each, memory.micro_batch if isinstance(memory.micro_batch, int) else None
    free = available_bytes(device) - state_bytes(learner)
    return for_each, fitting_batch(plan.budget.batch_size, free=free, for_each=for_each)


def _few(split: Split, num: int) -> Subset:
    """So many examples from all over a split."""
    return Subset(split, np.unique(np.linspace(0, split.num - 1, min(num, split.num)).astype(np.int64)))


def _loading(loader: Loader) -> float:
    """The seconds of one pass over a loader that has not prepared anything yet."""
    started = time.perf_counter()
    for _ in loader.epoch():
        pass
    return time.perf_counter() - started


def _on_features(
    plan: Plan, learner: Learner, few: Split, splits: Splits, device: torch.device, num_workers: int
) -> Loader | None:
    """A loader of features of a few examples, of which nothing is stored; None if the fit cannot be on features."""
    (group,) = plan_groups([plan])
    loader = training_loader(plan, learner, few, splits.target, device, num_workers)
    if group.shape != "features" or group.open_stages or refusal(learner, loader, draws=backbone_draws(learner)):
        return None
    (kind,) = kinds_of([plan], learner.source.features.kind)
    features = FrozenFeatures(
        learner.backbone,
        loader,
        what=kind,
        rows=np.arange(few.num, dtype=np.int64),
        stores={kind: ModelOutputs(outputs_room(), {}, few.num, max_bytes=0, on_full=lambda _: None)},
        memory=FeatureMemory(),
        passed=FeaturePass(),
    )
    features.fill()
    return features.loader()


def _step_seconds(plan: Plan, learner: Learner, loader: Loader, memory: MemoryOptions | None) -> float:
    """The seconds of one step on prepared examples. For a fit in closed form, of one batch."""
    if not plan.learning_rates:
        _loading(loader)
        started = time.perf_counter()
        fit(learner, loader, budget=plan.budget, learning_rate=None, seed=plan.seed)
        return (time.perf_counter() - started) / loader.num_batches
    marks: list[float] = []
    rate = plan.learning_rates[len(plan.learning_rates) // 2]
    found = fit(
        learner,
        loader,
        budget=plan.budget,
        learning_rate=rate,
        seed=plan.seed,
        progress=lambda _: marks.append(time.perf_counter()),
        memory=memory,
    )
    steps = [after - before for before, after in pairwise(marks)]
    if len(steps) < loader.num_batches:  # a GPU tells of few steps
        return found.seconds / found.num_steps
    return statistics.median(steps[loader.num_batches :] or steps)


def _live(learner: Learner, split: Split) -> Replay | None:
    """The teachers of a learner beside a split, with nothing stored; None for a learner without any."""
    if learner.teachers is None:
        return None
    return Replay(learner.teachers, {}, np.arange(split.num, dtype=np.int64))


def _pass_seconds(
    plan: Plan, learner: Learner, few: Split, splits: Splits, device: torch.device, num_workers: int
) -> float:
    """The seconds that teachers take for some examples, which are prepared for the student."""
    beside = _live(learner, few)
    if beside is None:
        return 0.0
    loader = training_loader(plan, learner, few, splits.target, device, num_workers, beside)
    _loading(loader)
    return max(0.0, _loading(loader) - _loading(loader.without_beside()))


def _passes(plan: Plan, learner: Learner, splits: Splits, device: torch.device) -> tuple[int, int]:
    """The passes of teachers that a fit makes, and how many of all that it asks for are stored before it begins."""
    budget = plan.budget
    draws = range(min(budget.epochs, budget.views or budget.epochs))
    views = [drawn_view(plan.seed, draw) for draw in draws] if plan.augmentation is not None else [AS_IT_IS]
    asked = [("train", splits.train, views, budget.epochs * max(1, len(plan.learning_rates)))]
    if is_unlabelled(plan):
        asked += [("val", splits.val, [AS_IT_IS], 1), ("test", splits.test, [AS_IT_IS], 1)]
    made = stored = 0
    for role, split, names, times in asked:
        replay = replay_of(plan, learner, split, device, Passes(), role=role)
        for of in () if replay is None else replay.names:
            assert replay is not None, "it has names"
            if of not in replay.stores:  # each time anew
                made += split.num * times
                continue
            lacking = sum(len(replay.lacking(of, name, range(split.num))) for name in names)
            made += lacking
            stored += split.num * len(names) - lacking
    return made, stored


def _reading_seconds(
    plan: Plan, learner: Learner, splits: Splits, device: torch.device, num_workers: int
) -> tuple[float, float]:
    """The seconds per example for preparing it, and for predicting it once it is prepared."""
    few = _few(splits.val, 2 * INFERENCE_BATCH)
    loader = plain_loader(plan, learner, few, splits.target, device, num_workers)
    reading = _loading(loader)
    started = time.perf_counter()
    predict(learner, loader, precision=precision_of(plan.budget.precision, device))
    return reading / few.num, (time.perf_counter() - started) / few.num


def _kept_bytes(plan: Plan, learner: Learner, splits: Splits, num_measured: int, again: bool) -> int:
    """Bytes of prepared examples that a fit keeps beyond those of the dry run; for a moment a split is there twice."""
    assert plan.task is not None, "a trial has a task"
    raw = splits.train.raw(0)
    (example,) = learner.source.preparation.prepare([decode(plan.task.recipe.modality, raw)])
    each = sum(x.nbytes for x in example.values())
    held = [min(KEEP_BYTES, split.num * each) for split in (splits.train, splits.val, splits.test)]
    if again:
        held[0] = 0
    counted = (num_measured + min(splits.val.num, 2 * INFERENCE_BATCH)) * each
    return max(0, sum(held) + max(held) - counted)


def _weights_beside(plan: Plan, learner: Learner) -> int:
    """The bytes of the copies of weights that a trial holds: the common start, the best candidate, the best epoch."""
    moved = sum(tensor.nbytes for tensor in moving(learner).values())
    start = sum(tensor.nbytes for tensor in learner.delta().values())
    return start + moved * (2 if plan.budget.keep == "best" else 1)


def _assumed(plan: Plan, dry_run_size: int, size: int, again: bool) -> tuple[str, ...]:
    found = [f"measured on {NUM_STEPS} steps of {dry_run_size} examples of the task, on a machine as busy as now"]
    if dry_run_size < size:
        found.append(f"scaled to batches of {size}, whose activations do not fit into the memory that is free")
    if plan.budget.patience is not None:
        found.append("patience stops no fit early")
    if plan_groups([plan])[0].open_stages:
        found.append("every step computes the whole backbone, although the fit may start from stored states")
    if plan.budget.rungs:
        found.append("halving stops no learning rate")
    if again:
        found.append("every epoch prepares the examples anew")
    return tuple(found)


def shown(found: Forecast) -> Mapping[str, Any]:
    """The forecast in words, by what each row is about."""
    micro = "" if found.micro_batch is None else f", {min(found.micro_batch, found.batch_size)} in a pass"
    needs, free = (f"{size / 2**20:,.0f} MiB" for size in (found.peak_memory_bytes, found.free_bytes))
    return {
        "trains": f"{found.num_trainable:,} of {found.num_parameters:,} parameters",
        "steps": f"{found.num_rates} x {found.num_steps:,}, in {found.num_epochs} epochs, "
        f"of {found.batch_size} examples{micro}",
        **({"teacher": _passes_text(found)} if found.teacher_passes or found.stored_passes else {}),
        "peak memory": f"about {needs}; {free} are free now",
        "time": f"about {_spoken(found.seconds)}",
        "assumed": "; ".join(found.assumed),
    }


def _passes_text(found: Forecast) -> str:
    stored = f"; {found.stored_passes:,} are stored already" if found.stored_passes else ""
    return f"{found.teacher_passes:,} passes, one of each example and view{stored}"


def _spoken(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
