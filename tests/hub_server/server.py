"""The server itself: two origins in threads of this process, the log of what was asked, and the faults."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from tests.hub_server.answers import DOWNLOADS, FROM_CDN, Call, HubError, Routes, answer, identify
from tests.hub_server.faults import Do, Fault, Origin, Request, Response, Rule
from tests.hub_server.repositories import Blob, Hub, Repository, RepoType, Token
from tests.hub_server.uploads import TO_CDN, UPLOADS
from tests.hub_server.wire import Listener

Files = Path | Mapping[str, bytes]
ROUTES: Mapping[Origin, Routes] = {"hub": DOWNLOADS + UPLOADS, "cdn": FROM_CDN + TO_CDN}


class HubServer:
    """A Hub on 127.0.0.1 for as long as the `with` block lasts.

    endpoint: what HF_ENDPOINT or `endpoint=` is set to. cdn: the other origin, where files in LFS come from.
    Repositories are named `org/name`; `repo_type` is "model" unless said otherwise.
    """

    def __init__(self) -> None:
        self.hub = Hub()
        self.rules: list[Rule] = []
        self._log: list[Request] = []
        self._mistakes: list[Exception] = []
        self._lock = threading.RLock()  # held while an answer is made, not while it is sent
        self._listeners: dict[Origin, Listener] = {origin: Listener(origin, self.respond) for origin in ROUTES}
        self.origins = {origin: listener.address for origin, listener in self._listeners.items()}
        self.endpoint, self.cdn = self.origins["hub"], self.origins["cdn"]

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """From now on the endpoint refuses connections, those that a client has kept open included."""
        for listener in self._listeners.values():
            listener.close()
        if self._mistakes:
            raise ExceptionGroup("the Hub server could not answer", self._mistakes)

    # --- repositories ------------------------------------------------------------------------------------------------

    def add(
        self,
        repo_id: str,
        files: Files,
        *,
        repo_type: RepoType = "model",
        gated: bool = False,
        private: bool = False,
        disabled: bool = False,
    ) -> str:
        """A new repository with one commit, whose 40 hex digits are returned. files: a folder, or contents by path."""
        assert re.fullmatch(r"[^/]+/[^/]+", repo_id), repo_id
        repository = Repository(repo_id, repo_type, gated=gated, private=private, disabled=disabled)
        with self._lock:
            self.hub.repositories[repo_type, repo_id] = repository
            return repository.commit(_blobs(files), title="initial commit").oid

    def commit(
        self,
        repo_id: str,
        changes: Mapping[str, bytes | None],
        *,
        repo_type: RepoType = "model",
        branch: str = "main",
        title: str = "update",
    ) -> str:
        """A new commit at the head of the branch; None deletes a file. Returns its 40 hex digits."""
        with self._lock:
            return self.repository(repo_id, repo_type).commit(_blobs(changes), title=title, branch=branch).oid

    def tag(self, repo_id: str, name: str, revision: str = "main", *, repo_type: RepoType = "model") -> None:
        """A tag at the revision; one of this name is moved, as a careless author does."""
        self.repository(repo_id, repo_type).tags[name] = self.head(repo_id, revision, repo_type=repo_type)

    def branch(self, repo_id: str, name: str, revision: str = "main", *, repo_type: RepoType = "model") -> None:
        self.repository(repo_id, repo_type).branches[name] = self.head(repo_id, revision, repo_type=repo_type)

    def repository(self, repo_id: str, repo_type: RepoType = "model") -> Repository:
        """For its flags (gated, private, disabled), which a test may change while it is served."""
        return self.hub.repositories[repo_type, repo_id]

    def head(self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model") -> str:
        """The 40 hex digits of a branch or a tag."""
        commit = self.repository(repo_id, repo_type).find(revision)
        assert commit is not None, revision
        return commit.oid

    def contents(self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model") -> dict[str, bytes]:
        """What is in a repository now, by path."""
        oid = self.head(repo_id, revision, repo_type=repo_type)
        files = self.repository(repo_id, repo_type).commits[oid].files
        return {path: blob.content for path, blob in sorted(files.items())}

    def token(self, user: str, *, read: tuple[str, ...] = (), write: tuple[str, ...] = ()) -> str:
        """A token for the user. read, write: patterns of the repositories it opens beyond what is public."""
        name = f"hf_{user}{len(self.hub.tokens)}"
        self.hub.tokens[name] = Token(user, read=read, write=write)
        return name

    # --- faults and the log ------------------------------------------------------------------------------------------

    def fault(
        self,
        fault: Fault,
        path: str = "*",
        *,
        method: str = "GET",
        origin: Origin | None = None,
        times: int | None = None,
        skip: int = 0,
    ) -> Rule:
        """From now on answers to such requests are spoilt; see Rule. method: "*" for any. Its `.fired` counts."""
        rule = Rule(fault, path, method, origin, times, skip)
        with self._lock:
            self.rules.append(rule)
        return rule

    def after(self, action: Callable[[], object], path: str = "*", *, method: str = "GET", skip: int = 0) -> Rule:
        """`action` runs once, when the first such request after `skip` others has its answer but not yet sent."""
        return self.fault(Do(action), path, method=method, times=1, skip=skip)

    def clear_faults(self) -> None:
        with self._lock:
            self.rules.clear()

    @property
    def log(self) -> list[Request]:
        """Every request so far, of both origins, in the order in which they were answered."""
        with self._lock:
            return list(self._log)

    def clear_log(self) -> None:
        with self._lock:
            self._log.clear()

    def requests(self, path: str = "*", *, method: str = "*", origin: Origin | None = None) -> list[Request]:
        """Those of the log to a path like this one, where * also matches slashes."""
        return [
            request
            for request in self.log
            if fnmatchcase(unquote(request.path), path)
            and method in ("*", request.method)
            and origin in (None, request.origin)
        ]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """What a child process needs on top of os.environ to see this Hub, an empty cache under `home`, and no other.

        Xet is off: with it, huggingface_hub uploads files by another protocol and never tries LFS.
        """
        quiet = ("TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS", "XET")
        return {f"HF_HUB_DISABLE_{name}": "1" for name in quiet} | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    # --- answering ---------------------------------------------------------------------------------------------------

    def respond(self, origin: Origin, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        """The answer as it will be sent, range and faults included; it is in the log before the client can see it."""
        url = urlsplit(target)
        wanted = headers.get("range")
        with self._lock:
            try:
                response = self._answer(origin, method, url, headers.get("authorization"), body)
                for rule in [rule for rule in self.rules if rule.matches(method, unquote(url.path), origin)]:
                    response = rule.apply(response)
            except Exception as error:  # noqa: BLE001 -- a mistake of this server fails the test, not only the request
                self._mistakes.append(error)
                response = Response(500, body=traceback.format_exc().encode())
            if wanted and response.ranges and response.status == 200:
                response = _cut_range(response, wanted)
            status = 0 if response.dropped else response.status
            has_token = "authorization" in headers
            self._log.append(Request(method, url.path, status, origin, has_token, wanted, url.query))
        return response

    def _answer(
        self, origin: Origin, method: str, url: SplitResult, authorization: str | None, body: bytes
    ) -> Response:
        try:
            token = identify(self.hub, authorization) if origin == "hub" else None
            call = Call(method, url.path, parse_qs(url.query), body, token, self.origins)
            return answer(self.hub, call, ROUTES[origin])
        except HubError as error:
            return error.response


def _blobs(files: Files | Mapping[str, bytes | None]) -> dict[str, Blob | None]:
    if isinstance(files, Path):
        files = {p.relative_to(files).as_posix(): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
    return {path: None if content is None else Blob.of(path, content) for path, content in files.items()}


def _cut_range(response: Response, wanted: str) -> Response:
    """206 with the bytes asked for, 416 if there are none; several ranges at once are ignored, as servers may."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if match is None or match[0] == "bytes=-":
        return response
    size = len(response.body)
    start = int(match[1]) if match[1] else max(0, size - int(match[2]))
    end = min(int(match[2]) + 1, size) if match[1] and match[2] else size
    if start >= size or end <= start:
        return Response(416, {"Content-Range": f"bytes */{size}"})
    headers = {**response.headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
    return replace(response, status=206, headers=headers, body=response.body[start:end])
