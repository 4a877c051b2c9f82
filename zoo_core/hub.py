"""Files that a plan names -> files on this machine at one commit, each of the size and sha256 that its pin says.

A pin is made once: the revision becomes a commit, and each file's sha256 is what the Hub tells (LFS), or that of the
content whose git sha1 the Hub tells. Everything after that is decided by hashes; who delivers the bytes does not
matter. What is here is used without a request, and pins are remembered for when the Hub cannot be asked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from huggingface_hub import constants

from zoo_core import remote
from zoo_core.bind import Bound
from zoo_core.catalog import catalog
from zoo_core.contracts import FileHash, Source, Weights
from zoo_core.downloads import right_file
from zoo_core.errors import IntegrityError, NotFoundError, ZooError, nearest
from zoo_core.index import load_index
from zoo_core.lock import Pinned, part_key, pins_of
from zoo_core.plan import Plan, needed, pinned
from zoo_core.remote import Listed, MissingError, UnreachableError
from zoo_core.verified import check, git_sha1_of, hash_of, read_memory, safe_name, write_memory

__all__ = ["Progress", "files_of", "folder", "pin", "pin_plan", "pin_plans"]

SHOWN = 3  # names in a message
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a download stands: the file under way, and the bytes of all files that are downloaded with it."""

    repository: str
    file: str
    done_bytes: int
    total_bytes: int


# --- what a source holds ---------------------------------------------------------------------------------------------


def pin(source: Source, *, offline: bool = False) -> Pinned:
    """The files of a source that a build may read, each with its hash, those of a repository at one commit.

    offline: send no request and take the pin that was made before; HF_HUB_OFFLINE=1 says so too, and a Hub that cannot
    be reached does with a warning.
    Raises NotFoundError (no such repository, revision or folder, no weights in it, or no pin and no way to make one),
    AccessError (gated, refused, not reached), IntegrityError (content that is not what the Hub tells of it).
    """
    return _pin(source, offline=offline, weights="pretrained")


def pin_plan(plan: Plan, *, frozen: bool = False) -> Plan:
    """The plan with every file pinned. frozen: nothing is asked, and what is not pinned yet raises NotFoundError."""
    return pin_plans([plan], frozen=frozen)[0]


def pin_plans(plans: Sequence[Plan], *, frozen: bool = False) -> list[Plan]:
    """The plans with every file pinned; what several of them name is looked up once, and so is of one commit."""
    open_keys = sorted({key for plan in plans for key in plan.unpinned})
    if frozen and open_keys:
        raise NotFoundError(f"not in the lock: {_some(open_keys)}; write it with zoo lock SPEC, or leave --frozen out")
    pins: dict[str, Pinned] = {}
    for plan in plans:
        for key in plan.unpinned:
            if key not in pins:
                random = plan.weights == "random" and key == part_key(plan.backbone)
                pins[key] = _pin(plan.sources[key], offline=False, weights="random" if random else "pretrained")
    return [pinned(plan, {key: pins[key] for key in plan.unpinned}) for plan in plans]


def _pin(source: Source, *, offline: bool, weights: Weights) -> Pinned:
    """weights: whether it is an error when the source has none."""
    if source.repository is None:
        return _pin_folder(source, weights)
    known = _recall(source, source.revision)
    forbidden = "offline" if offline else remote.offline_by()
    if known is None and forbidden:
        raise NotFoundError(
            f"{_called(source)} has not been pinned on this machine, and requests are forbidden ({forbidden}); "
            f"get it first where they are not: zoo fetch SPEC"
        )
    if known is not None and (forbidden or remote.is_commit(source.revision)):
        return _checked(source, known, weights)
    try:
        found = _pin_repository(source, source.repository, weights)
    except UnreachableError as error:
        if known is None:
            raise
        logger.warning("%s; going on with what %s was before: %s", error, _called(source), known.revision)
        found = known
    except MissingError as error:
        raise MissingError(f"{error}{nearest(source.repository, _known_repositories())}") from error
    return _checked(source, found, weights)


def _pin_repository(source: Source, repository: str, weights: Weights) -> Pinned:
    commit = remote.resolve(repository, source.revision)
    found = _recall(source, commit)
    if found is None:
        listed = remote.listing(repository, commit)
        _check_weights(source, listed, weights)
        files = {}
        for name in needed(source, "pretrained", listed):
            safe_name(name, repository)
            files[name] = _hash_listed(repository, commit, name, listed[name])
        found = Pinned(files=files, repository=repository, revision=commit)
    for revision in {source.revision, commit}:
        _remember(source, revision, found)
    return found


def _hash_listed(repository: str, commit: str, name: str, listed: Listed) -> FileHash:
    """The hash of a file of a repository; one that is not in LFS is small, and downloaded to learn it."""
    if listed.sha256 is not None:
        if not re.fullmatch(r"[0-9a-f]{64}", listed.sha256):
            raise IntegrityError(f"{repository} tells a sha256 {listed.sha256!r:.80} of {name}, which is none")
        return FileHash(sha256=listed.sha256, size=listed.size)

    def is_right(path: Path) -> None:
        if path.stat().st_size != listed.size or git_sha1_of(path) != listed.git_sha1:
            raise IntegrityError(f"{path} is not what {repository} tells of {name} (size {listed.size}, git sha1)")

    return hash_of(right_file(repository, commit, name, is_right))


def _pin_folder(source: Source, weights: Weights) -> Pinned:
    assert source.folder is not None, "a source is a repository or a folder"
    root = Path(source.folder).expanduser()
    if not root.is_dir():
        raise NotFoundError(f"no folder {source.folder}; files=DIR takes one that is laid out like a repository")
    names = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    _check_weights(source, names, weights)
    return Pinned(
        folder=source.folder, files={name: hash_of(names[name]) for name in needed(source, "pretrained", names)}
    )


def _checked(source: Source, found: Pinned, weights: Weights) -> Pinned:
    _check_weights(source, found.files, weights)
    return found


def _check_weights(source: Source, names: Iterable[str], weights: Weights) -> None:
    """Raises NotFoundError if pre-trained weights are wanted and none of the names is theirs."""
    names = sorted(names)
    is_there = any(fnmatchcase(name, pattern) for pattern in source.weights for name in names)
    if weights == "pretrained" and source.weights and not is_there:
        raise NotFoundError(
            f"{_called(source)} has no weights: no file fits {', '.join(source.weights)}{_pickles(names)}"
        )


def _pickles(names: Iterable[str]) -> str:
    found = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    return f"; it has {_some(found)}, which is read only with allow_pickle=true" if found else ""


# --- files on this machine -------------------------------------------------------------------------------------------


def folder(
    pin: Pinned,
    names: Sequence[str],
    *,
    offline: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """The folder that holds these files of a pin, each with its size and sha256 checked; names as in a repository.

    What is not in the Hugging Face cache is downloaded at the pin's commit; what is damaged there is removed and
    downloaded once more. progress: is told of each piece that arrives.
    Raises NotFoundError (not here, and offline; or a local file is gone), AccessError, IntegrityError (wrong content
    even so, or of a local folder), ZooError (no room).
    """
    assert names, "a folder for no files"
    for name in names:
        if name not in pin.files:
            raise NotFoundError(f"{pin.repository or pin.folder} has no {name} among its pinned files; pin it again")
        safe_name(name, "the lock")
    if pin.repository is None or pin.revision is None:
        assert pin.folder is not None, "files inside a package are opened by their plugin"
        return _verified_in_place(pin, Path(pin.folder).expanduser(), names)
    commit = pin.revision
    paths: dict[str, Path] = {}
    damaged: dict[str, IntegrityError] = {}
    for name in names:
        path = remote.cached(pin.repository, commit, name)
        if path is not None:
            try:
                check(path, pin.files[name])
                paths[name] = path
            except IntegrityError as error:
                damaged[name] = error
    missing = [name for name in names if name not in paths]
    if missing:
        _may_download(pin, missing, damaged, offline=offline)
        total, done = sum(pin.files[name].size for name in missing), 0
        for name in missing:
            report = _reporter(pin.repository, name, done, total, progress)
            is_right = partial(check, expected=pin.files[name])
            paths[name] = right_file(pin.repository, commit, name, is_right, report)
            done += pin.files[name].size
    name, path = next(iter(paths.items()))
    return path.parents[name.count("/")]


def files_of(
    plan: Plan,
    part: Bound,
    *,
    weights: Weights | None = None,
    offline: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Path | None:
    """The folder with the files that a part of a pinned plan is built from, verified; None where it needs none.

    weights: random leaves out what only pre-trained weights need; None for what the plan says.
    Raises what `folder` raises.
    """
    key = part_key(part)
    source = plan.sources.get(key)
    if source is None:
        return None
    pin = plan.pins[key]
    names = needed(source, weights or (plan.weights if part is plan.backbone else "pretrained"), pin.files)
    return folder(pin, names, offline=offline, progress=progress) if names else None


def _verified_in_place(pin: Pinned, root: Path, names: Sequence[str]) -> Path:
    for name in names:
        try:
            check(root / name, pin.files[name])
        except IntegrityError as error:
            raise IntegrityError(f"{error}, as it was pinned; restore it, or pin it again: zoo lock SPEC") from error
    return root


def _may_download(pin: Pinned, missing: Sequence[str], damaged: dict[str, IntegrityError], *, offline: bool) -> None:
    """Raises what keeps the files from being downloaded, before anything of them is."""
    assert pin.repository is not None
    assert pin.revision is not None
    where = f"{pin.repository} at {pin.revision[:12]}"
    forbidden = "offline" if offline else remote.offline_by()
    if forbidden:
        get = "get them where they are not: zoo fetch SPEC"
        for error in damaged.values():
            raise IntegrityError(f"{error}, and requests are forbidden ({forbidden}); {get}") from error
        raise NotFoundError(
            f"{where}: {_some(missing)} not on this machine, and requests are forbidden ({forbidden}); {get}"
        )
    cache = Path(constants.HF_HUB_CACHE)
    while not cache.exists():
        cache = cache.parent
    size, free = sum(pin.files[name].size for name in missing), shutil.disk_usage(cache).free
    if size > free:
        raise ZooError(
            f"{where} needs {_megabytes(size)}, and {constants.HF_HUB_CACHE} has {_megabytes(free)} free; free some, "
            f"or set HF_HOME to another disk"
        )
    remote.reach(pin.repository, pin.revision, missing[0])


def _reporter(
    repository: str, name: str, before: int, total: int, progress: Callable[[Progress], None] | None
) -> Callable[[int], None]:
    def report(done: int) -> None:
        if progress is not None:
            progress(Progress(repository=repository, file=name, done_bytes=before + done, total_bytes=total))

    return report


# --- what is remembered ----------------------------------------------------------------------------------------------


def _place(source: Source, revision: str | None) -> tuple[str, str]:
    asked = [remote.endpoint(), source.repository, revision, source.patterns, source.weights]
    return "pins", f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.json"


def _remember(source: Source, revision: str | None, found: Pinned) -> None:
    write_memory({key: value for key, value in asdict(found).items() if value is not None}, *_place(source, revision))


def _recall(source: Source, revision: str | None) -> Pinned | None:
    row = read_memory(*_place(source, revision))
    try:
        (found,) = pins_of({"parts": {"": row}}).values()
    except (ValueError, TypeError, AttributeError):
        return None
    return found if found.repository == source.repository and remote.is_commit(found.revision) else None


def _known_repositories() -> list[str]:
    """Those that a catalogue or a record tells of, and those in the Hugging Face cache."""
    cache = Path(constants.HF_HUB_CACHE)
    names = {path.name.removeprefix("models--").replace("--", "/", 1) for path in cache.glob("models--*")}
    entries = catalog()
    for provider in load_index().providers:
        try:
            entry = entries.find(provider.name, provider.kind)
        except ZooError:
            continue
        if entry is not None and entry.repository is not None:
            names.add(entry.repository)
    return sorted(names)


def _called(source: Source) -> str:
    if source.repository is None:
        return str(source.folder)
    return source.repository + (f" at {source.revision}" if source.revision else "")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
