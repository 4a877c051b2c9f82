"""What the distribution promises before anything of it is built: a light recipe, and a catalogue that is not stale."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
from timm.models import model_entrypoint

from zoo_core.registry.catalog import catalog
from zoo_timm.backbones import Timm, known_tags

FOLDER = Path(__file__).parents[1]
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WRITTEN = json.loads((FOLDER / "zoo_timm" / "catalogue.json").read_text(encoding="utf-8"))["backbone"]
CATALOGUE = {  # each entry whole
    name: {key: value for key, value in {**WRITTEN.get(told.get("like"), {}), **told}.items() if key != "like"}
    for name, told in WRITTEN.items()
}
MAKE = "python plugins/zoo-timm/catalogue.py makes it anew"
SAMPLE = (
    *("test_vit", "test_resnet.r160_in1k", "vit_tiny_patch16_224.augreg_in21k", "beit_base_patch16_224"),
    *("swin_tiny_patch4_window7_224", "dla34.in1k", "lcnet_050", "levit_conv_128s", "gcvit_tiny.in1k"),
)


def load_maker() -> ModuleType:
    specification = importlib.util.spec_from_file_location("timm_catalogue", FOLDER / "catalogue.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["timm_catalogue"] = module
    specification.loader.exec_module(module)
    return module


def made_anew(name: str) -> tuple[str, dict[str, object]]:
    entries: dict[str, dict[str, object]] = load_maker().catalogue([name])
    return next(iter(entries.items()))


def test_the_entry_point_is_a_frozen_keyword_only_dataclass_that_builds() -> None:
    assert PROJECT["entry-points"]["zoo.backbones"] == {"timm": "zoo_timm.backbones:Timm"}
    assert is_dataclass(Timm)
    assert Timm.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in fields(Timm))
    assert type(Timm.version) is int


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{'torch', 'numpy', 'timm', 'huggingface_hub'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_recipe_imports_neither_torch_nor_timm() -> None:
    statement = "from zoo_timm.backbones import Timm; Timm(name='resnet18').source()"
    assert loaded_after(statement) == set()
    assert "timm" in loaded_after("import sys, types; sys.modules['timm'] = types.ModuleType('timm')")


def test_the_catalogue_lists_every_name_of_timm() -> None:
    maker = load_maker()
    known = maker.tags()
    assert json.dumps(known) == json.dumps(known_tags()), f"tags.json is stale: {MAKE}"
    assert set(CATALOGUE) == {f"timm/{name}" for name in maker.every_name(known)}, f"catalogue.json is stale: {MAKE}"
    assert len(CATALOGUE) > 3000


@pytest.mark.parametrize("name", SAMPLE)
def test_an_entry_of_the_catalogue_is_what_building_tells(name: str) -> None:
    key, entry = made_anew(name)
    assert CATALOGUE[key] == entry, f"catalogue.json is stale: {MAKE}"


def stale(built: Sequence[str]) -> list[str]:
    """Entries that are not what building tells: of a name in `built` all of it, of the others all but the facts."""
    maker = load_maker()
    known = maker.tags()
    told = {maker._job(name.removeprefix("timm/")): entry for name, entry in CATALOGUE.items()}
    jobs = {maker._job(name): name for name in built}
    made = {job: maker.facts(name) for job, name in jobs.items()}
    names = [name.removeprefix("timm/") for name in CATALOGUE]
    found = {**{job: facts_in(entry) for job, entry in told.items()}, **made}
    return [name for name in names if CATALOGUE[f"timm/{name}"] != maker.entry(name, found[maker._job(name)], known)]


def facts_in(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What catalogue.py learns by building, read back from an entry."""
    kept = {key: entry[key] for key in ("features", "num_stages", "roles", "seams", "num_parameters")}
    return {**kept, "taken_apart": "not taken apart" not in entry["summary"]}


def cheapest() -> list[str]:
    """The architecture with the fewest parameters of each module of timm, and of each way a module is taken apart."""
    found: dict[tuple[object, ...], str] = {}
    for architecture in sorted(timm.list_models(), key=lambda name: int(CATALOGUE[f"timm/{name}"]["num_parameters"])):
        entry = CATALOGUE[f"timm/{architecture}"]
        kind = (entry["features"]["kind"], tuple(entry["roles"]), tuple(entry["seams"]), entry["num_stages"] == 1)
        found.setdefault((model_entrypoint(architecture).__module__, *kind), architecture)
    return sorted(found.values())


def test_what_timm_states_of_every_entry_is_not_stale() -> None:
    assert not stale([]), f"catalogue.json is stale: {MAKE}"


def test_a_stale_entry_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wrong in (("timm/resnet18.a1_in1k", {"num_stages": 99}), ("timm/dla34.in1k", {"licence": "mit"})):
        monkeypatch.setitem(CATALOGUE, name, {**CATALOGUE[name], **wrong})
    assert stale([]) == ["dla34.in1k", "resnet18.a1_in1k"]
    monkeypatch.setitem(CATALOGUE, "timm/lcnet_050", {**CATALOGUE["timm/lcnet_050"], "roles": []})
    assert "lcnet_050" in stale(["lcnet_050"])


@pytest.mark.slow
def test_the_catalogue_is_what_building_one_of_each_kind_tells() -> None:
    assert not stale(cheapest()), f"catalogue.json is stale: {MAKE}"


@pytest.mark.exhaustive  # some ten minutes of one processor
@pytest.mark.timeout(3600)
def test_every_entry_of_the_catalogue_is_what_building_tells() -> None:
    assert not stale([name.removeprefix("timm/") for name in CATALOGUE]), f"catalogue.json is stale: {MAKE}"


def test_every_entry_passes_the_cores_checks() -> None:
    for name in CATALOGUE:
        entry = catalog().find(name, "backbone")
        assert entry is not None
        assert entry.modality == "image"
        assert entry.features is not None
        assert entry.num_stages


def test_a_name_without_a_tag_has_the_facts_of_its_default_weights() -> None:
    for architecture, tags in known_tags().items():
        if tags:
            assert CATALOGUE[f"timm/{architecture}"] == CATALOGUE[f"timm/{architecture}.{next(iter(tags))}"]


def test_an_entry_is_written_as_what_tells_it_from_its_architecture() -> None:
    assert load_maker().shortened(CATALOGUE) == WRITTEN
    assert WRITTEN["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"] == {"like": "timm/vit_tiny_patch16_224"}


def test_licences_and_repositories_are_those_that_timm_states() -> None:
    assert CATALOGUE["timm/vit_base_patch16_224.augreg_in21k"]["licence"] == "apache-2.0"
    assert CATALOGUE["timm/convnextv2_atto.fcmae"]["licence"] == "cc-by-nc-4.0"
    assert CATALOGUE["timm/rdnet_base"]["repository"] == "naver-ai/rdnet_base.nv_in1k"
    for entry in CATALOGUE.values():
        assert ("repository" in entry) == ("pretrained" in entry["weights"])
