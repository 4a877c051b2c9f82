"""Build and load from local safetensors, paired, as ratios: ViT-B/16 over timm, BERT-base over transformers.

    python benchmarks/weights.py [--pairs 7] [--architecture vit_base_patch16_224]

Both give a model without a classifier, filled from the same file of random values. timm: create_model with that file as
its pre-trained weights. zoo: the recipe's build, and the checks that zoo_core makes of any backbone (what it is, its
stages by one pass on the meta device). Whether all values are finite is looked at once for each file and then
remembered, as its hash is; the first time is printed too. BERT-base is compared with from_pretrained of transformers.
The pairs alternate which goes first; the file is in the page cache for both. Exits with 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from zoo_core.contracts import as_backbone
from zoo_core.toolkit.stages import groups
from zoo_timm.backbones import Timm

GATE = 0.05
BERT_GATE = 0.5


def main() -> int:
    """Prints the table; 0 if the gate holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs, at least 3")
    parser.add_argument("--architecture", default="vit_base_patch16_224")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZOO_CACHE"] = f"{folder}/zoo"  # what is remembered of files
        file = make_file(arguments.architecture, Path(folder))
        check(arguments.architecture, file)
        first = first_time(lambda: with_zoo(arguments.architecture, file))
        ratios, timm_ms, zoo_ms, parts = measure(arguments.architecture, file, max(3, arguments.pairs))
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} CPUs"
    )
    print(f"{arguments.architecture}: {len(ratios)} pairs, medians in ms")
    print(f"{'timm: create_model from the file':40}{statistics.median(timm_ms):9.1f}")
    print(f"{'zoo: build, load and checks':40}{statistics.median(zoo_ms):9.1f}")
    for name, times in parts.items():
        print(f"{'  of that, ' + name:40}{statistics.median(times):9.1f}")
    print(f"{'zoo: the first time, values looked at':40}{first:9.1f}")
    ratio = statistics.median(ratios)
    print(f"{'ratio':40}{ratio:9.3f}   {min(ratios):.3f} to {max(ratios):.3f}, gate {GATE}")
    bert = bert_base(max(3, arguments.pairs))
    return 0 if ratio <= GATE and bert <= BERT_GATE else 1


def bert_base(pairs: int) -> float:
    """Prints the rows of BERT-base and returns the ratio; both leave the tokeniser to its first use."""
    import transformers
    from tokenizers import Tokenizer, models

    from zoo_transformers.backbones import Transformers

    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZOO_CACHE"] = f"{folder}/zoo"
        torch.manual_seed(0)
        transformers.BertForPreTraining(transformers.BertConfig()).save_pretrained(folder)
        Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(f"{folder}/tokenizer.json")

        def theirs() -> nn.Module:
            model: nn.Module = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
            return model

        def ours() -> nn.Module:
            return Transformers(files=folder).build(Path(folder), "pretrained")

        backbone = ours()
        state = backbone.state_dict()
        assert all(torch.equal(state[f"model.{name}"], tensor) for name, tensor in theirs().state_dict().items())
        checks = milliseconds(lambda: [groups(backbone)])
        first = first_time(ours)
        taken: dict[Callable[[], nn.Module], list[float]] = {theirs: [], ours: []}
        for pair in range(pairs):
            for run in (theirs, ours) if pair % 2 else (ours, theirs):
                taken[run].append(milliseconds(run))
    ratios = [mine / other for mine, other in zip(taken[ours], taken[theirs], strict=True)]
    print(f"BERT-base, transformers {transformers.__version__}: {pairs} pairs, medians in ms")
    print(f"{'transformers: from_pretrained':40}{statistics.median(taken[theirs]):9.1f}")
    print(f"{'zoo: build and load':40}{statistics.median(taken[ours]):9.1f}")
    print(f"{'zoo: the first time, values looked at':40}{first:9.1f}")
    print(f"{'  besides: checks of stages':40}{checks:9.1f}")
    ratio = statistics.median(ratios)
    print(f"{'ratio':40}{ratio:9.3f}   {min(ratios):.3f} to {max(ratios):.3f}, gate {BERT_GATE}")
    return ratio


def make_file(architecture: str, folder: Path) -> Path:
    """A safetensors file with a classifier, as the Hub has them, and random values."""
    torch.manual_seed(0)
    file = folder / "model.safetensors"
    save_file(timm.create_model(architecture).state_dict(), file)
    return file


def with_timm(architecture: str, file: Path) -> nn.Module:
    """What a user of timm writes."""
    overlay = {"file": str(file), "num_classes": 1000, "custom_load": False}
    return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)


def with_zoo(architecture: str, file: Path, parts: dict[str, list[float]] | None = None) -> nn.Module:
    """What zoo does once the file is there: build, load, check."""
    start = time.perf_counter()
    backbone = Timm(name=architecture).build(file.parent, "pretrained")
    built = time.perf_counter()
    backbone.requires_grad_(False)
    backbone.eval()
    groups(backbone)
    if parts is not None:
        parts["build and load"].append(1000 * (built - start))
        parts["checks of stages"].append(1000 * (time.perf_counter() - built))
    return backbone


def check(architecture: str, file: Path) -> None:
    """So that what is fast is also right: the same features, bit for bit."""
    theirs, ours = with_timm(architecture, file).eval(), with_zoo(architecture, file)
    pixels = torch.randn_like(as_backbone(ours).preparation.dummy(1)["pixel_values"])
    with torch.no_grad():
        features = as_backbone(ours)({"pixel_values": pixels})
        assert torch.equal(as_backbone(ours).pool(features), theirs(pixels))


def measure(
    architecture: str, file: Path, pairs: int
) -> tuple[list[float], list[float], list[float], dict[str, list[float]]]:
    """The ratio of each pair, and the milliseconds of timm, of zoo and of zoo's parts."""
    parts: dict[str, list[float]] = {"build and load": [], "checks of stages": []}
    theirs: list[float] = []
    ours: list[float] = []

    def run_timm() -> nn.Module:
        return with_timm(architecture, file)

    def run_zoo() -> nn.Module:
        return with_zoo(architecture, file, parts)

    for pair in range(pairs):
        order: list[tuple[Callable[[], nn.Module], list[float]]] = [(run_timm, theirs), (run_zoo, ours)]
        for run, times in order if pair % 2 else reversed(order):
            times.append(milliseconds(run))
    return [zoo / other for zoo, other in zip(ours, theirs, strict=True)], theirs, ours, parts


def first_time(run: Callable[[], object]) -> float:
    """Median milliseconds of five runs, each with nothing remembered of the file."""
    times = []
    for _ in range(5):
        shutil.rmtree(os.environ["ZOO_CACHE"], ignore_errors=True)
        times.append(milliseconds(run))
    return statistics.median(times)


def milliseconds(run: Callable[[], object]) -> float:
    """Wall time of a run; what it built is freed outside of it."""
    start = time.perf_counter()
    model = run()
    spent = 1000 * (time.perf_counter() - start)
    del model
    return spent


if __name__ == "__main__":
    sys.exit(main())
