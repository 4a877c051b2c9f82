"""The words of the arguments, which the light halves and the torch halves share."""

from __future__ import annotations

from typing import Literal

from zoo_core.contracts import Change

__all__ = ["OBJECTIVE", "ROLES", "FeatureLoss", "Form", "Keep", "index_of"]

Form = Literal["kd", "mse", "dkd", "dist"]
"""How predictions are compared."""
FeatureLoss = Literal["cosine", "mse", "at", "hint", "minilm"]
"""How features are compared."""
Keep = Literal["float32", "float16"]
"""The precision in which what a teacher gave is held."""

OBJECTIVE: frozenset[Change] = frozenset({"objective"})
ROLES = ("attn.q", "attn.k", "attn.v")
"""What the relations of minilm are of."""


def index_of(number: int) -> int:
    """The index of a stage that a user counts from 1; from the end it is the number itself."""
    return number - 1 if number > 0 else number
