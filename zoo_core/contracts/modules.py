"""What a built part can do: backbones, preparations, heads and objectives, as protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from zoo_core.contracts.values import Batch, Features, FeatureSpec, Output, Site, Target
from zoo_core.contracts.vocabulary import Modality, Raw

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo_core.model.transforms import Collate, Transforms

__all__ = [
    "Backbone",
    "ClosedForm",
    "Divisible",
    "Exportable",
    "Extendable",
    "LinearMap",
    "Objective",
    "Preparation",
    "as_backbone",
]


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
        see zoo_core.model.transforms. feature_dim: width of its pooled features.
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
class ClosedForm(Protocol):
    """A head that is fitted in closed form."""

    def fit(self, features: Features, target: Tensor) -> None:
        """Called once, with all training features [N, ...] and targets [N, ...]; what it finds is held in buffers."""
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
