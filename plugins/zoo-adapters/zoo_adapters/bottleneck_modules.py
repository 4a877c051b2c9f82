"""The modules of bottleneck adapters, and the three ways to put them in: after layers, beside MLPs, after stages.

Axes: C the width where one stands, r its hidden values; the width is always the last axis.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo_adapters.bottleneck_shape import Act, Shape
from zoo_core.contracts import Site, as_backbone
from zoo_core.errors import LawError, RefusedError
from zoo_core.toolkit.sites import SiteChange, attach, channels_first, free_name, read_weight, sites_for
from zoo_core.toolkit.stages import dummy_pass, stage_modules

__all__ = ["AfterLayer", "AfterStage", "BesideMlp", "after_layers", "after_stages", "beside_mlps"]

ACTS: dict[Act, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "identity": nn.Identity}
NAME = "bottleneck"  # of the module where it is put in


def bottleneck(shape: Shape, inputs: int, outputs: int, place: str) -> nn.Sequential:
    """Up(dropout(act(Down(h)))): float [..., inputs] -> [..., outputs]. place: for the message of RefusedError."""
    if shape.r > min(inputs, outputs):
        raise RefusedError(
            f"bottleneck(r={shape.r}): {place} is {min(inputs, outputs)} wide; "
            f"allowed there: 1 to {min(inputs, outputs)}"
        )
    down, up = nn.Linear(inputs, shape.r), nn.Linear(shape.r, outputs)
    if shape.init == "houlsby":
        for layer in (down, up):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
    else:
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
    nn.init.zeros_(down.bias)
    nn.init.zeros_(up.bias)
    parts: OrderedDict[str, nn.Module] = OrderedDict(down=down, act=ACTS[shape.act]())
    if shape.dropout:
        parts["dropout"] = nn.Dropout(shape.dropout)
    parts["up"] = up
    return nn.Sequential(parts)


class AfterLayer(SiteChange):
    """y + scale * Up(act(Down(y))), y [..., C] what leaves the layer."""

    mergeable: ClassVar[bool] = False

    def __init__(self, layers: nn.Module, scale: float) -> None:
        super().__init__()
        self.layers = layers
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        change: Tensor = self.layers(y)
        return y + self.scale * change


class BesideMlp(SiteChange):
    """y + scale * Up(act(Down(e))), e [..., I] what entered the MLP's first layer and y [..., C] what leaves its last.

    first: path of the first layer. entered: e by thread while a pass is between the two layers; a pass that ends there
    (the second one of gradient checkpointing does) leaves it to the next one.
    """

    mergeable: ClassVar[bool] = False

    def __init__(self, layers: nn.Module, scale: float, first: str) -> None:
        super().__init__()
        self.layers = layers
        self.scale = scale
        self.first = first
        self.entered: dict[int, Tensor] = {}

    def note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A hook before the first layer."""
        self.entered[_thread()] = args[0]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        entered = self.entered.pop(_thread(), None)
        if entered is None:
            raise LawError(f"{self.site.path} was called before {self.first}, so it is not known what entered the MLP")
        change: Tensor = self.layers(entered)
        return y + self.scale * change

    def __getstate__(self) -> dict[str, Any]:
        """For copies: no pass is under way in them."""
        return self.__dict__ | {"entered": {}}


class AfterStage(nn.Module):
    """h + scale * drop_path(Up(act(Down(h)))), h [B, ..., C] the state that leaves a stage, scale [C]."""

    def __init__(self, layers: nn.Module, scale: Tensor, drop_path: float) -> None:
        super().__init__()
        self.layers = layers
        self.scale = nn.Parameter(scale)
        self.drop_path = drop_path

    def forward(self, h: Tensor) -> Tensor:
        change: Tensor = self.layers(h)
        if self.drop_path and self.training:
            keep = torch.rand(len(h), *[1] * (h.ndim - 1), device=h.device) >= self.drop_path
            change = change * keep / (1 - self.drop_path)
        return h + self.scale * change

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A hook after the stage: of a tuple, the first item is the state."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


def after_layers(backbone: nn.Module, needs: Sequence[frozenset[str]], shape: Shape) -> None:
    """One after each layer of the roles."""
    for site in sites_for(backbone, needs):
        weight = _checked(backbone, site)
        layers = bottleneck(shape, len(weight), len(weight), f"what leaves {site.path}")
        attach(backbone, site, AfterLayer(layers, shape.scale).to(weight), NAME)


def beside_mlps(backbone: nn.Module, shape: Shape) -> None:
    """One beside each MLP, from what enters its first layer to what leaves its last.

    Raises RefusedError where the two layers of each are not known.
    """
    firsts, lasts = (sites_for(backbone, (frozenset({role}),)) for role in ("mlp.in", "mlp.out"))
    if len(firsts) != len(lasts):
        raise RefusedError(
            f"bottleneck(preset=parallel): the backbone has {len(firsts)} weights of mlp.in and {len(lasts)} of "
            f"mlp.out, so which belong together is not known; use preset=pfeiffer"
        )
    for first, last in zip(firsts, lasts, strict=True):
        if not first.called:
            raise RefusedError(
                f"bottleneck(preset=parallel): the backbone reads the weight of {first.path} without calling it, so "
                f"what enters there is not seen; use preset=pfeiffer"
            )
        weight = _checked(backbone, last)
        layers = bottleneck(shape, read_weight(backbone, first).shape[1], len(weight), f"the MLP of {last.path}")
        change = BesideMlp(layers, shape.scale, first.path).to(weight)
        attach(backbone, last, change, NAME)
        backbone.get_submodule(first.path).register_forward_pre_hook(change.note)


def after_stages(backbone: nn.Module, shape: Shape) -> None:
    """One after each stage. Raises RefusedError for a stage whose state does not have its width as the last axis."""
    outputs = _outputs_by_stage(backbone)
    for path, stage, found in zip(
        as_backbone(backbone).stages, stage_modules(backbone), _dummy_states(backbone), strict=True
    ):
        weights = outputs[path]
        width = _width(path, found, {len(weight) for weight in weights})
        if isinstance(stage, nn.Sequential):
            raise _not_after(f"{path} is a sequence of layers, and what is put beside them would be one of them")
        layers = bottleneck(shape, width, width, f"the state that leaves {path}")
        change = AfterStage(layers, torch.full((width,), shape.scale), shape.drop_path).to(weights[0])
        stage.add_module(free_name(stage, NAME), change)
        stage.register_forward_hook(change.leave)


def _checked(backbone: nn.Module, site: Site) -> Tensor:
    """The weight of a site, after whose layer an adapter can stand: a linear one that gives this role alone."""
    owner = backbone.get_submodule(site.path)
    if site.kind != "linear" or channels_first(owner):
        raise RefusedError(f"bottleneck: {site.path} is a {type(owner).__name__}; it stands after linear layers")
    if site.inputs is not None:
        raise RefusedError(
            f"bottleneck: {site.path} gives what leaves attention and MLP as one sum; use preset=adapter-plus"
        )
    return read_weight(backbone, site)


def _outputs_by_stage(backbone: nn.Module) -> dict[str, list[Tensor]]:
    """Of each stage, the weights inside it whose outputs are added to the stream."""
    source = as_backbone(backbone)
    sites = [site for role in ("attn.out", "mlp.out") for site in source.sites(role)]
    return {
        stage: [read_weight(backbone, site) for site in sites if f"{site.path}.".startswith(f"{stage}.")]
        for stage in source.stages
    }


def _dummy_states(backbone: nn.Module) -> list[Any]:
    """What leaves each stage in one pass of dummy inputs, of a tuple the first item."""
    states: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handles = [stage.register_forward_hook(keep) for stage in stage_modules(backbone)]
    try:
        dummy_pass(backbone)
    finally:
        for handle in handles:
            handle.remove()
    return states


def _width(path: str, state: Any, widths: set[int]) -> int:
    """The last axis of a stage's state. widths: of what the stage adds to it."""
    if not isinstance(state, Tensor):
        raise _not_after(f"{path} gives {type(state).__name__}")
    width = state.shape[-1]
    if width not in widths or (state.ndim > 3 and state.shape[1] in widths):
        raise _not_after(f"{path} gives {list(state.shape)}, whose last axis is not known to be its width")
    return width


def _not_after(reason: str) -> RefusedError:
    return RefusedError(
        f"bottleneck(preset=adapter-plus) stands after stages whose state is tokens or has its channels last, and "
        f"{reason}; use preset=pfeiffer"
    )


def _thread() -> int:
    """So that two threads that use one model do not read each other's; a compiled pass keeps nothing in between."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
