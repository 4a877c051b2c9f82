"""Layers of peft put in place of the weights that play a role, and folded back into them.

peft finds its targets by the ends of their names, freezes what it did not add, and leaves new modules in training mode;
here it is given full paths, and what it did to its neighbours is undone. It replaces a layer by one of its own that
holds it as `base_layer`, so a weight has the same identity, and another name, afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zoo_core.contracts import Site, as_backbone
from zoo_core.errors import IncompatibleError, RefusedError
from zoo_core.toolkit.sites import example_for, fold_changes, sites_for
from zoo_peft.methods import Method, made_from

__all__ = ["ADAPTER", "inject", "inject_at", "kinds_of", "merge", "tuner_layers"]

ADAPTER = "default"  # the name that peft gives an adapter, which is part of the names of its tensors
TOLERANCE = 1e-3  # relative, as in zoo_core.toolkit.sites: a fold that is wrong is wrong by far more than by rounding
PLAIN: Mapping[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Embedding: "embedding",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
}
REASONS = {
    "dilated": "peft does not take over its dilation",
    "grouped": "peft does not take its groups apart",
    "padded": "peft pads with zeros there",
}


class Shared(nn.ModuleDict):
    """What several layers of one method share, as VeRA's random matrices: registered once, at the backbone."""


def inject(backbone: nn.Module, method: Method, values: Mapping[str, Any], needs: Sequence[frozenset[str]]) -> None:
    """Puts a method's layers where the first alternative of roles that the backbone has says.

    Raises RefusedError where peft cannot do it, or is known to do it wrong.
    """
    sites = sites_for(backbone, needs)
    for site in sites:
        _check_site(backbone, method, site)
    paths = list(dict.fromkeys(site.path for site in sites))  # a fused weight plays several roles
    given = dict(values)
    if method.tuner == "IA3":
        inputs = {site.path for site in as_backbone(backbone).sites("mlp.out")}
        given["feedforward_modules"] = [path for path in paths if path in inputs]
    inject_at(backbone, method, given, paths)


def inject_at(backbone: nn.Module, method: Method, values: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Puts a method's layers at these modules, by their full paths; values: of the fields of its configuration."""
    _check_paths(backbone, method, paths)
    config, make = _configured(backbone, method, values, paths)
    parameters = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    modes = [(module, module.training) for module in backbone.modules()]
    known = {id(module) for module, _ in modes}
    tuner = _made(method, make, backbone, config)
    del backbone.peft_config  # else the next method takes itself for a second adapter of this one
    if sorted(tuner.targeted_module_names) != sorted(paths):
        wrong = sorted(set(tuner.targeted_module_names) ^ set(paths))
        raise RefusedError(f"peft/{method.name}: peft changes {wrong[0]} or not otherwise than it was told")
    for parameter, requires_grad in parameters:
        parameter.requires_grad_(requires_grad)
    for module, mode in modes:
        module.training = mode
    added = [module for module in backbone.modules() if id(module) not in known]
    for module in added:
        module.training = backbone.training
    _register_shared(backbone, tuner, method)
    if method.samples or any("dropout" in name and value for name, value in values.items()):
        for module in added:
            if isinstance(module, BaseTunerLayer):
                module.register_forward_pre_hook(_follow)
                module.register_forward_hook(_stand_still, always_call=True)


def tuner_layers(backbone: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and layer of everything that peft put in place of a layer."""
    found = [(path, module) for path, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]
    outer = [f"{path}." for path, _ in found]
    return ((path, module) for path, module in found if not path.startswith(tuple(outer)))


@torch.no_grad()
def merge(backbone: nn.Module) -> None:
    """Folds the layers of peft into those that they hold, by their own method, and puts these back in their places.

    Raises RefusedError where peft cannot, or gives another function than before. What native adapters added to the
    inner layer is folded before.
    """
    for path, layer in list(tuner_layers(backbone)):
        fold_changes(layer.get_base_layer())
        x = _example(layer.get_base_layer())
        before = layer(x)
        try:
            layer.merge()
        except NotImplementedError as error:
            raise RefusedError(f"{type(layer).__name__} at {path} does not fold into plain weights: {error}") from error
        base = layer.get_base_layer()
        after = base(x)
        if not torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE * float(before.abs().max())):
            raise RefusedError(f"{path}: what peft folds is not what {type(layer).__name__} does; use it unmerged")
        parent, _, name = path.rpartition(".")
        setattr(backbone.get_submodule(parent), name, base)
    for name, child in list(backbone.named_children()):
        if isinstance(child, Shared):
            delattr(backbone, name)


def kinds_of(layer: nn.Module, site: Site) -> frozenset[str]:
    """What a method must be able to handle to work on a layer, in the words of Method.layers; empty: nothing can.

    A layer that computes its weight or its padding in a way of its own is taken for what it is by no method.
    """
    if site.kind == "norm":
        return frozenset({"norm"})
    if isinstance(layer, Conv1D):
        return frozenset({"transposed"})
    for kind, word in PLAIN.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            if not isinstance(layer, nn.Conv1d | nn.Conv2d):
                return frozenset({word})
            if type(layer)._conv_forward is not kind._conv_forward:  # type: ignore[attr-defined]
                return frozenset()
            special = {
                "dilated": set(layer.dilation) != {1},
                "grouped": layer.groups > 1,
                "padded": layer.padding_mode != "zeros",
            }
            return frozenset({word, *(name for name, holds in special.items() if holds)})
    return frozenset()


def _check_site(backbone: nn.Module, method: Method, site: Site) -> None:
    layer = backbone.get_submodule(site.path)
    label, kind = f"peft/{method.name}: {site.path}", type(layer).__name__
    if isinstance(layer, BaseTunerLayer):
        raise RefusedError(f"{label} has been changed by peft already; one method of peft changes a weight")
    if not site.called:
        raise RefusedError(f"{label} is read without being called, so a layer of peft would do nothing; take lora")
    if site.kind == "norm" and "norm" in method.layers:
        return
    kinds = kinds_of(layer, site)
    if not kinds:
        raise RefusedError(f"{label}: {kind} computes its weight or padding in its own way, which peft ignores")
    missing = sorted(kinds - method.layers)
    if not missing:
        return
    reason = REASONS.get(missing[0], f"{method.name} of peft does not work on {kind}")
    works = [name for name in sorted(method.layers) if name not in REASONS]
    raise RefusedError(f"{label} ({kind}): {reason}; it works on {', '.join(works)}: name other roles, or take lora")


def _check_paths(backbone: nn.Module, method: Method, paths: Sequence[str]) -> None:
    """peft takes every module whose name ends like a target for one; full paths are exact unless names repeat."""
    ends = tuple(f".{path}" for path in paths)
    twin = next((name for name, _ in backbone.named_modules() if name.endswith(ends)), None)
    if twin is not None:
        raise RefusedError(f"peft/{method.name}: peft cannot tell {twin} from the weight of which its name is the end")


def _configured(
    backbone: nn.Module, method: Method, values: Mapping[str, Any], paths: Sequence[str]
) -> tuple[Any, Any]:
    """A configuration of peft and the class that puts it to work."""
    label = f"peft/{method.name}"
    if method.tuner not in PeftType.__members__:
        raise IncompatibleError(f"{label} needs a newer peft; {_installed()}")
    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method.tuner]]
    known = {each.name for each in fields(kind)}
    usual = {argument.name: argument.default for argument in method.arguments}
    given: dict[str, Any] = {**values, **method.fixed, "target_modules": list(paths)}
    transposed = {isinstance(backbone.get_submodule(path), Conv1D) for path in paths}
    if transposed == {True, False}:
        raise RefusedError(f"{label}: some of the weights are transposed and some are not; name other roles")
    if "fan_in_fan_out" in known:
        given["fan_in_fan_out"] = transposed == {True}
    for name in sorted(given.keys() - known):
        if name in usual and given[name] != usual[name]:
            raise IncompatibleError(f"{label}: {name} needs a newer peft; {_installed()}")
        del given[name]
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    try:
        return kind(**listed), PEFT_TYPE_TO_TUNER_MAPPING[PeftType[method.tuner]]
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise _refused(method, error) from error


def _installed() -> str:
    return f"{peft.__version__} is installed: pip install 'peft>={made_from()}'"


def _made(method: Method, make: Any, backbone: nn.Module, config: Any) -> Any:
    """peft's tuner, which has changed the backbone; not `inject_adapter_in_model`, which drops what layers share."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failed to load the CUDA extension")  # boft goes on without
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # ln_tuning copies any
            warnings.filterwarnings("ignore", message="Setting boft_n_butterfly_factor to 1")
            return make(backbone, config, ADAPTER)
    except (ValueError, TypeError, NotImplementedError, ImportError, AssertionError) as error:
        raise _refused(method, error) from error


def _refused(method: Method, error: Exception) -> RefusedError:
    said = " ".join(str(error).split()).removesuffix(".")
    return RefusedError(f"peft/{method.name}: peft refuses: {said or type(error).__name__}")


def _register_shared(backbone: nn.Module, tuner: nn.Module, method: Method) -> None:
    """Registers what peft's layers share once, at the backbone; each of them keeps a plain reference to it.

    Otherwise it would be lost with the tuner that holds it, or stand in the delta once for each layer.
    """
    shared = {name: child for name, child in tuner.named_children() if child is not backbone}
    if not shared:
        return
    inside = {id(module) for child in shared.values() for module in child.modules()}
    for layer in backbone.modules():
        if isinstance(layer, BaseTunerLayer):
            for name, child in list(layer._modules.items()):
                if id(child) in inside:
                    del layer._modules[name]
                    layer.__dict__[name] = child
    names = (f"peft_{method.name}", *(f"peft_{method.name}_{n}" for n in range(2, 1000)))
    backbone.add_module(next(name for name in names if not hasattr(backbone, name)), Shared(shared))


def _follow(layer: nn.Module, args: Any) -> None:
    """While it is called, a layer of peft is in training mode if what it adds is: its dropouts ask the layer.

    A learner keeps a module that holds anything frozen in evaluation mode, and a layer of peft holds its weight.
    """
    _set_mode(layer, any(child.training for child in _added(layer) if _has_parameters(child)))


def _stand_still(layer: nn.Module, args: Any, output: Any) -> None:
    _set_mode(layer, False)


def _set_mode(layer: nn.Module, training: bool) -> None:
    layer.training = training
    for child in _added(layer):
        if not _has_parameters(child):
            child.train(training)


def _added(layer: nn.Module) -> list[nn.Module]:
    """What peft added to a layer, what it shares with others included."""
    shared = [value for value in vars(layer).values() if isinstance(value, nn.Module)]
    return [*(child for name, child in layer.named_children() if name != "base_layer"), *shared]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _example(layer: nn.Module) -> Tensor:
    """Inputs that a layer takes, drawn from a generator of their own."""
    if isinstance(layer, nn.Embedding):
        return torch.arange(layer.num_embeddings, device=layer.weight.device)
    out_axis = 1 if isinstance(layer, Conv1D) else 0
    return example_for(layer, Site(path="", out_axis=out_axis))
