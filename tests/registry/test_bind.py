"""An argument whose name means something else on the recipe's class: written by one name, held by another."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zoo_core.contracts import Target
from zoo_core.errors import UsageError
from zoo_core.registry.bind import Bound, bind_recipe
from zoo_core.spec.parser import parse_part
from zoo_core.testing.recipes import bound


@dataclass(frozen=True, kw_only=True)
class Table:
    """A task whose `target` is a Target, as the contract says, and whose argument `target` is a column."""

    path: str
    column: str | None = field(default=None, metadata={"argument": "target"})

    version: ClassVar[int] = 1
    target: ClassVar[Target] = Target(kind="classes", size=2)

    def open(self, files: Path | None) -> Any: ...


def bind(text: str) -> Bound:
    provider = bound("task", "table", Table(path="x")).provider
    part = parse_part(text)
    recipe, common = bind_recipe(provider, Table, part, "", "table")
    return Bound(kind="task", name="table", provider=provider, recipe=recipe, common=common, written=part)


def test_a_field_may_be_written_by_another_name() -> None:
    found = bind("table(path=a,target=stars)")
    assert found.recipe == Table(path="a", column="stars")
    assert str(found.canonical()) == "table(path=a,target=stars)"
    assert str(bind("table(path=a,target=none)").canonical()) == "table(path=a)"
    assert found.identity()["fields"] == {"path": "a", "target": "stars"}


def test_the_fields_own_name_is_then_no_argument() -> None:
    with pytest.raises(UsageError, match="table has no argument 'column'; it takes path, target, shots, limit"):
        bind("table(path=a,column=stars)")
