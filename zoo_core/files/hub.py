"""Asks the Hub through huggingface_hub, and turns everything that goes wrong into an error of zoo.

A repository is named `ORG/NAME`, or `datasets/ORG/NAME` if it holds data, as in its address.
The client repeats HEAD and API requests that fail, but not a download that ends in a dropped connection or a status of
5xx. This module repeats those. The client's logs are left as they are, and nothing here prints.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import tqdm

from zoo_core.errors import AccessError, IntegrityError, NotFoundError, UsageError, ZooError, nearest

__all__ = [
    "HTTPError",
    "Listed",
    "MissingError",
    "UnreachableError",
    "cached",
    "download",
    "endpoint",
    "is_commit",
    "listing",
    "offline_by",
    "reach",
    "repository_folder",
    "resolve",
    "told",
]

RETRY_SECONDS: Sequence[float] = (0.5, 1.0, 2.0)  # before the second, third and fourth attempt
MAX_WAIT_SECONDS = 60.0  # a server that asks for a longer wait counts as unreachable
DATASETS = "datasets/"  # before the name of a repository that holds data, as in its address
COMMIT = re.compile(r"[0-9a-f]{40}")
HTTPError: Any = HfHubHTTPError.__mro__[1]  # the base error of the HTTP library that this version of the client uses
Answer = TypeVar("Answer")


class MissingError(NotFoundError):
    """There is no such repository, or the user may not see it. A caller that knows others can add the nearest names."""


class UnreachableError(AccessError):
    """The Hub did not answer: there is no connection, its server fails, or something else, such as a proxy, answers."""


@dataclass(frozen=True)
class Listed:
    """What the Hub states about a file. size: in bytes. sha256: None unless the file is in LFS.

    git_sha1: the sha1 that git gives to the content, if the file is not in LFS.
    """

    size: int
    sha256: str | None
    git_sha1: str


def endpoint() -> str:
    """The address of the Hub: the current value of HF_ENDPOINT, or else the default of the client."""
    return (os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")


def offline_by() -> str | None:
    """The setting that forbids requests at this moment, such as `HF_HUB_OFFLINE=1`. None if they are allowed."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        text = os.environ.get(name, "")
        if text.upper() in constants.ENV_VARS_TRUE_VALUES:
            return f"{name}={text}"
    return "HF_HUB_OFFLINE=1" if constants.is_offline_mode() else None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never moves."""
    return revision is not None and COMMIT.fullmatch(revision) is not None


def resolve(repository: str, revision: str | None) -> str:
    """The commit, 40 hex digits, that a branch or tag stands for now. If the revision is a commit, sends no request.

    revision: None for the repository's default branch.
    """
    if revision is not None and is_commit(revision):
        return revision
    try:
        info = _ask(lambda: _api().repo_info(**_named(repository), revision=revision), repository, revision)
        commit = str(info.sha)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_hub(error) from error
    if not is_commit(commit):
        raise _no_hub(ValueError(f"a commit {commit!r:.50}"))
    return commit


def listing(repository: str, commit: str) -> dict[str, Listed]:
    """What the Hub states about every file of a commit, by name."""
    # no waits of ours: the client itself repeats this request, for 23 seconds
    try:
        found = _ask(
            lambda: list(_api().list_repo_tree(**_named(repository), recursive=True, revision=commit)),
            repository,
            commit,
            (),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_hub(error) from error
    return {
        file.path: Listed(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in found
        if isinstance(file, RepoFile)
    }


def reach(repository: str, commit: str, name: str) -> str:
    """The ETag that the Hub states for a file: its sha256 if it is in LFS, else git's sha1. A proxy may change it.

    This request fails quickly and with the right reason, unlike `download`: there the client waits half a minute for a
    Hub that is down, and blames the connection if a repository has been disabled.
    """
    address = hf_hub_url(**_named(repository), filename=name, revision=commit, endpoint=endpoint())
    found = _ask(lambda: get_hf_file_metadata(address, endpoint=endpoint()), repository, commit)
    if found.commit_hash is None or found.etag is None:
        lacking = "X-Repo-Commit" if found.commit_hash is None else "ETag"
        raise _no_hub(ValueError(f"no header {lacking}"))
    return str(found.etag)


def repository_folder(repository: str) -> Path:
    """Where the Hugging Face cache keeps a repository; it need not exist."""
    named = _named(repository)
    kind = named["repo_type"] or "model"
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=named["repo_id"], repo_type=kind))


def cached(repository: str, commit: str, name: str) -> Path | None:
    """The path of a file of a commit in the Hugging Face cache, unverified. None if it is not there."""
    path = try_to_load_from_cache(**_named(repository), filename=name, revision=commit)
    return Path(path) if isinstance(path, str) else None


def download(
    repository: str, commit: str, name: str, report: Callable[[int], None] | None = None, *, force: bool = False
) -> Path:
    """The path of a file of a commit in the Hugging Face cache, unverified. It is downloaded if it is not there.

    report: called during the download with the number of bytes that have arrived. force: download the file even if it
    is there. Raises IntegrityError if fewer bytes arrived than the Hub announced.
    """
    bar = type("Bar", (_Bar,), {"report": staticmethod(report or (lambda _: None))})
    path = _ask(
        lambda: hf_hub_download(
            **_named(repository),
            filename=name,
            revision=commit,
            endpoint=endpoint(),
            tqdm_class=bar,
            force_download=force,
        ),
        repository,
        commit,
    )
    return Path(path)


def told(error: BaseException, repository: str, revision: str | None = None) -> ZooError:
    """The error of zoo for an error of the client, which wraps the real cause in some of its errors."""
    if isinstance(error, LocalEntryNotFoundError | ValueError) and error.__cause__ is not None:
        return told(error.__cause__, repository, revision)
    if isinstance(error, HfHubHTTPError):
        return _refused(error, repository, revision)
    if isinstance(error, HFValidationError):
        return UsageError(f"{repository!r} is no name of a repository; write ORG/NAME")
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return UnreachableError(f"{repository} is not here, and requests are forbidden ({offline_by() or 'offline'})")
    if isinstance(error, FileMetadataError):
        return _no_hub(error)
    if isinstance(error, HTTPError):
        return UnreachableError(f"{endpoint()} cannot be reached ({_line(error)}); check the connection and try again")
    if isinstance(error, OSError):
        return _of_disk(error, repository)
    return UnreachableError(f"{repository} could not be downloaded from {endpoint()} ({_line(error)}); try again")


def _refused(error: HfHubHTTPError, repository: str, revision: str | None) -> ZooError:
    """The error for a refusal by the Hub. GatedRepoError comes before its base class RepositoryNotFoundError."""
    status = error.response.status_code
    has_token = "authorization" in error.response.request.headers
    log_in = "log in: hf auth login (or set HF_TOKEN)"
    page = f"{endpoint()}/{repository}"
    if isinstance(error, GatedRepoError):
        if has_token:
            return AccessError(f"{repository} is gated, and your account has not been let in; ask for access at {page}")
        return AccessError(f"{repository} is gated; accept its conditions at {page}, then {log_in}")
    if isinstance(error, RepositoryNotFoundError):
        if has_token:
            return MissingError(
                f"{endpoint()} has no repository {repository} that your token may see; check its name, or let the "
                f"token read it"
            )
        return MissingError(f"{endpoint()} has no public repository {repository}; check its name, or {log_in}")
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(f"{repository} has no revision {revision}{_nearest_revision(repository, revision)}")
    if isinstance(error, DisabledRepoError):
        return AccessError(f"{repository} has been disabled by the Hub; see {page}, or use another copy")
    if isinstance(error, EntryNotFoundError):
        name = str(error.response.request.url.path).rpartition(f"{revision}/")[2]
        return NotFoundError(f"{repository} has no file {name} at {revision}; pin it again: zoo lock SPEC")
    said = error.server_message or error.response.headers.get("X-Error-Message") or _line(error)
    if status == 401 and not has_token:
        return AccessError(f"{endpoint()} wants to know who asks for {repository}; {log_in}")
    if status == 401:
        return AccessError(f"{endpoint()} does not accept your token for {repository} ({said:.80}); {log_in}")
    if status == 403:
        return AccessError(f"{endpoint()} refuses {repository} ({said:.80}); check what your token may do")
    if status in (408, 429) or status >= 500:
        reason = "too many requests" if status == 429 else f"status {status}"
        return UnreachableError(f"{endpoint()} cannot answer now ({reason}); try again later")
    return AccessError(f"{endpoint()} answers {status} for {repository} ({said:.80})")


def _nearest_revision(repository: str, revision: str | None) -> str:
    """The end of a message that suggests the repository's branches and tags. Empty if they cannot be listed."""
    try:
        refs = _api().list_repo_refs(**_named(repository))
    except (HTTPError, OSError, ValueError, KeyError, TypeError):
        return ""
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return nearest(str(revision), names) or f"; it has {', '.join(names[:5])}"


def _of_disk(error: OSError, repository: str) -> ZooError:
    """The error for a refusal by the operating system, or for a download that ended early."""
    cache = constants.HF_HUB_CACHE
    if "Consistency check failed" in str(error):
        return IntegrityError(f"{repository}: {_line(error)}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ZooError(
            f"no room for {repository} in {cache} ({error.strerror}); free some, or set HF_HOME to another disk"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessError(
            f"{error.filename or cache} may not be used ({error.strerror}), so {repository} cannot be downloaded; "
            f"mend its rights, or set HF_HOME to another folder"
        )
    return ZooError(f"{repository} could not be downloaded to {cache} ({_line(error)})")


def _no_hub(error: Exception) -> UnreachableError:
    return UnreachableError(
        f"{endpoint()} does not answer as a Hub does ({_line(error):.120}); log in to the network, or check proxies "
        f"and HF_ENDPOINT"
    )


def _ask(
    call: Callable[[], Answer], repository: str, revision: str | None, waits: Sequence[float] | None = None
) -> Answer:
    """The result of a request, which is repeated if that may help.

    Errors of the client, the network and the disk are raised as errors of zoo. Any other error, such as one that is
    caused by an answer that no Hub gives, is passed on.
    """
    for wait in (*(RETRY_SECONDS if waits is None else waits), None):
        try:
            return call()
        except (HTTPError, OSError, HFValidationError, XetDownloadError, RuntimeError) as error:
            seconds = _worth_waiting(error)
            if wait is None or seconds is None:
                raise told(error, repository, revision) from error
            time.sleep(max(wait, seconds))
    raise AssertionError("the last attempt returns or raises")


def _worth_waiting(error: Exception) -> float | None:
    """The least wait, in seconds, before the next attempt. None if that is useless, or if the client has made it."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        is_file = "/api/" not in error.response.request.url.path
        if status in (500, 502, 503, 504) or (status in (408, 429) and not is_file):
            text = error.response.headers.get("Retry-After", "")
            seconds = float(text) if text.isdecimal() else 0.0
            return seconds if seconds <= MAX_WAIT_SECONDS else None
        return None
    if not isinstance(error, HTTPError):
        return None
    request = getattr(error, "_request", None)
    done_by_client = request is not None and request.method == "GET" and "/api/" not in request.url.path
    kind = type(error).__name__
    if kind == "ProxyError" or (done_by_client and kind not in ("ReadError", "WriteError", "CloseError")):
        return None
    return 0.0


def _named(repository: str) -> dict[str, Any]:
    """A repository as arguments of the client's functions."""
    if repository.startswith(DATASETS):
        return {"repo_id": repository.removeprefix(DATASETS), "repo_type": "dataset"}
    return {"repo_id": repository, "repo_type": None}


def _api() -> HfApi:
    return HfApi(endpoint=endpoint())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Bar(tqdm):
    """A bar that shows nothing and reports the bytes so far. The client makes one for each file, two with Xet."""

    report: Callable[[int], None]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
        self._is_counted = options.get("position") != 0  # with Xet, the one at 0 counts network traffic
        self._done = int(options.get("initial") or 0)

    def update(self, n: float | None = 1) -> None:
        self._done += int(n or 0)
        if self._is_counted:
            self.report(self._done)
