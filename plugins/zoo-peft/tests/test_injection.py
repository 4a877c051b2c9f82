"""Which weights peft changes, what it may not touch, and where it is known to be wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zoo_core.contracts import Batch, Site, Target
from zoo_core.errors import IncompatibleError, RefusedError
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.resolve import resolve
from zoo_peft.injection import inject_at, kinds_of, merge, tuner_layers
from zoo_peft.methods import Argument, known_methods

BEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
PICTURE = {"input_size": [3, 32, 32]}
CLASSES = Target(kind="classes", names=("a", "b", "c"))


def built(spec: str, seed: int = 0) -> Learner:
    plan = pin_plan(resolve(spec, target=CLASSES, seed=seed))
    learner = build(plan)
    learner.plan = plan
    return learner


def values(name: str, **changed: Any) -> dict[str, Any]:
    return {each.name: each.default for each in known_methods()[name].arguments} | changed


def batch(learner: Learner, size: int = 6) -> Batch:
    inputs = learner.source.preparation.dummy(size)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for name, x in inputs.items()
    }
    return Batch(inputs=inputs, target=torch.arange(size) % 3, ids=tuple(map(str, range(size))))


# --- which weights ---------------------------------------------------------------------------------------------------


def test_the_targets_are_the_sites_of_the_roles_and_nothing_else(bert: str) -> None:
    learner = built(f"{bert}+peft/lora")
    sites = {site.path for role in ("attn.q", "attn.v") for site in learner.source.sites(role)}
    assert {path for path, _ in tuner_layers(learner.backbone)} == sites
    assert len(sites) == 4
    count = sum(parameter.numel() for parameter in learner.added().values())
    assert count == 4 * 8 * (64 + 64)


def test_the_roles_are_an_argument(bert: str) -> None:
    learner = built(f"{bert}+peft/lora(roles=[mlp.in,attn.out])")
    sites = {site.path for role in ("mlp.in", "attn.out") for site in learner.source.sites(role)}
    assert {path for path, _ in tuner_layers(learner.backbone)} == sites


def test_a_fused_weight_is_one_target() -> None:
    learner = built("starter/vit-nano+peft/lora")
    paths = [path for path, _ in tuner_layers(learner.backbone)]
    assert len(paths) == len(set(paths)) == len(learner.source.stages)
    site = learner.source.sites("attn.q")[0]
    assert site.outputs is not None
    (first, *_) = [layer for path, layer in tuner_layers(learner.backbone) if path == site.path]
    assert first.lora_B.default.weight.shape[0] == 3 * (site.outputs[1] - site.outputs[0])


def test_ia3_scales_what_enters_the_second_linear_layer(bert: str) -> None:
    learner = built(f"{bert}+peft/ia3")
    inputs = {site.path for site in learner.source.sites("mlp.out")}
    for path, layer in tuner_layers(learner.backbone):
        assert layer.is_feedforward is (path in inputs)
    assert sum(parameter.numel() for parameter in learner.added().values()) == 2 * (64 + 64 + 128)


class Nested(nn.Module):
    """A module inside which names repeat: peft's way of finding targets would take both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"layer": nn.Linear(4, 4)})


def test_a_name_that_ends_like_a_target_is_not_silently_changed_too() -> None:
    with pytest.raises(RefusedError, match=r"peft cannot tell inner\.layer from"):
        inject_at(Nested(), known_methods()["lora"], values("lora"), ["layer"])
    nested = Nested()
    inject_at(nested, known_methods()["lora"], values("lora"), ["inner.layer"])
    assert [path for path, _ in tuner_layers(nested)] == ["inner.layer"]


def test_more_than_twenty_targets_are_exact_too() -> None:
    """From twenty on peft shortens its list of names."""
    network = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(25)))
    paths = [f"{index}.1" for index in range(24)]
    inject_at(network, known_methods()["lora"], values("lora"), paths)
    assert [path for path, _ in tuner_layers(network)] == paths


# --- what is left alone ----------------------------------------------------------------------------------------------


def test_neighbours_keep_what_they_were() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    network[0].requires_grad_(False)
    network[2].bias.requires_grad_(False)
    network[1].eval()
    before = {id(each): each.requires_grad for each in network.parameters()}
    modes = {id(module): module.training for module in network.modules()}
    inject_at(network, known_methods()["lora"], values("lora", lora_dropout=0.5), ["0"])
    assert all(before.get(id(each), True) is each.requires_grad for each in network.parameters())
    assert before.keys() <= {id(each) for each in network.parameters()}
    assert all(module.training is modes[id(module)] for module in network.modules() if id(module) in modes)
    network = nn.Sequential(nn.Linear(4, 4)).eval()
    inject_at(network, known_methods()["lora"], values("lora", lora_dropout=0.5), ["0"])
    assert not any(module.training for module in network.modules())  # peft would leave its dropout on


def test_it_stands_behind_other_adapters() -> None:
    learner = built("starter/vit-nano+partial(n=1)+norm+peft/lora")
    names = [name for name, _ in learner.trainable()]
    assert any("lora_A" in name for name in names)
    assert any(name.endswith("base_layer.weight") for name in names)  # the last stage's, which partial opened


def test_a_dropout_acts_while_training_and_only_then() -> None:
    learner = built("starter/vit-nano+peft/lora(lora_dropout=0.5,init_lora_weights=false)")
    inputs = batch(learner).inputs
    with torch.no_grad():
        learner.train()
        assert not torch.equal(learner(inputs).predictions, learner(inputs).predictions)
        learner.eval()
        assert torch.equal(learner(inputs).predictions, learner(inputs).predictions)
    learner.train()
    layers = [layer for _, layer in tuner_layers(learner.backbone)]
    assert not any(layer.training or layer.base_layer.training for layer in layers)


@pytest.mark.parametrize(
    "spec",
    [
        "peft/loha(module_dropout=0.5)",
        "peft/pvera(r=8)",
        "peft/boft(boft_dropout=0.5)",
        "peft/unilora(unilora_dropout=0.5)",
    ],
)
def test_what_a_method_draws_while_training_it_draws(spec: str) -> None:
    learner = built(f"starter/vit-nano+{spec}")
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    inputs = batch(learner).inputs
    learner.train()
    with torch.no_grad():
        found = [learner(inputs).predictions for _ in range(8)]
    assert not all(torch.equal(found[0], other) for other in found[1:])


# --- what layers share -----------------------------------------------------------------------------------------------


def test_random_matrices_that_layers_share_stand_once() -> None:
    learner = built("starter/vit-nano+peft/vera(r=16)")
    shared = [name for name in learner.delta() if "vera_A" in name or "vera_B" in name]
    assert shared == ["backbone.peft_vera.vera_A.default", "backbone.peft_vera.vera_B.default"]
    twin = copy.deepcopy(learner)
    layer = next(layer for _, layer in tuner_layers(twin.backbone))
    assert layer.vera_A is twin.backbone.peft_vera.vera_A  # type: ignore[union-attr]
    again = built("starter/vit-nano+peft/vera(r=16)", seed=5)  # its own seed decides
    assert torch.equal(
        again.backbone.peft_vera.vera_A.default,  # type: ignore[union-attr, arg-type]
        learner.backbone.peft_vera.vera_A.default,  # type: ignore[union-attr, arg-type]
    )
    merged = learner.merge()
    assert not any("peft" in name or "vera" in name for name in merged.state_dict())


# --- where peft is wrong ---------------------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """Uses another weight than it holds, as timm's weight-standardised convolutions do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float [B, 4, H, W]."""
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Steered(nn.Conv2d):
    """Pads in a way of its own."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), weight, bias)


@pytest.mark.parametrize(
    ("layer", "kinds"),
    [
        (nn.Conv2d(4, 4, 3), {"conv2d"}),
        (nn.Conv2d(4, 4, 3, dilation=2), {"conv2d", "dilated"}),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), {"conv2d", "padded"}),
        (nn.Conv2d(4, 4, 3, groups=4), {"conv2d", "grouped"}),
        (nn.Conv1d(4, 4, 3), {"conv1d"}),
        (nn.Linear(4, 4), {"linear"}),
        (Standardised(4, 4, 3), set()),
        (Steered(4, 4, 3), set()),
        (nn.Bilinear(4, 4, 4), set()),
    ],
)
def test_a_layer_is_taken_for_what_it_is(layer: nn.Module, kinds: set[str]) -> None:
    assert kinds_of(layer, Site(path="x")) == kinds


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("timm/lcnet_050(weights=random)+peft/lora(roles=[conv])", "peft does not take its groups apart.*take lora"),
        ("timm/nf_resnet26(weights=random)+peft/loha", "computes its weight or padding in its own way"),
        ("BEIT+peft/lora", "is read without being called, so a layer of peft would do nothi"),
        ("starter/convnet-nano+peft/oft(roles=[conv])", "peft/oft works on embedding and linear layers"),
        ("starter/vit-nano+peft/lora+peft/ia3", "has been changed by peft already"),
        ("starter/vit-nano+peft/c3a", r"peft/c3a: peft refuses: .*"),
        ("starter/vit-nano+peft/oft(r=5,oft_block_size=7)", r"peft/oft: peft refuses: .*only specify either"),
    ],
)
def test_where_peft_is_wrong_it_is_refused_with_the_reason(spec: str, told: str, tmp_path: Path) -> None:
    if spec.startswith(("timm", "BEIT")):
        pytest.importorskip("zoo_timm")
    if "BEIT" in spec:
        described = {"architecture": "beit_base_patch16_224", "model_args": BEIT, "pretrained_cfg": PICTURE}
        (tmp_path / "config.json").write_text(json.dumps(described))
        spec = spec.replace("BEIT", f'timm(files="{tmp_path}",weights=random)')
    with pytest.raises(RefusedError, match=told) as caught:
        built(spec)
    assert "\n" not in str(caught.value)


def test_the_refusal_of_weight_standardisation_is_right() -> None:
    """Without it peft merges into another function, and says nothing; here the fold is compared as well."""
    network = nn.Sequential(Standardised(4, 4, 3)).eval()
    inject_at(network, known_methods()["lora"], values("lora", init_lora_weights=False), ["0"])
    with pytest.raises(RefusedError, match="what peft folds is not what Conv2d does"):
        merge(network)


def test_an_older_peft_is_told_of_what_it_lacks() -> None:
    method = known_methods()["lora"]
    added = Argument(name="new_field", type=int, default=1, help="")
    newer = replace(method, arguments=(*method.arguments, added))
    with pytest.raises(IncompatibleError, match="new_field needs a newer peft"):
        inject_at(nn.Sequential(nn.Linear(4, 4)), newer, values("lora", new_field=2), ["0"])
    inject_at(nn.Sequential(nn.Linear(4, 4)), newer, values("lora", new_field=1), ["0"])
    with pytest.raises(IncompatibleError, match="needs a newer peft"):
        inject_at(nn.Sequential(nn.Linear(4, 4)), replace(method, tuner="NEWEST"), {}, ["0"])


# --- beside native adapters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", ["lora(r=2)", "ia3"])
@pytest.mark.parametrize("method", ["peft/lora(r=2)", "peft/oft(r=4)"])
def test_a_native_adapter_before_peft_acts_inside_and_merges(native: str, method: str) -> None:
    learner = built(f"starter/vit-nano+{native}+{method}").double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    inputs = {name: x.double() for name, x in batch(learner).inputs.items()}
    before = learner(inputs).predictions
    merged = learner.merge()
    assert torch.allclose(before, merged(inputs).predictions, rtol=0, atol=1e-10)
    plain = built("starter/vit-nano")
    assert merged.backbone.state_dict().keys() == plain.backbone.state_dict().keys()


@pytest.mark.parametrize("native", ["lora", "ssf", "dora"])
def test_a_native_adapter_after_peft_on_the_same_weight_is_refused(native: str) -> None:
    with pytest.raises(RefusedError, match=r"has been replaced by peft's Linear, .*; write its adapter after"):
        built(f"starter/vit-nano+peft/lora+{native}")


def test_a_native_adapter_after_peft_on_other_weights_is_fine() -> None:
    learner = built("starter/vit-nano+peft/oft(r=4)+lora(roles=[mlp.in])")
    merged = learner.merge()
    inputs = batch(learner).inputs
    assert torch.allclose(learner(inputs).predictions, merged(inputs).predictions, atol=1e-5)
