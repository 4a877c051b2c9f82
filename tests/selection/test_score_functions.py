"""What the scores compute, in float64, held against the slow way of computing the same."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo_core.contracts import Target, TargetKind
from zoo_core.errors import UsageError
from zoo_core.selection import score_functions
from zoo_core.selection.score_functions import PENALTIES, blocks, knn, logme, ridge
from zoo_core.testing.scores import scored_examples

KINDS: tuple[TargetKind, ...] = ("classes", "multilabel", "regression")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- neighbours ------------------------------------------------------------------------------------------------------


def test_knn_asks_the_k_most_similar_others_by_cosine() -> None:
    features, truth, target = scored_examples("classes", num=40, noise=1.0)
    found = knn(features, truth, target, k=3)
    for row in range(len(features)):
        others = [other for other in range(len(features)) if other != row]
        similar = {other: float(torch.cosine_similarity(features[row], features[other], dim=0)) for other in others}
        nearest = sorted(others, key=lambda other: -similar[other])[:3]
        votes = torch.zeros(3, dtype=torch.float64)
        for other in nearest:
            votes[truth[other]] += 1 + 1e-6 * similar[other]
        assert bool(found[row]) == bool(votes.argmax() == truth[row])


def test_knn_of_values_is_the_r2_of_the_mean_of_neighbours() -> None:
    features, truth, target = scored_examples("regression", num=60)
    x = torch.nn.functional.normalize(features, dim=1)
    similar = (x @ x.T).fill_diagonal_(-2)
    predicted = torch.stack([truth[row.topk(5).indices].mean(0) for row in similar])
    r2 = 1 - (predicted - truth).square().sum(0) / (truth - truth.mean(0)).square().sum(0)
    assert float(knn(features, truth, target, k=5).mean()) == pytest.approx(float(r2.mean()), abs=1e-12)


def test_knn_looks_at_five_where_a_class_has_few_examples() -> None:
    features, truth, target = scored_examples("classes", num=45, noise=1.0)
    assert torch.equal(knn(features, truth, target), knn(features, truth, target, k=5))
    features, truth, target = scored_examples("classes", num=60, noise=1.0)
    assert torch.equal(knn(features, truth, target), knn(features, truth, target, k=20))


@given(num=st.integers(20, 60), dim=st.integers(2, 9), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_no_score_notices_the_scale_of_features(num: int, dim: int, seed: int, scale: float) -> None:
    features, truth, target = random(num, dim, seed=seed), torch.arange(num) % 3, Target(kind="classes", size=3)
    for score in (knn, ridge, logme):
        one, other = score(features, truth, target), score(features * scale, truth, target)
        assert torch.allclose(one, other, atol=1e-6), score.__name__
        assert one.isfinite().all()


# --- ridge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [4, 90])
def test_ridge_equals_a_fit_on_the_other_folds(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    num, folds = 60, 5
    features, truth = random(num, dim), random(num, 2, seed=1)
    truth = truth + features[:, :2]
    target = Target(kind="regression", size=2)
    x = (features - features.mean(0)) / features.std(0, correction=0)
    fold = blocks(truth, target, folds)
    for weight in PENALTIES:
        monkeypatch.setattr(score_functions, "PENALTIES", (weight,))
        squares = torch.linalg.svdvals(x).square()
        penalty = weight * float(squares[squares > squares[0] * 1e-12].mean())
        predicted = torch.empty_like(truth)
        for left in range(folds):
            rest, held = fold != left, fold == left
            mean_x, mean_y = x[rest].mean(0), truth[rest].mean(0)
            gram = (x[rest] - mean_x).T @ (x[rest] - mean_x) + penalty * torch.eye(dim, dtype=torch.float64)
            slope = torch.linalg.solve(gram, (x[rest] - mean_x).T @ (truth[rest] - mean_y))
            predicted[held] = mean_y + (x[held] - mean_x) @ slope
        r2 = 1 - (predicted - truth).square().sum(0) / (truth - truth.mean(0)).square().sum(0)
        # Two ways in float64 to the solution of systems whose condition is at most 1e5.
        assert float(ridge(features, truth, target, folds).mean()) == pytest.approx(float(r2.mean()), abs=1e-8)


def test_ridge_learns_nothing_from_noise() -> None:
    features, truth = random(600, 500), torch.arange(600) % 2
    found = float(ridge(features, truth, Target(kind="classes", size=2)).mean())
    assert abs(found - 0.5) < 4 * 0.5 / 600**0.5  # four standard errors of chance, though it could fit every label


# --- evidence --------------------------------------------------------------------------------------------------------


def evidence(features: Tensor, y: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """The formula with matrices, for one column, divided by N."""
    num, dim = features.shape
    a, b = log_a.exp(), log_b.exp()
    precision = a * torch.eye(dim, dtype=torch.float64) + b * features.T @ features
    mean = b * torch.linalg.solve(precision, features.T @ y)
    rss = (y - features @ mean).square().sum()
    terms: Tensor = (
        dim * log_a + num * log_b - b * rss - a * mean.square().sum() - torch.logdet(precision) - num * log(2 * pi)
    )
    return terms / 2 / num


def maximised(features: Tensor, y: Tensor) -> float:
    """By Newton's method on log a and log b, from the best point of a grid."""

    def negative(at: Tensor) -> Tensor:
        return -evidence(features, y, at[0], at[1])

    grid = torch.cartesian_prod(torch.linspace(-6, 8, 15).double(), torch.linspace(-6, 8, 15).double())
    at = min(grid, key=lambda point: float(negative(point)))
    for _ in range(40):
        gradient = torch.autograd.functional.jacobian(negative, at)
        step = torch.linalg.solve(torch.autograd.functional.hessian(negative, at), gradient)
        while float(negative(at - step)) > float(negative(at)) + 1e-15 and float(step.abs().max()) > 1e-12:
            step = step / 2
        at = at - step
    return -float(negative(at))


@pytest.mark.parametrize(("num", "dim", "noise"), [(120, 8, 0.5), (120, 8, 1.5), (60, 30, 0.7), (90, 80, 1.0)])
def test_logme_is_the_largest_evidence(num: int, dim: int, noise: float) -> None:
    features, truth, target = scored_examples("classes", num=num, noise=noise)
    features = torch.cat([features, noise * random(num, dim - 8, seed=5)], 1)
    columns = torch.nn.functional.one_hot(truth, 3).double()
    wanted = sum(maximised(features, columns[:, column]) for column in range(3)) / 3
    assert float(logme(features, truth, target)) == pytest.approx(wanted, abs=1e-10)


def test_logme_of_values_does_not_depend_on_their_unit() -> None:
    features, truth, target = scored_examples("regression")
    moved = logme(features, truth * 1000 - 7, target)
    assert float(moved) == pytest.approx(float(logme(features, truth, target)), abs=1e-9)


def test_logme_looks_at_the_classes_that_occur() -> None:
    features, truth, target = scored_examples("classes")
    more = Target(kind="classes", size=7)
    assert torch.equal(logme(features, truth, target), logme(features, truth, more))


def test_logme_stays_finite_where_features_fit_every_label() -> None:
    for features in (random(40, 300), random(40, 3) @ random(3, 300, seed=1) + 1e-3 * random(40, 300, seed=2)):
        assert logme(features, torch.arange(40) % 2, Target(kind="classes", size=2)).isfinite()
    clear, truth, target = scored_examples("classes", num=30, noise=1e-3)
    wide = torch.cat([clear, clear @ random(8, 100)], 1)
    assert logme(wide, truth, target).isfinite()


# --- blocks and mistakes ---------------------------------------------------------------------------------------------


def test_blocks_are_equal_and_hold_each_class() -> None:
    truth = torch.tensor([0] * 70 + [1] * 30)
    found = blocks(truth, Target(kind="classes", size=2), 10)
    assert found.bincount().tolist() == [10] * 10
    assert found[:70].bincount().tolist() == [7] * 10


@pytest.mark.parametrize(("score", "argument"), [(knn, 20), (knn, 0), (ridge, 1), (ridge, 21)])
def test_an_argument_out_of_range_is_told(score: object, argument: int) -> None:
    features, truth, target = scored_examples("classes", num=20)
    with pytest.raises(UsageError, match=rf"={argument}; allowed: \d to \d+, as there are 20 examples"):
        score(features, truth, target, argument)  # type: ignore[operator]
