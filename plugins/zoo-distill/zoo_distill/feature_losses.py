"""Distances between features of a student and of a teacher, and how hidden states of two networks are laid over.

Axes: B examples, T tokens or positions, D width, A relation heads, h w rows and columns. Each distance gives float [B],
one for each example. mask: bool [B, T], True for a real token; None: all are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo_core.contracts import Features, Modality
from zoo_core.errors import RefusedError
from zoo_core.toolkit.features import to_tokens

__all__ = ["attention_distance", "cosine_distance", "laid_over", "relation_distance", "squared_distance"]

MOST_LEADING = 8  # tokens that are no patch, a class token and registers: DINOv2 has 5


def cosine_distance(student_BTD: Tensor, teacher_BTD: Tensor, mask: Tensor | None) -> Tensor:
    """1 - cosine, averaged over tokens."""
    return _over_tokens(1 - torch.cosine_similarity(student_BTD, teacher_BTD, dim=-1), mask)


def squared_distance(student_BTD: Tensor, teacher_BTD: Tensor, mask: Tensor | None) -> Tensor:
    """Squared differences, averaged over the width and tokens."""
    return _over_tokens((student_BTD - teacher_BTD).square().mean(dim=-1), mask)


def attention_distance(student_BTD: Tensor, teacher_BTD: Tensor, mask: Tensor | None) -> Tensor:
    """Squared differences of the two attention maps, averaged over tokens; widths may differ.

    Source: Zagoruyko & Komodakis 2017, section 3.1, p = 2, averaged over positions as in their code.
    """
    student, teacher = (_attention(x, mask) for x in (student_BTD, teacher_BTD))
    return _over_tokens((student - teacher).square(), mask)


def relation_distance(student_BTD: Tensor, teacher_BTD: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """KL of how each token relates to all others, averaged over heads and tokens; widths may differ.

    A relation is softmax(x x' / sqrt(d)) over the real tokens, x [B, A, T, d] a piece of the width.
    Source: Wang et al. 2021, "MiniLMv2", section 3.
    """
    student, teacher = (_relations(x, mask, heads) for x in (student_BTD, teacher_BTD))
    terms = teacher.exp() * (teacher - student)
    if mask is not None:
        terms = terms.masked_fill(~mask[:, None, None, :], 0)
    return _over_tokens(terms.sum(dim=-1).mean(dim=1), mask)


def laid_over(student: Tensor, teacher: Tensor, *, channels_first: bool, modality: Modality) -> tuple[Tensor, Tensor]:
    """Hidden states of two networks as tokens at the same places: float [B, T, D] each, widths as they were.

    channels_first: whether a student's state of four axes is [B, D, H, W]; a teacher's always is. A state [B, D] is one
    token.
    Raises RefusedError where no place of one is a place of the other.
    """
    (one, sides), (other, other_sides) = (
        _tokens(x, first) for x, first in ((student, channels_first), (teacher, True))
    )
    if sides == other_sides and one.shape[1] == other.shape[1]:
        return one, other
    grids = [_grid(x, found) for x, found in ((one, sides), (other, other_sides))] if modality == "image" else []
    if len(grids) < 2 or any(grid is None for grid in grids):
        raise RefusedError(
            f"distill-features: the student's hidden state has {one.shape[1]} tokens and the teacher's "
            f"{other.shape[1]}, "
            + (
                "and one of them is no map of places; name other stages, or compare pooled features"
                if modality == "image"
                else "so they cut the same example differently; take a teacher with the student's own preparation, or "
                "compare pooled features or predictions"
            )
        )
    first, second = (grid for grid in grids if grid is not None)
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    first, second = (
        x if x.shape[2:] == size else torch.nn.functional.adaptive_avg_pool2d(x, size) for x in (first, second)
    )
    return _flat(first), _flat(second)


def _tokens(state: Tensor, channels_first: bool) -> tuple[Tensor, tuple[int, int] | None]:
    """A hidden state as float [B, T, D], and the sides of a map."""
    if state.ndim < 4:
        return (state.unsqueeze(1) if state.ndim == 2 else state), None
    state = state if channels_first else state.movedim(-1, 1)
    return _flat(state), (state.shape[2], state.shape[3])


def _grid(tokens_BTD: Tensor, sides: tuple[int, int] | None) -> Tensor | None:
    """The map [B, D, h, w] of tokens; None where they are no square behind a few others."""
    num_tokens = tokens_BTD.shape[1]
    if sides is None:
        side = math.isqrt(num_tokens)
        sides = (side, side)
        if side < 2 or num_tokens - side**2 > MOST_LEADING:
            return None
    patches = tokens_BTD[:, num_tokens - sides[0] * sides[1] :]
    return patches.transpose(1, 2).reshape(len(patches), -1, *sides)


def _flat(map_BDhw: Tensor) -> Tensor:
    return to_tokens(Features(kind="map", x=map_BDhw)).x


def _attention(x_BTD: Tensor, mask: Tensor | None) -> Tensor:
    strength = x_BTD.square().mean(dim=-1)
    return torch.nn.functional.normalize(strength if mask is None else strength.masked_fill(~mask, 0), dim=-1)


def _relations(x_BTD: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """The logarithm of the relations, float [B, A, T, T]; of padding as keys it is a number that means nothing."""
    x_BATd = x_BTD.unflatten(-1, (heads, x_BTD.shape[-1] // heads)).transpose(1, 2)
    scores = x_BATd @ x_BATd.transpose(-1, -2) / math.sqrt(x_BATd.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min / 2)
    return torch.log_softmax(scores, dim=-1)


def _over_tokens(each_BT: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return each_BT.mean(dim=1)
    return each_BT.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)
