"""Files of a repository that a plugin reads by itself, before the core gives it those of its `source`.

A task whose target stands in its files needs this; a backbone or an adapter seldom does. The same rules hold as for
what the core fetches: one commit, every file verified by its hash, no request where HF_HUB_OFFLINE=1 forbids it, and
whatever has been asked before is answered from memory there. Imports the Hub's client, so a recipe's module imports
this inside its functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants

from zoo_core.contracts import FileHash, Source
from zoo_core.errors import NotFoundError
from zoo_core.files import hub
from zoo_core.files.fetch import folder
from zoo_core.files.hashing import read_memory, safe_name, write_memory
from zoo_core.files.pins import pin

__all__ = ["Commit", "commit_of", "folder_of", "hashes_of"]

_CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit of a repository.

    revision: its 40 hex digits. names: of all its files, sorted. card: the text of its README.md, empty if it has none.
    """

    revision: str
    names: tuple[str, ...]
    card: str


def commit_of(repository: str, revision: str | None = None, *, offline: bool = False) -> Commit:
    """The commit that a branch, a tag or a commit's own digits stand for; None: the default branch.

    repository: `ORG/NAME`, or `datasets/ORG/NAME` of data. offline: send no request. The Hub is asked once in a
    process, so that all of its trials see one commit.
    Raises NotFoundError (no such repository or revision, or not known here and requests are forbidden), AccessError
    (gated, refused, not reached), IntegrityError (a name that leads out of the repository).
    """
    return _commit((hub.endpoint(), str(constants.HF_HUB_CACHE)), repository, revision, offline)


def hashes_of(source: Source, *, offline: bool = False) -> Mapping[str, FileHash]:
    """Size and sha256 of the files that a source names, by name; nothing but small files is downloaded to know them.

    Raises what `commit_of` raises.
    """
    return pin(source, offline=offline).files


def folder_of(source: Source, *, offline: bool = False) -> Path:
    """The folder with the files that a source names, each downloaded unless it is here, and verified.

    Raises what `commit_of` raises, NotFoundError where the source names no file that there is, and ZooError where they
    do not fit on the disk.
    """
    found = pin(source, offline=offline)
    if not found.files:
        raise NotFoundError(f"{source.repository or source.folder} holds no file {', '.join(source.patterns)}")
    return folder(found, list(found.files), offline=offline)


@lru_cache(maxsize=256)
def _commit(places: tuple[str, str], repository: str, revision: str | None, offline: bool) -> Commit:
    """places: where the Hub is, and where its files are kept; what was asked is remembered for these."""
    card = pin(Source(repository=repository, revision=revision, patterns=(_CARD,)), offline=offline)
    assert card.revision is not None, "files of a repository are pinned at a commit"
    key = hashlib.sha256(json.dumps([places[0], repository, card.revision]).encode()).hexdigest()[:32]
    memory = ("listings", f"{key}.json")
    names = read_memory(*memory)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        if forbidden := "offline" if offline else hub.offline_by():
            raise NotFoundError(
                f"{repository} at {card.revision[:12]}: what it holds is not known on this machine, and requests are "
                f"forbidden ({forbidden}); get it where they are not: zoo fetch SPEC --task TASK"
            )
        names = [safe_name(name, repository) for name in sorted(hub.listing(repository, card.revision))]
        write_memory(names, *memory)
    text = ""
    if _CARD in card.files:
        text = (folder(card, [_CARD], offline=offline) / _CARD).read_text(encoding="utf-8", errors="replace")
    return Commit(revision=card.revision, names=tuple(names), card=text)
