"""What `zoo distill` runs: the student's spec with an adapter that learns from the teacher, on examples without labels.

The core knows no method. An installed adapter says that it is the one to take for predictions or for features, see
zoo_core.contracts.Distils; whoever wants another one writes it into the student's spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from zoo_core.contracts import Distils, Located, Predicts, Target, TaskRecipe
from zoo_core.errors import AmbiguousError, NotFoundError, RefusedError, UsageError
from zoo_core.files.fetch import fetch_run, folder
from zoo_core.lock import Pinned, pin_of
from zoo_core.plan.extensions import fitting
from zoo_core.plan.plan import Budget, Plan
from zoo_core.plan.resolve import bind_chain, resolve
from zoo_core.plan.teachers import asked_of, bound_teacher
from zoo_core.registry.bind import Bound
from zoo_core.registry.local_plugins import SpecLike, part_of, spec_of
from zoo_core.registry.readers import is_path, task_part
from zoo_core.registry.recipe_checks import TRAINING, plugin_call
from zoo_core.registry.registry import Registry
from zoo_core.registry.registry import registry as default_registry
from zoo_core.run_layout import RUN
from zoo_core.spec.parser import Part, Spec

__all__ = ["plan_distillation", "unlabelled_part"]

UNLABELLED = "unlabelled"  # the task that reads the files of a path and looks at no labels
FIRST_PARTY = "zoo-distill"  # what has adapters that say it


def unlabelled_part(data: str | TaskRecipe, registry: Registry | None = None) -> Part:
    """The task of some examples without their labels: of a path, or of a task with labels or without."""
    registry = registry or default_registry()
    if isinstance(data, str) and is_path(data, registry):
        return Part(UNLABELLED, arguments=(("path", data),))
    part = task_part(data, registry) if isinstance(data, str) else part_of(data, registry)
    bound = registry.bind(part, "task")
    if not isinstance(bound.recipe, Located) and bound.target.kind == "unlabelled":
        return part
    return replace(part, arguments=(*part.arguments, ("labels", "drop")))


def plan_distillation(
    teacher: str,
    student: SpecLike,
    *,
    task: Part | Bound,
    budget: Budget | None = None,
    seed: int = 0,
    pins: Mapping[str, Pinned] | None = None,
    offline: bool = False,
) -> Plan:
    """The plan of a student that learns from a teacher.

    teacher: the folder of a stored run, hub/ORG/NAME, or a backbone's name. Of a run that predicts, predictions are
    learned, else features. student: a spec; an adapter in it that learns from this teacher is taken as it is.
    Raises NotFoundError (no such teacher, or no installed adapter learns from one), AmbiguousError if several would,
    RefusedError if nothing of the student's backbone trains, and what `resolve` raises.
    """
    registry = default_registry()
    if isinstance(student, str) and (Path(student).expanduser() / RUN).is_file():
        raise UsageError(
            f"the student {student} is a stored run, not a spec; the teacher comes first: zoo distill {student} SPEC; "
            f"to train it further it is 'run(path=\"{student}\")+full'"
        )
    spec = spec_of(student, registry)
    backbone, adapters, _ = bind_chain(spec.parts, registry)
    if not any(adapter.fact("changes") & TRAINING for adapter in adapters):
        raise RefusedError(
            f"nothing of the student's backbone trains in {spec}, so it cannot learn to see as its teacher does; "
            f"open it: {backbone.written}+full, {backbone.written}+partial(n=2), or {backbone.written}+lora"
        )
    predicts = _predicted(teacher, registry, pins or {}, offline)
    if not any(asked.of == teacher for adapter in adapters for asked in asked_of(adapter)):
        added = _adapter(teacher, "features" if predicts is None else "predictions", registry)
        spec = _with(spec, added, adapters)
    _, adapters, _ = bind_chain(spec.parts, registry)
    learns = any(asked.of == teacher and asked.predictions for adapter in adapters for asked in asked_of(adapter))
    return resolve(
        spec,
        task=task,
        target=predicts if learns else None,
        budget=(budget or Budget()).for_fit(),
        seed=seed,
        pins=pins,
        offline=offline,
    )


def _predicted(teacher: str, registry: Registry, pins: Mapping[str, Pinned], offline: bool) -> Target | None:
    """What a teacher predicts; None if it is a backbone."""
    part = bound_teacher(teacher, registry)
    recipe: object = part.recipe
    source = part.source
    if not isinstance(recipe, Predicts) or source is None:
        return None
    if source.folder is not None:
        files = Path(source.folder).expanduser()
    else:
        assert source.repository is not None, "it is fetched from somewhere"
        pin = pin_of(pins, part)
        if pin is not None:
            files = folder(pin, [RUN], offline=offline)
        elif offline:
            raise NotFoundError(f"not in the lock: the teacher {teacher}; leave --frozen out, or zoo lock '{teacher}'")
        else:
            files = fetch_run(source.repository, part.revision)
    with plugin_call(part):
        _, target = recipe.described(files)
    return None if target.kind == "unlabelled" else target


def _adapter(teacher: str, what: str, registry: Registry) -> Part:
    """The installed adapter that learns predictions, or features, from a teacher alone."""
    names = fitting("adapter", registry, lambda recipe: isinstance(recipe, Distils) and recipe.distils == what)
    if not names:
        raise NotFoundError(
            f"no adapter that is installed learns {what} from a teacher: pip install {FIRST_PARTY}, or write one into "
            f"the student's spec"
        )
    if len(names) > 1:
        raise AmbiguousError(
            f"{' and '.join(names)} both learn {what} from a teacher; write the one that is meant into the student's "
            f"spec, as 'BACKBONE+full+{names[0]}(teacher=\"{teacher}\")'"
        )
    provider = registry.find(names[0], "adapter")
    recipe: object = registry.recipe(provider)
    assert isinstance(recipe, Distils), "it was found so"
    return part_of(recipe.without_labels(teacher), registry)


def _with(spec: Spec, added: Part, adapters: Iterable[Bound]) -> Spec:
    """The spec with an adapter behind all that train, and before those that change the objective alone.

    Learning from predictions alone leaves out every loss that stands before it, and these are to stay.
    """
    place = 1
    for position, adapter in enumerate(adapters, 1):
        if adapter.fact("changes") & TRAINING:
            place = position + 1
    return Spec((*spec.parts[:place], added, *spec.parts[place:]))
