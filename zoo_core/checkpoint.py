"""The states of a fit under way, on disk, from which an interrupted one goes on: safetensors and JSON, no pickle.

A state is one JSON file, NUMBER.json, written last and moved into place: what it stands for, its numbers, and the file,
size and sha256 of each part, a group of tensors. A part that has not changed since the state before is not written
again. The last two states stay, so a kill at any instant, or a damaged file, costs one of them at most.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from zoo_core.errors import AccessError, IntegrityError, UsageError, ZooError
from zoo_core.weights import read_tensors, sha256_of

__all__ = ["UNFINISHED", "Offer", "State", "Unfinished", "standing"]

UNFINISHED = "unfinished"  # the folder of the states, in that of the run
FORMAT = 1
KEPT = 2  # states
SAVE_SECONDS = 10.0  # at least so long between states: what an interruption may cost beside the epoch under way
SHARE = 20.0  # at least so many times what writing the last state took, so that writing costs 5 % at most

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class State:
    """Where something under way stands: numbers that JSON can hold, and tensors in named parts.

    A part that is the same mapping as in the state before is taken to be unchanged.
    """

    values: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


Offer = Callable[[Callable[[], State]], None]  # is told how to make a state, and makes it when one is due


class Unfinished:
    """The folder that holds the states of one fit; it is there while the fit is not finished.

    identity: what the fit is, as JSON; a state of another is refused. state: what `begin` found to go on from.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._identity = json.loads(json.dumps(identity))
        self.state: State | None = None
        self._number = 0
        self._written: dict[str, tuple[Mapping[str, Tensor], dict[str, Any]]] = {}  # parts of the last state, with rows
        self._free_at = time.monotonic() + SAVE_SECONDS

    def begin(self) -> None:
        """Makes the folder, or reads the last whole state of one that is there.

        A state that is damaged is passed over, with a warning, for the one before it. Raises UsageError for a state of
        another fit, IntegrityError where there are states and none is whole.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            files = sorted(self.folder.glob("*.json"), reverse=True)
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
            self.state = State(values=table["values"], parts=parts)
            return
        if problems:
            raise IntegrityError(f"{problems[0]}; remove {self.folder} to start anew")

    def offer(self, make: Callable[[], State]) -> None:
        """Stores the state that `make` gives, if it is time for one."""
        if time.monotonic() >= self._free_at:
            started = time.monotonic()
            self._save(make())
            took = time.monotonic() - started
            self._free_at = time.monotonic() + max(SAVE_SECONDS, SHARE * took)

    def finish(self) -> None:
        """Removes the folder: what it was for is stored. It vanishes in one step, and is emptied then."""
        gone = self.folder.with_name(f".{self.folder.name}-done")
        shutil.rmtree(gone, ignore_errors=True)
        try:
            self.folder.rename(gone)
        except OSError as error:
            raise _explained(error, self.folder) from error
        shutil.rmtree(gone, ignore_errors=True)

    def leave(self) -> None:
        """Removes the folder if it holds nothing to go on from."""
        if not any(self.folder.glob("*.json")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self, state: State) -> None:
        number = self._number + 1
        written = {}
        try:
            for name, tensors in state.parts.items():
                before = self._written.get(name)
                row = before[1] if before is not None and before[0] is tensors else self._write(number, name, tensors)
                written[name] = (tensors, row)
            rows = {name: row for name, (_, row) in written.items()}
            table = {"format": FORMAT, "identity": self._identity, "values": state.values, "parts": rows}
            fresh = self.folder / "state.new"
            fresh.write_text(json.dumps(table) + "\n", encoding="utf-8")
            _sync(fresh)
            fresh.rename(self.folder / f"{number:06}.json")
            _sync(self.folder)
        except OSError as error:
            raise _explained(error, self.folder) from error
        self._number, self._written = number, written
        self._clear()

    def _write(self, number: int, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        file = self.folder / f"{number:06}-{name}.safetensors"
        save_file(_apart(tensors), file)
        _sync(file)
        return {"file": file.name, "sha256": sha256_of(file), "size": file.stat().st_size}

    def _clear(self) -> None:
        """Removes all but the last states and what they name."""
        states = sorted(self.folder.glob("*.json"), reverse=True)
        wanted = {file.name for file in states[:KEPT]}
        for file in states[:KEPT]:
            try:
                wanted |= {row["file"] for row in json.loads(file.read_text(encoding="utf-8"))["parts"].values()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # a damaged one before the one just written holds nothing
        for file in sorted(self.folder.iterdir(), key=lambda file: file.suffix == ".safetensors"):  # the JSON first
            if file.name not in wanted:
                file.unlink(missing_ok=True)

    def _table(self, file: Path) -> dict[str, Any]:
        """A state's JSON. Raises IntegrityError for a damaged one, UsageError for one of another fit."""
        try:
            table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found, identity = table["format"], dict(table["identity"])
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


def standing(folder: Path) -> str | None:
    """Where the fit of a folder of states stands, in words for people; None where there is no state."""
    for file in sorted(folder.glob("*.json"), reverse=True):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))["values"]
            num_done, num = values["num_done"], len(values["candidates"])
            epochs = len(values["fit"]["losses"]) if values["fit"] else 0
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # what is damaged is told by who goes on from it
        if num_done == num:
            return "every learning rate is done"
        return f"learning rate {num_done + 1} of {num}, after epoch {epochs}"
    return None


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU; of those that share memory, which the format does not express, a copy each."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        start = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if start in seen else plain
        seen.add(start)
    return found


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What a person changed, in words; the digest where it is nothing that has a name."""
    changed = [
        f"{name} {then.get(name)} there, {now.get(name)} here"
        for name in sorted({*then, *now} - {"digest"})
        if then.get(name) != now.get(name)
    ]
    return "; ".join(changed) or "the files or the recipes behind its names have changed since"


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, path: Path) -> ZooError:
    return AccessError(f"{path} cannot be used ({error.strerror}); give --out another folder, or mend its rights")
