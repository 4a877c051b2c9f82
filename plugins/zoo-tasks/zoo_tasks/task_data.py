"""What a recipe's `open` gives: splits that read their examples from Arrow files or from the files themselves."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from zoo_core.contracts import Split, Target
from zoo_core.toolkit.pictures import open_picture
from zoo_core.toolkit.sounds import open_sound
from zoo_core.toolkit.table_encoding import Encoding
from zoo_tasks.media_check import FileCheck
from zoo_tasks.splitting import Division, Items
from zoo_tasks.store import Names, key_of, opened, write

__all__ = ["Data", "Examples", "Store", "pictures_store", "sounds_store", "split_data"]

PIXELS = (
    1  # raised when zoo_core.toolkit.pictures gives other pixels for the same file; tests/test_store.py holds to it
)
STORE_BYTES = 8 * 2**30  # of decoded pictures; a larger set is decoded anew each epoch
PICTURES = pa.schema({"height": pa.int32(), "width": pa.int32(), "channels": pa.int32(), "pixels": pa.large_binary()})

Form = Literal["file", "pixels", "sound", "text", "words", "row"]


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where examples are: an Arrow file, or the folder of media files. rows: of each example its row there.

    encoding: how a row of numbers was made of the cells of a table; None where it was not.
    """

    form: Form
    file: str
    rows: np.ndarray
    names: Sequence[str] = ()
    encoding: Encoding | None = None


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A split: the examples of a store, in its order."""

    store: Store
    ids: Sequence[str]
    targets: Any
    groups: Any | None

    @property
    def num(self) -> int:
        return len(self.ids)

    @property
    def encoding(self) -> Encoding | None:
        return self.store.encoding

    def raw(self, index: int) -> Any:
        return READ[self.store.form](self.store, int(index))


@dataclass(frozen=True)
class Data:
    """A task that was opened."""

    target: Target
    splits: Mapping[str, Split]


def split_data(items: Items, target: Target, division: Division, store: Store) -> Data:
    """The task's data: each split with its targets and groups."""
    groups = None if items.groups is None else np.asarray(items.groups)
    splits: dict[str, Split] = {}
    for name, index in division.splits.items():
        targets = items.targets
        own = [targets[int(i)] for i in index] if isinstance(targets, list) else targets[index]
        splits[name] = Examples(
            store=_part(store, index),
            ids=Names([items.ids[int(i)] for i in index]),
            targets=own,
            groups=None if groups is None else groups[index],
        )
    return Data(target, splits)


def _part(store: Store, index: np.ndarray) -> Store:
    names = Names([store.names[int(i)] for i in index]) if store.names else ()
    return replace(store, rows=store.rows[index], names=names)


def pictures_store(root: Path, names: Sequence[str], checks: Sequence[FileCheck]) -> Store:
    """The decoded pictures in an Arrow file, each content once; the files themselves where that would be too large."""
    first = {check.sha256: position for position, check in reversed(list(enumerate(checks)))}
    if sum(3 * checks[i].size[0] * checks[i].size[1] for i in first.values()) > STORE_BYTES:
        return Store(form="file", file=str(root), rows=np.arange(len(names)), names=names)
    order = sorted(first)
    row_of = {sha256: row for row, sha256 in enumerate(order)}
    key = key_of("pixels", PIXELS, order)
    file = write(key, _decoded(root, [names[first[sha256]] for sha256 in order]), PICTURES, batch=64)
    return Store(form="pixels", file=str(file), rows=np.array([row_of[check.sha256] for check in checks]))


def sounds_store(root: Path, names: Sequence[str], checks: Sequence[FileCheck]) -> Store:
    """Sounds are read from their files: to decode one takes a few thousandths of the time that it lasts, at most."""
    return Store(form="sound", file=str(root), rows=np.arange(len(names)), names=names)


def _decoded(root: Path, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for name in names:
        pixels = open_picture(root / name)
        height, width = pixels.shape[:2]
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        yield {"height": height, "width": width, "channels": channels, "pixels": pixels.tobytes()}


def _file(store: Store, index: int) -> Any:
    return str(Path(store.file, store.names[index]))


def _pixels(store: Store, index: int) -> Any:
    """uint8 [H, W] or [H, W, 3], a view of the mapped file."""
    sizes, starts, chunks = _pictures(store.file)
    row = int(store.rows[index])
    height, width, channels = sizes[row].tolist()
    chunk = bisect_right(starts, row) - 1
    offsets, pixels = chunks[chunk]
    first, last = offsets[row - starts[chunk] : row - starts[chunk] + 2].tolist()
    return pixels[first:last].reshape((height, width) if channels == 1 else (height, width, channels))


@cache
def _pictures(file: str) -> tuple[np.ndarray, list[int], list[tuple[np.ndarray, np.ndarray]]]:
    """Of a file of pictures their sizes int [N, 3], the first row of each chunk, and its offsets and bytes.

    By numpy, since asking Arrow for a value takes longer than copying a picture of 128 pixels.
    """
    table = opened(file)
    sizes = np.stack([table.column(name).to_numpy() for name in ("height", "width", "channels")], axis=1)
    column = table.column("pixels")
    starts = [0, *accumulate(len(chunk) for chunk in column.chunks[:-1])]
    chunks = []
    for chunk in column.chunks:
        _, offsets, pixels = chunk.buffers()
        own = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        chunks.append((own, np.frombuffer(pixels, dtype=np.uint8)))
    return sizes, starts, chunks


def _value(store: Store, index: int) -> Any:
    """A text, or a list of words."""
    return opened(store.file).column("x")[int(store.rows[index])].as_py()


def _row(store: Store, index: int) -> Any:
    """float32 [N]."""
    return np.array(_matrix(store.file)[int(store.rows[index])])


@cache
def _matrix(file: str) -> np.ndarray:
    found: np.ndarray = np.load(file, mmap_mode="r")
    return found


def _sound(store: Store, index: int) -> Any:
    """{"array": float32 [N], "sampling_rate": Hz}."""
    return open_sound(Path(store.file, store.names[index]))


READ: Mapping[Form, Callable[[Store, int], Any]] = {
    "file": _file,
    "pixels": _pixels,
    "row": _row,
    "sound": _sound,
    "text": _value,
    "words": _value,
}
