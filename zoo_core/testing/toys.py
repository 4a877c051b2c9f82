"""Toy backbones with dropout, batch norm, layer-drop and fused attention, and a toy task; no weights, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo_core.contracts import Features, FeatureSpec, Modality, Site, Split, Target
from zoo_core.toolkit.features import masked_mean
from zoo_core.toolkit.preparations import ImagePreparation

__all__ = ["ToyBackbone", "ToySplit", "ToyTask"]


class _TokenBlock(nn.Module):
    """Pre-norm attention with fused qkv, then dropout: x + drop(proj(attention(norm(x))))."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x_BTD)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        change: Tensor = self.drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return x_BTD + change


class _MapBlock(nn.Module):
    """x + relu(bn(conv(x))), with a non-persistent buffer that scales by one."""

    one: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return x_BDHW + nn.functional.relu(self.bn(self.conv(x_BDHW))) * self.one


class _LayerDrop(nn.Sequential):
    """Skips every stage while the container trains, so that a container in the wrong mode is seen at once."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x
        for stage in self:
            x = stage(x)
        return x


class ToyBackbone(nn.Module):
    """Three stages on pictures of 8 x 8: tokens [B, 16, 12] or a map [B, 12, 4, 4].

    layer_drop: a container that skips its stages in training mode.
    """

    modality: Modality = "image"

    def __init__(self, kind: Literal["tokens", "map"] = "tokens", *, layer_drop: bool = False) -> None:
        super().__init__()
        dim = 12
        self.features = FeatureSpec(kind=kind, dim=dim)
        self.preparation = ImagePreparation(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.stem = nn.Conv2d(3, dim, 2, stride=2)
        blocks = [_TokenBlock(dim, 3) if kind == "tokens" else _MapBlock(dim) for _ in range(3)]
        self.blocks = (_LayerDrop if layer_drop else nn.Sequential)(*blocks)
        self.norm = nn.LayerNorm(dim) if kind == "tokens" else nn.BatchNorm2d(dim)
        self.stages = tuple(f"blocks.{index}" for index in range(3))

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        x = self.stem(inputs["pixel_values"])
        if self.features.kind == "tokens":
            x = x.flatten(2).transpose(1, 2)
        return Features(kind=self.features.kind, x=self.norm(self.blocks(x)))

    def pool(self, features: Features) -> Tensor:
        return masked_mean(features)

    def sites(self, role: str) -> tuple[Site, ...]:
        kinds: dict[str, type[nn.Module]] = {"norm": nn.LayerNorm, "conv": nn.Conv2d}
        wanted = (nn.LayerNorm, nn.BatchNorm2d) if role == "norm" else (kinds[role],) if role in kinds else ()
        return tuple(
            Site(path=name, kind="norm" if role == "norm" else "conv")
            for name, module in self.named_modules()
            if wanted and isinstance(module, wanted)
        )


@dataclass(frozen=True)
class ToySplit:
    """Pictures in memory. x: uint8 [num, 8, 8]."""

    x: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]
    groups: np.ndarray[Any, Any] | None = None

    @property
    def num(self) -> int:
        return len(self.x)

    @property
    def ids(self) -> Sequence[str]:
        return [str(index) for index in range(self.num)]

    def raw(self, index: int) -> Any:
        return self.x[index]


@dataclass(frozen=True)
class ToyTask:
    """Pictures whose class is the brightest of their vertical thirds; separable, and made from a seed.

    A target of another kind has outputs that follow from the class: label c says whether it is at most c, value c is
    a hundred times the class, plus c.
    """

    num: int = 60
    seed: int = 0
    target: Target = field(default_factory=lambda: Target(kind="classes", names=("left", "middle", "right")))
    splits: dict[str, Split] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        parts: dict[str, Split] = {}
        for name in ("train", "val", "test"):
            x = rng.integers(0, 100, size=(self.num, 8, 8)).astype(np.uint8)
            labels = np.arange(self.num) % 3
            for row, label in zip(x, labels, strict=True):
                row[:, label * 3 : label * 3 + 2] += 120
            parts[name] = ToySplit(x, _targets(labels, self.target))
        object.__setattr__(self, "splits", parts)


def _targets(labels: np.ndarray[Any, Any], target: Target) -> np.ndarray[Any, Any]:
    if target.kind == "classes":
        return labels.astype(np.int64)
    outputs = np.arange(target.size or 0)
    found = labels[:, None] <= outputs if target.kind == "multilabel" else labels[:, None] * 100 + outputs
    return found.astype(np.float32)
