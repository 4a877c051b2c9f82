"""The torch modules of the heads: Features -> predictions. Axes: B batch, T tokens, D width, C outputs, N examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo_core.contracts import Features, TargetKind
from zoo_core.errors import DivergedError

__all__ = ["AttentionPoolHead", "KnnHead", "LinearHead", "MlpHead", "NcmHead", "RidgeHead"]

PENALTIES = tuple(10.0 ** (half / 2) for half in range(-8, 9))  # that ridge chooses from


def _linear(dim: int, size: int) -> nn.Linear:
    layer = nn.Linear(dim, size)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _full_precision(state: Tensor) -> torch.autocast:
    """No mixed precision while open: neighbours and means lie closer together than bfloat16 can tell."""
    return torch.autocast(state.device.type, enabled=False)


class LinearHead(nn.Module):
    """pooled [B, D] -> [B, C], or tokens [B, T, D] -> [B, T, C]."""

    def __init__(self, dim: int, size: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = _linear(dim, size)

    def forward(self, features: Features) -> Tensor:
        predictions: Tensor = self.out(self.dropout(features.x))
        return predictions

    def as_linear(self) -> nn.Linear:
        """The layer that it is once nothing is dropped."""
        return self.out


class MlpHead(nn.Module):
    """pooled [B, D] -> [B, C] through one hidden layer."""

    def __init__(self, dim: int, size: int, *, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.out = _linear(hidden_dim, size)

    def forward(self, features: Features) -> Tensor:
        predictions: Tensor = self.out(self.dropout(nn.functional.gelu(self.hidden(features.x))))
        return predictions


class AttentionPoolHead(nn.Module):
    """tokens [B, T, D], padding masked out -> [B, C]."""

    def __init__(self, dim: int, size: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.empty(num_heads, 1, dim // num_heads))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.dropout = nn.Dropout(dropout)
        self.out = _linear(dim, size)

    def forward(self, features: Features) -> Tensor:
        x_BTD = self.norm(features.x)
        pairs = self.key_value(x_BTD).unflatten(-1, (2, self.num_heads, -1))  # [B, T, 2, heads, D / heads]
        key, value = pairs.permute(2, 0, 3, 1, 4)
        mask = None if features.mask is None else features.mask[:, None, None, :]
        query = self.query.expand(len(x_BTD), -1, -1, -1).to(key.dtype)
        pooled = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        predictions: Tensor = self.out(self.dropout(pooled.flatten(1)))
        return predictions


class NcmHead(nn.Module):
    """pooled [B, D] -> [B, C]: cosine to each class mean, or minus half the squared distance to it.

    means: float [C, D]. counts: int64 [C], training examples of each class; a class without any is never predicted.
    """

    means: Tensor
    counts: Tensor

    def __init__(self, dim: int, size: int, *, cosine: bool) -> None:
        super().__init__()
        self.cosine = cosine
        self.register_buffer("means", torch.zeros(size, dim))
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64))

    def fit(self, features: Features, target: Tensor) -> None:
        """features: pooled [N, D]. target: int64 [N]."""
        x_ND = self._direction(features.x).to(self.means.dtype)
        self.counts.copy_(torch.bincount(target, minlength=len(self.counts)))
        totals = torch.zeros_like(self.means).index_add_(0, target, x_ND)
        self.means.copy_(totals / self.counts.clamp(min=1).unsqueeze(1))

    def forward(self, features: Features) -> Tensor:
        with _full_precision(self.means):
            x_BD = self._direction(features.x.to(self.means.dtype))
            if self.cosine:
                logits = x_BD @ self._direction(self.means).T
            else:  # by differences: a product of features far from the origin would cancel
                distance = torch.cdist(x_BD, self.means, compute_mode="donot_use_mm_for_euclid_dist")
                logits = -0.5 * distance.square()
        return logits.masked_fill(self.counts == 0, -torch.inf)

    def _direction(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1) if self.cosine else x


class KnnHead(nn.Module):
    """pooled [B, D] -> [B, C]: logarithm of each class's share of the neighbours' weights.

    bank: float [N, D], unit length. labels: int64 [N].
    """

    bank: Tensor
    labels: Tensor

    def __init__(self, dim: int, size: int, *, k: int, temperature: float) -> None:
        super().__init__()
        self.size = size
        self.k = k
        self.temperature = temperature
        self.register_buffer("bank", torch.zeros(0, dim))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    def fit(self, features: Features, target: Tensor) -> None:
        """features: pooled [N, D]. target: int64 [N]."""
        self.bank = nn.functional.normalize(features.x, dim=-1).to(self.bank.dtype)
        self.labels = target.clone()

    def forward(self, features: Features) -> Tensor:
        with _full_precision(self.bank):
            similarity = nn.functional.normalize(features.x.to(self.bank.dtype), dim=-1) @ self.bank.T  # [B, N]
            near, index = similarity.topk(min(self.k, len(self.bank)), dim=1)
            weights = (near / self.temperature).softmax(dim=1)
            votes = weights.new_zeros(len(weights), self.size)
            return votes.scatter_add_(1, self.labels[index], weights).log()


class RidgeHead(nn.Module):
    """pooled [B, D] -> [B, C]: (x - mean) weight^T + bias.

    mean: float [D], of the training features. weight: float [C, D]. bias: float [C], the mean of the targets. penalty:
    float [], the one that was given or chosen, in units of the mean squared singular value. A class without examples
    is never predicted: it gets -1, and the others sum to what is left.
    """

    mean: Tensor
    weight: Tensor
    bias: Tensor
    penalty: Tensor

    def __init__(self, dim: int, size: int, *, kind: TargetKind, penalties: Sequence[float] = PENALTIES) -> None:
        super().__init__()
        self.kind, self.penalties = kind, penalties
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("weight", torch.zeros(size, dim))
        self.register_buffer("bias", torch.zeros(size))
        self.register_buffer("penalty", torch.zeros(()))

    def fit(self, features: Features, target: Tensor) -> None:
        """features: pooled [N, D]. target: int64 [N], or float32 [N, C]. Computes in float64.

        One eigendecomposition, of the smaller matrix of products, serves all penalties. Raises DivergedError for
        features that are not finite.
        """
        if not bool(features.x.isfinite().all()):
            raise DivergedError(f"features of {len(features.x)} training examples are not finite, so ridge has no fit")
        x_ND, y_NC = features.x.double(), self._numbers(target)
        num, dim = x_ND.shape
        mean_D, bias_C = x_ND.mean(0), y_NC.mean(0)
        x_ND, y_NC = x_ND - mean_D, y_NC - bias_C
        unit = (x_ND.square().sum() / max(1, min(num - 1, dim))).sqrt()
        unit = unit if float(unit) > 0 else torch.ones_like(unit)  # features that are all alike
        x_ND = x_ND / unit
        squares_R, vectors = torch.linalg.eigh(x_ND @ x_ND.T if num <= dim else x_ND.T @ x_ND)
        squares_R = squares_R.clamp_min(0)
        along_NR = vectors * squares_R.sqrt() if num <= dim else x_ND @ vectors  # examples along singular vectors
        penalty = self._chosen(along_NR, squares_R, y_NC)
        inverse_R1 = 1 / (squares_R + penalty).unsqueeze(1)
        if num <= dim:  # (X'X + p)^-1 X' = X' (XX' + p)^-1, and nothing is divided by a singular value that may be 0
            weight_DC = x_ND.T @ (vectors @ (inverse_R1 * (vectors.T @ y_NC)))
        else:
            weight_DC = vectors @ (inverse_R1 * (along_NR.T @ y_NC))
        self.mean.copy_(mean_D)
        self.weight.copy_(weight_DC.T / unit)
        self.bias.copy_(bias_C)
        self.penalty.fill_(penalty)

    def forward(self, features: Features) -> Tensor:
        with _full_precision(self.weight):  # by differences: features far from the origin would cancel
            predictions: Tensor = (features.x.to(self.weight.dtype) - self.mean) @ self.weight.T + self.bias
        return predictions

    def as_linear(self) -> nn.Linear:
        """The layer that it is, its mean in the bias."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0]).to(self.weight)
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias.double() - self.weight.double() @ self.mean.double())
        return layer

    def _numbers(self, target: Tensor) -> Tensor:
        """The targets as float64 [N, C]: of classes and labels 1 and -1, so that 0 is between yes and no."""
        if self.kind == "regression":
            return target.double()
        yes = nn.functional.one_hot(target, len(self.bias)) if self.kind == "classes" else target
        return 2 * yes.double() - 1

    def _chosen(self, along_NR: Tensor, squares_R: Tensor, y_NC: Tensor) -> float:
        """The penalty with the least squared error on examples that are left out of the fit in turn.

        The residual of one that is left out is (y - H y) / (1 - H_nn), with H what turns targets into fitted values.
        """
        if len(self.penalties) == 1:
            return self.penalties[0]
        known_RC, errors = along_NR.T @ y_NC, []
        for penalty in self.penalties:
            inverse_R = 1 / (squares_R + penalty)
            fitted_NC = along_NR @ (inverse_R.unsqueeze(1) * known_RC)
            own_N1 = (along_NR.square() @ inverse_R + 1 / len(y_NC)).unsqueeze(1)
            errors.append(((y_NC - fitted_NC) / (1 - own_N1)).square().mean())
        return self.penalties[int(torch.stack(errors).argmin())]
