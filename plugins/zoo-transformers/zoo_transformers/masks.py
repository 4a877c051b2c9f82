"""The mask of a model's inputs as a mask of its features: which tokens of the last hidden state are real."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from zoo_transformers.families import Mask

__all__ = ["feature_mask"]


def feature_mask(rule: Mask, mask: Tensor | None, num_tokens: int, config: PreTrainedConfig) -> Tensor | None:
    """bool [B, T] with at least one true per row, or None where every token is real.

    mask: int64 [B, N] of the inputs, 1 = real, real ones first. num_tokens: T.
    """
    if rule == "none" or mask is None:
        return None
    if rule == "tokens":
        return mask.bool()
    lengths = mask.sum(dim=1)
    if rule == "halved":  # Whisper's second convolution has a stride of 2
        lengths = (lengths + 1) // 2
    else:  # wav2vec2's convolutions, without padding
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            lengths = (lengths - kernel).div(stride, rounding_mode="floor") + 1
    return torch.arange(num_tokens, device=mask.device) < lengths.clamp(min=1).unsqueeze(1)
