"""The teachers that the adapters of a chain declare: which frozen models they are, and whether they fit the trial.

No torch. What only a file that is still to be fetched can tell is checked when the teacher is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zoo_core.contracts import Modality, Predicts, Target, Teacher
from zoo_core.errors import AmbiguousError, NotFoundError, RefusedError, SpecError, UsageError
from zoo_core.registry.bind import Bound
from zoo_core.registry.catalog import Catalog
from zoo_core.registry.recipe_checks import broken, plugin_call
from zoo_core.registry.registry import Registry
from zoo_core.run_layout import RUN
from zoo_core.spec.parser import Part, parse_part

__all__ = [
    "asked_of",
    "bound_teacher",
    "bound_teachers",
    "check_teachers",
    "common_outputs",
    "described",
    "taught_target",
    "with_pooled",
]


def bound_teachers(adapters: Iterable[Bound], registry: Registry) -> dict[str, tuple[Teacher, Bound]]:
    """Each teacher that the adapters declare, once, with everything that any of them asks of it.

    Raises NotFoundError for one that does not exist, RefusedError if adapters ask for one teacher in two precisions.
    """
    found: dict[str, tuple[Teacher, Bound]] = {}
    for adapter in adapters:
        for asked in asked_of(adapter):
            if asked.of not in found:
                found[asked.of] = (asked, bound_teacher(asked.of, registry, by=f" of {adapter.name}"))
                continue
            known, part = found[asked.of]
            if known.keep != asked.keep:
                raise RefusedError(
                    f"adapter {adapter.name} keeps what teacher {asked.of} gives in {asked.keep}, and another one in "
                    f"{known.keep}; give both the same keep"
                )
            found[asked.of] = (_union(known, asked), part)
    return found


def asked_of(adapter: Bound) -> tuple[Teacher, ...]:
    """The teachers that an adapter declares. Raises PluginError for anything else that it gives."""
    with plugin_call(adapter):
        found: object = adapter.fact("teachers")()
    if not isinstance(found, tuple) or not all(isinstance(each, Teacher) for each in found):
        raise broken(adapter, f"teachers() gave {found!r:.60}; allowed: a tuple of zoo_core.contracts.Teacher")
    for each in found:
        if not (each.predictions or each.pooled or each.stages or each.sites):
            raise broken(adapter, f"it asks nothing of its teacher {each.of!r}")
    return found


def with_pooled(teachers: Mapping[str, tuple[Teacher, Bound]]) -> dict[str, tuple[Teacher, Bound]]:
    """The teachers of examples without labels: of each that predicts nothing, pooled features are read as well, which
    agreement is measured by.
    """
    return {
        of: (replace(asked, pooled=asked.pooled or not asked.predictions), part)
        for of, (asked, part) in teachers.items()
    }


def _union(one: Teacher, other: Teacher) -> Teacher:
    return replace(
        one,
        predictions=one.predictions or other.predictions,
        pooled=one.pooled or other.pooled,
        stages=tuple(sorted({*one.stages, *other.stages})),
        sites=tuple(sorted({*one.sites, *other.sites})),
    )


def bound_teacher(of: str, registry: Registry, *, by: str = "") -> Bound:
    """The backbone that a teacher's text names: that of a stored run if a folder with one lies there.

    by: what errors say of who asks for it, as " of distill". Raises NotFoundError, UsageError and AmbiguousError.
    """
    folder = Path(of).expanduser()
    is_run = bool(of) and (folder / RUN).is_file()
    is_name = _names_backbone(of, registry)
    if is_run and is_name:
        raise AmbiguousError(
            f"{of} is a folder with a stored run and a backbone's name; write ./{of} for the folder, "
            f"or give the teacher's folder another name"
        )
    if is_run:
        return registry.bind(Part("run", arguments=(("path", of),)), "backbone")
    if not is_name and (folder.exists() or of.startswith(("./", "../", "/", "~"))):
        there = "holds no fitted model" if folder.is_dir() else "is no folder" if folder.exists() else "is not there"
        raise NotFoundError(
            f"the teacher {of}{by} {there} ({RUN} is missing); `zoo fit SPEC --task T --out {of}` makes "
            f"one, and `zoo list backbone` shows the backbones that can teach features"
        )
    try:
        return registry.bind(parse_part(of), "backbone")
    except SpecError as error:
        raise UsageError(f"the teacher {of!r:.60}{by} is no name of a backbone: {error.reason}") from error
    except NotFoundError as error:
        raise NotFoundError(f"the teacher{by}: there is no folder {of}, and {error}") from error


def _names_backbone(of: str, registry: Registry) -> bool:
    try:
        return "backbone" in registry.kinds(parse_part(of).name)
    except SpecError:
        return False


def described(part: Bound, folder: Path | None, catalog: Catalog) -> tuple[Modality | None, Target | None]:
    """What a teacher reads and what it predicts, None for what is not known.

    folder: with its files; None if they are not here. Raises what the recipe raises for damaged files.
    """
    recipe: object = part.recipe
    if isinstance(recipe, Predicts):
        if folder is None:
            return None, None
        with plugin_call(part):
            return recipe.described(folder)
    entry = catalog.find(part.name, "backbone")
    return None if entry is None else entry.modality, None


def check_teachers(
    teachers: Mapping[str, tuple[Teacher, Bound]],
    told: Mapping[str, tuple[Modality | None, Target | None]],
    modality: Modality | None,
    target: Target,
) -> None:
    """Raises RefusedError for a teacher that cannot teach this: of another modality, target or classes."""
    for of, (asked, part) in teachers.items():
        reads, predicts = told[of]
        if modality is not None and reads is not None and reads != modality:
            raise RefusedError(f"teacher {of} reads {reads}, and the examples are {modality}")
        if not asked.predictions:
            continue
        if not isinstance(part.recipe, Predicts) or (predicts is not None and predicts.kind == "unlabelled"):
            raise _predicts_nothing(of)
        if predicts is not None and target.size is not None:  # else the data tell it, and build looks again
            common_outputs(of, predicts, target)


def taught_target(
    teachers: Mapping[str, tuple[Teacher, Bound]], told: Mapping[str, tuple[Modality | None, Target | None]]
) -> Target | None:
    """The target that examples without labels have: that of the first teacher that predicts; None if none does."""
    for of, (asked, part) in teachers.items():
        if asked.predictions:
            target = told[of][1]
            if not isinstance(part.recipe, Predicts) or (target is not None and target.kind == "unlabelled"):
                raise _predicts_nothing(of)
            if target is None:
                raise RefusedError(f"what teacher {of} predicts is not known before its files are here: zoo fetch {of}")
            return target
    return None


def _predicts_nothing(of: str) -> RefusedError:
    return RefusedError(
        f"teacher {of} is a backbone, whose predictions nobody has trained; learn from its features, as "
        f"distill-features(teacher=\"{of}\"), or from a fitted run of it: zoo fit '{of}' --task T --out DIR"
    )


def common_outputs(
    of: str, teacher: Target, student: Target, *, called: str = "teacher"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The outputs that a teacher and a student share: their places in the teacher's order, and in the student's.

    They are matched by name, in the student's order; outputs without names are matched by place, if they are as many.
    called: what errors call the first. Raises RefusedError, with both lists, if the kinds of target differ or too
    little is shared.
    """
    if teacher.kind != student.kind:
        raise RefusedError(f"{called} {of} predicts {teacher.kind}, and the target is {student.kind}")
    if not (teacher.names and student.names):
        if teacher.size == student.size:
            places = tuple(range(teacher.size or 0))
            return places, places
        raise RefusedError(
            f"{called} {of} has {teacher.size} outputs and the target {student.size}, and not both have names by which "
            f"they could be matched"
        )
    place, noun = {name: index for index, name in enumerate(teacher.names)}, called.removeprefix("the ")
    shared = [(place[name], index) for index, name in enumerate(student.names) if name in place]
    if len(shared) < (2 if student.kind in ("classes", "token_classes") else 1):
        raise RefusedError(
            f"{called} {of} and the target share {len(shared)} outputs; the {noun} has {_some(teacher.names)}; the "
            f"target has {_some(student.names)}"
        )
    return tuple(theirs for theirs, _ in shared), tuple(own for _, own in shared)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
