"""Which weights of a timm model play which role, by the types of its layers.

timm builds its models from shared layers, so that a type tells the role: rows of a fused `qkv` are query, key and value
one after the other in every attention listed here.
"""

from __future__ import annotations

from collections.abc import Iterator

from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import nn

from zoo_core.contracts import Site

__all__ = ["sites_of"]


def sites_of(network: nn.Module, prefix: str) -> dict[str, list[Site]]:
    """The sites of each role, in the order of the module tree. prefix: goes before every path."""
    found: dict[str, list[Site]] = {}
    for name, module in network.named_modules():
        for role, site in _sites(f"{prefix}{name}", module):
            found.setdefault(role, []).append(site)
    return found


def _sites(path: str, module: nn.Module) -> Iterator[tuple[str, Site]]:
    if isinstance(module, nn.Conv2d):
        yield "conv", Site(path=path, kind="conv")
    elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm | nn.RMSNorm):
        yield "norm", Site(path=path, kind="norm")
    elif isinstance(module, Mlp) and isinstance(module.fc1, nn.Linear):
        yield "mlp.in", Site(path=f"{path}.fc1")
        yield "mlp.out", Site(path=f"{path}.fc2")
    elif isinstance(module, Attention):
        heads, head_dim = module.num_heads, module.head_dim
        rows = heads * head_dim
        for place, role in enumerate(("attn.q", "attn.k", "attn.v")):
            rows_of = (place * rows, (place + 1) * rows)
            yield role, Site(path=f"{path}.qkv", outputs=rows_of, num_heads=heads, head_dim=head_dim)
        yield "attn.out", Site(path=f"{path}.proj", num_heads=heads, head_dim=head_dim)
