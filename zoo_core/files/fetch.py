"""Brings the files that a plan names onto this machine, each with the size and sha256 that its pin states.

Once a file is pinned, only its hash counts, whoever delivers the bytes. Files on this machine are used without a
request. A damaged file is set aside and downloaded once more. A file that is as the Hub describes it is never moved,
even if a pin expects another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import constants

from zoo_core.contracts import Source, Weights
from zoo_core.errors import IntegrityError, NotFoundError, ZooError
from zoo_core.files import hub
from zoo_core.files.downloads import is_as_recorded, right_file
from zoo_core.files.folders import check_locked, is_locked
from zoo_core.files.hashing import check, safe_name, some, wrong_in
from zoo_core.files.pins import pin
from zoo_core.lock import Pinned, part_key
from zoo_core.plan.plan import Plan, needed, pinned
from zoo_core.registry.bind import Bound
from zoo_core.run_layout import MODEL_FILES, RUN_FILES

__all__ = [
    "DownloadProgress",
    "fetch_run",
    "files_of",
    "folder",
    "pin",
    "pin_plan",
    "pin_plans",
    "verify",
]


@dataclass(frozen=True, kw_only=True)
class DownloadProgress:
    """The progress of a download: the current file, and the bytes of all files that are downloaded together."""

    repository: str
    file: str
    done_bytes: int
    total_bytes: int


# --- plans -----------------------------------------------------------------------------------------------------------


def pin_plan(plan: Plan, *, frozen: bool = False) -> Plan:
    """The plan with every file pinned.

    frozen: send no request, and raise NotFoundError for what is not pinned yet.
    """
    return pin_plans([plan], frozen=frozen)[0]


def pin_plans(plans: Sequence[Plan], *, frozen: bool = False) -> list[Plan]:
    """The plans with every file pinned. A source of several plans is looked up once, so they all use one commit.

    Local folders are always checked. Raises IntegrityError if a folder holds other content than the lock states.
    """
    open_keys = {key for plan in plans for key in plan.unpinned if plan.sources[key].folder is None}
    if frozen:
        _refuse_open(open_keys)
    pins: dict[str, Pinned] = {}
    for plan in plans:
        for key in plan.unpinned:
            if key not in pins:
                named = [part for part in plan.parts if part_key(part) == key]
                random = all(plan.weights_of(part) == "random" for part in named)
                pins[key] = pin(plan.sources[key], weights="random" if random else "pretrained")
            if plan.sources[key].folder is not None:
                check_locked(key, plan.locked, pins[key])
                if frozen and not is_locked(key, plan.locked, pins[key]):
                    _refuse_open({key})
    return [pinned(plan, {key: pins[key] for key in plan.unpinned}) for plan in plans]


def _refuse_open(keys: Collection[str]) -> None:
    if keys:
        raise NotFoundError(
            f"not in the lock: {some(sorted(keys))}; write it with zoo lock SPEC, or leave --frozen out"
        )


def files_of(
    plan: Plan,
    part: Bound,
    *,
    weights: Weights | None = None,
    offline: bool = False,
    progress: Callable[[DownloadProgress], None] | None = None,
) -> Path | None:
    """The verified folder with the files that a part of a pinned plan is built from; None if it needs none.

    weights: "random" leaves out the files that only pre-trained weights need; None means the weights of the plan.
    Raises what `folder` raises.
    """
    key = part_key(part)
    source = plan.sources.get(key)
    if source is None:
        return None
    pin = plan.pins[key]
    names = needed(source, weights or plan.weights_of(part), pin.files)
    return folder(pin, names, offline=offline, progress=progress) if names else None


# --- files -----------------------------------------------------------------------------------------------------------


def folder(
    pin: Pinned,
    names: Sequence[str],
    *,
    offline: bool = False,
    progress: Callable[[DownloadProgress], None] | None = None,
) -> Path:
    """The folder with these files of a pin, each checked for size and sha256. Names are as in a repository.

    Files that are not in the Hugging Face cache are downloaded at the pin's commit. Damaged ones are set aside, with a
    warning, and downloaded once more. progress: called for each piece that arrives.
    Raises NotFoundError (a file is missing and requests are forbidden, or a local file is gone), AccessError,
    IntegrityError (content that is still wrong after a second download, or that is wrong in a local folder or behind a
    linked folder, or a pin that the Hub contradicts), ZooError (not enough disk space).
    """
    assert names, "a folder for no files"
    if pin.repository is not None and not hub.is_commit(pin.revision):
        raise IntegrityError(
            f"{pin.repository} is pinned at {pin.revision!r:.50}, which is no commit; make the lock again: zoo lock"
        )
    for name in names:
        if name not in pin.files:
            raise NotFoundError(f"{pin.repository or pin.folder} has no {name} among its pinned files; pin it again")
        if pin.folder is None:  # a local folder's files are the user's own, and may lie outside of it
            safe_name(name, "the lock")
    wrong = _wrong(pin, names)
    if pin.repository is None or pin.revision is None:
        for error in wrong.values():
            anew = "restore it, or pin it anew: the same bench or fit does, and zoo lock SPEC"
            raise type(error)(f"{error}, as it was pinned; {anew}") from error
        return _folder_of(pin)
    if wrong:
        _may_download(pin, wrong, offline=offline)
    for _ in range(2):  # if a proxy gives two files the same ETag, the later one overwrites the earlier
        if not wrong:
            break
        _download(pin, list(wrong), progress)
        wrong = _wrong(pin, names)
    for name, error in wrong.items():
        raise IntegrityError(
            f"{name} of {pin.repository} was right a moment ago and is not now; {hub.endpoint()} may give several "
            f"files one ETag: run the same command again, or look for a proxy that changes headers"
        ) from error
    return _snapshot(pin.repository, pin.revision, names[0])


def verify(pin: Pinned) -> dict[str, ZooError]:
    """Hashes the files of a pin on this machine again and returns what is wrong. Nothing is downloaded or removed.

    By name: an IntegrityError for other content, and a NotFoundError for a file that is not here.
    """
    return _wrong(pin, list(pin.files), again=True)


def fetch_run(name: str, revision: str | None = None) -> Path:
    """The folder with a fitted model that `zoo push` published, downloaded and verified. name: `ORG/NAME`.

    Raises what `pin` and `folder` raise, and NotFoundError if the repository holds no such model.
    """
    found = pin(Source(repository=name, revision=revision, patterns=RUN_FILES))
    lacking = [file for file in MODEL_FILES if file not in found.files]
    if lacking:
        raise NotFoundError(
            f"{name} holds no fitted model ({lacking[0]} is missing); zoo push DIR {name} puts one there"
        )
    return folder(found, list(found.files))


def _wrong(pin: Pinned, names: Sequence[str], *, again: bool = False) -> dict[str, ZooError]:
    """The files that are wrong on this machine, by name: NotFoundError if missing, IntegrityError for other content."""
    if pin.repository is None or pin.revision is None:
        return wrong_in(_folder_of(pin), {name: pin.files[name] for name in names}, again=again)
    wrong: dict[str, ZooError] = {}
    for name in names:
        try:
            path = hub.cached(pin.repository, pin.revision, safe_name(name, "the lock"))
            if path is None:
                raise NotFoundError(f"{name} of {pin.repository} at {pin.revision} is not on this machine")
            check(path, pin.files[name], again=again)
        except (IntegrityError, NotFoundError) as error:
            wrong[name] = error
    return wrong


def _folder_of(pin: Pinned) -> Path:
    assert pin.folder is not None, "files inside a package are opened by their plugin"
    return Path(pin.folder).expanduser()


def _may_download(pin: Pinned, wrong: Mapping[str, ZooError], *, offline: bool) -> None:
    """Raises the reason why the files cannot be downloaded, if there is one, before any download starts."""
    assert pin.repository is not None
    assert pin.revision is not None
    where = f"{pin.repository} at {pin.revision[:12]}"
    forbidden = "offline" if offline else hub.offline_by()
    if forbidden:
        get = "get it where they are not: zoo fetch SPEC"
        for name, error in wrong.items():
            if isinstance(error, IntegrityError):
                path = hub.cached(pin.repository, pin.revision, name)
                if path is not None and is_as_recorded(path):
                    get = "the pin is wrong: restore the lock, or write it again where they are not: zoo lock SPEC"
                    error = IntegrityError(f"{error}, which the cache's own record of {where} agrees with")
                raise IntegrityError(f"{error}, and requests are forbidden ({forbidden}); {get}") from error
        raise NotFoundError(
            f"{where}: {some(list(wrong))} not on this machine, and requests are forbidden ({forbidden}); {get}"
        )
    cache = Path(constants.HF_HUB_CACHE)
    while not cache.exists():
        cache = cache.parent
    size, free = sum(pin.files[name].size for name in wrong), shutil.disk_usage(cache).free
    if size > free:
        raise ZooError(
            f"{where} needs {_megabytes(size)}, and {constants.HF_HUB_CACHE} has {_megabytes(free)} free; free some, "
            f"or set HF_HOME to another disk"
        )
    hub.reach(pin.repository, pin.revision, next(iter(wrong)))


def _download(pin: Pinned, names: Sequence[str], progress: Callable[[DownloadProgress], None] | None) -> None:
    assert pin.repository is not None
    assert pin.revision is not None
    total, done = sum(pin.files[name].size for name in names), 0
    for name in names:
        report = _reporter(pin.repository, name, done, total, progress)
        right_file(pin.repository, pin.revision, name, partial(check, expected=pin.files[name]), report)
        done += pin.files[name].size


def _snapshot(repository: str, commit: str, name: str) -> Path:
    path = hub.cached(repository, commit, name)
    assert path is not None, "a file that was just verified"
    return path.parents[name.count("/")]


def _reporter(
    repository: str, name: str, before: int, total: int, progress: Callable[[DownloadProgress], None] | None
) -> Callable[[int], None]:
    def report(done: int) -> None:
        if progress is not None:
            progress(DownloadProgress(repository=repository, file=name, done_bytes=before + done, total_bytes=total))

    return report


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
