"""Intervals: as wide as the examples are few, right as often as they say, and paired where scores are compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo_core.contracts import Target
from zoo_core.selection.certainty import Worth, interval, is_told_apart, worth_of
from zoo_core.selection.score_functions import blocks, knn, logme
from zoo_core.testing.scores import scored_examples


def width(ends: tuple[float, float]) -> float:
    return ends[1] - ends[0]


@pytest.mark.parametrize("score", [knn, logme])
def test_an_interval_is_wider_at_50_examples_than_at_500(score: object) -> None:
    found = []
    for num in (50, 500):
        features, truth, target = scored_examples("classes", num=num, noise=0.8)

        def judge(places: Tensor, x: Tensor = features, y: Tensor = truth, of: object = target) -> Tensor:
            return score(x[places], y[places], of)  # type: ignore[operator,no-any-return]

        worth = worth_of(judge, blocks(truth, target, 10))
        low, high = interval(worth)
        assert low < worth.score < high
        found.append(width((low, high)))
    assert 1.5 < found[0] / found[1] < 6  # around the root of ten; ten blocks tell a width to a third of it


def drawn(num: int, seed: int) -> Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("by_block", [False, True])
def test_an_interval_holds_the_truth_as_often_as_it_says(by_block: bool) -> None:
    """Of a mean over 200 draws the two ways agree with theory: 95 of 100, with four standard errors of a count."""
    block_N = torch.arange(200) % 10
    hits = 0
    for seed in range(300):
        values = drawn(200, seed)

        def judge(places: Tensor, x: Tensor = values) -> Tensor:
            return x[places].mean() if by_block else x[places]

        worth = worth_of(judge, block_N)
        low, high = interval(worth)
        hits += low <= 0 <= high
    assert abs(hits / 300 - 0.95) < 4 * (0.95 * 0.05 / 300) ** 0.5


def test_the_jackknife_of_a_mean_has_its_standard_error() -> None:
    values = drawn(1000, 1)
    worth = worth_of(lambda places: values[places].mean(), torch.arange(1000) % 10)
    means = torch.stack([values[block::10].mean() for block in range(10)])
    assert float(worth.values.std()) == pytest.approx(float(means.std()), rel=1e-9)


def test_scores_on_the_same_examples_are_told_apart_by_their_difference() -> None:
    hard = drawn(400, 2)  # what makes an example hard for every backbone
    one = Worth(score=float(hard.mean()) + 0.05, values=hard + 0.05, by_block=False)
    other = Worth(score=float(hard.mean()), values=hard, by_block=False)
    assert interval(one)[0] < interval(other)[1]
    assert is_told_apart(one, other)
    assert not is_told_apart(other, other)


def test_equally_good_backbones_are_seldom_told_apart() -> None:
    """7 of 100 were in a longer simulation, as the neighbours are not drawn anew; 15 is three standard errors more."""
    alarms = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.randint(3, (60,), generator=generator)
        worths = []
        for _ in range(2):
            x = 0.9 * torch.randn(60, 16, generator=generator, dtype=torch.float64)
            x[:, :3] += torch.nn.functional.one_hot(truth, 3)
            values = knn(x, truth, Target(kind="classes", size=3))
            worths.append(Worth(score=float(values.mean()), values=values, by_block=False))
        alarms += is_told_apart(*worths)
    assert alarms <= 15


def test_four_more_right_of_fifty_are_not_told_apart_from_chance() -> None:
    one = torch.ones(50, dtype=torch.float64)
    one[:5] = 0
    other = torch.ones(50, dtype=torch.float64)
    other[3:12] = 0
    worths = [Worth(score=float(values.mean()), values=values, by_block=False) for values in (one, other)]
    assert not is_told_apart(*worths)
