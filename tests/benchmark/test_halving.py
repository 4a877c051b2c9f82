"""What goes on at a rung is a function of validation scores: never without the best, whatever the order."""

from __future__ import annotations

import math
import statistics
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from zoo_core.benchmark.halving import better_half, decide

SCORES = st.one_of(st.none(), st.just(math.nan), st.floats(-1, 1), st.sampled_from([0.25, 0.5, 0.75]))
TASKS = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.lists(SCORES, max_size=4), max_size=12)


def mean(scores: list[float | None]) -> float:
    known = [score for score in scores if score is not None and not math.isnan(score)]
    return statistics.fmean(known) if known else -math.inf


@given(TASKS)
def test_at_a_rung_the_better_half_goes_on_with_all_that_equals_it(task: dict[str, list[float | None]]) -> None:
    found = decide(task)
    means = {name: mean(scores) for name, scores in task.items()}
    scored = [name for name in means if means[name] > -math.inf]
    assert found.going_on <= set(scored)
    assert len(found.going_on) >= min(len(scored), max(2, math.ceil(len(task) / 2)))
    for name in scored:
        is_better = [other for other in scored if means[other] > means[name]]
        goes_on = len(is_better) < max(2, math.ceil(len(task) / 2))
        assert (name in found.going_on) == goes_on  # so the best always does, and equals do alike


@given(TASKS, st.randoms())
def test_no_order_decides(task: dict[str, list[float | None]], shuffle: Random) -> None:
    names = list(task)
    shuffle.shuffle(names)
    mixed = {name: task[name][::-1] for name in names}
    assert decide(mixed) == decide(task)


@given(st.dictionaries(st.integers(0, 9), SCORES, min_size=1))
def test_of_the_rates_of_a_trial_half_go_on_and_the_first_of_the_best(rates: dict[int, float | None]) -> None:
    known = [rate for rate, score in rates.items() if score is not None and not math.isnan(score)]
    found = better_half(rates)
    assert len(found) == min(len(known), math.ceil(len(rates) / 2))
    assert list(found) == [rate for rate in rates if rate in found]
    if known:
        best = max(rates[rate] or 0.0 for rate in known)
        assert next(rate for rate in known if rates[rate] == best) in found
