"""The closed sets of words of the contracts: modalities, kinds of features, targets and parts, roles, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = [
    "FEATURE_KINDS",
    "METRICS",
    "MODALITIES",
    "PART_KINDS",
    "ROLES",
    "TARGET_KINDS",
    "TRUSTS",
    "Change",
    "Kind",
    "Metric",
    "Modality",
    "PartKind",
    "Raw",
    "Seam",
    "TargetKind",
    "Trust",
    "Weights",
]

Modality = Literal["image", "text", "audio", "table"]  # closed in this version
Kind = Literal["map", "tokens", "pooled"]  # features, from rich to poor; only downward conversions exist
TargetKind = Literal["classes", "multilabel", "regression", "token_classes"]  # closed in this version
PartKind = Literal["backbone", "adapter", "head", "task"]
Seam = Literal["stage", "attention", "prompt"]  # what an adapter needs of a backbone besides modules and roles
Weights = Literal["pretrained", "random"]
Change = Literal["base", "added", "objective", "schedule"]  # what an adapter touches; nothing at all: probe
Trust = Literal["pickle", "code"]  # what an argument may allow: that pickles are read, that foreign code runs

MODALITIES: tuple[Modality, ...] = get_args(Modality)
FEATURE_KINDS: tuple[Kind, ...] = get_args(Kind)
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)
PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)
TRUSTS: tuple[Trust, ...] = get_args(Trust)
ROLES: tuple[str, ...] = (
    *("attn.q", "attn.k", "attn.v", "attn.out"),
    *("mlp.in", "mlp.gate", "mlp.out"),
    *("norm", "conv", "embed"),
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a score means: the target kinds it is for, and whether more is better."""

    targets: frozenset[TargetKind]
    higher_is_better: bool = True


METRICS: Mapping[str, Metric] = {  # how each is computed stands in training/metrics.py
    "accuracy": Metric(targets=frozenset({"classes", "multilabel", "token_classes"})),
    "average_precision": Metric(targets=frozenset({"classes", "multilabel"})),
    "entity_f1": Metric(targets=frozenset({"token_classes"})),
    "macro_f1": Metric(targets=frozenset({"classes", "multilabel"})),
    "mean_absolute_error": Metric(targets=frozenset({"regression"}), higher_is_better=False),
    "r2": Metric(targets=frozenset({"regression"})),
    "top5_accuracy": Metric(targets=frozenset({"classes"})),
}

Raw = Any  # one example as its task holds it: a picture, a sentence, a row; only a preparation looks inside
