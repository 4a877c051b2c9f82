"""Two small networks in plain torch, for images of 32 x 32: a vision transformer and a residual convnet.

Both read `stem`, then `blocks` (the stages, each called once, in order, with the hidden state), then `norm`. Neither
has a head. Axes: B batch, T tokens, D width, H W rows and columns.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ConvNetNano", "VitNano"]


class DropPath(nn.Module):
    """Leaves out a residual branch for whole examples while training, and scales the others up.

    Source: Huang et al. 2016, with the scaling of timm.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, ...]. Returns the same shape."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value."""

    def __init__(self, dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """x_BTD: float [B, T, D]. Returns float [B, T, D]."""
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out_BTD: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out_BTD


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, *, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """x_BTD: float [B, T, D]. Returns float [B, T, D]."""
        out_BTD: Tensor = self.drop2(self.fc2(self.drop1(self.act(self.fc1(x_BTD)))))
        return out_BTD


class TransformerBlock(nn.Module):
    """Attention and MLP, each on a normalised copy and added back (pre-norm)."""

    def __init__(self, dim: int, *, num_heads: int, hidden_dim: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads=num_heads, dropout=dropout)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim=hidden_dim, dropout=dropout)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """x_BTD: float [B, T, D]. Returns float [B, T, D]."""
        x_BTD = x_BTD + self.drop_path1(self.attn(self.norm1(x_BTD)))
        out_BTD: Tensor = x_BTD + self.drop_path2(self.mlp(self.norm2(x_BTD)))
        return out_BTD


class TokenStem(nn.Module):
    """Four convolutions, from 32 x 32 pixels to 4 x 4 tokens, plus a learned position for each.

    Source: Xiao et al. 2021, "Early convolutions help transformers see better".
    """

    def __init__(self, dim: int, *, num_tokens: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *convolution(3, dim // 4, stride=2),
            nn.ReLU(),
            *convolution(dim // 4, dim // 2, stride=2),
            nn.ReLU(),
            *convolution(dim // 2, dim // 2, stride=1),
            nn.ReLU(),
            *convolution(dim // 2, dim, stride=2),
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, dim))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: float [B, 3, 32, 32]. Returns float [B, T, D], row-major."""
        x_BDHW: Tensor = self.convs(pixel_values)
        return x_BDHW.flatten(2).transpose(1, 2) + self.pos_embed


class VitNano(nn.Module):
    """A vision transformer: 16 tokens of width 96, 4 pre-norm blocks, 3 heads; no class token, so pool by the mean.

    Dropout and drop-path are off unless asked for. Drop-path is the same in every block.
    """

    dim: Final = 96
    num_tokens: Final = 16
    num_heads: Final = 3
    num_blocks: Final = 4

    def __init__(self, *, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.stem = TokenStem(self.dim, num_tokens=self.num_tokens)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(
                    self.dim, num_heads=self.num_heads, hidden_dim=3 * self.dim, dropout=dropout, drop_path=drop_path
                )
                for _ in range(self.num_blocks)
            )
        )
        self.norm = nn.LayerNorm(self.dim)
        self.apply(initialise)
        # As large as half of what BatchNorm puts out: the mean over tokens sees a place only through the blocks.
        nn.init.trunc_normal_(self.stem.pos_embed, std=0.5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: float [B, 3, 32, 32], normalised. Returns tokens, float [B, 16, 96], row-major."""
        x_BTD: Tensor = self.norm(self.blocks(self.stem(pixel_values)))
        return x_BTD


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, added to a shortcut; a stride or a new width gives the shortcut weights.

    Source: He et al. 2016, with average pooling before the 1 x 1 shortcut (He et al. 2019, ResNet-D).
    """

    def __init__(self, dim_in: int, dim_out: int, *, hidden_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, hidden_dim, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden_dim)
        self.conv2 = nn.Conv2d(hidden_dim, dim_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim_out)
        self.shortcut = nn.Sequential() if stride == 1 and dim_in == dim_out else shortcut(dim_in, dim_out, stride)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """x_BDHW: float [B, D, H, W]. Returns float [B, D', H / stride, W / stride], not negative."""
        y_BDHW = functional.relu(self.bn1(self.conv1(x_BDHW)))
        return functional.relu(self.bn2(self.conv2(y_BDHW)) + self.shortcut(x_BDHW))


class ConvNetNano(nn.Module):
    """A residual convnet: 16 x 16 x 32 after the stem, then four blocks of two convolutions, to a map of 4 x 4 x 128.

    The last block ends in a ReLU, so `norm` does nothing; it is there so that both networks have the same three parts.
    """

    dim: Final = 128
    map_size: Final = 4

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(
            ResidualBlock(32, 64, hidden_dim=64, stride=2),
            ResidualBlock(64, 64, hidden_dim=32, stride=1),
            ResidualBlock(64, 128, hidden_dim=128, stride=2),
            ResidualBlock(128, 128, hidden_dim=64, stride=1),
        )
        self.norm = nn.Identity()
        self.apply(initialise)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: float [B, 3, 32, 32], normalised. Returns a map, float [B, 128, 4, 4], not negative."""
        x_BDHW: Tensor = self.norm(self.blocks(self.stem(pixel_values)))
        return x_BDHW


def convolution(dim_in: int, dim_out: int, *, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A 3 x 3 convolution and its BatchNorm."""
    return nn.Conv2d(dim_in, dim_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(dim_out)


def shortcut(dim_in: int, dim_out: int, stride: int) -> nn.Sequential:
    """Average pooling, a 1 x 1 convolution and BatchNorm."""
    return nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(dim_in, dim_out, 1, bias=False), nn.BatchNorm2d(dim_out))


def initialise(module: nn.Module) -> None:
    """Truncated normal of 0.02 for linear layers, Kaiming's for convolutions (inputs counted), zero for biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
