"""What is known of a name before anything of it is imported, and that every mistake stays with its entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from zoo_core.contracts import FeatureSpec, FileHash, Target
from zoo_core.errors import AmbiguousError, PluginError
from zoo_core.registry.catalog import Catalog, facts
from zoo_core.registry.registry import Registry
from zoo_core.spec.parser import parse_part
from zoo_core.testing.distributions import RECIPES, index_of, make_distribution

SHA = "0123456789abcdef" * 4
COMMIT = "0123456789" * 4
SPACE = "[zoo.backbones]\nspace = acme.recipes:Space\n[zoo.adapters]\nmend = acme.recipes:Adapter\n"
NANO: dict[str, object] = {
    "summary": "a small one",
    "modality": "image",
    "features": {"kind": "tokens", "dim": 96},
    "num_stages": 6,
    "roles": ["attn.q", "norm"],
    "seams": ["stage"],
    "num_parameters": 1234,
    "weights": ["pretrained", "random"],
    "input": {"size": 32},
}
RECORD = f"""
    name = "nano"
    describes = "space/nano"
    summary = "the small one, pinned"
    repository = "acme/nano"
    revision = "{COMMIT}"
    licence = "Apache-2.0"
    source = "https://example.org/nano"
    modality = "image"
    features = {{kind = "tokens", dim = 96}}

    [files."model.safetensors"]
    sha256 = "{SHA}"
    size = 10
"""


def make_acme(folder: Path, catalogue: object, **versions: str) -> None:
    text = catalogue if isinstance(catalogue, str) else json.dumps(catalogue)
    files = {"acme/__init__.py": "", "acme/recipes.py": RECIPES, "acme/catalogue.json": text}
    make_distribution(folder, "acme", entry_points=SPACE, files=files, **versions)


def make_records(folder: Path, files: Mapping[str, str], name: str = "notes") -> None:
    package = {f"{name}/__init__.py": "", **{f"{name}/{path}": text for path, text in files.items()}}
    make_distribution(folder, name, entry_points=f"[zoo.records]\nall = {name}\n", files=package)


def test_a_catalogue_tells_of_a_namespace_without_importing_it(tmp_path: Path) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": NANO}, "adapter": {"mend": {"summary": "mends"}}})
    index = index_of(tmp_path)
    assert [(provider.name, provider.summary) for provider in index.providers] == [
        ("space", ""),
        ("space/nano", "a small one"),
        ("mend", "mends"),
    ]
    entry = Catalog(index).find("space/nano", "backbone")
    assert entry is not None
    assert (FeatureSpec(kind="tokens", dim=96), 6, ("attn.q", "norm"), ("stage",), ("pretrained", "random")) == (
        *(entry.features, entry.num_stages, entry.roles, entry.seams),
        entry.weights,
    )


def test_nothing_is_known_of_an_unknown_name(tmp_path: Path) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": NANO}})
    catalog = Catalog(index_of(tmp_path))
    assert [catalog.find(name) for name in ("space/other", "space", "mend", "nothing")] == [None] * 4


def test_a_record_adds_to_what_it_stands_for(tmp_path: Path) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": NANO}})
    make_records(tmp_path, {"models/nano.toml": RECORD})
    entry = Catalog(index_of(tmp_path)).find("nano")
    assert entry is not None
    assert {
        "describes": "space/nano",
        "summary": "the small one, pinned",
        "num_stages": 6,
        "files": {"model.safetensors": FileHash(sha256=SHA, size=10)},
        "revision": COMMIT,
        "licence": "Apache-2.0",
    }.items() <= vars(entry).items()


def test_a_record_is_a_name_and_binds_to_what_it_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    make_acme(tmp_path, {"backbone": {"space/nano": NANO}})
    text = RECORD.replace('"space/nano"', f'"space/nano@{COMMIT}(depth=5)"')
    make_records(tmp_path, {"models/nano.toml": text})
    registry = Registry(index_of(tmp_path))
    plain = registry.bind(parse_part("nano"))
    assert (plain.name, plain.recipe.depth, plain.revision) == ("space/nano", 5, COMMIT)
    assert str(plain.canonical()) == "nano"
    changed = registry.bind(parse_part("nano(depth=7,weights=random)"))
    assert str(changed.canonical()) == "nano(depth=7,weights=random)"
    assert str(registry.bind(parse_part("nano(depth=2)")).canonical()) == "nano(depth=2)"
    assert plain.identity() == registry.bind(parse_part(f"space/nano@{COMMIT}(depth=5)")).identity()


def test_a_record_may_tell_of_a_name_without_renaming_it(tmp_path: Path) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": NANO}})
    make_records(tmp_path, {"models/nano.toml": RECORD.replace('"nano"', '"space/nano"', 1)})
    index = index_of(tmp_path)
    assert [provider.origin for provider in index.providers if provider.name == "space/nano"] == ["catalogue"]
    entry = Catalog(index).find("space/nano", "backbone")
    assert entry is not None
    assert (entry.num_stages, entry.revision) == (6, COMMIT)


def test_a_record_of_an_open_namespace_is_listed_by_its_own_name(tmp_path: Path) -> None:
    make_acme(tmp_path, {})
    text = RECORD.replace('"nano"', '"space/ORG/REPO"', 1).replace('"space/nano"', '"space/ORG/REPO"')
    make_records(tmp_path, {"models/nano.toml": text})
    assert [provider.name for provider in index_of(tmp_path).providers] == ["space", "space/ORG/REPO", "mend"]


def test_a_task_record_tells_of_its_target(tmp_path: Path) -> None:
    text = """
        name = "letters"
        licence = "CC0"
        source = "drawn by hand"
        modality = "image"
        metric = "accuracy"
        target = {kind = "classes", size = 26}
        splits = {train = 100, test = 50}
    """
    make_records(tmp_path, {"tasks/letters.toml": text})
    entry = Catalog(index_of(tmp_path)).find("letters", "task")
    assert entry is not None
    assert (entry.target, entry.splits) == (Target(kind="classes", size=26), {"train": 100, "test": 50})


def test_facts_leave_out_what_is_not_known(tmp_path: Path) -> None:
    make_acme(tmp_path, {"adapter": {"mend": {"summary": "mends", "modality": "text"}}})
    assert facts(Catalog(index_of(tmp_path)).find("mend")) == {"modality": "text"}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("colour", "blue", "unknown key 'colour'"),
        ("num_stage", 3, "did you mean num_stages"),
        ("modality", "smell", "modality is one of image, text, audio, table, found 'smell'"),
        ("modality", None, "modality is one of"),
        ("num_stages", "6", "num_stages is a whole number"),
        ("num_stages", True, "num_stages is a whole number"),
        ("num_parameters", -1, "num_parameters is a whole number"),
        ("features", {"kind": "tokens"}, "features is a table of kind, dim"),
        ("features", {"kind": "cube", "dim": 3}, "features.kind is one of map, tokens, pooled"),
        ("features", {"kind": "map", "dim": 1.5}, "features.dim is a whole number"),
        ("features", [], "features is a table"),
        ("roles", ["attn.x"], "roles is a list of attn.q"),
        ("roles", "norm", "roles is a list"),
        ("seams", ["side"], "seams is a list of stage, attention, prompt"),
        ("weights", ["trained"], "weights is a list of pretrained, random"),
        ("metric", "", "metric is text"),
        ("target", {"kind": "classes", "size": "10"}, "target.size is a whole number"),
        ("splits", {"train": "many"}, "splits.train is a whole number"),
        ("files", {"a": {"sha256": "xyz", "size": 1}}, "files.a.sha256 is 64 hex digits"),
        ("files", {"a": {"sha256": SHA.upper(), "size": 1}}, "64 hex digits in lower case"),
        ("files", {"a": {"sha256": SHA}}, "files.a is a table of sha256, size"),
        ("revision", "main", "revision is 40 hex digits"),
        ("licence", "", "licence is text"),
        ("input", 3, "input is a table"),
    ],
)
def test_a_wrong_field_is_told_with_its_place(tmp_path: Path, key: str, value: object, told: str) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": {**NANO, key: value}, "space/good": NANO}})
    catalog = Catalog(index_of(tmp_path))
    with pytest.raises(PluginError, match=told):
        catalog.find("space/nano")
    assert catalog.find("space/good") is not None
    assert [problem.name for problem in catalog.problems()] == ["space/nano"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '"x"',
        "null",
        '{"backbone": []}',
        '{"backbone": {"space/x": 3}}',
        '{"backbone": {"alien/x": {}}}',
        "\ufeff",
    ],
)
def test_a_malformed_catalogue_leaves_the_names_of_its_distribution(tmp_path: Path, content: str) -> None:
    make_acme(tmp_path, content)
    index = index_of(tmp_path)
    assert [(provider.name, provider.state) for provider in index.providers] == [("space", "ok"), ("mend", "ok")]
    problem = next(found for found in index.distributions if found["name"] == "acme")["problems"][0]
    assert "catalogue.json" in problem
    assert Catalog(index).find("space/none") is None


def test_an_entry_is_like_another_one_but_for_what_it_says_itself(tmp_path: Path) -> None:
    small = {"like": "space/nano", "num_stages": 2, "summary": "half of it"}
    make_acme(tmp_path, {"backbone": {"space/nano": NANO, "space/pico": small, "space/twin": {"like": "space/nano"}}})
    index = index_of(tmp_path)
    summaries = {provider.name: provider.summary for provider in index.providers}
    assert summaries["space/pico"] == "half of it"
    assert summaries["space/twin"] == summaries["space/nano"] == NANO["summary"]
    known = Catalog(index)
    nano = known.find("space/nano")
    assert nano is not None
    assert known.find("space/twin") == replace(nano, name="space/twin", describes="space/twin")
    pico = known.find("space/pico")
    assert pico == replace(nano, name="space/pico", describes="space/pico", num_stages=2, summary="half of it")


@pytest.mark.parametrize(
    ("like", "told"),
    [("space/nono", "did you mean space/nano"), ("space/x", "names no entry of the same kind that is whole"), (3, "3")],
)
def test_an_entry_that_is_like_none_is_a_mistake_of_its_own(tmp_path: Path, like: object, told: str) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": NANO, "space/x": {"like": like}}})
    known = Catalog(index_of(tmp_path))
    with pytest.raises(PluginError, match=told):
        known.find("space/x")
    assert known.find("space/nano") is not None


def test_a_catalogue_may_not_tell_of_a_name_that_another_distribution_owns(tmp_path: Path) -> None:
    make_acme(tmp_path, {"backbone": {"alien/x": NANO}})
    make_distribution(tmp_path, "alien", entry_points="[zoo.backbones]\nalien = alien:Alien\n")
    assert Catalog(index_of(tmp_path)).find("alien/x") is None


def test_what_one_record_stands_for_has_its_facts_under_its_own_name_too(tmp_path: Path) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": NANO}})
    other = RECORD.replace('"nano"', '"second"', 1)
    make_records(tmp_path, {"models/nano.toml": RECORD})
    entry = Catalog(index_of(tmp_path)).find("space/nano", "backbone")
    assert entry is not None
    assert (entry.licence, entry.revision, entry.num_stages) == ("Apache-2.0", COMMIT, 6)
    make_records(tmp_path, {"models/second.toml": other}, name="more")
    entry = Catalog(index_of(tmp_path)).find("space/nano", "backbone")
    assert entry is not None  # two stand for it: neither is guessed
    assert (entry.licence, entry.revision, entry.num_stages) == (None, None, 6)


def test_a_record_whose_files_nobody_has_seen_leaves_commit_and_hashes_out(tmp_path: Path) -> None:
    unseen = RECORD[: RECORD.index("    [files.")].replace(f'revision = "{COMMIT}"', "")
    make_records(tmp_path, {"models/nano.toml": unseen})
    catalog = Catalog(index_of(tmp_path))
    assert catalog.problems() == ()
    entry = catalog.find("nano")
    assert entry is not None
    assert (entry.repository, entry.revision, dict(entry.files)) == ("acme/nano", None, {})


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('licence = "Apache-2.0"', "", "a record states its licence"),
        ('source = "https://example.org/nano"', "", "a record states its source"),
        (f'revision = "{COMMIT}"', "", "a record states its revision"),
        (f'revision = "{COMMIT}"', 'revision = "main"', "revision is 40 hex digits"),
        (SHA, SHA[:-1], "64 hex digits"),
        ('describes = "space/nano"', 'describes = "space nano"', "describes 'space nano'"),
        ('name = "nano"', "", "it has no name"),
        ('name = "nano"', "name = 3", "name is text, found 3"),
        ('name = "nano"', 'name = "space/tiny"', "may not stand for another name"),
        ('name = "nano"', "name = ", "nano.toml"),
        ('modality = "image"', 'modality = "image"\nlicense = "MIT"', "unknown key 'license'.*did you mean licence"),
    ],
)
def test_a_wrong_record_is_told_and_harms_no_other(tmp_path: Path, old: str, new: str, told: str) -> None:
    other = RECORD.replace('"nano"', '"other"', 1)
    make_records(tmp_path, {"models/nano.toml": RECORD.replace(old, new, 1), "models/other.toml": other})
    catalog = Catalog(index_of(tmp_path))
    assert [problem.distribution for problem in catalog.problems()] == ["notes"]
    with pytest.raises(PluginError, match=f"(?s){told}.*it is part of notes 1.0"):
        raise PluginError(catalog.problems()[0].problem)
    assert catalog.find("other") is not None


def test_a_record_that_contradicts_a_catalogue_is_told(tmp_path: Path) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": {**NANO, "features": {"kind": "tokens", "dim": 97}}}})
    make_records(tmp_path, {"models/nano.toml": RECORD})
    with pytest.raises(PluginError, match=r"differ in features: .*dim=96.*dim=97"):
        Catalog(index_of(tmp_path)).find("nano")


def test_two_records_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    for name in ("notes", "more"):
        make_records(tmp_path, {"models/nano.toml": RECORD}, name)
    index = index_of(tmp_path)
    assert [provider.state for provider in index.providers] == ["ambiguous", "ambiguous"]
    with pytest.raises(AmbiguousError, match="two records tell of 'nano'"):
        Catalog(index).find("nano")


def test_a_record_edited_in_place_is_noticed(tmp_path: Path) -> None:
    make_records(tmp_path / "site", {"models/nano.toml": RECORD})
    cache = tmp_path / "cache"
    assert [provider.name for provider in index_of(tmp_path / "site", cache=cache).providers] == ["nano"]
    file = tmp_path / "site" / "notes" / "models" / "nano.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('"nano"', '"micro"', 1), encoding="utf-8")
    assert [provider.name for provider in index_of(tmp_path / "site", cache=cache).providers] == ["micro"]


def test_a_records_package_that_is_not_there_is_told(tmp_path: Path) -> None:
    make_distribution(tmp_path, "notes", entry_points="[zoo.records]\nall = notes\n")
    (found, _) = index_of(tmp_path).distributions
    assert "records package 'notes' is not a folder" in found["problems"][0]


def test_nothing_is_known_of_what_is_not_allowed(tmp_path: Path) -> None:
    make_acme(tmp_path, {"backbone": {"space/nano": NANO}})
    make_records(tmp_path, {"models/nano.toml": RECORD})
    catalog = Catalog(index_of(tmp_path, allow=()))
    assert (catalog.find("nano"), catalog.find("space/nano"), catalog.problems()) == (None, None, ())
