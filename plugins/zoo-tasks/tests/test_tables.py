"""csv, tsv, jsonl, parquet, conll: what is inferred, what is read, and the one line for what cannot be."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from zoo_core.contracts import Split
from zoo_core.errors import ZooError
from zoo_core.files.fetch import pin_plan
from zoo_core.files.folders import look
from zoo_core.files.pins import pin
from zoo_core.plan.resolve import resolve
from zoo_core.registry.readers import task_part
from zoo_core.toolkit.table_encoding import Category, Number
from zoo_tasks.encoding import encode
from zoo_tasks.readers import TABLES
from zoo_tasks.tables import Conll, Csv, Jsonl, Parquet, Tsv

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def one(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return one


def reviews(num: int = 20) -> str:
    return "review,stars\n" + "".join(f'"a film, number {n}, of some length",{n % 2}\n' for n in range(num))


def said(recipe: Any) -> str:
    """The one line that resolving or opening ends in."""
    with pytest.raises(ZooError) as error:
        assert recipe.target is recipe.source() is recipe.open(None)
    line = str(error.value)
    assert "\n" not in line
    return line


def everything(recipe: Any) -> dict[str, Any]:
    """Every example by its id."""
    splits = recipe.open(None).splits
    return {name: split.raw(i) for split in splits.values() for i, name in enumerate(split.ids)}


def groups(split: Split) -> set[str]:
    assert split.groups is not None
    return set(split.groups)


# -- what is inferred -------------------------------------------------------------------------------------------------


def test_a_table_of_texts(write: Write) -> None:
    recipe = Csv(path=str(write("reviews.csv", reviews())))
    assert (recipe.modality, recipe.metric) == ("text", "accuracy")
    assert recipe.target.names == ("0", "1")
    data = recipe.open(None)
    assert {name: split.num for name, split in data.splits.items()} == {"train": 12, "val": 4, "test": 4}
    assert everything(recipe)["2"] == "a film, number 0, of some length"  # by the line of the file
    assert recipe.inferred()[0] == "input: column review, text; text=COLUMN changes it, features=[...] takes numbers"


def test_a_word_among_numbers_is_told(write: Write) -> None:
    rows = "".join(f"{'?' if n % 7 == 3 else n},{'' if n % 7 == 3 else n},{'ab'[n % 2]}\n" for n in range(28))
    recipe = Csv(path=str(write("t.csv", f"age,size,side\n{rows}")))
    told = "age: categories, since 4 of 28 cells are no numbers, '?' first; empty is missing"
    assert [line for line in recipe.inferred() if "categories, since" in line] == [told]


def test_every_inference_can_be_overridden(write: Write) -> None:
    rows = "".join(f"the title {n},a body of text {n},{n % 5},{'ab'[n % 2]}\n" for n in range(40))
    path = str(write("t.csv", f"title,body,stars,side\n{rows}"))
    assert Csv(path=path).target.names == ("a", "b")  # the last column
    recipe = Csv(path=path, text="body", target_column="stars")
    assert recipe.target.names == ("0", "1", "2", "3", "4")
    assert everything(recipe)["3"] == "a body of text 1"
    values = Csv(path=path, text="title", target_column="stars", kind="regression")
    assert (values.target.kind, values.metric) == ("regression", "mean_absolute_error")
    assert values.open(None).splits["train"].targets.dtype == np.float32
    table = Csv(path=path, features=("stars",), target_column="side")
    assert (table.modality, everything(table)["2"].shape) == ("table", (1,))


def test_the_argument_is_called_target_in_a_spec(write: Write) -> None:
    path = write("t.csv", "text,a,b\n" + "".join(f"text {n},{n % 2},{n % 3}\n" for n in range(30)))
    plan = resolve("starter/mlp-nano(weights=random)+probe", task=f'csv(path="{path}",features=[a],target=b)')
    assert plan.target.names == ("0", "1", "2")
    assert plan.task is not None
    assert str(plan.task.canonical()) == f'csv(features=[a],path="{path}",target=b)'
    fields = plan.task.identity()["fields"]
    assert isinstance(fields, dict)
    assert fields["target"] == "b"


def test_the_identity_of_a_table_is_its_content_and_not_its_place(write: Write) -> None:
    first, second = write("one/t.csv", reviews()), write("two/t.csv", reviews())
    other = write("three/t.csv", reviews(22))
    digests = []
    for path in (first, second, other):
        plan = resolve(
            "starter/mlp-nano(weights=random)+probe", task=f'csv(path="{path}",features=[review],target=stars)'
        )
        digests.append(pin_plan(plan).digest)
    assert digests[0] is not None
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("name", "text", "kind", "names"),
    [
        ("value", "1.5\n", "regression", ("value",)),
        ("label", "2\n", "classes", None),
        ("price", "17.25\n", "regression", ("price",)),
        ("labels", "red|blue\n", "multilabel", ("blue", "green", "red")),
    ],
)
def test_the_kind_of_a_target(write: Write, name: str, text: str, kind: str, names: tuple[str, ...] | None) -> None:
    rows = "".join(f"a sentence of words {n},{text}" if n % 3 else f"a sentence {n},3\n" for n in range(30))
    if name == "labels":
        rows = rows.replace(",3\n", ",green\n")
    recipe = Csv(path=str(write("t.csv", f"text,{name}\n{rows}")))
    assert recipe.target.kind == kind
    assert names is None or recipe.target.names == names


def test_labels_in_columns_of_their_own(write: Write) -> None:
    rows = "".join(f"some text {n},{n % 2},{(n // 2) % 2}\n" for n in range(20))
    recipe = Csv(path=str(write("t.csv", f"text,funny,long\n{rows}")), target_column=("funny", "long"))
    assert (recipe.target.kind, recipe.target.names) == ("multilabel", ("funny", "long"))
    split = recipe.open(None).splits["train"]
    for position, name in enumerate(split.ids):
        number = int(name) - 2
        assert split.targets[position].tolist() == [number % 2, (number // 2) % 2]


def test_files_named_train_dev_and_test_are_the_splits(write: Write) -> None:
    for name, num in (("train", 10), ("dev", 4), ("test", 6)):
        write(f"set/{name}.tsv", "".join(f'{n % 2}\tsome "quoted {name} text {n}\n' for n in range(num)))
    recipe = Tsv(path=str(write("set/SOURCE.txt", "").parent))
    data = recipe.open(None)
    assert {name: split.num for name, split in data.splits.items()} == {"train": 10, "val": 4, "test": 6}
    assert data.splits["test"].raw(1) == 'some "quoted test text 1'
    source = recipe.source()
    assert source is not None
    assert sorted(pin(source).files) == ["dev.tsv", "test.tsv", "train.tsv"]


def test_other_names_by_a_pattern_and_blanks_between(write: Write) -> None:
    for name in ("train", "test"):
        write(f"set/Q.{name}.all", "".join(f"{n % 3} what is {name} {n} ?\n" for n in range(12)))
    recipe = Tsv(path=str(write("set/x", "").parent), pattern="Q.{split}.all", separator=" ", names=("label", "text"))
    assert recipe.open(None).splits["test"].raw(0) == "what is test 0 ?"


def test_a_split_column_and_a_group_column(write: Write) -> None:
    rows = "".join(f"the text {n},{n % 2},{['train', 'validation', 'test'][n % 3]}\n" for n in range(30))
    found = Csv(path=str(write("t.csv", f"text,label,split\n{rows}"))).open(None).splits
    assert {name: split.num for name, split in found.items()} == {"train": 10, "val": 10, "test": 10}

    rows = "".join(f"the text {n},{n % 2},p{n // 4}\n" for n in range(80))
    path = str(write("g.csv", f"text,label,patient\n{rows}"))
    found = Csv(path=path, group="patient").open(None).splits
    sides = {name: groups(split) for name, split in found.items()}
    assert sum(map(len, sides.values())) == len(set.union(*sides.values())) == 20
    held = Csv(path=path, group="patient", test=("p3", "p7")).open(None).splits
    assert groups(held["test"]) == {"p3", "p7"}


def test_pictures_by_path(write: Write, tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    rows = "".join(f"pictures/{n}.png,{'ab'[n % 2]}\n" for n in range(12))
    recipe = Csv(path=str(write("t.csv", f"image,label\n{rows}")))
    assert recipe.modality == "image"
    assert everything(recipe)["2"].shape == (9, 9, 3)
    source = recipe.source()
    assert source is not None
    assert len(pin(source).files) == 13
    (tmp_path / "pictures" / "3.png").write_bytes(b"")
    line = said(Csv(path=recipe.path))
    assert "1 of 12 rows cannot be used: row 5 (pictures/3.png has no bytes)" in line
    assert "unreadable=skip" in line
    assert len(everything(Csv(path=recipe.path, unreadable="skip"))) == 11


def test_json_lines_with_lists(write: Write) -> None:
    lines = [{"text": f"the text {n}", "labels": [["a"], ["a", "b"], []][n % 3]} for n in range(12)]
    recipe = Jsonl(path=str(write("t.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")))
    assert (recipe.target.kind, recipe.target.names) == ("multilabel", ("a", "b"))
    lines = [{"tokens": ["Anna", "sleeps", str(n)], "tags": ["B-PER", "O", "O"]} for n in range(12)]
    words = Jsonl(path=str(write("w.jsonl", "\n".join(map(json.dumps, lines)))))
    assert (words.modality, words.metric, words.target.names) == ("text", "entity_f1", ("B-PER", "O"))
    split = words.open(None).splits["train"]
    assert (split.raw(0)[:2], split.targets[0]) == (["Anna", "sleeps"], [0, 1, 1])


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": [f"the text {n}" for n in range(20)], "label": [n % 2 for n in range(20)]})
    parquet.write_table(table, tmp_path / "t.parquet")
    recipe = Parquet(path=str(tmp_path / "t.parquet"))
    assert (recipe.modality, recipe.target.names) == ("text", ("0", "1"))
    assert everything(recipe)["1"] == "the text 0"
    (tmp_path / "bad.parquet").write_bytes(b"no")
    assert "is not a Parquet file that can be read" in said(Parquet(path=str(tmp_path / "bad.parquet")))


def test_conll(write: Write) -> None:
    text = "-DOCSTART- -X- O O\n\n" + "".join(f"Anna NNP O B-PER\nsleeps VB O O\nday{n} X O O\n\n" for n in range(10))
    recipe = Conll(path=str(write("t.conll", text)))
    assert (recipe.target.kind, recipe.target.names) == ("token_classes", ("B-PER", "O"))
    assert everything(recipe)["3"] == ["Anna", "sleeps", "day0"]
    assert Conll(path=recipe.path, columns=(1, 2)).target.names == ("NNP", "VB", "X")
    assert "line 1 has 1 columns, wanted 2 or more" in said(
        Conll(path=str(write("bad.conll", "word\n")), columns=(1, 2))
    )
    assert "wanted lines `word ... tag`" in said(Conll(path=str(write("bad.conll", "word\n"))))


# -- numbers and categories -------------------------------------------------------------------------------------------


def test_numbers_and_categories_become_a_row_of_numbers() -> None:
    train = np.arange(100)
    size = [float(n % 10) for n in range(120)]
    size[7] = math.nan
    columns: list[tuple[str, bool, list[Any]]] = [
        ("size", True, [None if math.isnan(x) else x for x in size]),
        ("colour", False, [("red", "blue", "green")[min(n % 4, 2)] for n in range(120)]),
        ("same", False, ["x"] * 120),
    ]
    x, fitted = encode(columns, train)
    size_, colour, same = fitted
    assert isinstance(size_, Number)
    assert (size_.scaled, size_.missing) == (True, False)
    assert isinstance(colour, Category)
    assert (colour.shown, colour.rare) == (("blue", "red"), False)  # green is the commonest: where the others are 0
    assert isinstance(same, Category)
    assert (same.shown, same.rare) == ((), False)
    seen = np.delete(x[:100, 0], 7)
    assert abs(seen.mean()) < 1e-6  # float32 of order one
    assert abs(seen.std() - 1) < 1e-6
    assert x[7, 0] == 0
    assert x[:3, 1:].tolist() == [[0, 1], [1, 0], [0, 0]]


def test_what_only_test_rows_hold_does_not_count() -> None:
    columns: list[tuple[str, bool, list[Any]]] = [
        ("size", True, [0.0, 1.0, 1000.0]),
        ("colour", False, ["a", "b", "new"]),
    ]
    x, (_, colour) = encode(columns, np.array([0, 1]))
    assert isinstance(colour, Category)
    assert (x.shape, colour.shown) == ((3, 2), ("b",))
    assert x[:2, 0].tolist() == [-1, 1]


def test_a_missing_number_is_no_error_and_a_word_among_numbers_is(write: Write) -> None:
    rows = "".join(f"{n},{'' if n == 3 else n / 2},{'ab'[n % 2]}\n" for n in range(30))
    recipe = Csv(path=str(write("t.csv", f"x,z,side\n{rows}")), kind="classes", header="yes")
    assert len(everything(recipe)) == 30
    recipe = Csv(path=str(write("u.csv", f"x,z,side\n{rows}{'1,2,a' + chr(10)}")), features=("x", "z"))
    assert len(everything(recipe)) == 31


def test_a_split_of_rows_goes_to_a_worker_process(write: Write) -> None:
    rows = "".join(f"{n},{n * n % 7},{'ab'[n % 2]}\n" for n in range(3000))
    split = Csv(path=str(write("t.csv", f"x,z,side\n{rows}"))).open(None).splits["train"]
    text = pickle.dumps(split)
    assert len(text) < 100_000
    assert np.array_equal(pickle.loads(text).raw(5), split.raw(5))


# -- copies -----------------------------------------------------------------------------------------------------------


def test_copies_of_texts_across_given_splits_leave_train_and_stay_in_test(write: Write) -> None:
    write("set/train.csv", reviews(10) + '"told, twice, and seen in the test set",0\n' * 2)
    write("set/test.csv", reviews(4).replace("film", "book") + '"told, twice, and seen in the test set",0\n')
    recipe = Csv(path=str(write("set/x", "").parent))
    found = recipe.survey(Path(recipe.path))
    assert found.leaking == (("train.csv:12", "train.csv:13", "test.csv:6"),)
    assert found.splits == {"train": 10, "test": 5}
    kept = Csv(path=recipe.path, duplicates="keep").survey(Path(recipe.path))
    assert kept.splits == {"train": 12, "test": 5}


def test_equal_rows_of_a_table_are_kept_on_one_side(write: Write) -> None:
    rows = "".join(f"{n % 10},{(n % 10) % 3},{'ab'[n % 2]}\n" for n in range(40))
    recipe = Csv(path=str(write("t.csv", f"x,z,side\n{rows}")))
    data = recipe.open(None)
    assert sum(split.num for split in data.splits.values()) == 40
    for split in data.splits.values():
        numbers = {(int(name) - 2) % 10 for name in split.ids}
        assert split.num == 4 * len(numbers)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments", "line"),
    [
        ("", {}, "t.csv has no rows; a task needs examples"),
        ("text,label\n", {}, "t.csv has no rows"),
        ("text,label\nsome words,1\n", {"text": "body"}, "no column 'body' for text=; there are text, label"),
        ("text,label\nsome words,1\n", {"target_column": "lable"}, "for target=; there are text, label; did you mean"),
        ("text,label\nsome words,1\n", {"group": "patient"}, "no column 'patient' for group="),
        ("text,label,label\nsome words,1,2\n", {}, "column 'label' stands 2 times in the header; rename one"),
        ("text,label\nsome words,1\nmore\n", {}, "line 3 has 1 columns, and there are 2 names (text, label)"),
        ('text,label\n"some words,1\n', {}, "line 2: unexpected end of data"),
        (reviews().replace(",1\n", ",0\n"), {}, "column stars has one class, 0; a classifier needs two or more"),
        (reviews() + '"the last, of a kind of its own",7\n', {}, "class 7 has 1 example and none for val"),
        (reviews() + '"nobody knows, this one",NaN\n', {}, "1 of 21 rows cannot be used: row 22 (stars is 'NaN', no"),
        (reviews() + '"nobody knows, this one",\n', {"kind": "regression"}, "row 22 (stars is '', not a number)"),
        (reviews() + ",1\n", {}, "row 22 (has no review)"),
        (reviews(), {"encoding": "latin-9000"}, "encoding='latin-9000' is not one that Python knows"),
        (reviews(), {"separator": "||"}, "separator='||' is one character"),
        (reviews(), {"split": "stars", "text": "review", "target_column": "review"}, "(stars is '0', not train, val"),
        (reviews(), {"test": ("a",)}, "group= does not say which column holds them"),
        ("label\n1\n0\n", {"header": "yes"}, "t.csv has no columns besides label; nothing to predict it from"),
    ],
)  # fmt: skip
def test_one_clear_line(write: Write, text: str, arguments: dict[str, Any], line: str) -> None:
    assert line in said(Csv(path=str(write("t.csv", text)), **arguments))


def test_an_identifier_is_no_class(write: Write) -> None:
    rows = "".join(f"a text {n % 2} of words,id-{n}\n" for n in range(60))
    recipe = Csv(path=str(write("t.csv", f"text,name\n{rows}")), duplicates="keep")
    assert "column name has 60 classes in 60 rows; target= names another column" in said(recipe)


def test_rows_without_a_target_can_be_skipped(write: Write) -> None:
    path = str(write("t.csv", reviews() + '"nobody knows, this one",NaN\n'))
    assert len(everything(Csv(path=path, unreadable="skip"))) == 20
    assert Csv(path=path).survey(Path(path)).problems


def test_text_that_is_not_utf8_names_its_line_and_another_encoding(write: Write) -> None:
    path = write("t.csv", "")
    path.write_bytes("text,label\nplain words,0\nd\u00e9j\u00e0 vu,1\n".encode("latin-1") * 1)
    line = said(Csv(path=str(path)))
    assert "t.csv, line 3: byte 0xe9 is not utf-8" in line
    assert 'encoding="latin-1"' in line
    rows = "".join(f"d\u00e9j\u00e0 vu {n},{n % 2}\n" for n in range(12))
    path.write_bytes(f"text,label\n{rows}".encode("latin-1"))
    assert everything(Csv(path=str(path), encoding="latin-1"))["2"] == "d\u00e9j\u00e0 vu 0"


def test_a_label_that_training_has_not_seen(write: Write) -> None:
    write("set/train.csv", reviews(10).replace(",0\n", ",poor\n").replace(",1\n", ",good\n"))
    write("set/test.csv", reviews(4).replace("film", "book").replace(",0\n", ",poor.\n").replace(",1\n", ",good\n"))
    path = str(write("set/x", "").parent)
    assert "class poor. is in test and not in train, so it cannot be learnt" in said(Csv(path=path))
    assert "did you mean poor" in said(Csv(path=path))
    assert Csv(path=path, strip=".").open(None).target.names == ("good", "poor")


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("a.csv", "b.csv"), "none of a.csv, b.csv ends in train, val or test"),
        (("x.train.csv", "y.train.csv"), "has several files of train: x.train.csv, y.train.csv"),
        (("notes.txt",), "holds notes.txt; none: give one file, or files named train, val and test"),
    ],
)
def test_a_folder_whose_files_tell_no_splits(write: Write, names: tuple[str, ...], line: str) -> None:
    folders = {write(f"set/{name}", reviews()).parent for name in names}
    assert line in said(Csv(path=str(folders.pop())))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"text": "a"', "line 1 is not JSON"),
        ("[1]", "line 1 is not an object"),
        ('{"text": "a", "text": "b"}', "line 1 is not JSON: 'text' stands twice"),
        ('{"tokens": ["a", "b"], "tags": ["O"]}\n' * 9, "9 of 9 rows cannot be used: row 1 (has 2 words and 1 tags)"),
        ('{"tokens": [], "tags": []}\n{"tokens": ["a"], "tags": ["O"]}', "row 1 (tokens holds no words)"),
    ],
)
def test_json_lines_that_cannot_be_used(write: Write, text: str, line: str) -> None:
    assert line in said(Jsonl(path=str(write("t.jsonl", text))))


# -- real sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "folder", "facts"),
    [
        (lambda path: Tsv(path=path), "sst2", ("text", "classes", 2, {"train": 6917, "val": 872, "test": 1821})),
        (
            lambda path: Tsv(
                path=path, pattern="TREC.{split}.all", separator=" ", encoding="latin-1", names=("label", "text")
            ),
            "trec",
            ("text", "classes", 6, {"train": 5442, "test": 500}),
        ),
        (lambda path: Csv(path=path), "zh_waimai", ("text", "classes", 2, {"train": 7183, "val": 2395, "test": 2395})),
        pytest.param(
            lambda path: Conll(path=path),
            "conll2003",
            ("text", "token_classes", 9, {"train": 14041, "val": 3250, "test": 3453}),
            marks=pytest.mark.slow,  # the tests of records open it too
        ),
        pytest.param(
            lambda path: Csv(path=path, strip="."),
            "adult",
            ("table", "classes", 2, {"train": 32561, "test": 16281}),
            marks=pytest.mark.slow,  # as above
        ),
    ],
)
def test_real_sets_open(
    shared: Callable[[str], Path], make: Callable[[str], Any], folder: str, facts: tuple[Any, ...]
) -> None:
    recipe = make(str(shared(folder)))
    found = recipe.survey(Path(recipe.path))
    assert (found.modality, found.target.kind, found.target.size, found.splits) == facts
    assert recipe.target == found.target
    assert not found.problems
    data = recipe.open(None)
    if folder == "adult":
        assert data.splits["train"].raw(0).shape == (58,)  # starter/mlp-nano takes up to 64


def test_pictures_that_rows_name_anywhere_are_among_its_files(tmp_path: Path, draw: Callable[..., Path]) -> None:
    """Below the table's folder or beside it, with a suffix or without: an edit of any is another task."""
    pictures = draw(*(f"{number}.png" for number in range(12)))
    table = tmp_path / "table"
    (table / "in").mkdir(parents=True)
    names = []
    for number in range(12):
        beside = pictures / f"{number}.png"
        name = (f"in/{number}.png", f"../pictures/{number}.png", f"in/{number}", str(beside))[number % 4]
        if name.startswith("in/"):
            shutil.copy(pictures / f"{number}.png", table / name)
        names.append(name)
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(names)]
    (table / "t.csv").write_text("\n".join(["image,label", *rows]))
    source = Csv(path=str(table / "t.csv"), image="image").source()
    assert source is not None
    before = look(source)
    assert {"t.csv", *names} == before.files.keys()
    for name in names:
        content = (table / name).read_bytes()
        (table / name).write_bytes(content + b"x")
        assert look(source).files != before.files, name
        (table / name).write_bytes(content)
    assert look(source).files == before.files


def test_an_edit_within_one_process_is_seen(tmp_path: Path) -> None:
    """Of the same size and with the times of before, as rsync and git leave them."""
    table, words = tmp_path / "t.csv", tmp_path / "t.conll"
    table.write_text("\n".join(["a,label", *(f"{number},{'pq'[number % 2]}" for number in range(10, 40))]))
    words.write_text("\n\n".join(f"w{number} T{number % 2} X" for number in range(10, 40)) + "\n")
    assert Csv(path=str(table)).target.names == ("p", "q")
    assert Conll(path=str(words)).layout().form.names == ("tokens", "tags")
    for file, old, new in ((table, "p", "z"), (words, "T1 X", "X T1")):
        stat = file.stat()
        file.write_text(file.read_text().replace(old, new))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Csv(path=str(table)).target.names == ("q", "z")
    assert Conll(path=str(words)).layout().form.names == ("tokens", "", "tags")


@pytest.mark.parametrize(("suffix", "reader"), TABLES.items())
def test_a_table_of_the_hub_is_read_as_the_same_file_of_yours(write: Write, suffix: str, reader: str) -> None:
    assert task_part(str(write(f"rows{suffix}", "a,b\n"))).name == reader
