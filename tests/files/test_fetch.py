"""Pins and files from a Hub on this machine, by the real client: every fault it can have, and what it costs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

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
    Slow,
    Status,
    Truncate,
)
from zoo_core.contracts import FileHash, Source
from zoo_core.errors import AccessError, IntegrityError, NotFoundError, UsageError, ZooError
from zoo_core.files import fetch, hub
from zoo_core.files.fetch import DownloadProgress, files_of, folder, pin, pin_plan, pin_plans
from zoo_core.lock import Pinned, part_key
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import resolve

ROOT = Path(__file__).parents[2]
REPO = "org/name"
WEIGHTS = random.Random(0).randbytes(100_000)
FILES = {
    "config.json": b'{"hidden_size": 8}',
    "tokenizer/vocab.txt": b"[PAD]\n[UNK]\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS[::-1],
    "README.md": b"---\nlicense: mit\n---\n",
}
SOURCE = Source(
    repository=REPO, patterns=("*.json", "tokenizer/*"), weights=("model.safetensors", "model*.safetensors*")
)
WANTED = ("config.json", "model.safetensors", "tokenizer/vocab.txt")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    monkeypatch.setattr(hub, "RETRY_SECONDS", (0.01, 0.01, 0.01))


@pytest.fixture
def server(hub_server: HubServer) -> HubServer:
    hub_server.add(REPO, FILES)
    return hub_server


def sha256(content: bytes) -> FileHash:
    return FileHash(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def said(server: HubServer) -> list[str]:
    """What was asked, with commits, objects and the repository left out."""
    left_out = {server.head(REPO): "COMMIT", sha256(WEIGHTS).sha256: "OBJECT", f"/{REPO}": ""}
    lines = [str(request) for request in server.log]
    for text, short in left_out.items():
        lines = [line.replace(text, short) for line in lines]
    return lines


def read(where: Path) -> dict[str, bytes]:
    return {path.relative_to(where).as_posix(): path.read_bytes() for path in where.rglob("*") if path.is_file()}


def caught(call: Callable[[], object], error: type[ZooError], *hints: str) -> str:
    """The one line of the error that a call raises, which holds the hints."""
    with pytest.raises(error) as info:
        call()
    text = str(info.value)
    assert "\n" not in text
    for hint in hints:
        assert hint in text
    return text


def blobs() -> list[Path]:
    """The files of the Hugging Face cache, half ones included."""
    from huggingface_hub import constants

    return [path for path in Path(constants.HF_HUB_CACHE).rglob("blobs/*") if path.is_file()]


# --- pins ------------------------------------------------------------------------------------------------------------


def test_a_pin_is_one_commit_with_the_hash_of_each_file_that_fits(server: HubServer) -> None:
    found = pin(SOURCE)
    assert found == Pinned(
        repository=REPO, revision=server.head(REPO), files={name: sha256(FILES[name]) for name in WANTED}
    )
    assert said(server) == [
        "GET /api/models",
        "GET /api/models/tree/COMMIT",
        *(
            f"{verb} /resolve/COMMIT/{name}"
            for name in ("config.json", "tokenizer/vocab.txt")
            for verb in ("HEAD", "GET")
        ),
    ]


def test_a_commit_is_asked_for_once_and_its_pin_never_again(server: HubServer) -> None:
    named = pin(SOURCE)
    server.clear_log()
    assert pin(SOURCE) == named
    assert said(server) == ["GET /api/models"]  # the branch may have moved; what its commit holds is known
    server.clear_log()
    assert pin(replace(SOURCE, revision=named.revision)) == named
    assert said(server) == []


def test_a_commit_that_is_written_needs_no_look_up(server: HubServer) -> None:
    commit = server.head(REPO)
    server.commit(REPO, {"config.json": b"{}"})
    source = replace(SOURCE, revision=commit, patterns=())
    assert pin(source).files == {"model.safetensors": sha256(WEIGHTS)}
    assert [str(request) for request in server.log] == [f"GET /api/models/{REPO}/tree/{commit}"]


def test_a_pin_follows_a_branch_that_moves_and_a_tag(server: HubServer) -> None:
    first = pin(SOURCE)
    server.tag(REPO, "v1")
    server.commit(REPO, {"config.json": b"{}"})
    second = pin(SOURCE)
    assert second.revision == server.head(REPO) != first.revision
    assert second.files["config.json"] == sha256(b"{}")
    assert pin(replace(SOURCE, revision="v1")) == first


def test_a_repository_that_changes_between_two_requests_gives_one_commit(server: HubServer) -> None:
    commit = server.head(REPO)
    server.after(
        lambda: server.commit(REPO, {"config.json": b"{}", "model.safetensors": b"new"}), f"/api/models/{REPO}"
    )
    found = pin(SOURCE)
    assert server.head(REPO) != commit
    assert found.revision == commit
    server.commit(REPO, {"model.safetensors": b"newer"})
    assert read(folder(found, WANTED)) == {name: FILES[name] for name in WANTED}


def test_of_the_weights_the_first_glob_that_fits_is_taken(server: HubServer) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 100 for i in (1, 2)}
    server.add("org/shards", {"config.json": b"{}", "model.safetensors.index.json": b"[]", **shards})
    source = replace(SOURCE, repository="org/shards", patterns=("config.json",))
    assert sorted(pin(source).files) == ["config.json", *sorted(shards), "model.safetensors.index.json"]


def test_no_weights_are_told_before_anything_is_downloaded(server: HubServer) -> None:
    server.add("org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    source = replace(SOURCE, repository="org/pickle")
    caught(lambda: pin(source), NotFoundError, "org/pickle has no weights", "pytorch_model.bin", "allow_pickle=true")
    assert server.requests("*/resolve/*") == []
    assert pin(replace(source, weights=(*source.weights, "*.bin"))).files["pytorch_model.bin"] == sha256(b"x")


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/config.json", "a//config.json", "a/../../config.json", "a\\..json"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(hub_server: HubServer, name: str) -> None:
    hub_server.add(REPO, {name: b"{}"})
    caught(lambda: pin(Source(repository=REPO, patterns=("*.json",))), IntegrityError, REPO, "no path inside")
    bad = Pinned(repository=REPO, revision="a" * 40, files={name: sha256(b"{}")})
    caught(lambda: folder(bad, [name]), IntegrityError, "no path inside")
    assert len(hub_server.requests("*/resolve/*")) == 0


def test_a_small_file_is_checked_by_its_git_sha1(server: HubServer) -> None:
    server.fault(Flip(at=3), "*/config.json", times=1)
    assert pin(SOURCE).files["config.json"] == sha256(FILES["config.json"])
    assert len(server.requests("*/config.json", method="GET")) == 2


def test_a_small_file_that_stays_wrong_is_refused_and_not_kept(server: HubServer) -> None:
    server.fault(Body(b'{"hidden_size": 9}'), "*/config.json")
    caught(lambda: pin(SOURCE), IntegrityError, "config.json", "still wrong")
    assert len(server.requests("*/config.json", method="GET")) == 2
    assert blobs() == []


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_come_once_and_are_then_there_without_a_request(
    server: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    found = pin(SOURCE)
    server.clear_log()
    events: list[DownloadProgress] = []
    where = folder(found, WANTED, progress=events.append)
    assert read(where) == {name: FILES[name] for name in WANTED}
    assert where.name == found.revision
    assert said(server) == [*["HEAD /resolve/COMMIT/model.safetensors"] * 2, "GET /models/OBJECT/model.safetensors"]
    assert events[-1] == DownloadProgress(
        repository=REPO, file="model.safetensors", done_bytes=100_000, total_bytes=100_000
    )
    server.clear_log()
    assert folder(found, WANTED) == where
    assert server.log == []
    assert capfd.readouterr() == ("", "")


def test_only_the_files_that_are_asked_for_come(server: HubServer) -> None:
    where = folder(pin(SOURCE), ["config.json"])
    assert sorted(read(where)) == ["config.json", "tokenizer/vocab.txt"]  # the second was read to pin it
    assert server.requests(origin="cdn") == []


def test_a_token_opens_what_is_private_and_does_not_leave_the_hub(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/private", FILES, private=True)
    monkeypatch.setenv("HF_TOKEN", server.token("ann", read=("org/private",)))
    assert read(folder(pin(replace(SOURCE, repository="org/private")), WANTED)).keys() == set(WANTED)
    assert {request.has_token for request in server.requests(origin="hub")} == {True}
    assert {request.has_token for request in server.requests(origin="cdn")} == {False}


def test_the_endpoint_is_that_of_the_moment(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as other:
        other.add(REPO, {**FILES, "config.json": b"{}"})
        monkeypatch.setenv("HF_ENDPOINT", other.endpoint + "/")
        assert pin(SOURCE).files["config.json"] == sha256(b"{}")
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        assert pin(SOURCE).files["config.json"] == sha256(FILES["config.json"])


# --- offline, and a Hub that cannot be asked -------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_offline_is_zero_requests_and_the_same_pin(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    before = pin(SOURCE)
    where = folder(before, WANTED)
    server.commit(REPO, {"config.json": b"{}"})
    server.clear_log()
    if variable:
        monkeypatch.setenv(variable, "1")
    found = pin(SOURCE, offline=variable is None)
    assert found == before
    assert folder(found, WANTED, offline=variable is None) == where
    assert server.log == []


def test_offline_tells_what_is_missing_and_how_to_get_it(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pin(SOURCE)
    server.clear_log()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hints = (REPO, found.revision or "", "model.safetensors", "HF_HUB_OFFLINE=1", "zoo fetch SPEC")
    caught(lambda: folder(found, WANTED), NotFoundError, *(hint[:12] for hint in hints))
    other = replace(SOURCE, repository="org/other", revision="v1")
    caught(lambda: pin(other), NotFoundError, "org/other at v1", "HF_HUB_OFFLINE=1", "zoo fetch SPEC")
    assert server.log == []


UNREACHABLE = [Drop(), Drop(reset=True), Status(500), Status(503), Status(429), Html()]


@pytest.mark.parametrize("fault", UNREACHABLE, ids=repr)
def test_a_hub_that_cannot_be_asked_is_told_and_a_known_pin_goes_on(
    server: HubServer, fault: Drop | Status | Html, caplog: pytest.LogCaptureFixture
) -> None:
    before = pin(SOURCE)
    folder(before, WANTED)
    server.commit(REPO, {"config.json": b"{}"})
    server.clear_log()
    server.fault(fault, method="*")
    with caplog.at_level(logging.WARNING, logger="zoo_core"):
        found = pin(SOURCE)
    assert found == before
    (record,) = [record for record in caplog.records if record.name == "zoo_core.files.pins"]
    assert str(before.revision) in record.getMessage()
    assert len(server.log) == (1 if isinstance(fault, Html) else 4)  # a portal stays one, however often it is asked
    folder(found, WANTED)
    caught(lambda: pin(replace(SOURCE, revision="v1")), AccessError, server.endpoint)


def test_a_hub_that_is_down_is_told_soon(hub_server: HubServer) -> None:
    other = HubServer()
    other.close()
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", other.endpoint)
        missing = Pinned(repository=REPO, revision="a" * 40, files={"config.json": sha256(b"{}")})
        for call in (lambda: pin(SOURCE), lambda: folder(missing, ["config.json"])):
            caught(call, AccessError, other.endpoint, "cannot be reached", "connection")
    assert time.monotonic() - started < 5  # the client alone takes 28 s


@pytest.mark.parametrize("fault", [Drop(), Drop(reset=True), Status(503), Status(429, retry_after=0)], ids=repr)
def test_a_fault_that_passes_is_waited_for(server: HubServer, fault: Drop | Status) -> None:
    rule = server.fault(fault, f"/api/models/{REPO}", times=2)
    assert sorted(pin(SOURCE).files) == sorted(WANTED)
    assert rule.fired == 2


@pytest.mark.parametrize(
    ("change", "error", "hint"),
    [
        ({"private": True}, NotFoundError, "no public repository"),
        ({"disabled": True}, AccessError, "disabled"),
    ],
)
def test_a_refusal_is_never_answered_from_memory(
    server: HubServer, change: dict[str, bool], error: type[ZooError], hint: str
) -> None:
    pin(SOURCE)
    for name, value in change.items():
        setattr(server.repository(REPO), name, value)
    caught(lambda: pin(SOURCE), error, hint)


# --- who may have what -----------------------------------------------------------------------------------------------


def test_gated_absent_and_forbidden_have_three_texts(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("org/gated", FILES, gated=True)
    server.add("org/private", FILES, private=True)
    pin(SOURCE)

    def told(repository: str, error: type[ZooError], *hints: str) -> str:
        return caught(lambda: folder(pin(replace(SOURCE, repository=repository)), WANTED), error, *hints)

    gated = told("org/gated", AccessError, f"{server.endpoint}/org/gated", "accept its conditions", "hf auth login")
    absent = told("org/private", NotFoundError, "no public repository org/private", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", server.token("bob"))
    refused = told("org/gated", AccessError, f"{server.endpoint}/org/gated", "your account has not been let in")
    unseen = told("org/private", NotFoundError, "that your token may see")
    assert len({gated, absent, refused, unseen}) == 4
    told("org/nmae", NotFoundError, "did you mean org/name?")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    told("org/private", AccessError, "does not accept your token", "hf auth login")


def test_a_gated_repository_whose_files_are_here_needs_no_token(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/gated", FILES, gated=True)
    source = replace(SOURCE, repository="org/gated")
    monkeypatch.setenv("HF_TOKEN", server.token("ann", read=("org/gated",)))
    found = pin(source)
    folder(found, WANTED)
    monkeypatch.setenv("HF_TOKEN", "")
    assert pin(source) == found
    assert sorted(read(folder(found, WANTED))) == sorted(WANTED)


def test_a_revision_that_is_not_there_names_those_that_are(server: HubServer) -> None:
    server.branch(REPO, "release-2")
    caught(lambda: pin(replace(SOURCE, revision="relase-2")), NotFoundError, REPO, "relase-2", "did you mean release-2")
    caught(lambda: pin(replace(SOURCE, revision="zzz")), NotFoundError, "it has main, release-2")


def test_a_disabled_repository_is_told_as_one_and_no_name_as_none(server: HubServer) -> None:
    found = pin(SOURCE)
    server.repository(REPO).disabled = True
    caught(lambda: folder(found, WANTED), AccessError, "disabled by the Hub")
    caught(lambda: pin(replace(SOURCE, repository="a/b/c")), UsageError, "ORG/NAME")


# --- faults of a download --------------------------------------------------------------------------------------------

Install = Callable[[HubServer], object]
CASES: dict[str, tuple[Install, type[ZooError], int, tuple[str, ...], int]] = {
    # what is wrong for ever: the error, its exit code, what it says, downloads begun
    "flipped byte": (lambda s: s.fault(Flip(at=500)), IntegrityError, 5, ("model.safetensors", "sha256"), 2),
    "another file": (lambda s: s.fault(Body(WEIGHTS[::-1])), IntegrityError, 5, ("model.safetensors", "sha256"), 2),
    "shorter, Content-Length agrees": (lambda s: s.fault(Truncate(at=10)), IntegrityError, 5, ("size",), 2),
    "a page of HTML as the file": (
        lambda s: s.fault(Html(), origin="cdn"),
        IntegrityError,
        5,
        ("model.safetensors",),
        2,
    ),
    "503 on GET": (lambda s: s.fault(Status(503), origin="cdn"), AccessError, 4, ("503", "try again"), 4),
    "403 on GET": (lambda s: s.fault(Status(403), origin="cdn"), AccessError, 4, ("refuses", REPO), 1),
    "404 on GET": (lambda s: s.fault(Status(404, "EntryNotFound"), origin="cdn"), NotFoundError, 3, (REPO,), 1),
    "reset in the body": (lambda s: s.fault(Cut(at=9, reset=True)), AccessError, 4, ("cannot be reached",), 4),
    "connection dropped at HEAD": (lambda s: s.fault(Drop(), method="HEAD"), AccessError, 4, ("cannot be reached",), 0),
    "no X-Repo-Commit": (
        lambda s: s.fault(NO_COMMIT, method="HEAD"),
        AccessError,
        4,
        ("X-Repo-Commit", "HF_ENDPOINT"),
        0,
    ),
    "no ETag": (lambda s: s.fault(NO_ETAG, method="HEAD"), AccessError, 4, ("ETag", "HF_ENDPOINT"), 0),
    "captive portal": (
        lambda s: s.fault(Html(), method="*"),
        AccessError,
        4,
        ("as a Hub does", "log in to the net"),
        0,
    ),
    "500 at HEAD": (lambda s: s.fault(Status(500), method="HEAD"), AccessError, 4, ("500", "try again later"), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_that_stays_is_one_line_and_nothing_is_kept(server: HubServer, name: str) -> None:
    install, error, code, hints, num_downloads = CASES[name]
    found = pin(replace(SOURCE, patterns=()))
    server.clear_log()
    install(server)
    caught(lambda: folder(found, list(found.files)), error, *hints)
    assert error.exit_code == code
    assert len(server.requests(origin="cdn")) == num_downloads
    assert blobs() == []
    server.clear_faults()
    assert (folder(found, list(found.files)) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_body_that_always_ends_at_once_is_told(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 100))  # the client's own, 1 s between attempts
    found = pin(replace(SOURCE, patterns=()))
    server.fault(Cut(at=0))
    caught(lambda: folder(found, list(found.files)), AccessError, "cannot be reached", "check the connection")
    assert len(server.requests(origin="cdn")) == 6  # the client's attempts, and none of ours on top
    assert blobs() == []


@pytest.mark.parametrize(
    "fault",
    [Flip(at=7), Truncate(at=10), Body(WEIGHTS[::-1]), Status(503), Cut(at=9, reset=True), Status(429, retry_after=0)],
    ids=repr,
)
def test_a_fault_that_passes_costs_one_more_download(
    server: HubServer, fault: Flip | Truncate | Body | Status | Cut
) -> None:
    found = pin(replace(SOURCE, patterns=()))
    rule = server.fault(fault, origin="cdn", times=1)
    assert (folder(found, list(found.files)) / "model.safetensors").read_bytes() == WEIGHTS
    assert rule.fired == 1
    assert len(server.requests(origin="cdn")) == 2


def test_content_decides_and_not_the_etag(server: HubServer) -> None:
    wrong = Headers({"X-Linked-Etag": '"' + "a" * 64 + '"', "ETag": '"' + "b" * 40 + '"'})
    server.fault(wrong, "*model.safetensors", method="HEAD")
    found = pin(SOURCE)
    where = folder(found, WANTED)
    assert read(where) == {name: FILES[name] for name in WANTED}
    assert (where / "model.safetensors").resolve().name == "a" * 64
    assert folder(found, WANTED) == where


def test_files_of_one_etag_are_never_taken_for_one_another(server: HubServer) -> None:
    server.fault(Headers({"X-Linked-Etag": None, "ETag": '"' + "b" * 40 + '"'}), method="HEAD")  # all in one place
    found = pin(SOURCE)
    assert found.files == {name: sha256(FILES[name]) for name in WANTED}
    caught(lambda: folder(found, WANTED), IntegrityError, "one ETag")
    server.clear_faults()
    assert read(folder(found, WANTED)) == {name: FILES[name] for name in WANTED}


@pytest.mark.parametrize("position", random.Random(1).sample(range(len(WEIGHTS)), 20))
def test_a_flipped_byte_is_found_wherever_it_is(server: HubServer, position: int) -> None:
    found = pin(replace(SOURCE, patterns=()))
    server.fault(Flip(at=position), origin="cdn", times=1)
    path = folder(found, list(found.files)) / "model.safetensors"
    assert path.read_bytes() == WEIGHTS
    content = bytearray(WEIGHTS)
    content[position] ^= 0x10
    path.write_bytes(content)  # in the cache, through the link
    server.clear_log()
    assert (folder(found, list(found.files)) / "model.safetensors").read_bytes() == WEIGHTS
    assert len(server.requests(origin="cdn")) == 1


def test_damage_in_the_cache_is_downloaded_once_more_and_offline_refused(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pin(SOURCE)
    blob = (folder(found, WANTED) / "model.safetensors").resolve()
    times = blob.stat()
    blob.write_bytes(WEIGHTS[:-1] + b"?")
    os.utime(blob, ns=(times.st_atime_ns, times.st_mtime_ns))  # its time does not tell
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        caught(lambda: folder(found, WANTED), IntegrityError, "model.safetensors", "HF_HUB_OFFLINE=1", "zoo fetch SPEC")
    server.clear_log()
    server.fault(Flip(at=1), origin="cdn")
    caught(lambda: folder(found, WANTED), IntegrityError, "still wrong")
    assert len(server.requests(origin="cdn")) == 1
    server.clear_faults()
    assert read(folder(found, WANTED))["model.safetensors"] == WEIGHTS
    assert len(server.requests(origin="cdn")) == 2


# --- disks -----------------------------------------------------------------------------------------------------------


def test_no_room_is_told_before_the_download_with_the_numbers(server: HubServer) -> None:
    huge = Pinned(
        repository=REPO, revision=server.head(REPO), files={"model.safetensors": FileHash(sha256="", size=10**18)}
    )
    text = caught(lambda: folder(huge, ["model.safetensors"]), ZooError, "1,000,000,000,000.0 MB", "free", "HF_HOME")
    assert REPO in text
    assert server.log == []


FETCH = """
import sys
from zoo_core.contracts import Source
from zoo_core.errors import ZooError
from zoo_core.files.fetch import folder, pin
from zoo_core.files import hub
hub.RETRY_SECONDS = (0.01,)
source = Source(repository=sys.argv[1], weights=("model.safetensors",))
{before}
try:
    found = pin(source)
    print(folder(found, list(found.files)))
except ZooError as error:
    print(type(error).__name__, error.exit_code, error)
    sys.exit(error.exit_code)
"""


def fetching(server: HubServer, home: Path, before: str = "") -> subprocess.Popen[str]:
    """A process that fetches the weights of REPO into a cache under `home`."""
    environment = os.environ | server.environment(home) | {"ZOO_CACHE": str(home / "zoo"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", FETCH.format(before=before), REPO],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def half_files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 50_000]


def test_a_quota_that_ends_in_the_middle_leaves_no_half_file(server: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "quota"
    quota = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    quota += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    process = fetching(server, home, quota)
    out = process.communicate(timeout=60)[0]
    assert out.startswith(f"ZooError 1 no room for {REPO}")
    assert "HF_HOME" in out
    assert half_files(home) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 60_000  # it was the child's alone
    process = fetching(server, home)
    where = Path(process.communicate(timeout=60)[0].strip())
    assert (where / "model.safetensors").read_bytes() == WEIGHTS


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A disk of so many bytes, mounted; skips where this user may not mount."""
    place = Path(tempfile.mkdtemp())
    done = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("mount")
        else None
    )
    try:
        if done is None or done.returncode:
            pytest.skip(f"no disk may be mounted here: {done.stderr.strip() if done else 'no mount'}")
        yield place
    finally:
        if done is not None and not done.returncode:
            subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def test_a_disk_that_fills_up_while_downloading_leaves_no_half_file(server: HubServer, tmp_path: Path) -> None:
    with small_disk(160_000) as disk:
        server.fault(Slow(bytes_per_second=400_000), origin="cdn")
        server.after(lambda: (disk / "other").write_bytes(bytes(100_000)), origin_path := "*model.safetensors")
        assert origin_path
        process = fetching(server, disk)
        out = process.communicate(timeout=60)[0]
        assert out.startswith(f"ZooError 1 no room for {REPO}"), out
        (disk / "other").unlink()
        assert half_files(disk) == []
        server.clear_faults()
        where = Path(fetching(server, disk).communicate(timeout=60)[0].strip())
        assert (where / "model.safetensors").read_bytes() == WEIGHTS


@contextlib.contextmanager
def as_nobody(*folders: Path) -> Iterator[None]:
    """What root may do anyway is not allowed inside: the folders may be read and not written."""
    for place in folders:
        for path in (place, *place.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for place in folders:
            for path in (place, *place.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | 0o200)


@pytest.fixture
def open_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may look into, with this test's two caches in it."""
    from huggingface_hub import constants

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        for child in ("hub", "zoo"):
            (place / child).mkdir()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place / "token"))
        monkeypatch.setenv("ZOO_CACHE", str(place / "zoo"))
        yield place


def test_a_cache_that_is_read_only_is_told_and_what_it_holds_is_used(server: HubServer, open_place: Path) -> None:
    found = pin(replace(SOURCE, patterns=()))
    with as_nobody(open_place / "hub", open_place / "zoo"):
        caught(lambda: folder(found, list(found.files)), AccessError, "may not be used", "HF_HOME")
    where = folder(found, list(found.files))
    server.clear_log()
    with as_nobody(open_place / "hub", open_place / "zoo"):
        assert folder(found, list(found.files)) == where
    assert server.log == []


def test_a_memory_that_is_read_only_or_damaged_only_costs_time(server: HubServer, open_place: Path) -> None:
    with as_nobody(open_place / "zoo"):
        pass
    (open_place / "zoo").chmod(0o555)
    shutil.rmtree(open_place / "hub")
    (open_place / "hub").mkdir()
    (open_place / "hub").chmod(0o777)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        found = pin(SOURCE)
        assert folder(found, WANTED) == folder(found, WANTED)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert list((open_place / "zoo").iterdir()) == []
    (open_place / "zoo").chmod(0o755)
    folder(pin(SOURCE), WANTED)
    for path in (open_place / "zoo").rglob("*.json"):
        path.write_text('{"files": [1')
    assert pin(SOURCE) == found
    folder(found, WANTED)


# --- hashing once ----------------------------------------------------------------------------------------------------


def bytes_read() -> int:
    """What this process has read so far, from caches too."""
    return int(Path("/proc/self/io").read_text().splitlines()[0].split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="/proc/self/io counts what is read")
def test_a_verified_file_is_not_read_again_until_it_changes(server: HubServer) -> None:
    content = random.Random(2).randbytes(30_000_000)
    server.add(REPO, {"model.safetensors": content})
    found = pin(replace(SOURCE, patterns=()))
    names = list(found.files)

    def cost() -> int:
        before = bytes_read()
        folder(found, names)
        return bytes_read() - before

    path = folder(found, names) / "model.safetensors"
    time.sleep(0.05)  # a file that changed a moment ago is not remembered
    cost()
    assert cost() < 100_000
    path.touch()
    assert cost() > len(content)
    assert cost() < 100_000


# --- several processes -----------------------------------------------------------------------------------------------


def test_eight_processes_that_ask_at_once_make_one_download(server: HubServer, tmp_path: Path) -> None:
    server.fault(Slow(bytes_per_second=100_000), origin="cdn")
    home = tmp_path / "shared"
    processes = [fetching(server, home) for _ in range(8)]
    places = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 8
    (where,) = places
    assert (Path(where) / "model.safetensors").read_bytes() == WEIGHTS
    assert len(server.requests(origin="cdn")) == 1


def test_a_download_that_is_killed_begins_again(server: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "killed"
    server.fault(Slow(bytes_per_second=20_000), origin="cdn")
    process = fetching(server, home)
    deadline = time.monotonic() + 60
    while not server.requests(origin="cdn"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    server.clear_faults()
    where = Path(fetching(server, home).communicate(timeout=60)[0].strip())
    assert (where / "model.safetensors").read_bytes() == WEIGHTS


# --- local folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "local"


def test_a_local_folder_is_pinned_and_verified_in_place(local: Path) -> None:
    source = Source(folder=str(local), patterns=SOURCE.patterns, weights=SOURCE.weights)
    found = pin(source)
    assert found == Pinned(folder=str(local), files={name: sha256(FILES[name]) for name in WANTED})
    assert folder(found, WANTED) == local
    (local / "config.json").write_bytes(b"{}")
    caught(lambda: folder(found, WANTED), IntegrityError, "config.json", "zoo lock SPEC")
    (local / "config.json").unlink()
    caught(lambda: folder(found, WANTED), NotFoundError, "config.json")
    (local / "model.safetensors").unlink()
    caught(lambda: pin(source), NotFoundError, str(local), "no weights", "pytorch_model.bin", "allow_pickle=true")
    caught(lambda: pin(replace(source, folder=str(local / "none"))), NotFoundError, "no folder", "none")


# --- plans -----------------------------------------------------------------------------------------------------------


def plan_of(source: Source, spec: str = "starter/vit-nano") -> Plan:
    """A plan whose backbone comes from the Hub; starter's own lies in its package."""
    plan = resolve(spec, task="digits")
    return replace(plan, sources={part_key(plan.backbone): source}, pins={}, digest=None, base_digest=None)


def test_a_plan_gets_its_pins_and_its_digest(server: HubServer) -> None:
    plan = plan_of(SOURCE)
    assert (plan.digest, plan.unpinned) == (None, ("backbone:starter/vit-nano",))
    done = pin_plan(plan)
    assert done.unpinned == ()
    assert done.digest is not None
    assert pin_plan(done) == done
    where = files_of(done, done.backbone)
    assert where is not None
    assert read(where).keys() == set(WANTED)
    assert files_of(done, done.head) is None
    server.commit(REPO, {"README.md": b"another commit of the same files"})
    assert pin_plan(plan).digest == done.digest
    server.commit(REPO, {"config.json": b"{}"})
    assert pin_plan(plan).digest != done.digest


def test_random_weights_need_only_the_patterns(server: HubServer) -> None:
    server.add("org/bare", {"config.json": b"{}", "tokenizer/vocab.txt": b"a"})
    plan = plan_of(replace(SOURCE, repository="org/bare"), "starter/vit-nano(weights=random)")
    done = pin_plan(plan)
    where = files_of(done, done.backbone)
    assert where is not None
    assert sorted(read(where)) == ["config.json", "tokenizer/vocab.txt"]
    pretrained = pin_plan(plan_of(SOURCE))
    server.clear_log()
    files_of(pretrained, pretrained.backbone, weights="random")
    assert server.requests(origin="cdn") == []


def test_plans_of_one_grid_are_of_one_commit(server: HubServer) -> None:
    server.after(lambda: server.commit(REPO, {"config.json": b"{}"}), "*/resolve/*")
    plans = pin_plans([plan_of(SOURCE), plan_of(SOURCE, "starter/vit-nano+full")])
    assert len({pin.revision for plan in plans for pin in plan.pins.values()}) == 1
    assert len(server.requests(f"/api/models/{REPO}")) == 1


def test_frozen_asks_nobody_and_names_what_is_not_locked(server: HubServer) -> None:
    plan = plan_of(SOURCE)
    caught(lambda: pin_plan(plan, frozen=True), NotFoundError, "backbone:starter/vit-nano", "zoo lock SPEC")
    assert server.log == []
    done = pin_plan(plan)
    server.clear_log()
    assert pin_plan(done, frozen=True) == done
    assert server.log == []


def test_a_pin_that_is_remembered_is_json_that_a_person_can_read(server: HubServer, tmp_path: Path) -> None:
    found = pin(SOURCE)
    texts = [json.loads(path.read_text()) for path in (tmp_path / "zoo" / "pins").iterdir()]
    assert [(text["repository"], text["revision"]) for text in texts] == [(REPO, found.revision)] * 2
    assert fetch.pin(SOURCE, offline=True) == found
