"""Which weights of a timm model play which role, by the types of its layers.

timm builds its models from shared layers, so that a type tells the role. Norms and convolutions are found in every
model; attention and MLPs where the type is known here. Convolutions that stand for linear layers (1 x 1) are `conv`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from timm.layers import evo_norm, filter_response_norm, norm
from timm.layers.attention import AttentionRope
from timm.layers.mlp import GatedMlp, GlobalResponseNormMlp, GluMlp, Mlp, SwiGLU
from timm.models.eva import EvaAttention
from timm.models.hiera import MaskUnitAttention
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from zoo_core.contracts import Site

__all__ = ["sites_of"]

# Attention whose fused `qkv` holds all queries, then all keys, then all values, head by head, and whose `proj` follows.
# By module of timm and class: they share no base. Elsewhere rows are ordered by head first, or queries are pooled.
FUSED = frozenset(
    {
        *("attention.Attention", "attention.AttentionRope", "beit.Attention", "cait.TalkingHeadAttn"),
        *("davit.WindowAttention", "eva.EvaAttention", "hiera.MaskUnitAttention", "hieradet_sam2.MultiScaleAttention"),
        *("metaformer.Attention", "nest.Attention", "swin_transformer.WindowAttention"),
        *("swin_transformer_v2.WindowAttention", "swin_transformer_v2_cr.WindowMultiHeadAttention"),
        *("vision_transformer_relpos.RelPosAttention", "vision_transformer_sam.Attention", "volo.Attention"),
    }
)
# Of these, the ones that read the weight of `qkv` and add a bias of their own, unless told to add it separately.
READ = frozenset({"beit.Attention", "eva.EvaAttention", "swin_transformer_v2.WindowAttention"})

NORMS = (
    *(nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.RMSNorm),
    *(norm.RmsNorm, norm.RmsNormFp32, norm.RmsNorm2d, norm.RmsNorm2dFp32),
    *(norm.SimpleNorm, norm.SimpleNormFp32, norm.SimpleNorm2d, norm.SimpleNorm2dFp32),
    *(evo_norm.EvoNorm2dB0, evo_norm.EvoNorm2dS0, filter_response_norm.FilterResponseNormTlu2d),
)


def sites_of(network: nn.Module, prefix: str) -> dict[str, list[Site]]:
    """The sites of each role, in the order of the module tree. prefix: goes before every path."""
    found: dict[str, list[Site]] = {}
    for name, module in network.named_modules():
        for role, site in _sites(f"{prefix}{name}", module):
            found.setdefault(role, []).append(site)
    return found


def _sites(path: str, module: nn.Module) -> Iterator[tuple[str, Site]]:
    kind = f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}"
    if isinstance(module, nn.Conv2d):
        yield "conv", Site(path=path, kind="conv")
    elif isinstance(module, NORMS):
        if "weight" in _own(module):  # some are built without one
            yield "norm", Site(path=path, kind="norm")
    elif isinstance(module, ParallelScalingBlock):
        yield from _parallel(path, module)
    elif isinstance(module, AttentionRope | EvaAttention) and "qkv" not in dict(module.named_children()):
        yield from _separate(path, module)
    elif kind in FUSED:
        yield from _fused(path, module, called=kind not in READ or _adds_bias_separately(module))
    else:
        yield from _mlp(path, module)


def _fused(path: str, module: nn.Module, *, called: bool) -> Iterator[tuple[str, Site]]:
    heads = int(module.heads if isinstance(module, MaskUnitAttention) else module.num_heads)  # type: ignore[arg-type]
    rows = module.get_parameter("qkv.weight").shape[0] // 3
    for place, role in enumerate(("attn.q", "attn.k", "attn.v")):
        site = Site(
            path=f"{path}.qkv",
            outputs=(place * rows, (place + 1) * rows),
            called=called,
            num_heads=heads,
            head_dim=rows // heads,
        )
        yield role, site
    yield "attn.out", Site(path=f"{path}.proj", num_heads=heads, head_dim=rows // heads)


def _adds_bias_separately(module: nn.Module) -> bool:
    return "q_bias" not in _own(module) or bool(module.qkv_bias_separate)


def _own(module: nn.Module) -> set[str]:
    """The names of a module's own parameters."""
    return {name for name, _ in module.named_parameters(recurse=False)}


def _separate(path: str, module: nn.Module) -> Iterator[tuple[str, Site]]:
    """Query, key and value of their own; there may be fewer heads of keys and values than of queries."""
    for role, leaf in (("attn.q", "q_proj"), ("attn.k", "k_proj"), ("attn.v", "v_proj"), ("attn.out", "proj")):
        head_dim = int(module.head_dim)  # type: ignore[arg-type]
        weight = module.get_parameter(f"{leaf}.weight")
        rows = weight.shape[1 if role == "attn.out" else 0]
        yield role, Site(path=f"{path}.{leaf}", num_heads=rows // head_dim, head_dim=head_dim)


def _parallel(path: str, module: ParallelScalingBlock) -> Iterator[tuple[str, Site]]:
    """One layer for the MLP's hidden units and attention's queries, keys and values; perhaps one for both outputs."""
    heads, head_dim, start = module.num_heads, module.head_dim, 0
    for role, rows in zip(("mlp.in", "attn.q", "attn.k", "attn.v"), module.in_split, strict=True):
        site = Site(path=f"{path}.in_proj", outputs=(start, start + rows))
        yield role, site if role == "mlp.in" else replace(site, num_heads=heads, head_dim=head_dim)
        start += rows
    if "out_proj" not in dict(module.named_children()):
        yield "attn.out", Site(path=f"{path}.attn_out_proj", num_heads=heads, head_dim=head_dim)
        yield "mlp.out", Site(path=f"{path}.mlp_out_proj")
    else:
        dim, all_columns = module.out_proj.weight.shape
        columns = (0, dim)
        yield "attn.out", Site(path=f"{path}.out_proj", inputs=columns, num_heads=heads, head_dim=head_dim)
        yield "mlp.out", Site(path=f"{path}.out_proj", inputs=(dim, all_columns))


def _mlp(path: str, module: nn.Module) -> Iterator[tuple[str, Site]]:
    if isinstance(module, SwiGLU):
        yield "mlp.gate", Site(path=f"{path}.fc1_g")
        yield "mlp.in", Site(path=f"{path}.fc1_x")
        yield "mlp.out", Site(path=f"{path}.fc2")
    elif isinstance(module, Mlp | GluMlp | GatedMlp | GlobalResponseNormMlp) and isinstance(module.fc1, nn.Linear):
        half = module.fc1.out_features // 2
        if isinstance(module, GluMlp):
            first, second = ("mlp.in", "mlp.gate") if module.gate_last else ("mlp.gate", "mlp.in")
            yield first, Site(path=f"{path}.fc1", outputs=(0, half))
            yield second, Site(path=f"{path}.fc1", outputs=(half, 2 * half))
        else:
            yield "mlp.in", Site(path=f"{path}.fc1")
        yield "mlp.out", Site(path=f"{path}.fc2")
