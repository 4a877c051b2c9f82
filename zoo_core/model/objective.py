"""The default loss of each kind of target, and the scaling of a regression.

An objective gets outputs and targets, and never calls the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, ClosedForm, Features, Output, Target, TeacherOutput
from zoo_core.data.token_labels import IGNORED
from zoo_core.errors import LawError

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Given",
    "Needs",
    "NoLabels",
    "ScaledHead",
    "SquaredError",
    "default_objective",
    "needs_of",
    "total_of",
]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an objective reads beside predictions, features and target, see contracts.Objective."""

    stages: tuple[int, ...] = ()
    sites: tuple[tuple[int, str], ...] = ()
    pooled: bool = False
    taught: bool = False


def needs_of(objective: nn.Module | None) -> Needs:
    """What all modules of an objective say that they need, so that a wrapper need not repeat what is inside it."""
    if objective is None:
        return Needs()
    modules = list(objective.modules())
    return Needs(
        stages=tuple(sorted({index for module in modules for index in _said(module, "stages")})),
        sites=tuple(sorted({key for module in modules for key in _said(module, "sites")})),
        pooled=any(getattr(module, "pooled", False) is True for module in modules),
        taught=any(getattr(module, "taught", False) is True for module in modules),
    )


def _said(module: nn.Module, name: str) -> tuple[Any, ...]:
    found = getattr(module, name, ())  # a module may use the name for something else, which is no tuple
    return found if isinstance(found, tuple) else ()


class Given(dict[str, TeacherOutput]):
    """What teachers gave for a batch, by Teacher.of. Raises LawError for one that no recipe of the chain declares."""

    def __missing__(self, of: str) -> TeacherOutput:
        raise LawError(
            f"the objective reads what teacher {of!r} gave, and the recipes of the chain declare "
            f"{', '.join(map(repr, self)) or 'none'}; an adapter names what it reads in teachers()"
        )


def total_of(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms of a loss."""
    return torch.stack(list(terms.values())).sum() if len(terms) > 1 else next(iter(terms.values()))


class CrossEntropy(nn.Module):
    """Softmax cross-entropy for classes [B, C] or token classes [B, T, C], where -100 is ignored; 0 if all are.

    weights: float [C], the weight of each class; the loss is the weighted mean over examples. None: all weights are 1.
    """

    stages: tuple[int, ...] = ()
    weights: Tensor | None

    def __init__(self, weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        logits, target = output.predictions.flatten(0, -2), batch.target.flatten()
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        if _all(target == IGNORED, usually=False):  # the mean over nothing is no number
            return {"cross_entropy": logits.sum() * 0}
        return {"cross_entropy": nn.functional.cross_entropy(logits, target, weight=weights, ignore_index=IGNORED)}

    def num_items(self, batch: Batch) -> Tensor:
        """The number of targets that are not ignored, or the sum of their class weights."""
        real = batch.target[batch.target != IGNORED]
        return torch.tensor(float(real.numel())) if self.weights is None else self.weights.double()[real].sum()


class BinaryCrossEntropy(nn.Module):
    """Sigmoid cross-entropy for multilabel targets, averaged over the labels that are known; 0 if none is.

    weights: float [C], the weight of each label, or None.
    """

    stages: tuple[int, ...] = ()
    weights: Tensor | None

    def __init__(self, weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        target = batch.target.to(output.predictions.dtype)  # else a float64 learner's loss is float32
        weights = None if self.weights is None else self.weights.to(target.dtype)
        known = ~target.isnan()
        if not _all(known, usually=True):
            weights = known.to(target.dtype) if weights is None else weights * known
            loss = nn.functional.binary_cross_entropy_with_logits(
                output.predictions, target.nan_to_num(), weight=weights, reduction="sum"
            )
            return {"binary_cross_entropy": loss / known.sum().clamp(min=1)}
        loss = nn.functional.binary_cross_entropy_with_logits(output.predictions, target, weight=weights)
        return {"binary_cross_entropy": loss}

    def num_items(self, batch: Batch) -> Tensor:
        """The number of labels that are known, in examples: one whose labels all are counts 1."""
        return _known(batch)


class ScaledHead(nn.Module):
    """A head whose outputs are in units of the training targets: predictions = head(features) * scale + shift.

    shift, scale: float [C], mean and standard deviation of the training targets; part of the delta.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, head: nn.Module, size: int) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, features: Features, target: Tensor) -> None:
        """Fits a closed-form head in its own units. target: float32 [N, C]."""
        assert isinstance(self.head, ClosedForm), "build has checked it"
        self.head.fit(features, (target - self.shift) / self.scale)

    def forward(self, features: Features) -> Tensor:
        raw: Tensor = self.head(features)
        return raw * self.scale + self.shift


class SquaredError(nn.Module):
    """Squared error in the head's units, averaged over the values that are known. Targets of any magnitude train alike.

    The objective only refers to the head. The head is not one of its submodules.
    """

    stages: tuple[int, ...] = ()

    def __init__(self, head: ScaledHead) -> None:
        super().__init__()
        self._head = (head,)  # in a tuple, so that torch does not register it; a deep copy follows it

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        known = ~batch.target.isnan()
        if not _all(known, usually=True):
            error = (output.predictions - batch.target.nan_to_num()) / self._head[0].scale * known
            return {"squared_error": error.square().sum() / known.sum().clamp(min=1)}
        error = (output.predictions - batch.target) / self._head[0].scale
        return {"squared_error": error.square().mean()}

    def num_items(self, batch: Batch) -> Tensor:
        """The number of values that are known, in examples: one whose values all are counts 1."""
        return _known(batch)


class NoLabels(nn.Module):
    """The loss of a learner that predicts nothing: no terms. An adapter gives it some."""

    stages: tuple[int, ...] = ()

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        return {}

    def num_items(self, batch: Batch) -> Tensor:
        """The number of examples."""
        return torch.tensor(float(len(batch)))


def _all(each: Tensor, *, usually: bool) -> bool:
    """Whether all of them are true; on the meta device, which has no values, what is usual."""
    return usually if each.is_meta else bool(each.all())


def _known(batch: Batch) -> Tensor:
    known = (~batch.target.isnan()).double()
    return known.flatten(1).mean(dim=1).sum().cpu()


def default_objective(target: Target, head: nn.Module, class_weights: Tensor | None = None) -> nn.Module:
    """The loss for a kind of target if no adapter sets another one.

    class_weights: float [C], for classes and multilabel.
    """
    if target.kind == "regression":
        assert isinstance(head, ScaledHead), "build wraps the head of a regression target"
        return SquaredError(head)
    if target.kind == "unlabelled":
        return NoLabels()
    return BinaryCrossEntropy(class_weights) if target.kind == "multilabel" else CrossEntropy(class_weights)
