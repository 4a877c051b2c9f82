"""`zoo cache`: what lies there, by name, and what goes; nothing that zoo did not put there is shown or removed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.far.fixture import BASE, Far
from zoo_core.data.model_outputs import ROOM, ModelOutputs
from zoo_core.files.cache import BUSY_SECONDS, ROOMS, TEMPORARY

SPEC = f"far/{BASE}+full"
OLD = time.time() - 40 * 86400
HASH, OTHER = "0a" * 16, "0b" * 16  # as files in rooms are called


def listed(far: Far) -> dict[tuple[str, str], dict[str, Any]]:
    code, out, err = far.zoo("cache", "ls", "--json")
    assert (code, err) == (0, "")
    return {(row["name"], row["kind"]): row for row in json.loads(out)}


def repository(far: Far, name: str = BASE) -> Path:
    return far.folder / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"


@pytest.fixture
def aged() -> Callable[..., Path]:
    def aged(path: Path, *, seconds: float = BUSY_SECONDS + 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
        os.utime(path, (time.time() - seconds,) * 2)
        return path

    return aged


def test_empty_caches_hold_nothing(far: Far) -> None:
    code, out, err = far.zoo("cache", "prune")
    assert (code, out, err) == (0, "nothing to remove\n", "")


def test_ls_shows_rooms_and_what_zoo_resolved_and_nothing_of_others(far: Far) -> None:
    assert far.zoo("fetch", SPEC)[0] == 0
    from huggingface_hub import hf_hub_download

    far.server.add("somebody/else", {"config.json": b"{}"})
    hf_hub_download("somebody/else", "config.json", endpoint=far.server.endpoint)
    assert repository(far, "somebody/else").is_dir()
    found = listed(far)
    row = found[BASE, "commit"]
    assert (row["revision"], row["files"]) == (far.server.head(BASE), 2)
    assert row["size"] == sum(map(len, (far.files["config.json"], far.files["model.safetensors"])))
    assert {name for name, kind in found if kind == "commit"} == {BASE}
    assert ("zoo:pins", "room") in found
    code, out, _ = far.zoo("cache", "ls")
    assert code == 0
    assert far.server.head(BASE)[:12] in out
    assert "somebody" not in out


def test_what_another_program_downloaded_stays_whatever_zoo_reads_of_it(far: Far) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(BASE, endpoint=far.server.endpoint)
    assert far.zoo("lock", SPEC)[0] == 0
    assert far.zoo("fetch", SPEC)[0] == 0
    assert (BASE, "commit") not in listed(far)
    far.refused(3, "cache", "rm", BASE, "--yes")
    assert repository(far).is_dir()


def test_a_space_of_the_same_name_is_another_repository(far: Far, aged: Callable[..., Path]) -> None:
    far.zoo("fetch", SPEC)
    app = aged(repository(far).with_name(f"spaces--{BASE.replace('/', '--')}") / "snapshots" / ("0" * 40) / "app.py")
    unlinked = aged(repository(far) / "blobs" / f"{OTHER}{OTHER}")
    assert listed(far)[BASE, "commit"]["revision"] == far.server.head(BASE)
    assert far.zoo("cache", "prune", "--yes")[0] == 0
    assert (app.exists(), unlinked.exists()) == (True, False)


def test_rm_removes_a_repository_that_then_comes_again(far: Far) -> None:
    far.zoo("fetch", SPEC)
    code, out, err = far.zoo("cache", "rm", BASE, "--dry-run")
    assert (code, err) == (0, "")
    assert "would be removed" in out
    assert repository(far).is_dir()
    assert far.zoo("cache", "rm", f"{BASE}@{far.server.head(BASE)[:7]}", "--yes")[0] == 0
    assert not repository(far).exists()
    assert (BASE, "commit") not in listed(far)
    assert far.zoo("fetch", SPEC)[0] == 0
    assert (BASE, "commit") in listed(far)


def test_rm_asks_and_where_nobody_answers_it_says_so(far: Far) -> None:
    far.zoo("fetch", SPEC)
    code, out, err = far.zoo("cache", "rm", BASE)
    assert code == 2
    assert BASE in out
    assert "give --yes to remove it" in err
    assert repository(far).is_dir()


def test_rm_of_an_unknown_name_tells_the_nearest(far: Far) -> None:
    far.zoo("fetch", SPEC)
    assert "did you mean org/base?" in far.refused(3, "cache", "rm", "org/bsae", "--yes")
    assert "'org/base@abc'" in far.refused(3, "cache", "rm", "org/base@abc", "--yes")


def test_rm_of_all_rooms_leaves_a_working_zoo(far: Far) -> None:
    far.zoo("fetch", SPEC)
    assert far.zoo("cache", "rm", "zoo", "--yes")[0] == 0
    left = [path for path in (far.folder / "zoo").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} == {"downloads"}  # by which it knows what is its own
    assert far.zoo("fetch", SPEC)[0] == 0
    assert (BASE, "commit") in listed(far)


def test_prune_takes_partial_and_unlinked_files_and_replaced_commits(far: Far, aged: Callable[..., Path]) -> None:
    far.zoo("fetch", SPEC)
    before = far.server.head(BASE)
    far.server.commit(BASE, {"config.json": far.files["config.json"] + b" "})
    far.zoo("fetch", SPEC)
    snapshots = repository(far) / "snapshots"
    for file in (snapshots / before).iterdir():
        blob = file.resolve()
        if file.name == "config.json":  # the weights are those of both commits
            os.utime(blob, (OLD, OLD))
    blobs = repository(far) / "blobs"
    gone = [
        aged(blobs / f"{HASH}{HASH}.incomplete"),
        aged(blobs / f"{OTHER}{OTHER}"),
        aged(far.folder / "zoo" / "pins" / f"{HASH}.json.0123abcd"),
    ]
    kept = [
        aged(blobs / f"{OTHER}{HASH}.incomplete", seconds=0),
        aged(far.folder / "zoo" / "pins" / f"{OTHER}.json.0123abcd", seconds=0),
    ]
    code, out, _ = far.zoo("cache", "prune", "--dry-run")
    assert code == 0
    assert "would be removed" in out
    assert all(path.exists() for path in gone)

    assert far.zoo("cache", "prune", "--yes")[0] == 0
    assert [path for path in gone if path.exists()] == []
    assert all(path.exists() for path in kept)
    weights = snapshots / far.server.head(BASE) / "model.safetensors"
    assert weights.read_bytes() == far.files["model.safetensors"], "what both commits share stays"
    assert sum(path.is_dir() for path in snapshots.iterdir()) == 1
    assert far.zoo("cache", "prune")[1] == "nothing to remove\n"


def test_prune_by_age_takes_what_was_not_used(far: Far, aged: Callable[..., Path]) -> None:
    far.zoo("fetch", SPEC)
    old = aged(far.folder / "zoo" / "tables" / f"{HASH}.npy", seconds=40 * 86400)
    new = aged(far.folder / "zoo" / "tables" / f"{OTHER}.npy", seconds=1)
    assert far.zoo("cache", "prune", "--older-than", "6w", "--yes")[1] == "nothing to remove\n"
    assert far.zoo("cache", "prune", "--older-than", "30d", "--yes")[0] == 0
    assert (old.exists(), new.exists()) == (False, True)
    assert repository(far).is_dir()
    for path in (repository(far) / "blobs").iterdir():
        os.utime(path, (OLD, OLD))
    assert far.zoo("cache", "prune", "--older-than", "30d", "--yes")[0] == 0
    assert not repository(far).exists()


@pytest.mark.parametrize("age", ["30", "d", "1y", "-3d", "1.5d"])
def test_an_age_is_a_number_of_hours_days_or_weeks(far: Far, age: str) -> None:
    assert "allowed: a whole number of hours, days or weeks" in far.refused(2, "cache", "prune", f"--older-than={age}")


# --- what is not zoo's, and links ------------------------------------------------------------------------------------


def test_files_that_zoo_did_not_write_are_not_shown_and_stay(far: Far, aged: Callable[..., Path]) -> None:
    """ZOO_CACHE may be a folder with other things in it, as that of Hugging Face."""
    root = far.folder / "zoo"
    others = ["notes.txt", "index-mine.json", "thesis/chapter.txt", "datasets/squad/1.0/x.arrow", "datasets/_lock"]
    others += ["media/holiday/film.mp4", "datasets/mine.csv", "tables/exp.npy", "splits/folds.json", "hub-data/a.jpg"]
    others += ["outputs/exp.npy", f"outputs/{HASH}/notes.txt", f"outputs/{OTHER}.rows", f"outputs/mine/{HASH}.rows"]
    others += ["set-aside/tax.pdf", "media/clip.deadbeef", "pins/mine.json", "looks/mine.json"]
    kept = [aged(root / name, seconds=50 * 86400) for name in others]
    gone = [aged(root / name) for name in ("index-0123abcd.json", "failures.json", f"datasets/{HASH}.arrow")]
    listed(far)
    assert far.zoo("cache", "prune", "--older-than", "30d", "--yes")[1] == "nothing to remove\n"
    assert far.zoo("cache", "rm", "zoo", "--yes")[0] == 0
    assert [path.exists() for path in (*kept, *gone)] == [True] * len(kept) + [False] * len(gone)


def test_of_a_link_in_a_room_the_link_goes_alone_and_frees_its_own_size(
    far: Far, tmp_path: Path, aged: Callable[..., Path]
) -> None:
    target = aged(tmp_path / "store" / "big.npy")
    (tmp_path / "store" / "folder").mkdir()
    inside = aged(tmp_path / "store" / "folder" / "a.png")
    for name in (f"tables/{HASH}.npy", f"hub-data/{HASH}/a.png"):
        path = far.folder / "zoo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    (far.folder / "zoo" / "hub-data" / HASH / "linked").symlink_to(tmp_path / "store" / "folder")
    assert listed(far)["zoo:tables", "room"]["size"] < 1000
    assert far.zoo("cache", "rm", "zoo:tables", "zoo:hub-data", "--yes")[0] == 0
    assert (target.exists(), inside.exists()) == (True, True)
    assert not [path for path in (far.folder / "zoo").rglob("*") if path.is_symlink()]


def test_a_room_behind_a_link_is_refused_by_rm_and_left_by_prune(
    far: Far, tmp_path: Path, aged: Callable[..., Path]
) -> None:
    inside = [aged(tmp_path / "store" / name, seconds=50 * 86400) for name in (f"{HASH}.npy", f"{HASH}.json.0123abcd")]
    link = far.folder / "zoo" / "tables"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "store")
    kept = aged(far.folder / "zoo" / "looks" / f"pictures-{HASH}.json")
    line = far.refused(4, "cache", "rm", "zoo", "--yes")
    assert f"zoo:tables lies behind the link {link} to {tmp_path / 'store'}" in line
    assert f"rm {link}" in line
    assert far.zoo("cache", "prune", "--older-than", "30d", "--yes")[1] == "nothing to remove\n"
    assert all(path.exists() for path in (*inside, kept)), "a refusal comes before anything is removed"
    assert f"behind the link {link}" in far.zoo("cache", "ls")[1]


@pytest.mark.parametrize("name", ["", "blobs", "snapshots", "snapshots/COMMIT"])
def test_commits_behind_a_linked_folder_are_refused_by_rm_and_left_by_prune(
    far: Far, tmp_path: Path, aged: Callable[..., Path], name: str
) -> None:
    far.zoo("fetch", SPEC)
    before = far.server.head(BASE)
    far.server.commit(BASE, {"config.json": far.files["config.json"] + b" "})
    far.zoo("fetch", SPEC)
    aged(repository(far) / "blobs" / "abc.incomplete")
    (config,) = (repository(far) / "snapshots" / before).glob("config.json")
    os.utime(config.resolve(), (OLD, OLD))
    link = repository(far) / name.replace("COMMIT", before)
    store = tmp_path / "store" / "models--org--base" / link.relative_to(repository(far))
    store.parent.mkdir(parents=True)
    if name.startswith("snapshots"):  # so that its links lead where they led
        (tmp_path / "store" / "models--org--base" / "blobs").symlink_to(repository(far) / "blobs")
    link.rename(store)
    link.symlink_to(store)
    inside = sorted(path for path in (tmp_path / "store").rglob("*"))
    assert inside
    for words in (("rm", f"{BASE}@{before[:9]}"), ("prune",)):
        code, out, err = far.zoo("cache", *words, "--yes")
        if words == ("prune",):
            assert code == 0
        else:
            assert (code, f"lies behind the link {link} to {store}" in err) == (4, True), out + err
        assert link.is_symlink()
        assert sorted(path for path in (tmp_path / "store").rglob("*")) == inside
    assert (repository(far) / "snapshots" / before / "config.json").exists()


def test_rm_of_a_commit_leaves_what_its_links_lead_to_elsewhere(
    far: Far, tmp_path: Path, aged: Callable[..., Path]
) -> None:
    far.zoo("fetch", SPEC)
    before = far.server.head(BASE)
    far.server.commit(BASE, {"config.json": far.files["config.json"] + b" ", "model.safetensors": b"other"})
    far.zoo("fetch", SPEC)
    snapshot = repository(far) / "snapshots" / before
    entry, blob = snapshot / "model.safetensors", (snapshot / "config.json").resolve()
    direct, shared = aged(tmp_path / "store" / "direct"), aged(tmp_path / "store" / "shared")
    for link, target in ((entry, direct), (blob, shared)):
        link.unlink()
        link.symlink_to(target)
    assert far.zoo("cache", "rm", f"{BASE}@{before[:9]}", "--yes")[1].endswith("freed\n")
    assert (direct.exists(), shared.exists()) == (True, True)
    assert (snapshot.exists(), blob.is_symlink()) == (False, False)
    assert (BASE, "commit") in listed(far)


def test_what_was_set_aside_is_a_room(far: Far, aged: Callable[..., Path]) -> None:
    path = aged(
        far.folder / "zoo" / "set-aside" / "models--org--base" / ("0" * 40) / "0123abcd" / "sub" / "x.bin",
        seconds=50 * 86400,
    )
    assert listed(far)["zoo:set-aside", "room"]["size"] == 1000
    assert far.zoo("cache", "prune", "--older-than", "30d", "--yes")[0] == 0
    assert not path.exists()


def test_stored_outputs_of_models_are_a_room_of_what_they_take_on_the_disk(far: Far, aged: Callable[..., Path]) -> None:
    """Their files have holes, whose bytes are neither shown nor told as freed. The store works on without them."""
    store = ModelOutputs(far.folder / "zoo" / ROOM, {}, 10**6, max_bytes=2**30, on_full=pytest.fail)
    store.write("v", [9], {"x": torch.ones(1, 1000)})
    (path,) = store.folder.glob("*.rows")
    killed = aged(path.with_name(f"{path.name}.0123abcd"))
    row = listed(far)["zoo:outputs", "room"]
    assert row["files"] == 2
    assert row["size"] < 2**17 < 10**9 < path.stat().st_size
    assert far.zoo("cache", "prune", "--yes")[0] == 0
    assert (killed.exists(), path.exists()) == (False, True)
    code, out, _ = far.zoo("cache", "rm", "zoo:outputs", "--yes")
    assert code == 0
    assert "kB freed" in out
    assert not path.exists()
    store.close()
    assert not store.held("v", [9]).any()
    store.write("v", [9], {"x": torch.ones(1, 1000)})
    assert store.held("v", [9]).all()


def test_the_index_takes_away_old_index_files_and_nothing_else(tmp_path: Path) -> None:
    from zoo_core.registry.index import NUM_KEPT, _prune

    ours = [tmp_path / f"index-{number:08x}.json" for number in range(NUM_KEPT + 4)]
    ours += [tmp_path / "index-00000000.json.0123abcd"]
    others = ["index-mine.json", "index-2024.csv", "index-0123abcd.json.bak", "index-0123abcd.json.backup00"]
    others += ["index-0123abcd.jsonl", "index-.json", "index-0123abcde.json", "index-0123abcd"]
    for age, path in enumerate([*ours, *(tmp_path / name for name in others)]):
        path.write_text("{}")
        os.utime(path, (10**9 - age, 10**9 - age))
    _prune(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*others, *(path.name for path in ours[:NUM_KEPT])]
    )


def test_temporary_names_are_those_that_are_written(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern is of names that other modules make: what they write is caught half-way."""
    from zoo_core.files.hashing import write_memory
    from zoo_core.registry.index import _write

    seen: list[str] = []
    monkeypatch.setattr(Path, "replace", lambda path, target: seen.append(path.name))
    monkeypatch.setattr(os, "replace", lambda path, target: seen.append(Path(path).name))
    write_memory({}, "pins", "0a1b.json")
    _write(str(far.folder / "zoo" / "index-01d96667.json"), {})
    assert len(seen) == 2
    assert all(TEMPORARY.fullmatch(name) for name in seen), seen
    assert not any(TEMPORARY.fullmatch(name) for name in ("index-01d96667.json", "34e9.json", "04f4.npy", *ROOMS))
