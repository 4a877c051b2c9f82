"""The heads: formulas against hand-written float64, closed forms against scikit-learn, and what each refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import Tensor, nn

from zoo_adapters.head_modules import PENALTIES, KnnHead, NcmHead, RidgeHead
from zoo_adapters.heads import AttentionPool, Knn, Linear, Mlp, Ncm, Ridge
from zoo_core.benchmark.trial import run_trial
from zoo_core.contracts import Features, FeatureSpec, HeadRecipe, Kind, Split, Target, TargetKind, fact
from zoo_core.data.loader import Loader
from zoo_core.errors import DivergedError, RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget, Plan
from zoo_core.runs.stored_run import save_run
from zoo_core.training.fit import fit

Build = Callable[..., Learner]
Resolve = Callable[..., Plan]

TOYS = Path(__file__).parent / "toys"
CLASSES = Target(kind="classes", size=3)
SIZES = {"classes": 3, "multilabel": 4, "regression": 2}
DIM = 8
EXACT = 1e-13  # float64 sums of about ten terms of order one, taken in another order


def head_of(recipe: HeadRecipe, *, target: Target = CLASSES) -> nn.Module:
    """The head in float64, in evaluation mode, with weights of order one so that every term of a formula counts."""
    head = recipe.build(FeatureSpec(kind=fact("head", recipe, "consumes"), dim=DIM), target).double().eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return head


def pooled(*shape: int) -> Features:
    return Features(kind="pooled", x=torch.randn(*shape, dtype=torch.float64))


def clouds(num: int, *, classes: int = 3, seed: int = 0) -> tuple[Features, Tensor]:
    """Overlapping clouds in float64, and the class of each row."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % classes
    x = np.random.default_rng(99).normal(size=(classes, DIM))[labels] + rng.normal(size=(num, DIM))
    return Features(kind="pooled", x=torch.from_numpy(x)), torch.from_numpy(labels)


def close(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# -- gradient heads -----------------------------------------------------------------------------------------------


def test_linear_is_x_times_w_transposed_plus_b() -> None:
    head, features = head_of(Linear()), pooled(6, DIM)
    weight, bias = head.get_parameter("out.weight"), head.get_parameter("out.bias")
    close(head(features), features.x @ weight.T + bias)


def test_linear_starts_near_zero_with_no_bias() -> None:
    head = Linear().build(FeatureSpec(kind="pooled", dim=4096), CLASSES)
    assert not head.get_parameter("out.bias").any()
    weight = head.get_parameter("out.weight").detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)  # 12,288 draws: the estimate errs by 0.6 %
    assert float(weight.abs().max()) < 0.12  # six deviations


def test_mlp_is_linear_gelu_linear() -> None:
    head, features = head_of(Mlp(hidden_dim=16)), pooled(6, DIM)
    hidden = features.x @ head.get_parameter("hidden.weight").T + head.get_parameter("hidden.bias")
    gelu = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    close(head(features), gelu @ head.get_parameter("out.weight").T + head.get_parameter("out.bias"), 1e-12)


def by_hand(head: nn.Module, x_TD: np.ndarray, num_heads: int) -> np.ndarray:
    """One example through the attention pool, written with loops: float64 [T, D] of real tokens -> [C]."""
    state = {name: tensor.detach().numpy() for name, tensor in head.state_dict().items()}
    centred = x_TD - x_TD.mean(1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    normed = normed * state["norm.weight"] + state["norm.bias"]
    pairs = normed @ state["key_value.weight"].T + state["key_value.bias"]
    width = DIM // num_heads
    pooled_D = np.zeros(DIM)
    for number in range(num_heads):
        rows = slice(number * width, (number + 1) * width)
        key, value = pairs[:, :DIM][:, rows], pairs[:, DIM:][:, rows]
        scores = np.exp(key @ state["query"][number, 0] / math.sqrt(width))
        pooled_D[rows] = (scores / scores.sum()) @ value
    return np.asarray(pooled_D @ state["out.weight"].T + state["out.bias"])


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_pool_is_one_query_of_each_head_over_the_real_tokens(num_heads: int) -> None:
    head = head_of(AttentionPool(num_heads=num_heads))
    x = torch.randn(3, 5, DIM, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False, True, False, True, True]])
    found = head(Features(kind="tokens", x=x, mask=mask)).detach()
    expected = [by_hand(head, row[kept].numpy(), num_heads) for row, kept in zip(x, mask, strict=True)]
    close(found, torch.from_numpy(np.stack(expected)), 1e-12)


def test_attention_pool_does_not_see_what_padding_holds() -> None:
    head = head_of(AttentionPool())
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 3:] = False
    other = x.clone()
    other[0, 3:] = 1e6 * torch.randn(3, DIM, dtype=torch.float64)
    one = head(Features(kind="tokens", x=x, mask=mask))
    assert torch.equal(one, head(Features(kind="tokens", x=other, mask=mask)))
    assert not torch.equal(one, head(Features(kind="tokens", x=other)))  # without a mask it does
    alone = head(Features(kind="tokens", x=x[:1, :3]))
    close(one[:1], alone, 1e-12)  # and its length does not count either, up to the order of sums


def test_a_mask_of_real_tokens_is_no_mask() -> None:
    head, x = head_of(AttentionPool()), torch.randn(2, 6, DIM, dtype=torch.float64)
    mask = torch.ones(2, 6, dtype=torch.bool)
    close(head(Features(kind="tokens", x=x, mask=mask)), head(Features(kind="tokens", x=x)))


def test_padding_gets_no_gradient_from_attention_pool() -> None:
    head, x = head_of(AttentionPool()), torch.randn(1, 4, DIM, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True]])
    head(Features(kind="tokens", x=x, mask=mask)).square().sum().backward()
    assert x.grad is not None
    assert not x.grad[0, 2].any()
    assert x.grad[0, 0].any()


@pytest.mark.parametrize("recipe", [Linear(), Mlp(), AttentionPool()])
@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_a_gradient_head_gives_one_output_for_each_of_every_target(recipe: HeadRecipe, kind: str) -> None:
    target = Target(kind=kind, size=SIZES[kind])  # type: ignore[arg-type]
    head = head_of(recipe, target=target)
    shape = (5, DIM) if fact("head", recipe, "consumes") == "pooled" else (5, 7, DIM)
    assert head(Features(kind=fact("head", recipe, "consumes"), x=pooled(*shape).x)).shape == (5, SIZES[kind])
    assert kind in fact("head", recipe, "predicts")


@pytest.mark.parametrize("head", ["linear", "mlp", "attention-pool"])
def test_dropout_acts_in_training_alone(build_toy: Build, head: str) -> None:
    inputs = {"pixel_values": torch.randn(4, 3, 8, 8)}
    learner, without = build_toy(f"toy/map+{head}(dropout=0.5)"), build_toy(f"toy/map+{head}")
    with torch.no_grad():
        assert torch.equal(learner(inputs).predictions, without(inputs).predictions)
        learner.train()
        assert not torch.equal(learner(inputs).predictions, learner(inputs).predictions)
        without.train()
        assert torch.equal(without(inputs).predictions, without(inputs).predictions)
        learner.eval()
        assert torch.equal(learner(inputs).predictions, without.eval()(inputs).predictions)


def test_dropout_keeps_the_mean_of_the_features() -> None:
    head = Linear(dropout=0.5).build(FeatureSpec(kind="pooled", dim=1), Target(kind="classes", size=1))
    nn.init.ones_(head.get_parameter("out.weight"))
    found = head.train()(Features(kind="pooled", x=torch.ones(20_000, 1))).detach()
    assert set(found.flatten().tolist()) == {0.0, 2.0}
    assert float(found.mean()) == pytest.approx(1, abs=0.04)  # five deviations of the mean of 20,000 coins


@pytest.mark.parametrize(("recipe", "usual"), [(Linear, 1e-2), (Mlp, 2e-3), (AttentionPool, 2e-3)])
def test_a_grid_of_a_head_is_five_ascending_rates_around_the_usual_one(
    resolve_toy: Resolve, recipe: type[HeadRecipe], usual: float
) -> None:
    grid = fact("head", recipe, "learning_rates")
    assert len(grid) == 5
    assert [high / low for low, high in pairwise(grid)] == pytest.approx([5.0] * 4)
    name = {Linear: "linear", Mlp: "mlp", AttentionPool: "attention-pool"}[recipe]
    assert resolve_toy(f"toy/map+{name}", budget=Budget(num_rates=1)).learning_rates == (usual,)


def test_a_head_in_closed_form_has_no_rates(resolve_toy: Resolve) -> None:
    for name in ("ncm", "knn", "ridge"):
        assert resolve_toy(f"toy/map+{name}").learning_rates == ()


def test_a_linear_probe_trained_to_the_end_is_logistic_regression(build_toy: Build, resolve_toy: Resolve) -> None:
    """Same optimum, so the same probabilities. Neither is penalised; the clouds overlap, so the optimum is finite.

    0.01: float32 gradients of 1e-6 over a smallest curvature of about 1e-3, and what is left of the schedule.
    """
    plan = resolve_toy("toy/plain+probe+linear", task="toy-rows", target=None)
    assert plan.task is not None
    data = plan.task.recipe.open(None)
    learner = build_toy("toy/plain+probe+linear")
    fit(
        learner,
        loader_of(data.splits["train"], learner, shuffled=True),
        budget=Budget(epochs=300, batch_size=240, weight_decay=0),
        learning_rate=5e-2,
        seed=0,
    )
    train, test = data.splits["train"], data.splits["test"]
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(train.x, train.targets)
    with torch.no_grad():
        found = learner({"numeric": torch.from_numpy(test.x)}).predictions.softmax(1).numpy()
    expected = reference.predict_proba(test.x)
    assert 0.6 < reference.score(test.x, test.targets) < 0.95  # neither chance nor separable
    assert np.abs(found - expected).max() < 0.01
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99


def loader_of(split: Split, learner: Learner, *, shuffled: bool = False) -> Loader:
    return Loader(
        split,
        modality="table",
        target=learner.target,
        preparation=learner.source.preparation,
        batch_size=240,
        shuffled=shuffled,
    )


# -- nearest class mean -------------------------------------------------------------------------------------------


def ncm(metric: str, train: Features, target: Tensor, *, size: int = 3) -> NcmHead:
    head = NcmHead(DIM, size, cosine=metric == "cosine").to(train.x.dtype)
    head.fit(train, target)
    return head


def test_euclidean_ncm_is_the_nearest_centroid_of_scikit_learn() -> None:
    (train, target), (test, _) = clouds(90), clouds(500, seed=1)
    reference = NearestCentroid().fit(train.x.numpy(), target.numpy())
    head = ncm("euclidean", train, target)
    close(head.means, torch.from_numpy(reference.centroids_), 1e-12)
    assert np.array_equal(head(test).argmax(1).numpy(), reference.predict(test.x.numpy()))


def test_euclidean_logits_are_minus_half_the_squared_distance() -> None:
    (train, target), (test, _) = clouds(90), clouds(20, seed=1)
    means = torch.stack([train.x[target == label].mean(0) for label in range(3)])
    expected = torch.stack([-0.5 * (test.x - mean).square().sum(1) for mean in means], dim=1)
    close(ncm("euclidean", train, target)(test), expected, 1e-12)


def test_cosine_ncm_compares_unit_features_with_the_mean_of_unit_features() -> None:
    (train, target), (test, _) = clouds(90), clouds(20, seed=1)
    unit = train.x / train.x.norm(dim=1, keepdim=True)
    means = torch.stack([unit[target == label].mean(0) for label in range(3)])
    expected = (test.x @ means.T) / (test.x.norm(dim=1, keepdim=True) * means.norm(dim=1))
    close(ncm("cosine", train, target)(test), expected, 1e-12)


def test_cosine_ncm_does_not_see_the_length_of_features_and_euclidean_ncm_does() -> None:
    (train, target), (test, _) = clouds(90), clouds(50, seed=1)
    longer = Features(kind="pooled", x=test.x * torch.linspace(0.1, 50, 50, dtype=torch.float64)[:, None])
    cosine, euclidean = ncm("cosine", train, target), ncm("euclidean", train, target)
    close(cosine(test), cosine(longer), 1e-12)
    assert not torch.equal(euclidean(test).argmax(1), euclidean(longer).argmax(1))


def test_euclidean_ncm_in_float32_survives_features_far_from_the_origin() -> None:
    """A product of features would cancel: at 3,000 in each of 8 widths, x * x is 7e7 and float32 tells 4 apart."""
    (train, target), (test, _) = clouds(90), clouds(500, seed=1)
    there = [Features(kind="pooled", x=(features.x + 3000).float()) for features in (train, test)]
    exact = ncm("euclidean", *(Features(kind="pooled", x=there[0].x.double()), target))
    expected = exact(Features(kind="pooled", x=there[1].x.double())).argmax(1)
    agreement = (ncm("euclidean", there[0], target)(there[1]).argmax(1) == expected).double().mean()
    assert agreement >= 0.99  # means rounded to float32 err by 1e-4, distances of 0.1 % of rows differ by less
    products = there[1].x @ exact.means.float().T - 0.5 * exact.means.float().square().sum(1)
    assert (products.argmax(1) == expected).double().mean() < 0.95


# -- nearest neighbours -------------------------------------------------------------------------------------------


def knn(k: int, train: Features, target: Tensor, *, temperature: float = 0.07, size: int = 3) -> KnnHead:
    head = KnnHead(DIM, size, k=k, temperature=temperature).to(train.x.dtype)
    head.fit(train, target)
    return head


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_gives_the_logarithm_of_each_classes_share_of_the_votes(k: int) -> None:
    (train, target), (test, _) = clouds(60), clouds(30, seed=1)
    unit = train.x.numpy() / np.linalg.norm(train.x.numpy(), axis=1, keepdims=True)
    expected = np.zeros((30, 3))
    for row, x in enumerate(test.x.numpy()):
        similarity = unit @ (x / np.linalg.norm(x))
        for index in np.argsort(-similarity)[:k]:
            expected[row, target[index]] += math.exp(similarity[index] / 0.07)
    expected /= expected.sum(1, keepdims=True)
    close(knn(k, train, target)(test).exp(), torch.from_numpy(expected), 1e-12)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (10, 0.07), (20, 1.0)])
def test_knn_is_the_neighbours_classifier_of_scikit_learn_with_the_same_weights(k: int, temperature: float) -> None:
    (train, target), (test, _) = clouds(90), clouds(200, seed=1)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.x.numpy(), target.numpy())
    found = knn(k, train, target, temperature=temperature)(test)
    close(found.exp(), torch.from_numpy(reference.predict_proba(test.x.numpy())), 1e-10)  # its distances round twice


def test_more_neighbours_than_examples_are_all_examples() -> None:
    (train, target), (test, _) = clouds(9), clouds(5, seed=1)
    assert torch.equal(knn(1000, train, target)(test), knn(9, train, target)(test))


def test_one_neighbour_predicts_its_own_class_and_rules_out_the_others() -> None:
    train, target = clouds(30)
    logits = knn(1, train, target)(train)
    assert torch.equal(logits.argmax(1), target)
    assert torch.equal(logits.exp(), nn.functional.one_hot(target, 3).double())


# -- ridge --------------------------------------------------------------------------------------------------------


def ridge(train: Features, target: Tensor, *, kind: TargetKind = "classes", size: int = 3, **given: Any) -> RidgeHead:
    head = RidgeHead(train.x.shape[1], size, kind=kind, **given).to(train.x.dtype)
    head.fit(train, target)
    return head


def alpha(penalty: float, train: Features) -> float:
    """A penalty as scikit-learn has it: ours is in units of the mean squared singular value of centred features."""
    singular = np.linalg.svd(train.x.numpy() - train.x.numpy().mean(0), compute_uv=False)
    num, dim = train.x.shape
    return penalty * float((singular**2).sum()) / min(num - 1, dim)


WIDE_AND_TALL = pytest.mark.parametrize("num", [8, 90], ids=["wide", "tall"])


@WIDE_AND_TALL
@pytest.mark.parametrize("penalty", [1e-3, 10.0])
def test_ridge_is_the_ridge_classifier_of_scikit_learn(num: int, penalty: float) -> None:
    (train, target), (test, _) = clouds(num), clouds(200, seed=1)
    reference = RidgeClassifier(alpha=alpha(penalty, train)).fit(train.x.numpy(), target.numpy())
    head = ridge(train, target, penalties=(penalty,))
    close(head(test), torch.from_numpy(reference.decision_function(test.x.numpy())), 1e-11)
    close(head.as_linear()(test.x), head(test), 1e-12)


def test_ridge_of_labels_is_the_ridge_classifier_of_each() -> None:
    (train, target), (test, _) = clouds(90), clouds(200, seed=1)
    labels = torch.stack([target == 0, target != 1], dim=1).double()
    reference = RidgeClassifier(alpha=alpha(0.1, train)).fit(train.x.numpy(), labels.numpy())
    found = ridge(train, labels, kind="multilabel", size=2, penalties=(0.1,))(test)
    close(found, torch.from_numpy(reference.decision_function(test.x.numpy())), 1e-11)


def test_ridge_of_values_is_the_ridge_of_scikit_learn() -> None:
    (train, _), (test, _) = clouds(90), clouds(30, seed=1)
    values = 50 * train.x[:, :2].square() + 10
    reference = RidgeRegression(alpha=alpha(0.1, train)).fit(train.x.numpy(), values.numpy())
    found = ridge(train, values, kind="regression", size=2, penalties=(0.1,))(test)
    close(found, torch.from_numpy(reference.predict(test.x.numpy())), 1e-11)


@WIDE_AND_TALL
def test_ridge_chooses_the_penalty_that_is_best_for_examples_left_out_in_turn(num: int) -> None:
    train, target = clouds(num)
    numbers = 2 * nn.functional.one_hot(target, 3).double().numpy() - 1
    errors = []
    for penalty in PENALTIES:
        reference, error = RidgeRegression(alpha=alpha(penalty, train)), 0.0
        for out in range(num):
            kept = np.arange(num) != out
            fitted = reference.fit(train.x.numpy()[kept], numbers[kept])
            error += float(np.square(fitted.predict(train.x.numpy()[~kept]) - numbers[~kept]).sum())
        errors.append(error)
    best = PENALTIES[int(np.argmin(errors))]
    assert PENALTIES[0] < best < PENALTIES[-1]  # at an end of the grid many mistakes would choose the same
    assert float(ridge(train, target).penalty) == best


def test_ridge_in_float32_survives_features_far_from_the_origin() -> None:
    """float32 tells 0.0002 apart at 3,000, and the weights and the mean multiply that by about ten."""
    (train, target), (test, _) = clouds(90), clouds(200, seed=1)
    there = [Features(kind="pooled", x=(features.x + 3000).float()) for features in (train, test)]
    close(ridge(there[0], target)(there[1]).double(), ridge(train, target)(test), 2e-3)


@pytest.mark.parametrize("num", [1, 3])
def test_ridge_of_features_that_are_all_alike_predicts_the_mean_of_the_targets(num: int) -> None:
    train = Features(kind="pooled", x=torch.ones(num, DIM, dtype=torch.float64))
    target = torch.tensor([0, 0, 1])[:num]
    expected = 2 * nn.functional.one_hot(target, 3).double().mean(0) - 1
    close(ridge(train, target)(train), expected.expand(num, -1))


def test_ridge_of_features_that_are_not_finite_says_so() -> None:
    train, target = clouds(9)
    train.x[3, 2] = torch.nan
    with pytest.raises(DivergedError, match="features of 9 training examples are not finite"):
        ridge(train, target)


# -- closed forms -------------------------------------------------------------------------------------------------


CLOSED: dict[str, Callable[[Features, Tensor], nn.Module]] = {
    "cosine": lambda train, target: ncm("cosine", train, target),
    "euclidean": lambda train, target: ncm("euclidean", train, target),
    "knn": lambda train, target: knn(20, train, target),
    "ridge": ridge,
}


@pytest.mark.parametrize("form", CLOSED)
def test_a_class_without_examples_is_never_predicted(form: str) -> None:
    (train, target), (test, _) = clouds(60, classes=2), clouds(200, classes=3, seed=1)
    present = torch.tensor([0, 2])[target]  # class 1 of three has no example, and zeros for a mean
    logits = CLOSED[form](train, present)(Features(kind="pooled", x=-100 * test.x))  # on the other side of all seen
    assert set(logits.argmax(1).tolist()) <= {0, 2}
    if form != "ridge":
        assert (logits[:, 1] == -torch.inf).all()
        assert torch.isfinite(logits.exp()).all()


@pytest.mark.parametrize("form", CLOSED)
def test_mixed_precision_does_not_reach_a_closed_form(form: str) -> None:
    (train, target), (test, _) = clouds(90), clouds(50, seed=1)
    train, test = (Features(kind="pooled", x=features.x.float()) for features in (train, test))
    head = CLOSED[form](train, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(test).dtype == torch.float32
        assert torch.equal(head(test), head(test))
        mixed = head(test)
    assert torch.equal(mixed, head(test))


@pytest.mark.parametrize("form", ["ncm", "ncm(metric=euclidean)", "knn(k=3)", "ridge(penalty=0.1)"])
def test_a_closed_form_is_fitted_from_the_training_split_in_one_pass(
    build_toy: Build, resolve_toy: Resolve, form: str
) -> None:
    """The whole way through loader and learner, on features that are the rows themselves, against scikit-learn."""
    plan = resolve_toy(f"toy/plain+{form}", task="toy-rows", target=None)
    assert plan.task is not None
    data, learner = plan.task.recipe.open(None), build_toy(f"toy/plain+{form}")
    fit(learner, loader_of(data.splits["train"], learner), budget=Budget(), learning_rate=None, seed=0)
    train, test = data.splits["train"], data.splits["test"]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train.x, test.x)]
    rows = Features(kind="pooled", x=torch.from_numpy(train.x))
    weights = {"metric": "cosine", "algorithm": "brute", "weights": lambda distance: np.exp((1 - distance) / 0.07)}
    references: dict[str, Callable[[], np.ndarray]] = {
        "ncm": lambda: nearest_direction(unit[0], train.targets, unit[1]),
        "ncm(metric=euclidean)": lambda: NearestCentroid().fit(train.x, train.targets).predict(test.x),
        "knn(k=3)": lambda: KNeighborsClassifier(3, **weights).fit(train.x, train.targets).predict(test.x),
        "ridge(penalty=0.1)": lambda: (
            RidgeClassifier(alpha=alpha(0.1, rows)).fit(train.x, train.targets).predict(test.x)
        ),
    }
    found = learner({"numeric": torch.from_numpy(test.x)}).predictions.argmax(1).numpy()
    assert np.array_equal(found, references[form]())
    assert not list(learner.trainable())


def nearest_direction(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    means = np.stack([train[labels == label].mean(0) for label in range(3)])
    return np.asarray((test @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1))


CLOSED_AND_OPEN = {
    "ncm": ["counts", "means"],
    "knn(k=3)": ["bank", "labels"],
    "ridge": ["bias", "mean", "penalty", "weight"],
    "linear": ["out.bias", "out.weight"],
}
LOAD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from zoo_core.runs.stored_run import load_stored, read_run
inputs = {"numeric": torch.linspace(-2, 2, 50).reshape(10, 5)}
with torch.inference_mode():
    for path in sys.argv[2:]:
        print(json.dumps(load_stored(read_run(Path(path)))(inputs).predictions.tolist()))
"""


@pytest.mark.slow
def test_fitted_heads_saved_and_loaded_in_a_new_process_predict_bit_equally(
    tmp_path: Path, resolve_toy: Resolve
) -> None:
    inputs, expected = {"numeric": torch.linspace(-2, 2, 50).reshape(10, 5)}, []
    for number, (head, names) in enumerate(CLOSED_AND_OPEN.items()):
        plan = resolve_toy(f"toy/plain+probe+{head}", task="toy-rows", target=None, budget=Budget(epochs=2))
        _, learner, _ = run_trial(plan)
        assert sorted(learner.delta()) == [f"heads.main.{name}" for name in names]  # of the backbone nothing
        folder = tmp_path / str(number)
        folder.mkdir()
        save_run(learner, plan, folder)
        with torch.inference_mode():
            expected.append(json.dumps(learner(inputs).predictions.tolist()))
    command = [sys.executable, "-c", LOAD, str(TOYS), *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


# -- wrong arguments and pairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("linear(dropout=1)", "linear(dropout=1): allowed: 0 to below 1"),
        ("linear(dropout=-0.1)", "linear(dropout=-0.1): allowed: 0 to below 1"),
        ("mlp(dropout=2)", "mlp(dropout=2): allowed: 0 to below 1"),
        ("mlp(hidden_dim=0)", "mlp(hidden_dim=0): allowed: any positive number"),
        ("mlp(hidden_dim=2.5)", "hidden_dim is a whole number"),
        ("attention-pool(num_heads=0)", "attention-pool(num_heads=0): allowed: any positive number"),
        ("ncm(metric=manhattan)", "metric is one of cosine, euclidean, found the text 'manhattan'"),
        ("knn(k=0)", "knn(k=0): allowed: any positive number"),
        ("knn(temperature=0)", "knn(temperature=0): allowed: any positive number"),
        ("knn(neighbours=3)", "neighbours"),
        ("ridge(penalty=0)", "ridge(penalty=0): allowed: any positive number"),
        ("ridge(penalty=cv)", "penalty is a number or auto, found the text 'cv'"),
        ("linear(bias=false)", "bias"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(resolve_toy: Resolve, head: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_toy(f"toy/tokens+{head}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_attention_heads_must_divide_the_width(build_toy: Build) -> None:
    with pytest.raises(UsageError, match=r"^attention-pool\(num_heads=5\) does not divide the width 12$"):
        build_toy("toy/tokens+attention-pool(num_heads=5)")


def test_attention_pool_is_refused_on_features_that_are_already_pooled(resolve_toy: Resolve) -> None:
    with pytest.raises(RefusedError, match="attention-pool consumes tokens and toy/plain gives pooled"):
        resolve_toy("toy/plain+attention-pool")


@pytest.mark.parametrize("head", ["ncm", "knn"])
@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_a_closed_form_predicts_classes_alone(resolve_toy: Resolve, head: str, kind: str) -> None:
    target = Target(kind=kind, size=2)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=f"head {head} predicts classes and the target is {kind}"):
        resolve_toy(f"toy/tokens+{head}", target=target)


@pytest.mark.parametrize("adapter", ["full", "partial", "bitfit", "norm"])
def test_a_closed_form_trains_no_backbone(resolve_toy: Resolve, adapter: str) -> None:
    with pytest.raises(RefusedError, match="fitted in closed form and gives no gradient"):
        resolve_toy(f"toy/tokens+{adapter}+ncm")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (Linear, "pooled"),
        (Mlp, "pooled"),
        (AttentionPool, "tokens"),
        (Ncm, "pooled"),
        (Knn, "pooled"),
        (Ridge, "pooled"),
    ],
)
def test_a_head_says_what_it_consumes(head: type[HeadRecipe], kind: Kind) -> None:
    assert fact("head", head, "consumes") == kind
