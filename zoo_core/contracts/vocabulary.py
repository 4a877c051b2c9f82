"""The words that contracts allow: modalities, kinds of features, of targets and of parts, roles, metrics."""

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
    "SUFFIXES",
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

Modality = Literal["image", "text", "audio", "table"]
"""What a backbone takes in. The set is closed in this version."""
Kind = Literal["map", "tokens", "pooled"]
"""Kinds of features, from rich to poor. A kind can only be converted into a poorer one."""
TargetKind = Literal["classes", "multilabel", "regression", "token_classes", "unlabelled"]
"""What is predicted. The set is closed in this version.

Nothing is known of unlabelled examples; a teacher may tell, and a model that nobody tells gives its pooled features.
"""
PartKind = Literal["backbone", "adapter", "head", "task", "metric", "augmentation", "reader", "score"]
"""Kinds of parts. Each kind has its own group of entry points."""
Seam = Literal["stage", "attention", "prompt"]
"""A place in the forward pass that an adapter hooks into."""
Weights = Literal["pretrained", "random"]
"""Where the numbers of a backbone come from."""
Change = Literal["base", "added", "objective", "schedule"]
"""What an adapter changes. An adapter that trains only the head changes nothing.

A stored model is used without an adapter that changes nothing but objective and schedule, so one that opens tensors of
the backbone says base, and one that adds modules or hooks, or wraps the head, says added.
"""
Trust = Literal["pickle", "code"]
"""What an argument may allow: reading pickles, or running the code of a repository."""

MODALITIES: tuple[Modality, ...] = get_args(Modality)
"""The words of Modality, in order."""
FEATURE_KINDS: tuple[Kind, ...] = get_args(Kind)
"""The words of Kind, from rich to poor."""
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)
"""The words of TargetKind, in order."""
PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)
"""The words of PartKind, in order."""
TRUSTS: tuple[Trust, ...] = get_args(Trust)
"""The words of Trust, in order."""
ROLES: tuple[str, ...] = (
    *("attn.q", "attn.k", "attn.v", "attn.out"),
    *("mlp.in", "mlp.gate", "mlp.out"),
    *("norm", "conv", "embed"),
)
"""The roles of weights in their networks, independent of module names; see Site."""
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "image": (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    "audio": (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav"),
}
"""The suffixes of files that hold one example each, in lower case, by modality."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: the kinds of target that it can score, and whether a higher score is better."""

    targets: frozenset[TargetKind]
    higher_is_better: bool = True


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(targets=frozenset({"classes", "multilabel", "token_classes"})),
    "agreement": Metric(targets=frozenset({"unlabelled"})),
    "average_precision": Metric(targets=frozenset({"classes", "multilabel"})),
    "entity_f1": Metric(targets=frozenset({"token_classes"})),
    "macro_f1": Metric(targets=frozenset({"classes", "multilabel"})),
    "mean_absolute_error": Metric(targets=frozenset({"regression"}), higher_is_better=False),
    "r2": Metric(targets=frozenset({"regression"})),
    "top5_accuracy": Metric(targets=frozenset({"classes"})),
}
"""The metrics by name. training/metrics.py computes them."""

Raw = Any
"""One example as its task stores it: a picture, a sentence, a row. Only preparations read its content."""
