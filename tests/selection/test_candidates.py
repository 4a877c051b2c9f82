"""Which backbones are compared, and what each that is not says."""

from __future__ import annotations

from typing import Any

import pytest

from zoo_core.errors import NotFoundError, RefusedError, UsageError
from zoo_core.plan.resolve import bind_task
from zoo_core.registry.bind import Bound
from zoo_core.registry.registry import registry
from zoo_core.selection.candidates import Filters, check_target, find_candidates
from zoo_core.testing.recipes import ToyTasks, bound


def task(text: str = "digits") -> Bound:
    return bind_task(text, {}, offline=True, registry=registry())


def found(backbones: Any, **filters: Any) -> tuple[list[str], dict[str, str]]:
    kept, left_out = find_candidates(backbones, task(), filters=Filters(**filters))
    return [each.name for each in kept], {each.name: each.reason for each in left_out}


def test_names_and_patterns_become_candidates_once_each() -> None:
    names, left_out = found("starter/*nano(until=2),starter/vit-nano, starter/vit-nano(weights=pretrained)")
    assert names == ["starter/convnet-nano(until=2)", "starter/vit-nano(until=2)", "starter/vit-nano"]
    assert list(left_out) == ["starter/mlp-nano(until=2)"]


def test_a_backbone_of_another_modality_is_left_out_and_says_so() -> None:
    names, left_out = found("starter/vit-nano,starter/mlp-nano(weights=random)")
    assert names == ["starter/vit-nano"]
    assert "image" in left_out["starter/mlp-nano(weights=random)"]
    assert "table" in left_out["starter/mlp-nano(weights=random)"]


SMALL, LARGE, OTHER = "starter/vit-nano", "starter/convnet-nano", "timm/resnet18.a1_in1k"


@pytest.mark.parametrize(
    ("filters", "kept", "reason"),
    [
        ({}, [SMALL, LARGE, OTHER], ""),
        ({"licences": ("mit", "apache-2.0")}, [SMALL, LARGE, OTHER], ""),
        ({"max_parameters": 460_000}, [SMALL], "it has 473,696 parameters; allowed: up to 460,000"),
        ({"input_size": 32}, [SMALL, LARGE], ""),
        ({"input_size": 224}, [OTHER], "its pictures have 32 pixels; allowed: 224"),
    ],
)
def test_a_filter_goes_by_what_the_catalogue_knows(filters: dict[str, Any], kept: list[str], reason: str) -> None:
    names, left_out = found([SMALL, LARGE, OTHER], **filters)
    assert (names, left_out.get(LARGE, "")) == (kept, reason)


def test_a_licence_that_nobody_has_leaves_nothing() -> None:
    with pytest.raises(RefusedError, match=r"no backbone is left of 1: starter/vit-nano: its licence is Apache-2\.0"):
        found(SMALL, licences=("MIT",))


def test_what_is_not_known_leaves_a_backbone_out() -> None:
    names, left_out = found("starter/vit-nano,hf/some/where", max_parameters=10**9)
    assert names == ["starter/vit-nano"]
    assert left_out["hf/some/where"] == "its number of parameters is not known"


@pytest.mark.parametrize(
    ("backbones", "error", "told"),
    [
        ("starter/vit-nan", NotFoundError, "did you mean"),
        ("starter/zzz*", NotFoundError, "no backbone fits"),
        ("starter/vit-nano+lora", UsageError, "more than a backbone; rank takes starter/vit-nano, and zoo bench"),
        ("starter/mlp-nano", RefusedError, "no backbone is left of 1: starter/mlp-nano: "),
        ("starter/vit-nano(until=9)", RefusedError, "no backbone is left of 1"),
    ],
)
def test_a_mistake_is_told(backbones: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told.replace("+", r"\+")):
        found(backbones)


@pytest.mark.parametrize("filters", [{"max_parameters": 0}, {"input_size": 2.5}])
def test_a_filter_out_of_range_is_told(filters: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="allowed: a whole number, 1 or more"):
        Filters(**filters)


def test_a_target_that_no_score_is_for_is_refused() -> None:
    with pytest.raises(RefusedError, match="has no labels"):
        check_target(task("digits(labels=drop)"))
    words = bound("task", "words", ToyTasks(kind="token_classes"))
    with pytest.raises(RefusedError, match="is token_classes, with a class for each word"):
        check_target(words)
