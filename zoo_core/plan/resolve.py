"""Turns a trial into a plan, using registry and catalogue, or refuses it and says why. No torch.

Everything that can be known about a trial before anything is built is settled here: whether each part exists and
accepts its arguments; whether kinds, modalities, targets, seams and roles fit together; which learning rates are tried;
and where the files come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from zoo_core.contracts import (
    FEATURE_KINDS,
    FeatureSpec,
    Kind,
    Located,
    Modality,
    PartKind,
    Seam,
    Source,
    Target,
    TaskRecipe,
    Teacher,
    Weights,
)
from zoo_core.errors import IncompatibleError, NotFoundError, RefusedError, UsageError, ZooError
from zoo_core.lock import Pinned, part_key, pin_of, told_apart
from zoo_core.plan.extensions import augmentation_of, metric_of
from zoo_core.plan.plan import Budget, Plan, pinned
from zoo_core.plan.teachers import bound_teachers, check_teachers, described, taught_target, with_pooled
from zoo_core.registry.bind import Bound
from zoo_core.registry.catalog import Catalog, Entry
from zoo_core.registry.catalog import catalog as default_catalog
from zoo_core.registry.index import reserved_names
from zoo_core.registry.local_plugins import SpecLike, part_of, spec_of
from zoo_core.registry.readers import task_part
from zoo_core.registry.recipe_checks import TRAINING, broken, check_adapter, check_head, check_task
from zoo_core.registry.registry import Registry
from zoo_core.registry.registry import registry as default_registry
from zoo_core.registry.trust import speaking_for
from zoo_core.spec.parser import Part, Spec

__all__ = [
    "DEFAULT_HEAD",
    "bind_chain",
    "bind_task",
    "check_built",
    "check_learns_unlabelled",
    "check_until",
    "consumed",
    "first_stage_of",
    "inner_parts",
    "located",
    "resolve",
]

DEFAULT_HEAD = "linear"  # used for every target kind but one if a spec names no head
HEADLESS = "embedding"  # used where nothing is predicted


def resolve(
    spec: SpecLike,
    *,
    task: str | Part | TaskRecipe | Bound | None = None,
    target: Target | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    pins: Mapping[str, Pinned] | None = None,
    offline: bool = False,
    afresh: bool = True,
    stored: str | None = None,
    learns: bool = True,
    registry: Registry | None = None,
    catalog: Catalog | None = None,
) -> Plan:
    """The plan of one trial. A task or a target must be given, because one of them states what is predicted.

    spec: text, recipe objects, or a list of both: "starter/vit-nano+lora(r=4)", ["starter/vit-nano", Lora(r=4)].
    task: a task, or what `bind_task` returned, to share it between trials.
    pins: the files that a lock pins, by part. They take precedence over a catalogue or a record.
    offline: send no request. A task of the Hub whose target is known only from its files must then be pinned.
    afresh: whether the files of local folders must still be hashed; the pins then only state what must be found there.
    False if the pins were just made, or if the files are checked when they are used.
    stored: what spec and task were read from, such as a run or a suite file; None if the caller gave them directly.
    learns: False for a fitted model that is only used, which needs no teachers.
    Raises SpecError, NotFoundError, AmbiguousError, UsageError (a wrong argument), PluginError, and RefusedError with
    the reason if the parts do not fit together, or if something stored asks for more trust than this call gives it.
    """
    registry = registry or default_registry()
    catalog = catalog or default_catalog()
    budget = budget or Budget()
    parts = spec_of(spec, registry).parts
    bound_task: Bound | None = None
    if isinstance(task, Bound):
        bound_task = task
    elif task:
        bound_task = bind_task(task, pins or {}, offline=offline, stored=stored, registry=registry)
    given = target
    if target is None:
        if bound_task is None:
            raise UsageError("nothing says what is predicted; give a task or a target (num_classes, classes)")
        target = bound_task.target
    assert target is not None
    with speaking_for(stored):
        backbone, adapters, head = bind_chain(parts, registry)
        bound = (backbone, *adapters, *((head,) if head else ()), *((bound_task,) if bound_task else ()))
        inner = tuple(each for part in bound for each in inner_parts(part, registry))
        teachers = bound_teachers(adapters, registry) if learns else {}
    if target.kind == "unlabelled":
        teachers = with_pooled(teachers)
    told = {of: described(part, _local(part), catalog) for of, (_, part) in teachers.items()}
    if target.kind == "unlabelled" and (given is None or teachers):
        target = _taught(target, bound_task, adapters, teachers, told)
    head = head or registry.bind(Part(HEADLESS if target.kind == "unlabelled" else DEFAULT_HEAD), "head")
    check_head(head)
    entry, weights = _described(backbone, catalog)
    _check_modality(backbone, entry, bound_task)
    reads: Modality | None = entry.modality if entry else None
    check_teachers(teachers, told, reads if bound_task is None else bound_task.recipe.modality, target)
    _check_head(backbone, entry, head, adapters, target)
    num_stages = entry.num_stages if entry else None
    first_stage = _check_adapters(backbone, entry, adapters, target, num_stages)
    adapters = tuple(part for part in adapters if part.fact("changes"))  # so that equal trials have equal specs
    metric, augmentation, until = None, None, backbone.common["until"]
    if bound_task is not None:
        metric = metric_of(bound_task, registry)
        augmentation = augmentation_of(str(budget.augment), bound_task, target, registry)
    if augmentation is not None:
        budget = replace(budget, augment=str(augmentation.canonical()))
    elif bound_task is not None and budget.views is not None:
        raise RefusedError(f"views={budget.views} of examples that nothing varies are all the same: add augment=light")
    canonical = Spec((backbone.canonical(), *(part.canonical() for part in adapters), head.canonical()))
    plan = Plan(
        spec=canonical,
        backbone=backbone,
        adapters=adapters,
        head=head,
        task=bound_task,
        target=target,
        entry=replace(entry, features=None) if entry and until else entry,  # their width is measured after the cut
        budget=budget,
        seed=seed,
        weights=weights,
        learning_rates=_rates(adapters, head, budget.num_rates),
        num_stages=num_stages,
        first_stage=first_stage,
        deferred=_deferred(entry),
        inner=inner,
        teachers=teachers,
        augmentation=augmentation,
        metric=metric,
    )
    return _with_files(plan, pins or {}, catalog, afresh)


def check_built(
    plan: Plan, *, modality: Modality, features: FeatureSpec, num_stages: int, roles: Sequence[str]
) -> None:
    """Repeats the checks that `resolve` deferred, with the facts that the built backbone states. Raises RefusedError.

    Seams are not checked here, because an adapter that needs a seam looks for it when it is applied.
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
    _check_adapters(part, known, plan.adapters, plan.target, num_stages)


def bind_task(
    task: str | Part | TaskRecipe,
    pins: Mapping[str, Pinned],
    *,
    offline: bool,
    stored: str | None = None,
    registry: Registry,
) -> Bound:
    """Binds a task to its recipe, locates its files and checks its declarations, for one trial or for many.

    If an argument asks for more trust, no code of the task runs before that is granted. stored: as for `resolve`.
    """
    with speaking_for(stored):
        bound = registry.bind(_task(task, registry), "task")
        inner_parts(bound, registry)
    found = located(bound, pins, offline=offline)
    check_task(found)
    metric_of(found, registry)
    return found


def located(task: Bound, pins: Mapping[str, Pinned], *, offline: bool = False) -> Bound:
    """The task at the commit that the pins state, or else at its revision. A task that is not Located is unchanged.

    Raises NotFoundError if no request may be sent and the task is not pinned.
    """
    if not isinstance(task.recipe, Located):
        return task
    pin = pins.get(part_key(task))
    if offline and pin is None:
        raise NotFoundError(f"not in the lock: {part_key(task)}; write it with zoo lock SPEC --task TASK")
    revision = task.revision if pin is None else pin.revision
    return replace(task, recipe=task.recipe.at(revision, offline=offline))


def _task(task: str | Part | TaskRecipe, registry: Registry) -> Part:
    if isinstance(task, str):
        return task_part(task, registry)
    return task if isinstance(task, Part) else part_of(task, registry)


def check_until(name: str, until: int, num_stages: int | None) -> None:
    """Raises RefusedError if `until` exceeds the number of stages. num_stages: None if that is not known."""
    if num_stages is not None and until > num_stages:
        raise RefusedError(
            f"{name} has {num_stages} stages, so until={until} is none of them; allowed: 1 to {num_stages}"
        )


def _deferred(entry: Entry | None) -> tuple[str, ...]:
    """The facts about a backbone that the catalogue does not state. They are checked once it has been built."""
    if entry is None:
        return ("modality", "features", "stages", "seams", "roles")
    told = {"modality": entry.modality, "features": entry.features, "stages": entry.num_stages}
    return tuple(name for name, value in told.items() if value is None)


def _local(part: Bound) -> Path | None:
    """The folder of a part whose files are on this machine anyway; None for a repository's, and for a part without."""
    folder = part.source.folder if part.source is not None else None
    return None if folder is None else Path(folder).expanduser()


def _taught(
    target: Target,
    task: Bound | None,
    adapters: Sequence[Bound],
    teachers: Mapping[str, tuple[Teacher, Bound]],
    told: Mapping[str, tuple[Modality | None, Target | None]],
) -> Target:
    """The target of a trial on a task without labels: what its teacher predicts, if one does.

    Raises RefusedError where nothing learns without labels.
    """
    check_learns_unlabelled(task, adapters)
    return taught_target(teachers, told) or target


def check_learns_unlabelled(task: Bound | None, adapters: Sequence[Bound]) -> None:
    """Raises RefusedError if no adapter learns from examples without labels, such as those of this task."""
    if not any(adapter.fact("unlabelled") for adapter in adapters):
        where = f"task {task.name}" if task else "this target"
        raise RefusedError(
            f'{where} has no labels, and nothing here learns without them: add +distill(teacher="RUN") or '
            f'+distill-features(teacher="BACKBONE")'
        )


def bind_chain(parts: Sequence[Part], registry: Registry) -> tuple[Bound, tuple[Bound, ...], Bound | None]:
    """The backbone, adapters and head of a spec, if it names one. The registry decides the kind of each part, not the
    position.

    Some names, such as hub/ORG/NAME, are both a backbone and an adapter or head. Only one of them fits the position.
    """
    backbone = registry.bind(parts[0], _kind_of(parts[0], ("backbone",), registry))
    if backbone.kind != "backbone":
        raise UsageError(
            f"a spec starts with a backbone, and {parts[0].name!r} is of kind {backbone.kind}; "
            f"write BACKBONE+{parts[0]}; `zoo list backbone` shows what there is"
        )
    adapters: list[Bound] = []
    head: Bound | None = None
    for part in parts[1:]:
        bound = registry.bind(part, _kind_of(part, ("adapter", "head"), registry))
        if bound.kind == "head" and head is not None:
            raise UsageError(f"two heads, {head.name} and {bound.name}; a spec ends with at most one")
        if bound.kind == "adapter" and head is not None:
            raise UsageError(f"adapter {bound.name} stands after head {head.name}; the head comes last")
        if bound.kind not in ("adapter", "head"):
            if part.kind is None and f"adapter:{part.name.partition('/')[0]}" in reserved_names():
                registry.find(part.name, "adapter")  # raises, because the owner of that name is not installed
            raise UsageError(f"{part.name!r} is of kind {bound.kind}; after the backbone come adapters, then one head")
        if bound.kind == "head":
            head = bound
        else:
            adapters.append(bound)
    for adapter in adapters:
        check_adapter(adapter)
    return backbone, tuple(adapters), head


def _kind_of(part: Part, fitting: Sequence[PartKind], registry: Registry) -> PartKind | None:
    """The kind that fits the position, if a name has several kinds. None if the registry must decide."""
    claimed = registry.kinds(part.name)
    here = [kind for kind in fitting if kind in claimed]
    return here[0] if part.kind is None and len(claimed) > 1 and len(here) == 1 else None


def _described(backbone: Bound, catalog: Catalog) -> tuple[Entry | None, Weights]:
    """The catalogue entry of a backbone, adjusted to its `until`, and the weights that its spec asks for.

    The entry is None if there is none. Raises RefusedError if the backbone has no such stage or weights.
    """
    entry = catalog.find(backbone.name, "backbone")
    if entry is not None and entry.modality is None:
        entry = None  # the entry of a whole namespace, as for hf(files="DIR"), describes no backbone
    weights = _allowed_weights(backbone, entry)
    until = backbone.common["until"]
    if entry is not None and until is not None:
        check_until(backbone.name, until, entry.num_stages)
        entry = replace(entry, num_stages=until, num_parameters=None)
    return entry, weights


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
    predicts = head.fact("predicts")
    if target.kind not in predicts:
        raise RefusedError(f"head {head.name} predicts {', '.join(sorted(predicts))} and the target is {target.kind}")
    if entry is not None and entry.features is not None:
        given: FeatureSpec = entry.features
        wanted = consumed(head, target)
        if not _may_become(given.kind, wanted):
            raise RefusedError(
                f"head {head.name} consumes {wanted} and {backbone.name} gives {given.kind}; "
                f"features only become poorer: {' > '.join(FEATURE_KINDS)}"
            )
    training = [part.name for part in adapters if part.fact("changes") & TRAINING]
    if head.fact("fit") == "closed_form" and training:
        raise RefusedError(
            f"head {head.name} is fitted in closed form and gives no gradient to train {training[0]}; "
            f"use it with probe, or take head {DEFAULT_HEAD}"
        )


def consumed(head: Bound, target: Target) -> Kind:
    """The kind of features that a head is given: tokens if each token is predicted, else the kind that it consumes."""
    kind: Kind = "tokens" if target.kind == "token_classes" else head.fact("consumes")
    return kind


def _may_become(kind: Kind, wanted: Kind) -> bool:
    return FEATURE_KINDS.index(kind) <= FEATURE_KINDS.index(wanted)


def _check_adapters(
    backbone: Bound, entry: Entry | None, adapters: Sequence[Bound], target: Target, num_stages: int | None
) -> int | None:
    """Checks that adapters suit backbone and target. Returns the earliest stage that any of them changes, from 0.

    None if num_stages is None. Raises RefusedError, and PluginError if an adapter gives a wrong first stage.
    """
    first = num_stages
    for part in adapters:
        targets = part.fact("targets")
        if target.kind not in targets:
            raise RefusedError(
                f"adapter {part.name} is for {', '.join(sorted(targets))} and the target is {target.kind}"
            )
        if entry is not None:
            accepts, needs = part.fact("accepts"), part.fact("needs")
            if entry.features is not None and entry.features.kind not in accepts:
                raise RefusedError(
                    f"adapter {part.name} works on {', '.join(sorted(accepts))} "
                    f"and {backbone.name} gives {entry.features.kind}"
                )
            missing = sorted(part.fact("seams") - set(entry.seams))
            if missing:
                raise RefusedError(f"adapter {part.name} needs the {missing[0]} seam, which {backbone.name} lacks")
            if needs and not any(roles <= set(entry.roles) for roles in needs):
                wanted = " or else ".join(" and ".join(sorted(roles)) for roles in needs)
                raise RefusedError(
                    f"adapter {part.name} works on {wanted}; {backbone.name} has {', '.join(entry.roles) or 'no roles'}"
                )
        if num_stages is not None and first is not None:
            first = min(first, first_stage_of(part, backbone, num_stages))
    return first


def first_stage_of(adapter: Bound, backbone: Bound, num_stages: int) -> int:
    """The earliest stage that an adapter changes, of so many, from 0.

    Raises RefusedError if it does not suit this number of stages, and PluginError if it gives no stage.
    """
    try:
        found = adapter.fact("first_stage")(num_stages)
    except ZooError as error:
        raise RefusedError(f"adapter {adapter.name} on {backbone.name}: {error}") from error
    except Exception as error:  # a plugin's own code ran; whatever it raises is told as its fault
        reason = f"first_stage({num_stages}) raised {type(error).__name__}: {error}"
        raise broken(adapter, reason) from error
    if type(found) is not int or not 0 <= found <= num_stages:
        raise broken(adapter, f"first_stage({num_stages}) gave {found!r:.60}; allowed: 0 to {num_stages}")
    return found


def _rates(adapters: Sequence[Bound], head: Bound, num_rates: int) -> tuple[float, ...]:
    """The middle `num_rates` of a grid: that of the training adapter with the lowest default rate, else the head's."""
    if head.fact("fit") == "closed_form":
        return ()
    grids = [part.fact("learning_rates") for part in adapters if part.fact("changes") & TRAINING]
    grid = min(grids, key=lambda rates: rates[len(rates) // 2]) if grids else head.fact("learning_rates")
    start = len(grid) // 2 - num_rates // 2  # so that the default rate lies at index num_rates // 2
    return tuple(grid[start : start + num_rates])


def inner_parts(part: Bound, registry: Registry) -> tuple[Bound, ...]:
    """The parts named by specs among a part's arguments, and the parts that those name in turn.

    Raises what `Registry.bind` raises, such as RefusedError if a part needs trust that the user has not granted.
    """
    found: list[Bound] = []
    for argument, spec in part.specs():
        added = argument in part.implied and argument not in dict(part.written.arguments)
        with speaking_for(f"the record {part.written.name}" if added else None):
            for position, each in enumerate(spec.parts):
                bound = registry.bind(each, None if position else "backbone")
                found += [bound, *inner_parts(bound, registry)]
    return tuple(found)


def _with_files(plan: Plan, given: Mapping[str, Pinned], catalog: Catalog, afresh: bool) -> Plan:
    """The plan with the sources of its parts, and with the pins that the lock, the catalogue or a record states."""
    sources: dict[str, Source] = {}
    pins: dict[str, Pinned] = {}
    locked = told_apart(given)[1] if afresh else {}
    commits = {pin.repository: pin.revision for key, pin in given.items() if "@" not in key.partition("(")[0]}
    for part in plan.parts:
        entry = plan.entry if part is plan.backbone else catalog.find(part.name, part.kind)
        source = _source(part, entry)
        key = part_key(part)
        if source is None:
            if entry is not None and entry.files:
                pins[key] = Pinned(files=entry.files)  # the files lie inside its package
            continue
        if part is plan.backbone and plan.weights == "random" and not source.patterns:
            continue
        held = pin_of(given, part)
        if held is None and source.repository and source.revision is None and source.repository in commits:
            source = replace(source, revision=commits[source.repository])  # one commit for all parts
        sources[key] = source
        if held is not None and source.folder is not None and afresh:
            locked[key] = held  # an older lock has it under another key
        elif held is not None:
            pins[key] = _checked(key, held, source)
        elif entry is not None and entry.files and entry.revision == source.revision:
            pins[key] = Pinned(repository=source.repository, revision=entry.revision, files=entry.files)
    return pinned(replace(plan, sources=sources, locked=locked), pins)


def _source(part: Bound, entry: Entry | None) -> Source | None:
    """Where the files of a part come from. The revision is that of the spec, else of the record, else of the plugin."""
    try:
        source = part.source
    except ZooError:
        raise
    except Exception as error:  # a plugin's own code ran; whatever it raises is told as its fault
        raise broken(part, f"source() raised {type(error).__name__}: {error}") from error
    if source is None or source.repository is None:
        if part.revision is not None:
            raise UsageError(
                f"{part.written}: nothing of {part.name} comes from a repository; leave @{part.revision} out"
            )
        return source
    if isinstance(part.recipe, Located):
        return source
    return replace(source, revision=part.revision or (entry and entry.revision) or source.revision)


def _checked(key: str, pin: Pinned, source: Source) -> Pinned:
    found, wanted = pin.repository or pin.folder, source.repository or source.folder
    if found != wanted:
        raise IncompatibleError(
            f"the lock pins {key} to {found}, and it comes from {wanted} now; install the version that it was locked "
            f"with, or write the lock again: `zoo lock`"
        )
    return pin
