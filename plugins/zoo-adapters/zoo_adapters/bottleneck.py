"""Small MLPs inserted into the frozen backbone: bottleneck, with the places and details of four papers as presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from zoo_adapters.bottleneck_shape import Act, Init, Shape
from zoo_adapters.lora import ADDED
from zoo_core.contracts import Change, Context, Learner, Seam
from zoo_core.errors import UsageError

__all__ = ["Bottleneck"]

Preset = Literal["pfeiffer", "houlsby", "parallel", "adapter-plus"]


@dataclass(frozen=True, kw_only=True)
class _Preset:
    """What a preset takes where the user says nothing, and the roles that it works on."""

    needs: tuple[frozenset[str], ...]
    r: int = 8
    scale: float = 1.0
    act: Act = "gelu"
    dropout: float = 0.0
    drop_path: float = 0.0


PRESETS: Mapping[Preset, _Preset] = MappingProxyType(
    {
        "pfeiffer": _Preset(needs=(frozenset({"mlp.out"}),)),
        "houlsby": _Preset(needs=(frozenset({"attn.out", "mlp.out"}),)),
        "parallel": _Preset(needs=(frozenset({"mlp.in", "mlp.out"}),), r=64, scale=0.1, act="relu", dropout=0.1),
        "adapter-plus": _Preset(needs=(frozenset({"mlp.out"}), frozenset({"attn.out"})), drop_path=0.1),
    }
)


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """Inserts small MLPs into the frozen backbone: h + scale * Up(act(Down(h))), with Up zero at the start.

    Down [r, C], Up [C, r], both with a bias: 2 C r + r + C trained values at each place, 156,768 on ViT-B/16 with r=8.
    preset: where, and what holds for the arguments that are none. `pfeiffer`: after the last layer of each MLP, before
    its output is added to the stream (Pfeiffer et al. 2021); r 8. `houlsby`: after the last layer of each attention
    too (Houlsby et al. 2019, figure 2). `parallel`: Down reads what enters the MLP, normed where the block norms it
    first, and Up adds to what leaves it (Chen et al. 2022, "AdaptFormer", equation 3); r 64, scale 0.1, ReLU and
    dropout 0.1 as in its code. `adapter-plus`: on the state that leaves each stage, with a trained scale for each of
    the C channels (Steitz & Roth 2024, section 3); r 8, drop_path 0.1. The others take r 8, scale 1 and GELU.
    r: hidden values, at most C. scale: of what is added; of adapter-plus where it starts. act: between Down and Up.
    init: `zero` draws Down (Kaiming) and leaves Up and biases zero, so that nothing changes at the start; `houlsby`
    draws both from a normal of deviation 0.01 cut at two, which is nearly nothing.
    dropout: share of hidden values dropped while training. drop_path: share of examples that skip it (adapter-plus).
    Source: Houlsby et al. 2019, "Parameter-efficient transfer learning for NLP", section 2.1.
    """

    preset: Preset = "pfeiffer"
    r: int | None = None
    scale: float | None = None
    act: Act | None = None
    init: Init = "zero"
    dropout: float | None = None
    drop_path: float | None = None

    version: ClassVar[int] = 1
    seams: ClassVar[frozenset[Seam]] = frozenset({"stage"})
    changes: ClassVar[frozenset[Change]] = ADDED

    def __post_init__(self) -> None:
        if self.r is not None and self.r < 1:
            raise UsageError(f"bottleneck(r={self.r}): allowed: 1 or more; probe trains the head alone")
        for field, rate in (("dropout", self.dropout), ("drop_path", self.drop_path)):
            if rate is not None and not 0 <= rate < 1:
                raise UsageError(f"bottleneck({field}={rate:g}): allowed: 0 to below 1")
        if self.drop_path is not None and self.preset != "adapter-plus":
            raise UsageError(f"bottleneck(preset={self.preset}) has no drop_path; preset adapter-plus has")

    @property
    def needs(self) -> tuple[frozenset[str], ...]:
        return PRESETS[self.preset].needs

    @property
    def exact_at_start(self) -> bool:
        return self.init == "zero"

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.bottleneck_modules import after_layers, after_stages, beside_mlps

        usual = PRESETS[self.preset]
        shape = Shape(
            r=usual.r if self.r is None else self.r,
            scale=usual.scale if self.scale is None else self.scale,
            act=self.act or usual.act,
            init=self.init,
            dropout=usual.dropout if self.dropout is None else self.dropout,
            drop_path=usual.drop_path if self.drop_path is None else self.drop_path,
        )
        if self.preset == "adapter-plus":
            after_stages(learner.backbone, shape)
        elif self.preset == "parallel":
            beside_mlps(learner.backbone, shape)
        else:
            after_layers(learner.backbone, self.needs, shape)
        return learner
