"""What the distribution promises before anything is built: names, a catalogue and records that are true."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import zoo_core
from zoo_cifar_resnet.loading import build
from zoo_cifar_resnet.recipes import DEPTHS

PACKAGE = Path(__file__).parents[1] / "zoo_cifar_resnet"
CATALOGUE = json.loads((PACKAGE / "catalogue.json").read_text(encoding="utf-8"))["backbone"]
RECORDS = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted((PACKAGE / "models").glob("*.toml"))]


def test_every_network_is_in_the_catalogue() -> None:
    assert list(CATALOGUE) == ["cifar-resnet", *(f"cifar-resnet/{name}" for name in DEPTHS)]


@pytest.mark.parametrize(
    ("told", "depth"),
    [
        *((CATALOGUE[f"cifar-resnet/{name}"], depth) for name, depth in DEPTHS.items()),
        *((record, int(record["name"].removeprefix("cifar10-resnet"))) for record in RECORDS),
    ],
)
def test_what_is_told_of_a_network_is_what_is_built(told: dict[str, Any], depth: int) -> None:
    backbone = build(depth)
    told = CATALOGUE["cifar-resnet/resnet20"] | told
    assert told["num_stages"] == len(backbone.stages)
    assert told["num_parameters"] == sum(x.numel() for x in backbone.parameters())
    assert told["features"] == {"kind": backbone.features.kind, "dim": backbone.features.dim}
    assert [role for role in told["roles"] if not backbone.sites(role)] == []
    assert told["input"]["mean"] == list(backbone.preparation.mean)
    assert told["input"]["std"] == list(backbone.preparation.std)


def test_zoo_lists_and_shows_all_of_it() -> None:
    listed = [*zoo_core.list_names("backbone", "cifar*"), *zoo_core.list_names("head", "cifar*")]
    names = {row["name"] for row in listed if row["distribution"] == "zoo-cifar-resnet" and row["summary"]}
    assert {*CATALOGUE, "cifar10-resnet20", "cifar10-resnet56", "cifar-resnet-classifier"} <= names
    assert zoo_core.show("cifar10-resnet56")["facts"]["licence"] == "BSD-2-Clause"


def test_the_recipes_load_nothing_heavy() -> None:
    code = "import zoo_cifar_resnet.recipes, sys; print({'torch', 'numpy', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
