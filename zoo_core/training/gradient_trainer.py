"""Fits by gradient: AdamW, warm-up and cosine, clipping, delayed phases, and the best epoch on validation.

Each step is one forward pass, or several on parts of the batch to save memory. `GradientTrainer` holds everything that
an epoch changes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core._process.interrupts import held_back
from zoo_core.contracts import Batch
from zoo_core.data.loader import Loader
from zoo_core.data.randomness import forked_rng
from zoo_core.errors import DivergedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import total_of
from zoo_core.plan.plan import Budget
from zoo_core.training.activation_checkpointing import recomputed, still
from zoo_core.training.memory import activations, available_bytes, fitting_batch, state_bytes
from zoo_core.training.micro_batches import check_divides, num_items, pieces, weights_of
from zoo_core.training.progress import FitProgress
from zoo_core.training.snapshots import SaveSnapshot, Snapshot, laid_out_like
from zoo_core.training.timing import Stopwatch, autocast, precision_of

__all__ = ["GradientTrainer", "MemoryOptions", "moving", "projectors", "rate_at"]


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How a fit saves memory. The gradients stay the same, so this is not part of a trial's identity.

    micro_batch: the number of examples in one pass; the gradients of the passes add up to that of the batch. `auto`
    takes as many as fit into memory, and None the whole batch.
    checkpoint_activations: whether stages keep only their inputs and compute their activations again for the backward
    pass.
    """

    micro_batch: int | str | None = None
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch not in (None, "auto") and (type(self.micro_batch) is not int or self.micro_batch < 1):
            raise UsageError(f"micro_batch={self.micro_batch!r}: allowed: a whole number, 1 or more, or auto")


class GradientTrainer:
    """A fit by gradient. `run` trains the learner in place, epoch by epoch.

    losses: of the epochs done. step: the number of steps done.
    kept_epoch: the epoch, counted from 1, whose weights the learner has when `run` returns. kept_score: their
    validation score, None if it was not computed. micro_batch: the number of examples in a pass, if that was requested.
    """

    def __init__(
        self,
        learner: Learner,
        loader: Loader,
        *,
        budget: Budget,
        learning_rate: float,
        seed: int,
        memory: MemoryOptions | None = None,
    ) -> None:
        self._memory = memory or MemoryOptions()
        asked = self._memory.micro_batch
        self.micro_batch = min(asked, budget.batch_size) if isinstance(asked, int) else None
        self._checked = 0  # the micro-batch that is known to divide the batch
        self._learner, self._loader, self._budget, self._seed = learner, loader, budget, seed
        self._learning_rate = learning_rate
        self.num_steps = loader.num_batches * budget.epochs
        self._precision = precision_of(budget.precision, loader.device)
        self._parameters = [parameter for _, parameter in learner.trainable()]
        self._firsts = {one: _first_step(learner.start_of(one), self.num_steps) for one in self._parameters}
        groups = learner.parameter_groups(learning_rate, budget.weight_decay)
        self._shares = [
            rate_at(self.num_steps, budget.warmup, _first_step(group["start"], self.num_steps)) for group in groups
        ]
        drawn = random.getstate()
        with held_back():  # the first optimiser of a process imports torch._dynamo, and that what draws by `random`
            self._optimiser = torch.optim.AdamW(groups, fused=True)
        random.setstate(drawn)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._shares)
        self._projectors = tuple(projectors(learner))  # now, as one that joins later is not trainable for a while
        self._watch = Stopwatch(loader.device)
        self._started = time.perf_counter()
        self.losses: list[float] = []
        self.step = 0
        self.kept_epoch: int | None = None
        self.kept_score: float | None = None
        self._best = -math.inf
        self._best_epoch: int | None = None
        self._best_weights: Mapping[str, Tensor] | None = None
        self._waited = 0

    def run(
        self,
        validate: Callable[[Learner], float] | None,
        progress: Callable[[FitProgress], None],
        save_snapshot: SaveSnapshot = lambda _: None,
        until: int | None = None,
    ) -> None:
        """Trains for the epochs of the budget or until its patience runs out; the kept weights are then in place.

        validate: a validation score, more is better, asked for after each epoch that ends in the last phase, if the
        budget has a patience or keeps the best. save_snapshot: called after each
        epoch but the last, with a function that makes the snapshot. until: the epoch after which it pauses, with the
        weights of that epoch in place; `state` continues it.
        Raises DivergedError.
        """
        keeps_best = self._budget.keep == "best"
        looks = validate is not None and (keeps_best or self._budget.patience is not None)
        last = self._budget.epochs if until is None else until
        while len(self.losses) < last and not self._is_out_of_patience:
            self._train_epoch(progress)
            self.kept_epoch, self.kept_score = len(self.losses), None
            if looks and self.step > max(self._firsts.values()):
                assert validate is not None, "it is there where it is asked"
                with forked_rng(self._loader.device, "validate", self._seed, len(self.losses) - 1):
                    self._weigh(validate(self._learner))  # looking must not change what training draws
            if len(self.losses) < self._budget.epochs and not self._is_out_of_patience:
                save_snapshot(self.state)
        if until is None and keeps_best and self._best_weights is not None:
            self._put_best_back()

    def worth(self, validate: Callable[[Learner], float]) -> float:
        """The validation score of the weights that would be kept if the fit ended now. No draw of training changes."""
        if self._budget.keep == "best" and self._best_epoch is not None:
            return self._best
        if self.kept_score is not None:
            return self.kept_score
        with forked_rng(self._loader.device, "validate", self._seed, len(self.losses) - 1):
            return validate(self._learner)

    def time_steps(self, num_windows: int) -> None:
        """Takes steps of the first epoch, again and again, until so many windows of them are timed; see `rate`."""
        self._watch = Stopwatch(self._loader.device, warmup=1)
        self._join()
        while self._watch.windows < num_windows:
            for batch in self._loader.epoch():
                self._watch.start()
                self._update(batch)
                self._watch.stop(len(batch))
                if self._watch.windows == num_windows:
                    break

    def state(self) -> Snapshot:
        """A snapshot of everything that an epoch changes. `restore` on a new trainer continues from it, bit for bit."""
        learner, optimiser = self._learner, self._optimiser.state_dict()["state"]
        parts: dict[str, Mapping[str, Tensor]] = {
            "weights": moving(learner),
            "objective": self._objective(),
            "optimiser": {f"{at}.{name}": x for at, row in optimiser.items() for name, x in row.items()},
            "draws": _draws(self._loader.device),
        }
        if self._best_weights is not None:
            parts["best"] = self._best_weights
        values = {
            "step": self.step,
            "losses": self.losses,
            "best": None if self._best_epoch is None else [self._best_epoch, self._best],
            "waited": self._waited,
            "seconds": self.seconds,
            "micro_batch": self.micro_batch,
            "watch": self._watch.state(),
        }
        return Snapshot(values=values, parts={name: part for name, part in parts.items() if part})

    def restore(self, state: Snapshot) -> None:
        """Continues from a snapshot, including the state of the random generators."""
        values, parts, learner = state.values, state.parts, self._learner
        put(moving(learner), parts["weights"])
        put(self._objective(), parts.get("objective", {}))
        self.step, self.losses, self._waited = values["step"], list(values["losses"]), values["waited"]
        self.kept_epoch = len(self.losses)  # if its patience ran out before it paused, no epoch follows
        if values["best"] is not None:
            self._best_epoch, self._best = values["best"]
        self._best_weights = parts.get("best")
        self._started -= values["seconds"]
        if "watch" in values:  # not in a state of an earlier version
            self._watch.restore(values["watch"])
        if self._memory.micro_batch == "auto":
            self.micro_batch = values["micro_batch"]  # another one would round otherwise
        table = self._optimiser.state_dict()
        parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        for key, tensor in parts.get("optimiser", {}).items():
            at, _, name = key.partition(".")
            is_moment = name != "step"
            value = laid_out_like(parameters[int(at)], tensor) if is_moment else tensor
            table["state"].setdefault(int(at), {})[name] = value
        self._optimiser.load_state_dict(table)
        known = self._schedule.state_dict()
        rates = [base * share(self.step) for base, share in zip(known["base_lrs"], self._shares, strict=True)]
        self._schedule.load_state_dict(
            known | {"last_epoch": self.step, "_step_count": self.step + 1, "_last_lr": rates}
        )
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        self._join()
        _draw_from(parts["draws"], self._loader.device)

    @property
    def seconds(self) -> float:
        """Wall time so far, with loading, and with the time before an interruption."""
        return time.perf_counter() - self._started

    @property
    def rate(self) -> dict[str, Any] | None:
        """The training rate as a result stores it, of the steps before an interruption or a pause too."""
        return self._watch.rate(batch_size=self._loader.batch_size, precision=self._precision)

    def _objective(self) -> dict[str, Tensor]:
        state = {} if self._learner.objective is None else self._learner.objective.state_dict()
        return {name: state[name] for name in self._projectors}

    @property
    def _is_out_of_patience(self) -> bool:
        return self._budget.patience is not None and self._waited >= self._budget.patience

    def _train_epoch(self, progress: Callable[[FitProgress], None]) -> None:
        """One epoch. Raises DivergedError where the mean loss is no finite number."""
        learner, device, epoch = self._learner, self._loader.device, len(self.losses)
        learner.train()
        total = torch.zeros((), device=device)
        started, before = time.perf_counter(), self.step
        for batch in self._loader.epoch(epoch):
            if self.step == 0 or self.step in self._firsts.values():
                self._join()
            self._watch.start()
            loss = self._update(batch)
            self._schedule.step()
            self._watch.stop(len(batch))
            total += loss
            self.step += 1
            if device.type == "cpu" or self.step % 10 == 0 or self.step == self.num_steps:
                rate = (self.step - before) * self._loader.batch_size / (time.perf_counter() - started)
                progress(
                    FitProgress(step=self.step, num_steps=self.num_steps, loss=float(loss), examples_per_second=rate)
                )
        self.losses.append(float(total) / self._loader.num_batches)
        if not math.isfinite(self.losses[-1]):
            raise DivergedError(
                f"the loss is {self.losses[-1]} in epoch {epoch + 1} at learning rate {self._learning_rate:g}"
            )

    def _update(self, batch: Batch) -> Tensor:
        """Makes one update from one pass, or from several passes on parts of the batch. Returns the loss, detached."""
        batch = self._learner.taught(batch)  # once, before it is divided
        with recomputed(self._learner.backbone) if self._memory.checkpoint_activations else nullcontext():
            if self._memory.micro_batch is None:
                loss = self._gradient(batch, batch)
            else:
                loss = self._gradient_that_fits(batch)
        nn.utils.clip_grad_norm_(self._parameters, self._budget.clip)
        self._optimiser.step()
        return loss

    def _gradient(self, batch: Batch, *parts: Batch) -> Tensor:
        """Leaves the gradient of a batch, summed over its parts, in the parameters. Returns the loss, detached."""
        self._optimiser.zero_grad(set_to_none=True)
        if len(parts) == 1:
            loss = self._loss(batch)
            loss.backward()
            return loss.detach()
        weights = weights_of([num_items(self._learner, part) for part in parts])
        total = torch.zeros((), device=batch.target.device)
        for part, weight in zip(parts, weights, strict=True):
            if any(weight.values()):  # the mean over no target is no number
                loss = self._loss(part, weight)
                loss.backward()
                total = total + loss.detach()
        return total

    def _loss(self, batch: Batch, weights: Mapping[str, float] | None = None) -> Tensor:
        """The loss of a batch. weights: of its terms, where it is a part of one; the empty name is of all others."""
        with autocast(batch.target.device, self._precision):
            output = self._learner(batch.inputs)
            if weights is None:
                return self._learner.loss(output, batch)
            terms = self._learner.terms(output, batch)
            if len(weights) == 1:
                return total_of(terms) * next(iter(weights.values()))
            shares = {name: weights.get(name, weights[""]) for name in terms}
            kept = {name: term * shares[name] for name, term in terms.items() if shares[name]}
            return total_of(kept or {"": output.predictions.sum() * 0})

    def _gradient_that_fits(self, batch: Batch) -> Tensor:
        """Computes the gradient in micro-batches. With `auto`, the micro-batch is halved while memory is too small.

        A pass that did not fit is repeated with the same random draws. Raises RefusedError if the batch cannot be
        divided.
        """
        seeks = self._memory.micro_batch == "auto"
        if self.micro_batch is None:
            self.micro_batch = self._first_guess(batch)
        while True:
            if self.micro_batch < len(batch) and self._checked != self.micro_batch:
                check_divides(self._learner, batch, self.micro_batch)
                self._checked = self.micro_batch
            drawn = _draws(self._loader.device) if seeks else {}
            try:
                return self._gradient(batch, *pieces(batch, self.micro_batch))
            except torch.OutOfMemoryError:
                if not seeks or self.micro_batch == 1:
                    raise
                self.micro_batch = (min(self.micro_batch, len(batch)) + 1) // 2
            self._optimiser.zero_grad(set_to_none=True)
            if self._loader.device.type == "cuda":
                torch.cuda.empty_cache()
            _draw_from(drawn, self._loader.device)

    def _first_guess(self, batch: Batch) -> int:
        """The first micro-batch to try: on a GPU the whole batch, which fails early.

        On a CPU it is the size that should fit, because too much may kill the process.
        """
        device, size = self._loader.device, self._budget.batch_size
        if device.type == "cuda":
            return size
        few = batch[:2]
        with forked_rng(device, "forecast", self._seed), still(self._learner):
            needed = activations(self._learner, lambda: self._loss(few), len(few))
        free = available_bytes(device) - state_bytes(self._learner)
        return fitting_batch(size, free=free, for_each=needed.bytes(recomputes=self._memory.checkpoint_activations))

    def _join(self) -> None:
        """Makes exactly those parameters trainable whose first step has come, and sets the modes to match.

        A parameter that has not joined has no gradient, so the optimiser skips it.
        """
        for parameter, first in self._firsts.items():
            parameter.requires_grad_(first <= self.step)
        self._learner.train()
        self._checked = 0

    def _weigh(self, found: float) -> None:
        """Takes the validation score of an epoch into account. Of equal scores, the earlier epoch is better."""
        self.kept_score = found
        if not found > self._best:
            self._waited += 1
            return
        self._best, self._waited, self._best_epoch = found, 0, len(self.losses)
        if self._budget.keep == "best":
            self._best_weights = {name: tensor.clone() for name, tensor in moving(self._learner).items()}

    def _put_best_back(self) -> None:
        assert self._best_weights is not None, "there is a best epoch"
        put(moving(self._learner), self._best_weights)
        self.kept_epoch, self.kept_score = self._best_epoch, self._best


def moving(learner: Learner) -> dict[str, Tensor]:
    """The tensors of backbone and heads that training changes, by name: the delta without what is frozen.

    They are the learner's own tensors. What trains in an objective is not included.
    """
    still = learner.frozen().keys()
    return {name: tensor for name, tensor in learner.delta().items() if name not in still}


def projectors(learner: Learner) -> dict[str, Tensor]:
    """The trainable tensors and the buffers of the objective, which are not in the delta.

    The weights of a frozen teacher are not included.
    """
    if learner.objective is None:
        return {}
    frozen = {name for name, parameter in learner.objective.named_parameters() if not parameter.requires_grad}
    state: dict[str, Tensor] = learner.objective.state_dict()
    return {name: tensor for name, tensor in state.items() if name not in frozen}


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies values into the tensors of the same names. The names must be equal."""
    assert tensors.keys() == values.keys(), "a state is of the learner that the same plan builds"
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _first_step(start: float, num_steps: int) -> int:
    """The step before which a phase begins. With fewer steps than phases, some begin together at the last step."""
    return min(round(start * num_steps), num_steps - 1)


def rate_at(num_steps: int, warmup: float, first: int) -> Callable[[int], float]:
    """The share of the learning rate at each step: a linear rise, then half a cosine down to 0.

    Parameters that join at step `first` have the same warm-up from then on, below the same cosine.
    Source: Loshchilov & Hutter 2017, equation 5, one period.
    """
    rising = max(1, round(num_steps * warmup))

    def share(step: int) -> float:
        above = min(1.0, max(0, step - first + 1) / rising)
        if step < rising:
            return above
        return above * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, num_steps - rising)))

    return share


def _draws(device: torch.device) -> dict[str, Tensor]:
    """The states of the torch generators that training draws from, including a GPU's."""
    found = {"cpu": torch.get_rng_state()}
    return found | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else found


def _draw_from(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
