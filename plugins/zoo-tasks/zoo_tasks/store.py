"""Arrow files below the cache folder, written by `datasets` and mapped into memory: nothing is read twice.

A file is called by the digest of all that decides its content, so a moved folder finds it again, and any change makes
another one. `datasets.Dataset.from_file` opens them too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, overload

from zoo_core.errors import AccessError
from zoo_core.toolkit.files import cache_path, replacing

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Names", "key_of", "opened", "put", "write"]

BATCH = 1000  # rows that are in memory while a file is written


def key_of(*parts: object) -> str:
    """128 bits, in hex, that depend on every part."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def write(key: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, *, batch: int = BATCH) -> Path:
    """The Arrow file of a key, written whole from its rows unless it is there already."""
    path = cache_path("datasets", f"{key}.arrow")
    if path.exists():
        return path
    import datasets  # two seconds, which only the first look at a set of files need cost
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    features = datasets.Features.from_arrow_schema(schema)
    with _write_errors(path), replacing(path) as fresh, ArrowWriter(path=fresh, features=features) as writer:
        held: list[Mapping[str, Any]] = []
        for row in rows:
            held.append(row)
            if len(held) == batch:
                writer.write_table(pa.Table.from_pylist(held, schema=schema))
                held = []
        writer.write_table(pa.Table.from_pylist(held, schema=schema))
        writer.finalize()
    return path


def put(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Has `write` make a file below the cache folder, which appears whole, however many processes make it at once."""
    with _write_errors(path), replacing(path) as fresh, open(fresh, "wb") as stream:  # noqa: PTH123 - it is text
        write(stream)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AccessError(f"{path} cannot be written ({error.strerror}); set ZOO_CACHE to another folder") from error


@cache
def _mapped(file: str, pid: int) -> pa.Table:
    """The table of a file; pid: a forked process maps it anew."""
    import pyarrow as pa

    with pa.memory_map(file) as source:
        return pa.ipc.open_stream(source).read_all()


def opened(file: str) -> pa.Table:
    """The table of an Arrow file, mapped into memory once for each process."""
    return _mapped(file, os.getpid())


class Names(Sequence[str]):
    """Many texts in one piece of memory; a list of a million of them would pickle slowly into each worker."""

    def __init__(self, texts: Sequence[str]) -> None:
        import pyarrow as pa

        self._array: Any = pa.array(list(texts), pa.large_string())

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        found: str | list[str]
        found = self._array[position].to_pylist() if isinstance(position, slice) else self._array[position].as_py()
        return found
