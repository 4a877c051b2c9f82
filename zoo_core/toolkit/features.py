"""Converts features into poorer kinds, map -> tokens -> pooled. The pooling is the backbone's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from zoo_core.contracts import FEATURE_KINDS, Features, Kind
from zoo_core.errors import IncompatibleError

__all__ = ["Pooled", "channels_first", "convert", "joined", "masked_mean", "to_tokens"]


def convert(features: Features, kind: Kind, pool: Callable[[Features], Tensor]) -> Features:
    """Converts features into the wanted kind.

    pool: the backbone's own pooling, features -> float [B, D].
    Raises IncompatibleError if the features are already poorer than the wanted kind.
    """
    if features.kind == kind:
        return features
    if FEATURE_KINDS.index(features.kind) > FEATURE_KINDS.index(kind):
        raise IncompatibleError(f"{features.kind} features cannot become {kind}; only {' > '.join(FEATURE_KINDS)}")
    return to_tokens(features) if kind == "tokens" else Features(kind="pooled", x=pool(features))


class Pooled(nn.Module):
    """Pooled features as they are, float [B, D]: a head that computes nothing."""

    def forward(self, features: Features) -> Tensor:
        return features.x


def to_tokens(features: Features) -> Features:
    """Turns a map [B, D, H, W] into tokens [B, H*W, D] in row-major order. Tokens stay as they are."""
    if features.kind == "tokens":
        return features
    if features.kind != "map":
        raise IncompatibleError(f"{features.kind} features cannot become tokens; only a map can")
    return replace(features, kind="tokens", x=features.x.flatten(2).transpose(1, 2))


def masked_mean(features: Features) -> Tensor:
    """The mean over the real tokens, or over all positions of a map.

    features: a map [B, D, H, W], or tokens [B, T, D] whose mask has at least one True per row.
    Returns float [B, D], same dtype as x.
    Source: Reimers & Gurevych 2019, section 3 (tokens).
    """
    if features.kind == "map":
        return features.x.mean(dim=(2, 3))
    x_BTD = to_tokens(features).x
    if features.mask is None:
        return x_BTD.mean(dim=1)
    real_BT1 = features.mask.unsqueeze(-1)  # filled, not multiplied: padding may hold what is not finite
    return x_BTD.masked_fill(~real_BT1, 0).sum(dim=1) / real_BT1.sum(dim=1)


def channels_first(state: Tensor, stage: nn.Module) -> bool:
    """Whether a hidden state with four axes is [B, D, H, W] rather than [B, H, W, D].

    stage: the module whose output the state is. With a square picture, the axis of another size than the two equal ones
    holds the channels. If the sizes do not tell, a stage that contains convolutions has its channels first.
    """
    _, first, second, third = state.shape
    has_convolution = any(isinstance(module, nn.Conv2d) for module in stage.modules())
    return has_convolution if (first == second) == (second == third) else second == third


def joined(parts: list[Features]) -> Features:
    """Joins the features of several batches. Tokens are padded to the longest, and the mask excludes the padding."""
    kind = parts[0].kind
    if kind != "tokens":
        return Features(kind=kind, x=torch.cat([part.x for part in parts]))
    longest = max(part.x.shape[1] for part in parts)
    xs, masks = [], []
    for part in parts:
        missing = longest - part.x.shape[1]
        mask = part.mask if part.mask is not None else part.x.new_ones(part.x.shape[:2], dtype=torch.bool)
        xs.append(torch.nn.functional.pad(part.x, (0, 0, 0, missing)))
        masks.append(torch.nn.functional.pad(mask, (0, missing)))
    return Features(kind=kind, x=torch.cat(xs), mask=torch.cat(masks))
