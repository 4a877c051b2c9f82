"""The namespace `starter`: two image backbones with their weights inside this package, and one for tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Source, Weights
from zoo_core.errors import NotFoundError, RefusedError, UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Starter"]

NAMES = ("convnet-nano", "mlp-nano", "vit-nano")


@dataclass(frozen=True, kw_only=True)
class Starter:
    """A small backbone that ships with zoo: `starter/vit-nano`, `starter/convnet-nano`, `starter/mlp-nano` (tables).

    dropout: share of values dropped inside each block while that block trains (vit-nano and mlp-nano).
    drop_path: share of examples that skip a residual branch while its block trains (vit-nano).
    """

    name: str
    dropout: float = 0.0
    drop_path: float = 0.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            close = nearest(f"starter/{self.name}", [f"starter/{name}" for name in NAMES])
            raise NotFoundError(f"starter has no {self.name!r}; it has {', '.join(NAMES)}{close}")
        for field, takers in (("dropout", ("vit-nano", "mlp-nano")), ("drop_path", ("vit-nano",))):
            rate = getattr(self, field)
            if not 0 <= rate < 1:
                raise UsageError(f"starter/{self.name}({field}={rate:g}): allowed: 0 to below 1")
            if rate and self.name not in takers:
                raise UsageError(f"starter/{self.name} has no {field}; {', '.join(takers)} has")

    def source(self) -> Source | None:
        return None

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        from zoo_starter import contract

        if self.name == "mlp-nano":
            if weights == "pretrained":
                raise RefusedError("starter/mlp-nano was never pre-trained: write 'starter/mlp-nano(weights=random)'")
            return contract.mlp_nano(dropout=self.dropout)
        if self.name == "vit-nano":
            return contract.vit_nano(weights, dropout=self.dropout, drop_path=self.drop_path)
        return contract.convnet_nano(weights)
