"""The extras of zoo-core name distributions of this repository, in versions that it has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from zoo_core.registry.versions import in_range

ROOT = Path(__file__).parents[1]
OF_DEVELOPERS = {"dev"}


def project(folder: Path) -> dict[str, Any]:
    return dict(tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"])


CORE = project(ROOT)
OTHERS = {
    found["name"]: found["version"]
    for found in map(project, (ROOT / "registry", *(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))))
}
EXTRAS = {name: found for name, found in CORE["optional-dependencies"].items() if name not in OF_DEVELOPERS}


def named(requirement: str) -> tuple[str, str]:
    """The distribution of a requirement, and its range."""
    match = re.fullmatch(r"([a-z-]+)(.*)", requirement)
    assert match is not None, requirement
    return match[1], match[2]


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_names_distributions_in_versions_that_are_here(extra: str) -> None:
    for distribution, wanted in map(named, EXTRAS[extra]):
        assert distribution in OTHERS, f"{extra}: no distribution {distribution}"
        assert wanted
        assert in_range(OTHERS[distribution], wanted), f"{extra}: {distribution} {OTHERS[distribution]} is not {wanted}"


def test_all_is_everything_and_each_has_the_default_head() -> None:
    assert {named(each)[0] for each in EXTRAS["all"]} == set(OTHERS)
    assert set(EXTRAS) == {"timm", "hf", "peft", "distill", "tasks", "all"}
    assert all("zoo-adapters" in {named(each)[0] for each in found} for found in EXTRAS.values())


def test_the_readme_says_how_and_that_no_index_has_them() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install 'zoo-core[all]'" in readme
    assert "No index has these packages yet" in readme
    for extra in EXTRAS:
        assert f"[{extra}]" in readme
