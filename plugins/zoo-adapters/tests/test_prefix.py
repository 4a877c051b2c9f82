"""prefix: what it adds and counts, what a query sees of it, and where it is refused; on starter and timm networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo_core
from zoo_adapters.prefix import Prefix
from zoo_adapters.prefix_modules import FlatPrefix, GatedPrefix, MadePrefix, add_prefixes
from zoo_core.contracts import Batch, Site
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.testing.toys import ToyBackbone

pytest.importorskip("zoo_starter")

FORMS = ("flat", "mlp", "gated")
PREFIXES = (FlatPrefix, GatedPrefix, MadePrefix)


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


def prefixes(learner: Learner) -> list[Any]:
    return [module for module in learner.backbone.modules() if isinstance(module, PREFIXES)]


def loudened(learner: Learner) -> Learner:
    """With everything that was added far from zero, so that a prefix that acts is seen."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return learner


def count(form: str, length: int, stages: int, heads: int, dim: int, width: int) -> int:
    """The closed formula, for stages of one width."""
    flat = stages * heads * length * 2 * dim
    if form == "mlp":
        return length * width + (width + 1) * 512 + stages * 513 * heads * 2 * dim
    return flat + (stages * heads if form == "gated" else 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 16])
def test_the_number_of_added_values_is_the_formulas(form: str, length: int) -> None:
    learner = load(f"prefix(form={form},length={length})")
    assert sum(x.numel() for x in learner.added().values()) == count(form, length, 4, 3, 32, 96)
    assert {name for name, _ in learner.trainable() if not name.startswith("heads.")} == set(learner.added())
    assert {name for name in learner.delta() if name.startswith("backbone.")} == set(learner.added())


def test_vit_b16_gets_as_many_values_as_the_docstring_says() -> None:
    assert count("flat", 16, 12, 12, 64, 768) == 294912
    assert "294,912 on ViT-B/16" in (Prefix.__doc__ or "")


@pytest.mark.parametrize("backbone", ["starter/vit-nano", "timm/test_vit(weights=random)"])
def test_gated_changes_no_bit_at_the_start_and_the_others_do(backbone: str) -> None:
    bare = load("probe", backbone)
    inputs = pictures(bare)
    for form in FORMS:
        learner = load(f"prefix(form={form})", backbone)
        assert torch.equal(learner(inputs).features.x, bare(inputs).features.x) == (form == "gated")


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_slots_does_not_matter(form: str) -> None:
    learner = loudened(load(f"prefix(form={form},length=5)"))
    inputs = pictures(learner)
    before = learner(inputs).features.x
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        if form == "mlp":
            embedding = prefixes(learner)[0].trunk.embedding
            embedding.copy_(embedding[order])
        else:
            for prefix in prefixes(learner):
                prefix.keys.copy_(prefix.keys[:, order])
                prefix.values.copy_(prefix.values[:, order])
    torch.testing.assert_close(learner(inputs).features.x, before, rtol=1e-4, atol=1e-5)  # another order of a sum


X_BTD = torch.randn(2, 16, 96, generator=torch.Generator().manual_seed(4))


def real_tokens(block: Any, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens float [num, D] as attention is given them, and the keys and values that the block makes of them."""
    tokens = torch.randn(num, 96, generator=torch.Generator().manual_seed(3))
    _, key, value = block.attn.qkv(tokens).unflatten(-1, (3, 3, 32)).permute(1, 2, 0, 3)
    return tokens, key, value


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    found: Tensor = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value
    return found


def by_hand(block: Any, *, flat: Any = None, gated: Any = None) -> Tensor:
    """vit-nano's block on X_BTD, written out with the prefixes given."""
    query, key, value = block.attn.qkv(block.norm1(X_BTD)).unflatten(-1, (3, 3, 32)).permute(2, 0, 3, 1, 4)
    if flat is not None:
        key = torch.cat([flat.keys.expand(2, -1, -1, -1), key], dim=2)
        value = torch.cat([flat.values.expand(2, -1, -1, -1), value], dim=2)
    mixed = softmax_attention(query, key, value)
    if gated is not None:
        mixed = mixed + gated.gate.tanh() * softmax_attention(query, gated.keys, gated.values)
    attended = X_BTD + block.attn.proj(mixed.transpose(1, 2).flatten(2))
    found: Tensor = attended + block.mlp(block.norm2(attended))
    return found


def test_it_equals_prepending_tokens_whose_keys_and_values_are_known() -> None:
    learner = load("prefix(length=5)")
    block: Any = learner.backbone.get_submodule(learner.source.stages[1])
    plain: Any = load("probe").backbone.get_submodule(learner.source.stages[1])
    tokens, key, value = real_tokens(plain, 5)
    with torch.no_grad():
        longer = torch.cat([tokens.expand(2, -1, -1), plain.norm1(X_BTD)], dim=1)
        attended = X_BTD + plain.attn(longer)[:, 5:]
        wanted = attended + plain.mlp(plain.norm2(attended))
        prefixes(learner)[1].keys.copy_(key)
        prefixes(learner)[1].values.copy_(value)
        torch.testing.assert_close(block(X_BTD), wanted, rtol=1e-5, atol=1e-5)  # float32, longer sums


@pytest.mark.parametrize(
    "chain", ["prefix(length=5,form=gated)", "prefix+prefix(form=gated)", "prefix(form=gated)+prefix"]
)
def test_gated_adds_a_softmax_of_its_own_whatever_else_is_there(chain: str) -> None:
    learner = loudened(load(chain))
    block: Any = learner.backbone.get_submodule(learner.source.stages[1])
    found = {type(module): module for module in block.modules()}
    with torch.no_grad():
        wanted = by_hand(block, flat=found.get(FlatPrefix), gated=found[GatedPrefix])
        torch.testing.assert_close(block(X_BTD), wanted, rtol=1e-4, atol=1e-4)  # float32, other kernels, loud values
    assert (FlatPrefix in found) == ("+" in chain)


@pytest.mark.parametrize("form", FORMS)
def test_each_prefix_of_each_stage_gets_gradient(form: str) -> None:
    learner = load(f"prefix(form={form})")
    batch = batch_of(learner)
    optimiser = torch.optim.SGD(learner.parameter_groups(0.1))
    for _ in range(2):  # keys and values behind a gate of zero get theirs in the second step
        optimiser.zero_grad()
        learner.loss(learner(batch.inputs), batch).backward()
        optimiser.step()
    for name, parameter in learner.added().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("form", FORMS)
def test_a_deep_copy_has_its_own(form: str) -> None:
    learner = loudened(load(f"prefix(form={form},length=4)"))
    inputs = pictures(learner)
    before = learner(inputs).predictions
    twin = copy.deepcopy(learner)
    with torch.no_grad():
        for parameter in twin.added().values():
            parameter.mul_(2)
    assert torch.equal(learner(inputs).predictions, before)
    assert not torch.equal(twin(inputs).predictions, before)
    if form == "mlp":
        first, *others = prefixes(twin)
        assert all(each.shared[0] is first.trunk for each in others)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_saved_comes_back_bit_for_bit(form: str) -> None:
    learner = loudened(load(f"prefix(form={form},length=4)"))
    other = load(f"prefix(form={form},length=4)")
    other.load_delta(learner.delta())
    inputs = pictures(learner)
    assert torch.equal(other(inputs).predictions, learner(inputs).predictions)


def test_two_prefixes_on_one_backbone_both_act() -> None:
    learner = loudened(load("prefix(length=2)+prefix(length=3,form=gated)"))
    assert len(prefixes(learner)) == 8
    inputs = pictures(learner)
    before = learner(inputs).features.x
    for kind in (FlatPrefix, GatedPrefix):
        with torch.no_grad():
            each = next(module for module in prefixes(learner) if type(module) is kind)
            kept = each.values.clone()
            each.values.mul_(-1)
            assert not torch.allclose(learner(inputs).features.x, before)
            each.values.copy_(kept)
    assert torch.equal(learner(inputs).features.x, before)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_runs(form: str) -> None:
    learner = load(f"prefix(form={form},length=4)")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = learner(pictures(learner)).predictions
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("form", FORMS)
def test_checkpointed_blocks_have_the_same_gradients(form: str) -> None:
    learner = loudened(load(f"prefix(form={form},length=4)", "timm/test_vit(weights=random)"))
    batch = batch_of(learner)
    grads: list[list[Tensor]] = []
    for enabled in (False, True):
        learner.backbone.network.set_grad_checkpointing(enabled)  # type: ignore[operator, union-attr]
        learner.zero_grad(set_to_none=True)
        learner.loss(learner(batch.inputs), batch).backward()
        grads.append([parameter.grad for _, parameter in learner.trainable() if parameter.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # float32
    assert len(grads[0]) > 4


@pytest.mark.slow  # the compiler's import alone takes seconds
@pytest.mark.parametrize("form", FORMS)
def test_it_may_be_compiled_as_one_graph(form: str) -> None:
    learner = loudened(load(f"prefix(form={form},length=4)"))
    inputs = pictures(learner)
    torch.compiler.reset()
    compiled = torch.compile(learner, fullgraph=True, backend="aot_eager")
    found = compiled(inputs).predictions
    torch.testing.assert_close(found, learner(inputs).predictions, rtol=1e-5, atol=1e-5)  # float32
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in learner.added().values())


@pytest.mark.parametrize(
    "architecture",
    [
        *("test_vit", "eva02_tiny_patch14_224", "test_vit_relpos"),
        *(pytest.param(slow, marks=pytest.mark.slow) for slow in ("beit_base_patch16_224", "davit_tiny")),
        pytest.param("sam2_hiera_tiny", marks=pytest.mark.slow),
    ],
)
def test_it_acts_in_each_stage_of_each_kind_of_attention_in_timm(architecture: str) -> None:
    learner = loudened(load("prefix(length=3)", f"timm/{architecture}(weights=random)"))
    learner(pictures(learner, 1)).features.x.square().sum().backward()
    assert len(prefixes(learner)) == len(learner.source.stages)
    for name, parameter in learner.added().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().amax(dim=(0, 2)).min() > 0, f"a slot of {name} is not seen"


@pytest.mark.parametrize("length", [0, -1])
def test_no_length_is_a_mistake(length: int) -> None:
    with pytest.raises(UsageError, match=rf"prefix\(length={length}\): allowed: 1 or more"):
        Prefix(length=length)


@pytest.mark.parametrize(
    ("backbone", "lacks"),
    [
        ("starter/convnet-nano", "needs the attention seam, which starter/convnet-nano lacks"),
        ("timm/swin_tiny_patch4_window7_224(weights=random)", "needs the attention seam"),
        ("timm/resnet18(weights=random)", "needs the attention seam"),
    ],
)
def test_a_network_without_the_seam_is_refused_before_it_is_built(backbone: str, lacks: str) -> None:
    with pytest.raises(RefusedError, match=lacks):
        load("prefix", backbone)


class Attends(ToyBackbone):
    """The toy with its sites of attention."""

    def __init__(self, head_dim: int = 4) -> None:
        super().__init__("tokens")
        self.head_dim = head_dim

    def sites(self, role: str) -> tuple[Site, ...]:
        place = {"attn.q": 0, "attn.k": 1, "attn.v": 2}.get(role)
        if place is None:
            return super().sites(role)
        rows = (12 * place, 12 * place + 12)
        return tuple(
            Site(path=f"{stage}.qkv", outputs=rows, num_heads=3, head_dim=self.head_dim) for stage in self.stages
        )


def test_attention_that_is_not_fused_is_refused_with_the_reason() -> None:
    backbone = Attends().eval()
    block: Any = backbone.blocks[1]

    def eager(x_BTD: Tensor) -> Tensor:
        query, key, value = block.qkv(block.norm(x_BTD)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        found: Tensor = x_BTD + block.proj(softmax_attention(query, key, value).transpose(1, 2).flatten(2))
        return found

    x_BTD = torch.randn(2, 16, 12)
    wanted = block(x_BTD)
    block.forward = eager
    torch.testing.assert_close(block(x_BTD), wanted)
    with pytest.raises(RefusedError, match=r"prefix: stage blocks.1 calls fused attention .* 0 times in a pass"):
        add_prefixes(backbone, 2, "flat")
    assert not any(isinstance(module, PREFIXES) for module in backbone.modules()), "nothing was added"


def test_keys_of_another_width_than_their_site_says_are_refused() -> None:
    add_prefixes(Attends().eval(), 2, "flat")
    with pytest.raises(RefusedError, match=r"blocks.0 gets 3 heads of width 4, and blocks.0.qkv makes 3 of width 6"):
        add_prefixes(Attends(head_dim=6).eval(), 2, "flat")


def test_a_backbone_without_sites_of_keys_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"it works on attn.k and attn.v; the backbone has norm, conv"):
        add_prefixes(ToyBackbone("tokens").eval(), 2, "flat")


def test_it_does_not_merge() -> None:
    with pytest.raises(RefusedError, match="prefix does not fold into plain weights"):
        load("prefix").merge()
