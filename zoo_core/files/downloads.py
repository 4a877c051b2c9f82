"""One file of a commit, with the right content: found in the Hugging Face cache, or downloaded; a wrong one goes aside.

A file's own record is the name of its blob: the sha256 of its content, or git's sha1. What agrees with it, or with what
the Hub tells, stays where it is whatever a pin says. Anything else is moved to zoo's own cache; nothing is deleted, and
nothing is moved through a link. Any number of processes may ask for a file at once; the client's lock lets one of them
download it.
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

ROOM = "set-aside"  # below the cache folder
DOWNLOADS = "downloads"  # likewise: which commits zoo has downloaded files of
HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")  # of a content: sha256, or git's sha1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Aside:
    """What was set aside, in words, and where it lies now."""

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
    """The path of a file that is right. check: raises IntegrityError for one that is not.

    A wrong one, whether it lay there or has just come, is set aside and downloaded once more; if that is wrong too,
    IntegrityError. It is one at once, and nothing is touched, where the file is what the Hub or its own record tells
    and so `check` expects something else, and where it lies behind a linked folder.
    report: is told how many bytes have come.
    """
    wrong = IntegrityError(f"{name} was taken away again and again")
    aside, num_wrong, force = None, 0, False
    for _ in range(3):  # a wrong link, a wrong file behind the right one, and a download
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
            wrong, is_damaged = error, True  # fewer bytes came than were promised
        except (FileNotFoundError, NotFoundError):
            if path is None or path.exists():
                raise
            continue  # another process has just set it aside
        else:
            force = is_new or (is_damaged and chosen.is_symlink())  # else the client may take the same content again
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
    """Notes that a file of a commit came by zoo into this cache; cache.py removes what came so, and nothing else."""
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
    """Whether the content of a file of the Hugging Face cache is what its own record tells; None where it has none."""
    blob = path.readlink() if path.is_symlink() else path
    return _is(path, blob.name if blob.parent.name == "blobs" else "")


def _is(path: Path, told: str) -> bool | None:
    """Whether the content has this sha256, or git's sha1; None for a text that is neither."""
    if not HASH.fullmatch(told):
        return None
    return (hash_of(path).sha256 if len(told) == 64 else git_sha1(path.read_bytes())) == told


def _wrong_part(path: Path, repository: str, commit: str, name: str, wrong: IntegrityError) -> tuple[Path, bool]:
    """What of a file is to be set aside: the link or file in the snapshot, or the content, which is damaged then.

    Raises IntegrityError where nothing is: what expects another content than this one is wrong.
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
    """Of the path and the links that it leads over to its content, those in the repository's folder of the cache.

    Raises IntegrityError where one lies behind a linked folder, and so in a place that is not the cache's.
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
    """Whether a path is a link in the cache, rather than one that leads to it."""
    return path.is_symlink() and any(cache in path.parents for cache in caches)


def _place(repository: str, commit: str, name: str) -> Path:
    """A place that nothing lies at yet."""
    folder = hub.repository_folder(repository).name
    return Path(cache_folder(), ROOM, folder, commit, os.urandom(4).hex(), name)


def _set_aside(chosen: Path, place: Path, path: Path, before: os.stat_result) -> _Aside | None:
    """Moves what is wrong, a link as a link, to a place of its own.

    None where another process has put something else at `path` since `before`, which stays. Raises AccessError.
    """
    what = f"the link {chosen} to {chosen.readlink()}" if chosen.is_symlink() else str(chosen)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.samestat(before, path.stat()):
            return None
        shutil.move(chosen, place)  # to another disk too
    except FileNotFoundError:
        return None
    except OSError as error:
        if os.path.lexists(chosen):
            with suppress(OSError):
                place.unlink(missing_ok=True)  # half a copy
        raise AccessError(
            f"{chosen} is wrong and cannot be set aside in {place} ({error.strerror or error}); mend its rights, or "
            f"set ZOO_CACHE to another folder"
        ) from error
    return _Aside(what, place)
