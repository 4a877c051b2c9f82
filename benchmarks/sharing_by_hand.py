"""Probes of one backbone as a good engineer compares them without zoo: torch and timm, nothing else.

    python benchmarks/sharing_by_hand.py FOLDER WEIGHTS --seeds 6 --epochs 10 --out probes.json [--naive]

FOLDER holds train, val and test, and each of them a folder for each class. One pass in batches of 64 makes all
features; the linear heads of all seeds and learning rates then train at once, each seed in its own order. Validation
chooses a rate for each seed, and its head is scored on test. --naive is a loop that runs the frozen backbone for every
epoch, rate and seed. Writes the scores as JSON, of the naive loop with the CPU seconds of each epoch and scoring.

benchmarks/sharing.py runs it against `zoo bench`, both with malloc told to keep what is freed: MALLOC_MMAP_MAX_=0 and
MALLOC_TRIM_THRESHOLD_=100000000000.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

BATCH, PASS, DECAY, WARMUP, CLIP = 32, 64, 0.05, 0.1, 1.0
BETAS, EPS = (0.9, 0.999), 1e-8


class Photographs:
    """The photographs of a split and their labels, int64 [N]; pixels are decoded when they are asked for."""

    def __init__(self, folder: Path, transform: Any) -> None:
        classes = sorted(path.name for path in folder.iterdir())
        self.paths = [path for name in classes for path in sorted((folder / name).iterdir())]
        self.labels = torch.tensor([classes.index(path.parent.name) for path in self.paths])
        self.num_classes = len(classes)
        self._transform = transform

    def pixels(self, positions: Tensor) -> Tensor:
        """float [B, 3, H, W], channels last."""
        found = []
        for position in positions.tolist():
            with Image.open(self.paths[position]) as picture:
                found.append(self._transform(picture.convert("RGB")))
        return torch.stack(found).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def features_of(backbone: nn.Module, split: Photographs) -> Tensor:
    """float [N, D]."""
    places = torch.arange(len(split.paths)).split(PASS)
    return torch.cat([backbone(split.pixels(some)) for some in places])


def share_at(step: int, num_steps: int) -> float:
    """Of the learning rate at a step: a linear rise, then half of a cosine."""
    rising = round(WARMUP * num_steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (num_steps - rising)))


def heads_together(x_ND: Tensor, labels: Tensor, size: int, rates: Tensor, seeds: int, epochs: int) -> Tensor:
    """Trains S seeds times K rates of linear heads of C classes; their weights, the bias last, [S, D + 1, K, C]."""
    num, dim = x_ND.shape
    draws = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    first = [nn.init.trunc_normal_(torch.empty(dim, 1, size), std=0.02, generator=draw) for draw in draws]
    weight = torch.stack(first).expand(-1, -1, len(rates), -1).clone().requires_grad_()
    bias = torch.zeros(seeds, 1, len(rates), size, requires_grad=True)
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in (weight, bias)]
    rate_K1, step = rates[:, None], 0
    num_steps = epochs * math.ceil(num / BATCH)
    for _ in range(epochs):
        orders = torch.stack([torch.randperm(num, generator=draw) for draw in draws])
        for at in orders.split(BATCH, dim=1):
            logits = torch.bmm(x_ND[at], weight.flatten(2)).unflatten(2, weight.shape[2:]) + bias
            targets = labels[at][:, :, None].expand(-1, -1, len(rates))
            loss = nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="sum") / at.shape[1]
            gradients = torch.autograd.grad(loss, (weight, bias))
            square = sum(one.square().sum((1, 3), keepdim=True) for one in gradients)
            assert isinstance(square, Tensor)
            factor = (CLIP / (square.sqrt() + 1e-6)).clamp(max=1.0)
            now = rate_K1 * share_at(step, num_steps)
            step += 1
            with torch.no_grad():
                weight.mul_(1 - now * DECAY)
                for one, gradient, (mean, second) in zip((weight, bias), gradients, moments, strict=True):
                    gradient.mul_(factor)
                    mean.lerp_(gradient, 1 - BETAS[0])
                    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                    root = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPS)
                    one.sub_(now / (1 - BETAS[0] ** step) * mean / root)
    return torch.cat([weight, bias], dim=1).detach()


def accuracies(heads: Tensor, x_ND: Tensor, labels: Tensor) -> Tensor:
    """Of every head, float [S, K]."""
    logits = torch.einsum("nd,sdkc->nskc", x_ND, heads[:, :-1]) + heads[:, -1]
    return (logits.argmax(-1) == labels[:, None, None]).float().mean(0)


def naive(backbone: nn.Module, splits: dict[str, Photographs], rates: Tensor, seeds: int, epochs: int) -> Any:
    """A loop over seeds and rates; the CPU seconds of each epoch and of each scoring, and the scores."""
    seconds: dict[str, list[float]] = {"epochs": [], "scorings": []}
    found, train = [], splits["train"]
    for seed in range(seeds):
        for rate in rates.tolist():
            torch.manual_seed(seed)
            head = nn.Linear(int(getattr(backbone, "num_features", 0)), train.num_classes)
            optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=DECAY, fused=True)
            num_steps = epochs * math.ceil(len(train.paths) / BATCH)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(share_at, num_steps=num_steps))
            for _ in range(epochs):
                began = time.process_time()
                for at in torch.randperm(len(train.paths)).split(BATCH):
                    with torch.no_grad():
                        features = backbone(train.pixels(at))
                    loss = nn.functional.cross_entropy(head(features), train.labels[at])
                    optimiser.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(head.parameters(), CLIP)
                    optimiser.step()
                    schedule.step()
                seconds["epochs"].append(time.process_time() - began)
            began, val = time.process_time(), splits["val"]
            right = head(features_of(backbone, val)).argmax(1) == val.labels
            seconds["scorings"].append(time.process_time() - began)
            found.append({"seed": seed, "rate": rate, "val": float(right.float().mean())})
    return {"seconds": seconds, "probes": found}


def main() -> int:
    """Trains, chooses, scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path, help="folder of config.json and model.safetensors")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0004, 0.002, 0.01, 0.05])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    backbone: Any = timm.create_model(f"local-dir:{chosen.weights}", pretrained=True, num_classes=0).eval()
    backbone = backbone.requires_grad_(False).to(memory_format=torch.channels_last)
    config_of: Any = resolve_data_config  # timm gives it no types
    transform = create_transform(**config_of({}, model=backbone))
    splits = {name: Photographs(chosen.folder / name, transform) for name in ("train", "val", "test")}
    rates = torch.tensor(chosen.rates)
    if chosen.naive:
        setup = time.process_time()
        table = {**naive(backbone, splits, rates, chosen.seeds, chosen.epochs), "setup": setup}
    else:
        x = {name: features_of(backbone, split) for name, split in splits.items()}
        train = splits["train"]
        heads = heads_together(x["train"], train.labels, train.num_classes, rates, chosen.seeds, chosen.epochs)
        val, test = (accuracies(heads, x[name], splits[name].labels) for name in ("val", "test"))
        best = val.argmax(1)
        table = {"val": val.tolist(), "rate": rates[best].tolist(), "test": test[range(chosen.seeds), best].tolist()}
    chosen.out.write_text(json.dumps(table), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
