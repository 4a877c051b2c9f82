"""Adapters that only decide what trains: nothing, everything, the last stages, biases, norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Change, Context, Learner, Seam
from zoo_core.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from torch import nn


__all__ = ["Bitfit", "Full", "Norm", "Partial", "Probe"]

BASE: frozenset[Change] = frozenset({"base"})


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Trains the head alone, on the frozen backbone: the empty chain, and the baseline of every comparison.

    Source: Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes".
    """

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset()
    mergeable: ClassVar[bool] = True

    def first_stage(self, num_stages: int) -> int:
        return num_stages

    def apply(self, learner: Learner, context: Context) -> Learner:
        return learner


@dataclass(frozen=True, kw_only=True)
class Full:
    """Trains every parameter of the backbone together with the head.

    head_scale: the head's learning rate over the backbone's, since the head starts from nothing.
    """

    head_scale: float = 10.0

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = BASE
    mergeable: ClassVar[bool] = True
    learning_rates: ClassVar[tuple[float, ...]] = (2e-5, 1e-4, 5e-4, 2.5e-3, 1.25e-2)

    def __post_init__(self) -> None:
        _check_scale("full", self.head_scale)

    def apply(self, learner: Learner, context: Context) -> Learner:
        learner.backbone.requires_grad_(True)
        learner.set_scale(learner.head.parameters(), self.head_scale)
        return learner


@dataclass(frozen=True, kw_only=True)
class Partial:
    """Trains the last n stages of the backbone, what follows them, and the head.

    n: stages counted from the end, at least 1; with all of them only the stem stays frozen.
    head_scale: the head's learning rate over the backbone's.
    Source: Yosinski et al. 2014, "How transferable are features in deep neural networks?"
    """

    n: int = 1
    head_scale: float = 10.0

    version: ClassVar[int] = 1
    seams: ClassVar[frozenset[Seam]] = frozenset({"stage"})
    changes: ClassVar[frozenset[Change]] = BASE
    mergeable: ClassVar[bool] = True
    learning_rates: ClassVar[tuple[float, ...]] = Full.learning_rates

    def __post_init__(self) -> None:
        _check_scale("partial", self.head_scale)
        if self.n < 1:
            raise UsageError(f"partial(n={self.n}): allowed: 1 or more; probe trains no stage")

    def first_stage(self, num_stages: int) -> int:
        if self.n > num_stages:
            raise UsageError(f"partial(n={self.n}): the backbone has {num_stages} stages; allowed: 1 to {num_stages}")
        return num_stages - self.n

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_core.toolkit.stages import groups

        first = self.first_stage(len(learner.source.stages)) + 1  # group 0 is the stem
        group = groups(learner.backbone)
        for name, parameter in learner.backbone.named_parameters():
            if group[name] >= first:
                parameter.requires_grad_(True)
        learner.set_scale(learner.head.parameters(), self.head_scale)
        return learner


@dataclass(frozen=True, kw_only=True)
class Bitfit:
    """Trains the biases of the backbone, those of its norms included, and the head.

    A bias is what its module calls `bias`, or a vector whose name ends in `_bias` (`in_proj_bias`, `q_bias`).
    ViT-B/16 has 102,912 of them. A batch norm whose scale stays frozen keeps its statistics.
    Source: Ben Zaken et al. 2022, "BitFit", section 3.
    """

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = BASE
    mergeable: ClassVar[bool] = True

    def apply(self, learner: Learner, context: Context) -> Learner:
        biases = [parameter for name, parameter in learner.backbone.named_parameters() if _is_bias(name, parameter)]
        if not biases:
            raise RefusedError("bitfit: the backbone has no biases; use norm or partial")
        for bias in biases:
            bias.requires_grad_(True)
        return learner


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Trains scale and shift of the backbone's norms, and the head; statistics of its batch norms move along.

    ViT-B/16 has 38,400 such parameters.
    Source: Frankle et al. 2021, "Training BatchNorm and only BatchNorm"; Basu et al. 2023 (LN-tune).
    """

    version: ClassVar[int] = 1
    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"norm"}),)
    changes: ClassVar[frozenset[Change]] = BASE
    mergeable: ClassVar[bool] = True

    def apply(self, learner: Learner, context: Context) -> Learner:
        modules = [learner.backbone.get_submodule(site.path) for site in learner.source.sites("norm")]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        if not parameters:
            raise RefusedError("norm: the backbone has no norms with scale or shift; use bitfit or partial")
        for parameter in parameters:
            parameter.requires_grad_(True)
        return learner


def _is_bias(name: str, parameter: nn.Parameter) -> bool:
    own = name.rpartition(".")[2]
    return own == "bias" or (own.endswith("_bias") and parameter.ndim == 1)


def _check_scale(name: str, scale: float) -> None:
    if not 0 < scale < math.inf:
        raise UsageError(f"{name}(head_scale={scale:g}): allowed: any positive number")
