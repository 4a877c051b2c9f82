"""Regularisers: what keeps a backbone near where it started, l2sp and bss in the objective, wise after training.

None of them changes what trains: each acts on what the adapters before it in the chain opened or added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from zoo_adapters.schedules import OnWhatTrains, opened
from zoo_core.contracts import Change, Context, Learner
from zoo_core.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from torch import nn


__all__ = ["Bss", "L2sp", "Wise"]

OBJECTIVE: frozenset[Change] = frozenset({"objective"})


@dataclass(frozen=True, kw_only=True)
class L2sp(OnWhatTrains):
    """Adds to the loss the squared distance of the backbone's weights from where they started.

    alpha / 2 * |w - w0|**2 + beta / 2 * |v|**2: w the parameters of the base that adapters before it opened, w0 what
    they are when it is applied, v those of the heads. What adapters added is in neither; the budget's weight decay,
    which pulls w to 0 as well, stays.
    alpha, beta: 0 or more.
    Source: Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
    section 3 (L2-SP).
    """

    alpha: float = 0.01
    beta: float = 0.01

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = OBJECTIVE

    def __post_init__(self) -> None:
        for field, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < math.inf:
                raise UsageError(f"l2sp({field}={value:g}): allowed: 0 or more")

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.regulariser_modules import StartingPoint

        held = _opened_base(learner, "l2sp")
        if context.purpose == "train":
            assert learner.objective is not None, "a learner that is built for training has one"
            new = [parameter for parameter in learner.head.parameters() if parameter.requires_grad]
            learner.objective = StartingPoint(learner.objective, held, new, alpha=self.alpha, beta=self.beta)
        return learner


@dataclass(frozen=True, kw_only=True)
class Bss(OnWhatTrains):
    """Adds to the loss the squares of the k smallest singular values of a batch of features.

    eta * sum of sigma_i**2 over the k smallest of the min(B, D) singular values of the features [B, D]: their mean over
    real tokens, or over the positions of a map.
    eta: 0 or more. k: 1 or more; of a batch that has fewer, all.
    Source: Chen et al. 2019, "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe
    Transfer Learning".
    """

    eta: float = 0.001
    k: int = 1

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = OBJECTIVE

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise UsageError(f"bss(eta={self.eta:g}): allowed: 0 or more")
        if self.k < 1:
            raise UsageError(f"bss(k={self.k}): allowed: 1 or more")

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.regulariser_modules import SpectralShrinkage

        opened(learner, "bss")
        if context.purpose == "train":
            assert learner.objective is not None, "a learner that is built for training has one"
            learner.objective = SpectralShrinkage(learner.objective, eta=self.eta, k=self.k)
        return learner


@dataclass(frozen=True, kw_only=True)
class Wise(OnWhatTrains):
    """Moves the trained backbone back towards the pre-trained one when training is over.

    theta = (1 - alpha) * theta0 + alpha * theta1 for the parameters of the base that adapters before it opened;
    theta0 is what they are when it is applied, theta1 what they are in the end. Heads and what adapters added stay as
    trained, so the head should fit both ends: full+lp-ft+wise. Validation scores are of theta, those that stop a fit
    early of theta1. Refused where batch norms train: their statistics are those of theta1 and fit nothing between.
    alpha: 0 the base, 1 the trained weights, each bit for bit.
    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3.
    """

    alpha: float = 0.5

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"wise(alpha={self.alpha:g}): allowed: 0 to 1")

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.regulariser_modules import Interpolation, check_statistics

        held = _opened_base(learner, "wise")
        check_statistics(learner)
        if context.purpose == "train":
            learner.finishers.append(Interpolation(held, alpha=self.alpha))
        return learner


def _opened_base(learner: Learner, adapter: str) -> list[nn.Parameter]:
    """What trains of the base itself by now. Raises RefusedError where that is nothing."""
    opened(learner, adapter)
    found = [parameter for parameter in learner.base().values() if parameter.requires_grad]
    if not found:
        raise RefusedError(
            f"{adapter}: of the backbone only added tensors train, and they started from nothing; it acts on what "
            f"adapters before it opened: write full+{adapter}, or partial+{adapter}"
        )
    return found
