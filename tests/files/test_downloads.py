"""Files of the Hugging Face cache that are not as pinned: what is set aside and told, and what is never touched."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.far.fixture import BASE, Far
from tests.hub_server import Flip, Headers, HubServer
from zoo_core.contracts import FileHash, Source
from zoo_core.errors import AccessError, IntegrityError, ZooError
from zoo_core.files import downloads, hub
from zoo_core.files.downloads import is_as_recorded
from zoo_core.files.fetch import folder, pin
from zoo_core.files.hashing import git_sha1
from zoo_core.lock import Pinned

REPO = "org/name"
WEIGHTS = random.Random(0).randbytes(5_000)
WRONG = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
SMALL = b'{"hidden_size": 8}'
FILES = {"config.json": SMALL, "model.safetensors": WEIGHTS}
SOURCE = Source(repository=REPO, patterns=("config.json",), weights=("model.safetensors",))
OTHER = {name: FileHash(sha256="0" * 64, size=len(content)) for name, content in FILES.items()}


@pytest.fixture
def server(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    monkeypatch.setattr(hub, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    hub_server.add(REPO, FILES)
    return hub_server


@pytest.fixture
def pinned(server: HubServer) -> Pinned:
    """The pin of a repository whose files are here."""
    found = pin(SOURCE)
    folder(found, list(FILES))
    server.clear_log()
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder that others own: nothing in it may change."""
    place = tmp_path / "store"
    place.mkdir()
    return place


def repository(tmp_path: Path) -> Path:
    return tmp_path / "huggingface" / "hub" / "models--org--name"


def entry(tmp_path: Path, name: str = "model.safetensors") -> Path:
    (path,) = repository(tmp_path).glob(f"snapshots/*/{name}")
    return path


def aside(tmp_path: Path) -> dict[str, Path]:
    """What was set aside, by repository, commit and name; each lies in a folder of its own."""
    root = tmp_path / "zoo" / "set-aside"
    paths = [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]
    return {re.sub("/[0-9a-f]{8}/", "/", path.relative_to(root).as_posix()): path for path in paths}


def place(found: Pinned, name: str = "model.safetensors") -> str:
    return f"models--org--name/{found.revision}/{name}"


def tree(*roots: Path) -> dict[Path, bytes | str]:
    """Every link with what it says, every file with its content."""
    return {
        path: str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for root in roots
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def linked(path: Path, store: Path, content: bytes) -> Path:
    """Puts a link to a file of the store in the place of a file."""
    target = store / path.name
    target.write_bytes(content)
    path.unlink()
    path.symlink_to(target)
    return target


def caught(call: Callable[[], object], error: type[ZooError], *hints: str) -> str:
    with pytest.raises(error) as info:
        call()
    text = str(info.value)
    assert "\n" not in text
    for hint in hints:
        assert hint in text
    return text


def right(found: Pinned) -> None:
    where = folder(found, list(FILES))
    assert {name: (where / name).read_bytes() for name in FILES} == FILES


# --- a pin that is wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_pin_alone_against_the_cache_and_the_hub_touches_nothing(
    server: HubServer, pinned: Pinned, tmp_path: Path, name: str
) -> None:
    before = tree(repository(tmp_path))
    caught(
        lambda: folder(replace(pinned, files=OTHER), [name]),
        IntegrityError,
        name,
        hashlib.sha256(FILES[name]).hexdigest()[:12],
        "expected 000000000000",
        "the cache and",
        server.endpoint,
        "zoo lock SPEC",
    )
    assert tree(repository(tmp_path)) == before
    assert aside(tmp_path) == {}
    assert server.requests(method="GET") == []
    right(pinned)


def test_offline_such_a_pin_touches_nothing_and_is_told_without_the_hub(
    server: HubServer, pinned: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(repository(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hints = ("expected 000000000000", "the cache's own record", "HF_HUB_OFFLINE=1", "zoo lock SPEC")
    caught(lambda: folder(replace(pinned, files=OTHER), ["model.safetensors"]), IntegrityError, *hints)
    assert tree(repository(tmp_path)) == before
    assert server.log == []


def test_a_wrong_pin_of_a_file_that_is_not_here_keeps_what_came(
    server: HubServer, pinned: Pinned, tmp_path: Path
) -> None:
    shutil.rmtree(repository(tmp_path))
    call = lambda: folder(replace(pinned, files=OTHER), ["model.safetensors"])  # noqa: E731
    caught(call, IntegrityError, "the cache and", "zoo lock SPEC")
    assert len(server.requests(origin="cdn")) == 1
    assert entry(tmp_path).read_bytes() == WEIGHTS


def test_a_lock_that_names_another_hash_costs_no_file_and_is_mended_by_the_command_it_names(far: Far) -> None:
    """As it was seen: `zoo fetch` deleted the right file and said to look for a proxy."""
    spec = f"far/{BASE}+full"
    assert far.zoo("lock", spec)[0] == 0
    assert far.zoo("fetch", spec)[0] == 0
    whole = json.loads(Path("zoo.lock").read_text())
    whole["parts"][f"backbone:far/{BASE}"]["files"]["model.safetensors"]["sha256"] = "0" * 64
    Path("zoo.lock").write_text(json.dumps(whole))
    cache = far.folder / "huggingface" / "hub"
    before = tree(cache)
    line = far.refused(5, "fetch", "--lock", "zoo.lock")
    assert "zoo lock SPEC" in line
    assert "proxy" not in line
    assert tree(cache) == before
    assert far.zoo("lock", spec)[0] == 0
    assert far.zoo("fetch", "--lock", "zoo.lock")[0] == 0


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_blob_is_set_aside_and_told(
    pinned: Pinned, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = FILES[name][:-1] + b"?"
    entry(tmp_path, name).write_bytes(wrong)
    with caplog.at_level(logging.WARNING, logger="zoo_core"):
        right(pinned)
    assert {where: path.read_bytes() for where, path in aside(tmp_path).items()} == {place(pinned, name): wrong}
    (record,) = [record for record in caplog.records if record.name == "zoo_core.files.downloads"]
    assert str(aside(tmp_path)[place(pinned, name)]) in record.getMessage()


def test_a_blob_that_links_to_a_shared_store_is_moved_as_a_link_and_its_target_stays(
    pinned: Pinned, tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As it was seen: the target was deleted without a word."""
    blob = entry(tmp_path).resolve()
    target = linked(blob, store, WRONG)
    with caplog.at_level(logging.WARNING, logger="zoo_core"):
        right(pinned)
    assert target.read_bytes() == WRONG
    assert not blob.is_symlink()
    assert aside(tmp_path)[place(pinned)].readlink() == target
    (record,) = [record for record in caplog.records if record.name == "zoo_core.files.downloads"]
    assert f"the link {blob} to {target} was set aside in" in record.getMessage()


def test_a_link_to_a_right_file_of_a_shared_store_is_used(
    server: HubServer, pinned: Pinned, tmp_path: Path, store: Path
) -> None:
    blob = entry(tmp_path).resolve()
    linked(blob, store, WEIGHTS)
    right(pinned)
    assert blob.is_symlink()
    assert server.log == []


def test_an_entry_that_links_to_a_shared_store_is_moved_where_the_hub_tells_of_another_content(
    pinned: Pinned, tmp_path: Path, store: Path
) -> None:
    target = linked(entry(tmp_path), store, WRONG)
    right(pinned)
    assert target.read_bytes() == WRONG
    assert aside(tmp_path)[place(pinned)].readlink() == target
    assert entry(tmp_path).resolve().parent == repository(tmp_path) / "blobs"


def test_an_entry_that_links_to_the_wrong_blob_is_moved_and_both_blobs_stay(
    server: HubServer, pinned: Pinned, tmp_path: Path
) -> None:
    blobs = repository(tmp_path) / "blobs"
    other = blobs / hashlib.sha256(WRONG).hexdigest()
    other.write_bytes(WRONG)
    before = tree(blobs)
    path = entry(tmp_path)
    path.unlink()
    path.symlink_to(os.path.relpath(other, path.parent))
    right(pinned)
    assert tree(blobs) == before
    assert aside(tmp_path)[place(pinned)].is_symlink()
    assert server.requests(origin="cdn") == []  # the right blob was here


def test_behind_such_an_entry_a_damaged_blob_is_found_too(server: HubServer, pinned: Pinned, tmp_path: Path) -> None:
    blobs = repository(tmp_path) / "blobs"
    other = blobs / git_sha1(SMALL)
    path = entry(tmp_path)
    path.resolve().write_bytes(WRONG)
    path.unlink()
    path.symlink_to(os.path.relpath(other, path.parent))
    right(pinned)
    assert len(server.requests(origin="cdn")) == 1
    held = (tmp_path / "zoo" / "set-aside").rglob("model.safetensors")  # the link too, which leads nowhere there
    assert [path.read_bytes() for path in held if path.is_file()] == [WRONG]


@pytest.mark.parametrize("linked_folder", ["models--org--name", "blobs", "snapshots"])
@pytest.mark.parametrize("through", ["the cache", "a link to the cache"])
def test_behind_a_linked_folder_nothing_is_touched(
    pinned: Pinned, tmp_path: Path, store: Path, linked_folder: str, through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = repository(tmp_path)
    link = where if linked_folder == where.name else where / linked_folder
    blob = entry(tmp_path).resolve()
    blob.write_bytes(WRONG)
    if linked_folder == "snapshots":  # so that its links lead where they led
        (store / "blobs").symlink_to(where / "blobs")
    shutil.move(link, store / link.name)
    link.symlink_to(store / link.name)
    if through == "a link to the cache":
        (tmp_path / "alias").symlink_to(tmp_path / "huggingface" / "hub")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "alias"))
    before = tree(where, store)
    caught(
        lambda: folder(pinned, list(FILES)),
        IntegrityError,
        "model.safetensors",
        "behind the link",
        f"{link.relative_to(where.parent)} to {store / link.name}",
        "mend the file there, or remove the link",
    )
    assert tree(where, store) == before
    assert aside(tmp_path) == {}


def test_a_cache_that_is_a_link_is_the_cache(
    pinned: Pinned, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(tmp_path).write_bytes(WRONG)
    shutil.move(tmp_path / "huggingface" / "hub", store / "hub")
    (tmp_path / "huggingface" / "hub").symlink_to(store / "hub")
    right(pinned)
    assert aside(tmp_path)[place(pinned)].read_bytes() == WRONG


def test_what_comes_wrong_again_is_set_aside_and_the_error_says_where(
    server: HubServer, pinned: Pinned, tmp_path: Path
) -> None:
    entry(tmp_path).write_bytes(WRONG)
    server.fault(Flip(at=1), origin="cdn")
    text = caught(lambda: folder(pinned, list(FILES)), IntegrityError, "still wrong", "proxy")
    both = sorted((tmp_path / "zoo" / "set-aside").rglob("model.safetensors"), key=lambda path: str(path) in text)
    assert [str(path) in text for path in both] == [False, True]
    assert both[0].read_bytes() == WRONG  # what lay there, and what came last
    assert both[1].read_bytes()[2:] == WEIGHTS[2:]
    assert not (repository(tmp_path) / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()).exists()
    server.clear_faults()
    right(pinned)


def test_nothing_that_was_set_aside_goes_for_what_comes_later(
    server: HubServer, pinned: Pinned, tmp_path: Path
) -> None:
    for content in (WRONG, WRONG[::-1]):
        entry(tmp_path).write_bytes(content)
        right(pinned)
    server.commit(REPO, {"README.md": b"more"})
    later = pin(SOURCE)
    folder(later, list(FILES))
    (repository(tmp_path) / "snapshots" / str(later.revision) / "model.safetensors").write_bytes(WRONG)
    right(later)
    assert aside(tmp_path).keys() == {place(pinned), place(later)}
    held = (tmp_path / "zoo" / "set-aside").rglob("model.safetensors")
    assert sorted(path.read_bytes() for path in held) == sorted([WRONG, WRONG[::-1], WRONG])


def test_a_cache_folder_on_another_disk_takes_files_and_links(
    pinned: Pinned, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def as_between_disks(source: str | Path, target: str | Path) -> None:
        if "set-aside" in str(target) and "set-aside" not in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", as_between_disks)
    entry(tmp_path, "config.json").write_bytes(b"{}")
    target = linked(entry(tmp_path).resolve(), store, WRONG)
    right(pinned)
    assert aside(tmp_path)[place(pinned, "config.json")].read_bytes() == b"{}"
    assert aside(tmp_path)[place(pinned)].readlink() == target


def test_what_cannot_be_set_aside_stays_and_is_told(pinned: Pinned, tmp_path: Path) -> None:
    entry(tmp_path).write_bytes(WRONG)
    (tmp_path / "zoo" / "set-aside").write_text("a file")
    caught(lambda: folder(pinned, list(FILES)), AccessError, "cannot be set aside", "ZOO_CACHE")
    assert entry(tmp_path).read_bytes() == WRONG


def test_what_another_process_has_put_there_in_the_meantime_stays(
    server: HubServer, pinned: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = entry(tmp_path)
    path.write_bytes(WRONG)
    judge = downloads._wrong_part

    def slow(*arguments: object) -> tuple[Path, bool]:
        found = judge(*arguments)  # type: ignore[arg-type]
        fresh = path.resolve().with_name("fresh")
        fresh.write_bytes(WEIGHTS)
        fresh.replace(path.resolve())
        return found

    monkeypatch.setattr(downloads, "_wrong_part", slow)
    right(pinned)
    assert aside(tmp_path) == {}
    assert server.requests(origin="cdn") == []


def test_a_small_file_is_pinned_by_what_the_hub_tells_and_a_wrong_link_is_moved(
    server: HubServer, pinned: Pinned, tmp_path: Path, store: Path
) -> None:
    """Pinning reads such a file, and finds the same faults."""
    shutil.rmtree(tmp_path / "zoo")
    path = entry(tmp_path, "config.json")
    blob = path.resolve()
    path.unlink()
    path.symlink_to(os.path.relpath(entry(tmp_path).resolve(), path.parent))
    assert pin(SOURCE) == pinned
    assert aside(tmp_path)[place(pinned, "config.json")].is_symlink()
    assert entry(tmp_path).read_bytes() == WEIGHTS
    shutil.rmtree(tmp_path / "zoo")
    target = linked(blob, store, b"{}")
    assert pin(SOURCE) == pinned
    assert target.read_bytes() == b"{}"


def test_a_deletion_through_a_link_would_be_noticed_here(
    pinned: Pinned, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked(entry(tmp_path).resolve(), store, WRONG)
    before = tree(store)

    def deleted(chosen: Path, *others: object) -> None:
        chosen.resolve().unlink()
        chosen.unlink()

    monkeypatch.setattr(downloads, "_set_aside", deleted)
    folder(pinned, list(FILES))
    assert tree(store) != before
    assert aside(tmp_path) == {}


# --- file systems without links --------------------------------------------------------------------------------------


@pytest.fixture
def plain(pinned: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pinned:
    """The pin of files that lie in the snapshot itself, as where there are no links; no blob tells of them."""
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    for name in FILES:
        path = entry(tmp_path, name)
        shutil.move(path.resolve(), path)
    return pinned


def test_without_links_the_hub_is_asked_what_is_right(
    server: HubServer, plain: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_as_recorded(entry(tmp_path)) is None
    call = lambda: folder(replace(plain, files=OTHER), ["model.safetensors"])  # noqa: E731
    caught(call, IntegrityError, "the cache and", "zoo lock SPEC")
    right(plain)
    entry(tmp_path).write_bytes(WRONG)
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        server.clear_log()
        caught(lambda: folder(plain, list(FILES)), IntegrityError, "HF_HUB_OFFLINE=1", "zoo fetch SPEC")
        assert server.log == []
    assert entry(tmp_path).read_bytes() == WRONG
    right(plain)
    assert aside(tmp_path)[place(plain)].read_bytes() == WRONG
    assert not entry(tmp_path).is_symlink()


def test_without_links_a_damaged_copy_is_not_taken_twice(server: HubServer, plain: Pinned, tmp_path: Path) -> None:
    entry(tmp_path).write_bytes(WRONG)
    (repository(tmp_path) / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()).write_bytes(WRONG)
    right(plain)
    assert len(server.requests(origin="cdn")) == 1


def test_without_links_two_wrong_downloads_are_the_end(server: HubServer, plain: Pinned, tmp_path: Path) -> None:
    entry(tmp_path).unlink()
    server.fault(Flip(at=1), origin="cdn")
    caught(lambda: folder(plain, list(FILES)), IntegrityError, "still wrong", "set aside in")
    assert len(server.requests(origin="cdn")) == 2


def test_a_hub_that_tells_no_hash_is_no_witness(server: HubServer, plain: Pinned, tmp_path: Path) -> None:
    server.fault(Headers({"X-Linked-Etag": '"v1"', "ETag": '"v1"'}), method="HEAD")
    caught(lambda: folder(replace(plain, files=OTHER), ["model.safetensors"]), IntegrityError, "still wrong")
    assert aside(tmp_path)[place(plain)].read_bytes() == WEIGHTS  # set aside, not deleted
    right(plain)


# --- records ---------------------------------------------------------------------------------------------------------


def test_the_record_of_a_file_is_the_name_of_its_blob(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    names = {
        hashlib.sha256(SMALL).hexdigest(): True,
        git_sha1(SMALL): True,
        "0" * 64: False,
        "0" * 40: False,
        "v1": None,
    }
    for name, expected in names.items():
        (tmp_path / "blobs" / name).write_bytes(SMALL)
        link = tmp_path / f"link-{name}"
        link.symlink_to(f"blobs/{name}")
        assert is_as_recorded(link) is expected, name
