"""Backbones `nasty/...`, and adapters, heads and tasks that go wrong on request."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from zoo_core.contracts import (
    Change,
    Context,
    FeatureSpec,
    Kind,
    Learner,
    Seam,
    Source,
    Split,
    Target,
    TargetKind,
    Weights,
)
from zoo_core.errors import NotFoundError, RefusedError, UsageError

if TYPE_CHECKING:
    from torch import nn


RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
IMAGES = ("tokens", "map", "unlisted-tokens", "unlisted-map", "far")
TABLES = ("table", "unlisted-table")
How = Literal[
    "raise",
    "raise nothing",
    "refuse",
    "nan",
    "diverge",
    "exit",
    "leave",
    "kill",
    "segfault",
    "memory",
    "numpy",
    "print",
    "sleep",
    "gone",
    "late",
]


@dataclass(frozen=True, kw_only=True)
class Nasty:
    """Toys: `tokens`, `map` and `table` are in the catalogue, `unlisted-...` are not, `far` has files elsewhere.

    width: of the features of tables.
    """

    name: str
    width: int = 8

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.name not in (*IMAGES, *TABLES):
            raise NotFoundError(f"nasty has no {self.name!r}")

    def source(self) -> Source | None:
        return Source(repository="org/far", weights=("*.safetensors",)) if self.name == "far" else None

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        import torch

        from zoo_core.testing.toys import ToyBackbone

        if self.name in TABLES:
            return _table(self.width)
        with torch.random.fork_rng(devices=[], enabled=weights == "pretrained"):
            if weights == "pretrained":
                torch.manual_seed(0)
            return ToyBackbone("map" if self.name.endswith("map") else "tokens")


def _table(width: int) -> nn.Module:
    import torch

    from zoo_core.contracts import Features
    from zoo_core.toolkit.preparations import TablePreparation

    class Table(torch.nn.Module):
        modality = "table"
        features = FeatureSpec(kind="pooled", dim=width)
        preparation = TablePreparation(max_columns=4)
        stages = ("layer",)

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, width)

        def forward(self, inputs: Mapping[str, torch.Tensor]) -> Features:
            return Features(kind="pooled", x=self.layer(inputs["numeric"]).tanh())

        def pool(self, features: Features) -> torch.Tensor:
            return features.x

        def sites(self, role: str) -> tuple[Any, ...]:
            return ()

    return Table()


# --- adapters --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Trains everything, and goes wrong as `how` says. mark: told apart by it, as trials with other numbers are."""

    how: How = "print"
    mark: int = 0

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset({"base"})
    mergeable: ClassVar[bool] = True
    learning_rates: ClassVar[tuple[float, ...]] = RATES

    def first_stage(self, num_stages: int) -> int:
        if self.how == "late" and num_stages:
            raise UsageError("there is nothing that late")
        return 0

    def apply(self, learner: Learner, context: Context) -> Learner:
        import torch

        learner.backbone.requires_grad_(True)
        if self.how in ("nan", "diverge"):
            steps = itertools.count()  # of all fits; those of the first one, of two epochs of one step, may go well
            spared = 2 if self.how == "diverge" else 0
            one = next(learner.backbone.parameters())
            one.register_hook(lambda grad: grad * float("nan") if next(steps) >= spared else grad)
        _go_wrong(self.how)
        if self.how == "memory":
            torch.empty(2**50)
        return learner


def _go_wrong(how: str) -> None:
    if how == "raise":
        raise KeyError("a key\nover two lines")
    if how == "raise nothing":
        raise RuntimeError
    if how == "refuse":
        raise RefusedError("this backbone has no such thing")
    if how == "exit":
        os._exit(3)
    if how == "leave":
        sys.exit("leaving")
    if how in ("kill", "segfault"):
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSEGV)
    if how == "numpy":
        import numpy as np

        np.empty(2**50)
    if how == "print":
        print("a plugin talks")  # noqa: T201 - that is the trouble
    if how == "sleep":
        time.sleep(3600)
    if how == "gone" and "ZOO_NASTY_GONE" in os.environ:
        raise OSError("gone")


@dataclass(frozen=True, kw_only=True)
class Quiet(Trouble):
    """Changes the objective alone, so that nothing of it needs a gradient."""

    changes: ClassVar[frozenset[Change]] = frozenset({"objective"})

    def first_stage(self, num_stages: int) -> int:
        return num_stages

    def apply(self, learner: Learner, context: Context) -> Learner:
        _go_wrong(self.how)
        return learner


@dataclass(frozen=True, kw_only=True)
class Noise(Trouble):
    """Adds a parameter that is drawn at random."""

    changes: ClassVar[frozenset[Change]] = frozenset({"added"})

    def apply(self, learner: Learner, context: Context) -> Learner:
        import torch

        noise = torch.nn.Parameter(torch.randn((), generator=context.generator))
        learner.head.register_parameter("noise", noise)
        learner.head.register_forward_hook(lambda head, args, found: found + head.noise)
        return learner


@dataclass(frozen=True, kw_only=True)
class NeedsAttention(Trouble):
    """Needs the attention seam."""

    seams: ClassVar[frozenset[Seam]] = frozenset({"attention"})


@dataclass(frozen=True, kw_only=True)
class NeedsQuery(Trouble):
    """Needs a query weight."""

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"attn.q"}),)


@dataclass(frozen=True, kw_only=True)
class MapsOnly(Trouble):
    """Works on maps."""

    accepts: ClassVar[frozenset[Kind]] = frozenset({"map"})


@dataclass(frozen=True, kw_only=True)
class Focal(Trouble):
    """Is for classes, as what weighs the entropy of each example."""

    changes: ClassVar[frozenset[Change]] = frozenset({"objective"})
    targets: ClassVar[frozenset[TargetKind]] = frozenset({"classes", "multilabel"})


@dataclass(frozen=True, kw_only=True)
class Aimless(Trouble):
    """Is for targets that there are not."""

    targets: ClassVar[frozenset[str]] = frozenset({"clases"})


@dataclass(frozen=True, kw_only=True)
class ThreeRates(Trouble):
    """Tunes less than others would."""

    learning_rates: ClassVar[tuple[float, ...]] = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, kw_only=True)
class Miscounts(Trouble):
    """Raises what it should not."""

    def first_stage(self, num_stages: int) -> int:
        return num_stages // 0


@dataclass(frozen=True, kw_only=True)
class Silent:
    """Says nothing of itself."""

    version: ClassVar[int] = 1

    def apply(self, learner: Learner, context: Context) -> Learner:
        return learner


# --- heads -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Consumes a map."""

    version: ClassVar[int] = 1
    consumes: ClassVar[Kind] = "map"
    predicts: ClassVar[frozenset[TargetKind]] = frozenset({"classes", "multilabel", "regression"})
    learning_rates: ClassVar[tuple[float, ...]] = RATES

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ClassesOnly(Dense):
    """Predicts classes from pooled features."""

    consumes: ClassVar[Kind] = "pooled"
    predicts: ClassVar[frozenset[TargetKind]] = frozenset({"classes"})


# --- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Thirds:
    """Which third of a picture is bright. how: goes wrong while it is opened."""

    how: Literal["well", "raise", "no test", "not finite"] = "well"
    num: int = 30

    version: ClassVar[int] = 1
    modality: ClassVar[str] = "image"
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target] = Target(kind="classes", names=("left", "middle", "right"))

    def open(self, files: Path | None) -> Any:
        from zoo_core.testing.toys import ToyTask

        if self.how == "raise":
            raise ValueError("the disk is on fire")
        data = ToyTask(num=self.num, target=self.target)
        if self.how == "no test":
            del data.splits["test"]
        return data


@dataclass(frozen=True, kw_only=True)
class Boxes(Thirds):
    """The same, for a folder that is pinned and never read."""

    files: str

    def source(self) -> Source | None:
        return Source(folder=self.files, patterns=("*.csv",))


@dataclass(frozen=True, kw_only=True)
class Heights(Thirds):
    """Two values for each picture."""

    metric: ClassVar[str] = "r2"
    target: ClassVar[Target] = Target(kind="regression", names=("first", "second"))


@dataclass(frozen=True, kw_only=True)
class Misfit(Thirds):
    """Its metric is not for its target."""

    metric: ClassVar[str] = "r2"


@dataclass(frozen=True, kw_only=True)
class Strange(Thirds):
    """Has a target of a kind that there is not."""

    target: ClassVar[Target] = Target(kind="clases", size=3)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Aim(Thirds):
    """Has no target but a word."""

    target: ClassVar[str] = "classes"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Shifty(Thirds):
    """Has another kind of target once it is opened."""

    def open(self, files: Path | None) -> Any:
        from zoo_core.testing.toys import ToyTask

        return ToyTask(num=self.num, target=Target(kind="regression", size=1))


@dataclass(frozen=True)
class _Rows:
    seed: int
    groups: None = None

    @property
    def num(self) -> int:
        return 40

    @property
    def ids(self) -> list[str]:
        return [str(index) for index in range(self.num)]

    @property
    def targets(self) -> Any:
        import numpy as np

        return np.stack([self._x().sum(1), self._x()[:, 0]], axis=1)

    def raw(self, index: int) -> Any:
        return self._x()[index]

    def _x(self) -> Any:
        import numpy as np

        return np.random.default_rng(self.seed).normal(size=(self.num, 3)).astype(np.float32)


@dataclass(frozen=True)
class _RowsData:
    target: Target
    splits: dict[str, Split]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of three numbers; their sum and the first of them."""

    version: ClassVar[int] = 1
    modality: ClassVar[str] = "table"
    metric: ClassVar[str] = "mean_absolute_error"
    target: ClassVar[Target] = Target(kind="regression", names=("sum", "first"))

    def open(self, files: Path | None) -> Any:
        return _RowsData(self.target, {name: _Rows(seed) for seed, name in enumerate(("train", "val", "test"))})
