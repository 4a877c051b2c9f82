"""Checks the facts that a recipe declares, once, before anything relies on them. A wrong one is blamed on its plugin.

The registry has already checked that the recipe is a frozen dataclass with a version and the verb of its kind. This
module checks the facts of each kind, which contracts/recipes.py lists.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from inspect import getattr_static
from typing import Any, get_args

from zoo_core._process.interrupts import raise_interrupt
from zoo_core.contracts import (
    FEATURE_KINDS,
    MODALITIES,
    ROLES,
    TARGET_KINDS,
    AdapterFacts,
    Change,
    HeadFacts,
    Seam,
    Target,
)
from zoo_core.errors import PluginError, ZooError, nearest
from zoo_core.registry.bind import Bound
from zoo_core.registry.trust import speaking_for

__all__ = [
    "MAX_RATES",
    "TRAINING",
    "broken",
    "check_adapter",
    "check_augmentation",
    "check_head",
    "check_metric",
    "check_reader",
    "check_score",
    "check_task",
    "plugin_call",
]

MAX_RATES = 5  # the length of every grid of learning rates, so that all combinations get the same tuning
TRAINING: frozenset[Change] = frozenset({"base", "added"})  # these are trained by gradient


def check_head(head: Bound) -> None:
    """Raises PluginError if a fact of a head is not allowed: consumes, predicts, fit or learning_rates."""
    _check_spelling(head, HeadFacts)
    _check_word(head, "consumes", FEATURE_KINDS)
    _check_set(head, "predicts", TARGET_KINDS)
    _check_word(head, "fit", ("gradient", "closed_form"))
    if head.fact("fit") == "gradient":
        _check_rates(head)


def check_adapter(adapter: Bound) -> None:
    """Raises PluginError if a fact of an adapter is not allowed, or if the adapter does not declare `changes`."""
    _check_spelling(adapter, AdapterFacts)
    _check_set(adapter, "accepts", FEATURE_KINDS)
    _check_set(adapter, "targets", TARGET_KINDS)
    _check_set(adapter, "seams", get_args(Seam))
    _check_set(adapter, "changes", get_args(Change))
    needs = _declared(adapter, "needs")
    if not isinstance(needs, tuple) or not all(isinstance(roles, Set) for roles in needs):
        raise broken(adapter, f"needs is {needs!r:.60}; allowed: a tuple of alternatives, each a frozenset of roles")
    _check_words(adapter, "needs", ROLES, (role for roles in needs for role in roles))
    _check_bool(adapter, "mergeable")
    _check_bool(adapter, "exact_at_start")
    _check_bool(adapter, "unlabelled")
    if adapter.fact("changes") & TRAINING:
        _check_rates(adapter)


def check_task(task: Bound) -> None:
    """Raises PluginError if a task does not declare a modality, a target and a metric.

    Whether the metric is meant for the target is checked in zoo_core.plan.extensions.
    """
    target = _declared(task, "target")
    if not isinstance(target, Target):
        raise broken(task, f"target is {target!r:.60}; it should be a zoo_core.contracts.Target")
    _check_words(task, "target.kind", TARGET_KINDS, [target.kind])
    _check_word(task, "modality", MODALITIES)
    _declared(task, "metric")


def check_metric(metric: Bound) -> None:
    """Raises PluginError if a metric does not declare its target kinds and whether higher scores are better."""
    _check_set(metric, "targets", TARGET_KINDS)
    _check_bool(metric, "higher_is_better")


def check_augmentation(augmentation: Bound) -> None:
    """Raises PluginError if an augmentation does not declare the modalities and the target kinds that it is for."""
    _check_set(augmentation, "modalities", MODALITIES)
    _check_set(augmentation, "targets", TARGET_KINDS)


def check_reader(reader: Bound) -> None:
    """Raises PluginError if a reader does not declare which suffixes or file names it reads."""
    told = {name: _declared(reader, name) for name in ("suffixes", "below", "names")}
    for name, found in told.items():
        if not isinstance(found, Collection) or isinstance(found, str) or not all(isinstance(x, str) for x in found):
            raise broken(reader, f"{name} is {found!r:.60}; allowed: a frozenset of texts")
    wrong = sorted(x for x in (*told["suffixes"], *told["below"]) if x != x.lower() or not x.startswith("."))
    if wrong:
        raise broken(reader, f"{wrong[0]!r} is no suffix; allowed: a dot and lower case, as in '.csv'")
    if not any(told.values()):
        raise broken(reader, "it has no suffixes and no names, so it reads nothing")


def check_score(score: Bound) -> None:
    """Raises PluginError if a score does not declare the target kinds that it is for."""
    _check_set(score, "targets", TARGET_KINDS)


def _check_rates(part: Bound) -> None:
    rates = _declared(part, "learning_rates")
    numbers = isinstance(rates, Sequence) and all(type(rate) in (int, float) and 0 < rate < 1e3 for rate in rates)
    if not numbers or len(rates) != MAX_RATES or list(rates) != sorted(set(rates)):
        raise broken(part, f"learning_rates should be {MAX_RATES} ascending positive numbers, found {rates!r}")


def _check_spelling(part: Bound, facts: type) -> None:
    """Refuses a misspelt fact, such as `target` for `targets`. Otherwise the default would silently apply instead."""
    recipe = type(part.recipe)
    known = {name for name in vars(facts) if not name.startswith("_")} | {"changes"}
    said = {name for base in recipe.__mro__[:-1] for name, value in vars(base).items() if not callable(value)}
    for name in sorted(said - known - {field.name for field in fields(recipe)}):
        meant = get_close_matches(name, known - said, n=1, cutoff=0.85)
        if meant and not name.startswith("_"):
            raise broken(part, f"it says {name}, which nothing reads; {meant[0]} is what a recipe says")


def _check_set(part: Bound, name: str, allowed: Sequence[str]) -> None:
    found = _declared(part, name)
    if not isinstance(found, Set):
        raise broken(part, f"{name} is {found!r:.60}; allowed: a frozenset of {', '.join(allowed)}")
    _check_words(part, name, allowed, found)


def _check_word(part: Bound, name: str, allowed: Sequence[str]) -> None:
    found = _declared(part, name)
    if not isinstance(found, str):
        raise broken(part, f"{name} is {found!r:.60}; allowed: one of {', '.join(allowed)}")
    _check_words(part, name, allowed, [found])


def _check_bool(part: Bound, name: str) -> None:
    found = _declared(part, name)
    if not isinstance(found, bool):
        raise broken(part, f"{name} is {found!r:.60}; allowed: True, False")


def _check_words(part: Bound, name: str, allowed: Sequence[str], found: Iterable[str]) -> None:
    wrong = sorted(set(found) - set(allowed), key=str)
    if wrong:
        near = nearest(str(wrong[0]), allowed)
        raise broken(part, f"{name} is {wrong[0]!r}; allowed: {', '.join(allowed)}{near}")


def _declared(part: Bound, name: str) -> Any:
    """The fact that a recipe declares, or else its default. Raises PluginError if it has neither."""
    try:
        with plugin_call(part):
            return part.fact(name)
    except PluginError as error:
        if getattr_static(part.recipe, name, _SILENT) is not _SILENT:
            raise  # a property that raises
        raise broken(part, f"it does not say {name}") from error


_SILENT = object()


@contextmanager
def plugin_call(part: Bound) -> Iterator[None]:
    """Runs a plugin's own code. What it raises becomes a PluginError that names the line of the plugin.

    Errors of zoo and a lack of memory are passed on as they are.
    """
    try:
        with speaking_for(f"the code of {part.kind} {part.name}"):
            yield
    except (ZooError, MemoryError):
        raise
    except Exception as error:
        raise_interrupt(error)
        if "out of memory" in str(error) or "can't allocate memory" in str(error):  # torch has no class for a CPU's
            raise
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        provider = part.provider
        raise PluginError(
            f"{part.kind} {part.name!r} of {provider.distribution} {provider.version} raised {said} "
            f"at {at.filename}:{at.lineno}; "
            + (f"mend {provider.distribution}" if provider.sha256 else "tell its author, or leave it out")
        ) from error


def broken(part: Bound, problem: str) -> PluginError:
    """The error of a recipe that breaks its contract."""
    provider = part.provider
    return PluginError(
        f"{part.kind} {part.name!r} of {provider.distribution} {provider.version} breaks its contract: {problem}; "
        f"see zoo_core.contracts, {provider.mend}"
    )
