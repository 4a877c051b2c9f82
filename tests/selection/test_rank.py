"""The run of a ranking: what it looks at, what it stores, and that one backbone's fault is a row and no more."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo_core
from zoo_core.benchmark import loaders
from zoo_core.benchmark.groups import plan_groups
from zoo_core.benchmark.sharing import SharedWork
from zoo_core.contracts import Target, TargetKind, Weights, as_backbone
from zoo_core.data.splits import Subset
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.build import build_backbone
from zoo_core.plan.plan import Plan, pinned
from zoo_core.selection import pooled
from zoo_core.selection import rank as module
from zoo_core.selection.candidates import Candidate
from zoo_core.selection.examples import drawn, truth_of
from zoo_core.selection.pooled import Pooled, PooledFeatures
from zoo_core.selection.rank import RankEvent, Ranking, Shortlist, run_shortlist
from zoo_core.testing.recipes import ToyBackbones, ToyTasks, bound, toy_plan
from zoo_core.testing.toys import ToyBackbone, ToySplit


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


class Spoilt(ToyBackbone):
    """A backbone whose features are spoilt in some way."""

    how = ""

    def forward(self, inputs: Any) -> Any:
        features = super().forward(inputs)
        if self.how == "raises":
            raise ValueError("no kernel\nfor this")
        if self.how == "memory":
            raise MemoryError("out of memory")
        x = features.x * {"not finite": torch.nan, "constant": 0.0}[self.how]
        return replace(features, x=x)


@dataclass(frozen=True, kw_only=True)
class Spoils(ToyBackbones):
    """The recipe of Spoilt."""

    how: str

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        backbone = Spoilt()
        backbone.how = self.how
        return backbone


@dataclass(frozen=True, kw_only=True)
class Half:
    """A score that fails where it is told to."""

    fault: str = ""

    version: ClassVar[int] = 1
    targets: ClassVar[frozenset[TargetKind]] = frozenset({"classes"})

    def judge(self, features: Tensor, truth: Tensor, target: Target) -> Tensor:
        if self.fault == "raises":
            raise KeyError("nothing")
        return torch.tensor([1.0, 2.0]) if self.fault == "shape" else features.std() * torch.nan


def shortlist(
    *backbones: tuple[str, ToyBackbones], task: ToyTasks | None = None, scores: tuple[Any, ...] = ()
) -> Shortlist:
    """Toy backbones on a toy task, by what resolving would have made of them."""
    from zoo_core.selection.scores import Knn, LogMe, Ridge

    plans = [replace(toy_plan(backbone=recipe, task=task), target=Target(kind="unlabelled")) for _, recipe in backbones]
    named = {"knn": Knn(), "ridge": Ridge(), "logme": LogMe()} | {f"other{i}": score for i, score in enumerate(scores)}
    return Shortlist(
        task=plans[0].task,  # type: ignore[arg-type]
        candidates=tuple(
            Candidate(name=name, plan=replace(plan, backbone=replace(plan.backbone, name=name)))
            for (name, _), plan in zip(backbones, plans, strict=True)
        ),
        left_out=(),
        scores=tuple(bound("score", name, score) for name, score in named.items()),
        by="knn",
        downloads={},
    )


CPU = torch.device("cpu")
PAIR = (("toys", ToyBackbones()), ("maps", ToyBackbones(kind="map")))


def ranked(found: Shortlist, **arguments: Any) -> Ranking:
    """Toy plans bind a task with some of the common arguments only."""
    task = replace(found.task, common={"shots": None, "limit": None, "rest": "drop", "labels": "keep"})
    return run_shortlist(replace(found, task=task), **arguments)


def test_rows_come_in_the_order_of_one_score_with_their_place_by_size() -> None:
    found = ranked(shortlist(*PAIR, ("others", ToyBackbones(layer_drop=True))))
    values = [row.scores["knn"].value for row in found.rows]
    assert values == sorted(values, reverse=True)
    assert not found.rows[0].scores["knn"].is_apart
    assert found.num_examples == 60
    by_size = sorted(found.rows, key=lambda row: -(row.num_parameters or 0))
    assert by_size[0].size_place == 1
    assert {row.status for row in found.rows} == {"ok"}


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_every_target_of_vectors_is_ranked(kind: TargetKind) -> None:
    found = ranked(shortlist(*PAIR, task=ToyTasks(kind=kind)))
    for row in found.rows:
        assert row.scores.keys() == {"knn", "ridge", "logme"}, row
        assert all(score.low <= score.value <= score.high for score in row.scores.values())


def test_a_second_ranking_builds_no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ranked(shortlist(*PAIR))
    monkeypatch.setattr(pooled, "build_backbone", lambda plan: pytest.fail("built"))
    second = ranked(shortlist(*PAIR))
    assert [row.num_made for row in first.rows] == [first.num_examples] * 2
    assert [replace(row, seconds=0) for row in second.rows] == [
        replace(row, seconds=0, num_made=0) for row in first.rows
    ]


def test_more_examples_pass_only_the_new_ones_through_the_backbone() -> None:
    task = ToyTasks(num=90)
    first = ranked(shortlist(*PAIR, task=task), num_examples=40)
    second = ranked(shortlist(*PAIR, task=task), num_examples=60)
    assert (first.num_examples, second.num_examples) == (40, 60)
    assert all(20 <= row.num_made <= 40 for row in second.rows)


def test_stored_features_are_those_that_the_backbone_gives() -> None:
    (_, recipe) = PAIR[0]
    plan = replace(toy_plan(backbone=recipe), target=Target(kind="unlabelled"))
    split = loaders.open_task(plan).splits["train"]
    some = Subset(split, np.arange(7, 30))
    made = PooledFeatures([plan], some, device=CPU).of(plan)
    again = PooledFeatures([plan], Subset(split, np.arange(20, 40)), device=CPU).of(plan)
    assert (made.num_made, again.num_made) == (23, 10)
    backbone = as_backbone(build_backbone(plan))
    inputs = backbone.preparation.collate(backbone.preparation.prepare([_picture(split, row) for row in range(7, 40)]))
    with torch.no_grad():
        wanted = backbone.pool(backbone(backbone.preparation.normalise(inputs)))
    # Two batch sizes in float32.
    assert torch.allclose(made.features, wanted[:23], atol=1e-5)
    assert torch.allclose(again.features, wanted[13:], atol=1e-5)


def cuts(*depths: int | None, weights: Weights = "pretrained") -> list[Plan]:
    whole = toy_plan(weights=weights)
    parts = [replace(whole.backbone, common={**whole.backbone.common, "until": until}) for until in depths]
    return [replace(whole, backbone=part, num_stages=part.common["until"] or 3) for part in parts]


def test_backbones_that_differ_in_where_they_end_are_ranked_of_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = cuts(None, 2, 1)
    split = loaders.open_task(plans[0]).splits["train"]
    together = PooledFeatures(plans, split, device=CPU)
    found = [together.of(plan) for plan in plans]
    assert together._passed.made == 60
    assert [each.num_made for each in found] == [60, 60, 60]
    monkeypatch.setattr(pooled, "build_backbone", lambda plan: pytest.fail("built"))
    again = PooledFeatures(plans, split, device=CPU)
    assert [again.of(plan).num_parameters for plan in plans] == [each.num_parameters for each in found]
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "another"))
    for plan, each in zip(plans, found, strict=True):
        alone = PooledFeatures([plan], split, device=CPU).of(plan)
        assert torch.equal(alone.features, each.features)
        assert alone.num_parameters == each.num_parameters


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_bench_reads_what_a_ranking_stored_and_the_other_way_round(weights: Weights) -> None:
    plans = cuts(None, 2, weights=weights)
    trials = [pinned(plan, {}) for plan in plans]
    split = loaders.open_task(plans[0]).splits["train"]
    ranking = PooledFeatures(plans[:1], split, device=CPU)
    ranking.of(plans[0])
    (group,) = plan_groups(trials)
    shared = SharedWork(group, trials, device=CPU)
    shared.fill()
    # 120 are not of the training split; random weights of a trial are calibrated, and those of a ranking are not.
    assert shared.passed.read == (60 if weights == "pretrained" else 0)
    later = PooledFeatures(plans[1:], split, device=CPU)
    assert later.of(plans[1]).num_made == (0 if weights == "pretrained" else 60)


def _picture(split: Any, row: int) -> Tensor:
    from zoo_core.data.decoding import decode

    return decode("image", split.raw(row))  # type: ignore[no-any-return]


def test_the_test_split_is_never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Shut:
        """Any look at it fails."""

        def __getattr__(self, name: str) -> Any:
            pytest.fail(f"looked at {name}")

    def opened(plan: Any) -> Any:
        data = open_task(plan)
        splits: Any = data.splits
        splits["test"] = Shut()
        splits["val"] = Shut()
        return data

    open_task = loaders.open_task
    monkeypatch.setattr(module, "open_task", opened)
    assert ranked(shortlist(*PAIR)).rows[0].status == "ok"
    with pytest.raises(pytest.fail.Exception, match="looked at num"):  # the trap can be seen to snap
        opened(shortlist(*PAIR).candidates[0].plan).splits["test"].num  # noqa: B018


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("not finite", "its features are not finite for 60 of 60 examples"),
        ("constant", "its features are the same for all 60 examples"),
        ("raises", "ValueError: no kernel for this"),
        ("memory", "MemoryError: out of memory"),
    ],
)
def test_a_backbone_that_fails_is_a_row_and_no_other_is_lost(
    how: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled, "build_backbone", _unchecked)  # the checks of a backbone run it too
    events: list[RankEvent] = []
    found = ranked(shortlist(("spoilt", Spoils(how=how)), *PAIR), watch=events.append)
    assert [row.status for row in found.rows] == ["ok", "ok", "failed"]
    assert reason in found.rows[-1].reason
    assert [event.done for event in events] == [1, 2, 3]


def _unchecked(plan: Any) -> nn.Module:
    return plan.backbone.recipe.build(None, plan.weights).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raises", "score 'other0' of zoo-toys 1 raised KeyError: 'nothing'"),
        ("shape", "judge gave torch.float32 [2]; allowed: a float tensor of shape [] or [60]"),
        ("nan", "other0(fault=nan) is not defined on these examples"),
    ],
)
def test_a_score_that_fails_leaves_the_others(fault: str, reason: str) -> None:
    found = ranked(shortlist(*PAIR, scores=(Half(fault=fault),)))
    for row in found.rows:
        assert row.scores.keys() == {"knn", "ridge", "logme"}
        assert reason in row.unscored[f"other0(fault={fault})"]


def test_after_the_time_limit_no_backbone_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 11.0, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(PooledFeatures, "of", _stored_elsewhere)
    found = ranked(shortlist(*PAIR, ("others", ToyBackbones(layer_drop=True))), time_limit=10)
    assert [(row.name, row.status) for row in found.rows] == [
        ("toys", "ok"),
        ("maps", "not measured"),
        ("others", "not measured"),
    ]
    assert found.rows[1].reason == "the time limit of 10 s was over"


def _stored_elsewhere(self: PooledFeatures, plan: Any) -> Pooled:
    num = self._split.num
    features = torch.randn(num, 4, generator=torch.Generator().manual_seed(0))
    return Pooled(features=features, num_parameters=7, num_made=num)


@pytest.mark.parametrize("arguments", [{"time_limit": 0}, {"num_examples": 19}, {"time_limit": float("nan")}])
def test_an_argument_out_of_range_is_told(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="allowed: "):
        ranked(shortlist(*PAIR), **arguments)


def test_each_class_has_its_share_of_the_examples_and_two_at_least() -> None:
    labels = np.array([0] * 900 + [1] * 98 + [2] * 2)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    split = ToySplit(np.zeros((len(labels), 8, 8), np.uint8), labels[order])
    some = drawn(split, Target(kind="classes", size=3), 100, 0)
    assert np.bincount(some.targets).tolist() == [88, 10, 2]
    again = drawn(split, Target(kind="classes", size=3), 100, 0)
    other = drawn(split, Target(kind="classes", size=3), 100, 1)
    assert some.index.tolist() == again.index.tolist()
    assert some.index.tolist() != other.index.tolist()


@pytest.mark.parametrize(
    ("labels", "told"),
    [([0] * 30, "all training examples have one class"), ([0, 1] * 5, "10 training examples are too few")],
)
def test_examples_that_tell_nothing_are_refused(labels: list[int], told: str) -> None:
    split = ToySplit(np.zeros((len(labels), 8, 8), np.uint8), np.array(labels))
    with pytest.raises(RefusedError, match=told):
        truth_of(split, Target(kind="classes", size=2))


def test_the_first_third_is_rounded_up_and_two_at_least() -> None:
    found = ranked(shortlist(*PAIR))
    rows = [replace(found.rows[0], name=str(number)) for number in range(7)]
    rows.append(replace(found.rows[0], name="failed", status="failed"))
    assert replace(found, rows=tuple(rows)).first() == ("0", "1", "2")
    assert replace(found, rows=tuple(rows[:3])).first() == ("0", "1")
    assert replace(found, rows=tuple(rows[-2:])).first() == ("6",)


def test_the_python_call_ranks_the_starter_backbones() -> None:
    backbones = ["starter/vit-nano(until=1)", "starter/vit-nano"]
    found = zoo_core.rank(backbones, task="digits(limit=200)", by="ridge")
    assert [row.name for row in found.rows] == ["starter/vit-nano", "starter/vit-nano(until=1)"]
    assert [row.size_place for row in found.rows] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"scores": "knnn"}, "did you mean knn"),
        ({"scores": "knn,knn"}, "each score is named once"),
        ({"by": "logme", "scores": "knn"}, "'logme', which is not among the scores; allowed: knn"),
        ({"task": "digits(labels=drop)"}, "has no labels"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(zoo_core.ZooError, match=told):
        zoo_core.rank("starter/vit-nano", **{"task": "digits", **arguments})
