"""The numbers of one bottleneck adapter, which the recipe decides and its modules are made from. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Act", "Init", "Shape"]

Act = Literal["gelu", "relu", "silu", "identity"]
Init = Literal["zero", "houlsby"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of one adapter: see the recipe, where they have defaults."""

    r: int
    scale: float
    act: Act
    init: Init
    dropout: float
    drop_path: float
