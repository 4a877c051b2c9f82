"""Protocols of the recipes that a plugin publishes, and what an adapter may know while it is applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import getattr_static
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from zoo_core.contracts.modules import Learner
from zoo_core.contracts.values import FeatureSpec, Source, Survey, Target, TaskData, Teacher, TeacherOutput
from zoo_core.contracts.vocabulary import (
    FEATURE_KINDS,
    TARGET_KINDS,
    Change,
    Kind,
    Modality,
    PartKind,
    Seam,
    TargetKind,
    Weights,
)

if TYPE_CHECKING:
    from torch import Generator, nn

__all__ = [
    "AdapterFacts",
    "AdapterFormat",
    "AdapterRecipe",
    "BackboneRecipe",
    "Context",
    "Distils",
    "HeadFacts",
    "HeadRecipe",
    "LoadsFiles",
    "Located",
    "MergesItself",
    "Namespace",
    "Predicts",
    "Surveyed",
    "TaskFacts",
    "TaskRecipe",
    "fact",
]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an adapter may know while it is applied.

    target: what the learner predicts.
    purpose: "train" if the learner will be trained, "use" if it is only loaded to be used.
    generator: the adapter's own source of random numbers, seeded from (seed, part). Draws of torch without a generator
    come from a second one with the same seed, which other threads do not affect.
    files: the folder with the files of the adapter's own `source`, verified; None if it has none.
    base: the repository or folder that the backbone's files come from; None if it has none.
    teachers: what each teacher of the adapter gives for two examples, by Teacher.of: look at shapes, values mean
    nothing. Looking at one whose features are asked for loads it. Empty for use.
    """

    target: Target
    purpose: Literal["train", "use"]
    generator: Generator
    files: Path | None = None
    base: str | None = None
    teachers: Mapping[str, TeacherOutput] = field(default_factory=dict)


class BackboneRecipe(Protocol):
    """A recipe of pre-trained networks. With a field `name` it owns a namespace, and `name` is the rest of the name.

    A field of any recipe whose value widens what is trusted says so in its metadata, `field(default=False,
    metadata={"trust": "pickle"})`, with one of TRUSTS: any other value than its default is then taken from the user
    of this call alone, and refused where a stored run, a suite file or a record holds it; see zoo_core.registry.trust.
    A field of type zoo_core.Spec names other parts (a teacher): what those are made from is part of its identity too.
    A namespace of any kind whose names take arguments of their own is a Namespace.
    """

    version: ClassVar[int]

    def source(self) -> Source | None:
        """Where its files come from; None: nothing to fetch.

        By having it, and no `fill`, a class is told from the recipe of a head.
        """
        ...

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        """Builds a Backbone with pre-trained or random weights.

        Random weights are drawn with torch alone, in this thread, as torch does by default. The core seeds these draws.
        files: the folder with the files of `source`, verified. For random weights, the weights may be missing.
        If neither catalogue nor record describes the name, it is first built with random weights on the meta device and
        inspected, so that what does not fit is refused before the weights are fetched.
        """
        ...


class HeadRecipe(Protocol):
    """Features to predictions. What it may say besides, and what holds where it does not: see HeadFacts.

    One whose weights were published is also a LoadsFiles.
    """

    version: ClassVar[int]

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        """A module Features -> predictions; one that is fitted in closed form is a ClosedForm."""
        ...


class AdapterRecipe(Protocol):
    """A change to a learner. It may only add: what was trainable stays so, and no frozen value changes.

    changes: what it touches. What it may say besides, and what holds where it does not: see AdapterFacts; what one may
    be able to do besides: see MergesItself and AdapterFormat.
    All that is promised is checked by zoo_core.testing.conformance.
    """

    version: ClassVar[int]
    changes: ClassVar[frozenset[Change]]

    def apply(self, learner: Learner, context: Context) -> Learner: ...


class TaskRecipe(Protocol):
    """A data set with splits, a target and a metric. Its `source` tells of files of its own: see TaskFacts."""

    version: ClassVar[int]

    @property
    def modality(self) -> Modality: ...
    @property
    def metric(self) -> str: ...
    @property
    def target(self) -> Target:
        """What is known of the target before the data is read."""
        ...

    def open(self, files: Path | None) -> TaskData: ...


# What a recipe may say of itself, with what holds where it says nothing. A recipe inherits nothing: whoever needs a
# fact asks `fact`, which looks at the recipe and then here. So a fact that is added here breaks no recipe, and one that
# a recipe does not need to say is not repeated in it.


class HeadFacts:
    """The facts that a head may declare, with their defaults.

    consumes: the poorest kind of features that the head can work with. predicts: the target kinds that it is for.
    fit: whether it is fitted by gradient, or in closed form from the features of the training split.
    learning_rates: five ascending rates, of which the middle one is the default. Not used in closed form.
    """

    consumes: ClassVar[Kind] = "pooled"
    predicts: ClassVar[frozenset[TargetKind]] = frozenset(TARGET_KINDS) - {"token_classes", "unlabelled"}
    fit: ClassVar[Literal["gradient", "closed_form"]] = "gradient"
    learning_rates: ClassVar[tuple[float, ...]] = (4e-4, 2e-3, 1e-2, 5e-2, 2.5e-1)


class AdapterFacts:
    """The facts that an adapter may declare, with their defaults. A fact that depends on an argument may be a property.

    accepts: the kinds of backbone features that it works on. targets: the target kinds that it is for.
    seams: the extension points that the backbone must offer to it.
    needs: alternative sets of roles, the preferred one first. The adapter works on the first set of which the backbone
    has all roles, and is refused if there is no such set. Empty if it needs no roles.
    mergeable: whether it can be folded into the weights of the backbone. An adapter that changes more than sites must
    then implement MergesItself too.
    exact_at_start: whether the outputs before the first training step equal those of the base.
    unlabelled: whether its objective learns from examples whose labels are not known.
    learning_rates: five ascending rates, of which the middle one is the default. Not used if nothing is trained.
    """

    accepts: ClassVar[frozenset[Kind]] = frozenset(FEATURE_KINDS)
    targets: ClassVar[frozenset[TargetKind]] = frozenset(TARGET_KINDS)
    seams: ClassVar[frozenset[Seam]] = frozenset()
    needs: ClassVar[tuple[frozenset[str], ...]] = ()
    mergeable: ClassVar[bool] = False
    exact_at_start: ClassVar[bool] = True
    unlabelled: ClassVar[bool] = False
    learning_rates: ClassVar[tuple[float, ...]] = (2e-4, 1e-3, 5e-3, 2.5e-2, 1.25e-1)

    def first_stage(self, num_stages: int) -> int:
        """The earliest stage that it changes, counted from 0, or num_stages if it changes none of them.

        Raises UsageError if its arguments do not fit this number of stages.
        """
        return 0

    def teachers(self) -> tuple[Teacher, ...]:
        """The frozen models that its objective learns from, with what it reads of each as `batch.teachers`."""
        return ()

    def source(self) -> Source | None:
        """Where its files come from; None: nothing to fetch."""
        return None


class TaskFacts:
    """A task without files of its own has no `source`."""

    def source(self) -> Source | None:
        """Where its files come from; None: nothing to fetch."""
        return None


_FACTS: Mapping[PartKind, type] = {"adapter": AdapterFacts, "head": HeadFacts, "task": TaskFacts}


def fact(kind: PartKind, recipe: object, name: str) -> Any:
    """What a recipe says of itself under a name, or what holds for its kind where it says nothing.

    A method comes bound to the recipe. Raises AttributeError for what it does not say and must.
    """
    usual: Any = vars(_FACTS[kind]).get(name) if kind in _FACTS else None
    if usual is None or getattr_static(recipe, name, _SILENT) is not _SILENT:
        return getattr(recipe, name)
    return MethodType(usual, recipe) if callable(usual) else usual


_SILENT = object()


@runtime_checkable
class LoadsFiles(Protocol):
    """A head recipe whose weights come from files, such as the classifier of a published network."""

    def source(self) -> Source | None:
        """Where its files come from, which are pinned and hashed like a backbone's; None: it begins like any other."""
        ...

    def fill(self, head: nn.Module, files: Path, target: Target) -> None:
        """Puts the weights of the files into the module that `build` has just made.

        files: the folder with the files of `source`, verified. target: the outputs of the head, in their order.
        Raises RefusedError if the files are not for this target.
        """
        ...


@runtime_checkable
class MergesItself(Protocol):
    """An adapter that changes more than sites (see zoo_core.toolkit.sites), and yet folds into plain weights."""

    def merge(self, learner: Learner) -> None:
        """Folds what it added into the weights of a learner's backbone, in place."""
        ...


@runtime_checkable
class Predicts(Protocol):
    """A backbone recipe whose files hold a fitted model, head included, so that it can teach predictions too."""

    def described(self, files: Path) -> tuple[Modality | None, Target]:
        """What it reads, None if only building it tells, and what it predicts. Imports nothing heavy."""
        ...

    def learner(self, files: Path) -> Learner:
        """The whole fitted model, for use."""
        ...


@runtime_checkable
class AdapterFormat(Protocol):
    """The class of an adapter whose library has a format of its own for adapters."""

    @classmethod
    def export(cls, learner: Learner, folder: Path) -> str:
        """Writes all that was trained in the backbone into a new folder; returns one line that says what loads it."""
        ...


@runtime_checkable
class Distils(Protocol):
    """The class of an adapter that `zoo distill` adds to a student whose spec names no adapter with the teacher.

    distils: what it reads of a teacher. Of the adapters that are installed, one may say it of predictions and one of
    features; of several, none is taken by itself, and the user writes the one that is meant into the student's spec.
    """

    distils: ClassVar[Literal["predictions", "features"]]

    @classmethod
    def without_labels(cls, teacher: str) -> AdapterRecipe:
        """The adapter that learns from this teacher (a Teacher.of) alone, whatever the labels."""
        ...


@runtime_checkable
class Namespace(Protocol):
    """The class of a recipe that owns a namespace whose names take arguments of their own."""

    @classmethod
    def recipe_for(cls, name: str) -> type:
        """The recipe of what follows the '/' in a name. Raises NotFoundError."""
        ...


@runtime_checkable
class Located(Protocol):
    """A task recipe that knows its target only from files of a repository. Its source names one commit of it."""

    def at(self, revision: str | None, *, offline: bool) -> TaskRecipe:
        """The same recipe at a revision; None means the default branch.

        offline: send no request. Raises NotFoundError for what is not here.
        """
        ...


@runtime_checkable
class Surveyed(Protocol):
    """A task recipe that reads a user's files and tells what it infers from them."""

    def source(self) -> Source | None: ...
    def inferred(self) -> tuple[str, ...]:
        """One line for each fact that it inferred, with the argument that changes it. Imports nothing heavy."""
        ...

    def survey(self, files: Path) -> Survey:
        """Everything that can be said of its files. Raises only if they hold no task."""
        ...
