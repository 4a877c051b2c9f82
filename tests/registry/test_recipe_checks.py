"""What a recipe says of itself is checked before anybody builds on it: spelling, type, and that it can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest

from zoo_core import add_plugin
from zoo_core.errors import PluginError
from zoo_core.registry.readers import contested, task_part
from zoo_core.registry.recipe_checks import check_adapter, check_head, check_metric
from zoo_core.registry.registry import registry
from zoo_core.testing.recipes import ToyAdapter, ToyHeads, bound


class Scored:
    """A metric."""

    targets = frozenset({"classes"})
    higher_is_better = True


CHECKS: Mapping[Any, Any] = {ToyAdapter: check_adapter, ToyHeads: check_head, Scored: check_metric}
KINDS: Mapping[Any, Any] = {ToyAdapter: "adapter", ToyHeads: "head", Scored: "metric"}


def check(recipe: type, said: Mapping[str, Any]) -> None:
    made = make_dataclass("Said", [], bases=(recipe,), namespace=dict(said), frozen=True, kw_only=True)
    CHECKS[recipe](bound(KINDS[recipe], "said", made()))


def raising(recipe: Any) -> Any:
    raise AttributeError("of its own")


@pytest.mark.parametrize("recipe", [ToyAdapter, ToyHeads, Scored])
def test_what_says_nothing_wrong_passes(recipe: type) -> None:
    check(recipe, {"remark": "this is read by its own code"})


@pytest.mark.parametrize(
    ("recipe", "said", "told"),
    [
        (ToyAdapter, {"target": frozenset({"regression"})}, "it says target, which nothing reads; targets is what"),
        (ToyAdapter, {"mergable": True}, "it says mergable, which nothing reads; mergeable is what"),
        (ToyAdapter, {"need": ()}, "it says need, which nothing reads; needs is what"),
        (ToyAdapter, {"changes": ["base"]}, r"changes is \['base'\]; allowed: a frozenset of base, added"),
        (ToyAdapter, {"changes": None}, "changes is None; allowed: a frozenset of base"),
        (ToyAdapter, {"accepts": "tokens"}, "accepts is 'tokens'; allowed: a frozenset of map, tokens, pooled"),
        (ToyAdapter, {"accepts": frozenset({None})}, "accepts is None; allowed: map"),
        (ToyAdapter, {"needs": frozenset({"mlp.out"})}, "needs is .*; allowed: a tuple of alternatives"),
        (ToyAdapter, {"needs": (("attn.q",),)}, "needs is .*; allowed: a tuple of alternatives"),
        (ToyAdapter, {"mergeable": "no"}, "mergeable is 'no'; allowed: True, False"),
        (ToyAdapter, {"exact_at_start": "yes"}, "exact_at_start is 'yes'; allowed: True, False"),
        (ToyAdapter, {"learning_rates": 5}, "learning_rates should be 5 ascending positive numbers, found 5"),
        (ToyAdapter, {"learning_rates": (1e-3, None, 1, 2, 3)}, "learning_rates should be 5 ascending"),
        (ToyAdapter, {"targets": property(raising)}, "raised AttributeError: of its own at"),
        (ToyHeads, {"consume": "tokens"}, "it says consume, which nothing reads; consumes is what"),
        (ToyHeads, {"consumes": ["pooled"]}, r"consumes is \['pooled'\]; allowed: one of map"),
        (ToyHeads, {"fit": None}, "fit is None; allowed: one of gradient, closed_form"),
        (ToyHeads, {"predicts": None}, "predicts is None; allowed: a frozenset of classes"),
        (Scored, {"targets": "classes"}, "targets is 'classes'; allowed: a frozenset of classes"),
        (Scored, {"higher_is_better": 1}, "higher_is_better is 1; allowed: True, False"),
    ],
)
def test_what_it_says_wrongly_is_told_with_what_is_allowed(recipe: type, said: Mapping[str, Any], told: str) -> None:
    with pytest.raises(PluginError, match=f"'said' of zoo-toys 1 .*{told}"):
        check(recipe, said)


READERS = '''
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A reader that cannot be asked."""

    version: ClassVar[int] = 1
    below: ClassVar[frozenset[str]] = frozenset()
    names: ClassVar[frozenset[str]] = frozenset()

    @property
    def suffixes(self):
        raise ValueError("of its own")

    def task(self, path, files):
        return None
'''


def test_a_reader_that_cannot_be_asked_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.py").write_text(READERS)
    (tmp_path / "points.csv").write_text("x,target\n1,a\n2,b\n")
    registry.cache_clear()
    try:
        add_plugin(tmp_path / "bad.py")
        assert task_part(str(tmp_path / "points.csv")).name == "csv"
        assert not list(contested(registry()))
    finally:
        registry.cache_clear()
