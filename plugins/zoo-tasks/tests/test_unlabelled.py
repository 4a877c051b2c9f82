"""unlabelled: what is read of files without labels, how it is divided, and the one line for what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet

from zoo_core.contracts import Surveyed
from zoo_core.data.splits import carve
from zoo_core.errors import ZooError
from zoo_core.files.pins import pin
from zoo_tasks.unlabelled import Unlabelled

Draw = Callable[..., Path]


def said(recipe: Unlabelled) -> str:
    with pytest.raises(ZooError) as error:
        print(recipe.modality, recipe.source(), recipe.open(None))  # noqa: T201 - whichever is the first to find it
    assert "\n" not in str(error.value)
    return str(error.value)


def ids(recipe: Unlabelled) -> dict[str, set[str]]:
    return {name: set(split.ids) for name, split in recipe.open(None).splits.items()}


def numbered(*folders: str, num: int = 30, suffix: str = ".png") -> tuple[str, ...]:
    """Names of files in some folders, one after the other."""
    return tuple(f"{folders[number % len(folders)]}{number}{suffix}" for number in range(num))


# --- pictures and sounds ---------------------------------------------------------------------------------------------


def test_pictures_are_read_wherever_they_lie(draw: Draw) -> None:
    folder = draw(*numbered("", "cats/", "cats/2020/"))
    (folder / "notes.txt").write_text("not a picture")
    recipe = Unlabelled(path=str(folder))
    assert (recipe.modality, recipe.target.kind, recipe.metric) == ("image", "unlabelled", "agreement")
    found = ids(recipe)
    assert found.keys() == {"train", "test"}
    assert found["train"] | found["test"] == set(numbered("", "cats/", "cats/2020/"))
    assert not found["train"] & found["test"]
    data = recipe.open(None)
    assert data.splits["train"].raw(0).shape == (12, 12, 3)
    splits = carve(data, seed=0)
    assert splits.val.num == round(0.2 * len(found["train"]))
    assert set(np.asarray(splits.train.targets)) == {-100}


def test_files_that_are_added_move_no_others_and_contents_do_not_either(draw: Draw) -> None:
    folder = draw(*numbered("a/", num=80))
    before = ids(Unlabelled(path=str(folder)))
    assert 2 <= len(before["test"]) <= 16
    draw(*numbered("b/", num=60))
    draw("a/0.png", seed=5)
    after = ids(Unlabelled(path=str(folder)))
    assert all(before[name] == {each for each in after[name] if each.startswith("a/")} for name in before)
    assert ids(Unlabelled(path=str(folder), seed=1)) != after


def test_a_few_pictures_have_one_that_is_held_out(draw: Draw) -> None:
    found = ids(Unlabelled(path=str(draw("x.png", "y.png", "z.png"))))
    assert {name: len(each) for name, each in found.items()} == {"train": 2, "test": 1}


def test_folders_named_after_splits_say_them(draw: Draw) -> None:
    folder = draw(*numbered("train/", "train/x/", num=6), *numbered("test/", num=3))
    found = ids(Unlabelled(path=str(folder)))
    assert {name: {each.split("/")[0] for each in names} for name, names in found.items()} == {
        "train": {"train"},
        "test": {"test"},
    }
    assert Unlabelled(path=str(folder)).inferred()[1] == "split: the folders test, train"
    draw("loose.png")
    assert "one in ten" in Unlabelled(path=str(folder)).inferred()[1], "not all are below them"


def test_a_copy_of_what_is_held_out_is_left_out_of_train(draw: Draw) -> None:
    folder = draw(*numbered("", num=60))
    recipe = Unlabelled(path=str(folder))
    held = min(ids(recipe)["test"])
    copies = [f"copy{number}.png" for number in range(12)]
    for name in copies:
        shutil.copy(folder / held, folder / name)
    found = ids(Unlabelled(path=str(folder)))
    assert held in found["test"]
    assert not found["train"] & set(copies)


def test_labels_of_a_labelled_folder_are_never_seen(two_classes: Path) -> None:
    recipe = Unlabelled(path=str(two_classes))
    data = recipe.open(None)
    assert sum(split.num for split in data.splits.values()) == 20
    assert {int(x) for split in data.splits.values() for x in split.targets} == {0}
    assert isinstance(recipe, Surveyed)
    survey = recipe.survey(two_classes)
    assert (survey.classes, survey.given, survey.problems) == ({}, False, ())


def test_sounds_of_several_rates_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "sounds" / ("deep" if number % 2 else "") / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(size=400).astype(np.float32) * 0.1, 8000 if number % 3 else 16000)
    recipe = Unlabelled(path=str(tmp_path / "sounds"))
    assert recipe.modality == "audio"
    assert sum(map(len, ids(recipe).values())) == 12
    assert recipe.open(None).splits["train"].raw(0)["array"].shape == (400,)


def test_of_several_kinds_those_that_are_most_are_read_or_those_that_are_meant(draw: Draw) -> None:
    folder = draw(*numbered("", num=8))
    (folder / "a.txt").write_text("\n".join(f"text {number}" for number in range(9)))
    assert Unlabelled(path=str(folder)).modality == "image"
    assert Unlabelled(path=str(folder), meant="text").modality == "text"
    assert "read without labels are" in said(Unlabelled(path=str(folder), meant="audio"))


# --- texts, tables and arrays ----------------------------------------------------------------------------------------


def test_each_line_of_a_text_file_is_a_text(tmp_path: Path) -> None:
    lines = [f'line {number},\twith a tab and a , and a " quote' for number in range(30)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    recipe = Unlabelled(path=str(tmp_path / "a.txt"))
    assert recipe.modality == "text"
    data = recipe.open(None)
    texts = [split.raw(i) for split in data.splits.values() for i in range(split.num)]
    assert sorted(texts) == sorted(lines)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.txt").write_text("another one\n", encoding="utf-8")
    assert sum(map(len, ids(Unlabelled(path=str(tmp_path))).values())) == 31


def test_text_files_named_after_splits_say_them(tmp_path: Path) -> None:
    for name, num in (("train", 9), ("test", 4)):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(num)), encoding="utf-8")
    data = Unlabelled(path=str(tmp_path)).open(None)
    assert {name: split.num for name, split in data.splits.items()} == {"train": 9, "test": 4}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_of_a_table_one_column_is_read_and_no_other(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": str(i), "note": f"n{i}", "body": f"some words about {i} and more"} for i in range(20)]
    file = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        mark = "," if suffix == ".csv" else "\t"
        file.write_text("\n".join(mark.join(row) for row in [tuple(rows[0]), *(r.values() for r in rows)]))
    for recipe, start in ((Unlabelled(path=str(file)), "some"), (Unlabelled(path=str(file), column="note"), "n")):
        assert recipe.modality == "text"
        data = recipe.open(None)
        assert sum(split.num for split in data.splits.values()) == 20
        assert all(split.raw(0).startswith(start) for split in data.splits.values())
    assert "no column 'bodi' for column=" in said(Unlabelled(path=str(file), column="bodi"))


def test_a_column_of_paths_is_read_as_pictures(draw: Draw, tmp_path: Path) -> None:
    folder = draw(*numbered("", num=10))
    table = tmp_path / "x.csv"
    table.write_text("where,n\n" + "".join(f"pictures/{i}.png,{i}\n" for i in range(10)))
    recipe = Unlabelled(path=str(table), column="where")
    assert recipe.modality == "image"
    assert recipe.open(None).splits["train"].raw(0).shape == (12, 12, 3)
    source = recipe.source()
    assert source is not None
    before = pin(source).files
    draw("3.png", seed=9)
    assert pin(source).files != before, f"a picture of {folder} is part of what is pinned"


def test_arrays_need_no_targets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "pictures.npz", x=rng.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    np.savez(tmp_path / "rows.npz", data=rng.normal(size=(40, 3)), y=np.arange(40))
    for name, modality, shape in (("pictures.npz", "image", (8, 8)), ("rows.npz", "table", (3,))):
        recipe = Unlabelled(path=str(tmp_path / name))
        assert recipe.modality == modality
        assert recipe.open(None).splits["train"].raw(0).shape == shape
    assert "which holds x? x=NAME" in said(Unlabelled(path=_saved(tmp_path / "odd.npz", odd=np.zeros(3))))


def _saved(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_one_line(draw: Draw, tmp_path: Path) -> None:
    assert "no file or folder" in said(Unlabelled(path=str(tmp_path / "gone")))
    (tmp_path / "empty").mkdir()
    assert "is an empty folder; read without labels are .bmp" in said(Unlabelled(path=str(tmp_path / "empty")))
    (tmp_path / "other.xyz").write_text("?")
    assert "holds other.xyz; read without labels are" in said(Unlabelled(path=str(tmp_path / "other.xyz")))
    folder = draw(*numbered("", num=5))
    assert "is one file of pictures; path= is the folder" in said(Unlabelled(path=str(folder / "0.png")))
    (folder / "4.png").write_bytes(b"?")
    assert "1 of 5 pictures cannot be read: 4.png" in said(Unlabelled(path=str(folder)))
    assert sum(map(len, ids(Unlabelled(path=str(folder), unreadable="skip")).values())) == 4
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("a,b\n" + "".join(f"{i},{i * i}\n" for i in range(30)))
    assert "rows of numbers have to be scaled as those of their teacher" in said(Unlabelled(path=str(numbers)))


def test_one_picture_alone_cannot_be_divided(draw: Draw) -> None:
    assert "no example is left for train" in said(Unlabelled(path=str(draw("only.png"))))
