"""Stores results as one JSON object per line. Each is appended and synced, so a kill at any time loses no result."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, TypeAlias, get_args

from zoo_core._process.atomic_files import sync, write_whole
from zoo_core.contracts.old_words import current_text
from zoo_core.errors import AccessError, IntegrityError, NotFoundError, UsageError, ZooError
from zoo_core.run_layout import RESULTS

__all__ = ["UNMEASURED", "Result", "RunLock", "Status", "amend", "append", "find", "latest", "read", "repair"]

Status: TypeAlias = Literal["ok", "refused", "failed", "stopped"]
Json: TypeAlias = Mapping[str, Any]

LOCK_FILE = ".lock"
_SPELT = ("trial", "task", "digest")  # hold the text of a task; a refused trial has its text for a digest
_PID = re.compile(rb"\d*\n?")  # what a lock file holds
_START = b'{"trial":'  # of each line of results

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of one trial. None means that it was not measured, for the reason in `reason`.

    trial: canonical text of spec, task, budget and seed. digest: identity of the trial. record: name of the record or
    catalogue entry of the weights. chosen: what validation picked, with every candidate's validation score.
    num_parameters: of backbone and head. training, inference: examples_per_second, spread (interquartile range over
    median), batch_size, precision, repeats. coverage: what the weights file filled. created_at: UTC, ISO 8601.
    backbone: without its `weights` argument. adapters: joined with `+`. weights: pretrained, random, or
    `as built` where nothing says that the backbone was pre-trained. unpublished: sha256 of each plugin file that parts
    come from, by the file's name. sources: of each part that was made from local files a digest of what they held, by
    its key in the lock; None in a row of an earlier version. superseded: why the row no longer counts, None if it does.
    higher_is_better: of two scores the larger is the better one; of metrics of zoo-core their name says it.
    teachers: outputs of teachers that were made and those that were read where they are stored (saved), and the seconds
    of making; None without a teacher.
    shared: the group of trials that it ran in, their number (size), how (heads: its rates and seeds trained together,
    features: on features made once, rows: together with the adapters, alone: as if there were no others, for the
    reason), the seconds of its own fit and its share of those in which features were made. step_seconds: of one step of
    all rates and seeds, together and alone, where it was measured. None if it was not run, or failed in its group.
    stopped: of a trial that halving stopped by validation: the rung, from 1, its epochs, the score there, the reason.
    rungs: for each rung that a trial reached its epochs, the validation score of its best candidate, and the
    learning_rate of that one; None without halving. work: example passes: all of every epoch and learning rate, those
    trained, and those in which the backbone ran for it (passed). after_seconds: how long the bench had run when the row
    was stored, earlier calls included. All three are None where nobody measured them.
    """

    trial: str
    digest: str
    record: str | None
    status: Status
    reason: str | None
    metric: str
    score: float | None
    split: str
    num_examples: int
    chosen: Json | None
    num_trainable: int | None
    num_parameters: int | None
    train_seconds: float | None
    training: Json | None
    inference: Json | None
    peak_memory_bytes: int | None
    coverage: Any
    versions: Json
    device: str
    threads: int
    created_at: str
    backbone: str
    adapters: str
    head: str
    task: str
    seed: int
    weights: str
    unpublished: Json = field(default_factory=dict)
    sources: Json | None = None
    superseded: str | None = None
    teachers: Json | None = None
    shared: Json | None = None
    higher_is_better: bool = True
    stopped: Json | None = None
    rungs: Sequence[Json] | None = None
    work: Json | None = None
    after_seconds: float | None = None


_MEASURED = (
    "score",
    "chosen",
    "num_trainable",
    "num_parameters",
    "train_seconds",
    "training",
    "inference",
    "peak_memory_bytes",
    "coverage",
)
UNMEASURED: Mapping[str, Any] = MappingProxyType(  # of a trial that did not come to its end
    {"split": "test", "num_examples": 0, **dict.fromkeys(_MEASURED)}
)


def append(path: Path, result: Result) -> None:
    """Appends one line and waits until it is on disk. A torn line of a killed process is moved aside first.

    Nested numbers that are not finite become null, which JSON can hold. The score must be finite.
    Raises AccessError or ZooError (a full disk) if it cannot be written. Nothing that was there is lost.
    """
    assert result.score is None or math.isfinite(result.score), (
        "a score that is not finite is a failure with its reason"
    )
    line = json.dumps(_finite(asdict(result)), separators=(",", ":"), allow_nan=False).encode() + b"\n"
    try:
        is_new = not path.exists()
        if not is_new:
            repair(path)
        with path.open("ab", buffering=0) as file:
            written = 0
            while written < len(line):
                written += file.write(line[written:]) or 0
            os.fsync(file.fileno())
        if is_new:
            sync(path.parent)
    except OSError as error:
        raise _explained(error, path, "written") from error


def read(path: Path) -> list[Result]:
    """Every result, in the order of writing. A torn last line is skipped with a warning and left where it is.

    It may be a line that another process is writing. Only the owner of the run repairs it, by `append` and `RunLock`.
    Raises NotFoundError, AccessError, and IntegrityError that names the damaged line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"no results in {path}; `zoo bench --out {path.parent}` makes some") from None
    except OSError as error:
        raise _explained(error, path, "read") from error
    lines = content.split(b"\n")
    if lines[-1] and _is_torn(lines[-1]):
        _log.warning("%s: the last line is torn, its writer was killed or is still writing; left out", path)
        lines.pop()
    results = (_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip())
    return list(results)


def repair(path: Path) -> None:
    """Moves a torn last line to `NAME.torn` beside the file, so that the next line is a line of its own.

    Only for the process that owns the run. Raises OSError, and IntegrityError for a file that zoo did not write.
    """
    with path.open("r+b") as file:
        content = _last_line(file)
        if not content:
            return
        if not _is_ours(file):
            raise IntegrityError(f"{path} holds no results of zoo, so it is left as it is; give --out another folder")
        if not _is_torn(content):  # whole but for its end
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            aside = path.with_name(path.name + ".torn")
            with aside.open("ab") as torn:
                torn.write(content + b"\n")
                torn.flush()
                os.fsync(torn.fileno())
            file.truncate(file.seek(0, os.SEEK_END) - len(content))
            _log.warning("%s: a torn last line was moved to %s; its trial runs again", path, aside.name)
        file.flush()
        os.fsync(file.fileno())


def amend(path: Path, changes: Mapping[int, Json]) -> None:
    """Sets keys of some rows in one step, by their position in what `read` returns. Everything else stays as written.

    Only for the process that owns the run. Raises AccessError or ZooError as `append` does.
    """
    try:
        lines = path.read_bytes().split(b"\n")
        rows = [position for position, line in enumerate(lines) if line.strip()]
        for position, change in changes.items():
            row = json.loads(lines[rows[position]]) | change
            lines[rows[position]] = json.dumps(row, separators=(",", ":")).encode()
        write_whole(path, b"\n".join(lines))
    except OSError as error:
        raise _explained(error, path, "written") from error


def find(results: Iterable[Result], digest: str) -> Result | None:
    """The result that counts for a trial: the last one that is ok, or else the last one."""
    return latest(result for result in results if result.digest == digest).get(digest)


def latest(results: Iterable[Result]) -> dict[str, Result]:
    """For each digest, the result that counts: the last one that is ok, or else the last one.

    A success may follow a failure when a trial is run again. A failure never replaces a success.
    """
    standing: dict[str, Result] = {}
    for result in results:
        known = standing.get(result.digest)
        if known is None or known.status != "ok" or result.status == "ok":
            standing[result.digest] = result
    return standing


class RunLock:
    """Held while a process writes to the folder of a run, so that two of them never mix. A kill releases it.

    Entering repairs what a killed process left. Raises AccessError that names the process if another one holds it.
    The lock belongs to the process (fcntl), so worker processes do not keep it when their parent is killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = -1

    def __enter__(self) -> RunLock:
        path = self._folder / LOCK_FILE
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:
            raise UsageError(f"no folder {self._folder}; make it, or give --out another one") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UsageError(f"{path} is a link, and zoo writes through none; remove it") from error
            raise _explained(error, path, "written") from error
        if not _PID.fullmatch(os.pread(self._file, 64, 0)):
            self._release()
            raise UsageError(f"{path} is not the lock of a run, which holds a number; give --out another folder")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip()
            self._release()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise _explained(error, path, "locked") from error
            raise AccessError(
                f"{self._folder} is being written by process {holder or 'of another machine'}; "
                f"wait for it, stop it, or give --out another folder"
            ) from None
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())
        results = self._folder / RESULTS
        for file in (results, results.with_name(f"{RESULTS}.torn")):
            if file.is_symlink():
                self._release()
                raise UsageError(f"{file} is a link, and zoo writes through none; remove it")
        if results.exists():
            try:
                repair(results)
            except OSError as error:
                self._release()
                raise _explained(error, results, "written") from error
            except IntegrityError:
                self._release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        os.close(self._file)
        self._file = -1


def _parsed(line: bytes, place: str) -> Result:
    """The result in a line. Keys of a later version are ignored, and a missing key is damage."""
    mend = "restore the file, or move the line out of it; its trial then runs again"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise IntegrityError(f"{place} is damaged ({error}); {mend}") from None
    if not isinstance(row, dict):
        raise IntegrityError(f"{place} is damaged (no JSON object); {mend}")
    known = {each.name for each in fields(Result)}
    needed = (each.name for each in fields(Result) if each.default is MISSING and each.default_factory is MISSING)
    missing = sorted(name for name in needed if name not in row)
    if missing:
        raise IntegrityError(f"{place} lacks {', '.join(missing)}; {mend}")
    wrong = [name for name, check in _TYPES.items() if not check(row[name])]
    wrong += ["unpublished"] if not isinstance(row.get("unpublished", {}), dict) else []
    wrong += ["sources"] if not isinstance(row.get("sources"), dict | None) else []
    wrong += ["higher_is_better"] if not isinstance(row.get("higher_is_better", True), bool) else []
    wrong += ["superseded"] if not isinstance(row.get("superseded"), str | None) else []
    wrong += [name for name in ("stopped", "work") if not isinstance(row.get(name), dict | None)]
    wrong += ["rungs"] if not isinstance(row.get("rungs"), list | None) else []
    wrong += ["after_seconds"] if not isinstance(row.get("after_seconds"), int | float | None) else []
    if wrong:
        raise IntegrityError(f"{place}: {wrong[0]} cannot be {row[wrong[0]]!r:.60}; {mend}")
    texts = {name: current_text(row[name]) for name in _SPELT}
    sources = None if row.get("sources") is None else {current_text(key): x for key, x in row["sources"].items()}
    return Result(**{name: value for name, value in row.items() if name in known} | texts | {"sources": sources})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(
        ("trial", "digest", "metric", "split", "backbone", "adapters", "head", "task", "weights"), _is_text
    ),
    "status": lambda value: value in get_args(Status),
    "score": lambda value: value is None or _is_number(value),
    "reason": lambda value: value is None or isinstance(value, str),
    "seed": lambda value: type(value) is int,
    **dict.fromkeys(
        ("num_trainable", "num_parameters", "train_seconds", "peak_memory_bytes"),
        lambda value: value is None or _is_number(value),
    ),
    **dict.fromkeys(("training", "inference", "chosen"), lambda value: value is None or isinstance(value, dict)),
}


def _is_torn(line: bytes) -> bool:
    try:
        return not isinstance(json.loads(line), dict)
    except ValueError:
        return True


def _is_ours(file: Any) -> bool:
    """Whether an open file begins as a result does, torn or whole."""
    file.seek(0)
    start = file.read(len(_START))
    return bool(_START.startswith(start))


def _last_line(file: Any) -> bytes:
    """What follows the last line end of an open file, read backwards in steps."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end > 0 and b"\n" not in tail:
        start = max(0, end - 65536)
        file.seek(start)
        tail = file.read(end - start) + tail
        end = start
    return bytes(tail.rpartition(b"\n")[2])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _explained(error: OSError, path: Path, verb: str) -> ZooError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UsageError(f"no folder {path.parent}; make it, or give --out another one")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ZooError(f"{path} cannot be {verb}: the disk is full; free some space and run the same command again")
    return AccessError(f"{path} cannot be {verb} ({error.strerror}); give --out another folder, or mend its rights")
