"""Learned tokens put among those that enter a stage, or in places kept for them, and taken out again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from zoo_core.contracts import Extendable
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.prompts import PromptTokens


class Learned(nn.Module):
    """Tokens float [num, 4] of its own."""

    def __init__(self, num: int, first: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(first + torch.arange(num * 4.0).view(num, 4))

    def forward(self) -> Tensor:
        return self.tokens


X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("start", [0, 2])
def test_they_stand_behind_the_first_tokens_and_are_taken_out_again(start: int) -> None:
    stage, prompts, prompt = nn.Identity(), PromptTokens(start), Learned(3, 100)
    assert prompts.add(stage, prompt, 3) == start
    found = stage(X)
    assert torch.equal(found, torch.cat([X[:, :start], prompt.tokens.expand(2, -1, -1), X[:, start:]], dim=1))
    assert torch.equal(prompts.without(found), X)


def test_kept_places_are_filled() -> None:
    stage, prompts, prompt = nn.Identity(), PromptTokens(1, reserved=True), Learned(3, 100)
    prompts.add(stage, prompt, 3)
    found = stage(X)
    assert torch.equal(found, torch.cat([X[:, :1], prompt.tokens.expand(2, -1, -1), X[:, 4:]], dim=1))
    assert torch.equal(prompts.without(found), torch.cat([X[:, :1], X[:, 4:]], dim=1))


def test_later_ones_stand_behind_earlier_ones() -> None:
    stage, prompts, one, other = nn.Identity(), PromptTokens(1), Learned(3, 100), Learned(1, 200)
    assert (prompts.add(stage, one, 3), prompts.add(stage, other, 1)) == (1, 4)
    assert prompts.length == 4
    found = stage(X)
    assert torch.equal(found[0, 1:5], torch.cat([one.tokens, other.tokens]))
    assert torch.equal(prompts.without(found), X)


def test_without_any_nothing_is_touched() -> None:
    assert PromptTokens(2).without(X) is X


def test_they_take_the_type_of_the_others_and_gradients_reach_them() -> None:
    stage, prompts, prompt = nn.Identity(), PromptTokens(), Learned(3, 0)
    prompts.add(stage, prompt, 3)
    assert stage(X.bfloat16()).dtype == torch.bfloat16
    stage(X).sum().backward()
    assert prompt.tokens.grad is not None
    assert torch.equal(prompt.tokens.grad, torch.full((3, 4), 2.0))


def test_a_deep_copy_calls_its_own() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.prompt, self.prompts = nn.Identity(), Learned(1, 100), PromptTokens()
            self.prompts.add(self.stage, self.prompt, 1)

    holder = Holder()
    twin = copy.deepcopy(holder)
    with torch.no_grad():
        twin.prompt.tokens.zero_()
    assert torch.equal(twin.stage(X)[:, 0], torch.zeros(2, 4))
    assert not torch.equal(holder.stage(X)[:, 0], torch.zeros(2, 4))


def test_a_backbone_without_extend_takes_none() -> None:
    assert not isinstance(ToyBackbone("tokens"), Extendable)
