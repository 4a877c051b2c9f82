"""ia3 and ssf: where they act, what they train, that they start as the base and fold into it, and peft's numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo_core
from zoo_adapters.scaling import Ia3, Ssf
from zoo_core.contracts import AdapterRecipe, Batch, Context, Features, FeatureSpec, Modality, Site, Target, fact
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import CrossEntropy
from zoo_core.plan.resolve import resolve
from zoo_core.toolkit.preparations import ImagePreparation
from zoo_core.toolkit.sites import changes_of, read_bias, read_weight

pytest.importorskip("zoo_starter")

CLASSES = Target(kind="classes", names=("a", "b", "c"))
D = 8


def load(spec: str, seed: int = 0) -> Learner:
    return zoo_core.load(spec, target=CLASSES, seed=seed)


def inputs_of(learner: Learner, num: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    like = learner.source.preparation.dummy(num)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in like.items()}


def double(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in inputs.items()}


def stir(learner: Learner, size: float = 0.1) -> None:
    """Moves every added parameter, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, _, changes in changes_of(learner.backbone):
            for change in changes:
                for parameter in change.parameters():
                    parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))


def added(learner: Learner) -> int:
    return sum(parameter.numel() for parameter in learner.added().values())


def learner_of(backbone: nn.Module, *recipes: AdapterRecipe, seed: int = 0) -> Learner:
    """A learner put together by hand, whose head nobody asks."""

    backbone.requires_grad_(False).eval()
    base = [*backbone.parameters(), *backbone.buffers()]
    learner = Learner(backbone, nn.Linear(1, 3), "pooled", CrossEntropy(), CLASSES)
    generator = torch.Generator().manual_seed(seed)
    for recipe in recipes:
        context = Context(target=CLASSES, purpose="train", generator=generator)
        assert recipe.apply(learner, context) is learner
    learner.seal(base)
    return learner.eval()


class Layers(nn.Module):
    """Fused rows, one layer of two roles by columns, a norm without a bias, a weight that is read; sites as given."""

    modality: Modality = "image"
    features = FeatureSpec(kind="tokens", dim=D)
    preparation = ImagePreparation(size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    stages = ("fused",)

    def __init__(self, **roles: Site) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.roles = {role.replace("_", "."): site for role, site in roles.items()}
        self.fused = nn.Linear(D, 3 * D)
        self.joint = nn.Linear(3 * D, D)
        self.norm = nn.RMSNorm(D)
        self.read = nn.Linear(D, D)
        self.double()

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        x_BTD = inputs["pixel_values"].flatten(2)[..., :D]
        x_BTD = self.norm(self.joint(torch.tanh(self.fused(x_BTD))))
        return Features(kind="tokens", x=F.linear(x_BTD, self.read.weight, self.read.bias))

    def pool(self, features: Features) -> Tensor:
        return features.x.mean(1)

    def sites(self, role: str) -> tuple[Site, ...]:
        return (self.roles[role],) if role in self.roles else ()


K = Site(path="fused", outputs=(D, 2 * D))
V = Site(path="fused", outputs=(2 * D, 3 * D))
COLUMNS = Site(path="joint", inputs=(D, 3 * D))
OTHER_COLUMNS = Site(path="joint", inputs=(0, D))
NORM = Site(path="norm", kind="norm")
READ = Site(path="read", called=False)
EXAMPLE = {"pixel_values": torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


# -- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "num"),
    [
        (Ia3(), 12 * (768 + 768 + 3072)),
        (Ssf(), 2 * (768 + 12 * (768 + 2304 + 768 + 768 + 3072 + 768) + 768)),  # stem, norm, qkv, proj, norm, MLP; norm
        (Ssf(roles=("norm",)), 2 * 768 * 25),
    ],
)
def test_the_counts_on_vit_b16_are_the_closed_forms(recipe: AdapterRecipe, num: int) -> None:
    pytest.importorskip("timm")
    plan = resolve("timm/vit_base_patch16_224(weights=random)", target=CLASSES)
    with torch.device("meta"):  # shapes without memory
        backbone = plan.backbone.recipe.build(None, "random")
        assert added(learner_of(backbone, recipe)) == num


def test_ssf_shifts_only_what_has_a_bias() -> None:
    learner = load("starter/convnet-nano+ssf")
    expected = 0
    for role in ("conv", "norm"):
        for site in learner.source.sites(role):
            shifts = read_bias(learner.backbone, site) is not None
            expected += read_weight(learner.backbone, site).shape[0] * (2 if shifts else 1)
    assert added(learner) == expected
    paths = {name.rpartition(".ssf.")[0] for name in learner.added() if name.endswith("shift")}
    assert paths == {f"backbone.{path}" for path, m in learner.backbone.named_modules() if _biased(m)}
    assert any(isinstance(m, nn.Conv2d) and m.bias is None for m in learner.backbone.modules())


def _biased(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None


def test_roles_of_ssf_are_a_choice() -> None:
    learner = load("starter/vit-nano+ssf(roles=[norm, mlp.in])")
    owners = {path for path, _, _ in changes_of(learner.backbone)}
    assert owners == {site.path for role in ("norm", "mlp.in") for site in learner.source.sites(role)}


# -- where it acts ----------------------------------------------------------------------------------------------------


def test_ia3_scales_keys_and_values_with_their_biases_and_what_mlps_are_given() -> None:
    plain, network = Layers(), Layers(attn_k=K, attn_v=V, mlp_out=COLUMNS)
    learner = learner_of(network, Ia3())
    stir(learner)
    k, v = (network.fused.get_submodule(name).get_parameter("scale") for name in ("ia3", "ia3_2"))
    hidden = network.joint.get_submodule("ia3").get_parameter("scale")
    x = EXAMPLE["pixel_values"].flatten(2)[..., :D]
    y = torch.tanh(plain.fused(x) * torch.cat([torch.ones(D), k, v]))
    y = plain.norm(plain.joint(y * torch.cat([torch.ones(D), hidden])))
    expected = F.linear(y, plain.read.weight, plain.read.bias)
    torch.testing.assert_close(learner.source(EXAMPLE).x, expected, rtol=0, atol=1e-12)


def test_ssf_scales_and_shifts_once_what_several_sites_share() -> None:
    plain = Layers()
    network = Layers(attn_k=K, attn_v=V, attn_out=OTHER_COLUMNS, mlp_out=COLUMNS, norm=NORM, mlp_in=READ)
    learner = learner_of(network, Ssf())
    assert added(learner) == 2 * D + 2 * D + 2 * D + D + D
    stir(learner)
    changes = {path: found for path, _, found in changes_of(network)}
    [k, v], [joint], [norm], [read] = (changes[path] for path in ("fused", "joint", "norm", "read"))
    keep = torch.ones(D), torch.zeros(D)
    x = EXAMPLE["pixel_values"].flatten(2)[..., :D]
    y = plain.fused(x) * torch.cat([keep[0], *(each.get_parameter("scale") for each in (k, v))])
    y = torch.tanh(y + torch.cat([keep[1], *(each.get_parameter("shift") for each in (k, v))]))
    y = plain.norm(plain.joint(y) * joint.get_parameter("scale") + joint.get_parameter("shift"))
    y = y * norm.get_parameter("scale")
    expected = F.linear(y, plain.read.weight * read.get_parameter("scale")[:, None], plain.read.bias)
    torch.testing.assert_close(learner.source(EXAMPLE).x, expected, rtol=0, atol=1e-12)
    merged = learner.merge()
    assert (merged.source(EXAMPLE).x - expected).abs().max() < 1e-12
    assert list(merged.backbone.state_dict()) == list(plain.state_dict())


def test_ssf_acts_in_a_norm_before_its_activation() -> None:
    pytest.importorskip("timm")
    learner = load("timm/test_efficientnet(weights=random)+ssf(roles=[norm])")
    path, norm, _ = next(
        found for found in changes_of(learner.backbone) if isinstance(found[1].get_submodule("act"), nn.SiLU)
    )
    given: list[Tensor] = []
    learner.backbone.get_submodule(path).register_forward_hook(lambda _, args, y: given.extend([args[0], y]))
    stir(learner)
    learner(inputs_of(learner))
    bare: Any = copy.deepcopy(norm)
    scale, shift = (bare.ssf.get_parameter(name) for name in ("scale", "shift"))
    x = F.batch_norm(given[0], bare.running_mean, bare.running_var, bare.weight, bare.bias, eps=bare.eps)
    expected = F.silu(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1))
    torch.testing.assert_close(given[1], expected, rtol=1e-5, atol=1e-5)


def test_where_there_is_no_attention_ia3_scales_hidden_units_alone() -> None:
    learner = load("starter/mlp-nano(weights=random)+ia3")
    sites = learner.source.sites("mlp.out")
    assert {path for path, _, _ in changes_of(learner.backbone)} == {site.path for site in sites}
    assert added(learner) == sum(read_weight(learner.backbone, site).shape[1] for site in sites)


# -- the start --------------------------------------------------------------------------------------------------------

SPECS = (
    "starter/vit-nano+ia3",
    "starter/vit-nano+ssf",
    "starter/convnet-nano+ssf",
    "timm/test_efficientnet(weights=random)+ssf",
    "timm/test_vit(weights=random)+ssf+ia3+ssf",
)


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> str:
    if request.param.startswith("timm/"):
        pytest.importorskip("zoo_timm")
    return str(request.param)


def test_it_starts_as_the_base_bit_for_bit(spec: str) -> None:
    base, learner = load(spec.partition("+")[0]), load(spec)
    inputs = inputs_of(base)
    assert torch.equal(learner(inputs).features.x, base(inputs).features.x)


def test_the_papers_start_is_drawn_from_the_seed() -> None:
    one, same, other = (load("starter/vit-nano+ssf(init=paper)", seed).added() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    for place, mean in (("scale", 1.0), ("shift", 0.0)):
        values = torch.cat([p.detach() for name, p in one.items() if name.endswith(place)])
        assert values.mean() == pytest.approx(mean, abs=0.003)  # 4,000 draws
        assert values.std() == pytest.approx(0.02, rel=0.1)


# -- merging ----------------------------------------------------------------------------------------------------------


def test_merged_equals_unmerged(spec: str) -> None:
    learner, base = load(spec), load(spec.partition("+")[0])
    stir(learner)
    inputs = inputs_of(learner)
    with torch.no_grad():
        changed = learner(inputs).features.x
        assert not torch.allclose(changed, base(inputs).features.x, rtol=1e-2)
        scale = float(changed.abs().max())
        merged = learner.merge()
        assert (merged(inputs).features.x - changed).abs().max() <= 1e-5 * scale
        assert list(merged.backbone.state_dict()) == list(base.backbone.state_dict())
        learner.double()
        changed = learner(double(inputs)).features.x
        assert (learner.merge()(double(inputs)).features.x - changed).abs().max() <= 1e-12 * scale


def test_ssf_on_standardised_weights_works_and_does_not_fold() -> None:
    pytest.importorskip("zoo_timm")
    learner = load("timm/test_nfnet(weights=random)+ssf")
    stir(learner)
    with pytest.raises(RefusedError, match=r"^ssf at .* does not use its weight as it stands"):
        learner.merge()


# -- laws and tools ---------------------------------------------------------------------------------------------------


def test_what_is_frozen_is_bit_identical_after_training_and_all_that_was_added_moved(spec: str) -> None:
    learner = load(spec)
    with torch.no_grad():
        for site in learner.source.sites(
            "norm"
        ):  # random residual branches end in zeros, which let no gradient through
            read_weight(learner.backbone, site).uniform_(0.5, 1)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    optimiser = torch.optim.AdamW(learner.parameter_groups(1e-2, weight_decay=0.1))
    assert all(group["weight_decay"] == 0 for group in optimiser.param_groups if group["params"][0].ndim == 1)
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


def test_a_deep_copy_and_a_stored_run_are_learners_of_their_own(tmp_path: Path) -> None:
    learner = load("starter/convnet-nano+ssf(init=paper)")
    inputs = inputs_of(learner)
    before = learner(inputs).predictions
    zoo_core.save(learner, tmp_path / "run")
    again, other = zoo_core.load_run(tmp_path / "run"), copy.deepcopy(learner)
    assert torch.equal(again(inputs).predictions, before)
    stir(other)
    assert torch.equal(learner(inputs).predictions, before)
    assert not torch.allclose(other(inputs).predictions, before)


def test_it_compiles_as_one_graph_with_the_same_numbers() -> None:
    pytest.importorskip("zoo_timm")
    learner = load("timm/test_efficientnet(weights=random)+ssf")
    stir(learner)
    inputs = inputs_of(learner)
    plain = learner.source(inputs).x
    learner.backbone.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(learner.source(inputs).x, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_both_compile_to_code_with_the_same_numbers() -> None:
    """Every kind of site: fused rows, columns, a norm without a bias, a weight that is read."""
    network = Layers(attn_k=K, attn_v=V, attn_out=OTHER_COLUMNS, mlp_out=COLUMNS, norm=NORM, mlp_in=READ)
    learner = learner_of(network, Ssf(), Ia3())
    stir(learner)
    plain = learner.source(EXAMPLE).x
    torch.compiler.reset()
    learner.backbone.compile(fullgraph=True)
    torch.testing.assert_close(learner.source(EXAMPLE).x, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.exhaustive  # half a minute each
@pytest.mark.parametrize("each", ["starter/vit-nano+ia3", "timm/test_efficientnet(weights=random)+ssf"])
def test_it_compiles_to_code_with_the_same_numbers(each: str) -> None:
    learner = load(each)
    stir(learner)
    inputs = inputs_of(learner)
    plain = learner.source(inputs).x
    learner.backbone.compile(fullgraph=True)
    torch.testing.assert_close(
        learner.source(inputs).x, plain, rtol=1e-4, atol=1e-4 * float(plain.detach().abs().max())
    )


def test_it_runs_in_bfloat16_and_under_autocast(spec: str) -> None:
    learner, base = load(spec), load(spec.partition("+")[0])
    inputs = inputs_of(learner)
    exact = base(inputs).features.x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(learner(inputs).features.x, base(inputs).features.x)
    rounded = learner.bfloat16().source({name: tensor.bfloat16() for name, tensor in inputs.items()}).x
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.added().values())
    assert (rounded.float() - exact).abs().max() < 0.2 * exact.abs().max()


# -- peft's numbers ---------------------------------------------------------------------------------------------------


class Bert(nn.Module):
    """A tiny BERT of transformers, its sites named by hand."""

    modality: Modality = "text"
    features = FeatureSpec(kind="tokens", dim=16)
    preparation = ImagePreparation(size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # nobody asks it
    leaves: Mapping[str, str] = {
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
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


def vit() -> nn.Module:
    """A ViT of timm whose sites are its MLPs alone: its keys and values are rows of a layer, which peft cannot take."""
    pytest.importorskip("timm")
    backbone: Any = load("timm/test_vit(weights=random)").backbone.double()
    found = backbone.sites
    backbone.sites = lambda role: found(role) if role == "mlp.out" else ()
    again: nn.Module = copy.deepcopy(backbone)
    return again


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("make", [Bert, vit])
def test_ia3s_outputs_and_gradients_are_pefts(make: Callable[[], nn.Module]) -> None:
    peft = pytest.importorskip("peft")
    learner = learner_of(make(), Ia3())
    stir(learner)
    inputs: dict[str, Tensor] = {"input_ids": torch.arange(14).view(2, 7)}
    if make is vit:
        inputs = double(inputs_of(learner))
    sites = {path.removeprefix("model."): changes[0] for path, _, changes in changes_of(learner.backbone)}
    hidden = sorted(path for path, change in sites.items() if change.changes_inputs)
    config = peft.IA3Config(target_modules=sorted(sites), feedforward_modules=hidden)
    theirs = peft.get_peft_model(make().get_submodule("model").requires_grad_(False), config).eval()
    pairs = []
    for path, change in sites.items():
        vectors = theirs.get_submodule(f"base_model.model.{path}").ia3_l
        pairs.append((change.get_parameter("scale"), vectors.get_parameter("default")))
    with torch.no_grad():
        for ours, other in pairs:
            other.copy_(ours.view_as(other))
    x = learner.source(inputs).x
    learner.backbone.model = theirs.base_model.model  # the same wrapper around peft's network
    y = learner.source(inputs).x
    torch.testing.assert_close(x, y, rtol=0, atol=1e-9)  # float64: far above rounding
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    for given in (x, y):
        (given * weights).sum().backward()
    assert len(pairs) == len(learner.source.stages) * (1 if make is vit else 3)
    for ours, other in pairs:
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, other.grad.view_as(ours), rtol=0, atol=1e-9)


# -- wrong arguments and backbones ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("starter/convnet-nano+ia3", RefusedError, "or else mlp.out; starter/convnet-nano has conv, norm"),
        ("starter/vit-nano+ia3(r=2)", UsageError, "r"),
        ("starter/vit-nano+ssf(roles=[embed])", UsageError, "ssf(roles=embed): allowed: attn.q, "),
        ("starter/vit-nano+ssf(roles=[norms])", UsageError, "conv; did you mean norm?"),
        ("starter/vit-nano+ssf(init=zero)", UsageError, "identity"),
        (
            "starter/vit-nano+ssf(roles=[mlp.gate])",
            RefusedError,
            "adapter ssf works on mlp.gate; starter/vit-nano has ",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        load(spec)
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ia3_is_refused_where_keys_are_read_without_a_call() -> None:
    with pytest.raises(
        RefusedError, match=r"^ia3: the backbone reads the weight of read without calling it, so only a "
    ):
        learner_of(Layers(attn_k=READ, attn_v=V), Ia3())


def test_ia3_is_refused_where_hidden_units_go_into_a_convolution() -> None:
    network = Layers(mlp_out=Site(path="mix", kind="conv"))
    network.mix = nn.Conv1d(D, D, 1)
    with pytest.raises(RefusedError, match=r"^ia3: mix is a Conv1d; it scales what linear layers are given$"):
        learner_of(network, Ia3())


@pytest.mark.parametrize("recipe", [Ia3, Ssf])
def test_a_grid_is_five_ascending_rates_around_the_recommended_one(recipe: type[AdapterRecipe]) -> None:
    grid = fact("adapter", recipe, "learning_rates")
    assert len(grid) == 5
    assert grid[2] == 5e-3
    assert [high / low for low, high in pairwise(grid)] == pytest.approx([5.0] * 4)
