"""The attention seam: the call of scaled_dot_product_attention inside a stage, intercepted with hooks.

Keys and values are added to it, among those of the tokens or beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo_core.contracts import as_backbone
from zoo_core.toolkit.stages import dummy_pass, meta_copy

__all__ = [
    "AttentionCall",
    "GatedKeysValues",
    "KeysValues",
    "attend_beside",
    "attend_to",
    "attention_calls",
    "attention_shapes",
]

KeysValues = Callable[[], tuple[Tensor, Tensor]]
"""What `attend_to` asks at each pass."""
GatedKeysValues = Callable[[], tuple[Tensor, Tensor, Tensor]]
"""What `attend_beside` asks at each pass."""

_Arguments = dict[str, Any]  # of a call of scaled_dot_product_attention, by name
_Call = Callable[..., Tensor]  # that function itself
_Around = Callable[[_Call, _Arguments], Tensor]  # makes the call, and what it wants before and after


class _Attention(TorchFunctionMode):
    """Lets `around` make each call of scaled_dot_product_attention.

    frame: of the stage's call, None while compiling. An interrupt (Ctrl-C) skips forward hooks, so a mode may stay
    entered; it does nothing once its call is over. Only a model compiled after that would still see it.
    """

    def __init__(self, around: _Around, frame: FrameType | None) -> None:
        super().__init__()
        self.around = around
        self.frame = frame

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention or not self.is_running():
            return func(*args, **(kwargs or {}))
        return self.around(func, dict(zip(_SDPA_ARGUMENTS, args, strict=False)) | dict(kwargs or {}))

    def is_running(self) -> bool:
        """Whether the stage's call is under way in this thread."""
        if torch.compiler.is_compiling() or self.frame is None:
            return True
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


@dataclass(frozen=True)
class AttentionCall:
    """The shapes of what one call of scaled_dot_product_attention is given: [..., heads, T, head_dim]."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]


@dataclass
class _Seen:
    """Leaves every call as it is and notes its shapes."""

    calls: list[AttentionCall] = field(default_factory=list)

    def __call__(self, attention: _Call, call: _Arguments) -> Tensor:
        self.calls.append(AttentionCall(*(tuple(call[name].shape) for name in ("query", "key", "value"))))
        return attention(**call)


@dataclass
class _Prefixed:
    """Adds keys and values to every call."""

    keys_values: KeysValues

    def __call__(self, attention: _Call, call: _Arguments) -> Tensor:
        return attention(**_extended(call, *self.keys_values()))


@dataclass
class _Beside:
    """Adds to what every call gives what its queries find among other keys, times a gate."""

    gated: GatedKeysValues

    def __call__(self, attention: _Call, call: _Arguments) -> Tensor:
        key, value, gate = self.gated()
        # written out: as a call of attention it would be seen, and lengthened, by a prefix that was there before
        query: Tensor = call["query"]
        key, value = (_for_heads(x.to(query.dtype), query.shape[-3]) for x in (key, value))
        scale: float = call.get("scale") or query.shape[-1] ** -0.5
        weights = (scale * query @ key.transpose(-2, -1)).softmax(dim=-1)
        found = attention(**call)
        return found + (gate * (weights @ value.to(weights.dtype))).to(found.dtype)


_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _extended(call: _Arguments, prefix_key: Tensor, prefix_value: Tensor) -> _Arguments:
    """The arguments of an attention call with P more keys and values before the real ones."""
    length = prefix_key.shape[-2]
    if length == 0:
        return call
    query, key, value = call["query"], call["key"], call["value"]
    mask = call.get("attn_mask")
    if call.get("is_causal"):
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        mask = mask.expand(*mask.shape[:-1], key.shape[-2])  # it may hold one value for all keys
        seen = mask.new_ones(()) if mask.dtype == torch.bool else mask.new_zeros(())
        mask = torch.cat([seen.expand(*mask.shape[:-1], length), mask], dim=-1)
    return call | {
        "key": _prepended(prefix_key, key),
        "value": _prepended(prefix_value, value),
        "attn_mask": mask,
        "is_causal": False,
    }


def _prepended(prefix: Tensor, x: Tensor) -> Tensor:
    prefix = _for_heads(prefix.to(x.dtype), x.shape[-3])
    return torch.cat([prefix.expand(*x.shape[:-3], *prefix.shape), x], dim=-2)


def _for_heads(x: Tensor, num_heads: int) -> Tensor:
    """[heads, P, head_dim] for more heads: a model of grouped queries may have repeated its keys before the call."""
    return x if x.shape[0] == num_heads else x.repeat_interleave(num_heads // x.shape[0], dim=0)


def _call_of_module() -> FrameType | None:
    """The frame of the module call that a hook was called from, None while compiling."""
    frame = None if torch.compiler.is_compiling() else sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame


class _AttentionHooks:
    """Enters a function mode in a stage's own pre-hook and leaves it in its forward hook, also after an error.

    Bound methods, so that a deep copy of the stage carries a copy of the keys and values and not the original's.
    """

    def __init__(self, stage: nn.Module, around: _Around) -> None:
        self.around = around
        self.entered: list[_Attention] = []
        self.handles = (
            stage.register_forward_pre_hook(self.enter),
            stage.register_forward_hook(self.leave, always_call=True),
        )

    def enter(self, module: nn.Module, args: Any) -> None:
        self.entered.append(_Attention(self.around, _call_of_module()))
        self.entered[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        for place in reversed(range(len(self.entered))):
            if self.entered[place].is_running():  # not another thread's, nor one that an interrupt left behind
                self.entered.pop(place).__exit__(None, None, None)  # type: ignore[no-untyped-call]
                return

    def __getstate__(self) -> dict[str, Any]:
        """For copies: nothing is under way in them."""
        return self.__dict__ | {"entered": []}

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def attention_shapes(backbone: nn.Module, paths: Sequence[str] | None = None) -> list[list[AttentionCall]]:
    """Of each stage, its calls of scaled_dot_product_attention in one dummy pass; without values where that will do.

    paths: other modules to look at than the stages.
    """
    paths = as_backbone(backbone).stages if paths is None else paths
    try:
        return _attention_shapes(meta_copy(backbone), paths)
    except Exception:  # noqa: BLE001, a model may do what needs values; a true mistake is raised again below
        return _attention_shapes(backbone, paths)


def _attention_shapes(backbone: nn.Module, paths: Sequence[str]) -> list[list[AttentionCall]]:
    seen = [_Seen() for _ in paths]
    hooks = [_AttentionHooks(backbone.get_submodule(path), each) for path, each in zip(paths, seen, strict=True)]
    try:
        dummy_pass(backbone)
    finally:
        for hook in hooks:
            hook.remove()
    return [each.calls for each in seen]


def attention_calls(backbone: nn.Module) -> list[int]:
    """How often each stage calls scaled_dot_product_attention in one dummy pass."""
    return [len(calls) for calls in attention_shapes(backbone)]


def attend_to(stage: nn.Module, keys_values: KeysValues) -> Callable[[], None]:
    """From now on every query in the stage also attends to P more keys and values, put before the real ones.

    stage: or the module of attention in it: when a checkpointed stage is computed again for its backward pass, what is
    inside of it is called again, and perhaps not its own hooks. keys_values: gives two tensors float
    [heads, P, head_dim] at each pass; with P = 0 the call is left as it was. A module or a bound method, so that a deep
    copy of the stage gets its own; a closure would keep the original's.
    A mask is padded so that all see the added ones; a causal call gets its mask written out.
    Returns what takes it back. Silent where a stage does not call that function: see `attention_calls`.
    Source: Li & Liang 2021, section 4 (prefix tuning as per-layer keys and values).
    """
    return _AttentionHooks(stage, _Prefixed(keys_values)).remove


def attend_beside(stage: nn.Module, gated: GatedKeysValues) -> Callable[[], None]:
    """From now on what attention gives in the stage has added to it what its queries find among P other keys.

    y + gate * softmax(scale q K^T) V: a softmax of its own, so that a gate of zero leaves every bit as it was. No mask
    and no dropout act on the P.
    gated: gives float keys and values [heads of keys, P, head_dim] and the gate [heads of queries, 1, 1] at each pass;
    a module or a bound method, as for `attend_to`. Returns what takes it back.
    Source: Zhang et al. 2023, "LLaMA-Adapter", equations 6 to 8.
    """
    return _AttentionHooks(stage, _Beside(gated)).remove
