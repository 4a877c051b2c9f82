"""Trains the candidates of many trials together, where their heads or adapters can be rows of one computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.sharing import SharedWork, combination_of
from zoo_core.benchmark.start import Start, started
from zoo_core.model.learner import Learner
from zoo_core.model.replay import Passes
from zoo_core.plan.plan import Plan
from zoo_core.training.fit import take_unit
from zoo_core.training.gradient_trainer import moving, put
from zoo_core.training.progress import FitProgress
from zoo_core.training.rows import NotTogether, Row, StepSeconds, train_rows
from zoo_core.training.stacked import tensors_of

__all__ = ["train_together"]


def train_together(
    plans: Sequence[Plan],
    shared: SharedWork,
    *,
    device: torch.device,
    num_workers: int = 0,
    report: Callable[[TrialProgress], None] = lambda _: None,
) -> None:
    """Trains every candidate of trials that differ in their seed alone, and leaves in `shared` how they ended.

    Raises NotTogether where that cannot be done, or where there is nothing to gain.
    """
    rates = plans[0].learning_rates
    is_rows, combination = shared.group.shape == "rows", combination_of(plans[0])
    if (plans[0].adapters and not is_rows) or not rates or len(plans) * len(rates) == 1:
        raise NotTogether("" if not plans[0].adapters else "an adapter has a part in what is learned")
    starts: list[Start] = []
    for plan in plans:
        splits = shared.splits(plan)
        start = started(plan, splits.train, splits.val, splits.target, device, num_workers, None, Passes(), shared)
        if start.refusal:
            raise NotTogether(start.refusal)
        take_unit(start.learner, start.fitting)
        if starts:
            _lend_frozen(starts[0].learner, start.learner)
        elif is_rows:
            shared.measured[combination] = start.measured(device)  # before there are others in memory
        starts.append(start)
    rows = [Row(learner=start.learner, loader=start.fitting, learning_rate=rate) for start in starts for rate in rates]

    def validate(row: int, weights: Mapping[str, Tensor]) -> float:
        start = starts[row // len(rates)]
        put(moving(start.learner), weights)
        return start.validate(start.learner)

    def progress(of_all: FitProgress) -> None:
        report(TrialProgress(candidate=1, num_candidates=1, progress=of_all, num_trials=len(plans)))

    def weigh(seconds: StepSeconds) -> None:
        shared.steps[combination] = asdict(seconds)

    ends = train_rows(
        rows, budget=plans[0].budget, validate=validate, progress=progress, weigh=weigh if is_rows else None
    )
    for at, plan in enumerate(plans):
        mine = ends[at * len(rates) : (at + 1) * len(rates)]
        shared.rows[plan.digest or ""] = dict(zip(rates, mine, strict=True))


def _lend_frozen(first: Learner, learner: Learner) -> None:
    """Gives a learner the frozen tensors of another one whose equal ones it has, so that they are in memory once."""
    lent, own = tensors_of(first), tensors_of(learner)
    for name in learner.frozen().keys() & lent.keys() & own.keys():
        if own[name] is not lent[name] and torch.equal(own[name], lent[name]):
            own[name].data = lent[name].data
