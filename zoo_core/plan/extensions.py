"""Binds the metric of a task and the augmentation of a budget, and checks that both suit the task. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo_core.contracts import PartKind, Target
from zoo_core.errors import RefusedError, SpecError, UsageError, ZooError, nearest
from zoo_core.registry.bind import Bound
from zoo_core.registry.local_plugins import part_of
from zoo_core.registry.recipe_checks import broken, check_augmentation, check_metric
from zoo_core.registry.registry import Registry
from zoo_core.registry.scan import CORE, normalise
from zoo_core.spec.parser import parse_part

AGREEMENT = "agreement"  # the metric of examples without labels

__all__ = ["augmentation_of", "fitting", "is_own", "metric_of"]


def metric_of(task: Bound, registry: Registry) -> Bound:
    """The metric of a task, which the task gives as text, with or without arguments, or as a recipe object.

    Raises PluginError if there is no such metric or if it is not for the task's target. If the metric exists and cannot
    be used, raises what `Registry.bind` raises.
    """
    kind = task.target.kind
    named = AGREEMENT if task.common["labels"] == "drop" else task.recipe.metric
    try:
        part = parse_part(named) if isinstance(named, str) else part_of(named, registry)
    except SpecError:
        part = None
    except UsageError as error:  # an object that is not a recipe
        raise broken(task, f"metric: {error}") from error
    if part is not None and any(each.name == part.name for each in registry.providers("metric")):
        metric = registry.bind(part, "metric")
        check_metric(metric)
        if kind in metric.recipe.targets:
            return metric
    allowed = fitting("metric", registry, lambda recipe: kind in recipe.targets)
    raise broken(task, f"metric is {named!r}; allowed: {', '.join(allowed)}{nearest(str(named), allowed)}")


def augmentation_of(text: str, task: Bound, target: Target, registry: Registry) -> Bound | None:
    """The augmentation that a budget names; None for `none`.

    Raises what `Registry.bind` raises, and RefusedError if it is not for the modality or the target of the task.
    """
    if text == "none":
        return None
    part = registry.bind(parse_part(text), "augmentation")
    check_augmentation(part)
    modality, recipe = task.recipe.modality, part.recipe
    if modality in recipe.modalities and target.kind in {*recipe.targets, "unlabelled"}:
        return part
    if modality not in recipe.modalities:
        problem = f"is for {' and '.join(sorted(recipe.modalities))}, and task {task.name} is {modality}"
    else:
        problem = f"is not for {target.kind}, which it would make wrong; it is for {', '.join(sorted(recipe.targets))}"
    fits = fitting("augmentation", registry, lambda each: modality in each.modalities and target.kind in each.targets)
    raise RefusedError(f"augment={part.name} {problem}; allowed here: {', '.join(('none', *fits))}")


def fitting(kind: PartKind, registry: Registry, fits: Callable[[Any], bool]) -> tuple[str, ...]:
    """The names of a kind whose recipes pass the test `fits`. Recipes that cannot be loaded or tested are left out."""
    found = []
    for provider in registry.providers(kind):
        try:
            if fits(registry.recipe(provider)):
                found.append(provider.name)
        except (ZooError, AttributeError, TypeError):
            continue  # `zoo doctor` reports it
    return tuple(found)


def is_own(part: Bound) -> bool:
    """Whether zoo-core itself provides the part. Nobody else may claim its name, so the name alone identifies it."""
    return normalise(part.provider.distribution) == CORE
