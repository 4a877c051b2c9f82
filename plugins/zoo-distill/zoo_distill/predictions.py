"""Distillation of predictions: the student learns what a teacher predicts, beside its labels or without any."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from zoo_core.contracts import Change, Context, Learner, TargetKind, Teacher
from zoo_core.errors import RefusedError, UsageError
from zoo_distill.vocabulary import OBJECTIVE, Form, Keep

__all__ = ["Distill", "check_temperature"]

TEMPERATURES: Mapping[Form, float] = {"kd": 2.0, "dkd": 4.0, "dist": 1.0}
TARGETS: Mapping[Form, frozenset[TargetKind]] = {
    "kd": frozenset({"classes", "multilabel", "regression", "token_classes"}),
    "mse": frozenset({"classes", "multilabel", "regression", "token_classes"}),
    "dkd": frozenset({"classes", "token_classes"}),
    "dist": frozenset({"classes"}),
}
OF_SOFTMAX: frozenset[TargetKind] = frozenset({"classes", "token_classes"})


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Trains the student to predict what a teacher predicts: (1 - alpha) * the loss so far + alpha * the distance.

    The loss so far is that of everything before it in the chain: put regularisers behind it (full+distill+l2sp). With
    alpha=1 it is left out, and no label is looked at; with alpha=0 the teacher is never loaded. Of labels that are
    partly missing, the loss so far is over those that are known, and the distance over all examples. Several teachers
    are several adapters. Where the teacher knows some of the student's classes, the distance is between the softmaxes
    over these alone.
    teacher: the folder of a stored run, or hub/ORG/NAME of a published one.
    form: how predictions are compared, see below.
    alpha: the distance's weight, 0 to 1.
    T: temperature, above 0; by itself 2 for kd (ImageNet is usually done with 1, CIFAR-100 with 4), 4 for dkd, 1 for
    dist.
    standardise: first takes the logits of each example to mean 0 and standard deviation 1 over the classes, on both
    sides. Published with T=2 and a weight of 9 to 1, which is alpha=0.9.
    warmup: the number of updates over which the distance's weight rises linearly to alpha; 0: none. Passes that follow
    each other without an update, such as micro-batches, count once.
    target_weight, rest_weight: of the two parts of dkd, the paper's alpha and beta.
    beta, gamma: of the two parts of dist.
    keep: the precision in which the teacher's predictions are held.

    Each distance is a mean over examples, with z the logits and p = softmax(z / T).

    kd: T^2 KL(p of the teacher, p of the student). Of multilabel targets the KL of each label's sigmoid, averaged over
    labels. Of a regression the squared error in the unit of the student's own loss, averaged over outputs, without T.

    mse: the squared distance of logits, averaged over classes or labels, without T. As T grows, kd of classes becomes
    half of that between logits whose mean is taken away.

    dkd: T^2 (target_weight * TCKD + rest_weight * NCKD); kd is TCKD + (1 - p) NCKD, with p the teacher's probability of
    the label. An example is left out where its label is unknown, or one that the teacher does not know.

    dist: T^2 (beta * (1 - correlation over classes) + gamma * (1 - correlation over examples)) of p; of a batch of one
    the latter is 0. It sees a batch as a whole, so micro-batches are refused.
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2 (kd); Kim et al. 2021,
    "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation" (mse); Zhao et al.
    2022, "Decoupled Knowledge Distillation", whose weights here are those of its ResNet-56 to ResNet-20; Huang et al.
    2022, "Knowledge Distillation from A Stronger Teacher", with the weights that torchdistill took; Sun et al. 2024,
    "Logit Standardization in Knowledge Distillation". alpha=0.5 is torchdistill's on ImageNet, ResNet-34 to ResNet-18;
    T=2 lies between the 1 and 4 of those settings, where fitted teachers that are sure of themselves are still told.
    """

    teacher: str
    form: Form = "kd"
    alpha: float = 0.5
    T: float | None = None
    standardise: bool = False
    warmup: int = 0
    target_weight: float = 1.0
    rest_weight: float = 2.0
    beta: float = 1.0
    gamma: float = 1.0
    keep: Keep = "float32"

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = OBJECTIVE
    mergeable: ClassVar[bool] = True
    distils: ClassVar[Literal["predictions", "features"]] = "predictions"

    @classmethod
    def without_labels(cls, teacher: str) -> Distill:
        return cls(teacher=teacher, alpha=1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"distill(alpha={self.alpha:g}): allowed: 0 to 1")
        check_temperature("distill", self.T)
        if self.form == "mse" and self.T is not None:
            raise UsageError(
                f"distill(form=mse,T={self.T:g}): logits are compared as they are; leave T out, or form=kd"
            )
        if self.warmup < 0:
            raise UsageError(f"distill(warmup={self.warmup}): allowed: 0 or more, a number of updates")
        weights = {"target_weight": "dkd", "rest_weight": "dkd", "beta": "dist", "gamma": "dist"}
        usual = {"target_weight": 1.0, "rest_weight": 2.0, "beta": 1.0, "gamma": 1.0}
        for name, form in weights.items():
            value: float = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"distill({name}={value:g}): allowed: 0 or more")
            if value != usual[name] and form != self.form:
                raise UsageError(f"distill({name}={value:g}): {name} is a weight of form={form}, not of {self.form}")

    @property
    def targets(self) -> frozenset[TargetKind]:
        """Those of the form: standard logits are of a softmax, and a regression has no temperature."""
        found = TARGETS[self.form]
        if self.standardise:
            return found & OF_SOFTMAX
        return found if self.T is None else found - {"regression"}

    @property
    def unlabelled(self) -> bool:
        """All forms but dkd."""
        return self.alpha > 0 and self.form != "dkd"

    def first_stage(self, num_stages: int) -> int:
        return num_stages

    def teachers(self) -> tuple[Teacher, ...]:
        return () if self.alpha == 0 else (Teacher(of=self.teacher, keep=self.keep),)

    def apply(self, learner: Learner, context: Context) -> Learner:
        if context.purpose == "use" or self.alpha == 0:
            return learner
        from zoo_distill.prediction_modules import Distillation, scaled_part
        from zoo_distill.taught_objective import Warmup, small_moving

        columns = context.teachers[self.teacher].columns if self.teacher in context.teachers else None
        if columns is not None and len(columns) < 2 and context.target.kind in OF_SOFTMAX:
            raise RefusedError(
                f"distill: teacher and student share {len(columns)} class, and a softmax over one says nothing; "
                f"take a teacher that knows more of {', '.join(context.target.names[:8])}"
            )
        assert learner.objective is not None, "a learner that is built for training has one"
        kind = context.target.kind
        learner.objective = Distillation(
            learner.objective,
            of=self.teacher,
            kind=kind,
            form=self.form,
            alpha=self.alpha,
            temperature=self.T or TEMPERATURES.get(self.form, 1.0),
            standardise=self.standardise,
            weights=(self.beta, self.gamma) if self.form == "dist" else (self.target_weight, self.rest_weight),
            warmup=Warmup(self.warmup, small_moving(learner)) if self.warmup else None,
            scaled=scaled_part(learner.head) if kind == "regression" else None,
        )
        return learner


def check_temperature(adapter: str, temperature: float | None) -> None:
    """Raises UsageError for a temperature that is not above 0; None: the adapter's own."""
    if temperature is not None and not 0 < temperature < math.inf:
        raise UsageError(f"{adapter}(T={temperature:g}): allowed: above 0")
