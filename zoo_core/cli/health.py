"""What `zoo doctor` finds: the state of every distribution, each loaded to see if it works, and faulty metadata."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo_core.contracts import PartKind
from zoo_core.errors import UsageError, ZooError, nearest
from zoo_core.plan.extensions import metric_of
from zoo_core.registry.catalog import Catalog, Problem
from zoo_core.registry.index import Index, Provider, load_index
from zoo_core.registry.readers import contested
from zoo_core.registry.recipe_checks import (
    check_adapter,
    check_augmentation,
    check_head,
    check_metric,
    check_reader,
    check_score,
    check_task,
    plugin_call,
)
from zoo_core.registry.registry import Bound, Registry
from zoo_core.registry.scan import GROUPS, RECORDS_GROUP, Distribution, parse_entry_points, read_text
from zoo_core.registry.settings import cache_folder, settings_file
from zoo_core.spec.parser import Part

__all__ = ["DistributionHealth", "Health", "check_up"]

CHECKS: Mapping[PartKind, Callable[[Bound], None]] = {
    "adapter": check_adapter,
    "augmentation": check_augmentation,
    "head": check_head,
    "metric": check_metric,
    "reader": check_reader,
    "score": check_score,
    "task": check_task,
}


@dataclass(frozen=True, kw_only=True)
class DistributionHealth:
    """The health of one distribution.

    names: each name that it provides, as `kind:name`. import_seconds: time to load and check all of its recipes; None
    if none was loaded.
    """

    name: str
    version: str
    path: str
    requires: str | None
    state: str
    names: tuple[str, ...]
    import_seconds: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Health:
    """Everything that `zoo doctor` found.

    groups: a line for each entry-point group that looks like zoo's but is not read, such as `zoo.adapter`.
    suffixes: a line for each file suffix that several readers read.
    foreign: faulty metadata of packages that have nothing to do with zoo, and folders that cannot be read.
    """

    core_version: str | None
    cache: str
    settings: str
    distributions: tuple[DistributionHealth, ...]
    records: tuple[Problem, ...]
    groups: tuple[str, ...]
    suffixes: tuple[str, ...]
    foreign: tuple[str, ...]
    shadowed: tuple[str, ...]
    leftovers: tuple[str, ...]

    @property
    def num_problems(self) -> int:
        """The number of problems that a user should fix. Those of a plugin that is not allowed do not count."""
        allowed = [found for found in self.distributions if found.state != "disallowed"]
        return sum(len(found.problems) for found in allowed) + len(self.records) + len(self.groups) + len(self.suffixes)

    @property
    def is_well(self) -> bool:
        return self.num_problems == 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_up(index: Index | None = None) -> Health:
    """Loads every recipe of every allowed plugin, one after the other, and reads every record."""
    index = index or load_index()
    registry = Registry(index)
    settings = settings_file()
    return Health(
        core_version=index.core_version,
        cache=index.cache or cache_folder(),
        settings=f"settings {settings}" if Path(settings).exists() else f"no settings in {settings}",
        distributions=tuple(_distribution(found, index, registry) for found in index.distributions),
        records=Catalog(index).problems(),
        groups=tuple(_unknown_groups(index)),
        suffixes=tuple(contested(registry)),
        foreign=tuple(_foreign(index)),
        shadowed=tuple(index.shadowed),
        leftovers=tuple(_leftovers(index)),
    )


def _distribution(found: Distribution, index: Index, registry: Registry) -> DistributionHealth:
    state, problem = index.state(found)
    problems = list(found["problems"])
    if problem or found["fatal"]:
        problems.append(problem or found["fatal"])
        state = state if state != "ok" else "broken"
    seconds: float | None = None
    own = [provider for provider in registry.providers() if provider.distribution == found["name"]]
    had_torch = "torch" in sys.modules
    for provider in own if state == "ok" else ():
        if provider.origin != "entry point":
            continue
        started = time.perf_counter()
        try:
            registry.recipe(provider)
            _check_declarations(registry, provider)
        except ZooError as error:
            problems.append(str(error))
        seconds = (seconds or 0.0) + time.perf_counter() - started
    if "torch" in sys.modules and not had_torch:
        problems.append("its recipe module imports torch, which makes every listing slow; import it inside the verb")
    if state == "ok" and problems:
        state = "broken"
    return DistributionHealth(
        name=found["name"],
        version=found["version"],
        path=found["path"],
        requires=found["requires"],
        state=state,
        names=tuple(f"{provider.kind}:{provider.name}" for provider in own),
        import_seconds=seconds,
        problems=tuple(dict.fromkeys(problems)),
    )


def _check_declarations(registry: Registry, provider: Provider) -> None:
    """Raises PluginError when a recipe breaks its contract.

    A recipe that needs arguments is not checked here, but when it is used with arguments.
    """
    check = CHECKS.get(provider.kind)
    if check is None:
        return
    try:
        part = registry.bind(Part(provider.name, kind=provider.kind))
    except UsageError:
        return
    with plugin_call(part):
        check(part)
        if provider.kind == "task":
            metric_of(part, registry)


def _unknown_groups(index: Index) -> Iterator[str]:
    """A line for each entry-point group that begins with `zoo.` but that zoo does not read, such as a misspelt one."""
    known = (*GROUPS, RECORDS_GROUP)
    for _, file, points, _ in _entry_points(index):
        for group in dict.fromkeys(group for group, _, _ in points):
            if group.startswith("zoo.") and group not in known:
                yield f"{file}: zoo reads no group [{group}]{nearest(group, known)}; there are {', '.join(known)}"


def _foreign(index: Index) -> Iterator[str]:
    """A line for each problem of other packages: folders that cannot be read, and malformed entry points.

    Such entry points break importlib.metadata.entry_points() for every program.
    """
    for scanned in index.folders.values():
        yield from scanned["problems"]
    ours = {found["path"] for found in index.distributions}
    for path, file, _, problems in _entry_points(index):
        if str(path) not in ours:
            yield from (f"{file}: {problem}" for problem in problems)


def _entry_points(index: Index) -> Iterator[tuple[Path, Path, list[tuple[str, str, str]], list[str]]]:
    """For each distribution with entry points: its metadata folder, the file, the entry points, and what is malformed.

    An entry point is (group, name, value).
    """
    for folder in index.folders:
        for path in _paths(folder):
            if path.suffix not in (".dist-info", ".egg-info") or path.name.startswith("~"):
                continue
            file = path / "entry_points.txt"
            try:
                points, problems = parse_entry_points(read_text(str(file)))
            except OSError:
                continue
            except ValueError as error:
                points, problems = [], [str(error)]
            yield path, file, points, problems


def _leftovers(index: Index) -> Iterator[str]:
    for folder in index.folders:
        yield from (str(path) for path in _paths(folder) if path.name.startswith("~"))


def _paths(folder: str) -> list[Path]:
    try:
        return sorted(Path(folder).iterdir())
    except OSError:
        return []
