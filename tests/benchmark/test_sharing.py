"""Trials that share work have the results of trials that do not, whatever becomes of the store or of the process."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import zoo_core
from zoo_core.benchmark import sharing, start
from zoo_core.benchmark.groups import Group, plan_groups
from zoo_core.benchmark.pool import run_all
from zoo_core.benchmark.sharing import SharedWork, copied
from zoo_core.benchmark.trial import run_trial
from zoo_core.benchmark.workers import attempt_group
from zoo_core.contracts import Batch, Change, Context, Features, Learner, Output, Weights
from zoo_core.data.model_outputs import outputs_room
from zoo_core.data.row_files import RowFile
from zoo_core.errors import IntegrityError
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build
from zoo_core.plan.plan import Budget, Plan, pinned, reseeded
from zoo_core.plan.resolve import resolve
from zoo_core.results.store import Result
from zoo_core.testing.recipes import ToyAdapter, ToyBackbones, ToyOpen, ToyTasks, toy_plan
from zoo_core.testing.toys import ToyBackbone
from zoo_core.training import entering_states, rows
from zoo_core.training.entering_states import differ_in_size
from zoo_core.training.rows import StepSeconds

BUDGET = Budget(epochs=3, num_rates=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def plans_of(spec: str, task: str = "digits(shots=4)", budget: Budget = BUDGET, seeds: int = 2) -> list[Plan]:
    first = pin_plan(resolve(spec, task=task, budget=budget))
    return [reseeded(first, seed) for seed in range(seeds)]


def together(plans: Sequence[Plan], groups: Sequence[Group] | None = None) -> list[Result]:
    """What a worker makes of the groups of these plans."""
    found: dict[int, Result] = {}
    for group in plan_groups(plans) if groups is None else groups:
        found |= dict(attempt_group(group, {at: plans[at] for at in group.positions}, device="cpu"))
    return [found[at] for at in range(len(plans))]


def scores(results: Sequence[Result]) -> list[Any]:
    """What must not depend on sharing: score, choice, every validation score, the counts of parameters."""
    return [(each.status, each.score, each.chosen, each.num_trainable, each.num_parameters) for each in results]


def how_of(result: Result) -> tuple[Any, Any, Any]:
    assert result.shared is not None
    return result.shared["how"], result.shared["size"], result.shared["reason"]


SHARED = {
    "linear": ("starter/vit-nano", "heads", None),
    "mlp": ("starter/convnet-nano+probe+mlp(hidden_dim=8)", "heads", None),
    "attention-pool": ("starter/vit-nano+probe+attention-pool", "heads", None),
    "dropout": ("starter/convnet-nano+probe+linear(dropout=0.3)", "features", "they cannot be vectorised: "),
    "ncm": ("starter/convnet-nano+probe+ncm", "features", None),
    "knn": ("starter/convnet-nano+probe+knn(k=3)", "features", None),
    "last stage": ("starter/vit-nano+partial(n=1)", "stages", "an adapter has a part in what is learned"),
    "last stage, batch norms": ("starter/convnet-nano+partial(n=1)", "stages", "an adapter has a part in"),
    "ridge": ("starter/convnet-nano+probe+ridge", "features", None),
    "random weights, last stage": (
        "starter/convnet-nano(weights=random)+partial(n=1)",
        "stages",
        "an adapter has a part in",
    ),
    "random weights, batch norms": ("starter/convnet-nano(weights=random)", "heads", None),
}


@pytest.mark.slow
def test_adapters_trained_together_equal_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows._Rows, "weighed", lambda self: StepSeconds(together=1.0, alone=2.0))
    plans = plans_of("starter/vit-nano+lora", budget=Budget(epochs=3, num_rates=2, keep="best"))
    found = together(plans)
    assert scores(found) == scores([run_trial(plan)[0] for plan in plans])
    for result in found:
        assert how_of(result) == ("rows", 2, None)
        assert result.shared is not None
        assert result.shared["step_seconds"] == {"together": 1.0, "alone": 2.0}
        assert result.training == found[0].training  # of true steps, once
        assert result.training is not None


def test_adapters_that_are_no_faster_together_run_alone_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows._Rows, "weighed", lambda self: StepSeconds(together=2.0, alone=1.0))
    (result,) = together(plans_of("starter/vit-nano+lora", budget=Budget(epochs=1, num_rates=2), seeds=1))
    assert result.status == "ok"
    assert how_of(result) == ("alone", 1, "a step of all of them is not clearly faster together, see step_seconds")
    assert result.shared is not None
    assert result.shared["step_seconds"] == {"together": 2.0, "alone": 1.0}


SLOW = (
    "mlp",
    "attention-pool",
    "knn",
    "ridge",
    "last stage, batch norms",
    "random weights, last stage",
)  # rows of every head are compared in tests/training/test_rows.py


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SHARED]
)
def test_shared_equals_unshared(name: str) -> None:
    spec, wanted, reason = SHARED[name]
    plans = plans_of(spec)
    alone = [run_trial(plan)[0] for plan in plans]
    found = together(plans)
    assert scores(found) == scores(alone)
    for result in found:
        said, size, because = how_of(result)
        assert (said, size) == (wanted, 1 if "random" in spec else 2)
        assert (because is None) == (reason is None)
        assert reason is None or because.startswith(reason)


@pytest.mark.slow
def test_a_head_that_learns_from_a_teacher_on_features(tmp_path: Path) -> None:
    zoo_core.fit("starter/vit-nano", task="digits(shots=4)", budget=BUDGET, out=tmp_path / "teacher")
    plans = plans_of(f'starter/convnet-nano+distill(teacher="{tmp_path / "teacher"}")')
    found = together(plans)
    assert scores(found) == scores([run_trial(plan)[0] for plan in plans])
    assert {how_of(result) for result in found} == {("features", 2, "an adapter has a part in what is learned")}


class _OddBackbone(ToyBackbone):
    what = ""

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        found = super().forward(inputs)
        odd = nn.functional.dropout(found.x) if self.what == "draws" else found.x * torch.nan
        return Features(kind=found.kind, x=odd, mask=found.mask)


@dataclass(frozen=True, kw_only=True)
class Odd(ToyBackbones):
    """A backbone whose features are no numbers, or others in each pass."""

    what: str

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        found = super().build(files, weights)
        odd = _OddBackbone(self.kind)
        odd.load_state_dict(found.state_dict())
        odd.what = self.what
        return odd


class _Drift(nn.Module):
    """Adds a term that grows with each step, by a number of its own that neither delta nor projectors name."""

    stages: tuple[int, ...] = ()

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective, self.steps = objective, 0

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        terms: dict[str, Tensor] = self.objective(output, batch)
        return terms | {"drift": 0.01 * self.steps * output.predictions.square().mean()}


@dataclass(frozen=True, kw_only=True)
class Drifting(ToyAdapter):
    changes: ClassVar[frozenset[Change]] = frozenset({"objective"})

    def apply(self, learner: Learner, context: Context) -> Learner:
        assert learner.objective is not None
        learner.objective = _Drift(learner.objective)
        return learner


def test_steps_that_measure_leave_nothing_behind_that_only_a_plugin_knows_of(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(epochs=20, batch_size=16)
    plan = pinned(toy_plan(Drifting(), task=ToyTasks(kind="regression"), budget=budget, learning_rates=(3e-2,)), {})
    alone = run_trial(plan)[0].score
    assert together([plan])[0].score == pytest.approx(alone, abs=1e-5)
    monkeypatch.setattr(start, "copied", lambda learner: learner)
    assert together([plan])[0].score != pytest.approx(alone, abs=1e-3)


def test_a_copy_for_measuring_trains_nothing_of_its_original_and_holds_no_second_backbone() -> None:
    learner = build(toy_plan(ToyOpen(what="last")))
    before = {name: x.clone() for name, x in learner.named_parameters()}
    found = copied(learner)
    shared = {x.data_ptr() for x in learner.backbone.parameters()} & {x.data_ptr() for x in found.backbone.parameters()}
    assert shared == {x.data_ptr() for x in learner.backbone.parameters() if not x.requires_grad}
    with torch.no_grad():
        for _, one in found.trainable():
            one.add_(1)
    assert all(torch.equal(x, before[name]) for name, x in learner.named_parameters())


@pytest.mark.slow
def test_kept_epochs_and_patience_are_those_of_trials_alone() -> None:
    plans = plans_of("starter/convnet-nano", budget=Budget(epochs=6, num_rates=2, keep="best", patience=1))
    assert scores(together(plans)) == scores([run_trial(plan)[0] for plan in plans])


@pytest.mark.slow
def test_views_are_stored_and_shared_by_epochs_and_rates() -> None:
    plans = plans_of("starter/convnet-nano", budget=Budget(epochs=4, num_rates=2, augment="light", views=2))
    assert scores(together(plans)) == scores([run_trial(plan)[0] for plan in plans])
    (group,) = plan_groups(plans)
    shared = SharedWork(group, plans, device=CPU)
    shared.fill()
    assert shared.passed.made == 0


def test_the_backbone_sees_each_example_once_and_never_again() -> None:
    plans = [*plans_of("starter/convnet-nano"), *plans_of("starter/convnet-nano+probe+ncm")]
    (group,) = plan_groups(plans)
    shared = SharedWork(group, plans, device=CPU)
    shared.fill()
    splits = [shared.splits(plan) for plan in plans]
    train = {name for each in splits for name in each.train.ids}
    assert shared.passed.made == len(train) + splits[0].val.num + splits[0].test.num
    later = SharedWork(group, plans, device=CPU)
    later.fill()
    assert (later.passed.made, later.passed.read) == (0, shared.passed.made)


def damage(room: Path) -> None:
    for file in room.rglob("*.rows"):
        content = bytearray(file.read_bytes())
        content[-2000:] = bytes(2000)
        file.write_bytes(content)


def truncate(room: Path) -> None:
    for file in room.rglob("*.rows"):
        file.write_bytes(file.read_bytes()[:5000])


def remove(room: Path) -> None:
    for file in room.rglob("*.rows"):
        file.unlink()


def exchange(room: Path) -> None:
    one, other = sorted(room.rglob("*.rows"))[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize(
    "spoil", [damage, *(pytest.param(each, marks=pytest.mark.slow) for each in (truncate, remove, exchange))]
)
def test_a_damaged_store_is_noticed_and_made_again(spoil: Callable[[Path], None]) -> None:
    plans = plans_of("starter/convnet-nano")
    before = together(plans)
    assert list(outputs_room().rglob("*.rows"))
    spoil(outputs_room())
    assert scores(together(plans)) == scores(before)


@pytest.mark.slow
def test_without_a_store_and_without_memory_features_are_computed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = plans_of("starter/convnet-nano")
    alone = [run_trial(plan)[0] for plan in plans]
    monkeypatch.setenv("ZOO_OUTPUTS_BYTES", "0")
    (group,) = plan_groups(plans)
    shared = SharedWork(group, plans, device=CPU)
    shared.memory.max_bytes = 0
    assert scores([run_trial(plan, shared=shared)[0] for plan in plans]) == scores(alone)
    assert not outputs_room().exists()


def test_on_a_full_disk_features_stay_in_memory_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plans = [reseeded(pinned(toy_plan(learning_rates=(1e-2, 3e-2)), {}), seed) for seed in range(2)]
    alone = [run_trial(plan)[0] for plan in plans]

    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RowFile, "write", write)
    found = together(plans)
    assert scores(found) == scores(alone)
    assert [how_of(result) for result in found] == [("heads", 2, None)] * 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert "cannot be written (No space left on device), so outputs of models are stored no more" in line


def test_features_that_are_no_numbers_fail_each_trial_with_its_reason() -> None:
    first = toy_plan(backbone=Odd(what="is no number"), learning_rates=(1e-2, 3e-2))
    plans = [reseeded(pinned(first, {}), seed) for seed in range(2)]
    found = together(plans)
    assert [result.status for result in found] == ["failed"] * 2
    assert all("the loss is nan in epoch 1 at learning rate" in (result.reason or "") for result in found)


def test_a_backbone_that_draws_in_evaluation_shares_nothing() -> None:
    plans = [reseeded(pinned(toy_plan(backbone=Odd(what="draws")), {}), seed) for seed in range(2)]
    assert [how_of(result) for result in together(plans)] == [("alone", 2, "its backbone draws")] * 2


def test_of_files_that_change_while_features_are_made_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "flowers.csv"
    rows = [f"{number % 7},{number % 3},{'ab'[number % 2]}" for number in range(60)]
    table.write_text("\n".join(["x,y,label", *rows]), encoding="utf-8")
    plan = pin_plan(
        resolve("starter/mlp-nano(weights=random)", task=f'csv(path="{table}", target="label")', budget=BUDGET)
    )
    (group,) = plan_groups([plan])
    SharedWork(group, [plan], device=CPU).fill()
    assert list(outputs_room().rglob("*.rows"))
    shared = SharedWork(group, [plan], device=CPU)
    table.write_text("\n".join(["x,y,label", *reversed(rows)]), encoding="utf-8")
    with pytest.raises(IntegrityError, match="has changed while the trial ran"):
        shared.fill()
    assert not list(outputs_room().rglob("*.rows"))
    (result,) = together([plan])
    assert (result.status, result.score) == ("failed", None)


def test_no_states_are_made_for_examples_that_differ_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = plans_of("starter/vit-nano+partial(n=1)", seeds=1)
    (group,) = plan_groups(plans)
    other = {"pixel_values": torch.zeros(1, 1, 9, 9)}
    monkeypatch.setattr(entering_states, "dummy_inputs", lambda *_: other)
    monkeypatch.setattr(sharing, "differ_in_size", lambda inputs, _: differ_in_size(inputs, other))
    shared = SharedWork(group, plans, device=CPU)
    shared.fill()
    assert shared.passed.made == 0
    (result,) = together(plans)
    assert how_of(result) == ("alone", 1, "its examples differ in size")


def test_half_precision_features_are_those_of_each_epoch() -> None:
    plans = plans_of("starter/vit-nano", budget=Budget(epochs=3, num_rates=2, precision="bfloat16"))
    alone = [run_trial(plan)[0] for plan in plans]
    for one, other in zip(together(plans), alone, strict=True):
        assert one.score is not None
        assert one.score == pytest.approx(other.score, abs=0.02)  # bfloat16 has three digits, and rows round elsewhere


@pytest.mark.rates
def test_rates_and_memory_are_of_steps_that_share_nothing() -> None:
    plans = plans_of("starter/vit-nano", seeds=3)
    found = together(plans)
    alone, _, _ = run_trial(plans[0])
    assert alone.inference is not None
    for result in found:
        assert result.training == found[0].training  # measured once
        assert result.training is not None
        assert result.inference is not None
        for name, rate in (("training", result.training), ("inference", result.inference)):
            assert rate["repeats"] >= 1, name
            few = 8 * alone.inference["examples_per_second"]  # heads alone take 20 times as many
            assert rate["examples_per_second"] < few, name


# --- in processes of their own ---------------------------------------------------------------------------------------


def slow(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def crowd(nasty: Any, nasty_in_workers: None) -> Callable[[str], list[Plan]]:
    """Four trials of one group, the first of which goes wrong in some way."""

    def plans(how: str) -> list[Plan]:
        specs = (f'nasty/tokens+quiet(how="{how}")', "nasty/tokens", "nasty/tokens+probe+ncm", "nasty/tokens+probe+mlp")
        return [pinned(nasty.resolve(spec, budget=Budget(epochs=2, num_rates=2)), {}) for spec in specs]

    return plans


def test_an_adapter_has_a_backbone_of_its_own_so_that_nothing_it_does_is_done_to_others(
    crowd: Callable[[str], list[Plan]],
) -> None:
    plans = crowd("print")
    (group,) = plan_groups(plans)
    shared = SharedWork(group, plans, device=CPU)
    adapted, probe, other = (shared.learner(plan, plans[0].target) for plan in plans[:3])
    assert adapted.backbone is not probe.backbone
    assert probe.backbone is other.backbone
    assert all(torch.equal(x, probe.base()[name]) for name, x in adapted.base().items())


def test_what_cannot_be_made_for_a_group_is_made_by_each_of_its_trials(
    crowd: Callable[[str], list[Plan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = crowd("print")
    alone = [run_trial(plan)[0] for plan in plans]

    def fill(*_: Any) -> None:
        raise torch.OutOfMemoryError("of a GPU")

    monkeypatch.setattr(SharedWork, "fill", fill)
    found = together(plans)
    assert scores(found) == scores(alone)
    reason = "what its group shares could not be made: out of memory: of a GPU"
    assert {how_of(result) for result in found} == {("alone", 1, reason)}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("kill", "its process was killed by SIGKILL"),
        slow("segfault", "its process was killed by SIGSEGV"),
        slow("exit", "its process ended with exit code 3"),
        slow("numpy", "out of memory: "),
        slow("leave", "SystemExit: leaving"),
        slow("raise", "raised KeyError"),
        slow("sleep", "it was not done within 10 s; run the same command with --retry and a longer --trial-time-limit"),
    ],
)
def test_a_trial_that_goes_wrong_in_a_group_fails_and_the_others_do_not(
    crowd: Callable[[str], list[Plan]], how: str, reason: str
) -> None:
    plans = crowd(how)
    (group,) = plan_groups(plans)
    found: dict[int, Result] = {}
    limit = 10 if how == "sleep" else None
    for event in run_all(plans, [group], num_workers=1, device="cpu", threads=1, trial_time_limit=limit):
        if event.result is not None:
            assert event.position not in found
            found[event.position] = event.result
    assert [found[at].status for at in range(4)] == ["failed", "ok", "ok", "ok"]
    assert reason in (found[0].reason or "")
    ended = {"kill": "was killed by SIGKILL", "segfault": "was killed by", "exit": "ended with", "sleep": "not done"}
    for result in found.values():
        if result.status == "ok" and how in ended:
            said, size, because = how_of(result)
            assert (said, size) == ("features" if "ncm" in result.trial else "heads", 1)
            assert ended[how] in because
            assert because.endswith("so each of its trials ran by itself")
