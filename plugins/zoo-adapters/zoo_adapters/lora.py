"""Low-rank updates of weights: lora, with rank-stabilised scaling and PiSSA's start as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_adapters.freezing import EVERY_KIND, NO_SEAMS
from zoo_core.contracts import Change, Context, Kind, Seam, Source
from zoo_core.errors import UsageError

if TYPE_CHECKING:
    from zoo_core.learner import Learner

__all__ = ["ADDED", "ATTENTION_ELSE_ALL", "Lora", "alternatives"]

ADDED: frozenset[Change] = frozenset({"added"})
ATTENTION_ELSE_ALL: tuple[frozenset[str], ...] = (
    frozenset({"attn.q", "attn.v"}),
    frozenset({"mlp.in", "mlp.out"}),
    frozenset({"conv"}),
)


def alternatives(roles: tuple[str, ...], usual: tuple[frozenset[str], ...]) -> tuple[frozenset[str], ...]:
    """The roles that a user named, all of which the backbone must have; else the usual alternatives."""
    return (frozenset(roles),) if roles else usual


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adds a low-rank update to each weight of the roles: W + scale * B A, with B zero at the start.

    A [r, I], B [O, r]; r (I + O) trained values for each site: 294,912 on ViT-B/16 with r=8. For a convolution A has
    the layer's own kernel, stride, padding and dilation, and B is 1 x 1; in each of its groups the update has rank r.
    r: rank. alpha: scale is alpha / r. roles: of the weights; none: attn.q and attn.v, where there is no attention
    mlp.in and mlp.out, else those of conv that have room for r. dropout: of the input of A, while training.
    rslora: scale is alpha / sqrt(r) instead (Kalajdzievski 2023, equation 5).
    init: `lora` draws A and leaves B zero; `pissa` starts at the r largest singular values of W and trains those, the
    rest of W staying as it is by an added term that undoes the start (Meng et al. 2024, equations 2 to 4).
    Source: Hu et al. 2021, "LoRA", equation 3.
    """

    r: int = 8
    alpha: float = 16.0
    roles: tuple[str, ...] = ()
    dropout: float = 0.0
    rslora: bool = False
    init: Literal["lora", "pissa"] = "lora"

    version: ClassVar[int] = 1
    accepts: ClassVar[frozenset[Kind]] = EVERY_KIND
    seams: ClassVar[frozenset[Seam]] = NO_SEAMS
    changes: ClassVar[frozenset[Change]] = ADDED
    batchable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    learning_rates: ClassVar[tuple[float, ...]] = (2e-4, 1e-3, 5e-3, 2.5e-2, 1.25e-1)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UsageError(f"lora(r={self.r}): allowed: 1 or more; probe trains the head alone")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"lora(dropout={self.dropout:g}): allowed: 0 to below 1")

    @property
    def needs(self) -> tuple[frozenset[str], ...]:
        return alternatives(self.roles, ATTENTION_ELSE_ALL)

    def first_stage(self, num_stages: int) -> int:
        return 0

    def source(self) -> Source | None:
        return None

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.low_rank import LowRank, largest_rank
        from zoo_core.sites import attach, read_weight, sites_for

        scale = self.alpha / (self.r**0.5 if self.rslora else self.r)
        sites = sites_for(learner.backbone, self.needs)
        if not self.roles and sites[0].kind == "conv":
            fitting = [site for site in sites if self.r <= largest_rank(learner.backbone, site)]
            sites = fitting or sites  # if there are none, the first of all says why
        for site in sites:
            layer = learner.backbone.get_submodule(site.path)
            change = LowRank(layer, site, read_weight(learner.backbone, site), self.r, scale, self.dropout, self.init)
            attach(learner.backbone, site, change, "lora")
        return learner
