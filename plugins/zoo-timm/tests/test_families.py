"""One small member of every module of timm against the plain timm model, bit for bit: features, pool, stages, sites."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import model_entrypoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo_core.contracts import ROLES, Site
from zoo_core.toolkit.attention import attention_calls
from zoo_core.toolkit.stages import boundary, dummy_inputs, groups, resumed, stage_modules
from zoo_timm.backbones import Timm
from zoo_timm.families import FAMILIES, is_safe_channels_last
from zoo_timm.network import TimmBackbone
from zoo_timm.sites import FUSED, READ

FOLDER = Path(__file__).parents[1]
CATALOGUE = json.loads((FOLDER / "zoo_timm" / "catalogue.json").read_text(encoding="utf-8"))["backbone"]

# The modules that are looked at every time; the others take a second to ten seconds each, and are marked slow.
FAST = frozenset(
    {
        *("byobnet", "convnext", "deit", "dla", "efficientnet", "levit", "mambaout", "maxxvit", "mobilenetv3"),
        *("resnet", "vision_transformer", "vision_transformer_relpos"),
    }
)
# Hundreds of millions of parameters on large pictures: a minute and more each. What building tells of them is compared
# with the catalogue in the slow tests.
LARGE = frozenset({"deepseek_vit", "gemma4_vit", "qwen3_vit"})
SMALLER: dict[str, dict[str, Any]] = {  # where two blocks show what twelve or more do
    "beit_base_patch16_224": {"depth": 2},
    "naflexvit_base_patch16_parfac_gap": {"depth": 2},
    "samvit_base_patch16_224": {"depth": 4},
}


# these compute between stages with the shapes of earlier states, so trials of their last stages compute everything
NOT_ENTERED = {"cspnet", "mvitv2", "pvt_v2", "tnt", "twins"}


def mark_of(module: str) -> str:
    """What says when a module is looked at; empty for every time."""
    return "" if module in FAST else "exhaustive" if module in LARGE else "slow"


def members() -> dict[str, str]:
    """The architecture of each module of timm that costs least: parameters times pixels."""
    found: dict[str, tuple[float, str]] = {}
    for architecture in timm.list_models():
        entry = CATALOGUE[f"timm/{architecture}"]
        module = model_entrypoint(architecture).__module__.rpartition(".")[2]
        cost = entry["num_parameters"] * entry["input"]["size"][1] ** 2
        found[module] = min(found.get(module, (cost, architecture)), (cost, architecture))
    return {module: architecture for module, (_, architecture) in sorted(found.items())}


MEMBERS = members()
EACH = [
    pytest.param(architecture, id=module, marks=[getattr(pytest.mark, mark)] if (mark := mark_of(module)) else [])
    for module, architecture in MEMBERS.items()
]


def plain_and_ours(architecture: str, folder: Path) -> tuple[nn.Module, TimmBackbone]:
    """A timm model with its classifier, and the backbone that reads its file."""
    torch.manual_seed(0)
    smaller = SMALLER.get(architecture, {})
    plain = timm.create_model(architecture, **smaller).eval()
    for name, buffer in plain.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)  # so that a statistic which is not read would be seen
    save_file({name: x.clone().contiguous() for name, x in plain.state_dict().items()}, folder / "model.safetensors")
    plain.load_state_dict(load_file(folder / "model.safetensors"), assign=True)  # kernels heed where weights lie
    recipe = Timm(name=architecture)
    if smaller:
        described = {"architecture": architecture, "pretrained_cfg": plain.pretrained_cfg, "model_args": smaller}
        (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
        recipe = Timm(files=str(folder))
    backbone = recipe.build(folder, "pretrained").eval()
    assert isinstance(backbone, TimmBackbone)
    return plain, backbone


def is_large(backbone: TimmBackbone) -> bool:
    """Whether a pass takes seconds: pictures of 512 pixels and more, or fifty million parameters."""
    pixels = backbone.preparation.dummy(1)["pixel_values"].shape[-1]
    return bool(pixels >= 512 or sum(parameter.numel() for parameter in backbone.parameters()) > 50e6)


def pictures(backbone: TimmBackbone) -> dict[str, Tensor]:
    """Laid out in memory as the backbone gives them to its network, since sums in another order end in other bits."""
    shape = backbone.preparation.dummy(1 if is_large(backbone) else 2)["pixel_values"].shape
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels.contiguous(memory_format=torch.channels_last) if backbone.channels_last else pixels}


@pytest.mark.parametrize("architecture", EACH)
def test_a_member_of_each_module_is_the_plain_timm_model(architecture: str, tmp_path: Path) -> None:
    plain, backbone = plain_and_ours(architecture, tmp_path)
    inputs = pictures(backbone)
    with torch.no_grad():
        features = backbone(inputs)
        pooled = backbone.pool(features)
        theirs = plain.forward_features(inputs["pixel_values"])  # type: ignore[operator]
        if backbone.layout == "pooled":
            assert torch.equal(features.x, plain.forward_head(theirs, pre_logits=True))  # type: ignore[operator]
        elif backbone.layout == "map, channels last":
            assert torch.equal(features.x, theirs.permute(0, 3, 1, 2))
        else:
            assert torch.equal(features.x, theirs)
        if backbone.has_head:
            assert torch.equal(pooled, plain.forward_head(theirs, pre_logits=True))  # type: ignore[operator]
    spec = backbone.features
    assert features.kind == spec.kind
    assert features.x.shape[1 if spec.kind == "map" else -1] == spec.dim
    assert {"map": 4, "tokens": 3, "pooled": 2}[spec.kind] == features.x.ndim
    assert tuple(pooled.shape) == (len(features.x), spec.width("pooled"))
    assert features.mask is None
    check_stages(backbone, inputs)
    check_sites(backbone, inputs)


def check_stages(backbone: TimmBackbone, inputs: dict[str, Tensor]) -> None:
    """The law, and the state that enters the second, the middle and the last stage; of a large network the middle.

    A pass that the state enters gives the features of a whole one, of a picture that nobody looks at.
    """
    found = groups(backbone)
    assert found.keys() == dict(backbone.named_parameters()).keys()
    assert max(found.values()) <= len(backbone.stages) + 1
    last = len(backbone.stages) - 1
    with torch.no_grad():
        for stage in [last // 2] if is_large(backbone) else sorted({min(1, last), last // 2, last}):
            state = boundary(backbone, inputs, stage)  # TNT begins with the pixels of each patch
            assert len(state) % len(inputs["pixel_values"]) == 0, stage
            if type(backbone.network).__module__.rpartition(".")[2] not in NOT_ENTERED:
                entered = resumed(backbone, dummy_inputs(backbone, 1), stage, state)
                assert torch.equal(entered.x, backbone(inputs).x), stage


def check_sites(backbone: TimmBackbone, inputs: dict[str, Tensor]) -> None:
    """A site is a parameter, its rows lie inside, and its module is called exactly if the site says so."""
    sites = [site for role in ROLES for site in backbone.sites(role)]
    assert sites
    called: set[str] = set()
    paths = {site.path for site in sites}
    handles = [
        backbone.get_submodule(path).register_forward_hook(lambda *_, path=path: called.add(path)) for path in paths
    ]
    with torch.no_grad():
        backbone.pool(backbone(inputs))
    for handle in handles:
        handle.remove()
    for site in sites:
        weight = backbone.get_parameter(f"{site.path}.{site.parameter}")
        for rows, size in ((site.outputs, weight.shape[0]), (site.inputs, weight.shape[-1])):
            start, stop = rows or (0, size)
            assert 0 <= start < stop <= size
        if site.outputs is not None and site.num_heads is not None and site.head_dim is not None:
            assert site.num_heads * site.head_dim == site.outputs[1] - site.outputs[0]
        assert site.called == (site.path in called), site


class Seen(TorchFunctionMode):
    """Keeps queries, keys and values of each call of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            self.calls.append((args[0].clone(), args[1].clone(), args[2].clone()))
        return func(*args, **(kwargs or {}))


@contextmanager
def changed(backbone: TimmBackbone, site: Site) -> Iterator[None]:
    """The rows of a site, negated and scaled."""
    weight = backbone.get_parameter(f"{site.path}.{site.parameter}")
    before = weight.detach().clone()
    start, stop = site.outputs or (0, len(weight))
    with torch.no_grad():
        weight[start:stop] *= -2
        yield
        weight.copy_(before)


ATTENTION = (
    *("test_vit", "test_vit2", "test_vit_relpos", "beit_base_patch16_224", "eva02_tiny_patch14_224"),
    *("vit_tiny_patch16_dinov3_qkvb", "hiera_tiny_224", "caformer_s18", "hieradet_small", "samvit_base_patch16_224"),
)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ATTENTION)
def test_rows_of_queries_keys_and_values_change_what_they_say(architecture: str) -> None:
    torch.manual_seed(0)
    backbone = Timm(name=architecture).build(None, "random").eval()
    assert isinstance(backbone, TimmBackbone)
    inputs = pictures(backbone)
    sites = [backbone.sites(role)[0] for role in ("attn.q", "attn.k", "attn.v")]
    with torch.no_grad(), Seen() as usual:
        backbone(inputs)
    for place, site in enumerate(sites):
        with changed(backbone, site), Seen() as other:
            backbone(inputs)
        moved = [not torch.equal(a, b) for a, b in zip(usual.calls[0], other.calls[0], strict=True)]
        assert moved == [index == place for index in range(3)], site


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2", "test_vit3", "eva02_tiny_patch14_224"])
def test_vision_transformers_call_attention_once_in_each_stage(architecture: str) -> None:
    with torch.device("meta"):
        backbone = Timm(name=architecture).build(None, "random").eval()
    assert isinstance(backbone, TimmBackbone)
    assert attention_calls(backbone) == [1] * len(stage_modules(backbone))


def test_fused_attention_is_on_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.layers import config

    monkeypatch.setattr(config, "_USE_FUSED_ATTN", 0)
    with torch.device("meta"):
        backbone = Timm(name="test_vit").build(None, "random").eval()
    assert attention_calls(backbone) == [1] * 6
    assert config._USE_FUSED_ATTN == 0


@pytest.mark.parametrize("kind", sorted(FUSED | READ))
def test_a_listed_attention_is_a_class_of_timm(kind: str) -> None:
    module, _, name = kind.partition(".")
    places = [f"timm.layers.{module}", f"timm.models.{module}"]
    found = [sys_module for place in places if (sys_module := __import__("sys").modules.get(place)) is not None]
    assert any(isinstance(getattr(each, name, None), type) for each in found)


@pytest.mark.parametrize("module", sorted(FAMILIES))
def test_a_listed_family_is_a_module_of_timm_and_its_stages_fit_something(module: str) -> None:
    assert module in MEMBERS
    taken_apart = "one stage" not in CATALOGUE[f"timm/{MEMBERS[module]}"]["summary"]
    assert bool(FAMILIES[module].stages) == taken_apart


def test_a_family_that_nobody_took_apart_has_one_stage_and_says_so() -> None:
    entry = CATALOGUE["timm/dla34"]
    assert entry["num_stages"] == 1
    assert "not taken apart: one stage" in entry["summary"]
    with torch.device("meta"):
        backbone = Timm(name="dla34").build(None, "random")
    assert isinstance(backbone, TimmBackbone)
    assert backbone.stages == ("model",)
    assert set(groups(backbone).values()) == {1}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("test_efficientnet", True),
        ("resnet10t", True),
        ("mobileone_s0", False),  # a 1 x 1 convolution with stride 2 of three channels: oneDNN's bug
        ("vgg11", False),
        ("test_vit", False),
    ],
)
def test_maps_are_channels_last_where_it_is_faster_and_safe(architecture: str, expected: bool) -> None:
    backbone = Timm(name=architecture).build(None, "random")
    assert isinstance(backbone, TimmBackbone)
    assert backbone.channels_last is expected


@pytest.mark.parametrize(("architecture", "expected"), [("test_efficientnet", True), ("test_vit", False)])
def test_the_first_convolution_reads_pictures_in_that_layout(architecture: str, expected: bool) -> None:
    backbone = Timm(name=architecture).build(None, "random")
    assert isinstance(backbone, TimmBackbone)
    found: list[bool] = []
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        backbone(backbone.preparation.dummy(2))
    assert found == [expected]


@pytest.mark.parametrize(
    ("convolution", "safe"),
    [
        (nn.Conv2d(8, 32, 1, stride=2), False),
        (nn.Conv2d(64, 64, 1, stride=(1, 2), groups=8), False),
        (nn.Conv2d(16, 32, 1, stride=2), True),
        (nn.Conv2d(8, 32, 1), True),
        (nn.Conv2d(8, 32, 3, stride=2), True),
    ],
)
def test_what_onednn_gets_wrong_is_not_laid_out_channels_last(convolution: nn.Conv2d, safe: bool) -> None:
    assert is_safe_channels_last(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), convolution)) is safe


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_resnet"])
def test_gradients_do_not_depend_on_the_layout(architecture: str) -> None:
    backbone = Timm(name=architecture).build(None, "random").double()
    assert isinstance(backbone, TimmBackbone)
    assert backbone.channels_last
    inputs = {"pixel_values": torch.randn(2, 3, 64, 64, dtype=torch.float64)}
    found = []
    for channels_last in (True, False):
        backbone.channels_last = channels_last
        torch.manual_seed(0)
        backbone.zero_grad()
        backbone.pool(backbone(inputs)).square().sum().backward()
        found.append([x.grad.clone() for x in backbone.parameters() if x.grad is not None])
    assert found[0]
    for ours, usual in zip(*found, strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-8, atol=1e-10)
