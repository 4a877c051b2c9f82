"""Snapshots of a fit on disk, from which an interrupted fit continues: safetensors and JSON, no pickle.

A snapshot is one JSON file, NUMBER.json, which is written last and moved into place. It names the fit, holds its
numbers, and lists the file, size and sha256 of each part, a group of tensors. A part that has not changed since the
last snapshot is not written again. The last two snapshots are kept, so a kill at any time, or a damaged file, costs at
most one.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo_core._process.atomic_files import replacing, write_whole
from zoo_core.contracts.old_words import current_text
from zoo_core.errors import AccessError, IntegrityError, UsageError, ZooError
from zoo_core.files.hashing import sha256_of
from zoo_core.toolkit.weights import read_tensors

__all__ = ["SaveSnapshot", "Snapshot", "UnfinishedFit", "laid_out_like", "standing"]

STATE = re.compile(r"\d{6}\.json")
WRITTEN = re.compile(r"\d{6}(\.json|-[a-z-]+\.safetensors)(\.[0-9a-f]{8})?")
FORMAT = 1
KEPT = 2  # states
SAVE_SECONDS = 10.0  # at least so long between states: what an interruption may cost beside the epoch under way
SHARE = 20.0  # at least so many times what writing the last state took, so that writing costs 5 % at most

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of something unfinished: numbers that JSON can hold, and tensors in named parts.

    A part that is the same mapping object as in the last snapshot is taken to be unchanged.
    """

    values: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


SaveSnapshot = Callable[
    [Callable[[], Snapshot]], None
]  # called with a function that makes a snapshot; calls it if one is due


class UnfinishedFit:
    """The folder that holds the snapshots of one fit. It exists while the fit is not finished.

    identity: what the fit is, as JSON; a snapshot of another fit is refused. state: the snapshot that `begin` found.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], on_lost: Callable[[str], None] | None = None) -> None:
        """on_lost: is told of a snapshot that cannot be stored, or would take more than half of what is free, and
        nothing is raised then.
        """
        self.folder, self._on_lost = folder, on_lost
        self._identity = json.loads(json.dumps(identity))
        self.state: Snapshot | None = None
        self._number = 0
        self._written: dict[str, tuple[Mapping[str, Tensor], dict[str, Any]]] = {}  # parts of the last state, with rows
        self._free_at = time.monotonic() + SAVE_SECONDS

    def begin(self) -> None:
        """Creates the folder, or reads the last intact snapshot in it.

        A damaged snapshot is skipped, with a warning, in favour of the one before it. Raises UsageError for a snapshot
        of another fit and for a folder that is a link, IntegrityError if there are snapshots and none is intact.
        """
        if self.folder.is_symlink():
            raise UsageError(
                f"{self.folder} is a link to {self.folder.readlink()}, and states are not removed through one; "
                "remove the link, or give --out another folder"
            )
        try:
            self.folder.mkdir(exist_ok=True)
            files = _states(self.folder)
        except OSError as error:
            raise _explained(error, self.folder) from error
        problems = []
        for file in files:
            try:
                table = self._table(file)
                parts = {name: self._part(row) for name, row in table["parts"].items()}
            except IntegrityError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                _log.warning("%s; going on from the state before it", problem)
            self._number = int(files[0].stem)
            self._written = {name: (tensors, table["parts"][name]) for name, tensors in parts.items()}
            self.state = Snapshot(values=table["values"], parts=parts)
            return
        if problems:
            raise IntegrityError(f"{problems[0]}; remove {self.folder} to start anew")

    def holds_states(self) -> bool:
        """Whether there is any snapshot, intact or not and of whatever fit."""
        return bool(_states(self.folder))

    def save(self, state: Snapshot) -> None:
        """Saves a snapshot. Raises AccessError or ZooError if it cannot be stored and nobody wants to be told."""
        if self._on_lost is None:
            self._write_state(state)
            return
        try:
            needed = sum(x.nbytes for part in state.parts.values() for x in part.values())
            if needed > shutil.disk_usage(self.folder).free / 2:
                self._on_lost(f"the {needed:,} bytes of {self.folder} are more than half of the disk that is free")
            else:
                self._write_state(state)
        except (OSError, ZooError) as error:
            self._on_lost(str(error))

    def _write_state(self, state: Snapshot) -> None:
        number = self._number + 1
        written = {}
        try:
            for name, tensors in state.parts.items():
                before = self._written.get(name)
                row = before[1] if before is not None and before[0] is tensors else self._write(number, name, tensors)
                written[name] = (tensors, row)
            rows = {name: row for name, (_, row) in written.items()}
            table = {"format": FORMAT, "identity": self._identity, "values": state.values, "parts": rows}
            write_whole(self.folder / f"{number:06}.json", json.dumps(table) + "\n")
        except OSError as error:
            raise _explained(error, self.folder) from error
        self._number, self._written = number, written
        self._clear()

    def save_if_due(self, make: Callable[[], Snapshot]) -> None:
        """Saves the snapshot that `make` returns, if it is time for one."""
        if time.monotonic() >= self._free_at:
            started = time.monotonic()
            self.save(make())
            took = time.monotonic() - started
            self._free_at = time.monotonic() + max(SAVE_SECONDS, SHARE * took)

    def finish(self) -> None:
        """Removes the snapshots, the last one first, because the result is stored, and the folder if it is then empty.

        After a kill in between, the fit continues from an earlier snapshot, or is finished.
        """
        try:
            self._remove(_written_in(self.folder))
        except OSError as error:
            raise _explained(error, self.folder) from error

    def leave(self) -> None:
        """Removes what was written if there is nothing to continue from, and the folder if nothing else is in it."""
        if not self.folder.is_symlink() and not self.holds_states():
            with suppress(OSError):
                self._remove(_written_in(self.folder))

    def _remove(self, files: Iterable[Path]) -> None:
        for file in files:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty, or has gone
            self.folder.rmdir()

    def _write(self, number: int, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        file = self.folder / f"{number:06}-{name}.safetensors"
        with replacing(file) as fresh:
            save_file(_apart(tensors), fresh)
        return {"file": file.name, "sha256": sha256_of(file), "size": file.stat().st_size}

    def _clear(self) -> None:
        """Removes what was written, except for the last snapshots and the files that they name."""
        states = _states(self.folder)
        wanted = {file.name for file in states[:KEPT]}
        for file in states[:KEPT]:
            try:
                wanted |= {row["file"] for row in json.loads(file.read_text(encoding="utf-8"))["parts"].values()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # a damaged one before the one just written holds nothing
        for file in _written_in(self.folder):
            if file.name not in wanted:
                file.unlink(missing_ok=True)

    def _table(self, file: Path) -> dict[str, Any]:
        """The JSON of a snapshot. Raises IntegrityError if it is damaged, UsageError if it is of another fit."""
        try:
            table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found = table["format"]
            identity = {key: current_text(x) if isinstance(x, str) else x for key, x in table["identity"].items()}
            rows = [(str(row["file"]), int(row["size"]), str(row["sha256"])) for row in table["parts"].values()]
            whole = isinstance(table["values"], dict) and all(Path(name).name == name for name, _, _ in rows)
            int(file.stem)
        except OSError as error:
            raise _explained(error, file) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"{file} is damaged ({type(error).__name__})") from error
        if found != FORMAT:
            raise UsageError(
                f"{file} has format {found!r}, this zoo-core writes {FORMAT}; remove {self.folder} to start anew"
            )
        if not whole:
            raise IntegrityError(f"{file} is damaged")
        if identity != self._identity:
            raise UsageError(
                f"{self.folder} is of another fit ({_difference(identity, self._identity)}); "
                "repeat its command to go on with it, remove it to start anew, or give --out another folder"
            )
        return table

    def _part(self, row: Mapping[str, Any]) -> dict[str, Tensor]:
        file = self.folder / row["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != row["size"]:
            found = "is missing" if size is None else f"has {size} bytes of {row['size']}"
            raise IntegrityError(f"{file} {found}")
        if sha256_of(file) != row["sha256"]:
            raise IntegrityError(f"{file} is damaged: its sha256 is another")
        return {name: tensor.clone() for name, tensor in read_tensors(file).items()}  # the file may go


def laid_out_like(own: Tensor, value: Tensor) -> Tensor:
    """The value in memory of its own, on the device and in the memory order of a tensor with the same shape.

    A file holds tensors in the order of their axes. Code that walks through memory may pair or add up other elements if
    equal values lie in another order.
    """
    with torch.no_grad():
        return torch.empty_like(own, dtype=value.dtype, requires_grad=False).copy_(value)


def standing(folder: Path) -> str | None:
    """The progress of an unfinished fit, in words; None if there is no snapshot."""
    for file in _states(folder):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))["values"]
            num_done, num = values["num_done"], len(values.get("running", values["candidates"]))
            epochs = len(values["fit"]["losses"]) if values["fit"] else 0
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # what is damaged is told by who goes on from it
        if num_done == num:
            return "every learning rate is done"
        return f"learning rate {num_done + 1} of {num}, after epoch {epochs}"
    return None


def _states(folder: Path) -> list[Path]:
    """The snapshots in a folder, the last one first."""
    files = [file for file in folder.glob("*.json") if STATE.fullmatch(file.name)]
    return sorted(files, key=lambda file: int(file.stem), reverse=True)


def _written_in(folder: Path) -> list[Path]:
    """The snapshots in a folder, the last one first, and then every other file with a name that this module gives."""
    states = _states(folder)
    return states + [file for file in folder.iterdir() if WRITTEN.fullmatch(file.name) and file not in states]


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU. Those that share memory, which the format cannot express, are copied."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        start = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if start in seen else plain
        seen.add(start)
    return found


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, in words; the digest if it is nothing that has a name."""
    changed = [
        f"{name} {then.get(name)} there, {now.get(name)} here"
        for name in sorted({*then, *now} - {"digest", "contents"})
        if then.get(name) != now.get(name)
    ]
    held, found = then.get("contents", {}), now.get("contents", {})
    other = [name for name in found if name in held and held[name] != found[name]]
    if not changed and other:
        return f"the files or the recipe of {', '.join(other)} have changed since"
    return "; ".join(changed) or "the files or the recipes behind its names have changed since"


def _explained(error: OSError, path: Path) -> ZooError:
    return AccessError(f"{path} cannot be used ({error.strerror}); give --out another folder, or mend its rights")
