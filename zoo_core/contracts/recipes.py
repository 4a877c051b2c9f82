"""What a plugin publishes: the protocols of recipes, and what an adapter may know while it is applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from zoo_core.contracts.values import FeatureSpec, Source, Target, TaskData
from zoo_core.contracts.vocabulary import Change, Kind, Modality, Seam, TargetKind, Weights

if TYPE_CHECKING:
    from torch import Generator, nn

    from zoo_core.model.learner import Learner

__all__ = [
    "AdapterRecipe",
    "BackboneRecipe",
    "Context",
    "HeadRecipe",
    "Located",
    "TaskRecipe",
]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an adapter may know while it is applied.

    generator: its own source of random draws, derived from (seed, part); without one, torch draws from another with the
    same seed, whatever other threads draw meanwhile.
    files: the folder that holds the files of the adapter's own `source`, verified. base: the repository or folder that
    the backbone's files come from, None for one that has none.
    """

    target: Target
    purpose: Literal["train", "use"]
    generator: Generator
    files: Path | None = None
    base: str | None = None


class BackboneRecipe(Protocol):
    """Owns a namespace if it has a field `name`: the rest of the name. `version` is raised when its numbers change.

    A field of any recipe whose value widens what is trusted says so in its metadata, `field(default=False,
    metadata={"trust": "pickle"})`, with one of TRUSTS: any other value than its default is then taken from the user
    of this call alone, and refused where a stored run, a suite file or a record holds it; see zoo_core.registry.trust.
    A field of type zoo_core.Spec names other parts (a teacher): what those are made from is part of its identity too.
    A namespace of any kind may have a class method `recipe_for(name)`: the recipe of that name, with its own arguments.
    """

    version: ClassVar[int]

    def source(self) -> Source | None:
        """Where its files come from; None: nothing to fetch."""
        ...

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        """A Backbone with the weights asked for; a random one draws by torch alone, in this thread, as torch does by
        itself: from a seed of its own.

        files: the folder that holds the files of `source`, verified; of a random one perhaps without its weights.
        Where neither catalogue nor record describes the name, a random one is first built on the meta device and
        looked at, so that what does not fit is refused before the weights are fetched.
        """
        ...


class HeadRecipe(Protocol):
    """consumes: the poorest kind of features it needs. fit: by gradient, or in closed form from training features.

    learning_rates: five ascending rates; the middle one is the default.
    """

    version: ClassVar[int]
    consumes: ClassVar[Kind]
    predicts: ClassVar[frozenset[TargetKind]]
    fit: ClassVar[Literal["gradient", "closed_form"]]
    learning_rates: ClassVar[tuple[float, ...]]

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        """A module Features -> predictions. A closed-form one also has `fit(features, target)`, called once with all
        training features [N, ...] and targets [N, ...]; its state is buffers.
        """
        ...


class AdapterRecipe(Protocol):
    """A change to a learner. It may only add: what was trainable stays so, and no frozen value changes.

    accepts: kinds of backbone features it works on. seams: what it needs of the backbone. changes: what it touches.
    mergeable: folds into plain weights.
    needs: alternatives, best first, each a set of roles; it works on the first of which the backbone has all. Empty:
    it needs none. mergeable: one that changes more than sites (see zoo_core.toolkit.sites) also has `merge(learner)`,
    which folds what it added into plain weights. One whose library has a format of its own for adapters may have a
    class method `export(learner, folder)`: it writes all that was trained in the backbone, and returns one line that
    says what loads it.
    One whose outputs differ from the base's before the first step also has `exact_at_start`, False; see
    zoo_core.testing.conformance, which checks all that is promised here.
    """

    version: ClassVar[int]
    accepts: ClassVar[frozenset[Kind]]
    seams: ClassVar[frozenset[Seam]]

    @property
    def needs(self) -> tuple[frozenset[str], ...]: ...

    changes: ClassVar[frozenset[Change]]
    mergeable: ClassVar[bool]
    learning_rates: ClassVar[tuple[float, ...]]

    def first_stage(self, num_stages: int) -> int:
        """Earliest stage it changes, counted from 0; num_stages: none but the head. Raises UsageError if impossible."""
        ...

    def source(self) -> Source | None: ...
    def apply(self, learner: Learner, context: Context) -> Learner: ...


class TaskRecipe(Protocol):
    """A data set with splits, a target and a metric."""

    version: ClassVar[int]

    @property
    def modality(self) -> Modality: ...
    @property
    def metric(self) -> str: ...
    @property
    def target(self) -> Target:
        """What is known of the target before the data is read."""
        ...

    def source(self) -> Source | None: ...
    def open(self, files: Path | None) -> TaskData: ...


@runtime_checkable
class Located(Protocol):
    """A task recipe that knows its target only from files of a repository; its source names one commit of it."""

    def at(self, revision: str | None, *, offline: bool) -> TaskRecipe:
        """Itself at a revision, None: the default branch. offline: no request is sent, and what is not here is told."""
        ...
