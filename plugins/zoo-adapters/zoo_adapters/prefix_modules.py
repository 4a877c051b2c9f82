"""The modules of prefix tuning, and the way to put one into each stage.

Axes: P slots, D width of the features, each of `heads` of width `dim`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo_core.contracts import Site, as_backbone
from zoo_core.errors import RefusedError
from zoo_core.toolkit.attention import attend_beside, attend_to, attention_shapes
from zoo_core.toolkit.sites import free_name, read_weight, sites_for

__all__ = ["FlatPrefix", "GatedPrefix", "MadePrefix", "Trunk", "add_prefixes"]

HIDDEN = 512  # of the network that makes prefixes: Li & Liang 2021, section 4.3
STD = 0.02


class FlatPrefix(nn.Module):
    """Keys and values float [heads, P, dim], trained as they are."""

    def __init__(self, length: int, heads: int, key_dim: int, value_dim: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(STD * torch.randn(heads, length, key_dim))
        self.values = nn.Parameter(STD * torch.randn(heads, length, value_dim))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class GatedPrefix(FlatPrefix):
    """Keys and values as of `FlatPrefix`, and a gate float [heads of queries, 1, 1] that is zero at the start."""

    def __init__(self, length: int, heads: int, key_dim: int, value_dim: int, query_heads: int) -> None:
        super().__init__(length, heads, key_dim, value_dim)
        self.gate = nn.Parameter(torch.zeros(query_heads, 1, 1))

    def gated(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.gate.tanh()


class Trunk(nn.Module):
    """What all stages make their prefixes from: tanh(linear(embedding)), float [P, 512]."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, dim))
        self.linear = nn.Linear(dim, HIDDEN)

    def forward(self) -> Tensor:
        return torch.tanh(self.linear(self.embedding))


class MadePrefix(nn.Module):
    """Keys and values float [heads, P, dim], made from the trunk by a linear layer of this stage's own.

    trunk: the first stage's prefix holds it as its own module; the others only use it, so that it is saved once.
    """

    def __init__(self, trunk: Trunk, heads: int, key_dim: int, value_dim: int, *, owns: bool) -> None:
        super().__init__()
        self.heads, self.key_dim = heads, key_dim
        if owns:
            self.trunk = trunk
        self.shared = (trunk,)  # in a tuple, which registers nothing; a deep copy of the backbone copies both alike
        self.linear = nn.Linear(HIDDEN, heads * (key_dim + value_dim))

    def forward(self) -> tuple[Tensor, Tensor]:
        made = self.linear(self.shared[0]()).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return made[..., : self.key_dim], made[..., self.key_dim :]


def add_prefixes(backbone: nn.Module, length: int, form: Literal["flat", "mlp", "gated"]) -> None:
    """One prefix in each stage, registered beside the layer that makes its keys.

    Raises RefusedError where a stage does not call fused attention exactly once, on keys of the width that its site
    says, naming the stage and what it does.
    """
    trunk: Trunk | None = None
    for key, value, query_heads, attention in _places(backbone):
        heads, key_dim, value_dim = key.num_heads or 0, key.head_dim or 0, value.head_dim or 0
        prefix: nn.Module
        if form == "mlp":
            owns = trunk is None
            trunk = trunk or Trunk(length, as_backbone(backbone).features.dim)
            prefix = MadePrefix(trunk, heads, key_dim, value_dim, owns=owns)
        elif form == "gated":
            prefix = GatedPrefix(length, heads, key_dim, value_dim, query_heads)
        else:
            prefix = FlatPrefix(length, heads, key_dim, value_dim)
        owner = backbone.get_submodule(key.path)  # not the stage: it may be a sequence that calls what is in it
        owner.add_module(free_name(owner, "prefix"), prefix.to(read_weight(backbone, key)))
        if isinstance(prefix, GatedPrefix):
            attend_beside(attention, prefix.gated)
        else:
            attend_to(attention, prefix)


def _places(backbone: nn.Module) -> list[tuple[Site, Site, int, nn.Module]]:
    """Of each stage the sites of its keys and values, its number of heads of queries, and the module that attends.

    Raises RefusedError where the stage's own call of attention is not of that kind.
    """
    stages = as_backbone(backbone).stages
    sites = sites_for(backbone, (frozenset({"attn.k", "attn.v"}),))
    inside = [[site for site in sites if site.path.startswith(f"{stage}.")] for stage in stages]
    parents = [
        found[0].path.rpartition(".")[0] if found else stage for stage, found in zip(stages, inside, strict=True)
    ]
    shapes = attention_shapes(backbone, (*stages, *parents))
    places = []
    for index, (stage, found, parent) in enumerate(zip(stages, inside, parents, strict=True)):
        calls, of_parent = shapes[index], shapes[len(stages) + index]
        if len(calls) != 1:
            raise RefusedError(
                f"prefix: stage {stage} calls fused attention (scaled_dot_product_attention) {len(calls)} times in a "
                f"pass, and a prefix acts where each stage calls it once; attention in windows or with a kernel of its "
                f"own, or switched off, is not reached: lora and bottleneck are"
            )
        if len(found) != 2:
            raise RefusedError(f"prefix: stage {stage} has {len(found)} sites of attn.k and attn.v, not one of each")
        for site, shape in zip(found, (calls[0].key, calls[0].value), strict=True):
            _check_width(stage, site, shape, calls[0].query[-3])
        attention = parent if len(of_parent) == 1 else stage
        places.append((found[0], found[1], calls[0].query[-3], backbone.get_submodule(attention)))
    return places


def _check_width(stage: str, site: Site, shape: tuple[int, ...], query_heads: int) -> None:
    """Raises RefusedError where attention is given other heads than the site makes; grouped ones may be repeated."""
    heads = site.num_heads or 0
    if shape[-1] == site.head_dim and heads and shape[-3] in (heads, query_heads) and query_heads % heads == 0:
        return
    raise RefusedError(
        f"prefix: attention in {stage} gets {shape[-3]} heads of width {shape[-1]}, and {site.path} makes "
        f"{site.num_heads} of width {site.head_dim}; keys that are changed on their way take no prefix"
    )
