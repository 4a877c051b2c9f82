"""What a backbone calls, without its values: a pass of dummy inputs over a copy on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo_core.contracts import as_backbone

__all__ = ["dummy_pass", "shadow"]


def shadow(module: nn.Module) -> nn.Module:
    """A module of the same parts whose parameters and buffers are on the meta device; what it does stays in it.

    Plain attributes are the original's own: a model that reads a tensor there fails, and is looked at with its values
    instead.
    """
    return _copied(module, {}, {})


def dummy_pass(backbone: nn.Module) -> None:
    """One pass and pooling of dummy inputs in evaluation mode without gradients; every module's mode is put back."""
    modes = [(module, module.training) for module in backbone.modules()]
    parameter = next(backbone.parameters(), None)
    inputs = as_backbone(backbone).preparation.dummy(2)
    if parameter is not None:
        inputs = {name: _like(x, parameter) for name, x in inputs.items()}
    backbone.eval()
    try:
        with torch.no_grad(), _Shapes():
            features = as_backbone(backbone)(inputs)
            if features.kind != "pooled":
                as_backbone(backbone).pool(features)
    finally:
        for module, mode in modes:
            module.training = mode


def _copied(module: nn.Module, modules: dict[int, nn.Module], tensors: dict[int, Tensor]) -> nn.Module:
    """modules, tensors: those already copied, by identity, so that what is shared stays shared."""
    if id(module) in modules:
        return modules[id(module)]
    copy = module.__new__(type(module))
    modules[id(module)] = copy
    state = dict(module.__dict__)
    for key, value in state.items():
        if key in ("_parameters", "_buffers"):
            state[key] = {name: _on_meta(tensor, tensors) for name, tensor in value.items()}
        elif key == "_modules":
            state[key] = {
                name: None if child is None else _copied(child, modules, tensors) for name, child in value.items()
            }
        elif key.endswith("_hooks"):
            state[key] = value.copy()
    object.__setattr__(copy, "__dict__", state)  # a module's own way looks at each attribute
    return copy


def _on_meta(tensor: Tensor | None, tensors: dict[int, Tensor]) -> Tensor | None:
    if tensor is None:
        return None
    if id(tensor) not in tensors:
        meta = tensor.detach().to("meta")
        tensors[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
    return tensors[id(tensor)]


class _Shapes(TorchFunctionMode):
    """On the meta device, a tensor of the right shape for the calls that torch works out slowly there, in Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func in _SHAPE_KEEPING:
                return args[0]
            if func is nn.functional.linear:
                weight = args[1] if len(args) > 1 else kwargs["weight"]
                return args[0].new_empty((*args[0].shape[:-1], weight.shape[0]))
            if func is nn.functional.scaled_dot_product_attention and len(args) >= 3:
                return args[0].new_empty((*args[0].shape[:-1], args[2].shape[-1]))
            if func is Tensor.add and isinstance(args[1], Tensor) and args[0].shape == args[1].shape:
                return args[0]
        return func(*args, **(kwargs or {}))


_SHAPE_KEEPING = frozenset({nn.functional.layer_norm, nn.functional.gelu, nn.functional.silu, nn.functional.batch_norm})


def _like(x: Tensor, parameter: Tensor) -> Tensor:
    return x.to(parameter) if x.is_floating_point() else x.to(parameter.device)
