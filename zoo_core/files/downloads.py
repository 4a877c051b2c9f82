"""Finds one file of a commit in the Hugging Face cache or downloads it, checks it, and sets a damaged file aside.

The cache itself records the hash of a file as the name of its blob: the sha256 of the content, or git's sha1. Content
that agrees with this record, or with the Hub, stays where it is, even if a pin expects something else. Any other wrong
file is moved to zoo's own cache. Nothing is deleted, and nothing is moved through a link. Any number of processes may
ask for a file at once, because the lock of the Hub client lets only one of them download it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from zoo_core.errors import AccessError, IntegrityError, NotFoundError
from zoo_core.files import hub
from zoo_core.files.hashing import git_sha1, hash_of, write_memory
from zoo_core.registry.settings import cache_folder

__all__ = ["DOWNLOADS", "ROOM", "is_as_recorded", "right_file"]

ROOM = "set-aside"  # the folder of set-aside files, below the cache folder
DOWNLOADS = "downloads"  # the folder of the notes of what zoo downloaded, below the cache folder
HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")  # the hash of a content: its sha256, or git's sha1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Aside:
    """What was set aside, as text for a message, and its new place."""

    what: str
    place: Path

    def __str__(self) -> str:
        return f"{self.what} was set aside in {self.place}"


def right_file(
    repository: str,
    commit: str,
    name: str,
    check: Callable[[Path], object],
    report: Callable[[int], None] | None = None,
) -> Path:
    """The path of a file whose content passes `check`, which raises IntegrityError for wrong content.

    A wrong file, whether found in the cache or just downloaded, is set aside and downloaded once more. If that one is
    wrong too, raises IntegrityError. Raises it at once, and moves nothing, in two cases: the Hub confirms the content
    (or the cache does, if the Hub states no hash), so that `check` must be wrong; or it lies behind a linked folder.
    report: called with the number of bytes that have arrived.
    """
    wrong = IntegrityError(f"{name} was taken away again and again")
    aside, num_wrong, force = None, 0, False
    for _ in range(3):  # at most: a wrong link, then a wrong content behind the right link, then a download
        path = hub.cached(repository, commit, name)
        is_new = path is None
        try:
            if path is None:
                path = hub.download(repository, commit, name, report, force=force)
                _note_download(repository, commit, name)
            before, flaw = path.stat(), _flaw(path, check)
            if flaw is None:
                return path
            wrong = flaw
            chosen, is_damaged = _wrong_part(path, repository, commit, name, wrong)
        except IntegrityError as error:
            if path is not None:
                raise
            wrong, is_damaged = error, True  # the download ended early
        except (FileNotFoundError, NotFoundError):
            if path is None or path.exists():
                raise
            continue  # another process has just set it aside
        else:
            force = is_new or (is_damaged and chosen.is_symlink())  # else the client may link to the same content again
            aside = _set_aside(chosen, _place(repository, commit, name), path, before) or aside
        num_wrong += is_new or is_damaged
        if num_wrong == 2:
            break
        _log.warning("%s; %s", wrong, aside or "trying once more")
    raise IntegrityError(
        f"{repository} at {commit[:12]}: {name} was downloaded again and is still wrong ({wrong}); "
        f"{aside or 'nothing of it is kept'}; look for a proxy that changes files, or try later"
    ) from wrong


def _note_download(repository: str, commit: str, name: str) -> None:
    """Notes that zoo downloaded a file of a commit into this cache. cache.py removes only files with such a note."""
    note = {"repository": repository, "revision": commit, "file": name, "cache": str(constants.HF_HUB_CACHE)}
    called = hashlib.sha256("\0".join(note.values()).encode()).hexdigest()[:32]
    write_memory(note, DOWNLOADS, f"{called}.json")


def _flaw(path: Path, check: Callable[[Path], object]) -> IntegrityError | None:
    try:
        check(path)
    except IntegrityError as error:
        return error
    return None


def is_as_recorded(path: Path) -> bool | None:
    """Whether a file in the Hugging Face cache has the hash that names its blob. None if the name is no hash."""
    blob = path.readlink() if path.is_symlink() else path
    return _is(path, blob.name if blob.parent.name == "blobs" else "")


def _is(path: Path, told: str) -> bool | None:
    """Whether the content of a file has this sha256 or git sha1. None if the text is neither."""
    if not HASH.fullmatch(told):
        return None
    return (hash_of(path).sha256 if len(told) == 64 else git_sha1(path.read_bytes())) == told


def _wrong_part(path: Path, repository: str, commit: str, name: str, wrong: IntegrityError) -> tuple[Path, bool]:
    """What to set aside: the link or file in the snapshot, or the content itself. Also whether the content is damaged.

    Raises IntegrityError if the Hub confirms the content, or the cache does and the Hub states no hash: then the pin is
    wrong, and not the file.
    """
    recorded = is_as_recorded(path)
    if recorded is False:
        return _own(path, repository, wrong)[-1], True
    told = _is(path, hub.reach(repository, commit, name))
    if told or (recorded and told is None):
        others = f"the cache and {hub.endpoint()} hold" if told else "the cache holds"
        raise IntegrityError(
            f"{wrong}, and {others} the same content of {repository} at {commit[:12]}, so nothing is touched; the pin "
            f"is wrong: restore the lock, or write it again: zoo lock SPEC"
        )
    own = _own(path, repository, wrong)
    return (own[-1], True) if told is None else (own[0], False)


def _own(path: Path, repository: str, wrong: IntegrityError) -> list[Path]:
    """The path and each link on the way to its content, in that order, as far as they lie in the repository's folder.

    Raises IntegrityError if one lies behind a linked folder, because that place does not belong to the cache.
    """
    given = Path(os.path.normpath(hub.repository_folder(repository)))
    folder = given.parent.resolve() / given.name
    found: list[Path] = []
    step = path
    while True:
        real, written = step.parent.resolve() / step.name, Path(os.path.normpath(step))
        if real.is_relative_to(folder):
            found.append(real)
        elif written.is_relative_to(folder) or written.is_relative_to(given):
            link = next(
                parent for parent in reversed(written.parents) if _links_below(parent, given.parent, folder.parent)
            )
            raise IntegrityError(
                f"{wrong}, and it lies behind the link {link} to {link.readlink()}, through which zoo removes nothing; "
                f"mend the file there, or remove the link"
            )
        if not real.is_symlink():
            return found
        step = real.parent / real.readlink()


def _links_below(path: Path, *caches: Path) -> bool:
    """Whether a path is a link inside a cache, as opposed to a link on the way to the cache."""
    return path.is_symlink() and any(cache in path.parents for cache in caches)


def _place(repository: str, commit: str, name: str) -> Path:
    """A new path for a file that is set aside."""
    folder = hub.repository_folder(repository).name
    return Path(cache_folder(), ROOM, folder, commit, os.urandom(4).hex(), name)


def _set_aside(chosen: Path, place: Path, path: Path, before: os.stat_result) -> _Aside | None:
    """Moves a wrong file to `place`. A link is moved as a link.

    Returns None, and moves nothing, if another process has replaced or removed the file at `path` since `before`.
    Raises AccessError if the file cannot be moved.
    """
    what = f"the link {chosen} to {chosen.readlink()}" if chosen.is_symlink() else str(chosen)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.samestat(before, path.stat()):
            return None
        shutil.move(chosen, place)  # also works if the place is on another disk
    except FileNotFoundError:
        return None
    except OSError as error:
        if os.path.lexists(chosen):
            with suppress(OSError):
                place.unlink(missing_ok=True)  # an incomplete copy
        raise AccessError(
            f"{chosen} is wrong and cannot be set aside in {place} ({error.strerror or error}); mend its rights, or "
            f"set ZOO_CACHE to another folder"
        ) from error
    return _Aside(what, place)
