"""`zoo plan`: what a spec or a suite would build, with a stable schema, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run

KEYS = [
    *(
        "trial",
        "spec",
        "unpublished",
        "task",
        "target",
        "weights",
        "backbone_parameters",
        "num_stages",
        "first_stage",
        "learning_rates",
    ),
    *("parts", "teachers", "files", "deferred", "base_digest", "digest"),
]
SUITE = """
tasks = ["digits(shots=2)", "diabetes"]
backbones = ["starter/vit-nano", "starter/mlp-nano(weights=random)"]
adapters = ["probe", "partial(n=4)", "probe+ncm"]
seeds = 2
"""
UNLISTED = '''
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True, kw_only=True)
class Unlisted:
    """A backbone that no catalogue describes."""

    version: ClassVar[int] = 1

    def source(self):
        return None

    def build(self, files, weights):
        raise AssertionError("a plan builds nothing")
'''


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    return path


def test_a_plan_says_what_is_built_and_trained(zoo_here: Run) -> None:
    code, out, err = zoo_here("plan", "starter/vit-nano+partial(n=2)", "--task", "digits(shots=10)", "--seed", "3")
    assert (code, err) == (0, [])
    shown = dict(line.split(":", 1) for line in out.splitlines())
    assert list(shown) == [key for key in KEYS if key not in ("unpublished", "teachers")]  # nothing is
    assert shown["trial"].strip() == "starter/vit-nano+partial(n=2)+linear task=digits(shots=10) keep=best seed=3"
    assert shown["target"].strip() == "classes, 10 outputs"
    assert (shown["weights"].strip(), shown["backbone_parameters"].strip()) == ("pretrained", "448,632")
    assert shown["first_stage"].strip() == "2"
    assert shown["deferred"].strip() == "none"
    assert "partial (adapter, zoo-adapters" in shown["parts"]


def test_the_schema_of_a_plan_is_stable(zoo_here: Run) -> None:
    code, out, _ = zoo_here("plan", "starter/vit-nano", "--task", "digits", "--json")
    found = json.loads(out)
    assert (code, list(found)) == (0, ["plans", "groups", "refusals"])
    (plan,), (group,) = found["plans"], found["groups"]
    assert list(group) == ["group", "trials", "shares", "reason", "bytes", "done", "seconds"]
    assert list(plan) == KEYS
    assert list(plan["target"]) == ["kind", "size", "names"]
    assert [list(part) for part in plan["parts"]] == [["name", "kind", "distribution", "version"]] * 3
    assert (plan["num_stages"], plan["first_stage"], len(plan["learning_rates"])) == (4, 4, 3)
    assert len(plan["digest"]) == len(plan["base_digest"]) == 32


def test_a_suite_lists_its_trials_and_its_refusals_with_reasons(zoo_here: Run, suite: Path) -> None:
    code, out, _ = zoo_here("plan", suite)
    assert code == 0
    lines = out.splitlines()
    assert sum(line.startswith("starter/") for line in lines) == 8
    ends = {line.partition(" task=")[0]: line.rpartition("  ")[2] for line in lines if line.startswith("starter/")}
    assert ends["starter/vit-nano+linear"] == "changes no stage, only the head"
    assert ends["starter/vit-nano+partial(n=4)+linear"] == "changes stages 1 to 4 of 4"
    assert "8 trials, 20 fits" in lines  # three rates each, one for the closed form
    refused = [line for line in lines if line.startswith("refused: ")]
    assert len(refused) == 24 - 8
    assert any("reads table and task digits is image" in line for line in refused)
    assert any("head ncm predicts classes and the target is regression" in line for line in refused)
    assert any("the backbone has 3 stages; allowed: 1 to 3" in line for line in refused)
    _, out, _ = zoo_here("plan", suite, "--json")
    found = json.loads(out)
    assert [len(found["plans"]), len(found["refusals"])] == [8, 16]
    assert {tuple(row) for row in found["refusals"]} == {("trial", "reason")}


@pytest.mark.slow
def test_a_suite_says_what_is_shared_and_what_a_run_has_done_of_it(zoo_here: Run, suite: Path, tmp_path: Path) -> None:
    suite.write_text(
        'tasks = ["digits(shots=2)"]\nbackbones = ["starter/convnet-nano"]\nseeds = 2\n'
        'adapters = ["probe", "probe+ncm", "partial(n=1)"]\nbudget.epochs = 1\n'
    )
    _, out, _ = zoo_here("plan", suite)
    shared, last = (line for line in out.splitlines() if line.startswith(("group ", "alone: ")))
    assert ": 4 trials, 0 done, seconds unknown; features of starter/convnet-nano on digits, " in shared
    assert ": 2 trials, 0 done, seconds unknown; states that enter the last stage of starter/convnet-nano on " in last
    assert zoo_here("bench", suite, "--out", tmp_path / "run", "--device", "cpu")[0] == 0
    _, out, _ = zoo_here("plan", suite, "--out", tmp_path / "run")
    shared, last = (line for line in out.splitlines() if line.startswith(("group ", "alone: ")))
    assert ": 4 trials, 4 done, about " in shared
    assert ": 2 trials, 2 done, about " in last
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert {(row["adapters"], row["head"]): row["shared"]["how"] for row in rows} == {
        ("probe", "linear"): "heads",
        ("probe", "ncm"): "features",
        ("partial", "linear"): "stages",
    }


def test_a_suite_says_which_cuts_share_a_pass(zoo_here: Run, suite: Path) -> None:
    suite.write_text(
        'tasks = ["digits"]\nadapters = ["probe"]\nbackbones = ["starter/vit-nano(until=1)", "starter/vit-nano"]\n'
    )
    _, out, _ = zoo_here("plan", suite)
    (line,) = (line for line in out.splitlines() if line.startswith(("group ", "alone: ")))
    assert ": 6 trials, 0 done, seconds unknown; features of starter/vit-nano in one pass with " in line
    assert line.endswith(" with starter/vit-nano(until=1) on digits, bytes unknown")


def test_a_suite_says_at_which_rungs_it_is_halved(zoo_here: Run, suite: Path) -> None:
    _, whole, _ = zoo_here("plan", suite)
    assert "halving" not in whole
    suite.write_text(suite.read_text() + "\n[budget]\nhalving = true\n")
    _, out, _ = zoo_here("plan", suite)
    assert "halving: after 3, 5, 10 of 20 epochs the better half goes on, by validation" in out.splitlines()
    assert "where they are faster together" in whole
    assert "where they are faster together" not in out
    assert any(
        line.startswith("alone: ") and line.endswith("; halving stops its trials one by one")
        for line in out.splitlines()
    )


def test_a_suite_says_where_stages_are_not_known(zoo_here: Run, tmp_path: Path) -> None:
    path, plugin = tmp_path / "mine.toml", tmp_path / "unlisted.py"
    plugin.write_text(UNLISTED)
    path.write_text('tasks = ["digits"]\nbackbones = ["unlisted"]\nadapters = ["probe", "full"]\nseeds = 1\n')
    code, out, _ = zoo_here("plan", path, "--plugin", plugin)
    assert (code, "None" in out) == (0, False)
    assert [line.split("  ")[1] for line in out.splitlines()[:2]] == ["stages not known before it is built"] * 2


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("starter/vit-nano",), 2, "zoo plan SPEC needs --task; `zoo list task` shows what there is"),
        (("starter/vit-nano", "--task", "digit"), 3, "did you mean digits"),
        (("starter/vit-nano", "--task", "diabetes"), 6, "reads image and task diabetes is table"),
        (("starter/vit-nano", "--task", "digits(shots=90)"), 6, "allowed: up to 89"),
        (("starter/vit-nano", "--task", "digits-attributes(shots=3)"), 6, "needs classes and the target is multilabel"),
        (("starter/vit-nano+linear+mlp", "--task", "digits"), 2, "two heads"),
        (("nothing.toml",), 3, "no suite file nothing.toml"),
        ((), 2, "Missing argument 'WHAT'"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(
    zoo_here: Run, words: tuple[str, ...], code: int, reason: str
) -> None:
    found, out, err = zoo_here("plan", *words)
    assert (found, out, len(err)) == (code, "", 1)
    assert reason in err[0]


def test_a_suite_brings_its_own_task_and_seed(zoo_here: Run, suite: Path) -> None:
    for words in (("--task", "digits"), ("--seed", "1")):
        code, _, err = zoo_here("plan", suite, *words)
        assert (code, len(err)) == (2, 1)
        assert "leave --task and --seed out" in err[0]


def test_a_plan_of_a_suite_needs_no_torch(suite: Path) -> None:
    program = (
        "import sys\nfrom zoo_core.cli import main\ncode = main(sys.argv[1:])\n"
        "sys.exit(code or int('torch' in sys.modules))"
    )
    for words in (["plan", str(suite)], ["plan", "starter/vit-nano+full", "--task", "digits"]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    loaded = f"import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n{program}"
    done = subprocess.run([sys.executable, "-c", loaded, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1  # so the check can fail


def test_a_plans_digest_is_that_of_its_result(zoo_here: Run, tmp_path: Path) -> None:
    words = ("starter/convnet-nano+probe+ncm", "--task", "digits(shots=1)", "--seed", "4")
    _, out, _ = zoo_here("plan", *words, "--json")
    assert zoo_here("fit", *words, "--out", tmp_path / "run", "--device", "cpu")[0] == 0
    result: dict[str, Any] = json.loads((tmp_path / "run" / "results.jsonl").read_text())
    (plan,) = json.loads(out)["plans"]
    assert (result["digest"], result["trial"]) == (plan["digest"], plan["trial"])
