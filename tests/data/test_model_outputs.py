"""The store of model outputs: what it gives is what was written, bit for bit, or it is not held."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo_core.data.model_outputs import BUSY_SECONDS, LOOK_SECONDS, NUM_OPEN, ROOM, ModelOutputs, Stored, outputs_room
from zoo_core.data.row_files import PAGE, Layout, RowFile
from zoo_core.files.cache import ROOMS

KEY = {"model": "0a1b", "split": "train", "keep": "float32"}
NUM = 1000
ROWS = [7, 3, 999, 8, 0]
Make = Callable[..., ModelOutputs]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, told: list[str]) -> Make:
    """Stores in one room, by key."""

    def make(key: Mapping[str, object] = KEY, *, num_rows: int = NUM, max_bytes: int = 2**30) -> ModelOutputs:
        return ModelOutputs(tmp_path / ROOM, key, num_rows, max_bytes=max_bytes, on_full=told.append)

    return make


def outputs_of(rows: Any, width: int = 10, *, factor: float = 1.0) -> dict[str, Tensor]:
    """Outputs that tell their row, [num, width]."""
    row = torch.as_tensor(np.asarray(rows), dtype=torch.float32)
    return {"predictions": factor * (row[:, None] + torch.arange(width) / 16)}


def same(found: Stored, expected: Mapping[str, Tensor]) -> bool:
    return found.outputs.keys() == expected.keys() and all(
        x.dtype == expected[name].dtype
        and x.shape == expected[name].shape
        and x.numpy().tobytes() == expected[name].numpy().tobytes()
        for name, x in found.outputs.items()
    )


def files_of(store: ModelOutputs) -> list[Path]:
    return sorted(store.folder.glob("*.rows"))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


# --- what it gives ---------------------------------------------------------------------------------------------------


def test_every_dtype_comes_back_bit_for_bit(make: Make, told: list[str]) -> None:
    bits = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, size=(5, 6)))
    outputs = {
        "f32": bits.view(torch.float32).reshape(5, 4, 3),  # NaNs of any kind, infinities and subnormals among them
        "f16": bits.view(torch.float16),
        "i64": bits[:, 0],
        "flags": bits % 2 == 0,
        "stages.3": torch.tensor([float("nan"), -0.0, 0.0, float("inf"), 1e-45]),
    }
    store = make()
    store.write("epoch 0", ROWS, outputs)
    for each in (store, make()):
        found = each.read("epoch 0", ROWS)
        assert found.is_held.all()
        assert same(found, outputs)
        order = [4, 2, 0, 2]
        assert same(each.read("epoch 0", [ROWS[i] for i in order]), {name: x[order] for name, x in outputs.items()})
    assert told == []


def test_rows_that_are_not_held_are_told_and_completed(make: Make) -> None:
    store = make()
    nothing = store.read("v", ROWS)
    assert (nothing.outputs, nothing.missing.tolist()) == ({}, [0, 1, 2, 3, 4])
    assert nothing.completed(outputs_of(ROWS))["predictions"].equal(outputs_of(ROWS)["predictions"])
    store.write("v", [3, 8], outputs_of([3, 8]))
    assert store.held("v", ROWS).tolist() == [False, True, False, True, False]
    found = store.read("v", ROWS)
    assert found.is_held.tolist() == [False, True, False, True, False]
    assert same(found, outputs_of([3, 8]))
    missing = outputs_of([ROWS[i] for i in found.missing])
    assert found.completed(missing)["predictions"].equal(outputs_of(ROWS)["predictions"])
    store.write("v", [7, 999, 0], missing)
    whole = store.read("v", ROWS)
    assert whole.completed({})["predictions"].equal(outputs_of(ROWS)["predictions"])


def test_no_rows_are_read_and_written(make: Make) -> None:
    store = make()
    store.write("v", [], outputs_of([]))
    assert files_of(store) == []
    store.write("v", [1], outputs_of([1]))
    assert store.read("v", []).outputs == {}
    assert store.held("v", []).shape == (0,)


def test_views_and_keys_are_independent(make: Make) -> None:
    store, other = make(), make(KEY | {"model": "other"})
    for number, each in enumerate((store, other)):
        for view in range(NUM_OPEN + 3):  # more than are open at once
            each.write(f"epoch {view}", ROWS, outputs_of(ROWS, factor=view + 100 * number))
    assert store.folder != other.folder
    for number, each in enumerate((store, other)):
        for view in range(NUM_OPEN + 3):
            assert same(each.read(f"epoch {view}", ROWS), outputs_of(ROWS, factor=view + 100 * number))
    assert not store.held("epoch 99", ROWS).any()
    assert not make(num_rows=NUM + 1).held("epoch 0", ROWS).any()


def test_closed_stores_open_again(make: Make) -> None:
    store = make()
    store.write("v", ROWS, outputs_of(ROWS))
    store.close()
    assert same(store.read("v", ROWS), outputs_of(ROWS))


def test_the_key_is_written_for_people(make: Make) -> None:
    store = make()
    assert not store.folder.exists()
    store.write("v", ROWS, outputs_of(ROWS))
    assert json.loads((store.folder / "key.json").read_text()) == {"key": KEY, "num_rows": NUM}
    written, _ = ROOMS[ROOM]
    assert all(re.fullmatch(written, f"{path.parent.name}/{path.name}") for path in store.folder.iterdir())


def test_the_room_lies_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", "/big/zoo")
    assert outputs_room() == Path("/big/zoo/outputs")


@pytest.mark.parametrize(
    "wrong",
    [
        {"logits": torch.zeros(2, 10)},
        {"predictions": torch.zeros(2, 11)},
        {"predictions": torch.zeros(2, 10, dtype=torch.float16)},
        {"predictions": torch.zeros(2, 10), "pooled": torch.zeros(2, 3)},
        {"predictions": torch.zeros(3, 10)},
        {"predictions": torch.zeros(2, 10, dtype=torch.float64)},
    ],
)
def test_a_view_holds_what_its_first_write_says(make: Make, wrong: dict[str, Tensor]) -> None:
    store = make()
    store.write("v", ROWS, outputs_of(ROWS))
    for each in (store, make()):
        with pytest.raises(AssertionError):
            each.write("v", [1, 2], wrong)
    assert same(store.read("v", ROWS), outputs_of(ROWS))


@pytest.mark.parametrize("row", [-1, NUM])
def test_a_row_is_one_of_the_split(make: Make, row: int) -> None:
    with pytest.raises(AssertionError):
        make().write("v", [row], outputs_of([0]))
    with pytest.raises(AssertionError):
        make().read("v", [row])


def test_a_file_takes_only_what_was_written(make: Make) -> None:
    store = make(num_rows=10**6)
    store.write("v", [500_000], outputs_of([500_000], 1280))
    (path,) = files_of(store)
    assert path.stat().st_size > 5 * 10**9
    assert path.stat().st_blocks * 512 <= 2**17


# --- other processes -------------------------------------------------------------------------------------------------


class Held(Dataset[Any]):
    """What a store holds of each row, as a worker process reads it."""

    def __init__(self, store: ModelOutputs) -> None:
        self.store = store

    def __getitem__(self, row: int) -> Any:
        found = self.store.read("v", [row])
        self.store.write("v", [row + 500], outputs_of([row]))  # of a copy, nothing comes of it
        return bool(found.is_held[0]), float(found.outputs["predictions"][0, 1]) if found.outputs else -1.0


def test_a_worker_process_reads(make: Make) -> None:
    store = make()
    store.write("v", [0, 1, 3], outputs_of([0, 1, 3]))
    assert len(pickle.dumps(store)) < 1000
    loader = DataLoader(
        Held(store), sampler=range(4), batch_size=None, num_workers=1, multiprocessing_context="forkserver"
    )
    assert list(loader) == [[True, 1 / 16], [True, 1 + 1 / 16], [False, -1.0], [True, 3 + 1 / 16]]
    assert not store.held("v", range(500, 504)).any()


VERSIONS = 8
BIG = 1 << 18  # values of a row: writing one takes long enough to be killed amid it
NUM_BIG = 4
WRITER = f"""
import sys, itertools, numpy as np, torch
from pathlib import Path
from zoo_core.data.model_outputs import ModelOutputs
room, seed = Path(sys.argv[1]), int(sys.argv[2])
store = ModelOutputs(room, {KEY!r}, {NUM_BIG}, max_bytes=2**30, on_full=print)
rng = np.random.default_rng(seed)
contents = [torch.full(({BIG},), float(value)) for value in range({NUM_BIG * VERSIONS})]
print("ready", flush=True)
for _ in itertools.count():
    row, version = int(rng.integers({NUM_BIG})), int(rng.integers({VERSIONS}))
    store.write("v", [row], {{"x": contents[row * {VERSIONS} + version][None]}})
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts a process that writes rows of NUM_BIG without end; each row in one of VERSIONS versions of one value."""
    started: list[subprocess.Popen[str]] = []

    def start(seed: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", WRITER, str(tmp_path / ROOM), str(seed)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wrong_rows(store: ModelOutputs) -> tuple[int, list[str]]:
    """(how many rows are held, what is wrong with them): each is of one value, which says the row."""
    num_held, wrong = 0, []
    for row in range(NUM_BIG):
        for x in store.read("v", [row]).outputs.values():
            num_held += 1
            if x.min() != x.max() or int(x.min()) // VERSIONS != row:
                wrong.append(f"row {row} holds {x.unique().tolist()}")
    return num_held, wrong


def kill_at_random(writer: Callable[[int], subprocess.Popen[str]], store: ModelOutputs, seed: int) -> list[str]:
    """What is wrong while two writers are at work, and after they were killed amid it."""
    processes = [writer(2 * seed), writer(2 * seed + 1)]
    start, after = time.monotonic(), np.random.default_rng(seed).uniform(0.05, 0.3)
    num_held = 0
    wrong: list[str] = []
    while not num_held or time.monotonic() < start + after:
        assert time.monotonic() < start + 60, "no row was ever held"
        found, complaints = wrong_rows(store)
        num_held, wrong = num_held + found, wrong + complaints
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    store.close()
    return wrong + wrong_rows(store)[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_two_writers_killed_at_any_instant_leave_no_wrong_row(
    make: Make, writer: Callable[[int], subprocess.Popen[str]], seed: int
) -> None:
    store = make(num_rows=NUM_BIG)
    assert kill_at_random(writer, store, seed) == []
    for row in range(NUM_BIG):  # and every row can be written after it
        store.write("v", [row], {"x": torch.full((1, BIG), float(row * VERSIONS))})
    assert wrong_rows(store) == (NUM_BIG, [])


@pytest.mark.slow
def test_without_the_checksum_wrong_rows_would_be_read(
    make: Make, writer: Callable[[int], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: rows are caught half-written, and only their checksums tell."""
    store = make(num_rows=NUM_BIG)
    processes = [writer(0), writer(1)]
    until = time.monotonic() + 60
    while not wrong_rows(store)[0]:
        assert time.monotonic() < until
    believed = make(num_rows=NUM_BIG)
    with monkeypatch.context() as patch:
        patch.setattr(RowFile, "_sums", lambda file, rows: np.ones(len(rows), dtype="<u4"))
        patch.setattr(Layout, "checksum", lambda layout, row, content: 1)
        while not wrong_rows(believed)[1]:
            assert time.monotonic() < until
    for process in processes:
        process.kill()


def test_a_view_that_two_make_at_once_is_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(), make()
    made = RowFile.made

    def late(path: Path, layout: Layout) -> RowFile:
        monkeypatch.setattr(RowFile, "made", staticmethod(made))
        second.write("v", [1], outputs_of([1]))  # comes between the first one's look and its file
        return made(path, layout)

    monkeypatch.setattr(RowFile, "made", staticmethod(late))
    first.write("v", [2], outputs_of([2]))
    assert len(files_of(first)) == 1
    for store in (first, second):
        assert same(store.read("v", [1, 2]), outputs_of([1, 2]))


def test_a_view_that_was_removed_is_made_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    store.write("v", ROWS, outputs_of(ROWS))
    (path,) = files_of(store)
    path.unlink()
    assert store.read("v", ROWS).is_held.all(), "an open file is still there for who has it"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LOOK_SECONDS + 1)
    assert not store.read("v", ROWS).is_held.any()
    store.write("v", ROWS, outputs_of(ROWS))
    assert make().held("v", ROWS).all()


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_not_read(make: Make) -> None:
    store = make()
    rows = list(range(50))
    store.write("v", rows, outputs_of(rows))
    (path,) = files_of(store)
    layout = Layout(store._title("v"), NUM, (("predictions", "float32", (10,)),))
    assert layout.num_bytes == path.stat().st_size
    flip(path, layout.rows_at + 3 * 40)  # the first byte of row 3
    flip(path, layout.rows_at + 20 * 40 - 1)  # the last one of row 19
    flip(path, layout.sums_at + 4 * 30)
    for each in (store, make()):
        found = each.read("v", rows)
        assert found.missing.tolist() == [3, 19, 30]
        good = np.flatnonzero(found.is_held)
        assert same(found, outputs_of(good))
        assert each.held("v", rows).all(), "a forecast trusts the marks"
    store.write("v", [3, 19, 30], outputs_of([3, 19, 30]))
    assert same(make().read("v", rows), outputs_of(rows))


def test_a_row_in_the_place_of_another_is_not_read(make: Make) -> None:
    store = make()
    store.write("v", [0, 1], outputs_of([0, 1]))
    (path,) = files_of(store)
    layout = Layout(store._title("v"), NUM, (("predictions", "float32", (10,)),))
    content = bytearray(path.read_bytes())
    for start, width in ((layout.sums_at, 4), (layout.rows_at, 40)):
        content[start + width : start + 2 * width] = content[start : start + width]
    path.write_bytes(content)
    assert make().read("v", [0, 1]).is_held.tolist() == [True, False]


@pytest.mark.parametrize("damage", ["flipped", "empty", "short", "other", "format"])
def test_a_damaged_file_holds_nothing_and_is_made_again(make: Make, told: list[str], damage: str) -> None:
    store = make()
    store.write("v", ROWS, outputs_of(ROWS))
    store.write("w", ROWS, outputs_of(ROWS, factor=2))
    path, other = store._path("v"), store._path("w")
    if damage == "flipped":
        flip(path, 30)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "short":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "other":  # a whole file of another view
        path.write_bytes(other.read_bytes())
    else:
        line, _, rest = path.read_bytes().partition(b"\n")
        text = line.partition(b" ")[2].replace(b'"format": 1', b'"format": 2')
        path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text) + rest)
    fresh = make()
    assert not fresh.held("v", ROWS).any()
    assert not fresh.read("v", ROWS).is_held.any()
    fresh.write("v", [4], outputs_of([4]))
    found = make().read("v", [4, *ROWS])
    assert found.missing.tolist() == [1, 2, 3, 4, 5]
    assert same(found, outputs_of([4]))
    assert told == []


def test_a_file_that_shrinks_while_it_is_open_holds_less(make: Make) -> None:
    store = make()
    store.write("v", [0, 999], outputs_of([0, 999]))
    (path,) = files_of(store)
    os.truncate(path, path.stat().st_size - 1000)
    assert store.read("v", [0, 999]).is_held.tolist() == [True, False]
    os.truncate(path, PAGE)
    assert not store.read("v", [0, 999]).is_held.any()


def test_a_disk_that_cannot_be_read_holds_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    store.write("v", ROWS, outputs_of(ROWS))

    def fail(*given: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    assert not store.read("v", ROWS).is_held.any()
    assert not store.held("v", ROWS).any()


# --- a disk that takes no more ---------------------------------------------------------------------------------------


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Sets how long the files that this process writes may become, in bytes; the kernel refuses what is longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_amid_a_row_ends_the_writing_and_not_the_reading(
    make: Make, told: list[str], limited: Callable[[int], None]
) -> None:
    store = make()
    store.write("v", [0, 1], outputs_of([0, 1]))
    layout = Layout(store._title("v"), NUM, (("predictions", "float32", (10,)),))
    limited(layout.rows_at + 4 * 40 + 20)  # half of row 4 fits
    store.write("v", [2, 3, 4, 5], outputs_of([2, 3, 4, 5]))
    store.write("v", [6], outputs_of([6]))
    assert len(told) == 1
    assert "File too large" in told[0]
    assert "set ZOO_CACHE to another folder" in told[0]
    found = store.read("v", range(8))
    assert set(found.missing.tolist()) >= {4, 5, 6, 7}
    assert found.is_held[:2].all()
    assert same(found, outputs_of(np.flatnonzero(found.is_held)))


def test_a_disk_that_is_full_before_the_first_row(make: Make, told: list[str], limited: Callable[[int], None]) -> None:
    store = make()
    limited(PAGE)
    store.write("v", ROWS, outputs_of(ROWS))
    store.write("w", ROWS, outputs_of(ROWS))
    assert len(told) == 1
    assert [path.name for path in store.folder.iterdir()] == ["key.json"], "nothing is left behind"
    assert not store.read("v", ROWS).is_held.any()


def test_a_full_disk_of_its_own_kind(make: Make, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk says it: the first write is short, the next one has no space."""
    store, put = make(), os.pwrite
    store.write("v", [0], outputs_of([0]))
    room = [50]

    def full(descriptor: int, content: memoryview, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = put(descriptor, content[: room[0]], offset)
        room[0] -= done
        return done

    monkeypatch.setattr(os, "pwrite", full)
    store.write("v", [1, 2], outputs_of([1, 2]))
    assert "No space left on device" in told[0]
    assert same(store.read("v", [0, 1, 2]), outputs_of([0]))


def test_a_place_that_cannot_be_written_is_told_once(make: Make, told: list[str], tmp_path: Path) -> None:
    (tmp_path / ROOM).write_text("a file in the place of the folder")
    store = make()
    for view in ("v", "w"):
        store.write(view, ROWS, outputs_of(ROWS))
        assert not store.read(view, ROWS).is_held.any()
    assert len(told) == 1


def test_files_that_may_only_be_read_are_read(make: Make, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make().write("v", ROWS, outputs_of(ROWS))
    opened = os.open

    def read_only(path: Any, flags: int, *mode: int, **more: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", read_only)
    store = make()
    assert same(store.read("v", ROWS), outputs_of(ROWS))
    assert told == []
    store.write("v", [1], outputs_of([1]))
    assert same(store.read("v", ROWS), outputs_of(ROWS))
    assert len(told) == 1
    assert "Read-only file system" in told[0]


def test_nothing_is_written_through_a_link(make: Make, told: list[str], tmp_path: Path) -> None:
    target = tmp_path / "thesis.txt"
    target.write_text("mine")
    store = make()
    store.folder.mkdir(parents=True)
    store._path("v").symlink_to(target)
    store.write("v", ROWS, outputs_of(ROWS))
    assert target.read_text() == "mine"
    assert len(told) == 1
    assert not store.read("v", ROWS).is_held.any()


# --- the budget ------------------------------------------------------------------------------------------------------

MIB = 2**20


def filled(store: ModelOutputs, view: str, num_mib: int, *, first: int = 0) -> None:
    """Writes rows of 1 MiB."""
    for row in range(first, first + num_mib):
        store.write(view, [row], {"x": torch.full((1, MIB // 4), float(row))})


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_budget_of_nothing_turns_the_store_off(make: Make, told: list[str]) -> None:
    make().write("v", ROWS, outputs_of(ROWS))
    off = make(max_bytes=0)
    assert not off.held("v", ROWS).any()
    assert not off.read("v", ROWS).is_held.any()
    off.write("w", ROWS, outputs_of(ROWS))
    assert not make().held("w", ROWS).any()
    assert told == []


def test_over_budget_writing_ends_and_reading_goes_on(make: Make, told: list[str]) -> None:
    store = make(max_bytes=10 * MIB)
    filled(store, "v", 20)
    held = store.read("v", range(20)).is_held
    assert 9 <= held.sum() <= 10
    assert len(told) == 1
    assert "outputs of models may take 10.0 MiB (outputs_bytes)" in told[0]
    assert "`zoo cache rm zoo:outputs`" in told[0]
    (path,) = files_of(store)
    assert path.stat().st_blocks * 512 <= 10 * MIB + MIB // 2


def test_the_budget_is_of_all_stores(make: Make, told: list[str]) -> None:
    filled(make(), "v", 6)
    other = make(KEY | {"model": "other"}, max_bytes=10 * MIB)
    filled(other, "v", 6)
    assert len(told) == 1
    assert 3 <= other.held("v", range(6)).sum() <= 4
    assert make().held("v", range(6)).all(), "what is in use stays"


def test_the_views_of_other_stores_that_were_not_used_longest_go_first(make: Make, told: list[str]) -> None:
    others = [make(KEY | {"model": name}) for name in ("first", "second", "third")]
    for each in others:
        filled(each, "v", 3)
        each.close()
    for each, age in zip(others, (2000.0, 3000.0, 1000.0), strict=True):
        aged(each._path("v"), BUSY_SECONDS + age)
    note = others[1].folder / "notes.txt"
    note.write_text("mine")
    store = make(max_bytes=12 * MIB)
    filled(store, "v", 3)
    assert [bool(files_of(each)) for each in others] == [True, False, True]
    assert list(others[1].folder.iterdir()) == [note], "nothing but files of the store goes"
    others[0].read("v", [0])  # a use, by which the third is now the next to go
    filled(store, "v", 3, first=3)
    assert [bool(files_of(each)) for each in others] == [True, False, False]
    assert not others[2].folder.exists()
    assert told == []
    assert store.held("v", range(6)).all()


def test_a_store_removes_no_view_of_its_own(make: Make, told: list[str]) -> None:
    store = make(max_bytes=5 * MIB)
    filled(store, "v", 4)
    aged(store._path("v"), BUSY_SECONDS + 1000)
    filled(store, "w", 4)
    assert len(told) == 1
    assert store.held("v", range(4)).all()


@pytest.mark.parametrize("linked", ["room", "folder", "file"])
def test_nothing_is_removed_through_a_link(make: Make, told: list[str], tmp_path: Path, linked: str) -> None:
    other = make(KEY | {"model": "other"})
    filled(other, "v", 4)
    other.close()
    path = other._path("v")
    aged(path, BUSY_SECONDS + 1000)
    link = {"room": tmp_path / ROOM, "folder": other.folder, "file": path}[linked]
    elsewhere = tmp_path / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    target = path.resolve()
    filled(make(max_bytes=6 * MIB), "v", 8)
    assert target.is_file()
    assert link.is_symlink()
    assert len(told) == 1


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [10, 1280])
def test_what_a_batch_costs_is_printed(make: Make, width: int) -> None:
    """Run with -s: microseconds to write, to look for and to read 32 rows of a split of 50,000."""
    store, rng = make(num_rows=50_000), np.random.default_rng(0)
    rows = rng.permutation(50_000)[: 32 * 400].reshape(400, 32)
    spent: dict[str, list[float]] = {"write": [], "held": [], "read": []}
    for verb, times in spent.items():
        for batch in rows:
            given = (outputs_of(batch, width),) if verb == "write" else ()
            start = time.perf_counter()
            found = getattr(store, verb)("v", batch, *given)
            times.append(time.perf_counter() - start)
            assert verb != "read" or found.is_held.all()
    told = {verb: f"{1e6 * float(np.median(times)):.0f} us" for verb, times in spent.items()}
    sys.stdout.write(f"{width} floats: {told}\n")
