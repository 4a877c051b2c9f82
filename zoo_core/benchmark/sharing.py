"""What the trials of one group share while a process runs them: data, a frozen backbone, its features, its rates."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from zoo_core.benchmark.feature_stores import feature_store
from zoo_core.benchmark.groups import Group, depth_of, kinds_of
from zoo_core.benchmark.loaders import check_still, open_task, plain_loader, training_loader
from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.provenance import explained
from zoo_core.contracts import Split, Target, TaskData
from zoo_core.data.loader import Loader
from zoo_core.data.model_outputs import ModelOutputs
from zoo_core.data.randomness import forked_rng
from zoo_core.data.splits import Splits, carve, rows_of
from zoo_core.errors import IntegrityError, ZooError
from zoo_core.model.build import build, build_backbone
from zoo_core.model.given_features import What
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Plan
from zoo_core.toolkit.stages import dummy_inputs
from zoo_core.training.entering_states import differ_in_size, states_refusal
from zoo_core.training.fit import calibrate
from zoo_core.training.frozen_features import FeatureMemory, FeaturePass, FrozenFeatures
from zoo_core.training.gradient_trainer import MemoryOptions
from zoo_core.training.progress import FitProgress
from zoo_core.training.rows import RowEnd
from zoo_core.training.shorter_cuts import ShorterCut
from zoo_core.training.timing import Stopwatch, precision_of
from zoo_core.training.untold_state import draws

__all__ = [
    "MEMORY_ERRORS",
    "NOT_MADE",
    "Measured",
    "SharedWork",
    "backbone_draws",
    "combination_of",
    "copied",
    "refusal",
]

MEMORY_ERRORS = (MemoryError, torch.OutOfMemoryError)
NOT_MADE = "what its group shares could not be made"

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Measured:
    """What is measured once for all trials that differ in their seed alone, as results have it."""

    training: Mapping[str, Any] | None
    peak_memory_bytes: int
    inference: Mapping[str, Any] | None = None


class SharedWork:
    """What the trials of a group share. `fill` makes their features; a trial asks for what it needs when it runs.

    passed: how often the backbone was asked. measured: by the combination of a plan. rows: how candidates ended that
    were trained together, by the digest of the plan and the learning rate. apart: why those of a combination were not.
    steps: by combination the seconds of a step of all of them, together and alone, where they were measured.
    failed: by `depth_of` why the features of one cut could not be made, where those of others could.
    """

    def __init__(
        self,
        group: Group,
        plans: Sequence[Plan],
        *,
        device: torch.device,
        num_workers: int = 0,
        data: TaskData | None = None,
    ) -> None:
        """plans: the trials of the group. data: of their task, if it is open."""
        self.group = group
        self._plans, self._device, self._num_workers = plans, device, num_workers
        self.memory, self.passed = FeatureMemory(), FeaturePass()
        self._is_warned = False
        self._depths = sorted({depth_of(plan) for plan in plans}, reverse=True)
        self._firsts: dict[int, Learner] = {}  # by depth, as what follows
        self._draws: dict[int, bool] = {}
        self._shorter: dict[tuple[int, int], ShorterCut | None] = {}  # of a longer one; None: it cannot be built
        self._stores: dict[tuple[int, str, What], ModelOutputs] = {}
        self.measured: dict[str, Measured] = {}
        self.rows: dict[str, Mapping[float | None, RowEnd]] = {}
        self.apart: dict[str, str] = {}
        self.steps: dict[str, Mapping[str, float]] = {}
        self.failed: dict[int, str] = {}
        self.data = open_task(plans[0]) if data is None else data

    def splits(self, plan: Plan) -> Splits:
        assert plan.task is not None, "a trial has a task"
        return carve(self.data, seed=plan.seed, target=plan.target, **plan.task.common)

    def learner(self, plan: Plan, target: Target) -> Learner:
        """The learner of a trial around the backbone that all have in common, whose statistics are taken.

        One with adapters has a copy: what a plugin does to its backbone, against its word, is done to no other trial.
        One with open stages of random weights has a backbone of its own: of the statistics there only those are taken
        that no training takes, which depends on its adapters.
        """
        if self.stage is not None and plan.weights == "random":
            learner = build(plan, target=target).to(self._device)
            calibrate(learner, self._training_loader(plan, learner, self.splits(plan)))
            return learner
        backbone = self.first(depth_of(plan)).backbone
        return build(plan, target=target, backbone=copy.deepcopy(backbone) if plan.adapters else backbone).to(
            self._device
        )

    def first(self, depth: int) -> Learner:
        """A backbone of the group, with the head of its first trial, on whose examples random weights are calibrated.

        depth: where it ends. A trial that cannot be built is passed over. Raises what building raises if there is no
        other.
        """
        if depth not in self._firsts:
            self._firsts[depth] = self._built(self._ending_at(depth))
        return self._firsts[depth]

    def _built(self, plans: Sequence[Plan]) -> Learner:
        backbone = build_backbone(plans[0])
        for plan in plans:
            splits, bare = self.splits(plan), replace(plan, adapters=(), places=None, teachers={})
            try:
                learner = build(bare, target=splits.target, purpose="use", backbone=backbone).to(self._device)
            except ZooError:
                if plan is plans[-1]:
                    raise
                continue
            if plan.weights == "random":
                calibrate(learner, self._training_loader(plan, learner, splits))
            return learner
        raise AssertionError("somebody asks for it")

    def _ending_at(self, depth: int) -> list[Plan]:
        return [plan for plan in self._plans if depth_of(plan) == depth]

    @property
    def stage(self) -> int | None:
        """The stage whose entering states are stored, from 0; None where features are. Not positive: there is none."""
        opened = self.group.open_stages
        return len(self.first(self._depths[0]).source.stages) - opened if opened else None

    def _read_by(self, plans: Sequence[Plan]) -> tuple[What, ...]:
        """What the learners of these trials, whose backbones end at one depth, read in place of inputs."""
        if self.stage is not None:
            return (self.stage,)
        return kinds_of(plans, self.first(depth_of(plans[0])).source.features.kind)

    def draws(self, depth: int) -> bool:
        """Whether a backbone draws, so that nothing of it can be shared."""
        if depth not in self._draws:
            self._draws[depth] = backbone_draws(self.first(depth))
        return self._draws[depth]

    def _training_loader(self, plan: Plan, learner: Learner, splits: Splits) -> Loader:
        return training_loader(plan, learner, splits.train, splits.target, self._device, self._num_workers)

    def told(self, plan: Plan, how: str, own_seconds: float, refusal: str) -> dict[str, Any]:
        """What the result of a trial says of its sharing, see Result.shared."""
        reason = refusal or "; ".join(filter(None, (self.apart.get(combination_of(plan), ""), self._by_itself(plan))))
        return {
            "group": self.group.id,
            "size": len(self._plans),
            "how": how,
            "reason": reason or self.group.apart or None,
            "own_seconds": own_seconds,
            "pass_seconds": 0.0 if how == "alone" else self.pass_seconds,
            "step_seconds": self.steps.get(combination_of(plan)),
        }

    def _by_itself(self, plan: Plan) -> str:
        """Why the backbone of a trial was passed by itself, although a longer cut was; empty if it was not."""
        found = (cut.refusal for (_, depth), cut in self._shorter.items() if cut and depth == depth_of(plan))
        return next((f"its backbone was passed by itself: {refusal}" for refusal in found if refusal), "")

    @property
    def pass_seconds(self) -> float:
        """What one trial of the group bears of the seconds in which features were made."""
        return self.passed.seconds / len(self._plans)

    @property
    def num_passed(self) -> int:
        """As `pass_seconds`, of the examples that the backbone was asked for."""
        return round(self.passed.made / len(self._plans))

    def fill(self, report: Callable[[TrialProgress], None] = lambda _: None) -> None:
        """Makes the features that the trials will read. What goes wrong here comes up again in the trial it is of.

        Raises IntegrityError if files of the task have changed since it was planned; nothing is stored of them then.
        """
        if self.group.shape == "rows":  # they have none in common
            return
        self._fill(report)
        try:
            check_still(self._plans[0])
        except IntegrityError:
            for store in self._stores.values():
                store.discard()
            raise

    def _fill(self, report: Callable[[TrialProgress], None]) -> None:
        """The longest cut comes first: of what it passes the others are made."""

        def tell(progress: FitProgress) -> None:
            report(TrialProgress(candidate=0, num_candidates=1, progress=progress, num_trials=len(self._plans)))

        for depth in self._depths:
            try:
                self._fill_cut(depth, tell)
            except (Exception, SystemExit) as error:
                if len(self._depths) == 1:
                    raise
                self.failed[depth] = f"{NOT_MADE}: {explained(error, MEMORY_ERRORS)}"

    def _fill_cut(self, depth: int, tell: Callable[[FitProgress], None]) -> None:
        for plan in self._ending_at(depth):
            with suppress(ZooError):
                splits, first = self.splits(plan), self.first(depth)
                training = self._training_loader(plan, first, splits)
                if refusal(first, training, draws=self.draws(depth)):
                    return
                if not self._has_states(training, splits.train.num):
                    return
                self._fill_split(plan, training, splits.train, "train", tell)
                for role, split in (("val", splits.val), ("test", splits.test)):
                    loader = plain_loader(plan, first, split, splits.target, self._device, self._num_workers)
                    self._fill_split(plan, loader, split, role, tell)

    def _fill_split(
        self, plan: Plan, loader: Loader, split: Split, role: str, tell: Callable[[FitProgress], None]
    ) -> None:
        depth, root = depth_of(plan), rows_of(split)[0]
        shorter = [
            (cut, self._stores_of(other, root, role))
            for other in self._depths
            if other < depth and (cut := self._cut(depth, other)) is not None
        ]
        self.features(plan, loader, split, role).fill(tell, shorter)

    def _cut(self, longer: int, depth: int) -> ShorterCut | None:
        """A shorter cut of a backbone; None where it cannot be built, of which its own trials tell."""
        if (longer, depth) not in self._shorter:
            found = None
            with suppress(Exception):
                found = ShorterCut(self.first(depth).backbone, self.first(longer).backbone)
            self._shorter[longer, depth] = found
        return self._shorter[longer, depth]

    def _has_states(self, loader: Loader, num: int) -> bool:
        """Whether states are worth being made, where it is states that are shared: two of num examples tell."""
        if self.stage is None:
            return True
        few = next(loader.seen(next(iter(loader.draws)), range(min(2, num)), 2))
        dummy = dummy_inputs(self.first(self._depths[0]).backbone, 1)
        return self.stage > 0 and not differ_in_size(few.inputs, dummy)

    def refusal(
        self, plan: Plan, learner: Learner, loader: Loader, split: Split, memory: MemoryOptions | None = None
    ) -> str:
        """Why a trial cannot be fitted on what its group has in common; empty if it can. loader, split: to train on."""
        depth = depth_of(plan)
        if depth in self.failed:
            return self.failed[depth]
        if self.stage is None:
            return refusal(learner, loader, draws=self.draws(depth))
        found = refusal(self.first(depth), loader, draws=self.draws(depth))
        if found:
            return found
        if memory is not None and memory.checkpoint_activations:
            return "its stages are computed again for the backward pass"
        stored = self.features(plan, loader, split, "train").loader
        return states_refusal(learner, self.first(depth).backbone, self.stage, loader, stored)

    def _warn_once(self, reason: str) -> None:
        """Tells of the first store that takes no more: the others lie beside it."""
        if not self._is_warned:
            _log.warning(reason)
        self._is_warned = True

    def features(self, plan: Plan, loader: Loader, split: Split, role: str) -> FrozenFeatures:
        """The features of a split. loader: of its inputs. role: train, val or test."""
        root, rows = rows_of(split)
        (what,) = self._read_by([plan])
        return FrozenFeatures(
            self.first(depth_of(plan)).backbone,
            loader,
            what=what,
            rows=rows,
            stores=self._stores_of(depth_of(plan), root, role),
            memory=self.memory,
            passed=self.passed,
            precision=precision_of(plan.budget.precision, self._device),
        )

    def _stores_of(self, depth: int, root: Split, role: str) -> dict[What, ModelOutputs]:
        """By what trials read whose backbone ends at one depth, the store of it for a split of the task."""
        plans, preparation = self._ending_at(depth), self.first(depth).source.preparation
        whats = self._read_by(plans)
        for what in whats:
            if (depth, role, what) not in self._stores:
                self._stores[depth, role, what] = feature_store(
                    plans[0], root, role, self._device, what=what, preparation=preparation, on_full=self._warn_once
                )
        return {what: self._stores[depth, role, what] for what in whats}

    def watch(self, plan: Plan) -> Stopwatch | None:
        """That of full batches through the whole backbone of a trial, if it was passed alone."""
        return None if self.stage is not None else self.passed.watches.get(self.first(depth_of(plan)).backbone)


def refusal(learner: Learner, loader: Loader, *, draws: bool) -> str:
    """Why a learner cannot be fitted on features that were made once; empty if it can. draws: see `backbone_draws`."""
    if loader.preparation.random:
        return "its preparation draws"
    if draws:
        return "its backbone draws"
    return "" if learner.reads_features else "its objective looks inside the backbone, or the backbone is in training"


def backbone_draws(learner: Learner) -> bool:
    """Whether the backbone draws although it is in evaluation mode, as one that drops out by a function may."""
    backbone = learner.backbone.eval()
    inputs = dummy_inputs(backbone, 1)
    device = next((x.device for x in inputs.values()), torch.device("cpu"))
    with forked_rng(device, "draws"), torch.no_grad():
        return draws(lambda: backbone(inputs))


def copied(learner: Learner) -> Learner:
    """A learner of its own, with the same frozen parameters of the backbone and the same teachers.

    All that training may change is copied, with what a plugin holds beside `delta` and `projectors`.
    """
    frozen = (parameter for parameter in learner.backbone.parameters() if not parameter.requires_grad)
    return copy.deepcopy(learner, {id(each): each for each in (*frozen, learner.teachers, learner.plan)})


def combination_of(plan: Plan) -> str:
    """The identity of a trial without its seed."""
    assert plan.combination is not None, "trials that share work are pinned"
    return plan.combination
