"""The records of zoo-registry: each parses, says where its facts come from, and tells what is built or opened."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib.resources import files as files_in
from pathlib import Path
from typing import Any, cast

import pytest

from zoo_core.contracts import ROLES, Backbone, FileHash, Target
from zoo_core.errors import UsageError
from zoo_core.files.hashing import sha256_of
from zoo_core.lock import Pinned
from zoo_core.model.build import build_backbone
from zoo_core.plan.plan import pinned
from zoo_core.plan.resolve import resolve
from zoo_core.registry.catalog import Entry, catalog
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import parse_part

FOLDER = Path(__file__).parents[2] / "registry" / "zoo_registry"
KIND_OF_FOLDER = {"models": "backbone", "tasks": "task"}
MODELS = sorted((FOLDER / "models").glob("*.toml"))
TASKS = sorted((FOLDER / "tasks").glob("*.toml"))
FROM_FILES = [path for path in TASKS if "describes" in tomllib.loads(path.read_text(encoding="utf-8"))]
OPENED = [path for path in TASKS if path not in FROM_FILES]
FETCHED = [path for path in MODELS if "repository" in tomllib.loads(path.read_text(encoding="utf-8"))]
SHIPPED = [path for path in MODELS if path not in FETCHED]
CLASSES = Target(kind="classes", size=10)
LICENCES = {"Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "MIT"}  # SPDX identifiers of what may be passed on
NOT_PASSED_ON = {"CC-BY-SA-3.0", "CC-BY-SA-4.0", "none stated", "none stated, research use", "research use only"}
SHARED = Path(__file__).parents[3] / "shared" / "data"
FOLDERS = {
    "adult": "adult",
    "cifar10": "cifar10",
    "conll2003": "conll2003",
    "fashion-mnist": "fashion_mnist",
    "flowers5": "flowers5_128",
    "fsdd": "fsdd/recordings",
    "mnist": "mnist",
    "sst2": "sst2",
    "trec": "trec",
    "zh-waimai": "zh_waimai",
}


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def entry_of(path: Path) -> Entry:
    """What the core knows of a record's name; reading it checks every field, here and in the catalogue."""
    entry = catalog().find(read(path)["name"], "task" if path.parent.name == "tasks" else "backbone")
    assert entry is not None
    return entry


def complaints(record: Mapping[str, Any]) -> list[str]:
    """What a record lacks, or says that nobody can have looked up."""
    found = [f"no {key}" for key in ("name", "summary", "licence", "source", "documentation") if not record.get(key)]
    allowed = LICENCES | (NOT_PASSED_ON if record.get("name") in FOLDERS else set())
    if record.get("licence") not in allowed:
        found.append(f"licence {record.get('licence')!r} is none of {sorted(allowed)}")
    if "repository" in record and bool(record.get("revision")) != bool(record.get("files")):
        found.append("a repository with one of revision and files")
    numbers = {"revision": record.get("revision", "")}
    numbers |= {name: file["sha256"] for name, file in record.get("files", {}).items()}
    invented = [name for name, number in numbers.items() if number and len(set(number)) < 8]
    return found + [f"{name} is no real hash" for name in invented]


def id_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", [*MODELS, *TASKS], ids=id_of)
def test_a_record_states_licence_source_and_documentation_and_invents_no_hash(path: Path) -> None:
    assert complaints(read(path)) == []
    assert read(path)["name"] == path.stem


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"licence": ""}, "no licence"),
        ({"licence": "free"}, "licence 'free' is none of"),
        ({"source": ""}, "no source"),
        ({"repository": "org/name"}, "a repository with one of revision and files"),
        ({"repository": "org/name", "revision": "0" * 40, "files": {}}, "revision is no real hash"),
        ({"files": {"weights": {"sha256": "1" * 64, "size": 1}}}, "weights is no real hash"),
    ],
)
def test_a_careless_record_is_noticed(change: Mapping[str, Any], complaint: str) -> None:
    good = read(FOLDER / "models" / "vit-nano.toml")
    assert not complaints(good)
    assert any(said.startswith(complaint) for said in complaints(good | dict(change)))


@pytest.mark.parametrize("path", [*SHIPPED, *OPENED], ids=id_of)
def test_a_record_says_the_same_as_the_catalogue(path: Path) -> None:
    """Prose may differ. The core checks the same when it merges them, unless it leaves the record out."""
    record = read(path)
    kind, name = KIND_OF_FOLDER[path.parent.name], parse_part(record.get("describes", record["name"])).name
    root = name.partition("/")[0]
    provider = registry().find(root, kind)  # type: ignore[arg-type]
    package = provider.value.partition(".")[0]
    catalogue = read_json(package)[kind][name]
    shared = record.keys() & catalogue.keys() - {"summary", "source", "documentation"}
    assert {key: record[key] for key in shared} == {key: catalogue[key] for key in shared}
    assert {"modality", "licence"} <= shared


def read_json(package: str) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], json.loads(files_in(package).joinpath("catalogue.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SHIPPED, ids=id_of)
def test_a_models_record_describes_what_is_built(path: Path) -> None:
    entry = entry_of(path)
    plan = resolve(entry.name, target=CLASSES)
    module = build_backbone(plan)
    backbone = cast(Backbone, module)
    assert entry.modality == backbone.modality
    assert entry.features == backbone.features
    assert entry.num_stages == len(backbone.stages)
    assert entry.num_parameters == sum(parameter.numel() for parameter in module.parameters())
    assert sorted(entry.roles) == sorted(role for role in ROLES if backbone.sites(role))
    assert plan.weights in entry.weights
    assert plan.base_digest is not None  # its files are pinned


@pytest.mark.parametrize("path", MODELS, ids=id_of)
def test_a_records_name_is_one_model_with_the_name_it_describes(path: Path) -> None:
    record = read(path)
    plans = [resolve(name, target=Target(kind="classes", size=10)) for name in (record["name"], record["describes"])]
    if path in FETCHED:
        assert [plan.deferred for plan in plans] == [(), ()]
        files = {"model.safetensors": FileHash(sha256="ab" * 32, size=1)}
        pin = Pinned(repository=record["repository"], revision="c" * 40, files=files)
        plans = [pinned(plan, {f"backbone:{record['describes']}": pin}) for plan in plans]
    assert plans[0].base_digest is not None
    assert plans[0].base_digest == plans[1].base_digest


@pytest.mark.parametrize("path", SHIPPED, ids=id_of)
def test_the_files_of_a_record_are_the_ones_that_its_package_ships(path: Path) -> None:
    record, entry = read(path), entry_of(path)
    assert ("pretrained" in entry.weights) == bool(record.get("files"))
    root = parse_part(record["describes"]).name.partition("/")[0]
    package = registry().find(root, "backbone").value.partition(".")[0]
    for name, expected in entry.files.items():
        shipped = Path(str(files_in(package).joinpath("weights", name)))
        assert (sha256_of(shipped), shipped.stat().st_size) == (expected.sha256, expected.size)


def test_the_curated_backbones_are_many_and_of_three_modalities() -> None:
    entries = [entry_of(path) for path in FETCHED]
    assert len(entries) >= 24
    assert {entry.modality for entry in entries} == {"image", "text", "audio"}
    assert all(entry.num_parameters and entry.features and entry.input and entry.source for entry in entries)
    sizes = sorted(entry.num_parameters or 0 for entry in entries)
    assert sizes[0] < 10_000_000 < 100_000_000 < sizes[-1]


@pytest.mark.parametrize("path", TASKS, ids=id_of)
def test_a_tasks_record_describes_what_is_opened(path: Path) -> None:
    """Of a set in files a record holds how they are read and what is in them; where they lie is the user's."""
    record, name = read(path), read(path)["name"]
    if path in FROM_FILES:
        folder = SHARED / FOLDERS[name]
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there; it is data for measuring that the repository does not ship")
        name = f'{name}(path="{folder}")'
    bound = registry().bind(parse_part(name), "task")
    data = bound.recipe.open(None)
    assert record["modality"] == bound.recipe.modality
    assert record["metric"] == bound.recipe.metric
    assert record["target"] == {"kind": data.target.kind, "size": data.target.size}
    assert record["splits"] == {name: split.num for name, split in data.splits.items()}


@pytest.mark.parametrize("path", FROM_FILES, ids=id_of)
def test_a_record_of_files_needs_to_know_where_they_lie_and_nothing_else(path: Path) -> None:
    record = read(path)
    with pytest.raises(UsageError, match=rf"{record['name']} needs path: write"):
        registry().bind(parse_part(record["name"]), "task")
    bound = registry().bind(parse_part(f"{record['name']}(path=here)"), "task")
    assert str(bound.canonical()) == f"{record['name']}(path=here)"  # what the record says is not said again
    assert bound.implied


def test_what_a_record_says_of_a_set_can_be_said_otherwise(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("label;review\n" + "1;good\n0;bad\n" * 3)
    part = parse_part(f'zh-waimai(path="{tmp_path}",separator=";",duplicates=keep)')
    recipe = registry().bind(part, "task").recipe
    assert recipe.target == Target(kind="classes", names=("0", "1"))


def test_every_part_that_a_first_party_package_ships_has_a_record() -> None:
    described = {parse_part(read(path).get("describes", read(path)["name"])).name for path in (*MODELS, *TASKS)}
    shipped = {
        *(name for name in read_json("zoo_starter")["backbone"]),
        *(name for name in read_json("zoo_starter")["task"]),
    }
    assert shipped <= described


def test_no_entry_of_this_environment_is_malformed() -> None:
    assert catalog().problems() == ()
