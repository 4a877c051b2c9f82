"""The hidden states between the stages of a backbone, read with hooks.

Stages are the modules that a forward pass calls in order. This module captures hidden states and tells which
parameters lie before, in and after the stages. Attention inside a stage is in attention.py.
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
from torch.utils.weak import WeakIdKeyDictionary

from zoo_core.contracts import Features, FeatureSpec, as_backbone
from zoo_core.errors import LawError, RefusedError

__all__ = [
    "boundary",
    "capture",
    "dummy_inputs",
    "dummy_pass",
    "groups",
    "meta_copy",
    "resumed",
    "stage_index",
    "stage_modules",
]


_NDIM = {"map": 4, "tokens": 3, "pooled": 2}  # axes of features


def stage_modules(backbone: nn.Module) -> list[nn.Module]:
    """The stages in calling order. They are looked up each time, because an adapter may have wrapped one since."""
    return [backbone.get_submodule(path) for path in as_backbone(backbone).stages]


def stage_index(backbone: nn.Module, stage: int) -> int:
    """The stage counted from 0, of one that may be counted from the end. Raises RefusedError if there is none."""
    num_stages = len(as_backbone(backbone).stages)
    if not -num_stages <= stage < num_stages:
        counted = stage + 1 if stage >= 0 else stage
        raise RefusedError(
            f"there is no stage {counted}; there are {num_stages}, so 1 to {num_stages}, or from the end"
        )
    return stage % num_stages


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


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass once the boundary is known."""


def boundary(backbone: nn.Module, inputs: Mapping[str, Tensor], stage: int) -> Tensor:
    """Runs the pass up to a stage and returns the hidden state that would enter it. No later stage is run."""
    module = stage_modules(backbone)[stage]
    found: list[Tensor] = []

    def stop(module: nn.Module, args: Any) -> None:
        found.append(args[0])
        raise _Stop

    handle = module.register_forward_pre_hook(stop)
    try:
        backbone(inputs)
    except _Stop:
        return found[0]
    finally:
        handle.remove()
    raise LawError(f"stage {stage} ({as_backbone(backbone).stages[stage]}) was never called")


def resumed(backbone: nn.Module, inputs: Mapping[str, Tensor], stage: int, state: Tensor) -> Features:
    """The features of a pass in which a hidden state enters a stage, and the stages before it are not computed.

    stage: from 0; as many as there are stages: none is computed, and the state is what leaves the last one.
    inputs: for what a backbone computes outside its stages. The number of examples is that of the state, so one
    example is enough for inputs that nothing after the seam reads. What an earlier stage gives beside its hidden state
    is None here; a backbone whose later stages need that has other features than after a whole pass.
    """
    modules, sizes = stage_modules(backbone), _sizes(backbone)
    with ExitStack() as stack:
        for module, size in zip(modules[:stage], sizes, strict=False):
            stack.enter_context(_skipped(module, size, state if module is modules[-1] else None))
        if stage < len(modules):
            stack.callback(modules[stage].register_forward_pre_hook(lambda _, args: (state, *args[1:])).remove)
        features: Features = as_backbone(backbone)(inputs)
    return features


@contextmanager
def _skipped(module: nn.Module, size: int | None, gives: Tensor | None = None) -> Iterator[None]:
    """While open, a stage hands on what enters it, or `gives`. size: of the tuple that it gives, None for a tensor."""

    def handed_on(state: Tensor, *args: Any, **kwargs: Any) -> Any:
        state = state if gives is None else gives
        return state if size is None else (state, *[None] * (size - 1))

    before = module.__dict__.get("forward")
    module.__dict__["forward"] = handed_on
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


_SIZES: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by backbone, of which nothing else is kept


def _sizes(backbone: nn.Module) -> tuple[int | None, ...]:
    """For each stage the size of the tuple that it gives, None for one that gives a tensor."""
    found: tuple[int | None, ...] | None = _SIZES.get(backbone)
    if found is None:
        try:
            found = _measured_sizes(meta_copy(backbone))
        except Exception:  # noqa: BLE001, a model may do what needs values
            found = _measured_sizes(backbone)
        _SIZES[backbone] = found
    return found


def _measured_sizes(backbone: nn.Module) -> tuple[int | None, ...]:
    sizes: list[int | None] = []
    with ExitStack() as stack:
        for module in stage_modules(backbone):

            def note(module: nn.Module, args: Any, output: Any) -> None:
                sizes.append(len(output) if isinstance(output, tuple) else None)

            stack.callback(module.register_forward_hook(note).remove)
        dummy_pass(backbone)
    return tuple(sizes)


def groups(backbone: nn.Module) -> dict[str, int]:
    """The group of each parameter: 0 before the stages, 1 to L for the stages, L + 1 for what is called after them.

    A module that is first called between two stages belongs to the group of the earlier one, because the input of the
    later one depends on it. One dummy pass without gradients, in evaluation mode and with the backbone's pooling, tells
    the order of calls. A parameter belongs to the nearest called module around it.
    Raises LawError if a stage is never called, called more than once, called out of order, or lies inside another one,
    and where the features of the pass are not what the backbone says they are.
    """
    paths = as_backbone(backbone).stages
    if not paths:
        raise LawError("the backbone names no stages; one that nobody has taken apart has a single stage")
    for inner, outer in itertools.permutations(paths, 2):
        if f"{inner}.".startswith(f"{outer}."):
            raise LawError(f"stage {inner} lies inside stage {outer}; stages are called one after the other")
    try:
        called, before, given = _calls(meta_copy(backbone))
    except Exception:  # noqa: BLE001, a model may do what needs values; a true mistake is raised again below
        called, before, given = _calls(backbone)
    for index, path in enumerate(paths):
        if called.count(index) != 1:
            raise LawError(
                f"stage {path} is called {called.count(index)} times in one pass; each stage is called exactly once"
            )
    if called != sorted(called):
        raise LawError(f"stages are called in the order {', '.join(paths[index] for index in called)}; name them so")
    said = _given(as_backbone(backbone).features)
    if given != said:
        raise LawError(f"it says that it gives {said}, and it gives {given}")
    found: dict[str, int] = {}
    for name, _ in backbone.named_parameters():
        stage = [index for index, path in enumerate(paths, 1) if name.startswith(f"{path}.")]
        found[name] = stage[0] if stage else _group_outside(name, before, len(paths))
    return found


@dataclass(frozen=True)
class _Given:
    """Kind and width of the features of a pass, and width once they are pooled; str() is for people."""

    kind: str
    ndim: int
    dim: int
    pooled_dim: int

    def __str__(self) -> str:
        return f"{self.kind} with {self.ndim} axes of width {self.dim}, pooled {self.pooled_dim}"


def _given(spec: FeatureSpec) -> _Given:
    return _Given(spec.kind, _NDIM[spec.kind], spec.dim, spec.width("pooled"))


def _calls(backbone: nn.Module) -> tuple[list[int], dict[str, int], _Given]:
    """The stages in the order in which one dummy pass calls them, what it calls outside of them, and what it gives.

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
        features, pooled = dummy_pass(backbone)
    x = features.x
    return called, before, _Given(features.kind, x.ndim, x.shape[1 if features.kind == "map" else -1], pooled.shape[-1])


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


def dummy_pass(backbone: nn.Module) -> tuple[Features, Tensor]:
    """Runs one pass and the pooling on dummy inputs, in evaluation mode without gradients; restores all modes.

    Returns the features of the pass, and what pooling makes of them.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    inputs = dummy_inputs(backbone, 2)
    backbone.eval()
    try:
        with torch.no_grad(), _Shapes():
            features: Features = as_backbone(backbone)(inputs)
            return features, features.x if features.kind == "pooled" else as_backbone(backbone).pool(features)
    finally:
        for module, mode in modes:
            module.training = mode


def dummy_inputs(backbone: nn.Module, size: int) -> dict[str, Tensor]:
    """Inputs of the right shape, in the backbone's numbers and on its device."""
    inputs = as_backbone(backbone).preparation.dummy(size)
    parameter = next(backbone.parameters(), None)
    return inputs if parameter is None else {name: _like(x, parameter) for name, x in inputs.items()}


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
