"""What the scores of zoo-core compute, from features float64 [N, D] and targets as contracts.ScoreRecipe has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_core.contracts import Target
from zoo_core.errors import UsageError

__all__ = ["blocks", "knn", "logme", "ridge"]

MANY_NEIGHBOURS, FEW_NEIGHBOURS = 20, 5
PENALTIES = tuple(10.0**power for power in range(-4, 4))  # in units of the mean eigenvalue of the features
MOST_STEPS = 11  # of LogME's fixed point, as in its authors' code
FURTHEST = 30.0  # from where log(a / b) begins: beyond, the evidence is at its limit for nothing known, or everything
SETTLED = 1e-7  # change of log(a / b); the evidence is flat there, so its own error is of the order of the square
SEED = 20261129


def knn(features: Tensor, truth: Tensor, target: Target, k: int | None = None) -> Tensor:
    """What leave-one-out k nearest neighbours by cosine are worth for each example, float64 [N].

    Each neighbour has one vote; of classes with equal votes the one with the more similar neighbours wins.
    """
    num = len(features)
    if k is not None and not 1 <= k < num:
        raise UsageError(f"knn: k={k}; allowed: 1 to {num - 1}, as there are {num} examples")
    x_ND = torch.nn.functional.normalize(features, dim=1)
    similar_NN = x_ND @ x_ND.T
    similar_NN.fill_diagonal_(-torch.inf)
    similar_NK, nearest_NK = similar_NN.topk(k or _neighbours(truth, target), dim=1)
    votes_NKC = _values(truth, target)[nearest_NK]
    mean_NC = votes_NKC.mean(1)
    if target.kind == "classes":  # a tie is broken, and no majority is ever overturned
        mean_NC = mean_NC + (votes_NKC * similar_NK[..., None]).mean(1) * 1e-6
    return _worth(mean_NC, truth, target)


def _neighbours(truth: Tensor, target: Target) -> int:
    num = len(truth)
    sets = len(truth.unique()) if target.kind == "classes" else 10
    return min(MANY_NEIGHBOURS if num >= MANY_NEIGHBOURS * sets else FEW_NEIGHBOURS, num - 1)


def ridge(features: Tensor, truth: Tensor, target: Target, folds: int = 5) -> Tensor:
    """What ridge regression is worth for each example, when it is fitted on the other folds: float64 [N].

    Features are standardised and an intercept is fitted without penalty. One eigendecomposition serves all folds and
    penalties: the residuals of a fold S that was left out are (1 - H_SS)^-1 (y - H y)_S, with H the matrix that turns
    targets into fitted values. The penalty of a fold is the one with the least squared error on the other folds.
    """
    num = len(features)
    if not 2 <= folds <= num:
        raise UsageError(f"ridge: folds={folds}; allowed: 2 to {num}, as there are {num} examples")
    x_ND = _standardised(features)
    y_NC = _values(truth, target)
    spectrum = _spectrum(x_ND)
    fold_N = blocks(truth, target, folds)
    left = torch.stack([_left_out(spectrum, y_NC, fold_N, folds, penalty) for penalty in PENALTIES])  # [P, N, C]
    error = torch.stack([left[:, fold_N == fold].square().sum((1, 2)) for fold in range(folds)], 1)
    chosen = (error.sum(1, keepdim=True) - error).argmin(0)
    residual_NC = left[chosen[fold_N], torch.arange(num)]
    return _worth(y_NC - residual_NC, truth, target)


def _left_out(spectrum: _Spectrum, y_NC: Tensor, fold_N: Tensor, folds: int, penalty: float) -> Tensor:
    """The residuals of each example under the fit on the other folds: float64 [N, C]."""
    kept_R = spectrum.squares_R / (spectrum.squares_R + penalty * spectrum.squares_R.mean())
    u_NR = spectrum.left_NR
    residual_NC = y_NC - y_NC.mean(0) - u_NR @ (kept_R[:, None] * (u_NR.T @ y_NC))
    found_NC = torch.empty_like(residual_NC)
    for fold in range(folds):
        inside = fold_N == fold
        inside_NR = u_NR[inside]
        hat = (inside_NR * kept_R) @ inside_NR.T + 1 / len(y_NC)
        found_NC[inside] = torch.linalg.solve(torch.eye(len(inside_NR), dtype=hat.dtype) - hat, residual_NC[inside])
    return found_NC


def logme(features: Tensor, truth: Tensor, target: Target) -> Tensor:
    """The largest log evidence of a linear model of the targets, for each example, a mean over outputs: float64 [].

    For one column y and the prior precision a and noise precision b that are best for it,
    [D/2 log a + N/2 log b - b/2 |y - Fm|^2 - a/2 |m|^2 - 1/2 logdet(aI + bF'F) - N/2 log 2pi] / N. Columns are the
    classes that occur, 1 or 0, or the labels, or values that are standardised here so that their unit does not matter.
    Source: You et al. 2021, algorithm 3; the fixed point as in their code at github.com/thuml/LogME.
    """
    num = len(features)
    y_NC = _values(truth, target)
    y_NC = _standardised(y_NC) if target.kind == "regression" else y_NC[:, y_NC.any(0)]
    if not y_NC.shape[1]:  # labels of which none is true
        return torch.tensor(torch.nan, dtype=features.dtype)
    spectrum = _spectrum(features)
    evidence_C = _Evidence(
        squares_R1=spectrum.squares_R[:, None],
        z_RC=(spectrum.left_NR.T @ y_NC).square(),
        length_C=y_NC.square().sum(0),
        num=num,
    ).largest()
    return (evidence_C / num).mean() - torch.log(torch.tensor(2 * torch.pi, dtype=features.dtype)) / 2


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """The evidence of linear models of C columns, as a function of the ratio a / b alone: b is then the best one.

    squares_R1, z_RC: squared singular values, and what of each column lies along their vectors, squared. length_C: of
    the columns, squared.
    """

    squares_R1: Tensor
    z_RC: Tensor
    length_C: Tensor
    num: int

    def largest(self) -> Tensor:
        """Without the constant, float64 [C]. The fixed point on log(a / b), with the steps of a secant where it may.

        The fixed point alone converges linearly and would need some dozens of steps where features say little.
        """
        middle = self.squares_R1.mean().log()
        at_C = middle.expand_as(self.length_C)
        before: tuple[Tensor, Tensor] | None = None
        for _ in range(MOST_STEPS):
            step_C = self._next(at_C) - at_C
            if bool(step_C.abs().max() < SETTLED):
                break
            moved_C = step_C
            if before is not None:
                slope_C = (step_C - before[1]) / (at_C - before[0])
                secant_C = -step_C / slope_C
                may = (slope_C < -0.02) & (slope_C > -1) & secant_C.isfinite()
                moved_C = torch.where(may, secant_C, step_C)
            before = at_C, step_C
            at_C = (at_C + moved_C).clamp(middle - FURTHEST, middle + FURTHEST)
        return self._at(at_C)

    def _next(self, at_C: Tensor) -> Tensor:
        """The fixed point's step: a = known / |m|^2, b = (N - known) / |y - Fm|^2, as log(a / b)."""
        m_C, rss_C = self._fitted(at_C.exp())
        unknown_RC = at_C.exp() / (self.squares_R1 + at_C.exp())  # summed, as N - known is 0 once it is rounded
        known_C = (1 - unknown_RC).sum(0)
        unknown_C = unknown_RC.sum(0) + (self.num - len(self.z_RC))
        return (known_C * rss_C / (m_C * unknown_C)).log()

    def _at(self, at_C: Tensor) -> Tensor:
        ratio_C = at_C.exp()
        m_C, rss_C = self._fitted(ratio_C)
        b_C = self.num / (rss_C + ratio_C * m_C)
        logdet_C = (ratio_C + self.squares_R1).log().sum(0) - len(self.z_RC) * at_C
        return (self.num * b_C.log() - self.num - logdet_C) / 2

    def _fitted(self, ratio_C: Tensor) -> tuple[Tensor, Tensor]:
        """The squared lengths of the mean weights and of the residuals, each float64 [C], and neither 0."""
        outside_C = (self.length_C - self.z_RC.sum(0)).clamp_min(0)  # what no linear model of these features can fit
        m_C = (self.squares_R1 * self.z_RC / (self.squares_R1 + ratio_C).square()).sum(0)
        rss_C = ((ratio_C / (self.squares_R1 + ratio_C)).square() * self.z_RC).sum(0) + outside_C
        least_C = torch.finfo(self.z_RC.dtype).eps * self.length_C
        return m_C.clamp_min(least_C / self.squares_R1.mean()), rss_C.clamp_min(least_C)


# --- what they share --------------------------------------------------------------------------------------------------


def blocks(truth: Tensor, target: Target, num: int) -> Tensor:
    """The block of each example, 0 to num - 1: int64 [N]. Equally large, each class spread over them; drawn once."""
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(SEED))
    if target.kind == "classes":
        order = order[truth[order].argsort(stable=True)]
    found = torch.empty(len(truth), dtype=torch.int64)
    found[order] = torch.arange(len(truth)) % num
    return found


@dataclass(frozen=True)
class _Spectrum:
    """The singular values of a matrix that are not 0, squared, [R], and the left singular vectors, [N, R]."""

    squares_R: Tensor
    left_NR: Tensor


def _spectrum(x_ND: Tensor) -> _Spectrum:
    """By the eigenvalues of the smaller of the two matrices of products, which is several times faster than an SVD."""
    num, dim = x_ND.shape
    squares, vectors = torch.linalg.eigh(x_ND @ x_ND.T if num <= dim else x_ND.T @ x_ND)
    known = squares > squares[-1] * max(num, dim) * torch.finfo(x_ND.dtype).eps
    squares, vectors = squares[known], vectors[:, known]
    return _Spectrum(squares, vectors if num <= dim else x_ND @ (vectors / squares.sqrt()))


def _standardised(x_ND: Tensor) -> Tensor:
    """Columns of mean 0 and deviation 1; constant ones are 0."""
    centred = x_ND - x_ND.mean(0)
    deviation = centred.square().mean(0).sqrt()
    is_constant = deviation <= x_ND.abs().amax(0) * 1e-12
    return (centred / deviation.masked_fill(is_constant, 1)).masked_fill(is_constant, 0)


def _values(truth: Tensor, target: Target) -> Tensor:
    """The targets as numbers, float64 [N, C]: of classes 1 and 0."""
    if target.kind != "classes":
        return truth.double()
    assert target.size is not None, "data that was opened knows its outputs"
    return torch.nn.functional.one_hot(truth, target.size).double()


def _worth(predicted_NC: Tensor, truth: Tensor, target: Target) -> Tensor:
    """What predictions are worth for each example, float64 [N]; the mean is accuracy or R2.

    R2 is a ratio of sums, 1 - E / V. An example is given R2 - (e - (1 - R2) v) N / V, for its share e of E and v of V:
    the mean of these is R2, and they vary as R2 does when the example is drawn more or less often.
    """
    if target.kind == "classes":
        return (predicted_NC.argmax(1) == truth).double()
    if target.kind == "multilabel":
        return ((predicted_NC > 0.5) == (truth > 0.5)).double().mean(1)
    error_NC = (predicted_NC - truth).square()
    varies_NC = (truth - truth.mean(0)).square().double()
    total_C = varies_NC.mean(0)
    r2_C = 1 - error_NC.mean(0) / total_C
    return (r2_C - (error_NC - (1 - r2_C) * varies_NC) / total_C).mean(1)
