"""A plan, or a refusal with its reason; and what decides a trial's identity. Nothing here builds anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from zoo_core.contracts import FileHash, PartKind, Target
from zoo_core.errors import (
    AmbiguousError,
    NotFoundError,
    PluginError,
    RefusedError,
    SpecError,
    UsageError,
    ZooError,
)
from zoo_core.plan.plan import Budget, Plan, Trial, budget_from
from zoo_core.plan.resolve import check_built, resolve
from zoo_core.registry.catalog import Catalog, Entry
from zoo_core.spec.parser import parse, parse_part

CLASSES = Target(kind="classes", size=3)
VALUES = Target(kind="regression", size=1)
Resolve = Callable[..., Plan]


@pytest.fixture
def plan(nasty: Any) -> Resolve:
    return nasty.resolve  # type: ignore[no-any-return]


def refusal(plan: Resolve, spec: str, **arguments: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        plan(spec, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "task", "reason"),
    [
        ("nasty/table(weights=random)", "thirds", "nasty/table reads table and task thirds is image"),
        ("nasty/tokens", "rows", "nasty/tokens reads image and task rows is table"),
        ("nasty/tokens+ncm", "heights", "head ncm predicts classes and the target is regression"),
        ("nasty/tokens+classes-only", "heights", "head classes-only predicts classes and the target is regression"),
        ("nasty/tokens+dense", "thirds", "head dense consumes map and nasty/tokens gives tokens"),
        ("nasty/table(weights=random)+attention-pool", "rows", "consumes tokens and nasty/table gives pooled"),
        ("nasty/tokens+maps-only", "thirds", "adapter maps-only works on map and nasty/tokens gives tokens"),
        ("nasty/tokens+needs-attention", "thirds", "needs the attention seam, which nasty/tokens lacks"),
        ("nasty/tokens+focal", "heights", "adapter focal is for classes, multilabel and the target is regression"),
        ("nasty/tokens+needs-query", "thirds", "works on attn.q; nasty/tokens has norm"),
        ("nasty/table(weights=random)+norm", "rows", "works on norm; nasty/table has no roles"),
        ("nasty/tokens+partial(n=4)", "thirds", "partial(n=4): the backbone has 3 stages; allowed: 1 to 3"),
        ("nasty/tokens+trouble(how=late)", "thirds", "adapter trouble on nasty/tokens: there is nothing that late"),
        ("nasty/map", "thirds", "no pretrained weights; it has random: write 'nasty/map(weights=random)'"),
        ("nasty/tokens+full+ncm", "thirds", "ncm is fitted in closed form and gives no gradient to train full"),
        ("nasty/tokens+noise+knn", "thirds", "knn is fitted in closed form and gives no gradient to train noise"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(plan: Resolve, spec: str, task: str, reason: str) -> None:
    assert reason in refusal(plan, spec, task=task)


def test_an_adapter_goes_with_the_targets_that_it_is_for(plan: Resolve) -> None:
    assert plan("nasty/tokens+focal").adapters[0].name == "focal"
    assert plan("nasty/tokens+quiet", task="heights").adapters[0].name == "quiet"  # says nothing: is for all


@pytest.mark.parametrize("spec", ["nasty/tokens+probe+ncm", "nasty/tokens+quiet+ncm", "nasty/tokens+ncm"])
def test_a_closed_form_head_goes_with_adapters_that_train_nothing(plan: Resolve, spec: str) -> None:
    assert plan(spec).learning_rates == ()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("nasty/tokens+linear+mlp", "two heads, linear and mlp; a spec ends with at most one"),
        ("nasty/tokens+linear+full", "adapter full stands after head linear; the head comes last"),
        ("full+linear", "a spec starts with a backbone, and 'full' is of kind adapter; write BACKBONE+full"),
        ("digits", "a spec starts with a backbone, and 'digits' is of kind task"),
        ("nasty/tokens+digits", "'digits' is of kind task; after the backbone come adapters, then one head"),
        ("nasty/tokens+nasty/tokens", "'nasty/tokens' is of kind backbone; after the backbone come adapters"),
        ("nasty/tokens+partial(m=2)", "partial has no argument 'm'; it takes n, head_scale"),
        ("nasty/tokens+partial(n=two)", "partial: n is a whole number, found the text 'two'"),
        ("nasty/tokens+partial(n=1.5)", "partial: n is a whole number, found the number 1.5"),
        ("nasty/tokens+partial(n=true)", "partial: n is a whole number, found true"),
        ("nasty/tokens+partial(n=0)", "partial(n=0): allowed: 1 or more"),
        ("nasty/tokens(weights=old)", "weights is one of pretrained, random, found the text 'old'"),
        ("nasty", "nasty is a namespace: write nasty/NAME"),
    ],
)
def test_what_is_written_wrongly_is_a_usage_error(plan: Resolve, spec: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(spec)
    assert reason in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("thirds(shots=0)", "shots is at least 1, found 0"),
        ("thirds(shots=many)", "shots is a whole number or none, found the text 'many'"),
        (
            "thirds(shot=3)",
            "thirds has no argument 'shot'; it takes how, num, shots, limit, rest, labels; did you mean",
        ),
    ],
)
def test_a_task_takes_its_own_arguments_and_the_cores(plan: Resolve, task: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan("nasty/tokens", task=task)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "task", "reason"),
    [
        ("nasty/token", "thirds", "nasty has no 'token'"),
        ("nasti/tokens", "thirds", "no plugin provides a part 'nasti/tokens'; did you mean nasty/tokens"),
        ("nasty/tokens+parital", "thirds", "did you mean partial"),
        ("nasty/tokens", "third", "no plugin provides a task 'third'; did you mean thirds?"),
        ("nasty/tokens", "full", "no plugin provides a task 'full'"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(plan: Resolve, spec: str, task: str, reason: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        plan(spec, task=task)
    assert reason in str(caught.value)


def test_a_name_of_two_kinds_is_ambiguous_until_its_kind_is_written(plan: Resolve) -> None:
    with pytest.raises(AmbiguousError, match="write adapter:twin or head:twin"):
        plan("nasty/tokens+twin")
    assert plan("nasty/tokens+head:twin").head.name == "twin"
    assert plan("nasty/tokens+adapter:twin").adapters[0].name == "twin"
    assert str(plan("nasty/tokens+head:twin").spec) == "nasty/tokens+head:twin"


def test_a_syntax_error_points_at_the_column(plan: Resolve) -> None:
    with pytest.raises(SpecError) as caught:
        plan("nasty/tokens+partial(n=)")
    shown = str(caught.value).splitlines()
    assert shown[-1].index("^") == shown[-2].index("=)") + 1


def test_neither_task_nor_target_is_a_usage_error(plan: Resolve) -> None:
    with pytest.raises(UsageError, match="give a task or a target"):
        plan("nasty/tokens", task=None)


@pytest.mark.parametrize(
    ("spec", "task", "reason"),
    [
        (
            "nasty/tokens+silent",
            "thirds",
            "adapter 'silent' of zoo-nasty 1.0 breaks its contract: it does not say changes",
        ),
        (
            "nasty/tokens+aimless",
            "thirds",
            "targets is 'clases'; allowed: classes, multilabel, regression",
        ),
        ("nasty/tokens+three-rates", "thirds", "learning_rates should be 5 ascending positive numbers"),
        ("nasty/tokens+miscounts", "thirds", "first_stage(3) raised ZeroDivisionError"),
        (
            "nasty/tokens",
            "strange",
            "target.kind is 'clases'; allowed: classes, multilabel, regression, token_classes",
        ),
        ("nasty/tokens", "aim", "target is 'classes'; it should be a zoo_core.contracts.Target"),
        ("nasty/tokens", "misfit", "metric is 'r2'; allowed: accuracy, average_precision, macro_f1, top5_accuracy"),
    ],
)
def test_a_recipe_that_breaks_its_contract_is_its_plugins_fault(
    plan: Resolve, spec: str, task: str, reason: str
) -> None:
    with pytest.raises(PluginError) as caught:
        plan(spec, task=task)
    assert reason in str(caught.value)
    assert "zoo-nasty 1.0" in str(caught.value)


def test_a_task_that_opens_as_another_one_is_its_plugins_fault(plan: Resolve) -> None:
    from zoo_core.benchmark.loaders import open_task

    assert open_task(plan("nasty/tokens")).target.kind == "classes"
    with pytest.raises(
        PluginError, match=r"task 'shifty' of zoo-nasty 1\.0 .* its target is classes, and opened it is regression"
    ):
        open_task(plan("nasty/tokens", task="shifty"))


# --- what the catalogue does not tell --------------------------------------------------------------------------------


def test_checks_that_need_the_backbone_are_said_to_be_deferred(plan: Resolve) -> None:
    assert plan("nasty/tokens").deferred == ()
    assert plan("nasty/unlisted-tokens").deferred == ("modality", "features", "stages", "seams", "roles")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("nasty/unlisted-table", "reads table and task thirds is image"),
        ("nasty/unlisted-tokens+dense", "consumes map and nasty/unlisted-tokens gives tokens"),
        ("nasty/unlisted-tokens+maps-only", "works on map and nasty/unlisted-tokens gives tokens"),
        ("nasty/unlisted-tokens+needs-query", "works on attn.q; nasty/unlisted-tokens has norm, conv"),
        ("nasty/unlisted-tokens+partial(n=4)", "the backbone has 3 stages"),
    ],
)
def test_deferred_checks_are_made_when_the_backbone_is_built(plan: Resolve, spec: str, reason: str) -> None:
    from zoo_core.model.build import build

    with pytest.raises(RefusedError) as caught:
        build(plan(spec))
    assert reason in str(caught.value)


def test_a_deferred_check_that_holds_says_nothing(plan: Resolve) -> None:
    found = plan("nasty/unlisted-tokens+partial(n=3)")
    from zoo_core.contracts import FeatureSpec

    features = FeatureSpec(kind="tokens", dim=12)
    check_built(found, modality="image", features=features, num_stages=3, roles=("norm",))
    with pytest.raises(RefusedError):  # and it can fail
        check_built(found, modality="image", features=features, num_stages=2, roles=("norm",))


# --- identity --------------------------------------------------------------------------------------------------------


def digest(plan: Resolve, spec: str = "nasty/tokens", **arguments: Any) -> str:
    found = plan(spec, **arguments).digest
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("nasty/tokens+partial", "nasty/tokens+partial(n=1)"),
        ("nasty/tokens+partial(n=2,head_scale=3)", "nasty/tokens + partial( head_scale = 3.0 , n = 2 )"),
        ("nasty/tokens", "nasty/tokens+probe"),
        ("nasty/tokens", "nasty/tokens+linear"),
        ("nasty/tokens", "nasty/tokens(weights=pretrained)+probe+linear(dropout=0)"),
        ("nasty/tokens+full", "nasty/tokens+probe+full"),
        ("nasty/tokens+linear", "backbone:nasty/tokens+head:linear"),
    ],
)
def test_two_texts_of_one_trial_have_one_digest_and_one_text(plan: Resolve, one: str, other: str) -> None:
    assert digest(plan, one) == digest(plan, other)
    if "head:" not in other:
        assert str(plan(one).trial) == str(plan(other).trial)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"task": "thirds(shots=2)"},
        {"task": "thirds(limit=20)"},
        {"task": "thirds(limit=20,rest=unlabelled)"},
        {"task": "thirds(num=60)"},
        {"task": "digits"},
        {"spec": "nasty/tokens(weights=random)"},
        {"spec": "nasty/unlisted-tokens"},
        {"spec": "nasty/tokens(width=9)"},
        {"spec": "nasty/tokens+full"},
        {"spec": "nasty/tokens+linear(dropout=0.1)"},
        {"spec": "nasty/tokens+mlp"},
        *(
            {"budget": Budget(**{name: value})}  # type: ignore[arg-type]
            for name, value in {
                "epochs": 3,
                "batch_size": 8,
                "num_rates": 1,
                "weight_decay": 0.0,
                "warmup": 0.0,
                "clip": 2.0,
                "augment": "light",
                "patience": 3,
                "precision": "bfloat16",
                "keep": "best",
                "halving": True,
            }.items()
        ),
    ],
    ids=str,
)
def test_whatever_changes_the_numbers_changes_the_digest(plan: Resolve, changed: dict[str, Any]) -> None:
    assert digest(plan, **changed) != digest(plan)


def test_views_are_of_an_augmentation_and_in_the_digest(plan: Resolve) -> None:
    light, four = Budget(augment="light"), Budget(augment="light", views=4)
    assert digest(plan, budget=light) != digest(plan, budget=four)
    with pytest.raises(RefusedError, match="views=4 of examples that nothing varies"):
        plan("nasty/tokens", budget=Budget(views=4))


def test_every_field_of_the_budget_was_changed_above() -> None:
    marks = [mark for mark in test_whatever_changes_the_numbers_changes_the_digest.pytestmark if mark.args]
    changed = [case["budget"] for case in marks[0].args[1] if "budget" in case]
    default = Budget()
    names = {field.name for field in fields(Budget)} - {"views"}
    assert names == {name for name in names for budget in changed if getattr(budget, name) != getattr(default, name)}


def test_the_order_of_adapters_is_part_of_the_identity(plan: Resolve) -> None:
    assert digest(plan, "nasty/tokens+noise+full") != digest(plan, "nasty/tokens+full+noise")


def test_a_recipes_version_is_part_of_the_identity(plan: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, task = "nasty/tokens+noise+classes-only", "thirds"
    before = digest(plan, spec, task=task)
    found = plan(spec, task=task)
    for part in (found.backbone, found.adapters[0], found.head, found.task):
        assert part is not None
        with monkeypatch.context() as patch:
            patch.setattr(type(part.recipe), "version", 2)
            assert digest(plan, spec, task=task) != before, part.name
    assert digest(plan, spec, task=task) == before


class Rehashed:
    """A catalog in which every file has another hash."""

    def __init__(self, real: Catalog, kind: PartKind) -> None:
        self.real, self.kind = real, kind

    def find(self, name: str, kind: PartKind | None = None) -> Entry | None:
        entry = self.real.find(name, kind)
        if kind != self.kind or entry is None:
            return entry
        return replace(entry, files={"file": FileHash(sha256="f" * 64, size=1)})


@pytest.mark.parametrize("kind", ["backbone", "task"])
def test_a_files_hash_is_part_of_the_identity(nasty: Any, kind: PartKind) -> None:
    before = nasty.resolve("nasty/tokens", task="digits")
    after = resolve(
        "nasty/tokens",
        task="digits",
        registry=nasty.registry,
        catalog=Rehashed(nasty.catalog, kind),  # type: ignore[arg-type]
    )
    assert after.digest != before.digest
    assert (after.base_digest != before.base_digest) == (kind == "backbone")


def test_the_base_is_the_same_for_all_trials_on_it(plan: Resolve) -> None:
    one = plan("nasty/tokens+full", task="thirds(shots=2)", seed=3, budget=Budget(epochs=1))
    assert one.base_digest == plan("nasty/tokens+probe+ncm").base_digest
    assert one.base_digest != plan("nasty/tokens(weights=random)").base_digest


def test_a_backbone_whose_package_holds_all_it_needs_is_pinned_and_one_to_be_fetched_is_not(plan: Resolve) -> None:
    assert plan("nasty/unlisted-tokens").digest is not None
    assert plan("nasty/far(weights=random)").digest is not None
    far = plan("nasty/far")
    assert (far.digest, far.base_digest) == (None, None)


def test_an_adapter_that_changes_nothing_moves_no_random_draw(plan: Resolve) -> None:
    """One digest must mean one result, and an adapter draws by its place in the chain."""
    import torch

    from zoo_core.model.build import build

    one, other = (build(plan(spec)).delta() for spec in ("nasty/tokens+noise", "nasty/tokens+probe+noise"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_plans_trial_reads_back_as_the_same_plan(plan: Resolve) -> None:
    first = plan("nasty/tokens+partial(n=1)+mlp(dropout=0.5)", task="thirds(shots=3)", seed=2)
    again = plan(str(first.spec), task=str(first.trial.task), seed=first.trial.seed)
    assert again.digest == first.digest
    assert str(first.trial) == "nasty/tokens+partial+mlp(dropout=0.5) task=thirds(shots=3) seed=2"


def test_a_trials_text_names_what_differs_from_the_default_budget() -> None:
    trial = Trial(spec=parse("a"), task=parse_part("t"), budget=Budget(epochs=3, patience=2), seed=1)
    assert str(trial) == "a task=t epochs=3 patience=2 seed=1"


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, ()), (2, (1,)), (3, (1, 2)), (4, (1, 2)), (8, (1, 2, 4)), (20, (3, 5, 10))]
)
def test_rungs_are_shares_of_the_epochs_each_once_and_none_is_the_end(epochs: int, rungs: tuple[int, ...]) -> None:
    assert Budget(epochs=epochs, halving=True).rungs == rungs
    assert Budget(epochs=epochs).rungs == ()


# --- learning rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rates", [1, 2, 3, 4, 5])
def test_every_combination_gets_as_many_rates_and_its_default_in_the_middle(nasty: Any, num_rates: int) -> None:
    for spec in ("", "+full", "+partial(n=2)", "+bitfit", "+norm", "+mlp", "+attention-pool", "+quiet", "+noise"):
        plan = nasty.resolve(f"nasty/tokens{spec}", budget=Budget(num_rates=num_rates))
        training = [part for part in plan.adapters if part.fact("changes") & {"base", "added"}]
        grid = (training[0] if training else plan.head).fact("learning_rates")
        assert len(plan.learning_rates) == num_rates, spec
        assert plan.learning_rates[num_rates // 2] == grid[2], spec
        assert list(plan.learning_rates) == sorted(plan.learning_rates)


def test_of_several_adapters_the_most_careful_one_gives_the_rates(plan: Resolve) -> None:
    rates = plan("nasty/tokens+bitfit+full").learning_rates
    assert rates == plan("nasty/tokens+full+bitfit").learning_rates == plan("nasty/tokens+full").learning_rates


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"epochs": 0}, "epochs=0 is out of range; allowed: 1 to 1e+06"),
        ({"batch_size": 1}, "batch_size=1 is out of range; allowed: 2 to"),
        ({"num_rates": 6}, "num_rates=6 is out of range; allowed: 1 to 5"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 is out of range"),
        ({"weight_decay": math.inf}, "weight_decay=inf is out of range"),
        ({"warmup": math.nan}, "warmup=nan is out of range; allowed: 0 to 1"),
        ({"clip": 0.0}, "clip=0.0 is out of range"),
        ({"patience": 0}, "patience=0 is out of range"),
        ({"epochs": "3"}, "epochs='3' should be a whole number"),
        ({"epochs": 2.5}, "epochs=2.5 should be a whole number"),
        ({"epochs": True}, "epochs=True should be a whole number"),
        ({"epochs": None}, "epochs=None should be a whole number"),
        ({"clip": "1"}, "clip='1' should be a number"),
        ({"augment": "light("}, "augment='light(' names no augmentation: "),
        ({"augment": 1}, "augment=1: a part of a spec is text or a recipe, as Lora(r=4), found 1"),
        ({"halving": "yes"}, "halving='yes' should be true or false"),
        ({"precision": "float16"}, "precision='float16' is not one of auto, float32, bfloat16"),
    ],
)
def test_a_budget_out_of_range_or_of_another_type_is_refused(values: dict[str, Any], reason: str) -> None:
    for make in (budget_from, lambda values: Budget(**values)):
        with pytest.raises(UsageError) as caught:
            make(values)
        assert reason in str(caught.value)


def test_a_misspelt_key_of_a_budget_comes_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"budget has no key 'epoch'; it has epochs.*did you mean epochs\?"):
        budget_from({"epoch": 3})


def test_a_whole_number_where_any_is_wanted_is_the_same_budget(plan: Resolve) -> None:
    assert digest(plan, budget=Budget(weight_decay=0, clip=1)) == digest(plan, budget=Budget(weight_decay=0.0))


# --- errors have exit codes ------------------------------------------------------------------------------------------


def test_every_error_that_resolve_raises_is_for_the_user(plan: Resolve) -> None:
    """Random mistakes never end in an error of our own."""
    words = ["nasty/tokens", "full", "linear", "digits", "nasty", "twin", "partial(n=9)", "zoo", "x/y", "head:full"]
    raised, lines = set(), set()
    for first in words:
        for second in words:
            for task in ("thirds", "rows", "full", "nothing"):
                try:
                    plan(f"{first}+{second}", task=task)
                except ZooError as error:
                    raised.add(type(error).__name__)
                    lines.add(str(error).count("\n"))
    assert {"UsageError", "NotFoundError", "RefusedError", "AmbiguousError"} <= raised
    assert lines == {0}


def test_the_starter_suite_is_refused_nothing(nasty: Any) -> None:
    from zoo_core.benchmark.grid import expand, load_suite, starter_suite

    grid = expand(load_suite(starter_suite()), registry=nasty.registry, catalog=nasty.catalog)
    assert grid.refusals == ()
    assert json.loads(json.dumps([plan.digest for plan in grid.plans]))
    assert Path(starter_suite()).is_file()
