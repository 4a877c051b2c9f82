"""What the distribution promises before anything is built: light recipes, and a catalogue that is not stale."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest

import zoo_core
from zoo_core.errors import NotFoundError, RefusedError, UsageError
from zoo_core.plan.resolve import resolve
from zoo_core.registry.versions import in_range
from zoo_core.spec.parser import parse_part
from zoo_peft import recipes
from zoo_peft.methods import known_methods, made_from

FOLDER = Path(__file__).parents[1]
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKE = "python plugins/zoo-peft/catalogue.py makes it anew"
SAMPLE = ("LILY", "MISS")
HEAVY = ("torch", "numpy", "peft", "transformers", "huggingface_hub")


def stored(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "zoo_peft" / name).read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    if in_range(peft.__version__, f"<{made_from()}"):
        pytest.skip(f"peft {peft.__version__} is older than the catalogue's {made_from()}")
    specification = importlib.util.spec_from_file_location("peft_catalogue", FOLDER / "catalogue.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["peft_catalogue"] = module
    specification.loader.exec_module(module)
    return module


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{set(HEAVY)!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_catalogue_was_made_from_the_installed_peft(maker: ModuleType) -> None:
    assert made_from() == peft.__version__, MAKE


def test_the_catalogue_lists_every_method_of_peft_with_its_arguments(maker: ModuleType) -> None:
    kinds = maker.PEFT_TYPE_TO_CONFIG_MAPPING
    assert {kind.value.lower() for kind in kinds} == set(known_methods()), MAKE
    for kind, config in kinds.items():
        row = stored("methods.json")["methods"][kind.value.lower()]
        if row["refused"]:
            continue
        arguments, left_out = maker._arguments(kind.value, config)
        inert = {name for name, why in row["left_out"].items() if "never applies" in why}  # what measuring tells
        for key in ("name", "help", "default"):
            told = [each[key] for each in row["arguments"] if each["name"] not in row["instead"]]
            found = [each[key] for each in arguments if each["name"] not in {*row["instead"], *inert}]
            assert told == found, MAKE
        assert row["left_out"].keys() - inert == left_out.keys(), MAKE


@pytest.mark.parametrize("tuner", SAMPLE)
def test_a_method_of_the_catalogue_is_what_measuring_tells(maker: ModuleType, tuner: str) -> None:
    config = next(config for kind, config in maker.PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value == tuner)
    assert (
        json.loads(json.dumps(maker._method_row(tuner, config))) == stored("methods.json")["methods"][tuner.lower()]
    ), MAKE


@pytest.mark.slow
def test_every_method_of_the_catalogue_is_what_measuring_tells(maker: ModuleType) -> None:
    made = json.loads(json.dumps(maker.methods()))
    assert made.keys() == stored("methods.json")["methods"].keys(), MAKE
    for name, row in stored("methods.json")["methods"].items():
        assert _about(made[name]) == _about(row), MAKE
    assert maker.catalogue(made) == stored("catalogue.json"), MAKE


def _about(row: dict[str, Any]) -> dict[str, Any]:
    """A start that is not exact depends on the machine's rounding."""
    return row | {"start": row["start"] if row["start"] > 1e-5 else row["start"] > 0}


def test_methods_that_begin_elsewhere_say_so_in_the_list() -> None:
    told = {row["name"] for row in zoo_core.list_names("adapter", "peft/*") if "Not a no-op" in row["summary"]}
    assert told == {"peft/c3a", "peft/fourierft", "peft/unilora", "peft/vblora"}
    assert not known_methods()["vblora"].start < 1e-5


# --- the recipes -----------------------------------------------------------------------------------------------------


def test_listing_showing_and_planning_import_neither_peft_nor_torch() -> None:
    statements = (
        "import zoo_core",
        "from zoo_core.plan.resolve import resolve",
        "assert len(zoo_core.list_names('adapter', 'peft/*')) > 40",
        "assert 'Householder' in zoo_core.show('peft/hra')['documentation']",
        "resolve('starter/vit-nano+peft/oft(r=4)', task='digits')",
    )
    assert loaded_after("\n".join(statements)) == set()


@pytest.mark.parametrize("name", sorted(known_methods()))
def test_every_method_has_a_recipe_that_tells_of_itself(name: str) -> None:
    recipe: Any = recipes.recipe_for(name)
    assert all(field.kw_only for field in fields(recipe))
    documentation = recipe.__doc__ or ""
    assert documentation.startswith(known_methods()[name].summary)
    for argument in known_methods()[name].arguments:
        assert f"\n{argument.name}: " in documentation
    assert max(map(len, documentation.splitlines())) <= 120
    if known_methods()[name].refused:
        with pytest.raises(RefusedError, match=f"peft/{name}: "):
            recipe()
    else:
        assert recipe() == pickle.loads(pickle.dumps(recipe()))


@pytest.mark.parametrize(
    ("spec", "error", "told"),
    [
        ("peft", UsageError, r"peft is a namespace: write peft/METHOD"),
        ("peft/oftt", NotFoundError, "has no method 'oftt'; did you mean peft/oft"),
        ("peft/oft(block=3)", UsageError, "peft/oft has no argument 'block'; it takes roles, r, oft_block_size"),
        ("peft/lora(r=0)", UsageError, r"peft/lora\(r=0\): allowed: 1 or more"),
        ("peft/lora(lora_dropout=1.5)", UsageError, r"allowed: 0 to below 1"),
        ("peft/lora(init_lora_weights=pissa)", UsageError, "init_lora_weights is true or false or one of gaussian"),
        ("peft/lora(roles=[attn.qq])", UsageError, r"no role 'attn.qq'; allowed: .*did you mean attn.q"),
        ("peft/prefix_tuning", RefusedError, r"write \+prompt\(...\) or \+prefix"),
        ("peft/lora(roles=[mlp.gate])", RefusedError, "works on mlp.gate; starter/vit-nano has"),
        ("peft/ln_tuning(roles=[conv])", RefusedError, "works on norm layers, and conv is conv1d and conv2d"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_built(spec: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        resolve(f"starter/vit-nano+{parse_part(spec)}", task="digits")


def test_peft_is_a_first_party_name() -> None:
    assert PROJECT["entry-points"]["zoo.adapters"]["peft"] == "zoo_peft.recipes:Peft"
    assert zoo_core.show("peft")["distribution"] == "zoo-peft"
