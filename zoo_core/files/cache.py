"""What lies in the caches: zoo's own rooms below ZOO_CACHE, and of the Hugging Face cache what zoo downloaded.

Which repositories are zoo's is told by the downloads that it notes. Nothing else of the Hugging Face cache is shown or
removed, whatever zoo has read of it, and removal is left to its own strategy, which keeps files that other commits
share. Nothing is removed through a link: of one in a room the link goes at most, and what lies behind a linked folder
stays.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from huggingface_hub import (
    CachedRepoInfo,
    CachedRevisionInfo,
    CacheNotFound,
    HFCacheInfo,
    constants,
    scan_cache_dir,
)

from zoo_core.errors import AccessError, NotFoundError, nearest
from zoo_core.files.downloads import DOWNLOADS, ROOM
from zoo_core.files.hub import DATASETS, repository_folder
from zoo_core.registry.settings import cache_folder

__all__ = ["OWN", "Entry", "chosen", "cover", "removed", "stale"]

OWN = "zoo:"  # before the name of a room of ours
KNOWS = f"{OWN}{DOWNLOADS}"  # the room that tells what else is zoo's
UNUSED = "not used for so long"
BUSY_SECONDS = 600.0  # what changed so shortly ago may be under way
TEMPORARY = re.compile(r".+\.[0-9a-f]{8}|index-[0-9a-f]+\.json\.\d+")  # of a write that is moved into place when whole
BLOB = re.compile(r"([0-9a-f]{64}|[0-9a-f]{40})(\.|$)")  # as the client calls contents, and those under way
HASH = "[0-9a-f]{32}"
Noted: TypeAlias = Mapping[str, Mapping[str, set[str]]]  # of each repository and commit the files that zoo downloaded
# Of each room what zoo writes there, by the path in it, and what that is; whatever else lies there is somebody else's.
ROOMS: Mapping[str, tuple[str, str]] = {
    "datasets": (rf"{HASH}\.arrow", "your files as Arrow tables, made again when a task needs them"),
    DOWNLOADS: (rf"{HASH}\.json", "which repositories zoo downloaded, so that it may remove them"),
    "hub-data": (rf"{HASH}/.+", "links to files of repositories, made again when a task needs them"),
    "index": (r"(index-[0-9a-f]{8}|failures)\.json", "what is installed, read again by the next command"),
    "listings": (rf"{HASH}\.json", "which files a commit holds, asked for again"),
    "looks": (rf"(pictures|sounds)(-{HASH}){{1,2}}\.json", "what was found out of your files"),
    "media": (
        r"[0-9a-f]{2}/[0-9a-f]{64}",
        "pictures and sounds inside tables as files, made again when a task needs them",
    ),
    "noted": (r"[0-9a-f]+-[0-9a-f]+\.json", "what was found out of files"),
    "pins": (rf"{HASH}\.json", "commits and hashes of repositories, asked for again"),
    ROOM: (
        r"(models|datasets)--[^/]+/[0-9a-f]{40}/[0-9a-f]{8}/.+",
        "files of the Hugging Face cache that were wrong, and are of no use any more",
    ),
    "splits": (rf"{HASH}\.csv", "which example is in which split, drawn again with the same result"),
    "tables": (rf"{HASH}\.(npy|json)", "decoded pictures and sounds, made again when a task needs them"),
    "verified": (rf"([0-9a-f]+-[0-9a-f]+|folder-{HASH})\.json", "which files were hashed"),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something that can be removed by itself. used_at: seconds since 1970, when it was last read or written.

    name: `ORG/NAME` of a repository, `datasets/ORG/NAME`, or `zoo:ROOM`. revision: the commit, of a repository.
    paths: its files; of a commit, the folder of the repository. link: the linked folder that it lies behind, and then
    nothing of it is removed; None for most.
    """

    name: str
    kind: Literal["commit", "room", "partial", "unlinked"]
    revision: str | None
    num_files: int
    size_bytes: int
    used_at: float
    paths: tuple[Path, ...]
    remark: str = ""
    link: Path | None = None


def cover() -> list[Entry]:
    """Everything that lies in the caches and is zoo's, the largest first."""
    info, noted = _hub(), _downloaded()
    own_kinds = [each for each in (info.repos if info is not None else ()) if each.repo_type in ("model", "dataset")]
    repositories = {_called(each): each for each in own_kinds}
    found = [*_rooms(), *_commits(repositories, noted), *_leftovers(repositories, noted)]
    return sorted(found, key=lambda entry: (-entry.size_bytes, entry.name))


def chosen(entries: Iterable[Entry], name: str) -> list[Entry]:
    """Those of a name: `ORG/NAME`, `ORG/NAME@COMMIT` (its first letters will do), `zoo:ROOM`, or `zoo` for all rooms.

    Raises NotFoundError with the nearest names.
    """
    entries = list(entries)
    wanted, _, revision = name.removeprefix("hub/").partition("@")
    found = [
        entry
        for entry in entries
        if (entry.name == wanted or (wanted == "zoo" and entry.name.startswith(OWN) and entry.name != KNOWS))
        and (not revision or (entry.revision or "").startswith(revision))
    ]
    if not found:
        known = dict.fromkeys(entry.name for entry in entries)
        raise NotFoundError(
            f"nothing in the caches is called {name!r}{nearest(name, known)}; `zoo cache ls` lists them"
        )
    return found


def stale(entries: Iterable[Entry], *, older_than: float | None = None) -> list[Entry]:
    """What is of no use any more: partial and unlinked files, and commits whose repository has a newer one here.

    older_than: seconds; also whatever was not used for so long. What lies behind a linked folder is left out.
    """
    entries, now = [entry for entry in entries if entry.link is None], time.time()
    newest: dict[str, Entry] = {}
    for entry in entries:
        if entry.kind == "commit" and entry.used_at > newest.get(entry.name, entry).used_at:
            newest[entry.name] = entry
        newest.setdefault(entry.name, entry)
    found: list[Entry] = []
    for entry in entries:
        if older_than is not None and entry.kind == "room" and entry.name != KNOWS:  # it tells what is zoo's
            old = [path for path in entry.paths if now - _used_at(path) > older_than]
            found += [_entry(entry.name, "room", old, UNUSED)] if old else []
        elif older_than is not None and entry.kind == "commit" and now - entry.used_at > older_than:
            found.append(replace(entry, remark=UNUSED))
        elif entry.kind in ("partial", "unlinked"):
            found.append(entry)
        elif entry.kind == "commit" and newest[entry.name] is not entry:
            found.append(replace(entry, remark="another commit of the repository was used later"))
    return found


def removed(entries: Iterable[Entry]) -> int:
    """Removes entries; how many bytes that freed.

    Raises AccessError for what cannot be removed, and before anything is for what lies behind a linked folder.
    """
    entries = list(entries)
    for entry in entries:
        if entry.link is not None:
            raise AccessError(
                f"{entry.name} lies behind the link {entry.link} to {entry.link.readlink()}, through which zoo removes "
                f"nothing; remove the link: rm {entry.link}"
            )
    freed = 0
    commits: dict[Path, list[str]] = {}
    for entry in entries:
        if entry.kind == "commit":
            assert entry.revision is not None
            commits.setdefault(entry.paths[0], []).append(entry.revision)
            continue
        for path in entry.paths:
            try:
                size = path.lstat().st_size
                path.unlink()
                freed += size
            except FileNotFoundError:
                continue
            except OSError as error:
                raise AccessError(f"{path} cannot be removed ({error.strerror}); mend its rights") from error
    info = _hub() if commits else None
    if info is None:
        return freed
    for repository in info.repos:
        if repository.repo_path in commits:
            alone = replace(info, repos=frozenset({repository}))  # else a fork's equal commit might go in its place
            freed += _removed_commits(alone, repository.repo_path, commits[repository.repo_path])
    return freed


def _removed_commits(info: HFCacheInfo, folder: Path, commits: list[str]) -> int:
    """Removes commits of one repository, and of what their files lead to that alone which lies in its folder."""
    plan = info.delete_revisions(*commits)
    own = frozenset(path for path in plan.blobs if path.parent.resolve().is_relative_to(folder.resolve()))
    before = _held(folder)
    replace(plan, blobs=own).execute()
    return before - _held(folder)


def _held(folder: Path) -> int:
    """The bytes of the files below a folder, without what links lead to."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# --- ours ------------------------------------------------------------------------------------------------------------


def _rooms() -> Iterator[Entry]:
    """A room for each folder that zoo makes below the cache folder, and one for the files of the index."""
    root = Path(cache_folder())
    for name, (written, remark) in ROOMS.items():
        place = root if name == "index" else root / name
        link = place if place.is_symlink() and place != root else None
        files = list(_files_of(name, place, re.compile(written)))
        partial = [path for path in files if TEMPORARY.fullmatch(path.name) and _is_quiet(path)]
        kept = [path for path in files if path not in set(partial)]
        if kept:
            yield _entry(f"{OWN}{name}", "room", kept, remark, link)
        if partial:
            yield _entry(f"{OWN}{name}", "partial", partial, "left by a process that was killed", link)


def _files_of(room: str, place: Path, written: re.Pattern[str]) -> Iterator[Path]:
    """The files of a room, and links in it as such; nothing that zoo does not write there."""
    if not place.is_dir():
        return
    for path in place.iterdir() if room == "index" else place.rglob("*"):
        name = path.relative_to(place).as_posix()
        stem = name.rpartition(".")[0] if TEMPORARY.fullmatch(path.name) else name
        if (path.is_symlink() or path.is_file()) and written.fullmatch(stem):
            yield path


def _entry(
    name: str, kind: Literal["room", "partial", "unlinked"], files: list[Path], remark: str, link: Path | None = None
) -> Entry:
    return Entry(
        name=name,
        kind=kind,
        revision=None,
        num_files=len(files),
        size_bytes=sum(path.lstat().st_size for path in files if os.path.lexists(path)),
        used_at=max(map(_used_at, files)),
        paths=tuple(files),
        remark=_link_remark(link) or remark,
        link=link,
    )


def _link_remark(link: Path | None) -> str:
    return "" if link is None else f"behind the link {link} to {link.readlink()}, and stays"


def _used_at(path: Path) -> float:
    """When a file was last read or written, of a link the link; one that has just gone is as new as can be."""
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return time.time()
    return max(stat.st_atime, stat.st_mtime)


def _is_quiet(path: Path) -> bool:
    """Whether nobody can be writing a file any more."""
    try:
        return time.time() - path.stat().st_mtime > BUSY_SECONDS
    except FileNotFoundError:
        return False


# --- the Hugging Face cache ------------------------------------------------------------------------------------------


def _commits(repositories: Mapping[str, CachedRepoInfo], noted: Noted) -> Iterator[Entry]:
    for name, repository in repositories.items():
        for revision in repository.revisions:
            if _is_own(revision, noted.get(name, {})):
                link = _linked(repository.repo_path, revision.commit_hash)
                yield Entry(
                    name=name,
                    kind="commit",
                    revision=revision.commit_hash,
                    num_files=revision.nb_files,
                    size_bytes=revision.size_on_disk,
                    used_at=max((file.blob_last_accessed for file in revision.files), default=revision.last_modified),
                    paths=(repository.repo_path,),
                    remark=_link_remark(link),
                    link=link,
                )


def _leftovers(repositories: Mapping[str, CachedRepoInfo], noted: Noted) -> Iterator[Entry]:
    """Interrupted downloads of repositories that zoo downloaded, and files that no commit of them has any more."""
    for name, commits in sorted(noted.items()):
        folder, repository = repository_folder(name), repositories.get(name)
        link = _linked(folder)
        blobs = [path for path in (folder / "blobs").glob("*") if BLOB.match(path.name) and path.is_file()]
        blobs = [path for path in blobs if _is_quiet(path)]
        partial = [path for path in blobs if path.name.endswith(".incomplete")]
        if partial:
            yield _entry(name, "partial", partial, "a download that was interrupted", link)
        if repository is None or not all(_is_own(revision, commits) for revision in repository.revisions):
            continue  # others have downloaded of it
        links = [path for path in (folder / "snapshots").rglob("*") if path.is_symlink()]
        if any(path.is_dir() for path in links):
            continue  # more links may lie there, which are not looked for
        used = {path.resolve() for path in links}
        unlinked = [path for path in blobs if path not in partial and path.resolve() not in used]
        if unlinked:
            yield _entry(name, "unlinked", unlinked, "of no commit that is here", link)


def _linked(folder: Path, commit: str = "") -> Path | None:
    """The first link among a repository's folder and the folders in it that hold its files; None for none."""
    folders = (folder, folder / "blobs", folder / "refs", folder / "snapshots", folder / "snapshots" / commit)
    return next((path for path in folders if path.is_symlink()), None)


def _hub() -> HFCacheInfo | None:
    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):  # there is none, or it is a file
        return None


def _called(repository: CachedRepoInfo) -> str:
    return f"{DATASETS}{repository.repo_id}" if repository.repo_type == "dataset" else repository.repo_id


def _downloaded() -> Noted:
    """What zoo downloaded into this cache, as it has noted."""
    found: dict[str, dict[str, set[str]]] = {}
    for path in Path(cache_folder(), DOWNLOADS).glob("*.json"):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            name, commit, file, place = (row[key] for key in ("repository", "revision", "file", "cache"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if all(isinstance(text, str) for text in (name, commit, file)) and place == str(constants.HF_HUB_CACHE):
            found.setdefault(name, {}).setdefault(commit, set()).add(file)
    return found


def _is_own(revision: CachedRevisionInfo, noted: Mapping[str, set[str]]) -> bool:
    """Whether zoo downloaded every file of a commit that is here."""
    there = {file.file_path.relative_to(revision.snapshot_path).as_posix() for file in revision.files}
    return there <= noted.get(revision.commit_hash, set())
