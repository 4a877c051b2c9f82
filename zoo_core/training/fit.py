"""Fits a learner: by gradient, or by one pass and a head's closed form; what is frozen is checked to have stayed.

On a CPU two runs with one seed give the same bits.
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
from zoo_core.training.gradient import FitProgress, GradientTrainer, MemoryOptions
from zoo_core.training.snapshots import SaveSnapshot, Snapshot

__all__ = ["FitProgress", "Fitted", "calibrate", "fit"]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit did. losses: one for each epoch, mean over its steps. seconds: wall time, loading included.

    epoch: whose weights were kept, counted from 1; None in closed form. score: their validation score, None where
    nobody asked for it or a finisher has changed them since. micro_batch: examples of a pass, where that was asked for.
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

    learning_rate: None for a head that is fitted in closed form. validate: a validation score, more is better, asked
    for after each epoch when the budget has a patience or keeps the best, once the last phase has begun. The weights of
    the best epoch stay, or those of the last, as the budget says, and what the learner's finishers make of them.
    save_snapshot: called after each epoch but the last, with a function that makes the snapshot. state: the snapshot of
    an interrupted fit of
    this plan; on a CPU the fit that goes on from it ends with the bits of one that nothing interrupted.
    memory: how it saves memory, None: not at all; a fit in closed form has nothing to save.
    Raises DivergedError when the loss or a weight is no longer finite, LawError when something frozen has moved or
    state has appeared that the delta does not know.
    """
    learner.to(loader.device)
    frozen = {name: checksum(tensor) for name, tensor in learner.frozen().items()}
    started = time.perf_counter()
    if learner.target.kind == "regression":
        learner.fit_scale(loader.targets.to(loader.device))
    with forked_rng(loader.device, "train", seed), _delayed_for_now(learner):
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
    learner.eval()
    _check_frozen(learner, frozen)
    return fitted


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
    """However a fit ends, what was trainable before it is trainable after it."""
    parameters = [parameter for _, parameter in learner.trainable()]
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _fit_closed_form(learner: Learner, loader: Loader) -> None:
    """One pass over the training split in evaluation mode, then the head's own `fit` on all features."""
    learner.eval()
    head = learner.head
    assert isinstance(head, ClosedForm), "build has checked it"
    parts, targets = [], []
    with torch.no_grad():
        for batch in loader.epoch():
            features = learner.backbone(batch.inputs)
            parts.append(convert(features, learner.consumes, learner.source.pool))
            targets.append(batch.target)
        head.fit(joined(parts), torch.cat(targets))


def calibrate(learner: Learner, loader: Loader) -> None:
    """Statistics of frozen batch norms over one pass of the training split, for a backbone that was never trained.

    A random backbone's statistics are placeholders, so a probe on them would measure the placeholders. Weights do
    not change. Batch norms that train take their own statistics.
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
