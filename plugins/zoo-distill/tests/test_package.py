"""What the distribution promises before anything of it is built: its entry points, and the summaries beside them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1]
KIND_OF_GROUP = {"zoo.adapters": "adapter"}
VERBS = {"adapter": "apply"}

PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CATALOGUE = json.loads((FOLDER / "zoo_distill" / "catalogue.json").read_text(encoding="utf-8"))
ENTRY_POINTS = [
    (KIND_OF_GROUP[group], name, value)
    for group, found in PROJECT["entry-points"].items()
    for name, value in found.items()
]


def recipe_of(value: str) -> Any:
    module, _, name = value.partition(":")
    recipe = getattr(importlib.import_module(module), name)
    assert isinstance(recipe, type)
    return recipe


def first_line(recipe: type) -> str:
    assert recipe.__doc__ is not None, f"{recipe.__qualname__} has a docstring"
    return recipe.__doc__.splitlines()[0]


def stale(
    catalogue: Mapping[str, Mapping[str, Mapping[str, str]]], recipes: Mapping[tuple[str, str], type]
) -> list[str]:
    """What catalogue.json says otherwise than the recipes do."""
    said = {(kind, name): facts["summary"] for kind, names in catalogue.items() for name, facts in names.items()}
    meant = {key: first_line(recipe) for key, recipe in recipes.items()}
    keys = sorted(key for key in said.keys() | meant.keys() if said.get(key) != meant.get(key))
    return [f"{kind} {name}: write {json.dumps(meant.get((kind, name)))}" for kind, name in keys]


def test_the_catalogues_summaries_are_the_first_lines_of_the_docstrings() -> None:
    recipes = {(kind, name): recipe_of(value) for kind, name, value in ENTRY_POINTS}
    assert stale(CATALOGUE, recipes) == []


def test_a_stale_missing_or_superfluous_summary_is_noticed() -> None:
    class Probe:
        """Trains the head."""

    catalogue = {"adapter": {"probe": {"summary": "Trains nothing."}, "gone": {"summary": "Was here."}}}
    assert stale(catalogue, {("adapter", "probe"): Probe, ("head", "new"): Probe}) == [
        "adapter gone: write null",
        'adapter probe: write "Trains the head."',
        'head new: write "Trains the head."',
    ]


@pytest.mark.parametrize(("kind", "name", "value"), ENTRY_POINTS)
def test_an_entry_point_is_a_frozen_keyword_only_dataclass_with_its_verb(kind: str, name: str, value: str) -> None:
    recipe = recipe_of(value)
    assert "__dataclass_params__" in vars(recipe), "a dataclass"
    assert recipe.__dataclass_params__.frozen
    assert all(field.kw_only for field in fields(recipe))
    assert callable(getattr(recipe, VERBS[kind]))
    assert type(recipe.version) is int
    recipe(teacher="runs/teacher")  # every other argument has a default


@pytest.mark.parametrize("kind", ["adapter"])
def test_names_are_sorted_and_all_exported(kind: str) -> None:
    names = [name for of, name, _ in ENTRY_POINTS if of == kind]
    assert names == sorted(names)
    for module in {value.partition(":")[0] for of, _, value in ENTRY_POINTS if of == kind}:
        published = {recipe_of(value).__name__ for _, _, value in ENTRY_POINTS if value.startswith(f"{module}:")}
        assert published <= set(importlib.import_module(module).__all__)


def loaded_after(statement: str) -> set[str]:
    """Which of the heavy libraries a new process has in memory after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{'torch', 'numpy', 'sklearn'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_recipes_modules_import_no_torch() -> None:
    modules = sorted({value.partition(":")[0] for _, _, value in ENTRY_POINTS})
    assert loaded_after(f"import {', '.join(modules)}") == set()


def test_an_import_of_torch_would_be_noticed() -> None:
    assert "torch" in loaded_after("import sys, types; sys.modules['torch'] = types.ModuleType('torch')")
