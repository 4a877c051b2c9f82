"""What tests of teachers share: the plugin of a third party in this folder, and stored runs that teach."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import zoo_core
from zoo_core.registry.catalog import catalog
from zoo_core.registry.registry import registry

TAUGHT = Path(__file__).parent
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Taught:
    """run: the folder of a stored run that predicts digits, of another family and input size than starter's."""

    run: Path


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taught]:
    """The plugin is known while the tests of a module run, and its teacher is stored."""
    sys.path.insert(0, str(TAUGHT))
    for cached in (registry, catalog):
        cached.cache_clear()
    run = tmp_path_factory.mktemp("teachers") / "run"
    zoo_core.save(zoo_core.load("pyramid", classes=DIGITS), run)
    yield Taught(run)
    sys.path.remove(str(TAUGHT))
    for cached in (registry, catalog):
        cached.cache_clear()
