"""The task `sst2(files=FOLDER)`: lines of a label, a tab and a sentence in train.tsv, dev.tsv and test.tsv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zoo_core.contracts import Modality, Source, Target

FILES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}


@dataclass(frozen=True, kw_only=True)
class Sst2:
    """Sentences of film reviews, negative or positive (Socher et al. 2013)."""

    files: str

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "text"
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target] = Target(kind="classes", names=("negative", "positive"))

    def source(self) -> Source:
        return Source(folder=self.files, patterns=tuple(FILES.values()))

    def open(self, files: Path) -> Sentences:
        return Sentences(splits={split: Lines.read(split, files / name) for split, name in FILES.items()})


@dataclass(frozen=True)
class Sentences:
    splits: dict[str, Lines]
    target: Target = Sst2.target


@dataclass(frozen=True)
class Lines:
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    ids: Sequence[str]
    groups: None = None

    @classmethod
    def read(cls, split: str, path: Path) -> Lines:
        rows = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        ids = tuple(f"{split}-{number}" for number in range(len(rows)))
        return cls(tuple(text for _, text in rows), tuple(int(label) for label, _ in rows), ids)

    @property
    def num(self) -> int:
        return len(self.texts)

    @property
    def targets(self) -> Any:
        import numpy as np

        return np.array(self.labels, dtype=np.int64)

    def raw(self, index: int) -> str:
        return self.texts[index]
