"""image-folder: what it infers, how it divides, what it refuses, and what it reads."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo_core.api import evaluate, fit
from zoo_core.benchmark.grid import expand, suite_from
from zoo_core.data.decoding import decode
from zoo_core.data.splits import carve
from zoo_core.errors import NotFoundError, ZooError
from zoo_core.files.fetch import pin_plan
from zoo_core.files.pins import pin
from zoo_core.lock import part_key
from zoo_core.plan.plan import Budget
from zoo_core.toolkit.pictures import open_picture
from zoo_tasks.folders import ImageFolder

Draw = Callable[..., Path]


def ids(recipe: ImageFolder) -> dict[str, list[str]]:
    return {name: list(split.ids) for name, split in recipe.open(None).splits.items()}


# -- what is read -----------------------------------------------------------------------------------------------------


def test_classes_are_the_sorted_names_of_the_folders(two_classes: Path) -> None:
    recipe = ImageFolder(path=str(two_classes))
    assert recipe.target.names == ("daisy", "rose")
    data = recipe.open(None)
    assert data.target == recipe.target
    for split in data.splits.values():
        wanted = [0 if name.startswith("daisy/") else 1 for name in split.ids]
        assert split.targets.tolist() == wanted


def test_each_class_is_divided_in_60_20_20_and_every_picture_is_in_one_split(two_classes: Path) -> None:
    found = ImageFolder(path=str(two_classes)).open(None).splits
    assert {name: np.bincount(split.targets).tolist() for name, split in found.items()} == {
        "train": [6, 6],
        "val": [2, 2],
        "test": [2, 2],
    }
    assert len({name for split in found.values() for name in split.ids}) == 20


def test_the_split_depends_on_contents_and_seed_and_not_on_names(two_classes: Path, tmp_path: Path) -> None:
    first = ids(ImageFolder(path=str(two_classes)))
    moved = tmp_path / "elsewhere"
    shutil.copytree(two_classes, moved)
    assert ids(ImageFolder(path=str(moved))) == first
    assert ids(ImageFolder(path=str(two_classes), seed=1)) != first
    for file in moved.glob("*/*.png"):
        file.rename(file.with_name(f"renamed-{9 - int(file.stem)}.png"))
    renamed = ids(ImageFolder(path=str(moved)))
    content = {file.read_bytes(): split for split, names in first.items() for file in (two_classes / n for n in names)}
    again = {file.read_bytes(): split for split, names in renamed.items() for file in (moved / n for n in names)}
    assert content == again


def test_pictures_are_those_of_the_files_of_every_mode(draw: Draw) -> None:
    folder = draw(*(f"{label}/{number}.png" for label in "ab" for number in range(6)))
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(folder / "a" / "grey.png")
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400).save(folder / "a" / "deep.png")
    Image.new("RGBA", (5, 7), (1, 2, 3, 4)).save(folder / "a" / "alpha.png")
    Image.new("CMYK", (6, 4), (10, 20, 30, 40)).save(folder / "b" / "cmyk.jpg")
    Image.new("P", (6, 4), 3).save(folder / "b" / "palette.gif")
    seen = 0
    for split in ImageFolder(path=str(folder)).open(None).splits.values():
        for position, name in enumerate(split.ids):
            seen += 1
            assert np.array_equal(split.raw(position), open_picture(folder / name)), name
            assert decode("image", split.raw(position)).shape[0] in (1, 3)
    assert seen == 17


def test_a_second_opening_decodes_nothing(two_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ImageFolder(path=str(two_classes)).open(None)
    monkeypatch.setattr("zoo_tasks.task_data.open_picture", lambda file: pytest.fail(f"{file} was decoded again"))
    monkeypatch.setattr("zoo_tasks.media_check._check_file", lambda *_: pytest.fail("checked again"), raising=True)
    with pytest.raises(pytest.fail.Exception, match="checked again"):
        ImageFolder(path=str(two_classes)).open(None)  # the checks come from memory
    monkeypatch.undo()
    monkeypatch.setattr("zoo_tasks.task_data.open_picture", lambda file: pytest.fail(f"{file} was decoded again"))
    assert ImageFolder(path=str(two_classes)).open(None).splits["train"].raw(0).shape == (12, 12, 3)


def test_a_set_too_large_to_keep_decoded_is_read_from_its_files(
    two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo_tasks.task_data.STORE_BYTES", 100)
    split = ImageFolder(path=str(two_classes)).open(None).splits["train"]
    assert split.raw(0) == str(two_classes / split.ids[0])


def test_a_split_goes_to_a_worker_process_and_reads_there(two_classes: Path) -> None:
    split = ImageFolder(path=str(two_classes)).open(None).splits["train"]
    text = pickle.dumps(split)
    assert len(text) < 5_000
    assert np.array_equal(pickle.loads(text).raw(3), split.raw(3))


def test_the_source_is_hashed_file_by_file(two_classes: Path) -> None:
    source = ImageFolder(path=str(two_classes)).source()
    assert source is not None
    (two_classes / "notes.txt").write_text("nothing that is read")
    assert sorted(pin(source).files) == sorted(f"{c}/{n}.png" for c in ("daisy", "rose") for n in range(10))


# -- splits that are given --------------------------------------------------------------------------------------------


def test_train_val_and_test_folders_are_the_splits(draw: Draw) -> None:
    folder = draw(*(f"{s}/{c}/{n}.png" for s in ("train", "validation", "test") for c in "ab" for n in range(3)))
    found = ids(ImageFolder(path=str(folder)))
    assert {name: len(each) for name, each in found.items()} == {"train": 6, "val": 6, "test": 6}
    assert all(name.startswith("validation/") for name in found["val"])


def test_train_and_val_alone_make_val_the_test_split_and_leave_validation_to_the_core(draw: Draw) -> None:
    folder = draw(*(f"{s}/{c}/{n}.png" for s in ("train", "val") for c in "ab" for n in range(10)))
    recipe = ImageFolder(path=str(folder))
    assert any("val is the test split" in line for line in recipe.inferred())
    found = ids(recipe)
    assert sorted(found) == ["test", "train"]
    assert all(name.startswith("val/") for name in found["test"])
    carved = carve(recipe.open(None), seed=0)
    assert carved.val.num == 4
    assert all(name.startswith("train/") for name in carved.val.ids)


def test_a_split_file_says_which_item_is_where(two_classes: Path) -> None:
    names = sorted(path.relative_to(two_classes).as_posix() for path in two_classes.glob("*/*.png"))
    wanted = {name: "test" if name.endswith(("0.png", "1.png")) else "train" for name in names}
    (two_classes / "split.csv").write_text("item,split\n" + "".join(f"{n},{s}\n" for n, s in wanted.items()))
    recipe = ImageFolder(path=str(two_classes), split="split.csv")
    found = ids(recipe)
    assert found["test"] == [name for name in names if wanted[name] == "test"]
    source = recipe.source()
    assert source is not None
    assert "split.csv" in pin(source).files  # another division is another task


def test_the_stored_split_gives_the_same_division_again(two_classes: Path) -> None:
    drawn = ImageFolder(path=str(two_classes))
    survey = drawn.survey(two_classes)
    shutil.copy(survey.split_file, two_classes / "mine.csv")
    given = ImageFolder(path=str(two_classes), split="mine.csv")
    assert ids(given) == ids(drawn)
    assert given.survey(two_classes).split_digest == survey.split_digest == Path(survey.split_file).stem


def test_a_group_is_never_on_two_sides(draw: Draw) -> None:
    folder = draw(*(f"{c}/p{p}_{n}.png" for c in "ab" for p in range(10) for n in range(4)))
    found = ids(ImageFolder(path=str(folder), pattern="{patient}_*", group="patient"))
    sides: dict[str, set[str]] = {}
    for split, names in found.items():
        for name in names:
            sides.setdefault(Path(name).stem.split("_")[0], set()).add(split)
    assert len(sides) == 10
    assert all(len(each) == 1 for each in sides.values())
    assert {split: len(names) for split, names in found.items()} == {"train": 48, "val": 16, "test": 16}


def test_groups_can_be_held_out_by_name(draw: Draw) -> None:
    folder = draw(*(f"{c}/p{p}_{n}.png" for c in "ab" for p in range(4) for n in range(3)))
    found = ids(ImageFolder(path=str(folder), pattern="{p}_*", group="p", test=("p1",), val=("p3",)))
    assert {name: len(each) for name, each in found.items()} == {"train": 12, "val": 6, "test": 6}
    assert all("/p1_" in name for name in found["test"])


# -- copies -----------------------------------------------------------------------------------------------------------


def test_copies_across_classes_are_left_out_and_of_others_one_is_kept(two_classes: Path) -> None:
    shutil.copy(two_classes / "rose" / "0.png", two_classes / "daisy" / "was-rose.png")
    shutil.copy(two_classes / "rose" / "1.png", two_classes / "rose" / "again.png")
    recipe = ImageFolder(path=str(two_classes))
    found = recipe.survey(two_classes)
    assert found.conflicting == (("daisy/was-rose.png", "rose/0.png"),)
    assert len(found.copies) == 2
    held = {name for names in ids(recipe).values() for name in names}
    assert held & {"rose/0.png", "daisy/was-rose.png", "rose/again.png", "rose/1.png"} == {"rose/1.png"}
    kept = {name for names in ids(ImageFolder(path=str(two_classes), duplicates="keep")).values() for name in names}
    assert len(kept) == 22


def test_of_copies_that_are_kept_none_is_on_another_side(two_classes: Path) -> None:
    for number in range(8):
        shutil.copy(two_classes / "rose" / f"{number}.png", two_classes / "rose" / f"copy-{number}.png")
    found = ids(ImageFolder(path=str(two_classes), duplicates="keep"))
    for names in found.values():
        for number in range(8):
            assert (f"rose/{number}.png" in names) == (f"rose/copy-{number}.png" in names)


def test_a_copy_in_test_is_taken_out_of_train_and_reported(draw: Draw) -> None:
    folder = draw(*(f"{s}/{c}/{n}.png" for s in ("train", "test") for c in "ab" for n in range(4)))
    shutil.copy(folder / "test" / "a" / "0.png", folder / "train" / "a" / "leak.png")
    recipe = ImageFolder(path=str(folder))
    assert recipe.survey(folder).leaking == (("test/a/0.png", "train/a/leak.png"),)
    found = ids(recipe)
    assert "train/a/leak.png" not in found["train"]
    assert len(found["test"]) == 8


# -- bad input --------------------------------------------------------------------------------------------------------


def said(recipe: ImageFolder) -> str:
    """The one line that opening, or what resolve asks for, ends in."""
    with pytest.raises(ZooError) as error:
        assert recipe.target is recipe.open(None)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="gone is not there; path= is a folder"):
        _ = ImageFolder(path=str(tmp_path / "gone")).target


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "is empty or holds no class folders; wanted:" in said(ImageFolder(path=str(tmp_path)))


def test_pictures_without_class_folders(draw: Draw) -> None:
    assert "holds 2 pictures and no class folders" in said(ImageFolder(path=str(draw("1.png", "2.png"))))


def test_one_class(draw: Draw) -> None:
    folder = draw("flowers/rose/1.png", "flowers/daisy/1.png")
    line = said(ImageFolder(path=str(folder)))
    assert "has one class, flowers; a classifier needs a folder for each of two or more" in line
    assert f"if its subfolders are the classes, give {folder}/flowers" in line


def test_a_class_with_one_example(two_classes: Path, draw: Draw) -> None:
    draw("tulip/1.png")
    line = said(ImageFolder(path=str(two_classes)))
    assert "class tulip has 1 example and none for val; three or more are needed" in line


def test_unreadable_truncated_and_empty_files_are_listed_counted_and_stop(two_classes: Path) -> None:
    (two_classes / "rose" / "empty.jpg").touch()
    (two_classes / "rose" / "text.png").write_text("not a picture")
    whole = (two_classes / "daisy" / "0.png").read_bytes()
    (two_classes / "daisy" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        two_classes / "daisy" / "long.jpg"
    )
    whole = (two_classes / "daisy" / "long.jpg").read_bytes()
    (two_classes / "daisy" / "long.jpg").write_bytes(whole[: len(whole) // 2])
    line = said(ImageFolder(path=str(two_classes)))
    assert "4 of 24 pictures cannot be read: daisy/cut.png" in line
    assert "unreadable=skip" in line
    survey = ImageFolder(path=str(two_classes)).survey(two_classes)
    assert sorted(survey.unreadable) == ["daisy/cut.png", "daisy/long.jpg", "rose/empty.jpg", "rose/text.png"]
    assert survey.unreadable["rose/empty.jpg"] == "has no bytes"
    assert line in survey.problems
    skipped = ids(ImageFolder(path=str(two_classes), unreadable="skip"))
    assert sum(map(len, skipped.values())) == 20


def test_a_set_of_nothing_but_damage(two_classes: Path) -> None:
    for file in two_classes.glob("*/*.png"):
        file.write_bytes(b"")
    assert "20 of 20 pictures cannot be read" in said(ImageFolder(path=str(two_classes)))
    assert "none of its 20 pictures can be read" in said(ImageFolder(path=str(two_classes), unreadable="skip"))


def test_a_link_in_circles_and_a_link_to_a_folder(two_classes: Path) -> None:
    loop = two_classes / "rose" / "loop"
    loop.symlink_to(two_classes)
    assert f"{loop} is a symbolic link to a folder, and those are not followed" in said(
        ImageFolder(path=str(two_classes))
    )
    loop.unlink()
    loop.symlink_to(loop)
    assert f"{loop} is a symbolic link" in said(ImageFolder(path=str(two_classes)))


def test_a_link_to_nothing_is_unreadable(two_classes: Path) -> None:
    (two_classes / "rose" / "gone.png").symlink_to(two_classes / "nowhere.png")
    assert "1 of 21 pictures cannot be read: rose/gone.png" in said(ImageFolder(path=str(two_classes)))


def test_a_class_that_training_has_not_seen(draw: Draw) -> None:
    folder = draw(*(f"{s}/{c}/{n}.png" for s in ("train", "test") for c in "ab" for n in range(3)), "test/new/1.png")
    assert "class new is in test and not in train" in said(ImageFolder(path=str(folder)))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rose/99.png,test\n", "split.csv names 1 items that are not there: rose/99.png; did you mean rose/9.png"),
        ("rose/1.png,test\n", "split.csv does not say where 19 items belong"),
        ("rose/1.png,later\n", "row 1: wanted `item,split` with a split of train, val, test"),
        ("rose/1.png,test\nrose/1.png,train\n", "row 2: rose/1.png is in test and in train"),
        ("item,split\nrose/1.png\n", "wanted `item,split`"),
    ],
)
def test_a_split_file_that_cannot_be_used(two_classes: Path, text: str, line: str) -> None:
    (two_classes / "split.csv").write_text(text)
    assert line in said(ImageFolder(path=str(two_classes), split="split.csv"))


def test_a_split_file_that_is_not_there(two_classes: Path) -> None:
    assert "no split file" in said(ImageFolder(path=str(two_classes), split="gone.csv"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"pattern": "patient"}, "needs {fields}, each once"),
        ({"pattern": "{p}_{p}"}, "needs {fields}, each once"),
        ({"pattern": "{p}_*"}, "does not fit daisy/0.png"),
        ({"group": "p"}, "group=p names a field of pattern=, and there is no pattern"),
        ({"pattern": "{q}*", "group": "p"}, "group=p names a field of pattern=, and there is q"),
        ({"test": ("a",)}, "group= does not say what the groups are"),
        ({"pattern": "{p}*", "group": "p", "test": ("z",)}, "no group 'z' to hold out"),
        ({"pattern": "{p}*", "group": "p", "val": ("1",)}, "val= names groups and test= does not"),
        ({"pattern": "{p}*", "group": "p", "test": ("1",), "val": ("1",)}, "group '1' is in test= and in val="),
    ],
)
def test_groups_that_cannot_be_used(two_classes: Path, arguments: dict[str, object], line: str) -> None:
    assert line in said(ImageFolder(path=str(two_classes), **arguments))  # type: ignore[arg-type]


def test_a_file_that_changed_is_looked_at_again(two_classes: Path) -> None:
    recipe = ImageFolder(path=str(two_classes))
    time.sleep(0.05)  # what was written a moment ago is not remembered
    assert not recipe.survey(two_classes).unreadable
    file = two_classes / "rose" / "3.png"
    stamp = file.stat()
    file.write_bytes(b"\0" * stamp.st_size)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert list(recipe.survey(two_classes).unreadable) == ["rose/3.png"]


# -- real photographs -------------------------------------------------------------------------------------------------


def test_flowers(shared: Callable[[str], Path]) -> None:
    recipe = ImageFolder(path=str(shared("flowers5_128")))
    found = recipe.survey(Path(recipe.path))
    assert found.classes == {"daisy": 764, "dandelion": 1052, "rose": 784, "sunflower": 733, "tulip": 984}
    assert sum(len(group) - 1 for group in found.copies) == 6
    assert len(found.conflicting) == 4
    assert found.splits == {"train": 2585, "val": 861, "test": 861}
    assert found.sizes == "all 128 x 128 pixels"
    assert not found.problems


def test_another_split_file_is_another_task_in_one_bench(two_classes: Path) -> None:
    names = sorted(path.relative_to(two_classes).as_posix() for path in two_classes.glob("*/*.png"))
    for file, last in (("a.csv", "01"), ("b.csv", "23")):
        text = "".join(f"{name},{'test' if Path(name).stem in last else 'train'}\n" for name in names)
        (two_classes / file).write_text(text)
    tasks = tuple(f'image-folder(path="{two_classes}"{split})' for split in ("", ",split=a.csv", ",split=b.csv"))
    suite = suite_from({"tasks": tasks, "backbones": ["starter/convnet-nano"], "seeds": 1}, name="splits")
    plans = expand(suite, pin=pin_plan).plans
    assert len({plan.digest for plan in plans}) == len(plans) == 3
    for plan, file in zip(plans[1:], ("a.csv", "b.csv"), strict=True):
        assert plan.task is not None
        assert file in plan.pins[part_key(plan.task)].files


# -- from a folder to a model -----------------------------------------------------------------------------------------


def test_a_model_is_fitted_stored_and_scored_again_from_a_path(
    draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(*(f"noise/{number}.png" for number in range(30)))
    for number in range(30):
        path = tmp_path / "pictures" / "plain" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 12), (8 * number, 0, 255 - 8 * number)).save(path)
    monkeypatch.chdir(tmp_path)
    learner, result = fit(
        "starter/convnet-nano+probe", task="./pictures", out="run", budget=Budget(epochs=5, num_rates=1)
    )
    assert learner.target.names == ("noise", "plain")
    assert result.status == "ok"
    assert result.score is not None
    assert result.score > 0.9
    assert evaluate("run").score == result.score
    (tmp_path / "pictures" / "plain" / "3.png").write_bytes(b"other")
    with pytest.raises(ZooError, match=r"plain/3\.png in \./pictures is not what the lock pins"):
        evaluate("run")
