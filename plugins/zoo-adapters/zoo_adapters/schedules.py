"""Schedules: when the parts of a backbone begin to train, and how fast each of them learns.

None of them changes what trains: each acts on what the adapters before it in the chain opened or added.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Change, Context, Learner, Seam
from zoo_core.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from torch import nn


__all__ = ["GradualUnfreeze", "LayerDecay", "LpFt", "OnWhatTrains", "opened"]

SCHEDULE: frozenset[Change] = frozenset({"schedule"})
STAGES: frozenset[Seam] = frozenset({"stage"})


@dataclass(frozen=True, kw_only=True)
class OnWhatTrains(ABC):
    """Abstract: a recipe that acts on what the adapters before it opened or added, and neither opens nor adds any."""

    changes: ClassVar[frozenset[Change]] = SCHEDULE
    mergeable: ClassVar[bool] = True

    def first_stage(self, num_stages: int) -> int:
        return num_stages

    @abstractmethod
    def apply(self, learner: Learner, context: Context) -> Learner: ...


@dataclass(frozen=True, kw_only=True)
class LpFt(OnWhatTrains):
    """Trains the head alone first; what adapters before it opened or added joins at a share of all steps.

    Until then the backbone is that of a probe, statistics of its batch norms included. What joins has a warm-up of its
    own below the one cosine of the budget, so that it fine-tunes at less than the full rate. Steps are counted, not
    whether the head has converged.
    share: of all steps, above 0 and below 1. One that stands after `gradual-unfreeze` takes its place.
    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution".
    """

    share: float = 0.5

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_share("lp-ft", "share", self.share)

    def apply(self, learner: Learner, context: Context) -> Learner:
        learner.delay(opened(learner, "lp-ft").values(), self.share)
        return learner


@dataclass(frozen=True, kw_only=True)
class GradualUnfreeze(OnWhatTrains):
    """Lets the stages join one after the other, from the last to the first, each learning slower than the one after it.

    The head trains from the start. Of the G groups in which something trains (0 the stem, 1 to L the stages, L + 1 what
    follows them) the i-th from the end joins at until * i / G of all steps; until then nothing in it moves. Group l
    learns at decay**-(L + 1 - l) times the rate that it had.
    until: share of all steps at which the last of them joins, above 0 and below 1. decay: 1 or more; the paper's 2.6
    is for four groups; over a dozen stages 1.25 comes to the same, and with 2.6 the first of them hardly learn.
    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", sections 3.2 and 3.3.
    """

    until: float = 0.5
    decay: float = 2.6

    version: ClassVar[int] = 1
    seams: ClassVar[frozenset[Seam]] = STAGES

    def __post_init__(self) -> None:
        _check_share("gradual-unfreeze", "until", self.until)
        if not 1 <= self.decay < math.inf:
            raise UsageError(f"gradual-unfreeze(decay={self.decay:g}): allowed: 1 or more")

    def apply(self, learner: Learner, context: Context) -> Learner:
        found = _by_group(learner, "gradual-unfreeze")
        for place, parameters in enumerate(reversed(found.values()), 1):
            learner.delay(parameters, self.until * place / len(found))
        _slow_down(learner, found, 1 / self.decay)
        return learner


@dataclass(frozen=True, kw_only=True)
class LayerDecay(OnWhatTrains):
    """Lets each stage learn slower than the one after it, by one factor.

    The rate of group l (0 the stem, 1 to L the stages, L + 1 what follows them) is rate**(L + 1 - l) times what it was,
    `head_scale` and the like included; heads keep theirs. With rate=1 nothing changes.
    rate: above 0, at most 1; 0.75 for a vision transformer of 12 stages, 0.9 for text.
    Source: Clark et al. 2020 (ELECTRA) and Bao et al. 2022 (BEiT), layer-wise learning rate decay in their fine-tuning.
    """

    rate: float = 0.75

    version: ClassVar[int] = 1
    seams: ClassVar[frozenset[Seam]] = STAGES

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UsageError(f"layer-decay(rate={self.rate:g}): allowed: above 0, at most 1")

    def apply(self, learner: Learner, context: Context) -> Learner:
        _slow_down(learner, _by_group(learner, "layer-decay"), self.rate)
        return learner


def opened(learner: Learner, adapter: str) -> dict[str, nn.Parameter]:
    """What trains in the backbone by now, by its name there. Raises RefusedError where that is nothing."""
    found = {name: parameter for name, parameter in learner.backbone.named_parameters() if parameter.requires_grad}
    if not found:
        raise RefusedError(
            f"{adapter}: nothing of the backbone trains yet; it acts on what adapters before it opened or added: "
            f"write full+{adapter}, or lora+{adapter}"
        )
    return found


def _by_group(learner: Learner, adapter: str) -> dict[int, list[nn.Parameter]]:
    """What trains in the backbone by now, by group, ascending; groups in which nothing does are left out."""
    from zoo_core.toolkit.stages import groups

    parameters, group = opened(learner, adapter), groups(learner.backbone)
    found: dict[int, list[nn.Parameter]] = {place: [] for place in sorted({group[name] for name in parameters})}
    for name, parameter in parameters.items():
        found[group[name]].append(parameter)
    return found


def _slow_down(learner: Learner, found: dict[int, list[nn.Parameter]], rate: float) -> None:
    last = len(learner.source.stages) + 1
    for group, parameters in found.items():
        for parameter in parameters:
            learner.set_scale([parameter], learner.scale_of(parameter) * rate ** (last - group))


def _check_share(adapter: str, field: str, share: float) -> None:
    if not 0 < share < 1:
        raise UsageError(f"{adapter}({field}={share:g}): allowed: a share of all steps, above 0 and below 1")
