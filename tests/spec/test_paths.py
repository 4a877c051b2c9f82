"""A path where a task is expected: when a text is one, and which recipe reads what lies there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zoo_core.errors import NotFoundError, UsageError
from zoo_core.plan.resolve import resolve
from zoo_core.registry.registry import Registry
from zoo_core.spec.paths import is_path, task_part
from zoo_core.testing.distributions import index_of, make_distribution


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_a_folder_never_hides_a_task_of_its_name(here: Path) -> None:
    touch(here, "digits/a/1.png", "data/a/1.png", "reviews.csv")
    assert not is_path("digits")
    assert is_path("./digits")
    assert is_path("data/a")
    assert is_path("reviews.csv")
    assert not is_path("reviews.tsv")  # a name with a dot, of a file that is not there
    assert not is_path('csv(path="data/reviews.csv")')
    assert str(task_part("digits(shots=5)")) == "digits(shots=5)"


@pytest.mark.parametrize(
    ("files", "path", "part"),
    [
        (("a/1.JPG", "b/2.png", "notes.txt"), ".", "image-folder(path=.)"),
        (("train/a/1.jpg",), "./train", 'image-folder(path="./train")'),
        (("x/1.wav", "x/2.wav", "y/cover.png"), ".", "audio-folder(path=.)"),
        (("x/1.FLAC", "x/2.mp3", "y/3.ogg"), ".", "audio-folder(path=.)"),
        (("train.tsv", "dev.tsv", "SOURCE.txt"), ".", "tsv(path=.)"),
        (("table.csv", "pictures/1.png", "pictures/2.png"), ".", "csv(path=.)"),
        (("t.parquet",), "./t.parquet", 'parquet(path="./t.parquet")'),
        (("t.ndjson",), "./t.ndjson", 'jsonl(path="./t.ndjson")'),
        (("train.npz", "test.npz"), ".", "npz(path=.)"),
        (("train.txt", "valid.txt", "test.txt"), ".", "conll(path=.)"),
        (("ner.conll",), "./ner.conll", 'conll(path="./ner.conll")'),
    ],
)
def test_what_lies_there_decides_the_recipe(here: Path, files: tuple[str, ...], path: str, part: str) -> None:
    touch(here, *files)
    assert str(task_part(path)) == part


@pytest.mark.parametrize(
    ("files", "path", "line"),
    [
        ((), ".", ". is an empty folder; a task needs files"),
        (("notes.txt",), ".", "holds no file whose suffix tells how to read it; write the recipe"),
        (("a.xlsx",), "./a.xlsx", "nothing tells how to read a file .xlsx; write the recipe, as 'csv(path="),
    ],
)
def test_what_cannot_be_read_is_told(here: Path, files: tuple[str, ...], path: str, line: str) -> None:
    touch(here, *files)
    with pytest.raises(UsageError, match=r"^[^\n]*$") as error:
        task_part(path)
    assert line in str(error.value)


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match=r"no file or folder \./gone"):
        task_part("./gone")


def test_without_the_plugin_the_error_says_what_to_install(here: Path) -> None:
    touch(here, "a/1.png", "b/1.png")
    make_distribution(here / "site", "acme")
    with pytest.raises(NotFoundError, match="reserved for zoo-tasks, which is not installed: pip install zoo-tasks"):
        resolve("x", task=".", registry=Registry(index_of(here / "site")))


def test_what_was_inferred_of_a_path_is_told_on_standard_error(zoo: Any) -> None:
    from PIL import Image

    for number in range(10):
        for label in ("dark", "light"):
            path = zoo.cwd / "set" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), number if label == "dark" else 255 - number).save(path)
    done = zoo("plan", "starter/convnet-nano+probe", "--task", "./set", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["plans"][0]["target"]["names"] == ["dark", "light"]
    assert done.err.splitlines()[0] == ("./set is read as 'image-folder(path=\"./set\")': image, 2 classes, accuracy")
    assert "20 pictures of 2 classes" in done.err

    done = zoo("data", "set", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["task"] == 'image-folder(path="./set")'
    assert found["splits"] == {"train": 12, "val": 4, "test": 4}
    shown = zoo("data", "./set").out
    assert "proposed: train 12, val 4, test 4" in shown
    assert found["split_digest"] in shown

    (zoo.cwd / "set" / "dark" / "1.png").write_bytes(b"")
    done = zoo("data", "./set")
    assert done.code == 2
    assert "a fit would stop\n  1 of 20 pictures cannot be read: dark/1.png (has no bytes)" in done.out

    done = zoo("plan", "starter/convnet-nano+probe", "--task", "set")
    assert done.code == 3
    assert done.line.endswith("; what is here under that name is written ./set")

    (zoo.cwd / "semi.csv").write_text("age;side\n1;low\n2;high\n")
    assert 'separator=";" may be what parts its cells' in zoo("data", "./semi.csv").line

    done = zoo("data", "digits")
    assert (done.code, done.line) == (
        2,
        "zoo: digits does not read files of yours; `zoo show digits` tells of it",
    )
