"""Features, or a hidden state, in place of inputs: how a batch holds them, and how a learner finds them.

A batch of either is an ordinary batch, so it is sliced and moved like one. Its own names hold a space, which no
argument of a network can, so no backbone reads an input of that name.

Dropout draws in the order in which numbers lie in memory, so a tensor comes back as it lay: where that is not the order
of its axes it is held with its axes in that order, and the name says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

from zoo_core.contracts import Features, Kind
from zoo_core.toolkit.features import convert

__all__ = ["ATTENDED", "MASK", "What", "X", "features_in", "inputs_as", "inputs_at", "inputs_of", "state_in"]

What: TypeAlias = Kind | int  # a kind of features, or the stage, from 0, that a hidden state enters

X, MASK = "features x", "features mask"
STATE = "state entering stage "  # and the number of the stage
AXES = " axes "  # and the axes after the first in the order in which they lie
ATTENDED = "attention_mask"  # an input that says which tokens are real
_KINDS: Mapping[int, Kind] = {2: "pooled", 3: "tokens", 4: "map"}  # by the number of axes


def inputs_of(features: Features) -> dict[str, Tensor]:
    """What a batch holds where its features are known."""
    return _held(X, features.x) if features.mask is None else {X: features.x, MASK: features.mask}


def inputs_as(
    features: Features, whats: Iterable[What], pool: Callable[[Features], Tensor]
) -> dict[What, dict[str, Tensor]]:
    """As `inputs_of`, of each kind that is among these. pool: the backbone's own."""
    return {what: inputs_of(convert(features, what, pool)) for what in whats if not isinstance(what, int)}


def features_in(inputs: Mapping[str, Tensor]) -> Features | None:
    """The features that a batch holds; None where it holds inputs, of which a backbone makes them."""
    for name, x in inputs.items():
        if name.startswith(X):
            return Features(kind=_KINDS[x.ndim], x=_as_it_lay(name, x), mask=inputs.get(MASK))
    return None


def inputs_at(stage: int, state: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a batch holds where the hidden state that enters a stage is known.

    The whole numbers among its inputs, such as masks, stay beside it, as code around the stages may read them.
    """
    whole = {name: x for name, x in inputs.items() if not x.is_floating_point()}
    name = f"{STATE}{stage}"
    return ({name: state} if ATTENDED in inputs else _held(name, state)) | whole


def state_in(inputs: Mapping[str, Tensor]) -> tuple[int, Tensor] | None:
    """The stage and the hidden state that enters it, if a batch holds one."""
    for name, x in inputs.items():
        if name.startswith(STATE):
            return int(name.removeprefix(STATE).partition(AXES)[0]), _as_it_lay(name, x)
    return None


def _held(name: str, x: Tensor) -> dict[str, Tensor]:
    strides = x.stride()
    order = sorted(range(1, x.ndim), key=lambda axis: -strides[axis] if x.shape[axis] > 1 else 0)
    if order == list(range(1, x.ndim)):
        return {name: x}
    return {f"{name}{AXES}{''.join(map(str, order))}": x.permute(0, *order)}


def _as_it_lay(name: str, x: Tensor) -> Tensor:
    order = [0, *map(int, name.partition(AXES)[2])]
    return x if len(order) == 1 else x.permute([order.index(axis) for axis in range(x.ndim)])
