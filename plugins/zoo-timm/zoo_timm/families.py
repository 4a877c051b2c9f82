"""What timm does not say of its models: what their features are laid out as, and which modules are their stages.

By module of timm, since all models of one module share their code. A module that is not listed has one stage, the
whole model, and features that are a map [B, D, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

__all__ = ["FAMILIES", "Family", "Layout", "family_of", "stages_of"]

Layout = Literal["map", "map, channels last", "tokens", "pooled"]


@dataclass(frozen=True)
class Family:
    """stages: patterns of module names, of which `*` stands for one part; none: nobody has taken the family apart."""

    layout: Layout
    stages: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "resnet": Family("map", ("layer*.*",)),
    "vision_transformer": Family("tokens", ("blocks.*",)),
}


def family_of(network: nn.Module) -> Family:
    """The family of a timm model."""
    return FAMILIES.get(type(network).__module__.rpartition(".")[2], Family("map"))


def stages_of(network: nn.Module, family: Family) -> tuple[str, ...]:
    """The stages of a model by name, in the order in which the model holds them."""
    return tuple(name for name, _ in network.named_modules() if any(_fits(name, stage) for stage in family.stages))


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
