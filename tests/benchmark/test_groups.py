"""Which trials of a grid are run together: a function of the grid that divides it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from zoo_core.benchmark.grid import expand, suite_from
from zoo_core.benchmark.groups import kinds_of, plan_groups
from zoo_core.plan.plan import Budget, Plan, pinned
from zoo_core.plan.resolve import resolve


def plan(spec: str, task: str = "digits", seed: int = 0, **budget: Any) -> Plan:
    return pinned(resolve(spec, task=task, seed=seed, budget=Budget(**budget)), {})


def sizes(plans: list[Plan]) -> list[int]:
    return sorted(len(group.positions) for group in plan_groups(plans))


SAME = {
    "seeds": [("starter/vit-nano", "digits", 0), ("starter/vit-nano", "digits", 1)],
    "heads": [("starter/vit-nano", "digits", 0), ("starter/vit-nano+probe+ncm", "digits", 0)],
    "cuts": [("starter/vit-nano", "digits", 0), ("starter/vit-nano(until=2)", "digits", 1)],
    "random weights, cuts": [
        ("starter/convnet-nano(weights=random)", "digits", 0),
        ("starter/convnet-nano(weights=random,until=1)", "digits", 0),
    ],
    "shots": [("starter/vit-nano", "digits(shots=5)", 0), ("starter/vit-nano", "digits(limit=50)", 1)],
    "random weights, one seed": [
        ("starter/convnet-nano(weights=random)", "digits", 0),
        ("starter/convnet-nano(weights=random)+probe+mlp", "digits", 0),
    ],
}
OTHER = {
    "backbones": [("starter/vit-nano", "digits", 0), ("starter/convnet-nano", "digits", 0)],
    "cuts whose last stage trains": [
        ("starter/vit-nano+partial(n=1)", "digits", 0),
        ("starter/vit-nano(until=2)+partial(n=1)", "digits", 0),
    ],
    "random weights, two seeds": [
        ("starter/convnet-nano(weights=random)", "digits", 0),
        ("starter/convnet-nano(weights=random)", "digits", 1),
    ],
    "random weights, whose statistics are of other examples": [
        ("starter/convnet-nano(weights=random)", "digits", 0),
        ("starter/convnet-nano(weights=random)", "digits(shots=5)", 0),
    ],
    "random weights, whose statistics are of other batches": [
        ("starter/convnet-nano(weights=random)", "digits", 0),
        ("starter/convnet-nano(weights=random)+probe+ncm", "digits", 0),
    ],
    "what trains": [("starter/vit-nano", "digits", 0), ("starter/vit-nano+partial(n=1)", "digits", 0)],
}


@pytest.mark.parametrize("name", SAME)
def test_trials_with_one_frozen_part_are_one_group(name: str) -> None:
    assert sizes([plan(*each) for each in SAME[name]]) == [2]


@pytest.mark.parametrize(
    ("spec", "num"),
    [
        ("starter/vit-nano+partial(n=1)", 1),
        ("starter/vit-nano+partial(n=3)", 3),
        ("starter/vit-nano", 0),
    ],
)
def test_a_group_says_how_many_of_the_last_stages_are_open(spec: str, num: int) -> None:
    plans = [plan(spec, seed=seed) for seed in range(2)]
    (group,) = plan_groups(plans)
    assert (group.open_stages, group.alone) == (num, "")
    counted = [replace(each, num_stages=None, first_stage=None) for each in plans]  # as for files that nobody knows
    assert plan_groups(counted)[0].open_stages == num


@pytest.mark.parametrize("name", OTHER)
def test_trials_with_two_frozen_parts_are_two_groups(name: str) -> None:
    assert sizes([plan(*each) for each in OTHER[name]]) == [1, 1]


@pytest.mark.parametrize(
    ("spec", "budget", "reason"),
    [
        ("starter/vit-nano+lora", {"num_rates": 1}, "lora changes what the backbone computes from its first stage on"),
        (
            "starter/vit-nano(weights=random)+lora",
            {},
            "lora changes what the backbone computes from its first stage on, and random weights are drawn by the seed",
        ),
        (
            "starter/vit-nano+lora",
            {"augment": "light"},
            "augment=light draws anew in every epoch; views=N draws N times",
        ),
        ("starter/vit-nano", {"augment": "light"}, "augment=light draws anew in every epoch; views=N draws N times"),
    ],
)
def test_a_trial_that_runs_alone_says_why(spec: str, budget: dict[str, Any], reason: str) -> None:
    (group,) = plan_groups([plan(spec, **budget)])
    assert group.alone == reason
    assert plan_groups([plan("starter/vit-nano", augment="light", views=2)])[0].alone == ""


def test_seeds_of_one_combination_whose_adapters_change_the_backbone_are_a_group_of_rows() -> None:
    plans = [plan(f"starter/vit-nano+lora(r={r})", seed=seed) for seed in (0, 1) for r in (4, 8)]
    groups = plan_groups([*plans, plan("starter/vit-nano")])
    assert [(group.shape, group.positions) for group in groups] == [
        ("rows", (0, 2)),
        ("rows", (1, 3)),
        ("features", (4,)),
    ]


def test_groups_divide_the_grid_and_do_not_depend_on_its_order() -> None:
    table = {
        "tasks": ["digits", "digits(shots=5)"],
        "backbones": ["starter/vit-nano", "starter/convnet-nano(weights=random)"],
        "adapters": ["probe", "lora", "probe+ncm"],
    }
    plans = list(expand(suite_from(table, name="some")).plans)
    mixed = random.Random(0).sample(plans, len(plans))

    def told(plans: list[Plan]) -> set[tuple[str, frozenset[str | None]]]:
        groups = plan_groups(plans)
        assert sorted(position for group in groups for position in group.positions) == list(range(len(plans)))
        return {(group.id, frozenset(plans[at].digest for at in group.positions)) for group in groups}

    assert told(plans) == told(mixed)


def test_nothing_is_shared_on_request() -> None:
    plans = [plan("starter/vit-nano", seed=seed) for seed in (0, 1)]
    groups = plan_groups(plans, share=False)
    assert [group.positions for group in groups] == [(0,), (1,)]
    assert all(group.alone for group in groups)


def test_an_objective_of_an_adapter_may_look_at_the_backbones_own_features() -> None:
    probe = plan("starter/vit-nano")
    assert kinds_of([probe], "tokens") == ("pooled",)
    assert kinds_of([probe, replace(probe, adapters=(probe.head,))], "tokens") == ("pooled", "tokens")
