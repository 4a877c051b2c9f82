"""The modules of low-rank updates, for linear layers, rows of them, and convolutions."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from zoo_core.contracts import Site
from zoo_core.errors import RefusedError, UsageError
from zoo_core.sites import SiteChange, read_weight

__all__ = ["LowRank", "largest_rank"]


class LowRank(SiteChange):
    """y + scale * B A x. A, B: linear layers without bias, or convolutions where the layer is one.

    start: what W already holds of B A, so that PiSSA begins where the base is; its A and B are not persistent, since
    the weights of the base decide them.
    """

    weight_only: ClassVar[bool] = True

    def __init__(
        self,
        layer: nn.Module,
        site: Site,
        weight: Tensor,
        r: int,
        scale: float,
        dropout: float,
        init: Literal["lora", "pissa"],
    ) -> None:
        super().__init__()
        groups = _groups(layer)
        outputs, inputs = weight.shape[0] // groups, weight[0].numel()  # of one group
        if r > min(outputs, inputs):
            raise RefusedError(
                f"lora(r={r}): {site.path} has {inputs} inputs and {outputs} outputs"
                f"{' in each group' if groups > 1 else ''}; allowed there: 1 to {min(outputs, inputs)}"
            )
        if dropout and not site.called:
            raise UsageError(f"lora(dropout={dropout:g}): {site.path} is read without a call; allowed there: 0")
        self.scale = scale
        self.groups = groups
        self.dropout = nn.Dropout(dropout) if dropout else None
        if isinstance(layer, nn.Conv2d):
            self.A: nn.Module = nn.Conv2d(
                layer.in_channels,
                r * groups,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                groups,
                bias=False,
                padding_mode=layer.padding_mode,
            )
            self.B: nn.Module = nn.Conv2d(r * groups, layer.out_channels, 1, groups=groups, bias=False)
        elif site.kind == "linear":
            self.A = nn.Linear(inputs, r, bias=False)
            self.B = nn.Linear(r, outputs, bias=False)
        else:
            raise RefusedError(f"lora: {site.path} is a {type(layer).__name__}; it works on linear layers and Conv2d")
        nn.init.zeros_(self.B.weight)
        self.to(weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout is not None:
            x = self.dropout(x)
        change: Tensor = self.B(self.A(x))
        return y + self.scale * change

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * self.update().view_as(weight), bias

    def update(self) -> Tensor:
        """B A as [O, I] or [O, I / groups, *R]."""
        a: Tensor = self.A.weight.flatten(1).unflatten(0, (self.groups, -1))  # type: ignore[operator]
        b: Tensor = self.B.weight.flatten(1).unflatten(0, (self.groups, -1))  # type: ignore[operator]
        return (b @ a).flatten(0, 1)


def largest_rank(backbone: nn.Module, site: Site) -> int:
    """The rank beyond which an update of this weight gains nothing; in each group of a convolution."""
    weight = read_weight(backbone, site)
    return min(weight.shape[0] // _groups(backbone.get_submodule(site.path)), weight[0].numel())


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1
