"""The modules of prompt tuning, what they start from, and the way to put them in front of the stages.

Axes: B batch, T real tokens, P learned ones, D width of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.contracts import Extendable, as_backbone
from zoo_core.errors import RefusedError
from zoo_core.toolkit.sites import free_name, read_weight
from zoo_core.toolkit.stages import boundary, capture, stage_modules

__all__ = ["PromptOf", "add_prompts"]


class PromptOf(nn.Module):
    """The learned tokens float [P, D] of one stage."""

    def __init__(self, tokens: Tensor, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens)
        self.dropout = nn.Dropout(dropout)
        self.start = 0

    def forward(self) -> Tensor:
        tokens: Tensor = self.dropout(self.tokens)
        return tokens

    def replace(self, stage: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A pre-hook of a later stage: from `start` on, these tokens instead of what the stage before made there."""
        x = args[0]
        tokens = self().to(x.dtype).expand(len(x), -1, -1)
        stop = self.start + tokens.shape[1]
        return (torch.cat([x[:, : self.start], tokens, x[:, stop:]], dim=1), *args[1:])


def add_prompts(backbone: nn.Module, length: int, *, deep: bool, dropout: float) -> None:
    """Learned tokens in front of the first stage, or of each; registered on the backbone as `prompt`, by stage.

    Raises RefusedError where the backbone takes none.
    """
    if not isinstance(backbone, Extendable):
        raise RefusedError("prompt: the backbone has no `extend`, so no learned tokens can stand among its own")
    stages = stage_modules(backbone)[: None if deep else 1]
    first = next(backbone.parameters())
    prompts = [PromptOf(tokens, dropout).to(first) for tokens in _starts(backbone, len(stages), length)]
    try:
        start = backbone.extend(prompts[0], length)
    except RefusedError as error:
        raise RefusedError(f"prompt: {error}") from None
    backbone.add_module(free_name(backbone, "prompt"), nn.ModuleList(prompts))
    for prompt, stage in zip(prompts[1:], stages[1:], strict=True):
        prompt.start = start
        stage.register_forward_pre_hook(prompt.replace)


def _starts(backbone: nn.Module, num_stages: int, length: int) -> Iterator[Tensor]:
    """What the learned tokens [P, D] of each stage start from."""
    source = as_backbone(backbone)
    words = [site for site in source.sites("embed") if site.kind == "embedding"] if source.modality == "text" else []
    if words:
        yield from _random_words(backbone, len(read_weight(backbone, words[0])), num_stages, length)
        return
    patches = source.sites("conv")
    values = read_weight(backbone, patches[0])[0].numel() if patches else source.features.dim
    bound = (6 / (values + source.features.dim)) ** 0.5
    for _ in range(num_stages):
        yield torch.empty(length, source.features.dim).uniform_(-bound, bound)


@torch.no_grad()
def _random_words(backbone: nn.Module, num_words: int, num_stages: int, length: int) -> Iterator[Tensor]:
    """What random words of the vocabulary are where they enter each stage, each a text of its own.

    The word stands last: prompts that are there already stand before it.
    """
    mask = torch.ones(length, 1, dtype=torch.long)
    inputs = {"input_ids": torch.randint(num_words, (length, 1)), "attention_mask": mask}
    if num_stages == 1:
        yield boundary(backbone, inputs, 0)[:, -1].clone()
        return
    first = boundary(backbone, inputs, 0)[:, -1].clone()
    with capture(backbone, range(num_stages - 1)) as states:
        backbone(inputs)
    yield first
    for stage in range(num_stages - 1):
        yield states[stage][:, -1]
