"""What the distribution promises: a light recipe, an entry point that is its own, a README that fits the table."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

from zoo_core.registry.registry import registry
from zoo_transformers.backbones import Transformers
from zoo_transformers.families import FAMILIES

FOLDER = Path(__file__).parents[1]
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_entry_point_is_a_frozen_keyword_only_dataclass() -> None:
    assert PROJECT["entry-points"] == {"zoo.backbones": {"hf": "zoo_transformers.backbones:Transformers"}}
    assert is_dataclass(Transformers)
    assert Transformers.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in fields(Transformers))


def test_the_registry_binds_both_ways_of_naming() -> None:
    from zoo_core.spec.parser import parse_part

    for text, name, files in (("hf/a/b", "a/b", None), ('hf(files="DIR")', "", "DIR")):
        recipe = registry().bind(parse_part(text), "backbone").recipe
        assert (recipe.name, recipe.files) == (name, files)


def test_the_recipes_module_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, zoo_transformers.backbones, zoo_transformers.families\n"
        "print(*{'torch', 'numpy', 'scipy', 'tokenizers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_readme_says_of_each_type_whether_the_attention_seam_sees_it() -> None:
    told = {}
    for row in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 5 and cells[1] in ("tokens", "map"):
            for model_type in re.sub(r"\(.*?\)", "", cells[0]).split(","):
                told[model_type.strip()] = (cells[1], not cells[4].startswith("no"))
    assert told == {name: (family.kind, family.fused) for name, family in FAMILIES.items()}
