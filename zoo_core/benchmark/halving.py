"""Successive halving: which of what still runs goes on at a rung, by validation scores alone. No torch.

A rung is a number of epochs, a share of those of the budget (`Budget.rungs`). The schedule of learning rates is that of
the whole budget, so whatever goes on to the end is what it would be without halving.
Source: Jamieson & Talwalkar 2016, algorithm 1, with the budget of each arm doubled from rung to rung.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["ONE_BY_ONE", "Decision", "Leg", "better_half", "decide"]

ONE_BY_ONE = "halving stops its trials one by one"  # why their adapters do not train together
FINALISTS = 2  # combinations that are always trained to the end, so that the table can tell them apart

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A part of a trial's way: until which rung it runs, in epochs; None to its end. folder: where trials wait."""

    until: int | None
    folder: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which combinations go on at a rung. means: of the scores of each that has some. bound: of the last to go on."""

    going_on: frozenset[str]
    means: Mapping[str, float]
    bound: float | None


def decide(scores: Mapping[str, Sequence[float | None]]) -> Decision:
    """Decides for the combinations of one task: the better half goes on, rounded up, and two at least.

    scores: for each combination one for each seed, where more is better; None, or no finite number, for a trial that
    has none. Combinations are ordered by the mean over their seeds. What equals the last that goes on goes on too, so
    neither names nor order decide. A combination without any score comes last and does not go on.
    """
    known = {name: [x for x in each if x is not None and math.isfinite(x)] for name, each in scores.items()}
    means = {name: statistics.fmean(each) for name, each in known.items() if each}
    room = max(FINALISTS, _half(len(scores)))
    best = sorted(means.values(), reverse=True)[:room]
    going_on = frozenset(name for name, mean in means.items() if mean >= best[-1])
    return Decision(going_on=going_on, means=means, bound=best[-1] if best else None)


def better_half(scores: Mapping[K, float | None]) -> tuple[K, ...]:
    """The better half of the learning rates of one trial, rounded up, in the order given.

    scores: where more is better; None for one that diverged, which comes last and does not go on. Of equals the first
    goes on.
    """
    known = {name: score for name, score in scores.items() if score is not None and math.isfinite(score)}
    best = sorted(known, key=lambda name: -known[name])[: _half(len(scores))]
    return tuple(name for name in known if name in best)


def _half(num: int) -> int:
    return -(-num // 2)
