"""Files that many write at once: each write is whole, and one of them stands."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoo_core._process.atomic_files import fresh_name, move_into_place, replacing, write_whole

NUM_PROCESSES = 8
NUM_WRITES = 40
LENGTH = 200_000  # bytes: more than one write of the kernel


def _written(write: Callable[[Path, bytes], None], path: Path, number: int, barrier: Any, failed: Any) -> None:
    barrier.wait()
    for _ in range(NUM_WRITES):
        try:
            write(path, bytes([number]) * LENGTH)
            whole = len(set(path.read_bytes())) == 1 and path.stat().st_size == LENGTH
        except OSError:
            whole = False
        if not whole:
            failed.value += 1


def _num_failed(write: Callable[[Path, bytes], None], path: Path) -> int:
    """How many of the writes of eight processes failed, or left what is none of theirs."""
    context = multiprocessing.get_context("fork")
    barrier, failed = context.Barrier(NUM_PROCESSES), context.Value("i", 0)
    processes = [
        context.Process(target=_written, args=(write, path, number, barrier, failed)) for number in range(NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return int(failed.value)


def _by_one_name(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def test_eight_processes_write_one_file(tmp_path: Path) -> None:
    assert _num_failed(write_whole, tmp_path / "shared") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_one_name_for_all_would_fail(tmp_path: Path) -> None:
    assert _num_failed(_by_one_name, tmp_path / "shared") > 0


def test_what_raises_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "before")

    def interrupted() -> None:
        with replacing(path) as fresh:
            Path(fresh).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("before", [path])
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_text() == "before"


def test_a_file_is_on_disk_before_it_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source: str, target: str) -> None:
        done.append("moved")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_whole(tmp_path / "file", b"content")
    assert done == ["file", "moved", "folder"]


def test_names_differ_and_relative_paths_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {fresh_name("file") for _ in range(1000)}
    assert len(names) == 1000
    fresh = Path(names.pop())
    fresh.write_text("text")
    move_into_place(fresh, "file")
    assert Path("file").read_text() == "text"
