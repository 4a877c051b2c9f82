"""`zoo bench` and `zoo report`: help that works, progress, output for people and programs, mistakes in one line."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, Zoo
from zoo_core.cli.options import WITHOUT
from zoo_core.plan.plan import Budget

COMMANDS = ("plan", "bench", "report", "fit", "evaluate", "predict")
BUDGET = ("--epochs", "1", "--num-rates", "1", "--device", "cpu")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")  # the other sequences move the cursor, or make text bold


@pytest.fixture
def zoo_here(zoo_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return zoo_here


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("suite.toml",), 3, "no suite file suite.toml; without one, `zoo bench` runs the starter suite"),
        (("mine.toml",), 2, "mine.toml: unknown key 'backbone'; a suite has"),
        (("mine.toml", "--task", "digits"), 2, "a suite file and --task both give the grid"),
        (("--task", "digits"), 2, "a grid by flags needs --task and --backbones"),
        (("--task", "digits", "--backbones", "starter/vit-nan"), 3, "did you mean starter/vit-nano"),
        (("--task", "digit", "--backbones", "starter/vit-nano"), 3, "did you mean digits"),
        (("--task", "digits", "--backbones", "starter/vit-nano", "--adapters", "ful"), 3, "did you mean full"),
        (("--task", "digits", "--backbones", "starter/vit-nano", "--heads", "full"), 3, "a head 'full'"),
        (("--task", "diabetes", "--backbones", "starter/vit-nano"), 2, "is empty, 3 trials refused: starter/vit-nano"),
        (("--seeds", "0"), 2, "--seeds 0: allowed: 1 or more"),
        (("--seeds", "two"), 2, "'two' is not a valid integer"),
        (("--workers", "0"), 2, "--workers 0: allowed: 1 to"),
        (("--threads", "0"), 2, "--threads 0: allowed: 1 to"),
        (("--epochs", "0"), 2, "epochs=0 is out of range"),
        (("--trial-time-limit", "0"), 2, "'0' is no time; allowed: a number above 0 and one of nothing, s, m, h"),
        (("--num-rates", "9"), 2, "num_rates=9 is out of range; allowed: 1 to 5"),
        (("--warmup", "nan"), 2, "warmup=nan is out of range"),
        (("--device", "gpu"), 2, "--device gpu: not a device; allowed: auto, cpu, cuda, cuda:N"),
        (("--format", "xml"), 2, "'xml' is not one of"),
        (("--tasks", "digits"), 2, "--task"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code_and_nothing_is_made(
    zoo_here: Run, tmp_path: Path, words: tuple[str, ...], code: int, reason: str
) -> None:
    (tmp_path / "mine.toml").write_text("tasks = ['digits']\nbackbone = ['starter/vit-nano']\n")
    found, out, err = zoo_here("bench", *words)
    assert (found, out, len(err)) == (code, "", 1), err
    assert reason in err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("backbones", "column"), [("starter/vit-nano++full", 17), ("starter/vit-nano(weights=random", 16), ("a,,b", 2)]
)
def test_a_syntax_error_points_at_its_column(zoo_here: Run, backbones: str, column: int) -> None:
    code, _, err = zoo_here("bench", "--task", "digits", "--backbones", backbones)
    assert code == 2
    assert err[-1].index("^") - 2 >= column
    assert err[-2].strip() == backbones


def test_a_report_of_no_run_is_not_found(zoo_here: Run, tmp_path: Path) -> None:
    code, _, err = zoo_here("report", tmp_path / "nothing")
    assert (code, len(err)) == (3, 1)
    assert "`zoo bench --out" in err[0]


# --- output ----------------------------------------------------------------------------------------------------------


def test_results_go_to_standard_output_and_progress_to_standard_error(mixed: Any) -> None:
    assert mixed.done.out.startswith("thirds: accuracy in % on test")
    lines = mixed.done.err.splitlines()
    assert lines[0] == "0 of 3 trials are done already"
    told = [line for line in lines[1:] if re.search(r"\[\d/3\] ", line)]  # a plugin that prints may be in front of one
    assert re.findall(r"\[(\d)/3\] ", mixed.done.err) == ["1", "2", "3"]
    assert any(" nasty/tokens+linear task=thirds epochs=1 seed=0: accuracy " in line for line in told)
    assert any("failed: adapter 'trouble'" in line for line in told)
    assert lines[-2:] == [
        f"8 results in {mixed.out}; `zoo report {mixed.out} --format md` prints them again",
        "1 of them failed; the same command with --retry runs those again",
    ]
    assert "\x1b" not in mixed.done.out + mixed.done.err


def test_what_a_plugin_prints_is_no_part_of_the_table(mixed: Any) -> None:
    assert "a plugin talks" in mixed.done.err
    assert "a plugin talks" not in mixed.done.out


def test_a_report_prints_what_the_bench_printed(zoo: Zoo, mixed: Any) -> None:
    assert zoo("report", mixed.out).out == mixed.done.out


def test_the_schema_of_results_is_stable(zoo: Zoo, mixed: Any) -> None:
    rows = [json.loads(line) for line in (mixed.out / "results.jsonl").read_text().splitlines()]
    columns = [
        *("trial", "digest", "record", "status", "reason", "metric", "score", "split", "num_examples", "chosen"),
        *("num_trainable", "num_parameters", "train_seconds", "training", "inference", "peak_memory_bytes"),
        *("coverage", "versions", "device", "threads", "created_at"),
        *(
            "backbone",
            "adapters",
            "head",
            "task",
            "seed",
            "weights",
            "unpublished",
            "sources",
            "superseded",
            "teachers",
            "shared",
            "higher_is_better",
            "stopped",
            "rungs",
            "work",
            "after_seconds",
        ),
    ]
    assert {row["status"] for row in rows} == {"ok", "failed", "refused"}
    assert all(list(row) == columns for row in rows)
    found = json.loads(zoo("report", mixed.out, "--format", "json").out)
    assert list(found) == ["rows", "failures", "remarks", "effort"]
    assert list(found["failures"][0]) == ["spec", "task", "status", "reason", "seeds"]


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def examples() -> dict[str, list[list[str]]]:
    """The words of each example in `zoo COMMAND --help`."""
    found: dict[str, list[list[str]]] = {}
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "zoo_core.cli", command, "--help"], capture_output=True, text=True, check=True
        )
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("zoo ")]
        found[command] = [shlex.split(line)[1:] for line in lines]
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_of_the_command_itself(examples: dict[str, list[list[str]]], command: str) -> None:
    assert examples[command]
    assert all(words[0] == command for words in examples[command])


def test_help_names_every_option_once_with_a_word_on_it(zoo_here: Run) -> None:
    for command in COMMANDS:
        code, out, _ = zoo_here(command, "--help")
        assert code == 0
        options = re.findall(r"^  (?:-h, )?(--[a-z-]+)(.*(?:\n {10,}.*)*)", out, flags=re.MULTILINE)
        assert options
        for name, text in options:
            assert len(text.split()) > 1, (command, name)


def test_help_shows_the_default_of_each_option_of_the_budget(zoo_here: Run) -> None:
    for command in ("bench", "fit"):
        _, out, _ = zoo_here(command, "--help")
        text = " ".join(out.split())
        for each in fields(Budget):
            name = each.name.replace("_", "-")
            option = text.partition(f"--{name} ")[2].removeprefix(f"/ --no-{name} ").partition(" --")[0]
            assert f"[default: {WITHOUT.get(each.name, each.default)}]" in option, (command, each.name)


def test_help_of_bench_says_what_its_exit_code_means(zoo_here: Run) -> None:
    _, out, _ = zoo_here("bench", "--help")
    assert "The exit code is 1 if a trial failed" in " ".join(out.split())


@pytest.mark.slow
def test_examples_of_plan_fit_evaluate_predict_and_report_work(
    zoo_here: Run, examples: dict[str, list[list[str]]], tmp_path: Path
) -> None:
    """As they stand, in a folder that has what they name; trained for an epoch."""
    import numpy as np
    from PIL import Image

    (tmp_path / "my-suite.toml").write_text("tasks = ['digits']\nbackbones = ['starter/vit-nano']\n")
    for name in ("scan1.png", "scan2.png"):
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / name)
    for command in ("plan", "fit", "evaluate", "predict"):
        for words in examples[command]:
            budget = BUDGET if command == "fit" else ()
            code, out, err = zoo_here(*words, *budget)
            assert code == 0, (words, err)
            assert out
    (tmp_path / "runs" / "starter").mkdir()
    (tmp_path / "runs" / "my-digits" / "results.jsonl").rename(tmp_path / "runs" / "starter" / "results.jsonl")
    for words in examples["report"]:
        code, out, err = zoo_here(*words)
        assert (code, "starter/vit-nano" in out) == (0, True), (words, err)


@pytest.mark.slow
def test_examples_of_bench_work(zoo: Zoo, examples: dict[str, list[list[str]]]) -> None:
    """Trained for an epoch at one rate; the starter suite itself runs in `make bench`."""
    for number, words in enumerate(examples["bench"]):
        done = zoo(*words, *BUDGET, "--seeds", "1", "--out", f"out{number}")
        assert done.code == 0, done.err
        assert "failed" not in done.err
        assert "starter/vit-nano" in done.out


# --- progress --------------------------------------------------------------------------------------------------------


def on_a_terminal(zoo: Zoo, *words: str, **variables: str) -> tuple[int, str]:
    """Exit code and everything that the command wrote to a terminal on its standard error."""
    ours, theirs = pty.openpty()
    environment = {**zoo.variables(), "TERM": "xterm-256color", "COLUMNS": "160", **variables}
    process = subprocess.Popen(
        zoo.command(*words),
        cwd=zoo.cwd,
        env={name: value for name, value in environment.items() if value},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not read:
            break
        written += read
    os.close(ours)
    return process.wait(), written.decode()


TRAINING = ("--epochs", "20", "--num-rates", "1", "--device", "cpu", "--batch-size", "4")


@pytest.mark.slow
def test_a_bench_on_a_terminal_shows_bar_counts_rate_and_time_left(zoo: Zoo) -> None:
    words = ("--task", "thirds", "--backbones", "nasty/tokens", "--adapters", "full,norm", "--seeds", "1")
    code, shown = on_a_terminal(zoo, "bench", *words, *TRAINING, "--workers", "1", "--out", "out", NO_COLOR="1")
    assert code == 0, shown
    assert "bench -> out" in shown
    assert "━" in shown
    assert "0/2" in shown
    assert "2/2" in shown
    assert re.search(r"nasty/tokens\+full\+linear seed 0 \d+ ex/s", shown)
    assert re.search(r"left 0:00:\d\d", shown)
    assert "[1/2] nasty/tokens" in shown
    assert COLOUR.search(shown) is None


@pytest.mark.parametrize("no_color", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_fit_on_a_terminal_shows_bar_counts_rate_and_time_left_in_colour(zoo: Zoo, no_color: str) -> None:
    words = ("fit", "nasty/tokens+full", "--task", "thirds", *TRAINING, "--out", "out")
    code, shown = on_a_terminal(zoo, *words, NO_COLOR=no_color)
    assert code == 0, shown
    assert "nasty/tokens+full" in shown
    assert "━" in shown
    assert re.search(r"\d+/160", shown)
    assert re.search(r"steps, \d+ examples/s, loss \d\.\d{3}, left", shown)
    assert re.search(r"left (\x1b\[\d+m)?0:00:\d\d", shown)
    assert (COLOUR.search(shown) is None) == bool(no_color)  # an empty NO_COLOR asks for nothing
