"""The training examples that a ranking looks at, and what is true of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoo_core.contracts import Split, Target, TaskData
from zoo_core.data.randomness import derive_seed
from zoo_core.data.splits import Subset, Unlabelled, carve
from zoo_core.errors import RefusedError, UsageError
from zoo_core.registry.bind import Bound
from zoo_core.selection.certainty import NUM_BLOCKS

__all__ = ["FEWEST", "drawn", "labelled_train", "truth_of"]

FEWEST = 2 * NUM_BLOCKS  # examples; with fewer an interval means nothing


def labelled_train(data: TaskData, task: Bound) -> Split:
    """The training split of a task, without the examples whose labels are not known."""
    train = carve(data, seed=0, **task.common).train
    return Subset(train, np.flatnonzero(train.known)) if isinstance(train, Unlabelled) else train


def drawn(split: Split, target: Target, num: int, seed: int) -> Subset:
    """At most `num` examples, of each class its share and at least two if there are, always the same for a seed."""
    rng = np.random.default_rng(derive_seed("rank", seed))
    if split.num <= num:
        return Subset(split, np.arange(split.num))
    if target.kind != "classes":
        return Subset(split, np.sort(rng.permutation(split.num)[:num]))
    labels = np.asarray(split.targets)
    classes, counts = np.unique(labels, return_counts=True)
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    # The i-th example of a class of n stands at i / n, so that any beginning of the list has each class's share.
    place = np.concatenate([np.where(np.arange(n) < 2, -1.0, (np.arange(n) + 0.5) / n) for n in counts])
    order = np.argsort(place, kind="stable")
    return Subset(split, np.sort(np.concatenate(shuffled)[order][:num]))


def truth_of(split: Split, target: Target) -> Tensor:
    """int64 [N] (classes) or float64 [N, C]. Raises RefusedError where there is nothing to tell apart."""
    found = np.asarray(split.targets)
    if split.num < FEWEST:
        raise RefusedError(f"{split.num} training examples are too few to rank on; allowed: {FEWEST} or more")
    if target.kind == "classes":
        if len(np.unique(found)) < 2:
            raise RefusedError("all training examples have one class, so there is nothing to tell apart")
        return torch.from_numpy(found.astype(np.int64))
    assert target.size is not None, "data that was opened knows its outputs"
    if found.shape != (split.num, target.size):
        raise UsageError(
            f"{target.kind} of {split.num} examples are of shape [{split.num}, {target.size}], found "
            f"{list(found.shape)}"
        )
    return torch.from_numpy(found.astype(np.float64))
