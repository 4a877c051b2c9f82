"""Scales and shifts of what layers give: ia3 on keys, values and hidden units, ssf after every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from zoo_adapters.lora import ADDED, check_roles
from zoo_core.contracts import ROLES, Change, Context, Learner

__all__ = ["Ia3", "Ssf"]

SCALED = tuple(role for role in ROLES if role != "embed")


@dataclass(frozen=True, kw_only=True)
class Ia3:
    """Scales keys, values and the hidden units of the MLPs by learned vectors: l_k * K, l_v * V, W_out (l_ff * h).

    l_k, l_v [O] act on what attn.k and attn.v give, their biases included, l_ff [I] on what mlp.out is given; all are
    one at the start, which is the base exactly. On ViT-B/16 12 (768 + 768 + 3072) = 55,296 trained values.
    Where there are no MLPs with known layers, keys and values alone; where there is no attention, l_ff alone; on
    convolutions alone it is refused, and so are keys and values whose weight is read without a call, since their bias
    is added elsewhere.
    Source: Liu et al. 2022, "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning",
    section 3.3.
    """

    version: ClassVar[int] = 1
    needs: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({"attn.k", "attn.v", "mlp.out"}),
        frozenset({"attn.k", "attn.v"}),
        frozenset({"mlp.out"}),
    )
    changes: ClassVar[frozenset[Change]] = ADDED
    mergeable: ClassVar[bool] = True

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.scaling_modules import InputScale, OutputScale
        from zoo_core.toolkit.sites import attach, read_weight, sites_for

        hidden = learner.source.sites("mlp.out")
        for site in sites_for(learner.backbone, self.needs):
            layer, weight = learner.backbone.get_submodule(site.path), read_weight(learner.backbone, site)
            if site in hidden:
                attach(learner.backbone, site, InputScale(layer, site, weight), "ia3")
            else:
                attach(learner.backbone, site, OutputScale(layer, weight, shifts=False), "ia3")
        return learner


@dataclass(frozen=True, kw_only=True)
class Ssf:
    """Scales and shifts what every linear layer, convolution and norm gives: gamma * y + beta.

    gamma, beta [O] for each layer, or each role's rows of a fused one; no beta where the layer has no bias, so that
    all of it folds into the base's own tensors. In a norm that holds its activation it acts before that. Where a
    weight is read without a call, gamma scales the weight alone. 205,824 trained values on ViT-B/16.
    roles: whose layers; none: all the backbone has but embeddings, which are looked up and not computed.
    init: `identity` is the base exactly at the start; `paper` draws gamma from N(1, 0.02^2), beta from N(0, 0.02^2).
    Source: Lian et al. 2022, "Scaling & shifting your features", equations 2 and 3.
    """

    roles: tuple[str, ...] = ()
    init: Literal["identity", "paper"] = "identity"

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = ADDED
    mergeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_roles("ssf", self.roles, SCALED)

    @property
    def needs(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.roles),) if self.roles else tuple(frozenset({role}) for role in SCALED)

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.scaling_modules import OutputScale, RowScale, whole_rows
        from zoo_core.toolkit.sites import attach, read_bias, read_weight, sites_for

        sites_for(learner.backbone, self.needs)  # refuses a backbone that lacks them
        for site in whole_rows(learner.backbone, [role for role in SCALED if role in (self.roles or SCALED)]):
            layer, weight = learner.backbone.get_submodule(site.path), read_weight(learner.backbone, site)
            shifts = read_bias(learner.backbone, site) is not None
            change = OutputScale(layer, weight, shifts=shifts) if site.called else RowScale(weight)
            if self.init == "paper":
                change.draw(context.generator)
            attach(learner.backbone, site, change, "ssf")
        return learner
