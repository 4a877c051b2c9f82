"""The recipes `relational` and `pyramid`, without torch."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Change, Context, Learner, Source, Teacher, Weights
from zoo_core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Relational:
    """Adds to the loss how the relations among the examples of a batch differ between student and teacher.

    distance: weight of RKD-D, the distances of pairs over their mean. angle: weight of RKD-A, the cosines of the angles
    of triplets. Both are compared by Huber's loss on pooled features of any two widths. No label is looked at.
    teacher: a backbone's name, or the folder of a stored run.
    Source: Park et al. 2019, "Relational Knowledge Distillation", equations 5 to 9, averaged over pairs and triplets,
    with the weights of its section 4.1.
    """

    teacher: str
    distance: float = 25.0
    angle: float = 50.0

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset({"objective"})
    unlabelled: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    learning_rates: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

    def __post_init__(self) -> None:
        for name, weight in (("distance", self.distance), ("angle", self.angle)):
            if not 0 <= weight < math.inf:
                raise UsageError(f"relational({name}={weight:g}): allowed: 0 or more")

    def first_stage(self, num_stages: int) -> int:
        return num_stages

    def teachers(self) -> tuple[Teacher, ...]:
        return (Teacher(of=self.teacher, predictions=False, pooled=True),)

    def apply(self, learner: Learner, context: Context) -> Learner:
        if context.purpose == "use":
            return learner
        modules = importlib.import_module("zoo_taught.modules")  # no path that a type checker knows leads there
        learner.objective = modules.Relations(learner.objective, self.teacher, self.distance, self.angle)
        return learner


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """A network of three convolutions on pictures of 20 x 20."""

    version: ClassVar[int] = 1

    def source(self) -> Source | None:
        return None

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        import torch

        modules = importlib.import_module("zoo_taught.modules")
        with torch.random.fork_rng(devices=[], enabled=weights == "pretrained"):
            if weights == "pretrained":
                torch.manual_seed(1)
            network: nn.Module = modules.Network()
        return network
