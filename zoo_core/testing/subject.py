"""What the conformance kit checks: the learner of a spec, built once and copied for each check, with data for it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Change, Modality, Preparation, Raw, Target
from zoo_core.data import randomness
from zoo_core.data.decoding import decode
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import resolve

__all__ = ["THREE", "Subject", "examples_of", "forked_rng", "perturb", "wake"]

THREE = Target(kind="classes", names=("a", "b", "c"))
"""The target of a subject that is given none."""

_WORDS = "the a no one cat dog moon film town mat warm long short sat looked heard ever whole from to new in it of and"


class Subject:
    """An adapter on a backbone, or a chain of them: the learner that a spec or plan builds, and one without adapters.

    spec: as text, or as a plan that is resolved and pinned. target: three classes if not given.
    examples: raw examples for the backbone, if those of `examples_of` do not suit it.
    like: another subject with the same backbone, head, target and seed, to share the learner without adapters.
    Nothing is built before it is needed. What is built is kept, and checks get copies.
    Raises what resolving and building raise: RefusedError if the adapter makes no sense on the backbone.
    """

    def __init__(
        self,
        spec: str | Plan,
        *,
        target: Target = THREE,
        seed: int = 0,
        examples: Sequence[Raw] | None = None,
        like: Subject | None = None,
    ) -> None:
        self.plan = spec if isinstance(spec, Plan) else pin_plan(resolve(spec, target=target, seed=seed))
        self.examples = examples
        self.like = like

    def __str__(self) -> str:
        return str(self.plan.spec)

    @cached_property
    def built(self) -> Learner:
        """The learner as it was built, in evaluation mode. Do not change it."""
        learner = build(self.plan)
        learner.plan = self.plan
        return learner

    @cached_property
    def plain(self) -> Learner:
        """The same backbone and head without any adapter. Do not change it."""
        return build(replace(self.plan, adapters=(), teachers={})) if self.like is None else self.like.plain

    def learner(self) -> Learner:
        """A copy of the learner, in evaluation mode."""
        return copy.deepcopy(self.built, {id(self.plan): self.plan})

    def base(self) -> Learner:
        """A copy of the learner without adapters, in evaluation mode."""
        return copy.deepcopy(self.plain)

    @property
    def changes(self) -> frozenset[Change]:
        """What the adapters declare that they change."""
        return frozenset().union(*(part.fact("changes") for part in self.plan.adapters))

    def batch(self, size: int = 4, *, seed: int = 0) -> Batch:
        """Different examples, prepared and normalised for the backbone, with targets drawn at random.

        They are prepared for the teachers of the adapters too, which `learner.loss` asks.
        """
        source, teachers = self.built.source, self.built.teachers
        given = self.examples or examples_of(source.modality, size, seed=seed, columns=_columns(self.built))
        if teachers is not None and self.built.target.kind == "token_classes":
            given = [text.split() if isinstance(text, str) else text for text in given]  # matched word by word
        raw = [decode(source.modality, given[index % len(given)]) for index in range(size)]
        inputs = _prepared(source.preparation, raw)
        beside = {} if teachers is None else {of: _prepared(teachers.preparation(of), raw) for of in teachers.asked}
        ids = tuple(map(str, range(size)))
        return Batch(inputs=inputs, target=self._targets(size, inputs, seed), ids=ids, beside=beside)

    def _targets(self, size: int, inputs: Any, seed: int) -> Tensor:
        target, generator = self.built.target, torch.Generator().manual_seed(seed)
        outputs = target.size or 1
        if target.kind == "classes":
            return torch.randperm(size, generator=generator) % outputs
        if target.kind == "token_classes":
            return torch.randint(outputs, inputs["input_ids"].shape, generator=generator)
        drawn = torch.randn(size, outputs, generator=generator)
        return (drawn > 0).float() if target.kind == "multilabel" else drawn


def _prepared(preparation: Preparation, examples: Sequence[Any]) -> dict[str, Tensor]:
    return preparation.normalise(preparation.collate(preparation.prepare(examples)))


def _columns(learner: Learner) -> int:
    return int(next(iter(learner.source.preparation.dummy(1).values())).shape[-1])


def examples_of(modality: Modality, size: int, *, seed: int = 0, columns: int = 5) -> list[Raw]:
    """Different raw examples of a modality: coarse pictures, short texts of common words, noises, rows of numbers.

    columns: the number of columns of a table.
    """
    rng = np.random.default_rng(seed)
    if modality == "image":
        coarse = rng.integers(0, 256, size=(size, 8, 8, 3)).astype(np.uint8)
        return [np.kron(picture, np.ones((6, 6, 1), np.uint8)) for picture in coarse]
    if modality == "text":
        words = _WORDS.split()
        return [" ".join(rng.choice(words, size=rng.integers(3, 9))) for _ in range(size)]
    if modality == "audio":
        lengths = rng.integers(800, 1600, size=size)
        return [{"array": rng.uniform(-1, 1, length).astype(np.float32), "sampling_rate": 16000} for length in lengths]
    return [row.tolist() for row in rng.normal(size=(size, columns))]


@torch.no_grad()
def perturb(parameters: Iterable[nn.Parameter], *, seed: int = 1, size: float = 0.1) -> None:
    """Moves parameters, each in proportion to the spread of its values, or by `size` if all its values are equal."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
        parameter.add_(noise, alpha=size * (spread or 1.0))


@torch.no_grad()
def wake(parameters: Iterable[nn.Parameter], *, seed: int = 1) -> None:
    """Gives every norm, scale and bias, and every matrix of zeros, values that let gradients through.

    In a random backbone, residual branches that start at zero (a scale of 1e-6, a norm weight of 0) would block them.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        if parameter.ndim <= 1 or not parameter.any():
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
            parameter.add_(0.1 + 0.4 * noise)


def forked_rng(*parts: object) -> AbstractContextManager[None]:
    """Seeds dropout and all else that draws from torch's global generator; restores the caller's state."""
    return randomness.forked_rng(torch.device("cpu"), "conformance", *parts)
