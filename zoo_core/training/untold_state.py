"""What a module keeps from one call to the next beside its parameters and buffers, and which nobody restores."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

__all__ = ["changes", "draws", "untold_state"]

TOLD = ("_parameters", "_buffers", "_modules", "training")
DRAWS = "a generator of the whole process"


def untold_state(module: nn.Module) -> dict[str, object]:
    """By name, what tells a change of every attribute that is no tensor of the state dict, and of global generators."""
    found = {name: _mark(value) for name, value in _attributes(module)}
    return found | {DRAWS: _generators()}


def draws(call: Callable[[], object]) -> bool:
    """Whether a call takes numbers from a generator of the whole process."""
    before = _generators()
    call()
    return _generators() != before


def _generators() -> object:
    of_torch = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]
    of_numpy = _mark(np.random.get_state())  # noqa: NPY002 - it is only looked at
    return random.getstate(), of_numpy, [bytes(state.tolist()) for state in of_torch]


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """The names of what is no longer the same."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    for path, each in module.named_modules():
        for name, value in vars(each).items():
            if name not in TOLD and not name.endswith("_hooks"):
                yield f"{path}.{name}".lstrip("."), value


def _mark(value: object) -> object:
    """Something that is equal as long as the value is the same."""
    if isinstance(value, torch.Tensor):
        return id(value), value._version
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().tolist())
    try:
        return pickle.dumps(value)
    except Exception:  # noqa: BLE001 - what cannot be pickled, such as a function made in a function, is told by identity
        return id(value)
