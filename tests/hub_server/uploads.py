"""What the Hub answers to whoever publishes: new repositories, LFS uploads, commits.

Source: huggingface_hub 2.4.0, hf_api.py (create_repo, create_commit), _commit_api.py, lfs.py, repocard.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import unquote

from tests.hub_server.answers import Call, HubError, Routes, as_json, find_commit, find_repository, read_card
from tests.hub_server.faults import Response
from tests.hub_server.repositories import GITATTRIBUTES, Blob, Hub, Repository, RepoType, is_lfs

REPO = r"/api/(model|dataset)s/([^/]+/[^/]+)"


def create(hub: Hub, call: Call) -> Response:
    """A repository with the Hub's own first commit, which holds .gitattributes; 409 if there is one."""
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    wanted = call.json
    repo_type: RepoType = "dataset" if wanted.get("type") == "dataset" else "model"
    owner = wanted.get("organization") or call.token.user
    repo_id = f"{owner}/{wanted['name']}"
    if not call.token.writes(repo_id):
        raise HubError(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{owner}"')
    url = f"{call.origins['hub']}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    if (repo_type, repo_id) in hub.repositories:
        return as_json({"error": f"You already created this {repo_type} repo: {repo_id}", "url": url}, 409)
    repository = Repository(repo_id, repo_type, private=wanted.get("visibility") == "private")
    repository.commit({".gitattributes": Blob(GITATTRIBUTES, lfs=False)}, title="initial commit")
    hub.repositories[repo_type, repo_id] = repository
    return as_json({"url": url, "name": repo_id})


def validate_yaml(hub: Hub, call: Call) -> Response:
    """Whether the card's metadata can be read. The client turns a warning into a Python one."""
    try:
        card = read_card(call.json["content"])
    except ValueError as error:
        return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    missing = [{"message": "empty or missing yaml metadata in repo card"}]
    return as_json({"errors": [], "warnings": [] if card else missing})


def preupload(hub: Hub, call: Call, repo_type: str, repo_id: str, revision: str) -> Response:
    """Which files go to LFS, and what is there already under their names."""
    files = find_commit(find_repository(hub, call, repo_type, repo_id, "write"), revision).files

    def mode(file: dict[str, Any]) -> dict[str, Any]:
        path = file["path"]
        known = {"oid": files[path].etag} if path in files else {}
        how = "lfs" if is_lfs(path, file["size"]) else "regular"
        return {"path": path, "uploadMode": how, "shouldIgnore": False} | known

    return as_json({"files": [mode(file) for file in call.json["files"]]})


def lfs_batch(hub: Hub, call: Call, prefix: str | None, repo_id: str) -> Response:
    """Where to put each object, in one piece; nothing to do for those that are here."""
    repo_type = prefix.removesuffix("s/") if prefix else "model"
    repository = find_repository(hub, call, repo_type, repo_id, "write")

    def action(wanted: dict[str, Any]) -> dict[str, Any]:
        oid = wanted["oid"]
        if hub.find_object(oid, repository) is not None:
            return {"oid": oid, "size": wanted["size"]}
        upload = {"href": f"{call.origins['cdn']}/upload/{repo_type}s/{repo_id}/{oid}"}
        verify = {"href": f"{call.origins['hub']}/{prefix or ''}{repo_id}.git/info/lfs/objects/verify"}
        return {"oid": oid, "size": wanted["size"], "actions": {"upload": upload, "verify": verify}}

    return as_json({"transfer": "basic", "objects": [action(wanted) for wanted in call.json["objects"]]})


def lfs_put(hub: Hub, call: Call, sha256: str) -> Response:
    if hashlib.sha256(call.body).hexdigest() != sha256:
        return Response(400, {"Content-Type": "application/xml"}, b"<Error><Code>BadDigest</Code></Error>")
    hub.objects[sha256] = call.body
    return Response(200, {"ETag": f'"{sha256}"'})


def lfs_verify(hub: Hub, call: Call, prefix: str | None, repo_id: str) -> Response:
    find_repository(hub, call, prefix.removesuffix("s/") if prefix else "model", repo_id, "write")
    content = hub.find_object(call.json["oid"])
    if content is None or len(content) != call.json["size"]:
        raise HubError(404, "The object was not uploaded")
    return as_json({})


def commit(hub: Hub, call: Call, repo_type: str, repo_id: str, revision: str) -> Response:
    """One commit of all that the lines say, or none: a wrong line, or a parent that is no longer the head."""
    repository = find_repository(hub, call, repo_type, repo_id, "write")
    if call.flag("create_pr"):
        raise HubError(400, "This server has no pull requests.")
    branch = unquote(revision)
    if branch not in repository.branches:
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit", repository.branches[branch]) != repository.branches[branch]:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = repository.commits[repository.branches[branch]].files
    changes: dict[str, Blob | None] = {}
    for line in lines:
        changes |= changed(hub, line["key"], line["value"], list(files))
    new = repository.commit(changes, title=header["summary"], branch=branch)
    prefix = "datasets/" if repo_type == "dataset" else ""
    url = f"{call.origins['hub']}/{prefix}{repo_id}/commit/{new.oid}"
    return as_json({"success": True, "commitOid": new.oid, "commitUrl": url, "hookOutput": ""})


def changed(hub: Hub, key: str, value: dict[str, Any], paths: list[str]) -> dict[str, Blob | None]:
    """What one line of a commit does to which files."""
    match key:
        case "header":
            return {}
        case "file":
            return {value["path"]: Blob(base64.b64decode(value["content"]), lfs=False)}
        case "lfsFile":
            content = hub.find_object(value["oid"])
            if content is None:
                raise HubError(400, f"LFS pointer of {value['path']} points to a file that does not exist")
            return {value["path"]: Blob(content, lfs=True)}
        case "deletedFile":
            gone = [path for path in paths if path == value["path"]]
        case "deletedFolder":
            gone = [path for path in paths if path.startswith(value["path"].rstrip("/") + "/")]
        case _:
            raise HubError(400, f"Unknown operation {key}")
    if not gone:
        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
    return dict.fromkeys(gone)


UPLOADS: Routes = (
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"{REPO}/preupload/([^/]+)", preupload),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/verify", lfs_verify),
    ("POST", rf"{REPO}/commit/([^/]+)", commit),
)
TO_CDN: Routes = (("PUT", r"/upload/.+/([0-9a-f]{64})", lfs_put),)
