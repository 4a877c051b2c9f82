"""Turns a source into its pin: the files that a build may read, each with its hash, at one commit of a repository.

The revision is turned into a commit once. For a file in LFS, the sha256 is the one that the Hub states. Any other file
is downloaded, compared with the git sha1 that the Hub states, and hashed. Pins are remembered, to be used again when
the Hub cannot be asked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import constants

from zoo_core.contracts import FileHash, Source, Weights
from zoo_core.errors import IntegrityError, NotFoundError, ZooError, nearest
from zoo_core.files import hub
from zoo_core.files.downloads import right_file
from zoo_core.files.folders import called, check_weights, look
from zoo_core.files.hashing import git_sha1, read_memory, safe_name, write_memory
from zoo_core.files.hub import Listed, MissingError, UnreachableError
from zoo_core.lock import Pinned, pins_of
from zoo_core.plan.plan import needed
from zoo_core.registry.catalog import catalog
from zoo_core.registry.index import load_index

__all__ = ["pin"]

logger = logging.getLogger(__name__)


def pin(source: Source, *, offline: bool = False, weights: Weights = "pretrained") -> Pinned:
    """The files of a source that a build may read, each with its hash; those of a repository at one commit.

    offline: send no request, and use the pin that was made before. HF_HUB_OFFLINE=1 has the same effect. If the Hub
    cannot be reached, the earlier pin is used as well, with a warning.
    weights: "random" means that the source need not contain weights. If it does, the pin includes them nevertheless.
    Raises NotFoundError (no such repository, revision or folder, no weights in it, or no pin and no way to make one),
    AccessError (gated, refused, not reached), IntegrityError (content that differs from what the Hub states).
    """
    if source.repository is None:
        return look(source, weights)
    known = _recall(source, source.revision)
    forbidden = "offline" if offline else hub.offline_by()
    if known is None and forbidden:
        raise NotFoundError(
            f"{called(source)} has not been pinned on this machine, and requests are forbidden ({forbidden}); "
            f"get it first where they are not: zoo fetch SPEC"
        )
    if known is not None and (forbidden or hub.is_commit(source.revision)):
        return _checked(source, known, weights)
    try:
        found = _pin_repository(source, source.repository, weights)
    except UnreachableError as error:
        if known is None:
            raise
        logger.warning("%s; going on with what %s was before: %s", error, called(source), known.revision)
        found = known
    except MissingError as error:
        others = (name for name in _known_repositories() if name != source.repository)
        raise MissingError(f"{error}{nearest(source.repository, others)}") from error
    return _checked(source, found, weights)


def _pin_repository(source: Source, repository: str, weights: Weights) -> Pinned:
    commit = hub.resolve(repository, source.revision)
    found = _recall(source, commit)
    if found is None:
        listed = hub.listing(repository, commit)
        check_weights(source, listed, weights)
        files = {}
        for name in needed(source, "pretrained", listed):
            safe_name(name, repository)
            files[name] = _hash_listed(repository, commit, name, listed[name])
        found = Pinned(files=files, repository=repository, revision=commit)
    for revision in {source.revision, commit}:
        _remember(source, revision, found)
    return found


def _hash_listed(repository: str, commit: str, name: str, listed: Listed) -> FileHash:
    """The hash of a file of a repository. A file that is not in LFS is small, and is downloaded to be hashed."""
    if listed.sha256 is not None:
        if not re.fullmatch(r"[0-9a-f]{64}", listed.sha256):
            raise IntegrityError(f"{repository} tells a sha256 {listed.sha256!r:.80} of {name}, which is none")
        return FileHash(sha256=listed.sha256, size=listed.size)

    def read(path: Path) -> bytes:
        content = path.read_bytes()
        if len(content) != listed.size or git_sha1(content) != listed.git_sha1:
            raise IntegrityError(f"{path} is not what {repository} tells of {name} (size {listed.size}, git's sha1)")
        return content

    content = read(right_file(repository, commit, name, read))
    return FileHash(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _checked(source: Source, found: Pinned, weights: Weights) -> Pinned:
    check_weights(source, found.files, weights)
    return found


# --- what is remembered ----------------------------------------------------------------------------------------------


def _place(source: Source, revision: str | None) -> tuple[str, str]:
    asked = [hub.endpoint(), source.repository, revision, source.patterns, source.weights]
    return "pins", f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.json"


def _remember(source: Source, revision: str | None, found: Pinned) -> None:
    write_memory({key: value for key, value in asdict(found).items() if value is not None}, *_place(source, revision))


def _recall(source: Source, revision: str | None) -> Pinned | None:
    row = read_memory(*_place(source, revision))
    try:
        (found,) = pins_of({"parts": {"": row}}).values()
    except (ValueError, TypeError, AttributeError):
        return None
    return found if found.repository == source.repository and hub.is_commit(found.revision) else None


def _known_repositories() -> list[str]:
    """The repositories that a catalogue or a record names, and those in the Hugging Face cache."""
    cache = Path(constants.HF_HUB_CACHE)
    names = {path.name.removeprefix("models--").replace("--", "/", 1) for path in cache.glob("models--*")}
    names |= {path.name.replace("--", "/", 2) for path in cache.glob("datasets--*")}
    entries = catalog()
    for provider in load_index().providers:
        try:
            entry = entries.find(provider.name, provider.kind)
        except ZooError:
            continue
        if entry is not None and entry.repository is not None:
            names.add(entry.repository)
    return sorted(names)
