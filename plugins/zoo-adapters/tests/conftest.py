"""Puts the plugin in toys/ on sys.path, and builds learners from specs through the registry as a user would."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zoo_core.contracts import Target
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import resolve
from zoo_core.registry.catalog import Catalog
from zoo_core.registry.index import Index, read_folders
from zoo_core.registry.registry import Registry

TOYS = Path(__file__).parent / "toys"
CLASSES = Target(kind="classes", names=("a", "b", "c"))

Resolve = Callable[..., Plan]
Build = Callable[..., Learner]


@pytest.fixture(scope="module")
def resolve_toy() -> Iterator[Resolve]:
    """`resolve` for specs whose backbones are the toys; three classes unless a target is given."""
    sys.path.insert(0, str(TOYS))
    index = Index(read_folders(list(dict.fromkeys(sys.path))))
    registry, catalog = Registry(index), Catalog(index)

    def resolved(spec: str, *, target: Target = CLASSES, **arguments: object) -> Plan:
        return resolve(spec, target=target, registry=registry, catalog=catalog, **arguments)  # type: ignore[arg-type]

    yield resolved
    sys.path.remove(str(TOYS))


@pytest.fixture(scope="module")
def build_toy(resolve_toy: Resolve) -> Build:
    """The learner of a spec whose backbone is a toy; its weights count as pre-trained."""

    def built(spec: str, *, target: Target = CLASSES, seed: int = 0) -> Learner:
        return build(resolve_toy(spec, target=target, seed=seed))

    return built
