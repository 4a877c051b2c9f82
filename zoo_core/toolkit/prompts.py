"""Learned tokens among those that enter a backbone's first stage: what its `extend` is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PromptTokens"]


class PromptTokens:
    """The learned tokens of one backbone, in the order in which they were added: none, until its `extend` is called.

    Axes: B batch, T real tokens, P learned ones, D width. start: how many of the real tokens stand before them, such as
    a class token and registers. reserved: whether the model has P places for them there, which they fill; else they are
    put in between. The prompts are registered by who adds them; here they are only called.
    """

    def __init__(self, start: int = 0, *, reserved: bool = False) -> None:
        self.start = start
        self.reserved = reserved
        self.length = 0
        self._prompts: list[nn.Module] = []

    def add(self, stage: nn.Module, prompt: nn.Module, length: int) -> int:
        """From now on a prompt's tokens, float [length, D], enter the first stage behind those that are there.

        Returns where the first of them stands.
        """
        if not self._prompts:
            stage.register_forward_pre_hook(self.join)
        self._prompts.append(prompt)
        self.length += length
        return self.start + self.length - length

    def join(self, stage: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A pre-hook of the first stage: what enters it becomes [B, T + P, D]."""
        x_BTD: Tensor = args[0]
        tokens = torch.cat([prompt() for prompt in self._prompts]).to(x_BTD.dtype)
        rest = self.start + (self.length if self.reserved else 0)
        parts = [x_BTD[:, : self.start], tokens.expand(len(x_BTD), -1, -1), x_BTD[:, rest:]]
        return (torch.cat(parts, dim=1), *args[1:])

    def without(self, x_BTD: Tensor) -> Tensor:
        """The real tokens alone: [B, T + P, D] becomes [B, T, D]."""
        if not self.length:
            return x_BTD
        return torch.cat([x_BTD[:, : self.start], x_BTD[:, self.start + self.length :]], dim=1)
