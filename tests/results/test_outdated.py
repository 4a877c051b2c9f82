"""Results count for as long as what they were made from is the same; else their trials run again, and that is told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.conftest import Zoo
from zoo_core.benchmark import trial
from zoo_core.benchmark.grid import Grid, Suite, suite_from
from zoo_core.benchmark.provenance import provenance
from zoo_core.benchmark.runner import _supersede, open_grid
from zoo_core.benchmark.workers import attempt
from zoo_core.errors import IntegrityError, NotFoundError
from zoo_core.lock import lock_of, write_lock
from zoo_core.plan.plan import Budget
from zoo_core.registry.local_plugins import add_plugin
from zoo_core.registry.registry import registry
from zoo_core.results.outdated import OTHER, standing_of
from zoo_core.results.store import Result, append, read
from zoo_core.run_layout import UNDECIDED

BEFORE = Path(__file__).parents[1] / "stored" / "894e433"  # what zoo-core of that commit stored
MLP = "starter/mlp-nano(weights=random)"
PLUGIN = '''
    """An adapter and a backbone whose files lie where arguments of their own say, and one that names other parts."""

    from dataclasses import dataclass
    from pathlib import Path
    from typing import ClassVar

    from zoo_core import Spec
    from zoo_core.contracts import Source

    RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


    @dataclass(frozen=True, kw_only=True)
    class Guided:
        """Follows what lies in a folder."""

        guide: str
        first: str = ""
        second: str = ""

        version: ClassVar[int] = 1
        changes: ClassVar[frozenset[str]] = frozenset({"objective"})
        mergeable: ClassVar[bool] = True
        learning_rates: ClassVar[tuple[float, ...]] = RATES

        def first_stage(self, num_stages):
            return num_stages

        def source(self):
            return Source(folder=self.guide, patterns=("*.bin", "run.json", "delta.safetensors"))

        def apply(self, learner, context):
            return learner


    @dataclass(frozen=True, kw_only=True)
    class Taught(Guided):
        """Names its teacher by a spec."""

        guide: str = "unused"
        teacher: Spec

        def source(self):
            return None

'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a cache of its own, a table, a folder of pictures' stand-ins, and the plugin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    shutil.copy(BEFORE / "points.csv", tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.bin").write_text(f"a of {name}")
        (tmp_path / name / "b.bin").write_text(f"b of {name}")
    (tmp_path / "guided.py").write_text(dedent(PLUGIN))
    registry.cache_clear()
    add_plugin("guided.py")
    yield tmp_path
    registry.cache_clear()


def opened(out: str = "out", **changes: Any) -> Grid:
    table = {"tasks": ['csv(path="points.csv")'], "backbones": [MLP], "seeds": 1} | changes
    return open_grid(suite_from(table, name="x"), Path(out))


def digests(**changes: Any) -> list[str | None]:
    return [plan.digest for plan in opened(**changes).plans]


def stored(grid: Grid, out: str = "out") -> list[Result]:
    """As if every trial of a grid had run; what its folder holds."""
    Path(out).mkdir(exist_ok=True)
    _supersede(grid, Path(out))
    for plan in grid.plans:
        append(
            Path(out, "results.jsonl"),
            replace(provenance(plan, device="cpu", threads=1), status="ok", score=0.5, reason=None),
        )
    return rows(out)


def rows(out: str = "out") -> list[Result]:
    return read(Path(out, "results.jsonl"))


def edit(path: Path | str) -> None:
    """Another content of the same size, with the times of before."""
    file = Path(path)
    stat, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", ["points.csv", "one/a.bin", "one/b.bin"])
def test_an_edit_of_whatever_is_read_is_another_trial(here: Path, changed: str) -> None:
    before = digests(adapters=["guided(guide=one)"])
    assert digests(adapters=["guided(guide=one)"]) == before  # the check can pass
    edit(changed)
    assert digests(adapters=["guided(guide=one)"]) != before
    edit(changed)
    assert digests(adapters=["guided(guide=one)"]) == before


def test_a_new_file_and_a_removed_one_are_another_trial(here: Path) -> None:
    before = digests(adapters=["guided(guide=one)"])
    (here / "one" / "c.bin").write_text("new")
    after = digests(adapters=["guided(guide=one)"])
    (here / "one" / "c.bin").unlink()
    assert after != before == digests(adapters=["guided(guide=one)"])
    (here / "one" / "a.bin").unlink()
    assert digests(adapters=["guided(guide=one)"]) not in (before, after)


def test_what_lies_behind_links_to_folders_counts_too(here: Path) -> None:
    (here / "store").mkdir()
    (here / "store" / "deep.bin").write_text("deep down")
    (here / "one" / "linked").symlink_to(here / "store")
    (here / "one" / "circle").symlink_to(here / "one")
    before = digests(adapters=["guided(guide=one)"])
    edit("store/deep.bin")
    assert digests(adapters=["guided(guide=one)"]) != before


def test_what_no_recipe_reads_and_times_do_not_count(here: Path) -> None:
    before = digests(adapters=["guided(guide=one)"])
    (here / "one" / "notes.txt").write_text("nobody reads them")
    os.utime("points.csv")
    os.utime("one/a.bin")
    assert digests(adapters=["guided(guide=one)"]) == before


def test_two_folders_are_two_trials_whatever_the_argument_is_called(here: Path) -> None:
    grid = opened(adapters=["guided(guide=one)", "guided(guide=two)", "guided(guide=one)+guided(guide=two)"])
    assert (len({plan.digest for plan in grid.plans}), grid.refusals) == (3, ())
    keys = [key for key in grid.plans[2].pins if key.startswith("adapter")]
    assert keys == ["adapter:guided(guide=one)", "adapter:guided(guide=two)"]


def test_where_a_folder_lies_is_no_part_of_a_trial(here: Path) -> None:
    before = digests(adapters=["guided(guide=one)"])
    shutil.move("one", "elsewhere")
    assert digests(adapters=["guided(guide=elsewhere)"]) == before


def test_an_argument_that_only_looks_like_a_place_counts(here: Path) -> None:
    """A file among others, and a word that is called as the folder."""
    shutil.copytree("one", "three")
    adapters = ['guided(first="one/a.bin",guide=one,second="one/b.bin")']
    adapters += ['guided(first="one/b.bin",guide=one,second="one/a.bin")']
    adapters += ["guided(first=one,guide=one)", "guided(first=three,guide=three)", "guided(first=one,guide=three)"]
    assert len(set(digests(adapters=adapters))) == 5


def test_what_an_argument_names_by_a_spec_is_part_of_the_trial(here: Path) -> None:
    shutil.copytree(BEFORE / "first", "first")
    adapter = 'taught(teacher="run(path=first)")'
    (plan,) = opened(adapters=[adapter]).plans
    assert [part.name for part in plan.inner] == ["run"]
    assert "backbone:run(path=first)" in plan.contents
    edit("first/delta.safetensors")
    assert digests(adapters=[adapter]) != [plan.digest]


def test_a_run_below_a_run_counts_too(here: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(BEFORE / name, name)
    suite: dict[str, Any] = {"tasks": ["digits"], "backbones": ["starter/vit-nano", "run(path=second)"]}
    assert not opened(**suite).refusals
    edit("first/delta.safetensors")
    (refusal,) = opened(**suite).refusals
    assert "second was fitted on first, whose delta.safetensors is not what it was" in refusal.reason
    shutil.rmtree("first")
    (refusal,) = opened(**suite).refusals
    assert "put it back" in refusal.reason


def test_the_runs_own_lock_pins_no_folder(here: Path) -> None:
    before = stored(opened())
    edit("points.csv")
    assert opened().plans[0].digest != before[0].digest


def test_a_users_lock_holds_and_is_compared_with_what_is_there(here: Path) -> None:
    grid = opened()
    lock = here / "mine.lock"
    write_lock(lock, lock_of(grid.plans[0].parts, grid.plans[0].pins))
    suite = suite_from({"tasks": ['csv(path="points.csv")'], "backbones": [MLP], "seeds": 1}, name="x")
    for frozen in (False, True):
        assert open_grid(suite, here / "out", lock=lock, frozen=frozen).plans[0].digest == grid.plans[0].digest
    edit("points.csv")
    with pytest.raises(IntegrityError, match=r"points\.csv in \. is not what the lock pins"):
        open_grid(suite, here / "out", lock=lock, frozen=True)
    with pytest.raises(Exception, match=r"points\.csv in \. is not what the lock pins"):
        open_grid(suite, here / "out", lock=lock)
    with pytest.raises(NotFoundError, match="not in the lock"):
        open_grid(suite, here / "out", frozen=True)


def test_a_users_lock_holds_however_the_path_is_written(here: Path) -> None:
    grid = opened()
    lock = here / "mine.lock"
    write_lock(lock, lock_of(grid.plans[0].parts, grid.plans[0].pins))
    shutil.copy("points.csv", "others.csv")
    edit("points.csv")
    for text in ("points.csv", "./points.csv", str(here / "points.csv")):
        suite = suite_from({"tasks": [f'csv(path="{text}")'], "backbones": [MLP], "seeds": 1}, name="x")
        with pytest.raises(Exception, match=r"points\.csv in .* is not what the lock pins"):
            open_grid(suite, here / "out", lock=lock)
    suite = suite_from({"tasks": ["others.csv"], "backbones": [MLP], "seeds": 1}, name="x")
    assert open_grid(suite, here / "out", lock=lock).plans  # of which the lock says nothing


# --- marks -----------------------------------------------------------------------------------------------------------


def test_rows_of_other_content_are_superseded_and_stand_again_when_it_is_back(here: Path) -> None:
    grid = opened(adapters=["guided(guide=one)", "guided(guide=two)"])
    assert [row.superseded for row in stored(grid)] == [None, None]
    untouched = Path("out/results.jsonl").read_bytes()
    assert _supersede(opened(adapters=["guided(guide=one)"]), Path("out")) == 0
    assert Path("out/results.jsonl").read_bytes() == untouched
    edit("one/a.bin")
    assert _supersede(opened(adapters=["guided(guide=one)"]), Path("out")) == 1
    told = "adapter:guided(guide=one) holds something else now"
    assert [row.superseded for row in rows()] == [told, None]
    edit("points.csv")  # what both were made from
    assert _supersede(opened(adapters=["guided(guide=one)"]), Path("out")) == 1
    assert None not in [row.superseded for row in rows()]
    edit("points.csv")
    edit("one/a.bin")
    _supersede(opened(adapters=["guided(guide=one)"]), Path("out"))
    assert [row.superseded for row in rows()] == [None, None]


def test_the_same_text_with_other_parts_is_superseded_and_stays_so(here: Path) -> None:
    grid = opened()
    (row,) = stored(grid)
    append(Path("out/results.jsonl"), replace(row, digest="another", sources={}))
    _supersede(grid, Path("out"))
    assert [row.superseded for row in rows()] == [None, OTHER]
    _supersede(opened(adapters=["full"]), Path("out"))  # which knows nothing of that trial
    assert [row.superseded for row in rows()] == [None, OTHER]


def test_a_refusal_that_holds_no_more_is_superseded(here: Path) -> None:
    grid = opened()
    (row,) = stored(grid)
    text = row.trial
    append(Path("out/results.jsonl"), replace(row, digest=f"refused: {text}", status="refused", score=None))
    _supersede(grid, Path("out"))
    assert [row.superseded for row in rows()] == [None, OTHER]


# --- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_tells_what_has_changed_and_what_is_gone(here: Path) -> None:
    stored(opened(adapters=["guided(guide=one)", "guided(guide=two)"]))
    assert standing_of(Path("out")).remarks == ()
    edit("one/a.bin")
    shutil.rmtree("two")
    found = standing_of(Path("out"))
    assert found.outdated == {rows()[0].digest}
    assert len(found.rows) == 2
    assert [remark.split(":")[0] for remark in found.remarks] == [
        "1 result is out of date, as seen from this folder",
        "1 result is no longer checkable",
    ]
    _supersede(opened(adapters=["guided(guide=one)"]), Path("out"))
    found = standing_of(Path("out"))
    assert (len(found.rows), found.outdated) == (1, frozenset())
    assert found.remarks[0].startswith("1 result is superseded and left out: adapter:guided(guide=one)")


def test_a_report_tells_what_waits_at_a_rung_and_what_begins_anew(here: Path) -> None:
    grid = opened(seeds=3, budget={"epochs": 8, "halving": True})
    Path("out").mkdir()
    _supersede(grid, Path("out"))
    for plan, num in zip(grid.plans, (1, 2, 3), strict=True):
        rungs = [{"epochs": epochs, "score": 0.5, "learning_rate": 0.1} for epochs in (1, 2, 4)[:num]]
        row = replace(provenance(plan, device="cpu", threads=1), status="ok" if num == 3 else "stopped", rungs=rungs)
        append(Path("out", UNDECIDED), row)
    (remark,) = standing_of(Path("out")).remarks
    assert remark.startswith("3 trials wait until halving decides: 1 after 1 epoch, 1 after 2 epochs, 1 on shared ")
    assert remark.endswith("; the same `zoo bench`, with --out out, goes on with them")
    append(Path("out/results.jsonl"), replace(provenance(grid.plans[0], device="cpu", threads=1), score=0.5))
    edit("points.csv")
    assert "2 trials that waited at a rung begin anew" in standing_of(Path("out")).remarks[-1]
    Path("out", UNDECIDED).write_text("{}\n")
    assert "begins anew with what had waited there" in standing_of(Path("out")).remarks[-1]


def test_results_of_nothing_local_are_looked_at_no_further(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(open_grid(suite_from({"tasks": ["digits"], "backbones": ["starter/vit-nano"]}, name="x"), Path("out")))
    monkeypatch.delattr("zoo_core.results.outdated.look")
    assert (len(standing_of(Path("out")).rows), standing_of(Path("out")).remarks) == (3, ())


def test_an_edit_while_a_trial_runs_leaves_no_result(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = opened(budget={"epochs": 1, "num_rates": 1}).plans
    assert attempt(plan, device="cpu").status == "ok"
    choose = trial.choose

    def edited(*arguments: Any, **named: Any) -> Any:
        edit("points.csv")
        return choose(*arguments, **named)

    monkeypatch.setattr(trial, "choose", edited)
    found = attempt(plan, device="cpu")
    assert (found.status, found.score) == ("failed", None)
    assert "has changed while the trial ran" in (found.reason or "")


def test_a_report_tells_of_plugin_files(here: Path) -> None:
    stored(opened(adapters=["guided(guide=one)"]))
    registry.cache_clear()
    assert [remark.split(": ", 1)[1] for remark in standing_of(Path("out")).remarks] == [
        "the plugin file guided.py was not given: --plugin guided.py"
    ]
    edit("one/a.bin")  # which the lock tells of, without the plugin
    assert len(standing_of(Path("out")).outdated) == 1
    edit("one/a.bin")
    (here / "guided.py").write_text((here / "guided.py").read_text() + "\n# another state\n")
    add_plugin("guided.py")
    assert "the plugin file guided.py holds something else now" in standing_of(Path("out")).remarks[0]


# --- what was stored before ------------------------------------------------------------------------------------------


@pytest.fixture
def before(here: Path) -> Path:
    shutil.copytree(BEFORE, here, dirs_exist_ok=True)
    return here


def test_rows_of_before_are_current_while_their_files_are_the_same(before: Path) -> None:
    suite = Suite(
        name="bench",
        tasks=('csv(path="./points.csv")',),
        backbones=(MLP,),
        adapters=("probe", "full"),
        seeds=(0, 1),
        budget=Budget(epochs=3),
    )
    assert standing_of(Path("bench")).remarks == ()
    grid = open_grid(suite, Path("bench"))
    assert {plan.digest for plan in grid.plans} == {row.digest for row in rows("bench")}
    assert _supersede(grid, Path("bench")) == 0
    assert [row.sources for row in rows("bench")] == [grid.plans[0].contents] * 4
    edit("points.csv")
    assert len(standing_of(Path("bench")).outdated) == 4
    grid = open_grid(suite, Path("bench"))
    assert not {plan.digest for plan in grid.plans} & {row.digest for row in rows("bench")}
    assert _supersede(grid, Path("bench")) == 4


def test_rows_of_before_on_a_run_are_told_by_the_key_of_before(before: Path) -> None:
    assert "backbone:run(first)" in json.loads(Path("onrun/zoo.lock").read_text())["parts"]
    assert standing_of(Path("onrun")).remarks == ()
    edit("first/delta.safetensors")
    assert (
        standing_of(Path("onrun"))
        .remarks[0]
        .startswith("1 result is out of date, as seen from this folder: backbone:run(first)")
    )


def test_rows_of_before_without_their_lock_are_not_checkable(before: Path) -> None:
    Path("bench/zoo.lock").unlink()
    (remark,) = standing_of(Path("bench")).remarks
    assert remark.startswith("4 results are no longer checkable: it was stored by an earlier version")


def test_runs_of_before_load(before: Path) -> None:
    import zoo_core

    for name in ("first", "second"):
        assert zoo_core.load_run(name).target.size == 10
    shutil.copytree("first", "moved/first")
    shutil.move("second", "moved/second")
    shutil.rmtree("first")
    assert zoo_core.load_run("moved/second").target.size == 10


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_command_after_an_edit_gives_what_a_new_folder_gives(here: Path, zoo: Zoo) -> None:
    budget = ("--seeds", "1", "--epochs", "2", "--num-rates", "1")
    words = ("bench", "--task", "points.csv", "--backbones", MLP, "--adapters", "full", *budget, "--out")

    def score(out: str) -> float | None:
        done = zoo(*words, out, "--format", "json")
        return float(json.loads(done.out)["rows"][0]["score"]["mean"])

    score("out")
    text = Path("points.csv").read_text()
    head, *lines = text.splitlines()
    flipped = [line[:-1] + ("n" if line[-1] == "p" else "p") if i % 3 else line for i, line in enumerate(lines)]
    Path("points.csv").write_text("\n".join([head, *flipped]))
    assert score("out") == score("fresh")
    report = zoo("report", "out").out
    assert "1 result is superseded and left out" in report
