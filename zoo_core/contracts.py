"""The protocols and value types that the core and its plugins share. Importable without torch.

One legend for axes: B batch, T tokens, D feature width, H W rows and columns, C outputs, N K numeric and
categorical columns. A plugin implements the protocols by shape; it inherits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast, get_args, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor, nn

    from zoo_core.learner import Learner
    from zoo_core.transforms import Collate, Transforms

__all__ = [
    "KINDS",
    "METRICS",
    "MODALITIES",
    "PART_KINDS",
    "ROLES",
    "TARGET_KINDS",
    "TRUSTS",
    "AdapterRecipe",
    "Backbone",
    "BackboneRecipe",
    "Batch",
    "Change",
    "Context",
    "Divisible",
    "Exportable",
    "Extendable",
    "FeatureSpec",
    "Features",
    "FileHash",
    "HeadRecipe",
    "Kind",
    "LinearMap",
    "Located",
    "Metric",
    "Modality",
    "Objective",
    "Output",
    "PartKind",
    "Preparation",
    "Raw",
    "Seam",
    "Site",
    "Source",
    "Split",
    "Target",
    "TargetKind",
    "TaskData",
    "TaskRecipe",
    "Trust",
    "Weights",
    "as_backbone",
]

Modality = Literal["image", "text", "audio", "table"]  # closed in this version
Kind = Literal["map", "tokens", "pooled"]  # features, from rich to poor; only downward conversions exist
TargetKind = Literal["classes", "labels", "values", "token_classes"]  # closed in this version
PartKind = Literal["backbone", "adapter", "head", "task"]
Seam = Literal["stage", "attention", "prompt"]  # what an adapter needs of a backbone besides modules and roles
Weights = Literal["pretrained", "random"]
Change = Literal["base", "added", "objective", "schedule"]  # what an adapter touches; nothing at all: probe
Trust = Literal["pickle", "code"]  # what an argument may allow: that pickles are read, that foreign code runs

MODALITIES: tuple[Modality, ...] = get_args(Modality)
KINDS: tuple[Kind, ...] = get_args(Kind)
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)
PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)
TRUSTS: tuple[Trust, ...] = get_args(Trust)
ROLES: tuple[str, ...] = (
    *("attn.q", "attn.k", "attn.v", "attn.out"),
    *("mlp.in", "mlp.gate", "mlp.out"),
    *("norm", "conv", "embed"),
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a score means: the target kinds it is for, and whether more is better."""

    targets: frozenset[TargetKind]
    higher_is_better: bool = True


METRICS: Mapping[str, Metric] = {  # how each is computed stands in measure.py
    "accuracy": Metric(targets=frozenset({"classes", "labels", "token_classes"})),
    "average_precision": Metric(targets=frozenset({"classes", "labels"})),
    "entity_f1": Metric(targets=frozenset({"token_classes"})),
    "macro_f1": Metric(targets=frozenset({"classes", "labels"})),
    "mean_absolute_error": Metric(targets=frozenset({"values"}), higher_is_better=False),
    "r2": Metric(targets=frozenset({"values"})),
    "top5_accuracy": Metric(targets=frozenset({"classes"})),
}

Raw = Any  # one example as its task holds it: a picture, a sentence, a row; only a preparation looks inside


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What a backbone gives: the kind of its features and their width D.

    pooled_dim: width after its own pooling, where layers of it make that another one; None: the same.
    """

    kind: Kind
    dim: int
    pooled_dim: int | None = None

    def width(self, kind: Kind) -> int:
        """The width of these features once they are of this kind."""
        return self.pooled_dim or self.dim if kind == "pooled" else self.dim


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is predicted: C outputs of a kind, named in order. `size` None: unknown until the data is read."""

    kind: TargetKind
    size: int | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.names and self.size is None:
            object.__setattr__(self, "size", len(self.names))
        assert not self.names or len(self.names) == self.size, "one name for each output"


@dataclass(frozen=True, kw_only=True)
class FileHash:
    """One file of a set of weights or data: its sha256 in hex and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where files come from: a Hub repository at a revision (None: its default branch), or a folder laid out like one.

    repository: `ORG/NAME`, or `datasets/ORG/NAME` of data, as in their addresses.
    patterns: globs of what any build needs, such as a configuration or a tokeniser; all files that fit are taken.
    weights: globs of what only pre-trained weights need, best first; of the first that fits any file, all are taken.
    All that a part reads is named here: results count for as long as the content of these files is the same, and what
    is not named may change unseen. Of a folder, a pattern without wildcards may lead out of it (`../labels.csv`).
    """

    repository: str | None = None
    folder: str | None = None
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert (self.repository is None) != (self.folder is None), "either a repository or a folder"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A weight, or rows of one, that plays a role in its backbone.

    path: of the module that owns it; parameter: its name there.
    out_axis: axis of the outputs (0 for nn.Linear, 1 for GPT-2's Conv1D).
    outputs, inputs: (start, stop) rows along that axis and the other; None means all of them.
    called: False where the model reads the weight without calling the module, so that a swapped module is inert.
    """

    path: str
    parameter: str = "weight"
    kind: Literal["linear", "conv", "norm", "embedding"] = "linear"
    out_axis: int = 0
    outputs: tuple[int, int] | None = None
    inputs: tuple[int, int] | None = None
    called: bool = True
    num_heads: int | None = None
    head_dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class Features:
    """A backbone's output.

    x: float [B, D, H, W] (map), [B, T, D] (tokens) or [B, D] (pooled).
    mask: bool [B, T], true = real token, at least one per row; None unless kind is tokens, and None there means all.
    """

    kind: Kind
    x: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prepared examples, normalised and on the device.

    inputs: by the names that transformers' processors use (`pixel_values`, `input_ids`, `numeric`, ...); of lists of
    words also `word_ids`, see zoo_core.words.
    target: int64 [B] (classes), float32 [B, C] (labels, values) or int64 [B, T] (token_classes, -100 ignored).
    ids: the task's own id of each row; none in a loop of somebody's own.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        inputs = {name: x.to(device) for name, x in self.inputs.items()}
        return replace(self, inputs=inputs, target=self.target.to(device))


@dataclass(frozen=True, kw_only=True)
class Output:
    """What one forward pass gives: predictions [B, C] (or [B, T, C]), features, and the stage states asked for.

    stages: stage index -> the hidden state that left that stage.
    """

    predictions: Tensor
    features: Features
    stages: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an adapter may know while it is applied.

    generator: its own source of random draws, derived from (seed, part); without one, torch draws from another with the
    same seed, whatever other threads draw meanwhile.
    load: turns a spec or a stored run into a frozen learner (a teacher).
    files: the folder that holds the files of the adapter's own `source`, verified. base: the repository or folder that
    the backbone's files come from, None for one that has none.
    """

    target: Target
    purpose: Literal["train", "use"]
    generator: Generator
    load: Callable[[str], Learner]
    files: Path | None = None
    base: str | None = None


class Preparation(Protocol):
    """A backbone's own way from a decoded example to its inputs: resize, tokenise, resample; then normalise.

    digest: changes when the numbers change. random: whether `prepare` draws anything (then nothing is cached).
    """

    @property
    def digest(self) -> str: ...
    @property
    def random(self) -> bool: ...
    def prepare(self, examples: Sequence[Raw]) -> list[Mapping[str, Tensor]]:
        """One mapping of compact tensors (uint8, int64) for each decoded example, without a batch axis."""
        ...

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch of prepared examples, padded where they differ in length."""
        ...

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs for forward(), computed on the device that holds the batch."""
        ...

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        """Normalised inputs of the right shape, for the pass that build makes to look at a backbone."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """A pre-trained network, inputs to features. Also an nn.Module.

    stages: paths of the modules that forward calls in order, each exactly once, hidden state first.
    pool: features -> float [B, D], the way this backbone wants (mean, CLS, attention pool).
    sites: the weights that play a role; empty where there is none.
    """

    modality: Modality
    features: FeatureSpec
    preparation: Preparation
    stages: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Features: ...
    def pool(self, features: Features) -> Tensor: ...
    def sites(self, role: str) -> tuple[Site, ...]: ...


if TYPE_CHECKING:

    class LoadedBackbone(Backbone, nn.Module):
        """What `zoo_core.load_backbone` gives: a backbone, and what the core adds to each for a loop of your own.

        transform: one raw item -> one prepared example; collate: those of a batch -> inputs, or with targets a Batch;
        see zoo_core.transforms. feature_dim: width of its pooled features.
        """

        transform: Transforms
        collate: Collate
        feature_dim: int


@runtime_checkable
class Extendable(Protocol):
    """A backbone among whose tokens learned ones may stand; one without this takes no prompts."""

    def extend(self, prompt: nn.Module, length: int) -> int:
        """From now on `length` learned tokens stand among those that enter the first stage.

        prompt: called without arguments at each pass, gives them: float [length, D]. Masks, positions and biases are
        lengthened along, every real token sees them, and the features come without them.
        Returns where the first of them stands among the tokens that enter each stage.
        """
        ...


@runtime_checkable
class Exportable(Protocol):
    """A backbone of a library with a format of its own; one without this is only zoo's to load."""

    def export(self, folder: Path, head: nn.Linear | None, target: Target) -> str:
        """Writes what it holds, which is plain weights, into an empty folder that its library loads by itself.

        head: pooled features to predictions, None where the head is no linear layer on them; it is left out where the
        library has no place for it. Returns one line: what loads the folder, and what became of the head.
        """
        ...


@runtime_checkable
class LinearMap(Protocol):
    """A head that does no more than one linear layer once nothing is dropped."""

    def as_linear(self) -> nn.Linear: ...


def as_backbone(module: nn.Module) -> Backbone:
    """A module under its contract's type, for type checkers; build has checked that it keeps the contract."""
    return cast("Backbone", module)


class Objective(Protocol):
    """What is minimised: the sum of the named scalars. Never calls the model.

    stages: indices of the stages whose hidden states it wants to find in the output.
    """

    stages: tuple[int, ...]

    def __call__(self, output: Output, batch: Batch) -> dict[str, Tensor]: ...


@runtime_checkable
class Divisible(Protocol):
    """An objective whose loss on a batch is a mean, so that a step can be made in pieces; an objective need not be one.

    count: what the mean is over, a scalar: the examples, the targets that count, or the sum of their weights. The mean
    of the losses of pieces, weighted by it, is the loss of the whole; terms that no batch enters stay as they are.
    None: an objective that it wraps sees the batch as a whole.
    """

    def count(self, batch: Batch) -> Tensor | None: ...


class BackboneRecipe(Protocol):
    """Owns a namespace if it has a field `name`: the rest of the name. `version` is raised when its numbers change.

    A field of any recipe whose value widens what is trusted says so in its metadata, `field(default=False,
    metadata={"trust": "pickle"})`, with one of TRUSTS: any other value than its default is then taken from the user
    of this call alone, and refused where a stored run, a suite file or a record holds it; see zoo_core.trust.
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
    batchable: whether trials that differ only in numbers can share one pass. mergeable: folds into plain weights.
    needs: alternatives, best first, each a set of roles; it works on the first of which the backbone has all. Empty:
    it needs none. mergeable: one that changes more than sites (see zoo_core.sites) also has `merge(learner)`, which
    folds what it added into plain weights. One whose library has a format of its own for adapters may have a class
    method `export(learner, folder)`: it writes all that was trained in the backbone, and returns one line that says
    what loads it.
    One whose outputs differ from the base's before the first step also has `exact_at_start`, False; see
    zoo_core.testing.conformance, which checks all that is promised here.
    """

    version: ClassVar[int]
    accepts: ClassVar[frozenset[Kind]]
    seams: ClassVar[frozenset[Seam]]

    @property
    def needs(self) -> tuple[frozenset[str], ...]: ...

    changes: ClassVar[frozenset[Change]]
    batchable: ClassVar[bool]
    mergeable: ClassVar[bool]
    learning_rates: ClassVar[tuple[float, ...]]

    def first_stage(self, num_stages: int) -> int:
        """Earliest stage it changes, counted from 0; num_stages: none but the head. Raises UsageError if impossible."""
        ...

    def source(self) -> Source | None: ...
    def apply(self, learner: Learner, context: Context) -> Learner: ...


class Split(Protocol):
    """Examples of one split; indexable, and small when pickled into a worker process."""

    @property
    def num(self) -> int: ...
    @property
    def targets(self) -> Any:
        """numpy array: int64 [num] (classes) or float32 [num, C] (labels, values); of token classes a list of lists.

        Those hold for each example the class of each of its words; `raw` is then the list of the words.
        """
        ...

    @property
    def groups(self) -> Any | None:
        """numpy array [num] of group labels that must not be split, or None."""
        ...

    @property
    def ids(self) -> Sequence[str]: ...
    def raw(self, index: int) -> Raw: ...


class TaskData(Protocol):
    """An opened task: its target, now of known size, and its splits by name: train, test, and val if there is one."""

    @property
    def target(self) -> Target: ...
    @property
    def splits(self) -> Mapping[str, Split]: ...


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
