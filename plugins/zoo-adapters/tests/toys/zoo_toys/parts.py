"""Backbones `toy/tokens`, `toy/map`, `toy/layer-drop`, `toy/plain`, `toy/packed`, and the task `toy-rows`.

A toy may import torch at its top; a real plugin's recipes import it in their verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from zoo_core.contracts import Features, FeatureSpec, Modality, Site, Source, Split, Target, TaskData, Weights
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.preparations import TablePreparation

DIM = 5


class Plain(nn.Module):
    """One stage on rows: x @ W.T with W the identity. It has neither bias nor norm; features are the rows."""

    modality: Modality = "table"
    features = FeatureSpec(kind="pooled", dim=DIM)
    preparation = TablePreparation(max_columns=DIM)
    stages = ("stage",)

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Linear(DIM, DIM, bias=False)
        nn.init.eye_(self.stage.weight)

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="pooled", x=self.stage(inputs["numeric"]))

    def pool(self, features: Features) -> Tensor:
        return features.x

    def sites(self, role: str) -> tuple[Site, ...]:
        return ()


class Packed(nn.Module):
    """Biases under other names: torch's own attention packs them, a table of offsets only sounds like one."""

    modality: Modality = "table"
    features = FeatureSpec(kind="pooled", dim=4)
    preparation = TablePreparation(max_columns=4)
    stages = ("attn",)

    def __init__(self) -> None:
        super().__init__()
        self.attn = _Attention()

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="pooled", x=self.attn(inputs["numeric"]))

    def pool(self, features: Features) -> Tensor:
        return features.x

    def sites(self, role: str) -> tuple[Site, ...]:
        return (Site(path="attn.norm", kind="norm"),) if role == "norm" else ()


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4, elementwise_affine=False)
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
        self.relative_position_bias = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x_BD: Tensor) -> Tensor:
        x_BTD = self.norm(x_BD)[:, None] + self.relative_position_bias
        mixed: Tensor = self.inner(x_BTD, x_BTD, x_BTD, need_weights=False)[0]
        return mixed.mean(1)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "tokens": lambda: ToyBackbone("tokens"),
    "map": lambda: ToyBackbone("map"),
    "layer-drop": lambda: ToyBackbone("tokens", layer_drop=True),
    "plain": Plain,
    "packed": Packed,
}


@dataclass(frozen=True)
class RowSplit:
    """x: float32 [num, 5]; targets: int64 [num]."""

    x: np.ndarray
    targets: np.ndarray
    groups: None = None

    @property
    def num(self) -> int:
        return len(self.x)

    @property
    def ids(self) -> Sequence[str]:
        return [str(index) for index in range(self.num)]

    def raw(self, index: int) -> np.ndarray:
        return np.asarray(self.x[index])


@dataclass(frozen=True)
class RowData:
    """Rows in splits."""

    target: Target
    splits: Mapping[str, Split] = field(default_factory=dict)


def rows(target: Target) -> RowData:
    """240 rows to train and 120 each to validate and test; unit normal around one of three centres."""
    rng = np.random.default_rng(0)
    centres = 0.6 * rng.normal(size=(3, DIM))
    splits: dict[str, Split] = {}
    for name, num in (("train", 240), ("val", 120), ("test", 120)):
        labels = np.arange(num) % 3
        x = centres[labels] + rng.normal(size=(num, DIM))
        splits[name] = RowSplit(x.astype(np.float32), labels.astype(np.int64))
    return RowData(target, splits)


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A toy backbone by name; its weights are drawn from a fixed seed, so they are as good as a file's."""

    name: str

    version: ClassVar[int] = 1

    def source(self) -> Source | None:
        return None

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        torch.manual_seed(0)  # build puts the caller's random state back
        return NETWORKS[self.name]()


@dataclass(frozen=True, kw_only=True)
class ToyRows:
    """Three overlapping clouds of rows with five numbers; most of them can be told apart."""

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "table"
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target] = Target(kind="classes", names=("a", "b", "c"))

    def open(self, files: Path | None) -> TaskData:
        return rows(self.target)
