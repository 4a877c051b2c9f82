"""Lists and removes zoo's folders (rooms) below ZOO_CACHE, and what zoo downloaded into the Hugging Face cache.

zoo keeps a note of each file that it downloads. Nothing in the Hugging Face cache without such a note is shown or
removed, even if zoo has read it. Commits are removed by the Hub client's own strategy, which keeps files that other
commits share. Nothing is removed through a link: a link in a room may be removed, but never the file that it leads to,
and nothing behind a linked folder is removed.
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

OWN = "zoo:"  # before the name of a room of zoo
KNOWS = f"{OWN}{DOWNLOADS}"  # the room with the notes of what zoo downloaded
UNUSED = "not used for so long"
BUSY_SECONDS = 600.0  # a file that changed less long ago may still be in use by a writer
TEMPORARY = re.compile(r".+\.[0-9a-f]{8}|index-[0-9a-f]+\.json\.\d+")  # files that are still being written
BLOB = re.compile(r"([0-9a-f]{64}|[0-9a-f]{40})(\.|$)")  # how the Hub client names contents and unfinished downloads
HASH = "[0-9a-f]{32}"
Noted: TypeAlias = Mapping[str, Mapping[str, set[str]]]  # the files that zoo downloaded, by repository and commit
# For each room, the pattern of the paths that zoo writes in it, and what they are. Any other file there is not zoo's.
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
    "outputs": (
        rf"{HASH}/(key\.json|{HASH}\.rows)",
        "what models gave for examples, computed again when it is needed",
    ),
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
    """Something in a cache that can be removed by itself. used_at: when it was last read or written, in s since 1970.

    name: `ORG/NAME` or `datasets/ORG/NAME` of a repository, or `zoo:ROOM`. revision: the commit; None if it is not one.
    paths: its files; for a commit, the folder of its repository instead. link: the linked folder that it lies behind,
    in which case it cannot be removed; None if there is no such link.
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
    """Everything in the caches that belongs to zoo, the largest first."""
    info, noted = _hub(), _downloaded()
    own_kinds = [each for each in (info.repos if info is not None else ()) if each.repo_type in ("model", "dataset")]
    repositories = {_called(each): each for each in own_kinds}
    found = [*_rooms(), *_commits(repositories, noted), *_leftovers(repositories, noted)]
    return sorted(found, key=lambda entry: (-entry.size_bytes, entry.name))


def chosen(entries: Iterable[Entry], name: str) -> list[Entry]:
    """The entries that a name selects: `ORG/NAME`, `ORG/NAME@COMMIT`, `zoo:ROOM`, or `zoo`.

    The first letters of COMMIT are enough. `zoo` means all rooms but the notes of what zoo downloaded.
    Raises NotFoundError with the nearest names if there is nothing.
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
    """The entries that can go: partial and unlinked files, and commits if another of the repository was used later.

    older_than: also entries that were not used for this many seconds. Entries behind a linked folder are left out.
    """
    entries, now = [entry for entry in entries if entry.link is None], time.time()
    newest: dict[str, Entry] = {}
    for entry in entries:
        if entry.kind == "commit" and entry.used_at > newest.get(entry.name, entry).used_at:
            newest[entry.name] = entry
        newest.setdefault(entry.name, entry)
    found: list[Entry] = []
    for entry in entries:
        if older_than is not None and entry.kind == "room" and entry.name != KNOWS:  # those notes are still needed
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
    """Removes entries and returns how many bytes that freed.

    Raises AccessError if a file cannot be removed. If any entry lies behind a linked folder, it raises AccessError
    before it removes anything.
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
                size = _size(path.lstat())
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
            alone = replace(info, repos=frozenset({repository}))  # else a fork's equal commit might be removed instead
            freed += _removed_commits(alone, repository.repo_path, commits[repository.repo_path])
    return freed


def _removed_commits(info: HFCacheInfo, folder: Path, commits: list[str]) -> int:
    """Removes commits of one repository. Of the contents that their files link to, only those in its folder go."""
    plan = info.delete_revisions(*commits)
    own = frozenset(path for path in plan.blobs if path.parent.resolve().is_relative_to(folder.resolve()))
    before = _held(folder)
    replace(plan, blobs=own).execute()
    return before - _held(folder)


def _held(folder: Path) -> int:
    """The size in bytes of all files below a folder. Links count nothing."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# --- ours ------------------------------------------------------------------------------------------------------------


def _rooms() -> Iterator[Entry]:
    """The entries of each folder that zoo makes below the cache folder, and of the index files in the cache folder."""
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
    """The files and links in a room that zoo writes there. Links are not followed, and other files are left out."""
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
        size_bytes=sum(_size(path.lstat()) for path in files if os.path.lexists(path)),
        used_at=max(map(_used_at, files)),
        paths=tuple(files),
        remark=_link_remark(link) or remark,
        link=link,
    )


def _size(stat: os.stat_result) -> int:
    """The bytes that a file takes on the disk, which are fewer than its length where it has holes."""
    if os.name == "nt" or not stat.st_blocks:  # some file systems keep small files and links beside their names
        return stat.st_size
    return min(stat.st_size, stat.st_blocks * 512)


def _link_remark(link: Path | None) -> str:
    return "" if link is None else f"behind the link {link} to {link.readlink()}, and stays"


def _used_at(path: Path) -> float:
    """When a file, or a link itself, was last read or written, in s since 1970. Now, if it has just been removed."""
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return time.time()
    return max(stat.st_atime, stat.st_mtime)


def _is_quiet(path: Path) -> bool:
    """Whether a file has not changed for BUSY_SECONDS, so that no process is likely to be writing it."""
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
    """Interrupted downloads in repositories that zoo downloaded from, and contents there that no commit uses."""
    for name, commits in sorted(noted.items()):
        folder, repository = repository_folder(name), repositories.get(name)
        link = _linked(folder)
        blobs = [path for path in (folder / "blobs").glob("*") if BLOB.match(path.name) and path.is_file()]
        blobs = [path for path in blobs if _is_quiet(path)]
        partial = [path for path in blobs if path.name.endswith(".incomplete")]
        if partial:
            yield _entry(name, "partial", partial, "a download that was interrupted", link)
        if repository is None or not all(_is_own(revision, commits) for revision in repository.revisions):
            continue  # another program has downloaded from it too
        links = [path for path in (folder / "snapshots").rglob("*") if path.is_symlink()]
        if any(path.is_dir() for path in links):
            continue  # it may hold more links, which rglob does not find
        used = {path.resolve() for path in links}
        unlinked = [path for path in blobs if path not in partial and path.resolve() not in used]
        if unlinked:
            yield _entry(name, "unlinked", unlinked, "of no commit that is here", link)


def _linked(folder: Path, commit: str = "") -> Path | None:
    """The first link among the folder of a repository and the folders in it that hold its files, or None."""
    folders = (folder, folder / "blobs", folder / "refs", folder / "snapshots", folder / "snapshots" / commit)
    return next((path for path in folders if path.is_symlink()), None)


def _hub() -> HFCacheInfo | None:
    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):  # the cache does not exist, or is a file
        return None


def _called(repository: CachedRepoInfo) -> str:
    return f"{DATASETS}{repository.repo_id}" if repository.repo_type == "dataset" else repository.repo_id


def _downloaded() -> Noted:
    """The files that zoo downloaded into the current Hugging Face cache, according to its notes."""
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
    """Whether zoo downloaded every file of a commit that is in the cache."""
    there = {file.file_path.relative_to(revision.snapshot_path).as_posix() for file in revision.files}
    return there <= noted.get(revision.commit_hash, set())
