"""What a path stands for: which recipe of this plugin reads a file, or a folder of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from zoo_core.contracts import SUFFIXES

__all__ = ["TABLES", "Arrays", "Pictures", "Sounds", "Tables", "TaggedWords"]

TABLES: Mapping[str, str] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".tsv": "tsv",
}
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Tables:
    """A table, or a folder of tables; of several kinds of them those that are most."""

    version: ClassVar[int] = 1
    suffixes: ClassVar[frozenset[str]] = frozenset(TABLES)
    below: ClassVar[frozenset[str]] = NOTHING
    names: ClassVar[frozenset[str]] = NOTHING

    def task(self, path: Path, files: Sequence[str]) -> str | None:
        return Counter(TABLES[PurePosixPath(name).suffix.lower()] for name in files).most_common(1)[0][0]


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A file of numpy's arrays, or a folder of them."""

    version: ClassVar[int] = 1
    suffixes: ClassVar[frozenset[str]] = frozenset({".npz"})
    below: ClassVar[frozenset[str]] = NOTHING
    names: ClassVar[frozenset[str]] = NOTHING

    def task(self, path: Path, files: Sequence[str]) -> str | None:
        return "npz"


@dataclass(frozen=True, kw_only=True)
class TaggedWords:
    """A file of words and their tags, or a folder of them; there train.txt is one too."""

    version: ClassVar[int] = 1
    suffixes: ClassVar[frozenset[str]] = frozenset({".bio", ".conll", ".iob"})
    below: ClassVar[frozenset[str]] = NOTHING
    names: ClassVar[frozenset[str]] = frozenset({"train.txt"})

    def task(self, path: Path, files: Sequence[str]) -> str | None:
        return "conll"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A folder of pictures, in folders of its own for each class."""

    version: ClassVar[int] = 1
    suffixes: ClassVar[frozenset[str]] = NOTHING
    below: ClassVar[frozenset[str]] = frozenset(SUFFIXES["image"])
    names: ClassVar[frozenset[str]] = NOTHING

    def task(self, path: Path, files: Sequence[str]) -> str | None:
        return "image-folder"


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """A folder of sounds, in folders of its own for each class."""

    version: ClassVar[int] = 1
    suffixes: ClassVar[frozenset[str]] = NOTHING
    below: ClassVar[frozenset[str]] = frozenset(SUFFIXES["audio"])
    names: ClassVar[frozenset[str]] = NOTHING

    def task(self, path: Path, files: Sequence[str]) -> str | None:
        return "audio-folder"
