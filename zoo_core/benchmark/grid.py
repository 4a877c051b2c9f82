"""Expands a suite file, or the same grid from flags, into plans to run and refusals with their reasons. No torch."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zoo_core.contracts import HeadRecipe, TaskRecipe
from zoo_core.errors import (
    AccessError,
    IncompatibleError,
    NotFoundError,
    RefusedError,
    SuiteError,
    UsageError,
    ZooError,
    nearest,
)
from zoo_core.lock import Pinned, part_key, told_apart
from zoo_core.plan.plan import Budget, Plan, Trial, budget_from, pinned, reseeded
from zoo_core.plan.resolve import bind_task, resolve
from zoo_core.registry.catalog import Catalog
from zoo_core.registry.catalog import catalog as default_catalog
from zoo_core.registry.index import list_names
from zoo_core.registry.local_plugins import Recipe, SpecLike, part_of, spec_of
from zoo_core.registry.readers import task_part
from zoo_core.registry.registry import Bound, Registry
from zoo_core.registry.registry import registry as default_registry
from zoo_core.spec.parser import Part, Spec, parse, parse_part

__all__ = [
    "PATTERN",
    "Grid",
    "Refusal",
    "Suite",
    "chains_in",
    "check_shots",
    "expand",
    "load_suite",
    "named_by",
    "starter_suite",
    "suite_from",
    "weights_of",
]

PATTERN = frozenset("*?")  # in the name of a backbone
_CHAIN = r'(?:"(?:[^"\\]|\\.)*"|\((?:"(?:[^"\\]|\\.)*"|[^)"])*\)|[^,("])+'
KEYS = ("name", "description", "tasks", "backbones", "adapters", "heads", "seeds", "budget")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A declared grid: every task with every backbone, chain of adapters, head and seed.

    Each element may be text or a recipe object, and a spec also a list of both.
    heads: None stands for the head that the target picks. An element of `adapters` may end in its own head, and is then
    not combined with `heads`.
    stored: the file that the suite was read from. Specs in a file are trusted less than those that a user types, see
    registry/trust.py.
    """

    name: str
    tasks: tuple[str | Part | TaskRecipe, ...]
    backbones: tuple[SpecLike, ...]
    adapters: tuple[SpecLike, ...]
    heads: tuple[str | Part | HeadRecipe | None, ...] = (None,)
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: Budget = field(default_factory=Budget)
    description: str = ""
    stored: str | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A trial that makes no sense, and why."""

    trial: Trial
    reason: str


@dataclass(frozen=True, kw_only=True)
class Grid:
    """An expanded suite: each trial once, in the order of the suite."""

    name: str
    plans: tuple[Plan, ...]
    refusals: tuple[Refusal, ...]


def starter_suite() -> Path:
    """The suite that `zoo bench` runs when none is named."""
    return Path(__file__).parent / "starter.toml"


def load_suite(path: Path) -> Suite:
    """Reads a suite file.

    Raises SuiteError naming the file, the key and what is allowed, NotFoundError and AccessError.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"no suite file {path}; without one, `zoo bench` runs the starter suite") from error
    except PermissionError as error:
        raise AccessError(f"{path} may not be read; change its rights") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path} is not a file of text: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SuiteError(f"{path} is not TOML: {error}") from error
    try:
        return replace(suite_from(table, name=path.stem), stored=f"the suite {path}")
    except UsageError as error:
        raise SuiteError(f"{path}: {error}") from error


def suite_from(table: Mapping[str, object], *, name: str) -> Suite:
    """A Suite from a table of plain values, as TOML or flags provide them: lists of text, or one text with commas."""
    for key in table:
        if key not in KEYS:
            raise SuiteError(f"unknown key {key!r}; a suite has {', '.join(KEYS)}{nearest(key, KEYS)}")
    budget = table.get("budget", {})
    if not isinstance(budget, Mapping):
        raise SuiteError(f"budget should be a table, found {budget!r}")
    return Suite(
        name=_name(table, name),
        description=_string_at(table, "description", ""),
        tasks=tuple(task_part(text) for text in _texts(table, "tasks")),
        backbones=tuple(parse(text) for given in _texts(table, "backbones") for text in named_by(given)),
        adapters=tuple(parse(text) for text in _texts(table, "adapters", default=("probe",))),
        heads=tuple(parse_part(text) for text in _texts(table, "heads")) if "heads" in table else (None,),
        seeds=_seeds(table.get("seeds", 3)),
        budget=budget_from(budget),
    )


def named_by(text: str) -> tuple[str, ...]:
    """The backbones that a pattern such as `timm/vit_tiny*` or `starter/*(weights=random)` matches. Other names stay.

    If a name is known with and without tags of weights, those with tags are taken. Raises NotFoundError if nothing
    matches.
    """
    name = text.partition("(")[0].partition("+")[0].partition("@")[0].strip()
    if not PATTERN & set(name):
        return (text,)
    rows = list_names("backbone", name, index=default_registry().index)
    found = [row["name"] for row in rows if row["state"] == "ok"]
    if not found:
        known = [provider.name for provider in default_registry().index.providers if provider.kind == "backbone"]
        near = nearest(name.strip("*?"), known)
        raise NotFoundError(f"no backbone fits {name!r}{near}; `zoo list backbone` shows what there is")
    tagged = {each.rpartition(".")[0] for each in found}
    return tuple(text.replace(name, each, 1) for each in found if each not in tagged)


def chains_in(text: str) -> tuple[str, ...]:
    """Splits a flag at its commas, some parts of which may be patterns. Commas inside brackets or quotes do not count.

    If brackets or quotes are not closed, the text is one chain, and the parser reports its mistake.
    """
    if re.fullmatch(f"{_CHAIN}(?:,{_CHAIN})*", text) is None:
        return (text,)
    return tuple(chain.strip() for chain in re.findall(_CHAIN, text))


def expand(
    suite: Suite,
    *,
    pins: Mapping[str, Pinned] | None = None,
    pin: Callable[[Plan], Plan] | None = None,
    offline: bool = False,
    registry: Registry | None = None,
    catalog: Catalog | None = None,
) -> Grid:
    """Resolves every trial of a suite. Two texts of the same trial give one plan.

    pins: the files that a lock pins. Local folders are checked anyway.
    pin: pins the remaining files, as zoo_core.files.fetch.pin_plan does. Without it, such plans have no digest.
    offline: as for `resolve`.
    A trial that makes no sense, needs a broken plugin, or cannot be pinned becomes a refusal. Unknown names and wrong
    arguments are errors, because they are typing mistakes. Raises SuiteError if nothing is left to run.
    """
    registry, catalog = registry or default_registry(), catalog or default_catalog()
    given = dict(pins or {})
    seen: dict[str, Pinned] = {}  # local folders that were looked at for a trial before
    bound: dict[str, Bound] = {}
    unreached: dict[tuple[str, ...], str] = {}  # parts that could not be pinned are asked for once
    plans: dict[str, Plan] = {}
    refusals: dict[str, Refusal] = {}
    tasks = [_part(task, registry, task_part) for task in suite.tasks]
    for task, spec in itertools.product(tasks, _specs(suite, registry)):
        first, reason = None, ""
        try:
            if str(task) not in bound:
                bound[str(task)] = bind_task(task, given, offline=offline, stored=suite.stored, registry=registry)
            first = resolve(
                spec,
                task=bound[str(task)],
                budget=suite.budget,
                pins=given,
                offline=offline,
                stored=suite.stored,
                registry=registry,
                catalog=catalog,
            )
            first = pinned(first, {key: seen[key] for key in first.unpinned if key in seen})
            check_shots(first, catalog)
        except IncompatibleError as error:
            first, reason = None, str(error)
        if first is not None and first.unpinned and pin is not None:
            first, reason = _pinned(first, pin, unreached)
            fixed, folders = told_apart(first.pins if first is not None else {})
            given, seen = given | fixed, seen | folders
        for seed in suite.seeds:
            if first is None:
                trial = Trial(spec=spec, task=task, budget=suite.budget, seed=seed)
                refusals.setdefault(str(trial), Refusal(trial=trial, reason=reason))
            else:
                plan = reseeded(first, seed)
                plans.setdefault(plan.digest or str(plan.trial), plan)
    if not plans:
        reasons = sorted({refusal.reason for refusal in refusals.values()})
        because = f": {reasons[0]}" if reasons else "; each of tasks, backbones and seeds needs one entry"
        raise SuiteError(f"the grid of suite {suite.name} is empty, {len(refusals)} trials refused{because}")
    return Grid(name=suite.name, plans=tuple(plans.values()), refusals=tuple(refusals.values()))


def check_shots(plan: Plan, catalog: Catalog | None = None) -> None:
    """Raises RefusedError if the catalogue knows that a task has no classes, or too few examples for its `shots`."""
    shots = plan.task.common["shots"] if plan.task is not None else None
    if plan.task is None or shots is None:
        return
    if plan.target.kind != "classes":
        raise RefusedError(f"shots={shots} needs classes and the target is {plan.target.kind}; use limit=N")
    entry = (catalog or default_catalog()).find(plan.task.name, "task")
    size = plan.target.size or (entry.target.size if entry is not None and entry.target is not None else None)
    num = entry.splits.get("train") if entry is not None else None
    if size is not None and num is not None and shots * size > num:
        raise RefusedError(
            f"shots={shots} of {size} classes are {shots * size} training examples, and {plan.task.name} has {num}; "
            f"allowed: up to {num // size}"
        )


def weights_of(plan: Plan) -> str:
    """How results name a backbone's weights: pretrained, random, or `as built` if nothing says that it has any."""
    entry = plan.entry
    told = entry is not None and ("pretrained" in entry.weights or bool(entry.files))
    is_told = plan.weights == "random" or told or part_key(plan.backbone) in plan.sources
    return plan.weights if is_told else "as built"


def _pinned(plan: Plan, pin: Callable[[Plan], Plan], unreached: dict[tuple[str, ...], str]) -> tuple[Plan | None, str]:
    """The plan with its files pinned, or the reason why not, which is kept for other plans with these parts."""
    if plan.unpinned not in unreached:
        try:
            return pin(plan), ""
        except ZooError as error:
            unreached[plan.unpinned] = str(error)
    return None, unreached[plan.unpinned]


def _specs(suite: Suite, registry: Registry) -> list[Spec]:
    specs = []
    usual = [None if head is None else _part(head, registry) for head in suite.heads]
    for head in usual:
        if head is not None:
            registry.find(head.name, head.kind or "head")  # an adapter would stand at a head's place unseen
    chains = ([spec_of(spec, registry) for spec in specs] for specs in (suite.backbones, suite.adapters))
    for backbone, chain in itertools.product(*chains):
        last = chain.parts[-1]
        kind = last.kind or registry.find(last.name, None).kind
        heads: Iterable[Part | None] = (None,) if kind == "head" else usual
        specs += [Spec((*backbone.parts, *chain.parts, *((head,) if head else ()))) for head in heads]
    return specs


def _part(given: str | Part | Recipe, registry: Registry, read: Callable[[str], Part] = parse_part) -> Part:
    if isinstance(given, str):
        return read(given)
    return given if isinstance(given, Part) else part_of(given, registry)


def _string_at(table: Mapping[str, object], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise SuiteError(f"{key} should be text, found {value!r}")
    return value


def _name(table: Mapping[str, object], name: str) -> str:
    """The name of a suite. It is also the folder of its run, which is always inside the folder of the user's runs."""
    found = _string_at(table, "name", name)
    if found in ("", ".", "..") or set(found) & {"/", "\\", "\0"}:
        raise SuiteError(f"name is {found!r:.60}; it names a folder, so it has no slash in it")
    return found


def _texts(table: Mapping[str, object], key: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
    value = table.get(key, default)
    if value is None:
        raise SuiteError(f"{key} is missing; a suite names its tasks and backbones")
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise SuiteError(
            f"{key} should be a list of texts such as {key} = ['NAME', 'NAME(key=value)'], found {value!r}"
        )
    if not value:
        raise SuiteError(f"{key} is empty, so the grid has no trials; `zoo list {key.rstrip('s')}` shows what there is")
    return tuple(value)


def _seeds(value: object) -> tuple[int, ...]:
    """A count, which means 0 to count - 1, or a list of seeds."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return tuple(range(value))
    if isinstance(value, list | tuple) and value and all(type(seed) is int and seed >= 0 for seed in value):
        return tuple(dict.fromkeys(value))
    raise SuiteError(f"seeds should be a positive count or a list of numbers from 0, found {value!r}")
