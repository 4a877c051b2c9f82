"""A LoRA in peft's own format, read onto a backbone.

The format is a folder of two files: adapter_config.json, a LoraConfig, and adapter_model.safetensors, the tensors
`base_model.model.PATH.lora_A.weight` [r, I] and `.lora_B.weight` [O, r] of each changed module, whose update is
alpha / r times B A.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.contracts import ROLES, Exportable, Site, as_backbone
from zoo_core.errors import IncompatibleError, IntegrityError, RefusedError
from zoo_core.toolkit.weights import read_tensors
from zoo_peft.injection import ADAPTER, inject_at, kinds_of
from zoo_peft.methods import known_methods
from zoo_peft.portable import CONFIG, PREFIX, TENSORS, exactly, plain_prefix

__all__ = ["load_lora"]

KEY = re.compile(r"(?P<path>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector)")
USUAL: Mapping[str, Any] = {  # what a LoRA on weights alone says of these fields, if it says anything
    "bias": "none",
    "use_qalora": False,
    **dict.fromkeys(("trainable_token_indices", "layer_replication", "use_bdlora", "target_parameters")),
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "velora_config", "monteclora_config", "kasa_config")),
}


def load_lora(backbone: nn.Module, folder: Path, *, base: str | None, any_base: bool, label: str) -> None:
    """Puts a LoRA in peft's format onto a backbone, as peft's own layers with the stored numbers; they train on.

    base: the repository or folder that the backbone's files come from. any_base: takes an adapter that names another
    or none, if all its names and shapes fit. A head stored along is left out.
    Raises RefusedError for another method, IncompatibleError for another base, IntegrityError for damaged files.
    """
    config, tensors = _read(folder, label)
    _check_base(config, base, any_base, label)
    parts = _parts(tensors, label)
    places = _places(backbone, parts, label)
    for place in places.values():
        _check_layer(backbone, place, label)
    ranks = {places[path]: found["lora_A.weight"].shape[0] for path, found in parts.items()}
    given: dict[str, Any] = {
        name: config[name] for name in ("lora_dropout", "use_rslora", "use_dora", "lora_bias") if name in config
    }
    given |= {
        "r": next(iter(ranks.values())),
        "rank_pattern": {exactly(place): rank for place, rank in ranks.items()},
        "alpha_pattern": {exactly(places[path]): _alpha(config, path) for path in parts},
    }
    method = known_methods()["lora"]
    inject_at(backbone, method, {each.name: each.default for each in method.arguments} | given, list(ranks))
    for path, found in parts.items():
        _copy_in(backbone, places[path], found, label)


def _read(folder: Path, label: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a folder. Raises IntegrityError if one is missing or damaged."""
    missing = [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]
    if missing:
        raise IntegrityError(f"{label}: an adapter of peft is {CONFIG} and {TENSORS}, and {missing[0]} is missing")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{label}: {CONFIG} is damaged ({error})") from error
    if not isinstance(config, dict):
        raise IntegrityError(f"{label}: {CONFIG} is no JSON object")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RefusedError(f"{label} is an adapter of the type {kind}; LORA is what is loaded")
    for name, usual in USUAL.items():
        if config.get(name, usual) not in (usual, [], {}):
            raise RefusedError(f"{label} has {name}={config[name]!r}, which goes beyond LoRA on weights")
    return config, dict(read_tensors(folder / TENSORS))


def _check_base(config: Mapping[str, Any], base: str | None, any_base: bool, label: str) -> None:
    named = config.get("base_model_name_or_path")
    if any_base or (named is not None and base is not None and _same(str(named), base)):
        return
    told = f"was trained on {named}" if named else "does not say what it was trained on"
    raise IncompatibleError(
        f"{label} {told}, and the backbone here is {base or 'of no repository or folder'}; take its base, or write "
        f"any_base=true if you know that they are the same"
    )


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    paths = Path(one), Path(other)
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])


def _parts(tensors: Mapping[str, Tensor], label: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of each changed module, by its path in the model that the adapter was trained on."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name.removeprefix(PREFIX))
        if match is not None:
            found.setdefault(match["path"], {})[match["part"]] = tensor
        elif "lora_" in name:
            raise RefusedError(f"{label} holds {name}, and only linear layers and convolutions are loaded")
    if not found:
        raise IntegrityError(f"{label} holds no tensor of a LoRA")
    torn = [path for path, parts in found.items() if not {"lora_A.weight", "lora_B.weight"} <= parts.keys()]
    if torn:
        raise IntegrityError(f"{label} holds half of the LoRA of {torn[0]}")
    return found


def _places(backbone: nn.Module, parts: Mapping[str, Any], label: str) -> dict[str, str]:
    """Path in the backbone of each path of the adapter: one exchange of what stands before the names fits them all."""
    paths = {name for name, _ in backbone.named_modules()}
    prefix = plain_prefix(backbone) if isinstance(backbone, Exportable) else ""
    first = next(iter(parts)).split(".")
    lacking = list(parts)
    for dropped in range(len(first)):
        outer = "".join(f"{name}." for name in first[:dropped])
        moved = {path: prefix + path.removeprefix(outer) for path in parts if path.startswith(outer)}
        left = [path for path in parts if moved.get(path) not in paths]
        if not left:
            return moved
        lacking = min(lacking, left, key=len)
    raise IncompatibleError(f"{label} changes {lacking[0]}, which the backbone does not have; it is of another base")


def _check_layer(backbone: nn.Module, path: str, label: str) -> None:
    layer = backbone.get_submodule(path)
    kinds = kinds_of(layer, Site(path=path))
    unread = {site.path for role in ROLES for site in as_backbone(backbone).sites(role) if not site.called}
    if not kinds or not kinds <= known_methods()["lora"].layers or path in unread:
        raise RefusedError(f"{label}: peft's LoRA does not work on {path}, a {type(layer).__name__}, in this backbone")


def _alpha(config: Mapping[str, Any], path: str) -> Any:
    """As peft finds it: of the first pattern that the end of the path fits, else that of all."""
    for pattern, alpha in dict(config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return alpha
    return config.get("lora_alpha", 8)


@torch.no_grad()
def _copy_in(backbone: nn.Module, path: str, found: Mapping[str, Tensor], label: str) -> None:
    layer: Any = backbone.get_submodule(path)
    own: dict[str, Tensor] = {
        "lora_A.weight": layer.lora_A[ADAPTER].weight,
        "lora_B.weight": layer.lora_B[ADAPTER].weight,
    }
    if layer.lora_B[ADAPTER].bias is not None:
        own["lora_B.bias"] = layer.lora_B[ADAPTER].bias
    if ADAPTER in layer.lora_magnitude_vector:
        own["lora_magnitude_vector"] = layer.lora_magnitude_vector[ADAPTER].weight
    if own.keys() != found.keys():
        raise IntegrityError(f"{label} holds {', '.join(sorted(found))} for {path}, expected {', '.join(sorted(own))}")
    for name, tensor in own.items():
        if tensor.shape != found[name].shape:
            raise IncompatibleError(
                f"{label}: {name} of {path} is {list(found[name].shape)}, and the backbone takes {list(tensor.shape)}; "
                f"it is of another base"
            )
        tensor.copy_(found[name])
