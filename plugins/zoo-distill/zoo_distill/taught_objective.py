"""What the objectives of this plugin share: one term of a teacher around another objective, and its counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import chain, count

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Learner, MicroBatchable, Output, TeacherOutput
from zoo_core.errors import RefusedError, UsageError

__all__ = ["TaughtObjective", "Warmup", "small_moving", "upcast"]


class TaughtObjective(nn.Module, ABC):
    """Abstract: the terms of another objective, and one that looks at what a teacher gave for the batch.

    of: the teacher's name in the batch. term: the name of its own term, which no other objective around the same one
    has, so that two teachers are told apart.
    """

    taught = True
    stages: tuple[int, ...] = ()
    term: str

    def __init__(self, objective: nn.Module, *, of: str, name: str) -> None:
        super().__init__()
        taken = {module.term for module in objective.modules() if isinstance(module, TaughtObjective)}
        self.term = next(each for each in chain([name], (f"{name}_{n}" for n in count(2))) if each not in taken)
        self.objective = objective
        self.of = of

    @abstractmethod
    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]: ...

    @abstractmethod
    def own_items(self, batch: Batch) -> Tensor | None:
        """The number of items that its own term averages over; None if that term sees the batch as a whole."""

    def inner_items(self, batch: Batch) -> Tensor | Mapping[str, Tensor] | None:
        """What the wrapped objective says of its terms."""
        return self.objective.num_items(batch) if isinstance(self.objective, MicroBatchable) else None

    def num_items(self, batch: Batch) -> Mapping[str, Tensor] | None:
        """Counts by term. Where the wrapped objective has one count, it is under "", for all terms without a name."""
        inner, own = self.inner_items(batch), self.own_items(batch)
        if inner is None or own is None:
            return None
        counts = dict(inner) if isinstance(inner, Mapping) else {"": inner}
        return None if self.term in counts else counts | {self.term: own}

    def given(self, batch: Batch) -> TeacherOutput:
        """What the teacher gave for the batch."""
        if self.of not in batch.teachers:
            raise UsageError(
                f"the batch holds nothing of the teacher {self.of!r}; in a loop of your own, take learner.loss(output, "
                f"batch), or call learner.taught(batch) before the objective"
            )
        return batch.teachers[self.of]

    def joined(self, terms: Mapping[str, Tensor], value: Tensor) -> dict[str, Tensor]:
        """The terms with its own, added to what a part of another plugin gives under the same name."""
        return {**terms, self.term: terms[self.term] + value if self.term in terms else value}


class Warmup(nn.Module):
    """A weight that rises linearly over the first updates: n / num_updates in the n-th, then 1.

    Nobody tells an objective of updates. It counts a pass with gradients whenever a parameter of the learner has moved
    since the last one; torch's counters of changes in place would be cheaper, and a fused optimiser leaves them as they
    are. So the micro-batches of one update count once, as does a pass that is made again, and what evaluates counts
    nothing.
    moving: a small parameter that every update moves. updates: how many so far; part of an unfinished fit's state.
    """

    updates: Tensor
    seen: Tensor

    def __init__(self, num_updates: int, moving: nn.Parameter) -> None:
        super().__init__()
        self.num_updates = num_updates
        self._moving = (moving,)  # in a tuple, so that torch does not register it; a deep copy follows it
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # A buffer, since whoever tries a pass puts buffers back afterwards. Not stored: a fit that goes on has made an
        # update since, and what is not seen yet, NaN, counts.
        self.register_buffer("seen", torch.full_like(moving, torch.nan, requires_grad=False), persistent=False)

    def forward(self) -> Tensor:
        if torch.is_grad_enabled():
            moving = self._moving[0].detach()
            self.updates += (self.seen != moving).any()
            self.seen.copy_(moving)
        return (self.updates / self.num_updates).clamp(max=1)


def small_moving(learner: Learner) -> nn.Parameter:
    """The smallest parameter of the head that trains from the start, or else of all that train."""
    trained = [parameter for parameter in learner.head.parameters() if parameter.requires_grad]
    trained = trained or [parameter for _, parameter in learner.trainable()]
    if not trained:
        raise RefusedError("distill: nothing trains, so there is nothing to warm up; leave warmup out")
    return min(trained, key=lambda parameter: (learner.start_of(parameter), parameter.numel()))


def upcast(x: Tensor) -> Tensor:
    """In float32 at least: a loss of float16 numbers is none."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
