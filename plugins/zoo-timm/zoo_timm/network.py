"""A timm model under the backbone contract: features, pooling, preparation, stages and sites."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo_core.contracts import Features, FeatureSpec, Kind, Modality, Site, Target
from zoo_core.errors import RefusedError
from zoo_core.toolkit.features import masked_mean
from zoo_core.toolkit.preparations import ImagePreparation
from zoo_core.toolkit.prompts import PromptTokens
from zoo_timm.export import Build, write
from zoo_timm.families import Layout, family_of, is_safe_channels_last, stages_of
from zoo_timm.sites import sites_of

__all__ = ["TimmBackbone"]

HALVES = (torch.bfloat16, torch.float16)
KIND_OF_LAYOUT: Mapping[Layout, Kind] = {
    "map": "map",
    "map, channels last": "map",
    "tokens": "tokens",
    "pooled": "pooled",
}


class Whole(nn.Module):
    """A model that nobody has taken apart, as one module that a forward pass calls once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: float [B, 3, H, W]. Returns the features as timm lays them out."""
        x: Tensor = self.network.forward_features(pixel_values)  # type: ignore[operator]
        return x


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Features are what its forward_features gives, a map always [B, D, H, W]; pooled is its own forward_head before the
    classifier. A family that families.py does not take apart has one stage, the whole model.
    build_whole: gives the same model with so many classes, for `export`.
    """

    modality: Modality = "image"

    def __init__(
        self, network: nn.Module, architecture: str, preparation: ImagePreparation, build_whole: Build
    ) -> None:
        super().__init__()
        family = family_of(network, architecture)
        self.preparation = preparation
        self.build_whole = build_whole
        self.layout = family.layout
        self.has_head = family.has_head
        self.channels_last = family.layout == "map" and family.channels_last and is_safe_channels_last(network)
        stages = stages_of(network, family)
        self.model = network if stages else Whole(network)
        self.stages = tuple(f"model.{name}" for name in stages) or ("model",)
        dim, pooled_dim = int(network.num_features), int(network.head_hidden_size)  # type: ignore[arg-type]
        self.features = FeatureSpec(
            kind=KIND_OF_LAYOUT[family.layout],
            dim=dim,
            pooled_dim=pooled_dim if family.has_head and pooled_dim != dim else None,
        )
        prefix = "model." if stages else "model.network."
        self._sites = {role: tuple(found) for role, found in sites_of(network, prefix).items()}
        self._prompts = PromptTokens(network.num_prefix_tokens if isinstance(network, VisionTransformer) else 0)

    @property
    def network(self) -> nn.Module:
        """The timm model itself."""
        return self.model.network if isinstance(self.model, Whole) else self.model

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """inputs: `pixel_values`, float [B, 3, H, W]. Features are float32 where the weights have half precision."""
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        pixel_values = inputs["pixel_values"].to(self._dtype(), memory_format=layout)
        if isinstance(self.model, Whole):
            x = self.model(pixel_values)
        else:
            x = self.model.forward_features(pixel_values)  # type: ignore[operator]
        if self.layout == "map, channels last":
            x = x.permute(0, 3, 1, 2)
        elif self.layout == "pooled":
            x = self.network.forward_head(x, pre_logits=True)  # type: ignore[operator]
        if self._prompts.length:
            x = self._prompts.without(x)
        return Features(kind=self.features.kind, x=x.float() if x.dtype in HALVES else x)

    def pool(self, features: Features) -> Tensor:
        """timm's own pooling, with all that it does before the classifier: float [B, D]."""
        if self.layout == "pooled":
            return features.x
        if not self.has_head:
            return masked_mean(features)
        x = features.x.permute(0, 2, 3, 1) if self.layout == "map, channels last" else features.x
        pooled: Tensor = self.network.forward_head(x.to(self._dtype()), pre_logits=True)  # type: ignore[operator]
        return pooled.float() if pooled.dtype in HALVES else pooled

    @property
    def takes_prompts(self) -> bool:
        """Whether learned tokens may stand among its own: timm's VisionTransformer, to which positions come once."""
        return isinstance(self.network, VisionTransformer)

    def extend(self, prompt: nn.Module, length: int) -> int:
        """Learned tokens behind class token and registers, without a position: see zoo_core.contracts.Extendable.

        timm's pooling never sees them. Raises RefusedError for networks that are not a plain vision transformer.
        """
        if not self.takes_prompts:
            raise RefusedError(
                f"{type(self.network).__name__} of timm works on a map or in windows, or gives attention a bias or a "
                f"rotation for each place, and a learned token has no place; it works on VisionTransformer"
            )
        return self._prompts.add(self.get_submodule(self.stages[0]), prompt, length)

    def export(self, folder: Path, head: nn.Linear | None, target: Target) -> str:
        """Writes a folder that timm loads by itself, with a linear head as the classifier where timm has such a one."""
        return write(self, self.network, self.build_whole if self.has_head else None, folder, head, target)

    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def sites(self, role: str) -> tuple[Site, ...]:
        return self._sites.get(role, ())
