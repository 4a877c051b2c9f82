"""zoo_core/toolkit/files.py: a plugin's own files below the cache folder; the rest is tested where it is at home."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from zoo_core.errors import AccessError
from zoo_core.toolkit.files import cache_path, is_settled, read_memory, replacing, write_memory


def test_a_plugin_keeps_a_file_below_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    path = cache_path("acme", "deep/rows.bin")
    assert path == tmp_path / "zoo" / "acme" / "deep" / "rows.bin"
    with replacing(path) as fresh:
        Path(fresh).write_bytes(b"rows")
        assert not path.exists()
    assert path.read_bytes() == b"rows"
    write_memory({"rows": 4}, "acme", "looks.json")
    assert read_memory("acme", "looks.json") == {"rows": 4}


def test_a_cache_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(AccessError, match=r"cannot be made .*; set ZOO_CACHE to another folder"):
        cache_path("acme", "rows.bin")


def test_a_file_that_changed_a_moment_ago_is_not_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")
    stat = os.stat(tmp_path / "a")  # noqa: PTH116 - what is tested takes what os gives
    monkeypatch.setattr(time, "time_ns", lambda: stat.st_ctime_ns + 1)
    assert not is_settled(stat)
    monkeypatch.setattr(time, "time_ns", lambda: stat.st_ctime_ns + 1_000_000_000)
    assert is_settled(stat)
