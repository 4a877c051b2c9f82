"""zoo_core/toolkit/attention.py: keys and values added to the calls of attention inside a stage."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toolkit.test_stages import NeedsValues, fail, pictures, starter
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.attention import attend_beside, attend_to, attention_calls, attention_shapes
from zoo_core.toolkit.stages import stage_modules

ATTENTION = nn.functional.scaled_dot_product_attention


class Attend(nn.Module):
    """A stage that is one call of attention, with a mask of a kind."""

    def __init__(self, mask: str = "none", *, heads: int = 2, key_heads: int = 2, dim: int = 3) -> None:
        super().__init__()
        self.mask, self.heads, self.key_heads, self.dim = mask, heads, key_heads, dim
        self.query = nn.Linear(6, heads * dim).double()
        self.key = nn.Linear(6, key_heads * dim).double()
        self.value = nn.Linear(6, key_heads * dim).double()

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (
            layer(x_BTD).unflatten(-1, (-1, self.dim)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return query, key, value

    def masked(self, batch: int, length: int) -> Tensor | None:
        generator = torch.Generator().manual_seed(2)
        if self.mask in ("none", "causal"):
            return None
        if self.mask == "padding":  # the last token of the first row is padding
            mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)
            mask[0, ..., -1] = False
            return mask
        if self.mask == "rows":  # one value for all keys of a query
            return torch.randn(length, 1, dtype=torch.float64, generator=generator)
        return torch.randn(batch, self.heads, length, length, dtype=torch.float64, generator=generator)

    def forward(self, x_BTD: Tensor) -> Tensor:
        query, key, value = self.project(x_BTD)
        mask = self.masked(len(x_BTD), x_BTD.shape[1])
        grouped = self.heads != self.key_heads
        found: Tensor = ATTENTION(query, key, value, mask, is_causal=self.mask == "causal", enable_gqa=grouped)
        return found


class Prefix(nn.Module):
    """Keys and values float [heads, P, dim] of its own."""

    def __init__(self, length: int, *, heads: int = 2, dim: int = 3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.key = nn.Parameter(torch.randn(heads, length, dim, dtype=dtype, generator=generator))
        self.value = nn.Parameter(torch.randn(heads, length, dim, dtype=dtype, generator=generator))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.key, self.value


def by_hand(stage: Attend, x_BTD: Tensor, prefix: Prefix) -> Tensor:
    """Softmax attention over prefix and tokens, written out."""
    query, key, value = stage.project(x_BTD)
    batch, length, extra = len(x_BTD), x_BTD.shape[1], prefix.key.shape[1]
    key = torch.cat([prefix.key.expand(batch, -1, -1, -1), key], dim=2).repeat_interleave(
        stage.heads // stage.key_heads, dim=1
    )
    value = torch.cat([prefix.value.expand(batch, -1, -1, -1), value], dim=2).repeat_interleave(
        stage.heads // stage.key_heads, dim=1
    )
    scores = query @ key.transpose(-1, -2) / stage.dim**0.5
    added = torch.zeros(batch, 1, length, length, dtype=torch.float64)
    mask = stage.masked(batch, length)
    if stage.mask == "causal":
        added = added.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    elif mask is not None and mask.dtype == torch.bool:
        added = added.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        added = added + mask
    scores[..., extra:] = scores[..., extra:] + added
    found: Tensor = scores.softmax(-1) @ value
    return found


X = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
MASKS = ("none", "causal", "padding", "float", "rows")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("length", [1, 3])
def test_a_prefix_equals_attention_written_out(mask: str, length: int) -> None:
    stage, prefix = Attend(mask), Prefix(length)
    bare = stage(X)
    remove = attend_to(stage, prefix)
    torch.testing.assert_close(stage(X), by_hand(stage, X, prefix), rtol=1e-10, atol=1e-12)  # float64, other kernels
    assert not torch.allclose(stage(X), bare), "the prefix is seen"
    remove()
    assert torch.equal(stage(X), bare)


def test_a_prefix_has_as_many_heads_as_the_keys() -> None:
    stage, prefix = Attend(heads=4, key_heads=2), Prefix(3)
    attend_to(stage, prefix)
    torch.testing.assert_close(stage(X), by_hand(stage, X, prefix), rtol=1e-10, atol=1e-12)  # float64, other kernels


def test_a_prefix_meets_keys_that_were_repeated_before_the_call() -> None:
    class Repeated(Attend):
        def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = super().project(x_BTD)
            return query, key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)

    stage, prefix = Attend(heads=4, key_heads=2), Prefix(3)
    repeated = Repeated(heads=4, key_heads=2)
    repeated.load_state_dict(stage.state_dict())
    wanted = by_hand(stage, X, prefix)
    attend_to(repeated, prefix)
    torch.testing.assert_close(repeated(X), wanted, rtol=1e-10, atol=1e-12)  # float64, other kernels


@pytest.mark.parametrize("mask", MASKS)
def test_a_prefix_of_no_length_leaves_every_bit(mask: str) -> None:
    stage = Attend(mask)
    bare = stage(X)
    attend_to(stage, Prefix(0))
    assert torch.equal(stage(X), bare)


@pytest.mark.parametrize("name", ["tokens", "vit-nano"])
def test_a_prefix_of_no_length_on_every_stage_leaves_every_bit_of_a_backbone(name: str) -> None:
    backbone = starter(name) if name == "vit-nano" else ToyBackbone("tokens").eval()
    inputs = {key: torch.randn(x.shape) for key, x in backbone.preparation.dummy(3).items()}
    bare = backbone(inputs).x
    for stage in stage_modules(backbone):
        attend_to(stage, Prefix(0, heads=3, dim=backbone.features.dim // 3, dtype=torch.float32))
    assert attention_calls(backbone) == [1] * len(backbone.stages)
    assert torch.equal(backbone(inputs).x, bare)


def test_the_order_of_a_prefix_does_not_matter() -> None:
    stage, prefix = Attend("causal"), Prefix(3)
    attend_to(stage, prefix)
    found = stage(X)
    with torch.no_grad():
        prefix.key.copy_(prefix.key.flip(1))
        prefix.value.copy_(prefix.value.flip(1))
    torch.testing.assert_close(stage(X), found, rtol=1e-10, atol=1e-12)  # float64, other order of a sum


@pytest.mark.parametrize("mask", MASKS)
def test_gradients_reach_keys_and_values(mask: str) -> None:
    stage, prefix = Attend(mask).requires_grad_(False), Prefix(2)
    attend_to(stage, prefix)

    def through(key: Tensor, value: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(Both(stage, prefix), {"prefix.key": key, "prefix.value": value}, X)
        return found

    assert torch.autograd.gradcheck(through, (prefix.key, prefix.value))
    stage(X).square().sum().backward()
    for parameter in prefix.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().min() > 0, "every added key and value is seen"


class Gated(Prefix):
    """The same with a gate for each head of queries."""

    def __init__(self, length: int, gate: Tensor, **arguments: Any) -> None:
        super().__init__(length, **arguments)
        self.gate = nn.Parameter(gate[:, None, None])

    def gated(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.key, self.value, self.gate


@pytest.mark.parametrize("mask", MASKS)
def test_what_is_attended_beside_has_a_softmax_of_its_own(mask: str) -> None:
    stage, gate = Attend(mask, heads=4, key_heads=2), torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    beside = Gated(3, gate)
    query = stage.project(X)[0]
    key, value = (x.repeat_interleave(2, dim=0) for x in (beside.key, beside.value))
    own = (query @ key.mT / stage.dim**0.5).softmax(-1) @ value
    wanted = by_hand(stage, X, Prefix(0)) + gate[:, None, None] * own
    bare = stage(X)
    remove = attend_beside(stage, beside.gated)
    torch.testing.assert_close(stage(X), wanted, rtol=1e-10, atol=1e-12)  # float64, other kernels
    remove()
    assert torch.equal(stage(X), bare)


@pytest.mark.parametrize("mask", MASKS)
def test_a_gate_of_zero_leaves_every_bit_and_learns(mask: str) -> None:
    stage, beside = Attend(mask).requires_grad_(False), Gated(3, torch.zeros(2, dtype=torch.float64))
    bare = stage(X)
    attend_beside(stage, beside.gated)
    assert torch.equal(stage(X), bare)
    stage(X).square().sum().backward()
    assert beside.gate.grad is not None
    assert beside.gate.grad.abs().min() > 0


@pytest.mark.parametrize("first", ["to", "beside"])
def test_a_prefix_and_what_is_beside_do_not_see_each_other(first: str) -> None:
    stage, prefix, beside = Attend("padding"), Prefix(2), Gated(3, torch.ones(2, dtype=torch.float64))
    query = stage.project(X)[0]
    own = (query @ beside.key.mT / stage.dim**0.5).softmax(-1) @ beside.value
    wanted = by_hand(stage, X, prefix) + own
    for which in ("to", "beside") if first == "to" else ("beside", "to"):
        _ = attend_to(stage, prefix) if which == "to" else attend_beside(stage, beside.gated)
    torch.testing.assert_close(stage(X), wanted, rtol=1e-10, atol=1e-12)  # float64, other kernels


class Both(nn.Module):
    """A stage and its prefix, as a learner holds them."""

    def __init__(self, stage: nn.Module, prefix: Prefix) -> None:
        super().__init__()
        self.stage, self.prefix = stage, prefix

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.stage(x)
        return found


def test_each_stage_attends_once_and_a_convnet_never() -> None:
    assert attention_calls(ToyBackbone("tokens")) == [1, 1, 1]
    assert attention_calls(ToyBackbone("map")) == [0, 0, 0]
    assert attention_calls(starter("vit-nano")) == [1, 1, 1, 1]


def test_the_shapes_of_attention_are_those_of_its_call_at_any_module_around_it() -> None:
    backbone = ToyBackbone("tokens")
    (call,), *_ = attention_shapes(backbone)
    assert call.query == call.key == call.value == (2, 3, 16, 4)
    assert [len(calls) for calls in attention_shapes(backbone, ("blocks", "stem", "blocks.1"))] == [3, 0, 1]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.parametrize("asks", [False, True])
def test_attention_is_counted_in_a_backbone_that_needs_values_too(asks: bool) -> None:
    assert attention_calls(NeedsValues(plain=not asks, asks=asks)) == [1, 1, 1]


def test_attention_beside_a_stage_is_not_touched() -> None:
    stage = Attend()
    query, key, value = stage.project(X)
    bare = ATTENTION(query, key, value)
    attend_to(stage, Prefix(3))
    stage(X)
    assert torch.equal(ATTENTION(query, key, value), bare)


def test_two_prefixes_on_one_stage_are_both_seen() -> None:
    stage, one, other = Attend("padding"), Prefix(1), Prefix(2)
    with torch.no_grad():
        other.key.add_(1)
    attend_to(stage, one)
    attend_to(stage, other)
    both = Prefix(3)
    with torch.no_grad():
        both.key.copy_(torch.cat([one.key, other.key], dim=1))
        both.value.copy_(torch.cat([one.value, other.value], dim=1))
    torch.testing.assert_close(stage(X), by_hand(stage, X, both), rtol=1e-10, atol=1e-12)  # float64, other order


def test_a_deep_copy_attends_to_its_own_keys() -> None:
    stage = Attend()
    both = Both(stage, Prefix(2))
    attend_to(stage, both.prefix)
    before = both(X)
    twin = copy.deepcopy(both)
    assert torch.equal(twin(X), before)
    with torch.no_grad():
        twin.prefix.key.add_(1)
    assert torch.equal(both(X), before)
    assert not torch.allclose(twin(X), before)
    assert isinstance(twin.stage, Attend)
    torch.testing.assert_close(twin(X), by_hand(twin.stage, X, twin.prefix), rtol=1e-10, atol=1e-12)  # float64


@pytest.mark.parametrize("prepend", [False, True])
def test_a_stage_that_fails_leaves_the_mode(prepend: bool) -> None:
    stage = Attend()
    query, key, value = stage.project(X)
    bare = ATTENTION(query, key, value)
    attend_to(stage, Prefix(2))
    handle = stage.register_forward_pre_hook(fail, prepend=prepend)  # before the mode is entered, and after
    with pytest.raises(RuntimeError, match="on purpose"):
        stage(X)
    handle.remove()
    assert torch.equal(ATTENTION(query, key, value), bare)
    stage(X)
    assert torch.equal(ATTENTION(query, key, value), bare)


def test_an_interrupted_stage_changes_no_attention_afterwards() -> None:
    stage = Attend("padding")
    query, key, value = stage.project(X)
    bare = ATTENTION(query, key, value)
    both = Both(stage, Prefix(2))
    attend_to(stage, both.prefix)
    wanted = stage(X)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def go_on_after_two_interrupts() -> list[bool]:
        handle = stage.key.register_forward_hook(interrupt)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                stage(X)
        handle.remove()
        found = [ATTENTION(query, key, value), stage(X), copy.deepcopy(both)(X), ATTENTION(query, key, value)]
        return [torch.equal(x, y) for x, y in zip(found, [bare, wanted, wanted, bare], strict=True)]

    with ThreadPoolExecutor(1) as thread:  # the modes left behind are its own, and no later test's
        assert thread.submit(go_on_after_two_interrupts).result() == [True] * 4


def test_two_threads_may_run_one_prefixed_stage() -> None:
    stage, prefix = Attend("causal"), Prefix(2)
    attend_to(stage, prefix)
    query, key, value = stage.project(X)
    bare, wanted = ATTENTION(query, key, value), stage(X)

    def run(_: int) -> bool:
        return torch.equal(stage(X), wanted) and torch.equal(ATTENTION(query, key, value), bare)

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(run, range(60)))


def test_an_error_inside_attention_leaves_the_mode() -> None:
    stage = Attend()
    query, key, value = stage.project(X)
    bare = ATTENTION(query, key, value)
    remove = attend_to(stage, Prefix(2, heads=5))  # does not fit
    with pytest.raises(RuntimeError):
        stage(X)
    remove()
    assert torch.equal(ATTENTION(query, key, value), bare)


def test_a_prefixed_stage_may_be_checkpointed() -> None:
    stage, prefix = Attend("causal"), Prefix(2)
    attend_to(stage, prefix)
    stage(X).square().sum().backward()
    wanted = [parameter.grad for parameter in prefix.parameters()]
    prefix.zero_grad(set_to_none=True)
    torch.utils.checkpoint.checkpoint(stage, X, use_reentrant=False).square().sum().backward()
    found = [parameter.grad for parameter in prefix.parameters()]
    for one, other in zip(wanted, found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.slow  # the compiler's import alone takes seconds
def test_prefixed_stages_may_be_compiled_as_one_graph() -> None:
    backbone = ToyBackbone("tokens").eval()
    prefixes = [Prefix(2, heads=3, dim=4, dtype=torch.float32) for _ in backbone.stages]
    for stage, prefix in zip(stage_modules(backbone), prefixes, strict=True):
        attend_to(stage, prefix)
    inputs = pictures(backbone)
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")  # the tracing is what may go wrong
    compiled(inputs)
    with torch.no_grad():
        prefixes[0].key.add_(1)
    with torch.compiler.set_stance("fail_on_recompile"):  # what a pass does must not make the next one compile again
        found = compiled(inputs).x
    torch.testing.assert_close(found, backbone(inputs).x, rtol=1e-5, atol=1e-5)  # float32, decomposed kernels
    found.sum().backward()
    assert all(parameter.grad is not None for prefix in prefixes for parameter in prefix.parameters())
