"""zoo_core/toolkit/repositories.py: what a plugin learns of a repository, and what is asked for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from zoo_core.contracts import FileHash, Source
from zoo_core.errors import NotFoundError
from zoo_core.files import hub
from zoo_core.toolkit import repositories
from zoo_core.toolkit.repositories import Commit, commit_of, folder_of, hashes_of

SET = "org/set"
NAME = f"datasets/{SET}"
FILES = {"a/1.csv": b"x,y\n1,2\n", "b.csv": b"x,y\n", "README.md": b"# A set\n"}


@pytest.fixture(autouse=True)
def _asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    monkeypatch.setattr(hub, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    repositories._commit.cache_clear()
    yield
    repositories._commit.cache_clear()


@pytest.fixture
def commit(hub_server: HubServer) -> str:
    return hub_server.add(SET, FILES, repo_type="dataset")


def test_a_commit_has_names_and_a_card(hub_server: HubServer, commit: str) -> None:
    found = commit_of(NAME)
    assert found == Commit(revision=commit, names=("README.md", "a/1.csv", "b.csv"), card="# A set\n")
    hub_server.clear_log()
    hub_server.commit(SET, {"b.csv": b"z\n"}, repo_type="dataset")
    assert commit_of(NAME) == found, "trials of one process see one commit"
    assert not hub_server.log


def test_a_repository_without_a_card_has_an_empty_one(hub_server: HubServer) -> None:
    hub_server.add(SET, {"b.csv": b"x\n"}, repo_type="dataset")
    assert commit_of(NAME).card == ""


def test_what_was_asked_is_known_offline(hub_server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commit_of(NAME)
    repositories._commit.cache_clear()
    hub_server.clear_log()
    assert commit_of(NAME, offline=True) == found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert commit_of(NAME, commit) == found
    assert not hub_server.log


def test_what_was_not_asked_is_told_offline(hub_server: HubServer, commit: str) -> None:
    with pytest.raises(NotFoundError, match="has not been pinned on this machine, and requests are forbidden"):
        commit_of(NAME, offline=True)
    hashes_of(Source(repository=NAME, patterns=("README.md",)))  # the commit is known then, and not what it holds
    with pytest.raises(NotFoundError, match=f"{commit[:12]}: what it holds is not known on this machine"):
        commit_of(NAME, offline=True)


def test_files_are_known_by_hash_before_they_are_fetched(commit: str) -> None:
    source = Source(repository=NAME, revision=commit, patterns=("*.csv",))
    sizes = {"a/1.csv": 8, "b.csv": 4}
    assert hashes_of(source) == {
        name: FileHash(sha256=hashlib.sha256(FILES[name]).hexdigest(), size=size) for name, size in sizes.items()
    }
    folder = folder_of(source)
    assert {name: (folder / name).read_bytes() for name in sizes} == {name: FILES[name] for name in sizes}


def test_files_of_a_local_folder_are_given_as_those_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"x,y\n")
    source = Source(folder=str(tmp_path), patterns=("*.csv",))
    assert hashes_of(source)["b.csv"].size == 4
    assert folder_of(source) == tmp_path


def test_a_pattern_that_fits_no_file_is_told(commit: str) -> None:
    with pytest.raises(NotFoundError, match=f"{NAME} holds no file c/\\*.csv"):
        folder_of(Source(repository=NAME, revision=commit, patterns=("c/*.csv",)))
