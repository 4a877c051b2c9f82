"""Writes a fitted learner as a plain checkpoint, a folder that the backbone's own library loads without zoo."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from zoo_core.contracts import AdapterFormat, Exportable, LinearMap
from zoo_core.errors import AccessError, RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import ScaledHead
from zoo_core.registry.registry import registry

__all__ = ["exporter", "write_plain"]


def write_plain(learner: Learner, folder: Path) -> str:
    """Writes the merged learner into a new folder. Returns a line on what loads it and what happened to the head.

    Raises UsageError for a folder that exists, RefusedError if no library with such a format has the backbone or an
    adapter cannot be folded into plain weights, AccessError if nothing can be written. No folder is left then.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} is there already; name a new folder")
    if not isinstance(learner.backbone, Exportable):
        name = learner.plan.backbone.name if learner.plan is not None else type(learner.backbone).__name__
        raise RefusedError(
            f"{name} is of no library that loads plain checkpoints, so only zoo can use it; timm's and transformers' "
            f"models are exported"
        )
    merged = learner.merge().cpu()
    backbone = merged.backbone
    assert isinstance(backbone, Exportable), "a merged backbone is what it was"
    fresh = folder.with_name(f"{folder.name}.{os.urandom(4).hex()}")  # nobody else's, so that all of it may go again
    try:
        fresh.mkdir(parents=True)
    except OSError as error:
        raise AccessError(f"{folder} cannot be made ({error.strerror}); name another folder") from error
    try:
        told = backbone.export(fresh, _linear(merged), merged.target)
        fresh.rename(folder)
        return told.replace(str(fresh), str(folder))
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError):
            raise AccessError(f"{folder} cannot be written ({error}); name another folder") from error
        raise


def exporter(form: str) -> Callable[[Learner, Path], str]:
    """The function that writes a learner's adapters in another library's format.

    It is the `export` of the adapters whose name begins with the library's. Raises NotFoundError if there are none, and
    UsageError if they have no such format.
    """
    known = registry()
    recipe: object = known.recipe(known.find(form, "adapter"))
    if not isinstance(recipe, AdapterFormat):
        raise UsageError(f"adapter {form} has no format of its own; plain weights are written without a format")
    return recipe.export


@torch.no_grad()
def _linear(learner: Learner) -> nn.Linear | None:
    """The head as one linear layer on pooled features, with the units of values in it; None where it is no such."""
    head = learner.head
    inner = head.head if isinstance(head, ScaledHead) else head
    if learner.consumes != "pooled" or not isinstance(inner, LinearMap):
        return None
    layer = inner.as_linear()
    if not isinstance(head, ScaledHead):
        return layer
    scaled = nn.Linear(layer.in_features, layer.out_features).to(layer.weight)
    scaled.weight.copy_(layer.weight * head.scale[:, None])
    scaled.bias.copy_(layer.bias * head.scale + head.shift)
    return scaled
