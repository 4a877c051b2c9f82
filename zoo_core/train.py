"""The only training loop: AdamW, warm-up and cosine, clipping; or one pass and a fit in closed form.

One forward pass per step. On a CPU two runs with one seed give the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.build import checksum
from zoo_core.contracts import Batch
from zoo_core.data import Loader, draw_seed
from zoo_core.errors import DivergedError, LawError
from zoo_core.features import convert, joined
from zoo_core.interrupts import held_back
from zoo_core.learner import Learner
from zoo_core.measure import Stopwatch, autocast, precision_of
from zoo_core.plan import Budget

__all__ = ["Fitted", "Progress", "calibrate", "fit"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a fit stands after a step: steps done of all, the last loss, and examples per second so far."""

    step: int
    num_steps: int
    loss: float
    examples_per_second: float


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit did. losses: one for each epoch, mean over its steps. seconds: wall time, loading included."""

    losses: tuple[float, ...]
    num_steps: int
    seconds: float
    training: dict[str, Any] | None


def fit(
    learner: Learner,
    loader: Loader,
    *,
    budget: Budget,
    learning_rate: float | None,
    seed: int,
    validate: Callable[[Learner], float] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Fitted:
    """Trains a learner in place on the loader's device, and leaves it in evaluation mode.

    learning_rate: None for a head that is fitted in closed form. validate: a validation score, more is better, asked
    for after each epoch when the budget has a patience, once the last phase has begun; the last epoch's weights stay,
    and what the learner's finishers make of them.
    Raises DivergedError when the loss or a weight is no longer finite, LawError when something frozen has moved or
    state has appeared that the delta does not know.
    """
    learner.to(loader.device)
    frozen = {name: checksum(tensor) for name, tensor in learner.frozen().items()}
    started = time.perf_counter()
    if learner.target.kind == "values":
        learner.fit_scale(loader.targets.to(loader.device))
    with _own_draws(loader.device, "train", seed), _delayed_for_now(learner):
        if learning_rate is None:
            _fit_closed_form(learner, loader)
            fitted = Fitted(losses=(), num_steps=0, seconds=time.perf_counter() - started, training=None)
        else:
            fitted = _fit_by_gradient(learner, loader, budget, learning_rate, seed, validate, progress)
    learner.eval()
    _check_frozen(learner, frozen)
    return fitted


def _fit_by_gradient(
    learner: Learner,
    loader: Loader,
    budget: Budget,
    learning_rate: float,
    seed: int,
    validate: Callable[[Learner], float] | None,
    progress: Callable[[Progress], None],
) -> Fitted:
    device, num_batches = loader.device, loader.num_batches
    num_steps = num_batches * budget.epochs
    precision = precision_of(budget.precision, device)
    parameters = [parameter for _, parameter in learner.trainable()]
    firsts = {parameter: _first_step(learner.start_of(parameter), num_steps) for parameter in parameters}
    groups = learner.parameter_groups(learning_rate, budget.weight_decay)
    shares = [_rate_at(num_steps, budget.warmup, _first_step(group["start"], num_steps)) for group in groups]
    with held_back():  # the first optimiser of a process imports torch._dynamo
        optimiser = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, shares)
    unseen = learner.added()
    watch = Stopwatch(device)
    started = time.perf_counter()
    losses: list[float] = []
    best, waited, step = -math.inf, 0, 0
    for epoch in range(budget.epochs):
        learner.train()
        total = torch.zeros((), device=device)
        for batch in loader.epoch(epoch):
            if step == 0 or step in firsts.values():
                _join(learner, firsts, step)
            watch.start()
            loss = _step(learner, batch, parameters, optimiser, budget.clip, precision)
            schedule.step()
            watch.stop(len(batch))
            total += loss
            step += 1
            unseen = {name: parameter for name, parameter in unseen.items() if parameter.grad is None}
            if device.type == "cpu" or step % 10 == 0 or step == num_steps:
                rate = step * loader.batch_size / (time.perf_counter() - started)
                progress(Progress(step=step, num_steps=num_steps, loss=float(loss), examples_per_second=rate))
        losses.append(float(total) / num_batches)
        if not math.isfinite(losses[-1]):
            raise DivergedError(f"the loss is {losses[-1]} in epoch {epoch + 1} at learning rate {learning_rate:g}")
        unseen = _still_unseen(learner, batch, unseen, precision, seed)
        if validate is not None and budget.patience is not None and step > max(firsts.values()):
            with _own_draws(device, "validate", seed, epoch):  # looking must not change what training draws
                found = validate(learner)
            best, waited = (found, 0) if found > best else (best, waited + 1)
            if waited >= budget.patience:
                break
    for finish in learner.finishers:
        finish(learner)
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise DivergedError(f"a weight is no longer finite after {step} steps at learning rate {learning_rate:g}")
    seconds = time.perf_counter() - started
    training = watch.rate(batch_size=loader.batch_size, precision=precision)
    return Fitted(losses=tuple(losses), num_steps=step, seconds=seconds, training=training)


def _step(
    learner: Learner,
    batch: Batch,
    parameters: list[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    clip: float,
    precision: str,
) -> Tensor:
    """One forward pass, one backward pass, one update. Returns the loss, detached."""
    with autocast(batch.target.device, precision):
        loss = learner.loss(learner(batch.inputs), batch)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    return loss.detach()


def _join(learner: Learner, firsts: Mapping[nn.Parameter, int], step: int) -> None:
    """Lets the parameters train whose first step has come, and no others; the modes follow.

    One that has not joined has no gradient, so the optimiser passes over it.
    """
    for parameter, first in firsts.items():
        parameter.requires_grad_(first <= step)
    learner.train()


@contextmanager
def _delayed_for_now(learner: Learner) -> Iterator[None]:
    """However a fit ends, what was trainable before it is trainable after it."""
    parameters = [parameter for _, parameter in learner.trainable()]
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _first_step(start: float, num_steps: int) -> int:
    """The step before which a phase begins; with fewer steps than phases some begin together, at the last one."""
    return min(round(start * num_steps), num_steps - 1)


def _still_unseen(
    learner: Learner, batch: Batch, unseen: dict[str, nn.Parameter], precision: str, seed: int
) -> dict[str, nn.Parameter]:
    """Those added tensors that have not joined yet, of those that no step gave a gradient so far.

    Layer-drop may have left the others out, so a pass in evaluation mode decides. Raises LawError for one that takes no
    part there either.
    """
    joined_by_now = {name: parameter for name, parameter in unseen.items() if parameter.requires_grad}
    if joined_by_now:
        learner.eval()
        with _own_draws(batch.target.device, "unseen", seed), autocast(batch.target.device, precision):
            loss = learner.loss(learner(batch.inputs), batch)
            gradients: list[Tensor | None]
            gradients = [*torch.autograd.grad(loss, list(joined_by_now.values()), allow_unused=True)]
        dead = [name for name, gradient in zip(joined_by_now, gradients, strict=True) if gradient is None]
        if dead:
            raise LawError(
                f"{len(dead)} added tensors take no part in a forward pass, {dead[0]} first; "
                f"the adapter put them where the backbone does not look"
            )
    return {name: parameter for name, parameter in unseen.items() if name not in joined_by_now}


def _rate_at(num_steps: int, warmup: float, first: int) -> Callable[[int], float]:
    """Share of the learning rate at each step: linear up, then half a cosine down to 0.

    What joins later, at step `first`, has the same warm-up then, below the same cosine.
    Source: Loshchilov & Hutter 2017, equation 5, one period.
    """
    rising = max(1, round(num_steps * warmup))

    def share(step: int) -> float:
        above = min(1.0, max(0, step - first + 1) / rising)
        if step < rising:
            return above
        return above * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, num_steps - rising)))

    return share


def _fit_closed_form(learner: Learner, loader: Loader) -> None:
    """One pass over the training split in evaluation mode, then the head's own `fit` on all features."""
    learner.eval()
    head = learner.heads["main"]
    parts, targets = [], []
    with torch.no_grad():
        for batch in loader.epoch():
            features = learner.backbone(batch.inputs)
            parts.append(convert(features, learner.consumes, learner.source.pool))
            targets.append(batch.target)
        head.fit(joined(parts), torch.cat(targets))  # type: ignore[operator]


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


@contextmanager
def _own_draws(device: torch.device, *parts: object) -> Iterator[None]:
    """Dropout draws from a seed of its own; the caller's random state is put back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(draw_seed(*parts))
        yield


def _check_frozen(learner: Learner, before: dict[str, int]) -> None:
    learner.delta()  # its names are still those that building fixed
    moved = [name for name, tensor in learner.frozen().items() if checksum(tensor) != before[name]]
    if moved:
        raise LawError(
            f"{len(moved)} frozen tensors moved during training, {moved[0]} first; "
            "an adapter keeps what it changes in modules and buffers of its own"
        )
