"""`zoo fit` and `zoo evaluate`: what they tell, and one line for what cannot be done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, told
from zoo_core import api
from zoo_core.cli import data, models
from zoo_core.plan import resolve as resolving

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
    features, fits = err[:3], err[3:]
    assert [line.partition(" examples,")[0] for line in features] == [
        f"features of {num} of {num}" for num in (20, 300, 600)
    ]
    assert [line.partition(":")[0] for line in fits] == [f"learning rate {number} of 3" for number in (1, 2, 3)]
    assert all("2 of 2 steps" in line and "examples/s, loss" in line for line in fits)


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_fit_resolves_its_spec_and_its_task_once(
    zoo_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    calls: list[str] = []
    for module, name in ((models, "resolve"), (api, "resolve"), (data, "bind_task"), (resolving, "bind_task")):
        real = getattr(module, name)

        def counted(*given: Any, name: str = name, real: Callable[..., Any] = real, **named: Any) -> Any:
            calls.append(name)
            return real(*given, **named)

        monkeypatch.setattr(module, name, counted)
    words = ("--task", "digits(shots=1)", "--out", tmp_path / "run", "--device", "cpu", *flags)
    assert zoo_here("fit", "starter/convnet-nano+ncm", *words)[0] == 0
    assert sorted(calls) == ["bind_task", "resolve"]


@pytest.mark.parametrize(
    ("flags", "passes"),
    [
        (
            ("--micro-batch", "3", "--batch-size", "10", "--checkpoint-activations"),
            "3 examples in a pass, 10 in a step",
        ),
        (("--batch-size", "auto"), " examples in a pass, 32 in a step"),
    ],
)
def test_a_fit_that_saves_memory_says_how_and_is_the_same_trial(
    zoo_here: Run, tmp_path: Path, flags: tuple[str, ...], passes: str
) -> None:
    words = ("--task", "digits(shots=2)", "--epochs", "1", "--num-rates", "1", "--device", "cpu")
    code, out, _ = zoo_here("fit", "starter/vit-nano+bitfit", *words, *flags, "--out", tmp_path / "run")
    assert code == 0
    assert passes in out
    row = json.loads((tmp_path / "run" / "results.jsonl").read_text())
    assert row["chosen"]["micro_batch"] >= 1
    plan = "starter/vit-nano+bitfit+linear task=digits(shots=2)"
    batch = " batch_size=10" if "10" in flags else ""
    assert row["trial"] == f"{plan} epochs=1{batch} num_rates=1 keep=best seed=0"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--micro-batch", "0"), "--micro-batch 0: allowed: 1 or more, or auto"),
        (("--micro-batch", "few"), "'few' is neither a whole number nor auto"),
        (("--batch-size", "few"), "'few' is neither a whole number nor auto"),
        (("--batch-size", "1"), "batch_size=1 is out of range"),
    ],
)
def test_a_size_of_batch_that_cannot_be_is_told(
    zoo_here: Run, tmp_path: Path, flags: tuple[str, ...], reason: str
) -> None:
    told(zoo_here("fit", "starter/vit-nano", "--task", "digits", "--out", tmp_path / "run", *flags), 2, reason)
    assert not (tmp_path / "run").exists()


def test_a_fit_into_an_existing_run_is_refused(zoo_here: Run, folders: dict[str, Path]) -> None:
    before = {path.name: path.read_bytes() for path in folders["classes"].iterdir()}
    shown = zoo_here("fit", "starter/vit-nano", "--task", "digits", "--out", folders["classes"], "--device", "cpu")
    told(shown, 2, "already holds a run", "give --out a new folder")
    assert {path.name: path.read_bytes() for path in folders["classes"].iterdir()} == before


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("starter/vit-nan", "--task", "digits"), 3, "did you mean starter/vit-nano"),
        (("starter/vit-nano+nobody-has-this", "--task", "digits"), 3, "no plugin provides"),
        (("starter/vit-nano+linear+mlp", "--task", "digits"), 2, "two heads, linear and mlp"),
        (("starter/vit-nano", "--task", "diabetes"), 6, "reads image and task diabetes is table"),
        (("starter/mlp-nano", "--task", "diabetes"), 6, "write 'starter/mlp-nano(weights=random)'"),
        (("starter/vit-nano+partial(n=9)", "--task", "digits"), 6, "the backbone has 4 stages"),
        (("starter/vit-nano", "--task", "digits(shots=400)"), 6, "shots=400, and class"),
        (("starter/vit-nano", "--task", "digits", "--epochs", "0"), 2, "epochs=0 is out of range"),
        (("starter/vit-nano", "--task", "digits", "--epochs", "many"), 2, "'many' is not a valid integer"),
        (
            ("starter/vit-nano", "--task", "digits", "--augment", "mirror"),
            3,
            "no plugin provides an augmentation 'mirror'",
        ),
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
    for kind, metric in (
        ("classes", "accuracy"),
        ("multilabel", "average_precision"),
        ("regression", "mean_absolute_error"),
    ):
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
    told(zoo_here("evaluate", folders["classes"], "--split", "whole"), 2, "'whole' is not one of")


def test_the_folder_of_a_bench_holds_no_model_and_says_so(zoo_here: Run, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("")
    for words in (("evaluate", tmp_path), ("predict", tmp_path, "a.png")):
        told(zoo_here(*words), 3, "the folder of a bench", "not models", "`zoo fit SPEC --task T --out DIR` makes one")
