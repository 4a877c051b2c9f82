"""Micro-batches: one training step in several passes, whose gradients add up to the gradient of the whole batch.

This is exact if the loss is a mean over the batch and no example influences another one. What breaks this is refused.
The one difference that remains is dropout, which draws other numbers for the parts than for the whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from zoo_core.contracts import Batch, MicroBatchable
from zoo_core.errors import RefusedError
from zoo_core.model.learner import Learner

__all__ = ["check_divides", "num_items", "piece", "pieces"]


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in order, in parts of this many examples; the last may be smaller. Inputs keep their padding."""
    for start in range(0, len(batch), size):
        yield piece(batch, start, start + size)


def piece(batch: Batch, start: int, stop: int) -> Batch:
    """The examples from start up to but not including stop, without copies."""
    return Batch(
        inputs={name: x[start:stop] for name, x in batch.inputs.items()},
        target=batch.target[start:stop],
        ids=batch.ids[start:stop],
    )


def num_items(learner: Learner, batch: Batch) -> Tensor:
    """Number of items that the loss averages over, a scalar; weight micro-batch losses by it."""
    objective: object = learner.objective
    found = objective.num_items(batch) if isinstance(objective, MicroBatchable) else None
    assert found is not None, "it was checked"
    return found


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
