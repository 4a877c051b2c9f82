"""Interrupted fits: they go on and end with the same bits; damaged and foreign states are told."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo_core
from zoo_core import contracts
from zoo_core.benchmark.candidates import Chosen
from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.trial import choose
from zoo_core.contracts import Context, Target, Weights
from zoo_core.errors import AccessError, DivergedError, IntegrityError, UsageError
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget, Plan
from zoo_core.run_layout import UNFINISHED
from zoo_core.runs.export import write_plain
from zoo_core.testing.recipes import ToyAdapter, ToyBackbones, ToyHint, ToyOpen, ToyTasks, toy_plan
from zoo_core.testing.toys import ToyBackbone
from zoo_core.training import snapshots
from zoo_core.training.snapshots import Snapshot, UnfinishedFit, standing

MAP = ToyBackbones(kind="map")  # with batch norms, whose statistics move in training
EPOCHS = 3
BUDGET = Budget(epochs=EPOCHS, batch_size=20, keep="best")  # three steps an epoch
RATES = (1e-3, 1e-2)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every snapshot is due."""
    monkeypatch.setattr(snapshots, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(snapshots, "SHARE", 0.0)


@dataclass(frozen=True, kw_only=True)
class Later(ToyAdapter):
    """The backbone joins in the middle of all steps, of an epoch too; what the objective trains does at the end."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        learner.delay(learner.backbone.parameters(), 0.5)
        if learner.objective is not None:
            learner.delay(learner.objective.parameters(), 0.8)
        return learner


@dataclass(frozen=True, kw_only=True)
class Halves(ToyAdapter):
    """Halves the head when training is over."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        @torch.no_grad()
        def halve(trained: contracts.Learner) -> None:
            for parameter in trained.head.parameters():
                parameter.mul_(0.5)

        learner.finishers.append(halve)
        return learner


def chosen_of(plan: Plan, unfinished: UnfinishedFit | None = None, stop: int | None = None) -> Chosen:
    """Fits the candidates; a Ctrl-C comes after so many steps, all candidates counted."""
    steps = 0

    def report(trial: TrialProgress) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    assert plan.task is not None
    data = plan.task.recipe.open(None)
    if unfinished is not None:
        unfinished.begin()
    device = torch.device("cpu")
    return choose(
        plan, data.splits["train"], data.splits["val"], data.target, device=device, report=report, unfinished=unfinished
    )


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def expect_equal(one: Chosen, other: Chosen) -> None:
    assert one.candidates == other.candidates
    assert one.best == other.best
    assert (one.fitted.losses, one.fitted.num_steps) == (other.fitted.losses, other.fitted.num_steps)
    assert (one.fitted.epoch, one.fitted.score) == (other.fitted.epoch, other.fitted.score)
    assert same(one.learner.delta(), other.learner.delta())


OPEN = (ToyOpen(), ToyHint())  # dropout is on, and a projector trains
CASES: dict[str, Callable[[], Plan]] = {
    "head": lambda: plan_of(),
    "dropout, projector": lambda: plan_of(*OPEN),
    "batch norms": lambda: plan_of(*OPEN, backbone=MAP),
    "random": lambda: plan_of(*OPEN, backbone=MAP, weights="random"),
    "phases": lambda: plan_of(*OPEN, Later(), budget=replace(BUDGET, epochs=3)),
    "finisher": lambda: plan_of(ToyOpen(), Halves()),
    "last": lambda: plan_of(*OPEN, budget=replace(BUDGET, keep="last")),
    "patience": lambda: plan_of(ToyOpen(), budget=replace(BUDGET, epochs=6, patience=1)),
    "augmented": lambda: plan_of(*OPEN, budget=replace(BUDGET, augment="light")),
}


def plan_of(*adapters: Any, **more: Any) -> Plan:
    task = ToyTasks(kind="regression", size=1)  # a score that tells any two models apart
    given: dict[str, Any] = {"task": task, "budget": BUDGET, "learning_rates": RATES}
    return toy_plan(*adapters, **(given | more))


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_fit_ends_with_the_bits_of_an_undisturbed_one(case: str, tmp_path: Path) -> None:
    plan = CASES[case]()
    undisturbed = chosen_of(plan)
    unfinished = UnfinishedFit(tmp_path / UNFINISHED, {"digest": "x"})
    with pytest.raises(KeyboardInterrupt):
        chosen_of(plan, unfinished, stop=8)  # in the third epoch of the first candidate
    assert standing(unfinished.folder) == "learning rate 1 of 2, after epoch 2"
    torch.rand(7)
    expect_equal(chosen_of(plan, UnfinishedFit(unfinished.folder, {"digest": "x"})), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_may_be_interrupted_at_every_step_and_again_and_again(case: str, tmp_path: Path) -> None:
    plan = CASES[case]()
    undisturbed = chosen_of(plan)
    for attempt in range(100):
        try:
            found = chosen_of(plan, UnfinishedFit(tmp_path / UNFINISHED, {}), stop=4 + attempt % 3)  # an epoch at most
        except KeyboardInterrupt:
            continue
        assert attempt > 2
        expect_equal(found, undisturbed)
        return
    pytest.fail("it never ends")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "batch norms" else pytest.mark.slow) for case in CASES]
)
def test_what_halving_leaves_ends_with_the_bits_that_it_has_without(case: str, tmp_path: Path) -> None:
    """At rungs after one, two and three of six epochs; interrupted now and then, too."""
    plan = CASES[case]()
    plan = replace(plan, budget=replace(plan.budget, epochs=6), learning_rates=(1e-4, 1e-3, 1e-2))
    halved = replace(plan, budget=replace(plan.budget, halving=True))
    found = chosen_of(halved)
    assert [row["epochs"] for row in found.rungs] == list(halved.budget.rungs) == [1, 2, 3]
    assert [row.get("stopped_after") for row in found.candidates].count(None) == 1
    rate = found.candidates[found.best]["learning_rate"]
    only = chosen_of(replace(plan, learning_rates=(rate,)))
    assert only.candidates == (found.candidates[found.best],)
    expect_equal(replace(found, candidates=only.candidates, best=0), only)
    for _ in range(100):
        try:
            again = chosen_of(halved, UnfinishedFit(tmp_path / UNFINISHED, {}), stop=14)
        except KeyboardInterrupt:
            continue
        expect_equal(again, found)
        return
    pytest.fail("it never ends")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    plan = plan_of(*OPEN)
    with pytest.raises(KeyboardInterrupt):
        chosen_of(plan, UnfinishedFit(tmp_path / UNFINISHED, {}), stop=14)  # 9 of the first candidate, 5 of the second
    assert standing(tmp_path / UNFINISHED) == "learning rate 2 of 2, after epoch 1"
    found = chosen_of(plan, UnfinishedFit(tmp_path / UNFINISHED, {}), stop=7)  # which never comes: 6 steps are left
    assert len(found.candidates) == 2
    assert standing(tmp_path / UNFINISHED) == "every learning rate is done"
    chosen_of(plan, UnfinishedFit(tmp_path / UNFINISHED, {}), stop=1)


def test_seconds_go_on_counting(tmp_path: Path) -> None:
    plan = plan_of(*OPEN)
    with pytest.raises(KeyboardInterrupt):
        chosen_of(plan, UnfinishedFit(tmp_path / UNFINISHED, {}), stop=14)
    (file,) = sorted((tmp_path / UNFINISHED).glob("*.json"))[-1:]
    table = json.loads(file.read_text())
    table["values"]["seconds"] += 1000
    table["values"]["fit"]["seconds"] += 500
    file.write_text(json.dumps(table))
    found = chosen_of(plan, UnfinishedFit(tmp_path / UNFINISHED, {}))
    assert 1000 < found.train_seconds < 1100
    assert found.candidates[found.best]["validation_score"] > 0 or True
    assert any(500 < x < 600 for x in (found.fitted.seconds,)) == (found.best == 0)


def test_a_fit_of_which_all_candidates_diverged_says_so_after_an_interruption_too(tmp_path: Path) -> None:
    plan = plan_of(ToyOpen(), learning_rates=(1e30, 1e31), budget=replace(BUDGET, clip=1e9))
    with pytest.raises(DivergedError) as told:
        chosen_of(plan, UnfinishedFit(tmp_path / UNFINISHED, {}))
    with pytest.raises(DivergedError) as again:
        chosen_of(plan, UnfinishedFit(tmp_path / UNFINISHED, {}), stop=1)
    assert str(told.value) == str(again.value)


# -- what is on disk ------------------------------------------------------------------------------------------------


def some(*values: float) -> dict[str, Tensor]:
    return {"x": torch.tensor(values), "alike": torch.tensor(values, dtype=torch.bfloat16)}


def kept(folder: Path, states: list[Snapshot], identity: Mapping[str, Any] | None = None) -> UnfinishedFit:
    unfinished = UnfinishedFit(folder, identity or {})
    unfinished.begin()
    for state in states:
        unfinished.save_if_due(lambda state=state: state)  # type: ignore[misc]
    return unfinished


def found_in(folder: Path, identity: Mapping[str, Any] | None = None) -> Snapshot | None:
    unfinished = UnfinishedFit(folder, identity or {})
    unfinished.begin()
    return unfinished.state


def test_the_last_two_states_stay_and_what_has_not_changed_is_written_once(tmp_path: Path) -> None:
    still = some(1, 2)
    states = [Snapshot(values={"n": n}, parts={"still": still, "moves": some(n)}) for n in range(4)]
    kept(tmp_path, states)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "000001-still.safetensors",
        "000003-moves.safetensors",
        "000003.json",
        "000004-moves.safetensors",
        "000004.json",
    ]
    state = found_in(tmp_path)
    assert state is not None
    assert state.values == {"n": 3}
    assert same(state.parts["still"], still)
    assert same(state.parts["moves"], some(3))
    kept(tmp_path, [Snapshot(values={"n": 5}, parts={"still": still})])
    assert (tmp_path / "000005.json").exists(), "numbers go on"


def test_a_part_read_from_disk_is_not_written_again(tmp_path: Path) -> None:
    kept(tmp_path, [Snapshot(values={}, parts={"still": some(1)})])
    unfinished = UnfinishedFit(tmp_path, {})
    unfinished.begin()
    assert unfinished.state is not None
    still = unfinished.state.parts["still"]
    unfinished.save_if_due(lambda: Snapshot(values={}, parts={"still": still}))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["000001-still.safetensors"]


def test_tensors_that_share_memory_are_stored(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    kept(
        tmp_path,
        [Snapshot(values={}, parts={"tied": {"one": whole, "two": whole, "turned": whole.T, "row": whole[1]}})],
    )
    state = found_in(tmp_path)
    assert state is not None
    expected = {"one": whole, "two": whole, "turned": whole.T, "row": whole[1]}
    assert same(state.parts["tied"], expected)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def write(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(text)


ELSEWHERE = {"file": "../a", "size": 1, "sha256": ""}
DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "truncated tensors": ("-moves.safetensors", cut),
    "a flipped bit": ("-moves.safetensors", flip),
    "missing tensors": ("-moves.safetensors", Path.unlink),
    "no bytes": ("-moves.safetensors", write("")),
    "truncated numbers": (".json", cut),
    "other numbers": (".json", write("[1]")),
    "a path": (
        ".json",
        write('{"format":1,"identity":{},"values":{},"parts":{"a":{"file":"../a","size":1,"sha256":""}}}'),
    ),
    "a deep list": (".json", write("[" * 100_000)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_passed_over_for_the_one_before_it(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, spoil = DAMAGE[damage]
    kept(tmp_path, [Snapshot(values={"n": n}, parts={"moves": some(n)}) for n in range(2)])
    spoil(tmp_path / f"000002{name}")
    state = found_in(tmp_path)
    assert state is not None
    assert state.values == {"n": 0}
    assert "going on from the state before it" in caplog.text
    kept(tmp_path, [Snapshot(values={"n": n}, parts={"moves": some(n)}) for n in (7, 8)])
    after = found_in(tmp_path)
    assert after is not None
    assert after.values == {"n": 8}


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_no_state_is_whole_it_is_refused(damage: str, tmp_path: Path) -> None:
    name, spoil = DAMAGE[damage]
    kept(tmp_path, [Snapshot(values={"n": n}, parts={"moves": some(n)}) for n in range(2)])
    for number in (1, 2):
        spoil(tmp_path / f"00000{number}{name}")
    with pytest.raises(IntegrityError, match=r"remove .* to start anew") as told:
        found_in(tmp_path)
    assert "\n" not in str(told.value)


def test_a_torn_write_is_not_a_state(tmp_path: Path) -> None:
    kept(tmp_path, [Snapshot(values={"n": 1}, parts={"moves": some(1)})])
    (tmp_path / "000002-moves.safetensors").write_bytes(b"torn")
    (tmp_path / "000003.json.0123abcd").write_text('{"format"')
    state = found_in(tmp_path)
    assert state is not None
    assert state.values == {"n": 1}
    kept(tmp_path, [Snapshot(values={"n": 2}, parts={"moves": some(2)})])
    assert not (tmp_path / "000003.json.0123abcd").exists()


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({"epochs": 10}, {"epochs": 20}, "epochs 10 there, 20 here"),
        ({"spec": "a", "seed": 0}, {"spec": "b", "seed": 1}, "seed 0 there, 1 here; spec a there, b here"),
        ({"digest": "a"}, {"digest": "b"}, "the files or the recipes behind its names have changed since"),
        ({}, {"keep": "best"}, "keep None there, best here"),
        (
            {"contents": {"full": "a", "big": "b"}},
            {"contents": {"full": "a", "big": "c"}},
            "the files or the recipe of big have changed since",
        ),
    ],
)
def test_a_state_of_another_fit_is_refused(then: Any, now: Any, said: str, tmp_path: Path) -> None:
    kept(tmp_path, [Snapshot(values={})], then)
    with pytest.raises(UsageError, match=r"repeat its command to go on with it, remove it to start anew") as told:
        found_in(tmp_path, now)
    assert f"is of another fit ({said})" in str(told.value)


def test_states_are_not_stored_more_often_than_they_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SAVE_SECONDS", 1000.0)
    kept(tmp_path, [Snapshot(values={})])
    assert found_in(tmp_path) is None, "the first thousand seconds are not over"
    monkeypatch.setattr(snapshots, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(snapshots, "SHARE", 1e9)
    kept(tmp_path, [Snapshot(values={"n": n}) for n in range(3)])
    state = found_in(tmp_path)
    assert state is not None
    assert state.values == {"n": 0}, "a thousand million times what writing it took is not over"


# -- zoo_core.fit ---------------------------------------------------------------------------------------------------

SPEC, TASK = "starter/vit-nano+partial(n=1)", "digits(shots=2)"
SHORT = Budget(epochs=2, num_rates=2, batch_size=10)


def interrupting(step: int) -> Callable[[TrialProgress], None]:
    def report(trial: TrialProgress) -> None:
        if (trial.candidate, trial.progress.step) == (2, step):
            raise KeyboardInterrupt

    return report


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    zoo_core.fit(SPEC, task=TASK, out=folder, budget=SHORT)
    return folder


def stored(folder: Path) -> tuple[bytes, Any, Any]:
    row = json.loads((folder / "results.jsonl").read_text())
    return (folder / "delta.safetensors").read_bytes(), row["chosen"], row["score"]


def test_the_same_call_goes_on_and_leaves_what_an_undisturbed_one_does(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT, report=interrupting(3))
    assert {path.name for path in tmp_path.iterdir()} == {".lock", UNFINISHED}
    with pytest.raises(UsageError, match=r"epochs 2 there, 4 here.*to start anew"):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=replace(SHORT, epochs=4))
    with pytest.raises(UsageError, match=r"already holds a run .unfinished."):
        zoo_core.save(zoo_core.load(SPEC, num_classes=3), tmp_path)
    zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT)
    assert stored(tmp_path) == stored(undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in undisturbed.iterdir()}
    with pytest.raises(UsageError, match="already holds a run"):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT)


@pytest.mark.slow
def test_a_kill_while_the_model_is_stored_costs_nothing(tmp_path: Path, undisturbed: Path) -> None:
    """At whichever file: the same call stores them again."""
    with pytest.raises(KeyboardInterrupt):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT, report=interrupting(4))
    for name in ("delta.safetensors", "results.jsonl"):  # run.json is written whole or not at all
        (tmp_path / name).write_bytes((undisturbed / name).read_bytes()[:-9])
    (tmp_path / "run.json").write_bytes((undisturbed / "run.json").read_bytes())
    zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT)
    assert stored(tmp_path) == stored(undisturbed)
    zoo_core.load_run(tmp_path)


# -- processes that are killed --------------------------------------------------------------------------------------

PROGRAM = (
    "import sys\n"
    "from zoo_core.training import snapshots\n"
    "snapshots.SAVE_SECONDS = snapshots.SHARE = 0.0\n"
    "from zoo_core.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
WORDS = ["fit", SPEC, "--task", TASK, "--epochs", "8", "--num-rates", "2", "--batch-size", "4", "--threads", "1"]


def start(out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", PROGRAM, *WORDS, "--out", str(out)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def num_states(out: Path) -> int:
    return max((int(file.stem) for file in (out / UNFINISHED).glob("*.json")), default=0)


@pytest.mark.slow
def test_a_killed_process_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    told, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    out = tmp_path / "killed"
    rng = random.Random(0)
    for states, by in ((1, signal.SIGKILL), (5, signal.SIGINT), (11, signal.SIGKILL)):  # of 16 epochs
        process = start(out)
        while num_states(out) < states and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))  # anywhere in an epoch, or while its state is written
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(by)
        _, err = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if by == signal.SIGKILL else 130), err
        if by == signal.SIGINT:
            assert err.splitlines()[-1] == (
                "zoo: interrupted; the same command goes on after the last epoch that was stored"
            )
    process = start(out)
    again, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"an unfinished fit is in {out}: learning rate 2 of 2, after epoch" in err
    assert again.replace(str(out), str(tmp_path / "whole")) == told
    assert stored(out) == stored(tmp_path / "whole")
    assert not (out / UNFINISHED).exists()


# -- what is not ours ---------------------------------------------------------------------------------------------


MINE = ("notes.txt", "notes.json", "12.json", "weights.safetensors", "000001.json.bak", "000001-x.safetensors.old")


def test_files_that_were_never_written_stay_beside_the_states_and_after_them(tmp_path: Path) -> None:
    folder = tmp_path / UNFINISHED
    folder.mkdir()
    for name in MINE:
        (folder / name).write_text("mine")
    (folder / "000009-sub.safetensors.0123abcd").write_bytes(b"a write that was killed")
    unfinished = kept(folder, [Snapshot(values={"n": n}, parts={"moves": some(n)}) for n in range(4)])
    assert {path.name for path in folder.iterdir()} == {
        *MINE,
        *(f"00000{number}{end}" for number in (3, 4) for end in (".json", "-moves.safetensors")),
    }
    state = found_in(folder)
    assert state is not None
    assert state.values == {"n": 3}
    unfinished.leave()
    assert unfinished.holds_states()
    unfinished.finish()
    assert sorted(path.name for path in folder.iterdir()) == sorted(MINE)
    assert all((folder / name).read_text() == "mine" for name in MINE)
    assert not unfinished.holds_states()
    UnfinishedFit(folder, {}).leave()
    assert sorted(path.name for path in folder.iterdir()) == sorted(MINE)


def test_a_folder_with_nothing_else_in_it_goes_with_the_states(tmp_path: Path) -> None:
    unfinished = kept(tmp_path / UNFINISHED, [Snapshot(values={}, parts={"moves": some(1)})])
    unfinished.finish()
    assert list(tmp_path.iterdir()) == []
    unfinished = kept(tmp_path / UNFINISHED, [])
    (tmp_path / UNFINISHED / "000001-moves.safetensors").write_bytes(b"torn")
    unfinished.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_finish_that_is_killed_leaves_a_whole_earlier_state_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink
    for num_removed in range(4):
        folder = tmp_path / str(num_removed)
        unfinished = kept(folder, [Snapshot(values={"n": n}, parts={"moves": some(n)}) for n in range(2)])
        left = iter(range(num_removed))

        def killed(path: Path, missing_ok: bool = False, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                unfinished.finish()
        state = found_in(folder)
        assert (state and dict(state.values)) == {0: {"n": 1}, 1: {"n": 0}}.get(num_removed)


def test_a_link_in_the_place_of_the_folder_is_refused_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    kept(elsewhere, [Snapshot(values={"n": n}, parts={"moves": some(n)}) for n in range(2)])
    before = sorted(elsewhere.iterdir())
    (tmp_path / UNFINISHED).symlink_to(elsewhere)
    with pytest.raises(UsageError, match=f"unfinished is a link to {elsewhere}.*remove the link"):
        found_in(tmp_path / UNFINISHED)
    UnfinishedFit(tmp_path / UNFINISHED, {}).leave()
    assert sorted(elsewhere.iterdir()) == before
    assert (tmp_path / UNFINISHED).is_symlink()


RUN = ("run.json", "results.jsonl", "zoo.lock", "delta.safetensors")


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def copy(names: tuple[str, ...], folder: Path, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for name in names:
        (to / name).write_bytes((folder / name).read_bytes())


@pytest.mark.parametrize("inside", [(), ("notes.json", "000001-fit-weights.safetensors")])
def test_a_finished_run_beside_a_folder_of_that_name_is_refused(
    inside: tuple[str, ...], tmp_path: Path, undisturbed: Path
) -> None:
    """As it was seen: the run was deleted."""
    copy(RUN, undisturbed, tmp_path)
    (tmp_path / UNFINISHED).mkdir()
    for name in inside:
        (tmp_path / UNFINISHED / name).write_text("mine")
    before = read(tmp_path)
    with pytest.raises(UsageError, match=r"already holds a run .run\.json."):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT)
    assert read(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / UNFINISHED).iterdir()) == sorted(inside)


def of_another_fit(content: bytes) -> bytes:
    return content.replace(b'"digest":"', b'"digest":"0').replace(b'"digest": "', b'"digest": "0')


OTHERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a run of another fit": ("run.json", of_another_fit),
    "a damaged run": ("run.json", lambda content: content[:-9]),
    "results of another fit": ("results.jsonl", lambda content: content + of_another_fit(content)),
    "results that are none": ("results.jsonl", lambda content: b"[1]\n"),
    "another lock": ("zoo.lock", lambda content: content.replace(b'"version": "', b'"version": "0')),
    "a list": ("zoo.lock", lambda content: b"[]"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_beside_states_too_a_file_of_another_run_is_refused_and_stays(
    case: str, tmp_path: Path, undisturbed: Path
) -> None:
    name, change = OTHERS[case]
    with pytest.raises(KeyboardInterrupt):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT, report=interrupting(4))
    copy(RUN, undisturbed, tmp_path)
    changed = change((tmp_path / name).read_bytes())
    assert changed != (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(changed)
    before = read(tmp_path)
    with pytest.raises(UsageError, match=f"already holds a run .{name}."):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT)
    assert read(tmp_path) == before
    assert (tmp_path / UNFINISHED).is_dir()


def test_beside_states_the_files_of_the_same_fit_are_written_again(tmp_path: Path, undisturbed: Path) -> None:
    """It was killed after it was stored and before its states went; the torn row is what `append` leaves then."""
    with pytest.raises(KeyboardInterrupt):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT, report=interrupting(4))
    copy(RUN, undisturbed, tmp_path)
    row = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(row + row[:-9])
    zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=SHORT)
    assert stored(tmp_path) == stored(undisturbed)
    assert not (tmp_path / UNFINISHED).exists()


# -- exports that fail ----------------------------------------------------------------------------------------------


class _Full(ToyBackbone):
    """Its library finds no room, or does, and somebody uses the name in the meantime."""

    out = Path()
    has_room = False

    def export(self, folder: Path, head: nn.Linear | None, target: Target) -> str:
        (folder / "config.json").write_text("{}")
        self.out.mkdir()
        (self.out / "mine.txt").write_text("mine")
        if not self.has_room:
            raise OSError(28, "No space left on device")
        return f"{folder} loads it"


@dataclass(frozen=True, kw_only=True)
class _Fulls(ToyBackbones):
    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        return _Full(self.kind)


@pytest.mark.parametrize("has_room", [False, True])
def test_an_export_that_fails_removes_what_it_wrote_alone(
    has_room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Full, "out", tmp_path / "plain")
    monkeypatch.setattr(_Full, "has_room", has_room)
    with pytest.raises(AccessError, match=f"{tmp_path}/plain cannot be written"):
        write_plain(build(toy_plan(backbone=_Fulls())), tmp_path / "plain")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["plain", "plain/mine.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_so_does_an_export_of_adapters(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    writing = pytest.importorskip("zoo_peft.writing")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    save_file(
        timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes).state_dict(), base / "model.safetensors"
    )
    described = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": sizes,
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    (base / "config.json").write_text(json.dumps(described))
    learner = zoo_core.load(f'timm(files="{base}")+lora', num_classes=3)

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise error

    def joined(tensors: object, path: Path, metadata: object) -> None:
        (path.parent / "mine.txt").write_text("mine")
        full(tensors, path, metadata)

    for write, left in ((full, None), (joined, ["mine.txt"])):
        monkeypatch.setattr(writing, "save_file", write)
        with pytest.raises(AccessError if isinstance(error, OSError) else KeyboardInterrupt):
            zoo_core.export(learner, out, form="peft")
        assert (sorted(path.name for path in out.iterdir()) if out.exists() else None) == left
