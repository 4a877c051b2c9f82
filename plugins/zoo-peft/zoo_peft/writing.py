"""A learner's LoRA, native or peft's, written in peft's own format: see zoo_peft.reading."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zoo_core.contracts import Exportable, Learner, Site
from zoo_core.errors import AccessError, RefusedError, UsageError
from zoo_core.toolkit.sites import SiteChange, changes_of
from zoo_peft.injection import ADAPTER, kinds_of, tuner_layers
from zoo_peft.methods import known_methods
from zoo_peft.reading import PREFIX, exactly, plain_prefix
from zoo_peft.recipes import CONFIG, TENSORS

__all__ = ["export_lora"]


@dataclass(frozen=True)
class Update:
    """scale * B A at one module. b: [O, r] or [O, r, 1, ...]. a: [r, I] or [r, I, *kernel]."""

    b: Tensor
    a: Tensor
    scale: float


@torch.no_grad()
def export_lora(learner: Learner, folder: Path) -> str:
    """Writes a learner's LoRA into a new folder that `peft.PeftModel.from_pretrained(base, folder)` loads.

    Updates of rows of a fused weight, and several updates of one weight, become one of their summed rank, block by
    block. Returns one line: what loads it, and what was left out.
    Raises UsageError for a folder that is there already, and RefusedError where anything but LoRA changes the
    backbone, or plain peft would do something else with it.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} is there already; name a new folder")
    backbone = learner.backbone
    if not isinstance(backbone, Exportable):
        raise RefusedError("the backbone is of no library that plain peft could put the adapter on")
    base, revision = _base(learner)
    prefix = plain_prefix(backbone)
    updates = _updates(learner)
    config = _config({path.removeprefix(prefix): update for path, update in updates.items()}, backbone, updates)
    tensors: dict[str, Tensor] = {}
    for path, update in updates.items():
        name = f"{PREFIX}{path.removeprefix(prefix)}"
        tensors[f"{name}.lora_A.weight"] = update.a.detach().cpu().clone(memory_format=torch.contiguous_format)
        tensors[f"{name}.lora_B.weight"] = update.b.detach().cpu().clone(memory_format=torch.contiguous_format)
    config |= {"base_model_name_or_path": base, "revision": revision, "inference_mode": True}
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise AccessError(f"{folder} cannot be made ({error.strerror}); name another folder") from error
    try:
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except BaseException as error:
        with suppress(OSError):  # what somebody else has put there in the meantime stays, and the folder with it
            for name in (TENSORS, CONFIG):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
        if isinstance(error, OSError):
            raise AccessError(f"{folder} cannot be written ({error}); name another folder") from error
        raise
    return f'peft.PeftModel.from_pretrained(model, "{folder}") loads it onto {base}: {len(updates)} weights, no head'


def _base(learner: Learner) -> tuple[str, str | None]:
    """The repository or folder of the base and its commit. Raises RefusedError where there is none to name."""
    source = learner.weights_source
    if source is None:
        raise RefusedError("the base has no weights that others can load, so an adapter alone is of no use")
    return source.repository or str(source.folder), source.revision


def _updates(learner: Learner) -> dict[str, Update]:
    """What changes each module, by its path in the backbone; all that the backbone's delta holds, or it is refused."""
    backbone = learner.backbone
    pieces: dict[str, list[Update]] = {}
    expressed: set[int] = set()
    for path, owner, changes in changes_of(backbone):
        for change in changes:
            expressed |= {id(tensor) for tensor in (*change.parameters(), *change.buffers())}
            pieces.setdefault(path.removesuffix(".base_layer"), []).extend(_of_change(path, owner, change))
    for path, layer in tuner_layers(backbone):
        if not isinstance(layer, LoraLayer) or layer.lora_variant or layer.lora_bias[ADAPTER]:
            raise RefusedError(f"{path} holds more than LoRA; lora and peft/lora are written in peft's format")
        found: Any = layer
        a, b = found.lora_A[ADAPTER].weight, found.lora_B[ADAPTER].weight
        expressed |= {id(a), id(b)}
        pieces.setdefault(path, []).append(Update(b, a, layer.scaling[ADAPTER]))
    held = backbone.state_dict(prefix="backbone.", keep_vars=True)
    other = [name for name in learner.delta() if name.startswith("backbone.") and id(held[name]) not in expressed]
    if other:
        raise RefusedError(f"{other[0]} is part of what was trained, and no LoRA; peft's format holds LoRA alone")
    if not pieces:
        raise RefusedError("the learner has no LoRA; +lora or +peft/lora adds one")
    return {path: _summed(found) for path, found in pieces.items()}


def _of_change(path: str, owner: nn.Module, change: SiteChange) -> list[Update]:
    """The products of a native change as updates of the whole weight of its module."""
    site, products = change.site, change.products()
    if not products:
        raise RefusedError(f"{change.label} at {path} is no sum of products, so peft's LoRA cannot hold it")
    if not site.called:
        raise RefusedError(f"{path} is read without being called, so a layer of peft would do nothing there")
    kinds = kinds_of(owner, site)
    if not kinds or not kinds <= known_methods()["lora"].layers:
        raise RefusedError(f"{path} ({type(owner).__name__}): peft's LoRA does not do the same on such a layer")
    return [Update(_widened_b(b, owner, site), _widened_a(a, owner, site), scale) for b, a, scale in products]


def _widened_b(b: Tensor, owner: nn.Module, site: Site) -> Tensor:
    """B with a row of zeros for each output of the module that the site does not have."""
    if site.outputs is None:
        return b
    weight: Any = getattr(owner, site.parameter)
    whole = b.new_zeros(weight.shape[site.out_axis], *b.shape[1:])
    whole[slice(*site.outputs)] = b
    return whole


def _widened_a(a: Tensor, owner: nn.Module, site: Site) -> Tensor:
    if site.inputs is None:
        return a
    weight: Any = getattr(owner, site.parameter)
    whole = a.new_zeros(a.shape[0], weight.shape[1 - site.out_axis], *a.shape[2:])
    whole[:, slice(*site.inputs)] = a
    return whole


def _summed(updates: Sequence[Update]) -> Update:
    """One update of the summed rank; those with another scale than the first have it in B."""
    if len(updates) == 1:
        return updates[0]
    scale = updates[0].scale
    b = torch.cat([update.b * (update.scale / scale) for update in updates], dim=1)
    return Update(b, torch.cat([update.a for update in updates], dim=0), scale)


def _config(named: Mapping[str, Update], backbone: nn.Module, updates: Mapping[str, Update]) -> dict[str, Any]:
    """The configuration, with patterns for the modules whose rank or alpha is not that of the first."""
    ranks = {name: update.a.shape[0] for name, update in named.items()}
    alphas = {name: update.scale * ranks[name] for name, update in named.items()}
    first = next(iter(named))
    config = LoraConfig(
        r=ranks[first],
        lora_alpha=_whole(alphas[first]),
        target_modules=sorted(named),
        rank_pattern={exactly(name): rank for name, rank in ranks.items() if rank != ranks[first]},
        alpha_pattern={exactly(name): _whole(alpha) for name, alpha in alphas.items() if alpha != alphas[first]},
        fan_in_fan_out=any(isinstance(backbone.get_submodule(path), Conv1D) for path in updates),
    )
    table: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value) for key, value in table.items()
    }


def _whole(number: float) -> Any:
    """As an int where it is one: peft declares alpha so, and takes both."""
    return int(number) if number == int(number) else number
