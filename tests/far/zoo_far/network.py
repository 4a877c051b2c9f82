"""The network of `far`, and the files of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from zoo_core.contracts import Features, FeatureSpec, Modality, Site, Weights
from zoo_core.toolkit.features import masked_mean
from zoo_core.toolkit.preparations import ImagePreparation
from zoo_core.toolkit.weights import assign, blank, open_tensors


class FarNetwork(nn.Module):
    modality: ClassVar[Modality] = "image"
    stages: ClassVar[tuple[str, ...]] = ("blocks.0", "blocks.1")

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.features = FeatureSpec(kind="map", dim=dim)
        self.preparation = ImagePreparation(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, dim, 3, stride=2, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(dim, dim, 3, stride=2, padding=1), nn.ReLU()),
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="map", x=self.blocks(inputs["pixel_values"]))

    def pool(self, features: Features) -> Tensor:
        return masked_mean(features)

    def sites(self, role: str) -> tuple[Site, ...]:
        return tuple(Site(path=f"blocks.{i}.0", kind="conv") for i in range(2)) if role == "conv" else ()


def build_network(files: Path, weights: Weights) -> nn.Module:
    dim = json.loads((files / "config.json").read_text())["dim"]
    if weights == "random":
        return FarNetwork(dim)
    with blank():
        network = FarNetwork(dim)
    assign(network, open_tensors(files.glob("model*.safetensors")), source=str(files))
    return network


def far_files(dim: int = 8, seed: int = 0) -> dict[str, bytes]:
    """What a repository of such a backbone holds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = FarNetwork(dim).state_dict()
    card = b"---\nlicense: cc-by-4.0\n---\n# A backbone for tests\n"
    return {"config.json": json.dumps({"dim": dim}).encode(), "model.safetensors": save(state), "README.md": card}
