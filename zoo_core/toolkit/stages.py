"""The hidden states between the stages of a backbone, read and replaced with hooks.

Stages are the modules that a forward pass calls in order. This module captures hidden states, resumes a pass from the
middle, and tells which parameters lie before, in and after the stages. Attention inside a stage is in attention.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo_core._process.singletons import Lock
from zoo_core.contracts import Features, as_backbone
from zoo_core.errors import LawError

__all__ = [
    "Boundary",
    "boundary",
    "capture",
    "dummy_pass",
    "groups",
    "meta_copy",
    "resume",
    "stage_modules",
]

_one_resumed_pass = Lock()  # two threads on one patched model gave wrong outputs


def stage_modules(backbone: nn.Module) -> list[nn.Module]:
    """The stages in calling order. They are looked up each time, because an adapter may have wrapped one since."""
    return [backbone.get_submodule(path) for path in as_backbone(backbone).stages]


def _state(value: Any) -> Tensor:
    """The hidden state in a stage's output: the tensor itself, or the first item of a tuple."""
    state = value[0] if isinstance(value, tuple) else value
    assert isinstance(state, Tensor), f"a stage gives a tensor or a tuple that starts with one, not {type(state)}"
    return state


@contextmanager
def capture(backbone: nn.Module, stages: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While open, fills {stage: hidden state that leaves it} for the wanted stages.

    Each state is a copy that gradients flow through, because the next stage may write into its input.
    """
    states: dict[int, Tensor] = {}
    modules = stage_modules(backbone) if stages else []

    def keep(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            states[index] = _state(output).clone()

        return hook

    handles = [modules[index].register_forward_hook(keep(index)) for index in stages]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Boundary:
    """The input of one stage: its hidden state, and the rest of the tuple that the stage before returned."""

    stage: int
    state: Tensor
    rest: tuple[Any, ...] | None = None


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass once the boundary is known."""


def boundary(backbone: nn.Module, inputs: Mapping[str, Tensor], stage: int) -> Boundary:
    """Runs the pass up to a stage and returns the input of that stage. The stages from there on are not run."""
    modules = stage_modules(backbone)
    found: list[Boundary] = []
    previous: list[Any] = []

    def seen(module: nn.Module, args: Any, output: Any) -> None:
        previous[:] = [output]

    def stop(module: nn.Module, args: Any) -> None:
        rest = previous[0][1:] if previous and isinstance(previous[0], tuple) else None
        found.append(Boundary(stage, args[0], rest))
        raise _Stop

    with ExitStack() as stack:
        if stage:
            stack.callback(modules[stage - 1].register_forward_hook(seen).remove)
        stack.callback(modules[stage].register_forward_pre_hook(stop).remove)
        try:
            backbone(inputs)
        except _Stop:
            return found[0]
    raise LawError(f"stage {stage} ({as_backbone(backbone).stages[stage]}) was never called")


def resume(backbone: nn.Module, inputs: Mapping[str, Tensor], start: Boundary) -> Features:
    """Runs a forward pass from a boundary on: earlier stages pass their input through, then the state is inserted.

    inputs: the same as for the whole pass; the model makes its masks and position embeddings from them.
    Returns features that are bit for bit equal to those of the whole pass with the same weights. The boundary is not
    changed.
    Only one resumed pass may run at a time. The stages are not changed, apart from their `forward` during the pass.
    """
    modules = stage_modules(backbone)

    def hand_on(state: Any, *args: Any, **kwargs: Any) -> Any:
        return state if start.rest is None else (state, *map(_copy, start.rest))

    def put(module: nn.Module, args: Any) -> Any:
        return (_copy(start.state), *args[1:])

    with _one_resumed_pass.held, ExitStack() as stack:
        for module in modules[: start.stage]:
            stack.callback(_put_back, module, module.__dict__.get("forward"))
            module.forward = hand_on
        stack.callback(modules[start.stage].register_forward_pre_hook(put).remove)
        features: Features = backbone({name: _copy(x) for name, x in inputs.items()})  # handed on, and written into
        return features


def _copy(value: Any) -> Any:
    """A copy, because a stage may write into its input and a boundary is used more than once."""
    return value.clone() if isinstance(value, Tensor) else value


def _put_back(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Restores the module's own `forward` if it had one beside its class's, as compiled and wrapped modules do."""
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.forward = forward


def groups(backbone: nn.Module) -> dict[str, int]:
    """The group of each parameter: 0 before the stages, 1 to L for the stages, L + 1 for what is called after them.

    A module that is first called between two stages belongs to the group of the earlier one, because the input of the
    later one depends on it. One dummy pass without gradients, in evaluation mode and with the backbone's pooling, tells
    the order of calls. A parameter belongs to the nearest called module around it.
    Raises LawError if a stage is never called, called more than once, called out of order, or lies inside another one.
    """
    paths = as_backbone(backbone).stages
    if not paths:
        raise LawError("the backbone names no stages; one that nobody has taken apart has a single stage")
    for inner, outer in itertools.permutations(paths, 2):
        if f"{inner}.".startswith(f"{outer}."):
            raise LawError(f"stage {inner} lies inside stage {outer}; stages are called one after the other")
    try:
        called, before = _calls(meta_copy(backbone))
    except Exception:  # noqa: BLE001, a model may do what needs values; a true mistake is raised again below
        called, before = _calls(backbone)
    for index, path in enumerate(paths):
        if called.count(index) != 1:
            raise LawError(
                f"stage {path} is called {called.count(index)} times in one pass; each stage is called exactly once"
            )
    if called != sorted(called):
        raise LawError(f"stages are called in the order {', '.join(paths[index] for index in called)}; name them so")
    found: dict[str, int] = {}
    for name, _ in backbone.named_parameters():
        stage = [index for index, path in enumerate(paths, 1) if name.startswith(f"{path}.")]
        found[name] = stage[0] if stage else _group_outside(name, before, len(paths))
    return found


def _calls(backbone: nn.Module) -> tuple[list[int], dict[str, int]]:
    """The stages in the order in which one dummy pass calls them, and the modules that it calls outside of them.

    For each module outside, by name: the number of stages that had been called before its first call.
    """
    paths = as_backbone(backbone).stages
    inside = tuple(f"{path}." for path in paths)
    called: list[int] = []
    before: dict[str, int] = {}
    with ExitStack() as stack:
        for index, module in enumerate(stage_modules(backbone)):

            def count(module: nn.Module, args: Any, index: int = index) -> None:
                called.append(index)

            stack.callback(module.register_forward_pre_hook(count).remove)
        for name, module in backbone.named_modules():
            if not name or f"{name}.".startswith(inside):
                continue

            def note(module: nn.Module, args: Any, name: str = name) -> None:
                before.setdefault(name, len(called))

            stack.callback(module.register_forward_pre_hook(note).remove)
        dummy_pass(backbone)
    return called, before


def _group_outside(parameter: str, before: Mapping[str, int], num_stages: int) -> int:
    """The group of a parameter that lies in no stage, by the nearest called module around it."""
    path = parameter
    while path:
        path = path.rpartition(".")[0]
        if path in before:
            return before[path] if before[path] < num_stages else num_stages + 1
    return 0


# -- what a backbone calls, without its values: a pass of dummy inputs over a copy on the meta device ------------------


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy of a module on the meta device. Changes to the copy do not affect the original.

    Plain attributes are shared with the original. A model that reads a tensor from one of them fails on the meta
    device, and the caller then uses the original with its real values.
    """
    return _copied(module, {}, {})


def dummy_pass(backbone: nn.Module) -> None:
    """Runs one pass and the pooling on dummy inputs, in evaluation mode without gradients; restores all modes."""
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
