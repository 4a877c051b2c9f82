"""Trial + registry + catalog -> Plan, or a refusal with its reason. No torch.

Everything that can be known about a trial before building it is checked here: that each part exists and takes its
arguments, that their kinds, modalities, targets, seams and roles go together, and what is trained at which rates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from zoo_core.catalog import Catalog, Entry
from zoo_core.catalog import catalog as default_catalog
from zoo_core.contracts import KINDS, FeatureSpec, Kind, Modality, Seam, Target, Weights
from zoo_core.declarations import MAX_RATES, TRAINING, broken, check_adapter, check_head, check_task
from zoo_core.errors import RefusedError, UsageError, ZooError, nearest
from zoo_core.registry import Bound, Registry
from zoo_core.registry import registry as default_registry
from zoo_core.spec import Part, Spec, parse, parse_part

__all__ = ["DEFAULT_HEAD", "Budget", "Plan", "Trial", "budget_from", "check_built", "reseeded", "resolve"]

DEFAULT_HEAD = "linear"  # what every target kind gets when a spec names no head
DIGEST_FORMAT = 1  # raised when the digest of an unchanged trial would change


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how a trial trains; every field is part of the trial's identity.

    epochs: passes over the training split. num_rates: learning rates tried, 1 to 5, the middle ones of the grid.
    warmup: share of all steps with a rising rate. clip: largest gradient norm. patience: epochs without a better
    validation score before training stops early, None: never. precision: auto is bfloat16 on a GPU, else float32.
    """

    epochs: int = 20
    batch_size: int = 32
    num_rates: int = 3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    augment: Literal["none", "light", "strong"] = "none"
    patience: int | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name == "patience":
                continue
            if not isinstance(value, int | kind) or isinstance(value, bool):
                wanted = "a whole number" if kind is int else "a number"
                raise UsageError(f"budget: {name}={value!r} should be {wanted}, {low:g} to {high:g}")
            if not low <= value <= high:
                raise UsageError(f"budget: {name}={value} is out of range; allowed: {low:g} to {high:g}")
            object.__setattr__(self, name, kind(value))  # 1 and 1.0 are one budget, with one digest
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                found = getattr(self, name)
                raise UsageError(
                    f"budget: {name}={found!r} is not one of {', '.join(words)}{nearest(str(found), words)}"
                )


_RANGES: Mapping[str, tuple[type[int] | type[float], float, float]] = {
    "epochs": (int, 1, 1_000_000),
    "batch_size": (int, 2, 1_000_000),
    "num_rates": (int, 1, MAX_RATES),
    "weight_decay": (float, 0, 10),
    "warmup": (float, 0, 1),
    "clip": (float, 1e-9, 1e9),
    "patience": (int, 1, 1_000_000),
}
_WORDS: Mapping[str, tuple[str, ...]] = {
    "augment": ("none", "light", "strong"),
    "precision": ("auto", "float32", "bfloat16"),
}


def budget_from(values: Mapping[str, Any]) -> Budget:
    """A Budget from a table of a suite file or a stored plan; raises UsageError on a wrong key or type."""
    known = [field.name for field in fields(Budget)]
    for name in values:
        if name not in known:
            raise UsageError(f"budget has no key {name!r}; it has {', '.join(known)}{nearest(name, known)}")
    return Budget(**values)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What to run: a spec on a task with a budget and a seed. str() is its canonical text, for people."""

    spec: Spec
    task: Part
    budget: Budget
    seed: int = 0

    def __str__(self) -> str:
        changed = [
            f"{field.name}={getattr(self.budget, field.name)}"
            for field in fields(Budget)
            if getattr(self.budget, field.name) != field.default
        ]
        return " ".join([f"{self.spec}", f"task={self.task}", *changed, f"seed={self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A trial with every part resolved and checked.

    task: None when a model is loaded for a target alone. adapters: without those that change nothing. entry: what the
    catalogue says of the backbone, None if nothing. digest: identity of the trial; None while its files are not pinned.
    combination: the same without the seed. base_digest: identity of the backbone before any adapter, the same for all
    trials on it. deferred: checks that need the built backbone.
    """

    spec: Spec
    backbone: Bound
    adapters: tuple[Bound, ...]
    head: Bound
    task: Bound | None
    target: Target
    entry: Entry | None
    budget: Budget
    seed: int
    weights: Weights
    learning_rates: tuple[float, ...]
    num_stages: int | None
    first_stage: int | None
    digest: str | None
    base_digest: str | None
    combination: str | None = None
    deferred: tuple[str, ...] = ()

    @property
    def trial(self) -> Trial:
        assert self.task is not None, "a plan without a task is no trial"
        return Trial(spec=self.spec, task=self.task.canonical(), budget=self.budget, seed=self.seed)


def resolve(
    spec: str | Spec,
    *,
    task: str | Part | None = None,
    target: Target | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    registry: Registry | None = None,
    catalog: Catalog | None = None,
) -> Plan:
    """The plan of one trial; either a task or a target says what is predicted.

    Raises SpecError, NotFoundError, AmbiguousError, UsageError (a wrong argument), PluginError, and RefusedError with
    the reason where the parts do not go together.
    """
    registry = registry or default_registry()
    catalog = catalog or default_catalog()
    budget = budget or Budget()
    parts = (parse(spec) if isinstance(spec, str) else spec).parts
    bound_task = registry.bind(parse_part(task) if isinstance(task, str) else task, "task") if task else None
    if bound_task is not None:
        check_task(bound_task)
    if target is None:
        if bound_task is None:
            raise UsageError("nothing says what is predicted; give a task or a target (num_classes, classes)")
        target = bound_task.recipe.target
    assert target is not None
    backbone, adapters, head = _bind_chain(parts, registry)
    entry = catalog.find(backbone.name, "backbone")
    weights = _allowed_weights(backbone, entry)
    _check_modality(backbone, entry, bound_task)
    _check_head(backbone, entry, head, adapters, target)
    num_stages = entry.num_stages if entry else None
    first_stage = _check_adapters(backbone, entry, adapters, num_stages)
    adapters = tuple(part for part in adapters if part.recipe.changes)  # so that one digest has one text
    base = _base_identity(backbone, entry, weights)
    task_entry = catalog.find(bound_task.name, "task") if bound_task else None
    identity = {
        "format": DIGEST_FORMAT,
        "base": base,
        "adapters": [part.identity() for part in adapters],
        "head": head.identity(),
        "task": bound_task.identity() if bound_task else None,
        "task_files": _file_hashes(task_entry),
        "target": asdict(target),
        "budget": asdict(budget),
    }
    combination = None if base is None else _digest(identity)
    canonical = Spec((backbone.canonical(), *(part.canonical() for part in adapters), head.canonical()))
    return Plan(
        spec=canonical,
        backbone=backbone,
        adapters=adapters,
        head=head,
        task=bound_task,
        target=target,
        entry=entry,
        budget=budget,
        seed=seed,
        weights=weights,
        learning_rates=_rates(adapters, head, budget.num_rates),
        num_stages=num_stages,
        first_stage=first_stage,
        combination=combination,
        digest=_seeded(combination, seed),
        base_digest=None if base is None else _digest(base),
        deferred=_deferred(entry),
    )


def reseeded(plan: Plan, seed: int) -> Plan:
    """The plan of the same trial with another seed, without resolving anything again."""
    return replace(plan, seed=seed, digest=_seeded(plan.combination, seed))


def check_built(
    plan: Plan, *, modality: Modality, features: FeatureSpec, num_stages: int, roles: Sequence[str]
) -> None:
    """The checks that resolve deferred, with what the built backbone says of itself. Raises RefusedError.

    Seams are not among them: who needs one looks for it when it is applied.
    """
    part = plan.backbone
    known = Entry(
        name=part.name,
        kind="backbone",
        describes=part.name,
        modality=modality,
        features=features,
        num_stages=num_stages,
        roles=tuple(roles),
        seams=get_args(Seam),
    )
    _check_modality(part, known, plan.task)
    _check_head(part, known, plan.head, plan.adapters, plan.target)
    _check_adapters(part, known, plan.adapters, num_stages)


def _deferred(entry: Entry | None) -> tuple[str, ...]:
    """What the catalogue does not tell of a backbone, so that it is checked when the backbone has been built."""
    if entry is None:
        return ("modality", "features", "stages", "seams", "roles")
    told = {"modality": entry.modality, "features": entry.features, "stages": entry.num_stages}
    return tuple(name for name, value in told.items() if value is None)


def _bind_chain(parts: Sequence[Part], registry: Registry) -> tuple[Bound, tuple[Bound, ...], Bound]:
    """Backbone, adapters and head of a spec; the registry, not the position, decides the kind of each part."""
    backbone = registry.bind(parts[0])
    if backbone.kind != "backbone":
        raise UsageError(
            f"a spec starts with a backbone, and {parts[0].name!r} is of kind {backbone.kind}; "
            f"write BACKBONE+{parts[0]}; `zoo list backbone` shows what there is"
        )
    adapters: list[Bound] = []
    head: Bound | None = None
    for part in parts[1:]:
        bound = registry.bind(part)
        if bound.kind == "head" and head is not None:
            raise UsageError(f"two heads, {head.name} and {bound.name}; a spec ends with at most one")
        if bound.kind == "adapter" and head is not None:
            raise UsageError(f"adapter {bound.name} stands after head {head.name}; the head comes last")
        if bound.kind not in ("adapter", "head"):
            raise UsageError(f"{part.name!r} is of kind {bound.kind}; after the backbone come adapters, then one head")
        if bound.kind == "head":
            head = bound
        else:
            adapters.append(bound)
    head = head or registry.bind(Part(DEFAULT_HEAD), "head")
    for adapter in adapters:
        check_adapter(adapter)
    check_head(head)
    return backbone, tuple(adapters), head


def _allowed_weights(backbone: Bound, entry: Entry | None) -> Weights:
    weights: Weights = backbone.common["weights"]
    if entry is not None and entry.weights and weights not in entry.weights:
        raise RefusedError(
            f"{backbone.name} has no {weights} weights; it has {', '.join(entry.weights)}: "
            f"write '{backbone.name}(weights={entry.weights[0]})'"
        )
    return weights


def _check_modality(backbone: Bound, entry: Entry | None, task: Bound | None) -> None:
    if task is None or entry is None or entry.modality is None:
        return
    wanted: Modality = task.recipe.modality
    if entry.modality != wanted:
        raise RefusedError(
            f"{backbone.name} reads {entry.modality} and task {task.name} is {wanted}; "
            f"`zoo list backbone` shows the modality of each"
        )


def _check_head(backbone: Bound, entry: Entry | None, head: Bound, adapters: Sequence[Bound], target: Target) -> None:
    recipe = head.recipe
    if target.kind not in recipe.predicts:
        raise RefusedError(
            f"head {head.name} predicts {', '.join(sorted(recipe.predicts))} and the target is {target.kind}"
        )
    if entry is not None and entry.features is not None:
        given: FeatureSpec = entry.features
        if not _may_become(given.kind, recipe.consumes):
            raise RefusedError(
                f"head {head.name} consumes {recipe.consumes} and {backbone.name} gives {given.kind}; "
                f"features only become poorer: {' > '.join(KINDS)}"
            )
    training = [part.name for part in adapters if part.recipe.changes & TRAINING]
    if recipe.fit == "closed_form" and training:
        raise RefusedError(
            f"head {head.name} is fitted in closed form and gives no gradient to train {training[0]}; "
            f"use it with probe, or take head {DEFAULT_HEAD}"
        )


def _may_become(kind: Kind, wanted: Kind) -> bool:
    return KINDS.index(kind) <= KINDS.index(wanted)


def _check_adapters(
    backbone: Bound, entry: Entry | None, adapters: Sequence[Bound], num_stages: int | None
) -> int | None:
    """The earliest stage that any adapter changes; None while the number of stages is not known."""
    first = num_stages
    for part in adapters:
        recipe = part.recipe
        if entry is not None:
            if entry.features is not None and entry.features.kind not in recipe.accepts:
                raise RefusedError(
                    f"adapter {part.name} works on {', '.join(sorted(recipe.accepts))} "
                    f"and {backbone.name} gives {entry.features.kind}"
                )
            missing = sorted(recipe.seams - set(entry.seams))
            if missing:
                raise RefusedError(f"adapter {part.name} needs the {missing[0]} seam, which {backbone.name} lacks")
            if recipe.roles and not recipe.roles & set(entry.roles):
                raise RefusedError(
                    f"adapter {part.name} needs a site of role {', '.join(sorted(recipe.roles))}; "
                    f"{backbone.name} has {', '.join(entry.roles) or 'none'}"
                )
        if num_stages is not None and first is not None:
            first = min(first, _first_stage(part, backbone, num_stages))
    return first


def _first_stage(adapter: Bound, backbone: Bound, num_stages: int) -> int:
    try:
        return int(adapter.recipe.first_stage(num_stages))
    except ZooError as error:
        raise RefusedError(f"adapter {adapter.name} on {backbone.name}: {error}") from error
    except Exception as error:  # a plugin's own code ran; whatever it raises is told as its fault
        reason = f"first_stage({num_stages}) raised {type(error).__name__}: {error}"
        raise broken(adapter, reason) from error


def _rates(adapters: Sequence[Bound], head: Bound, num_rates: int) -> tuple[float, ...]:
    """The middle `num_rates` of the grid: of the most careful adapter that trains something, else of the head."""
    if head.recipe.fit == "closed_form":
        return ()
    grids = [part.recipe.learning_rates for part in adapters if part.recipe.changes & TRAINING]
    grid = min(grids, key=lambda rates: rates[len(rates) // 2]) if grids else head.recipe.learning_rates
    start = len(grid) // 2 - num_rates // 2  # so that the default stands at num_rates // 2
    return tuple(grid[start : start + num_rates])


def _base_identity(backbone: Bound, entry: Entry | None, weights: Weights) -> dict[str, object] | None:
    """What decides the numbers of the backbone before any adapter; None while its files are not pinned.

    Files that a catalogue or record pins count by their hashes. Where there are none and nothing is fetched, the
    recipe's own version stands for what its package holds.
    """
    identity: dict[str, object] = {"backbone": backbone.identity(), "input": entry.input if entry else None}
    if weights == "random":
        return identity
    files = _file_hashes(entry)
    if not files and backbone.recipe.source() is not None:
        return None
    return identity | {"files": files}


def _file_hashes(entry: Entry | None) -> dict[str, str]:
    return {name: file.sha256 for name, file in sorted(entry.files.items())} if entry else {}


def _seeded(combination: str | None, seed: int) -> str | None:
    return None if combination is None else _digest({"combination": combination, "seed": seed})


def _digest(identity: object) -> str:
    """First 16 bytes of the sha256 of sorted JSON, in hex."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
