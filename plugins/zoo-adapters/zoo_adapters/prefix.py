"""Learned keys and values for every attention: prefix tuning, direct, reparameterised or gated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from zoo_adapters.lora import ADDED
from zoo_core.contracts import Change, Context, Learner, Seam
from zoo_core.errors import UsageError

__all__ = ["Prefix"]


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Every query also attends to `length` learned keys and values in each stage: softmax(q [P_K; K]^T) [P_V; V].

    P_K and P_V [heads, length, head_dim] of each stage, where heads are those of the keys (fewer than of the queries in
    grouped-query attention); no position belongs to them, no mask hides them, and their order does not matter.
    Any network works whose stages call attention once each, fused: pictures, texts, causal ones, sounds.
    length: how many; 30 are usual for texts.
    form: `flat` trains P_K and P_V themselves, drawn from N(0, 0.02): 2 L heads length head_dim values for L stages of
    one width, 294,912 on ViT-B/16. `mlp` makes them from an embedding [length, D] through tanh of a linear layer with
    512 outputs, shared by all stages, and a linear layer of each stage: Li & Liang 2021, section 4.3. It stays in what
    is saved, since that is the same for training and for use. `gated` attends to them by a softmax of their own and
    adds the result times tanh(g), one g for each head of each stage: Zhang et al. 2023, "LLaMA-Adapter", equations 6
    to 8.
    At the start `gated` changes nothing, since g is 0. `flat` and `mlp` do: even a key of zero takes its share of the
    softmax from the tokens.
    Source: Li & Liang 2021, "Prefix-Tuning", equation 3, on the keys and values of each stage.
    """

    length: int = 16
    form: Literal["flat", "mlp", "gated"] = "flat"

    version: ClassVar[int] = 1
    seams: ClassVar[frozenset[Seam]] = frozenset({"attention"})
    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"attn.k", "attn.v"}),)
    changes: ClassVar[frozenset[Change]] = ADDED

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UsageError(f"prefix(length={self.length}): allowed: 1 or more; probe trains the head alone")

    @property
    def exact_at_start(self) -> bool:
        return self.form == "gated"

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.prefix_modules import add_prefixes

        add_prefixes(learner.backbone, self.length, self.form)
        return learner
