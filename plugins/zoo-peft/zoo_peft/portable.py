"""What peft's own format calls things: the two files of an adapter, and the modules and tensors in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zoo_core.errors import RefusedError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CONFIG", "PREFIX", "TENSORS", "exactly", "plain_prefix"]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # what peft puts before the names of the model that it wraps


def plain_prefix(backbone: nn.Module) -> str:
    """What stands before the names of the library's own model: the path to the first module not of the plugin."""
    own, prefix, module = type(backbone).__module__.partition(".")[0], "", backbone
    while type(module).__module__.partition(".")[0] == own:
        holding = [
            (name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None
        ]
        if len(holding) != 1 or next(module.parameters(recurse=False), None) is not None:
            raise RefusedError(f"{type(backbone).__name__} does not wrap one model of its library")
        prefix, module = f"{prefix}{holding[0][0]}.", holding[0][1]
    return prefix


def exactly(name: str) -> str:
    """A pattern of peft that only this name fits, with whatever may stand before it."""
    return re.escape(name)
