"""`zoo predict` and `zoo embed`: inputs of every kind in their order, lines of every form, a row for what is bad."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo_core
from tests.conftest import Run, told
from zoo_core.cli.inputs import Inputs
from zoo_core.cli.lines import Lines
from zoo_core.contracts import Modality, Target
from zoo_core.runs.inference import Item, Prediction, SkippedItem, Word
from zoo_core.toolkit.table_encoding import Encoding


@pytest.fixture
def digit(tmp_path: Path) -> np.ndarray[Any, Any]:
    """A grey picture, uint8 [24, 24]: a stroke on black."""
    picture = np.zeros((24, 24), dtype=np.uint8)
    picture[3:21, 10:14] = 250
    return picture


def rows_of(zoo_here: Run, folder: Path, *words: str | Path) -> tuple[int, list[dict[str, Any]]]:
    """Exit code, and the lines of --format jsonl."""
    code, out, _ = zoo_here("predict", folder, *words, "--format", "jsonl", "--device", "cpu")
    return code, [json.loads(line) for line in out.splitlines()]


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


def test_what_is_no_picture_is_a_row_with_its_error_and_the_others_are_done(
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
    Image.fromarray(digit.astype(np.int32) * 1000).save(tmp_path / "wide.tiff")
    Image.fromarray(digit).save(tmp_path / "good.png")
    (tmp_path / "self.png").symlink_to("self.png")
    names = ["good.png", *cases, "wide.tiff", "self.png"]
    code, rows = rows_of(zoo_here, folders["classes"], *(tmp_path / name for name in names))
    assert code == 5
    assert [row["item"] for row in rows] == [str(tmp_path / name) for name in names]
    assert [list(row) for row in rows] == [["item", "labels", "scores"]] + [["item", "error"]] * 6
    for name, row in zip(cases, rows[1:], strict=False):
        assert f"{name} is not a picture that can be read" in row["error"]
    assert "pixels of 32 bits, whose range is unknown; save it with 8 or 16" in rows[-2]["error"]
    assert "symbolic links" in rows[-1]["error"]


def test_what_is_not_there_is_told_before_anything_is_done(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    Image.fromarray(digit).save(tmp_path / "good.png")
    words = ("predict", folders["classes"], tmp_path / "good.png")
    told(zoo_here(*words, tmp_path / "none.png"), 3, f"no file {tmp_path / 'none.png'}")
    told(zoo_here(*words, tmp_path / "*.jpg"), 3, "nothing fits that pattern")
    told(zoo_here(*words, "-", "-"), 2, "given twice")
    told(zoo_here("predict", folders["classes"]), 2, "Missing argument 'FILES...'")
    told(zoo_here(*words, "--batch-size", "0"), 2, "--batch-size 0: allowed: 1 or more")
    told(zoo_here(*words, "--num-workers", "-1"), 2, "--num-workers -1: allowed: 1 to")


def test_damaged_bytes_never_end_in_an_error_of_our_own(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    """What PIL raises depends on where the damage is; each is a line about the file."""
    from zoo_core.errors import UsageError
    from zoo_core.toolkit.pictures import open_picture

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
    found = predicted(zoo_here, folders["regression"], two, one)
    assert [one["item"] for one in found] == [f"{two}:1", f"{one}:1", f"{one}:3"]
    assert found[0]["scores"] == pytest.approx(found[1]["scores"], rel=1e-5)  # another place in the batch
    assert found[1]["scores"] != pytest.approx(found[2]["scores"], rel=1e-5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1,2,3\n", "line 1 has 3 columns; the model was fitted on 10"),
        (ROW.encode() + b"\n" + ROW.encode() + b",1\n", "line 2 has 11 columns; the model was fitted on 10"),
        (b"a,b\n", "line 1 has 2 columns; the model was fitted on 10"),
        (b"a,b,3\n", "line 1: could not convert string to float: 'a'; a row holds numbers"),
        (b"", "holds no rows"),
        (ROW.encode() + b'\n"' + b"1" * 200_000 + b"\n", "a number that is not finite"),
        (ROW.replace("0.3", "nan").encode(), "line 1: a number that is not finite"),
        (ROW.replace("0.3", "").encode(), "line 1: could not convert string to float: ''"),
        (b"\xff\xfe1,2", "is not a table of text"),
    ],
    ids=["too few", "too many", "header", "word", "empty", "huge", "nan", "hole", "no text"],
)
def test_a_table_that_does_not_fit_is_a_row_with_its_error(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    (tmp_path / "y.csv").write_text(ROW)
    code, rows = rows_of(zoo_here, folders["regression"], tmp_path / "x.csv", tmp_path / "y.csv")
    assert code == 5
    (failed,) = (row for row in rows if "error" in row)
    assert "x.csv" in failed["item"]
    assert reason in failed["error"]
    assert rows[-1]["item"] == f"{tmp_path / 'y.csv'}:1"
    assert "scores" in rows[-1]


def test_a_table_may_have_a_header_and_tabs(zoo_here: Run, folders: dict[str, Path], tmp_path: Path) -> None:
    names = [f"column {number}" for number in range(10)]
    (tmp_path / "x.csv").write_text(",".join(names) + f"\n{ROW}\n1,2\n{ROW}\n")
    (tmp_path / "x.tsv").write_text("\t".join(names) + "\n" + ROW.replace(",", "\t"))
    code, rows = rows_of(zoo_here, folders["regression"], tmp_path)
    assert code == 5
    assert [row["item"].rpartition("/")[2] for row in rows] == ["x.csv:2", "x.csv:3", "x.csv:4", "x.tsv:2"]
    assert "line 3 has 2 columns; the model was fitted on 10" in rows[1]["error"]
    assert rows[0]["scores"] == pytest.approx(rows[3]["scores"], rel=1e-5)  # another place in the batch


def test_a_missing_table_is_not_found_and_a_folder_without_one_is_a_row(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    told(zoo_here("predict", folders["regression"], tmp_path / "x.csv"), 3, "no file")
    code, rows = rows_of(zoo_here, folders["regression"], tmp_path)
    assert code == 5
    assert "holds no tables (.csv, .tab, .tsv)" in rows[0]["error"]


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
        ("multilabel", picture, ["item", "even", "prime", "above four", "closed loop"]),
        ("regression", rows, ["item", "progression"]),
    ):
        (line,) = predicted(zoo_here, folders[kind], file)
        _, out, _ = zoo_here("predict", folders[kind], file, "--format", "csv", "--device", "cpu")
        (row,) = csv.DictReader(io.StringIO(out))
        assert list(row) == header
        assert list(row.values())[1:] == [f"{score:.6g}" for score in line["scores"]]
        _, out, _ = zoo_here("predict", folders[kind], file, "--device", "cpu")
        assert all(name in out for name in header[1:])


def test_a_bad_item_is_a_line_of_every_form(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    good, bad = tmp_path / "b.png", tmp_path / "a.png"
    Image.fromarray(digit).save(good)
    bad.write_bytes(b"")
    words = ("predict", folders["classes"], bad, good, "--device", "cpu")
    code, out, err = zoo_here(*words)
    assert code == 5
    assert out.splitlines()[0].startswith(f"{bad}  error: {bad} is not a picture")
    assert out.splitlines()[1].startswith(f"{good}  ")
    assert err == ["zoo: 1 of 2 items could not be used, each is told above"]
    code, out, err = zoo_here(*words, "--format", "csv")
    assert code == 5
    assert out.splitlines()[:2] == ["item,label,score", f"{bad},,"]
    assert out.splitlines()[2].startswith(f"{good},")
    assert [line.partition(" is not")[0] for line in err[:-1]] == [f"zoo: {bad}"]


def test_the_best_and_all_scores_are_those_of_jsonl(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(digit).save(file)
    (whole,) = predicted(zoo_here, folders["classes"], file)
    order = sorted(range(10), key=lambda index: -whole["scores"][index])
    shown = [(str(index), f"{whole['scores'][index]:.6g}") for index in order]
    words = ("predict", folders["classes"], file, "--device", "cpu")
    _, out, _ = zoo_here(*words, "--top-k", "3", "--format", "csv")
    header, row = csv.reader(io.StringIO(out))
    assert header == ["item", "label", "score", "label_2", "score_2", "label_3", "score_3"]
    assert row[1:] == [cell for pair in shown[:3] for cell in pair]
    _, out, _ = zoo_here(*words, "--all-scores", "--format", "csv")
    (found,) = csv.DictReader(io.StringIO(out))
    assert list(found) == ["item", "label", "score", *map(str, range(10))]
    assert [found[name] for name, _ in shown] == [score for _, score in shown]
    for flags, num in ((("--top-k", "2"), 2), (("--all-scores",), 10)):
        _, out, _ = zoo_here(*words, *flags)
        assert out.split("  ")[1:] == [*(" ".join(pair) for pair in shown[: num - 1]), " ".join(shown[num - 1]) + "\n"]
    _, out, _ = zoo_here(*words, "--top-k", "2", "--format", "jsonl")
    assert json.loads(out)["top"] == [{"label": str(index), "score": whole["scores"][index]} for index in order[:2]]
    _, out, _ = zoo_here(*words, "--all-scores", "--format", "jsonl")
    assert list(json.loads(out)["all"].values()) == whole["scores"]
    told(zoo_here(*words, "--top-k", "11"), 2, "--top-k 11: allowed: 1 to 10")
    told(zoo_here(*words, "--top-k", "1", "--all-scores"), 2, "give one of them")
    told(
        zoo_here("predict", folders["regression"], file, "--top-k", "1"),
        2,
        "is for classes and multilabel",
        "regression",
    )


def test_token_classes_are_a_line_for_each_word_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    words = (Word(text="Anna", start=0, end=4), Word(text=".", start=10, end=11))
    one = Prediction(item="x.txt:1", labels=("B-PER", "O"), scores=(0.75, 1.0), words=words)
    target = Target(kind="token_classes", names=("O", "B-PER"))
    for form, lines in {
        "table": ["x.txt:1  0-4  Anna  B-PER  0.75", "x.txt:1  10-11  .  O  1"],
        "csv": ["item,word,start,end,label,score", "x.txt:1,Anna,0,4,B-PER,0.75", "x.txt:1,.,10,11,O,1"],
    }.items():
        Lines(form, target).add(one)
        assert capsys.readouterr().out.splitlines() == lines
    Lines("jsonl", target).add(one)
    found = json.loads(capsys.readouterr().out)
    assert found["words"] == [{"text": "Anna", "start": 0, "end": 4}, {"text": ".", "start": 10, "end": 11}]
    assert (found["labels"], found["scores"]) == (["B-PER", "O"], [0.75, 1.0])


# --- folders, standard input, texts ----------------------------------------------------------------------------------


def read(inputs: Inputs) -> list[tuple[str, str]]:
    """Name of each item with what is raw of it, or with its error."""
    return [
        (one.name, str(one.raw)) if isinstance(one, Item) else (one.item, f"error: {one.error}")
        for one in inputs.items()
    ]


def test_a_folder_is_searched_in_order_and_tells_what_it_passed_over(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    new = tmp_path / "new"
    for name in ("b/2.PNG", "b/10.png", "a.jpg", "c.png", ".hidden/x.png", "b/.x.png"):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        with (new / name).open("wb") as stream:
            Image.fromarray(digit).save(stream, "PNG")
    (new / "notes.md").write_text("")
    code, out, err = zoo_here("predict", folders["classes"], new, "--format", "csv", "--num-workers", "2")
    assert code == 0
    names = [row["item"] for row in csv.DictReader(io.StringIO(out))]
    assert names == [str(new / name) for name in ("a.jpg", "b/10.png", "b/2.PNG", "c.png")]
    assert err == [f"1 file passed over, by name no pictures: {new / 'notes.md'}"]


def test_an_empty_folder_and_a_loop_of_links_are_rows(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "sub").mkdir(parents=True)
    (tmp_path / "full" / "x.png").touch()
    (tmp_path / "full" / "sub" / "loop").symlink_to("..")
    (tmp_path / "full" / "twin").symlink_to("sub")  # another way to the same folder is no loop, its link is
    found = read(Inputs([str(tmp_path / "empty"), str(tmp_path / "full")], "image"))
    assert [name.removeprefix(str(tmp_path)) for name, _ in found] == [
        *("/empty", "/full/sub/loop", "/full/twin/loop", "/full/x.png"),
    ]
    assert "holds no pictures (.avif" in found[0][1]
    assert all("is a link to a folder that holds it" in error for _, error in found[1:3])


def test_standard_input_is_paths_in_order(
    zoo_here: Run,
    folders: dict[str, Path],
    tmp_path: Path,
    digit: np.ndarray[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.fromarray(digit).save(tmp_path / "x.png")
    given = io.TextIOWrapper(io.BytesIO(f"{tmp_path}/x.png\n\n{tmp_path}/gone.png\n{tmp_path}/x.png".encode()))
    monkeypatch.setattr(sys, "stdin", given)
    code, rows = rows_of(zoo_here, folders["classes"], "-")
    assert code == 5
    assert [list(row)[1] for row in rows] == ["labels", "error", "labels"]
    assert rows[1]["error"] == f"no file {tmp_path}/gone.png"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert zoo_here("predict", folders["classes"], "-") == (0, "", [])


@pytest.mark.slow
def test_each_line_is_answered_before_the_next_is_given(
    folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    Image.fromarray(digit).save(tmp_path / "x.png")
    command = [sys.executable, "-m", "zoo_core.cli", "predict", str(folders["classes"]), "-", "--batch-size", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            process.stdin.write(f"{tmp_path}/x.png\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(f"{tmp_path}/x.png  ")
        process.stdin.close()
        assert process.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize("command", ["predict", "embed"])
@pytest.mark.slow
def test_a_terminal_shows_a_bar_of_items_and_a_rate(
    folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any], command: str
) -> None:
    import pty

    for number in range(3):
        Image.fromarray(digit).save(tmp_path / f"{number}.png")
    words = [sys.executable, "-m", "zoo_core.cli", command, str(folders["classes"]), str(tmp_path), "--device", "cpu"]
    words += ["--out", str(tmp_path / "f.npy")] if command == "embed" else []
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # how Linux tells that the other side has gone
            pass
        assert process.stdout is not None
        assert process.stdout.read().count(b"\n") == (3 if command == "predict" else 1)
    os.close(ours)
    assert process.returncode == 0, shown
    assert b"3 items, " in shown
    assert b"/s, left" in shown


def test_texts_are_the_lines_that_are_not_empty(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes("\ufeffone\u2028still one\r\n\n  \ntwo".encode())
    assert read(Inputs([str(file)], "text")) == [(f"{file}:1", "one\u2028still one"), (f"{file}:4", "two")]
    (item,) = (one for one in Inputs([str(file)], "text", needs_words=True).items() if str(one).count("two"))
    assert isinstance(item, Item)
    assert (item.raw, item.words) == (["two"], (Word(text="two", start=0, end=3),))


@pytest.mark.parametrize(
    ("content", "names", "reason"),
    [
        (b"good\n\xe9t\xe9\ngood\n", [":1", ":2", ":3"], ":2 is not UTF-8"),
        (b"good\n\x89PNG\0\0\nmore\n", [":1", ""], "is not a text, line 2 has a zero byte"),
        (b"", [""], "holds no text"),
        (b"\n \n", [""], "holds no text"),
    ],
    ids=["latin-1", "binary", "empty", "blank"],
)
def test_what_is_no_text_is_a_row_and_the_rest_is_read(
    tmp_path: Path, content: bytes, names: list[str], reason: str
) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(content)
    found = read(Inputs([str(file)], "text"))
    assert [name for name, _ in found] == [f"{file}{name}" for name in names]
    (error,) = (text for _, text in found if text.startswith("error: "))
    assert reason in error


def test_texts_of_a_table_are_those_of_a_column(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text('id;review;stars\n1;"good; and\nlong";1\n2; ;0\n3;short\n4;bad;0\n')
    fitted = Encoding(names=("review", "stars"), separator=";", column="review")
    assert read(Inputs([str(file)], "text", encoding=fitted)) == [
        (f"{file}:2", "good; and\nlong"),
        (f"{file}:3", f"error: {file}, line 3 has no review"),
        (f"{file}:4", f"error: {file}, line 4 has 2 cells, and its header names 3"),
        (f"{file}:5", "bad"),
    ]
    tabs = tmp_path / "x.tsv"
    tabs.write_text("text\tlabel\none text\t1\n")
    assert read(Inputs([str(tabs)], "text", column="text")) == [(f"{tabs}:2", "one text")]
    (tmp_path / "note.txt").write_text("a line")
    searched = Inputs([str(tmp_path)], "text", column="text")
    assert [name.rpartition("/")[2] for name, _ in read(searched)] == ["note.txt:1", "x.csv", "x.tsv:2"]
    assert [name.rpartition("/")[2] for name, _ in read(Inputs([str(tmp_path)], "text"))] == ["note.txt:1"]
    for column, reason in {
        None: "which column holds the texts? there are text, label; --column NAME says it",
        "texts": "no column 'texts'; there are text, label; did you mean text",
    }.items():
        ((name, error),) = read(Inputs([str(tabs)], "text", column=column))
        assert name == str(tabs)
        assert reason in error


def test_a_file_that_may_not_be_read_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # whoever runs the tests as root may read everything
    modalities: tuple[Modality, ...] = ("text", "table")
    for modality in modalities:
        (one,) = Inputs([str(tmp_path / "x")], modality).items()
        assert isinstance(one, SkippedItem)
        assert (one.error.exit_code, str(one.error)) == (4, f"{tmp_path / 'x'} may not be read; change its rights")


def test_names_that_are_not_utf8_are_shown(
    zoo_here: Run, folders: dict[str, Path], tmp_path: Path, digit: np.ndarray[Any, Any]
) -> None:
    Image.fromarray(digit).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/\xff.png")  # noqa: PTH104 - a path of bytes
    code, rows = rows_of(zoo_here, folders["classes"], tmp_path)
    assert (code, [row["item"] for row in rows]) == (0, [f"{tmp_path}/\udcff.png"])
    out = tmp_path / "f.parquet"
    assert zoo_here("embed", folders["classes"], tmp_path, "--out", out, "--device", "cpu")[0] == 0


# --- embed -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of seven pictures, the fourth of them damaged."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(7):
        Image.fromarray(rng.integers(0, 255, size=(24, 24)).astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("model", ["starter/vit-nano", "run"])
def test_features_are_stored_with_their_ids(
    zoo_here: Run, folders: dict[str, Path], pictures: Path, tmp_path: Path, model: str
) -> None:
    import pyarrow.parquet

    name = str(folders["classes"]) if model == "run" else model
    loaded = zoo_core.load_run(name) if model == "run" else zoo_core.load_backbone(name)
    files = [path for path in sorted(pictures.iterdir()) if path.name != "3.png"]
    expected = zoo_core.embed(loaded, files).numpy()
    words = ("embed", name, pictures, "--device", "cpu", "--batch-size", "2")
    for out in (tmp_path / "f.npy", tmp_path / "f.parquet"):
        code, text, err = zoo_here(*words, "--out", out)
        assert (code, text) == (5, f"6 items, {expected.shape[1]} features each, in {out}\n")
        assert "3.png is not a picture" in err[0]
        assert err[1:] == ["zoo: 1 of 7 items could not be used, each is told above"]
    matrix = np.load(tmp_path / "f.npy")
    assert (matrix.dtype, (tmp_path / "f.ids.txt").read_text().splitlines()) == (np.float32, list(map(str, files)))
    # Batches of another size, so another order of sums: a few bits of float32.
    np.testing.assert_allclose(matrix, expected, atol=1e-5)
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert table["item"].to_pylist() == list(map(str, files))
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), matrix)
    assert sorted(path.name for path in tmp_path.glob("*.new")) == []


def test_features_of_a_stage_and_of_another_pool(zoo_here: Run, pictures: Path, tmp_path: Path) -> None:
    (pictures / "3.png").unlink()
    words = ("embed", "starter/vit-nano", pictures, "--out", tmp_path / "f.npy", "--device", "cpu")
    backbone = zoo_core.load_backbone("starter/vit-nano")
    cases: list[tuple[tuple[str, str], dict[str, Any]]] = [
        (("--stage", "2"), {"stage": 2}),
        (("--pool", "mean"), {"pool": "mean"}),
    ]
    for flags, arguments in cases:
        assert zoo_here(*words, *flags)[0] == 0
        expected = zoo_core.embed(backbone, sorted(pictures.iterdir()), **arguments).numpy()
        np.testing.assert_allclose(np.load(tmp_path / "f.npy"), expected, atol=1e-5)  # float32
    told(zoo_here(*words, "--stage", "9"), 2, "stage 9: the backbone has 4 stages")
    told(zoo_here(*words, "--stage", "1", "--pool", "mean"), 2, "of a stage it is always the mean")


def test_what_cannot_be_embedded_or_written_is_one_line(
    zoo_here: Run, folders: dict[str, Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("embed", "starter/vit-nano", pictures, "--device", "cpu", "--out")
    told(zoo_here(*words, tmp_path / "f.txt"), 2, "ends in .npy or .parquet")
    (tmp_path / "d.npy").mkdir()
    told(zoo_here(*words, tmp_path / "d.npy"), 2, "is a folder")
    out = tmp_path / "f.npy"
    told(zoo_here("embed", "starter/vit-nan", pictures, "--out", out), 3, "did you mean starter/vit-nano")
    told(zoo_here("embed", "starter/vit-nano+full", pictures, "--out", out), 2, "nothing has fitted")
    told(zoo_here("embed", pictures, pictures, "--out", out), 3, "holds no fitted model")
    told(zoo_here("embed", "./gone", pictures, "--out", out), 3, "holds no fitted model")
    code, _, err = zoo_here("embed", "starter/vit-nano", pictures / "3.png", "--out", out, "--device", "cpu")
    assert (code, err[1]) == (5, f"no item, so {out} was not written")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == []
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    told(zoo_here(*words, tmp_path / "f.parquet"), 1, "needs pyarrow, which is not installed", "`pip install pyarrow`")


# --- sounds ----------------------------------------------------------------------------------------------------------


def test_sounds_of_a_folder_are_items(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "x.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(b"\0\1" * 80)
    (tmp_path / "y.mp3").touch()
    inputs = Inputs([str(tmp_path)], "audio")
    assert read(inputs) == [(str(tmp_path / name),) * 2 for name in ("x.wav", "y.mp3")]
    assert inputs.told() is None
