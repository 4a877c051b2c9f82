"""`zoo fit`, `zoo evaluate`, `zoo predict`: pictures and tables of every kind, and one line for what cannot be read."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo_core.cli import main

Shown = tuple[int, str, list[str]]
Run = Callable[..., Shown]


@pytest.fixture
def zoo_here(capfd: pytest.CaptureFixture[str]) -> Run:
    """A command in this process, which has imported torch already: exit code, output, lines of standard error."""

    def run(*words: str | Path) -> Shown:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Fitted models for classes, labels and values."""
    base = tmp_path_factory.mktemp("models")
    specs = {
        "classes": ("starter/convnet-nano+probe+ncm", "digits(shots=3)"),
        "labels": ("starter/convnet-nano", "digits-attributes(limit=30)"),
        "values": ("starter/mlp-nano(weights=random)+full", "diabetes"),
    }
    for name, (spec, task) in specs.items():
        words = ("--task", task, "--out", str(base / name), "--epochs", "1", "--num-rates", "1", "--device", "cpu")
        assert main(["fit", spec, *words]) == 0
    return {name: base / name for name in specs}


@pytest.fixture
def digit(tmp_path: Path) -> np.ndarray[Any, Any]:
    """A grey picture, uint8 [24, 24]: a stroke on black."""
    picture = np.zeros((24, 24), dtype=np.uint8)
    picture[3:21, 10:14] = 250
    return picture


def told(shown: Shown, code: int, *reasons: str) -> None:
    assert shown[0] == code, shown
    assert len(shown[2]) == 1, shown
    assert shown[1] == ""
    for reason in reasons:
        assert reason in shown[2][0]


# --- fit -------------------------------------------------------------------------------------------------------------


def test_fit_tells_what_it_chose_and_where_it_stands(zoo_here: Run, tmp_path: Path) -> None:
    words = ("--task", "digits(shots=2)", "--epochs", "2", "--out", tmp_path / "run", "--device", "cpu")
    code, out, err = zoo_here("fit", "starter/convnet-nano", *words)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("accuracy 0.")
    assert lines[0].endswith(" on 600 test examples")
    assert sum("learning rate" in line for line in lines) == 3
    assert sum("<- chosen" in line for line in lines) == 1
    assert lines[-1] == f"1290 of 474986 parameters trained; stored in {tmp_path / 'run'}"
    assert [line.partition(":")[0] for line in err] == [f"learning rate {number} of 3" for number in (1, 2, 3)]
    assert all("2 of 2 steps" in line and "examples/s, loss" in line for line in err)


def test_a_fit_into_an_existing_run_is_refused(zoo_here: Run, folders: dict[str, Path]) -> None:
    before = {path.name: path.read_bytes() for path in folders["classes"].iterdir()}
    shown = zoo_here("fit", "starter/vit-nano", "--task", "digits", "--out", folders["classes"], "--device", "cpu")
    told(shown, 2, "already holds a run", "give --out a new folder")
    assert {path.name: path.read_bytes() for path in folders["classes"].iterdir()} == before


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("starter/vit-nan", "--task", "digits"), 3, "did you mean starter/vit-nano"),
        (("starter/vit-nano+lora", "--task", "digits"), 3, "no plugin provides"),
        (("starter/vit-nano+linear+mlp", "--task", "digits"), 2, "two heads, linear and mlp"),
        (("starter/vit-nano", "--task", "diabetes"), 6, "reads image and task diabetes is table"),
        (("starter/mlp-nano", "--task", "diabetes"), 6, "write 'starter/mlp-nano(weights=random)'"),
        (("starter/vit-nano+partial(n=9)", "--task", "digits"), 6, "the backbone has 4 stages"),
        (("starter/vit-nano", "--task", "digits(shots=400)"), 6, "shots=400, and class"),
        (("starter/vit-nano", "--task", "digits", "--epochs", "0"), 2, "epochs=0 is out of range"),
        (("starter/vit-nano", "--task", "digits", "--epochs", "many"), 2, "'many' is not a valid integer"),
        (("starter/vit-nano", "--task", "digits", "--augment", "mirror"), 2, "'mirror' is not one of"),
        (("starter/vit-nano", "--task", "digits", "--device", "cuda:9"), 2, "use --device cpu"),
        (("starter/vit-nano", "--task", "digits", "--device", "meta"), 2, "allowed: auto, cpu, cuda, cuda:N"),
        (("starter/vit-nano",), 2, "Missing option '--task'"),
        (("starter/vit-nano", "--task", "digits", "--epoch", "3"), 2, "--epoch"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(
    zoo_here: Run, tmp_path: Path, words: tuple[str, ...], code: int, reason: str
) -> None:
    told(zoo_here("fit", *words, "--out", tmp_path / "out"), code, reason)


def test_a_syntax_error_shows_the_column(zoo_here: Run, tmp_path: Path) -> None:
    code, out, err = zoo_here("fit", "starter/vit-nano++full", "--task", "digits", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err[0].startswith("zoo: ")
    assert err[-1].strip() == "^"
    assert err[-2][err[-1].index("^")] == "+"


def test_a_traceback_comes_with_debug_alone(zoo_here: Run, tmp_path: Path) -> None:
    words = ("evaluate", tmp_path)
    told(zoo_here(*words), 3, "holds no fitted model")
    code, _, err = zoo_here(*words, "--debug")
    assert (code, err[0], "holds no fitted model" in err[-1]) == (3, "Traceback (most recent call last):", True)


def test_threads_are_those_of_the_result_and_a_count_that_is_none_is_told(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    words = ("fit", "starter/convnet-nano+ncm", "--task", "digits(shots=1)", "--device", "cpu")
    assert zoo_here(*words, "--out", tmp_path / "run", "--threads", "1")[0] == 0
    assert json.loads((tmp_path / "run" / "results.jsonl").read_text())["threads"] == 1
    told(zoo_here(*words, "--out", tmp_path / "more", "--threads", "0"), 2, "--threads 0: allowed: 1 to")
    for more in (("evaluate", folders["classes"]), ("predict", folders["classes"], "x.png")):
        told(zoo_here(*more, "--threads", "-1"), 2, "--threads -1: allowed: 1 to")


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_reports_each_class_and_the_confusion(zoo_here: Run, folders: dict[str, Path]) -> None:
    code, out, err = zoo_here("evaluate", folders["classes"], "--device", "cpu")
    assert (code, err) == (0, [])
    assert out.splitlines()[0].endswith("on 600 test examples")
    assert "precision  recall     f1    num" in out
    assert "confusion, rows true and columns predicted" in out


def test_the_schema_of_an_evaluation_is_stable(zoo_here: Run, folders: dict[str, Path]) -> None:
    for kind, metric in (("classes", "accuracy"), ("labels", "average_precision"), ("values", "mean_absolute_error")):
        code, out, _ = zoo_here("evaluate", folders[kind], "--json", "--split", "val", "--device", "cpu")
        found = json.loads(out)
        assert code == 0
        assert list(found) == ["metric", "score", "split", "num_examples", "names", "per_class", "confusion"]
        assert (found["metric"], found["split"], isinstance(found["score"], float)) == (metric, "val", True)
        assert bool(found["per_class"]) == bool(found["confusion"]) == (kind == "classes")
    code, out, _ = zoo_here("evaluate", folders["classes"], "--json", "--device", "cpu")
    assert list(json.loads(out)["per_class"][0]) == ["class", "precision", "recall", "f1", "num"]


def test_what_is_no_run_or_a_damaged_one_is_told(zoo_here: Run, folders: dict[str, Path], tmp_path: Path) -> None:
    told(zoo_here("evaluate", tmp_path / "nothing"), 3, "holds no fitted model", "`zoo fit SPEC --task T --out DIR`")
    copy = Path(shutil.copytree(folders["classes"], tmp_path / "copy"))
    delta = copy / "delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:-3])
    told(zoo_here("evaluate", copy), 5, "truncated")
    (copy / "run.json").write_text("{")
    told(zoo_here("predict", copy, "a.png"), 5, "run.json is damaged")
    told(zoo_here("evaluate", folders["classes"], "--split", "all"), 2, "'all' is not one of")


def test_the_folder_of_a_bench_holds_no_model_and_says_so(zoo_here: Run, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("")
    for words in (("evaluate", tmp_path), ("predict", tmp_path, "a.png")):
        told(zoo_here(*words), 3, "the folder of a bench", "not models", "`zoo fit SPEC --task T --out DIR` makes one")


# --- pictures --------------------------------------------------------------------------------------------------------


def predicted(zoo_here: Run, folder: Path, *files: Path) -> list[dict[str, Any]]:
    code, out, err = zoo_here("predict", folder, *files, "--format", "jsonl", "--device", "cpu")
    assert (code, err) == (0, [])
    return [json.loads(line) for line in out.splitlines()]


def test_a_picture_is_the_same_in_every_mode_that_can_hold_it(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    grey = Image.fromarray(digit)
    palette = Image.fromarray(digit, mode=None).convert("P")
    saved = {
        "grey.png": grey,
        "colour.png": grey.convert("RGB"),
        "alpha.png": grey.convert("RGBA"),
        "grey-alpha.png": grey.convert("LA"),
        "palette.png": palette,
        "deep.png": Image.fromarray(digit.astype(np.uint16) * 257),
        "grey.bmp": grey,
        "grey.tiff": grey,
    }
    for name, picture in saved.items():
        picture.save(tmp_path / name)
    with Image.open(tmp_path / "deep.png") as deep:
        assert deep.mode == "I;16"
    found = predicted(zoo_here, folders["classes"], *(tmp_path / name for name in saved))
    assert [one["item"] for one in found] == [str(tmp_path / name) for name in saved]
    for one in found[1:]:
        # The same pixels at another place in the batch: a few bits of float32.
        assert one["scores"] == pytest.approx(found[0]["scores"], abs=1e-5), one["item"]


def test_the_comparison_of_modes_tells_pictures_apart(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    """PIL clips 16 bits to 8, which would make every grey white."""
    deep = digit.astype(np.uint16) * 257
    deep[deep == 0] = 20 * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray((deep > 0).astype(np.uint8) * 255).save(tmp_path / "clipped.png")
    scaled, clipped = predicted(zoo_here, folders["classes"], tmp_path / "deep.png", tmp_path / "clipped.png")
    assert scaled["scores"] != pytest.approx(clipped["scores"], abs=1e-3)


def test_black_and_white_pictures_are_read(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    Image.fromarray(digit).convert("1").save(tmp_path / "bits.png")
    assert len(predicted(zoo_here, folders["classes"], tmp_path / "bits.png")) == 1


def test_what_is_no_picture_is_told(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, size=(64, 64)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    content = buffer.getvalue()
    broken = bytearray(content)
    broken[37] ^= 0x40  # the name of a chunk
    cases = {
        "text.png": b"no picture",
        "empty.png": b"",
        "cut.png": content[: len(content) // 2],
        "broken.png": bytes(broken),
    }
    for name, written in cases.items():
        (tmp_path / name).write_bytes(written)
        shown = zoo_here("predict", folders["classes"], tmp_path / name, "--device", "cpu")
        told(shown, 2, name, "is not a picture that can be read")
    Image.fromarray(digit.astype(np.int32) * 1000).save(tmp_path / "wide.tiff")
    told(
        zoo_here("predict", folders["classes"], tmp_path / "wide.tiff"), 2, "pixels of 32 bits", "save it with 8 or 16"
    )
    told(zoo_here("predict", folders["classes"], tmp_path / "none.png"), 3, f"no file {tmp_path / 'none.png'}")
    told(zoo_here("predict", folders["classes"], tmp_path), 2, "is not a picture that can be read")
    told(zoo_here("predict", folders["classes"]), 2, "Missing argument 'FILES...'")


def test_damaged_bytes_never_end_in_an_error_of_our_own(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    """What PIL raises depends on where the damage is; each is a line about the file."""
    from zoo_core.errors import UsageError
    from zoo_core.pictures import open_picture

    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, size=(32, 32)).astype(np.uint8)).save(buffer, "PNG")
    file, failed = tmp_path / "x.png", 0
    for _ in range(500):
        content = bytearray(buffer.getvalue())
        for place in rng.integers(0, len(content), size=3):
            content[place] ^= 1 << rng.integers(0, 8)
        file.write_bytes(bytes(content))
        try:
            open_picture(file)
        except UsageError:
            failed += 1
    assert failed > 100


# --- tables ----------------------------------------------------------------------------------------------------------

ROW = ",".join(f"0.{number}" for number in range(10))


def test_rows_of_tables_are_named_by_file_and_line_and_keep_their_order(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text(f"{ROW}\n\n{ROW.replace('0.3', '-2')}\n")
    two.write_bytes(b"\xef\xbb\xbf" + ROW.encode() + b"\r\n")  # a byte order mark, and the line ends of Windows
    found = predicted(zoo_here, folders["values"], two, one)
    assert [one["item"] for one in found] == [f"{two}:1", f"{one}:1", f"{one}:3"]
    assert found[0]["scores"] == pytest.approx(found[1]["scores"], rel=1e-5)  # another place in the batch
    assert found[1]["scores"] != pytest.approx(found[2]["scores"], rel=1e-5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1,2,3\n", "line 1 has 3 columns; the model was fitted on 10"),
        (ROW.encode() + b"\n" + ROW.encode() + b",1\n", "line 2 has 11 columns; the model was fitted on 10"),
        (b"a,b\n", "line 1: could not convert string to float: 'a'; a table holds numbers and no header"),
        (ROW.replace("0.3", "nan").encode(), "line 1: a number that is not finite"),
        (ROW.replace("0.3", "").encode(), "line 1: could not convert string to float: ''"),
        (b"\xff\xfe1,2", "is not a table of text"),
    ],
    ids=["too few", "too many", "header", "nan", "hole", "no text"],
)
def test_a_table_that_does_not_fit_is_told(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    told(zoo_here("predict", folders["values"], tmp_path / "x.csv"), 2, "x.csv", reason)


def test_a_missing_table_is_not_found_and_a_folder_is_none(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    told(zoo_here("predict", folders["values"], tmp_path / "x.csv"), 3, "no file")
    told(zoo_here("predict", folders["values"], tmp_path), 2, "cannot be read")


# --- formats ---------------------------------------------------------------------------------------------------------


def test_formats_hold_the_same_predictions(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    files = [tmp_path / f"{name}.png" for name in "ba"]
    for number, file in enumerate(files):
        Image.fromarray(np.roll(digit, 5 * number, axis=1)).save(file)
    lines = predicted(zoo_here, folders["classes"], *files)
    assert [list(line) for line in lines] == [["item", "labels", "scores"]] * 2
    _, out, _ = zoo_here("predict", folders["classes"], *files, "--format", "csv", "--device", "cpu")
    assert "\r" not in out
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [list(row) for row in rows] == [["item", "label", "score"]] * 2
    _, out, _ = zoo_here("predict", folders["classes"], *files, "--device", "cpu")
    for line, row, shown in zip(lines, rows, out.splitlines(), strict=True):
        assert row == {"item": line["item"], "label": line["labels"][0], "score": f"{max(line['scores']):.6g}"}
        assert shown == "  ".join(row.values())


def test_every_label_and_value_has_a_column(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    picture, rows = tmp_path / "x.png", tmp_path / "x.csv"
    Image.fromarray(digit).save(picture)
    rows.write_text(ROW)
    for kind, file, header in (
        ("labels", picture, ["item", "even", "prime", "above four", "closed loop"]),
        ("values", rows, ["item", "progression"]),
    ):
        (line,) = predicted(zoo_here, folders[kind], file)
        _, out, _ = zoo_here("predict", folders[kind], file, "--format", "csv", "--device", "cpu")
        (row,) = csv.DictReader(io.StringIO(out))
        assert list(row) == header
        assert list(row.values())[1:] == [f"{score:.6g}" for score in line["scores"]]
        _, out, _ = zoo_here("predict", folders[kind], file, "--device", "cpu")
        assert all(name in out for name in header[1:])
