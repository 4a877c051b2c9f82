from __future__ import annotations

import itertools
import math
import statistics
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo_core.contracts import METRICS, Features, Target
from zoo_core.data.loader import Loader
from zoo_core.errors import DivergedError, ZooError
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import Part
from zoo_core.testing.recipes import ToyHeads, ToyHint, ToyMemory, ToyOpen, ToyTasks, toy_plan
from zoo_core.training.metrics import agreement, confusion, per_class, predict
from zoo_core.training.metrics import score as score_with
from zoo_core.training.timing import (
    MIN_WINDOW_SECONDS,
    Stopwatch,
    autocast,
    count_parameters,
    inference_rate,
    peak_memory_bytes,
    precision_of,
    reset_peak_memory,
)

metrics = pytest.importorskip("sklearn.metrics")
pytestmark = pytest.mark.rates

CPU = torch.device("cpu")


def score(name: str, predictions: Tensor, truth: Tensor, target: Target) -> float:
    return score_with(registry().bind(Part(name), "metric"), predictions, truth, target)


def logits(seed: int, num: int, size: int, scale: float = 1.0) -> Tensor:
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed)) * scale


def classes(seed: int, num: int, size: int) -> Tensor:
    return torch.randint(size, (num,), generator=torch.Generator().manual_seed(seed))


def kind_of(kind: Any, size: int) -> Target:
    return Target(kind=kind, size=size)


# -- scores ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=st.integers(0, 999), num=st.integers(1, 40), size=st.integers(2, 8), scale=st.sampled_from([1.0, 50.0]))
def test_scores_of_classes_are_those_of_scikit_learn(seed: int, num: int, size: int, scale: float) -> None:
    x, y = logits(seed, num, size, scale), classes(seed + 1, num, size)
    chosen, kind = x.argmax(1).numpy(), kind_of("classes", size)
    assert score("accuracy", x, y, kind) == metrics.accuracy_score(y, chosen)
    assert score("macro_f1", x, y, kind) == pytest.approx(
        metrics.f1_score(y, chosen, average="macro", zero_division=0), abs=1e-12
    )  # rounding of float64
    top = metrics.top_k_accuracy_score(y, x.numpy(), k=5, labels=range(size)) if size > 5 else 1.0
    assert score("top5_accuracy", x, y, kind) == pytest.approx(top, abs=1e-12)  # the same


@settings(max_examples=40)
@given(seed=st.integers(0, 999), num=st.integers(2, 40), size=st.integers(1, 5), scale=st.sampled_from([1.0, 50.0]))
def test_scores_of_labels_are_those_of_scikit_learn(seed: int, num: int, size: int, scale: float) -> None:
    x = logits(seed, num, size, scale)
    y = (logits(seed + 1, num, size) > 0).float()
    y[0], y[1] = 0.0, 1.0  # each label has both
    chosen, kind = (x > 0).numpy(), kind_of("multilabel", size)
    assert score("accuracy", x, y, kind) == pytest.approx(1 - metrics.hamming_loss(y.numpy(), chosen), abs=1e-9)
    f1 = [metrics.f1_score(y[:, c].numpy(), chosen[:, c], zero_division=0) for c in range(size)]
    assert score("macro_f1", x, y, kind) == pytest.approx(np.mean(f1), abs=1e-12)  # rounding of float64
    precision = [metrics.average_precision_score(y[:, c], x[:, c]) for c in range(size)]
    assert score("average_precision", x, y, kind) == pytest.approx(np.mean(precision), abs=1e-12)  # the same


@settings(max_examples=40)
@given(seed=st.integers(0, 999), size=st.integers(2, 5), scale=st.sampled_from([1.0, 50.0]))
def test_average_precision_of_classes_is_that_of_scikit_learn(seed: int, size: int, scale: float) -> None:
    x = logits(seed, 30, size, scale)
    y = torch.cat([torch.arange(size), classes(seed + 1, 30 - size, size)])
    shares = x.double().softmax(1)
    expected = np.mean([metrics.average_precision_score(y == c, shares[:, c]) for c in range(size)])
    found = score("average_precision", x, y, kind_of("classes", size))
    assert found == pytest.approx(expected, abs=1e-12)  # rounding of float64


@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    num=st.integers(2, 40),
    size=st.integers(1, 3),
    shift=st.sampled_from([0.0, 152.0, 1e5]),
)
def test_scores_of_values_are_those_of_scikit_learn(seed: int, num: int, size: int, shift: float) -> None:
    x, y = logits(seed, num, size) + shift, logits(seed + 1, num, size) + shift
    kind = kind_of("regression", size)
    exact = (y.double().numpy(), x.double().numpy())
    assert score("mean_absolute_error", x, y, kind) == pytest.approx(metrics.mean_absolute_error(*exact), rel=1e-9)
    assert score("r2", x, y, kind) == pytest.approx(metrics.r2_score(*exact), rel=1e-9, abs=1e-9)  # float64


def test_r2_of_one_example_is_not_defined() -> None:
    with pytest.raises(ZooError, match="r2 is not defined on 1 examples"):
        score("r2", torch.ones(1, 1), torch.ones(1, 1), kind_of("regression", 1))


@pytest.mark.parametrize(("target", "found"), [(5.0, 1.0), (6.0, 0.0)])
def test_r2_of_values_that_do_not_vary_is_that_of_scikit_learn(target: float, found: float) -> None:
    x, y = torch.full((4, 1), 5.0), torch.full((4, 1), target)
    assert score("r2", x, y, kind_of("regression", 1)) == metrics.r2_score(y, x) == found


def test_a_better_prediction_scores_better() -> None:
    y = classes(0, 40, 6)
    for kind, target in (("classes", y), ("multilabel", torch.eye(6)[y]), ("regression", torch.eye(6)[y])):
        bad, good = logits(1, 40, 6), torch.eye(6)[y] * 2 - (1 if kind != "regression" else 0)
        for name, metric in METRICS.items():
            if kind in metric.targets:
                scores = [score(name, x, target, kind_of(kind, 6)) for x in (bad, good)]
                assert (scores[1] > scores[0]) == metric.higher_is_better


def test_the_table_of_metrics_and_the_recipes_of_zoo_core_agree() -> None:
    found = {each.name: registry().recipe(each) for each in registry().providers("metric")}
    own = {name: recipe for name, recipe in found.items() if recipe.__module__.startswith("zoo_core.")}
    assert own.keys() == METRICS.keys()
    for name, metric in METRICS.items():
        recipe: Any = own[name]
        assert (recipe.targets, recipe.higher_is_better) == (metric.targets, metric.higher_is_better)


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_predictions_that_are_no_numbers_have_no_score(kind: Any) -> None:
    x = logits(0, 4, 3)
    x[2, 1] = torch.nan
    target = {"classes": classes(0, 4, 3), "multilabel": torch.eye(4)[:, :3], "regression": logits(1, 4, 3)}[kind]
    for name, metric in METRICS.items():
        if kind in metric.targets:
            with pytest.raises(ZooError, match="predictions of 1 example are no numbers") as caught:
                score(name, x, target, kind_of(kind, 3))
            assert "\n" not in str(caught.value)


def test_an_infinite_value_has_no_score() -> None:
    with pytest.raises(DivergedError, match="predictions of 2 examples are no numbers"):
        score("r2", torch.tensor([[1.0], [torch.inf], [-torch.inf]]), torch.ones(3, 1), kind_of("regression", 1))


def test_a_class_that_a_closed_form_head_rules_out_may_cost_infinity() -> None:
    x = torch.tensor([[0.0, 1.0, -torch.inf], [1.0, 0.0, -torch.inf], [0.0, 0.5, -torch.inf]])
    y = torch.tensor([1, 0, 2])
    assert score("accuracy", x, y, kind_of("classes", 3)) == pytest.approx(2 / 3)
    assert score("average_precision", x, y, kind_of("classes", 3)) < 1


@pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if "classes" in metric.targets])
def test_a_single_class_is_scored(metric: str) -> None:
    assert score(metric, logits(0, 4, 1), torch.zeros(4, dtype=torch.int64), kind_of("classes", 1)) == 1.0


def test_a_class_that_no_example_has_is_left_out() -> None:
    x, y = torch.eye(4)[torch.tensor([0, 1, 2])] * 5, torch.tensor([0, 1, 2])
    assert score("macro_f1", x, y, kind_of("classes", 4)) == 1.0
    assert score("average_precision", x, y, kind_of("classes", 4)) == 1.0


def test_labels_that_no_example_has_have_no_average_precision() -> None:
    with pytest.raises(ZooError, match="average_precision is not defined"):
        score("average_precision", logits(0, 4, 1), torch.zeros(4, 1), kind_of("multilabel", 1))


# -- reports --------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), num=st.integers(1, 40), size=st.integers(1, 6))
def test_the_confusion_matrix_is_that_of_scikit_learn(seed: int, num: int, size: int) -> None:
    x, y = logits(seed, num, size), classes(seed + 1, num, size)
    found = confusion(x, y)
    assert found.dtype == torch.int64
    if size > 1:  # scikit-learn warns of a single class
        assert (found.numpy() == metrics.confusion_matrix(y, x.argmax(1), labels=range(size))).all()
    assert found.shape == (size, size)
    assert int(found.sum()) == num


@given(seed=st.integers(0, 999), num=st.integers(1, 40), size=st.integers(1, 6))
def test_the_report_of_each_class_is_that_of_scikit_learn(seed: int, num: int, size: int) -> None:
    x, y = logits(seed, num, size), classes(seed + 1, num, size)
    names = tuple(f"class {index}" for index in range(size))
    expected = metrics.classification_report(
        y, x.argmax(1), labels=range(size), target_names=names, output_dict=True, zero_division=0
    )
    for row in per_class(x, y, names):
        wanted = expected[row["class"]]
        assert row["num"] == wanted["support"]
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert row[ours] == pytest.approx(wanted[theirs], abs=1e-12)  # rounding of float64


def test_classes_without_names_are_numbered() -> None:
    assert [row["class"] for row in per_class(logits(0, 4, 3), classes(0, 4, 3), ())] == ["0", "1", "2"]


# -- predictions ----------------------------------------------------------------------------------------------------


def loader_of(learner: Learner, num: int = 10, batch_size: int = 4) -> Loader:
    return Loader(
        ToyTasks(num=num).open(None).splits["test"],
        modality="image",
        target=learner.target,
        preparation=learner.source.preparation,
        batch_size=batch_size,
    )


def test_predictions_come_in_order_with_their_ids() -> None:
    learner = build(toy_plan(ToyOpen()))
    predictions, ids = predict(learner.train(), loader_of(learner))
    assert ids == tuple(map(str, range(10)))
    assert predictions.dtype == torch.float32
    for index in range(10):
        (batch,) = [batch for batch in loader_of(learner).epoch() if str(index) in batch.ids]
        with torch.no_grad():
            row = learner(batch.inputs).predictions[batch.ids.index(str(index))]
        assert torch.equal(predictions[index], row)


def test_predicting_leaves_evaluation_mode_draws_and_gradients() -> None:
    learner = build(toy_plan(ToyOpen())).train()
    drawn = torch.get_rng_state()
    predictions, _ = predict(learner, loader_of(learner))
    assert not learner.training
    assert not predictions.requires_grad
    assert not predictions.is_inference()
    assert torch.equal(torch.get_rng_state(), drawn)


def test_predictions_of_a_float64_learner_are_float32() -> None:
    class Doubling(nn.Module):
        def __init__(self, learner: Learner) -> None:
            super().__init__()
            self.learner = learner.double()

        def forward(self, inputs: dict[str, Tensor]) -> Any:
            return self.learner({name: x.double() for name, x in inputs.items()})

    learner = build(toy_plan())
    expected, _ = predict(learner, loader_of(learner))
    found, _ = predict(Doubling(learner), loader_of(learner))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)  # float32 against float64


def test_mixed_precision_is_near_and_not_equal() -> None:
    learner = build(toy_plan())
    exact, _ = predict(learner, loader_of(learner))
    mixed, _ = predict(learner, loader_of(learner), precision="bfloat16")
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.1)  # bfloat16 has eight bits


def test_precision_follows_the_device_unless_it_is_named() -> None:
    assert precision_of("auto", CPU) == "float32"
    assert precision_of("auto", torch.device("cuda")) == "bfloat16"
    assert precision_of("bfloat16", CPU) == "bfloat16"
    with autocast(CPU, "float32"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, "bfloat16"):
        assert torch.is_autocast_enabled("cpu")


# -- counts ---------------------------------------------------------------------------------------------------------

BACKBONE = sum(x.numel() for x in build(toy_plan()).backbone.parameters())
HEAD = 12 * 3 + 3


@pytest.mark.parametrize(
    ("plan", "trainable", "total"),
    [
        (toy_plan(), HEAD, BACKBONE + HEAD),
        (toy_plan(ToyOpen()), BACKBONE + HEAD, BACKBONE + HEAD),
        (toy_plan(ToyHint()), HEAD, BACKBONE + HEAD),  # neither projector nor teacher
        (toy_plan(head=ToyHeads(norm=True)), HEAD, BACKBONE + HEAD),
        (toy_plan(task=ToyTasks(kind="regression", size=3)), HEAD, BACKBONE + HEAD),
    ],
)
def test_parameters_are_counted(plan: Any, trainable: int, total: int) -> None:
    assert count_parameters(build(plan)) == (trainable, total)


def test_the_state_of_a_closed_form_head_is_counted() -> None:
    learner = build(toy_plan(head=ToyMemory()))
    learner.head.fit(  # type: ignore[operator]
        Features(kind="pooled", x=torch.zeros(7, 12)), torch.arange(7) % 3
    )
    assert count_parameters(learner) == (7 * 12 + 7 * 3, BACKBONE + 7 * 12 + 7 * 3)


# -- rates and memory -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass while a step runs; the watch sees no other time."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def run_steps(watch: Stopwatch, clock: list[float], seconds: list[float], examples: int = 8) -> None:
    for each in seconds:
        clock[0] += 5.0  # loading, not timed
        watch.start()
        clock[0] += each
        watch.stop(examples)


def test_a_rate_is_the_median_of_windows_without_warm_up(clock: list[float]) -> None:
    watch = Stopwatch(CPU, warmup=2)
    run_steps(watch, clock, [9.0, 9.0, 0.1, 0.2, 0.4])
    found = watch.rate(batch_size=8, precision="float32")
    assert found is not None
    assert found["examples_per_second"] == pytest.approx(40)
    assert found["spread"] == pytest.approx((60 - 30) / 40)  # quartiles of 20, 40, 80
    assert (found["batch_size"], found["precision"], found["repeats"]) == (8, "float32", 3)


def test_short_steps_share_a_window(clock: list[float]) -> None:
    watch = Stopwatch(CPU, warmup=0)
    run_steps(watch, clock, [MIN_WINDOW_SECONDS / 3.5] * 9)  # four fill a window
    assert watch.windows == 2
    found = watch.rate(batch_size=8, precision="float32")
    assert found is not None
    assert found["examples_per_second"] == pytest.approx(8 * 3.5 / MIN_WINDOW_SECONDS)


@pytest.mark.parametrize("seconds", [[], [1.0, 1.0], [1.0, 1.0, MIN_WINDOW_SECONDS / 2]])
def test_too_few_steps_have_no_rate(clock: list[float], seconds: list[float]) -> None:
    watch = Stopwatch(CPU, warmup=2)
    run_steps(watch, clock, seconds)
    assert watch.rate(batch_size=8, precision="float32") is None


def test_one_window_has_no_spread(clock: list[float]) -> None:
    watch = Stopwatch(CPU, warmup=0)
    run_steps(watch, clock, [1.0])
    found = watch.rate(batch_size=8, precision="float32")
    assert found is not None
    assert (found["examples_per_second"], found["spread"], found["repeats"]) == (8.0, 0.0, 1)


def test_the_rate_of_inference_is_that_of_its_batch() -> None:
    learner = build(toy_plan())
    found = inference_rate(learner, loader_of(learner, num=6, batch_size=64))
    assert found is not None
    assert found["batch_size"] == 6
    assert found["repeats"] >= 3
    assert found["examples_per_second"] > 0


def test_the_peak_of_memory_sees_what_was_held_and_let_go() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    held = torch.ones(64 * 2**20)  # 256 MiB
    del held
    assert peak_memory_bytes(CPU) - before > 200 * 2**20


# -- agreement of features --------------------------------------------------------------------------------------------


def alike(x: Tensor, y: Tensor) -> float:
    return agreement(x, y, Target(kind="unlabelled", size=x.shape[1]))


def test_features_agree_up_to_a_rotation_and_a_scale_and_unrelated_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64))
    assert alike(x, 3 * x @ rotation + 1) == pytest.approx(1, abs=1e-12)
    pairs = [torch.randn(2, 12, 64, generator=generator) for _ in range(50)]
    assert abs(statistics.mean(alike(one, other) for one, other in pairs)) < 0.05  # a biased estimate is near 0.9


def test_agreement_of_features_is_what_the_sums_over_pairs_say() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def dependence(a: Tensor, b: Tensor) -> float:
        """Equation 5 of Song et al. 2012, as means over ordered tuples of distinct examples."""
        k, m = (z @ z.T for z in (a - a.mean(0), b - b.mean(0)))
        two = [float(k[i, j] * m[i, j]) for i, j in itertools.permutations(range(6), 2)]
        three = [float(k[i, j] * m[i, q]) for i, j, q in itertools.permutations(range(6), 3)]
        four = [float(k[i, j] * m[q, r]) for i, j, q, r in itertools.permutations(range(6), 4)]
        return statistics.mean(two) + statistics.mean(four) - 2 * statistics.mean(three)

    expected = dependence(x, y) / (dependence(x, x) * dependence(y, y)) ** 0.5
    assert alike(x, y) == pytest.approx(expected, rel=1e-9)


def test_agreement_of_features_is_not_defined_on_three_examples() -> None:
    assert math.isnan(alike(torch.randn(3, 4), torch.randn(3, 4)))
    assert alike(torch.ones(5, 4), torch.randn(5, 4)) == 0
