"""Which backbones are compared: names and patterns become plans, and each that is left out says why. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo_core.benchmark.grid import chains_in, named_by
from zoo_core.contracts import Target
from zoo_core.errors import IncompatibleError, RefusedError, UsageError
from zoo_core.lock import Pinned
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import resolve
from zoo_core.registry.bind import Bound
from zoo_core.registry.catalog import Catalog
from zoo_core.registry.catalog import catalog as default_catalog
from zoo_core.registry.local_plugins import SpecLike, spec_of
from zoo_core.registry.registry import Registry
from zoo_core.registry.registry import registry as default_registry

__all__ = ["Candidate", "Filters", "LeftOut", "check_target", "find_candidates"]

HEADLESS = Target(kind="unlabelled")  # what a plan of features alone predicts


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a backbone must be by its catalogue or record. One of which that is not known is left out.

    licences: any of these, in upper or lower case. max_parameters: of the whole backbone. input_size: the side of its
    pictures in pixels. None and empty allow all.
    """

    licences: tuple[str, ...] = ()
    max_parameters: int | None = None
    input_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_parameters", "input_size"):
            found = getattr(self, name)
            if found is not None and (type(found) is not int or found < 1):
                raise UsageError(f"{name}={found!r}: allowed: a whole number, 1 or more")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A backbone to score. name: its canonical text. plan: of its features for the task; its files may be unpinned."""

    name: str
    plan: Plan

    @property
    def licence(self) -> str | None:
        return None if self.plan.entry is None else self.plan.entry.licence

    @property
    def num_parameters(self) -> int | None:
        """Of the backbone, where the catalogue knows it; it does not know how many stay before a stage."""
        return None if self.plan.entry is None or self.plan.until is not None else self.plan.entry.num_parameters


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A backbone that is not compared, and why."""

    name: str
    reason: str


def find_candidates(
    backbones: str | Sequence[SpecLike],
    task: Bound,
    *,
    filters: Filters | None = None,
    pins: Mapping[str, Pinned] | None = None,
    offline: bool = False,
    registry: Registry | None = None,
    catalog: Catalog | None = None,
) -> tuple[list[Candidate], list[LeftOut]]:
    """The candidates in the order given, each once, and what is left out.

    backbones: names and patterns, in one text with commas between or as a list of texts and recipe objects.
    Raises NotFoundError for an unknown name and UsageError for a spec with more than a backbone, which are typing
    mistakes, and RefusedError if nothing is left.
    """
    registry, catalog = registry or default_registry(), catalog or default_catalog()
    found: dict[str, Candidate] = {}
    left_out: list[LeftOut] = []
    for given in _spelt_out(backbones):
        spec = spec_of(given, registry)
        if len(spec.parts) > 1:
            raise UsageError(
                f"{spec} is more than a backbone; rank takes {spec.parts[0]}, and zoo bench compares specs"
            )
        try:
            plan = resolve(
                spec, task=task, target=HEADLESS, pins=pins, offline=offline, registry=registry, catalog=catalog
            )
        except IncompatibleError as error:
            left_out.append(LeftOut(name=str(spec), reason=str(error)))
            continue
        candidate = Candidate(name=str(plan.backbone.canonical()), plan=plan)
        reason = _unfit(candidate, filters or Filters())
        if reason:
            left_out.append(LeftOut(name=candidate.name, reason=reason))
        else:
            found.setdefault(candidate.name, candidate)
    if not found:
        reasons = "; ".join(dict.fromkeys(f"{each.name}: {each.reason}" for each in left_out[:3]))
        raise RefusedError(f"no backbone is left of {len(left_out)}: {reasons or 'none was named'}")
    return list(found.values()), left_out


def check_target(task: Bound) -> None:
    """Raises RefusedError for a task whose target no score is for."""
    kind = "unlabelled" if task.common["labels"] == "drop" else task.target.kind
    if kind == "token_classes":
        raise RefusedError(
            f"task {task.name} is token_classes, with a class for each word, and a score looks at one vector for each "
            f"example; compare with zoo bench --task '{task.canonical()}' --backbones ..."
        )
    if kind == "unlabelled":
        raise RefusedError(
            f"task {task.name} has no labels here, and a score says how well features suit labels; give one that has"
        )


def _spelt_out(backbones: str | Sequence[SpecLike]) -> list[SpecLike]:
    given: Sequence[SpecLike] = chains_in(backbones) if isinstance(backbones, str) else backbones
    found: list[SpecLike] = []
    for each in given:
        found += named_by(each) if isinstance(each, str) else (each,)
    return found


def _unfit(candidate: Candidate, filters: Filters) -> str:
    """Why a filter leaves a candidate out; empty if none does."""
    entry = candidate.plan.entry
    if filters.licences:
        licence = candidate.licence
        if licence is None:
            return "its licence is not known"
        if licence.lower() not in {each.lower() for each in filters.licences}:
            return f"its licence is {licence}; allowed: {', '.join(filters.licences)}"
    if filters.max_parameters is not None:
        num = None if entry is None else entry.num_parameters
        if num is None:
            return "its number of parameters is not known"
        if num > filters.max_parameters:
            whole = "whole it has" if candidate.plan.until is not None else "it has"
            return f"{whole} {num:,} parameters; allowed: up to {filters.max_parameters:,}"
    if filters.input_size is not None:
        size = None if entry is None else entry.input.get("size")
        if not isinstance(size, list | tuple) or not size:
            return "the size of its pictures is not known"
        if size[-1] != filters.input_size:
            return f"its pictures have {size[-1]} pixels; allowed: {filters.input_size}"
    return ""
