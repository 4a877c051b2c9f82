"""Trains many heads of one shape as one computation: rows that differ in seed and learning rate, each on its own order.

The parameters and buffers of all heads are stacked, [R, ...], and one forward pass, vectorised by torch.func, serves
all rows. Each row is what GradientTrainer makes of it alone, up to the rounding of sums that are taken in another
order: its own batches, its own rate, its gradient clipped by its own norm, its own best epoch. A row that diverges
holds numbers that are none, and no other row reads them.

Some heads cannot: they draw, or compute with numbers that are outside tensors. What is tried first tells.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo_core.contracts import Batch, Features, Output
from zoo_core.data.loader import Loader
from zoo_core.data.token_labels import IGNORED
from zoo_core.errors import DivergedError
from zoo_core.model.given_features import MASK, features_in
from zoo_core.model.learner import Learner
from zoo_core.model.objective import BinaryCrossEntropy, CrossEntropy, ScaledHead, SquaredError
from zoo_core.plan.plan import Budget
from zoo_core.training.gradient_trainer import moving, rate_at
from zoo_core.training.progress import FitProgress
from zoo_core.training.timing import autocast, precision_of
from zoo_core.training.untold_state import changes, untold_state

__all__ = ["NotTogether", "Row", "RowEnd", "train_rows"]

HEAD = "heads.main."  # begins the names of a head's tensors in its learner

MOST_VALUES = 100_000  # of a head; 24 with 330,000 each took 1.7 times as long on a CPU as one after the other
BYTES = 2**30  # what parameters, gradients and moments of the rows that train at once may take
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # of a row against its head alone, as a share of the largest value
BETAS, EPS = (0.9, 0.999), 1e-8  # of torch.optim.AdamW, which trains one alone


class NotTogether(Exception):  # noqa: N818 - it is no fault
    """Why heads cannot be trained as rows of one computation."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One head to train: of which learner, on which features, at which rate. learner: as built; it is only read."""

    learner: Learner
    loader: Loader
    learning_rate: float


@dataclass(kw_only=True)
class RowEnd:
    """How the training of a row ended. weights: of the head, by name as in the learner; None if it diverged.

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


def train_rows(
    rows: Sequence[Row],
    *,
    budget: Budget,
    validate: Callable[[int, Mapping[str, Tensor]], float],
    progress: Callable[[FitProgress], None] = lambda _: None,
) -> list[RowEnd]:
    """Trains rows of one budget. Returns how each ended, in their order.

    validate: the validation score, more is better, of a row with these weights; asked for after each epoch where the
    budget has a patience or keeps the best. progress: is told after each epoch, of all rows together.
    Raises NotTogether for heads that cannot be trained so, before any of them is.
    """
    ends: list[RowEnd] = []
    size = _num_at_once(rows, budget)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        ends += _Rows(some, budget).train(partial(_validated, validate, start), progress)
    return ends


def _validated(
    validate: Callable[[int, Mapping[str, Tensor]], float], start: int, row: int, weights: Mapping[str, Tensor]
) -> float:
    return validate(start + row, weights)


def _num_at_once(rows: Sequence[Row], budget: Budget) -> int:
    """How many rows fit into memory: parameters, gradient, two moments and the best weights, and what a step reads."""
    head, batch = rows[0].learner.head, next(iter(rows[0].loader.epoch()))
    held = 5 * sum(x.nbytes for x in (*head.parameters(), *head.buffers()))
    read = 4 * sum(x.nbytes for x in batch.inputs.values())
    return max(1, BYTES // max(1, held + read))


class _Rows:
    """Rows that train at once. R rows, P values of one head's parameters, S loaders, B examples of a batch."""

    def __init__(self, rows: Sequence[Row], budget: Budget) -> None:
        self._rows, self._budget = rows, budget
        self._loaders = list({id(row.loader): row.loader for row in rows}.values())
        places = {id(loader): place for place, loader in enumerate(self._loaders)}
        first = rows[0].learner
        self._device = self._loaders[0].device
        self._loader_of = torch.tensor([places[id(row.loader)] for row in rows], device=self._device)
        self._check()
        heads = [row.learner.head for row in rows]
        self._names = [name for name, x in first.head.named_parameters() if x.requires_grad]
        shapes = dict(first.head.named_parameters())
        self._shapes = [shapes[name].shape for name in self._names]
        own = [dict(head.named_parameters()) for head in heads]
        flat = [torch.cat([parameters[name].detach().flatten() for name in self._names]) for parameters in own]
        self._flat_RP = torch.stack(flat).requires_grad_()
        self._rest = self._stacked(heads)
        self._module = copy.deepcopy(first.head).train()
        self._scales_P, self._decays_P = self._groups(first)
        rates = [[row.learning_rate] for row in rows]
        self._rates_R1 = self._flat_RP.new_tensor(rates)
        self._scale_RC = self._units()

    # -- what they have in common -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises NotTogether unless all rows have one shape of head, one length of an epoch and the default loss."""
        first = self._rows[0].learner
        if len(list(first.head.named_parameters(remove_duplicate=False))) > len(list(first.head.parameters())):
            raise NotTogether("their heads hold one tensor under two names")
        for learner in {id(row.learner): row.learner for row in self._rows}.values():
            if _layout(learner.head) != _layout(first.head):
                raise NotTogether("their heads differ in shape")
            if learner.finishers or any(learner.start_of(one) for _, one in learner.trainable()):
                raise NotTogether("what trains has phases or is changed when training is over")
            objective = learner.objective
            if type(objective) not in (CrossEntropy, BinaryCrossEntropy, SquaredError):
                raise NotTogether(f"their loss is {type(objective).__name__}")
            if getattr(objective, "weights", None) is not None:
                raise NotTogether("their loss weighs classes")
        num_values = sum(x.numel() for x in first.head.parameters())
        if self._device.type == "cpu" and num_values > MOST_VALUES:
            raise NotTogether(f"heads of {num_values:,} parameters train faster one after the other on a CPU")
        if len({loader.num for loader in self._loaders}) > 1:
            raise NotTogether("they train on different numbers of examples")
        for loader in self._loaders:
            lacks = loader.targets == IGNORED if loader.target.kind == "classes" else loader.targets.isnan()
            if loader.target.kind != "token_classes" and bool(lacks.any()):
                raise NotTogether("labels of some examples are not known")
        inputs = next(iter(self._loaders[0].epoch())).inputs
        if MASK in inputs and len(self._loaders) > 1:
            raise NotTogether("their tokens differ in number")

    def _stacked(self, heads: Sequence[nn.Module]) -> dict[str, Tensor]:
        """All of the heads that no gradient trains, [R, ...] by name."""
        states = [{**dict(head.named_parameters()), **dict(head.named_buffers())} for head in heads]
        rest = [name for name in states[0] if name not in self._names]
        return {name: torch.stack([state[name].detach() for state in states]).clone() for name in rest}

    def _groups(self, learner: Learner) -> tuple[Tensor, Tensor]:
        """For each value of a head the scale of its rate and its weight decay, float [P]."""
        of = {
            id(one): (group["lr"], group["weight_decay"])
            for group in learner.parameter_groups(1.0, self._budget.weight_decay)
            for one in group["params"]
        }
        own = dict(learner.head.named_parameters())
        each = [own[name] for name in self._names]
        scales, decays = (
            torch.cat([self._flat_RP.new_full((one.numel(),), of[id(one)][place]) for one in each]) for place in (0, 1)
        )
        return scales, decays

    def _units(self) -> Tensor | None:
        heads = [row.learner.head for row in self._rows]
        scales = [head.scale for head in heads if isinstance(head, ScaledHead)]
        return torch.stack(scales) if scales else None

    # -- one pass ---------------------------------------------------------------------------------------------------

    def _predictions(self, flat_RP: Tensor, rest: Mapping[str, Tensor], features: Features) -> Tensor:
        """float [R, B, ...] of features with a leading axis of rows."""
        parts = flat_RP.split([shape.numel() for shape in self._shapes], dim=1)
        shaped = zip(self._names, parts, self._shapes, strict=True)
        parameters = {name: part.unflatten(1, shape) if shape else part[:, 0] for name, part, shape in shaped}
        kind = features.kind

        def one(parameters: dict[str, Tensor], rest: dict[str, Tensor], x: Tensor, mask: Tensor | None) -> Tensor:
            found: Tensor = functional_call(
                self._module, {**parameters, **rest}, (Features(kind=kind, x=x, mask=mask),)
            )
            return found

        in_dims = (0, 0, 0, None if features.mask is None else 0)
        with sdpa_kernel(SDPBackend.MATH):  # the only one of attention that is vectorised
            predictions: Tensor = vmap(one, in_dims=in_dims, randomness="error")(
                parameters, dict(rest), features.x, features.mask
            )
        return predictions

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

    def _batches(self, epoch: int) -> Iterator[tuple[Features, Tensor]]:
        """The batches of all rows in step: features and targets with a leading axis of rows."""
        for batches in zip(*(loader.epoch(epoch) for loader in self._loaders), strict=True):
            given = [features_in(batch.inputs) for batch in batches]
            xs = [each.x for each in given if each is not None]
            masks = [each.mask for each in given if each is not None and each.mask is not None]
            assert given[0] is not None, "rows train on features"
            mask = torch.stack(masks)[self._loader_of] if masks else None
            features = Features(kind=given[0].kind, x=torch.stack(xs)[self._loader_of], mask=mask)
            yield features, torch.stack([batch.target for batch in batches])[self._loader_of]

    # -- training ---------------------------------------------------------------------------------------------------

    def _try(self) -> None:
        """Raises NotTogether unless the first batch does what it does to each head alone: to losses, gradients and
        buffers, and nothing to what is no tensor, which rows would have in common.
        """
        features, target = next(iter(self._batches(0)))
        flat_RP = self._flat_RP.detach().clone().requires_grad_()
        rest = {name: x.clone() for name, x in self._rest.items()}
        precision = precision_of(self._budget.precision, self._device)
        module, self._module = self._module, copy.deepcopy(self._module)
        before = untold_state(self._module)
        try:
            with autocast(self._device, precision):
                together = self._losses(self._predictions(flat_RP, rest, features), target)
            (gradient_RP,) = torch.autograd.grad(together.sum(), flat_RP)
        except Exception as error:
            raise NotTogether(f"they cannot be vectorised: {str(error).strip().partition(chr(10))[0][:200]}") from error
        if changed := changes(before, untold_state(self._module)):
            raise NotTogether(f"a call of their head changes {changed[0]}, which is no parameter or buffer of it")
        self._module = module
        for row in {int(place): row for row, place in enumerate(self._loader_of.tolist())}.values():
            head = copy.deepcopy(self._rows[row].learner.head).train()
            mask = None if features.mask is None else features.mask[row]
            with autocast(self._device, precision):
                found = head(Features(kind=features.kind, x=features.x[row], mask=mask))
                alone = self._alone(found, features.x[row], target[row], row)
            own = dict(head.named_parameters())
            gradients = torch.autograd.grad(alone, [own[name] for name in self._names])
            held = {**own, **dict(head.named_buffers())}
            pairs = [(together[row], alone), (gradient_RP[row], torch.cat([x.flatten() for x in gradients]))]
            pairs += [(x[row], held[name]) for name, x in rest.items()]
            if not all(_alike(one, other, TOLERANCE[precision]) for one, other in pairs):
                raise NotTogether("together they compute something else than alone")

    def _alone(self, predictions: Tensor, x: Tensor, target: Tensor, row: int) -> Tensor:
        """The loss of one row as its learner computes it."""
        learner = self._rows[row].learner
        features = Features(kind="pooled", x=x)
        return learner.loss(Output(predictions=predictions, features=features), Batch(inputs={}, target=target))

    def train(
        self,
        validate: Callable[[int, Mapping[str, Tensor]], float],
        progress: Callable[[FitProgress], None],
    ) -> list[RowEnd]:
        started = time.perf_counter()
        self._try()
        budget, num_batches = self._budget, self._loaders[0].num_batches
        num_steps = num_batches * budget.epochs
        share = rate_at(num_steps, budget.warmup, 0)
        mean, square = torch.zeros_like(self._flat_RP), torch.zeros_like(self._flat_RP)
        states = [_State() for _ in self._rows]
        step = 0
        for epoch in range(budget.epochs):
            totals_R = torch.zeros(len(self._rows), device=self._device, dtype=self._flat_RP.dtype)
            for features, target in self._batches(epoch):
                totals_R += self._step(features, target, mean, square, share(step), step)
                step += 1
            losses = (totals_R / num_batches).tolist()
            rate = step * self._loaders[0].batch_size * len(losses) / (time.perf_counter() - started)
            mean_loss = sum(losses) / len(losses)
            progress(FitProgress(step=step, num_steps=num_steps, loss=mean_loss, examples_per_second=rate))
            for row, (state, loss) in enumerate(zip(states, losses, strict=True)):
                if not state.is_over:
                    self._close_epoch(row, state, loss, step, validate)
            if all(state.is_over for state in states):
                break
        ends = [self._end(row, state) for row, state in enumerate(states)]
        for end in ends:
            end.seconds = (time.perf_counter() - started) / len(ends)
        return ends

    def _step(
        self, features: Features, target: Tensor, mean: Tensor, square: Tensor, share: float, step: int
    ) -> Tensor:
        """One update of all rows, clipped and decayed as GradientTrainer does it alone. Returns the losses, float [R].

        Source: Loshchilov & Hutter 2019, algorithm 2, as torch.optim.AdamW orders it.
        """
        budget, flat = self._budget, self._flat_RP
        with autocast(self._device, precision_of(budget.precision, self._device)):
            losses = self._losses(self._predictions(flat, self._rest, features), target)
        (gradient,) = torch.autograd.grad(losses.sum(), flat)
        norm_R1 = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        gradient *= (budget.clip / (norm_R1 + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            rates = self._rates_R1 * share * self._scales_P
            flat.mul_(1 - rates * self._decays_P)
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            first, second = (1 - beta ** (step + 1) for beta in BETAS)
            flat.sub_(rates / first * mean / (square.sqrt() / math.sqrt(second) + EPS))
        return losses.detach()

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
            end.score = validate(row, self._weights(row))
            if end.score > state.best:
                state.best, state.waited, state.best_epoch = end.score, 0, end.epoch
                state.weights = self._weights(row) if budget.keep == "best" else None
            else:
                state.waited += 1
        if len(end.losses) in budget.rungs:
            keeps = budget.keep == "best" and state.best_epoch is not None
            now = validate(row, self._weights(row)) if end.score is None else end.score
            end.rungs.append(state.best if keeps else now)
        is_last = is_last or (budget.patience is not None and state.waited >= budget.patience)
        if is_last:
            state.is_over = True
            if budget.keep == "best" and state.best_epoch is not None:
                end.weights, end.epoch, end.score = state.weights, state.best_epoch, state.best
            else:
                end.weights = self._weights(row)

    def _end(self, row: int, state: _State) -> RowEnd:
        end = state.end
        if end.weights is not None and not all(bool(x.isfinite().all()) for x in self._trained(end.weights)):
            end.weights = None
            end.diverged = (
                f"a weight is no longer finite after {end.num_steps} steps at learning rate "
                f"{self._rows[row].learning_rate:g}"
            )
        return end

    def _trained(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        return [weights[f"{HEAD}{name}"] for name in self._names]

    def _weights(self, row: int) -> dict[str, Tensor]:
        """A copy of the weights of a row, by the names that they have in its learner."""
        parts = self._flat_RP[row].detach().split([shape.numel() for shape in self._shapes])
        shaped = zip(self._names, parts, self._shapes, strict=True)
        own = {name: part.view(shape) for name, part, shape in shaped}
        own |= {name: x[row] for name, x in self._rest.items()}
        return {name: own[name.removeprefix(HEAD)].clone() for name in moving(self._rows[row].learner)}


@dataclass(kw_only=True)
class _State:
    """A row in training. waited: epochs since the best one."""

    end: RowEnd = field(default_factory=RowEnd)
    best: float = -math.inf
    best_epoch: int | None = None
    waited: int = 0
    weights: Mapping[str, Tensor] | None = None
    is_over: bool = False


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    one, other = one.detach().double(), other.detach().double()
    largest = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest)


def _layout(head: nn.Module) -> list[tuple[str, torch.Size, torch.dtype, bool]]:
    named = (*head.named_parameters(), *head.named_buffers())
    return [(name, x.shape, x.dtype, x.requires_grad) for name, x in named]
