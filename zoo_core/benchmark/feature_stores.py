"""Where the features of a frozen backbone are stored: one place for trials of benches, for fits and for rankings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from zoo_core.benchmark.groups import key_of
from zoo_core.benchmark.teaching import split_key
from zoo_core.contracts import Preparation, Split
from zoo_core.data.model_outputs import ModelOutputs, outputs_room
from zoo_core.model.given_features import What
from zoo_core.plan.plan import Plan
from zoo_core.registry.settings import outputs_bytes
from zoo_core.training.timing import precision_of

__all__ = ["feature_store"]


def feature_store(
    plan: Plan,
    root: Split,
    role: str,
    device: torch.device,
    *,
    what: What,
    preparation: Preparation,
    on_full: Callable[[str], None],
    more: Mapping[str, object] | None = None,
) -> ModelOutputs:
    """The store of what the backbone of a plan gives for a split of its task.

    role: train, val or test. preparation: the backbone's own; of one that draws nothing is stored. more: what else it
    depends on, or in place of what `key_of` says.
    """
    key = {**key_of(plan), **split_key(plan, root, role, device), **(more or {})}
    precision = precision_of(plan.budget.precision, device)
    key |= {"features": what, "preparation": preparation.digest, "precision": precision}
    max_bytes = 0 if preparation.random else outputs_bytes()
    return ModelOutputs(outputs_room(), key, root.num, max_bytes=max_bytes, on_full=on_full)
