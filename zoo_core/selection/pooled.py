"""The pooled features of some examples under frozen backbones: read where a trial or a ranking has stored them.

Backbones that differ in where they end share a pass, as trials do.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo_core.benchmark.feature_stores import feature_store
from zoo_core.benchmark.groups import depth_of
from zoo_core.benchmark.loaders import check_still
from zoo_core.contracts import Preparation, Split, as_backbone
from zoo_core.data.loader import AS_IT_IS, Loader
from zoo_core.data.model_outputs import ModelOutputs, Stored
from zoo_core.data.splits import rows_of
from zoo_core.errors import IntegrityError
from zoo_core.model.build import build_backbone, outline
from zoo_core.model.given_features import features_in
from zoo_core.plan.plan import Plan
from zoo_core.training.frozen_features import FeatureMemory, FeaturePass, FrozenFeatures, Shorter, Stores
from zoo_core.training.shorter_cuts import ShorterCut
from zoo_core.training.timing import INFERENCE_BATCH, precision_of

__all__ = ["Pooled", "PooledFeatures"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """features: float32 [N, D] on the CPU. num_parameters: of the backbone. num_made: rows computed, not read."""

    features: Tensor
    num_parameters: int
    num_made: int


class PooledFeatures:
    """The features of every example of a split drawn from the task's training split, in evaluation mode, unaugmented.

    They are those of the trials of a bench, but for random weights, whose statistics are not taken here.
    """

    def __init__(self, plans: Sequence[Plan], split: Split, *, device: torch.device, num_workers: int = 0) -> None:
        """plans: pinned, of backbones that differ in where they end; of them only backbone and task matter."""
        self._plans, self._split, self._device, self._num_workers = plans, split, device, num_workers
        self._root, self._rows = rows_of(split)
        self._memory, self._passed = FeatureMemory(), FeaturePass()
        self._built: dict[int, nn.Module] = {}  # by depth, as what follows
        self._stores: dict[int, ModelOutputs] = {}
        self._stored: dict[int, Stored] = {}  # before any pass

    def of(self, plan: Plan) -> Pooled:
        """The features under one of the backbones, and with them those of the shorter ones that are not stored.

        If all are stored, nothing is built. Raises IntegrityError if files of the task have changed.
        """
        if not self._stored:
            self._look(plan)
        stored = self._stored[depth_of(plan)]
        if len(stored.missing):
            found = self._frozen(plan)
            found.fill(shorter=self._shorter(plan))
            self._check_still(plan)
            given, counted = found.inputs(0, range(self._split.num)), self._backbone(plan)
        else:
            given, counted = dict(stored.outputs), self._outline(plan)
        features = features_in(given)
        assert features is not None, "they were stored as such"
        return Pooled(
            features=features.x.float().cpu(),
            num_parameters=sum(parameter.numel() for parameter in counted.parameters()),
            num_made=len(stored.missing),
        )

    def _frozen(self, plan: Plan) -> FrozenFeatures:
        assert plan.task is not None, "features are of a task's examples"
        backbone = self._backbone(plan)
        loader = Loader(
            self._split,
            modality=plan.task.recipe.modality,
            target=plan.target,
            preparation=as_backbone(backbone).preparation,
            batch_size=INFERENCE_BATCH,
            device=self._device,
            num_workers=self._num_workers,
        )
        return FrozenFeatures(
            backbone,
            loader,
            what="pooled",
            rows=self._rows,
            stores={"pooled": self._stores[depth_of(plan)]},
            memory=self._memory,
            passed=self._passed,
            precision=precision_of(plan.budget.precision, self._device),
        )

    def _shorter(self, plan: Plan) -> Shorter:
        """The shorter backbones that lack features. What cannot be built is told when it is asked for itself."""
        found: list[tuple[ShorterCut, Stores]] = []
        for other in self._plans:
            if depth_of(other) < depth_of(plan) and len(self._stored[depth_of(other)].missing):
                with suppress(Exception):
                    cut = ShorterCut(self._backbone(other), self._backbone(plan))
                    found.append((cut, {"pooled": self._stores[depth_of(other)]}))
        return found

    def _check_still(self, plan: Plan) -> None:
        try:
            check_still(plan)
        except IntegrityError:
            for store in self._stores.values():
                store.discard()
            raise

    def _backbone(self, plan: Plan) -> nn.Module:
        if depth_of(plan) not in self._built:
            self._built[depth_of(plan)] = build_backbone(plan).to(self._device)
        return self._built[depth_of(plan)]

    def _outline(self, plan: Plan) -> nn.Module:
        """The backbone without its weights; with them where it needs their values."""
        try:
            return outline(plan)
        except Exception:  # noqa: BLE001, what is truly wrong comes up again
            return self._backbone(plan)

    def _look(self, plan: Plan) -> None:
        """Finds out what is stored, under which backbone does not matter: their preparation is one."""
        preparation: Preparation = as_backbone(self._outline(plan)).preparation
        for each in self._plans:
            store = feature_store(
                each,
                self._root,
                "train",
                self._device,
                what="pooled",
                preparation=preparation,
                on_full=_log.warning,
                more={"drawn": {"seed": each.seed}} if each.weights == "random" else None,  # it is not calibrated
            )
            self._stores[depth_of(each)] = store
            self._stored[depth_of(each)] = store.read(AS_IT_IS, self._rows)
            store.close()
