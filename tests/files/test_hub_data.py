"""`hub-data/ORG/SET` against a Hub on this machine: which files are read, pinned and locked, and what is asked for."""

from __future__ import annotations

import io
import json
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.far.fixture import Far
from zoo_core.errors import NotFoundError, UsageError, ZooError
from zoo_core.lock import read_lock
from zoo_core.plan.resolve import located
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import parse_part
from zoo_core.toolkit import repositories
from zoo_tasks import hub_data

SET = "org/flowers"
FIT = ("--epochs", "1", "--num-rates", "1", "--device", "cpu")
TABLE = "starter/mlp-nano(weights=random)+full"
PICTURES = "starter/convnet-nano+probe"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    repositories._commit.cache_clear()
    yield
    repositories._commit.cache_clear()


def rows(num: int, start: int = 0) -> bytes:
    lines = [f"{n},{n % 7},{'low' if n % 10 < 5 else 'high'}" for n in range(start, start + num)]
    return "\n".join(["size,colour,side", *lines, ""]).encode()


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def as_parquet(columns: dict[str, Any], features: dict[str, Any] | None = None) -> bytes:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def recipe(text: str, **options: Any) -> Any:
    return located(registry().bind(parse_part(text), "task"), {}, **options).recipe


def opened(text: str) -> Any:
    found = recipe(text)
    source = found.source()
    from zoo_core.files.fetch import folder, pin

    pinned = pin(source)
    return found.open(folder(pinned, list(pinned.files)))


def add(far: Far, files: dict[str, bytes], name: str = SET) -> str:
    return far.server.add(name, files, repo_type="dataset")


def asked(far: Far) -> list[str]:
    return [f"{request.method} {request.path}" for request in far.server.log]


def said(text: str) -> str:
    with pytest.raises(ZooError) as error:
        assert recipe(text).target is None
    assert "\n" not in str(error.value)
    return str(error.value)


# --- from a name to a model ------------------------------------------------------------------------------------------


def test_a_model_is_fitted_on_a_data_set_of_the_hub_and_its_run_asks_for_nothing(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = add(far, {"train.csv": rows(120), "test.csv": rows(40, 120), "README.md": b"# Flowers\n"})
    code, _, err = far.zoo("fit", TABLE, "--task", f"hub-data/{SET}", "--out", "run", *FIT)
    assert code == 0, err
    assert err.startswith(f"hub-data/{SET} is read: table, 2 classes, accuracy\n  datasets/{SET} at {commit[:12]}: "), (
        err
    )
    lock = read_lock(Path("run/zoo.lock"))
    assert lock is not None
    row = lock["parts"][f"task:hub-data/{SET}"]
    assert (row["repository"], row["revision"]) == (f"datasets/{SET}", commit)
    assert sorted(row["files"]) == ["test.csv", "train.csv"]
    far.server.commit(SET, {"train.csv": b"size,side\n"}, repo_type="dataset")  # the branch moves, the run does not
    repositories._commit.cache_clear()
    far.server.clear_log()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = far.zoo("evaluate", "run")
    assert code == 0, err
    assert asked(far) == []
    shutil.rmtree("huggingface")  # a model predicts without the data that it was fitted on, and without asking
    shutil.rmtree("zoo")
    repositories._commit.cache_clear()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    Path("new.csv").write_text("1.0,2.0\n")
    code, out, _ = far.zoo("predict", "run", "new.csv")
    assert "new.csv:1" in out
    assert asked(far) == []


def test_fetch_then_frozen_sends_nothing_and_what_is_not_locked_is_refused(far: Far) -> None:
    add(far, {"train.csv": rows(60), "test.csv": rows(20, 60)})
    words = (TABLE, "--task", f"hub-data/{SET}")
    assert f"not in the lock: task:hub-data/{SET}" in far.refused(3, "fit", *words, "--out", "run", "--frozen", *FIT)
    assert asked(far) == []
    assert far.zoo("lock", *words)[0] == 0
    repositories._commit.cache_clear()
    code, out, _ = far.zoo("fetch", *words)
    assert code == 0
    assert f"task:hub-data/{SET}" in out
    assert "2 files" in out
    far.server.clear_log()
    repositories._commit.cache_clear()
    code, _, err = far.zoo("fit", *words, "--out", "run", "--frozen", *FIT)
    assert (code, asked(far)) == (0, []), err
    assert far.zoo("lock", "--check", *words)[0] == 0
    assert far.zoo("verify", *words)[0] == 0
    assert asked(far) == []


def test_a_cached_set_needs_no_request_offline(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    add(far, {"data.jsonl": b'{"text": "a text of words", "label": 1}\n{"text": "other words", "label": 0}\n'})
    before = recipe(f"hub-data/{SET}").target
    repositories._commit.cache_clear()
    far.server.clear_log()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert recipe(f"hub-data/{SET}").target == before
    assert asked(far) == []
    with pytest.raises(NotFoundError, match="has not been pinned on this machine, and requests are forbidden"):
        assert recipe("hub-data/org/other").target


@pytest.mark.slow
def test_all_trials_of_a_bench_are_of_one_commit(far: Far) -> None:
    add(far, {"train.csv": rows(60), "test.csv": rows(20, 60)})
    words = ("--task", f"hub-data/{SET}", "--backbones", "starter/mlp-nano(weights=random)", "--adapters", "probe,full")
    code, _, err = far.zoo("bench", *words, "--seeds", "1", "--epochs", "1", "--num-rates", "1", "--out", "bench")
    assert code == 0, err
    heads = [line for line in asked(far) if line == f"GET /api/datasets/{SET}"]
    assert len(heads) == 1  # which commit the branch is at


def test_a_revision_is_a_branch_a_tag_or_a_commit(far: Far) -> None:
    first = add(far, {"train.csv": rows(30)})
    far.server.tag(SET, "v1", repo_type="dataset")
    second = far.server.commit(SET, {"train.csv": rows(50)}, repo_type="dataset")
    assert recipe(f"hub-data/{SET}").source().revision == second
    assert recipe(f"hub-data/{SET}@v1").source().revision == first
    assert recipe(f"hub-data/{SET}@{first}").source().revision == first
    assert "no revision v2; did you mean v1" in said(f"hub-data/{SET}@v2")


def test_damage_in_the_cache_is_found_and_mended(far: Far) -> None:
    add(far, {"train.parquet": as_parquet({"size": list(range(40)), "side": [n % 2 for n in range(40)]})})
    assert opened(f"hub-data/{SET}").splits["train"].num == 24
    (blob,) = Path(far.folder, "huggingface/hub").glob("datasets--org--flowers/snapshots/*/train.parquet")
    content = blob.read_bytes()
    blob.resolve().write_bytes(content[:-1] + b"\0")
    assert opened(f"hub-data/{SET}").splits["train"].num == 24
    assert blob.read_bytes() == content


# --- which files are read, and as what -------------------------------------------------------------------------------


def test_shards_are_one_split_and_class_names_are_those_that_datasets_noted(far: Far) -> None:
    features = {"text": {"_type": "Value"}, "label": {"_type": "ClassLabel", "names": ["bad", "good"]}}
    shards = {
        f"data/train-0000{shard}-of-00002.parquet": as_parquet(
            {"text": [f"the text {shard} {n}" for n in range(20)], "label": [n % 2 for n in range(20)]}, features
        )
        for shard in range(2)
    }
    test = {"text": [f"a test {n}" for n in range(8)], "label": [n % 2 for n in range(8)]}
    add(far, shards | {"data/test-00000-of-00001.parquet": as_parquet(test, features)})
    found = recipe(f"hub-data/{SET}")
    assert (found.modality, found.metric, found.target.names) == ("text", "accuracy", ("bad", "good"))
    data = opened(f"hub-data/{SET}")
    assert {name: split.num for name, split in data.splits.items()} == {"train": 40, "test": 8}
    assert data.splits["train"].ids[0] == "data/train-00000-of-00002.parquet:1"
    assert data.splits["test"].raw(3) == "a test 3"


def test_a_large_set_is_looked_at_by_its_first_file_alone(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_data, "LOOKED_AT_BYTES", 100)
    texts = {split: [f"the {split} text {n}" for n in range(20)] for split in ("train", "test")}
    add(far, {f"{split}.parquet": as_parquet({"text": x, "label": ["a", "b"] * 10}) for split, x in texts.items()})
    target = recipe(f"hub-data/{SET}").target
    assert (target.kind, target.size) == ("classes", None)  # what the other file holds is not known yet
    assert not [line for line in asked(far) if "test.parquet" in line and "GET" in line]
    assert opened(f"hub-data/{SET}").target.names == ("a", "b")


def test_configurations_are_those_of_the_card_or_folders(far: Far) -> None:
    card = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: text/en-*.csv
  - split: test
    path: [text/en.held.csv]
- config_name: fr
  data_files: "text/fr*.csv"
---
"""
    files = {f"text/{name}.csv": rows(30, start) for start, name in enumerate(("en-a", "en-b", "en.held", "fr1"))}
    add(far, files | {"README.md": card})
    assert "has configurations en, fr; config= says which" in said(f"hub-data/{SET}")
    assert recipe(f"hub-data/{SET}(config=en)").repository_files.splits == ("train", "train", "test")
    assert recipe(f"hub-data/{SET}(config=fr)").repository_files.names == ("text/fr1.csv",)
    assert "has no configuration 'frr'; there are en, fr; did you mean fr" in said(f"hub-data/{SET}(config=frr)")
    add(far, {"de/train.csv": rows(30), "it/train.csv": rows(30)}, "org/folders")
    assert recipe("hub-data/org/folders(config=it)").repository_files.names == ("it/train.csv",)


def test_a_pattern_chooses_files_and_tells_their_splits(far: Far) -> None:
    add(far, {f"x/{name}": rows(30, n) for n, name in enumerate(("a.trn.csv", "a.train.csv", "a.test.csv", "b.csv"))})
    assert recipe(f'hub-data/{SET}(pattern="x/a.{{split}}.csv")').repository_files.splits == ("train", "test")
    assert recipe(f'hub-data/{SET}(pattern="x/b*")').repository_files.names == ("x/b.csv",)
    assert 'no file fits pattern="y/*"; it holds x/a.test.csv' in said(f'hub-data/{SET}(pattern="y/*")')
    assert "nothing says which split x/a.trn.csv, x/b.csv belongs to" in said(f"hub-data/{SET}")


def test_columns_are_told_as_those_of_tables(far: Far) -> None:
    content = "title;body;stars\n" + "".join(f"title {n};a body of text {n};{n % 2}\n" for n in range(30))
    add(far, {"reviews.csv": content.encode()})
    found = recipe(f'hub-data/{SET}(separator=";",text=body,target=stars)')
    assert found.target.names == ("0", "1")
    assert found.inferred()[0].startswith(f"datasets/{SET} at ")
    assert "no column 'bod' for text=; there are title, body, stars; did you mean body" in said(
        f'hub-data/{SET}(separator=";",text=bod)'
    )


def test_pictures_inside_parquet_files_are_read(far: Far) -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["even", "odd"]}}
    columns = {
        "image": [{"bytes": picture(n), "path": None} for n in range(20)],
        "label": [n % 2 for n in range(20)],
    }
    add(far, {"data/train-00000-of-00001.parquet": as_parquet(columns, features)})
    found = recipe(f"hub-data/{SET}")
    assert (found.modality, found.target.names) == ("image", ("even", "odd"))
    data = opened(f"hub-data/{SET}")
    for split in data.splits.values():
        for position, name in enumerate(split.ids):
            wanted = np.asarray(Image.open(io.BytesIO(picture(int(name) - 1))))
            assert np.array_equal(split.raw(position), wanted)
            assert split.targets[position] == (int(name) - 1) % 2


def test_sounds_inside_parquet_files_are_read(far: Far) -> None:
    def sound(seed: int) -> bytes:
        stream = io.BytesIO()
        with wave.open(stream, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(np.random.default_rng(seed).integers(-9, 9, 100).astype("<i2").tobytes())
        return stream.getvalue()

    columns = {
        "audio": [{"bytes": sound(n), "path": f"{n}.wav"} for n in range(12)],
        "digit": [n % 2 for n in range(12)],
    }
    add(far, {"train.parquet": as_parquet(columns, {"audio": {"_type": "Audio"}, "digit": {"_type": "Value"}})})
    found = recipe(f"hub-data/{SET}")
    assert (found.modality, found.target.names) == ("audio", ("0", "1"))
    split = opened(f"hub-data/{SET}").splits["train"]
    read = split.raw(0)
    assert (read["sampling_rate"], read["array"].shape) == (8000, (100,))


def test_class_folders_of_pictures_are_read_and_fitted_on(far: Far) -> None:
    files = {f"data/{label}/{n}.png": picture(50 * place + n) for place, label in enumerate("ab") for n in range(10)}
    add(far, files | {"README.md": b"# Two", ".gitattributes": b"*.png -text\n"})
    found = recipe(f"hub-data/{SET}")
    assert (found.modality, found.target.names) == ("image", ("a", "b"))
    code, out, err = far.zoo("data", f"hub-data/{SET}")
    assert code == 0, err
    assert "split      proposed: train 12, val 4, test 4" in out
    assert far.zoo("fit", PICTURES, "--task", f"hub-data/{SET}", "--out", "run", *FIT)[0] == 0


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_a_loading_script_is_neither_fetched_nor_run(far: Far, tmp_path: Path) -> None:
    script = f"open({str(tmp_path / 'ran')!r}, 'w').write('ran')\n".encode()
    add(far, {"flowers.py": script, "data.zip": b"PK", "README.md": b"# Flowers"})
    line = said(f"hub-data/{SET}")
    assert "nothing that is read: .csv, .jsonl, .ndjson, .parquet, .tsv, or pictures or sounds" in line
    assert f"its loading script is never run: try what the Hub made of it, hub-data/{SET}@refs/convert/parquet" in line
    add(far, {"more.py": script, "train.csv": rows(30)}, "org/both")
    opened("hub-data/org/both")
    assert not [line for line in asked(far) if line.endswith(".py")]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a/../../../../out/1.png", "/out/a/1.png", "a/./1.png"])
def test_a_name_that_leads_out_of_the_folder_is_refused(far: Far, name: str) -> None:
    add(far, {name: picture(0), "b/2.png": picture(1)})
    assert "which is no path inside a folder" in said(f"hub-data/{SET}")
    assert not list(far.folder.rglob("1.png"))


def test_names_that_are_no_data_set_are_told(far: Far) -> None:
    assert "no public repository datasets/org/gone" in said("hub-data/org/gone")
    add(far, {"train.csv": rows(30)})
    assert "did you mean" not in said("hub-data/elsewhere/nothing-like-it")
    with pytest.raises(UsageError, match="hub-data/flowers is no data set of the Hub; write hub-data/ORG/SET"):
        assert recipe("hub-data/flowers").target
    assert "config= and pattern= both say" in said(f"hub-data/{SET}(config=a,pattern=b)")
    assert far.refused(2, "plan", TABLE, "--task", "hub-data").startswith("zoo: hub-data is a namespace")
