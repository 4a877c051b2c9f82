"""Low-rank updates of weights: lora, with rank-stabilised scaling and PiSSA's start as options, and dora."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from zoo_core.contracts import ROLES, Change, Context, Learner, Site
from zoo_core.errors import UsageError, nearest

__all__ = ["ADDED", "ATTENTION_ELSE_ALL", "Dora", "Lora", "alternatives", "check_roles"]

ADDED: frozenset[Change] = frozenset({"added"})
ATTENTION_ELSE_ALL: tuple[frozenset[str], ...] = (
    frozenset({"attn.q", "attn.v"}),
    frozenset({"mlp.in", "mlp.out"}),
    frozenset({"conv"}),
)
MATRICES = tuple(role for role in ROLES if role not in ("norm", "embed"))


def check_roles(name: str, roles: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    """Raises UsageError for a role that is none of the allowed ones."""
    for role in roles:
        if role not in allowed:
            raise UsageError(f"{name}(roles={role}): allowed: {', '.join(allowed)}{nearest(role, allowed)}")


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
    changes: ClassVar[frozenset[Change]] = ADDED
    mergeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("lora", self.r, self.alpha, self.dropout)
        check_roles("lora", self.roles, MATRICES)
        if self.init == "pissa" and not self.alpha:
            raise UsageError("lora(alpha=0, init=pissa): pissa starts within the update; allowed: alpha above 0")

    @property
    def needs(self) -> tuple[frozenset[str], ...]:
        return alternatives(self.roles, ATTENTION_ELSE_ALL)

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.low_rank import LowRank
        from zoo_core.toolkit.sites import attach, read_weight

        scale = self.alpha / (self.r**0.5 if self.rslora else self.r)
        for site in _sites(learner, self.needs, self.r if not self.roles else None):
            layer, weight = learner.backbone.get_submodule(site.path), read_weight(learner.backbone, site)
            _check_dropout("lora", self.dropout, site)
            change = LowRank(
                layer,
                site,
                weight,
                r=self.r,
                scale=scale,
                dropout=self.dropout,
                label=f"lora(r={self.r})",
                generator=context.generator,
            )
            if self.init == "pissa":
                change.decompose(weight, known=context.purpose == "use")
            attach(learner.backbone, site, change, "lora")
        return learner


@dataclass(frozen=True, kw_only=True)
class Dora:
    """Trains magnitude and direction of each weight: m (W + scale * B A) / n, with n the norms of its rows.

    A [r, I], B [O, r], m [O]; r (I + O) + O trained values for each site: 313,344 on ViT-B/16 with r=8. m starts as
    the norms of the rows of W and B at zero, which is the base exactly; n is a constant to the gradient. It takes the
    weight as the layer's own: it comes before other adapters at its sites, and there is no second one of the weight.
    r: rank. alpha: scale is alpha / r. roles: of the weights; none: as lora. dropout: of the input of A in training.
    Source: Liu et al. 2024, "DoRA", equation 5, and section 4.3 for the constant.
    """

    r: int = 8
    alpha: float = 16.0
    roles: tuple[str, ...] = ()
    dropout: float = 0.0

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = ADDED
    mergeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("dora", self.r, self.alpha, self.dropout)
        check_roles("dora", self.roles, MATRICES)

    @property
    def needs(self) -> tuple[frozenset[str], ...]:
        return alternatives(self.roles, ATTENTION_ELSE_ALL)

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.low_rank import Decomposed
        from zoo_core.toolkit.sites import attach, read_weight

        for site in _sites(learner, self.needs, self.r if not self.roles else None):
            layer, weight = learner.backbone.get_submodule(site.path), read_weight(learner.backbone, site)
            _check_dropout("dora", self.dropout, site)
            change = Decomposed(
                layer,
                site,
                weight,
                r=self.r,
                scale=self.alpha / self.r,
                dropout=self.dropout,
                label=f"dora(r={self.r})",
                generator=context.generator,
            )
            attach(learner.backbone, site, change, "dora")
        return learner


def _sites(learner: Learner, needs: tuple[frozenset[str], ...], r: int | None) -> list[Site]:
    """The sites to change. r: of convolutions only those that have room for it; None: all."""
    from zoo_adapters.low_rank import largest_rank
    from zoo_core.toolkit.sites import sites_for

    sites = sites_for(learner.backbone, needs)
    if r is None or sites[0].kind != "conv":
        return sites
    fitting = [site for site in sites if r <= largest_rank(learner.backbone, site)]
    return fitting or sites  # if there are none, the first of all says why


def _check(name: str, r: int, alpha: float, dropout: float) -> None:
    if r < 1:
        raise UsageError(f"{name}(r={r}): allowed: 1 or more; probe trains the head alone")
    if not 0 <= alpha < math.inf:
        raise UsageError(f"{name}(alpha={alpha:g}): allowed: 0 or more")
    if not 0 <= dropout < 1:
        raise UsageError(f"{name}(dropout={dropout:g}): allowed: 0 to below 1")


def _check_dropout(name: str, dropout: float, site: Site) -> None:
    if dropout and not site.called:
        raise UsageError(f"{name}(dropout={dropout:g}): {site.path} is read without a call; allowed there: 0")
