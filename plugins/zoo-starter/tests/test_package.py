"""What the distribution promises before anything of it is built: entry points, light recipes, a catalogue that fits."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from zoo_core.registry.catalog import catalog

FOLDER = Path(__file__).parents[1]
KIND_OF_GROUP = {"zoo.backbones": "backbone", "zoo.tasks": "task"}
VERBS = {"backbone": "build", "task": "open"}

PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CATALOGUE = json.loads((FOLDER / "zoo_starter" / "catalogue.json").read_text(encoding="utf-8"))
ENTRY_POINTS = [
    (KIND_OF_GROUP[group], name, value)
    for group, found in PROJECT["entry-points"].items()
    for name, value in found.items()
]


def recipe_of(value: str) -> type:
    module, _, name = value.partition(":")
    recipe = getattr(importlib.import_module(module), name)
    assert isinstance(recipe, type)
    return recipe


@pytest.mark.parametrize(("kind", "name", "value"), ENTRY_POINTS)
def test_an_entry_point_is_a_frozen_keyword_only_dataclass_with_its_verb(kind: str, name: str, value: str) -> None:
    recipe = recipe_of(value)
    assert is_dataclass(recipe)
    assert recipe.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in fields(recipe))
    assert callable(getattr(recipe, VERBS[kind]))
    assert type(recipe.version) is int  # type: ignore[attr-defined]
    assert recipe.__doc__


def test_the_catalogue_lists_every_task_and_what_opening_it_gives() -> None:
    recipes = {name: recipe_of(value) for kind, name, value in ENTRY_POINTS if kind == "task"}
    assert CATALOGUE["task"].keys() == recipes.keys()
    for name, recipe in recipes.items():
        task, facts = recipe(), CATALOGUE["task"][name]
        data = task.open(None)
        assert facts["modality"] == task.modality
        assert facts["metric"] == task.metric
        assert facts["target"] == {"kind": data.target.kind, "size": data.target.size}
        assert facts["splits"] == {split: part.num for split, part in data.splits.items()}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CATALOGUE.items() for name in names])
def test_every_entry_of_the_catalogue_passes_the_cores_checks(kind: str, name: str) -> None:
    entry = catalog().find(name, kind)  # type: ignore[arg-type]
    assert entry is not None
    assert entry.summary
    assert entry.modality
    assert entry.licence


def loaded_after(statement: str) -> set[str]:
    """Which of the heavy libraries a new process has in memory after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{'torch', 'numpy', 'sklearn'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_recipes_modules_import_neither_torch_nor_numpy_nor_scikit_learn() -> None:
    modules = sorted({value.partition(":")[0] for _, _, value in ENTRY_POINTS})
    assert loaded_after(f"import {', '.join(modules)}") == set()


def test_an_import_of_numpy_would_be_noticed() -> None:
    assert "numpy" in loaded_after("import zoo_starter.digits_split")
