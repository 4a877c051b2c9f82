"""A run's folder: killed, interrupted, shared, damaged, full; the same command goes on and nothing is lost.

Everything here is a real `zoo bench` in processes of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import Zoo

ROOT = Path(__file__).parents[2]
GRID = (
    *("--task", "thirds"),
    *("--backbones", "nasty/tokens,nasty/map(weights=random)"),
    *("--adapters", "probe,full,probe+ncm"),
    *("--seeds", "1", "--epochs", "2", "--num-rates", "2", "--device", "cpu"),
)
NUM_TRIALS = 2 * 3
SLEEPING = (
    *("--task", "thirds", "--backbones", "nasty/tokens", "--adapters", "probe,trouble(how=sleep)"),
    *("--seeds", "1", "--epochs", "1", "--device", "cpu", "--workers", "2"),
)
Rows = Callable[[Path], list[dict[str, Any]]]
Scores = Callable[[Path], dict[str, dict[str, Any]]]

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")


@pytest.fixture(scope="session")
def kill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill", ROOT / "benchmarks" / "kill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def whole(session_zoo: Zoo) -> Path:
    """An undisturbed run with one worker. Copy it before writing to it."""
    out: Path = session_zoo.cwd / "whole"
    done = session_zoo("bench", *GRID, "--out", out, "--workers", "1")
    assert done.code == 0, done.err
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def again(zoo: Zoo, out: Path, *more: str) -> Any:
    return zoo("bench", *GRID, "--out", out, "--workers", "2", *more)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.fixture
def sleeping(zoo: Zoo, kill: ModuleType) -> Iterator[subprocess.Popen[str]]:
    """A bench with one result, whose other trial sleeps for an hour."""
    process = zoo.start("bench", *SLEEPING, "--out", "out")
    wait_for(lambda: len(kill.results(zoo.cwd / "out")) == 1 or process.poll() is not None)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


# --- killed ----------------------------------------------------------------------------------------------------------


def test_the_run_that_others_are_compared_with_is_whole(whole: Path, rows_of: Rows) -> None:
    rows = rows_of(whole)
    assert [row["status"] for row in rows] == ["ok"] * NUM_TRIALS
    assert len({row["digest"] for row in rows}) == NUM_TRIALS


@linux
@pytest.mark.slow
def test_kills_at_random_instants_leave_the_rows_of_an_undisturbed_run_and_no_process() -> None:
    """On the starter's backbones; `benchmarks/kill.py` without arguments kills ten times.

    This seed kills the whole group as it starts, then, while trials run, the parent alone, the group and the parent.
    """
    words = ["--kills", "4", "--trials", "12", "--seed", "6"]
    command = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "identical"
    assert "killed 4 times" in done.stdout


@linux
@pytest.mark.slow
def test_kills_while_trials_wait_at_rungs_leave_the_rows_of_an_undisturbed_run() -> None:
    words = ["--kills", "3", "--trials", "12", "--seed", "6", "--halving"]
    command = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "identical"


def test_the_comparison_sees_a_changed_score_a_missing_and_a_doubled_trial(copy: Path, whole: Path, kill: Any) -> None:
    path = copy / "results.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    path.write_text("\n".join([json.dumps(row | {"score": row["score"] + 1e-9}), *lines[1:]]) + "\n")
    assert kill.differences(copy, whole) == [f"{row['trial']}: score"]
    path.write_text("\n".join(lines[1:]) + "\n")
    assert kill.differences(copy, whole) == [f"only in one run: {row['digest']}"]
    path.write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(ValueError, match="7 results of 6 trials"):
        kill.differences(copy, whole)


@linux
def test_the_search_for_orphans_sees_one(kill: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill, "GONE_SECONDS", 0.2)
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    wait_for(lambda: len(kill.processes_of(parent.pid)) == 2)
    parent.kill()
    parent.wait()
    with pytest.raises(TimeoutError, match="outlive their parent"):
        kill.seconds_until_gone(parent.pid)
    os.killpg(parent.pid, signal.SIGKILL)
    kill.seconds_until_gone(parent.pid)


@linux
@pytest.mark.parametrize(
    "whole_group", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["terminal", "kill -INT"]
)
def test_ctrl_c_ends_quickly_with_130_loses_nothing_and_leaves_no_process(
    zoo: Zoo, sleeping: subprocess.Popen[str], kill: ModuleType, rows_of: Rows, whole_group: bool
) -> None:
    began = time.monotonic()
    (os.killpg if whole_group else os.kill)(sleeping.pid, signal.SIGINT)
    _, err = sleeping.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert sleeping.returncode == 130
    assert err.splitlines()[-1].startswith("zoo: interrupted")
    assert "Traceback" not in err
    kill.seconds_until_gone(sleeping.pid)
    assert [row["status"] for row in rows_of(zoo.cwd / "out")] == ["ok"]  # no row for the trial that was interrupted


@linux
@pytest.mark.slow
def test_a_terminated_run_leaves_no_process(zoo: Zoo, sleeping: subprocess.Popen[str], kill: ModuleType) -> None:
    sleeping.terminate()
    sleeping.communicate(timeout=30)
    assert sleeping.returncode == -signal.SIGTERM
    kill.seconds_until_gone(sleeping.pid)
    assert len(kill.results(zoo.cwd / "out")) == 1


@linux
@pytest.mark.slow
def test_a_worker_that_is_killed_from_outside_costs_one_trial(
    zoo: Zoo, sleeping: subprocess.Popen[str], kill: ModuleType, rows_of: Rows
) -> None:
    """The kernel does so when memory runs out."""
    workers = [pid for pid in kill.processes_of(sleeping.pid) if "forkserver" in _command_of(_parent_of(pid))]
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    _, err = sleeping.communicate(timeout=60)
    assert sleeping.returncode == 1
    ok, failed = rows_of(zoo.cwd / "out")
    assert (ok["status"], failed["status"]) == ("ok", "failed")
    assert "was killed by SIGKILL, perhaps for memory; run the same command with --retry" in failed["reason"]
    assert "1 of them failed; the same command with --retry runs those again" in err


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def _command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.slow
def test_two_benches_on_one_folder_never_mix(zoo: Zoo, sleeping: subprocess.Popen[str], rows_of: Rows) -> None:
    before = rows_of(zoo.cwd / "out")
    done = zoo("bench", *SLEEPING, "--out", "out")
    assert done.code == 4
    assert f"out is being written by process {sleeping.pid}; wait for it, stop it" in done.line
    assert sleeping.poll() is None
    assert rows_of(zoo.cwd / "out") == before


@pytest.mark.slow
def test_two_benches_on_one_store_both_have_the_scores_of_one_alone(
    zoo: Zoo, whole: Path, scores_of: Scores, tmp_path: Path
) -> None:
    zoo.environment["ZOO_CACHE"] = str(tmp_path / "cache")
    outs = [tmp_path / name for name in ("one", "other")]
    processes = [zoo.start("bench", *GRID, "--out", out, "--workers", "1") for out in outs]
    for process, out in zip(processes, outs, strict=True):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert scores_of(out) == scores_of(whole)


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_printed_again_and_nothing_runs(zoo: Zoo, copy: Path) -> None:
    before = (copy / "results.jsonl").read_bytes()
    done = again(zoo, copy)
    assert done.code == 0
    assert done.err.splitlines()[0] == f"{NUM_TRIALS} of {NUM_TRIALS} trials are done already"
    assert (copy / "results.jsonl").read_bytes() == before
    assert "nasty/tokens+full+linear" in done.out


def test_failures_and_refusals_are_rows_with_their_reasons(mixed: Any, zoo: Zoo, rows_of: Rows) -> None:
    assert mixed.done.code == 1
    rows = {row["trial"].partition(" ")[0]: row for row in rows_of(mixed.out)}
    chains = ("probe", "trouble(how=gone)", "trouble(how=print)", "maps-only")
    assert {spec: row["status"] for spec, row in rows.items()} == {
        "nasty/tokens+linear": "ok",
        "nasty/tokens+trouble+linear": "ok",
        "nasty/tokens+trouble(how=gone)+linear": "failed",
        "nasty/tokens+maps-only": "refused",
        **{f"nasty/far+{chain}": "refused" for chain in chains},
    }
    assert "raised OSError: gone" in rows["nasty/tokens+trouble(how=gone)+linear"]["reason"]
    assert "works on map and nasty/tokens gives tokens" in rows["nasty/tokens+maps-only"]["reason"]
    assert "requests are forbidden (HF_HUB_OFFLINE=1)" in rows["nasty/far+probe"]["reason"]
    shown = json.loads(zoo("report", mixed.out, "--format", "json").out)["failures"]
    assert sorted(failure["reason"] for failure in shown) == sorted(
        row["reason"] for row in rows.values() if row["reason"]
    )


@pytest.mark.slow
def test_a_failure_stays_until_retry_runs_it_again(mixed: Any, zoo: Zoo, tmp_path: Path, rows_of: Rows) -> None:
    out = Path(shutil.copytree(mixed.out, tmp_path / "out"))
    before = rows_of(out)
    second = zoo(*mixed.words, "--out", out)
    assert rows_of(out) == before
    assert second.out == mixed.done.out
    third = zoo(*mixed.words, "--out", out, "--retry", "--format", "json")
    assert [row["status"] for row in rows_of(out)[len(before) :]] == ["ok"]
    assert {failure["status"] for failure in json.loads(third.out)["failures"]} == {"refused"}


# --- damaged ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_torn_last_line_runs_again_and_is_kept_aside(zoo: Zoo, copy: Path, whole: Path, scores_of: Scores) -> None:
    path = copy / "results.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    done = again(zoo, copy)
    assert done.code == 0, done.err
    assert f"{NUM_TRIALS - 1} of {NUM_TRIALS} trials are done already" in done.err
    assert scores_of(copy) == scores_of(whole)
    assert (copy / "results.jsonl.torn").read_bytes().rstrip() in content


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"trial": 3}', b"\xff\xfe"], ids=repr)
def test_a_damaged_line_is_named_and_nothing_is_written(zoo: Zoo, copy: Path, line: bytes) -> None:
    path = copy / "results.jsonl"
    lines = path.read_bytes().splitlines()
    lines[4] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    done = again(zoo, copy)
    assert done.code == 5
    assert "results.jsonl:5" in done.line
    assert "move the line out" in done.line
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "code", "reason"),
    [
        (lambda lock: "{", 5, "zoo.lock is damaged"),
        (lambda lock: json.dumps(lock | {"format": 9}), 5, "is not a lock of format 1"),
        (lambda lock: json.dumps(lock | {"parts": {"head:linear": 3}}), 5, "zoo.lock is damaged"),
        (
            lambda lock: json.dumps(lock).replace('"distribution": "zoo-nasty", "version": "1.0"',
                                                  '"distribution": "zoo-nasty", "version": "0.9"'),
            6,
            "of another version: 0.9 then, 1.0 now; install what it was made with, or use a new --out",
        ),
        (lambda lock: json.dumps(lock).replace("1" * 64, "2" * 64), 6, "of another files"),
    ],
)  # fmt: skip
def test_a_run_of_other_parts_or_with_a_damaged_lock_is_left_alone(
    zoo: Zoo, copy: Path, damage: Callable[[Any], str], code: int, reason: str
) -> None:
    path = copy / "zoo.lock"
    path.write_text(damage(json.loads(path.read_text())))
    before = {file.name: file.read_bytes() for file in copy.iterdir() if file.name != ".lock"}
    done = again(zoo, copy)
    assert done.code == code, done.err
    assert reason in done.line
    assert {file.name: file.read_bytes() for file in copy.iterdir() if file.name != ".lock"} == before


def test_an_out_that_is_a_file_or_lies_in_one_is_refused(zoo: Zoo) -> None:
    (zoo.cwd / "file").write_text("mine")
    for out in ("file", "file/below"):
        done = again(zoo, zoo.cwd / out)
        assert (done.code, "is a file, or lies in one; give --out a folder" in done.line) == (2, True)
    assert (zoo.cwd / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives up root's rights to lose them")
def test_a_folder_that_may_not_be_written_is_refused_to_root(zoo: Zoo) -> None:
    """Root writes wherever it likes, except in /proc and /sys."""
    done = again(zoo, Path("/proc/zoo"))
    assert done.code == 4, done.err
    assert "give --out another folder" in done.line


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes to a read-only folder")
def test_a_read_only_folder_is_refused(zoo: Zoo, copy: Path) -> None:
    copy.chmod(0o500)
    (copy / ".lock").chmod(0o400)
    done = again(zoo, copy)
    copy.chmod(0o700)
    assert done.code == 4, done.err
    assert "cannot be written" in done.line


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_later(zoo: Zoo, whole: Path, rows_of: Rows, scores_of: Scores) -> None:
    """A limit on the size of files stands in for the disk: the fourth result does not fit whole."""
    out = zoo.cwd / "out"
    size = len((whole / "results.jsonl").read_bytes()) * 7 // 12  # three results and a half

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    words = ("bench", *GRID, "--out", out, "--workers", "1")
    assert zoo("plan", "nasty/tokens", "--task", "thirds").code == 0  # the index of plugins is larger than that
    process = zoo.start(*words, preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    assert "results.jsonl cannot be written (File too large)" in err.splitlines()[-1]
    assert "Traceback" not in err
    done = zoo(*words)
    assert done.code == 0, done.err
    assert f"3 of {NUM_TRIALS} trials are done already" in done.err
    assert scores_of(out) == scores_of(whole)
