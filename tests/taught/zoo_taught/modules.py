"""The torch half: the objective of relations, and a small network of a family of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Features, FeatureSpec, Modality, Output, Site
from zoo_core.toolkit.preparations import ImagePreparation


class Relations(nn.Module):
    """The terms of another objective, and how the relations among examples differ from a teacher's.

    It is no MicroBatchable, since it sees a batch as a whole.
    """

    taught = True
    pooled = True
    stages: tuple[int, ...] = ()

    def __init__(self, objective: nn.Module, of: str, distance: float, angle: float) -> None:
        super().__init__()
        self.objective = objective
        self.of = of
        self.distance, self.angle = distance, angle

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(output, batch)
        own, theirs = output.pooled, batch.teachers[self.of].pooled
        assert own is not None
        assert theirs is not None
        return terms | {
            "rkd_distance": self.distance * huber(distances(own), distances(theirs)),
            "rkd_angle": self.angle * huber(angles(own), angles(theirs)),
        }


def huber(own: Tensor, theirs: Tensor) -> Tensor:
    return nn.functional.smooth_l1_loss(own, theirs.to(own))


def distances(x_BD: Tensor) -> Tensor:
    """[B, B], in units of their mean over pairs of different examples."""
    squared = (x_BD.unsqueeze(0) - x_BD.unsqueeze(1)).square().sum(-1)
    apart = squared.clamp(min=1e-12).sqrt() * (1 - torch.eye(len(x_BD)).to(x_BD))  # no gradient is infinite at 0
    return apart / (apart.sum() / max(1, len(x_BD) * (len(x_BD) - 1))).clamp(min=1e-6)


def angles(x_BD: Tensor) -> Tensor:
    """[B, B, B], the cosines of the angles at the first of each three."""
    towards = nn.functional.normalize(x_BD.unsqueeze(0) - x_BD.unsqueeze(1), dim=-1)
    return towards @ towards.transpose(1, 2)


class Network(nn.Module):
    """Three convolutions on pictures of 20 x 20, with features [B, 10, 3, 3]."""

    modality: Modality = "image"
    features = FeatureSpec(kind="map", dim=10)
    preparation = ImagePreparation(size=20, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
    stages = ("blocks.0", "blocks.1", "blocks.2")

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 6), (6, 8), (8, 10))
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(*pair, 3, stride=2, padding=1), nn.Tanh()) for pair in widths)
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="map", x=self.blocks(inputs["pixel_values"]))

    def pool(self, features: Features) -> Tensor:
        return features.x.mean(dim=(-2, -1))

    def sites(self, role: str) -> tuple[Site, ...]:
        return tuple(Site(path=f"blocks.{i}.0", kind="conv") for i in range(3)) if role == "conv" else ()
