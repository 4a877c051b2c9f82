from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from zoo_core.contracts import (
    FEATURE_KINDS,
    TARGET_KINDS,
    AdapterFacts,
    AdapterFormat,
    Change,
    HeadFacts,
    MergesItself,
    Namespace,
    TaskFacts,
    fact,
)
from zoo_core.registry.recipe_checks import check_adapter, check_head
from zoo_core.testing.recipes import bound


@dataclass(frozen=True, kw_only=True)
class Bare:
    """Says what an adapter must, and no more."""

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset({"base"})

    def apply(self, learner: Any, context: Any) -> Any:
        return learner


@dataclass(frozen=True, kw_only=True)
class BareHead:
    """Says what a head must, and no more."""

    version: ClassVar[int] = 1

    def build(self, features: Any, target: Any) -> Any:
        raise NotImplementedError


def test_what_a_recipe_does_not_say_has_a_default() -> None:
    assert fact("adapter", Bare(), "accepts") == frozenset(FEATURE_KINDS)
    assert fact("adapter", Bare(), "needs") == ()
    assert fact("adapter", Bare(), "mergeable") is False
    assert fact("adapter", Bare(), "exact_at_start") is True
    assert fact("adapter", Bare(), "first_stage")(7) == 0
    assert fact("adapter", Bare(), "source")() is None
    assert fact("adapter", Bare(), "teachers")() == ()
    assert fact("adapter", Bare(), "unlabelled") is False
    assert fact("head", BareHead(), "predicts") == frozenset(TARGET_KINDS) - {"token_classes", "unlabelled"}
    assert fact("task", SimpleNamespace(), "source")() is None


@pytest.mark.parametrize("facts", [AdapterFacts, HeadFacts, TaskFacts])
def test_every_fact_has_a_default(facts: type) -> None:
    assert set(facts.__annotations__) <= set(vars(facts))


@pytest.mark.parametrize(("kind", "recipe"), [("adapter", Bare()), ("head", BareHead())])
def test_a_recipe_that_says_no_more_than_it_must_keeps_its_contract(kind: Any, recipe: Any) -> None:
    (check_adapter if kind == "adapter" else check_head)(bound(kind, "bare", recipe))


def test_what_a_recipe_says_goes_before_the_default_however_it_is_said() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Says(Bare):
        mergeable: bool = True
        exact_at_start: ClassVar[bool] = False

        @property
        def needs(self) -> tuple[frozenset[str], ...]:
            return (frozenset({"norm"}),) if self.mergeable else ()

        def first_stage(self, num_stages: int) -> int:
            return num_stages

    assert fact("adapter", Says(), "mergeable") is True
    assert fact("adapter", Says(mergeable=False), "mergeable") is False
    assert fact("adapter", Says(), "exact_at_start") is False
    assert fact("adapter", Says(), "needs") == (frozenset({"norm"}),)
    assert fact("adapter", Says(mergeable=False), "needs") == ()
    assert fact("adapter", Says(), "first_stage")(7) == 7


def test_what_a_recipe_must_say_has_no_default() -> None:
    with pytest.raises(AttributeError, match="changes"):
        fact("adapter", BareHead(), "changes")
    with pytest.raises(AttributeError, match="accepts"):
        fact("backbone", BareHead(), "accepts")


def test_a_property_that_fails_is_not_taken_for_silence() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Fails(Bare):
        @property
        def needs(self) -> Any:
            return self.nothing_of_the_kind  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        fact("adapter", Fails(), "needs")


def test_an_ability_is_a_protocol_that_a_recipe_or_its_class_has_by_shape() -> None:
    class Able(Bare):
        def merge(self, learner: Any) -> None: ...

        @classmethod
        def export(cls, learner: Any, folder: Any) -> str:
            return ""

        @classmethod
        def recipe_for(cls, name: str) -> type:
            return cls

    assert isinstance(Able(), MergesItself)
    assert isinstance(Able, AdapterFormat)
    assert isinstance(Able, Namespace)
    assert not isinstance(Bare(), MergesItself)
    assert not isinstance(Bare, AdapterFormat | Namespace)
