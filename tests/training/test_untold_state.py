"""What a module keeps beside its tensors is seen to change, and only that."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from zoo_core.training.untold_state import changes, untold_state


class Norm(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(3)
        self.seen = [1, 2]


class Keeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Norm()
        self.dice, self.numbers = random.Random(0), np.random.default_rng(0)
        self.drawn = torch.Generator()
        self.last = torch.zeros(3)
        self.act = lambda x: x


@pytest.mark.parametrize(
    ("use", "changed"),
    [
        (lambda module: module.inner.seen.append(3), ["inner.seen"]),
        (lambda module: setattr(module, "new", 1), ["new"]),
        (lambda module: module.dice.random(), ["dice"]),
        (lambda module: module.numbers.random(), ["numbers"]),
        (lambda module: torch.rand(2, generator=module.drawn), ["drawn"]),
        (lambda module: module.last.add_(1), ["last"]),
        (lambda module: random.random(), ["a generator of the whole process"]),
        (lambda module: np.random.rand(), ["a generator of the whole process"]),  # noqa: NPY002 - a plugin may
        (lambda module: torch.rand(2), ["a generator of the whole process"]),
        (lambda module: module.inner(torch.ones(4, 3)), []),
        (lambda module: module.eval(), []),
    ],
)
def test_each_change_is_named_and_tensors_of_the_state_are_none(
    use: Callable[[Keeper], object], changed: list[str]
) -> None:
    module = copy.deepcopy(Keeper())
    before = untold_state(module)
    use(module)
    assert changes(before, untold_state(module)) == changed
