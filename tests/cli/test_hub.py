"""`zoo fetch`, `zoo lock`, `zoo verify` against a Hub on this machine: what they print, write, ask, and exit with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import zoo_core
from tests.far.fixture import BASE, FAR, Far
from tests.hub_server import Drop, Flip, Slow
from zoo_core.lock import read_lock
from zoo_core.runs.stored_run import read_run

SPEC = f"far/{BASE}+full"
KEY = f"backbone:far/{BASE}"
SUITE = f"""
tasks = ["digits(shots=2)"]
backbones = ["far/{BASE}", "starter/convnet-nano"]
adapters = ["probe", "full"]
seeds = 1
"""


def locked(path: Path) -> dict[str, Any]:
    lock = read_lock(path)
    assert lock is not None
    return dict(lock["parts"])


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("huggingface/hub/models--org--base/snapshots/*/model.safetensors")
    return path


# --- fetch -----------------------------------------------------------------------------------------------------------


def test_fetch_says_what_and_how_large_and_then_nothing_is_asked(
    far: Far,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, err = far.zoo("fetch", SPEC)
    size = len(far.files["config.json"]) + len(far.files["model.safetensors"])
    (line,) = out.splitlines()
    assert (code, err) == (0, "")
    for text in (KEY, BASE, far.server.head(BASE)[:12], "2 files", f"{size / 1e3:,.1f} kB", "snapshots"):
        assert text in line
    assert weights_of(far.folder).read_bytes() == far.files["model.safetensors"]
    far.server.clear_log()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert far.zoo("fetch", SPEC) == (0, out, "")
    assert (
        far.zoo("fit", f"far/{BASE}+probe+ncm", "--task", "digits(shots=2)", "--out", "run", "--device", "cpu")[0] == 0
    )
    assert far.server.log == []


def test_a_fit_asks_once_what_its_repository_holds(far: Far) -> None:
    words = ("--task", "digits(shots=2)", "--out", "run", "--device", "cpu")
    assert far.zoo("fit", f"far/{BASE}+probe+ncm", *words)[0] == 0
    assert len(far.server.requests(f"/api/models/{BASE}")) == 1


def test_fetch_as_json_has_the_hash_of_each_file(far: Far) -> None:
    code, out, _ = far.zoo("fetch", SPEC, "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert sorted(row) == ["files", "folder", "part", "path", "repository", "revision", "size"]
    assert (row["part"], row["repository"], row["revision"]) == (KEY, BASE, far.server.head(BASE))
    assert row["files"]["model.safetensors"] == {
        "sha256": hashlib.sha256(far.files["model.safetensors"]).hexdigest(),
        "size": len(far.files["model.safetensors"]),
    }
    assert Path(row["path"], "config.json").read_bytes() == far.files["config.json"]


def test_fetch_takes_a_suite_and_what_is_installed_already_needs_nothing(far: Far) -> None:
    Path("suite.toml").write_text(SUITE)
    code, out, _ = far.zoo("fetch", "suite.toml")
    assert (code, len(out.splitlines())) == (0, 1)
    assert len(far.server.requests(f"/api/models/{BASE}")) == 1
    assert far.zoo("fetch", "starter/convnet-nano", "--task", "digits")[1].startswith("nothing to fetch")


def test_fetch_leaves_weights_out_that_a_random_backbone_does_not_read(far: Far) -> None:
    assert far.zoo("fetch", f"far/{BASE}(weights=random)")[0] == 0
    assert far.server.requests(origin="cdn") == []


def test_fetch_of_a_lock_is_of_its_commit(far: Far) -> None:
    assert "zoo.lock" in far.refused(2, "fetch")
    assert far.zoo("lock", SPEC)[0] == 0
    commit = far.server.head(BASE)
    far.server.commit(BASE, {"config.json": b'{"dim": 9}'})
    for words in ((), (SPEC,), ("--lock", "zoo.lock")):
        code, out, _ = far.zoo("fetch", *words, "--json")
        assert code == 0
        assert [row["revision"] for row in json.loads(out)] == [commit]
    assert "other.lock" in far.refused(3, "fetch", "--lock", "other.lock")


def test_fetch_tells_mistakes_in_a_line(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    far.zoo("fetch", SPEC)
    assert "did you mean org/base?" in far.refused(3, "fetch", "far/org/bsae")
    far.server.add("org/gated", far.files, gated=True)
    assert f"{far.server.endpoint}/org/gated" in far.refused(4, "fetch", "far/org/gated")
    far.server.add("org/flipped", far.make_files(seed=1))
    far.server.fault(Flip(at=200), "*/org/flipped/*", origin="cdn")
    assert "still wrong" in far.refused(5, "fetch", "far/org/flipped")
    far.server.fault(Drop(), method="*")
    assert "cannot be reached" in far.refused(4, "fetch", "far/org/other")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE=1" in far.refused(3, "fetch", "far/org/other")
    assert "nowhere" in far.refused(3, "fetch", "nowhere/org/other")


@pytest.mark.slow
def test_a_download_has_a_bar_on_a_terminal_and_none_elsewhere(far: Far) -> None:
    far.server.fault(Slow(bytes_per_second=10_000), origin="cdn")
    command = [sys.executable, "-m", "zoo_core.cli", "fetch", SPEC]
    environment = os.environ | {"PYTHONPATH": str(FAR), "TERM": "xterm", "COLUMNS": "200"}
    ours, theirs = os.openpty()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end has gone
            while piece := os.read(ours, 65536):
                shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert b"org/base model.safetensors" in shown
    assert b"kB" in shown or b"bytes" in shown
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""


# --- lock ------------------------------------------------------------------------------------------------------------


def test_lock_writes_every_part_and_keeps_the_others(far: Far) -> None:
    code, out, err = far.zoo("lock", SPEC, "--task", "digits")
    assert (code, err) == (0, "")
    assert f"{KEY}  zoo-far 1.0  2 files" in out
    parts = locked(Path("zoo.lock"))
    assert sorted(parts) == ["adapter:full", KEY, "head:linear", "task:digits"]
    assert parts[KEY]["revision"] == far.server.head(BASE)
    assert sorted(parts[KEY]["files"]) == ["config.json", "model.safetensors"]
    far.server.add("org/second", far.make_files(seed=1))
    far.server.commit(BASE, {"config.json": b'{"dim": 9}'})
    assert far.zoo("lock", "far/org/second")[0] == 0
    assert locked(Path("zoo.lock")).items() > parts.items()  # the first is as it was, though its branch has moved
    assert far.zoo("lock", SPEC)[0] == 0  # and is written anew when it is asked for
    assert locked(Path("zoo.lock"))[KEY]["revision"] == far.server.head(BASE) != parts[KEY]["revision"]


def test_lock_check_asks_nobody_and_says_what_differs(far: Far) -> None:
    assert "zoo lock SPEC" in far.refused(3, "lock", "--check")
    assert "zoo lock takes" in far.refused(2, "lock")
    far.zoo("lock", SPEC)
    far.server.clear_log()
    assert far.zoo("lock", "--check")[:2] == (0, "zoo.lock fits: 3 parts, 1 with files\n")
    assert far.zoo("lock", "--check", SPEC)[0] == 0
    line = far.refused(6, "lock", "--check", SPEC, f"far/{BASE}@v1+partial(n=1)")
    assert "adapter:partial is not in it" in line
    assert f"{KEY}@v1 is not in it" in line
    whole = json.loads(Path("zoo.lock").read_text())

    def changed(**row: Any) -> str:
        lock = json.loads(json.dumps(whole))
        lock["parts"][KEY] |= row
        Path("zoo.lock").write_text(json.dumps(lock))
        return far.refused(6, "lock", "--check")

    assert "zoo-far 0.9, and 1.0 is installed" in changed(version="0.9")
    assert "zoo-gone 1.0, and it is not installed" in changed(distribution="zoo-gone")
    assert "a repository and no commit" in changed(revision="main")
    assert "no sha256 of config.json" in changed(files={"config.json": {"sha256": "?", "size": 1}})
    assert "no files" in changed(files={})
    assert far.server.log == []


def test_a_damaged_or_unwritable_lock_is_told(far: Far) -> None:
    Path("zoo.lock").write_text("{")
    assert "damaged" in far.refused(5, "lock", SPEC)
    assert "cannot be written" in far.refused(4, "lock", SPEC, "--lock", "none/zoo.lock")


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_hashes_again_and_names_what_is_wrong(far: Far) -> None:
    assert "zoo.lock" in far.refused(2, "verify")
    assert "zoo fetch" in far.refused(3, "verify", "far/org/never")  # a pin is asked of nobody
    far.server.clear_log()
    far.zoo("lock", SPEC)
    assert "model.safetensors" in far.refused(3, "verify")
    far.zoo("fetch", SPEC)
    far.server.clear_log()
    for words in ((), (SPEC,)):
        code, out, err = far.zoo("verify", *words)
        assert (code, err) == (0, "")
        assert "as pinned" in out
    path = weights_of(far.folder)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    for named in ((), (SPEC,), ("--lock", "zoo.lock")):
        line = far.refused(5, "verify", *named)
        assert str(path) in line
        assert "zoo fetch SPEC" in line
    code, out, _ = far.zoo("verify", "--json")
    assert code == 5
    assert list(json.loads(out)[0]["wrong"]) == ["model.safetensors"]
    assert far.server.log == []
    far.zoo("fetch", SPEC)
    assert far.zoo("verify")[0] == 0


def test_a_folder_of_files_is_locked_and_verified(far: Far) -> None:
    Path("mine").mkdir()
    for name, content in far.files.items():
        Path("mine", name).write_bytes(content)
    spec = 'far(files="mine")'
    assert far.zoo("lock", spec)[0] == 0
    assert far.zoo("verify")[0] == 0
    code, out, _ = far.zoo("fetch", spec)
    assert code == 0
    assert "mine" in out
    Path("mine", "config.json").write_text('{"dim": 9}')
    assert "config.json" in far.refused(5, "verify")
    assert far.server.log == []


def test_commands_name_a_published_model(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", far.server.token("ann", write=("ann/*",)))
    words = ("fit", f"far/{BASE}+full", "--task", "digits(shots=2)", "--out", "run", "--epochs", "1", "--device", "cpu")
    assert far.zoo(*words)[0] == 0
    far.zoo("push", "run", "ann/model")
    code, out, _ = far.zoo("fetch", "hub/ann/model", "--json")
    assert code == 0
    assert [row["part"] for row in json.loads(out)] == [KEY]
    assert read_run(Path("run")).plan.pins[KEY].revision == far.server.head(BASE)


@pytest.mark.slow
def test_a_student_of_a_published_teacher_is_published_and_used_without_it(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", far.server.token("ann", write=("ann/*",)))
    short = ("--epochs", "1", "--num-rates", "1", "--device", "cpu")
    assert far.zoo("fit", f"far/{BASE}+full", "--task", "digits(shots=2)", "--out", "big", *short)[0] == 0
    assert far.zoo("push", "big", "ann/big")[0] == 0
    words = ("distill", "hub/ann/big", "starter/convnet-nano+full", "--data", "digits(limit=60)", *short)
    code, out, err = far.zoo(*words, "--out", "small")
    assert code == 0, err
    assert "it predicts classes, 0, 1" in out
    far.server.clear_log()
    assert "ann/big" in Path("small", "zoo.lock").read_text(encoding="utf-8"), "of what it was made with"
    shutil.rmtree(far.folder / "huggingface" / "hub")
    assert far.zoo("push", "small", "ann/small")[0] == 0
    assert zoo_core.load_run("hub/ann/small").target.names == tuple("0123456789")
    assert not far.server.requests("*ann/big*")
    assert not far.server.requests(f"*{BASE}*")
