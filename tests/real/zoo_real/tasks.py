"""Tasks of ../shared/data, from its folders: `real-sst2(files=F)`, `real-trec(files=F)` and `flowers(files=F)`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zoo_core.contracts import Modality, Source, Target

FILES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}
FLOWERS = ("daisy", "dandelion", "rose", "sunflower", "tulip")


@dataclass(frozen=True, kw_only=True)
class Sst2:
    """Sentences of film reviews, negative or positive (Socher et al. 2013); the official splits.

    files: the folder of train.tsv, dev.tsv and test.tsv, lines of a label, a tab and a sentence.
    """

    files: str

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "text"
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target] = Target(kind="classes", names=("negative", "positive"))

    def source(self) -> Source | None:
        return Source(folder=self.files, patterns=tuple(FILES.values()))

    def open(self, files: Path) -> Data:
        return Data(self.target, {split: _lines(split, files / name, "\t", "utf-8") for split, name in FILES.items()})


@dataclass(frozen=True, kw_only=True)
class Trec:
    """Questions by what they ask for (Li & Roth 2002); the official test split, validation carved from train.

    files: the folder of TREC.train.all and TREC.test.all, lines of a label, a space and a question. used: questions of
    TREC.train.all, from its start, that train and validation are taken from.
    """

    files: str
    used: int = 5452

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "text"
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target] = Target(
        kind="classes", names=("description", "entity", "abbreviation", "human", "number", "location")
    )

    def source(self) -> Source | None:
        return Source(folder=self.files, patterns=("TREC.*.all",))

    def open(self, files: Path) -> Data:
        train = _lines("train", files / "TREC.train.all", " ", "latin-1", self.used)
        return Data(self.target, {"train": train, "test": _lines("test", files / "TREC.test.all", " ", "latin-1")})


@dataclass(frozen=True, kw_only=True)
class Flowers:
    """Photographs of five kinds of flowers, 128 px; of each kind a fifth is validation and a fifth test.

    Which is which follows from the sha256 of the file. Files that occur more than once, here across kinds too, are
    left out. files: the folder of class folders. evaluated: photographs of validation and of test that are used.
    """

    files: str
    evaluated: int = 250

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "image"
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target] = Target(kind="classes", names=FLOWERS)

    def source(self) -> Source | None:
        return Source(folder=self.files, patterns=("*/*.jpg",))

    def open(self, files: Path) -> Data:
        found: dict[str, list[tuple[str, int]]] = {}
        for label, kind in enumerate(FLOWERS):
            for path in sorted((files / kind).iterdir()):
                found.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append((str(path), label))
        parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
        for digest, same in sorted(found.items()):
            if len(same) == 1:
                parts[("val", "test", "train", "train", "train")[int(digest, 16) % 5]].append(same[0])
        for split in ("val", "test"):
            parts[split] = parts[split][: self.evaluated]
        return Data(self.target, {split: _examples(split, examples) for split, examples in parts.items()})


@dataclass(frozen=True)
class Data:
    """An opened task."""

    target: Target
    splits: dict[str, Examples]


@dataclass(frozen=True)
class Examples:
    """Texts, or paths of pictures, with their classes."""

    items: tuple[str, ...]
    labels: tuple[int, ...]
    ids: Sequence[str]
    groups: None = None

    @property
    def num(self) -> int:
        return len(self.items)

    @property
    def targets(self) -> Any:
        import numpy as np

        return np.array(self.labels, dtype=np.int64)

    def raw(self, index: int) -> str:
        return self.items[index]


def _examples(split: str, examples: Sequence[tuple[str, int]]) -> Examples:
    ids = tuple(f"{split}-{number}" for number in range(len(examples)))
    return Examples(tuple(item for item, _ in examples), tuple(label for _, label in examples), ids)


def _lines(split: str, path: Path, separator: str, encoding: str, used: int | None = None) -> Examples:
    rows = [line.split(separator, 1) for line in path.read_text(encoding=encoding).splitlines()[:used]]
    return _examples(split, [(text, int(label)) for label, text in rows])
