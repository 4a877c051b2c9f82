"""Pictures of pen strokes: draws each skeleton again and again, a little differently, and scans the drawings badly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from skeletons import LETTERS, SIGNS, Skeleton, alphabet
from torch import Tensor
from torch.nn import functional

IMAGE_PX: Final = 32
NUM_SAMPLES: Final = 40
NUM_WRITTEN: Final = len(LETTERS) + len(SIGNS)
SMALLEST_SCAN_PX: Final = 8
SMALLEST_SCAN_LEVELS: Final = 16
UPSAMPLING: Final = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class Drawings:
    """Clean drawings: images uint8 [N, 32, 32], ink is bright; classes int64 [N]."""

    images: Tensor
    classes: Tensor
    num_classes: int


def uniform(shape: Sequence[int], low: float, high: float, rng: torch.Generator) -> Tensor:
    """Uniform float32 numbers from the given generator."""
    return torch.rand(*shape, generator=rng) * (high - low) + low


def normal(shape: Sequence[int], scale: float, rng: torch.Generator) -> Tensor:
    """Normal float32 numbers of the given standard deviation."""
    return torch.randn(*shape, generator=rng) * scale


def turn(angles: Tensor) -> Tensor:
    """Rotation matrices [..., 2, 2] for angles [...] in radians."""
    cosine, sine = torch.cos(angles), torch.sin(angles)
    return torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)


def pen_paths(skeleton: Skeleton, num: int, rng: torch.Generator) -> Tensor:
    """The path of the pen, float32 [num, P, 2], each written anew: points, strokes and line move a little."""
    controls = torch.from_numpy(skeleton.controls)
    strokes = torch.from_numpy(skeleton.strokes)
    num_strokes = int(strokes[-1]) + 1
    moved = controls + normal((num, len(controls), 2), 0.07, rng)
    path = torch.from_numpy(skeleton.curve) @ moved
    centres = torch.stack([path[:, strokes == k].mean(1) for k in range(num_strokes)], 1)
    affine = turn(normal((num, num_strokes), 0.10, rng)) * (1 + normal((num, num_strokes, 1, 2), 0.10, rng))
    shift = normal((num, num_strokes, 2), 0.07, rng)
    offset = path - centres[:, strokes]
    path = (affine[:, strokes] @ offset.unsqueeze(-1)).squeeze(-1) + (centres + shift)[:, strokes]
    along = torch.linspace(0, 1, path.shape[1])[:, None]
    for low, high in ((0.5, 1.5), (1.5, 4.0)):
        wave = uniform((num, 1, 2), low, high, rng) * along + uniform((num, 1, 2), 0, 1, rng)
        path = path + torch.sin(2 * math.pi * wave) * normal((num, 1, 2), 0.03, rng)
    return path


def distort(path: Tensor, rng: torch.Generator) -> Tensor:
    """Warps, slants, rotates and stretches glyphs, float32 [N, P, 2]; afterwards they fit -1 to 1, aspect kept."""
    num = len(path)
    for _ in range(2):
        wave = (path * uniform((num, 1, 2), 0.5, 2.5, rng)).sum(-1, keepdim=True) + uniform((num, 1, 2), 0, 6.3, rng)
        path = path + torch.sin(wave) * normal((num, 1, 2), 0.09, rng)
    slant = torch.eye(2).repeat(num, 1, 1)
    slant[:, 0, 1] = normal((num,), 0.22, rng)
    stretch = torch.stack([torch.exp(uniform((num,), -0.5, 0.2, rng)), torch.ones(num)], -1)
    matrix = turn(normal((num,), 0.13, rng)) @ slant * stretch[:, None, :]
    path = path @ matrix.transpose(1, 2)
    low, high = path.amin(1, keepdim=True), path.amax(1, keepdim=True)
    return (path - (low + high) / 2) / ((high - low).amax(2, keepdim=True) / 2).clamp(min=0.3)


def place(path: Tensor, radius_px: Tensor, rng: torch.Generator) -> Tensor:
    """Pixel coordinates [N, P, 2]: three quarters fill the box, as scanned characters do; the rest is smaller."""
    num = len(path)
    room = IMAGE_PX / 2 - radius_px.clamp(max=4)
    fills = torch.rand(num, generator=rng) < 0.75
    scale = torch.where(fills, uniform((num,), 0.9, 1.05, rng), uniform((num,), 0.55, 0.9, rng))
    half = path.abs().amax(1) * (room * scale)[:, None]
    free = (IMAGE_PX / 2 - half).clamp(min=0.5)
    shift = normal((num, 2), 0.35, rng).clamp(-1, 1) * free
    return path * (room * scale)[:, None, None] + shift[:, None] + IMAGE_PX / 2


def rasterise(path: Tensor, joined: Tensor, radius_px: Tensor) -> Tensor:
    """Draws lines of a round pen.

    path: float32 [N, P, 2] in px. joined: bool [N, P - 1], true where the pen stays down. radius_px: float32 [N].
    Returns uint8 [N, 32, 32], the edge one pixel soft.
    """
    start = path[:, :-1]
    span = (path[:, 1:] - start) * joined[..., None]
    squared = span.square().sum(-1).clamp(min=1e-6)
    centres = torch.arange(IMAGE_PX) + 0.5
    x, y = (centres - start[..., k, None] for k in range(2))
    along = (x * span[..., 0, None])[..., None, :] + (y * span[..., 1, None])[..., None]
    t = (along / squared[..., None, None]).clamp_(0, 1)
    along = (t * squared[..., None, None]).sub_(along, alpha=2).mul_(t)
    distance = along.add_(x.square()[..., None, :]).add_(y.square()[..., None]).amin(1).clamp_(min=0).sqrt_()
    ink = (radius_px[:, None, None] - distance + 0.5).clamp(0, 1)
    return (ink * 255).round().to(torch.uint8)


def draw(*, num_images: int, num_invented: int, seed: int, chunk: int = 16) -> Drawings:
    """Clean drawings, half of them of written glyphs and half of invented ones, in random order.

    The pen is 2 to 8 px wide. The same arguments give the same pictures.
    """
    rng = torch.Generator().manual_seed(seed)
    ways = alphabet(num_invented, NUM_SAMPLES, seed=1000 + seed)
    num_written = num_images // 2 if num_invented else num_images
    written = torch.randint(0, NUM_WRITTEN, (num_written,), generator=rng)
    invented = torch.randint(NUM_WRITTEN, max(len(ways), NUM_WRITTEN + 1), (num_images - num_written,), generator=rng)
    classes = torch.cat([written, invented])
    classes = classes[torch.randperm(num_images, generator=rng)]
    pick = torch.rand(num_images, generator=rng)
    path = torch.empty(num_images, NUM_SAMPLES, 2)
    joined = torch.empty(num_images, NUM_SAMPLES - 1, dtype=torch.bool)
    for label, skeletons in enumerate(ways):
        rows = (classes == label).nonzero()[:, 0]
        variant = (pick[rows] * len(skeletons)).long()
        for k, skeleton in enumerate(skeletons):
            chosen = rows[variant == k]
            path[chosen] = pen_paths(skeleton, len(chosen), rng)
            strokes = torch.from_numpy(skeleton.strokes)
            joined[chosen] = strokes[1:] == strokes[:-1]
    radius = uniform((num_images,), 1.0, 4.0, rng)
    path = place(distort(path, rng), radius, rng)
    parts = zip(torch.split(path, chunk), torch.split(joined, chunk), torch.split(radius, chunk), strict=True)
    images = torch.cat([rasterise(*part) for part in parts])
    return Drawings(images, classes, len(ways))


def resample(image: Tensor, size_px: int, levels: int, mode: str) -> Tensor:
    """Pools images [N, 1, 32, 32] in 0..1 to a small scan with that many grey steps, and enlarges it again."""
    small = functional.adaptive_avg_pool2d(image, size_px)
    small = (small * levels).round() / levels
    align = None if mode == "nearest" else False
    return functional.interpolate(small, size=IMAGE_PX, mode=mode, align_corners=align).clamp(0, 1)


def scan(drawings: Tensor, rng: torch.Generator) -> Tensor:
    """Bad scans of clean drawings, uint8 [N, 32, 32] to float32 [N, 1, 32, 32] in 0..1.

    Half of the images become 8 x 8 with 17 grey levels, a quarter 10 to 16 px, the rest stays; then gamma, contrast and
    noise. The proportions follow what the target looks like, which the model's record says openly.
    """
    num = len(drawings)
    image = drawings.float()[:, None] / 255
    order = torch.randperm(num, generator=rng)
    sharp = torch.rand(num, 1, 1, 1, generator=rng) < 0.7
    image = torch.where(sharp, (image > 0.5).float(), image)
    result = image.clone()
    half, quarter = num // 2, num // 4
    for mode, rows in zip(UPSAMPLING, order[:half].tensor_split(len(UPSAMPLING)), strict=True):
        result[rows] = resample(image[rows], SMALLEST_SCAN_PX, SMALLEST_SCAN_LEVELS, mode)
    for rows in order[half : half + quarter].tensor_split(4):
        size = int(torch.randint(10, 17, (), generator=rng))
        mode = UPSAMPLING[int(torch.randint(0, 3, (), generator=rng))]
        result[rows] = resample(image[rows], size, 255, mode)
    gamma = torch.exp(normal((num, 1, 1, 1), 0.25, rng))
    contrast = uniform((num, 1, 1, 1), 0.7, 1.0, rng)
    noise = uniform((num, 1, 1, 1), 0.0, 0.06, rng) * torch.randn(result.shape, generator=rng)
    return (result.clamp(min=1e-4) ** gamma * contrast + noise).clamp(0, 1)
