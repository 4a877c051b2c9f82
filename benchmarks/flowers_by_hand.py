"""A fine-tuning script for photographs as one writes it without zoo: torch, timm, torchvision, nothing else.

    python benchmarks/flowers_by_hand.py FOLDER WEIGHTS SPLIT.csv --rate 0.001 --epochs 3 --seed 0

Trains the last two blocks of mobilenetv2_100, what follows them, and a new classifier; keeps the epoch that is best on
validation, stores it, and prints its accuracy on test as JSON. benchmarks/flowers.py runs it against `zoo fit`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

SIZE, MEAN, STD = 128, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
BATCH, DECAY, WARMUP, CLIP, HEAD_FACTOR = 32, 0.05, 0.1, 1.0, 10
LAST_BLOCKS = ("blocks.5.2.", "blocks.6.0.", "conv_head.", "bn2.", "classifier.")


class Photographs(Dataset[tuple[Tensor, int]]):
    """The photographs of a split: `FOLDER/CLASS/NAME.jpg`."""

    def __init__(self, folder: Path, names: list[str], classes: list[str], transform: Callable[[object], Tensor]):
        self.paths = [folder / name for name in names]
        self.labels = [classes.index(Path(name).parts[0]) for name in names]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as picture:
            return self.transform(picture.convert("RGB")), self.labels[index]


def loaders(folder: Path, split: Path, seed: int) -> dict[str, DataLoader[tuple[Tensor, int]]]:
    """Shuffled and cropped at random for training, as they are for the rest."""
    rows = list(csv.DictReader(split.open(encoding="utf-8")))
    classes = sorted({Path(row["item"]).parts[0] for row in rows})
    ending = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transforms = {
        "train": v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.6, 1.0)), *ending]),
        "val": v2.Compose([v2.Resize((SIZE, SIZE)), *ending]),
    }
    found = {}
    for name in ("train", "val", "test"):
        names = [row["item"] for row in rows if row["split"] == name]
        photographs = Photographs(folder, names, classes, transforms.get(name, transforms["val"]))
        training = name == "train"
        generator = torch.Generator().manual_seed(seed)
        found[name] = DataLoader(photographs, BATCH if training else 64, shuffle=training, generator=generator)
    return found


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> float:
    """Share of the photographs that the model tells right, in evaluation mode."""
    model.eval()
    right, num = 0, 0
    for pixels, label in loader:
        right += int((model(pixels).argmax(1) == label).sum())
        num += len(label)
    return right / num


def train_mode(model: nn.Module) -> None:
    """Training mode for what trains; batch norms of frozen blocks keep their statistics."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        module.training = bool(own) and all(parameter.requires_grad for parameter in own)


def main() -> int:
    """Trains, stores, scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path, help="folder of config.json and model.safetensors")
    parser.add_argument("split", type=Path, help="CSV of item,split")
    parser.add_argument("--rate", type=float, required=True, help="of the blocks; the classifier has ten times that")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    data = loaders(chosen.folder, chosen.split, chosen.seed)

    model: Any = timm.create_model(f"local-dir:{chosen.weights}", pretrained=True, num_classes=5)
    model.classifier = nn.Linear(model.num_features, 5)
    nn.init.trunc_normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    model = model.to(memory_format=torch.channels_last)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(LAST_BLOCKS))
        if parameter.requires_grad:
            rate = chosen.rate * (HEAD_FACTOR if name.startswith("classifier.") else 1)
            groups.setdefault((rate, DECAY if parameter.ndim > 1 else 0.0), []).append(parameter)
    trained = [parameter for parameters in groups.values() for parameter in parameters]
    optimiser = torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()],
        fused=True,
    )
    num_steps: int = chosen.epochs * len(data["train"])
    rising = round(WARMUP * num_steps)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (num_steps - rising)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    best, kept = -1.0, dict[str, Tensor]()
    for _ in range(chosen.epochs):
        train_mode(model)
        for pixels, label in data["train"]:
            loss = nn.functional.cross_entropy(model(pixels.contiguous(memory_format=torch.channels_last)), label)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimiser.step()
            schedule.step()
        found = accuracy(model, data["val"])
        if found > best:
            best = found
            kept = {
                name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()
            }
    model.load_state_dict(kept)
    chosen.out.mkdir(parents=True, exist_ok=True)
    save_file(kept, chosen.out / "model.safetensors")
    print(json.dumps({"val": best, "test": accuracy(model, data["test"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
