"""The metrics that zoo-core has, as recipes; what each computes stands in metrics.py, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import METRICS, Target, TargetKind

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "R2",
    "Accuracy",
    "Agreement",
    "AveragePrecision",
    "EntityF1",
    "MacroF1",
    "MeanAbsoluteError",
    "Top5Accuracy",
]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of examples whose likeliest class is right; of labels and of words the share of those, not of examples."""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = METRICS["accuracy"].targets
    higher_is_better: ClassVar[bool] = METRICS["accuracy"].higher_is_better

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        from zoo_core.training.metrics import accuracy

        return accuracy(predictions, truth, target)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a student agrees with its teacher, for examples without labels.

    Of classes, labels and words the share on which both decide alike; of values the share of the teacher's variance
    that is explained; of features the linear CKA of both, 0 to 1.
    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equation 4 (CKA).
    """

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = METRICS["agreement"].targets
    higher_is_better: ClassVar[bool] = METRICS["agreement"].higher_is_better

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        from zoo_core.training.metrics import agreement

        return agreement(predictions, truth, target)


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """Mean over the outputs of the area under the curve of precision and recall; ties count once."""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = METRICS["average_precision"].targets
    higher_is_better: ClassVar[bool] = METRICS["average_precision"].higher_is_better

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        from zoo_core.training.metrics import average_precision

        return average_precision(predictions, truth, target)


@dataclass(frozen=True, kw_only=True)
class EntityF1:
    """F1 over the entities of all sentences; one is right if its type and both its ends are."""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = METRICS["entity_f1"].targets
    higher_is_better: ClassVar[bool] = METRICS["entity_f1"].higher_is_better

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        from zoo_core.training.metrics import entity_f1

        return entity_f1(predictions, truth, target)


@dataclass(frozen=True, kw_only=True)
class MacroF1:
    """Mean of the F1 of each class that is chosen or true at all; of labels of all of them."""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = METRICS["macro_f1"].targets
    higher_is_better: ClassVar[bool] = METRICS["macro_f1"].higher_is_better

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        from zoo_core.training.metrics import macro_f1

        return macro_f1(predictions, truth, target)


@dataclass(frozen=True, kw_only=True)
class MeanAbsoluteError:
    """Mean distance of a predicted value from the true one, in the unit of the values; less is better."""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = METRICS["mean_absolute_error"].targets
    higher_is_better: ClassVar[bool] = METRICS["mean_absolute_error"].higher_is_better

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        from zoo_core.training.metrics import mean_absolute_error

        return mean_absolute_error(predictions, truth, target)


@dataclass(frozen=True, kw_only=True)
class R2:
    """Share of the variance of the values that is explained, a mean over outputs."""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = METRICS["r2"].targets
    higher_is_better: ClassVar[bool] = METRICS["r2"].higher_is_better

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        from zoo_core.training.metrics import r2

        return r2(predictions, truth, target)


@dataclass(frozen=True, kw_only=True)
class Top5Accuracy:
    """Share of examples whose class is among the five likeliest."""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = METRICS["top5_accuracy"].targets
    higher_is_better: ClassVar[bool] = METRICS["top5_accuracy"].higher_is_better

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        from zoo_core.training.metrics import top5_accuracy

        return top5_accuracy(predictions, truth, target)
