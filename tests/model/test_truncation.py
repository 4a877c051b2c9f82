"""A backbone that ends after stage k: its features are the hidden state there, and what would follow is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import zoo_core
from tests.tiny import NAMES, tiny  # noqa: F401 -- a fixture
from zoo_core.contracts import Backbone, Features, as_backbone
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.truncation import truncated
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.features import masked_mean
from zoo_core.toolkit.stages import capture, groups

pytest.importorskip("zoo_starter")
pytest.importorskip("zoo_timm")
pytest.importorskip("zoo_transformers")

VIT = "starter/vit-nano"


def ending(spec: str, until: int) -> str:
    return f"{spec[:-1]},until={until})" if spec.endswith(")") else f"{spec}(until={until})"


def noisy(backbone: Backbone) -> dict[str, Tensor]:
    found = backbone.preparation.dummy(2)
    return {name: x + torch.randn_like(x) if x.is_floating_point() else x for name, x in found.items()}


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_features_are_the_hidden_state_that_leaves_the_stage(name: str, tiny: Callable[[str], str]) -> None:  # noqa: F811
    spec = tiny(name)
    whole = as_backbone(zoo_core.load_backbone(spec))
    inputs, num = noisy(whole), len(whole.stages)
    with torch.no_grad(), capture(whole, range(num)) as states:  # type: ignore[arg-type]
        expected = whole(inputs)
    sizes = []
    for until in range(1, num + 1):
        cut = zoo_core.load_backbone(ending(spec, until))
        with torch.no_grad():
            features = cut(inputs)
            pooled = as_backbone(cut).pool(features) if features.kind != "pooled" else features.x
        state = states[until - 1].permute(0, 3, 1, 2) if name == "swin" else states[until - 1]  # its channels are last
        assert torch.equal(features.x, state), until
        assert (features.kind, as_backbone(cut).features.kind) == (expected.kind, expected.kind)
        assert (features.mask is None) == (expected.mask is None)
        if features.mask is not None and expected.mask is not None:
            assert torch.equal(features.mask, expected.mask)
        assert features.x.shape[1 if features.kind == "map" else -1] == as_backbone(cut).features.dim
        assert pooled.shape == (2, as_backbone(cut).features.width("pooled"))
        assert len(as_backbone(cut).stages) == until
        assert max(groups(cut).values()) == until, "nothing follows the last stage"
        sizes.append(num_parameters(cut))
    assert sizes == sorted(set(sizes)), "each stage has parameters, and those of later ones are gone"
    assert sizes[-1] <= num_parameters(whole)  # type: ignore[arg-type]


def test_the_stages_after_it_are_not_called() -> None:
    cut = zoo_core.load_backbone(f"{VIT}(until=2)")
    whole = zoo_core.load_backbone(VIT)
    block = num_parameters(whole.get_submodule("network.blocks.0"))
    assert num_parameters(whole) - num_parameters(cut) == 2 * block + 2 * 96  # and the last norm
    flops: list[int] = []
    for backbone in (cut, whole):
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(noisy(as_backbone(backbone)))
        flops.append(counter.get_total_flops())
    assert flops[0] < 0.7 * flops[1]


def test_a_pooling_with_weights_of_its_own_becomes_the_mean(tiny: Callable[[str], str]) -> None:  # noqa: F811
    for name, keeps in (("convnext", False), ("beit", False), ("vit", True), ("gpt2", True)):
        backbone = as_backbone(zoo_core.load_backbone(ending(tiny(name), 1)))
        with torch.no_grad():
            features = backbone(noisy(backbone))
            pooled = backbone.pool(features)
        assert torch.equal(pooled, masked_mean(features)) != keeps, name


def test_a_stage_that_is_not_there_is_refused_with_the_range(tmp_path: Path, tiny: Callable[[str], str]) -> None:  # noqa: F811
    told = r"has 4 stages, so until=5 is none of them; allowed: 1 to 4"
    with pytest.raises(RefusedError, match=f"starter/vit-nano {told}"):
        zoo_core.resolve(f"{VIT}(until=5)", task="digits")
    with pytest.raises(RefusedError, match=r"has 3 stages, so until=4 is none of them; allowed: 1 to 3"):
        zoo_core.load_backbone(ending(tiny("bert"), 4))  # which no catalogue describes
    with pytest.raises(UsageError, match="until is at least 1, found 0"):
        zoo_core.resolve(f"{VIT}(until=0)", task="digits")
    with pytest.raises(UsageError, match="until is a whole number or none, found true"):
        zoo_core.resolve(f"{VIT}(until=true)", task="digits")


def test_it_is_part_of_the_identity_where_it_is_given() -> None:
    plans = [zoo_core.resolve(spec, task="digits") for spec in (VIT, f"{VIT}(until=none)", f"{VIT}(until=2)")]
    assert plans[0].digest == plans[1].digest != plans[2].digest
    assert plans[0].base_digest == plans[1].base_digest != plans[2].base_digest
    assert plans[0].backbone.identity()["common"] == {"weights": "pretrained"}, "digests are older than the argument"
    assert str(plans[1].spec) == f"{VIT}+linear"
    assert str(plans[2].spec) == f"{VIT}(until=2)+linear"
    assert plans[2].num_stages == 2


def test_adapters_and_heads_see_the_stages_that_are_left(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="partial"):
        zoo_core.resolve(f"{VIT}(until=2)+partial(n=3)", task="digits")
    for spec in (f"{VIT}(until=2)+lora(r=2)+prefix(length=2)", f"{VIT}(until=2)+prompt(deep=true)"):
        learner = zoo_core.load(spec, num_classes=3)
        inputs = noisy(learner.source)
        learner.train()(inputs).predictions.sum().backward()
        assert all(parameter.grad is not None for parameter in learner.added().values())
    narrow = zoo_core.load("starter/convnet-nano(until=2)", num_classes=3)
    assert [tuple(x.shape) for x in narrow.head.parameters()] == [(3, 64), (3,)], "half of its usual width"


def test_it_is_fitted_stored_and_loaded(tmp_path: Path) -> None:
    budget = zoo_core.Budget(epochs=1, num_rates=1)
    spec = f"{VIT}(until=2)+partial(n=1)"
    learner, _ = zoo_core.fit(spec, task="digits(shots=3)", out=tmp_path / "run", budget=budget)
    inputs = noisy(learner.source)
    again = zoo_core.load_run(tmp_path / "run")
    assert torch.equal(again(inputs).predictions, learner(inputs).predictions)
    beyond = zoo_core.load_backbone(f'run(path="{tmp_path / "run"}",until=1)')
    whole = as_backbone(zoo_core.load_backbone(VIT))
    with torch.no_grad(), capture(whole, [0]) as states:  # type: ignore[arg-type]
        whole(inputs)
        assert torch.equal(beyond(inputs).x, states[0]), "its first stage was frozen"


def test_a_copy_and_a_compiled_one_give_the_same(tiny: Callable[[str], str]) -> None:  # noqa: F811
    cut = zoo_core.load_backbone(f"{VIT}(until=2)")
    inputs = noisy(as_backbone(cut))
    with torch.no_grad():
        expected = cut(inputs).x
        assert torch.equal(copy.deepcopy(cut)(inputs).x, expected)
        compiled = torch.compile(cut, backend="eager", fullgraph=True)
        assert torch.equal(compiled(inputs).x, expected)


class Pairs(ToyBackbone):
    """Whose stages give a tuple, of which the next one takes the second part."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Pair() for _ in range(3))  # type: ignore[assignment]

    def forward(self, inputs: object) -> Features:
        x, count = self.stem(inputs["pixel_values"]).flatten(2).transpose(1, 2), torch.zeros(())  # type: ignore[index]
        for block in self.blocks:
            x, count = block(x, count)
        return Features(kind="tokens", x=self.norm(x))


class Pair(nn.Linear):
    def __init__(self) -> None:
        super().__init__(12, 12)

    def forward(self, x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x) + count, count + 1


def test_stages_that_return_a_tuple_hand_on_the_rest_of_it() -> None:
    torch.manual_seed(0)
    whole = Pairs().eval()
    inputs = noisy(as_backbone(whole))
    with torch.no_grad(), capture(whole, [1]) as states:
        whole(inputs)
    cut = truncated(copy.deepcopy(whole), 2).eval()
    with torch.no_grad():
        assert torch.equal(cut(inputs).x, states[1])
        assert torch.equal(copy.deepcopy(cut)(inputs).x, states[1])


class Doubling(ToyBackbone):
    """Whose own code, and no module, doubles what leaves the last stage."""

    masked = False

    def forward(self, inputs: object) -> Features:
        x = super().forward(inputs).x * 2  # type: ignore[arg-type]
        mask = x.new_ones(x.shape[:2], dtype=torch.bool) if self.masked else None
        return Features(kind=self.features.kind, x=x, mask=mask)


@pytest.mark.parametrize("kind", ["tokens", "map"])
def test_a_pass_ends_early_where_the_backbone_does_more_than_call_modules(kind: Literal["tokens", "map"]) -> None:
    torch.manual_seed(0)
    whole = Doubling(kind).eval()
    inputs = noisy(as_backbone(whole))
    with torch.no_grad(), capture(whole, [1]) as states:
        whole(inputs)
    cut = truncated(copy.deepcopy(whole), 2).eval()
    assert cut.ends_early
    with torch.no_grad():
        features = copy.deepcopy(cut)(inputs)
        assert torch.equal(features.x, states[1])
        assert torch.equal(cut.pool(features), masked_mean(features))
        handle = cut.get_submodule(cut.stages[1]).register_forward_hook(lambda module, args, output: output + 1)
        assert torch.equal(cut(inputs).x, states[1] + 1), "what an adapter makes of that stage is part of it"
        handle.remove()
    assert max(groups(cut).values()) == 2
    with pytest.raises(RefusedError, match="has no `extend`"):
        cut.extend(nn.Identity(), 1)


def test_it_is_refused_where_the_mask_is_known_at_the_end_alone() -> None:
    whole = Doubling().eval()
    whole.masked = True
    with pytest.raises(RefusedError, match="cannot end after stage 2: its own code, and no module, makes features"):
        truncated(whole, 2)


@pytest.mark.parametrize(
    ("name", "until", "shape"),
    [  # whose own code adds a class token, joins two halves, or hands on a size, between stages and features
        ("cait_xxs24_224", 12, (2, 196, 192)),
        ("cspresnet50", 6, (2, 256, 32, 32)),
        ("mvitv2_tiny", 5, (2, 196, 384)),
    ],
)
@pytest.mark.slow
def test_a_family_of_timm_that_does_more_than_call_modules(name: str, until: int, shape: tuple[int, ...]) -> None:
    cut = zoo_core.load_backbone(f"timm/{name}(weights=random,until={until})")
    with torch.no_grad():
        assert cut(cut.preparation.dummy(2)).x.shape == shape
