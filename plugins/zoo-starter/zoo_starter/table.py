"""A small residual network for rows of numbers; it was never pre-trained."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["MlpNano"]


class MlpBlock(nn.Module):
    """x + linear(dropout(GELU(linear(norm(x)))))."""

    def __init__(self, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x_BD: Tensor) -> Tensor:
        """x_BD: float [B, D]. Returns float [B, D]."""
        hidden = self.drop(nn.functional.gelu(self.fc1(self.norm(x_BD))))
        out_BD: Tensor = x_BD + self.fc2(hidden)
        return out_BD


class ColumnStem(nn.Module):
    """One learned vector for each column, summed with the row's values as weights; unused columns cost nothing."""

    def __init__(self, max_columns: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max_columns, dim) / max_columns**0.5)

    def forward(self, numeric: Tensor) -> Tensor:
        """numeric: float [B, N] with N up to max_columns. Returns float [B, D]."""
        return numeric @ self.weight[: numeric.shape[1]]


class MlpNano(nn.Module):
    """Rows of up to 64 standardised numbers -> features of width 128 through three residual blocks.

    Source: Gorishniy et al. 2021, "Revisiting deep learning models for tabular data" (its ResNet), LayerNorm in place
    of BatchNorm.
    """

    dim: Final = 128
    max_columns: Final = 64
    num_blocks: Final = 3

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = ColumnStem(self.max_columns, self.dim)
        self.blocks = nn.Sequential(*(MlpBlock(self.dim, dropout=dropout) for _ in range(self.num_blocks)))
        self.norm = nn.LayerNorm(self.dim)

    def forward(self, numeric: Tensor) -> Tensor:
        """numeric: float [B, N], N up to 64. Returns float [B, 128]."""
        features: Tensor = self.norm(self.blocks(self.stem(numeric)))
        return features
