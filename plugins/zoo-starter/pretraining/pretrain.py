"""Pre-trains one of the two networks on drawn glyphs: python pretrain.py vit-nano --seed 0 --out DIR.

Writes DIR/NAME-seed-S.safetensors (half precision), the same unrounded as .float32, and DIR/NAME-seed-S.json (recipe,
losses, seconds). Digits are never read here. One seed on one machine and one number of threads gives one file.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from glyphs import Drawings, draw, scan
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from zoo_starter.networks import ConvNetNano, VitNano

NETWORKS: Final[Mapping[str, type[ConvNetNano] | type[VitNano]]] = {"convnet-nano": ConvNetNano, "vit-nano": VitNano}
# Of 2,048 scanned drawings: mean 0.242, standard deviation 0.322. Not of the digits.
MEAN: Final = 0.25
STD: Final = 0.32


@dataclass(frozen=True)
class PretrainRecipe:
    """What a pre-training run does; chosen on the validation part of the digits, see RESULTS.md."""

    num_steps: int = 3000
    num_images: int = 98304
    num_invented: int = 1000
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    projection_dim: int = 128
    scale: float = 16.0


class CosineClassifier(nn.Module):
    """Logits as scaled cosines between a projection of the pooled features and one vector per class; thrown away."""

    def __init__(self, dim: int, num_classes: int, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, recipe.projection_dim, bias=False)
        self.classes = nn.Parameter(torch.randn(num_classes, recipe.projection_dim))
        self.scale = recipe.scale

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """pooled_BD: float [B, D]. Returns logits, float [B, C]."""
        projected = functional.normalize(self.projection(pooled_BD), dim=-1)
        return self.scale * projected @ functional.normalize(self.classes, dim=-1).T


def pool(name: str, features: Tensor) -> Tensor:
    """Mean over tokens [B, T, D] or over a map [B, D, H, W]; float [B, D]."""
    return features.mean(1) if name == "vit-nano" else features.mean((2, 3))


def normalise(image: Tensor) -> Tensor:
    """Grey images float [B, 1, 32, 32] in 0..1 to pixel_values float [B, 3, 32, 32]."""
    return ((image - MEAN) / STD).expand(-1, 3, -1, -1)


def cached_drawings(recipe: PretrainRecipe, seed: int, cache: Path | None) -> Drawings:
    """The drawings of this seed, from the cache where they are there; None draws them anew."""
    arguments = {"num_images": recipe.num_images, "num_invented": recipe.num_invented, "seed": seed}
    if cache is None:
        return draw(**arguments)
    path = cache / ("drawings-" + "-".join(str(value) for value in arguments.values()) + ".pt")
    if not path.exists():
        drawings = draw(**arguments)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(asdict(drawings), path)
    return Drawings(**torch.load(path))


def parameter_groups(*modules: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices and filters decay, vectors do not."""
    parameters = [p for module in modules for p in module.parameters()]
    matrices = [p for p in parameters if p.squeeze().ndim > 1]
    vectors = [p for p in parameters if p.squeeze().ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def train(name: str, recipe: PretrainRecipe, drawings: Drawings, seed: int) -> tuple[nn.Module, list[float]]:
    """The trained network, and its mean loss over each tenth of the steps."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    network = NETWORKS[name]()
    classifier = CosineClassifier(network.dim, drawings.num_classes, recipe)
    groups = parameter_groups(network, classifier, weight_decay=recipe.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.lr, total_steps=recipe.num_steps, pct_start=0.15
    )
    losses = torch.zeros(recipe.num_steps)
    order = torch.empty(0, dtype=torch.long)
    network.train()
    for step in range(recipe.num_steps):
        if len(order) < recipe.batch_size:
            order = torch.randperm(len(drawings.images), generator=rng)
        rows, order = order[: recipe.batch_size], order[recipe.batch_size :]
        pixel_values = normalise(scan(drawings.images[rows], rng))
        logits = classifier(pool(name, network(pixel_values)))
        loss = functional.cross_entropy(logits, drawings.classes[rows], label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses[step] = loss.detach()
        if step % (recipe.num_steps // 10) == 0:
            print(f"step {step} loss {losses[max(step - 50, 0) : step + 1].mean():.3f}", flush=True)
    return network.eval(), [round(float(part.mean()), 4) for part in losses.tensor_split(10)]


def write(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Saves the state, its floating point numbers rounded to `dtype`; the count of batches stays an integer."""
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file({name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}, path)


def main() -> None:
    """Draws, trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=None, help="keep drawings here (default: draw anew)")
    parser.add_argument("--threads", type=int, default=1)
    defaults = PretrainRecipe()
    for field, value in asdict(defaults).items():
        parser.add_argument("--" + field.replace("_", "-"), type=type(value), default=value)
    options = parser.parse_args()
    recipe = PretrainRecipe(**{field: getattr(options, field) for field in asdict(defaults)})
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    drawings = cached_drawings(recipe, options.seed, options.cache)
    drawn = time.perf_counter()
    network, losses = train(options.network, recipe, drawings, options.seed)
    report = {
        "network": options.network,
        "seed": options.seed,
        "threads": options.threads,
        "torch": torch.__version__,
        "draw_seconds": round(drawn - start),
        "train_seconds": round(time.perf_counter() - drawn),
        "loss_by_tenth": losses,
        "recipe": asdict(recipe),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.network}-seed-{options.seed}.safetensors"
    write(network, path, torch.float16)
    write(network, path.with_suffix(".float32"), torch.float32)
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
