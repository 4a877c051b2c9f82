"""The three backbones against the backbone contract, their catalogue, their weights files, and wrong arguments."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zoo_core
from zoo_core.contracts import ROLES, Backbone, Features, Split, Target, Weights
from zoo_core.data.decoding import decode
from zoo_core.data.splits import Splits, carve
from zoo_core.errors import IntegrityError, NotFoundError, RefusedError, UsageError, ZooError
from zoo_core.files.hashing import sha256_of
from zoo_core.model.build import build
from zoo_core.plan.resolve import resolve
from zoo_core.toolkit.attention import attention_calls
from zoo_core.toolkit.preparations import ImagePreparation
from zoo_core.toolkit.stages import groups, stage_modules
from zoo_starter import contract
from zoo_starter.backbones import Starter
from zoo_starter.tasks import Digits

FOLDER = Path(__file__).parents[1]
CATALOGUE = json.loads((FOLDER / "zoo_starter" / "catalogue.json").read_text(encoding="utf-8"))["backbone"]
NAMES = ("convnet-nano", "mlp-nano", "vit-nano")
PICTURES = ("convnet-nano", "vit-nano")
CLASSES = Target(kind="classes", size=10)
PRETRAINED: Weights = "pretrained"
RANDOM: Weights = "random"
MIB = 2**20


def built(name: str, weights: Weights = "random", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Starter(name=name).build(None, weights).eval()


def as_contract(backbone: nn.Module) -> Backbone:
    assert isinstance(backbone, Backbone)
    return backbone


def inputs_of(backbone: nn.Module, num: int = 3) -> dict[str, Tensor]:
    """Random inputs of the shape that the backbone's own preparation gives."""
    return {name: torch.randn_like(x) for name, x in as_contract(backbone).preparation.dummy(num).items()}


# -- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_declared_kind_width_and_type(name: str) -> None:
    backbone = built(name)
    spec = as_contract(backbone).features
    features = backbone(inputs_of(backbone))
    shapes = {"convnet-nano": (3, 128, 4, 4), "mlp-nano": (3, 128), "vit-nano": (3, 16, 96)}
    assert isinstance(features, Features)
    assert features.kind == spec.kind
    assert tuple(features.x.shape) == shapes[name]
    assert features.x.shape[1 if spec.kind == "map" else -1] == spec.dim
    assert features.x.dtype == torch.float32
    assert features.mask is None


@pytest.mark.parametrize("name", NAMES)
def test_each_stage_is_called_once_in_order_with_the_hidden_state_first(name: str) -> None:
    backbone = built(name)
    calls: list[int] = []
    outputs: list[Tensor] = []
    for index, stage in enumerate(stage_modules(backbone)):

        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, index: int = index) -> None:
            if outputs:
                assert args[0] is outputs[-1]  # what left the stage before enters this one
            calls.append(index)
            outputs.append(output)

        stage.register_forward_hook(note)
    backbone(inputs_of(backbone))
    assert calls == list(range(len(as_contract(backbone).stages)))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_lies_in_the_stem_in_a_stage_or_after_the_last(name: str) -> None:
    backbone = built(name)
    found = groups(backbone)
    assert found.keys() == {parameter for parameter, _ in backbone.named_parameters()}
    for parameter, group in found.items():
        _, part, *rest = parameter.split(".")
        stage = int(rest[0]) if part == "blocks" else -1
        assert group == {"stem": 0, "blocks": stage + 1, "norm": len(as_contract(backbone).stages) + 1}[part]


@pytest.mark.parametrize("name", NAMES)
def test_a_site_is_a_parameter_and_its_rows_lie_inside(name: str) -> None:
    backbone = built(name)
    for role in ROLES:
        for site in as_contract(backbone).sites(role):
            weight = dict(backbone.get_submodule(site.path).named_parameters(recurse=False))[site.parameter]
            start, stop = site.outputs or (0, weight.shape[site.out_axis])
            assert 0 <= start < stop <= weight.shape[site.out_axis]
            assert site.inputs is None
            if site.num_heads is not None and site.head_dim is not None:
                assert site.num_heads * site.head_dim == stop - start


@pytest.mark.parametrize("name", NAMES)
def test_the_module_of_a_site_is_called_once_in_a_pass(name: str) -> None:
    backbone = built(name)
    paths = sorted({site.path for role in ROLES for site in as_contract(backbone).sites(role)})
    calls = dict.fromkeys(paths, 0)
    for path in paths:

        def count(module: nn.Module, args: object, path: str = path) -> None:
            calls[path] += 1

        backbone.get_submodule(path).register_forward_pre_hook(count)
    backbone(inputs_of(backbone))
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("name", NAMES)
def test_norm_and_conv_sites_are_all_the_norms_and_convolutions(name: str) -> None:
    backbone = built(name)
    kinds: dict[str, tuple[type[nn.Module], ...]] = {"norm": (nn.LayerNorm, nn.BatchNorm2d), "conv": (nn.Conv2d,)}
    for role, classes in kinds.items():
        paths = [path for path, module in backbone.named_modules() if isinstance(module, classes)]
        assert [site.path for site in as_contract(backbone).sites(role)] == paths


def test_the_fused_rows_are_query_key_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = built("vit-nano")
    seen: list[tuple[Tensor, ...]] = []
    entered: list[Tensor] = []
    original = nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append((query, key, value))
        return original(query, key, value)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    sites = [as_contract(backbone).sites(f"attn.{letter}") for letter in "qkv"]
    for site in sites[0]:
        backbone.get_submodule(site.path).register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.no_grad():
        backbone(inputs_of(backbone))
        for block, x_BTD in enumerate(entered):
            fused = backbone.get_submodule(sites[0][block].path)
            for part, tensor in enumerate(seen[block]):
                site = sites[part][block]
                assert site.outputs is not None
                rows = slice(*site.outputs)
                expected = x_BTD @ fused.get_parameter("weight")[rows].T + fused.get_parameter("bias")[rows]
                expected = expected.unflatten(-1, (site.num_heads, site.head_dim)).transpose(1, 2)
                torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)  # float32 sums of 96 terms
    covered = sorted(site.outputs for role in sites for site in role[:1] if site.outputs is not None)
    assert covered == [(0, 96), (96, 192), (192, 288)]


@pytest.mark.parametrize("name", ["mlp-nano", "vit-nano"])
def test_mlp_sites_widen_and_narrow_again(name: str) -> None:
    backbone = as_contract(built(name))
    for wide, narrow in zip(backbone.sites("mlp.in"), backbone.sites("mlp.out"), strict=True):
        first, second = (built(name).get_parameter(f"{site.path}.weight").shape for site in (wide, narrow))
        assert (first[0], first[1]) == (second[1], second[0])
        assert first[0] > first[1] == backbone.features.dim


@pytest.mark.parametrize("name", NAMES)
def test_pooling_is_the_mean_over_tokens_or_places(name: str) -> None:
    backbone = built(name).double()
    inputs = {key: x.double() for key, x in inputs_of(backbone).items()}
    with torch.no_grad():
        features = backbone(inputs)
    x = features.x.numpy()
    expected = {"map": lambda: x.mean(axis=(2, 3)), "tokens": lambda: x.mean(axis=1), "pooled": lambda: x}
    found = as_contract(backbone).pool(features).numpy()
    assert np.abs(found - expected[features.kind]()).max() < 1e-14  # float64 sums of 16 terms of order one


# -- the catalogue ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_tells_what_is_built(name: str) -> None:
    backbone, facts = built(name), CATALOGUE[f"starter/{name}"]
    source = as_contract(backbone)
    assert facts["modality"] == source.modality
    assert facts["features"] == {"kind": source.features.kind, "dim": source.features.dim}
    assert facts["num_stages"] == len(source.stages)
    assert facts["num_parameters"] == sum(parameter.numel() for parameter in backbone.parameters())
    assert facts["roles"] == sorted(role for role in ROLES if source.sites(role))
    once = attention_calls(backbone) == [1] * len(source.stages)
    assert facts["seams"] == (["attention", "prompt", "stage"] if once else ["stage"])
    assert facts["weights"] == (["random"] if name == "mlp-nano" else ["pretrained", "random"])


def test_the_catalogue_names_what_the_recipe_takes() -> None:
    assert set(CATALOGUE) == {f"starter/{name}" for name in NAMES}
    assert all(Starter(name=name).source() is None for name in NAMES)


@pytest.mark.parametrize("name", PICTURES)
def test_the_catalogues_input_is_what_the_preparation_makes_and_pre_training_saw(name: str) -> None:
    preparation, facts = as_contract(built(name)).preparation, CATALOGUE[f"starter/{name}"]["input"]
    assert isinstance(preparation, ImagePreparation)
    assert facts["size"] == [3, preparation.size, preparation.size]
    assert preparation.interpolation == facts["interpolation"]
    assert (preparation.mean, preparation.std) == ((facts["mean"],) * 3, (facts["std"],) * 3)
    script = ast.parse((FOLDER / "pretraining" / "pretrain.py").read_text(encoding="utf-8"))
    constants = {
        node.target.id: ast.literal_eval(node.value)
        for node in script.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    assert (facts["mean"], facts["std"]) == (constants["MEAN"], constants["STD"])


def test_the_catalogues_columns_are_what_the_table_takes() -> None:
    dummy = as_contract(built("mlp-nano")).preparation.dummy(1)["numeric"]
    assert CATALOGUE["starter/mlp-nano"]["input"] == {"max_columns": dummy.shape[1]}


# -- preparation --------------------------------------------------------------------------------------------------


def enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, pixels as squares, edges repeated: written with loops, uint8 [h, w] -> float64 [size, size]."""
    old = len(image)
    result = np.zeros((size, size))
    places = [min(max((index + 0.5) * old / size - 0.5, 0), old - 1) for index in range(size)]
    for row, y in enumerate(places):
        for column, x in enumerate(places):
            top, left = min(int(y), old - 2), min(int(x), old - 2)
            down, right = y - top, x - left
            above = image[top, left] * (1 - right) + image[top, left + 1] * right
            below = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
            result[row, column] = above * (1 - down) + below * down
    return result


@pytest.mark.parametrize("name", PICTURES)
def test_a_digit_becomes_three_equal_channels_enlarged_and_normalised(name: str) -> None:
    preparation = as_contract(built(name)).preparation
    raw = Digits().open(None).splits["train"].raw(5)
    prepared = preparation.prepare([decode("image", raw)])
    assert prepared[0]["pixel_values"].dtype == torch.uint8
    x_BCHW = preparation.normalise(preparation.collate(prepared))["pixel_values"]
    assert tuple(x_BCHW.shape) == (1, 3, 32, 32)
    assert torch.equal(x_BCHW[:, 0], x_BCHW[:, 1])
    assert torch.equal(x_BCHW[:, 0], x_BCHW[:, 2])
    expected = (enlarged(raw.astype(float), 32) / 255 - 0.25) / 0.32
    rounding = 0.5 / 255 / 0.32  # pixels are kept as bytes
    assert (
        np.abs(x_BCHW[0, 0].numpy() - expected).max() < rounding + 1e-3
    )  # and a tie may fall the other way in float32


@pytest.mark.parametrize("name", PICTURES)
def test_black_and_white_become_known_numbers(name: str) -> None:
    preparation = as_contract(built(name)).preparation
    images = [torch.zeros(1, 8, 8, dtype=torch.uint8), torch.full((1, 32, 32), 255, dtype=torch.uint8)]
    x = preparation.normalise(preparation.collate(preparation.prepare(images)))["pixel_values"]
    assert x[0].unique().tolist() == pytest.approx([-0.25 / 0.32])
    assert x[1].unique().tolist() == pytest.approx([0.75 / 0.32])


def test_the_digest_of_a_preparation_changes_with_its_numbers() -> None:
    assert contract.GREY.digest != replace(contract.GREY, size=64).digest
    assert contract.GREY.digest == replace(contract.GREY).digest


def test_columns_that_a_table_lacks_are_as_good_as_zeros() -> None:
    backbone = built("mlp-nano").double()
    numeric = torch.randn(4, 10, dtype=torch.float64)
    wide = torch.cat([numeric, torch.zeros(4, 54, dtype=torch.float64)], dim=1)
    with torch.no_grad():
        narrow, padded = backbone({"numeric": numeric}).x, backbone({"numeric": wide}).x
    torch.testing.assert_close(narrow, padded, rtol=1e-12, atol=1e-12)


def test_a_table_with_too_many_columns_is_refused() -> None:
    with pytest.raises(UsageError, match=r"allowed: \[N\] with N up to 64"):
        as_contract(built("mlp-nano")).preparation.prepare([np.zeros(65, dtype=np.float32)])


# -- weights ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's catalogue and weights in a folder of their own, from which the backbones now read."""
    shutil.copytree(FOLDER / "zoo_starter" / "weights", tmp_path / "weights")
    shutil.copy(FOLDER / "zoo_starter" / "catalogue.json", tmp_path)
    monkeypatch.setattr(contract, "HERE", tmp_path)
    return tmp_path


def list_anew(folder: Path, name: str) -> None:
    """Writes the file's own hash and size into the copied catalogue, as a careless publisher would."""
    path, file = folder / "catalogue.json", folder / "weights" / f"{name}.safetensors"
    content = json.loads(path.read_text(encoding="utf-8"))
    listed = {"sha256": sha256_of(file), "size": file.stat().st_size}
    content["backbone"][f"starter/{name}"]["files"][file.name] = listed
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", PICTURES)
def test_the_package_ships_the_weights_that_its_catalogue_lists(name: str) -> None:
    file = FOLDER / "zoo_starter" / "weights" / f"{name}.safetensors"
    assert file.is_file(), f"pretraining/pretrain.py {name} makes it"
    assert CATALOGUE[f"starter/{name}"]["files"] == {
        file.name: {"sha256": sha256_of(file), "size": file.stat().st_size}
    }
    assert file.stat().st_size < 2 * MIB


@pytest.mark.parametrize("name", PICTURES)
def test_pretrained_weights_are_the_files_and_nothing_is_left_at_random(name: str) -> None:
    tensors = load_file(FOLDER / "zoo_starter" / "weights" / f"{name}.safetensors")
    first, second = (built(name, "pretrained", seed=seed).get_submodule("network").state_dict() for seed in (0, 1))
    assert tensors.keys() == first.keys()
    for key, tensor in tensors.items():
        assert torch.equal(first[key], tensor.to(first[key].dtype))
        assert torch.equal(first[key], second[key])


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_follow_the_seed(name: str) -> None:
    states = [built(name, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_a_copy_of_the_package_loads(copied: Path) -> None:
    assert copied == contract.HERE
    for name in PICTURES:
        built(name, "pretrained")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_one_flipped_byte_is_an_integrity_error_that_names_the_file(copied: Path, name: str, place: float) -> None:
    file = copied / "weights" / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)
    told(name, file, "sha256")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("kept", [0, 1, 0.5])
def test_a_truncated_file_is_an_integrity_error_that_names_it(copied: Path, name: str, kept: float) -> None:
    file = copied / "weights" / f"{name}.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * (len(content) - 1))])
    told(name, file, "truncated")


def test_a_truncated_file_with_a_matching_hash_is_an_integrity_error_too(copied: Path) -> None:
    file = copied / "weights" / "vit-nano.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    list_anew(copied, "vit-nano")
    told("vit-nano", file, "not a whole safetensors file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "1 of 75 tensors missing"),
        ({"head.weight": torch.zeros(2, 2)}, "1 unknown (head.weight)"),
        ({"norm.weight": torch.zeros(97)}, "norm.weight has shape (97,)"),
        ({"norm.weight": torch.full((96,), torch.nan)}, "norm.weight holds values that are not finite"),
    ],
)
def test_tensors_of_another_network_are_an_integrity_error(
    copied: Path, change: Mapping[str, Tensor | None], message: str
) -> None:
    file = copied / "weights" / "vit-nano.safetensors"
    tensors = load_file(file)
    for key, value in change.items():
        tensors.pop(key, None)
        if value is not None:
            tensors[key] = value
    save_file(tensors, file)
    list_anew(copied, "vit-nano")
    told("vit-nano", file, message)


def told(name: str, file: Path, message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        built(name, "pretrained")
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    built(name, "random")  # reads no file


def test_a_missing_file_is_told_with_the_mend(copied: Path) -> None:
    file = copied / "weights" / "vit-nano.safetensors"
    file.unlink()
    with pytest.raises(NotFoundError, match=r"is missing; install its package again") as caught:
        built("vit-nano", "pretrained")
    assert str(file) in str(caught.value)


# -- does it transfer ---------------------------------------------------------------------------------------------


def pictures(part: Split) -> Tensor:
    """A whole split as a backbone sees it: float32 [N, 3, 32, 32]."""
    prepared = contract.GREY.prepare([decode("image", part.raw(index)) for index in range(part.num)])
    return contract.GREY.normalise(contract.GREY.collate(prepared))["pixel_values"]


def class_mean_accuracy(train_ND: Tensor, val_ND: Tensor, splits: Splits) -> float:
    """Of the class whose mean lies in the most similar direction, on the validation split; test is not read."""
    train_ND, val_ND = (nn.functional.normalize(x, dim=1) for x in (train_ND, val_ND))
    labels = torch.from_numpy(splits.train.targets)
    means = nn.functional.normalize(torch.stack([train_ND[labels == label].mean(0) for label in range(10)]), dim=1)
    return float(((val_ND @ means.T).argmax(1).numpy() == splits.val.targets).mean())


@pytest.mark.parametrize("name", PICTURES)
def test_pre_training_helps_with_five_examples_of_each_digit(name: str) -> None:
    """Better than raw pixels, and than random weights, beyond what three draws and three random networks do."""
    data = Digits().open(None)
    pretrained: list[float] = []
    random: list[float] = []
    raw: list[float] = []
    for seed in range(3):
        splits = carve(data, seed=seed, shots=5)
        train, val = pictures(splits.train), pictures(splits.val)
        raw.append(class_mean_accuracy(train[:, 0].flatten(1), val[:, 0].flatten(1), splits))
        for weights, scores in ((PRETRAINED, pretrained), (RANDOM, random)):
            backbone = built(name, weights, seed)
            with torch.no_grad():
                pooled = [as_contract(backbone).pool(backbone({"pixel_values": x})) for x in (train, val)]
            scores.append(class_mean_accuracy(pooled[0], pooled[1], splits))
    assert min(pretrained) > max(raw)
    assert min(pretrained) > max(random)


# -- names and arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("starter/vit-nan", NotFoundError, "vit-nano"),
        ("starter/resnet50", NotFoundError, "convnet-nano, mlp-nano, vit-nano"),
        ("starter", UsageError, "starter/NAME"),
        ("starter/vit-nano(dropout=1)", UsageError, "starter/vit-nano(dropout=1): allowed: 0 to below 1"),
        ("starter/vit-nano(drop_path=-0.1)", UsageError, "starter/vit-nano(drop_path=-0.1): allowed: 0 to below 1"),
        (
            "starter/convnet-nano(dropout=0.1)",
            UsageError,
            "starter/convnet-nano has no dropout; vit-nano, mlp-nano has",
        ),
        ("starter/mlp-nano(drop_path=0.1)", UsageError, "starter/mlp-nano has no drop_path; vit-nano has"),
        ("starter/vit-nano(dropout=much)", UsageError, "dropout is a number, found the text 'much'"),
        ("starter/vit-nano(droput=0.1)", UsageError, "dropout"),
        ("starter/vit-nano(weights=zero)", UsageError, "pretrained, random"),
        ("starter/mlp-nano", RefusedError, "write 'starter/mlp-nano(weights=random)'"),
    ],
)
def test_a_wrong_name_or_argument_is_told_in_one_line(spec: str, error: type[ZooError], message: str) -> None:
    with pytest.raises(error) as caught:
        resolve(spec, target=CLASSES)
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mlp_nano_is_built_at_random_and_refuses_to_be_pre_trained() -> None:
    learner = zoo_core.load("starter/mlp-nano(weights=random)+full", num_classes=3)
    assert learner({"numeric": torch.randn(2, 10)}).predictions.shape == (2, 3)
    with pytest.raises(RefusedError, match=r"write 'starter/mlp-nano\(weights=random\)'"):
        Starter(name="mlp-nano").build(None, "pretrained")


@pytest.mark.parametrize(
    "spec",
    [
        "starter/vit-nano(dropout=0.5)",
        "starter/vit-nano(drop_path=0.5)",
        "starter/mlp-nano(weights=random, dropout=0.5)",
    ],
)
def test_dropout_acts_where_a_block_trains_and_nowhere_else(spec: str) -> None:
    for adapter, varies in (("full", True), ("probe", False)):
        learner = build(resolve(f"{spec}+{adapter}", target=CLASSES))
        inputs = inputs_of(learner.backbone)
        with torch.no_grad():
            learner.train()
            first, second = (learner(inputs).features.x for _ in range(2))
            assert torch.equal(first, second) != varies
            learner.eval()
            assert torch.equal(learner(inputs).features.x, learner(inputs).features.x)


@pytest.mark.parametrize("task", ["diabetes", "digits", "digits-attributes"])
def test_a_backbone_of_the_wrong_modality_is_refused(task: str) -> None:
    spec = "starter/vit-nano" if task == "diabetes" else "starter/mlp-nano(weights=random)"
    with pytest.raises(RefusedError, match="reads"):
        resolve(spec, task=task)
