"""The recipes keep the promises of a score, and the check of these promises can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from zoo_core.contracts import ScoreRecipe, Target, TargetKind
from zoo_core.selection.scores import Knn, LogMe, Ridge
from zoo_core.testing.comparing import ConformanceError
from zoo_core.testing.scores import check_score


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
@pytest.mark.parametrize("recipe", [Knn, Ridge, LogMe])
def test_a_score_keeps_its_promises(recipe: type[Any], kind: TargetKind) -> None:
    check_score(recipe(), kind)


class Wrong:
    """A score with a fault."""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = frozenset({"classes"})

    def __init__(self, fault: Callable[[Tensor, Tensor], Any]) -> None:
        self.fault = fault

    def judge(self, features: Tensor, truth: Tensor, target: Target) -> Tensor:
        return self.fault(features, truth)  # type: ignore[no-any-return]


def writes(features: Tensor, truth: Tensor) -> Tensor:
    return features.mul_(2).mean()


FAULTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "a number": (lambda x, y: 1.0, r"gave 1\.0; allowed: a float tensor"),
    "whole numbers": (lambda x, y: y, "allowed: a float tensor of shape"),
    "another shape": (lambda x, y: x, "allowed: a float tensor of shape"),
    "not finite": (lambda x, y: x.mean() * torch.nan, "not finite for classes"),
    "writes": (writes, "changed its arguments"),
    "draws": (lambda x, y: torch.rand(()), "drew from torch's generator"),
    "order": (lambda x, y: x[0].sum(), "in another order"),
    "says nothing": (lambda x, y: x.abs().mean().new_zeros(()), "higher is better"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_check_of_a_score_can_fail(name: str) -> None:
    fault, told = FAULTS[name]
    score: ScoreRecipe = Wrong(fault)
    with pytest.raises(ConformanceError, match=told):
        check_score(score)
