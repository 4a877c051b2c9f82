"""Which tokens of a model's last hidden state are real, from the mask of its inputs; and the positions of words."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from zoo_transformers.families import Mask, Prompts

__all__ = ["feature_mask", "word_positions"]


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


def word_positions(ids: Tensor, how: Prompts, padding: int | None) -> Tensor:
    """int64 [1, T] or [B, T]: the numbers of the position embeddings that a model adds to words, as it counts itself.

    ids: int64 [B, T]. padding: the number of the padding's word.
    """
    if how.positions == "counted" or padding is None:
        return torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    real = ids.ne(padding).long()
    return real.cumsum(dim=1) * real + padding
