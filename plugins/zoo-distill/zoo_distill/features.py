"""Distillation of features: pooled ones, hidden states of stages, or how tokens relate; no labels are needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from zoo_core.contracts import Change, Context, Learner, Seam, Teacher
from zoo_core.errors import RefusedError, UsageError
from zoo_distill.vocabulary import OBJECTIVE, ROLES, FeatureLoss, Keep, index_of

__all__ = ["DistillFeatures"]

WEIGHTS: Mapping[FeatureLoss, float] = {"cosine": 1.0, "mse": 1.0, "at": 1000.0, "hint": 100.0, "minilm": 1.0}


@dataclass(frozen=True, kw_only=True)
class DistillFeatures:
    """Pulls the student's features to a teacher's: the loss so far + weight * their distance, with labels or without.

    Where widths differ, a learned linear map takes the student's features to the teacher's width. It trains at the
    head's rate, belongs to the loss, and is left behind. Something of the backbone must train: full+distill-features.
    teacher: a backbone's name, the folder of a stored run, or hub/ORG/NAME. Its tokens need not be the student's,
    unless hidden states of texts are compared.
    loss: how features are compared, see below.
    stages: pairs [student's, teacher's], counted from 1, or from the end with -1 the last. Without any, cosine and mse
    take pooled features, at and minilm the last stages. Maps of unequal size are averaged down to the smaller one, and
    the tokens of a picture are a square map behind any class token and registers.
    weight: 0 or more, with 0 the teacher is never loaded; by itself 1, for at 1000 and for hint 100.
    heads: of minilm; by itself as many as the student has. It divides the widths of both.
    keep: the precision in which the teacher's features are held.

    Each distance is a mean over real tokens or positions, then over examples; those of several pairs are summed.

    cosine: 1 - the cosine between the mapped features and the teacher's. mse: their squared difference, averaged over
    the width. hint: as mse, at pairs that you name and with the weight of FitNets.

    at: the squared difference of two attention maps, the mean of squares over the width at each position, scaled to
    length 1. No map is learned.

    minilm: KL of softmax(x x' / sqrt(d)) between the tokens of an example, summed over the queries, keys and values of
    a stage, which are cut into `heads` pieces of width d on both sides. No map is learned.
    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", section 2.2; Zagoruyko & Komodakis 2017, "Paying
    More Attention to Attention", section 3.1 with p = 2; Wang et al. 2021, "MiniLMv2", section 3. The weights of hint
    and at are those of mdistiller; cosine and the linear map those of sentence-transformers' distillation.
    """

    teacher: str
    loss: FeatureLoss = "cosine"
    stages: tuple[tuple[int, int], ...] = ()
    weight: float | None = None
    heads: int | None = None
    keep: Keep = "float32"

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = OBJECTIVE
    mergeable: ClassVar[bool] = True
    distils: ClassVar[Literal["predictions", "features"]] = "features"

    @classmethod
    def without_labels(cls, teacher: str) -> DistillFeatures:
        return cls(teacher=teacher)

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 <= self.weight < math.inf:
            raise UsageError(f"distill-features(weight={self.weight:g}): allowed: 0 or more")
        if self.heads is not None and self.loss != "minilm":
            raise UsageError(f"distill-features(heads={self.heads}): heads are of loss=minilm, not of {self.loss}")
        if self.heads is not None and self.heads < 1:
            raise UsageError(f"distill-features(heads={self.heads}): allowed: 1 or more")
        if self.loss == "hint" and not self.stages:
            raise UsageError(
                "distill-features(loss=hint): a hint is of stages that you name, usually the middle ones: "
                "stages=[[2, 2]]"
            )
        for pair in self.stages:
            if 0 in pair:
                raise UsageError(
                    f"distill-features(stages=[[{pair[0]}, {pair[1]}]]): stages are counted from 1, or from the end "
                    f"with -1 the last"
                )

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs of stages that are compared; none: pooled features."""
        return self.stages or (() if self.loss in ("cosine", "mse") else ((-1, -1),))

    @property
    def strength(self) -> float:
        """The weight as given, or that of the loss."""
        return WEIGHTS[self.loss] if self.weight is None else self.weight

    @property
    def unlabelled(self) -> bool:
        return self.strength > 0

    @property
    def seams(self) -> frozenset[Seam]:
        return frozenset({"stage"}) if self.pairs else frozenset()

    @property
    def needs(self) -> tuple[frozenset[str], ...]:
        return (frozenset(ROLES),) if self.loss == "minilm" else ()

    def first_stage(self, num_stages: int) -> int:
        for number, _ in self.pairs:
            if not -num_stages <= index_of(number) < num_stages:
                raise UsageError(
                    f"distill-features(stages=...): the student has {num_stages} stages, found {number}; "
                    f"allowed: 1 to {num_stages}, or -1 to -{num_stages} from the end"
                )
        return num_stages

    def teachers(self) -> tuple[Teacher, ...]:
        if self.strength == 0:
            return ()
        asked = tuple(dict.fromkeys(index_of(number) for _, number in self.pairs))
        if self.loss == "minilm":
            sites = tuple((index, role) for index in asked for role in ROLES)
            return (Teacher(of=self.teacher, predictions=False, sites=sites, keep=self.keep),)
        pooled = not self.pairs
        return (Teacher(of=self.teacher, predictions=False, pooled=pooled, stages=asked, keep=self.keep),)

    def apply(self, learner: Learner, context: Context) -> Learner:
        if context.purpose == "use" or self.strength == 0:
            return learner
        if not any(parameter.requires_grad for parameter in learner.backbone.parameters()):
            raise RefusedError(
                "distill-features: nothing of the backbone trains yet, so its features cannot move; it acts on what "
                "adapters before it opened or added: write full+distill-features, or lora+distill-features"
            )
        from zoo_distill.feature_modules import around

        given = context.teachers[self.teacher]
        learner.objective = around(
            learner, self.teacher, given, loss=self.loss, pairs=self.pairs, weight=self.strength, heads=self.heads
        )
        return learner
