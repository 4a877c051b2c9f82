"""lora and dora: where they start, what they compute, train and fold into, whom they exclude, and peft's numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import zoo_core
from zoo_adapters.lora import Dora, Lora
from zoo_adapters.low_rank import Decomposed, LowRank
from zoo_core.contracts import AdapterRecipe, Batch, Context, Features, FeatureSpec, Modality, Site, Target, fact
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import CrossEntropy
from zoo_core.plan.resolve import resolve
from zoo_core.toolkit.preparations import ImagePreparation
from zoo_core.toolkit.sites import attach, changes_of, fold_changes, read_weight, weight_of

pytest.importorskip("zoo_starter")

CLASSES = Target(kind="classes", names=("a", "b", "c"))
METHODS = ("lora", "lora(rslora=true)", "lora(init=pissa)", "dora")
STARTERS = ("starter/vit-nano", "starter/convnet-nano")
D = 8


# -- small things -----------------------------------------------------------------------------------------------------


def load(spec: str, seed: int = 0) -> Learner:
    return zoo_core.load(spec, target=CLASSES, seed=seed)


def inputs_of(learner: Learner, num: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    like = learner.source.preparation.dummy(num)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in like.items()}


def double(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in inputs.items()}


def stir(learner: Learner | nn.Module, size: float = 0.1) -> None:
    """Moves every added parameter, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, _, changes in changes_of(learner):
            for change in changes:
                for parameter in change.parameters():
                    parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))


def added(learner: Learner) -> int:
    return sum(parameter.numel() for parameter in learner.added().values())


def context(purpose: Any = "train", seed: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    return Context(target=CLASSES, purpose=purpose, generator=generator)


def learner_of(backbone: nn.Module, *recipes: AdapterRecipe, seed: int = 0) -> Learner:
    """A learner put together by hand, whose head nobody asks."""
    backbone.requires_grad_(False).eval()
    base = [*backbone.parameters(), *backbone.buffers()]
    learner = Learner(backbone, nn.Linear(1, 3), "pooled", CrossEntropy(), CLASSES)
    for recipe in recipes:
        assert recipe.apply(learner, context(seed=seed)) is learner
    learner.seal(base)
    return learner.eval()


class Transposed(nn.Module):
    """GPT-2's linear layer: a weight of [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Layers(nn.Module):
    """Every kind of site: rows of a fused transposed layer, columns of two roles, weights that are read, not called."""

    modality: Modality = "image"
    features = FeatureSpec(kind="tokens", dim=D)
    preparation = ImagePreparation(size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    stages = ("fused",)
    places: Mapping[str, tuple[Site, ...]] = {
        "attn.q": (Site(path="fused", out_axis=1, outputs=(0, D)),),
        "attn.k": (Site(path="fused", out_axis=1, outputs=(D, 2 * D)),),
        "attn.v": (Site(path="fused", out_axis=1, outputs=(2 * D, 3 * D)),),
        "attn.out": (Site(path="joint", inputs=(0, 2 * D)),),
        "mlp.out": (Site(path="joint", inputs=(2 * D, 3 * D)),),
        "mlp.in": (
            Site(path="read", outputs=(0, D), called=False),
            Site(path="read", outputs=(D, D + 4), called=False),
        ),
    }

    def __init__(self) -> None:
        super().__init__()
        self.fused = Transposed(D, 3 * D)
        self.joint = nn.Linear(3 * D, D)
        self.read = nn.Linear(D, 2 * D)

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        x_BTD = inputs["pixel_values"].flatten(2)[..., :D]
        x_BTD = self.joint(torch.tanh(self.fused(x_BTD)))
        return Features(kind="tokens", x=F.linear(x_BTD, self.read.weight, self.read.bias))

    def pool(self, features: Features) -> Tensor:
        return features.x.mean(1)

    def sites(self, role: str) -> tuple[Site, ...]:
        return self.places.get(role, ())


ALL = ("attn.q", "attn.v", "attn.out", "mlp.in", "mlp.out")


def layers() -> Layers:
    torch.manual_seed(0)
    return Layers()


def loss_of(learner: Learner, inputs: Mapping[str, Tensor]) -> Tensor:
    """A scalar that every feature moves differently."""
    x = learner.source(inputs).x
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    return (x * weights).sum() + x.square().mean()


# -- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "num"),
    [
        (Lora(), 294_912),  # 12 layers, q and v, r (768 + 768)
        (Lora(r=4, roles=("attn.q", "attn.k", "attn.v", "attn.out")), 294_912),
        (Lora(init="pissa", rslora=True), 294_912),
        (Lora(r=2, roles=("mlp.in", "mlp.out")), 12 * 2 * 2 * (768 + 3072)),
        (Dora(), 294_912 + 12 * 2 * 768),
    ],
)
def test_the_counts_on_vit_b16_are_the_published_ones(recipe: AdapterRecipe, num: int) -> None:
    pytest.importorskip("timm")
    plan = resolve("timm/vit_base_patch16_224(weights=random)", target=CLASSES)
    with torch.device("meta"):  # shapes without memory
        backbone = plan.backbone.recipe.build(None, "random")
        assert added(learner_of(backbone, recipe)) == num


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_without_attention_it_takes_the_convolutions_that_have_room(method: str) -> None:
    learner = load(f"starter/convnet-nano+{method}(r=8)")
    expected = 0
    for site in learner.source.sites("conv"):
        conv = learner.backbone.get_submodule(site.path)
        assert isinstance(conv, nn.Conv2d)
        rows, columns = conv.out_channels // conv.groups, conv.weight[0].numel()
        if min(rows, columns) >= 8:
            expected += 8 * conv.groups * (rows + columns) + (conv.out_channels if method == "dora" else 0)
    assert added(learner) == expected > 0


def test_a_table_backbone_has_it_on_its_mlps() -> None:
    learner = load("starter/mlp-nano(weights=random)+lora(r=2)")
    sites = [site for role in ("mlp.in", "mlp.out") for site in learner.source.sites(role)]
    assert added(learner) == sum(2 * sum(read_weight(learner.backbone, site).shape) for site in sites)


# -- the start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", STARTERS)
@pytest.mark.parametrize("method", METHODS)
def test_it_starts_as_the_base_bit_for_bit(backbone: str, method: str) -> None:
    base, learner = load(backbone), load(f"{backbone}+{method}")
    inputs = inputs_of(base)
    assert torch.equal(learner(inputs).features.x, base(inputs).features.x)


@pytest.mark.parametrize("recipe", [Lora(r=2, roles=ALL), Lora(r=2, roles=ALL, init="pissa"), Dora(r=2, roles=ALL)])
def test_it_starts_as_the_base_at_every_kind_of_site(recipe: AdapterRecipe) -> None:
    inputs = {"pixel_values": torch.randn(2, 3, 4, 4)}
    assert torch.equal(learner_of(layers(), recipe).source(inputs).x, layers().eval()(inputs).x)


def test_a_is_drawn_as_a_linear_layers_weight_and_b_is_zero() -> None:
    learner = load("starter/vit-nano+lora(r=32)")
    values = torch.cat([p.detach().flatten() for name, p in learner.added().items() if ".A." in name])
    bound = 96**-0.5
    assert values.abs().max() <= bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.03)  # 24,576 uniform draws
    assert all(not p.any() for name, p in learner.added().items() if ".B." in name)


def test_draws_are_the_seeds_own_and_leave_torchs_generator_alone() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        learner = learner_of(layers())
        before = torch.get_rng_state()
        Lora(r=2).apply(learner, context(seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        return {name: tensor for name, tensor in learner.state_dict().items() if ".A." in name}

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_one_seed_gives_one_learner() -> None:
    one, same, other = (load("starter/vit-nano+lora+dora(roles=[mlp.in])", seed).added() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if ".A." in name)


# -- what it computes -------------------------------------------------------------------------------------------------


def test_scales_are_alpha_over_r_and_over_its_root() -> None:
    inputs = {"pixel_values": torch.randn(2, 3, 4, 4)}

    def given(recipe: Lora) -> Tensor:
        learner = learner_of(layers(), recipe)
        stir(learner)
        return learner.source(inputs).x

    plain = given(Lora(r=4, alpha=8))
    torch.testing.assert_close(given(Lora(r=4, alpha=4, rslora=True)), plain)  # 8 / 4 and 4 / sqrt 4
    assert not torch.allclose(given(Lora(r=4, alpha=8, rslora=True)), plain)
    assert torch.equal(given(Lora(r=4, alpha=0)), layers().eval()(inputs).x)


def low_rank(kind: type[Any], layer: nn.Module, r: int, site: Site | None = None, **arguments: Any) -> Any:
    """A change for a layer that stands alone, with A and B drawn."""
    generator = torch.Generator().manual_seed(5)
    site = site or Site(path="0", kind="linear" if isinstance(layer, nn.Linear) else "conv")
    weight = weight_of(layer, site)
    arguments = {"scale": 0.5, "dropout": 0.0} | arguments
    change = kind(layer, site, weight, r=r, label="test", generator=generator, **arguments)
    nn.init.normal_(change.B.weight, generator=generator)
    return change


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 10), (10, 6)])
@pytest.mark.parametrize("r", [5, 6])
def test_it_reaches_any_change_of_a_weight_at_full_rank_and_not_below(inputs: int, outputs: int, r: int) -> None:
    torch.manual_seed(0)
    layer, wanted = nn.Linear(inputs, outputs).double(), torch.randn(outputs, inputs).double()
    change = low_rank(LowRank, layer, r)
    with torch.no_grad():
        if outputs > inputs:  # A stays as it was drawn
            change.B.weight.copy_(torch.linalg.lstsq(0.5 * change.A.weight.T, wanted.T).solution.T)
        else:
            change.A.weight.copy_(torch.linalg.lstsq(0.5 * change.B.weight, wanted).solution)
        residual = (change.fold(layer.weight, None)[0] - layer.weight - wanted).abs().max()
    assert (residual < 1e-6) == (r == 6)


CONVOLUTIONS: dict[str, nn.Module] = {
    "plain": nn.Conv2d(4, 6, 3),
    "stride": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilation": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "circular": nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "reflect": nn.Conv2d(4, 6, (3, 1), padding=(1, 0), padding_mode="reflect"),
    "same": nn.Conv2d(4, 6, 3, padding="same", bias=False),
    "groups": nn.Conv2d(4, 6, 3, groups=2, stride=(1, 2)),
    "all": nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 3), dilation=(2, 1), groups=2, padding_mode="circular"),
    "1d": nn.Conv1d(4, 6, 5, stride=2, padding=2, groups=2),
    "3d": nn.Conv3d(4, 6, (1, 3, 2), padding=1),
}


def with_update(layer: nn.Module, change: Any) -> nn.Module:
    """A layer of its own whose kernels are those of the layer plus the update, kernel by kernel."""
    other = copy.deepcopy(layer)
    assert isinstance(other, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    a, b = change.A.weight, change.B.weight.flatten(1)
    r, rows = b.shape[1], other.out_channels // other.groups
    for output in range(other.out_channels):
        first = output // rows * r  # of the A that belongs to the output's group
        update = sum(b[output, place] * a[first + place] for place in range(r))
        other.weight.data[output] += change.scale * update
    if isinstance(change, Decomposed):
        norms = other.weight.detach().flatten(1).norm(dim=1)
        other.weight.data *= (change.m / norms).view(-1, *[1] * (other.weight.ndim - 1))
    return other


@pytest.mark.parametrize("kind", [LowRank, Decomposed])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_gives_what_its_changed_kernels_give(name: str, kind: type[Any]) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(CONVOLUTIONS[name]).double().requires_grad_(False)
    change = low_rank(kind, layer, 2)
    x = torch.randn(2, 4, *[9] * (layer.weight.ndim - 2), dtype=torch.float64)  # type: ignore[operator]
    expected = with_update(layer, change)(x)
    folded = copy.deepcopy(layer)
    network = nn.Sequential(layer)
    attach(network, Site(path="0", kind="conv"), change, "change")
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)
    folded.weight.copy_(change.fold(folded.weight, None)[0])  # type: ignore[operator]
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [LowRank, Decomposed])
@pytest.mark.parametrize("size", [8, 9, 10, 11])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_layer_that_pads_by_itself_is_followed(kind: type[Any], size: int, stride: int) -> None:
    layers_of_timm = pytest.importorskip("timm.layers")
    layer = layers_of_timm.Conv2dSame(4, 6, (3, 5), stride=stride, groups=2).double().requires_grad_(False)
    x = torch.randn(2, 4, size, size + 1, dtype=torch.float64)
    change = low_rank(kind, layer, 2)
    expected = with_update(layer, change)(x)
    network = nn.Sequential(layer)
    attach(network, Site(path="0", kind="conv"), change, "change")
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


class Odd(nn.Conv2d):
    """Pads in a way that nobody could guess."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (3, 1, 0, 0)))


def test_a_layer_that_pads_in_an_unknown_way_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"^test: 0 is a Odd, which pads its inputs in a way of its own$"):
        low_rank(LowRank, Odd(4, 6, 3), 2)


def test_rows_of_a_convolution_with_groups_are_refused() -> None:
    with pytest.raises(RefusedError, match="is a part of a convolution with groups"):
        low_rank(LowRank, nn.Conv2d(4, 6, 1, groups=2), 1, Site(path="0", kind="conv", outputs=(0, 3)))


def test_rows_and_columns_of_a_convolution_are_its_channels() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3).double().requires_grad_(False)
    site = Site(path="0", kind="conv", outputs=(1, 5), inputs=(1, 4))
    for kind in (LowRank, Decomposed):
        network = nn.Sequential(copy.deepcopy(layer))
        attach(network, site, low_rank(kind, layer, 2, site), "change")
        x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
        changed = network(x)
        assert not torch.allclose(changed, layer(x))
        fold_changes(network)
        torch.testing.assert_close(network(x), changed, rtol=0, atol=1e-12)
        same = network.get_parameter("0.weight") == layer.weight
        assert same[0].all()
        assert same[5].all()
        assert same[:, 0].all()


# -- pissa ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Linear(9, 6), nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(4, 6, 3)])
def test_pissa_starts_with_the_best_approximation_of_each_groups_weight(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    change, weight = low_rank(LowRank, layer, 2), layer.weight
    assert isinstance(weight, Tensor)
    change.decompose(weight, known=False)
    product = change.scale * change.product(change.A.weight, change.B.weight)
    for of_weight, of_product in zip(change.grouped(weight), product.chunk(change.groups), strict=True):
        u, s, v = torch.linalg.svd(of_weight, full_matrices=False)
        torch.testing.assert_close(of_product, u[:, :2] * s[:2] @ v[:2], rtol=0, atol=1e-12)
        torch.testing.assert_close((of_weight - of_product).square().sum(), s[2:].square().sum())
    assert torch.equal(change.fold(weight, None)[0], weight)  # what it starts from is taken off again


def test_pissa_trains_the_directions_and_keeps_where_it_started(tmp_path: Path, monkeypatch: Any) -> None:
    learner = load("starter/vit-nano+lora(r=4, init=pissa)")
    kept = {name: tensor.clone() for name, tensor in learner.delta().items() if name.endswith((".A0", ".B0"))}
    assert len(kept) == 2 * 2 * len(learner.source.sites("attn.q"))
    stir(learner)
    inputs = inputs_of(learner)
    zoo_core.save(learner, tmp_path / "run")

    def no_decomposition(*_: Any, **__: Any) -> None:
        raise AssertionError("what is about to be loaded is not computed first")

    monkeypatch.setattr(torch.linalg, "svd", no_decomposition)
    again = zoo_core.load_run(tmp_path / "run")
    assert torch.equal(again(inputs).predictions, learner(inputs).predictions)
    assert all(torch.equal(again.delta()[name], tensor) for name, tensor in kept.items())


# -- dora -------------------------------------------------------------------------------------------------------------


def test_doras_gradients_are_those_of_the_formula_with_norms_held_constant() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 5).double().requires_grad_(False)
    change = low_rank(Decomposed, layer, 2)
    network = nn.Sequential(layer)
    attach(network, Site(path="0"), change, "dora")
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    wanted = [x, change.A.weight, change.B.weight, change.m]
    ours = torch.autograd.grad(network(x).square().sum(), wanted)
    weight = layer.weight + change.scale * change.B.weight @ change.A.weight
    for held, same in ((weight.detach(), True), (weight, False)):  # without the constant A and B learn otherwise
        y = F.linear(x, change.m[:, None] * weight / held.norm(dim=1, keepdim=True), layer.bias)
        theirs = torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)
        equal = [torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(ours, theirs, strict=True)]
        assert equal == [True, same, same, True]


@pytest.mark.parametrize("backbone", STARTERS)
def test_after_merging_dora_the_norms_of_rows_are_its_magnitudes(backbone: str) -> None:
    learner = load(f"{backbone}+dora(r=2)")
    stir(learner)
    merged, num = learner.merge(), 0
    for path, _, changes in changes_of(learner.backbone):
        for change in changes:
            weight = weight_of(merged.backbone.get_submodule(path), change.site)
            magnitudes = change.get_parameter("m").abs()  # a sign of m turns its row around
            torch.testing.assert_close(weight.flatten(1).norm(dim=1), magnitudes, rtol=1e-6, atol=1e-6)
            num += 1
    assert num > 3


def test_a_row_of_zeros_is_no_division_by_zero() -> None:
    layer = nn.Linear(4, 3).requires_grad_(False)
    layer.weight.data[1] = 0
    network = nn.Sequential(copy.deepcopy(layer))
    change = low_rank(Decomposed, layer, 2)
    nn.init.zeros_(change.B.weight)
    attach(network, Site(path="0"), change, "dora")
    x = torch.randn(2, 4)
    assert torch.equal(network(x), layer(x))
    network(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in change.parameters())


# -- merging ----------------------------------------------------------------------------------------------------------


TOGETHER = ("dora+ssf", "ia3+lora", "lora+lora(r=2)", "ssf+lora")


@pytest.mark.parametrize(
    ("backbone", "method"),
    [("starter/vit-nano", each) for each in (*METHODS, *TOGETHER)]
    + [("starter/convnet-nano", each) for each in ("lora(init=pissa)", "dora+ssf")],
)
def test_merged_equals_unmerged(backbone: str, method: str) -> None:
    learner, base = load(f"{backbone}+{method}"), load(backbone)
    stir(learner)
    inputs = inputs_of(learner)
    with torch.no_grad():
        changed, merged = learner(inputs).features.x, learner.merge()
        assert not torch.allclose(changed, base(inputs).features.x, rtol=1e-2)
        scale = float(changed.abs().max())
        assert (merged(inputs).features.x - changed).abs().max() <= 1e-5 * scale
        assert {n: t.shape for n, t in merged.state_dict().items()} == {
            n: t.shape for n, t in base.state_dict().items()
        }
        learner.double()
        changed, merged = learner(double(inputs)).features.x, learner.merge()
        assert (merged(double(inputs)).features.x - changed).abs().max() <= 1e-10 * scale


@pytest.mark.parametrize("recipe", [Lora(r=2, roles=ALL), Lora(r=2, roles=ALL, init="pissa"), Dora(r=2, roles=ALL)])
def test_merged_equals_unmerged_at_every_kind_of_site(recipe: AdapterRecipe) -> None:
    base = layers().double()
    learner = learner_of(copy.deepcopy(base), recipe)
    stir(learner)
    inputs = {"pixel_values": torch.randn(2, 3, 4, 4, dtype=torch.float64)}
    changed = learner.source(inputs).x
    assert (base(inputs).x - changed).abs().max() > 1e-2
    merged = learner.merge()
    assert (merged.source(inputs).x - changed).abs().max() <= 1e-10
    assert list(merged.backbone.state_dict()) == list(base.state_dict())


def test_merging_q_and_v_leaves_the_rows_of_k_bit_for_bit() -> None:
    for spec, role in (("lora", "attn.q"), ("dora", "attn.v")):
        learner, base = load(f"starter/vit-nano+{spec}"), load("starter/vit-nano")
        stir(learner)
        merged = learner.merge().backbone
        for site in base.source.sites("attn.k"):
            assert torch.equal(read_weight(merged, site), read_weight(base.backbone, site))
        for site in base.source.sites(role):
            assert not torch.equal(read_weight(merged, site), read_weight(base.backbone, site))


@pytest.mark.parametrize("name", ["test_nfnet", pytest.param("nf_resnet26", marks=pytest.mark.slow)])
def test_merging_into_standardised_weights_is_refused(name: str) -> None:
    pytest.importorskip("timm")
    learner = load(f"timm/{name}(weights=random)+lora(r=2)")
    stir(learner, 1e-3)
    with pytest.raises(RefusedError, match="does not use its weight as it stands, so nothing can be folded into it"):
        learner.merge()
    with pytest.raises(RefusedError, match=r"^dora\(r=2\): .* does not use its weight as it stands; lora works there$"):
        load(f"timm/{name}(weights=random)+dora(r=2)")


# -- laws and tools ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", STARTERS)
@pytest.mark.parametrize("method", ["lora(init=pissa, dropout=0.1)", "dora"])
def test_what_is_frozen_is_bit_identical_after_training_and_all_that_was_added_moved(
    backbone: str, method: str
) -> None:
    learner = load(f"{backbone}+{method}")
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    optimiser = torch.optim.AdamW(learner.parameter_groups(1e-2, weight_decay=0.1))
    learner.train()
    for step in range(5):
        inputs = inputs_of(learner, 4)
        batch = Batch(inputs=inputs, target=(torch.arange(4) + step) % 3, ids=tuple("abcd"))
        optimiser.zero_grad()
        learner.loss(learner(inputs), batch).backward()
        optimiser.step()
    moved = {name for name, tensor in learner.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, _ in learner.trainable()}
    assert learner.added().keys() == {name for name in moved if name.startswith("backbone.")}


def test_factors_decay_and_magnitudes_do_not() -> None:
    learner = load("starter/vit-nano+dora")
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in learner.added().items()}
    decaying = {
        decay: {
            names[id(p)]
            for g in learner.parameter_groups(1e-3, 0.1)
            if g["weight_decay"] == decay
            for p in g["params"]
            if id(p) in names
        }
        for decay in (0.1, 0.0)
    }
    assert decaying == {0.1: {"weight"}, 0.0: {"m"}}


@pytest.mark.parametrize("method", ["lora(dropout=0.5)", "dora(dropout=0.5)"])
def test_dropout_acts_on_the_update_while_training(method: str) -> None:
    learner = load(f"starter/vit-nano+{method}")
    stir(learner)
    inputs = inputs_of(learner)
    with torch.no_grad():
        assert torch.equal(learner(inputs).features.x, learner(inputs).features.x)
        learner.train()
        assert not torch.equal(learner(inputs).features.x, learner(inputs).features.x)


@pytest.mark.parametrize("method", ["lora(init=pissa)", "dora"])
def test_a_deep_copy_is_a_learner_of_its_own(method: str) -> None:
    learner = load(f"starter/vit-nano+{method}")
    inputs = inputs_of(learner)
    other, before = copy.deepcopy(learner), learner(inputs).features.x
    stir(other)
    assert torch.equal(learner(inputs).features.x, before)
    assert not torch.allclose(other(inputs).features.x, before)


def compiled_agrees(learner: Learner, inputs: Mapping[str, Tensor], **arguments: Any) -> None:
    parameters = list(learner.added().values())
    loss_of(learner, inputs).backward()
    plain = learner.source(inputs).x
    expected = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    assert len(expected) == len(parameters)
    learner.zero_grad()
    learner.backbone.compile(fullgraph=True, **arguments)
    torch.testing.assert_close(learner.source(inputs).x, plain, rtol=1e-5, atol=1e-5)
    loss_of(learner, inputs).backward()
    for parameter, grad in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_as_one_graph_with_the_same_numbers(backend: str) -> None:
    """Every kind of site, lora and dora side by side; inductor makes code of it."""
    torch.compiler.reset()
    pissa = Lora(r=2, roles=("attn.q", "attn.out"), init="pissa")
    learner = learner_of(layers(), pissa, Dora(r=2, roles=("attn.v", "mlp.out", "mlp.in")))
    stir(learner)
    compiled_agrees(learner, {"pixel_values": torch.randn(2, 3, 4, 4)}, backend=backend)


@pytest.mark.exhaustive  # half a minute to two minutes each
@pytest.mark.parametrize("backbone", STARTERS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_it_compiles_to_code_with_the_same_numbers(backbone: str, method: str) -> None:
    learner = load(f"{backbone}+{method}")
    stir(learner)
    compiled_agrees(learner, inputs_of(learner))


@pytest.mark.parametrize("backbone", STARTERS)
@pytest.mark.parametrize("method", ["lora(init=pissa)", "dora"])
def test_it_runs_in_bfloat16_and_under_autocast(backbone: str, method: str) -> None:
    learner = load(f"{backbone}+{method}")
    inputs = inputs_of(learner)
    exact = learner(inputs).features.x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(learner(inputs).features.x, load(backbone)(inputs).features.x)
    learner.bfloat16()
    learner.objective = None
    loss_of(learner, {name: tensor.bfloat16() for name, tensor in inputs.items()}).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.added().values())
    rounded = learner({name: tensor.bfloat16() for name, tensor in inputs.items()}).features.x
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_checkpointing_of_activations_gives_the_same_gradients() -> None:
    one, other = (load("starter/vit-nano+dora") for _ in range(2))
    for learner in (one, other):
        stir(learner)
    for path in other.source.stages:
        stage = other.backbone.get_submodule(path)
        forward = stage.forward
        stage.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=False)
    for learner in (one, other):
        loss_of(learner, inputs_of(learner)).backward()
    for name, parameter in one.added().items():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, other.added()[name].grad)  # type: ignore[arg-type]


# -- peft's numbers ---------------------------------------------------------------------------------------------------


class Bert(nn.Module):
    """A tiny BERT of transformers, its sites named by hand."""

    modality: Modality = "text"
    features = FeatureSpec(kind="tokens", dim=16)
    preparation = ImagePreparation(size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # nobody asks it
    leaves: Mapping[str, str] = {
        "attn.q": "attention.self.query",
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "mlp.in": "intermediate.dense",
        "mlp.out": "output.dense",
    }

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
        torch.manual_seed(0)
        self.model = transformers.BertModel(config, add_pooling_layer=False).double()
        self.stages = tuple(f"model.encoder.layer.{index}" for index in range(2))

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="tokens", x=self.model(**inputs).last_hidden_state)

    def pool(self, features: Features) -> Tensor:
        return features.x.mean(1)

    def sites(self, role: str) -> tuple[Site, ...]:
        return tuple(Site(path=f"{stage}.{self.leaves[role]}") for stage in self.stages) if role in self.leaves else ()


TEXT = {"input_ids": torch.arange(14).view(2, 7), "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}


PLACES = {"A.weight": "lora_A", "B.weight": "lora_B", "m": "lora_magnitude_vector"}


def agrees_with_peft(
    learner: Learner, network: nn.Module, inputs: Mapping[str, Tensor], r: int, **arguments: Any
) -> None:
    """Outputs and gradients of ours and of peft's adapter on the same sites of an equal network, with equal numbers.

    In float64, so that 1e-9 is far above rounding and far below any difference that would matter.
    """
    peft = pytest.importorskip("peft")
    sites = {path.removeprefix("model."): changes[0] for path, _, changes in changes_of(learner.backbone)}
    config = peft.LoraConfig(r=r, lora_alpha=16, target_modules=sorted(sites), **arguments)
    theirs = peft.get_peft_model(network.requires_grad_(False), config).eval()
    pairs = []
    for path, change in sites.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        for place, parameter in change.named_parameters():
            pairs.append((parameter, layer.get_submodule(PLACES[place]).get_parameter("default.weight")))
    with torch.no_grad():
        for parameter, other in pairs:
            other.copy_(parameter.view_as(other))
    assert len(pairs) == len(learner.added()) == sum(p.requires_grad for p in theirs.parameters())
    x = learner.source(inputs).x
    learner.backbone.model = theirs.base_model.model  # the same wrapper around peft's network
    y = learner.source(inputs).x
    torch.testing.assert_close(x, y, rtol=0, atol=1e-9)
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    for given in (x, y):
        (given * weights).sum().backward()
    for parameter, other in pairs:
        assert parameter.grad is not None
        assert parameter.grad.any()
        torch.testing.assert_close(parameter.grad, other.grad.view_as(parameter), rtol=1e-12, atol=1e-9)  # up to 3e4


PEFTS_OWN = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
PEFT = [(Lora, {}), (Lora, {"use_rslora": True}), (Dora, {"use_dora": True})]


@PEFTS_OWN
@pytest.mark.parametrize(("kind", "arguments"), PEFT)
def test_outputs_and_gradients_on_bert_are_pefts(kind: type[Any], arguments: dict[str, bool]) -> None:
    ours = {"rslora": True} if "use_rslora" in arguments else {}
    learner = learner_of(Bert(), kind(r=4, roles=("attn.q", "attn.v", "mlp.out"), **ours))
    stir(learner)
    agrees_with_peft(learner, Bert().model, TEXT, 4, **arguments)


@PEFTS_OWN
@pytest.mark.parametrize(("kind", "arguments"), PEFT)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_outputs_and_gradients_on_timm_are_pefts(name: str, kind: type[Any], arguments: dict[str, bool]) -> None:
    pytest.importorskip("timm")
    base = load(f"timm/{name}(weights=random)").double()
    with torch.no_grad():
        for site in base.source.sites("norm"):  # random residual branches end in zeros, which let no gradient through
            read_weight(base.backbone, site).uniform_(0.5, 1)
    roles = ("attn.out", "mlp.in", "mlp.out") if name == "test_vit" else ("conv",)
    ours = {"rslora": True} if "use_rslora" in arguments else {}
    learner = learner_of(copy.deepcopy(base.backbone), kind(r=2, roles=roles, **ours))
    stir(learner)
    inputs = double(inputs_of(base, 2))
    agrees_with_peft(learner, base.backbone.get_submodule("model"), inputs, 2, **arguments)


# -- wrong arguments and backbones ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "error", "message"),
    [
        ("lora(r=0)", UsageError, "lora(r=0): allowed: 1 or more; probe trains the head alone"),
        ("lora(r=-4)", UsageError, "lora(r=-4): allowed: 1 or more"),
        ("dora(r=0)", UsageError, "dora(r=0): allowed: 1 or more"),
        ("lora(r=2.5)", UsageError, "r is a whole number"),
        ("lora(alpha=-1)", UsageError, "lora(alpha=-1): allowed: 0 or more"),
        ("dora(alpha=-1)", UsageError, "dora(alpha=-1): allowed: 0 or more"),
        ("lora(alpha=0, init=pissa)", UsageError, "allowed: alpha above 0"),
        ("lora(dropout=1)", UsageError, "lora(dropout=1): allowed: 0 to below 1"),
        ("dora(dropout=-0.1)", UsageError, "dora(dropout=-0.1): allowed: 0 to below 1"),
        ("lora(init=svd)", UsageError, "pissa"),
        ("lora(roles=[attn.qq])", UsageError, "lora(roles=attn.qq): allowed: attn.q, attn.k, "),
        ("lora(roles=[norm])", UsageError, "lora(roles=norm): allowed: attn.q, "),
        ("dora(roles=[embed])", UsageError, "dora(roles=embed): allowed: attn.q, "),
        ("lora(roles=[mlp.gate])", RefusedError, "adapter lora works on mlp.gate; starter/vit-nano has attn.k, "),
        ("lora(r=97)", RefusedError, "96 inputs and 96 outputs; allowed there: r from 1 to 96"),
        ("dora(r=97)", RefusedError, "dora(r=97): network.blocks.0.attn.qkv has 96 inputs and 96 outputs"),
        ("dora+lora", RefusedError, "lora: network.blocks.0.attn.qkv has dora already"),
        ("lora+dora", RefusedError, "dora: network.blocks.0.attn.qkv has lora already"),
        ("dora+dora", RefusedError, "dora: network.blocks.0.attn.qkv has dora already"),
        ("ssf+dora", RefusedError, "dora: network.blocks.0.attn.qkv has ssf already"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(adapter: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        load(f"starter/vit-nano+{adapter}")
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rank_that_no_convolution_has_room_for_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"^lora\(r=500\): network.* allowed there: r from 1 to "):
        load("starter/convnet-nano+lora(r=500)")


@pytest.mark.parametrize(
    "recipe", [Lora(r=2, roles=("mlp.in",), dropout=0.1), Dora(r=2, roles=("mlp.in",), dropout=0.1)]
)
def test_dropout_is_refused_where_the_weight_is_read(recipe: AdapterRecipe) -> None:
    with pytest.raises(UsageError, match=r"\(dropout=0.1\): read is read without a call; allowed there: 0$"):
        learner_of(layers(), recipe)


def test_what_is_no_matrix_is_refused() -> None:
    network = layers()
    network.places = {"mlp.in": (Site(path="norm", kind="norm"),)}  # a role that a backbone gets wrong
    network.norm = nn.LayerNorm(D)
    with pytest.raises(
        RefusedError, match=r"^lora\(r=2\): norm is a LayerNorm; it works on linear layers and convolutions$"
    ):
        learner_of(network, Lora(r=2, roles=("mlp.in",)))


@pytest.mark.parametrize("recipe", [Lora, Dora])
def test_a_grid_is_five_ascending_rates_evenly_apart(recipe: type[AdapterRecipe]) -> None:
    grid = fact("adapter", recipe, "learning_rates")
    assert len(grid) == 5
    assert [high / low for low, high in pairwise(grid)] == pytest.approx([5.0] * 4)
