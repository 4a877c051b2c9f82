"""Stages that keep only their inputs. Their activations are computed again for the backward pass.

The calls of the stage modules are intercepted, including the hooks of adapters, so no backbone has to be rewritten. The
gradients are the same: random draws are repeated, and the effect of the second pass on statistics is undone.
Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo_core.toolkit.stages import stage_modules

__all__ = ["recomputed", "still"]


@contextmanager
def recomputed(backbone: nn.Module) -> Iterator[None]:
    """While open, a pass with gradients keeps only the inputs of each stage. The backward pass may come afterwards."""
    modules = stage_modules(backbone)
    before = [module.__dict__.get("_compiled_call_impl") for module in modules]
    for module, call in zip(modules, before, strict=True):
        module._compiled_call_impl = partial(_call, module, call or module._call_impl)
    try:
        yield
    finally:
        for module, call in zip(modules, before, strict=True):
            if call is None:
                del module._compiled_call_impl
            else:
                module._compiled_call_impl = call


def _call(module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return call(*args, **kwargs)
    contexts = partial(_contexts, module)
    return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=True, context_fn=contexts, **kwargs)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts for the first and for the second pass through a stage."""
    return nullcontext(), still(module)


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Restores all buffers afterwards, such as the statistics of batch norms."""
    buffers = [buffer for each in module.modules() if each.training for buffer in each.buffers(recurse=False)]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, values, strict=True):
            buffer.data.copy_(value)  # past autograd's count of changes: the first pass saved them for backward
