"""Turns results into ranked rows, with intervals and the gain over random initialisation.

A row is a combination (task, backbone, adapters, head, weights, budget) over its seeds. Intervals are 95 % t intervals
over seeds, and Welch's for a gain. If the intervals of two rows overlap, the table marks them as not distinguishable.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from typing import Any

from zoo_core.contracts import METRICS
from zoo_core.errors import NotFoundError, SpecError, nearest
from zoo_core.results.effort import Effort, effort_of
from zoo_core.results.store import Result, latest
from zoo_core.spec.parser import parse_part

__all__ = ["Difference", "Estimate", "FailedTrial", "Rate", "Report", "Row", "differences", "report_of", "t_quantile"]

EMPTY_CHAIN = "probe"  # what the column `adapters` calls a chain without any
WIDE_SPREAD = 0.2  # interquartile range over median; a rate that varies more is shown with ~ and is not compared

# 97.5 % points of Student's t by degrees of freedom, rounded up; the last is the normal distribution's.
# Source: scipy.stats.t.ppf(0.975, df).
_T = (
    *((1, 12.7062), (2, 4.3027), (3, 3.1825), (4, 2.7765), (5, 2.5706), (6, 2.4470), (7, 2.3647), (8, 2.3061)),
    *((9, 2.2622), (10, 2.2282), (12, 2.1789), (15, 2.1315), (20, 2.0860), (30, 2.0423), (60, 2.0003)),
    *((120, 1.9800), (float("inf"), 1.9600)),
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `num` values. std and half_width, of the 95 % interval, are None for a single value."""

    mean: float
    std: float | None
    half_width: float | None
    num: int


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Examples per second, the median over seeds. unsteady: it varies too much to be compared."""

    examples_per_second: float
    unsteady: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One combination that has a score.

    rank: 1 is the best of the task. tied: its interval overlaps that of the best.
    gain: the score minus that of random initialisation, where positive is better; None if there is no such row.
    num_failed, num_refused, num_stopped: seeds without a score. num_outdated: seeds whose files have changed since.
    unpublished: the names of plugin files that its parts come from.
    """

    rank: int
    tied: bool
    spec: str
    task: str
    backbone: str
    adapters: str
    head: str
    weights: str
    budget: str
    metric: str
    split: str
    score: Estimate
    gain: Estimate | None
    num_trainable: int | None
    num_parameters: int | None
    training: Rate | None
    inference: Rate | None
    peak_memory_bytes: int | None
    train_seconds: float | None
    num_failed: int
    num_refused: int
    num_stopped: int = 0
    num_outdated: int = 0
    unpublished: tuple[str, ...] = ()
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class FailedTrial:
    """Trials of one combination that have no score for the same reason, such as halving, which stopped them."""

    spec: str
    task: str
    status: str
    reason: str
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The ranked rows by task, the trials without a score, what all took, and remarks on what was left out."""

    rows: tuple[Row, ...]
    failures: tuple[FailedTrial, ...]
    remarks: tuple[str, ...]
    effort: Effort


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The score of a row minus that of the baseline, paired by seed. Positive is better."""

    spec: str
    task: str
    difference: Estimate


def report_of(
    results: Iterable[Result], *, outdated: frozenset[str] = frozenset(), remarks: Sequence[str] = ()
) -> Report:
    """The report of results in any order. Of several results of one trial, the one that stands counts.

    Superseded results are left out. outdated: digests of results whose files have changed since. remarks: lines to put
    before the report's own.
    """
    current = [result for result in results if result.superseded is None]
    standing, own = _one_for_each_seed(latest(current).values())
    groups: dict[_Key, list[Result]] = {}
    for result in standing:
        groups.setdefault(_key(result), []).append(result)
    scored = {key: group for key, group in groups.items() if any(result.status == "ok" for result in group)}
    rows: list[Row] = []
    for table in sorted({_table_of(key) for key in scored}):
        rows.extend(_ranked([_row(key, scored, outdated) for key in scored if _table_of(key) == table]))
    return Report(
        rows=tuple(rows),
        failures=tuple(_failures(standing)),
        remarks=(*remarks, *own),
        effort=effort_of(latest(current).values()),
    )


def differences(results: Iterable[Result], baseline: str) -> tuple[Difference, ...]:
    """The difference of every combination to the baseline, by task and spec. Only seeds that both have count.

    baseline: a spec as the table writes it, including the head. Raises NotFoundError if no row has it.
    """
    standing, _ = _one_for_each_seed(latest(each for each in results if each.superseded is None).values())
    scores: dict[tuple[tuple[str, ...], str], dict[int, float]] = {}
    for result in standing:
        if result.status == "ok" and result.score is not None:
            key = _key(result)
            scores.setdefault((_table_of(key), _spec(key)), {})[result.seed] = result.score * _sign(_key(result))
    specs = sorted({spec for _, spec in scores})
    if baseline not in specs:
        raise NotFoundError(f"no row {baseline!r}{nearest(baseline, specs)}; there are {', '.join(specs) or 'none'}")
    found: list[Difference] = []
    for (table, spec), by_seed in sorted(scores.items()):
        base = scores.get((table, baseline), {})
        shared = sorted(by_seed.keys() & base.keys())
        if spec != baseline and shared:
            estimate = _estimate([by_seed[seed] - base[seed] for seed in shared])
            found.append(Difference(spec=spec, task=table[0], difference=estimate))
    return tuple(found)


# --- from results to rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class _Key:
    """What makes two results of different seeds one row."""

    task: str
    metric: str
    split: str
    budget: str
    backbone: str
    adapters: str
    head: str
    weights: str
    unpublished: tuple[tuple[str, str], ...]  # name and sha256 of plugin files
    higher_is_better: bool


def _key(result: Result) -> _Key:
    known = result.metric in METRICS  # older rows do not say it
    return _Key(
        task=result.task,
        metric=result.metric,
        split=result.split,
        budget=_budget(result),
        backbone=_without_weights(result.backbone),
        adapters=result.adapters,
        head=result.head,
        weights=result.weights,
        unpublished=tuple(sorted(result.unpublished.items())),
        higher_is_better=METRICS[result.metric].higher_is_better if known else result.higher_is_better,
    )


def _table_of(key: _Key) -> tuple[str, ...]:
    """Rows are compared with each other only if these are equal."""
    return key.task, key.metric, key.split, key.budget


def _budget(result: Result) -> str:
    """The text between the task and the seed in the trial: the budget, if it is not the default."""
    _, _, rest = result.trial.partition(f" task={result.task}")
    return rest.removesuffix(f"seed={result.seed}").strip()


def _without_weights(backbone: str) -> str:
    """The backbone without its weights, which are a column of their own."""
    try:
        part = parse_part(backbone)
    except SpecError:
        return backbone
    return str(replace(part, arguments=tuple(pair for pair in part.arguments if pair[0] != "weights")))


def _spec(key: _Key) -> str:
    """The canonical text of the trial, which can be typed again, without an empty chain."""
    backbone = key.backbone
    if key.weights == "random":
        try:
            part = parse_part(backbone)
            backbone = str(replace(part, arguments=(*part.arguments, ("weights", key.weights))))
        except SpecError:
            backbone = f"{backbone} (weights={key.weights})"
    adapters = "" if key.adapters == EMPTY_CHAIN else key.adapters.removeprefix(f"{EMPTY_CHAIN}+")
    return "+".join(filter(None, (backbone, adapters, key.head)))


def _one_for_each_seed(results: Iterable[Result]) -> tuple[list[Result], list[str]]:
    """The newest result for each combination and seed. A remark tells what was left out."""
    found: dict[tuple[_Key, int], Result] = {}
    remarks: list[str] = []
    for result in sorted(results, key=lambda result: (result.created_at, result.digest)):
        key = _key(result)
        known = found.get((key, result.seed))
        if known is not None and known.status == result.status == "ok":
            remarks.append(
                f"{_spec(key)} on {key.task}, seed {result.seed}, was measured with different parts or versions; "
                f"only the newest counts ({result.created_at})"
            )
        if known is None or result.status == "ok" or known.status != "ok":
            found[key, result.seed] = result
    return [found[pair] for pair in sorted(found)], remarks


def _row(key: _Key, groups: Mapping[_Key, Sequence[Result]], outdated: frozenset[str]) -> Row:
    group = groups[key]
    scored = [result for result in group if result.status == "ok" and result.score is not None]
    return Row(
        rank=0,
        tied=False,
        spec=_spec(key),
        task=key.task,
        backbone=key.backbone,
        adapters=key.adapters,
        head=key.head,
        weights=key.weights,
        budget=key.budget,
        metric=key.metric,
        split=key.split,
        score=_estimate(_scores(group)),
        gain=_gain(key, groups),
        num_trainable=_median_int(result.num_trainable for result in scored),
        num_parameters=_median_int(result.num_parameters for result in scored),
        training=_rate([result.training for result in scored]),
        inference=_rate([result.inference for result in scored]),
        peak_memory_bytes=_median_int(result.peak_memory_bytes for result in scored),
        train_seconds=_median(result.train_seconds for result in scored),
        num_failed=sum(result.status == "failed" for result in group),
        num_refused=sum(result.status == "refused" for result in group),
        num_stopped=sum(result.status == "stopped" for result in group),
        num_outdated=sum(result.digest in outdated for result in group),
        unpublished=tuple(name for name, _ in key.unpublished),
        higher_is_better=key.higher_is_better,
    )


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """By mean score, the best first; equal means share a rank."""
    sign = _sign(rows[0])
    ordered = sorted(rows, key=lambda row: (-row.score.mean * sign, row.spec))
    best = ordered[0].score
    ranked: list[Row] = []
    for position, row in enumerate(ordered, start=1):
        same = bool(ranked) and ranked[-1].score.mean == row.score.mean
        rank = ranked[-1].rank if same else position
        ranked.append(replace(row, rank=rank, tied=position > 1 and _overlap(best, row.score)))
    return ranked


def _overlap(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals overlap. A single value has no interval and counts as overlapping."""
    if one.half_width is None or other.half_width is None:
        return True
    return abs(one.mean - other.mean) <= one.half_width + other.half_width


def _gain(key: _Key, groups: Mapping[_Key, Sequence[Result]]) -> Estimate | None:
    """The difference of means to the row that differs only in its random weights, with Welch's interval."""
    if key.weights == "random":
        return None
    base = groups.get(replace(key, weights="random"))
    if base is None:
        return None
    ours, theirs = _scores(groups[key]), _scores(base)
    mean = (statistics.fmean(ours) - statistics.fmean(theirs)) * _sign(key)
    num = min(len(ours), len(theirs))
    if num < 2:
        return Estimate(mean=mean, std=None, half_width=None, num=num)
    parts = [statistics.variance(ours) / len(ours), statistics.variance(theirs) / len(theirs)]
    error = sqrt(sum(parts))
    weights = parts[0] ** 2 / (len(ours) - 1) + parts[1] ** 2 / (len(theirs) - 1)
    degrees = sum(parts) ** 2 / weights if weights else float(len(ours) + len(theirs) - 2)
    return Estimate(mean=mean, std=None, half_width=t_quantile(degrees) * error, num=num)


def _failures(results: Iterable[Result]) -> list[FailedTrial]:
    grouped: dict[tuple[str, str, str, str], list[int]] = {}
    for result in results:
        if result.status != "ok":
            reason = " ".join((result.reason or "no reason was given").split())
            grouped.setdefault((result.task, result.status, _spec(_key(result)), reason), []).append(result.seed)
    return [
        FailedTrial(task=task, status=status, spec=spec, reason=reason, seeds=tuple(sorted(seeds)))
        for (task, status, spec, reason), seeds in sorted(grouped.items())
    ]


def t_quantile(degrees: float) -> float:
    """The 97.5 % point of Student's t, interpolated in 1 / degrees, which errs on the wide side."""
    inverse = 1 / max(degrees, 1.0)
    for (low, wide), (high, narrow) in pairwise(_T):
        if degrees <= high:
            return narrow + (wide - narrow) * (inverse - 1 / high) / (1 / low - 1 / high)
    return _T[-1][1]


def _sign(of: _Key | Row) -> int:
    return 1 if of.higher_is_better else -1


def _scores(group: Iterable[Result]) -> list[float]:
    return [float(result.score) for result in group if result.status == "ok" and result.score is not None]


def _estimate(values: Sequence[float]) -> Estimate:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean=mean, std=None, half_width=None, num=len(values))
    std = statistics.stdev(values)
    half_width = t_quantile(len(values) - 1) * std / sqrt(len(values))
    return Estimate(mean=mean, std=std, half_width=half_width, num=len(values))


def _median(values: Iterable[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None


def _median_int(values: Iterable[int | None]) -> int | None:
    median = _median(values)
    return None if median is None else round(median)


def _rate(measured: Sequence[Mapping[str, Any] | None]) -> Rate | None:
    """The rate, unsteady if the windows of any seed vary too much, or the seeds among each other."""
    known = [rate for rate in measured if rate is not None and rate.get("examples_per_second") is not None]
    if not known:
        return None
    rates = [float(rate["examples_per_second"]) for rate in known]
    median = statistics.median(rates)
    wide = any(float(rate.get("spread") or 0.0) > WIDE_SPREAD for rate in known)
    if len(rates) > 1:
        low, _, high = statistics.quantiles(rates, n=4, method="inclusive")
        wide = wide or (high - low) > WIDE_SPREAD * median
    return Rate(examples_per_second=median, unsteady=wide)
