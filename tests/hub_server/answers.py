"""What the Hub answers to each request: status, headers and body, as huggingface_hub reads them.

Xet is left out: no answer has its headers, so clients download from the CDN by plain HTTP. Redirects of small files
within the Hub are left out too; only files in LFS are redirected.
Source: huggingface_hub 2.4.0, file_download.py, hf_api.py, _commit_api.py, lfs.py; and git-lfs, docs/api/batch.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import parse_qs, quote, unquote

import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub

from tests.hub_server.faults import Origin, Response
from tests.hub_server.repositories import DATE, Blob, Commit, Hub, Repository, RepoType, Token

Right = Literal["see", "read", "write"]


class HubError(Exception):
    """An answer that says no."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if code is not None:
            named["X-Error-Code"] = code
        named |= {"X-Error-Message": message, "Content-Type": "application/json; charset=utf-8"}
        self.response = Response(status, named, json.dumps({"error": message}).encode())
        super().__init__(message)


@dataclass(frozen=True)
class Call:
    """A request, and where the two origins are. path: quoted, so that revisions with slashes stay in one piece."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    body: bytes
    token: Token | None
    origins: Mapping[Origin, str]

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def as_json(value: object, status: int = 200) -> Response:
    return Response(status, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(value).encode())


def identify(hub: Hub, authorization: str | None) -> Token | None:
    """Whose token it is; None without one. A token that the Hub does not know is refused, even for public things."""
    if authorization is None:
        return None
    token = hub.tokens.get(authorization.removeprefix("Bearer "))
    if token is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return token


def find_repository(hub: Hub, call: Call, repo_type: str, repo_id: str, right: Right) -> Repository:
    """The repository, if the token's owner may do with it what `right` says."""
    repository = hub.repositories.get((cast(RepoType, repo_type), repo_id))
    token = call.token
    if repository is None or (repository.private and not (token and token.reads(repo_id))):
        if token is None:  # the Hub does not tell what is private from what is missing
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")
    if repository.disabled:
        raise HubError(403, "Access to this resource is disabled.")
    if right == "write" and not (token and token.writes(repo_id)):
        if token is None:
            raise HubError(401, "Invalid username or password.")
        raise HubError(403, f"Forbidden: you must have write access to {repo_type} {repo_id}")
    if right == "read" and repository.gated and not (token and token.reads(repo_id)):
        restricted = f"Access to {repo_type} {repo_id} is restricted"
        if token is None:
            raise HubError(401, f"{restricted}. You must be authenticated to access it. Please log in.", "GatedRepo")
        raise HubError(403, f"{restricted} and you are not in the authorized list.", "GatedRepo")
    return repository


def find_commit(repository: Repository, revision: str) -> Commit:
    commit = repository.find(unquote(revision))
    if commit is None:
        raise HubError(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
    return commit


# --- files -----------------------------------------------------------------------------------------------------------


def resolve(hub: Hub, call: Call, prefix: str | None, repo_id: str, revision: str, path: str) -> Response:
    """A file, or for one in LFS the way to the CDN. What a HEAD needs to know is in the headers of both."""
    repo_type = prefix.removesuffix("s/") if prefix else "model"
    commit = find_commit(find_repository(hub, call, repo_type, repo_id, "read"), revision)
    blob = commit.files.get(unquote(path))
    if blob is None:
        raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "ETag": f'"{blob.etag}"'}
    if not blob.lfs:
        return Response(200, headers | {"Content-Type": "text/plain; charset=utf-8"}, blob.content, ranges=True)
    # Not as on the Hub, where it is a signed address: the name of the file at the end, so that faults can name it.
    headers["Location"] = f"{call.origins['cdn']}/{repo_type}s/{repo_id}/{blob.sha256}/{path}"
    headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
    return Response(302, headers, f"Found. Redirecting to {headers['Location']}".encode())


def from_cdn(hub: Hub, call: Call, sha256: str) -> Response:
    """An object, to whoever has its address."""
    content = hub.find_object(sha256)
    if content is None:
        return Response(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
    headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    return Response(200, headers, content, ranges=True)


# --- what is in a repository -----------------------------------------------------------------------------------------


def read_card(text: str) -> dict[str, Any] | None:
    """The metadata at the head of a README.md, None without any; raises ValueError if they cannot be read."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    if match is None:
        return None
    try:
        card = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(card, dict):
        raise ValueError('"metadata" must be of type object')
    return card


def card_data(commit: Commit) -> dict[str, Any]:
    """What the Hub shows of the README.md of a commit."""
    try:
        return (read_card(commit.files["README.md"].content.decode()) if "README.md" in commit.files else None) or {}
    except ValueError:
        return {}


def sibling(path: str, blob: Blob, *, with_blobs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        entry |= {"size": len(blob.content), "blobId": blob.git_oid}
        if blob.lfs:
            entry["lfs"] = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return entry


def info(hub: Hub, call: Call, repo_type: str, repo_id: str, revision: str | None) -> Response:
    repository = find_repository(hub, call, repo_type, repo_id, "see")
    commit = find_commit(repository, revision or "main")
    entries = [sibling(path, blob, with_blobs=call.flag("blobs")) for path, blob in sorted(commit.files.items())]
    common = {"_id": repo_id, "id": repo_id, "author": repo_id.split("/")[0], "sha": commit.oid, "siblings": entries}
    flags = {"private": repository.private, "gated": "auto" if repository.gated else False, "disabled": False}
    dates = {"createdAt": DATE, "lastModified": DATE}
    counts = {"tags": [], "downloads": 0, "likes": 0}
    return as_json(common | flags | dates | counts | {"cardData": card_data(commit)})


def tree_entry(path: str, blob: Blob | None, commit: Commit, *, expand: bool) -> dict[str, Any]:
    """A file, or without a blob a folder. Its oid is git's, in LFS that of the pointer."""
    if blob is None:
        entry: dict[str, Any] = {"type": "directory", "oid": commit.oid, "size": 0, "path": path}
    else:
        entry = {"type": "file", "oid": blob.git_oid, "size": len(blob.content), "path": path}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    if expand:
        entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": DATE}
    return entry


def tree(hub: Hub, call: Call, repo_type: str, repo_id: str, revision: str, folder: str | None) -> Response:
    commit = find_commit(find_repository(hub, call, repo_type, repo_id, "see"), revision)
    start = f"{unquote(folder)}/" if folder else ""
    found: dict[str, Blob | None] = {}
    for path, blob in sorted(commit.files.items()):
        if path.startswith(start):
            names = path.removeprefix(start).split("/")
            found |= {start + "/".join(names[:depth]): None for depth in range(1, len(names))}
            found[path] = blob
    if folder and not found:
        raise HubError(404, f"{unquote(folder)} does not exist on {unquote(revision)}", "EntryNotFound")
    if not call.flag("recursive"):
        found = {path: blob for path, blob in found.items() if "/" not in path.removeprefix(start)}
    return as_json([tree_entry(path, blob, commit, expand=call.flag("expand")) for path, blob in found.items()])


def paths_info(hub: Hub, call: Call, repo_type: str, repo_id: str, revision: str) -> Response:
    commit = find_commit(find_repository(hub, call, repo_type, repo_id, "see"), revision)
    form = parse_qs(call.body.decode())
    expand = form.get("expand", [""])[0].lower() == "true"
    known = [path for path in form.get("paths", []) if path in commit.files]
    return as_json([tree_entry(path, commit.files[path], commit, expand=expand) for path in known])


def refs(hub: Hub, call: Call, repo_type: str, repo_id: str) -> Response:
    repository = find_repository(hub, call, repo_type, repo_id, "see")

    def listed(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{quote(n)}", "targetCommit": oid} for n, oid in names.items()]

    branches, tags = listed("heads", repository.branches), listed("tags", repository.tags)
    return as_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def auth_check(hub: Hub, call: Call, repo_type: str, repo_id: str) -> Response:
    find_repository(hub, call, repo_type, repo_id, "read")
    return as_json({})


def whoami(hub: Hub, call: Call) -> Response:
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    access = {"accessToken": {"displayName": "test", "role": "write" if call.token.write else "read"}}
    return as_json({"type": "user", "name": call.token.user, "orgs": [], "auth": {"type": "access_token"} | access})


# --- routes ----------------------------------------------------------------------------------------------------------

Routes = tuple[tuple[str, str, Callable[..., Response]], ...]  # methods, pattern of the path, who answers
REPO = r"/api/(model|dataset)s/([^/]+/[^/]+)"

DOWNLOADS: Routes = (
    ("HEAD|GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
    ("GET", rf"{REPO}(?:/revision/([^/]+))?", info),
    ("GET", rf"{REPO}/tree/([^/]+)(?:/(.+))?", tree),
    ("GET", rf"{REPO}/refs", refs),
    ("GET", rf"{REPO}/auth-check", auth_check),
    ("POST", rf"{REPO}/paths-info/([^/]+)", paths_info),
    ("GET", r"/api/whoami-v2", whoami),
)
FROM_CDN: Routes = (("HEAD|GET", r"/(?:model|dataset)s/.+?/([0-9a-f]{64})/.+", from_cdn),)


def answer(hub: Hub, call: Call, routes: Routes) -> Response:
    """What the first route that fits answers, with the groups of its pattern as arguments.

    Raises HubError if that is a refusal.
    """
    for methods, pattern, respond in routes:
        match = re.fullmatch(pattern, call.path)
        if match and re.fullmatch(methods, call.method):
            return respond(hub, call, *match.groups())
    raise HubError(404, f"Sorry, we can't find {call.method} {call.path}")
