"""Prints the few-shot accuracy of frozen features on scikit-learn's digits: python evaluate.py DIR [--test].

Without --test every figure is on the 300 validation images, and this is what recipe and seed are chosen by. With --test
the 600 test images are read, with C and the scaling of the features as they are best on validation; nothing is chosen
by them. DIR holds the files that pretrain.py wrote. --tune trains all weights on ten shots instead.
"""

import argparse
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.torch
import sklearn
import torch
from pretrain import NETWORKS, normalise, pool
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from zoo_starter.digits_split import split_digits

SHOTS: Final = (1, 5, 10)
NUM_DRAWS: Final = 20
INVERSE_PENALTIES: Final = (0.01, 0.1, 1.0, 10.0, 100.0)
LEARNING_RATES: Final = (3e-4, 1e-3, 3e-3)
NUM_TUNE_STEPS: Final = 100
NUM_TUNE_DRAWS: Final = 5
TUNE_BATCH_SIZE: Final = 50


@dataclass(frozen=True)
class Digits:
    """pixels: uint8 [1797, 8, 8], 0 to 255. targets: int64 [1797]. splits: indices by name."""

    pixels: np.ndarray
    targets: np.ndarray
    splits: Mapping[str, np.ndarray]


def read_digits() -> Digits:
    """The digits with their 17 grey levels spread over 0 to 255, and the split of the task."""
    images, targets = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return Digits(pixels, targets.astype(np.int64), split_digits(targets))


def enlarge(digits: Digits) -> Tensor:
    """pixel_values float32 [1797, 3, 32, 32]: bilinear from 8 x 8, normalised as in pre-training."""
    small = torch.from_numpy(digits.pixels).float()[:, None] / 255
    return normalise(functional.interpolate(small, size=32, mode="bilinear", align_corners=False))


def shot_draws(digits: Digits, shots: int) -> Iterator[np.ndarray]:
    """Indices [10 * shots] from the training part, a fresh draw each time, the same for everything compared."""
    train = digits.splits["train"]
    for draw in range(NUM_DRAWS):
        rng = np.random.RandomState(1000 * shots + draw)
        per_class = [train[digits.targets[train] == label] for label in range(10)]
        yield np.concatenate([rng.choice(members, shots, replace=False) for members in per_class])


def unit(features: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Every row at length 1, times 4: near the scale at which the grid of C is useful."""
    return np.asarray(4 * features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-8))


def standard(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 as measured on the shots, divided by the root of the width, times 4."""
    mean, deviation = features[rows].mean(0), features[rows].std(0)
    scaled = (features - mean) / np.maximum(deviation, 1e-2 * max(float(deviation.max()), 1e-8))
    return np.asarray(4 * scaled / np.sqrt(features.shape[1]))


SCALINGS: Final[Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {"unit": unit, "standard": standard}


def accuracy(digits: Digits, features: np.ndarray, rows: np.ndarray, penalty: float) -> dict[str, float]:
    """Per cent right on validation and test of a logistic regression fitted on the given rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=penalty, max_iter=200).fit(features[rows], digits.targets[rows])
    return {
        name: 100 * float((model.predict(features[part]) == digits.targets[part]).mean())
        for name, part in digits.splits.items()
        if name != "train"
    }


def probe(digits: Digits, features: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
    """Accuracies [draws] by shots and split, at the C and the scaling that are best on validation over all draws."""
    result = {}
    for shots in SHOTS:
        tried = []
        for scaling in SCALINGS.values():
            draws = [(rows, scaling(features, rows)) for rows in shot_draws(digits, shots)]
            for penalty in INVERSE_PENALTIES:
                scores = [accuracy(digits, scaled, rows, penalty) for rows, scaled in draws]
                tried.append({name: np.array([score[name] for score in scores]) for name in scores[0]})
        result[shots] = max(tried, key=lambda one: float(one["validation"].mean()))
    return result


@torch.no_grad()
def pooled_features(name: str, network: nn.Module, pixel_values: Tensor) -> np.ndarray:
    """Frozen features [1797, D], mean over tokens or map."""
    network.eval()
    return torch.cat([pool(name, network(part)) for part in torch.split(pixel_values, 128)]).double().numpy()


def load(name: str, path: Path) -> nn.Module:
    """The network with the weights of a file, widened to float32."""
    network = NETWORKS[name]()
    network.load_state_dict(safetensors.torch.load_file(path))
    return network


def fresh(name: str, seed: int) -> nn.Module:
    """The network as its constructor initialises it."""
    torch.manual_seed(seed)
    return NETWORKS[name]()


def tuned_accuracy(
    name: str, network: nn.Module, digits: Digits, pixel_values: Tensor, rows: np.ndarray, lr: float
) -> dict[str, float]:
    """Per cent right after all weights were trained on the given rows: AdamW, one cycle, no augmentation."""
    torch.manual_seed(0)
    head = nn.Linear(NETWORKS[name].dim, 10)
    parameters = [*network.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=NUM_TUNE_STEPS, pct_start=0.15)
    shots, targets = pixel_values[rows], torch.from_numpy(digits.targets[rows])
    network.train()
    for _ in range(NUM_TUNE_STEPS):
        picked = torch.randperm(len(rows))[:TUNE_BATCH_SIZE]
        loss = functional.cross_entropy(head(pool(name, network(shots[picked]))), targets[picked])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        predicted = head(torch.from_numpy(pooled_features(name, network, pixel_values)).float()).argmax(1).numpy()
    right = predicted == digits.targets
    return {split: 100 * float(right[part].mean()) for split, part in digits.splits.items() if split != "train"}


def tune(name: str, path: Path | None, digits: Digits) -> tuple[float, dict[str, np.ndarray]]:
    """The learning rate that is best on validation over all draws of ten shots, and its accuracies [draws] by split."""
    pixel_values, tried = enlarge(digits), {}
    for lr in LEARNING_RATES:
        scores = []
        for draw, rows in zip(range(NUM_TUNE_DRAWS), shot_draws(digits, 10), strict=False):
            network = load(name, path) if path else fresh(name, draw)
            scores.append(tuned_accuracy(name, network, digits, pixel_values, rows, lr))
        tried[lr] = {split: np.array([score[split] for score in scores]) for split in scores[0]}
    best = max(tried, key=lambda lr: float(tried[lr]["validation"].mean()))
    return best, tried[best]


def spread(scores: np.ndarray) -> str:
    """Mean and standard deviation over draws."""
    return f"{scores.mean():.1f} +- {scores.std(ddof=1):.1f}"


def print_row(source: str, result: Mapping[int, Mapping[str, np.ndarray]], split: str) -> None:
    """One row of the table, printed as soon as it is known."""
    cells = [spread(result[shots][split]) for shots in SHOTS]
    print(f"| {source} | {' | '.join(cells)} | {np.mean([result[s][split].mean() for s in SHOTS]):.2f} |", flush=True)


def probe_table(name: str, directory: Path, digits: Digits, split: str) -> None:
    """Rows of one network: at random initialisation (three seeds), then every file of the folder, rounded and not."""
    pixel_values = enlarge(digits)
    for seed in range(3):
        features = pooled_features(name, fresh(name, seed), pixel_values)
        print_row(f"{name}, random, seed {seed}", probe(digits, features), split)
    for path in sorted(directory.glob(f"{name}*.safetensors")):
        rounded = pooled_features(name, load(name, path), pixel_values)
        print_row(f"{name}, pre-trained, {path.stem}", probe(digits, rounded), split)
        exact = path.with_suffix(".float32")
        if exact.exists():
            unrounded = pooled_features(name, load(name, exact), pixel_values)
            print_row(f"{name}, pre-trained, {path.stem}, not rounded", probe(digits, unrounded), split)


def main() -> None:
    """Prints one row per source of features, with the columns shots 1, 5, 10 and their mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--test", action="store_true", help="read the test images; once, at the end")
    parser.add_argument("--only", choices=["pixels", "convnet-nano", "vit-nano"], help="one part of the table")
    parser.add_argument("--tune", action="store_true", help="train all weights on ten shots instead of probing")
    options = parser.parse_args()
    split = "test" if options.test else "validation"
    torch.set_num_threads(1)
    digits = read_digits()
    print(f"{split}; torch {torch.__version__}, scikit-learn {sklearn.__version__}, numpy {np.__version__}", end="; ")
    print(f"Python {platform.python_version()}, {platform.machine()}, 1 thread")
    if options.only in (None, "pixels") and not options.tune:
        print_row("raw pixels, 8 x 8", probe(digits, digits.pixels.reshape(-1, 64) / 255.0), split)
    for name in NETWORKS if options.only is None else [options.only]:
        if name == "pixels":
            continue
        if not options.tune:
            probe_table(name, options.directory, digits, split)
            continue
        for path in [None, *sorted(options.directory.glob(f"{name}*.safetensors"))]:
            lr, scores = tune(name, path, digits)
            source = path.stem if path else "from scratch"
            print(f"| {name}, all weights, {source}, lr {lr:g} | {spread(scores[split])} |", flush=True)


if __name__ == "__main__":
    main()
