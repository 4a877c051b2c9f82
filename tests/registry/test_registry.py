"""What is installed, who owns a name, and that no plugin, however broken, harms another."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from zoo_core import contracts
from zoo_core.errors import AmbiguousError, NotFoundError, PluginError, UsageError, ZooError
from zoo_core.registry import index as light_index
from zoo_core.registry.catalog import Catalog
from zoo_core.registry.index import Index, load_index, read_folders
from zoo_core.registry.registry import Registry, describe
from zoo_core.registry.versions import in_range
from zoo_core.spec.parser import parse_part
from zoo_core.testing.distributions import RECIPES, index_of, make_distribution

ACME = """
    [console_scripts]
    acme = acme.cli:main

    [zoo.backbones]
    space = acme.recipes:Space

    [zoo.adapters]
    mend = acme.recipes:Adapter

    [zoo.heads]
    crown = acme.recipes:Head

    [zoo.tasks]
    chore = acme.recipes:Task
"""
FILES = {"acme/__init__.py": "", "acme/recipes.py": RECIPES}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable folder; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def acme(site: Path) -> Registry:
    make_distribution(site, "acme", entry_points=ACME, files=FILES)
    return Registry(index_of(site))


def names(index: Index) -> list[str]:
    return [f"{provider.kind}:{provider.name}" for provider in index.providers]


def states(index: Index) -> dict[str, str]:
    return {f"{provider.distribution}/{provider.name}": provider.state for provider in index.providers}


# --- reading metadata ------------------------------------------------------------------------------------------------


def test_the_kinds_of_the_light_index_are_those_of_the_contracts() -> None:
    assert light_index.PART_KINDS == contracts.PART_KINDS


def test_listing_imports_nothing(acme: Registry) -> None:
    assert names(acme.index) == ["backbone:space", "adapter:mend", "head:crown", "task:chore"]
    assert "acme" not in sys.modules


def test_unrelated_distributions_give_no_names(site: Path) -> None:
    make_distribution(site, "other", entry_points="[console_scripts]\nx = other:main\n")
    make_distribution(site, "plain")
    assert names(index_of(site)) == []


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00garbage",
        b"[zoo.adapters\nno equals sign\n",
        b"= = =\n[]\n",
        b"[console_scripts]\nname without a value\n",
        b"\x00" * 100,
        b"",
    ],
)
def test_malformed_metadata_of_one_distribution_hides_no_other(site: Path, content: bytes) -> None:
    make_distribution(site, "acme", entry_points=ACME, files=FILES)
    bad = make_distribution(site, "bad")
    (bad / "entry_points.txt").write_bytes(content)
    assert states(index_of(site)) == {"acme/space": "ok", "acme/mend": "ok", "acme/crown": "ok", "acme/chore": "ok"}


def test_a_malformed_line_is_told_and_the_other_lines_count(site: Path) -> None:
    make_distribution(site, "acme", entry_points="[zoo.adapters]\nmend = acme:A\noops\nback/slash = acme:B\nx = acme\n")
    index = index_of(site)
    assert states(index) == {"acme/back/slash": "broken", "acme/mend": "ok", "acme/x": "broken"}
    (distribution, _) = index.distributions
    assert "line 3" in distribution["problems"][0]


def test_metadata_that_is_missing_leaves_the_name_of_the_folder(site: Path) -> None:
    metadata = make_distribution(site, "acme", version="2.5", entry_points=ACME)
    (metadata / "METADATA").unlink()
    provider = Registry(index_of(site)).find("mend")
    assert (provider.distribution, provider.version, provider.requires) == ("acme", "2.5", None)


def test_a_folder_on_sys_path_that_is_missing_or_a_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(b"PK")
    found = read_folders([str(tmp_path / "no"), str(tmp_path / "file.zip")])
    assert [folder["distributions"] for folder in found.values()] == [[], []]


def test_leftovers_of_pip_are_not_distributions(site: Path) -> None:
    metadata = make_distribution(site, "acme", entry_points=ACME)
    metadata.rename(site / "~cme-1.0.dist-info")
    assert names(index_of(site)) == []


def test_the_first_copy_on_sys_path_hides_the_others(tmp_path: Path) -> None:
    for number in (1, 2):
        make_distribution(tmp_path / str(number), "acme", version=f"{number}.0", entry_points=ACME)
    index = index_of(tmp_path / "1", tmp_path / "2")
    assert [provider.version for provider in index.providers] == ["1.0"] * 4
    assert [str(tmp_path / "2" / "acme-2.0.dist-info")] == index.shadowed


def test_a_copy_without_zoo_entry_points_hides_one_that_has_them(tmp_path: Path) -> None:
    make_distribution(tmp_path / "1", "acme")
    make_distribution(tmp_path / "2", "acme", entry_points=ACME)
    assert names(index_of(tmp_path / "1", tmp_path / "2")) == []


def test_an_editable_installation_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    make_distribution(tmp_path / "site", "acme-plug", entry_points=ACME)
    egg = tmp_path / "source" / "acme_plug.egg-info"
    egg.mkdir(parents=True)
    (egg / "PKG-INFO").write_text("Name: acme-plug\nVersion: 1.0\n", encoding="utf-8")
    (egg / "entry_points.txt").write_text("[zoo.adapters]\nmend = acme.recipes:Adapter\n", encoding="utf-8")
    assert list(states(index_of(tmp_path / "site", tmp_path / "source")).values()) == ["ok"] * 4


def test_an_egg_info_alone_is_a_distribution(tmp_path: Path) -> None:
    egg = tmp_path / "acme_plug.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Name: acme-plug\r\nVersion: 1.0\r\n\r\nName: not this\r\n", encoding="utf-8")
    (egg / "entry_points.txt").write_text("[zoo.adapters]\nmend = a:B\nmend = a:B\n", encoding="utf-8")
    (egg / "requires.txt").write_text("torch\nzoo-core>=7\n\n[dev]\nzoo-core<1\n", encoding="utf-8")
    (provider,) = index_of(tmp_path).providers
    assert (
        *(provider.distribution, provider.version),
        *(provider.requires, provider.state),
    ) == ("acme-plug", "1.0", ">=7", "incompatible")


def test_two_versions_in_one_folder_are_broken(site: Path) -> None:
    for version in ("1.0", "1.1"):
        make_distribution(site, "acme", version=version, entry_points="[zoo.adapters]\nmend = acme:A\n")
    (provider,) = index_of(site).providers
    assert provider.state == "broken"
    assert "1.0 and 1.1" in provider.problem
    assert "pip install --force-reinstall acme" in provider.problem


def test_one_name_twice_in_a_distribution_is_broken(site: Path) -> None:
    make_distribution(site, "acme", entry_points="[zoo.adapters]\nmend = acme:A\nmend = acme:B\n")
    (provider,) = index_of(site).providers
    assert (provider.state, "acme:A and acme:B" in provider.problem) == ("broken", True)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_gives_what_a_scan_gives(site: Path, tmp_path: Path) -> None:
    make_distribution(site, "acme", entry_points=ACME, files=FILES)
    cache = tmp_path / "cache"
    os.utime(site, (1, 1))  # long ago, so that nothing is held back as too fresh
    fresh = index_of(site, cache=cache)
    assert len(list(cache.glob("index-*.json"))) == 1
    assert fresh.providers == index_of(site, cache=cache).providers


def test_a_plugin_that_comes_or_goes_is_noticed(site: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert names(index_of(site, cache=cache)) == []
    metadata = make_distribution(site, "acme", entry_points=ACME)
    assert len(names(index_of(site, cache=cache))) == 4
    shutil.rmtree(metadata)
    assert names(index_of(site, cache=cache)) == []


def test_entry_points_edited_in_place_are_noticed(site: Path, tmp_path: Path) -> None:
    metadata = make_distribution(site, "acme", entry_points=ACME)
    os.utime(site, (1, 1))
    index_of(site, cache=tmp_path / "cache")
    (metadata / "entry_points.txt").write_text("[zoo.heads]\nhat = acme:Hat\n", encoding="utf-8")
    os.utime(site, (1, 1))
    assert names(index_of(site, cache=tmp_path / "cache")) == ["head:hat"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"1 00000000\n{}", b"\xff\xff", b"not json at all" * 100])
def test_a_damaged_cache_does_not_matter(site: Path, tmp_path: Path, damage: bytes) -> None:
    make_distribution(site, "acme", entry_points=ACME)
    os.utime(site, (1, 1))
    cache = tmp_path / "cache"
    before = index_of(site, cache=cache).providers
    for file in cache.iterdir():
        file.write_bytes(damage)
    (cache / "failures.json").write_bytes(damage)
    assert before == index_of(site, cache=cache).providers


def test_every_flipped_byte_of_the_cache_is_noticed(site: Path, tmp_path: Path) -> None:
    make_distribution(site, "acme", entry_points="[zoo.heads]\nhat = acme:Hat\n")
    os.utime(site, (1, 1))
    cache = tmp_path / "cache"
    before = index_of(site, cache=cache).providers
    (file,) = cache.iterdir()
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert before == index_of(site, cache=cache).providers


def test_a_cache_that_cannot_be_written_does_not_matter(site: Path, tmp_path: Path) -> None:
    make_distribution(site, "acme", entry_points=ACME)
    in_the_way = tmp_path / "file"
    in_the_way.write_text("", encoding="utf-8")
    assert len(names(index_of(site, cache=in_the_way / "cache"))) == 4


def test_the_cache_folder_does_not_grow_without_end(site: Path, tmp_path: Path) -> None:
    make_distribution(site, "acme", entry_points=ACME)
    os.utime(site, (1, 1))
    for number in range(25):
        read_folders([str(site), str(tmp_path / str(number))], cache=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 16


# --- the laws --------------------------------------------------------------------------------------------------------


def test_two_distributions_with_one_name_and_neither_is_used(site: Path) -> None:
    for name in ("acme", "bolt"):
        make_distribution(site, name, entry_points="[zoo.adapters]\nmend = x:A\n", files=FILES)
    registry = Registry(index_of(site))
    with pytest.raises(AmbiguousError, match=r"acme 1\.0 and bolt 1\.0.*ZOO_PLUGINS.*\[names\]"):
        registry.find("mend")
    assert [provider.state for provider in registry.providers("adapter")] == ["ambiguous", "ambiguous"]


def test_the_allow_list_settles_a_contested_name(site: Path) -> None:
    for name in ("acme", "bolt"):
        make_distribution(site, name, entry_points="[zoo.adapters]\nmend = acme.recipes:Adapter\n")
    provider = Registry(index_of(site, allow=("Acme",))).find("mend")
    assert (provider.distribution, provider.state) == ("acme", "ok")


def test_the_settings_settle_a_contested_name(site: Path) -> None:
    for name in ("acme", "bolt"):
        make_distribution(site, name, entry_points="[zoo.adapters]\nmend = acme.recipes:Adapter\n")
    for owners in ({"mend": "bolt"}, {"adapter:mend": "bolt", "mend": "acme"}):
        registry = Registry(index_of(site, owners=owners))
        assert registry.find("mend").distribution == "bolt"
        assert states(registry.index) == {"acme/mend": "disallowed", "bolt/mend": "ok"}


def test_a_broken_claim_still_contests_a_name(site: Path) -> None:
    make_distribution(site, "acme", entry_points="[zoo.adapters]\nmend = x:A\n")
    make_distribution(site, "bolt", entry_points="[zoo.adapters]\nmend = x:A\n", requires="zoo-core>=9")
    with pytest.raises(AmbiguousError):
        Registry(index_of(site)).find("mend")


def test_one_name_of_two_kinds_needs_its_kind(site: Path) -> None:
    make_distribution(
        site,
        "acme",
        entry_points="[zoo.adapters]\nmend = acme.recipes:Adapter\n[zoo.heads]\nmend = acme.recipes:Head\n",
        files=FILES,
    )
    registry = Registry(index_of(site))
    with pytest.raises(AmbiguousError, match="write adapter:mend or head:mend"):
        registry.find("mend")
    assert registry.find("head:mend").kind == "head"
    assert registry.find("mend", "adapter").kind == "adapter"
    assert str(registry.bind(parse_part("mend(width=3)"), "head").canonical()) == "head:mend(width=3)"
    with pytest.raises(UsageError, match="is a head and an adapter is wanted"):
        registry.bind(parse_part("head:mend"), "adapter")


def test_a_reserved_name_belongs_to_the_first_party(site: Path) -> None:
    make_distribution(site, "acme", entry_points="[zoo.adapters]\nlora = acme:A\n")
    registry = Registry(index_of(site))
    (provider,) = registry.providers()
    assert (provider.state, "reserved for zoo-adapters" in provider.problem) == ("disallowed", True)
    make_distribution(site, "zoo-adapters", entry_points="[zoo.adapters]\nlora = zoo_adapters:Lora\n")
    assert Registry(index_of(site)).find("lora").distribution == "zoo-adapters"


@pytest.mark.parametrize("wanted", [">=0.2", "<0.1", "==0.2.*", "~=0.3", "!=0.1.0"])
def test_a_plugin_for_another_core_is_refused_before_it_is_imported(site: Path, wanted: str) -> None:
    files = {"acme/__init__.py": "raise SystemExit('imported')", "acme/recipes.py": RECIPES}
    make_distribution(site, "acme", entry_points=ACME, requires=f"zoo-core{wanted}", files=files)
    registry = Registry(index_of(site))
    with pytest.raises(PluginError, match=r"and this is 0\.1\.0: pip install --upgrade zoo-core acme") as caught:
        registry.bind(parse_part("mend"))
    assert wanted in str(caught.value)
    assert "acme" not in sys.modules
    assert {"incompatible"} == set(states(registry.index).values())


@pytest.mark.parametrize("requires", [None, "zoo-core", "zoo-core; python_version > '3'", "zoo.core [x] (>=0.1)"])
def test_a_plugin_without_a_range_or_inside_it_is_used(site: Path, requires: str | None) -> None:
    make_distribution(site, "acme", entry_points=ACME, requires=requires, files=FILES)
    assert {"ok"} == set(states(index_of(site)).values())


def test_a_requirement_of_an_extra_is_no_range(site: Path) -> None:
    make_distribution(site, "acme", entry_points=ACME, requires='zoo-core>=9; extra == "dev"')
    assert {"ok"} == set(states(index_of(site)).values())


def test_a_range_that_cannot_be_read_is_told(site: Path) -> None:
    make_distribution(site, "acme", entry_points=ACME, requires="zoo-core nonsense")
    assert {"broken"} == set(states(index_of(site)).values())


def test_the_allow_list_filters_before_anything_is_loaded(site: Path) -> None:
    files = {"acme/__init__.py": "raise SystemExit('imported')", "acme/recipes.py": RECIPES}
    make_distribution(site, "acme", entry_points=ACME, files=files)
    registry = Registry(index_of(site, allow=("bolt",)))
    with pytest.raises(NotFoundError, match="add it to ZOO_PLUGINS"):
        registry.bind(parse_part("mend"))
    assert "acme" not in sys.modules


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("0.1.0", ">=0.1,<0.2", True),
        ("0.2.0", ">=0.1,<0.2", False),
        ("0.1.0.dev3", ">=0.1", True),
        ("1.2.3", "~=1.2", True),
        ("2.0", "~=1.2", False),
        ("1.2.9", "~=1.2.3", True),
        ("1.3", "~=1.2.3", False),
        ("1.0", "==1.0.0", True),
        ("1.0.1", "==1.0.*", True),
        ("1.1", "!=1.0.*", True),
        ("1.10", ">1.9", True),
        ("1.0", "", True),
        ("0.2.0rc1", ">=0.2", True),
        ("1.0", ">=", None),
        ("1.0", "1.0", None),
        ("1.0", ">=1.*", None),
        ("1!1.0", ">=1", None),
        ("1.0", ">=" + "9" * 5000, None),
    ],
)
def test_a_range_means_what_packaging_says(version: str, wanted: str, fits: bool | None) -> None:
    assert fits is in_range(version, wanted)
    if fits is not None:  # it may read more than the handshake needs, and takes too long for `zoo list`
        assert fits is SpecifierSet(wanted).contains(Version(version).base_version, prereleases=True)


# --- finding ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_comes_with_the_nearest_three_and_the_command(acme: Registry) -> None:
    with pytest.raises(
        NotFoundError, match=r"no plugin provides an adapter 'men'; did you mean mend\?.*`zoo list adapter`"
    ):
        acme.find("men", "adapter")


def test_a_first_party_name_that_is_not_installed_comes_with_its_installation(acme: Registry) -> None:
    with pytest.raises(NotFoundError, match="pip install zoo-timm"):
        acme.find("timm/resnet50")


def test_an_unknown_name_tells_of_plugins_that_could_not_be_read(site: Path) -> None:
    make_distribution(site, "acme", entry_points="[zoo.adapters]\noops\n")
    with pytest.raises(NotFoundError, match=r"acme 1\.0 could not be read and may provide it, see `zoo doctor`"):
        Registry(index_of(site)).find("mend")


def test_the_first_segment_owns_the_namespace(acme: Registry) -> None:
    bound = acme.bind(parse_part("space/ORG/REPO@v1(depth=3)"))
    assert (
        bound.name,
        bound.recipe.name,
        bound.recipe.depth,
        bound.revision,
    ) == ("space/ORG/REPO", "ORG/REPO", 3, "v1")
    assert str(bound.canonical()) == "space/ORG/REPO@v1(depth=3)"


SHELF = """
    from dataclasses import dataclass, field, make_dataclass
    from typing import ClassVar
    from zoo_core.errors import NotFoundError

    class Verbs:
        version: ClassVar[int] = 1
        def apply(self, learner, context): ...

    @dataclass(frozen=True, kw_only=True)
    class Shelf(Verbs):
        name: str = ""
        folder: str = "here"
        @classmethod
        def recipe_for(cls, name):
            if name == "book":
                fields = [("name", str), ("pages", int, field(default=100))]
                return make_dataclass("Book", fields, bases=(Verbs,), frozen=True, kw_only=True)
            if name == "lost":
                return Verbs
            if name == "nameless":
                return make_dataclass("Nameless", [("x", int)], bases=(Verbs,), frozen=True, kw_only=True)
            if name == "torn":
                raise KeyError(name)
            raise NotFoundError(f"the shelf has no {name!r}; it has book")
"""


@pytest.fixture
def shelf(site: Path) -> Registry:
    files = {"acme/__init__.py": "", "acme/recipes.py": SHELF}
    make_distribution(site, "acme", entry_points="[zoo.adapters]\nshelf = acme.recipes:Shelf\n", files=files)
    return Registry(index_of(site))


def test_a_namespace_may_have_a_recipe_for_each_name(shelf: Registry) -> None:
    bound = shelf.bind(parse_part("shelf/book(pages=3)"))
    assert (bound.name, bound.recipe.name, bound.recipe.pages) == ("shelf/book", "book", 3)
    assert str(bound.canonical()) == "shelf/book(pages=3)"
    assert bound.identity()["fields"] == {"name": "book", "pages": 3}
    assert type(bound.recipe) is type(shelf.bind(parse_part("shelf/book")).recipe)  # made once
    assert shelf.bind(parse_part("shelf(folder=there)")).recipe.folder == "there"


def test_the_arguments_of_a_name_are_its_own(shelf: Registry) -> None:
    with pytest.raises(UsageError, match="shelf/book has no argument 'folder'; it takes pages"):
        shelf.bind(parse_part("shelf/book(folder=there)"))
    shown = describe("shelf/book", shelf, Catalog(shelf.index))
    assert [(argument["name"], argument["default"]) for argument in shown["arguments"]] == [("pages", "100")]
    assert shown["recipe"].endswith(":Book")


def test_a_namespace_says_which_names_it_has(shelf: Registry) -> None:
    with pytest.raises(NotFoundError, match="the shelf has no 'film'; it has book"):
        shelf.bind(parse_part("shelf/film"))
    with pytest.raises(NotFoundError, match="it has book"):
        describe("shelf/film", shelf, Catalog(shelf.index))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lost", r"recipe_for\('lost'\) is not a dataclass"),
        ("nameless", "has no field `name`"),
        ("torn", r"recipe_for\('torn'\): KeyError: 'torn' at .*recipes.py:\d+"),
    ],
)
def test_a_namespace_that_offers_no_recipe_is_told(shelf: Registry, name: str, told: str) -> None:
    with pytest.raises(PluginError, match=f"adapter 'shelf' of acme 1.0 cannot be loaded: .*{told}"):
        shelf.bind(parse_part(f"shelf/{name}"))


def test_a_recipe_without_a_name_is_no_namespace(acme: Registry) -> None:
    with pytest.raises(NotFoundError, match="mend is no namespace"):
        acme.bind(parse_part("mend/x"))


def test_the_name_of_a_namespace_is_no_argument(acme: Registry) -> None:
    with pytest.raises(UsageError, match="what follows the first '/' is the name"):
        acme.bind(parse_part("space/x(name=y)"))


def test_providers_are_filtered_by_kind_and_pattern(acme: Registry) -> None:
    assert [provider.name for provider in acme.providers("head")] == ["crown"]
    assert [provider.name for provider in acme.providers(pattern="*")] == ["space", "mend", "crown", "chore"]
    assert sorted(provider.name for provider in acme.providers(pattern="c*")) == ["chore", "crown"]


# --- loading ---------------------------------------------------------------------------------------------------------

BROKEN = {
    "raises": ("x = 1\nraise RuntimeError('no\\ngood')\n", "RuntimeError: no good at .*acme/recipes.py:2"),
    "exits": ("import sys\nsys.exit(3)\n", "SystemExit: 3 at .*recipes.py:2"),
    "syntax": ("x = 1\ndef broken(:\n", "SyntaxError.*recipes.py:2"),
    "missing module": ("import no_such_module_here\n", "ModuleNotFoundError.*recipes.py:1"),
    "missing attribute": ("Adaptor = 1\n", "has no 'Adapter'; did you mean Adaptor"),
    "function": ("def Adapter(): ...\n", "is not a dataclass"),
    "plain class": ("class Adapter: ...\n", "is not a dataclass"),
    "not frozen": (
        "from dataclasses import *\n@dataclass(kw_only=True)\nclass Adapter:\n  x: int = 1\n",
        "is not frozen",
    ),
    "positional": (
        "from dataclasses import *\n@dataclass(frozen=True)\nclass Adapter:\n  x: int = 1\n",
        "takes x by position",
    ),
    "no verb": ("from dataclasses import *\n@dataclass(frozen=True)\nclass Adapter: ...\n", r"has no method apply\(\)"),
    "no version": (
        "from dataclasses import *\n@dataclass(frozen=True)\nclass Adapter:\n  def apply(self): ...\n",
        "has no `version",
    ),
}


@pytest.mark.parametrize(("source", "told"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_told_with_its_place_and_its_removal(site: Path, source: str, told: str) -> None:
    make_distribution(site, "acme", entry_points=ACME, files={"acme/__init__.py": "", "acme/recipes.py": source})
    registry = Registry(index_of(site))
    with pytest.raises(
        PluginError, match=f"adapter 'mend' of acme 1.0 cannot be loaded: .*{told}.*pip uninstall acme"
    ) as caught:
        registry.recipe(registry.find("mend"))
    assert "\n" not in str(caught.value)
    assert registry.find("mend").state == "broken"


def test_an_editable_installation_whose_folder_is_gone_is_told(site: Path) -> None:
    make_distribution(site, "acme", entry_points=ACME)
    registry = Registry(index_of(site))
    with pytest.raises(PluginError, match="its package 'acme' is not there"):
        registry.bind(parse_part("mend"))


def test_a_broken_recipe_leaves_the_others_of_its_distribution(site: Path) -> None:
    entry_points = "[zoo.adapters]\nmend = acme.recipes:Adapter\nrend = acme.other:Adapter\n"
    make_distribution(site, "acme", entry_points=entry_points, files={**FILES, "acme/other.py": "1/0"})
    registry = Registry(index_of(site))
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        registry.bind(parse_part("rend"))
    assert registry.bind(parse_part("mend")).recipe.rank == 8


def test_an_interrupt_during_an_import_is_no_broken_plugin(site: Path) -> None:
    files = {"acme/__init__.py": "", "acme/recipes.py": "raise KeyboardInterrupt"}
    make_distribution(site, "acme", entry_points=ACME, files=files)
    registry = Registry(index_of(site))
    with pytest.raises(KeyboardInterrupt):
        registry.bind(parse_part("mend"))
    assert registry.find("mend").state == "ok"


def test_a_failure_is_remembered_until_its_file_changes(site: Path, tmp_path: Path) -> None:
    files = {"acme/__init__.py": "", "acme/recipes.py": "1/0"}
    make_distribution(site, "acme", entry_points="[zoo.adapters]\nmend = acme.recipes:Adapter\n", files=files)
    cache = tmp_path / "cache"
    first = Registry(index_of(site, cache=cache))
    with pytest.raises(PluginError):
        first.bind(parse_part("mend"))
    (later,) = index_of(site, cache=cache).providers
    assert (later.state, "ZeroDivisionError" in later.problem) == ("broken", True)
    make_distribution(tmp_path / "spare", "spare", files={"acme/recipes.py": RECIPES})
    shutil.copy(tmp_path / "spare" / "acme" / "recipes.py", site / "acme" / "recipes.py")
    assert list(states(index_of(site, cache=cache)).values()) == ["ok"]


def test_a_remembered_failure_is_tried_again_when_it_is_used(site: Path, tmp_path: Path) -> None:
    """Only its own file is watched; the mistake may have been mended elsewhere."""
    files = {"acme/__init__.py": "", "acme/recipes.py": f"import acme.part\n{RECIPES}", "acme/part.py": "1/0"}
    files["acme/recipes.py"] = RECIPES.replace("from dataclasses", "import acme.part\n    from dataclasses", 1)
    make_distribution(site, "acme", entry_points="[zoo.adapters]\nmend = acme.recipes:Adapter\n", files=files)
    cache = tmp_path / "cache"
    with pytest.raises(PluginError):
        Registry(index_of(site, cache=cache)).bind(parse_part("mend"))
    (site / "acme" / "part.py").write_text("", encoding="utf-8")
    shutil.rmtree(site / "acme" / "__pycache__", ignore_errors=True)
    assert Registry(index_of(site, cache=cache)).bind(parse_part("mend")).recipe.rank == 8
    assert list(states(index_of(site, cache=cache)).values()) == ["ok"]


# --- binding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("mend(rank=4)", "rank", 4),
        ("mend(scale=4)", "scale", 4.0),
        ("mend(scale=-.5)", "scale", -0.5),
        ("mend(bias=true)", "bias", True),
        ("mend(where=all)", "where", "all"),
        ("mend(where=none)", "where", "none"),
        ("mend(roles=[attn.q,attn.v])", "roles", ("attn.q", "attn.v")),
        ("mend(roles=[])", "roles", ()),
        ("mend(size=[3,4])", "size", (3, 4)),
        ("mend(size=none)", "size", None),
        ('mend(path="a b")', "path", Path("a b")),
        ("mend", "rank", 8),
    ],
)
def test_an_argument_has_the_type_of_its_field(acme: Registry, text: str, field: str, value: object) -> None:
    found = getattr(acme.bind(parse_part(text)).recipe, field)
    assert (value, type(value)) == (found, type(found))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mend(rnk=4)", "mend has no argument 'rnk'; it takes rank, .*; did you mean rank"),
        ("mend(rank=4.0)", "mend: rank is a whole number, found the number 4.0"),
        ("mend(rank=true)", "rank is a whole number, found true"),
        ("mend(rank=many)", "rank is a whole number, found the text 'many'"),
        ("mend(scale=true)", "scale is a number, found true"),
        ("mend(bias=1)", "bias is true or false, found the number 1"),
        ("mend(bias=True)", "bias is true or false, found the text 'True'; write true"),
        ("mend(where=al)", "where is one of all, none, found the text 'al'; did you mean all"),
        ("mend(roles=attn.q)", r"roles is \[text, ...\], found the text 'attn.q'; write \[attn.q\]"),
        ("mend(roles=[1])", "roles is"),
        ("mend(size=[3])", r"size is \[a whole number, a whole number\] or none, found a list"),
        ("mend(path=3)", "path is a path or none, found the number 3"),
        ("crown", r"crown needs width: write 'crown\(width=...\)'"),
        ("space/x(weights=pretraind)", "weights is one of pretrained, random.*did you mean pretrained"),
        ("chore(shots=0)", "shots is at least 1, found 0"),
        ("chore(limit=1.5)", "limit is a whole number or none"),
        ("chore(epochs=1)", "chore has no argument 'epochs'; it takes shots, limit, rest, labels"),
        ("mend(weights=random)", "mend has no argument 'weights'"),
    ],
)
def test_a_wrong_argument_is_told_with_what_is_allowed(acme: Registry, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        acme.bind(parse_part(text))


def test_arguments_of_a_kind_are_the_cores(acme: Registry) -> None:
    assert acme.bind(parse_part("space/x")).common == {"weights": "pretrained", "until": None}
    assert acme.bind(parse_part("space/x(weights=random)")).common == {"weights": "random", "until": None}
    usual = {"limit": None, "rest": "drop", "labels": "keep"}
    assert acme.bind(parse_part("chore(shots=5)")).common == {"shots": 5, **usual}
    assert acme.bind(parse_part("mend")).common == {}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("mend(rank=8)", "mend"),
        ("mend(scale=1)", "mend"),
        ("mend(scale=2,rank=4)", "mend(rank=4,scale=2.0)"),
        ('mend(roles=["attn.v"])', "mend(roles=[attn.v])"),
        ("mend(where=none)", 'mend(where="none")'),
        ("space/x(weights=pretrained)", "space/x"),
        ("chore(shots=5,limit=none)", "chore(shots=5)"),
        ("adapter:mend", "mend"),
    ],
)
def test_the_canonical_part_leaves_defaults_out(acme: Registry, text: str, canonical: str) -> None:
    part = acme.bind(parse_part(text)).canonical()
    assert canonical == str(part)
    assert acme.bind(part).identity() == acme.bind(parse_part(text)).identity()


def test_the_identity_holds_what_decides_the_numbers(acme: Registry) -> None:
    assert acme.bind(parse_part("space/x@v1(weights=random)")).identity() == {
        "kind": "backbone",
        "recipe": "acme.recipes:Space",
        "version": 3,
        "fields": {"name": "x", "depth": 2},
        "common": {"weights": "random"},
        "revision": "v1",
    }


def test_defaults_written_out_make_the_same_identity(acme: Registry) -> None:
    assert acme.bind(parse_part("mend")).identity() == acme.bind(parse_part("mend(scale=1,rank=8)")).identity()
    assert acme.bind(parse_part("mend")).identity() != acme.bind(parse_part("mend(rank=9)")).identity()


HEAD = "from dataclasses import *\nfrom typing import *\n@dataclass(frozen=True, kw_only=True)\nclass Adapter:\n"
TAIL = "  version: ClassVar[int] = 1\n  def apply(self): ...\n"
ODD = {
    "foreign type": ("  x: complex = 1j\n", "mend(x=1)", PluginError, "which no argument can have"),
    "type that is not there": ("  x: 'Nowhere' = 1\n", "mend", PluginError, "cannot be read: name 'Nowhere'"),
    "value error": (
        "  x: int = 1\n  def __post_init__(self):\n    raise ValueError('x is odd')\n",
        "mend",
        UsageError,
        "mend: x is odd",
    ),
    "other error": (
        "  x: int = 1\n  def __post_init__(self):\n    raise KeyError('k')\n",
        "mend",
        PluginError,
        "Adapter raised KeyError",
    ),
}


@pytest.mark.parametrize(("field", "text", "kind", "told"), ODD.values(), ids=ODD)
def test_a_recipe_with_an_odd_field_is_told(site: Path, field: str, text: str, kind: type[ZooError], told: str) -> None:
    files = {"acme/__init__.py": "", "acme/recipes.py": HEAD + field + TAIL}
    make_distribution(site, "acme", entry_points="[zoo.adapters]\nmend = acme.recipes:Adapter\n", files=files)
    with pytest.raises(kind, match=told):
        Registry(index_of(site)).bind(parse_part(text))


def test_a_field_that_the_core_handles_is_refused(site: Path) -> None:
    recipe = RECIPES.replace("depth: int = 2", "weights: str = 'x'")
    make_distribution(site, "acme", entry_points=ACME, files={"acme/__init__.py": "", "acme/recipes.py": recipe})
    with pytest.raises(PluginError, match=r"Space\.weights is an argument that zoo-core handles"):
        Registry(index_of(site)).bind(parse_part("space/x"))


# --- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_and_the_settings_are_read(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("acme", "bolt"):
        make_distribution(site, name, entry_points=f"[zoo.adapters]\nmend = x:A\n{name}-own = x:A\n", requires=None)
    settings = tmp_path / "config.toml"
    monkeypatch.setenv("ZOO_CONFIG", str(settings))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))

    def ours() -> dict[str, str]:
        return {name: state for name, state in states(load_index()).items() if name.startswith(("acme", "bolt"))}

    assert ours()["acme/mend"] == "ambiguous"
    settings.write_text('[names]\n"adapter:mend" = "acme"\n', encoding="utf-8")
    assert (ours()["acme/mend"], ours()["bolt/mend"]) == ("ok", "disallowed")
    settings.write_text('[plugins]\nallow = ["bolt"]\n', encoding="utf-8")
    assert (ours()["acme/acme-own"], ours()["bolt/mend"]) == ("disallowed", "ok")
    monkeypatch.setenv("ZOO_PLUGINS", " acme , zoo_starter")
    assert (ours()["acme/mend"], ours()["bolt/mend"]) == ("ok", "disallowed")
    monkeypatch.setenv("ZOO_PLUGINS", "")
    assert {"disallowed"} == set(ours().values())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[plugin]\n", "found 'plugin'; did you mean plugins"),
        ("[plugins]\nalow = []\n", "did you mean allow"),
        ("[plugins]\nallow = 'x'\n", "is a list of distributions"),
        ("[names]\nlora = 3\n", "is the name of a distribution"),
        ("devise = 'cpu'\n", "found 'devise'; did you mean device"),
        ("cache = 3\n", "cache is the path of a folder"),
        ("outputs_bytes = '10 GB'\n", "outputs_bytes is a whole number of bytes, 0 for none, found '10 GB'"),
        ("outputs_bytes = -1\n", "outputs_bytes is a whole number of bytes"),
        ("outputs_bytes = true\n", "outputs_bytes is a whole number of bytes"),
        ("output_bytes = 1\n", "did you mean outputs_bytes"),
        ("[names\n", "are not TOML"),
        ("\x00", "are not TOML"),
    ],
)
def test_settings_that_cannot_be_used_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text(text, encoding="utf-8")
    monkeypatch.setenv("ZOO_CONFIG", str(settings))
    with pytest.raises(UsageError, match=told):
        load_index()
