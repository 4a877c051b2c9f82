"""The values that parts hand to each other: features, targets, sources, sites, batches, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from zoo_core.contracts.old_words import current_word
from zoo_core.contracts.vocabulary import Kind, Modality, Raw, TargetKind

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Batch",
    "FeatureSpec",
    "Features",
    "FileHash",
    "Output",
    "Site",
    "Source",
    "Split",
    "Survey",
    "Target",
    "TaskData",
]


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
        object.__setattr__(self, "kind", current_word(self.kind))
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
    words also `word_ids`, see zoo_core.data.token_labels.
    target: int64 [B] (classes), float32 [B, C] (multilabel, regression) or int64 [B, T] (token_classes, -100 ignored).
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


class Split(Protocol):
    """Examples of one split; indexable, and small when pickled into a worker process."""

    @property
    def num(self) -> int: ...
    @property
    def targets(self) -> Any:
        """numpy array: int64 [num] (classes) or float32 [num, C] (multilabel, regression).

        For token classes it is a list of lists: for each example the class of each of its words. `raw` is then the list
        of the words.
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


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a recipe found in its files, as `zoo data` shows it.

    inferred: a line for each thing that was inferred, with the argument that says otherwise. sizes: of the items, in
    words. classes: examples of each class, in the target's order; empty for other targets. splits: examples of each.
    given: whether the files say which example is in which split. split_digest: of that division; the file of it lies
    at split_file. copies: groups of items with the same content; conflicting: those of them with several targets;
    leaking: those in several splits. left_out: items that no split holds, with the reason. problems: what would stop a
    fit. unreadable: items with what is wrong with each. ignored: files that nothing reads.
    """

    modality: Modality
    target: Target
    metric: str
    num_items: int
    num_bytes: int
    sizes: str
    classes: Mapping[str, int]
    splits: Mapping[str, int]
    given: bool
    split_digest: str
    split_file: str
    inferred: tuple[str, ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()
    conflicting: tuple[tuple[str, ...], ...] = ()
    leaking: tuple[tuple[str, ...], ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
