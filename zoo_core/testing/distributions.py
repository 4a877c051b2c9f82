"""Fake installed distributions in a folder, so that a test sees only what it made, never what is really installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from zoo_core.registry.index import Index, read_folders

__all__ = ["RECIPES", "index_of", "make_distribution"]

RECIPES = """
    from __future__ import annotations
    from dataclasses import dataclass
    from pathlib import Path
    from typing import ClassVar, Literal
    from zoo_core.contracts import Target

    @dataclass(frozen=True, kw_only=True)
    class Space:
        '''A namespace of backbones.'''
        name: str = ""
        depth: int = 2
        version: ClassVar[int] = 3
        def build(self, files, weights): ...

    @dataclass(frozen=True, kw_only=True)
    class Adapter:
        '''An adapter with a field of each type.

        rank: width of what is added.
        '''
        rank: int = 8
        scale: float = 1.0
        bias: bool = False
        where: Literal["all", "none"] = "all"
        roles: tuple[str, ...] = ("attn.q",)
        size: tuple[int, int] | None = None
        path: Path | None = None
        version: ClassVar[int] = 1
        accepts: ClassVar[frozenset[str]] = frozenset({"tokens"})
        changes: ClassVar[frozenset[str]] = frozenset({"added"})
        learning_rates: ClassVar[tuple[float, ...]] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
        def apply(self, learner, context): ...

    @dataclass(frozen=True, kw_only=True)
    class Head:
        width: int
        version: ClassVar[int] = 1
        def build(self, features, target): ...

    @dataclass(frozen=True, kw_only=True)
    class Task:
        version: ClassVar[int] = 1
        modality: ClassVar[str] = "image"
        metric: ClassVar[str] = "accuracy"
        target: ClassVar[Target] = Target(kind="classes", size=2)
        def open(self, files): ...
"""
"""One recipe of each kind, as `module` of a fake package; none of them builds anything."""


def make_distribution(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    entry_points: str = "",
    requires: str | None = "zoo-core>=0.1,<0.2",
    files: Mapping[str, str] | None = None,
) -> Path:
    """Writes a distribution as pip leaves it: metadata, and package files by path. All texts are dedented.

    Returns the folder of its metadata.
    """
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    requirement = f"Requires-Dist: {requires}\n" if requires is not None else ""
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requirement}"
    (metadata / "METADATA").write_text(f"{head}\nWhat it is.\n", encoding="utf-8")
    if entry_points:
        (metadata / "entry_points.txt").write_text(dedent(entry_points), encoding="utf-8")
    for path, text in (files or {}).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text), encoding="utf-8")
    return metadata


def index_of(
    *folders: Path,
    core_version: str | None = "0.1.0",
    allow: tuple[str, ...] | None = None,
    owners: Mapping[str, str] | None = None,
    cache: Path | None = None,
) -> Index:
    """The index of exactly these folders, together with a zoo-core of the given version."""
    core = folders[0] / "core"
    if core_version is not None and not core.exists():
        make_distribution(core, "zoo-core", version=core_version, requires=None)
    cache_text = str(cache) if cache is not None else None
    found = read_folders([str(folder) for folder in (*folders, core)], cache=cache_text)
    return Index(found, allow=allow, owners=owners, cache=cache_text)
