"""`far/ORG/NAME`, or `far(files="DIR")`: two convolutions, as wide as their config.json says."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Source, Weights

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Far:
    """Two convolutions for pictures of 32 x 32."""

    name: str = ""
    files: str | None = None

    version: ClassVar[int] = 1

    def source(self) -> Source:
        return Source(
            repository=None if self.files else self.name,
            folder=self.files,
            patterns=("config.json",),
            weights=("model.safetensors", "model*.safetensors*"),
        )

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        network = importlib.import_module("zoo_far.network")  # no path that a type checker knows leads there
        built: nn.Module = network.build_network(files, weights)
        return built
