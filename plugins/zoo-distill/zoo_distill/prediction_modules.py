"""The torch half of predictions.py: the objective that adds the distance from a teacher's predictions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Output, TargetKind
from zoo_core.errors import RefusedError
from zoo_distill.logit_losses import (
    binary_kl,
    correlation_distance,
    decoupled_kl,
    softmax_kl,
    squared_distance,
    standardised,
)
from zoo_distill.taught_objective import TaughtObjective, Warmup, upcast
from zoo_distill.vocabulary import Form

__all__ = ["Distillation", "scaled_part"]


class Distillation(TaughtObjective):
    """(1 - alpha) * the terms of another objective + alpha * the distance from a teacher; see predictions.Distill.

    weights: of the two parts of dkd (target, rest) or dist (rows, columns). scaled: the part of a regression's head
    that holds the unit of its predictions.
    """

    def __init__(
        self,
        objective: nn.Module,
        *,
        of: str,
        kind: TargetKind,
        form: Form = "kd",
        alpha: float = 0.5,
        temperature: float = 1.0,
        standardise: bool = False,
        weights: tuple[float, float] = (1.0, 1.0),
        warmup: Warmup | None = None,
        scaled: nn.Module | None = None,
    ) -> None:
        super().__init__(objective, of=of, name="distill")
        self.kind: TargetKind = kind
        self.form: Form = form
        self.alpha = alpha
        self.temperature = temperature
        self.standardise = standardise
        self.weights = weights
        self.warmup = warmup
        self._scaled = (scaled,)  # in a tuple, so that torch does not register it; the default loss does the same

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        distance = self.alpha * self.distance(output, batch)
        if self.warmup is not None:
            distance = distance * self.warmup()
        if self.alpha == 1:  # not times 0, which would leave what is not finite as it is
            return {self.term: distance}
        labelled: Mapping[str, Tensor] = self.objective(output, batch)
        return self.joined({name: (1 - self.alpha) * x for name, x in labelled.items()}, distance)

    def inner_items(self, batch: Batch) -> Tensor | Mapping[str, Tensor] | None:
        return {} if self.alpha == 1 else super().inner_items(batch)

    def own_items(self, batch: Batch) -> Tensor | None:
        if self.form == "dist":
            return None
        if self.kind != "token_classes" and self.form != "dkd":
            return torch.tensor(float(len(batch)))
        return self._rows(batch).sum()

    def distance(self, output: Output, batch: Batch) -> Tensor:
        """The mean distance over the examples or tokens that have one; 0 where none has."""
        given = self.given(batch)
        assert given.predictions is not None, "the recipe asks for predictions, and a plan without is refused"
        student = upcast(output.predictions)
        if given.columns is not None:
            student = student[..., list(given.columns)]
        teacher = given.predictions.to(student.dtype)
        if self.kind == "regression":
            unit = self._unit(given.columns).to(student.dtype)
            return squared_distance(student / unit, teacher / unit).mean()
        if self.kind == "token_classes" or self.form == "dkd":
            compared = self._rows(batch)
            student, teacher = student[compared], teacher[compared]
        if self.standardise:
            student, teacher = standardised(student), standardised(teacher)
        if self.form == "dist":
            beta, gamma = self.weights
            return correlation_distance(student, teacher, self.temperature, rows=beta, columns=gamma)
        return _mean(self._each(student, teacher, batch))

    def _each(self, student_NC: Tensor, teacher_NC: Tensor, batch: Batch) -> Tensor:
        if self.form == "mse":
            return squared_distance(student_NC, teacher_NC)
        if self.form == "dkd":
            label = self._label(batch)
            target, rest = self.weights
            return decoupled_kl(
                student_NC, teacher_NC, label[label >= 0], self.temperature, target_weight=target, rest_weight=rest
            )
        kl = binary_kl if self.kind == "multilabel" else softmax_kl
        return kl(student_NC, teacher_NC, self.temperature)

    def _rows(self, batch: Batch) -> Tensor:
        """Which examples [B] or tokens [B, T] have a distance: those with a word, and for dkd a label, of both."""
        predictions = self.given(batch).predictions
        assert predictions is not None
        known = predictions.isfinite().all(dim=-1) if self.kind == "token_classes" else None
        if self.form != "dkd":
            assert known is not None, "of all other forms every example has one"
            return known
        return self._label(batch) >= 0

    def _label(self, batch: Batch) -> Tensor:
        """The column of each label among the teacher's, int64 as the targets; -1: it has none, or is not compared."""
        given = self.given(batch)
        assert given.predictions is not None
        label = batch.target.clamp_min(-1)
        if given.columns is not None:
            places = {column: place for place, column in enumerate(given.columns)}
            table = [places.get(column, -1) for column in range(max(places) + 1)]
            known = label.new_tensor([*table, -1])  # the last is for those beyond, and for -1
            label = known[torch.where((label < 0) | (label > max(places)), len(table), label)]
        if self.kind == "token_classes":
            label = torch.where(given.predictions.isfinite().all(dim=-1), label, -1)
        return label

    def _unit(self, columns: tuple[int, ...] | None) -> Tensor:
        """The standard deviation of the student's targets, float [C]: the unit of its own loss."""
        scaled = self._scaled[0]
        assert scaled is not None, "a regression has one"
        scale = scaled.get_buffer("scale")
        return scale if columns is None else scale[list(columns)]


def _mean(distance_N: Tensor) -> Tensor:
    return distance_N.sum() / max(len(distance_N), 1)


def scaled_part(head: nn.Module) -> nn.Module:
    """The part of a regression's head that holds `scale`, the unit of its predictions."""
    for module in head.modules():
        if any(name == "scale" for name, _ in module.named_buffers(recurse=False)):
            return module
    raise RefusedError("distill: the head of this regression does not say the unit of its predictions")
