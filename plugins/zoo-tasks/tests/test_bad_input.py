"""Files of users as they are: every kind of bad input that a task or a stored run can meet has one clear line.

What is specific to a reader is tested beside it, in test_image_folder.py, test_tables.py, test_audio_and_arrays.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import zoo_core
from zoo_core.contracts import Target
from zoo_core.errors import NotFoundError, UsageError, ZooError
from zoo_core.plan.plan import Budget
from zoo_core.registry.catalog import catalog
from zoo_core.registry.registry import registry
from zoo_tasks.folders import AudioFolder, ImageFolder
from zoo_tasks.splitting import Items, Rules, divide
from zoo_tasks.tables import Conll, Csv, Jsonl, Parquet, Tsv

Draw = Callable[..., Path]


def said(recipe: Any) -> str:
    with pytest.raises(ZooError) as error:
        assert recipe.target is recipe.source() is recipe.open(None)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- empty ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [ImageFolder, AudioFolder, Csv, Tsv, Jsonl, Parquet, Conll])
def test_an_empty_folder_is_told_by_every_reader(tmp_path: Path, recipe: Callable[..., Any]) -> None:
    line = said(recipe(path=str(tmp_path)))
    assert str(tmp_path) in line
    assert "empty" in line or "holds nothing" in line


@pytest.mark.parametrize("recipe", [Csv, Tsv, Jsonl, Parquet, Conll])
def test_a_file_of_zero_bytes_is_told_by_every_reader(tmp_path: Path, recipe: Callable[..., Any]) -> None:
    path = tmp_path / "t.any"
    path.touch()
    assert "t.any" in said(recipe(path=str(path)))


@pytest.mark.parametrize("recipe", [Csv, Tsv, Jsonl, Parquet, Conll])
def test_a_link_to_itself_is_no_file(tmp_path: Path, recipe: Callable[..., Any]) -> None:
    path = tmp_path / "t.any"
    path.symlink_to(path)
    assert f"{path} is a symbolic link that leads in circles" in said(recipe(path=str(path)))


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_turned_as_their_exif_data_say(two_classes: Path) -> None:
    upright = np.zeros((16, 8, 3), dtype=np.uint8)
    upright[:4] = 255  # the top is white
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: what is stored is to be turned by 90 degrees clockwise
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    stored.save(two_classes / "rose" / "turned.png", exif=exif)
    (read,) = (
        split.raw(list(split.ids).index("rose/turned.png"))
        for split in ImageFolder(path=str(two_classes)).open(None).splits.values()
        if "rose/turned.png" in split.ids
    )
    assert np.array_equal(read, upright)


# -- columns, targets -------------------------------------------------------------------------------------------------


def test_missing_and_duplicate_columns_of_json_lines_and_parquet(tmp_path: Path) -> None:
    lines = [{"text": f"the text {n}", "label": n % 2} for n in range(12)]
    path = write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, [*lines, {"label": 1}, {"text": "no label"}])))
    line = said(Jsonl(path=path))
    assert "2 of 14 rows cannot be used: 13 (has no text), 14 (label is None, no target)" in line.replace(
        "row 13", "13"
    )
    assert "no column 'body' for text=; there are text, label" in said(Jsonl(path=path, text="body"))
    table = pa.table([pa.array(["a", "b"]), pa.array([0, 1]), pa.array([1, 0])], names=["text", "label", "label"])
    parquet.write_table(table, tmp_path / "t.parquet")
    assert "column 'label' stands 2 times; rename one" in said(Parquet(path=str(tmp_path / "t.parquet")))


def test_names_that_are_given_twice_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "the first text,0\nthe second text,1\n")
    assert "names= has 'label' twice" in said(Csv(path=path, names=("label", "label")))


def test_targets_that_are_nan_in_json_lines_and_parquet(tmp_path: Path) -> None:
    rows = [{"text": f"the text {n}", "value": n / 3} for n in range(12)]
    text = "\n".join(map(json.dumps, [*rows, {"text": "nobody measured this", "value": float("nan")}]))
    assert "row 13 (value is nan, not a number)" in said(Jsonl(path=write(tmp_path, "t.jsonl", text)))
    table = pa.table({"text": [f"text number {n}" for n in range(5)], "value": [0.1, 0.2, None, float("nan"), 0.5]})
    parquet.write_table(table, tmp_path / "t.parquet")
    line = said(Parquet(path=str(tmp_path / "t.parquet")))
    assert "2 of 5 rows cannot be used: row 3 (value is None, not a number), 4 (value is nan, not a number)" in line


def test_a_tag_or_label_that_training_has_not_seen(tmp_path: Path) -> None:
    known, new = "Anna B-PER\nsleeps O\n\n", "Rome B-LOC\nsleeps O\n\n"
    write(tmp_path, "ner/train.conll", "".join(known.replace("Anna", f"Anna{n}") for n in range(4)))
    write(tmp_path, "ner/test.conll", known + new)
    line = said(Conll(path=str(tmp_path / "ner")))
    assert "tag B-LOC is in test and not in train, so it cannot be learnt" in line
    for split, labels in (("train", "a"), ("test", "a|b")):
        write(tmp_path, f"labels/{split}.csv", "text,labels\n" + f"some {split} text,a|\nmore {split} text,{labels}\n")
    assert "label b is in test and not in train" in said(Csv(path=str(tmp_path / "labels"), kind="multilabel"))


def test_a_drawn_split_keeps_the_rarest_labels_in_train() -> None:
    targets = np.zeros((200, 4), dtype=np.float32)
    targets[:, 0] = 1
    targets[:60, 1] = 1
    targets[:2, 2] = 1
    targets[7, 3] = 1
    for seed in range(20):
        items = Items(ids=[str(n) for n in range(200)], contents=[f"c{n}" for n in range(200)], targets=targets)
        splits = divide(items, Target(kind="multilabel", size=4), Rules(seed=seed)).splits
        assert (targets[splits["train"]].sum(0) > 0).all()
        assert np.abs(targets[splits["test"]].mean(0) - [1, 0.3, 0.01, 0.005]).max() < 0.03  # stratified


# -- stored runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fitted(two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on the pictures of the folder `pictures`, beside it."""
    monkeypatch.chdir(tmp_path)
    zoo_core.fit("starter/convnet-nano+probe", task="./pictures", out="run", budget=Budget(epochs=1, num_rates=1))
    return tmp_path / "run"


def test_a_run_moved_to_another_folder_predicts_and_is_scored_as_before(
    fitted: Path, two_classes: Path, tmp_path: Path
) -> None:
    before = zoo_core.evaluate(fitted).score
    picture = str(two_classes / "rose" / "0.png")
    scores = zoo_core.predict(zoo_core.load_run(fitted), [picture])[0].scores
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    shutil.move(fitted, moved)
    assert zoo_core.evaluate(moved).score == before
    assert zoo_core.predict(zoo_core.load_run(moved), [picture])[0].scores == scores


def test_a_run_whose_pictures_have_moved_predicts_and_says_what_it_cannot_be_scored_on(
    fitted: Path, two_classes: Path
) -> None:
    away = two_classes.rename(two_classes.with_name("elsewhere"))
    assert zoo_core.predict(zoo_core.load_run(fitted), [str(away / "rose" / "0.png")])[0].labels
    with pytest.raises(NotFoundError) as error:
        zoo_core.evaluate(fitted)
    assert "pictures is not there" in str(error.value)
    assert "is not installed" not in str(error.value)


def test_a_run_whose_plugin_is_not_installed_predicts_and_says_which_plugin_scores_it(
    fitted: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_PLUGINS", "zoo-starter,zoo-adapters")
    registry.cache_clear()
    catalog.cache_clear()
    assert zoo_core.predict(zoo_core.load_run(fitted), [str(two_classes / "rose" / "0.png")])[0].labels
    with pytest.raises((NotFoundError, UsageError)) as error:
        zoo_core.evaluate(fitted)
    assert "zoo-tasks" in str(error.value)
    monkeypatch.undo()
    registry.cache_clear()
    catalog.cache_clear()
