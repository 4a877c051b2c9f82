"""The modules of ia3 and ssf: vectors that scale, and perhaps shift, what a layer gives or is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from torch import Generator, Tensor, nn

from zoo_core.contracts import Site, as_backbone
from zoo_core.errors import RefusedError
from zoo_core.toolkit.sites import SiteChange, channels_first

__all__ = ["InputScale", "OutputScale", "RowScale", "whole_rows"]


class OutputScale(SiteChange):
    """scale * y + shift. scale, shift: [O], one and zero; no shift unless `shifts`, which takes a layer with a bias."""

    shift: Tensor | None

    def __init__(self, layer: nn.Module, weight: Tensor, *, shifts: bool) -> None:
        super().__init__()
        self.channels_first = channels_first(layer)
        self.scale = nn.Parameter(weight.new_ones(weight.shape[0]))
        self.register_parameter("shift", nn.Parameter(weight.new_zeros(weight.shape[0])) if shifts else None)

    def draw(self, generator: Generator) -> None:
        """SSF's start as published: scale from N(1, 0.02^2), shift from N(0, 0.02^2)."""
        nn.init.normal_(self.scale, 1, 0.02, generator=generator)
        if self.shift is not None:
            nn.init.normal_(self.shift, 0, 0.02, generator=generator)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shape = (-1, *[1] * (y.ndim - 2)) if self.channels_first else (-1,)
        changed = y * self.scale.view(shape)
        if self.shift is not None:
            changed = changed + self.shift.view(shape)
        return changed.to(y.dtype)  # under autocast the layer gave fewer bits than the vectors have

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight = _scaled_rows(weight, self.scale)
        if bias is None:
            return weight, None
        bias = bias * self.scale
        return weight, bias if self.shift is None else bias + self.shift


class RowScale(SiteChange):
    """The layer with the weight scale * W, row by row, where it is read without a call. scale: [O], one."""

    weight_only: ClassVar[bool] = True

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(weight.new_ones(weight.shape[0]))

    def draw(self, generator: Generator) -> None:
        """From N(1, 0.02^2)."""
        nn.init.normal_(self.scale, 1, 0.02, generator=generator)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return _scaled_rows(weight, self.scale), bias


class InputScale(SiteChange):
    """The layer on scale * x. scale: [I], one. Raises RefusedError for what is no linear layer."""

    changes_inputs: ClassVar[bool] = True

    def __init__(self, layer: nn.Module, site: Site, weight: Tensor) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise RefusedError(f"ia3: {site.path} is a {type(layer).__name__}; it scales what linear layers are given")
        self.scale = nn.Parameter(weight.new_ones(weight.shape[1]))

    def inputs(self, x: Tensor) -> Tensor:
        return (x * self.scale).to(x.dtype)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.scale, bias


def whole_rows(backbone: nn.Module, roles: Iterable[str]) -> list[Site]:
    """The sites of the roles by what they give: of several that share rows of one layer, columns apart, one."""
    sites = [replace(site, inputs=None) for role in roles for site in as_backbone(backbone).sites(role)]
    first: dict[tuple[str, str, tuple[int, int] | None], Site] = {}
    for site in sites:
        first.setdefault((site.path, site.parameter, site.outputs), site)
    return list(first.values())


def _scaled_rows(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * scale.view(-1, *[1] * (weight.ndim - 1))
