"""What timm does not say of its models: what their features are laid out as, and which modules are their stages.

By module of timm, since all models of one module share their code. A module that is not listed has one stage, the
whole model, and features that are a map [B, D, H, W].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

__all__ = ["FAMILIES", "VARIANTS", "Family", "Layout", "family_of", "is_safe_channels_last", "stages_of"]

NUM_SAFE_CHANNELS = 16
Layout = Literal["map", "map, channels last", "tokens", "pooled"]


@dataclass(frozen=True)
class Family:
    """layout: of what forward_features gives; pooled: lists of tensors that only timm's own head can join.

    stages: patterns of module names, of which `*` stands for one part; none: nobody has taken the family apart.
    only: the type of the modules that are stages, where a pattern also fits others.
    has_head: whether timm's forward_head pools; encoders for language models have none and are pooled by the mean.
    channels_last: whether pictures of a map lie in memory as [B, H, W, C], in which most convolutions are faster.
    """

    layout: Layout
    stages: tuple[str, ...] = ()
    only: type[nn.Module] = nn.Module
    has_head: bool = True
    channels_last: bool = True


def _same(layout: Layout, stages: str, *modules: str) -> Iterator[tuple[str, Family]]:
    for module in modules:
        yield module, Family(layout, (stages,))


FAMILIES: Mapping[str, Family] = {
    **dict(_same("tokens", "blocks.*", "beit", "cait", "convit", "deit", "eva", "hiera", "mlp_mixer", "naflexvit")),
    **dict(_same("tokens", "blocks.*", "tnt", "vision_transformer", "vision_transformer_hybrid")),
    **dict(_same("tokens", "blocks.*", "vision_transformer_relpos", "vitamin", "xcit")),
    **dict(_same("tokens", "stages.*.blocks.*", "efficientformer", "mvitv2")),
    **dict(_same("map", "layer[1-4].*", "res2net", "resnest", "resnet", "senet", "sknet")),
    **dict(_same("map", "blocks.*.*", "efficientnet", "ghostnet", "hardcorenas", "mobilenetv3", "repghost")),
    **dict(_same("map", "stages.*.blocks.*", "convnext", "cspnet", "davit", "edgenext", "efficientformer_v2")),
    **dict(_same("map", "stages.*.blocks.*", "efficientvit_mit", "efficientvit_msra", "fasternet", "fastvit")),
    **dict(_same("map", "stages.*.blocks.*", "iformer", "inception_next", "maxxvit", "metaformer", "nextvit")),
    **dict(_same("map", "stages.*.blocks.*", "pvt_v2", "repvit", "resnetv2", "shvit", "swiftformer")),
    **dict(_same("map", "stages.*.blocks.*", "swin_transformer_v2_cr", "tiny_vit", "vovnet")),
    **dict(_same("map", "stages.*.*", "byoanet", "byobnet", "cpubone", "csatv2", "cspnext", "lcnetv2", "lowformer")),
    **dict(_same("map", "stages.*.*", "mobilevit", "starnet")),
    **dict(_same("map", "stages.*", "gcvit", "hgnet")),
    **dict(_same("map, channels last", "layers.*.blocks.*", "swin_transformer", "swin_transformer_v2")),
    **dict(_same("map, channels last", "stages.*.blocks.*", "mambaout", "sequencer")),
    "coat": Family("pooled"),
    "convmixer": Family("map", ("blocks.*",)),
    "crossvit": Family("pooled", ("blocks.*",)),
    "deepseek_vit": Family("map, channels last"),
    "densenet": Family("map", ("features.denseblock*", "features.transition*")),
    "dpn": Family("map", ("features.conv*_*",)),
    "efficientvim": Family("pooled"),
    "focalnet": Family("map", ("layers.*.blocks.*",)),
    "gemma4_vit": Family("tokens"),
    "hieradet_sam2": Family("map, channels last", ("blocks.*",)),
    "inception_v3": Family("map", ("Mixed_*",)),
    "inception_v4": Family("map", ("features.*",)),
    "levit": Family("tokens", ("stages.*.blocks.*",)),
    "nest": Family("map", ("levels.*",)),
    "nfnet": Family("map", ("stages.*.*",), channels_last=False),
    "pit": Family("tokens"),
    "qwen3_vit": Family("map, channels last"),
    "rdnet": Family("map", ("dense_stages.*",)),
    "regnet": Family("map", ("s[1-4].b*",)),
    "rexnet": Family("map", ("features.*",)),
    "selecsls": Family("map", ("features.*",)),
    "tresnet": Family("map", ("body.layer*.*",)),
    "twins": Family("tokens", ("blocks.*.*",)),
    "vgg": Family("map", ("features.*",), nn.Conv2d, channels_last=False),
    "vision_transformer_sam": Family("map", ("blocks.*",)),
    "visformer": Family("map", ("stage*.*",)),
    "volo": Family("tokens"),  # adds its positions between two stages, of the width that is there
    "xception": Family("map", ("block*",)),
    "xception_aligned": Family("map", ("blocks.*",)),
}

# Architectures that differ from the others of their module, by name.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "coat_lite_*": {"layout": "tokens"},
    "deepseek_vit_*_align": {"layout": "tokens"},
    "levit_conv_*": {"layout": "map"},
    "qwen3_vit_*_merge": {"layout": "tokens"},
    "*_vit_*_enc": {"has_head": False},
    "mobilenetv5_300m_enc": {"has_head": False},
}


def family_of(network: nn.Module, architecture: str) -> Family:
    """The family of a timm model."""
    family = FAMILIES.get(type(network).__module__.rpartition(".")[2], Family("map"))
    for pattern, changes in VARIANTS.items():
        if fnmatchcase(architecture, pattern):
            family = replace(family, **changes)
    return family


def stages_of(network: nn.Module, family: Family) -> tuple[str, ...]:
    """The stages of a model by name, in the order in which the model holds them."""
    return tuple(
        name
        for name, module in network.named_modules()
        if isinstance(module, family.only) and any(_fits(name, stage) for stage in family.stages)
    )


def is_safe_channels_last(network: nn.Module) -> bool:
    """Whether no convolution of 1 x 1 with a stride reads fewer than 16 channels.

    On processors its weights' gradient is written past its workspace in that layout (oneDNN issue 6035), which ends in
    wrong gradients or the process.
    """
    return not any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < NUM_SAFE_CHANNELS
        for module in network.modules()
    )


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
