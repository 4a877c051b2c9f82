"""The pooled features of some examples under a frozen backbone: read if they are stored, else computed and stored."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_core.benchmark.loaders import check_still
from zoo_core.benchmark.teaching import split_key
from zoo_core.contracts import Split, as_backbone
from zoo_core.data.loader import AS_IT_IS, Loader
from zoo_core.data.model_outputs import ModelOutputs, outputs_room
from zoo_core.data.splits import Subset, rows_of
from zoo_core.model.build import build_backbone
from zoo_core.plan.plan import Plan, identity_of
from zoo_core.registry.settings import outputs_bytes
from zoo_core.toolkit.features import convert
from zoo_core.training.timing import INFERENCE_BATCH

__all__ = ["Pooled", "pooled_features"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """features: float32 [N, D] on the CPU. num_parameters: of the backbone. num_made: rows computed, not read."""

    features: Tensor
    num_parameters: int
    num_made: int


def pooled_features(plan: Plan, split: Split, *, device: torch.device, num_workers: int = 0) -> Pooled:
    """The features of every example of a split drawn from the task's training split, in evaluation mode, unaugmented.

    plan: pinned; of it only the backbone and the task matter. If all rows are stored, nothing is built.
    """
    root, rows = rows_of(split)
    store = ModelOutputs(
        outputs_room(), _key(plan, root, device), root.num, max_bytes=outputs_bytes(), on_full=_log.warning
    )
    try:
        stored = store.read(AS_IT_IS, rows)
        made: dict[str, Tensor] = {}
        if len(stored.missing):
            made, is_random = _made(plan, Subset(split, stored.missing), device, num_workers)
            if not is_random:  # else the next call sees other examples
                store.write(AS_IT_IS, rows[stored.missing], made)
        whole = stored.completed(made)
    finally:
        store.close()
    return Pooled(
        features=whole["pooled"], num_parameters=int(whole["num_parameters"][0]), num_made=len(stored.missing)
    )


def _made(plan: Plan, split: Split, device: torch.device, num_workers: int) -> tuple[dict[str, Tensor], bool]:
    """What a pass over a split gives, as it is stored, and whether the preparation draws at random."""
    backbone = build_backbone(plan).to(device)
    source = as_backbone(backbone)
    assert plan.task is not None, "features are of a task's examples"
    loader = Loader(
        split,
        modality=plan.task.recipe.modality,
        target=plan.target,
        preparation=source.preparation,
        batch_size=INFERENCE_BATCH,
        device=device,
        num_workers=num_workers,
    )
    with torch.inference_mode():
        parts = [convert(backbone(batch.inputs), "pooled", source.pool).x.float().cpu() for batch in loader.epoch()]
    check_still(plan)
    num_parameters = sum(parameter.numel() for parameter in backbone.parameters())
    pooled = torch.cat(parts)
    told = torch.full((len(pooled),), num_parameters)  # beside each row, so that nothing is built to tell it again
    return {"pooled": pooled, "num_parameters": told}, source.preparation.random


def _key(plan: Plan, root: Split, device: torch.device) -> dict[str, object]:
    """All that the features depend on, besides the view and the row."""
    return {
        "pooled features of": identity_of(plan, plan.backbone),
        **split_key(plan, root, "train", device),
        "augmentation": None,
    }
