"""A suite file, or the same grid by flags, to the plans of its trials; every slip is told with what was meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from zoo_core.benchmark.grid import (
    Grid,
    chains_in,
    expand,
    load_suite,
    named_by,
    starter_suite,
    suite_from,
    weights_of,
)
from zoo_core.cli.bench import _suite as suite_of_flags
from zoo_core.contracts import FileHash
from zoo_core.errors import AccessError, NotFoundError, SuiteError, UsageError
from zoo_core.lock import Pinned
from zoo_core.plan.plan import Budget, Plan, pinned

GRID: Mapping[str, Any] = {
    "name": "mine",
    "tasks": ["thirds(shots=2)", "thirds"],
    "backbones": ["nasty/tokens", "nasty/tokens(weights=random)"],
    "adapters": ["probe", "partial(n=2)+norm", "probe+ncm"],
    "heads": ["linear", "mlp(dropout=0.5)"],
    "seeds": 2,
    "budget": {"epochs": 3, "warmup": 0.2, "augment": "light"},
}
TOML = """
name = "mine"
description = "two of each"
tasks = ["thirds(shots=2)", "thirds"]
backbones = ["nasty/tokens", "nasty/tokens(weights=random)"]
adapters = ["probe", "partial(n=2)+norm", "probe+ncm"]
heads = ["linear", "mlp(dropout=0.5)"]
seeds = 2

[budget]
epochs = 3
warmup = 0.2
augment = "light"
"""

Expand = Callable[..., Grid]


@pytest.fixture
def expanded(nasty: Any) -> Expand:
    return partial(expand, registry=nasty.registry, catalog=nasty.catalog)


def told(table: Mapping[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        suite_from(table, name="x")
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_file_and_flags_give_one_suite(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(TOML)
    grid = {
        "backbones": "nasty/tokens,nasty/tokens(weights=random)",
        "adapters": "probe, partial(n=2)+norm, probe+ncm",
        "heads": "linear,mlp(dropout=0.5)",
    }
    budget = {"epochs": 3, "warmup": 0.2, "augment": "light"}
    by_flags = suite_of_flags(None, ("thirds(shots=2)", "thirds"), grid, 2, budget)
    by_file = load_suite(file)
    assert by_file.stored == f"the suite {file}"
    assert replace(by_file, stored=None) == suite_from({**GRID, "description": "two of each"}, name="x")
    for name in ("tasks", "backbones", "adapters", "heads", "seeds", "budget"):
        assert getattr(by_file, name) == getattr(by_flags, name), name


def test_a_pattern_stands_for_the_backbones_that_fit() -> None:
    assert named_by("starter/v*(weights=random)") == ("starter/vit-nano(weights=random)",)
    assert named_by("timm/test_vit") == ("timm/test_vit",)
    assert named_by("timm/test_vit?.*") == ("timm/test_vit2.r160_in1k", "timm/test_vit3.r160_in1k")
    assert named_by("timm/test_vit2*") == ("timm/test_vit2.r160_in1k",), "which is what test_vit2 stands for"
    grid = {"backbones": 'timm/resnet10t*,run(path="a*b,c"),starter/?it-nano', "adapters": "probe", "heads": None}
    suite = suite_of_flags(None, ("digits",), grid, seeds=1, budget={})
    assert [str(spec) for spec in suite.backbones] == [
        "timm/resnet10t.c3_in1k",
        'run(path="a*b,c")',
        "starter/vit-nano",
    ]
    in_a_file = suite_from({"tasks": ["digits"], "backbones": ["starter/*-nano(weights=random)"]}, name="x")
    assert [str(spec) for spec in in_a_file.backbones] == [
        f"starter/{name}-nano(weights=random)" for name in ("convnet", "mlp", "vit")
    ]
    with pytest.raises(NotFoundError, match=r"no backbone fits 'starter/vit-man\*'; did you mean starter/vit-nano"):
        named_by("starter/vit-man*")
    with pytest.raises(UsageError, match=r"found '\*'"):
        suite_of_flags(None, ("digits",), {**grid, "backbones": "starter/vit-nano+*"}, seeds=1, budget={})
    for slip in ("starter/vit*(weights=random", 'starter/vit*(weights="random)', "starter/vit*,,starter/mlp-nano"):
        with pytest.raises((NotFoundError, UsageError)):
            suite_of_flags(None, ("digits",), {**grid, "backbones": slip}, seeds=1, budget={})


def test_commas_in_brackets_and_quotes_part_no_patterns() -> None:
    text = ' a/*(x=[1,2],y="p,)q") , b*+c(z="\\"," ),d'
    assert chains_in(text) == ('a/*(x=[1,2],y="p,)q")', 'b*+c(z="\\"," )', "d")


def test_flags_change_seeds_and_budget_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(TOML)
    changed = suite_of_flags(file, (), {}, 5, {"epochs": 1})
    assert (changed.seeds, changed.budget) == ((0, 1, 2, 3, 4), Budget(epochs=1, warmup=0.2, augment="light"))


def test_a_suite_is_named_by_its_file_and_has_defaults(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text("tasks = ['thirds']\nbackbones = ['nasty/tokens']\n")
    suite = load_suite(file)
    assert (suite.name, suite.seeds, suite.heads, suite.budget) == ("small", (0, 1, 2), (None,), Budget())
    assert [str(adapter) for adapter in suite.adapters] == ["probe"]


@pytest.mark.parametrize(("seeds", "meant"), [(1, (0,)), (3, (0, 1, 2)), ([4, 2, 4], (4, 2)), ([0], (0,))])
def test_seeds_are_a_count_or_a_list(seeds: Any, meant: tuple[int, ...]) -> None:
    assert suite_from({**GRID, "seeds": seeds}, name="x").seeds == meant


@pytest.mark.parametrize("seeds", [0, -1, [], [-1], ["1"], [1.0], [True], True, "3", 1.5])
def test_other_seeds_are_refused(seeds: Any) -> None:
    assert "seeds should be a positive count or a list of numbers from 0" in told({**GRID, "seeds": seeds})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task": ["thirds"]}, "unknown key 'task'; a suite has name, description, tasks"),
        ({"task": ["thirds"]}, "did you mean tasks?"),
        ({"adapter": ["full"]}, "did you mean adapters?"),
        ({"epochs": 3}, "unknown key 'epochs'"),
        ({"budget": {"epoch": 3}}, "budget has no key 'epoch'"),
        ({"budget": {"epochs": "3"}}, "epochs='3' should be a whole number"),
        ({"budget": {"epochs": 0}}, "epochs=0 is out of range"),
        ({"budget": 3}, "budget should be a table, found 3"),
        ({"name": 3}, "name should be text, found 3"),
        ({"tasks": "thirds"}, "tasks should be a list of texts such as tasks = ['NAME', 'NAME(key=value)']"),
        ({"tasks": [["thirds"]]}, "tasks should be a list of texts"),
        ({"heads": [3]}, "heads should be a list of texts"),
        ({"tasks": []}, "tasks is empty, so the grid has no trials; `zoo list task` shows what there is"),
        ({"backbones": []}, "backbones is empty"),
        ({"adapters": []}, "adapters is empty"),
        ({"heads": []}, "heads is empty"),
        ({"tasks": ["thirds(shots=)"]}, "at column 14"),
        ({"backbones": ["nasty/tokens+"]}, "at column"),
    ],
)
def test_a_slip_in_a_suite_is_told_with_what_was_meant(change: dict[str, Any], reason: str) -> None:
    assert reason in told({**GRID, **change})


@pytest.mark.parametrize("key", ["tasks", "backbones"])
def test_a_suite_names_its_tasks_and_backbones(key: str) -> None:
    assert f"{key} is missing" in told({name: value for name, value in GRID.items() if name != key})


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    for content, reason in (
        ("tasks = [", "is not TOML"),
        ("tasks = ['thirds']\nbackbone = ['nasty/tokens']", "did you mean backbones?"),
        ("x = " + "[" * 5000, "is not TOML"),
    ):
        file.write_text(content)
        with pytest.raises(SuiteError) as caught:
            load_suite(file)
        assert str(file) in str(caught.value)
        assert reason in str(caught.value)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SuiteError, match="is not a file of text"):
        load_suite(file)
    with pytest.raises(SuiteError, match="is not a file of text"):
        load_suite(tmp_path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="without one, `zoo bench` runs the starter suite"):
        load_suite(tmp_path / "nothing.toml")


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root, who may run this, reads whatever it likes
    with pytest.raises(AccessError, match="may not be read"):
        load_suite(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("file", "tasks", "grid", "seeds", "reason"),
    [
        (Path("a.toml"), ("thirds",), {}, None, "a suite file and --task both give the grid"),
        (Path("a.toml"), (), {"heads": "linear"}, None, "a suite file and --heads both give the grid"),
        (None, ("thirds",), {"backbones": None}, None, "a grid by flags needs --task and --backbones"),
        (None, (), {"backbones": "nasty/tokens"}, None, "a grid by flags needs --task and --backbones"),
        (None, ("thirds",), {"backbones": "nasty/tokens"}, 0, "--seeds 0: allowed: 1 or more"),
        (None, ("thirds",), {"backbones": ","}, None, "at column 1"),
        (None, ("thirds",), {"backbones": "nasty/tokens", "heads": "linear+mlp"}, None, "at column 7"),
    ],
)
def test_a_slip_in_the_flags_is_told(
    file: Path | None, tasks: tuple[str, ...], grid: dict[str, Any], seeds: int | None, reason: str
) -> None:
    with pytest.raises(UsageError) as caught:
        suite_of_flags(file, tasks, grid, seeds, {})
    assert reason in str(caught.value)


# --- expanding -------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_and_a_chain_with_a_head_of_its_own_has_no_other(expanded: Expand) -> None:
    grid = expanded(suite_from(GRID, name="x"))
    specs = [str(plan.spec) for plan in grid.plans]
    assert len(specs) == 2 * 2 * (2 * 2 + 1) * 2
    assert grid.refusals == ()
    assert set(specs) == {
        f"nasty/tokens{weights}+{chain}"
        for weights in ("", "(weights=random)")
        for chain in (
            "linear",
            "mlp(dropout=0.5)",
            "partial(n=2)+norm+linear",
            "partial(n=2)+norm+mlp(dropout=0.5)",
            "ncm",
        )
    }


def test_the_order_of_a_grid_is_that_of_the_suite(expanded: Expand) -> None:
    one = [plan.digest for plan in expanded(suite_from(GRID, name="x")).plans]
    assert one == [plan.digest for plan in expanded(suite_from(dict(GRID), name="y")).plans]
    assert one != [plan.digest for plan in expanded(suite_from({**GRID, "seeds": [1, 0]}, name="x")).plans]


def test_two_texts_of_one_trial_run_once(expanded: Expand) -> None:
    table = {
        "tasks": ["thirds", "thirds(how=well)"],
        "backbones": ["nasty/tokens", "backbone:nasty/tokens", "nasty/tokens(weights=pretrained)"],
        "adapters": ["partial", "partial(n=1)", "partial(n=1,head_scale=10)"],
        "heads": ["linear", "linear(dropout=0)"],
        "seeds": [0, 0],
    }
    assert len(expanded(suite_from(table, name="x")).plans) == 1


def test_what_makes_no_sense_is_listed_with_its_reason_and_the_rest_is_planned(expanded: Expand) -> None:
    table = {
        "tasks": ["thirds", "heights"],
        "backbones": ["nasty/tokens", "nasty/map"],
        "adapters": ["probe", "probe+ncm", "needs-attention", "silent", "miscounts"],
        "seeds": 1,
    }
    grid = expanded(suite_from(table, name="x"))
    assert [f"{plan.spec} {plan.trial.task}" for plan in grid.plans] == [
        "nasty/tokens+linear thirds",
        "nasty/tokens+ncm thirds",
        "nasty/tokens+linear heights",
    ]
    reasons = {(str(refusal.trial.spec), str(refusal.trial.task)): refusal.reason for refusal in grid.refusals}
    assert len(grid.refusals) == len(reasons) == 2 * 2 * 5 - 3
    assert "head ncm predicts classes" in reasons["nasty/tokens+probe+ncm", "heights"]
    assert "no pretrained weights" in reasons["nasty/map+probe", "thirds"]
    assert "needs the attention seam" in reasons["nasty/tokens+needs-attention", "thirds"]
    assert "does not say changes" in reasons["nasty/tokens+silent", "thirds"]
    assert all("\n" not in reason for reason in reasons.values())


def test_files_that_nothing_pins_are_pinned_once_or_refused(expanded: Expand) -> None:
    table = {"tasks": ["thirds"], "backbones": ["nasty/tokens", "nasty/far"], "adapters": ["probe", "full"], "seeds": 2}
    suite = suite_from(table, name="x")
    assert [plan.digest is None for plan in expanded(suite).plans] == [False] * 4 + [True] * 4
    asked: list[tuple[str, ...]] = []

    def unreachable(plan: Plan) -> Plan:
        asked.append(plan.unpinned)
        raise AccessError("the Hub cannot be reached")

    grid = expanded(suite, pin=unreachable)
    assert asked == [("backbone:nasty/far",)]
    assert {refusal.reason for refusal in grid.refusals} == {"the Hub cannot be reached"}
    assert (len(grid.plans), len(grid.refusals)) == (4, 4)

    def pin(plan: Plan) -> Plan:
        asked.append(plan.unpinned)
        files = {"model.safetensors": FileHash(sha256="ab" * 32, size=3)}
        return pinned(plan, {"backbone:nasty/far": Pinned(repository="org/far", revision="c" * 40, files=files)})

    grid = expanded(suite, pin=pin)
    assert asked == [("backbone:nasty/far",)] * 2
    assert all(plan.digest for plan in grid.plans)
    assert len({plan.base_digest for plan in grid.plans}) == 2


def test_a_grid_of_refusals_alone_is_an_error_with_a_reason(expanded: Expand) -> None:
    table = {"tasks": ["rows"], "backbones": ["nasty/tokens"], "seeds": 2}
    with pytest.raises(SuiteError, match=r"grid of suite x is empty, 2 trials refused: nasty/tokens reads image"):
        expanded(suite_from(table, name="x"))


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"adapters": ["parital"]}, NotFoundError, "did you mean partial"),
        ({"adapters": ["partial(m=3)"]}, UsageError, "partial has no argument 'm'"),
        ({"adapters": ["twin"]}, UsageError, "write adapter:twin or head:twin"),
        ({"adapters": ["digits"]}, UsageError, "'digits' is of kind task"),
        ({"backbones": ["nasty/token"]}, NotFoundError, "nasty has no 'token'"),
        ({"tasks": ["third"]}, NotFoundError, "did you mean thirds?"),
        ({"heads": ["full"]}, NotFoundError, "no plugin provides a head 'full'"),
    ],
)
def test_a_typing_mistake_stops_the_whole_suite(
    expanded: Expand, change: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason.replace("(", r"\(").replace("?", r"\?")):
        expanded(suite_from({**GRID, **change}, name="x"))


def test_the_starter_suite_compares_each_backbone_with_itself_at_random() -> None:
    suite = load_suite(starter_suite())
    texts = {str(backbone) for backbone in suite.backbones}
    assert texts == {
        f"starter/{name}{weights}" for name in ("convnet-nano", "vit-nano") for weights in ("", "(weights=random)")
    }
    assert len(suite.seeds) >= 3


def test_ten_thousand_trials_expand(expanded: Expand) -> None:
    """Two seconds or so; benchmarks/kill.py prints how long."""
    table = {
        "tasks": ["thirds", "thirds(shots=2)"],
        "backbones": ["nasty/tokens", "nasty/tokens(weights=random)"],
        "adapters": [f"partial(head_scale={scale})" for scale in range(1, 26)],
        "seeds": 100,
    }
    grid = expanded(suite_from(table, name="x"))
    assert len({plan.digest for plan in grid.plans}) == 10_000


def test_more_shots_than_a_task_has_examples_are_refused_before_anything_runs() -> None:
    table = {"tasks": ["digits(shots=5)", "digits(shots=90)"], "backbones": ["starter/vit-nano"], "seeds": 1}
    grid = expand(suite_from(table, name="x"))
    assert [str(plan.trial.task) for plan in grid.plans] == ["digits(shots=5)"]
    assert [(str(refusal.trial.task), refusal.reason) for refusal in grid.refusals] == [
        (
            "digits(shots=90)",
            "shots=90 of 10 classes are 900 training examples, and digits has 897; allowed: up to 89",
        )
    ]


@pytest.mark.parametrize(
    ("backbone", "label"),
    [
        ("nasty/tokens", "pretrained"),
        ("nasty/tokens(weights=random)", "random"),
        ("nasty/unlisted-tokens", "as built"),
        ("nasty/unlisted-tokens(weights=random)", "random"),
        ("nasty/far", "pretrained"),
    ],
)
def test_weights_are_called_pretrained_only_where_something_says_so(nasty: Any, backbone: str, label: str) -> None:
    assert weights_of(nasty.resolve(backbone)) == label
