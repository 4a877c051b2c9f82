"""A folder with config.json and model.safetensors, as backbone and head: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo_core
from zoo_cifar_resnet.network import Network
from zoo_cifar_resnet.recipes import CifarResNet, Classifier
from zoo_core.contracts import Target
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, RefusedError, UsageError, ZooError

NAMES = ("cat", "dog", "frog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest network of the family, with a classifier of three classes."""
    made = tmp_path / "weights"
    made.mkdir()
    tensors = Network(8).state_dict() | {"linear.weight": torch.randn(3, 64), "linear.bias": torch.randn(3)}
    save_file(tensors, made / "model.safetensors")
    describe(made)
    return made


def describe(folder: Path, **changes: Any) -> None:
    prepared = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "label_names": list(NAMES)}
    told = {"depth": 8, "pretrained_cfg": prepared | changes.pop("pretrained_cfg", {})} | changes
    (folder / "config.json").write_text(json.dumps(told))


def spec(folder: Path, more: str = "") -> str:
    return f'cifar-resnet(files="{folder}")+cifar-resnet-classifier(files="{folder}"{more})'


def test_a_learner_holds_the_bits_of_the_file(folder: Path) -> None:
    learner = zoo_core.load(spec(folder), classes=NAMES)
    held = learner.backbone.network.state_dict()  # type: ignore[union-attr]
    held |= {f"linear.{name.rpartition('.')[2]}": x for name, x in learner.head.named_parameters()}
    stored = load_file(folder / "model.safetensors")
    assert held.keys() == stored.keys()
    assert all(torch.equal(held[name], x) for name, x in stored.items())


def test_the_preparation_is_that_of_the_file_and_resizes(folder: Path) -> None:
    backbone = zoo_core.load_backbone(f'cifar-resnet(files="{folder}")')
    picture = torch.full((80, 60, 3), 255, dtype=torch.uint8)
    inputs = backbone.collate([backbone.transform()(picture)])
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert inputs["pixel_values"][0, :, 0, 0].tolist() == pytest.approx([3.0, 2.5, 0.4 / 0.3], rel=1e-5)
    assert backbone(inputs).x.shape == (1, 64, 8, 8)


def test_rows_of_the_classifier_follow_the_names_of_the_task(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    learner = zoo_core.load(spec(folder), classes=["frog", "cat", "dog"])
    weight, bias = learner.head.parameters()
    assert torch.equal(weight, stored["linear.weight"][[2, 0, 1]])
    assert torch.equal(bias, stored["linear.bias"][[2, 0, 1]])


def test_without_names_the_number_of_classes_decides(folder: Path) -> None:
    assert zoo_core.load(spec(folder), num_classes=3).target.size == 3
    with pytest.raises(RefusedError, match="has 3 classes, and the task 4"):
        zoo_core.load(spec(folder), num_classes=4)


def test_other_classes_are_refused_with_both_lists(folder: Path) -> None:
    with pytest.raises(RefusedError, match="cat, dog, frog; the task has cat, dog, ship"):
        zoo_core.load(spec(folder), classes=["cat", "dog", "ship"])


def test_a_classifier_trains_on_unless_it_is_fixed(folder: Path) -> None:
    assert [x.requires_grad for x in zoo_core.load(spec(folder), classes=NAMES).head.parameters()] == [True, True]
    fixed = zoo_core.load(spec(folder, ",fixed=true"), classes=NAMES)
    assert [x.requires_grad for x in fixed.head.parameters()] == [False, False]
    with pytest.raises(RefusedError, match="gives no gradient to train full"):
        zoo_core.load(spec(folder, ",fixed=true").replace("+", "+full+", 1), classes=NAMES)


def test_a_fixed_classifier_is_stored_and_loaded_as_published(folder: Path, tmp_path: Path) -> None:
    learner = zoo_core.load(spec(folder, ",fixed=true"), classes=NAMES)
    zoo_core.save(learner, tmp_path / "run")
    again = zoo_core.load_run(tmp_path / "run")
    inputs = learner.source.preparation.dummy(2)
    with torch.no_grad():
        assert torch.equal(again(inputs).predictions, learner(inputs).predictions)


def test_weights_with_another_hash_than_asked_for_are_refused(folder: Path) -> None:
    with pytest.raises(IntegrityError, match=r"has sha256 .* and 0000000000"):
        zoo_core.load(f'cifar-resnet(files="{folder}",sha256="{"0" * 64}")', num_classes=3)


@pytest.mark.parametrize("name", ["layer3.0.bn2.running_var", "conv1.weight"])
def test_a_file_that_lacks_a_tensor_is_refused(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({key: x for key, x in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=f"1 of .* missing.*{name}"):
        zoo_core.load(f'cifar-resnet(files="{folder}")', num_classes=3)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"depth": 21}, IncompatibleError, "depth is 21; .* 6n \\+ 2"),
        ({"depth": True}, IncompatibleError, "depth is True"),
        ({"pretrained_cfg": {"std": [1, 1, 0]}}, IntegrityError, "std is three numbers above zero"),
        ({"pretrained_cfg": {"mean": "grey"}}, IntegrityError, "mean is three numbers, found 'grey'"),
        ({"pretrained_cfg": {"label_names": ["cat", "cat", "dog"]}}, IntegrityError, "list of different texts"),
        ({"pretrained_cfg": {"label_names": ["cat", "dog"]}}, IntegrityError, "3 classes, and its config.json 2"),
    ],
)
def test_a_wrong_config_is_told(folder: Path, changes: dict[str, Any], error: type[ZooError], told: str) -> None:
    describe(folder, **changes)
    with pytest.raises(error, match=told):
        zoo_core.load(spec(folder), classes=NAMES)


@pytest.mark.parametrize("content", ["{", "[]", '{"depth": 8, "pretrained_cfg": 1}'])
def test_a_config_that_is_no_table_is_told(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"config\.json"):
        zoo_core.load(spec(folder), classes=NAMES)


def test_names_that_there_are_not_are_told_with_those_that_there_are() -> None:
    with pytest.raises(NotFoundError, match="it has resnet20, resnet32, resnet44, resnet56, resnet110"):
        CifarResNet(name="resnet21")
    for wrong in (CifarResNet, Classifier):
        with pytest.raises(UsageError, match="is a namespace"):
            wrong()
        with pytest.raises(UsageError, match="takes no files"):
            wrong(name="org/name", files="x")
        with pytest.raises(UsageError, match="is no repository"):
            wrong(name="a/b/c")
    with pytest.raises(RefusedError, match=r"resnet20\(weights=random\)"):
        zoo_core.load("cifar-resnet/resnet20", num_classes=3)


def test_a_repository_of_the_hub_is_a_source_of_both() -> None:
    for recipe in (CifarResNet(name="org/name"), Classifier(name="org/name")):
        found = recipe.source()
        assert found is not None
        assert (found.repository, found.patterns, found.weights) == (
            "org/name",
            ("config.json",),
            ("model.safetensors",),
        )


def test_the_target_is_of_classes() -> None:
    with pytest.raises(RefusedError, match="predicts classes and the target is regression"):
        zoo_core.load(
            'cifar-resnet/resnet20(weights=random)+cifar-resnet-classifier(files="x")',
            target=Target(kind="regression", size=1),
        )
