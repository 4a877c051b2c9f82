"""Toy recipes and plans: what a plugin publishes, without a plugin, a catalogue or a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from zoo_core.contracts import (
    Batch,
    Change,
    Context,
    Features,
    FeatureSpec,
    Learner,
    Modality,
    Output,
    PartKind,
    Source,
    Target,
    TargetKind,
    TaskData,
    Weights,
)
from zoo_core.plan.extensions import augmentation_of, metric_of
from zoo_core.plan.plan import Budget, Plan
from zoo_core.registry.bind import COMMON, Bound
from zoo_core.registry.index import Provider
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import Part, Spec
from zoo_core.testing.toys import ToyBackbone, ToyTask
from zoo_core.toolkit.stages import groups

__all__ = ["ToyAdapter", "ToyBackbones", "ToyHeads", "ToyHint", "ToyMemory", "ToyOpen", "ToyTasks", "bound", "toy_plan"]

_PRETRAINED_SEED = 20261121  # what stands for a weights file: the same numbers at every build


@dataclass(frozen=True, kw_only=True)
class ToyBackbones:
    """The recipe of ToyBackbone. Its pre-trained weights are drawn from a fixed seed."""

    kind: Literal["tokens", "map"] = "tokens"
    layer_drop: bool = False

    version: ClassVar[int] = 1

    def source(self) -> Source | None:
        return None

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        with torch.random.fork_rng(devices=[], enabled=weights == "pretrained"):
            if weights == "pretrained":
                torch.manual_seed(_PRETRAINED_SEED)
            return ToyBackbone(self.kind, layer_drop=self.layer_drop)


class _Layers(nn.Module):
    """Pooled features through a few linear layers made of plain tensors."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Features) -> Tensor:
        predictions: Tensor = self.layers(features.x)
        return predictions


@dataclass(frozen=True, kw_only=True)
class ToyHeads:
    """A linear head. With `norm` there is a batch norm in front of it that has statistics and no parameters."""

    norm: bool = False

    version: ClassVar[int] = 1
    learning_rates: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        assert target.size is not None, "build knows the size"
        norms = [nn.BatchNorm1d(features.dim, affine=False)] if self.norm else []
        return _Layers(*norms, nn.Linear(features.dim, target.size))


class _Memory(nn.Module):
    """Predicts the target of the nearest training example. The number of examples is known once it is fitted."""

    bank: Tensor
    answers: Tensor

    def __init__(self, dim: int, size: int, classes: bool) -> None:
        super().__init__()
        self.size, self.classes = size, classes
        self.register_buffer("bank", torch.zeros(0, dim))
        self.register_buffer("answers", torch.zeros(0, size))

    def fit(self, features: Features, target: Tensor) -> None:
        """features: pooled [N, D]. target: int64 [N] or float32 [N, C]."""
        self.bank = features.x.clone()
        one_hot = nn.functional.one_hot(target, self.size) if self.classes else target
        self.answers = one_hot.to(self.bank.dtype)

    def forward(self, features: Features) -> Tensor:
        return self.answers[torch.cdist(features.x, self.bank).argmin(dim=1)]


@dataclass(frozen=True, kw_only=True)
class ToyMemory:
    """A closed-form head whose buffers have the length of the training split."""

    version: ClassVar[int] = 1
    fit: ClassVar[Literal["gradient", "closed_form"]] = "closed_form"

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        assert target.size is not None, "build knows the size"
        return _Memory(features.dim, target.size, target.kind == "classes")


@dataclass(frozen=True, kw_only=True)
class ToyAdapter:
    """An adapter that does nothing. Other toy adapters inherit its declarations and replace `apply`."""

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset({"base"})
    learning_rates: ClassVar[tuple[float, ...]] = ToyHeads.learning_rates

    def apply(self, learner: Learner, context: Context) -> Learner:
        return learner


@dataclass(frozen=True, kw_only=True)
class ToyOpen(ToyAdapter):
    """Makes the whole backbone trainable, or its last stage and what follows, its biases, or its norms."""

    what: Literal["all", "last", "biases", "norms"] = "all"

    def apply(self, learner: Learner, context: Context) -> Learner:
        backbone = learner.backbone
        if self.what == "norms":
            for site in learner.source.sites("norm"):
                backbone.get_submodule(site.path).requires_grad_(True)
            return learner
        last = len(learner.source.stages)
        group = groups(backbone)
        for name, parameter in backbone.named_parameters():
            is_bias = name.rpartition(".")[2] == "bias"
            if {"all": True, "last": group[name] >= last, "biases": is_bias}[self.what]:
                parameter.requires_grad_(True)
        return learner


class _Hint(nn.Module):
    """Adds to the wrapped objective the distance between a projected stage and the output of a teacher."""

    def __init__(self, objective: nn.Module, dim: int) -> None:
        super().__init__()
        self.objective = objective
        self.stages = (1,)
        self.projector = nn.Linear(dim, dim)
        self.teacher = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim)).requires_grad_(False)

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(output, batch)
        state = output.stages[1].flatten(2).mean(-1) if output.features.kind == "map" else output.stages[1].mean(1)
        hint = (self.projector(state) - self.teacher(state.detach())).square().mean()
        return terms | {"hint": hint}


@dataclass(frozen=True, kw_only=True)
class ToyHint(ToyAdapter):
    """Wraps the objective with a hint from a stage, through a trainable projector, to a frozen teacher."""

    changes: ClassVar[frozenset[Change]] = frozenset({"objective"})

    def apply(self, learner: Learner, context: Context) -> Learner:
        assert learner.objective is not None, "a learner that is built has one"
        learner.objective = _Hint(learner.objective, learner.source.features.dim)
        return learner


@dataclass(frozen=True, kw_only=True)
class ToyTasks:
    """The recipe of ToyTask, for a target of any kind."""

    num: int = 60
    seed: int = 0
    kind: TargetKind = "classes"
    size: int = 3

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "image"

    @property
    def metric(self) -> str:
        return {"classes": "accuracy", "multilabel": "average_precision", "regression": "r2"}[self.kind]

    @property
    def target(self) -> Target:
        return Target(kind=self.kind, size=self.size)

    def open(self, files: Path | None) -> TaskData:
        return ToyTask(num=self.num, seed=self.seed, target=self.target)


def bound(kind: PartKind, name: str, recipe: Any, common: Mapping[str, Any] | None = None) -> Bound:
    """A recipe bound as the registry would bind it, from a distribution that is not installed."""
    provider = Provider(
        name=name,
        kind=kind,
        value=f"{type(recipe).__module__}:{type(recipe).__qualname__}",
        distribution="zoo-toys",
        version="1",
        requires=None,
        state="ok",
        problem="",
        origin="entry point",
        summary="",
        describes=name,
    )
    common = {argument.name: argument.default for argument in COMMON[kind]} | dict(common or {})
    return Bound(kind=kind, name=name, provider=provider, recipe=recipe, common=common, written=Part(name))


def toy_plan(
    *adapters: Any,
    backbone: Any = None,
    head: Any = None,
    task: ToyTasks | None = None,
    target: Target | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    weights: Weights = "pretrained",
    learning_rates: tuple[float, ...] = (1e-2,),
) -> Plan:
    """A plan of toy recipes. Adapters are named by their classes. target: None means the task's own."""
    task = task or ToyTasks()
    bound_head = bound("head", "toy-head", head or ToyHeads())
    bound_backbone = bound("backbone", "toy", backbone or ToyBackbones(), {"weights": weights, "until": None})
    bound_adapters = tuple(bound("adapter", type(adapter).__name__, adapter) for adapter in adapters)
    bound_task = bound("task", "toy-task", task, {"shots": None, "limit": None})
    budget = budget or Budget(epochs=2)
    closed = bound_head.fact("fit") == "closed_form"
    return Plan(
        spec=Spec((Part("toy"), *(Part(part.name) for part in bound_adapters), Part("toy-head"))),
        backbone=bound_backbone,
        adapters=bound_adapters,
        head=bound_head,
        task=bound_task,
        target=target or task.target,
        entry=None,
        budget=budget,
        seed=seed,
        weights=weights,
        learning_rates=() if closed else learning_rates,
        num_stages=3,
        first_stage=None,
        metric=metric_of(bound_task, registry()),
        augmentation=augmentation_of(str(budget.augment), bound_task, task.target, registry()),
        digest=None,
        base_digest=None,
    )
