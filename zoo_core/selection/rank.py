"""Ranks backbones for a task: one pass of each over some training examples, then scores of its pooled features.

The test split is never looked at, nor is the validation split, which stays for a choice between fitted models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo_core._process.interrupts import raise_interrupt
from zoo_core.benchmark.dry_run import downloads
from zoo_core.benchmark.groups import depth_of, pass_of
from zoo_core.benchmark.loaders import open_task
from zoo_core.contracts import Target
from zoo_core.errors import IncompatibleError, RefusedError, UsageError, ZooError
from zoo_core.files.fetch import DownloadProgress, files_of, pin_plan
from zoo_core.lock import Pinned, part_key
from zoo_core.plan.extensions import fitting
from zoo_core.plan.plan import pinned
from zoo_core.plan.resolve import bind_task
from zoo_core.registry.bind import Bound
from zoo_core.registry.local_plugins import SpecLike
from zoo_core.registry.recipe_checks import broken, check_score, plugin_call
from zoo_core.registry.registry import Registry
from zoo_core.registry.registry import registry as default_registry
from zoo_core.selection.candidates import Candidate, Filters, LeftOut, check_target, find_candidates
from zoo_core.selection.certainty import NUM_BLOCKS, Worth, interval, is_told_apart, worth_of
from zoo_core.selection.examples import FEWEST, drawn, labelled_train, truth_of
from zoo_core.selection.pooled import PooledFeatures
from zoo_core.selection.score_functions import blocks
from zoo_core.spec.parser import parse_parts

__all__ = [
    "SCORES",
    "RankEvent",
    "Ranked",
    "Ranking",
    "Score",
    "Shortlist",
    "run_shortlist",
    "shortlisted",
]

SCORES = "knn,ridge,logme"
NUM_EXAMPLES = 1000

Status = Literal["ok", "refused", "failed", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score of one backbone with the ends of its 95 % interval.

    is_apart: whether it is told apart from the best score, on the same examples.
    """

    value: float
    low: float
    high: float
    is_apart: bool = False


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A candidate and what was found of it.

    reason: why it has no scores; empty if it has. scores: by name. unscored: by name, why a score is missing.
    num_parameters, feature_dim: None where nothing was built and the catalogue does not tell.
    size_place: its place by number of parameters, the largest first, which is the null that a score has to beat.
    num_made: examples that went through the backbone in this call; the features of the others were stored.
    """

    name: str
    status: Status
    reason: str = ""
    scores: Mapping[str, Score] = field(default_factory=dict)
    unscored: Mapping[str, str] = field(default_factory=dict)
    num_parameters: int | None = None
    feature_dim: int | None = None
    licence: str | None = None
    size_place: int | None = None
    num_made: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The backbones in their order, those without scores last.

    by: the score that orders them. num_examples, num_outputs: what the scores were computed on.
    """

    task: str
    target: str
    num_examples: int
    num_outputs: int
    seed: int
    by: str
    scores: tuple[str, ...]
    rows: tuple[Ranked, ...]
    left_out: tuple[LeftOut, ...] = ()

    def first(self, share: float = 1 / 3, *, at_least: int = 2) -> tuple[str, ...]:
        """The names of the first backbones: this share of those with scores, rounded up, and at least so many."""
        named = [row.name for row in self.rows if row.status == "ok"]
        return tuple(named[: max(at_least, -int(-len(named) * share // 1))])


@dataclass(frozen=True, kw_only=True)
class Shortlist:
    """What would be ranked. downloads: by lock key, the bytes that are not on this machine yet."""

    task: Bound
    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    scores: tuple[Bound, ...]
    by: str
    downloads: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class RankEvent:
    """What happened: a candidate is done (row), or bytes arrive for one (download). done, total: candidates."""

    done: int
    total: int
    row: Ranked | None = None
    download: DownloadProgress | None = None


# --- before anything is fetched ---------------------------------------------------------------------------------------


def shortlisted(
    backbones: str | Sequence[SpecLike],
    *,
    task: Any,
    filters: Filters | None = None,
    scores: str = SCORES,
    by: str | None = None,
    pins: Mapping[str, Pinned] | None = None,
    frozen: bool = False,
    registry: Registry | None = None,
) -> Shortlist:
    """The candidates with their files pinned, and what has to be downloaded; nothing is fetched yet.

    task: as for `resolve`. scores: their names, with commas between. by: the one that orders; None: the first.
    frozen: send no request. A candidate whose files cannot be pinned is left out, with its reason.
    """
    registry = registry or default_registry()
    bound = task if isinstance(task, Bound) else bind_task(task, pins or {}, offline=frozen, registry=registry)
    check_target(bound)
    judges, order = _judges(scores, by, bound.target, registry)
    found, left_out = find_candidates(backbones, bound, filters=filters, pins=pins, offline=frozen, registry=registry)
    kept: list[Candidate] = []
    known: dict[str, Pinned] = {}  # what was looked up for a candidate before, so that a task is asked for once
    missing: dict[str, int] = {}
    for candidate in found:
        plan = pinned(candidate.plan, {key: known[key] for key in candidate.plan.unpinned if key in known})
        try:
            plan = pin_plan(plan, frozen=frozen)
        except ZooError as error:
            left_out.append(LeftOut(name=candidate.name, reason=str(error)))
            continue
        if plan.task is not None and part_key(plan.task) in plan.pins:
            known[part_key(plan.task)] = plan.pins[part_key(plan.task)]
        kept.append(replace(candidate, plan=plan))
        missing |= {key: size for key, size in downloads(plan).items() if size}
    if not kept:
        raise RefusedError(f"no backbone is left of {len(left_out)}; {left_out[-1].name}: {left_out[-1].reason}")
    return Shortlist(
        task=bound,
        candidates=tuple(kept),
        left_out=tuple(left_out),
        scores=judges,
        by=order,
        downloads=missing,
    )


def _judges(text: str, by: str | None, target: Target, registry: Registry) -> tuple[tuple[Bound, ...], str]:
    """The scores of a text, bound, and the name of the one that orders. Raises NotFoundError, UsageError."""
    parts = parse_parts(text)
    found: list[Bound] = []
    for part in parts:
        score = registry.bind(part, "score")
        check_score(score)
        if target.kind not in score.recipe.targets:
            allowed = fitting("score", registry, lambda recipe: target.kind in recipe.targets)
            raise RefusedError(f"score {score.name} is not for {target.kind}; allowed here: {', '.join(allowed)}")
        found.append(score)
    names = [str(score.canonical()) for score in found]
    if len(set(names)) < len(names) or not names:
        raise UsageError(f"scores {text!r}: each score is named once; `zoo list score` shows what there is")
    if by is not None and by not in names:
        raise UsageError(f"the order is by {by!r}, which is not among the scores; allowed: {', '.join(names)}")
    return tuple(found), by or names[0]


# --- the run ----------------------------------------------------------------------------------------------------------


def run_shortlist(
    shortlist: Shortlist,
    *,
    num_examples: int = NUM_EXAMPLES,
    seed: int = 0,
    time_limit: float | None = None,
    device: str = "cpu",
    num_workers: int = 0,
    frozen: bool = False,
    watch: Callable[[RankEvent], None] = lambda _: None,
) -> Ranking:
    """Scores every candidate of a shortlist. One that fails is a row with its reason.

    num_examples: at most so many are drawn from the training split, by the seed, of each class its share.
    time_limit: in seconds; when it is over no candidate is begun any more. Those that share a pass begin together.
    """
    began = time.monotonic()
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"time_limit={time_limit}: allowed: a number of seconds above 0")
    if num_examples < FEWEST:
        raise UsageError(f"num_examples={num_examples}: allowed: {FEWEST} or more")
    first = shortlist.candidates[0]
    data = open_task(first.plan)
    split = drawn(labelled_train(data, shortlist.task), data.target, num_examples, seed)
    truth = truth_of(split, data.target)
    scoring = partial(_scores, shortlist.scores, truth=truth, target=data.target)
    found: dict[int, tuple[Ranked, Mapping[str, Worth]]] = {}
    total = len(shortlist.candidates)
    for family in _families(shortlist.candidates):
        plans = [shortlist.candidates[place].plan for place in family]
        features = PooledFeatures(plans, split, device=torch.device(device), num_workers=num_workers)
        is_over = time_limit is not None and time.monotonic() - began > time_limit
        for place in family:
            candidate, tell = shortlist.candidates[place], partial(RankEvent, done=len(found), total=total)
            if is_over:
                reason = f"the time limit of {time_limit:g} s was over"
                found[place] = _row(candidate, status="not measured", reason=reason), {}
            else:

                def arrive(download: DownloadProgress, tell: Callable[..., RankEvent] = tell) -> None:
                    watch(tell(download=download))

                found[place] = _attempt(candidate, features, scoring, frozen, arrive)
            watch(RankEvent(done=len(found), total=total, row=found[place][0]))
    rows, worths = zip(*(found[place] for place in range(total)), strict=True)
    names = tuple(str(score.canonical()) for score in shortlist.scores)
    return Ranking(
        task=str(shortlist.task.canonical()),
        target=data.target.kind,
        num_examples=split.num,
        num_outputs=data.target.size or 0,
        seed=seed,
        by=shortlist.by,
        scores=names,
        rows=_ordered(rows, worths, names, shortlist.by),
        left_out=shortlist.left_out,
    )


def _families(candidates: Sequence[Candidate]) -> list[list[int]]:
    """The places of candidates that are made of one pass, of each the one that ends last first."""
    found: dict[str, list[int]] = {}
    for place, candidate in enumerate(candidates):
        found.setdefault(pass_of(candidate.plan), []).append(place)
    return [sorted(places, key=lambda place: -depth_of(candidates[place].plan)) for places in found.values()]


Scoring = Callable[[Tensor], tuple[dict[str, Worth], dict[str, str]]]


def _attempt(
    candidate: Candidate,
    features: PooledFeatures,
    scoring: Scoring,
    frozen: bool,
    arrive: Callable[[DownloadProgress], None],
) -> tuple[Ranked, Mapping[str, Worth]]:
    """The row of a candidate. If anything goes wrong, that is a row too, with its reason."""
    started = time.perf_counter()
    try:
        files_of(candidate.plan, candidate.plan.backbone, offline=frozen, progress=arrive)
        found = features.of(candidate.plan)
        _check_features(found.features)
        worth, unscored = scoring(found.features.double())
    except IncompatibleError as error:
        return _row(candidate, status="refused", reason=str(error)), {}
    except ZooError as error:
        return _row(candidate, status="failed", reason=str(error)), {}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one backbone's failure is a row, not the end of the others
        raise_interrupt(error)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return _row(candidate, status="failed", reason=said[:500]), {}
    row = _row(
        candidate,
        status="ok" if worth else "failed",
        reason="" if worth else next(iter(unscored.values())),
        scores={
            name: Score(value=each.score, low=low, high=high)
            for name, each in worth.items()
            for low, high in [interval(each)]
        },
        unscored=unscored,
        num_parameters=found.num_parameters,
        feature_dim=found.features.shape[1],
        num_made=found.num_made,
        seconds=time.perf_counter() - started,
    )
    return row, worth


def _row(candidate: Candidate, *, status: Status, num_parameters: int | None = None, **found: Any) -> Ranked:
    num = candidate.num_parameters if num_parameters is None else num_parameters
    return Ranked(name=candidate.name, status=status, licence=candidate.licence, num_parameters=num, **found)


def _check_features(features_ND: Tensor) -> None:
    """Raises ZooError for features that no score can say anything about."""
    num_wrong = int((~features_ND.isfinite().all(1)).sum())
    if num_wrong:
        raise ZooError(f"its features are not finite for {num_wrong} of {len(features_ND)} examples")
    if bool((features_ND == features_ND[0]).all()):
        raise ZooError(f"its features are the same for all {len(features_ND)} examples, so they tell nothing apart")


def _scores(
    judges: Sequence[Bound], features_ND: Tensor, *, truth: Tensor, target: Target
) -> tuple[dict[str, Worth], dict[str, str]]:
    """What each score says, and why one does not."""
    found: dict[str, Worth] = {}
    missing: dict[str, str] = {}
    block_N = blocks(truth, target, NUM_BLOCKS)
    for score in judges:
        name = str(score.canonical())
        try:
            worth = worth_of(partial(_judged, score, features_ND, truth, target), block_N)
        except ZooError as error:
            missing[name] = str(error)
            continue
        if worth.values.isfinite().all():
            found[name] = worth
        else:
            missing[name] = f"{name} is not defined on these examples"
    return found, missing


def _judged(score: Bound, features_ND: Tensor, truth: Tensor, target: Target, places: Tensor) -> Tensor:
    """What a score says of some examples. Raises PluginError for what its contract does not allow."""
    with plugin_call(score):
        found: object = score.recipe.judge(features_ND[places], truth[places], target)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape not in ((), (len(places),)):
        kind = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise broken(score, f"judge gave {kind}; allowed: a float tensor of shape [] or [{len(places)}]")
    return found


def _ordered(
    rows: Sequence[Ranked], worths: Sequence[Mapping[str, Worth]], names: Sequence[str], by: str
) -> tuple[Ranked, ...]:
    """The rows by one score, with what is told apart from the best by each, and the places by size."""
    found = list(rows)
    for name in names:
        held = {place: worth[name] for place, worth in enumerate(worths) if name in worth}
        if not held:
            continue
        best = max(held.values(), key=lambda worth: worth.score)
        for place, worth in held.items():
            scores = dict(found[place].scores)
            scores[name] = replace(scores[name], is_apart=worth is not best and is_told_apart(best, worth))
            found[place] = replace(found[place], scores=scores)
    sizes = sorted((row.num_parameters for row in found if row.status == "ok" and row.num_parameters), reverse=True)
    found = [
        replace(row, size_place=sizes.index(row.num_parameters) + 1) if row.num_parameters in sizes else row
        for row in found
    ]
    order: dict[Status, int] = {"ok": 0, "failed": 1, "refused": 2, "not measured": 3}
    return tuple(
        sorted(found, key=lambda row: (order[row.status], -row.scores[by].value if by in row.scores else np.inf))
    )
