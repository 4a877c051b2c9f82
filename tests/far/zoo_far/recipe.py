"""`far/ORG/NAME`, or `far(files="DIR")`: two convolutions, as wide as their config.json says."""

from __future__ import annotations

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
        from zoo_far.network import build_network

        assert files is not None
        return build_network(files, weights)
