"""The backbones `run(path="DIR")` and `hub/ORG/NAME`: a fitted model as the start of another one. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Learner, Modality, Source, Target, Weights
from zoo_core.errors import UsageError
from zoo_core.registry.catalog import catalog
from zoo_core.run_layout import DELTA, LOCK, RUN
from zoo_core.runs.run_table import described_in

if TYPE_CHECKING:
    from torch import nn

    from zoo_core.plan.plan import Plan

__all__ = ["Published", "Run", "plans_below"]

PATTERNS = (RUN, LOCK)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The backbone of a stored run, with the delta of its adapters applied and without its head.

    path: the folder that `zoo fit` or `zoo_core.save` wrote.
    A model that is fitted on it stores only what differs from it, and names its digest and those of all runs below it.
    With weights=random it is the same network, never trained.
    """

    path: str

    version: ClassVar[int] = 1

    def source(self) -> Source | None:
        return Source(folder=self.path, patterns=PATTERNS, weights=(DELTA,))

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        return _built(files, weights)

    def described(self, files: Path) -> tuple[Modality | None, Target]:
        return _described(files)

    def learner(self, files: Path) -> Learner:
        return _learner(files)


@dataclass(frozen=True, kw_only=True)
class Published:
    """The backbone of a model that `zoo push` published, `hub/ORG/NAME`, with its delta applied and without its head.

    It is fetched, pinned and checked like any weights, and so are the models that it was fitted on, as its lock says. A
    model that is fitted on it stores only what differs from it. After a `+`, `hub/ORG/NAME` is an adapter of zoo-peft.
    """

    name: str = ""

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.name.count("/") != 1:
            raise UsageError(f"hub/{self.name}: write hub/ORG/NAME, a repository that `zoo push` made")

    def source(self) -> Source | None:
        return Source(repository=self.name, patterns=PATTERNS, weights=(DELTA,))

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        return _built(files, weights)

    def described(self, files: Path) -> tuple[Modality | None, Target]:
        return _described(files)

    def learner(self, files: Path) -> Learner:
        return _learner(files)


def plans_below(plan: Plan, *, offline: bool = False) -> Iterator[Plan]:
    """The plans of the stored runs that a plan's backbone and its teachers are, and of those below, without tasks.

    Their run.json are fetched if they are not here. offline: send no request.
    """
    for part in (plan.backbone, *(part for _, part in plan.teachers.values())):
        if not isinstance(part.recipe, Run | Published):
            continue
        from dataclasses import replace

        from zoo_core.files.fetch import files_of
        from zoo_core.runs.stored_run import read_run

        files = files_of(plan, part, weights="random", offline=offline)
        assert files is not None, "a stored run has files"
        below = replace(read_run(files, needs_task=False).plan, task=None)
        yield below
        yield from plans_below(below, offline=offline)


def _described(files: Path) -> tuple[Modality | None, Target]:
    """What a stored run reads and predicts, as its run.json says. Raises IntegrityError if that is damaged."""
    return described_in(files / RUN, catalog())


def _learner(files: Path) -> Learner:
    from zoo_core.runs.stored_run import load_stored, read_run

    return load_stored(read_run(files, needs_task=False))


def _built(files: Path | None, weights: Weights) -> nn.Module:
    from dataclasses import replace

    from zoo_core.model.build import build
    from zoo_core.runs.stored_run import load_stored, read_run

    assert files is not None, "a stored run has files"
    run = read_run(files, needs_task=False)
    if weights == "pretrained":
        return load_stored(run).backbone
    return build(replace(run.plan, weights="random"), target=run.target, purpose="use").backbone
