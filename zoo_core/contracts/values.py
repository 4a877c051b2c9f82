"""The values that parts pass to each other: features, targets, sources, sites, batches and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    "Teacher",
    "TeacherOutput",
]


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The kind of features that a backbone returns, and their width D.

    pooled_dim: width after the backbone's own pooling, if its layers change the width; None means that it stays `dim`.
    """

    kind: Kind
    dim: int
    pooled_dim: int | None = None

    def width(self, kind: Kind) -> int:
        """The width of these features after their conversion to this kind."""
        return self.pooled_dim or self.dim if kind == "pooled" else self.dim


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is predicted: the kind of target, the number C of outputs, and their names in order.

    size: None until the data has been read. It follows from `names` if only those are given.
    """

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
    """The sha256 of one file, in hex, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the files of a part come from: a Hub repository, or a local folder with the same layout.

    repository: `ORG/NAME`, or `datasets/ORG/NAME` for data, as in the address on the Hub.
    revision: a branch, tag or commit of the repository; None means its default branch.
    patterns: globs of files that every build needs, such as a configuration or a tokeniser. All files that match are
    used.
    weights: globs of files that only pre-trained weights need, best first. The first glob that matches any file
    decides, and all files that match it are used.
    Name every file that the part reads. A stored result stays valid as long as the content of these files is
    unchanged, and a change of any other file goes unnoticed. For a folder, a pattern without wildcards may point
    outside of it (`../labels.csv`).
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
    """A weight of a backbone with a known role, such as the query projection, or a range of rows of a weight.

    path: the module that owns the weight. parameter: the name of the weight in that module.
    out_axis: the axis of the outputs (0 for nn.Linear, 1 for GPT-2's Conv1D).
    outputs, inputs: (start, stop) along the output axis and along the other one; None means all rows.
    called: False if the model reads the weight without calling the module. Replacing the module then has no effect.
    num_heads, head_dim: the layout of an attention projection; None for other weights.
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
    """The output of a backbone.

    x: float [B, D, H, W] (map), [B, T, D] (tokens) or [B, D] (pooled).
    mask: bool [B, T], True for a real token, at least one per row. Only tokens have a mask; None means that all tokens
    are real.
    """

    kind: Kind
    x: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prepared examples, normalised and on the device.

    inputs: tensors by the names that transformers' processors use (`pixel_values`, `input_ids`, `numeric`, ...). If the
    examples are lists of words there is also `word_ids`, see zoo_core.data.token_labels.
    target: int64 [B] (classes), float32 [B, C] (multilabel, regression) or int64 [B, T] (token_classes, -100 ignored).
    A label that is not known is -100, or NaN where targets are float.
    ids: the task's id of each example; empty in a training loop of your own.
    beside: what each teacher reads of the same examples, as `inputs`, by Teacher.of; see `Learner.taught`.
    teachers: what each teacher gave for the same examples, by Teacher.of.
    `batch[2:4]` is a batch of these examples, without copies.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    ids: tuple[str, ...] = ()
    beside: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    teachers: Mapping[str, TeacherOutput] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: slice) -> Batch:
        return replace(self._each(lambda x: x[rows]), ids=self.ids[rows])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda x: x.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            inputs={name: change(x) for name, x in self.inputs.items()},
            target=change(self.target),
            beside={of: {name: change(x) for name, x in inputs.items()} for of, inputs in self.beside.items()},
            teachers={of: output.each(change) for of, output in self.teachers.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Output:
    """The result of one forward pass: predictions, float [B, C] (or [B, T, C]), and features.

    stages: the hidden states that the objective asked for, by stage index. Each is the output of its stage.
    sites: the outputs of projections that the objective asked for, float [B, T, D], by (stage index, role).
    pooled: float [B, D], the features after the backbone's own pooling; None unless the objective asked for it.
    """

    predictions: Tensor
    features: Features
    pooled: Tensor | None = None
    stages: Mapping[int, Tensor] = field(default_factory=dict)
    sites: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen model beside the one that trains, and which of its outputs an adapter's objective reads.

    of: the folder of a stored run, `hub/ORG/NAME` of a published one, or the name of a backbone, which has features and
    no predictions. An argument of the adapter with this value stands for the teacher, and a digest knows it by its
    content, wherever it lies.
    predictions, pooled: whether these are read. stages: indices of stages whose hidden states are read, from the end if
    negative. sites: (stage index, role) of projections whose outputs are read, such as (-1, "attn.q").
    keep: the precision in which all that is read is held, live and stored alike.
    """

    of: str
    predictions: bool = True
    pooled: bool = False
    stages: tuple[int, ...] = ()
    sites: tuple[tuple[int, str], ...] = ()
    keep: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class TeacherOutput:
    """What a teacher gave for the examples of a batch: what was asked for, and None or nothing of the rest.

    predictions: float [B, C], or [B, T, C] at the student's own tokens, NaN at those that are not the first of a word
    that both read. Logits for classes and labels, values in the task's units for a regression.
    columns: the student's output that each column is of, where the teacher does not know all of them; None: all, in
    the student's order.
    pooled: float [B, D]. stages, sites: by what the Teacher asked for, as its own stages and projections give them; a
    map is [B, D, H, W].
    mask: bool [B, T] of the teacher's own tokens, True for a real one; None where all are, or where nothing has tokens.
    """

    predictions: Tensor | None = None
    columns: tuple[int, ...] | None = None
    pooled: Tensor | None = None
    stages: Mapping[int, Tensor] = field(default_factory=dict)
    sites: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)
    mask: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> TeacherOutput:
        """The same with every tensor changed."""
        return replace(
            self,
            predictions=None if self.predictions is None else change(self.predictions),
            pooled=None if self.pooled is None else change(self.pooled),
            stages={index: change(x) for index, x in self.stages.items()},
            sites={key: change(x) for key, x in self.sites.items()},
            mask=None if self.mask is None else change(self.mask),
        )


class Split(Protocol):
    """The examples of one split. It must stay small when it is pickled into a worker process."""

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
        """numpy array [num] of group labels, or None. Examples of one group always stay in the same split."""
        ...

    @property
    def ids(self) -> Sequence[str]: ...
    def raw(self, index: int) -> Raw: ...


class TaskData(Protocol):
    """The data of a task: its target, now with a known size, and its splits `train`, `test` and perhaps `val`."""

    @property
    def target(self) -> Target: ...
    @property
    def splits(self) -> Mapping[str, Split]: ...


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a task recipe found in its files, as `zoo data` shows it.

    inferred: one line for each inferred fact, with the argument that changes it. sizes: of the items, in words.
    classes: the number of examples of each class, in the target's order; empty for other targets. splits: the number of
    examples of each split.
    given: whether the files say which example is in which split. split_digest: of that division, whose file is at
    split_file.
    copies: groups of items with the same content. conflicting: those groups with several targets. leaking: those groups
    in several splits.
    left_out: items that are in no split, with the reason. problems: what would stop a fit. unreadable: items that
    cannot be read, with the reason. ignored: files that nothing reads.
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
