"""What adapters cost, paired, as ratios: training steps, merged inference, the frozen prefix, and loading one.

    python benchmarks/adapters.py [--pairs 9] [--threads 2] [--batch-size 8] [--only lora,merged,prefix,memory,loading]
    python benchmarks/adapters.py --threads 1 --cpu-time  # on a machine that others use too

Steps are whole ones: forward, loss, backward, AdamW, on one batch. The other side is what its users write: peft's own
wrapped model in a plain loop; the plain model; a loop with the frozen prefix under no_grad. Both start from the same
values, and their losses are compared before anything is timed. The sides of a pair follow each other, and alternate who
is first. Peak memory is that of the tensors that a step allocates, by torch's profiler, which is exact, and talks on
stderr. Exits with 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zoo_core
from zoo_adapters.lora import Lora
from zoo_core.contracts import Batch, Context
from zoo_core.model.learner import Learner

STEP_GATE, MERGED_GATE, LOADING_GATE_MS = 1.05, 1.02, 50.0
CLASSES, RATE, DECAY = 10, 1e-3, 0.05
SMALL, BASE = "timm/vit_small_patch16_224", "timm/vit_base_patch16_224"
SECTIONS = ("lora", "merged", "prefix", "memory", "loading")

Run = Callable[[], Tensor]  # one step or one pass; gives its loss, or its predictions


def main() -> int:
    """Prints the table; 0 if every gate holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="pairs of runs, at least 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cpu-time", action="store_true", help="time of the process, not of the clock on the wall")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = set(arguments.only.split(","))
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {arguments.threads} threads, {os.cpu_count()} CPUs, "
        f"batches of {arguments.batch_size}; medians in ms of {max(3, arguments.pairs)} pairs"
    )
    print(f"{'':46}{'theirs':>9}{'zoo':>9}{'ratio':>8}")
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    bench = Bench(pairs=max(3, arguments.pairs), batch_size=arguments.batch_size, clock=clock)
    if "lora" in wanted:
        lora_steps(bench)
    if "merged" in wanted:
        merged_passes(bench)
    if "prefix" in wanted:
        prefix_steps(bench)
    if "memory" in wanted:
        memory(arguments.batch_size)
    if "loading" in wanted:
        bench.missed |= loading(bench) > LOADING_GATE_MS
    return int(bench.missed)


@dataclass
class Bench:
    """How often and on how much each row is run, by which clock (s), and whether a gate was missed so far."""

    pairs: int
    batch_size: int
    clock: Callable[[], float]
    missed: bool = False

    def row(self, name: str, theirs: Run, ours: Run, gate: float | None, *, same: bool = True) -> None:
        """Times two runs in pairs and prints a line. same: whether both give equal values, which is looked at."""
        for _ in range(2):  # warm-up; the second loss has seen an update
            found = theirs().detach(), ours().detach()
            if same:
                torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
        taken: dict[Run, list[float]] = {theirs: [], ours: []}
        for pair in range(self.pairs):
            for run in (theirs, ours) if pair % 2 else (ours, theirs):
                taken[run].append(self.milliseconds(run))
        ratios = [mine / other for mine, other in zip(taken[ours], taken[theirs], strict=True)]
        ratio = statistics.median(ratios)
        times = "".join(f"{statistics.median(taken[run]):9.1f}" for run in (theirs, ours))
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}{f', gate {gate}' if gate else ''}"
        print(f"{name:46}{times}{ratio:8.3f}   {spread}", flush=True)
        self.missed |= gate is not None and ratio > gate

    def milliseconds(self, run: Run) -> float:
        """What a run takes."""
        start = self.clock()
        run()
        return 1000 * (self.clock() - start)


# -- the two kinds of loops -----------------------------------------------------------------------------------------


def zoo_step(learner: Learner, batch: Batch) -> Run:
    """A step of a learner in a loop of somebody's own."""
    learner.train()
    optimiser = torch.optim.AdamW(learner.parameter_groups(RATE, DECAY), fused=True)

    def step() -> Tensor:
        loss = learner.loss(learner(batch.inputs), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss

    return step


def plain_step(forward: Callable[[], Tensor], trained: list[nn.Parameter], batch: Batch) -> Run:
    """A step as it is written by hand. forward: gives the logits."""
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE, fused=True)

    def step() -> Tensor:
        loss = nn.functional.cross_entropy(forward(), batch.target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss

    return step


def built(spec: str) -> Learner:
    """The learner of a spec: heads at one rate with the rest, so that the loops are alike."""
    learner = zoo_core.load(spec, num_classes=CLASSES)
    learner.set_scale(learner.head.parameters(), 1.0)
    return learner


def head_of(learner: Learner) -> nn.Linear:
    """A plain linear layer with the values of the learner's head."""
    weight, bias = learner.head.parameters()
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def batch_for(learner: Learner, batch_size: int, tokens: int = 128) -> Batch:
    """Random inputs: pictures, or texts of so many tokens without padding."""
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = dict(learner.source.preparation.dummy(batch_size))
    if "input_ids" in inputs:
        inputs["input_ids"] = torch.randint(0, 1000, (batch_size, tokens), generator=generator)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    else:
        inputs = {name: torch.randn(x.shape, generator=generator) for name, x in inputs.items()}
    target = torch.arange(batch_size) % CLASSES
    return Batch(inputs=inputs, target=target, ids=tuple(map(str, range(batch_size))))


# -- lora -----------------------------------------------------------------------------------------------------------


def lora_steps(bench: Bench) -> None:
    """Training steps against peft: networks of transformers with layers of their own for q and v, timm with one."""
    with tempfile.TemporaryDirectory() as folder:
        for name, backbone in (
            ("lora q v, ViT-S of transformers, over peft", f'hf(files="{vit_folder(Path(folder, "vit"))}"'),
            ("lora q v, BERT-base, over peft", f'hf(files="{bert_folder(Path(folder, "bert"))}"'),
        ):
            learner = built(f"{backbone}, weights=random)+lora(r=8)")
            batch = batch_for(learner, bench.batch_size)
            theirs = peft_step(learner, batch, last_hidden)
            bench.row(name, theirs, zoo_step(learner, batch), STEP_GATE)
    for name, roles, same in (
        ("lora out mlp, timm ViT-S, over peft", "[attn.out, mlp.in, mlp.out]", True),
        ("lora q v of fused qkv, over peft on all of it", "[attn.q, attn.v]", False),  # peft has no rows
    ):
        learner = built(f"{SMALL}(weights=random)+lora(r=8, roles={roles})")
        batch = batch_for(learner, bench.batch_size)
        theirs = peft_step(learner, batch, lambda model, inputs: model(inputs["pixel_values"]))
        bench.row(name, theirs, zoo_step(learner, batch), STEP_GATE, same=same)


def last_hidden(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The vector that zoo pools for these: of the class token of a picture, the mean over a text."""
    x_BTD: Tensor = model(**inputs).last_hidden_state
    return x_BTD.mean(1) if "input_ids" in inputs else x_BTD[:, 0]


def peft_step(learner: Learner, batch: Batch, forward: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> Run:
    """The same through peft: its model around the plain one, its adapters on the modules where the learner has its own.

    A and B start from the learner's values where both have one pair for a module.
    """
    import peft

    changed = {path: module for path, module in learner.backbone.named_modules() if hasattr(module, "lora")}
    prefix = "model."
    plain = plain_model(learner)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=[path.removeprefix(prefix) for path in changed])
    model: Any = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for path, module in changed.items():
            theirs: Any = model.base_model.model.get_submodule(path.removeprefix(prefix))
            if not hasattr(module, "lora_2"):
                theirs.lora_A["default"].weight.copy_(module.lora.A.weight)
    head = head_of(learner)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inputs = dict(batch.inputs)
    return plain_step(lambda: head(forward(model, inputs)), [*trained, *head.parameters()], batch)


def plain_model(learner: Learner) -> nn.Module:
    """The library's own model with the values of the base, without what adapters attached."""
    backbone: Any = learner.backbone
    if hasattr(backbone, "network"):
        name = learner.plan.backbone.name.partition("/")[2] if learner.plan else ""
        model: nn.Module = timm.create_model(name, num_classes=0)
    else:
        model = type(backbone.model)(backbone.model.config, add_pooling_layer=False)
    held = {name.removeprefix("backbone.model."): parameter for name, parameter in learner.base().items()}
    missing, unknown = model.load_state_dict(held, strict=False)
    buffers = {name for name, _ in model.named_buffers()}
    assert not unknown, unknown
    assert set(missing) <= buffers, missing
    return model


def vit_folder(folder: Path) -> Path:
    """A folder that describes ViT-S of transformers, without weights."""
    import json

    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    }
    transformers.ViTConfig(**sizes, architectures=["ViTModel"]).save_pretrained(folder)
    prepares = {"do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2, "do_rescale": True}
    prepares |= {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepares))
    return folder


def bert_folder(folder: Path) -> Path:
    """A folder that describes BERT-base, without weights; dropout is off, as frozen layers have none in zoo."""
    import transformers
    from tokenizers import Tokenizer, models

    off: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    transformers.BertConfig(**off, architectures=["BertModel"]).save_pretrained(folder)
    Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return folder


# -- merged inference -----------------------------------------------------------------------------------------------


def merged_passes(bench: Bench) -> None:
    """A merged learner against the library's own model with a classifier."""
    learner = built(f"{SMALL}(weights=random)+lora(r=8)")
    batch = batch_for(learner, bench.batch_size)
    plain, head = plain_model(learner).eval(), head_of(learner)
    merged = learner.merge()

    @torch.inference_mode()
    def by_timm() -> Tensor:
        logits: Tensor = head(plain(batch.inputs["pixel_values"]))
        return logits

    @torch.inference_mode()
    def by_zoo() -> Tensor:
        predictions: Tensor = merged(batch.inputs).predictions
        return predictions

    @torch.inference_mode()
    def unmerged() -> Tensor:
        predictions: Tensor = learner(batch.inputs).predictions
        return predictions

    bench.row("merged lora, timm ViT-S, over the plain model", by_timm, by_zoo, MERGED_GATE)
    bench.row("  unmerged", by_timm, unmerged, None)


# -- the frozen prefix ----------------------------------------------------------------------------------------------


def prefix_steps(bench: Bench) -> None:
    """A probe, and the last n of 12 blocks, against a loop that runs what is frozen under no_grad."""
    for num_blocks in (0, 1, 2, 4):
        name = f"partial(n={num_blocks})" if num_blocks else "probe"
        theirs, ours = prefix_pair(num_blocks, bench.batch_size)
        bench.row(f"{name}, timm ViT-S, over no_grad by hand", theirs, ours, STEP_GATE)


def prefix_pair(num_blocks: int, batch_size: int) -> tuple[Run, Run]:
    """The step by hand and that of zoo, for the last blocks and the head; all of the network for 12 blocks."""
    adapter = {0: "probe", 12: "full"}.get(num_blocks, f"partial(n={num_blocks})")
    learner = built(f"{SMALL}(weights=random)+{adapter}")
    batch = batch_for(learner, batch_size)
    return by_hand(learner, batch, num_blocks), zoo_step(learner, batch)


def by_hand(learner: Learner, batch: Batch, num_blocks: int) -> Run:
    """What somebody writes who knows timm's VisionTransformer."""
    vit: Any = plain_model(learner).train()
    head, pixels = head_of(learner), batch.inputs["pixel_values"]
    first = len(vit.blocks) - num_blocks
    vit.requires_grad_(num_blocks == 12)
    if num_blocks:
        for part in (*vit.blocks[first:], vit.norm):
            part.requires_grad_(True)

    def embedded() -> Tensor:
        x_BTD: Tensor = vit.blocks[:first](vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(pixels)))))
        return x_BTD

    def last(x_BTD: Tensor) -> Tensor:
        x_BD: Tensor = vit.forward_head(vit.norm(vit.blocks[first:](x_BTD)))
        return x_BD

    def forward() -> Tensor:
        with torch.set_grad_enabled(num_blocks == 12):
            x = embedded()
        with torch.set_grad_enabled(num_blocks > 0):
            x = last(x)
        logits: Tensor = head(x)
        return logits

    trained = [*(parameter for parameter in vit.parameters() if parameter.requires_grad), *head.parameters()]
    return plain_step(forward, trained, batch)


# -- memory ---------------------------------------------------------------------------------------------------------


def memory(batch_size: int) -> None:
    """What a step allocates at most, and what frozen parameters hold of it."""
    print(f"{'peak memory of a step, timm ViT-S, MiB':46}{'by hand':>9}{'zoo':>9}{'ratio':>8}")
    for num_blocks in (0, 1, 2, 4, 12):
        peaks = [peak_of_step(step) / 2**20 for step in prefix_pair(num_blocks, batch_size)]
        name = {0: "probe", 12: "full"}.get(num_blocks, f"partial(n={num_blocks})")
        print(f"  {name:44}{peaks[0]:9.1f}{peaks[1]:9.1f}{peaks[1] / peaks[0]:8.3f}", flush=True)
    print(f"{'bytes after a step, timm ViT-S':46}{'frozen':>12}{'trained':>12}{'.grad of frozen':>17}{'AdamW':>13}")
    for adapter in ("probe", "partial(n=2)", "lora(r=8)", "full"):
        print("".join((f"  {adapter:44}", *(f"{held:{width},}" for held, width in bytes_held(adapter)))), flush=True)


def peak_of_step(step: Run) -> int:
    """Bytes of tensors that a second step allocates at most, beyond what is there before it."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    events: Any = profiler.profiler.kineto_results.events()
    changes: list[int] = [
        event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()) if event.nbytes()
    ]
    return max(accumulate(changes))


def bytes_held(adapter: str) -> list[tuple[int, int]]:
    """Bytes of frozen and of trained parameters, of gradients of frozen ones, of AdamW's state; with their columns."""
    learner = built(f"{SMALL}(weights=random)+{adapter}")
    batch = batch_for(learner, 2)
    optimiser = torch.optim.AdamW(learner.parameter_groups(RATE, DECAY), fused=True)
    learner.train()
    learner.loss(learner(batch.inputs), batch).backward()
    optimiser.step()
    frozen = [parameter for parameter in learner.parameters() if not parameter.requires_grad]
    assert not any(parameter in optimiser.state for parameter in frozen)
    trained = [parameter for _, parameter in learner.trainable()]
    state = [x for held in optimiser.state.values() for x in held.values()]
    gradients = [parameter.grad for parameter in frozen if parameter.grad is not None]
    return [(size_of(frozen), 12), (size_of(trained), 12), (size_of(gradients), 17), (size_of(state), 13)]


def size_of(tensors: list[Any]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# -- loading --------------------------------------------------------------------------------------------------------


def loading(bench: Bench) -> float:
    """Prints and returns the median milliseconds of putting lora r=8 and its stored delta onto a built ViT-B."""
    base = built(f"{BASE}(weights=random)")
    trained = copy.deepcopy(base)
    tensors = apply_lora(trained)
    with torch.no_grad():
        for parameter in trained.added().values():
            parameter.normal_(std=0.02)
    pixels = batch_for(base, 1).inputs
    times = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "delta.safetensors"
        save_file({name: trained.delta()[name].clone() for name in tensors}, file)
        for _ in range(bench.pairs):
            learner = copy.deepcopy(base)

            def load(learner: Learner = learner) -> Tensor:
                apply_lora(learner)
                learner.load_delta(load_file(file))
                return torch.zeros(())

            times.append(bench.milliseconds(load))
            with torch.no_grad():
                assert torch.equal(learner(pixels).predictions, trained(pixels).predictions)
    found = statistics.median(times)
    spread = f"{min(times):.1f} to {max(times):.1f}, gate {LOADING_GATE_MS:g}"
    print(f"{'lora r=8 and its delta onto a built ViT-B, ms':46}{'':9}{found:9.1f}{'':8}   {spread}")
    return found


def apply_lora(learner: Learner) -> list[str]:
    """Attaches lora to a built learner, as build does it; the names of its delta."""
    base = [*learner.backbone.parameters(), *learner.backbone.buffers()]
    context = Context(target=learner.target, purpose="use", generator=torch.Generator().manual_seed(0))
    Lora(r=8).apply(learner, context)
    learner.seal(base)
    return list(learner.delta())


if __name__ == "__main__":
    sys.exit(main())
