"""Files that were hashed once: when they are read again, and names that may not be used."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from zoo_core.contracts import FileHash
from zoo_core.errors import AccessError, IntegrityError, NotFoundError
from zoo_core.files.hashing import (
    check,
    git_sha1,
    hash_of,
    hashes_of,
    is_noted,
    note,
    read_memory,
    safe_name,
    write_memory,
    wrong_in,
)

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    return tmp_path / "zoo" / "verified"


@pytest.fixture
def file(tmp_path: Path, memory: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    time.sleep(0.05)  # longer than RACY_NS
    return path


def plant(memory: Path, sha256: str) -> None:
    """Makes the memory say so of the one file that it knows: what is said then was not read."""
    (place,) = memory.iterdir()
    row = read_memory("verified", place.name)
    write_memory(row | {"sha256": sha256}, "verified", place.name)


def test_a_file_is_hashed_once(file: Path, memory: Path) -> None:
    assert hash_of(file) == FileHash(sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))
    plant(memory, "planted")
    assert hash_of(file).sha256 == "planted"
    assert hash_of(file, again=True).sha256 == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("how", ["content", "content with its old time", "another file", "touched"])
def test_a_file_that_changes_is_hashed_again(file: Path, memory: Path, how: str) -> None:
    hash_of(file)
    plant(memory, "planted")
    before = file.stat()
    changed = b"?" + CONTENT[1:]
    if how.startswith("content"):
        file.write_bytes(changed)
        if how != "content":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif how == "another file":
        other = file.with_name("other")
        other.write_bytes(changed)
        other.replace(file)
    else:
        file.touch()
    assert hash_of(file).sha256 == hashlib.sha256(CONTENT if how == "touched" else changed).hexdigest()


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path: Path, memory: Path) -> None:
    for number in range(20):
        path = tmp_path / str(number)
        path.write_bytes(b"a")
        first = hash_of(path)
        path.write_bytes(b"b")  # of the same size, perhaps in the same tick of the clock
        assert hash_of(path) != first


def test_a_damaged_memory_is_none(file: Path, memory: Path) -> None:
    found = hash_of(file)
    (place,) = memory.iterdir()
    for text in ("", "{", "[]", '{"stamp": 1}', '{"stamp": null, "sha256": 5}'):
        place.write_text(text)
        assert hash_of(file) == found


def test_wrong_size_wrong_content_and_nothing_are_told_apart(file: Path) -> None:
    right = hash_of(file)
    check(file, right)
    with pytest.raises(IntegrityError, match=r"25600 bytes, expected 1$"):
        check(file, FileHash(sha256=right.sha256, size=1))
    with pytest.raises(IntegrityError, match=r"has sha256 .*, expected abc"):
        check(file, FileHash(sha256="abc", size=right.size))
    with pytest.raises(NotFoundError, match="missing"):
        check(file.with_name("none"), right)
    with pytest.raises(AccessError, match="cannot be read"):
        check(file.parent, right)


def test_git_names_a_content_as_git_does() -> None:
    assert git_sha1(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git hash-object /dev/null


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "a//b", "/a", "a/", "..\\a", "C:a", "a\0"])
def test_a_name_that_is_no_path_inside_a_folder_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="org/name names a file"):
        safe_name(name, "org/name")


@pytest.mark.parametrize("name", ["a", "a/b.json", "...", "..a", "a..b"])
def test_other_names_are_fine(name: str) -> None:
    assert safe_name(name, "org/name") == name


def test_what_was_found_out_of_a_file_is_known_until_it_changes(file: Path, tmp_path: Path) -> None:
    assert not is_noted([file], "finite")
    note([file], "finite")
    assert is_noted([file], "finite")
    assert not is_noted([file], "another fact")
    assert not is_noted([file, tmp_path / "missing"], "finite")
    note([file], "another fact")
    assert is_noted([file], "finite")
    file.write_bytes(CONTENT)  # the same bytes, at another time
    assert not is_noted([file], "finite")


def test_what_changed_a_moment_ago_is_not_noted(file: Path) -> None:
    file.write_bytes(CONTENT)
    note([file], "finite")
    assert not is_noted([file], "finite")


# --- a folder --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, memory: Path) -> Path:
    """Three files, of which one lies deeper and one is a link to a file elsewhere."""
    root = tmp_path / "folder"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(b"elsewhere")
    (root / "a").write_bytes(CONTENT)
    (root / "deep" / "b").write_bytes(b"b")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    time.sleep(0.05)  # longer than RACY_NS
    return root


NAMES = ("a", "deep/b", "link")


def test_a_folder_is_hashed_once_and_then_each_file_is_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = hashes_of(folder, NAMES)
    assert found == {name: hash_of(folder / name) for name in NAMES}
    hashed: list[str] = []
    digest = hashlib.file_digest

    def noted(stream: Any, kind: str) -> Any:
        hashed.append(Path(stream.name).name)
        return digest(stream, kind)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    assert (hashes_of(folder, NAMES), hashed) == (found, [])
    before = (folder / "a").stat()
    (folder / "a").write_bytes(CONTENT[::-1])
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder.parent / "elsewhere").write_bytes(b"ELSEWHERE")
    changed = hashes_of(folder, NAMES)
    assert (sorted(hashed), changed["deep/b"]) == (["a", "link"], found["deep/b"])
    assert changed["a"] != found["a"]
    assert changed["link"] != found["link"]
    hashed.clear()
    assert (hashes_of(folder, NAMES, again=True), sorted(hashed)) == (changed, ["a", "b", "link"])


def test_what_is_wrong_in_a_folder_is_told_by_name(folder: Path) -> None:
    expected = dict(hashes_of(folder, NAMES))
    assert wrong_in(folder, expected) == {}
    (folder / "a").write_bytes(b"other")
    (folder / "link").unlink()
    wrong = wrong_in(folder, expected)
    assert {name: type(error) for name, error in wrong.items()} == {"a": IntegrityError, "link": NotFoundError}


def test_a_damaged_memory_of_a_folder_is_as_none(folder: Path, memory: Path) -> None:
    found = hashes_of(folder, NAMES)
    (place,) = [path for path in memory.iterdir() if path.name.startswith("folder-")]
    for text in ("{", "[]", '{"a": 3, "link": [], "deep/b": {"x": 1}}'):
        place.write_text(text)
        assert hashes_of(folder, NAMES) == found
