from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zoo_core.contracts import FileHash
from zoo_core.errors import IncompatibleError, IntegrityError
from zoo_core.lock import Pinned, check_lock, lock_of, pins_of, read_lock, write_lock
from zoo_core.testing.recipes import ToyHeads, bound

PIN = Pinned(
    files={"b.safetensors": FileHash(sha256="b" * 64, size=2), "a.safetensors": FileHash(sha256="a" * 64, size=1)},
    repository="org/toy",
    revision="c" * 40,
)
HEAD = bound("head", "linear", ToyHeads())
BACKBONE = bound("backbone", "toy", ToyHeads())
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
