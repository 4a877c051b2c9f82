from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import SIZES, tiny  # noqa: F401 -- a fixture
from zoo_core import contracts
from zoo_core.benchmark.candidates import Chosen
from zoo_core.benchmark.trial import choose, run_trial
from zoo_core.contracts import METRICS, Context, Split, Target
from zoo_core.data.loader import Loader
from zoo_core.errors import UsageError
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget, Plan, pinned
from zoo_core.plan.resolve import resolve
from zoo_core.run_layout import UNFINISHED
from zoo_core.testing.recipes import ToyAdapter, ToyBackbones, ToyHint, ToyMemory, ToyOpen, ToyTasks, toy_plan
from zoo_core.testing.subject import THREE, examples_of
from zoo_core.testing.toys import ToySplit
from zoo_core.training import gradient_trainer
from zoo_core.training.fit import Fitted, fit
from zoo_core.training.snapshots import Snapshot, UnfinishedFit, laid_out_like

MAP = ToyBackbones(kind="map")  # with batch norms, whose statistics move in training
BEST = Budget(epochs=4, batch_size=16, keep="best")


def loader_of(plan: Plan, learner: Learner) -> Loader:
    assert plan.task is not None
    return Loader(
        plan.task.recipe.open(None).splits["train"],
        modality="image",
        target=learner.target,
        preparation=learner.source.preparation,
        shuffled=True,
        batch_size=plan.budget.batch_size,
        seed=plan.seed,
    )


def fitted(plan: Plan, **more: Any) -> tuple[Learner, Fitted]:
    learner = build(plan)
    return learner, fit(
        learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=plan.seed, **more
    )


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.delta().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def scoring(scores: Sequence[float]) -> tuple[Callable[[Learner], float], list[dict[str, Tensor]]]:
    """A validation that gives these scores in turn, and the weights that each was given for."""
    seen: list[dict[str, Tensor]] = []

    def validate(learner: Learner) -> float:
        seen.append(weights(learner))
        return scores[len(seen) - 1]

    return validate, seen


# -- the best epoch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ([1, 4, 3, 2], 2),
        ([1, 2, 3, 4], 4),
        ([4, 3, 2, 1], 1),
        ([1, 3, 3, 3], 2),  # of equal ones the earliest
        ([2, 2, 2, 2], 1),
        ([math.nan, 1, math.nan, 1], 2),
        ([-math.inf, -math.inf, math.nan, math.nan], 4),  # none is better than nothing: the last
    ],
)
@pytest.mark.parametrize("backbone", [ToyBackbones(), MAP])
def test_the_weights_of_the_best_epoch_stay_with_their_statistics(
    scores: list[float], epoch: int, backbone: ToyBackbones
) -> None:
    plan = toy_plan(ToyOpen(), ToyHint(), backbone=backbone, budget=BEST)
    validate, seen = scoring(scores)
    learner, found = fitted(plan, validate=validate)
    assert (found.epoch, len(found.losses), len(seen)) == (epoch, 4, 4)
    assert same(weights(learner), seen[epoch - 1])
    assert found.score == scores[epoch - 1] or math.isnan(scores[epoch - 1])
    assert not same(seen[0], seen[1])
    assert not any(module.training for module in learner.modules())


@pytest.mark.parametrize("keep", [None, "last"])
def test_the_last_epoch_stays_unless_the_best_is_kept(keep: Any) -> None:
    plan = toy_plan(ToyOpen(), budget=replace(BEST, keep=keep, patience=9))
    validate, seen = scoring([4, 3, 2, 1])
    learner, found = fitted(plan, validate=validate)
    assert (found.epoch, found.score) == (4, 1)
    assert same(weights(learner), seen[3])


def test_training_is_the_same_whichever_weights_are_kept() -> None:
    validate, _ = scoring([1, 2, 3, 4])
    best, _ = fitted(toy_plan(ToyOpen(), ToyHint(), budget=BEST), validate=validate)
    last, _ = fitted(toy_plan(ToyOpen(), ToyHint(), budget=replace(BEST, keep="last")))
    assert same(weights(best), weights(last))


def test_patience_stops_and_the_best_is_put_back() -> None:
    plan = toy_plan(ToyOpen(), budget=replace(BEST, epochs=9, patience=2))
    validate, seen = scoring([1, 5, 4, 5, 9, 9])
    learner, found = fitted(plan, validate=validate)
    assert (found.epoch, len(found.losses)) == (2, 4)
    assert same(weights(learner), seen[1])


def test_without_validation_the_last_epoch_is_kept() -> None:
    _, found = fitted(toy_plan(ToyOpen(), budget=BEST))
    assert (found.epoch, found.score) == (4, None)


@dataclass(frozen=True, kw_only=True)
class Later(ToyAdapter):
    """The backbone joins in the middle of all steps."""

    start: float = 0.5

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        learner.delay(learner.backbone.parameters(), self.start)
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


def test_only_epochs_of_the_last_phase_can_be_the_best() -> None:
    plan = toy_plan(ToyOpen(), Later(), budget=BEST)
    validate, seen = scoring([7, 6])
    learner, found = fitted(plan, validate=validate)
    assert (found.epoch, len(seen)) == (3, 2)
    assert same(weights(learner), seen[0])
    fresh = build(plan).delta()
    moved = [name for name, x in weights(learner).items() if not torch.equal(x, fresh[name])]
    assert any(name.startswith("backbone.") for name in moved), "what was kept has been through all phases"


def test_finishers_work_on_the_best_weights() -> None:
    validate, seen = scoring([1, 3, 2, 2])
    learner, found = fitted(toy_plan(ToyOpen(), Halves(), budget=BEST), validate=validate)
    assert (found.epoch, found.score) == (2, None)  # the score was that of other weights
    for name, x in weights(learner).items():
        assert torch.equal(x, seen[1][name] * (0.5 if name.startswith("heads.") else 1))


def test_a_closed_form_head_has_no_epoch() -> None:
    plan = toy_plan(head=ToyMemory(), budget=BEST)
    chosen = chosen_of(plan, ToyTasks())
    assert chosen.fitted.epoch is None
    assert chosen.candidates[0].keys() == {"learning_rate", "validation_score"}


# -- whole trials ---------------------------------------------------------------------------------------------------


def chosen_of(plan: Plan, task: ToyTasks, **more: Any) -> Chosen:
    data = task.open(None)
    return choose(plan, data.splits["train"], data.splits["val"], data.target, device=torch.device("cpu"), **more)


@dataclass(frozen=True, kw_only=True)
class Measured(ToyTasks):
    """With a metric of its own."""

    name: str

    @property
    def metric(self) -> str:
        return self.name


@dataclass(frozen=True)
class Given:
    """Data that are given."""

    target: Target
    splits: Mapping[str, Split]


@pytest.mark.parametrize("metric", ["mean_absolute_error", "r2"])
def test_a_trial_says_which_epoch_it_kept_and_its_score_is_of_those_weights(metric: str) -> None:
    task = Measured(kind="regression", size=1, name=metric)
    plan = toy_plan(ToyOpen(), task=task, budget=BEST, learning_rates=(3e-3, 3e-1, 30.0))
    plan = replace(plan, budget=replace(BEST, warmup=1.0))  # the rate rises to the end
    best = chosen_of(plan, task)
    last = chosen_of(replace(plan, budget=replace(plan.budget, keep="last")), task)
    up = METRICS[metric].higher_is_better
    for one, other in zip(best.candidates, last.candidates, strict=True):
        assert 1 <= one["epoch"] <= one["epochs"] == 4
        assert other.keys() == {"learning_rate", "validation_score"}
        scores = (one["validation_score"], other["validation_score"])
        assert (scores[0] >= scores[1]) if up else (scores[0] <= scores[1])
        assert (scores[0] == scores[1]) == (one["epoch"] == 4)
    assert any(one["epoch"] < 4 for one in best.candidates), "a rate of 30 is not best at the end"


def test_test_data_choose_nothing() -> None:
    """Other test examples, targets at random: the same epochs, the same candidate, the same weights."""
    task = ToyTasks(kind="regression", size=1)
    plan = toy_plan(ToyOpen(), task=task, budget=BEST, learning_rates=(1e-2, 1e-1, 1.0))
    data = task.open(None)
    test = data.splits["test"]
    assert isinstance(test, ToySplit)
    other = Given(data.target, {**data.splits, "test": replace(test, targets=-9 * test.targets)})
    (first, one, _), (second, two, _) = run_trial(plan, data=data), run_trial(plan, data=other)
    assert first.score != second.score
    assert first.chosen == second.chosen
    assert same(weights(one), weights(two))


def test_the_best_is_part_of_a_trials_identity_and_the_last_is_what_it_always_was() -> None:
    plan = toy_plan(budget=Budget())
    digests = {keep: pinned(replace(plan, budget=Budget(keep=keep)), {}).digest for keep in (None, "last", "best")}
    assert digests[None] == digests["last"] != digests["best"]
    texts = [str(replace(plan, budget=Budget(epochs=3, keep=keep)).trial) for keep in (None, "last", "best")]
    assert texts[0] == texts[1]
    assert ["keep=best" in text for text in texts] == [False, False, True]
    assert "keep" not in Budget().identity(), "so the digests of benches stay"


def test_other_words_for_what_to_keep_are_refused() -> None:
    with pytest.raises(UsageError, match=r"keep='bets' is not one of best, last; did you mean best"):
        Budget(keep="bets")  # type: ignore[arg-type]


# --- every kind of backbone that training opens -----------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """Raw examples of a modality with three classes."""

    examples: list[Any]

    @property
    def num(self) -> int:
        return len(self.examples)

    @property
    def targets(self) -> Any:
        return np.arange(self.num) % 3

    @property
    def groups(self) -> None:
        return None

    @property
    def ids(self) -> list[str]:
        return list(map(str, range(self.num)))

    def raw(self, index: int) -> Any:
        return self.examples[index]


TRAINED = Budget(epochs=3, batch_size=4)  # three steps an epoch


@pytest.fixture
def one_thread() -> None:
    """A pass through networks this small takes less than threads take to wait for one another."""
    torch.set_num_threads(1)


def fit_of(spec: str, folder: Path, *, budget: Budget = TRAINED, goes_on: bool = False) -> tuple[Fitted, Learner]:
    """A fit that stores its state after the first epoch, or one that goes on from there with a learner of its own."""
    plan = pin_plan(resolve(spec, target=THREE))
    learner = build(plan)
    loader = Loader(
        Drawn(examples_of(learner.source.modality, 12)),
        modality=learner.source.modality,
        target=THREE,
        preparation=learner.source.preparation,
        batch_size=budget.batch_size,
        shuffled=True,
    )
    unfinished = UnfinishedFit(folder, {})
    unfinished.begin()
    unfinished._free_at = 0.0  # the first snapshot is due at once
    assert (unfinished.state is not None) == goes_on

    def save_snapshot(make: Callable[[], Snapshot]) -> None:
        if unfinished.state is None and not any(folder.glob("*.json")):
            unfinished.save_if_due(make)

    scores = iter([2.0, 1.0, 0.5][1 if goes_on else 0 :])  # the first epoch is the best
    fitted = fit(
        learner,
        loader,
        budget=budget,
        learning_rate=1e-2,
        seed=0,
        validate=lambda _: next(scores),
        state=unfinished.state,
        save_snapshot=save_snapshot,
    )
    return fitted, learner


def tensors_that_differ(spec: str, folder: Path, **more: Any) -> list[str]:
    """Names of what an interrupted fit leaves with other bits than an undisturbed one."""
    undisturbed, expected = fit_of(spec, folder, **more)
    fitted, found = fit_of(spec, folder, goes_on=True, **more)
    assert (fitted.num_steps, fitted.epoch, fitted.score) == (
        undisturbed.num_steps,
        undisturbed.epoch,
        undisturbed.score,
    )
    state = found.state_dict()
    differ = [name for name, tensor in expected.state_dict().items() if not torch.equal(tensor, state[name])]
    return differ + [f"loss {epoch}" for epoch, loss in enumerate(fitted.losses) if loss != undisturbed.losses[epoch]]


def vision_of_transformers(folder: Path) -> str:
    """The spec of a small ViT of transformers in a folder."""
    import transformers  # seconds, for one test

    sizes: dict[str, Any] = SIZES | {"image_size": 16, "patch_size": 4}
    transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(folder)
    preprocessor = {
        "size": {"height": 16, "width": 16},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return f'hf(files="{folder}")'


OPENED = (
    *("starter/vit-nano", "starter/convnet-nano", "starter/mlp-nano(weights=random)"),
    *("timm/test_resnet(weights=random)", "timm/test_vit(weights=random)", "timm/test_efficientnet(weights=random)"),
)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backbone", [*OPENED, "bert", "wav2vec2", "vision"])
def test_a_fit_of_an_open_backbone_goes_on_bit_for_bit(
    backbone: str,
    tmp_path: Path,
    tiny: Callable[[str], str],  # noqa: F811
) -> None:
    if backbone == "vision":
        backbone = vision_of_transformers(tmp_path)
    elif backbone not in OPENED:
        backbone = tiny(backbone)
    assert not tensors_that_differ(f"{backbone}+full", tmp_path / UNFINISHED)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("chain", ["lora(r=2,roles=[conv])", "partial(n=1)+lora(r=2,roles=[conv])"])
def test_a_fit_of_updates_to_convolutions_goes_on_bit_for_bit(chain: str, tmp_path: Path) -> None:
    assert not tensors_that_differ(f"{OPENED[1]}+{chain}", tmp_path / UNFINISHED)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("more", [{"keep": "best"}, {"keep": "best", "patience": 2}, {"patience": 1}])
def test_the_best_of_convolutions_is_put_back_bit_for_bit(more: Any, tmp_path: Path) -> None:
    assert not tensors_that_differ(f"{OPENED[1]}+full", tmp_path / UNFINISHED, budget=replace(TRAINED, **more))


@pytest.mark.usefixtures("one_thread")
def test_moments_in_another_order_in_memory_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_trainer, "laid_out_like", lambda _, value: value)
    differ = tensors_that_differ(f"{OPENED[1]}+full", tmp_path / UNFINISHED)
    assert any(name.startswith("backbone.network.") for name in differ)


def test_a_tensor_is_laid_out_as_its_own() -> None:
    own = torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)
    value = torch.randn(4, 3, 5, 5)
    found = laid_out_like(own, value)
    assert found.stride() == own.stride() != value.stride()
    assert torch.equal(found, value)
    assert found.data_ptr() != own.data_ptr()


def test_a_buffer_of_any_length_lies_in_memory_as_in_a_file() -> None:
    learner = build(pin_plan(resolve(f"{OPENED[0]}+knn", target=THREE)))
    delta = learner.delta()
    name = next(name for name, tensor in delta.items() if tensor.ndim == 2 and not tensor.numel())
    bank = torch.randn(delta[name].shape[1], 7).T
    assert not bank.is_contiguous()
    learner.load_delta(delta | {name: bank})
    assert torch.equal(learner.delta()[name], bank)
    assert learner.delta()[name].is_contiguous()


@pytest.mark.parametrize("spec", [f"{OPENED[1]}+lora(r=2,roles=[conv])", f"{OPENED[3]}+lora(r=2,roles=[conv])"])
def test_merged_convolutions_lie_in_memory_as_those_of_the_base(spec: str) -> None:
    learner = build(pin_plan(resolve(spec, target=THREE)))
    base = build(pin_plan(resolve(spec.partition("+")[0], target=THREE))).backbone.state_dict()
    merged = learner.merge().backbone.state_dict()
    assert {name: x.stride() for name, x in merged.items()} == {name: x.stride() for name, x in base.items()}
