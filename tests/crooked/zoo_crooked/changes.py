"""The modules of the adapters in parts.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from zoo_core.model.learner import Learner
from zoo_core.toolkit.sites import SiteChange

HOARD: list[Learner] = []


class Affine(SiteChange):
    """y * scale + shift on the channels of a map."""

    mergeable = False

    def __init__(self, owner: nn.Conv2d) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(owner.out_channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(owner.out_channels, 1, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y * self.scale + self.shift


class NoBfloat16(Affine):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.lerp(y, torch.zeros_like(y), 1 - self.scale) + self.shift


class Busy(Affine):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.register_forward_hook(_look)
        return super().forward(x, y)


def _look(module: nn.Module, args: Any, output: Any) -> None:
    """Changes nothing."""


class Cached(Affine):
    cache: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            self.cache = None
            return super().forward(x, y)
        if self.cache is None:
            self.cache = self.scale.detach().clone()
        return y * self.cache


class Counting(Affine):
    calls = 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x, y * (1 + 0.1 * (self.calls % 2)))


class Deaf(Affine):
    def __init__(self, owner: nn.Conv2d) -> None:
        super().__init__(owner)
        self.one = nn.Parameter(torch.zeros(1))
        self.other = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) + self.one * self.other


class Drawn(Affine):
    def __init__(self, owner: nn.Conv2d) -> None:
        super().__init__(owner)
        self.register_buffer("drawn", torch.tensor(np.random.rand()))  # noqa: NPY002


class Early(Affine):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) + 1e-3


class Eager(Affine):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) if float(y.detach().abs().max()) < 1e30 else y


class Copying(Affine):
    def __init__(self, owner: nn.Conv2d) -> None:
        super().__init__(owner)
        self.register_buffer("original", owner.weight.detach().clone())


class Misfolded(Affine):
    mergeable = True

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y * (self.scale + self.shift)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = (self.scale + self.shift).float().to(weight).flatten()
        return weight * scale[:, None, None, None], bias if bias is None else bias * scale


class Moving(Affine):
    def __init__(self, owner: nn.Conv2d) -> None:
        super().__init__(owner)
        self.owner = (owner,)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training:
            self.owner[0].weight.data.mul_(0.999)
        return super().forward(x, y)


class Noisy(Affine):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x, y), 0.1, training=True)


class Remembering(Affine):
    mean = 0.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * float(y.detach().mean())
        return super().forward(x, y) - self.mean


class LenientLearner(Learner):
    def load_delta(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.delta()
        super().load_delta(own | {name: tensors[name] for name in own if name in tensors})


class WakefulLearner(Learner):
    def train(self, mode: bool = True) -> Self:
        nn.Module.train(self, mode)
        return self
