"""Trains learners of one shape as one computation: rows that differ in seed and learning rate, each on its own order.

What differs between them, heads and adapters, is stacked, [R, ...], and one forward pass, vectorised by torch.func,
serves all rows. Each row is what GradientTrainer makes of it alone, up to the rounding of sums that are taken in
another order: its own batches, its own rate, its gradient clipped by its own norm, its own best epoch. A row that
diverges holds numbers that are none, and no other row reads them.

Some cannot: they draw, or compute with numbers that are outside tensors. What is tried first tells.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch
from zoo_core.data.loader import Loader
from zoo_core.data.randomness import forked_rng
from zoo_core.data.token_labels import IGNORED
from zoo_core.errors import DivergedError
from zoo_core.model.given_features import MASK, features_in
from zoo_core.model.learner import Learner
from zoo_core.model.objective import BinaryCrossEntropy, CrossEntropy, ScaledHead, SquaredError
from zoo_core.plan.plan import Budget
from zoo_core.training.gradient_trainer import moving, rate_at
from zoo_core.training.memory import activations
from zoo_core.training.progress import FitProgress
from zoo_core.training.recorded_step import WORTH, RecordedStep
from zoo_core.training.stacked import RowAdamW, Stacked, layout, tensors_of
from zoo_core.training.timing import autocast, precision_of
from zoo_core.training.untold_state import changes, untold_state

__all__ = ["PAYS", "NotTogether", "Row", "RowEnd", "StepSeconds", "train_rows"]

AT_ONCE = 2**30  # bytes of rows that train at once
STATES = 5  # the size of a row's weights with gradient, two moments and the best ones
VARYING = (MASK, "attention_mask")  # inputs of examples that are padded to the longest of their batch
READ = 4  # the size of features with what a head makes of them
TIMES = 3  # a step is measured
PAYS = 0.85  # of the time alone: what comes beside gradients, and noise, eat up less of a gain
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # of a row against its head alone, as a share of the largest value


class NotTogether(Exception):  # noqa: N818 - it is no fault
    """Why learners are not trained as rows of one computation."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One learner to train, on which batches, and at which rate. learner: as built; it is only read."""

    learner: Learner
    loader: Loader
    learning_rate: float


@dataclass(kw_only=True)
class RowEnd:
    """How the training of a row ended. weights: by name as in the learner; None if it diverged.

    losses: for each epoch the mean over its steps. epoch: the one whose weights these are, from 1. score: their
    validation score, None if nobody looked. diverged: why there are no weights. seconds: its share of the wall time.
    rungs: for each rung of the budget the validation score of the weights that would be kept if training ended there.
    """

    losses: list[float] = field(default_factory=list)
    num_steps: int = 0
    weights: Mapping[str, Tensor] | None = None
    epoch: int = 0
    score: float | None = None
    diverged: str = ""
    seconds: float = 0.0
    rungs: list[float] = field(default_factory=list)

    def worth_at(self, rung: int) -> float:
        """The score at a rung, counted from 0; that of the end if it came before. Raises DivergedError likewise."""
        if rung < len(self.rungs):
            return self.rungs[rung]
        if self.weights is None:
            raise DivergedError(self.diverged)
        assert self.score is not None, "who ends before a rung has run out of patience, so somebody looked"
        return self.score


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """What a step of some rows takes as one computation, and one after the other; see `_Rows.weighed`."""

    together: float
    alone: float


def train_rows(
    rows: Sequence[Row],
    *,
    budget: Budget,
    validate: Callable[[int, Mapping[str, Tensor]], float],
    progress: Callable[[FitProgress], None] = lambda _: None,
    weigh: Callable[[StepSeconds], None] | None = None,
) -> list[RowEnd]:
    """Trains rows of one budget. Returns how each ended, in their order.

    validate: the validation score, more is better, of a row with these weights; asked for after each epoch where the
    budget has a patience or keeps the best. progress: is told after each epoch, of all rows together.
    weigh: is told what the first step takes, which then must be faster together, by PAYS; None: that need not be
    measured.
    Raises NotTogether for rows that cannot be trained so or are not to be, before any of them is.
    """
    ends: list[RowEnd] = []
    for some in _parts(rows, budget):
        together = _Rows(some, budget)
        together.try_out()
        if weigh is not None and not ends:
            seconds = together.weighed()
            weigh(seconds)
            if seconds.together >= PAYS * seconds.alone:
                raise NotTogether("a step of all of them is not clearly faster together, see step_seconds")
        ends += together.train(partial(_validated, validate, len(ends)), progress)
    return ends


def _validated(
    validate: Callable[[int, Mapping[str, Tensor]], float], start: int, row: int, weights: Mapping[str, Tensor]
) -> float:
    return validate(start + row, weights)


def _parts(rows: Sequence[Row], budget: Budget) -> list[Sequence[Row]]:
    """Rows that train at once: those of as many whole loaders as fit, or as many of one loader."""
    blocks = [list(block) for _, block in groupby(rows, key=lambda row: id(row.loader))]
    learner, batch = rows[0].learner, next(iter(rows[0].loader.epoch()))
    size = max(1, AT_ONCE // max(1, _row_bytes(learner, batch, budget)))
    num_each = len(blocks[0])
    varies = any(name in batch.inputs for name in VARYING)  # the loaders' examples are not of one length
    if size < num_each or {len(block) for block in blocks} != {num_each} or varies:
        return [block[start : start + size] for block in blocks for start in range(0, len(block), size)]
    num = size // num_each
    return [list(chain(*blocks[start : start + num])) for start in range(0, len(blocks), num)]


def _row_bytes(learner: Learner, batch: Batch, budget: Budget) -> int:
    """What a row takes: what moves, gradient, two moments and the best weights, and what a step keeps."""
    held = STATES * sum(x.nbytes for x in moving(learner).values())
    if features_in(batch.inputs) is not None:
        return held + READ * sum(x.nbytes for x in batch.inputs.values())
    few, device, twin = batch[:2], batch.target.device, _twin(learner)

    def step() -> Tensor:
        with autocast(device, precision_of(budget.precision, device)):
            return twin.loss(twin(few.inputs), few)

    with forked_rng(device, "forecast", 0):
        return held + int(activations(twin, step, len(few)).all * len(batch))


class _Rows:
    """Rows that train at once. R rows, P values of one head's parameters, S loaders, B examples of a batch."""

    def __init__(self, rows: Sequence[Row], budget: Budget) -> None:
        self._rows, self._budget = rows, budget
        self._loaders = list({id(row.loader): row.loader for row in rows}.values())
        self._device = self._loaders[0].device
        self._reads_features = features_in(next(self._loaders[0].epoch()).inputs) is not None
        self._check()
        self._stacked = Stacked([row.learner for row in rows], num_blocks=len(self._loaders))
        rates = [row.learning_rate for row in rows]
        self._optimiser = RowAdamW(self._stacked, rates, weight_decay=budget.weight_decay, clip=budget.clip)
        self._scale_RC = self._units()
        self._tolerance = TOLERANCE[precision_of(budget.precision, self._device)]
        self._num_steps = self._loaders[0].num_batches * budget.epochs
        self._recorded = RecordedStep(self._step, is_same=self._is_same)

    # -- what they have in common -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises NotTogether unless all rows have one shape of head, one length of an epoch and the default loss."""
        first = self._rows[0].learner
        every = [x for _, x in first.named_parameters(remove_duplicate=False) if x.requires_grad]
        if len(every) > len({id(x) for x in every}):
            raise NotTogether("they hold one tensor under two names")
        wanted = layout(first)
        for learner in {id(row.learner): row.learner for row in self._rows}.values():
            if layout(learner) != wanted:
                raise NotTogether("their parameters differ in shape")
            if learner.finishers or any(learner.start_of(one) for _, one in learner.trainable()):
                raise NotTogether("what trains has phases or is changed when training is over")
            objective = learner.objective
            if type(objective) not in (CrossEntropy, BinaryCrossEntropy, SquaredError):
                raise NotTogether(f"their loss is {type(objective).__name__}")
            if getattr(objective, "weights", None) is not None:
                raise NotTogether("their loss weighs classes")
        if len({loader.num for loader in self._loaders}) > 1:
            raise NotTogether("they train on different numbers of examples")
        for loader in self._loaders:
            lacks = loader.targets == IGNORED if loader.target.kind == "classes" else loader.targets.isnan()
            if loader.target.kind != "token_classes" and bool(lacks.any()):
                raise NotTogether("labels of some examples are not known")

    def _units(self) -> Tensor | None:
        heads = [row.learner.head for row in self._rows]
        scales = [head.scale for head in heads if isinstance(head, ScaledHead)]
        return torch.stack(scales) if scales else None

    # -- one pass ---------------------------------------------------------------------------------------------------

    def _losses(self, predictions: Tensor, target: Tensor) -> Tensor:
        """The loss of each row, float [R]."""
        kind = self._rows[0].learner.target.kind
        if kind in ("classes", "token_classes"):
            flat = target.flatten(1)
            each = nn.functional.cross_entropy(
                predictions.flatten(0, -2), flat.flatten(), ignore_index=IGNORED, reduction="none"
            )
            return each.view_as(flat).sum(1) / (flat != IGNORED).sum(1).clamp(min=1)
        target = target.to(predictions.dtype)
        if kind == "multilabel":
            found = nn.functional.binary_cross_entropy_with_logits(predictions, target, reduction="none")
        else:
            assert self._scale_RC is not None, "the head of a regression is scaled"
            found = ((predictions - target) / self._scale_RC.unsqueeze(1)).square()
        return found.flatten(1).mean(1)

    def _batches(self, epoch: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """The batches of all loaders in step: inputs [S, B, ...] by name, and the target of each row, [R, B, ...]."""
        num_each = len(self._rows) // len(self._loaders)
        for batches in zip(*(loader.epoch(epoch) for loader in self._loaders), strict=True):
            inputs = {name: torch.stack([batch.inputs[name] for batch in batches]) for name in batches[0].inputs}
            yield inputs, torch.stack([batch.target for batch in batches]).repeat_interleave(num_each, 0)

    # -- training ---------------------------------------------------------------------------------------------------

    def _step(
        self,
        trained: Mapping[str, Tensor],
        rest: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        target: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each row, float [R], and the gradients of what is trained, [R, ...] by name."""
        with autocast(self._device, precision_of(self._budget.precision, self._device)):
            losses = self._losses(self._stacked.predictions({**trained, **rest}, inputs), target)
        gradients = torch.autograd.grad(losses.sum(), list(trained.values()))
        return losses.detach(), dict(zip(trained, gradients, strict=True))

    def try_out(self) -> None:
        """Raises NotTogether unless the first batch does what it does to each learner alone: to losses, gradients and
        buffers, and nothing to what is no tensor, which rows would have in common.
        """
        inputs, target = next(iter(self._batches(0)))
        stacked = self._stacked
        rest = {name: x.clone() for name, x in stacked.rest.items()}
        learner, stacked.learner = stacked.learner, self._twin(0)
        before = untold_state(stacked.learner)
        shared = {name: x for name, x in tensors_of(stacked.learner).items() if name not in stacked.trained | rest}
        versions = {name: x._version for name, x in shared.items()}
        try:
            losses, gradients = self._step(stacked.trained, rest, inputs, target)
        except Exception as error:
            raise NotTogether(f"they cannot be vectorised: {str(error).strip().partition(chr(10))[0][:200]}") from error
        if changed := changes(before, untold_state(stacked.learner)):
            raise NotTogether(f"a call changes {changed[0]}, which is no parameter or buffer")
        if written := [name for name, x in shared.items() if x._version != versions[name]]:
            raise NotTogether(f"a call changes {written[0]}, which is no part of what training moves")
        stacked.learner = learner
        num_each = len(self._rows) // len(self._loaders)
        for block in range(len(self._loaders)):
            row = block * num_each
            batch = Batch(inputs={name: x[block] for name, x in inputs.items()}, target=target[row])
            loss, own, held = self._alone(self._twin(row), batch)
            pairs = [(losses[row], loss), (_flat(x[row] for x in gradients.values()), _flat(own))]
            pairs += [(x[row], held[name]) for name, x in rest.items()]
            if not all(self._is_same(one, other) for one, other in pairs):
                raise NotTogether("together they compute something else than alone")

    def weighed(self) -> StepSeconds:
        """The least of three measurements of the gradients of all rows, and of those of one row times their number.

        In processor seconds, which other processes disturb least; on a GPU in seconds. Those of all rows bear their
        part of what it takes to record the step.
        """
        inputs, target = next(iter(self._batches(0)))
        rest = {name: x.clone() for name, x in self._stacked.rest.items()}
        batch = Batch(inputs={name: x[0] for name, x in inputs.items()}, target=target[0])
        twin = self._twin(0)
        recording = self._seconds(self.record) / self._num_steps
        together = self._least(lambda: self._recorded(self._stacked.trained, rest, inputs, target))
        alone = self._least(lambda: self._alone(twin, batch)) * len(self._rows)
        return StepSeconds(together=together + recording, alone=alone)

    def record(self) -> None:
        """Records a step of all rows, if enough of one shape are to come; see RecordedStep."""
        self._stacked.learner.train()
        batch = next(iter(self._batches(0)))
        if self._num_steps < WORTH or any(name in batch[0] for name in VARYING):
            return
        another = next(self._batches(1)) if self._budget.epochs > 1 else next(islice(self._batches(0), 1, None))
        self._recorded.record(self._stacked.trained, self._stacked.rest, batch, another)

    def _least(self, step: Callable[[], object]) -> float:
        return min(self._seconds(step) for _ in range(TIMES))

    def _seconds(self, call: Callable[[], object]) -> float:
        if self._device.type != "cuda":
            began = time.process_time()
            call()
            return time.process_time() - began
        torch.cuda.synchronize(self._device)
        began = time.perf_counter()
        call()
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - began

    def _is_same(self, one: Tensor, other: Tensor) -> bool:
        return _alike(one, other, self._tolerance)

    def _twin(self, row: int) -> Learner:
        return _twin(self._rows[row].learner, keeps_backbone=self._reads_features)

    def _alone(self, twin: Learner, batch: Batch) -> tuple[Tensor, Sequence[Tensor], Mapping[str, Tensor]]:
        """Loss and gradients of the twin of a learner, and its tensors after that step."""
        own = tensors_of(twin)
        with autocast(self._device, precision_of(self._budget.precision, self._device)):
            loss = twin.loss(twin(batch.inputs), batch)
        gradients = torch.autograd.grad(loss, [own[name] for name in self._stacked.trained])
        return loss, gradients, tensors_of(twin)

    def train(
        self,
        validate: Callable[[int, Mapping[str, Tensor]], float],
        progress: Callable[[FitProgress], None],
    ) -> list[RowEnd]:
        started = time.perf_counter()
        budget, num_batches, num_steps = self._budget, self._loaders[0].num_batches, self._num_steps
        self.record()
        share = rate_at(num_steps, budget.warmup, 0)
        states = [_State() for _ in self._rows]
        step = 0
        for epoch in range(budget.epochs):
            self._stacked.learner.train()  # a look at validation ended that
            totals_R = torch.zeros(len(self._rows), device=self._device)
            for inputs, target in self._batches(epoch):
                losses, gradients = self._recorded(self._stacked.trained, self._stacked.rest, inputs, target)
                self._optimiser.step(gradients, share(step))
                totals_R = totals_R + losses
                step += 1
            means = (totals_R / num_batches).tolist()
            rate = step * self._loaders[0].batch_size * len(means) / (time.perf_counter() - started)
            mean = sum(means) / len(means)
            progress(FitProgress(step=step, num_steps=num_steps, loss=mean, examples_per_second=rate))
            for row, (state, loss) in enumerate(zip(states, means, strict=True)):
                if not state.is_over:
                    self._close_epoch(row, state, loss, step, validate)
            if all(state.is_over for state in states):
                break
        ends = [self._end(row, state) for row, state in enumerate(states)]
        for end in ends:
            end.seconds = (time.perf_counter() - started) / len(ends)
        return ends

    def _close_epoch(
        self, row: int, state: _State, loss: float, step: int, validate: Callable[[int, Mapping[str, Tensor]], float]
    ) -> None:
        """What GradientTrainer does after an epoch: it stops what has diverged, looks at validation, keeps the best."""
        budget, end = self._budget, state.end
        end.losses.append(loss)
        end.num_steps, end.epoch, end.score = step, len(end.losses), None
        if not math.isfinite(loss):
            rate = self._rows[row].learning_rate
            end.diverged = f"the loss is {loss} in epoch {len(end.losses)} at learning rate {rate:g}"
            state.is_over = True
            return
        is_last = len(end.losses) == budget.epochs
        if budget.keep == "best" or budget.patience is not None:
            end.score = validate(row, self._stacked.weights(row))
            if end.score > state.best:
                state.best, state.waited, state.best_epoch = end.score, 0, end.epoch
                state.weights = self._stacked.weights(row) if budget.keep == "best" else None
            else:
                state.waited += 1
        if len(end.losses) in budget.rungs:
            keeps = budget.keep == "best" and state.best_epoch is not None
            now = validate(row, self._stacked.weights(row)) if end.score is None else end.score
            end.rungs.append(state.best if keeps else now)
        is_last = is_last or (budget.patience is not None and state.waited >= budget.patience)
        if is_last:
            state.is_over = True
            if budget.keep == "best" and state.best_epoch is not None:
                end.weights, end.epoch, end.score = state.weights, state.best_epoch, state.best
            else:
                end.weights = self._stacked.weights(row)

    def _end(self, row: int, state: _State) -> RowEnd:
        end = state.end
        if end.weights is not None and not all(
            bool(end.weights[name].isfinite().all()) for name in self._stacked.trained
        ):
            end.weights = None
            end.diverged = (
                f"a weight is no longer finite after {end.num_steps} steps at learning rate "
                f"{self._rows[row].learning_rate:g}"
            )
        return end


@dataclass(kw_only=True)
class _State:
    """A row in training. waited: epochs since the best one."""

    end: RowEnd = field(default_factory=RowEnd)
    best: float = -math.inf
    best_epoch: int | None = None
    waited: int = 0
    weights: Mapping[str, Tensor] | None = None
    is_over: bool = False


def _twin(learner: Learner, *, keeps_backbone: bool = False) -> Learner:
    """A copy in training mode, with the same frozen tensors. keeps_backbone: with the same backbone."""
    named = tensors_of(learner)
    same: dict[int, object] = {id(named[name]): named[name] for name in learner.frozen() if name in named}
    if keeps_backbone:
        same[id(learner.backbone)] = learner.backbone
    return copy.deepcopy(learner, same).train()


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether numbers are the same but for rounding; what is no number is so in both."""
    one, other = one.detach().double(), other.detach().double()
    largest = float(other.nan_to_num(0, 0, 0).abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(
        one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=True
    )
