"""The torch half of features.py: objectives that add a distance from a teacher's features, and linear maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Learner, Modality, Output, Site, TeacherOutput
from zoo_core.errors import RefusedError
from zoo_core.toolkit.features import channels_first
from zoo_core.toolkit.sites import read_weight
from zoo_core.toolkit.stages import capture, dummy_pass, stage_modules
from zoo_distill.feature_losses import (
    attention_distance,
    cosine_distance,
    laid_over,
    relation_distance,
    squared_distance,
)
from zoo_distill.taught_objective import TaughtObjective, upcast
from zoo_distill.vocabulary import ROLES, FeatureLoss, index_of

__all__ = ["PooledDistillation", "RelationDistillation", "StageDistillation", "StagePair", "around"]

Distance = Callable[[Tensor, Tensor, Tensor | None], Tensor]

DISTANCES: Mapping[FeatureLoss, Distance] = {
    "cosine": cosine_distance,
    "mse": squared_distance,
    "hint": squared_distance,
    "at": attention_distance,
}


@dataclass(frozen=True)
class StagePair:
    """Which hidden states are compared. student: an index from the start. teacher: as the teacher was asked for it.

    channels_first: whether a student's state of four axes is [B, D, H, W], as a teacher's always is.
    """

    student: int
    teacher: int
    channels_first: bool = True


class PooledDistillation(TaughtObjective):
    """The wrapped objective, and weight * the distance of pooled features, mapped by `maps`."""

    pooled = True

    def __init__(self, objective: nn.Module, *, of: str, weight: float, distance: Distance, maps: nn.Module) -> None:
        super().__init__(objective, of=of, name="distill_features")
        self.weight = weight
        self.distance = distance
        self.maps = maps

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        teacher = self.given(batch).pooled
        assert output.pooled is not None, "the learner gives what its objective says that it reads"
        assert teacher is not None, "the recipe asks for it"
        student: Tensor = self.maps(upcast(output.pooled))
        found = self.distance(student.unsqueeze(1), teacher.to(student.dtype).unsqueeze(1), None).mean()
        return self.joined(self.objective(output, batch), self.weight * found)

    def own_items(self, batch: Batch) -> Tensor:
        return _examples(batch)


class StageDistillation(TaughtObjective):
    """The wrapped objective, and weight * the distances of pairs of hidden states, each mapped by its one of `maps`."""

    def __init__(
        self,
        objective: nn.Module,
        *,
        of: str,
        weight: float,
        distance: Distance,
        pairs: tuple[StagePair, ...],
        maps: nn.ModuleList,
        modality: Modality,
    ) -> None:
        super().__init__(objective, of=of, name="distill_features")
        self.stages = tuple(dict.fromkeys(pair.student for pair in pairs))
        self.weight = weight
        self.distance = distance
        self.pairs = pairs
        self.maps = maps
        self.modality: Modality = modality

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        given = self.given(batch)
        total = torch.stack(
            [self._distance(output, given, pair, own) for pair, own in zip(self.pairs, self.maps, strict=True)]
        ).sum()
        return self.joined(self.objective(output, batch), self.weight * total)

    def _distance(self, output: Output, given: TeacherOutput, pair: StagePair, own: nn.Module) -> Tensor:
        student = upcast(output.stages[pair.student])
        teacher = given.stages[pair.teacher].to(student.dtype)
        student, teacher = laid_over(student, teacher, channels_first=pair.channels_first, modality=self.modality)
        mask = _mask(output, given, student.shape[1])
        return self.distance(own(student), teacher, mask).mean()

    def own_items(self, batch: Batch) -> Tensor:
        return _examples(batch)


class RelationDistillation(TaughtObjective):
    """The wrapped objective, and weight * the distances of the relations of queries, keys and values.

    pairs: the stages; a student's is an index from the start.
    """

    def __init__(
        self, objective: nn.Module, *, of: str, weight: float, pairs: tuple[tuple[int, int], ...], heads: int
    ) -> None:
        super().__init__(objective, of=of, name="distill_features")
        self.sites = tuple(dict.fromkeys((student, role) for student, _ in pairs for role in ROLES))
        self.weight = weight
        self.pairs = pairs
        self.heads = heads

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        given = self.given(batch)
        found = []
        for own, theirs in self.pairs:
            for role in ROLES:
                student = upcast(output.sites[own, role])
                teacher = given.sites[theirs, role].to(student.dtype)
                _check_as_many(student, teacher)
                mask = _mask(output, given, student.shape[1])
                found.append(relation_distance(student, teacher, mask, self.heads).mean())
        return self.joined(self.objective(output, batch), self.weight * torch.stack(found).sum())

    def own_items(self, batch: Batch) -> Tensor:
        return _examples(batch)


def around(
    learner: Learner,
    of: str,
    given: TeacherOutput,
    *,
    loss: FeatureLoss,
    pairs: tuple[tuple[int, int], ...],
    weight: float,
    heads: int | None,
) -> TaughtObjective:
    """The learner's objective with the term of a loss around it.

    given: what the teacher `of` gives, for its shapes. pairs: of stages as a user counts them; none: pooled features.
    Raises RefusedError for what cannot be compared.
    """
    objective, source = learner.objective, learner.source
    assert objective is not None, "a learner that is built for training has one"
    wanted = [(index_of(own) % len(source.stages), index_of(theirs)) for own, theirs in pairs]
    if loss == "minilm":
        pieces = _relation_heads(learner, wanted, given, heads)
        return RelationDistillation(objective, of=of, weight=weight, pairs=tuple(wanted), heads=pieces)
    if not pairs:
        assert given.pooled is not None, "the recipe asks for it"
        maps = _map(learner, source.features.width("pooled"), given.pooled.shape[-1])
        return PooledDistillation(objective, of=of, weight=weight, distance=DISTANCES[loss], maps=maps)
    found = tuple(_stage_pairs(learner, wanted, given))
    maps_of = [nn.Identity() if loss == "at" else _map(learner, own, theirs) for _, own, theirs in found]
    return StageDistillation(
        objective,
        of=of,
        weight=weight,
        distance=DISTANCES[loss],
        pairs=tuple(pair for pair, _, _ in found),
        maps=nn.ModuleList(maps_of),
        modality=source.modality,
    )


def _stage_pairs(
    learner: Learner, wanted: Sequence[tuple[int, int]], given: TeacherOutput
) -> Iterator[tuple[StagePair, int, int]]:
    """Each pair of stages with the widths of both. Raises RefusedError for pictures whose states do not go together."""
    modules = stage_modules(learner.backbone)
    with capture(learner.backbone, sorted({own for own, _ in wanted})) as states:
        dummy_pass(learner.backbone)
    for own, theirs in wanted:
        student, teacher = states[own], given.stages[theirs]
        first = student.ndim != 4 or channels_first(student, modules[own])
        if learner.source.modality == "image":  # of other modalities lengths are known with the batch
            laid_over(student, teacher, channels_first=first, modality="image")
        widths = _width(student, is_map=first and student.ndim == 4), _width(teacher, is_map=teacher.ndim == 4)
        yield StagePair(own, theirs, first), *widths


def _width(state: Tensor, *, is_map: bool) -> int:
    return state.shape[1 if is_map else -1]


def _map(learner: Learner, own: int, theirs: int) -> nn.Module:
    """From the student's width to the teacher's; nothing to learn where they are equal."""
    if own == theirs:
        return nn.Identity()
    like = next(learner.backbone.parameters())
    new = nn.Linear(own, theirs).to(like)
    head = next(learner.head.parameters(), None)
    if head is not None:  # it starts from nothing as the head does
        learner.set_scale(new.parameters(), learner.scale_of(head))
    return new


def _relation_heads(learner: Learner, pairs: Sequence[tuple[int, int]], given: TeacherOutput, asked: int | None) -> int:
    """The number of pieces that every width is cut into. Raises RefusedError where it does not divide one."""
    widths: list[int] = []
    own_heads: int | None = None
    for own, theirs in pairs:
        for role in ROLES:
            site = _site(learner, own, role)
            own_heads = own_heads or site.num_heads
            widths += [len(read_weight(learner.backbone, site)), given.sites[theirs, role].shape[-1]]
    heads = asked or own_heads
    if heads is None or any(width % heads for width in widths):
        common = math.gcd(*widths)
        allowed = ", ".join(str(each) for each in range(1, common + 1) if common % each == 0)
        raise RefusedError(
            f"distill-features: {heads or 'no number of'} relation heads do not divide the widths "
            f"{', '.join(map(str, sorted(set(widths))))} of queries, keys and values; allowed: heads={allowed}"
        )
    return heads


def _site(learner: Learner, stage: int, role: str) -> Site:
    prefix = f"{learner.source.stages[stage]}."
    found = [site for site in learner.source.sites(role) if f"{site.path}.".startswith(prefix)]
    if len(found) != 1:
        raise RefusedError(
            f"distill-features: stage {stage + 1} of the student has {len(found)} projections {role}, and loss=minilm "
            f"takes one; name another stage, or compare pooled features with loss=cosine"
        )
    return found[0]


def _mask(output: Output, given: TeacherOutput, num_tokens: int) -> Tensor | None:
    """Which tokens are real. Raises RefusedError where the two say so of different ones."""
    masks = [mask for mask in (output.features.mask, given.mask) if mask is not None and mask.shape[1] == num_tokens]
    if len(masks) == 2 and not torch.equal(*masks):
        raise _cut_differently()
    return masks[0] if masks else None


def _check_as_many(student: Tensor, teacher: Tensor) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise _cut_differently()


def _cut_differently() -> RefusedError:
    return RefusedError(
        "distill-features: the student and the teacher do not cut an example into the same tokens; take a teacher with "
        "the student's own preparation, or compare pooled features or predictions, which need no such match"
    )


def _examples(batch: Batch) -> Tensor:
    return torch.tensor(float(len(batch)))
