from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from zoo_core.contracts import FileHash, Source
from zoo_core.errors import IncompatibleError, IntegrityError
from zoo_core.lock import Pinned, check_lock, lock_of, part_key, pin_of, pins_of, read_lock, write_lock
from zoo_core.testing.recipes import ToyBackbones, ToyHeads, bound


@dataclass(frozen=True, kw_only=True)
class Elsewhere(ToyBackbones):
    """Its files lie in a repository and in folders, whatever its arguments are called."""

    repo: str = "org/toy"
    where: str | None = None
    other: str = ""

    def source(self) -> Source | None:
        if self.where is not None:
            return Source(folder=self.where, patterns=("*.bin", *filter(None, (self.other,))))
        return Source(repository=self.repo, patterns=("*.json",))


PIN = Pinned(
    files={"b.safetensors": FileHash(sha256="b" * 64, size=2), "a.safetensors": FileHash(sha256="a" * 64, size=1)},
    repository="org/toy",
    revision="c" * 40,
)
HEAD = bound("head", "linear", ToyHeads())
BACKBONE = bound("backbone", "toy", Elsewhere())
PINS = {"backbone:toy": PIN}


def test_a_lock_names_distribution_files_and_commit() -> None:
    assert lock_of([BACKBONE], PINS) == {
        "format": 1,
        "parts": {
            "backbone:toy": {
                "distribution": "zoo-toys",
                "version": "1",
                "files": {
                    "a.safetensors": {"sha256": "a" * 64, "size": 1},
                    "b.safetensors": {"sha256": "b" * 64, "size": 2},
                },
                "repository": "org/toy",
                "revision": "c" * 40,
            }
        },
    }


def test_a_lock_does_not_depend_on_the_order_of_parts(tmp_path: Path) -> None:
    parts = [BACKBONE, HEAD]
    for name, order in (("one", parts), ("two", parts[::-1])):
        write_lock(tmp_path / name, lock_of(order, PINS))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "zoo.lock"
    assert read_lock(path) is None
    lock = lock_of([BACKBONE, HEAD], PINS)
    write_lock(path, lock)
    assert read_lock(path) == lock
    assert pins_of(read_lock(path)) == PINS
    assert [file.name for file in tmp_path.iterdir()] == ["zoo.lock"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 2, "parts": {}}',
        '{"format": 1, "parts": []}',
        '{"format": 1, "parts": {"head:linear": 3}}',
        '{"format": 1, "parts": {"head:linear": {"distribution": "d", "version": "1", "files": {"a": 1}}}}',
        "\xff",
    ],
)
def test_a_damaged_lock_is_told_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "zoo.lock"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(IntegrityError, match=r"zoo\.lock"):
        read_lock(path)
    assert path.read_text(encoding="latin-1") == text


def test_locks_with_other_parts_are_joined(tmp_path: Path) -> None:
    held, wanted = lock_of([HEAD], {}), lock_of([BACKBONE], PINS)
    assert check_lock(tmp_path, held, wanted) == lock_of([BACKBONE, HEAD], PINS)


def test_parts_that_read_other_files_have_other_keys() -> None:
    """Whatever the arguments are called that say which, and whether a folder or a repository is read."""
    recipes = [Elsewhere(), Elsewhere(repo="org/other"), Elsewhere(where="a"), Elsewhere(where="b")]
    recipes += [Elsewhere(where="a", other="x"), Elsewhere(where="a", other="y")]
    keys = [part_key(bound("backbone", "toy", recipe)) for recipe in recipes]
    assert keys == [
        "backbone:toy",
        'backbone:toy(repo="org/other")',
        "backbone:toy(where=a)",
        "backbone:toy(where=b)",
        "backbone:toy(other=x,where=a)",
        "backbone:toy(other=y,where=a)",
    ]
    assert part_key(bound("head", "linear", ToyHeads(norm=True))) == "head:linear"  # it reads nothing


def test_pins_are_found_under_the_keys_of_before_where_the_place_is_the_same() -> None:
    here = replace(PIN, repository=None, revision=None, folder="a")
    held = {"backbone:toy": PIN, "backbone:toy(a)": here}
    assert pin_of(held, bound("backbone", "toy", Elsewhere(where="a"))) == here
    assert pin_of(held, bound("backbone", "toy", Elsewhere(kind="map"))) == PIN
    assert pin_of(held, bound("backbone", "toy", Elsewhere(where="b"))) is None
    assert pin_of(held, bound("backbone", "toy", Elsewhere(repo="org/other"))) is None


def test_what_a_folder_or_a_plugin_file_holds_now_takes_the_place_of_what_it_held(tmp_path: Path) -> None:
    part = bound("backbone", "toy", Elsewhere(where="a"))
    held, wanted = (
        lock_of([part], {part_key(part): Pinned(folder="a", files={"x.bin": FileHash(sha256=digit * 64, size=1)})})
        for digit in "ab"
    )
    assert check_lock(tmp_path, held, wanted) == wanted
    row = {"distribution": "mine.py", "version": "unpublished"}
    held, wanted = ({"format": 1, "parts": {"adapter:mine": row | {"sha256": digit * 64}}} for digit in "ab")
    assert check_lock(tmp_path, held, wanted) == wanted
    other = {"format": 1, "parts": {"adapter:mine": row | {"sha256": "b" * 64, "distribution": "yours.py"}}}
    with pytest.raises(IncompatibleError, match="another distribution"):
        check_lock(tmp_path, held, other)


def test_the_content_of_a_pin_is_its_names_and_hashes() -> None:
    same = replace(PIN, files=dict(sorted(PIN.files.items())), repository=None, revision=None, folder="x")
    renamed = replace(PIN, files={f"{name}x": file for name, file in PIN.files.items()})
    changed = replace(PIN, files={**PIN.files, "a.safetensors": FileHash(sha256="c" * 64, size=1)})
    contents = [pin.content_of(pin.files) for pin in (PIN, same, renamed, changed)]
    assert contents[0] == contents[1]
    assert len(set(contents)) == 3


@pytest.mark.parametrize(
    ("changed", "value"),
    [("version", "2"), ("revision", "d" * 40), ("files", {"a.safetensors": {"sha256": "e" * 64, "size": 1}})],
)
def test_a_part_that_changed_is_refused_and_named(tmp_path: Path, changed: str, value: Any) -> None:
    held = lock_of([BACKBONE], PINS)
    wanted: dict[str, Any] = lock_of([BACKBONE], PINS)
    assert check_lock(tmp_path, held, wanted) == held  # the check can pass
    wanted["parts"]["backbone:toy"][changed] = value
    with pytest.raises(IncompatibleError, match=f"backbone:toy of another {changed}"):
        check_lock(tmp_path / "zoo.lock", held, wanted)
