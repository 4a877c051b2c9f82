"""Learned tokens among those of the input: visual prompt tuning and prompt tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zoo_adapters.lora import ADDED
from zoo_core.contracts import Change, Context, Kind, Learner, Seam
from zoo_core.errors import UsageError

__all__ = ["Prompt"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Learned tokens stand among those that enter the first stage; with `deep`, other ones in every later stage too.

    Each [length, D]; length D trained values, of `deep` L length D for L stages: 92,160 on ViT-B/16 with length 10.
    They stand behind class token and registers, before the patches or words, and have no position; every real token
    sees them, and the features come without them, so that pooling is what it was. With `deep` what a stage made of
    them is thrown away, and the next stage gets its own.
    length: how many. dropout: of the learned tokens, while training.
    At the start it changes what the backbone gives. Of pictures and sounds the tokens are drawn from
    U(-v, v), v = sqrt(6 / (n + D)) with n the values of a patch; of texts they are what random words of the vocabulary
    are at that stage.
    Source: Jia et al. 2022, "Visual Prompt Tuning", equations 4 to 8; Lester et al. 2021, "The Power of Scale for
    Parameter-Efficient Prompt Tuning", section 3.2 for the words.
    """

    length: int = 10
    deep: bool = False
    dropout: float = 0.1

    version: ClassVar[int] = 1
    accepts: ClassVar[frozenset[Kind]] = frozenset({"tokens"})
    seams: ClassVar[frozenset[Seam]] = frozenset({"prompt"})
    changes: ClassVar[frozenset[Change]] = ADDED
    exact_at_start: ClassVar[bool] = False
    learning_rates: ClassVar[tuple[float, ...]] = (4e-4, 2e-3, 1e-2, 5e-2, 2.5e-1)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UsageError(f"prompt(length={self.length}): allowed: 1 or more; probe trains the head alone")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"prompt(dropout={self.dropout:g}): allowed: 0 to below 1")

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_adapters.prompt_modules import add_prompts

        add_prompts(learner.backbone, self.length, deep=self.deep, dropout=self.dropout)
        return learner
