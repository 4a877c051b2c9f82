"""The default loss of each kind of target, and the scaling of a regression.

An objective gets outputs and targets, and never calls the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, ClosedForm, Features, Output, Target

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "ScaledHead", "SquaredError", "default_objective"]


class CrossEntropy(nn.Module):
    """Softmax cross-entropy for classes [B, C] or token classes [B, T, C], where -100 is ignored.

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
        return {"cross_entropy": nn.functional.cross_entropy(logits, target, weight=weights, ignore_index=-100)}

    def num_items(self, batch: Batch) -> Tensor:
        """The number of targets that are not ignored, or the sum of their class weights."""
        real = batch.target[batch.target != -100]
        return torch.tensor(float(real.numel())) if self.weights is None else self.weights.double()[real].sum()


class BinaryCrossEntropy(nn.Module):
    """Sigmoid cross-entropy for multilabel targets, averaged over B and C.

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
        loss = nn.functional.binary_cross_entropy_with_logits(output.predictions, target, weight=weights)
        return {"binary_cross_entropy": loss}

    def num_items(self, batch: Batch) -> Tensor:
        """The number of examples."""
        return torch.tensor(float(len(batch)))


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
    """Squared error in the head's units, averaged over B and C. Targets of any magnitude train alike.

    The objective only refers to the head. The head is not one of its submodules.
    """

    stages: tuple[int, ...] = ()

    def __init__(self, head: ScaledHead) -> None:
        super().__init__()
        self._head = (head,)  # in a tuple, so that torch does not register it; a deep copy follows it

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        error = (output.predictions - batch.target) / self._head[0].scale
        return {"squared_error": error.square().mean()}

    def num_items(self, batch: Batch) -> Tensor:
        """The number of examples."""
        return torch.tensor(float(len(batch)))


def default_objective(target: Target, head: nn.Module, class_weights: Tensor | None = None) -> nn.Module:
    """The loss for a kind of target if no adapter sets another one.

    class_weights: float [C], for classes and multilabel.
    """
    if target.kind == "regression":
        assert isinstance(head, ScaledHead), "build wraps the head of a regression target"
        return SquaredError(head)
    return BinaryCrossEntropy(class_weights) if target.kind == "multilabel" else CrossEntropy(class_weights)
