"""Heads: linear, mlp and attention-pool by gradient; ncm, knn and ridge in closed form. Modules: head_modules.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_core.contracts import TARGET_KINDS, FeatureSpec, Kind, Target, TargetKind
from zoo_core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["AttentionPool", "Knn", "Linear", "Mlp", "Ncm", "Ridge"]


def _size(target: Target) -> int:
    assert target.size is not None, "build opens the task before it makes a head"
    return target.size


def _check_dropout(name: str, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise UsageError(f"{name}(dropout={dropout:g}): allowed: 0 to below 1")


def _check_positive(name: str, field: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"{name}({field}={value:g}): allowed: any positive number")


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer on pooled features, or on each token for token classes; starts near zero, the bias at zero.

    dropout: share of features dropped in training.
    """

    dropout: float = 0.0

    version: ClassVar[int] = 1
    predicts: ClassVar[frozenset[TargetKind]] = frozenset(TARGET_KINDS)

    def __post_init__(self) -> None:
        _check_dropout("linear", self.dropout)

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        from zoo_adapters.head_modules import LinearHead

        return LinearHead(features.dim, _size(target), dropout=self.dropout)


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Linear, GELU, linear on pooled features.

    hidden_dim: width between them; dropout: share of hidden values dropped in training.
    """

    hidden_dim: int = 256
    dropout: float = 0.0

    version: ClassVar[int] = 1
    learning_rates: ClassVar[tuple[float, ...]] = (8e-5, 4e-4, 2e-3, 1e-2, 5e-2)

    def __post_init__(self) -> None:
        _check_dropout("mlp", self.dropout)
        _check_positive("mlp", "hidden_dim", self.hidden_dim)

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        from zoo_adapters.head_modules import MlpHead

        return MlpHead(features.dim, _size(target), hidden_dim=self.hidden_dim, dropout=self.dropout)


@dataclass(frozen=True, kw_only=True)
class AttentionPool:
    """A learned query attends over tokens, then a linear layer.

    num_heads: attention heads, a divisor of the feature width; dropout: share of pooled values dropped in training.
    Source: Lee et al. 2019, "Set Transformer", pooling by multihead attention with one seed, without its MLP.
    """

    num_heads: int = 4
    dropout: float = 0.0

    version: ClassVar[int] = 1
    consumes: ClassVar[Kind] = "tokens"
    learning_rates: ClassVar[tuple[float, ...]] = (8e-5, 4e-4, 2e-3, 1e-2, 5e-2)

    def __post_init__(self) -> None:
        _check_dropout("attention-pool", self.dropout)
        _check_positive("attention-pool", "num_heads", self.num_heads)

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        from zoo_adapters.head_modules import AttentionPoolHead

        if features.dim % self.num_heads:
            raise UsageError(f"attention-pool(num_heads={self.num_heads}) does not divide the width {features.dim}")
        return AttentionPoolHead(features.dim, _size(target), num_heads=self.num_heads, dropout=self.dropout)


@dataclass(frozen=True, kw_only=True)
class Ncm:
    """Nearest class mean: the class whose mean training feature is closest; fitted in closed form.

    metric: cosine compares directions of unit-length features; euclidean compares the features as they are.
    Source: Mensink et al. 2013, equation 1; Zhou et al. 2023 (SimpleCIL) for cosine on pre-trained features.
    """

    metric: Literal["cosine", "euclidean"] = "cosine"

    version: ClassVar[int] = 1
    predicts: ClassVar[frozenset[TargetKind]] = frozenset({"classes"})
    fit: ClassVar[Literal["gradient", "closed_form"]] = "closed_form"

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        from zoo_adapters.head_modules import NcmHead

        return NcmHead(features.dim, _size(target), cosine=self.metric == "cosine")


@dataclass(frozen=True, kw_only=True)
class Knn:
    """The k nearest training features vote by cosine similarity s, each with weight exp(s / temperature).

    Logits are the logarithm of the votes. k: neighbours, at most the number of training examples.
    Source: Wu et al. 2018, section 3.4; k and temperature as in Caron et al. 2021 (DINO), appendix F.1.
    """

    k: int = 20
    temperature: float = 0.07

    version: ClassVar[int] = 1
    predicts: ClassVar[frozenset[TargetKind]] = frozenset({"classes"})
    fit: ClassVar[Literal["gradient", "closed_form"]] = "closed_form"

    def __post_init__(self) -> None:
        _check_positive("knn", "k", self.k)
        _check_positive("knn", "temperature", self.temperature)

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        from zoo_adapters.head_modules import KnnHead

        return KnnHead(features.dim, _size(target), k=self.k, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """Ridge regression of the targets on centred features; fitted in closed form, with the penalty that data choose.

    Of classes and labels the targets are 1 and -1. penalty: of the squared weights, in units of the mean squared
    singular value of the training features, so that one number means the same for every backbone; auto takes, of 17
    from 1e-4 to 1e4, the one with the least squared error when each training example is left out in turn.
    Source: Hoerl & Kennard 1970; Allen 1974 for leaving one out; 1 and -1 as in scikit-learn's RidgeClassifier.
    """

    penalty: float | Literal["auto"] = "auto"

    version: ClassVar[int] = 1
    predicts: ClassVar[frozenset[TargetKind]] = frozenset({"classes", "multilabel", "regression"})
    fit: ClassVar[Literal["gradient", "closed_form"]] = "closed_form"

    def __post_init__(self) -> None:
        if self.penalty != "auto":
            _check_positive("ridge", "penalty", self.penalty)

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        from zoo_adapters.head_modules import RidgeHead

        if self.penalty == "auto":
            return RidgeHead(features.dim, _size(target), kind=target.kind)
        return RidgeHead(features.dim, _size(target), kind=target.kind, penalties=(self.penalty,))
