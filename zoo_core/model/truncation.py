"""Implements `until=k` for every backbone: the backbone ends after stage k, and the rest is removed.

The output of stage k becomes the features, unchanged. Every module that a forward pass calls after it (later stages,
modules between them, the final norm) is replaced by one that returns its input. So the backbone's own code still
arranges the features and their mask, and a comparison of values confirms that the features are the output of stage k.
If they are not, because that code does more than call modules, the pass is ended at stage k, and the hidden state there
becomes the features.
The modules after the last stage (group L + 1) are removed even for k = L, because their weights were trained for the
output of the last stage and have its width. A pooling with weights is replaced by the mean over real tokens or
positions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core._process.interrupts import raise_interrupt
from zoo_core.contracts import Extendable, Features, FeatureSpec, Site, as_backbone
from zoo_core.errors import RefusedError
from zoo_core.toolkit.features import channels_first, masked_mean

__all__ = ["Truncated", "truncated"]

INSIDE = "whole."  # before the paths of modules of the backbone that was cut


def truncated(backbone: nn.Module, until: int) -> Truncated:
    """Cuts the backbone after stage `until`, counted from 1, in place. A pass with dummy inputs measures its features.

    Raises RefusedError if the stage returns no tensor. Also if the pass must be ended at the stage, but the features
    have a mask, which only the later code makes, or the hidden state has neither 2, 3 nor 4 axes.
    """
    inputs = _inputs(backbone)
    with _looking(backbone):
        seen = _look(backbone, inputs, until)
    state = seen.output[0] if isinstance(seen.output, tuple) else seen.output
    if not isinstance(state, Tensor):
        raise RefusedError(
            f"the backbone cannot end after stage {until}, which gives a {type(state).__name__} and no tensor; "
            f"take another backbone"
        )
    rest = _Rest() if isinstance(seen.output, tuple) else None
    if rest is not None:
        backbone.get_submodule(as_backbone(backbone).stages[until - 1]).register_forward_hook(rest.note)
    found, features = _cut(backbone, until, seen, inputs, state, rest)
    with _looking(found):
        pooled = features.x if features.kind == "pooled" else found.pool(features)
    dim, pooled_dim = features.x.shape[1 if features.kind == "map" else -1], pooled.shape[-1]
    found.features = FeatureSpec(kind=features.kind, dim=dim, pooled_dim=pooled_dim if pooled_dim != dim else None)
    return found


def _cut(
    backbone: nn.Module, until: int, seen: _Seen, inputs: Mapping[str, Tensor], state: Tensor, rest: _Rest | None
) -> tuple[Truncated, Features]:
    """The backbone without the modules to be dropped, and the features of one pass with dummy inputs."""
    stages = as_backbone(backbone).stages
    for name in seen.dropped:
        _put(backbone, name, _PassOn(backbone.get_submodule(name), rest if name in stages else None))
    found = Truncated(backbone, until, seen.dropped, has_pool=seen.has_pool, rest=rest)
    with _looking(found):
        features = _handed_on(found, inputs, state)
        if features is None:
            if seen.is_masked or state.ndim not in (2, 3, 4):
                raise RefusedError(
                    f"the backbone cannot end after stage {until}: its own code, and no module, makes features of what "
                    f"leaves it; take another stage or backbone"
                )
            found.ends_early, found.has_pool = True, False
            found.channels_first = state.ndim != 4 or channels_first(state, backbone.get_submodule(stages[until - 1]))
            features = as_backbone(found)(inputs)
    return found, features


class Truncated(nn.Module):
    """A backbone that ends after one of its stages, under the backbone contract.

    ends_early: whether the pass is ended at that stage, so that its output becomes the features.
    channels_first: whether that output, if it is a map, is [B, C, H, W] rather than [B, H, W, C].
    """

    features: FeatureSpec

    def __init__(
        self, whole: nn.Module, until: int, dropped: Sequence[str], *, has_pool: bool, rest: _Rest | None
    ) -> None:
        super().__init__()
        source = as_backbone(whole)
        self.whole = whole
        self.modality = source.modality
        self.preparation = source.preparation
        self.stages = tuple(f"{INSIDE}{path}" for path in source.stages[:until])
        self.has_pool = has_pool
        self.ends_early = False
        self.channels_first = True
        self._dropped = tuple(f"{name}." for name in dropped)
        self._rest = rest

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        if self.ends_early:
            return self._laid_out(self._state(inputs))
        try:
            features: Features = self.whole(inputs)
        finally:
            if self._rest is not None:
                self._rest.items = ()
        return features

    def _state(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The output of the last stage, after all hooks that adapters registered on it."""
        handle = self.get_submodule(self.stages[-1]).register_forward_hook(_end)
        try:
            self.whole(inputs)
        except _End as end:
            return end.state
        finally:
            handle.remove()
        raise AssertionError("each stage is called once")

    def _laid_out(self, state: Tensor) -> Features:
        if state.ndim == 4:
            return Features(kind="map", x=state if self.channels_first else state.permute(0, 3, 1, 2))
        return Features(kind="tokens" if state.ndim == 3 else "pooled", x=state)

    def pool(self, features: Features) -> Tensor:
        """Pools features to float [B, D]: by the backbone's own pooling if `has_pool`, else by the mean."""
        if self.has_pool:
            return as_backbone(self.whole).pool(features)
        return features.x if features.kind == "pooled" else masked_mean(features)

    def sites(self, role: str) -> tuple[Site, ...]:
        return tuple(
            replace(site, path=f"{INSIDE}{site.path}")
            for site in as_backbone(self.whole).sites(role)
            if not f"{site.path}.".startswith(self._dropped)
        )

    def extend(self, prompt: nn.Module, length: int) -> int:
        """Extends the whole backbone: see zoo_core.contracts.Extendable. Raises RefusedError if that is impossible."""
        if not isinstance(self.whole, Extendable) or self.ends_early:
            raise RefusedError("the backbone has no `extend`, so no learned tokens can stand among its own")
        return self.whole.extend(prompt, length)


class _End(Exception):  # noqa: N818
    """Raised to end a pass at the last stage. It carries the hidden state."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state


def _end(module: nn.Module, args: Any, output: Any) -> None:
    raise _End(output[0] if isinstance(output, tuple) else output)


class _Rest:
    """What a stage returns after the hidden state. The hook is a bound method, so a deep copy has its own."""

    def __init__(self) -> None:
        self.items: tuple[Any, ...] = ()

    def note(self, module: nn.Module, args: Any, output: tuple[Any, ...]) -> None:
        self.items = output[1:]


class _PassOn(nn.Module):
    """Replaces a module that is called after the last stage that is kept, and returns its first input.

    rest: what the last kept stage returns after the hidden state, which a replaced stage must return too; None if that
    stage returns a tensor alone, or if the module is not a stage. Attributes of the replaced module that are text or
    numbers are kept, because a model may read them from its layers.
    """

    def __init__(self, replaced: nn.Module, rest: _Rest | None) -> None:
        super().__init__()
        told = {name: value for name, value in vars(replaced).items() if isinstance(value, str | int | float)}
        self.__dict__.update({name: value for name, value in told.items() if name not in self.__dict__})
        self._rest = rest

    def forward(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the first input as it is, or a tuple of it and `rest`."""
        return state if self._rest is None else (state, *self._rest.items)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one pass shows.

    dropped: the outermost modules that are first called after the stage. output: what the stage returns. has_pool:
    whether the backbone's own pooling has no weights. is_masked: whether the features have a mask.
    """

    dropped: Sequence[str]
    output: Any
    has_pool: bool
    is_masked: bool


def _look(backbone: nn.Module, inputs: Mapping[str, Tensor], until: int) -> _Seen:
    stages = as_backbone(backbone).stages
    kept = tuple(f"{path}." for path in stages[:until])
    when: dict[str, str] = {}  # when each module outside of the kept stages is first called: before, after or pooling
    phase = ["before"]
    given: list[Any] = []

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        phase[0] = "after"
        given.append(copy.deepcopy(output))  # copied, because the next stage may write into its input

    with ExitStack() as stack:
        for name, module in backbone.named_modules():
            if name and not f"{name}.".startswith(kept):

                def note(module: nn.Module, args: Any, name: str = name) -> None:
                    when.setdefault(name, phase[0])

                stack.callback(module.register_forward_pre_hook(note).remove)
        stack.callback(backbone.get_submodule(stages[until - 1]).register_forward_hook(leave).remove)
        features = as_backbone(backbone)(inputs)
        phase[0] = "pooling"
        if features.kind != "pooled":
            as_backbone(backbone).pool(features)
    pooling = [name for name, found in when.items() if found == "pooling"]
    weighty = [name for name in pooling if next(backbone.get_submodule(name).parameters(), None) is not None]
    later = {name for name, found in when.items() if found == "after"} | {*stages[until:], *weighty}
    return _Seen(
        dropped=_outermost(backbone, later), output=given[0], has_pool=not weighty, is_masked=features.mask is not None
    )


def _handed_on(found: Truncated, inputs: Mapping[str, Tensor], state: Tensor) -> Features | None:
    """The features of a pass if they are the output of the stage. None if they are not, or if the pass fails."""
    try:
        features: Features = found(inputs)
    except Exception as error:  # noqa: BLE001, code between modules may fail on such input; the pass ends early then
        raise_interrupt(error)
        return None
    return features if _same_values(features.x, state) else None


def _outermost(backbone: nn.Module, names: Set[str]) -> list[str]:
    """The named modules that are not inside another one of them, in the order of the backbone."""
    found: list[str] = []
    for name, _ in backbone.named_modules():
        if name in names and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
    return found


def _put(backbone: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    backbone.get_submodule(parent).add_module(leaf, module)


@contextmanager
def _looking(backbone: nn.Module) -> Iterator[None]:
    """Runs a block in evaluation mode without gradients, and then restores the mode of every module."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _inputs(backbone: nn.Module) -> dict[str, Tensor]:
    """Dummy inputs on the backbone's device. Floats get noise, because a module may have no visible effect on zeros."""
    generator = torch.Generator().manual_seed(0)
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    with torch.device("cpu"):  # even if the backbone is being built on the meta device
        found = as_backbone(backbone).preparation.dummy(2)
        return {
            name: (x + torch.randn(x.shape, generator=generator) if x.is_floating_point() else x).to(device)
            for name, x in found.items()
        }


def _same_values(x: Tensor, state: Tensor) -> bool:
    """Whether two tensors hold the same values, in any order. On the meta device, whether they have the same size."""
    if x.is_meta or x.numel() != state.numel():
        return x.numel() == state.numel()
    return torch.equal(x.float().flatten().sort().values, state.float().flatten().sort().values)
