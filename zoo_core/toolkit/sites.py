"""Changes at sites: modules that an adapter attaches to a weight with a role, and that can be folded into it.

A change is a module of its own, registered below the frozen module that owns the weight, and the output of the frozen
module passes through it. The backbone's paths, keys and roles stay as they were. If a model reads a weight without
calling the module that owns it, the change is applied to the weight instead, as a torch parametrisation.
Changes at one site act on outputs in the order in which they were attached. All changes of the input act before them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo_core.contracts import ROLES, Backbone, Site, as_backbone
from zoo_core.errors import RefusedError
from zoo_core.toolkit.stages import stage_index

__all__ = [
    "SiteChange",
    "attach",
    "bias_of",
    "capture_sites",
    "changes_of",
    "channels_first",
    "example_for",
    "fold_changes",
    "free_name",
    "read_bias",
    "read_weight",
    "sites_for",
    "weight_of",
]


class SiteChange(nn.Module):
    """What an adapter adds at one site. A subclass owns the parameters and the dropout.

    Axes: I inputs and O outputs of the site (its rows and columns of a fused weight), R the kernel of a convolution.
    site: where it is attached. label: the name under which it was attached.
    weight_only: whether the change amounts to another weight, as low-rank updates do. Only such a change can be applied
    where the weight is read without a call.
    mergeable: whether `fold` computes the same as this module.
    reads_weight: whether the change is computed from the layer's own weight. It must then be the first change of the
    weight, and the only one.
    """

    weight_only: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    changes_inputs: ClassVar[bool] = False
    reads_weight: ClassVar[bool] = False
    site: Site
    label: str

    def inputs(self, x: Tensor) -> Tensor:
        """The input that the layer gets in place of x [..., I]. Called only for a change that sets `changes_inputs`."""
        return x

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The output of the site in place of y [..., O] (or [B, O, H, W]). x: the input of the layer."""
        raise NotImplementedError

    def act_on(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """`forward` for a change that also needs the layer itself. Other changes do not override this."""
        changed: Tensor = self(x, y)
        return changed

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight [O, I], [O, I / groups, *R] or [D], and bias [O], that compute the same without this module."""
        raise NotImplementedError

    def products(self) -> tuple[tuple[Tensor, Tensor, float], ...]:
        """B [O, r], A [r, I] and the factor s of each product s B A that this change adds to the weight.

        For a convolution B is [O, r, 1, ...] and A is [r, I, *R]. Empty if the change is no such sum, as with groups.
        """
        return ()

    # -- hooks of the module that owns the weight -------------------------------------------------------------------

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        return (_within(x, _axis(module), self.site.inputs, self.inputs), *args[1:])

    def leave(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        axis = _axis(module)
        x = _part(args[0], axis, self.site.inputs)
        return _within(y, axis, self.site.outputs, lambda rows: self.act_on(module, x, rows))

    def interrupt(self, inner: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """As `leave`, before the activation that a norm holds; nobody asks there what the norm was given."""
        return (self(args[0], args[0]), *args[1:])


class _InWeight(nn.Module):
    """A change as a torch parametrisation, which torch calls wherever the weight is read."""

    def __init__(self, change: SiteChange) -> None:
        super().__init__()
        self.change = change

    def forward(self, weight: Tensor) -> Tensor:
        return _with_rows(weight, self.change.site, self.change.fold(_rows(weight, self.change.site), None)[0])


def attach(backbone: nn.Module, site: Site, change: SiteChange, name: str) -> None:
    """Attaches a change at a site. name: of the module that is registered there, with a number added if it is taken.

    Raises RefusedError if the weight is read without a call and the change is not `weight_only`, or if another change
    is in the way.
    """
    owner = backbone.get_submodule(site.path)
    change.site, change.label = site, name
    _check_neighbours(owner, change)
    change.to(device=read_weight(backbone, site).device)
    if site.called:
        owner.add_module(free_name(owner, name), change)
        if change.changes_inputs:
            owner.register_forward_pre_hook(change.enter)
        inner = _called_inside(owner, site)
        if inner is None:
            owner.register_forward_hook(change.leave)
        else:
            inner.register_forward_pre_hook(change.interrupt)
        return
    if not change.weight_only:
        raise RefusedError(
            f"{name}: the backbone reads the weight of {site.path} without calling it, so only a change of the weight "
            f"acts there; lora and dora make one"
        )
    parametrize.register_parametrization(owner, site.parameter, _InWeight(change))


def sites_for(backbone: nn.Module, alternatives: Sequence[frozenset[str]]) -> list[Site]:
    """The sites of the first alternative whose roles the backbone has all of, role by role, in the order of ROLES.

    Raises RefusedError that names the roles of the backbone.
    """
    source: Backbone = as_backbone(backbone)
    for roles in alternatives:
        if all(source.sites(role) for role in roles):
            return [site for role in ROLES if role in roles for site in source.sites(role)]
    wanted = " or else ".join(" and ".join(sorted(roles)) for roles in alternatives)
    present = ", ".join(role for role in ROLES if source.sites(role))
    raise RefusedError(f"it works on {wanted}; the backbone has {present or 'no roles'}")


@contextmanager
def capture_sites(backbone: nn.Module, wanted: Iterable[tuple[int, str]]) -> Iterator[dict[tuple[int, str], Tensor]]:
    """While open, fills {(stage, role): what the projection with that role in that stage gives, [B, T, O]}.

    A stage is counted from 0, or from the end if negative. What adapters change there is in it.
    Raises RefusedError for a stage without one called projection of that role.
    """
    found: dict[tuple[int, str], Tensor] = {}

    def keep(key: tuple[int, str], site: Site) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[key] = _part(output, -1, site.outputs).clone()  # gradients flow, and a later write spares it

        return hook

    with ExitStack() as stack:
        for key in wanted:
            site = _site_in(backbone, *key)
            hook = backbone.get_submodule(site.path).register_forward_hook(keep(key, site))
            stack.callback(hook.remove)
        yield found


def _site_in(backbone: nn.Module, stage: int, role: str) -> Site:
    """The one site of a role in a stage, whose module is called."""
    source: Backbone = as_backbone(backbone)
    inside = f"{source.stages[stage_index(backbone, stage)]}."
    sites = [site for site in source.sites(role) if f"{site.path}.".startswith(inside)]
    if len(sites) != 1:
        raise RefusedError(f"stage {inside.removesuffix('.')} has {len(sites)} projections {role}; one is needed")
    if not sites[0].called:
        raise RefusedError(f"the backbone reads the weight of {sites[0].path} without calling it, so nothing leaves it")
    return sites[0]


def read_weight(backbone: nn.Module, site: Site) -> Tensor:
    """The weight of a site, [O, I], [O, I / groups, *R] or [D]: its rows of a fused weight, as a view if possible."""
    return weight_of(backbone.get_submodule(site.path), site)


def weight_of(owner: nn.Module, site: Site) -> Tensor:
    """The same as `read_weight`, given the module that owns the weight.

    Raises RefusedError if an adapter has replaced that module by one of its own.
    """
    if site.parameter not in owner._parameters and not parametrize.is_parametrized(owner, site.parameter):
        kind = f"{type(owner).__module__.partition('.')[0]}'s {type(owner).__name__}"
        raise RefusedError(
            f"{site.path} has been replaced by {kind}, to which nothing can be attached; write its adapter after this"
        )
    return _rows(getattr(owner, site.parameter), site)


def read_bias(backbone: nn.Module, site: Site) -> Tensor | None:
    """The bias of a site [O], only its rows of a fused layer. None if the layer has no bias."""
    return bias_of(backbone.get_submodule(site.path), site)


def bias_of(owner: nn.Module, site: Site) -> Tensor | None:
    """The same as `read_bias`, given the module that owns the weight."""
    bias = getattr(owner, "bias", None)
    if not isinstance(bias, Tensor):
        return None
    return bias if site.outputs is None else bias[slice(*site.outputs)]


def channels_first(module: nn.Module) -> bool:
    """Whether axis 1 of a layer's output holds the channels, [B, O, H, W]. Otherwise the last axis does."""
    if getattr(module, "data_format", None) == "channels_first":  # ConvNeXt's norms in transformers
        return True
    return isinstance(module, _CHANNELS_FIRST) or "2d" in type(module).__name__.lower()


def changes_of(module: nn.Module) -> Iterator[tuple[str, nn.Module, list[SiteChange]]]:
    """Each module with changes attached: its path, the module, and the changes in the order in which they act."""
    for path, owner in module.named_modules():
        if isinstance(owner, _InWeight):
            continue
        found = _attached(owner)
        if found:
            yield path, owner, found


@torch.no_grad()
def fold_changes(backbone: nn.Module) -> None:
    """Folds every change into the weight of its site and removes it. The backbone then has its original keys.

    Raises RefusedError, before anything is folded, for a change that cannot be folded. The same goes for a layer that
    uses its weight in a way of its own (weight standardisation), where the folded weight would give other outputs.
    """
    changed = list(changes_of(backbone))
    for path, _, found in changed:
        for change in found:
            if not change.mergeable:
                raise RefusedError(f"{change.label} at {path} does not fold into plain weights")
    for path, owner, found in changed:
        if not found[0].site.called:
            _fold_parametrised(owner, found[0].site.parameter)
            continue
        trial = copy.deepcopy(owner).cpu().double()  # where rounding hides no difference
        x = example_for(trial, found[0].site)
        before = trial(x)
        _fold_called(trial)
        if not torch.allclose(before, trial(x), rtol=0, atol=1e-5 * float(before.abs().max())):
            raise RefusedError(
                f"{found[0].label} at {path}: {type(owner).__name__} does not use its weight as it stands, so nothing "
                f"can be folded into it; use the model unmerged"
            )
        _fold_called(owner)


_CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm),
    *(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm),
)


def _attached(owner: nn.Module) -> list[SiteChange]:
    found = [child for child in owner.children() if isinstance(child, SiteChange)]
    if parametrize.is_parametrized(owner):
        lists: Any = owner.parametrizations
        found += [each.change for listed in lists.values() for each in listed if isinstance(each, _InWeight)]
    return found


def _check_neighbours(owner: nn.Module, change: SiteChange) -> None:
    """Raises RefusedError for two changes of one weight if either of them is computed from the layer's own weight."""
    for other in _attached(owner):
        if not _overlap(change.site, other.site) or other.changes_inputs:
            continue
        if change.reads_weight or (other.reads_weight and change.weight_only):
            reader = change if change.reads_weight else other
            raise RefusedError(
                f"{change.label}: {change.site.path} has {other.label} already, and {reader.label} takes the weight "
                f"there as the layer's own: it comes first, and no other change of that weight with it; leave one out, "
                f"or give them other roles"
            )


def _overlap(one: Site, other: Site) -> bool:
    pairs = ((one.outputs, other.outputs), (one.inputs, other.inputs))
    return one.parameter == other.parameter and all(
        a is None or b is None or max(a[0], b[0]) < min(a[1], b[1]) for a, b in pairs
    )


@torch.no_grad()
def _called_inside(owner: nn.Module, site: Site) -> nn.Module | None:
    """What a norm that holds its activation calls first: what comes before that is what its weight gives."""
    children = [child for child in owner.children() if not isinstance(child, SiteChange)]
    if site.kind != "norm" or not children:
        return None
    called: list[nn.Module] = []
    hooks = [child.register_forward_pre_hook(lambda child, _: called.append(child)) for child in children]
    try:
        type(owner).forward(owner, example_for(owner, site))
    finally:
        for hook in hooks:
            hook.remove()
    return called[0] if called else None


def _axis(module: nn.Module) -> int:
    return 1 if channels_first(module) else -1


def _part(x: Tensor, axis: int, rows: tuple[int, int] | None) -> Tensor:
    return x if rows is None else x.narrow(axis, rows[0], rows[1] - rows[0])


def _within(x: Tensor, axis: int, rows: tuple[int, int] | None, change: Callable[[Tensor], Tensor]) -> Tensor:
    """x with the part between two indices along an axis replaced by the result of `change`."""
    if rows is None:
        return change(x)
    start, stop, end = *rows, x.shape[axis]
    before, part, after = x.split([start, stop - start, end - stop], dim=axis)  # one gradient; three of narrow are slow
    return torch.cat([before, change(part), after], dim=axis)


def _fold_called(owner: nn.Module) -> None:
    found = _attached(owner)
    for change in sorted(found, key=lambda change: change.changes_inputs):  # inputs change before all else
        _fold(owner, change)
    _detach(owner, found)


def _fold(owner: nn.Module, change: SiteChange) -> None:
    site = change.site
    parameter = getattr(owner, site.parameter)
    bias = getattr(owner, "bias", None)
    rows = bias if bias is None or site.outputs is None else bias[slice(*site.outputs)]
    weight, shifted = change.fold(_rows(parameter, site), rows)
    parameter.copy_(_with_rows(parameter, site, weight))
    if shifted is not None:
        assert rows is not None, "a change may not give a bias to a layer that has none"
        rows.copy_(shifted)


def _fold_parametrised(owner: nn.Module, name: str) -> None:
    """As remove_parametrizations does it, which would take the weight from every deep copy of the module too."""
    listed: Any = owner.parametrizations[name]  # type: ignore[index]
    assert all(isinstance(each, _InWeight) for each in listed), "a weight that is computed otherwise is no site"
    weight = listed.original
    weight.copy_(getattr(owner, name))
    del owner.parametrizations
    owner.__class__ = type(owner).__bases__[0]
    owner.register_parameter(name, weight)
    for other in [each for each in owner._parameters if each != name]:  # keys in the base's order
        owner._parameters[other] = owner._parameters.pop(other)


def _detach(owner: nn.Module, changes: Sequence[SiteChange]) -> None:
    for name, child in list(owner.named_children()):
        if any(child is change for change in changes):
            delattr(owner, name)
    for module in owner.modules():  # a norm's activation has hooks too
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if any(getattr(hook, "__self__", None) is change for change in changes):
                    hooks.pop(key)


def free_name(owner: nn.Module, name: str) -> str:
    """A name that none of a module's children has: this one, or this one with a number."""
    taken = dict(owner.named_children())
    return next(each for each in chain([name], (f"{name}_{n}" for n in count(2))) if each not in taken)


def _rows(weight: Tensor, site: Site) -> Tensor:
    """The rows and columns of the site alone, outputs first."""
    if site.out_axis == 1:
        weight = weight.transpose(0, 1)
    if site.outputs is not None:
        weight = weight[slice(*site.outputs)]
    return weight if site.inputs is None else weight[:, slice(*site.inputs)]


def _with_rows(weight: Tensor, site: Site, rows: Tensor) -> Tensor:
    """The whole weight as its module stores it, with other rows at the site."""
    if site.inputs is not None or site.outputs is not None:
        whole = weight.transpose(0, 1) if site.out_axis == 1 else weight
        outputs = site.outputs or (0, whole.shape[0])
        inside = whole[slice(*outputs)]
        if site.inputs is not None:
            start, stop = site.inputs
            rows = torch.cat([inside[:, :start], rows, inside[:, stop:]], dim=1)
        rows = torch.cat([whole[: outputs[0]], rows, whole[outputs[1] :]], dim=0)
    return rows.transpose(0, 1) if site.out_axis == 1 else rows


def example_for(owner: nn.Module, site: Site) -> Tensor:
    """Inputs that the layer accepts, drawn from a generator of their own."""
    weight: Tensor = getattr(owner, site.parameter)
    generator = torch.Generator().manual_seed(0)
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        sides = [3 + (size - 1) * dilation for size, dilation in zip(owner.kernel_size, owner.dilation, strict=True)]
        shape = [2, owner.in_channels, *sides]
    elif channels_first(owner):
        shape = [2, weight.shape[0], 3] if "1d" in type(owner).__name__.lower() else [2, weight.shape[0], 3, 3]
    else:
        shape = [2, 3, weight.shape[0 if weight.ndim == 1 or site.out_axis == 1 else 1]]
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(weight)
