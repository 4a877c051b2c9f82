"""Learned tokens among those that enter the first stage of a backbone. Backbones implement `extend` with this."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PromptTokens"]


class PromptTokens:
    """The learned tokens of one backbone, in the order in which they were added. At first there are none.

    Axes: B batch, T real tokens, P learned tokens, D width.
    start: how many real tokens come before the learned ones, such as a class token and registers.
    reserved: whether the model already has P places there, which the learned tokens fill. Otherwise they are inserted.
    The adapter that adds a prompt registers it as its own module; this class only calls it.
    """

    def __init__(self, start: int = 0, *, reserved: bool = False) -> None:
        self.start = start
        self.reserved = reserved
        self.length = 0
        self._prompts: list[nn.Module] = []

    def add(self, stage: nn.Module, prompt: nn.Module, length: int) -> int:
        """Inserts the tokens of a prompt, float [length, D], behind those that are already there, from now on.

        Returns the position of the first of them among the tokens that enter each stage.
        """
        if not self._prompts:
            stage.register_forward_pre_hook(self.join)
        self._prompts.append(prompt)
        self.length += length
        return self.start + self.length - length

    def join(self, stage: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A pre-hook of the first stage. It turns the tokens that enter it into [B, T + P, D]."""
        x_BTD: Tensor = args[0]
        tokens = torch.cat([prompt() for prompt in self._prompts]).to(x_BTD.dtype)
        rest = self.start + (self.length if self.reserved else 0)
        parts = [x_BTD[:, : self.start], tokens.expand(len(x_BTD), -1, -1), x_BTD[:, rest:]]
        return (torch.cat(parts, dim=1), *args[1:])

    def without(self, x_BTD: Tensor) -> Tensor:
        """Removes the learned tokens: [B, T + P, D] becomes [B, T, D]."""
        if not self.length:
            return x_BTD
        return torch.cat([x_BTD[:, : self.start], x_BTD[:, self.start + self.length :]], dim=1)
