"""What was stored or typed while target kinds were called labels and values: it is read, and counts as done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoo_core
from zoo_core.benchmark.grid import suite_from
from zoo_core.benchmark.runner import RunEvent, open_grid, run_grid
from zoo_core.contracts import TARGET_KINDS, Target
from zoo_core.contracts.old_words import OLD_WORDS, current_text
from zoo_core.files.fetch import pin_plan
from zoo_core.lock import read_lock
from zoo_core.registry.registry import registry
from zoo_core.results.outdated import standing_of
from zoo_core.results.report import render
from zoo_core.results.store import read
from zoo_core.runs.stored_run import read_run

STORED = Path(__file__).parents[1] / "stored" / "bc431e9"  # what zoo-core of that commit stored, but for a delta
MLP = "starter/mlp-nano(weights=random)"
VALUES = 'csv(kind=values,path="values.csv",target=price)'
LABELS = 'csv(kind=labels,path="values.csv",target=tags)'
DIGESTS = {  # as zoo-core of that commit computed them
    (f"{MLP}+full", VALUES): "95df0830760842e2e2678f5b6d1c7604",
    (f"{MLP}+full", LABELS): "2d7963de0ee09491cd428db3fca70d35",
    ("starter/convnet-nano+full", "digits-attributes"): "d8a3c9fb632b96355c620da99fb3fe53",
    (f"{MLP}+full", "diabetes"): "3026a57ca4919dfa4ed7c1b3e9585459",
}


@pytest.fixture(autouse=True)
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory that holds what was stored, with a cache of its own."""
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    registry.cache_clear()
    yield tmp_path
    registry.cache_clear()


def today(text: str) -> str:
    """A task's text in the words of today."""
    for old, new in OLD_WORDS.items():
        text = text.replace(f"kind={old}", f"kind={new}")
    return text


@pytest.mark.parametrize(("spec", "task"), DIGESTS)
def test_digests_are_those_of_the_old_words(spec: str, task: str) -> None:
    plans = [pin_plan(zoo_core.resolve(spec, task=text)) for text in (task, today(task))]
    assert [plan.digest for plan in plans] == [DIGESTS[spec, task]] * 2
    assert plans[0].trial == plans[1].trial


def test_a_digest_tells_the_target_kinds_apart() -> None:
    tasks = [f'csv(kind={kind},path="values.csv",target=a)' for kind in ("classes", "multilabel", "regression")]
    assert len({pin_plan(zoo_core.resolve(MLP, task=task)).digest for task in tasks}) == 3


def test_a_stored_bench_is_done_and_reported_as_one() -> None:
    tasks = [today(VALUES), today(LABELS), LABELS.replace("path", "shots=2,path")]
    table = {"tasks": tasks, "backbones": [MLP], "adapters": ["probe"], "seeds": 1, "budget": {"epochs": 1}}
    grid = open_grid(suite_from(table, name="bench"), Path("bench"))
    events: list[RunEvent] = []
    results = run_grid(grid, Path("bench"), num_workers=1, watch=events.append)
    assert [(event.done, event.total, event.superseded) for event in events] == [(2, 2, 0)], "nothing runs again"
    assert sorted((result.task, result.status) for result in results) == [
        ("csv(kind=multilabel,path=values.csv,shots=2,target=tags)", "refused"),
        ("csv(kind=multilabel,path=values.csv,target=tags)", "ok"),
        ("csv(kind=regression,path=values.csv,target=price)", "ok"),
    ]
    assert len({row.digest for row in read(Path("bench/results.jsonl"))}) == 3, "a refusal in both words is one"
    standing = standing_of(Path("bench"))
    assert (standing.remarks, standing.outdated) == ((), frozenset())
    assert "kind=values" not in render(standing.rows, width=300)


def test_a_lock_with_the_old_words_pins_the_same_part() -> None:
    lock = read_lock(Path("bench/zoo.lock"))
    assert lock is not None
    assert {key for key in lock["parts"] if key.startswith("task:")} == {
        "task:csv(kind=multilabel,path=values.csv,target=tags)",
        "task:csv(kind=regression,path=values.csv,target=price)",
    }


def test_a_stored_fit_loads_with_the_target_of_today() -> None:
    run = read_run(Path("fit"))
    assert run.target == Target(kind="regression", names=("price",))
    assert str(run.plan.trial.task) == "csv(kind=regression,path=values.csv,target=price)"
    assert '"kind": "values"' in Path("fit/run.json").read_text(encoding="utf-8"), "else this shows nothing"


def test_a_target_that_is_made_in_python_takes_both_words() -> None:
    for old, new in OLD_WORDS.items():
        assert new in TARGET_KINDS
        assert Target(kind=old, size=2) == Target(kind=new, size=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored", "read_as"),
    [
        ("csv(kind=values,path=a.csv)", "csv(kind=regression,path=a.csv)"),
        ("csv(kind=labels)", "csv(kind=multilabel)"),
        ("spec task=csv(path=a,kind=labels) seed=0", "spec task=csv(path=a,kind=multilabel) seed=0"),
        ("csv(kind=classes,target=values)", "csv(kind=classes,target=values)"),
        ('csv(path="(kind=values)")', 'csv(path="(kind=values)")'),
        ('csv(path="a\\"(kind=values)",kind=values)', 'csv(path="a\\"(kind=values)",kind=regression)'),
        ("csv(kind=valuesque)", "csv(kind=valuesque)"),
    ],
)
def test_only_the_argument_kind_changes_in_a_stored_text(stored: str, read_as: str) -> None:
    assert current_text(stored) == read_as
