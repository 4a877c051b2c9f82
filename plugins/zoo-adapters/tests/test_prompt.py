"""prompt: what stands among the tokens, what features come of it, where it is refused; on starter and timm networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo_core
from zoo_adapters.prompt import Prompt
from zoo_adapters.prompt_modules import PromptOf, add_prompts
from zoo_core.contracts import Batch
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.stages import boundary, groups

pytest.importorskip("zoo_starter")

VIT = "timm/test_vit(weights=random)"
POOLS = ("test_vit", "test_vit2", "test_vit3", "deit_tiny_distilled_patch16_224")


def load(adapters: str, backbone: str = "starter/vit-nano") -> Learner:
    if backbone.startswith("timm/"):
        pytest.importorskip("zoo_timm")
    return zoo_core.load(f"{backbone}+{adapters}", num_classes=3).eval()


def pictures(learner: Learner, num: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    dummy = learner.source.preparation.dummy(num)
    return {name: torch.randn(x.shape, generator=generator) for name, x in dummy.items()}


def batch_of(learner: Learner) -> Batch:
    return Batch(inputs=pictures(learner), target=torch.arange(3), ids=("0", "1", "2"))


def prompts(learner: Learner) -> list[PromptOf]:
    return [module for module in learner.backbone.modules() if isinstance(module, PromptOf)]


def entering(learner: Learner, inputs: dict[str, Tensor]) -> list[Tensor]:
    stages = range(len(learner.source.stages))
    return [boundary(learner.backbone, inputs, stage) for stage in stages]


@pytest.mark.parametrize("length", [1, 10])
def test_the_number_of_added_values_is_the_formulas(length: int) -> None:
    for deep, stages in (("false", 1), ("true", 4)):
        learner = load(f"prompt(length={length},deep={deep})")
        assert sum(x.numel() for x in learner.added().values()) == stages * length * 96
        assert {name for name, _ in learner.trainable() if not name.startswith("heads.")} == set(learner.added())
        assert {name for name in learner.delta() if name.startswith("backbone.")} == set(learner.added())


@pytest.mark.slow  # 86 million weights are drawn
def test_deep_prompts_of_ten_on_vit_b16_have_92160_values() -> None:
    learner = load("prompt(length=10,deep=true)", "timm/vit_base_patch16_224(weights=random)")
    assert sum(x.numel() for x in learner.added().values()) == 92160
    assert "92,160 on ViT-B/16" in (Prompt.__doc__ or "")


@pytest.mark.parametrize("deep", ["false", "true"])
@pytest.mark.parametrize("backbone", ["starter/vit-nano", VIT])
def test_every_stage_gets_as_many_tokens_more(backbone: str, deep: str) -> None:
    learner, bare = load(f"prompt(length=5,deep={deep})", backbone), load("probe", backbone)
    inputs = pictures(learner)
    with torch.no_grad():
        before, after = entering(bare, inputs), entering(learner, inputs)
        assert learner(inputs).features.x.shape == bare(inputs).features.x.shape
    start = 1 if backbone == VIT else 0
    for stage, (one, other) in enumerate(zip(before, after, strict=True)):
        assert other.shape[1] == one.shape[1] + 5
        own = prompts(learner)[stage if deep == "true" else 0].tokens
        found = other[:, start : start + 5]
        assert torch.equal(found, own.expand(3, -1, -1)) == (stage == 0 or deep == "true")
    assert torch.equal(torch.cat([after[0][:, :start], after[0][:, start + 5 :]], dim=1), before[0])


def by_hand(network: Any, pixels: Tensor, tokens: list[Tensor]) -> Tensor:
    """The features of timm's vision transformer with learned tokens, written out: one for all stages, or one each."""
    x = network.norm_pre(network._pos_embed(network.patch_embed(pixels)))
    start, length = network.num_prefix_tokens, len(tokens[0])
    x = torch.cat([x[:, :start], tokens[0].expand(len(x), -1, -1), x[:, start:]], dim=1)
    for stage, block in enumerate(network.blocks):
        if 0 < stage < len(tokens):
            x = torch.cat([x[:, :start], tokens[stage].expand(len(x), -1, -1), x[:, start + length :]], dim=1)
        x = block(x)
    found: Tensor = network.norm(torch.cat([x[:, :start], x[:, start + length :]], dim=1))
    return found


@pytest.mark.parametrize("deep", ["false", "true"])
@pytest.mark.parametrize("name", POOLS)
def test_it_equals_a_forward_pass_written_by_hand_however_the_network_pools(name: str, deep: str) -> None:
    learner = load(f"prompt(length=5,deep={deep})", f"timm/{name}(weights=random)")
    plain: Any = load("probe", f"timm/{name}(weights=random)").backbone
    inputs = pictures(learner, 2)
    with torch.no_grad():
        wanted = by_hand(plain.network, inputs["pixel_values"], [each.tokens for each in prompts(learner)])
        features = learner(inputs).features
        torch.testing.assert_close(features.x, wanted, rtol=1e-5, atol=1e-5)  # float32
        pooled = plain.network.forward_head(wanted, pre_logits=True)
        torch.testing.assert_close(learner.source.pool(features), pooled, rtol=1e-5, atol=1e-5)


def test_the_networks_above_pool_by_token_average_and_map() -> None:
    pools: dict[str, tuple[str, int]] = {}
    for name in POOLS:
        network: Any = load("probe", f"timm/{name}(weights=random)").backbone
        pools[name] = network.network.global_pool, network.network.num_prefix_tokens
    assert {"token", "avg", "map"} <= {pool for pool, _ in pools.values()}, pools
    assert {1, 2} <= {prefix for _, prefix in pools.values()}, pools


@pytest.mark.slow  # 22 million weights are drawn
def test_they_stand_behind_class_token_and_registers() -> None:
    learner = load("prompt(length=5)", "timm/vit_small_patch14_reg4_dinov2(weights=random)")
    state = boundary(learner.backbone, pictures(learner, 1), 0)
    assert torch.equal(state[0, 5:10], prompts(learner)[0].tokens)


@pytest.mark.parametrize("deep", ["false", "true"])
@pytest.mark.parametrize("backbone", ["starter/vit-nano", VIT])
def test_every_real_token_sees_every_learned_one(backbone: str, deep: str) -> None:
    learner = load(f"prompt(length=4,deep={deep})", backbone)
    inputs = pictures(learner)
    with torch.no_grad():
        before = learner(inputs).features.x
        for prompt in prompts(learner):
            for slot in range(4):
                prompt.tokens[slot] *= -4
                assert ((learner(inputs).features.x - before).abs().amax(dim=-1) > 0).all()
                prompt.tokens[slot] /= -4


@pytest.mark.parametrize("deep", ["false", "true"])
def test_each_learned_token_gets_gradient(deep: str) -> None:
    learner = load(f"prompt(deep={deep})").train()
    batch = batch_of(learner)
    learner.loss(learner(batch.inputs), batch).backward()
    for name, parameter in learner.added().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().amax(dim=1).min() > 0, name


def test_dropout_acts_while_training_alone() -> None:
    learner = load("prompt(dropout=0.5)")
    inputs = pictures(learner)
    assert torch.equal(learner(inputs).predictions, learner(inputs).predictions)
    learner.train()
    assert not torch.equal(learner(inputs).predictions, learner(inputs).predictions)


def test_they_start_in_the_bounds_of_the_paper() -> None:
    learner = load("prompt(length=50)", VIT)
    weight = learner.backbone.get_submodule(learner.source.sites("conv")[0].path).weight
    assert isinstance(weight, Tensor)
    bound = (6 / (weight[0].numel() + learner.source.features.dim)) ** 0.5
    tokens = prompts(learner)[0].tokens
    assert tokens.abs().max() <= bound
    assert tokens.abs().max() > 0.95 * bound
    assert abs(float(tokens.detach().mean())) < 0.05 * bound  # 3,200 draws: a standard error of 0.01


def test_two_prompts_stand_one_behind_the_other() -> None:
    learner = load("prompt(length=2)+prompt(length=3,deep=true)")
    first, second, *later = (each.tokens for each in prompts(learner))
    states = entering(learner, pictures(learner))
    assert torch.equal(states[0][0, :5], torch.cat([first, second]))
    for state, tokens in zip(states[1:], later, strict=True):
        assert torch.equal(state[0, 2:5], tokens)


@pytest.mark.parametrize("deep", ["false", "true"])
def test_a_deep_copy_has_its_own_and_what_is_saved_comes_back(deep: str) -> None:
    learner, other = load(f"prompt(deep={deep})"), load(f"prompt(deep={deep})")
    inputs = pictures(learner)
    twin = copy.deepcopy(learner)
    before = learner(inputs).predictions
    with torch.no_grad():
        for parameter in twin.added().values():
            parameter.add_(1)
    assert torch.equal(learner(inputs).predictions, before)
    assert not torch.equal(twin(inputs).predictions, before)
    other.load_delta(twin.delta())
    assert torch.equal(other(inputs).predictions, twin(inputs).predictions)


@pytest.mark.parametrize("deep", ["false", "true"])
def test_learned_tokens_leave_the_stages_what_they_were(deep: str) -> None:
    assert set(groups(load(f"prompt(deep={deep})").backbone).values()) == {0, 1, 2, 3, 4, 5}


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    learner = load("prompt(deep=true,dropout=0.0)+prefix(length=2)", VIT)
    batch = batch_of(learner)
    grads: list[list[Tensor]] = []
    for enabled in (False, True):
        learner.backbone.network.set_grad_checkpointing(enabled)  # type: ignore[operator, union-attr]
        learner.zero_grad(set_to_none=True)
        learner.loss(learner(batch.inputs), batch).backward()
        grads.append([parameter.grad for parameter in learner.added().values() if parameter.grad is not None])
    assert len(grads[0]) == len(learner.added())
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("deep", ["false", "true"])
def test_half_precision_runs(deep: str) -> None:
    learner = load(f"prompt(deep={deep})")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(learner(pictures(learner)).predictions).all()


@pytest.mark.slow  # the compiler's import alone takes seconds
@pytest.mark.parametrize("deep", ["false", "true"])
def test_it_may_be_compiled_as_one_graph(deep: str) -> None:
    learner = load(f"prompt(deep={deep})")
    inputs = pictures(learner)
    torch.compiler.reset()
    compiled = torch.compile(learner, fullgraph=True, backend="aot_eager")
    found = compiled(inputs).predictions
    torch.testing.assert_close(found, learner(inputs).predictions, rtol=1e-5, atol=1e-5)  # float32
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in learner.added().values())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"length": 0}, r"prompt\(length=0\): allowed: 1 or more"),
        ({"length": -3}, r"prompt\(length=-3\): allowed: 1 or more"),
        ({"dropout": 1.0}, r"prompt\(dropout=1\): allowed: 0 to below 1"),
    ],
)
def test_wrong_arguments_are_mistakes(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Prompt(**arguments)


@pytest.mark.parametrize(
    ("backbone", "told"),
    [
        ("starter/convnet-nano", "works on tokens and starter/convnet-nano gives map"),
        ("timm/swin_tiny_patch4_window7_224(weights=random)", "works on tokens and .* gives map"),
        ("timm/beit_base_patch16_224(weights=random)", "needs the prompt seam, which timm/beit.* lacks"),
        ("timm/eva02_tiny_patch14_224(weights=random)", "needs the prompt seam"),
    ],
)
def test_a_backbone_without_the_seam_is_refused_before_it_is_built(backbone: str, told: str) -> None:
    with pytest.raises(RefusedError, match=told):
        load("prompt", backbone)


@pytest.mark.parametrize("name", ["starter/convnet-nano", "timm/test_vit_relpos(weights=random)"])
def test_a_backbone_that_takes_none_says_why(name: str) -> None:
    with pytest.raises(RefusedError, match=r"^prompt: (its stages work on map|VisionTransformerRelPos of timm)"):
        add_prompts(load("probe", name).backbone, 2, deep=False, dropout=0.0)


def test_a_backbone_without_extend_is_refused() -> None:
    with pytest.raises(RefusedError, match="prompt: the backbone has no `extend`"):
        add_prompts(ToyBackbone("tokens"), 2, deep=False, dropout=0.0)


def test_it_does_not_merge() -> None:
    with pytest.raises(RefusedError, match="prompt does not fold into plain weights"):
        load("prompt").merge()
