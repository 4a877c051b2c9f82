"""The scores that zoo-core has, as recipes; what each computes stands in score_functions.py, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Target, TargetKind

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Knn", "LogMe", "Ridge"]

SCORED: frozenset[TargetKind] = frozenset({"classes", "multilabel", "regression"})


@dataclass(frozen=True, kw_only=True)
class Knn:
    """How well an example is predicted from the k others with the most similar features (cosine).

    Of classes the share that is right, of labels the share of labels, of values R2. k: None takes 20, and 5 where a
    class has fewer than 20 examples on average or where there are fewer than 200 examples.
    """

    k: int | None = None

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = SCORED

    def judge(self, features: Tensor, truth: Tensor, target: Target) -> Tensor:
        from zoo_core.selection.score_functions import knn

        return knn(features, truth, target, self.k)


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """How well a linear probe predicts examples that it was not fitted on: ridge regression in closed form, in folds.

    Of classes the share that is right, of labels the share of labels, of values R2.
    """

    folds: int = 5

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = SCORED

    def judge(self, features: Tensor, truth: Tensor, target: Target) -> Tensor:
        from zoo_core.selection.score_functions import ridge

        return ridge(features, truth, target, self.folds)


@dataclass(frozen=True, kw_only=True)
class LogMe:
    """Log evidence of each example under a Bayesian linear model of the target, a mean over classes or outputs.

    Its scale is that of no metric: only differences between backbones on the same examples say something.
    Source: You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning".
    """

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = SCORED

    def judge(self, features: Tensor, truth: Tensor, target: Target) -> Tensor:
        from zoo_core.selection.score_functions import logme

        return logme(features, truth, target)
