"""Protocols of built parts: backbones, preparations, heads, objectives and learners."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, overload, runtime_checkable

from zoo_core.contracts.values import Batch, Features, FeatureSpec, Output, Site, Source, Target
from zoo_core.contracts.vocabulary import Modality, Raw

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Backbone",
    "ClosedForm",
    "Exportable",
    "Extendable",
    "Learner",
    "LinearMap",
    "MicroBatchable",
    "Objective",
    "Preparation",
    "as_backbone",
]


class Preparation(Protocol):
    """Turns decoded examples into the inputs of one backbone: resize, tokenise or resample, then normalise.

    digest: a text that changes whenever the resulting numbers change.
    random: whether `prepare` draws random numbers. If it does, its results are not cached.
    """

    @property
    def digest(self) -> str: ...
    @property
    def random(self) -> bool: ...
    def prepare(self, examples: Sequence[Raw]) -> list[Mapping[str, Tensor]]:
        """Returns a mapping of compact tensors (uint8, int64) for each decoded example, without a batch axis."""
        ...

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Joins prepared examples into one batch, padding those that differ in length."""
        ...

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the inputs of forward(), computed on the device that holds the batch."""
        ...

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        """Returns normalised inputs of the right shape, for the forward pass with which build inspects a backbone."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """A pre-trained network from inputs to features. It is also an nn.Module.

    stages: paths of the modules that forward calls in order. Each is called exactly once; the
    hidden state is its first argument and its first output.
    pool: turns features into float [B, D] in the way that suits this backbone (mean, CLS token, attention pooling).
    sites: the weights with a role, see zoo_core.toolkit.sites; empty if the backbone has none with that role.
    """

    modality: Modality
    features: FeatureSpec
    preparation: Preparation
    stages: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Features: ...
    def pool(self, features: Features) -> Tensor: ...
    def sites(self, role: str) -> tuple[Site, ...]: ...


if TYPE_CHECKING:

    class Transforms(Protocol):
        def __call__(self, *, train: bool = False) -> Callable[[Raw], Mapping[str, Tensor]]: ...

    class Collate(Protocol):
        @overload
        def __call__(self, items: Sequence[tuple[Mapping[str, Tensor], Any]], /) -> Batch: ...
        @overload
        def __call__(self, items: Sequence[Mapping[str, Tensor]], /) -> dict[str, Tensor]: ...

    class LoadedBackbone(Backbone, nn.Module):
        """The backbone that `zoo_core.load_backbone` returns, with additions for a training loop of your own.

        transform: turns one raw item into one prepared example, augmented if train. collate: joins the prepared
        examples of a batch into inputs, or (example, target) pairs into a Batch. feature_dim: the width of the pooled
        features.
        """

        transform: Transforms
        collate: Collate
        feature_dim: int


@runtime_checkable
class Extendable(Protocol):
    """A backbone that can insert learned tokens among its own. Backbones without this method take no prompts."""

    def extend(self, prompt: nn.Module, length: int) -> int:
        """Inserts `length` learned tokens among those that enter the first stage, in every pass from now on.

        prompt: called without arguments in each pass, returns the tokens, float [length, D]. The backbone extends
        masks, positions and biases to match, lets every real token attend to them, and removes them from the features.
        Returns the position of the first learned token among the tokens that enter each stage.
        """
        ...


@runtime_checkable
class Exportable(Protocol):
    """A backbone of a library that has its own file format. Only zoo can load backbones without this method."""

    def export(self, folder: Path, head: nn.Linear | None, target: Target) -> str:
        """Writes the weights into an empty folder, in the format that the library itself loads.

        head: the linear layer from pooled features to predictions, None if the head is not one. It is left out if the
        library's format has no place for it.
        Returns one line that says what loads the folder and what happened to the head.
        """
        ...


@runtime_checkable
class ClosedForm(Protocol):
    """A head that is fitted in closed form."""

    def fit(self, features: Features, target: Tensor) -> None:
        """Called once, with all training features [N, ...] and targets [N, ...]; what it finds is held in buffers."""
        ...


@runtime_checkable
class LinearMap(Protocol):
    """A head that, in evaluation mode, computes the same as one linear layer."""

    def as_linear(self) -> nn.Linear: ...


def as_backbone(module: nn.Module) -> Backbone:
    """The module typed as a Backbone, for type checkers. Build has already checked that it is one."""
    return cast("Backbone", module)


class Objective(Protocol):
    """The loss to minimise, the sum of the named scalars that it returns. It never calls the model.

    stages: indices of the stages whose hidden states it needs in the output.
    It may also say `sites`, (stage index, role) of each projection whose output it needs, `pooled = True` if it reads
    that of the output, and `taught = True` if it reads `batch.teachers`. A module that wraps another objective says
    only what it needs itself: the learner gathers what all modules of its objective say.
    """

    stages: tuple[int, ...]

    def __call__(self, output: Output, batch: Batch) -> dict[str, Tensor]: ...


@runtime_checkable
class MicroBatchable(Protocol):
    """An objective that allows micro-batches, because its loss is a mean over items. Implementing it is optional."""

    def num_items(self, batch: Batch) -> Tensor | Mapping[str, Tensor] | None:
        """Number of items that the loss averages over, a scalar; weight micro-batch losses by it.

        Items are the examples, the targets that are not ignored, or the sum of their class weights. Terms of the loss
        that no batch enters, such as a weight penalty, come out unchanged. A mapping has one for each named term, where
        terms are means over different items, and under the empty name one for all terms that it does not name.
        Returns None if an objective that this one wraps needs the batch as a whole.
        """
        ...


class Learner(Protocol):
    """A model in training or in use, as adapters and your own training loops may rely on it. Also an nn.Module.

    Other attributes of what `zoo_core.load` gives may change in any version.
    head: makes predictions of features; an adapter may wrap it, `learner.head = Wrapped(learner.head)`. A regression's
    holds buffers `shift` and `scale`, float [C], the unit of its predictions.
    objective: an Objective that is a module too, which an adapter may wrap; None in a learner for use.
    """

    backbone: nn.Module
    head: nn.Module
    objective: nn.Module | None
    target: Target
    training: bool

    @property
    def source(self) -> Backbone:
        """The backbone, typed as its contract."""
        ...

    @property
    def weights_source(self) -> Source | None:
        """The repository at its pinned commit, or the folder, whose files determine the frozen weights.

        None for weights that are random or inside a package. Known once the learner is built; while an adapter is
        applied, its Context has the place.
        """
        ...

    @property
    def finishers(self) -> list[Callable[[Learner], None]]:
        """The functions that are called with the learner after training, in this order. An adapter may append one."""
        ...

    def __call__(self, inputs: Mapping[str, Tensor]) -> Output: ...
    def loss(self, output: Output, batch: Batch) -> Tensor:
        """The scalar to minimise, the sum of the objective's terms."""
        ...

    def taught(self, batch: Batch) -> Batch:
        """The batch with what the learner's teachers give for it, computed from `batch.beside`; as it is without any.

        `loss` calls it for a batch that has not been through it. Call it before you divide a batch into parts.
        """
        ...

    def train(self, mode: bool = True) -> Learner:
        """Puts modules whose parameters all train into training mode, and all others into evaluation mode."""
        ...

    def merge(self) -> Learner:
        """A copy for use whose backbone has plain weights. Raises RefusedError if an adapter cannot be folded."""
        ...

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The name and parameter of everything that trains, including the objective's."""
        ...

    def base(self) -> dict[str, nn.Parameter]:
        """The backbone's own parameters by name, without those that adapters added."""
        ...

    def added(self) -> dict[str, nn.Parameter]:
        """The parameters that adapters added to the backbone, by name. Known once all adapters have been applied."""
        ...

    def delta(self) -> dict[str, Tensor]:
        """Everything that the base's files do not determine, by name. Known once all adapters have been applied."""
        ...

    def set_scale(self, parameters: Iterable[nn.Parameter], scale: float) -> None:
        """Sets the learning rate of these parameters relative to the rest. Later calls override earlier ones."""
        ...

    def scale_of(self, parameter: nn.Parameter) -> float:
        """The learning rate of a parameter relative to the rest."""
        ...

    def delay(self, parameters: Iterable[nn.Parameter], start: float) -> None:
        """Makes these parameters train from `start` on, a share of all steps, 0 to below 1. The last call counts."""
        ...

    def start_of(self, parameter: nn.Parameter) -> float:
        """The share of all steps after which a parameter begins to train."""
        ...

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for a torch optimiser, with the scales, delays and weight decay that adapters and core chose."""
        ...
