"""Distillation through a token of its own, as DeiT does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zoo_core.contracts import Change, Context, Kind, Learner, Seam, TargetKind, Teacher
from zoo_core.errors import UsageError
from zoo_distill.predictions import check_temperature
from zoo_distill.vocabulary import Keep

__all__ = ["DistillToken"]


@dataclass(frozen=True, kw_only=True)
class DistillToken:
    """A learned token with a head of its own learns what a teacher predicts, while the head learns the labels.

    (1 - alpha) * the loss so far, of the head, + alpha * that of the token's head: T^2 KL of the softmaxes, or with
    `hard` the cross-entropy with the class that the teacher finds likeliest. The token enters the first stage, all
    others see it, and its head, LayerNorm and linear, reads it behind the last stage. In use the predictions are the
    mean of both heads' logits; while training they are the head's. Token and head are part of the model, D + 2 D +
    (D + 1) C values, and no teacher is needed in use. Put it last among the adapters that insert modules.
    teacher: the folder of a stored run, or hub/ORG/NAME of a published one.
    hard: learns the teacher's likeliest class in place of its probabilities.
    alpha: above 0 and below 1, since both heads must learn. T: above 0, by itself 1; not with hard.
    keep: the precision in which the teacher's predictions are held.
    Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
    section 4, with its alpha for hard labels, which did better there; KL at T=1 on the token is that of Miles et al.
    2024, "VkD". Unlike the paper's, the token has no place of its own beside its value.
    """

    teacher: str
    hard: bool = False
    alpha: float = 0.5
    T: float | None = None
    keep: Keep = "float32"

    version: ClassVar[int] = 1
    accepts: ClassVar[frozenset[Kind]] = frozenset({"tokens"})
    targets: ClassVar[frozenset[TargetKind]] = frozenset({"classes"})
    seams: ClassVar[frozenset[Seam]] = frozenset({"prompt"})
    changes: ClassVar[frozenset[Change]] = frozenset({"added", "objective"})
    exact_at_start: ClassVar[bool] = False
    learning_rates: ClassVar[tuple[float, ...]] = (4e-4, 2e-3, 1e-2, 5e-2, 2.5e-1)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(
                f"distill-token(alpha={self.alpha:g}): allowed: above 0 and below 1, both heads must learn"
            )
        check_temperature("distill-token", self.T)
        if self.hard and self.T is not None:
            raise UsageError(
                f"distill-token(hard=true,T={self.T:g}): hard predictions have no temperature; leave T out"
            )

    def teachers(self) -> tuple[Teacher, ...]:
        return (Teacher(of=self.teacher, keep=self.keep),)

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_distill.token_modules import TokenDistillation, add_token

        token, head = add_token(learner, context.target)
        if context.purpose == "train":
            assert learner.objective is not None, "a learner that is built for training has one"
            learner.objective = TokenDistillation(
                learner.objective,
                of=self.teacher,
                alpha=self.alpha,
                temperature=None if self.hard else self.T or 1.0,
                stage=len(learner.source.stages) - 1,
                token=token,
                head=head,
            )
        return learner
