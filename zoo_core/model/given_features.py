"""Features in place of inputs: how a batch holds them, and how a learner finds them.

A batch of features is an ordinary batch, so it is sliced and moved like one. Its two names hold a space, which no
argument of a network can, so no backbone reads an input of that name.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo_core.contracts import Features, Kind

__all__ = ["MASK", "X", "features_in", "inputs_of"]

X, MASK = "features x", "features mask"
_KINDS: Mapping[int, Kind] = {2: "pooled", 3: "tokens", 4: "map"}  # by the number of axes


def inputs_of(features: Features) -> dict[str, Tensor]:
    """What a batch holds where its features are known."""
    return {X: features.x} if features.mask is None else {X: features.x, MASK: features.mask}


def features_in(inputs: Mapping[str, Tensor]) -> Features | None:
    """The features that a batch holds; None where it holds inputs, of which a backbone makes them."""
    x = inputs.get(X)
    return None if x is None else Features(kind=_KINDS[x.ndim], x=x, mask=inputs.get(MASK))
