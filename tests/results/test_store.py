"""Results on disk: nothing is lost, whatever is killed, torn, damaged or not allowed."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo_core.errors import AccessError, IntegrityError, NotFoundError, UsageError, ZooError
from zoo_core.results.store import Result, RunLock, append, find, latest, read

RESULT = Result(
    trial="starter/vit-nano+probe+linear task=digits seed=0",
    digest="d0",
    record=None,
    status="ok",
    reason=None,
    metric="accuracy",
    score=0.9,
    split="test",
    num_examples=600,
    chosen={"learning_rate": 0.001, "candidates": [{"learning_rate": 0.001, "validation_score": 0.8}]},
    num_trainable=970,
    num_parameters=449_602,
    train_seconds=1.5,
    training={"examples_per_second": 1000.0, "spread": 0.05},
    inference=None,
    peak_memory_bytes=1 << 28,
    coverage=1.0,
    versions={"torch": "2.9"},
    device="cpu",
    threads=2,
    created_at="2026-11-21T00:00:00+00:00",
    backbone="starter/vit-nano",
    adapters="probe",
    head="linear",
    task="digits",
    seed=0,
    weights="pretrained",
)

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_what_is_appended_is_read_in_order(path: Path) -> None:
    results = [replace(RESULT, digest=f"d{number}", seed=number) for number in range(5)]
    for result in results:
        append(path, result)
    assert read(path) == results
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5


def test_the_fields_are_those_of_the_design() -> None:
    assert {field.name for field in fields(Result)} >= {
        *("trial", "digest", "record", "status", "reason", "metric", "score", "split", "num_examples", "chosen"),
        *("num_trainable", "num_parameters", "train_seconds", "training", "inference", "peak_memory_bytes"),
        *("coverage", "versions", "device", "threads", "created_at"),
    }


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_reads_back(tmp_path_factory: pytest.TempPathFactory, text: str, number: float) -> None:
    path = tmp_path_factory.mktemp("any") / "results.jsonl"
    result = replace(RESULT, reason=text.encode("utf-8", "replace").decode(), score=number)
    append(path, result)
    assert read(path) == [result]


def test_numbers_that_are_not_finite_become_null_inside_values(path: Path) -> None:
    chosen = {"candidates": [{"validation_score": math.nan}, {"validation_score": math.inf}]}
    append(path, replace(RESULT, chosen=chosen))
    (result,) = read(path)
    assert result.chosen == {"candidates": [{"validation_score": None}, {"validation_score": None}]}
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("length", [1, 10, 100, -2, -1])
def test_a_torn_last_line_is_left_out_by_a_reader_and_stays(
    path: Path, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    append(path, RESULT)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-1][:length])
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert read(path) == [RESULT]
    assert ("torn" in caplog.text, path.read_bytes()) == (True, before)


def test_the_next_append_moves_a_torn_line_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(path, RESULT)
    path.write_bytes(path.read_bytes() + b'{"trial": "half')
    append(path, replace(RESULT, digest="d1"))
    assert [result.digest for result in read(path)] == ["d0", "d1"]
    assert path.with_name("results.jsonl.torn").read_bytes() == b'{"trial": "half\n'
    assert "its trial runs again" in caplog.text


def test_taking_the_lock_moves_a_torn_line_aside(path: Path) -> None:
    append(path, RESULT)
    path.write_bytes(path.read_bytes() + b"\x00\x00\xff")
    with RunLock(path.parent):
        pass
    assert read(path) == [RESULT]
    assert path.with_name("results.jsonl.torn").exists()


def test_a_last_line_that_lacks_only_its_end_is_kept(path: Path) -> None:
    append(path, RESULT)
    path.write_bytes(path.read_bytes()[:-1])
    assert read(path) == [RESULT]
    append(path, replace(RESULT, digest="d1"))
    assert [result.digest for result in read(path)] == ["d0", "d1"]
    assert not path.with_name("results.jsonl.torn").exists()


def test_a_torn_line_longer_than_a_step_of_reading_is_moved_whole(path: Path) -> None:
    append(path, RESULT)
    torn = b'{"x": "' + b"y" * 200_000
    path.write_bytes(path.read_bytes() + torn)
    append(path, replace(RESULT, digest="d1"))
    assert path.with_name("results.jsonl.torn").read_bytes() == torn + b"\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"not json", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "no JSON object"),
        (b"{}", "lacks adapters, backbone"),
        (json.dumps({**vars(RESULT), "score": "high"}).encode(), "score cannot be 'high'"),
        (json.dumps({**vars(RESULT), "score": True}).encode(), "score cannot be True"),
        (json.dumps({**vars(RESULT), "status": "fine"}).encode(), "status cannot be 'fine'"),
        (json.dumps({**vars(RESULT), "seed": None}).encode(), "seed cannot be None"),
        (json.dumps({**vars(RESULT), "training": 3}).encode(), "training cannot be 3"),
        (json.dumps({**vars(RESULT), "unpublished": 3}).encode(), "unpublished cannot be 3"),
    ],
)
def test_a_damaged_line_is_named_with_what_to_do(path: Path, line: bytes, told: str) -> None:
    append(path, RESULT)
    whole = path.read_bytes()
    path.write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(IntegrityError, match=rf"results\.jsonl:2.*{told}.*move the line out of it"):
        read(path)


def test_unknown_keys_of_a_later_version_are_left_out(path: Path) -> None:
    path.write_text(json.dumps({**vars(RESULT), "colour": "blue"}) + "\n\n", encoding="utf-8")
    assert read(path) == [RESULT]


def test_the_last_ok_result_stands_for_a_trial() -> None:
    failed, ok = replace(RESULT, status="failed", score=None, reason="out of memory"), RESULT
    newer = replace(RESULT, score=0.95)
    assert find([failed, ok], "d0") == ok
    assert find([ok, failed], "d0") == ok
    assert find([ok, newer], "d0") == newer
    assert find([failed, replace(failed, reason="again")], "d0") == replace(failed, reason="again")
    assert find([ok], "d1") is None
    assert list(latest([ok, replace(ok, digest="d1"), failed])) == ["d0", "d1"]


def test_a_missing_file_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="`zoo bench --out"):
        read(tmp_path / "results.jsonl")
    with pytest.raises(UsageError, match="no folder"):
        append(tmp_path / "no" / "results.jsonl", RESULT)
    with pytest.raises(UsageError, match="no folder"), RunLock(tmp_path / "no"):
        pass


def test_a_folder_in_place_of_the_file_is_told(path: Path) -> None:
    path.mkdir()
    for use in (lambda: read(path), lambda: append(path, RESULT)):
        with pytest.raises(AccessError, match="cannot be"):
            use()


@needs_permissions
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AccessError, match="cannot be written"):
        append(tmp_path / "results.jsonl", RESULT)
    with pytest.raises(AccessError, match="cannot be written"), RunLock(tmp_path):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(ZooError, match=r"cannot be written|the disk is full"):
        append(path, RESULT)


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_store import RESULT
from zoo_core.results.store import RunLock, append
path = Path(sys.argv[1])
with RunLock(path.parent):
    print("holding", flush=True)
    for number in range(100_000):
        append(path, replace(RESULT, digest=f"d{{number}}", reason="x" * 20_000))
        print(number, flush=True)
"""


def writer(path: Path) -> subprocess.Popen[str]:
    code = WRITER.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def test_a_kill_at_any_instant_loses_no_result_that_was_told(path: Path) -> None:
    told = -1
    for number in range(5):
        process = writer(path)
        time.sleep(0.02 * (number + 1))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        told = max([int(line) for line in output.splitlines()], default=-1)
        with RunLock(path.parent):
            digests = {result.digest for result in read(path)}
        assert {f"d{index}" for index in range(told + 1)} <= digests


def test_one_run_at_a_time_writes_to_a_folder(path: Path) -> None:
    process = writer(path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        with pytest.raises(AccessError, match=f"being written by process {process.pid}"), RunLock(path.parent):
            pass
        read(path)  # a reader needs no lock
    finally:
        process.kill()
        process.communicate()
    with RunLock(path.parent):
        append(path, RESULT)


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path):
        pass
