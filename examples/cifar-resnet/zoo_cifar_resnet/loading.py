"""A network and its classifier from a folder: config.json says what it is, model.safetensors holds both."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo_cifar_resnet.network import CifarResNetBackbone, Network
from zoo_core.contracts import Features, Target
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, RefusedError
from zoo_core.toolkit.files import hash_of
from zoo_core.toolkit.preparations import ImagePreparation
from zoo_core.toolkit.weights import assign, blank, read_tensors

__all__ = ["ClassifierHead", "Config", "build", "fill", "read_config"]

CLASSIFIER = "linear."  # before the names of its two tensors in a checkpoint
SHOWN = 12  # names of classes in a message


@dataclass(frozen=True, kw_only=True)
class Config:
    """What config.json says. names: of the classes, in the classifier's order; empty if it does not say.

    The mean and deviation that hold where nothing is said are those that the published weights were trained with.
    """

    depth: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    names: tuple[str, ...] = ()


class ClassifierHead(nn.Module):
    """One linear layer on pooled features: [B, D] -> [B, C]."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, size)

    def forward(self, features: Features) -> Tensor:
        predictions: Tensor = self.linear(features.x)
        return predictions

    def fit(self, features: Features, target: Tensor) -> None:
        """Changes nothing: what is fixed was fitted by whoever published it."""

    def as_linear(self) -> nn.Linear:
        """The layer that it is."""
        return self.linear


def build(
    depth: int, config: Config | None = None, weights: Path | None = None, sha256: str = ""
) -> CifarResNetBackbone:
    """A backbone with the weights of a file, or with random ones where there is none.

    sha256: what the file must have; empty for any. Raises IntegrityError, also where a tensor is missing.
    """
    config = config or Config(depth=depth)
    preparation = ImagePreparation(size=32, mean=config.mean, std=config.std)
    if weights is None:
        return CifarResNetBackbone(Network(depth), preparation)
    found = hash_of(weights).sha256 if sha256 else sha256
    if found != sha256:
        raise IntegrityError(f"{weights} has sha256 {found[:12]}, and {sha256[:12]} is asked for; get the right file")
    with blank():
        network = Network(depth)
    unused = (f"{CLASSIFIER}weight", f"{CLASSIFIER}bias")
    assign(network, read_tensors(weights), source=str(weights), unused=unused, paths=[weights])
    return CifarResNetBackbone(network, preparation)


def fill(head: ClassifierHead, weights: Path, config: Config, target: Target) -> None:
    """Puts the classifier of a file into a head, its rows in the order of the target's classes.

    Raises RefusedError for other classes, IntegrityError for a file without a classifier.
    """
    tensors = read_tensors(weights)
    held = {name.removeprefix(CLASSIFIER): x for name, x in tensors.items() if name.startswith(CLASSIFIER)}
    size = len(held["weight"]) if "weight" in held else target.size
    if config.names and len(config.names) != size:
        raise IntegrityError(f"{weights} has a classifier of {size} classes, and its config.json {len(config.names)}")
    order = _order(config.names, size, target, weights)
    if order is not None:
        held = {name: x[order] for name, x in held.items()}
    assign(head.linear, held, source=f"the classifier of {weights}")


def read_config(file: Path) -> Config:
    """Raises NotFoundError, IntegrityError (no JSON, wrong types), IncompatibleError (another kind of network)."""
    if not file.is_file():
        raise NotFoundError(f"{file} is missing; it says {{'depth': 20}}, and perhaps mean and std")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{file} is not JSON: {error}") from error
    described = content.get("pretrained_cfg", {}) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(described, dict):
        raise IntegrityError(f"{file} holds a table, and pretrained_cfg is one too")
    depth = content.get("depth")
    if type(depth) is not int or depth < 8 or depth % 6 != 2:
        raise IncompatibleError(
            f"{file}: depth is {depth!r:.40}; of a ResNet for CIFAR it is 6n + 2, as in 20, 32, 44, 56 and 110"
        )
    usual, names = Config(depth=depth), described.get("label_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise IntegrityError(f"{file}: label_names is a list of different texts, found {names!r:.80}")
    return Config(
        depth=depth,
        mean=_three(described.get("mean", usual.mean), "mean", -math.inf, file),
        std=_three(described.get("std", usual.std), "std", 0.0, file),
        names=tuple(names),
    )


def _order(names: tuple[str, ...], size: int | None, target: Target, weights: Path) -> Tensor | None:
    """The row of the classifier for each class of the target; None where all stay as they are."""
    if not names or not target.names:
        if size != target.size:
            raise RefusedError(f"the classifier of {weights} has {size} classes, and the task {target.size}")
        return None
    if set(names) != set(target.names):
        theirs, ours = (", ".join(each[:SHOWN]) for each in (names, target.names))
        raise RefusedError(
            f"the classifier of {weights} is of other classes than the task: {theirs}; the task has {ours}; take head "
            f"linear, or name the task's classes so"
        )
    return torch.tensor([names.index(name) for name in target.names])


def _three(value: Any, name: str, above: float, file: Path) -> tuple[float, float, float]:
    numbers = isinstance(value, list | tuple) and all(type(x) in (int, float) and above < x < math.inf for x in value)
    if not numbers or len(value) != 3:
        raise IntegrityError(
            f"{file}: {name} is three numbers{' above zero' if above == 0 else ''}, found {value!r:.80}"
        )
    return float(value[0]), float(value[1]), float(value[2])
