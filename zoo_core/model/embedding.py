"""The head `embedding`, of a model that predicts nothing: what it gives are its pooled features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import FeatureSpec, Kind, Target, TargetKind

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Embedding"]


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """No head: a run with it is a backbone, trained without labels, whose pooled features are what it gives.

    Use it as `run(path="DIR")` in a spec, or with `zoo embed DIR FILE...`.
    """

    version: ClassVar[int] = 1
    consumes: ClassVar[Kind] = "pooled"
    predicts: ClassVar[frozenset[TargetKind]] = frozenset({"unlabelled"})

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        from zoo_core.toolkit.features import Pooled

        return Pooled()
