"""Each model type under the backbone contract, against transformers' own model of the same folder, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo_core.contracts import ROLES, as_backbone
from zoo_core.model.given_features import inputs_at
from zoo_core.model.truncation import truncated
from zoo_core.toolkit.attention import attention_calls
from zoo_core.toolkit.stages import boundary, capture, dummy_inputs, groups, resumed, stage_modules
from zoo_transformers.backbones import Transformers
from zoo_transformers.families import FAMILIES

Tiny = Callable[[str], Path]
Plain = Callable[[str, Path], Any]
EVERY = sorted(FAMILIES)
# a later stage of these needs more of an earlier one than its hidden state, or a mask of another length than the state
NOT_ENTERED = {"t5", "hubert"}
UNGATED = {"dinov2"}  # some of them are gated, and the tiny one is not
TEXTS = ["the cat sat on the mat", "no one", "a film that is neither long nor short, but warm"]


def built(folder: Path, **arguments: Any) -> Any:
    backbone = Transformers(files=str(folder), **arguments).build(folder, "pretrained")
    return as_backbone(backbone)


def examples(backbone: Any) -> list[Any]:
    """Three raw examples of different length or content."""
    generator = np.random.default_rng(0)
    if backbone.modality == "text":
        return TEXTS
    if backbone.modality == "image":
        shapes = [(3, 20, 30), (1, 40, 16), (3, 16, 16)]
        return [torch.from_numpy(generator.integers(0, 256, shape).astype("uint8")) for shape in shapes]
    return [
        {"array": generator.standard_normal(length).astype("float32") / 10, "sampling_rate": rate}
        for length, rate in ((1600, 16000), (900, 16000), (700, 8000))
    ]


def prepared(backbone: Any, raw: list[Any]) -> dict[str, Tensor]:
    preparation = backbone.preparation
    inputs: dict[str, Tensor] = preparation.normalise(preparation.collate(preparation.prepare(raw)))
    return inputs


def rows(features: Tensor) -> Tensor:
    """Features as the library gives them: [B, T, D]."""
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def passed_on(backbone: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = backbone.family.inputs if backbone.attends else backbone.family.inputs[:1]
    return {name: inputs[name] for name in names}


@pytest.mark.parametrize("model_type", EVERY)
def test_features_are_those_of_the_librarys_own_loading(model_type: str, tiny: Tiny, plain: Plain) -> None:
    folder = tiny(model_type)
    backbone = built(folder)
    inputs = prepared(backbone, examples(backbone))
    with torch.no_grad():
        expected = plain(model_type, folder)(**passed_on(backbone, inputs)).last_hidden_state
        features = backbone(inputs)
    assert features.kind == backbone.features.kind
    assert torch.equal(rows(features.x), rows(expected))
    assert features.x.std() > 0
    assert features.x.shape[1 if features.kind == "map" else 2] == backbone.features.dim


@pytest.mark.parametrize("model_type", EVERY)
def test_each_stage_is_called_once_with_the_hidden_state_first(model_type: str, tiny: Tiny) -> None:
    backbone = built(tiny(model_type))
    found = groups(backbone)
    assert set(range(len(backbone.stages) + 1)) <= set(found.values())
    inputs = prepared(backbone, examples(backbone))
    with torch.no_grad():
        for stage in range(1, len(backbone.stages)):
            state = boundary(backbone, inputs, stage)
            assert len(state) == len(next(iter(inputs.values())))
            if model_type not in NOT_ENTERED:
                given = {**dummy_inputs(backbone, 1), **inputs_at(stage, state, inputs)}
                assert torch.equal(resumed(backbone, given, stage, state).x, backbone(inputs).x)


@pytest.mark.parametrize("model_type", EVERY)
def test_each_stage_attends_once_where_the_family_has_fused_attention(model_type: str, tiny: Tiny) -> None:
    backbone = built(tiny(model_type))
    assert attention_calls(backbone) == [int(backbone.family.fused)] * len(backbone.stages)


@pytest.mark.parametrize("model_type", EVERY)
def test_every_role_has_its_weight_in_every_stage(model_type: str, tiny: Tiny) -> None:
    backbone = built(tiny(model_type))
    for role in backbone.family.roles:
        sites = backbone.sites(role)
        if role == "mlp.gate" and model_type in UNGATED:
            continue
        for stage in backbone.stages:
            assert [site for site in sites if site.path.startswith(f"{stage}.")], (role, stage)
    for role in ROLES:
        for site in backbone.sites(role):
            weight = backbone.get_submodule(site.path).get_parameter(site.parameter)
            rows = weight.shape[site.out_axis]
            start, stop = site.outputs or (0, rows)
            assert 0 <= start < stop <= rows, site
            if role in ("attn.q", "attn.k", "attn.v"):
                assert site.num_heads * site.head_dim == stop - start, site
            if role == "attn.out":
                assert site.num_heads * site.head_dim == weight.shape[1 - site.out_axis], site


@pytest.mark.parametrize("model_type", EVERY)
def test_what_a_site_names_decides_the_features(model_type: str, tiny: Tiny) -> None:
    """Scaling the rows of a site changes the features, for every role; put back, they are as before."""
    backbone = built(tiny(model_type))
    inputs = prepared(backbone, examples(backbone))
    for role in filter(backbone.sites, backbone.family.roles):
        with torch.no_grad():
            before = backbone(inputs).x
            site = backbone.sites(role)[-1]
            weight = backbone.get_submodule(site.path).get_parameter(site.parameter)
            start, stop = site.outputs or (0, weight.shape[site.out_axis])
            kept = weight.clone()
            weight.narrow(site.out_axis, start, stop - start).mul_(1 + torch.rand(()))
            assert not torch.equal(backbone(inputs).x, before), role
            weight.copy_(kept)
            assert torch.equal(backbone(inputs).x, before)


@pytest.mark.parametrize("model_type", EVERY)
def test_it_can_be_looked_at_on_the_meta_device_without_weights(model_type: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny(model_type)
    for path in folder.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    real = built(folder)
    recipe = Transformers(files=str(tmp_path))
    with torch.device("meta"):
        looked_at: Any = recipe.build(tmp_path, "random")
    assert groups(looked_at) == groups(real)
    assert looked_at.features == real.features
    assert looked_at.stages == real.stages
    assert all(looked_at.sites(role) == real.sites(role) for role in ROLES)


@pytest.mark.parametrize("model_type", EVERY)
def test_random_weights_are_the_seeds(model_type: str, tiny: Tiny) -> None:
    folder = tiny(model_type)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(Transformers(files=str(folder)).build(folder, "random").state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.isfinite(tensor).all(), name
    assert any(not torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("model_type", EVERY)
def test_half_precision_weights_give_float32_features(model_type: str, tiny: Tiny) -> None:
    folder = tiny(model_type)
    backbone, half = built(folder), built(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    inputs = prepared(backbone, examples(backbone))
    with torch.no_grad():
        features, rough = backbone(inputs), half(inputs)
        assert rough.x.dtype == half.pool(rough).dtype == torch.float32
        # bfloat16 keeps 8 bits, and 3 blocks of unnormed random weights amplify what is lost
        assert (rough.x - features.x).norm() < 0.2 * features.x.norm()


@pytest.mark.parametrize("model_type", EVERY)
def test_the_stages_are_the_blocks_that_the_configuration_counts(model_type: str, tiny: Tiny) -> None:
    backbone = built(tiny(model_type))
    assert len(set(map(id, stage_modules(backbone)))) == len(backbone.stages)
    assert not backbone.training


@pytest.mark.parametrize("model_type", EVERY)
def test_a_backbone_may_end_after_any_stage(model_type: str, tiny: Tiny) -> None:
    whole = built(tiny(model_type))
    inputs = prepared(whole, examples(whole))
    num = len(whole.stages)
    with torch.no_grad(), capture(whole, range(num)) as states:
        expected = whole(inputs)
    for until in (1, num):
        cut = truncated(built(tiny(model_type)), until).eval()
        with torch.no_grad():
            features = cut(inputs)
        assert torch.equal(rows(features.x), rows(states[until - 1]))
        if model_type == "swin" and until < num:  # its own code merges neighbours, so the pass ends before
            assert features.kind == "tokens"
            continue
        assert features.kind == expected.kind
        assert (features.mask is None) == (expected.mask is None)
        assert not cut.ends_early, "its features and their mask are laid out by its own code"
