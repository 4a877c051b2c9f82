"""The namespaces `cifar-resnet` (backbones) and `cifar-resnet-classifier` (heads). No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_core.contracts import FeatureSpec, Source, Target, TargetKind, Weights
from zoo_core.errors import NotFoundError, RefusedError, UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DEPTHS", "CifarResNet", "Classifier"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}


@dataclass(frozen=True, kw_only=True)
class CifarResNet:
    """A residual network for pictures of 32 x 32: `cifar-resnet/resnet20` to `resnet110`, or `cifar-resnet/ORG/REPO`.

    files: a local folder with config.json and model.safetensors: `cifar-resnet(files="DIR")`.
    sha256: what model.safetensors must have, 64 hex digits; other weights are refused. Empty: any.
    Nobody publishes the weights of a bare name on the Hub: 'cifar-resnet/resnet20(weights=random)'.
    Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2, shortcuts of option A.
    """

    name: str = ""
    files: str | None = None
    sha256: str = ""

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.name and "/" not in self.name and self.name not in DEPTHS:
            close = nearest(f"cifar-resnet/{self.name}", [f"cifar-resnet/{name}" for name in DEPTHS])
            raise NotFoundError(f"cifar-resnet has no {self.name!r}; it has {', '.join(DEPTHS)}{close}")
        _check_place("cifar-resnet", self.name, self.files, "cifar-resnet/resnet20")

    def source(self) -> Source | None:
        return None if self.name in DEPTHS else _source(self.name, self.files)

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        from zoo_cifar_resnet.loading import build, read_config

        if self.name in DEPTHS:
            if weights == "pretrained":
                raise RefusedError(
                    f"nobody publishes weights of cifar-resnet/{self.name} on the Hub: write "
                    f"'cifar-resnet(files=\"DIR\")' or 'cifar-resnet/{self.name}(weights=random)'"
                )
            return build(DEPTHS[self.name])
        assert files is not None, "config.json is read for random weights too"
        config = read_config(files / CONFIG)
        return build(config.depth, config, files / WEIGHTS if weights == "pretrained" else None, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The classifier that a network of `cifar-resnet` was trained with: `cifar-resnet-classifier(files="DIR")`.

    files: the folder that the backbone has; `cifar-resnet-classifier/ORG/REPO` reads a repository. Its outputs are put
    into the order of the task's classes, by their names. On other classes it is refused.
    fixed: it stays as published, so that the network is scored as it is; else it trains on from there.
    """

    name: str = ""
    files: str | None = None
    fixed: bool = False

    version: ClassVar[int] = 1
    predicts: ClassVar[frozenset[TargetKind]] = frozenset({"classes"})

    def __post_init__(self) -> None:
        _check_place("cifar-resnet-classifier", self.name, self.files, "cifar-resnet-classifier/ORG/REPO")

    @property
    def fit(self) -> Literal["gradient", "closed_form"]:
        """A head in closed form gets no gradient, and this one leaves its features alone when it is fitted."""
        return "closed_form" if self.fixed else "gradient"

    def source(self) -> Source | None:
        return _source(self.name, self.files)

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        from zoo_cifar_resnet.loading import ClassifierHead

        assert target.size is not None, "the task is open by then"
        return ClassifierHead(features.dim, target.size)

    def fill(self, head: nn.Module, files: Path, target: Target) -> None:
        from zoo_cifar_resnet.loading import ClassifierHead, fill, read_config

        assert isinstance(head, ClassifierHead), "what build made"
        fill(head, files / WEIGHTS, read_config(files / CONFIG), target)


def _check_place(label: str, name: str, files: str | None, example: str) -> None:
    if bool(name) == (files is not None):
        both = f"{label}/{name} takes no files" if name else f"{label} is a namespace"
        raise UsageError(f"{both}: write {example} or '{label}(files=\"DIR\")'")
    if name and name not in DEPTHS and name.count("/") != 1:
        raise UsageError(f"{label}/{name} is no repository: write {label}/ORG/REPO or '{label}(files=\"DIR\")'")


def _source(name: str, files: str | None) -> Source:
    if files is not None:
        return Source(folder=files, patterns=(CONFIG,), weights=(WEIGHTS,))
    return Source(repository=name, patterns=(CONFIG,), weights=(WEIGHTS,))
