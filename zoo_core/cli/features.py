"""Writes files of features row by row: a matrix for numpy with a file of ids beside it, or a Parquet table with both.

A file is written under a temporary name and renamed at the end, so a file with the final name is always complete.
Memory does not grow with the number of rows.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zoo_core._process.atomic_files import fresh_name, move_into_place
from zoo_core.errors import AccessError, UsageError, ZooError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FeatureFile", "check_out", "open_features"]

GROUP_BYTES = 2**24  # size of the features in one row group of a Parquet file
FORMATS = (".npy", ".parquet")
IDS = ".ids.txt"  # suffix of the file of ids, which lies beside FILE.npy


class FeatureFile(Protocol):
    """A file of features that takes one row after the other. If no row is added, no file is written."""

    def __enter__(self) -> FeatureFile: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def add(self, item: str, features_D: Tensor) -> None:
        """Adds the row of an item. features_D: float32 [D] on the CPU, with the same D for all rows."""
        ...


def check_out(out: Path) -> None:
    """Checks that a file of features can be written, before anything is computed, and makes its folder.

    Raises UsageError for a bad name, AccessError if the folder cannot be made, and ZooError if pyarrow is missing.
    """
    if out.suffix not in FORMATS:
        raise UsageError(f"--out {out}: a file of features ends in {' or '.join(FORMATS)}")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file in it, {out / 'features'}{out.suffix}")
    if out.suffix == ".parquet":
        _pyarrow("pyarrow")
    elif os.path.lexists(out.with_suffix(IDS)) and not _is_pair(out, out.with_suffix(IDS)):
        raise UsageError(f"{out.with_suffix(IDS)} is not the ids of {out.name}; remove it, or give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AccessError(f"{out.parent} cannot be made ({error.strerror}); give --out another folder") from error


def _is_pair(out: Path, ids: Path) -> bool:
    """Whether two files look like the result of an earlier call: a matrix, and one line of ids for each of its rows."""
    try:
        with ids.open("rb") as lines:
            return len(np.load(out, mmap_mode="r")) == sum(1 for _ in lines)
    except (OSError, ValueError, TypeError, EOFError):
        return False


def open_features(out: Path) -> FeatureFile:
    """The writer for a file that `check_out` has accepted."""
    return _Parquet(out) if out.suffix == ".parquet" else _Npy(out)


class _Npy:
    """Writes a float32 matrix [N, D] to FILE.npy, and the id of each row on its own line to FILE.ids.txt.

    numpy's header has room for any number of rows (numpy/lib/_format_impl.py, GROWTH_AXIS_MAX_DIGITS), so the header
    is written again with the final number at the end.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.ids = out, out.with_suffix(IDS)
        self.num = self.dim = 0
        self._fresh = {path: Path(fresh_name(path)) for path in (self.ids, self.out)}

    def __enter__(self) -> _Npy:
        self._rows = self._fresh[self.out].open("wb")
        self._names = self._fresh[self.ids].open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
        return self

    def add(self, item: str, features_D: Tensor) -> None:
        if not self.num:
            self.dim = len(features_D)
            self._header()
        self._rows.write(features_D.numpy().astype("<f4", copy=False).tobytes())
        self._names.write(item.replace("\r", "\\r").replace("\n", "\\n") + "\n")
        self.num += 1

    def _header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.num, self.dim)}
        np.lib.format.write_array_header_1_0(self._rows, header)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._rows, self._names:
            if self.num:
                self._rows.seek(0)
                self._header()
        for path, fresh in self._fresh.items():
            _settle(fresh, path, whole=kind is None and self.num > 0)


class _Parquet:
    """Writes a Parquet table with a text column `item` and a column `features` of lists of D float32."""

    def __init__(self, out: Path) -> None:
        self.out, self._fresh = out, Path(fresh_name(out))
        self._arrow, self._parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
        self._writer: Any = None
        self._items: list[str] = []
        self._rows: list[Any] = []

    def __enter__(self) -> _Parquet:
        return self

    def add(self, item: str, features_D: Tensor) -> None:
        self._items.append(item.encode("utf-8", "backslashreplace").decode())
        self._rows.append(features_D.numpy())
        if len(self._rows) * self._rows[0].nbytes >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        arrow = self._arrow
        matrix = np.stack(self._rows).astype(np.float32, copy=False)
        kind = arrow.list_(arrow.float32(), matrix.shape[1])
        schema = arrow.schema([("item", arrow.string()), ("features", kind)])
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._fresh, schema)
        features = arrow.FixedSizeListArray.from_arrays(arrow.array(matrix.reshape(-1)), matrix.shape[1])
        self._writer.write_table(arrow.table([arrow.array(self._items, arrow.string()), features], schema=schema))
        self._items, self._rows = [], []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._write()
        if self._writer is not None:
            self._writer.close()
            _settle(self._fresh, self.out, whole=kind is None)


def _settle(fresh: Path, path: Path, *, whole: bool) -> None:
    """Renames a temporary file to its final path if it is whole, and removes it otherwise."""
    if whole:
        move_into_place(fresh, path)
    else:
        fresh.unlink(missing_ok=True)


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ZooError(
            f"a Parquet file needs pyarrow, which is not installed ({error}); `pip install pyarrow`, or write .npy"
        ) from error
