"""What models gave for the examples of a split, kept on disk by view, for whoever needs the same outputs again.

A view is one way in which every example may be seen, such as an augmentation in one epoch. Its name and the store's key
together say all that the outputs depend on. Nothing here knows what the model is for.

A store never stands in the way of what uses it: where it cannot be written, or may take no more space, it says so once,
goes on giving what it holds, and its user computes the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from zoo_core._process.atomic_files import write_whole
from zoo_core.data.row_files import DTYPES, Layout, RowFile
from zoo_core.registry.settings import cache_folder

__all__ = ["ROOM", "ModelOutputs", "Stored", "outputs_room"]

ROOM = "outputs"  # below the cache folder; files/cache.py knows the names of the files there
KEY = "key.json"
FOLDER, FILE = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{32}\.rows")
BUSY_SECONDS = 600.0  # a view that was used less long ago may be in use by another process, and is not removed
LOOK_SECONDS = 60.0  # how long an open view goes without a look whether it is still there, and a note that it is used
NUM_OPEN = 8  # views; another one is opened in less than a millisecond
GRANTS = 64  # the share of the budget that may be written between two looks at the room

Rows: TypeAlias = Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


def outputs_room() -> Path:
    """The folder of all stores. It need not exist."""
    return Path(cache_folder(), ROOM)


@dataclass(frozen=True)
class Stored:
    """What a store holds of the rows that it was asked for.

    is_held: bool [num]. outputs: of the held rows alone, in their order, each [held, ...] on the CPU; empty if no row
    is held.
    """

    is_held: Bools
    outputs: Mapping[str, Tensor]

    @property
    def missing(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The places, among the rows asked for, of those that are not held: int64 [num - held]."""
        return np.flatnonzero(~self.is_held)

    def completed(self, computed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All rows in the order asked for, on the device of what was computed; on the CPU if no row is missing.

        computed: outputs of the missing rows, in their order.
        """
        if not self.outputs:
            return dict(computed)
        if self.is_held.all():
            return dict(self.outputs)
        held, missing = (torch.from_numpy(np.flatnonzero(each)) for each in (self.is_held, ~self.is_held))
        whole = {}
        for name, rows in computed.items():
            whole[name] = rows.new_empty((len(self.is_held), *rows.shape[1:]))
            whole[name][missing.to(rows.device)] = rows
            whole[name][held.to(rows.device)] = self.outputs[name].to(rows.device)
        return whole


class _View(NamedTuple):
    """A file of the room. used_at: when it was last read or written, in s since 1970. num_bytes: on disk."""

    path: Path
    used_at: float
    num_bytes: int


class ModelOutputs:
    """The stored outputs of one model for the rows of one split, in each view.

    `read` decides which rows have to be computed: what it gives is what was written, bit for bit, whatever happened to
    the disk in between. `write` stores what was. Several processes may do both at once.

    A copy, such as a worker process of a loader is sent, is small and only reads.
    """

    def __init__(
        self,
        room: Path,
        key: Mapping[str, object],
        num_rows: int,
        *,
        max_bytes: int,
        on_full: Callable[[str], None],
    ) -> None:
        """The files are made at the first write.

        key: all that the outputs depend on besides view and row, as JSON. max_bytes: what all stores of the room may
        take on the disk; 0 turns this one off. on_full: is told, once, why nothing is written any more.
        """
        text = json.dumps({"key": key, "num_rows": num_rows}, sort_keys=True, indent=2)
        self.folder = room / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.num_rows = num_rows
        self._key_text = text
        self._max_bytes = max_bytes
        self._on_full: Callable[[str], None] | None = on_full if max_bytes else None  # None: nothing is written
        self._granted = 0  # bytes that may be written before the next look at the room
        self._files: dict[str, tuple[RowFile, float]] = {}  # by view, with the time of the last look

    def held(self, view: str, rows: Rows) -> Bools:
        """Which rows a view seems to hold, bool [num]: for forecasts. `read` may find that one of them is damaged."""
        index = self._checked(rows)
        try:
            file = self._file(view)
            return np.zeros(len(index), dtype=bool) if file is None else file.marked(index)
        except OSError:
            return np.zeros(len(index), dtype=bool)

    def read(self, view: str, rows: Rows) -> Stored:
        """What a view holds of some rows. What cannot be read, for whatever reason, is not held."""
        index = self._checked(rows)
        nothing = Stored(np.zeros(len(index), dtype=bool), {})
        try:
            file = self._file(view)
            if file is None:
                return nothing
            is_held, found = file.read(index)
        except OSError:
            return nothing
        if not len(found):
            return nothing
        names = found.dtype.names or ()
        return Stored(is_held, {name: torch.from_numpy(np.array(found[name], order="C")) for name in names})

    def write(self, view: str, rows: Rows, outputs: Mapping[str, Tensor]) -> None:
        """Stores rows of a view. outputs: each [num, ...]; names, shapes and dtypes are those of its first write.

        float64, float32, float16, int64 and bool are stored, bit for bit.
        """
        index = self._checked(rows)
        if self._on_full is None or not len(index):
            return
        arrays = {name: outputs[name].detach().cpu().numpy() for name in sorted(outputs)}
        for name, array in arrays.items():
            assert array.dtype.name in DTYPES, f"{name} is {array.dtype}; stored are {', '.join(DTYPES)}"
            assert len(array) == len(index), f"{name} has {len(array)} rows of {len(index)}"
        try:
            file = self._writable(view, arrays)
            if self._may_write(len(index) * file.layout.row.itemsize):
                file.write(index, arrays)
        except OSError as error:
            self._stop(
                f"{self.folder} cannot be written ({error.strerror}), so outputs of models are stored no more and are "
                "computed each time; free space or mend its rights, or set ZOO_CACHE to another folder"
            )

    def discard(self) -> None:
        """Removes all that is stored, of every view: it turned out to be of something else than the key says."""
        self.close()
        for view in _views(self.folder.parent):
            if view.path.parent == self.folder:
                _removed(view)

    def close(self) -> None:
        """Closes the files; the next call opens them again."""
        for file, _ in self._files.values():
            file.close()
        self._files.clear()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_on_full": None, "_granted": 0, "_files": {}, "_key_text": ""}

    def _checked(self, rows: Rows) -> np.ndarray[Any, np.dtype[np.int64]]:
        index = np.asarray(rows, dtype=np.int64)
        assert index.ndim == 1, f"rows are [num], found {list(index.shape)}"
        assert not len(index) or (index.min() >= 0 and index.max() < self.num_rows), f"rows are of {self.num_rows}"
        return index

    # --- files --------------------------------------------------------------------------------------------------------

    def _path(self, view: str) -> Path:
        return self.folder / f"{hashlib.sha256(view.encode()).hexdigest()[:32]}.rows"

    def _title(self, view: str) -> str:
        return f"{self.folder.name} {view}"

    def _file(self, view: str) -> RowFile | None:
        """The file of a view; None if there is none, or the store is turned off."""
        if not self._max_bytes:
            return None
        path, now = self._path(view), time.monotonic()
        file, looked_at = self._files.pop(view, (None, 0.0))
        if file is not None and now - looked_at > LOOK_SECONDS:
            looked_at = now
            if file.is_at(path):
                _note_use(path)
            else:  # somebody removed it, and what is written there helps nobody
                file.close()
                file = None
        if file is None:
            file, looked_at = RowFile.existing(path, self._title(view), self.num_rows), now
            if file is None:
                return None
            _note_use(path)
        self._keep(view, file, looked_at)
        return file

    def _writable(self, view: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> RowFile:
        """The file of a view, made if there is none. Raises OSError."""
        own = tuple((name, array.dtype.name, array.shape[1:]) for name, array in arrays.items())
        layout = Layout(self._title(view), self.num_rows, own)
        file = self._file(view)
        if file is None:
            file = self._made(self._path(view), layout)
            self._keep(view, file, time.monotonic())
        assert file.layout == layout, f"view {view!r} holds {file.layout.arrays}, given {own}"
        return file

    def _made(self, path: Path, layout: Layout) -> RowFile:
        for _ in range(3):  # another process may remove the folder, which is empty until then
            with suppress(FileNotFoundError):
                self.folder.mkdir(parents=True, exist_ok=True)
                if not (self.folder / KEY).exists():
                    write_whole(self.folder / KEY, self._key_text)
                return RowFile.made(path, layout)
        return RowFile.made(path, layout)

    def _keep(self, view: str, file: RowFile, looked_at: float) -> None:
        self._files[view] = file, looked_at  # the last one of the dictionary is the last used
        while len(self._files) > NUM_OPEN:
            self._files.pop(next(iter(self._files)))[0].close()

    # --- the budget ---------------------------------------------------------------------------------------------------

    def _stop(self, reason: str) -> None:
        assert self._on_full is not None
        tell, self._on_full = self._on_full, None
        tell(reason)

    def _may_write(self, num_bytes: int) -> bool:
        """Whether so many bytes fit into the budget, for which views of other stores may go. Stops writing if not."""
        if num_bytes > self._granted:
            grant = num_bytes + self._max_bytes // GRANTS
            left = self._max_bytes - self._taken_after_removal(grant)
            if left < num_bytes:
                self._stop(
                    f"outputs of models may take {_size(self._max_bytes)} (outputs_bytes) and there is no more room in "
                    f"{self.folder.parent}, so they are stored no more and are computed each time; free it with "
                    "`zoo cache rm zoo:outputs`, or set ZOO_OUTPUTS_BYTES"
                )
                return False
            self._granted = min(left, grant)
        self._granted -= num_bytes
        return True

    def _taken_after_removal(self, wanted: int) -> int:
        """The bytes that the room takes, after views of other stores went if `wanted` bytes more exceed the budget."""
        room = self.folder.parent
        views = _views(room)
        taken = sum(view.num_bytes for view in views)
        if taken + wanted <= self._max_bytes or room.is_symlink():  # nothing is removed through a link
            return taken
        before = time.time() - BUSY_SECONDS
        idle = [view for view in views if view.path.parent != self.folder and view.used_at < before]
        for view in sorted(idle, key=lambda view: view.used_at):
            if taken + wanted <= self._max_bytes:
                break
            taken -= _removed(view)
        return taken


def _note_use(path: Path) -> None:
    with suppress(OSError):  # of a folder that may only be read nothing is ever removed
        os.utime(path)


def _views(room: Path) -> list[_View]:
    """Every file of rows in the room. Links are not followed."""
    found = []
    for folder in _entries(room, FOLDER):
        if folder.is_dir(follow_symlinks=False):
            for file in _entries(folder, FILE):
                with suppress(FileNotFoundError):
                    if file.is_file(follow_symlinks=False):
                        stat = file.stat(follow_symlinks=False)
                        found.append(_View(Path(file.path), stat.st_mtime, stat.st_blocks * 512))
    return found


def _entries(folder: Path | os.DirEntry[str], names: re.Pattern[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if names.fullmatch(entry.name)]
    except FileNotFoundError:
        return []


def _removed(view: _View) -> int:
    """Removes a view, and the folder of its store with its last one. Returns the bytes that this freed."""
    try:
        view.path.unlink()
    except FileNotFoundError:
        return view.num_bytes
    except OSError:
        return 0
    folder = view.path.parent
    if not any(FILE.fullmatch(path.name) for path in folder.iterdir()):
        with suppress(OSError):
            (folder / KEY).unlink()
        with suppress(OSError):  # whatever else lies there is not ours
            folder.rmdir()
    return view.num_bytes


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
