"""Trials on backbones that differ in `until` share a pass, and have the results of trials that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import zoo_core
from tests.benchmark.test_sharing import CPU, how_of, plans_of, scores, together
from zoo_core.benchmark import sharing
from zoo_core.benchmark.groups import plan_groups
from zoo_core.benchmark.sharing import SharedWork
from zoo_core.benchmark.trial import run_trial
from zoo_core.contracts import Features, Weights
from zoo_core.model.build import build_backbone
from zoo_core.plan.plan import Budget, Plan, pinned
from zoo_core.testing.recipes import ToyBackbones, ToyTasks, toy_plan
from zoo_core.testing.toys import ToyBackbone
from zoo_core.training import rows
from zoo_core.training.rows import StepSeconds


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def filled(plans: Sequence[Plan]) -> SharedWork:
    (group,) = plan_groups(plans)
    shared = SharedWork(group, plans, device=CPU)
    shared.fill()
    return shared


CUTS = {
    "vit": [f"starter/vit-nano{cut}" for cut in ("(until=1)", "", "(until=4)+probe+ncm")],
    "batch norms": [f"starter/convnet-nano{cut}" for cut in ("(until=2)", "+probe+ncm", "(until=1)+probe+mlp")],
    "random weights": [f"starter/convnet-nano(weights=random{cut})" for cut in ("", ",until=1")],
}
FEW = Budget(epochs=2, num_rates=2)


@pytest.mark.parametrize("name", ["vit", "batch norms", pytest.param("random weights", marks=pytest.mark.slow)])
def test_cuts_are_made_of_one_pass_and_score_as_each_alone(name: str) -> None:
    plans = [plans_of(spec, budget=FEW, seeds=1)[0] for spec in CUTS[name]]
    found = together(plans)
    assert scores(found) == scores([run_trial(plan)[0] for plan in plans])
    assert {how_of(result)[1:] for result in found} == {(len(plans), None)}
    assert filled(plans).passed.made == 0


def test_a_pass_counts_once_for_all_cuts() -> None:
    found = together(toys(ToyBackbones(), 2, None, 1))
    assert [(result.work or {})["passed"] for result in found] == [60, 60, 60]  # of three splits of as many
    (seconds,) = {(result.shared or {})["pass_seconds"] for result in found}
    assert seconds > 0


def test_what_is_stored_of_the_longest_cut_is_not_passed_again_for_a_shorter_one() -> None:
    plans = toys(ToyBackbones(), 2, None, 1)
    filled(plans[1:2])
    shared = filled(plans)
    assert shared.passed.made == 180  # those of the second stage, of which the first is made
    assert [cut.refusal if cut else None for cut in shared._shorter.values()] == [None, None, ""]


def test_a_pass_that_serves_shorter_cuts_too_tells_no_rate_of_its_backbone() -> None:
    plans = toys(ToyBackbones(), None, 2, num=70)
    assert [filled(plans).watch(plan) for plan in plans] == [None, None]
    (plan,) = toys(ToyBackbones(), 1, num=70)
    assert filled([plan]).watch(plan) is not None


class _Counting(ToyBackbone):
    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        found = super().forward(inputs)
        if len(found.x) != len(inputs["pixel_values"]):
            raise ValueError("features of other pictures")
        return found


@dataclass(frozen=True, kw_only=True)
class Counts(ToyBackbones):
    """A backbone that looks at its inputs once more behind its stages."""

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        found = _Counting(self.kind)
        found.load_state_dict(super().build(files, weights).state_dict())
        return found


def toys(backbone: ToyBackbones, *cuts: int | None, num: int = 60) -> list[Plan]:
    whole = toy_plan(backbone=backbone, task=ToyTasks(num=num), learning_rates=(1e-2, 3e-2))
    parts = [replace(whole.backbone, common={**whole.backbone.common, "until": until}) for until in cuts]
    return [pinned(replace(whole, backbone=part, num_stages=part.common["until"] or 3), {}) for part in parts]


def test_a_cut_that_cannot_be_made_of_a_longer_one_is_passed_by_itself_and_says_so() -> None:
    plans = toys(Counts(), None, 2)
    found = together(plans)
    assert scores(found) == scores([run_trial(plan)[0] for plan in plans])
    reason = "its backbone was passed by itself: it cannot be entered after stage 2: features of other pictures"
    assert [how_of(result) for result in found] == [("heads", 2, None), ("heads", 2, reason)]
    assert [(result.work or {})["passed"] for result in found] == [180, 180]  # each passed all of the three splits


@pytest.mark.parametrize("broken", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_a_cut_that_breaks_leaves_the_others_as_they_were(broken: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = toys(ToyBackbones(), None, 2, 1)
    alone = scores([run_trial(plan)[0] for plan in plans])

    def build(plan: Any) -> nn.Module:
        if plan.until == broken:
            raise RuntimeError("no kernel")
        return build_backbone(plan)

    monkeypatch.setattr(sharing, "build_backbone", build)
    for result, plan, wanted in zip(together(plans), plans, alone, strict=True):
        if plan.until == broken:
            assert (result.status, result.reason) == ("failed", "RuntimeError: no kernel")
        else:
            assert scores([result]) == [wanted]
            assert how_of(result) == ("heads", 3, None)


def stored_run(spec: str, folder: Path) -> str:
    zoo_core.save(zoo_core.load(spec, num_classes=10), folder)
    return f'run(path="{folder}"'


def test_trials_on_a_stored_run_share_its_features_and_its_depths_a_pass(tmp_path: Path) -> None:
    base = stored_run("starter/convnet-nano+partial(n=1)", tmp_path / "run")
    plans = plans_of(f"{base})") + plans_of(f"{base})+probe+ncm", seeds=1) + plans_of(f"{base},until=2)", seeds=1)
    shared = filled(plans)
    splits = [shared.splits(plan) for plan in plans]
    train = {name for each in splits for name in each.train.ids}
    assert shared.passed.made == len(train) + splits[0].val.num + splits[0].test.num
    assert [(group.shape, group.positions) for group in plan_groups(plans_of(f"{base})+lora"))] == [("rows", (0, 1))]


@pytest.mark.slow
def test_trials_on_a_stored_run_score_as_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows._Rows, "weighed", lambda self: StepSeconds(together=1.0, alone=2.0))
    base = stored_run("starter/convnet-nano+partial(n=1)", tmp_path / "run")
    wanted = {f"{base})": "heads", f"{base},until=2)+probe+ncm": "features", f"{base})+lora": "rows"}
    for spec, how in wanted.items():
        plans = plans_of(spec, budget=FEW)
        found = together(plans)
        assert scores(found) == scores([run_trial(plan)[0] for plan in plans])
        assert [how_of(result) for result in found] == [(how, 2, None)] * 2
