"""What probe, full, partial, bitfit and norm train: on toys with tokens and batch norms, on the shape of ViT-B/16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from zoo_adapters.freezing import Bitfit, Full, Norm, Partial, Probe
from zoo_core import contracts
from zoo_core.contracts import AdapterRecipe, Batch, Context, Features, FeatureSpec, Modality, Site, Target, fact
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import CrossEntropy
from zoo_core.plan.plan import Budget, Plan
from zoo_core.toolkit.preparations import ImagePreparation

Build = Callable[..., Learner]
Resolve = Callable[..., Plan]

CLASSES = Target(kind="classes", names=("a", "b", "c"))
IMAGE_TOYS = ("tokens", "map")
ADAPTERS: Mapping[str, Callable[[str], bool]] = {  # adapter -> whether it trains a parameter of the backbone, by name
    "probe": lambda name: False,
    "full": lambda name: True,
    "partial": lambda name: name.startswith(("blocks.2.", "norm.")),
    "partial(n=2)": lambda name: name.startswith(("blocks.1.", "blocks.2.", "norm.")),
    "bitfit": lambda name: name.endswith(".bias"),
    "norm": lambda name: name.startswith("norm.") or ".norm." in name or ".bn." in name,
}
BY_GRADIENT = [(toy, adapter) for toy in IMAGE_TOYS for adapter in ADAPTERS]


def trained(learner: Learner) -> set[str]:
    """Names of the backbone's trainable parameters, without `backbone.`."""
    return {name for name, parameter in learner.backbone.named_parameters() if parameter.requires_grad}


def num_trained(learner: contracts.Learner) -> int:
    return sum(parameter.numel() for parameter in learner.backbone.parameters() if parameter.requires_grad)


def batch_of(seed: int = 0, num: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(num, 3, 8, 8, generator=generator)
    return Batch(inputs={"pixel_values": pixels}, target=torch.arange(num) % 3, ids=tuple(map(str, range(num))))


def state_of(learner: Learner) -> dict[str, Tensor]:
    """A copy of every parameter and buffer of the backbone."""
    held = [*learner.backbone.named_parameters(), *learner.backbone.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in held}


def moved(learner: Learner, before: Mapping[str, Tensor]) -> set[str]:
    """Parameters and buffers of the backbone that are no longer bit for bit what they were."""
    return {name for name, tensor in state_of(learner).items() if not torch.equal(tensor, before[name])}


def train_steps(learner: Learner, num: int = 5, *, lr: float = 1e-2) -> None:
    """Steps of AdamW with weight decay on changing batches, as the training loop makes them."""
    optimiser = torch.optim.AdamW(learner.parameter_groups(lr, weight_decay=0.1))
    learner.train()
    for step in range(num):
        batch = batch_of(step)
        optimiser.zero_grad()
        learner.loss(learner(batch.inputs), batch).backward()
        optimiser.step()
    learner.eval()


# -- what trains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("toy", "adapter"), BY_GRADIENT)
def test_an_adapter_trains_exactly_what_it_says_and_the_head(build_toy: Build, toy: str, adapter: str) -> None:
    learner = build_toy(f"toy/{toy}+{adapter}")
    names = {name for name, _ in learner.backbone.named_parameters()}
    assert trained(learner) == {name for name in names if ADAPTERS[adapter](name)}
    assert all(parameter.requires_grad for parameter in learner.head.parameters())


@pytest.mark.parametrize(
    ("adapter", "num"),
    [  # width 12, three blocks of norm, qkv and projection after a stem of 2 x 2 pixels; one norm at the end
        ("probe", 0),
        ("bitfit", 12 + 3 * (12 + 36 + 12) + 12),
        ("norm", 3 * 24 + 24),
        ("partial", (24 + 12 * 36 + 36 + 12 * 12 + 12) + 24),
        ("full", (3 * 4 * 12 + 12) + 3 * (24 + 12 * 36 + 36 + 12 * 12 + 12) + 24),
    ],
)
def test_the_number_of_trained_parameters_is_the_closed_form(build_toy: Build, adapter: str, num: int) -> None:
    assert num_trained(build_toy(f"toy/tokens+{adapter}")) == num


@pytest.mark.parametrize("toy", IMAGE_TOYS)
def test_partial_with_every_stage_is_full_without_the_stem(build_toy: Build, toy: str) -> None:
    stem = {"stem.weight", "stem.bias"}
    assert trained(build_toy(f"toy/{toy}+partial(n=3)")) == trained(build_toy(f"toy/{toy}+full")) - stem


@pytest.mark.parametrize("chain", ["full+probe", "probe+full", "full+partial", "norm+full", "bitfit+full"])
def test_no_adapter_freezes_what_another_one_trains(build_toy: Build, chain: str) -> None:
    assert trained(build_toy(f"toy/map+{chain}")) == trained(build_toy("toy/map+full"))


def test_adapters_add_up(build_toy: Build) -> None:
    both = trained(build_toy("toy/map+bitfit+partial"))
    assert both == trained(build_toy("toy/map+bitfit")) | trained(build_toy("toy/map+partial"))


@pytest.mark.parametrize(("toy", "adapter"), BY_GRADIENT)
def test_every_trainable_tensor_receives_a_gradient_and_no_other(build_toy: Build, toy: str, adapter: str) -> None:
    learner = build_toy(f"toy/{toy}+{adapter}")
    learner.train()
    batch = batch_of()
    learner.loss(learner(batch.inputs), batch).backward()
    reached = {name for name, parameter in learner.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in learner.trainable()}
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in learner.trainable() if parameter.grad is not None)


# -- what does not move -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("toy", "adapter"), BY_GRADIENT)
def test_features_are_bit_equal_to_the_bases_before_training(build_toy: Build, toy: str, adapter: str) -> None:
    inputs = batch_of().inputs
    with torch.no_grad():
        base = build_toy(f"toy/{toy}").backbone(inputs).x
        assert torch.equal(build_toy(f"toy/{toy}+{adapter}").backbone(inputs).x, base)


@pytest.mark.parametrize(("toy", "adapter"), BY_GRADIENT)
def test_frozen_tensors_are_bit_identical_after_training_with_weight_decay(
    build_toy: Build, toy: str, adapter: str
) -> None:
    learner = build_toy(f"toy/{toy}+{adapter}")
    before, frozen = state_of(learner), {name.removeprefix("backbone.") for name in learner.frozen()}
    train_steps(learner)
    assert not moved(learner, before) & frozen
    assert trained(learner) <= moved(learner, before)  # every opened parameter did move


def test_a_batch_norm_left_in_training_mode_would_be_seen(build_toy: Build) -> None:
    learner = build_toy("toy/map+bitfit")
    before = state_of(learner)
    learner.backbone.get_submodule("blocks.0.bn").training = True
    learner.backbone(batch_of().inputs)
    assert {"blocks.0.bn.running_mean", "blocks.0.bn.running_var"} <= moved(learner, before)


@pytest.mark.parametrize(
    ("adapter", "moving"),
    [
        ("probe", set()),
        ("bitfit", set()),
        ("partial", {"blocks.2.bn", "norm"}),
        ("norm", {"blocks.0.bn", "blocks.1.bn", "blocks.2.bn", "norm"}),
        ("full", {"blocks.0.bn", "blocks.1.bn", "blocks.2.bn", "norm"}),
    ],
)
def test_batch_norms_that_train_whole_move_their_statistics_and_the_delta_holds_them(
    build_toy: Build, adapter: str, moving: set[str]
) -> None:
    learner = build_toy(f"toy/map+{adapter}")
    before = state_of(learner)
    train_steps(learner)
    statistics = {name for name in moved(learner, before) if name.endswith("running_var")}
    assert statistics == {f"{path}.running_var" for path in moving}
    in_delta = {name for name in learner.delta() if name.endswith("running_var")}
    assert in_delta == {f"backbone.{path}.running_var" for path in moving}


def test_dropout_acts_under_full_and_not_under_a_probe(build_toy: Build) -> None:
    inputs = batch_of().inputs
    for adapter, varies in (("full", True), ("probe", False), ("bitfit", False)):
        learner = build_toy(f"toy/tokens+{adapter}")
        learner.train()
        with torch.no_grad():
            assert torch.equal(learner(inputs).features.x, learner(inputs).features.x) != varies


def test_a_container_with_frozen_stages_does_not_drop_layers_under_partial(build_toy: Build) -> None:
    learner = build_toy("toy/layer-drop+partial")
    container = learner.backbone.get_submodule("blocks")
    learner.train()
    assert not container.training
    assert build_toy("toy/layer-drop+full").train().backbone.get_submodule("blocks").training


@pytest.mark.parametrize("adapter", ["partial", "partial(n=2)"])
def test_no_gradient_graph_is_kept_for_the_stages_below(build_toy: Build, adapter: str) -> None:
    learner = build_toy(f"toy/tokens+{adapter}")
    learner.train()
    kept: dict[str, bool] = {}
    for index in range(3):
        stage = learner.backbone.get_submodule(f"blocks.{index}")
        stage.register_forward_hook(lambda _, args, out, index=index: kept.update({str(index): out.requires_grad}))
    learner(batch_of().inputs)
    first = 2 if adapter == "partial" else 1
    assert kept == {str(index): index >= first for index in range(3)}


# -- biases and norms under other names ---------------------------------------------------------------------------


def test_bitfit_finds_packed_biases_and_leaves_tables_of_offsets(build_toy: Build) -> None:
    assert trained(build_toy("toy/packed+bitfit")) == {"attn.inner.in_proj_bias", "attn.inner.out_proj.bias"}


def test_bitfit_is_refused_without_biases(build_toy: Build) -> None:
    with pytest.raises(RefusedError, match=r"^bitfit: the backbone has no biases; use norm or partial$"):
        build_toy("toy/plain+bitfit")


def test_norm_is_refused_without_norms_and_with_norms_that_have_nothing_to_train(build_toy: Build) -> None:
    with pytest.raises(RefusedError, match="norm"):
        build_toy("toy/plain+norm")
    with pytest.raises(RefusedError, match=r"^norm: the backbone has no norms with scale or shift"):
        build_toy("toy/packed+norm")


# -- rates --------------------------------------------------------------------------------------------------------


def rates_by_part(learner: Learner, lr: float) -> dict[str, set[float]]:
    rate = {id(p): group["lr"] for group in learner.parameter_groups(lr) for p in group["params"]}
    found: dict[str, set[float]] = {"backbone": set(), "heads": set()}
    for name, parameter in learner.trainable():
        found[name.partition(".")[0]].add(rate[id(parameter)])
    return found


@pytest.mark.parametrize(
    ("adapter", "head_scale"),
    [
        ("full", 10),
        ("full(head_scale=2)", 2),
        ("partial", 10),
        ("partial(head_scale=1)", 1),
        ("bitfit", 1),
        ("norm", 1),
    ],
)
def test_the_head_learns_at_its_scale_and_the_backbone_at_the_rate_itself(
    build_toy: Build, adapter: str, head_scale: float
) -> None:
    lr = 2.0**-10  # a power of two, so that a product with the scale is exact
    learner = build_toy(f"toy/tokens+{adapter}")
    assert rates_by_part(learner, lr) == {"backbone": {lr}, "heads": {lr * head_scale}}


def test_the_optimiser_holds_every_trainable_parameter_once_and_no_frozen_one(build_toy: Build) -> None:
    learner = build_toy("toy/map+partial")
    held = [id(parameter) for group in learner.parameter_groups(1e-3, 0.1) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for _, parameter in learner.trainable())


def test_full_at_one_rate_updates_as_plain_adamw_does_bit_for_bit(build_toy: Build) -> None:
    ours, plain = build_toy("toy/map+full(head_scale=1)"), build_toy("toy/map+full(head_scale=1)")
    train_steps(ours)
    matrices = [parameter for _, parameter in plain.trainable() if parameter.ndim > 1]
    vectors = [parameter for _, parameter in plain.trainable() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-2)
    nn.Module.train(plain)  # everything trains, so torch's own rule is the right one
    for step in range(5):
        batch = batch_of(step)
        optimiser.zero_grad()
        pooled = plain.source.pool(plain.source(batch.inputs))
        logits = plain.head(Features(kind="pooled", x=pooled))
        nn.functional.cross_entropy(logits, batch.target).backward()
        optimiser.step()
    mine, theirs = ours.state_dict(), plain.state_dict()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize("recipe", [Full, Partial, Bitfit, Norm])
def test_a_grid_is_five_ascending_rates_with_the_default_in_the_middle(
    resolve_toy: Resolve, recipe: type[AdapterRecipe]
) -> None:
    grid = fact("adapter", recipe, "learning_rates")
    assert len(grid) == 5
    assert sorted(set(grid)) == list(grid)
    ratios = [high / low for low, high in pairwise(grid)]
    assert ratios == pytest.approx([5.0] * 4)  # evenly spaced, so the middle ones of a smaller budget are too
    plan = resolve_toy(f"toy/tokens+{recipe.__name__.lower()}", budget=Budget(num_rates=1))
    assert plan.learning_rates == (grid[2],)


@pytest.mark.parametrize(("recipe", "usual"), [(Full, 1e-4), (Partial, 1e-4), (Bitfit, 1e-3), (Norm, 1e-3)])
def test_the_grid_holds_the_rate_that_is_usual_on_large_backbones(recipe: type[AdapterRecipe], usual: float) -> None:
    middle_three = fact("adapter", recipe, "learning_rates")[1:4]  # what a default budget tries
    assert usual in middle_three


def test_a_probe_takes_the_heads_rates(resolve_toy: Resolve) -> None:
    plan = resolve_toy("toy/tokens+probe+mlp", budget=Budget(num_rates=5))
    assert plan.learning_rates == plan.head.fact("learning_rates")


@pytest.mark.parametrize(
    ("recipe", "first"), [(Probe(), 4), (Full(), 0), (Partial(), 3), (Partial(n=4), 0), (Bitfit(), 0), (Norm(), 0)]
)
def test_the_first_stage_is_the_earliest_one_that_trains(recipe: AdapterRecipe, first: int) -> None:
    assert fact("adapter", recipe, "first_stage")(4) == first


# -- wrong arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "error", "message"),
    [
        ("full(head_scale=0)", UsageError, "full(head_scale=0): allowed: any positive number"),
        ("partial(head_scale=-1)", UsageError, "partial(head_scale=-1): allowed: any positive number"),
        ("partial(n=0)", UsageError, "partial(n=0): allowed: 1 or more; probe trains no stage"),
        ("partial(n=4)", RefusedError, "partial(n=4): the backbone has 3 stages; allowed: 1 to 3"),
        ("partial(n=1.5)", UsageError, "n is a whole number, found the number 1.5"),
        ("partial(n=all)", UsageError, "n is a whole number, found the text 'all'"),
        ("partial(num=1)", UsageError, "num"),
        ("probe(n=1)", UsageError, "n"),
        ("bitfit(head_scale=2)", UsageError, "head_scale"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(
    resolve_toy: Resolve, adapter: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        resolve_toy(f"toy/tokens+{adapter}")
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused_from_python_too(scale: float) -> None:
    with pytest.raises(UsageError, match="allowed: any positive number"):
        Full(head_scale=scale)


# -- the shape of ViT-B/16 ----------------------------------------------------------------------------------------


class VitBase(nn.Module):
    """timm's vit_base_patch16_224 by layout and names, 85,798,656 parameters; no class head."""

    modality: Modality = "image"
    features = FeatureSpec(kind="tokens", dim=768)
    preparation = ImagePreparation(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    stages = tuple(f"blocks.{index}" for index in range(12))

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 768))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, 768))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 768, 16, stride=16)})
        self.blocks = nn.Sequential(*(_VitBlock() for _ in range(12)))
        self.norm = nn.LayerNorm(768)

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        x_BTD = self.patch_embed["proj"](inputs["pixel_values"]).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.cls_token.expand(len(x_BTD), -1, -1), x_BTD], dim=1) + self.pos_embed
        return Features(kind="tokens", x=self.norm(self.blocks(x_BTD)))

    def pool(self, features: Features) -> Tensor:
        return features.x[:, 0]

    def sites(self, role: str) -> tuple[Site, ...]:
        paths = [path for path, module in self.named_modules() if isinstance(module, nn.LayerNorm)]
        return tuple(Site(path=path, kind="norm") for path in paths) if role == "norm" else ()


class _VitBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(768)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(768, 3 * 768), "proj": nn.Linear(768, 768)})
        self.norm2 = nn.LayerNorm(768)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(768, 3072))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(3072, 768))

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = self.attn["qkv"](self.norm1(x_BTD)).unflatten(-1, (3, 12, 64)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x_BTD = x_BTD + self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        out_BTD: Tensor = x_BTD + self.mlp(self.norm2(x_BTD))
        return out_BTD


BLOCK = 12 * 768**2 + 13 * 768
STEM = (3 * 16 * 16 * 768 + 768) + 768 + 197 * 768


@pytest.mark.parametrize(
    ("recipe", "num"),
    [
        (Probe(), 0),
        (Bitfit(), 102_912),  # as published for this network; the head's are not counted
        (Norm(), 38_400),
        (Partial(), BLOCK + 2 * 768),
        (Partial(n=12), 12 * BLOCK + 2 * 768),
        (Full(), STEM + 12 * BLOCK + 2 * 768),
    ],
)
def test_the_counts_on_vit_b16_are_the_published_ones(recipe: AdapterRecipe, num: int) -> None:
    with torch.device("meta"):  # shapes without memory
        backbone, head = VitBase().requires_grad_(False), nn.Linear(768, 3)
    learner = Learner(backbone, head, "pooled", CrossEntropy(), CLASSES)

    context = Context(target=CLASSES, purpose="train", generator=torch.Generator())
    assert num_trained(recipe.apply(learner, context)) == num


def test_the_network_that_stands_for_vit_b16_has_its_size() -> None:
    with torch.device("meta"):
        backbone = VitBase()
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 85_798_656
    assert STEM + 12 * BLOCK + 2 * 768 == 85_798_656
