"""Fits a learner, by gradient or in closed form, and checks that nothing frozen has moved.

On a CPU, two fits with the same seed give the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo_core.contracts import ClosedForm
from zoo_core.data.loader import Loader
from zoo_core.data.randomness import forked_rng
from zoo_core.errors import DivergedError, LawError
from zoo_core.model.build import checksum
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget
from zoo_core.toolkit.features import convert, joined
from zoo_core.training.gradient_trainer import GradientTrainer, MemoryOptions
from zoo_core.training.progress import FitProgress
from zoo_core.training.snapshots import SaveSnapshot, Snapshot

__all__ = ["Fitted", "calibrate", "fit", "pause_fit", "take_unit", "time_training"]

TIMED_WINDOWS = 3


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit did. losses: for each epoch the mean over its steps. seconds: wall time, loading included.

    epoch: the one whose weights were kept, counted from 1; None in closed form.
    score: the validation score of these weights; None if it was not computed, or if a finisher has changed them since.
    micro_batch: the number of examples in a pass, if that was requested.
    """

    losses: tuple[float, ...]
    num_steps: int
    seconds: float
    training: dict[str, Any] | None
    epoch: int | None = None
    score: float | None = None
    micro_batch: int | None = None


def fit(
    learner: Learner,
    loader: Loader,
    *,
    budget: Budget,
    learning_rate: float | None,
    seed: int,
    validate: Callable[[Learner], float] | None = None,
    progress: Callable[[FitProgress], None] = lambda _: None,
    state: Snapshot | None = None,
    save_snapshot: SaveSnapshot = lambda _: None,
    memory: MemoryOptions | None = None,
) -> Fitted:
    """Trains a learner in place on the loader's device, and leaves it in evaluation mode.

    learning_rate: None for a head that is fitted in closed form.
    validate: returns a validation score, where higher is better. It is called after each epoch if the budget has a
    patience or keeps the best epoch, once the last phase has begun. The weights of the best or of the last epoch are
    kept, as the budget says, and the learner's finishers are then applied to them.
    save_snapshot: called after each epoch but the last, with a function that makes the snapshot.
    state: the snapshot of an interrupted fit of this plan. On a CPU, the continued fit ends with the same bits as an
    uninterrupted one.
    memory: how to save memory; None means not at all. A fit in closed form ignores it.
    Raises DivergedError if the loss or a weight is no longer finite, LawError if something frozen has moved or there is
    state that the delta does not know.
    """
    started = time.perf_counter()
    with _fitting(learner, loader, seed):
        if learning_rate is None:
            _fit_closed_form(learner, loader)
            fitted = Fitted(losses=(), num_steps=0, seconds=time.perf_counter() - started, training=None)
        else:
            trainer = GradientTrainer(
                learner, loader, budget=budget, learning_rate=learning_rate, seed=seed, memory=memory
            )
            if state is not None:
                trainer.restore(state)
            trainer.run(validate, progress, save_snapshot)
            fitted = _finished(trainer, learner, learning_rate)
    return fitted


def pause_fit(
    learner: Learner,
    loader: Loader,
    *,
    budget: Budget,
    learning_rate: float,
    seed: int,
    epochs: int,
    validate: Callable[[Learner], float],
    progress: Callable[[FitProgress], None] = lambda _: None,
    state: Snapshot | None = None,
    save_snapshot: SaveSnapshot = lambda _: None,
    memory: MemoryOptions | None = None,
) -> tuple[Snapshot, float]:
    """As `fit`, but it pauses after so many of the budget's epochs, or before if its patience runs out.

    Returns a snapshot, in memory of its own, from which `fit` or another pause continues as if there had been none, and
    the validation score, more is better, of the weights that would be kept if the fit ended there, before finishers.
    """
    with _fitting(learner, loader, seed):
        trainer = GradientTrainer(learner, loader, budget=budget, learning_rate=learning_rate, seed=seed, memory=memory)
        if state is not None:
            trainer.restore(state)
        trainer.run(validate, progress, save_snapshot, until=epochs)
        worth, found = trainer.worth(validate), trainer.state()
    parts = {name: {key: x.to("cpu", copy=True) for key, x in part.items()} for name, part in found.parts.items()}
    return Snapshot(values=found.values, parts=parts), worth


@contextmanager
def _fitting(learner: Learner, loader: Loader, seed: int) -> Iterator[None]:
    """What every fit begins and ends with. Raises LawError if something frozen has moved."""
    learner.to(loader.device)
    frozen = {name: checksum(tensor) for name, tensor in learner.frozen().items()}
    take_unit(learner, loader)
    with forked_rng(loader.device, "train", seed), _delayed_for_now(learner):
        yield
    learner.eval()
    _check_frozen(learner, frozen)


def time_training(
    learner: Learner,
    loader: Loader,
    *,
    budget: Budget,
    learning_rate: float | None,
    seed: int,
    memory: MemoryOptions | None = None,
) -> dict[str, Any] | None:
    """The rate of training steps from three windows of them, as a result stores it; None for a head in closed form,
    whose features are computed for one batch. The learner moves: its user puts it back.
    """
    learner.to(loader.device)
    with forked_rng(loader.device, "time", seed), _delayed_for_now(learner):
        if learning_rate is None:
            with torch.no_grad():
                learner.backbone(next(iter(loader.epoch())).inputs)
            return None
        trainer = GradientTrainer(learner, loader, budget=budget, learning_rate=learning_rate, seed=seed, memory=memory)
        trainer.time_steps(TIMED_WINDOWS)
    learner.eval()
    return trainer.rate


def take_unit(learner: Learner, loader: Loader) -> None:
    """Takes the unit of a regression from the targets that are known, else from the teacher, else leaves it at 1."""
    if learner.target.kind != "regression":
        return
    targets = loader.targets.to(loader.device)
    known = targets[~targets.isnan().any(dim=1)]
    if len(known):
        learner.fit_scale(known)
    elif learner.teachers is not None:
        learner.take_scale()


def _finished(trainer: GradientTrainer, learner: Learner, learning_rate: float) -> Fitted:
    for finish in learner.finishers:
        finish(learner)
    if not all(bool(parameter.isfinite().all()) for _, parameter in learner.trainable()):
        raise DivergedError(
            f"a weight is no longer finite after {trainer.step} steps at learning rate {learning_rate:g}"
        )
    return Fitted(
        losses=tuple(trainer.losses),
        num_steps=trainer.step,
        seconds=trainer.seconds,
        training=trainer.rate,
        epoch=trainer.kept_epoch,
        score=None if learner.finishers else trainer.kept_score,
        micro_batch=trainer.micro_batch,
    )


@contextmanager
def _delayed_for_now(learner: Learner) -> Iterator[None]:
    """Restores what was trainable before, however the fit ends."""
    parameters = [parameter for _, parameter in learner.trainable()]
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _fit_closed_form(learner: Learner, loader: Loader) -> None:
    """Computes all features in evaluation mode, then calls the head's own `fit`."""
    learner.eval()
    head = learner.head
    assert isinstance(head, ClosedForm), "build has checked it"
    parts, targets = [], []
    with torch.no_grad():
        for batch in loader.epoch():
            features = learner.features(batch.inputs)
            parts.append(convert(features, learner.consumes, learner.source.pool))
            targets.append(batch.target)
        head.fit(joined(parts), torch.cat(targets))


def calibrate(learner: Learner, loader: Loader) -> None:
    """Computes the statistics of frozen batch norms over the training split, for a backbone that was never trained.

    The statistics of a random backbone are placeholders, and a probe would measure those. Weights do not change. Batch
    norms that train compute their own statistics.
    """
    learner.to(loader.device)
    learner.train()
    norms = [
        module
        for module in learner.backbone.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training and module.track_running_stats
    ]
    if norms:
        learner.eval()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean over the pass
            norm.training = True
        with torch.no_grad():
            for batch in loader.epoch():
                learner.backbone(batch.inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    learner.eval()


def _check_frozen(learner: Learner, before: dict[str, int]) -> None:
    learner.delta()  # its names are still those that building fixed
    moved = [name for name, tensor in learner.frozen().items() if checksum(tensor) != before[name]]
    if moved:
        raise LawError(
            f"{len(moved)} frozen tensors moved during training, {moved[0]} first; "
            "an adapter keeps what it changes in modules and buffers of its own"
        )
