"""Micro-batches: one training step in several passes, whose gradients add up to the gradient of the whole batch.

This is exact if the loss is a mean over the batch and no example influences another one. What breaks this is refused.
The one difference that remains is dropout, which draws other numbers for the parts than for the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from zoo_core.contracts import Batch, MicroBatchable
from zoo_core.errors import RefusedError
from zoo_core.model.learner import Learner

__all__ = ["check_divides", "num_items", "pieces", "weights_of"]


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in order, in parts of this many examples; the last may be smaller. Inputs keep their padding."""
    for start in range(0, len(batch), size):
        yield batch[start : start + size]


def num_items(learner: Learner, batch: Batch) -> Mapping[str, float]:
    """Number of items that each term of the loss averages over; the empty name is of all terms that are not named."""
    objective: object = learner.objective
    found = objective.num_items(batch) if isinstance(objective, MicroBatchable) else None
    assert found is not None, "it was checked"
    if isinstance(found, Mapping):
        return {name: float(count) for name, count in found.items()}
    return {"": float(found)}


def weights_of(counts: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """For each part of a batch the weight of each term in the loss of the whole, from the parts' numbers of items.

    The weights of a term add up to 1. A term without any item in the whole batch has the same in each part: it is 0
    there, or no batch enters it, such as a penalty of weights.
    """
    names = {name for each in counts for name in each} | {""}
    whole = {name: sum(each.get(name, 0.0) for each in counts) for name in names}
    alike = 1 / len(counts)
    return [{name: each.get(name, 0.0) / whole[name] if whole[name] else alike for name in names} for each in counts]


def check_divides(learner: Learner, batch: Batch, size: int) -> None:
    """Raises RefusedError if micro-batches of this size would not give the gradient of the whole batch.

    The learner is left in training mode.
    """
    objective: object = learner.objective
    if not isinstance(objective, MicroBatchable) or objective.num_items(batch) is None:
        raise RefusedError(
            f"a micro-batch of {size} is not for {type(objective).__name__}: that loss sees a batch as a whole; "
            "leave --micro-batch out and give a smaller --batch-size"
        )
    learner.train()
    norms = [
        name
        for name, module in learner.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if norms:
        raise RefusedError(
            f"a micro-batch of {size} changes what {len(norms)} batch norms compute, {norms[0]} first: they train, and "
            "their statistics are of the whole batch; give a smaller --batch-size, or adapters that leave them frozen"
        )
