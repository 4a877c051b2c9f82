"""Features of photographs under several networks as one writes it without zoo: torch, timm, Pillow, nothing else.

    python benchmarks/rank_by_hand.py FOLDER IDS.txt OUT.pt NETWORK... --threads 1

Each photograph is decoded once, as uint8, and each network sees all of them, in batches of 64 and evaluation mode; what
is stored is its pooled output before the classifier. Of NETWORK@LEVEL it is the mean over the map that timm's own
features (features_only) give at that level, in a pass of its own that ends there. benchmarks/rank.py runs it against
`zoo rank`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

SIZE, BATCH = 128, 64


def main() -> int:
    """Stores the features by the name of the network's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("ids", type=Path, help="a file with a photograph on each line")
    parser.add_argument("out", type=Path)
    parser.add_argument("networks", nargs="+", help="folders of config.json, and weights if there are any; with @LEVEL")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    names = chosen.ids.read_text(encoding="utf-8").splitlines()
    pixels = torch.stack([decoded(chosen.folder / name) for name in names])
    torch.save({Path(network).name: features(network, pixels) for network in chosen.networks}, chosen.out)
    return 0


def decoded(path: Path) -> Tensor:
    """uint8 [3, SIZE, SIZE]."""
    with Image.open(path) as picture:
        found = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(found).copy()).permute(2, 0, 1)


@torch.inference_mode()
def features(network: str, pixels: Tensor) -> Tensor:
    """float32 [N, D]."""
    folder, _, level = network.partition("@")
    has_weights = (Path(folder) / "model.safetensors").exists()
    ends = {"features_only": True, "out_indices": (int(level),)} if level else {"num_classes": 0}
    torch.manual_seed(0)
    model = timm.create_model(f"local-dir:{folder}", pretrained=has_weights, **ends).eval()
    read: Any = model.pretrained_cfg
    mean, std = (torch.tensor(read[name]).view(3, 1, 1) for name in ("mean", "std"))
    found = (model((batch.float() / 255 - mean) / std) for batch in pixels.split(BATCH))
    return torch.cat([maps[0].mean((2, 3)) if level else maps for maps in found])


if __name__ == "__main__":
    sys.exit(main())
