"""Plans what the trials of a grid share: which of them are run together, and why the others are run alone. No torch.

The groups are a function of the grid alone, not of what is done already, so a continued run has the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo_core.contracts import Kind
from zoo_core.errors import ZooError
from zoo_core.plan.plan import Plan, identity_of
from zoo_core.plan.resolve import consumed, first_stage_of
from zoo_core.registry.registry import Bound

__all__ = ["Group", "depth_of", "key_of", "kinds_of", "open_stages", "pass_of", "plan_groups"]

ALL = 10_000  # stages: more than a backbone has


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trials that one process runs together. id: a digest of what they share. positions: of its trials in the grid.

    shape: features: their frozen part is computed once, in one pass also where it ends at several stages; rows: they
    differ in their seed alone, and steps of their seeds and learning rates may be taken as one; alone: the one trial
    shares nothing. open_stages: how many of the last stages are computed in every step, from the hidden state that
    enters them; 0 where the whole backbone is frozen.
    alone: why its one trial is alone. apart: why its one trial no longer runs with those that it was planned with;
    empty if that is not so.
    """

    id: str
    positions: tuple[int, ...]
    shape: Literal["features", "rows", "alone"] = "features"
    open_stages: int = 0
    alone: str = ""
    apart: str = ""


def plan_groups(plans: Sequence[Plan], *, share: bool = True) -> tuple[Group, ...]:
    """The groups of a grid, each trial in one, those with most trials first. share: False puts each trial alone."""
    known: dict[str, str] = {}  # by combination, of whose seeds the key does not depend
    members: dict[str, list[int]] = {}
    opened: dict[str, int] = {}
    rows: dict[str, list[int]] = {}
    alone: list[Group] = []
    for position, plan in enumerate(plans):
        reason = _reason(plan) if share else "nothing is shared (--no-share)"
        if reason:
            alone.append(_alone(plan, position, reason))
        elif open_stages(plan) == ALL:
            rows.setdefault(_digest({"rows": plan.combination or str(plan.trial)}), []).append(position)
        else:
            combination = plan.combination if plan.weights != "random" else None
            key = known.get(combination or "") or pass_of(plan)
            if combination is not None:
                known[combination] = key
            members.setdefault(key, []).append(position)
            opened[key] = open_stages(plan)
    shared = [Group(id=key, positions=tuple(found), open_stages=opened[key]) for key, found in members.items()]
    for key, found in rows.items():
        first = plans[found[0]]
        if len(found) * len(first.learning_rates) > 1:
            shared.append(Group(id=key, positions=tuple(found), shape="rows"))
        else:
            alone.append(_alone(first, found[0], _from_first(first)))
    return (*sorted(shared, key=lambda group: -len(group.positions)), *alone)


def key_of(plan: Plan) -> dict[str, object]:
    """What the frozen features of a trial's examples depend on, besides the split, the example and the view.

    Draws of examples are not among it, so trials of several seeds share features; but the weights of a random backbone
    are drawn by the seed, and its batch norms take their statistics from the trial's own training batches, which a head
    in closed form sees in order.
    """
    assert plan.task is not None, "a trial has a task"
    task = identity_of(plan, plan.task)
    drawn = {"seed": plan.seed, "common": task["common"], "batch_size": plan.budget.batch_size}
    drawn["shuffled"] = bool(plan.learning_rates)
    return {
        "base": identity_of(plan, plan.backbone),
        "weights": plan.weights,
        "drawn": drawn if plan.weights == "random" else None,
        "task": {name: value for name, value in task.items() if name != "common"},
        "precision": plan.budget.precision,
        "open_stages": open_stages(plan),
        "augmentation": None if plan.augmentation is None else plan.augmentation.identity(),
    }


def pass_of(plan: Plan) -> str:
    """A digest of the pass that a trial's frozen features come of, which is one for all that differ in its depth alone.

    Of a pass of the backbone that ends last the features of the others are made.
    """
    key = key_of(plan)
    if open_stages(plan):
        return _digest(key)
    base = identity_of(plan, plan.backbone)
    common = base["common"]
    assert isinstance(common, dict)
    whole = {name: value for name, value in common.items() if name != "until"}
    return _digest(key | {"base": base | {"common": whole}})


def depth_of(plan: Plan) -> int:
    """The stage, from 1, after which the backbone ends; more than there are where all of it is used."""
    return plan.until or ALL


def kinds_of(plans: Sequence[Plan], own: Kind) -> tuple[Kind, ...]:
    """The kinds of features that trials read. own: that of their backbone, which objectives of adapters may look at."""
    kinds = {own if plan.adapters else consumed(plan.head, plan.target) for plan in plans}
    return tuple(sorted(kinds))


def open_stages(plan: Plan) -> int:
    """How many of the last stages a trial changes, as far as can be told before its backbone is built.

    0 if it changes nothing of the backbone, and ALL if it changes the first stage or what is before it.
    """
    firsts = _firsts(plan)
    if not firsts:
        return 0
    first, num = min(firsts), _num_stages(plan)
    return max(1, num - first) if first > 0 else ALL


def _num_stages(plan: Plan) -> int:
    return ALL if plan.num_stages is None else plan.num_stages


def _changing(plan: Plan) -> list[Bound]:
    return [part for part in plan.adapters if part.fact("changes") & {"base", "added"}]


def _firsts(plan: Plan) -> list[int]:
    """The first stage that each adapter changes, of those that change the backbone."""
    try:
        return [first_stage_of(part, plan.backbone, _num_stages(plan)) for part in _changing(plan)]
    except ZooError:  # the trial will say so
        return [0 for _ in _changing(plan)]


def _alone(plan: Plan, position: int, reason: str) -> Group:
    return Group(id=(plan.digest or str(plan.trial))[:12], positions=(position,), shape="alone", alone=reason)


def _from_first(plan: Plan) -> str:
    """Which adapter changes all that the backbone computes, in words."""
    firsts = _firsts(plan)
    return (
        f"{_changing(plan)[firsts.index(min(firsts))].name} changes what the backbone computes from its first stage on"
    )


def _reason(plan: Plan) -> str:
    """Why a trial can share nothing with others; empty if it can."""
    if open_stages(plan) == ALL and not plan.learning_rates:
        return _from_first(plan)
    if open_stages(plan) == ALL and plan.weights == "random":
        return f"{_from_first(plan)}, and random weights are drawn by the seed"
    if plan.augmentation is not None and plan.budget.views is None:
        return f"augment={plan.budget.augment} draws anew in every epoch; views=N draws N times"
    return ""


def _digest(key: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
