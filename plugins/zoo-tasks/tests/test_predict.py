"""`zoo predict` on files like those that a model was fitted on: cells of a table become its inputs as in training."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo_core
from zoo_core.cli import main
from zoo_core.cli.inputs import Inputs
from zoo_core.errors import IntegrityError, UsageError
from zoo_core.plan.plan import Budget
from zoo_core.runs.inference import Item
from zoo_core.runs.stored_run import read_run
from zoo_core.toolkit.table_encoding import Category, Encoding, Number, encoding_from
from zoo_tasks.arrays import Npz
from zoo_tasks.tables import Csv, Jsonl, Tsv

HEADER = ("age", "work", "hours", "side")


def row(n: int) -> tuple[str, ...]:
    age = "" if n % 9 == 0 else str(20 + n % 50)
    work = ("office", " farm", "sea", f"rare-{n}")[3 if n % 50 == 7 else n % 3]
    return age, work, str((n * 7) % 60), "low" if n % 10 < 5 else "high"


def table(folder: Path, name: str, rows: list[tuple[str, ...]], *, header: bool = True, separator: str = ",") -> Path:
    path = folder / name
    lines = [HEADER, *rows] if header else rows
    path.write_text("".join(separator.join(cells) + "\n" for cells in lines), encoding="utf-8")
    return path


def encoding_of(recipe: Any) -> tuple[Encoding, dict[str, np.ndarray]]:
    """How a task makes its rows, and the rows that it made, by id."""
    splits = recipe.open(None).splits
    encoding = splits["train"].encoding
    assert isinstance(encoding, Encoding)
    return encoding, {name: split.raw(i) for split in splits.values() for i, name in enumerate(split.ids)}


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    code = main(["predict", *map(str, words), "--format", "jsonl", "--device", "cpu"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# -- the encoding -----------------------------------------------------------------------------------------------------


def test_a_row_alone_becomes_what_it_is_in_the_table(tmp_path: Path) -> None:
    rows = [row(n) for n in range(150)]
    encoding, made = encoding_of(Csv(path=str(table(tmp_path, "t.csv", rows)), duplicates="keep"))
    again = encoding_from(json.loads(json.dumps(encoding.as_json())))
    assert again == encoding
    assert len(made) == 150
    for name, numbers in made.items():
        cells = dict(zip(HEADER, rows[int(name) - 2], strict=True))
        assert np.array_equal(np.array(again.encode(cells), dtype=np.float32), numbers), name


def test_rows_of_npz_are_scaled_as_in_training(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(50, 9, (40, 3))
    x[3, 1] = np.nan
    np.savez(tmp_path / "t.npz", x=x, y=np.arange(40) % 2)
    encoding, made = encoding_of(Npz(path=str(tmp_path / "t.npz")))
    for name, numbers in made.items():
        cells = encoding.named([repr(float(value)) for value in x[int(name)]], None)
        assert np.array_equal(np.array(encoding.encode(cells), dtype=np.float32), numbers)


def test_texts_and_paths_tell_their_column(tmp_path: Path) -> None:
    texts = "".join(f"{n},the text {n},{n % 2}\n" for n in range(12))
    (tmp_path / "t.csv").write_text("number,body,stars\n" + texts)
    found = Csv(path=str(tmp_path / "t.csv"), text="body").open(None).splits["train"].encoding  # type: ignore[attr-defined]
    assert (found.column, found.names) == ("body", ("number", "body", "stars"))
    (tmp_path / "t.tsv").write_text("label\ttext\n" + "".join(f"{n % 2}\ta text {n}\n" for n in range(12)))
    found = Tsv(path=str(tmp_path / "t.tsv")).open(None).splits["train"].encoding  # type: ignore[attr-defined]
    assert (found.column, found.separator) == ("text", "\t")
    words = [{"tokens": ["Anna", str(n)], "tags": ["B-PER", "O"]} for n in range(12)]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, words)))
    assert Jsonl(path=str(tmp_path / "w.jsonl")).open(None).splits["train"].encoding is None  # type: ignore[attr-defined]


# -- predictions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of the table train.csv; the table and what was read of it are gone, and the run is elsewhere."""
    monkeypatch.chdir(tmp_path)
    table(tmp_path, "train.csv", [row(n) for n in range(150)])
    budget = Budget(epochs=2, num_rates=1)
    zoo_core.fit("starter/mlp-nano(weights=random)+full", task='csv(path="train.csv")', out="run", budget=budget)
    (tmp_path / "train.csv").unlink()
    shutil.move("run", "moved")
    return tmp_path / "moved"


def test_a_moved_model_takes_rows_like_those_it_was_fitted_on(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(n) for n in range(200, 212)]
    whole = table(tmp_path, "whole.csv", rows)
    code, found = told(capsys, fitted, whole)
    assert code == 0
    assert [one["item"] for one in found] == [f"{whole}:{n}" for n in range(2, 14)]
    stored = read_run(fitted, needs_task=False)
    assert stored.encoding is not None
    numbers = [stored.encoding.encode(dict(zip(HEADER, cells, strict=True))) for cells in rows]
    wanted = zoo_core.predict(zoo_core.load_run(fitted), numbers)
    for one, other in zip(found, wanted, strict=True):
        assert list(one["scores"].values() if isinstance(one["scores"], dict) else one["scores"]) == pytest.approx(
            list(other.scores), rel=1e-5
        )
    scores = [one["scores"] for one in found]
    for name, changed in {
        "bare.csv": table(tmp_path, "bare.csv", rows, header=False),
        "tabs.tsv": table(tmp_path, "tabs.tsv", rows, separator="\t"),
        "inputs.csv": table(tmp_path, "inputs.csv", [cells[:3] for cells in rows], header=False),
    }.items():
        assert [one["scores"] for one in told(capsys, fitted, changed)[1]] == scores, name
    turned = tmp_path / "turned.csv"
    turned.write_text("hours,more,work,age\n" + "".join(f"{c[2]},x,{c[1]},{c[0]}\n" for c in rows))
    assert [one["scores"] for one in told(capsys, fitted, turned)[1]] == scores


def test_python_takes_rows_as_the_table_has_them(fitted: Path, tmp_path: Path) -> None:
    learner = zoo_core.load_run(fitted)
    assert learner.encoding is not None
    rows = [dict(zip(HEADER, row(n), strict=True)) for n in range(200, 212)]
    numbers = [learner.encoding.encode(cells) for cells in rows]
    assert zoo_core.predict(learner, rows) == zoo_core.predict(learner, numbers)
    assert torch.equal(zoo_core.embed(learner, rows), zoo_core.embed(learner, numbers))
    zoo_core.save(learner, tmp_path / "again")
    again = zoo_core.load_run(tmp_path / "again")
    assert again.num_columns == learner.num_columns
    assert zoo_core.predict(again, rows) == zoo_core.predict(learner, rows)
    with pytest.raises(UsageError, match=f"no column '{HEADER[0]}', which the model was fitted on"):
        zoo_core.predict(learner, [{HEADER[1]: "1"}])
    for value, told in {float("inf"): "age is inf, not a number", 1e300: "age is 1e[+]300, too far from"}.items():
        with pytest.raises(UsageError, match=told):
            zoo_core.predict(learner, [{**rows[0], "age": value}])
    missing = {**rows[0], "age": float("nan")}
    assert zoo_core.predict(learner, [missing]) == zoo_core.predict(learner, [{**missing, "age": ""}])


def test_rows_by_column_need_a_model_of_a_table_of_files() -> None:
    budget = Budget(epochs=1, num_rates=1)
    learner, _ = zoo_core.fit("starter/mlp-nano(weights=random)+full", task="diabetes", budget=budget)
    assert learner.num_columns == 10
    with pytest.raises(UsageError, match="give its numbers"):
        zoo_core.predict(learner, [{"age": 1.0}])


def test_rows_come_from_standard_input_and_are_prepared_in_worker_processes(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table(tmp_path, "whole.csv", [row(n) for n in range(100, 110)])
    _, wanted = told(capsys, fitted, whole)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(whole.read_bytes())))
    code, found = told(capsys, fitted, "-", "--num-workers", "2", "--batch-size", "3")
    assert code == 0
    assert [one["item"] for one in found] == [f"-:{n}" for n in range(2, 12)]
    for one, other in zip(found, wanted, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)  # another place in another batch


def test_rows_that_cannot_be_encoded_are_rows_with_their_error(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("age,work,hours\nold,office,7\n30,sea\n30,never seen,7\n")
    (tmp_path / "y.csv").write_text("age,works,hours\n30,sea,7\n")
    (tmp_path / "z.csv").write_text("age,work,hours,age\n30,sea,7,31\n")
    code, found = told(capsys, fitted, tmp_path / "x.csv", tmp_path / "y.csv", tmp_path / "z.csv")
    assert code == 5
    assert "x.csv, line 2: age is 'old', not a number" in found[0]["error"]
    assert "x.csv, line 3: 2 cells for 3 columns" in found[1]["error"]
    assert "scores" in found[2]  # a category that training has not seen is a rare one
    assert "y.csv, line 1: no column 'work', which the model was fitted on; there are age, hours" in found[3]["error"]
    assert "did you mean works" in found[3]["error"]
    assert "z.csv, line 1: column 'age' stands 2 times in the header" in found[4]["error"]
    assert len(found) == 5  # what stands below such a header is not taken for something else


def test_features_of_a_table_are_of_the_same_rows(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = table(tmp_path, "whole.csv", [row(n) for n in range(5)])
    assert main(["embed", str(fitted), str(whole), "--out", str(tmp_path / "f.npy"), "--device", "cpu"]) == 0
    assert len(np.load(tmp_path / "f.npy")) == 5


def test_an_encoding_that_was_damaged_is_told(fitted: Path) -> None:
    stored = json.loads((fitted / "run.json").read_text())
    stored["encoding"]["columns"][0]["deviation"] = 0
    (fitted / "run.json").write_text(json.dumps(stored))
    with pytest.raises(IntegrityError, match=r"run.json is damaged \(ValueError: a column of mean"):
        read_run(fitted)


def test_pictures_are_listed_by_a_table(two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in two_classes.glob("*/*.png"))
    (tmp_path / "list.csv").write_text("file,kind\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    budget = Budget(epochs=1, num_rates=1)
    zoo_core.fit("starter/convnet-nano+probe", task='csv(path="list.csv")', out="run", budget=budget)
    encoding = read_run(Path("run"), needs_task=False).encoding
    items = list(Inputs([str(tmp_path / "list.csv")], "image", encoding=encoding).items())
    assert [item.raw for item in items if isinstance(item, Item)] == [str(tmp_path / name) for name in names]
    Image.open(str(items[0].raw)).close()  # type: ignore[union-attr]


def test_columns_that_never_vary_are_no_inputs() -> None:
    columns = (
        Number(name="a", mean=1.0, deviation=2.0, scaled=False, missing=True),
        Category(name="b", shown=(), usual=("x",), rare=True),
    )
    encoding = Encoding(columns=columns, names=("a", "b"))
    assert encoding.encode({"a": "", "b": "x"}) == [1.0, 0.0]
    assert encoding.encode({"a": "5", "b": "y"}) == [0.0, 1.0]
