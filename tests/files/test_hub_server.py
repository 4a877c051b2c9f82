"""The real huggingface_hub against the server: what it asks, what it makes of the answers, what faults do to it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    HfApi,
    auth_check,
    constants,
    get_safetensors_metadata,
    hf_hub_download,
    list_repo_refs,
    list_repo_tree,
    model_info,
    resolve_revision,
    snapshot_download,
    whoami,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from tests.hub_server import (
    NO_COMMIT,
    NO_ETAG,
    Body,
    Cut,
    Drop,
    Flip,
    Headers,
    Html,
    HubServer,
    IgnoreRange,
    Slow,
    Status,
    Truncate,
    git_sha1,
)

REPO = "org/name"
HEADER = json.dumps({"w": {"dtype": "U8", "shape": [256_000], "data_offsets": [0, 256_000]}}).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(range(256)) * 1000
CARD = b"---\nlicense: mit\n---\n# Name\n"
FILES = {"README.md": CARD, "config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS, "sub/vocab.txt": b"a\nb\n"}
CONFIG = f"/{REPO}/resolve/main/config.json"


def read_folder(folder: str | Path) -> dict[str, bytes]:
    folder = Path(folder)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def asked(server: HubServer) -> list[str]:
    return [str(request) for request in server.log]


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_download_is_one_head_and_one_get_and_then_one_head(hub_server: HubServer) -> None:
    first = hub_server.add(REPO, FILES)
    path = hf_hub_download(REPO, "config.json")
    assert Path(path).read_bytes() == FILES["config.json"]
    assert asked(hub_server) == [f"HEAD {CONFIG}", f"GET {CONFIG}"]
    hub_server.clear_log()
    hf_hub_download(REPO, "config.json")
    assert asked(hub_server) == [f"HEAD {CONFIG}"]
    hub_server.clear_log()
    assert hf_hub_download(REPO, "config.json", revision=first) == path
    assert asked(hub_server) == []


def test_blobs_are_named_by_git_sha1_and_in_lfs_by_sha256(hub_server: HubServer) -> None:
    hub_server.add(REPO, FILES)
    assert Path(hf_hub_download(REPO, "config.json")).resolve().name == git_sha1(FILES["config.json"])
    assert Path(hf_hub_download(REPO, "model.safetensors")).resolve().name == hashlib.sha256(WEIGHTS).hexdigest()


def test_git_agrees_on_the_name_of_a_blob() -> None:
    assert git_sha1(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_a_folder_is_served_like_a_mapping(hub_server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    assert hub_server.add("org/folder", folder) == hub_server.add(REPO, FILES)
    assert read_folder(snapshot_download("org/folder")) == FILES


def test_a_snapshot_is_two_requests_and_then_its_files_at_one_commit(hub_server: HubServer) -> None:
    first = hub_server.add(REPO, FILES)
    folder = snapshot_download(REPO)
    assert Path(folder).name == first
    assert read_folder(folder) == FILES
    api = [f"GET /api/models/{REPO}/revision/main", f"GET /api/models/{REPO}/tree/{first}"]
    assert asked(hub_server)[:2] == api
    assert {request.method for request in hub_server.requests(f"*/resolve/{first}/*")} == {"HEAD", "GET"}
    assert len(hub_server.log) == 2 + 2 * len(FILES)
    hub_server.clear_log()
    snapshot_download(REPO)
    assert asked(hub_server) == api[:1]


def test_older_commits_stay_and_names_move(hub_server: HubServer) -> None:
    first = hub_server.add(REPO, FILES)
    hub_server.tag(REPO, "v1")
    second = hub_server.commit(REPO, {"config.json": b"{}", "README.md": None})
    hub_server.branch(REPO, "with/slash", first)
    assert first != second
    assert resolve_revision(REPO).resolved == second
    assert resolve_revision(REPO, revision="v1").resolved == first
    assert read_folder(snapshot_download(REPO, revision=first)) == FILES
    assert read_folder(snapshot_download(REPO, revision="with/slash")) == FILES
    changed = {path: content for path, content in FILES.items() if path != "README.md"} | {"config.json": b"{}"}
    assert read_folder(snapshot_download(REPO)) == changed == hub_server.contents(REPO)
    refs = list_repo_refs(REPO)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": second, "with/slash": first}
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first}


def test_a_repository_may_change_between_two_requests(hub_server: HubServer) -> None:
    first = hub_server.add(REPO, FILES)
    hub_server.after(lambda: hub_server.commit(REPO, {"config.json": b"{}"}), "*/revision/main")
    folder = snapshot_download(REPO)
    assert Path(folder).name == first != hub_server.head(REPO)
    assert read_folder(folder) == FILES


def test_a_repository_describes_itself(hub_server: HubServer) -> None:
    first = hub_server.add(REPO, FILES, gated=True)
    info = model_info(REPO, files_metadata=True)
    assert (info.id, info.sha, info.private, info.gated) == (REPO, first, False, "auto")
    assert info.card_data is not None
    assert info.card_data["license"] == "mit"
    assert [(s.rfilename, s.size) for s in info.siblings or []] == [(p, len(FILES[p])) for p in sorted(FILES)]
    entries = {entry.path: entry for entry in list_repo_tree(REPO, recursive=True, expand=True)}
    assert set(entries) == {*FILES, "sub"}
    weights = entries["model.safetensors"]
    assert isinstance(weights, RepoFile)
    assert weights.lfs is not None
    assert (weights.lfs.sha256, weights.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert isinstance(entries["sub"], RepoFolder)
    assert [entry.path for entry in list_repo_tree(REPO, "sub")] == ["sub/vocab.txt"]
    assert "sub/vocab.txt" not in {entry.path for entry in list_repo_tree(REPO)}


def test_a_data_set_is_not_a_model_of_its_name(hub_server: HubServer) -> None:
    hub_server.add(REPO, {"data.csv": b"a,b\n", "data.parquet": WEIGHTS}, repo_type="dataset")
    folder = snapshot_download(REPO, repo_type="dataset")
    assert read_folder(folder) == hub_server.contents(REPO, repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download(REPO)


def test_a_header_of_safetensors_is_read_by_range(hub_server: HubServer) -> None:
    hub_server.add(REPO, FILES)
    assert get_safetensors_metadata(REPO).parameter_count == {"U8": 256_000}
    assert {request.range for request in hub_server.requests(origin="cdn")} == {"bytes=0-100000"}


def test_other_processes_and_other_hubs(hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.add(REPO, FILES)
    code = f"import huggingface_hub as h; print(h.snapshot_download({REPO!r}), h.get_token())"
    environment = os.environ | hub_server.environment(tmp_path / "elsewhere")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    folder, token = done.stdout.split()
    assert folder.startswith(str(tmp_path / "elsewhere"))
    assert token == "None"
    assert read_folder(folder) == FILES
    with HubServer() as other:
        other.add(REPO, {"config.json": b"other"})
        path = hf_hub_download(REPO, "config.json", endpoint=other.endpoint, cache_dir=tmp_path / "other")
        assert Path(path).read_bytes() == b"other"


def test_a_closed_server_refuses_connections_that_were_kept_open(hub_server: HubServer, tmp_path: Path) -> None:
    other = HubServer()
    other.add(REPO, FILES)
    assert HfApi(endpoint=other.endpoint).model_info(REPO).sha == other.head(REPO)
    other.close()
    with pytest.raises(httpx2.ConnectError):
        HfApi(endpoint=other.endpoint).model_info(REPO)


# --- who may do what -------------------------------------------------------------------------------------------------


def test_a_token_does_not_follow_a_redirect_to_the_cdn(hub_server: HubServer) -> None:
    token = hub_server.token("ann", read=(REPO,))
    hub_server.add(REPO, FILES, private=True)
    snapshot_download(REPO, token=token)
    get_safetensors_metadata(REPO, token=token)  # this one lets httpx follow the redirect
    assert {request.has_token for request in hub_server.requests(origin="hub")} == {True}
    assert [request.has_token for request in hub_server.requests(origin="cdn")] == [False, False]


def test_refusals_have_the_class_that_the_hub_gives_them(hub_server: HubServer) -> None:
    hub_server.add("org/gated", FILES, gated=True)
    hub_server.add("org/private", FILES, private=True)
    hub_server.add("org/disabled", FILES, disabled=True)
    hub_server.add(REPO, FILES)
    ann, bob = hub_server.token("ann", read=("org/gated", "org/private")), hub_server.token("bob")

    def status(
        error: type[HfHubHTTPError],
        repo_id: str,
        token: str | bool = False,
        filename: str = "config.json",
        revision: str = "main",
    ) -> int:
        with pytest.raises(error) as caught:
            hf_hub_download(repo_id, filename, token=token, revision=revision)
        assert type(caught.value) is error
        return caught.value.response.status_code

    assert status(GatedRepoError, "org/gated") == 401
    assert status(GatedRepoError, "org/gated", bob) == 403
    assert status(RepositoryNotFoundError, "org/private") == 401
    assert status(RepositoryNotFoundError, "org/private", bob) == 404
    assert status(RepositoryNotFoundError, "org/missing") == 401
    assert status(RepositoryNotFoundError, "org/missing", bob) == 404
    assert status(RevisionNotFoundError, REPO, revision="v9") == 404
    assert status(RemoteEntryNotFoundError, REPO, filename="missing.json") == 404
    assert status(HfHubHTTPError, REPO, "hf_unknown") == 401
    with pytest.raises(LocalEntryNotFoundError) as caught:
        hf_hub_download("org/disabled", "config.json")
    assert "disabled" in str(caught.value.__cause__)
    for repo_id in ("org/gated", "org/private"):
        assert Path(hf_hub_download(repo_id, "config.json", token=ann)).read_bytes() == FILES["config.json"]
        auth_check(repo_id, token=ann)
    assert whoami(ann)["name"] == "ann"


# --- uploads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_what_is_uploaded_is_downloaded_bit_equal(hub_server: HubServer, tmp_path: Path, repo_type: str) -> None:
    api = HfApi(token=hub_server.token("ann", write=("ann/*",)))
    hub_server.add(REPO, FILES)
    local = snapshot_download(REPO)
    hub_server.clear_log()
    url = api.create_repo("name", repo_type=repo_type)
    assert url.repo_id == "ann/name"
    assert api.create_repo("ann/name", repo_type=repo_type, exist_ok=True) == url
    commit = api.upload_folder(repo_id="ann/name", folder_path=local, repo_type=repo_type)
    assert api.repo_info("ann/name", repo_type=repo_type).sha == commit.oid
    back = read_folder(api.snapshot_download("ann/name", repo_type=repo_type))
    assert back.pop(".gitattributes").startswith(b"*.")
    assert back == FILES
    assert [request.has_token for request in hub_server.requests("/upload/*", method="PUT")] == [False]
    sent = len(hub_server.log)
    assert api.upload_folder(repo_id="ann/name", folder_path=local, repo_type=repo_type).oid == commit.oid
    again = hub_server.log[sent:]
    assert not [request for request in again if request.method == "PUT" or "/commit/" in request.path]


def test_what_may_not_be_uploaded_is_refused_and_changes_nothing(hub_server: HubServer) -> None:
    ann, bob = hub_server.token("ann", write=("ann/*",)), hub_server.token("bob", read=("ann/*",))
    head = hub_server.add("ann/name", FILES)

    def upload(token: str, path: str = "config.json", content: bytes = b"new", parent: str | None = None) -> str:
        api = HfApi(token=token)
        return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="ann/name", parent_commit=parent).oid

    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        upload(bob)
    with pytest.raises(HfHubHTTPError, match="rights to create"):
        HfApi(token=bob).create_repo("ann/other")
    with pytest.raises(ValueError, match="Invalid metadata"):
        upload(ann, "README.md", b"---\n- a list\n---\n")
    assert hub_server.head("ann/name") == head
    second = upload(ann, parent=head)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        upload(ann, content=b"newer", parent=head)
    assert hub_server.head("ann/name") == second
    HfApi(token=ann).delete_folder("sub", "ann/name")
    assert sorted(hub_server.contents("ann/name")) == ["README.md", "config.json", "model.safetensors"]


def test_an_upload_that_fails_leaves_no_commit(hub_server: HubServer) -> None:
    api = HfApi(token=hub_server.token("ann", write=("ann/*",)))
    head = hub_server.add("ann/name", {})
    hub_server.fault(Status(403), "/upload/*", method="PUT")
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors'"):
        api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors", repo_id="ann/name")
    assert hub_server.head("ann/name") == head


# --- faults ----------------------------------------------------------------------------------------------------------


def weights_after(server: HubServer, install: Callable[[], object]) -> bytes:
    server.add(REPO, FILES)
    install()
    return Path(hf_hub_download(REPO, "model.safetensors")).read_bytes()


@pytest.mark.parametrize("ignored", [False, True])
def test_a_cut_body_is_resumed_or_begun_again(hub_server: HubServer, ignored: bool) -> None:
    step = constants.DOWNLOAD_CHUNK_SIZE  # what has arrived of a step that is not complete is asked for again
    content = WEIGHTS * (step // len(WEIGHTS) + 2)
    hub_server.add(REPO, {"model.safetensors": content})
    rule = hub_server.fault(Cut(at=step + 1000), "*model.safetensors", times=1)
    if ignored:
        hub_server.fault(IgnoreRange())
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == content
    assert rule.fired == 1
    seen = [(request.method, request.origin, request.range, request.status) for request in hub_server.log]
    rest = ("GET", "cdn", f"bytes={step}-", 200 if ignored else 206)
    assert seen == [("HEAD", "hub", None, 302), ("GET", "cdn", None, 200), rest]


def test_a_reset_in_the_body_is_not_tried_again(hub_server: HubServer) -> None:
    with pytest.raises(httpx2.ReadError):
        weights_after(hub_server, lambda: hub_server.fault(Cut(at=1000, reset=True)))
    assert len(hub_server.requests(origin="cdn")) == 1


def test_a_short_body_is_found_by_its_size(hub_server: HubServer) -> None:
    with pytest.raises(OSError, match="Consistency check failed"):
        weights_after(hub_server, lambda: hub_server.fault(Truncate(at=1000)))


def test_a_flipped_bit_is_accepted(hub_server: HubServer) -> None:
    got = weights_after(hub_server, lambda: hub_server.fault(Flip(at=5000), "*.safetensors"))
    assert [i for i, pair in enumerate(zip(got, WEIGHTS, strict=True)) if pair[0] != pair[1]] == [5000]


def test_another_file_of_the_same_size_is_accepted(hub_server: HubServer) -> None:
    other = WEIGHTS[::-1]
    assert weights_after(hub_server, lambda: hub_server.fault(Body(other))) == other


def test_a_wrong_etag_becomes_the_name_of_the_blob(hub_server: HubServer) -> None:
    hub_server.add(REPO, FILES)
    hub_server.fault(Headers({"ETag": '"' + "a" * 40 + '"'}), method="HEAD")
    assert Path(hf_hub_download(REPO, "config.json")).resolve().name == "a" * 40


@pytest.mark.parametrize("fault", [Html(), NO_COMMIT, NO_ETAG, Status(403), Status(500)], ids=repr)
def test_what_is_no_answer_of_the_hub_is_not_found_locally_either(hub_server: HubServer, fault: Status | Html) -> None:
    hub_server.add(REPO, FILES)
    rule = hub_server.fault(fault, "*config.json", method="HEAD", times=None if fault != Status(500) else 1)
    if fault == Status(500):  # tried again, and the second time it is there
        assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == FILES["config.json"]
    else:
        with pytest.raises(LocalEntryNotFoundError):
            hf_hub_download(REPO, "config.json")
    assert rule.fired == 1


def test_a_dropped_connection_is_an_error_even_with_a_cache(hub_server: HubServer) -> None:
    hub_server.add(REPO, FILES)
    hf_hub_download(REPO, "config.json")
    hub_server.fault(Drop(), method="HEAD")
    with pytest.raises(httpx2.RemoteProtocolError):
        hf_hub_download(REPO, "config.json")
    assert hub_server.log[-1].status == 0


def test_a_rate_limit_is_waited_for(hub_server: HubServer) -> None:
    hub_server.add(REPO, FILES)
    hub_server.fault(Status(429, retry_after=0), times=1)
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == FILES["config.json"]
    assert [request.status for request in hub_server.requests(method="GET")] == [429, 200]


def test_a_slow_body_takes_its_time(hub_server: HubServer) -> None:
    start = time.monotonic()
    got = weights_after(hub_server, lambda: hub_server.fault(Slow(bytes_per_second=1e6)))
    assert got == WEIGHTS
    assert time.monotonic() - start > 0.25  # 256 kB at 1 MB/s


def test_a_fault_strikes_where_and_as_often_as_it_should(hub_server: HubServer) -> None:
    hub_server.add(REPO, FILES)
    rule = hub_server.fault(Status(404, "EntryNotFound"), "*/config.json", method="HEAD", times=1, skip=1)

    def missing(filename: str) -> bool:
        try:
            hf_hub_download(REPO, filename)
        except RemoteEntryNotFoundError:
            return True
        return False

    assert [missing(name) for name in ("config.json", "README.md", "config.json", "config.json")] == [
        *(False, False, True, False)
    ]
    assert rule.fired == 1
    hub_server.fault(Status(404, "EntryNotFound"), method="*")
    hub_server.clear_faults()
    assert not missing("config.json")


def test_a_mistake_of_the_server_fails_the_test() -> None:
    server = HubServer()
    server.fault(Flip(at=1000))
    server.add(REPO, FILES)
    with pytest.raises(ExceptionGroup, match="could not answer"), server:
        assert httpx2.get(f"{server.endpoint}{CONFIG}").status_code == 500
