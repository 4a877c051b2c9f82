"""The modules of low-rank updates: for linear layers, rows and columns of them, and convolutions.

Axes: I inputs and O outputs of a site, g groups of a convolution (1 elsewhere), r rank, K inputs of one group times the
size of the kernel.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from zoo_core.contracts import Site
from zoo_core.errors import RefusedError
from zoo_core.toolkit.sites import SiteChange, bias_of, example_for, read_weight, weight_of

__all__ = ["Decomposed", "LowRank", "largest_rank"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Undrawn:
    """A layer of torch's that takes no draws from the global generator: the update that it belongs to draws it."""

    def reset_parameters(self) -> None: ...


class _Linear(_Undrawn, nn.Linear): ...


class _Conv1d(_Undrawn, nn.Conv1d): ...


class _Conv2d(_Undrawn, nn.Conv2d): ...


class _Conv3d(_Undrawn, nn.Conv3d): ...


class Update(SiteChange):
    """Abstract: owns A and B of an update scale * B A, linear layers, or convolutions where the layer is one.

    A: weight [r, I], or [g r, I / g, *kernel] with the layer's kernel, stride, padding and dilation; drawn uniformly
    with 1 / sqrt(K) as bound, as torch draws a linear layer's. B: weight [O, r] or [O, r, 1, ...], zero.
    layer: that owns the weight; weight: of the site, as `read_weight` gives it. dropout: of what A is given.
    label: how errors name it. Raises RefusedError for a layer of another kind, or one that has no room for r.
    """

    weight_only: ClassVar[bool] = True

    def __init__(
        self,
        layer: nn.Module,
        site: Site,
        weight: Tensor,
        *,
        r: int,
        scale: float,
        dropout: float,
        label: str,
        generator: Generator,
    ) -> None:
        super().__init__()
        if site.kind not in ("linear", "conv") or not (weight.ndim == 2 or isinstance(layer, CONVOLUTIONS)):
            raise RefusedError(
                f"{label}: {site.path} is a {type(layer).__name__}; it works on linear layers and convolutions"
            )
        groups = _groups(layer)
        outputs, inputs = weight.shape[0] // groups, weight[0].numel()
        if r > min(outputs, inputs):
            raise RefusedError(
                f"{label}: {site.path} has {inputs} inputs and {outputs} outputs"
                f"{' in each group' if groups > 1 else ''}; allowed there: r from 1 to {min(outputs, inputs)}"
            )
        if groups > 1 and (site.outputs or site.inputs):
            raise RefusedError(f"{label}: {site.path} is a part of a convolution with groups; name other roles")
        self.scale = scale
        self.groups = groups
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.A, self.B = _layers(layer, weight, r)
        self.pads_to_same = _pads_to_same(layer, self.A, f"{label}: {site.path}")
        nn.init.kaiming_uniform_(_weight(self.A), a=math.sqrt(5), generator=generator)
        nn.init.zeros_(_weight(self.B))

    def change(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """b a x, for weights of the shapes of those of A and B."""
        if isinstance(self.A, nn.Linear):
            return F.linear(F.linear(x, a), b)
        within: Tensor = self.A._conv_forward(self.padded(x), a, None)  # type: ignore[operator]
        changed: Tensor = self.B._conv_forward(within, b, None)  # type: ignore[operator]
        return changed

    def dropped(self, x: Tensor) -> Tensor:
        dropped: Tensor = x if self.dropout is None else self.dropout(x)
        return dropped

    def padded(self, x: Tensor) -> Tensor:
        """x, with zeros around it where the layer pads to ceil(size / stride) itself, the larger share behind."""
        return _same(x, self.A) if self.pads_to_same else x

    def grouped(self, weight: Tensor) -> Tensor:
        """A weight [g n, ...] as matrices [g, n, ...], those of one group side by side."""
        matrices: Tensor = weight.flatten(1).unflatten(0, (self.groups, -1))
        return matrices

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """b a as [O, K], for weights of the shapes of those of A and B."""
        return (self.grouped(b) @ self.grouped(a)).flatten(0, 1)


class LowRank(Update):
    """y + scale * B A x; after `decompose` y + scale * (B A - B0 A0) x, where B0 A0 is what B A starts from.

    A0, B0: buffers, stored along, since a decomposition has other bits on another machine.
    """

    A0: Tensor | None
    B0: Tensor | None

    def __init__(self, layer: nn.Module, site: Site, weight: Tensor, **arguments: Any) -> None:
        super().__init__(layer, site, weight, **arguments)
        self.register_buffer("A0", None)
        self.register_buffer("B0", None)

    @torch.no_grad()
    def decompose(self, weight: Tensor, *, known: bool) -> None:
        """PiSSA's start: scale * B A is what the r largest singular values of the weight make, in each group.

        known: that the numbers are about to be loaded, so that only their place is made.
        """
        a, b = _weight(self.A), _weight(self.B)
        if known:
            nn.init.zeros_(a)
        else:
            matrices = self.grouped(weight.detach())
            u, s, v = torch.linalg.svd(matrices.to(_at_least_float32(weight)), full_matrices=False)
            r = a.shape[0] // self.groups
            roots = (s[:, :r] / self.scale).sqrt()
            a.copy_((roots[:, :, None] * v[:, :r]).flatten(0, 1).view_as(a))
            b.copy_((u[:, :, :r] * roots[:, None]).flatten(0, 1).view_as(b))
        self.A0, self.B0 = a.clone(), b.clone()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        # A is what is scaled: it is small, and the update as large as y, and as its gradient
        change = self.change(self.dropped(x), self.scale * _weight(self.A), _weight(self.B))
        if self.A0 is not None and self.B0 is not None:
            change = change - self.change(x, self.scale * self.A0, self.B0)
        return y + change

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        product = self.product(_weight(self.A), _weight(self.B))
        if self.A0 is not None and self.B0 is not None:
            product = product - self.product(self.A0, self.B0)
        return weight + self.scale * product.view_as(weight), bias

    def products(self) -> tuple[tuple[Tensor, Tensor, float], ...]:
        if self.groups > 1:
            return ()
        added = (_weight(self.B), _weight(self.A), self.scale)
        return (added,) if self.A0 is None or self.B0 is None else (added, (self.B0, self.A0, -self.scale))


class Decomposed(Update):
    """The layer with the weight m (W + scale B A) / n, where n holds the norms of the rows of W + scale B A.

    m: trained, [O], the norms of W at the start; n is a constant to the gradient. The rows of a convolution are its
    kernels [I / g, *kernel]. Nothing of the size of W is made on the way.
    """

    reads_weight: ClassVar[bool] = True

    def __init__(self, layer: nn.Module, site: Site, weight: Tensor, *, label: str, **arguments: Any) -> None:
        super().__init__(layer, site, weight, label=label, **arguments)
        if site.called and not self.multiplies(layer, site):
            raise RefusedError(
                f"{label}: {site.path} is a {type(layer).__name__}, which does not use its weight as it "
                f"stands; lora works there"
            )
        self.m = nn.Parameter(self.norms(weight.detach()))

    def act_on(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        weight, bias = weight_of(layer, self.site), bias_of(layer, self.site)
        factors = self.factors(weight)
        shape = (-1, *[1] * (y.ndim - 2)) if isinstance(layer, CONVOLUTIONS) else (-1,)
        if self.site.inputs is not None:  # y is more than this weight's own share
            straight = self.times(layer, x, weight)
        else:
            straight = y if bias is None else y - bias.view(shape).to(y.dtype)
        low = self.change(self.dropped(x), _weight(self.A), _weight(self.B))
        more, share = (factors - 1).view(shape).to(y.dtype), (self.scale * factors).view(shape).to(y.dtype)
        return y + more * straight + share * low

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        product = self.product(_weight(self.A), _weight(self.B))
        factors = self.factors(weight).view(-1, *[1] * (weight.ndim - 1)).to(weight.dtype)
        return factors * (weight + self.scale * product.view_as(weight)), bias

    def factors(self, weight: Tensor) -> Tensor:
        """m / n, [O]."""
        return self.m / self.norms(weight).to(self.m.dtype)

    @torch.no_grad()
    def norms(self, weight: Tensor) -> Tensor:
        """Norms of the rows of W + scale B A, [O]: |W|^2 + 2 scale W A^T . B + scale^2 B A A^T . B, row by row."""
        precise = _at_least_float32(weight)
        exact = nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False)
        with exact:
            w, a, b = (self.grouped(each) for each in (weight, _weight(self.A), _weight(self.B)))
            own = torch.linalg.vector_norm(w, dim=-1, dtype=precise).square()
            mixed = (b * (w @ a.mT)).sum(-1, dtype=precise)
            low = (b * (b @ (a @ a.mT))).sum(-1, dtype=precise)
            squares = own + 2 * self.scale * mixed + self.scale**2 * low
        norms: Tensor = squares.clamp_min(torch.finfo(precise).tiny).sqrt().flatten()  # a row may be zero
        return norms

    def times(self, layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
        """W x without bias."""
        if not isinstance(layer, CONVOLUTIONS):
            return F.linear(x, weight)
        product: Tensor = layer._conv_forward(self.padded(x), weight, None)
        return product

    @torch.no_grad()
    def multiplies(self, layer: nn.Module, site: Site) -> bool:
        """Whether a layer gives W x + b; tried on an example."""
        plain = (nn.Linear, *CONVOLUTIONS)
        if any(type(layer).forward is each.forward for each in plain) or weight_of(layer, site).is_meta:
            return True
        trial = copy.deepcopy(layer).cpu().double()
        x, whole = example_for(trial, site), replace(site, inputs=None, outputs=None)
        y, bias = type(trial).forward(trial, x), bias_of(trial, whole)
        if bias is not None:
            y = y - bias.view(-1, *[1] * (y.ndim - 2)) if isinstance(layer, CONVOLUTIONS) else y - bias
        return torch.allclose(
            y, self.times(trial, x, weight_of(trial, whole)), rtol=0, atol=1e-5 * float(y.abs().max())
        )


def largest_rank(backbone: nn.Module, site: Site) -> int:
    """The rank beyond which an update of this weight gains nothing; in each group of a convolution."""
    weight = read_weight(backbone, site)
    return min(weight.shape[0] // _groups(backbone.get_submodule(site.path)), weight[0].numel())


def _layers(layer: nn.Module, weight: Tensor, r: int) -> tuple[nn.Module, nn.Module]:
    """A and B beside a layer, their numbers not drawn yet."""
    like: dict[str, Any] = {"bias": False, "device": weight.device, "dtype": weight.dtype}
    if not isinstance(layer, CONVOLUTIONS):
        return _Linear(weight.shape[1], r, **like), _Linear(r, weight.shape[0], **like)
    kind: Any = (_Conv1d, _Conv2d, _Conv3d)[weight.ndim - 3]
    groups = layer.groups
    steps = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    a = kind(weight.shape[1] * groups, r * groups, layer.kernel_size, **steps, **like)
    return a, kind(r * groups, weight.shape[0], 1, groups=groups, **like)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)  # no parameter in a functional call
    return weight


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, CONVOLUTIONS) else 1


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@torch.no_grad()
def _pads_to_same(layer: nn.Module, a: nn.Module, where: str) -> bool:
    """Whether a layer pads its inputs by itself (TensorFlow's `same`, in timm's models), which A has to follow.

    Raises RefusedError for a layer that pads in another way.
    """
    if not isinstance(a, CONVOLUTIONS) or type(layer).forward is type(a).forward:
        return False
    sizes = [
        step * ((size - 1) * dilation + 1) + 1
        for size, step, dilation in zip(a.kernel_size, a.stride, a.dilation, strict=True)
    ]
    assert isinstance(layer, CONVOLUTIONS)
    x = torch.zeros(1, layer.in_channels, *sizes, dtype=a.weight.dtype, device=a.weight.device)
    own: nn.Module = layer
    given = type(own).forward(own, x).shape[2:]  # past its hooks
    x = torch.zeros(1, a.in_channels, *sizes, dtype=a.weight.dtype, device=a.weight.device)
    for padded, same in ((x, False), (_same(x, a), True)):
        if given == a(padded).shape[2:]:
            return same
    raise RefusedError(f"{where} is a {type(layer).__name__}, which pads its inputs in a way of its own")


def _same(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, CONVOLUTIONS)
    steps = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    pads: list[int] = []
    for size, kernel, stride, dilation in steps:
        missing = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        pads = [missing // 2, missing - missing // 2, *pads]  # F.pad begins at the last axis
    return F.pad(x, pads)
