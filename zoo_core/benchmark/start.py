"""What a trial begins with: its learner and what that is fitted and judged on, and the fit of one learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zoo_core.benchmark.loaders import scoring_loader, training_loader
from zoo_core.benchmark.sharing import Measured, SharedWork, combination_of, copied
from zoo_core.benchmark.teaching import replay_of
from zoo_core.contracts import Split, Target
from zoo_core.data.loader import Loader
from zoo_core.errors import DivergedError
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.model.replay import Passes
from zoo_core.plan.plan import Plan
from zoo_core.registry.registry import Bound
from zoo_core.training.fit import Fitted, calibrate, fit, pause_fit, time_training
from zoo_core.training.gradient_trainer import MemoryOptions, moving, projectors, put
from zoo_core.training.metrics import score_split
from zoo_core.training.progress import FitProgress
from zoo_core.training.rows import RowEnd
from zoo_core.training.snapshots import SaveSnapshot, Snapshot
from zoo_core.training.timing import peak_memory_bytes, precision_of, reset_peak_memory

__all__ = ["Start", "started"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the candidates of a trial share: the learner, and the values that it has where each of them starts.

    refusal: why it is not fitted on features that its group has in common; empty if it is. how: as Result.shared.
    rows: how candidates ended that were trained together with those of other trials, by learning rate.
    """

    plan: Plan
    learner: Learner
    fitting: Loader
    validating: Loader
    memory: MemoryOptions | None
    delta: Mapping[str, Tensor]
    trained_beside: Mapping[str, Tensor]
    refusal: str = ""
    how: str = "alone"
    rows: Mapping[float | None, RowEnd] = field(default_factory=dict)

    @property
    def is_on_features(self) -> bool:
        """Whether all that is left to compute is a head."""
        return self.how in ("heads", "features")

    def measured(self, device: torch.device) -> Measured:
        """What steps cost that compute all they need. They are taken by a copy: nothing of them is left behind."""
        plan = self.plan
        rates = plan.learning_rates
        reset_peak_memory(device)
        training = time_training(
            copied(self.learner),
            self.fitting,
            budget=plan.budget,
            learning_rate=rates[len(rates) // 2] if rates else None,
            seed=plan.seed,
            memory=self.memory,
        )
        peak = peak_memory_bytes(device)
        return Measured(training=training, peak_memory_bytes=peak)

    def put_back(self) -> None:
        self.learner.load_delta(self.delta)
        put(projectors(self.learner), self.trained_beside)

    def fit(
        self,
        rate: float | None,
        progress: Callable[[FitProgress], None],
        state: Snapshot | None,
        save_snapshot: SaveSnapshot,
    ) -> tuple[Fitted, float]:
        """Fits at one learning rate; what the fit did, and the validation score of the weights that it kept."""
        plan = self.plan
        sign = 1 if self._metric.recipe.higher_is_better else -1
        if rate in self.rows:
            fitted = self._taken(self.rows[rate])
            return fitted, sign * (self.validate(self.learner) if fitted.score is None else fitted.score)
        fitted = fit(
            self.learner,
            self.fitting,
            budget=plan.budget,
            learning_rate=rate,
            seed=plan.seed,
            validate=self.validate,
            progress=progress,
            state=state,
            save_snapshot=save_snapshot,
            memory=self.memory,
        )
        return fitted, sign * (self.validate(self.learner) if fitted.score is None else fitted.score)

    def pause(
        self,
        rate: float | None,
        rung: int,
        progress: Callable[[FitProgress], None],
        state: Snapshot | None,
        save_snapshot: SaveSnapshot,
    ) -> tuple[Snapshot | None, float]:
        """Fits up to a rung, counted from 0: what to go on from, None for rows, and the validation score there."""
        assert rate is not None, "a closed form has no rungs"
        sign = 1 if self._metric.recipe.higher_is_better else -1
        if rate in self.rows:
            return None, sign * self.rows[rate].worth_at(rung)
        paused, worth = pause_fit(
            self.learner,
            self.fitting,
            budget=self.plan.budget,
            learning_rate=rate,
            seed=self.plan.seed,
            epochs=self.plan.budget.rungs[rung],
            validate=self.validate,
            progress=progress,
            state=state,
            save_snapshot=save_snapshot,
            memory=self.memory,
        )
        return paused, sign * worth

    @property
    def _metric(self) -> Bound:
        metric = self.plan.metric
        assert metric is not None, "a trial has a task, and that a metric"
        return metric

    def validate(self, learner: Learner) -> float:
        """The validation score of a learner, where more is better."""
        precision = precision_of(self.plan.budget.precision, self.fitting.device)
        sign = 1 if self._metric.recipe.higher_is_better else -1
        return sign * score_split(learner, self.validating, self._metric, self.learner.target, precision)

    def _taken(self, end: RowEnd) -> Fitted:
        """What training as a row of many did, its weights in the learner. Raises DivergedError if there are none."""
        if end.weights is None:
            raise DivergedError(end.diverged)
        put(moving(self.learner), end.weights)
        self.learner.eval()
        return Fitted(
            losses=tuple(end.losses),
            num_steps=end.num_steps,
            seconds=end.seconds,
            training=None,
            epoch=end.epoch,
            score=end.score,
        )


def started(
    plan: Plan,
    train: Split,
    val: Split,
    target: Target,
    device: torch.device,
    num_workers: int,
    memory: MemoryOptions | None,
    passes: Passes,
    shared: SharedWork | None,
    until: int | None = None,
) -> Start:
    """Builds the learner of a trial and what it is fitted and judged on. until: as for `run_trial`."""
    learner = build(plan, target=target).to(device) if shared is None else shared.learner(plan, target)
    beside = replay_of(plan, learner, train, device, passes, role="train")
    fitting = training_loader(plan, learner, train, target, device, num_workers, beside)
    validating = scoring_loader(plan, learner, val, target, device, num_workers, passes, role="val")
    if plan.weights == "random" and shared is None:
        calibrate(learner, fitting.without_beside())
    start = Start(
        plan=plan,
        learner=learner,
        fitting=fitting,
        validating=validating,
        memory=memory,
        delta=_copied(learner.delta()),
        trained_beside=_copied(projectors(learner)),
        refusal=""
        if shared is None or shared.group.shape == "rows"
        else shared.refusal(plan, learner, fitting, train, memory),
    )
    if shared is None or start.refusal:
        return start
    rows = shared.rows.get(plan.digest or "", {})
    if shared.group.shape == "rows":
        return replace(start, how="rows", rows=rows) if rows else start
    waits = until is not None and shared.stage is not None  # where it ends, its steps are measured
    if combination_of(plan) not in shared.measured and not waits:
        shared.measured[combination_of(plan)] = start.measured(device)
    return replace(
        start,
        fitting=shared.features(plan, fitting, train, "train").loader(),
        validating=shared.features(plan, validating, val, "val").loader(),
        how="heads" if rows else "features" if shared.stage is None else "stages",
        rows=rows,
    )


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
