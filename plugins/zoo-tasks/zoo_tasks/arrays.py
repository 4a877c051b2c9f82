"""`npz(path="mnist")`: arrays of pictures or of rows of numbers with their targets."""

from __future__ import annotations

import ast
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_core.contracts import Modality, Source, Survey, Target, TaskData
from zoo_core.errors import UsageError, nearest
from zoo_tasks.reading import File, table_files

if TYPE_CHECKING:
    from zoo_tasks.matrices import Matrices

__all__ = ["Npz", "Shape"]

INPUTS = ("x", "images", "data", "inputs", "features")
TARGETS = ("y", "labels", "target", "targets", "label")
CLASSES = "classes.json"
METRIC: Mapping[str, str] = {
    "classes": "accuracy",
    "multilabel": "average_precision",
    "regression": "mean_absolute_error",
}
PICTURE_AXES = (3, 4)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a header of numpy's format says: a type such as `|u1`, and the lengths of the axes."""

    dtype: str
    axes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Npz:
    """Arrays in numpy's format: x uint8 [N, H, W] or [N, H, W, 3] is pictures, x of numbers [N, K] a table; y targets.

    path: a file, or a folder of files whose names say train, val and test (train.npz, test_small.npz needs a pattern);
    pattern="{split}_small.npz" for other names. x, y: names of the arrays where they are not x, images, data, or y,
    labels, target. kind: classes where y is whole numbers [N], labels where 0 and 1 [N, C], values where fractions.
    classes: their names, in the order of the numbers; else those of classes.json beside the file, else the numbers.
    """

    path: str
    pattern: str | None = None
    x: str | None = None
    y: str | None = None
    kind: Literal["auto", "classes", "multilabel", "regression"] = "auto"
    classes: tuple[str, ...] = ()
    seed: int = 0
    duplicates: Literal["auto", "leave-out", "keep"] = "auto"

    version: ClassVar[int] = 1

    @property
    def modality(self) -> Modality:
        first = next(iter(self.shapes().values()))
        return "image" if len(first[self.inputs()].axes) in PICTURE_AXES else "table"

    @property
    def metric(self) -> str:
        return METRIC[self.target.kind]

    @property
    def target(self) -> Target:
        y = next(iter(self.shapes().values()))[self.arrays()[1]]
        kind = self.kind
        if kind == "auto":
            is_float = y.dtype[1] == "f"
            kind = "multilabel" if len(y.axes) != 1 else "regression" if is_float else "classes"
        names = self.classes or self._named()
        if kind == "regression":
            return Target(kind="regression", size=y.axes[1] if len(y.axes) > 1 else 1)
        size = y.axes[1] if len(y.axes) > 1 else None
        if size is not None and names and len(names) != size:
            raise UsageError(f"{self.path}: {self.arrays()[1]} has {size} columns and there are {len(names)} names")
        return Target(kind=kind, names=names) if names else Target(kind=kind, size=size)

    def source(self) -> Source | None:
        names = [file.path.name for file in self.files()]
        named = [CLASSES] if not self.classes and (self.folder() / CLASSES).is_file() else []
        return Source(folder=str(self.folder()), patterns=tuple(map(escape, (*names, *named))))

    def open(self, files: Path | None) -> TaskData:
        return self._matrices().open()

    def inferred(self) -> tuple[str, ...]:
        x, y = self.arrays()
        first = next(iter(self.shapes().values()))
        target = self.target
        splits = [file.split for file in self.files() if file.split]
        return (
            f"input: array {x} {first[x].dtype} {list(first[x].axes)}, {self.modality}; x= names another",
            f"target: array {y}, {target.kind}; y=, kind=, classes= change it",
            f"split: the files {', '.join(splits)}"
            if splits
            else "split: none is given, so 60/20/20 %; seed= changes it",
        )

    def survey(self, files: Path) -> Survey:
        return self._matrices().survey(self.inferred())

    def folder(self) -> Path:
        """Where its files lie."""
        path = Path(self.path).expanduser()
        return path if path.is_dir() else path.parent

    def files(self) -> tuple[File, ...]:
        """Its files, and the split of each."""
        return table_files(Path(self.path).expanduser(), (".npz",), self.pattern)

    def arrays(self) -> tuple[str, str]:
        """The names of the inputs and of the targets."""
        found = next(iter(self.shapes().values()))
        return self.inputs(), _pick(self.path, found, self.y, "y", TARGETS)

    def inputs(self) -> str:
        """The name of the inputs alone."""
        return _pick(self.path, next(iter(self.shapes().values())), self.x, "x", INPUTS)

    def shapes(self) -> dict[str, dict[str, Shape]]:
        """Of each file its arrays, from their headers alone."""
        return {file.path.name: _headers(file.path) for file in self.files()}

    def _named(self) -> tuple[str, ...]:
        file = self.folder() / CLASSES
        if not file.is_file():
            return ()
        try:
            names = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{file} is not JSON: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"{file} is not a list of the classes' names; mend it, or give classes=[...]")
        return tuple(names)

    def _matrices(self) -> Matrices:
        from zoo_tasks.matrices import Matrices  # numpy

        return Matrices(recipe=self)


def _pick(path: str, found: Mapping[str, Shape], given: str | None, argument: str, usual: tuple[str, ...]) -> str:
    if given is not None:
        if given not in found:
            raise UsageError(f"{path} has no array {given!r}; it has {', '.join(found)}{nearest(given, found)}")
        return given
    for name in usual:
        if name in found:
            return name
    raise UsageError(f"{path} has arrays {', '.join(found)}; which holds {argument}? {argument}=NAME says it")


def _headers(file: Path) -> dict[str, Shape]:
    """The arrays of a file. Raises UsageError for what is none, or holds Python objects."""
    found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    start = stream.read(8)
                    if start[:6] != b"\x93NUMPY":
                        raise ValueError(f"{name} is no array")
                    width = 2 if start[6] == 1 else 4
                    (length,) = struct.unpack("<H" if width == 2 else "<I", stream.read(width))
                    header = ast.literal_eval(stream.read(length).decode("latin-1"))
                    found[name.removesuffix(".npy")] = Shape(dtype=str(header["descr"]), axes=tuple(header["shape"]))
    except (OSError, ValueError, SyntaxError, KeyError, struct.error, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is not a file of numpy's savez: {error}") from error
    pickled = [name for name, shape in found.items() if "O" in shape.dtype]
    if pickled:
        raise UsageError(f"{file}: array {pickled[0]} holds Python objects, which are not read; save numbers")
    return found
