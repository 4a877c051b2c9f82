"""Checks once that a built part keeps the promises of its contract, so that a mistake is blamed on its plugin.

For a backbone, this makes one pass with dummy inputs and looks at each site that it names. For a head, it checks the
shape of the predictions for dummy features.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from zoo_core.contracts import ROLES, Features, FeatureSpec, Site, Target, as_backbone
from zoo_core.data.randomness import seeded
from zoo_core.errors import LawError, PluginError, nearest
from zoo_core.registry.bind import Bound
from zoo_core.registry.recipe_checks import broken, plugin_call
from zoo_core.toolkit.stages import groups

__all__ = ["check_backbone", "check_head_module"]

SHAPES = {"pooled": (2,), "tokens": (2, 5), "map": (2, 5, 5)}  # the shapes of dummy features, without their width
HEADED = ("attn.q", "attn.k", "attn.v")  # the roles whose outputs are divided among attention heads


def check_backbone(part: Bound, backbone: nn.Module, *, sites: bool = True) -> None:
    """Raises LawError for wrong stages or features, and PluginError for wrong sites. Both errors name the plugin.

    sites: whether to look at them.
    """
    try:
        with plugin_call(part):
            groups(backbone)
            named = [(role, site) for role in ROLES if sites for site in as_backbone(backbone).sites(role)]
    except LawError as error:
        raise LawError(f"backbone {part.name}, which {_where(part, backbone)}: {error}") from error
    for role, site in named:
        with plugin_call(part):
            problem = _problem(backbone, role, site)
        if problem:
            raise _broken(part, backbone, f"sites({role!r}) names {_told(site)}, {problem}")


def check_head_module(part: Bound, head: nn.Module, features: FeatureSpec, target: Target) -> None:
    """Raises PluginError unless the predictions of a head are [B, C], or [B, T, C] if the target is token classes."""
    batch, *places = SHAPES[features.kind]
    shape = (batch, features.dim, *places) if features.kind == "map" else (batch, *places, features.dim)
    like = next(head.parameters(), torch.zeros(()))
    x = torch.zeros(shape, dtype=like.dtype, device=like.device)
    was = {module: module.training for module in head.modules()}
    head.eval()
    try:
        with plugin_call(part), torch.no_grad(), seeded(0, "dummy features"):
            found = head(Features(kind=features.kind, x=x))
    finally:
        for module, training in was.items():
            module.training = training
    each = tuple(places) if target.kind == "token_classes" else ()
    wanted = (batch, *each, target.size)
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
        gave = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise broken(part, f"of {features.kind} features {list(shape)} it makes {gave}; predictions are {list(wanted)}")


def _problem(backbone: nn.Module, role: str, site: Site) -> str:
    """Why a site is wrong, for the end of a sentence. Empty if it is right."""
    try:
        owner = backbone.get_submodule(site.path)
    except AttributeError:
        return f"and it has no module there{nearest(site.path, [name for name, _ in backbone.named_modules()])}"
    weight = getattr(owner, site.parameter, "")  # not from _parameters: adapters may wrap the owner
    if weight is None and site.kind == "norm":
        return ""  # a norm without scale and shift; the adapters that change norms refuse it themselves
    if not isinstance(weight, Tensor):
        return f"and {type(owner).__name__} has no such tensor{nearest(site.parameter, owner._parameters)}"
    if site.out_axis not in (0, 1) or site.out_axis >= weight.ndim:
        return f"whose out_axis is {site.out_axis} and whose shape is {list(weight.shape)}"
    for name, rows, axis in (("outputs", site.outputs, site.out_axis), ("inputs", site.inputs, 1 - site.out_axis)):
        if rows is not None and not (axis < weight.ndim and 0 <= rows[0] < rows[1] <= weight.shape[axis]):
            return f"whose {name} are {rows[0]} to {rows[1]} and whose shape is {list(weight.shape)}"
    start, stop = site.outputs or (0, weight.shape[site.out_axis])
    if role in HEADED and site.num_heads and site.head_dim and site.num_heads * site.head_dim != stop - start:
        return f"which has {stop - start} outputs for {site.num_heads} heads of {site.head_dim}"
    return ""


def _told(site: Site) -> str:
    return f"{site.path}.{site.parameter}" if site.path else site.parameter


def _where(part: Bound, backbone: nn.Module) -> str:
    try:
        file = inspect.getsourcefile(type(backbone)) or "no file"
    except TypeError:  # an interpreter, or a notebook
        file = "no file"
    return f"{type(backbone).__name__} of {part.provider.distribution} {part.provider.version} in {file} makes"


def _broken(part: Bound, backbone: nn.Module, problem: str) -> PluginError:
    return broken(part, f"{problem} ({_where(part, backbone).removesuffix(' makes')})")
