"""A repository's config.json by our own schema: nothing in it decides more than it may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, ZooError
from zoo_timm.backbones import Timm
from zoo_timm.config import MODEL_ARGS, preparation_of, read_config, registered

GOOD: dict[str, Any] = {
    "architecture": "test_vit",
    "num_classes": 7,
    "num_features": 64,
    "model_args": {"img_size": 96},
    "pretrained_cfg": {
        "input_size": [3, 160, 160],
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "squash",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "num_classes": 1000,
        "classifier": "head",
        "first_conv": "patch_embed.proj",
        "pool_size": None,
    },
}


def written(folder: Path, content: Any) -> Path:
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def with_pretrained(**changes: Any) -> dict[str, Any]:
    return GOOD | {"pretrained_cfg": GOOD["pretrained_cfg"] | changes}


def test_a_description_is_read(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, GOOD))
    assert (config.architecture, config.model_args) == ("test_vit", {"img_size": 96})
    preparation = preparation_of(config.pretrained)
    assert (preparation.size, preparation.mean, preparation.std) == (96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (preparation.interpolation, preparation.crop_pct, preparation.crop_mode) == ("bilinear", 0.9, "squash")
    assert config.pretrained["num_classes"] == 7


def test_the_older_layout_in_one_table_is_read(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, {"architecture": "test_vit"} | GOOD["pretrained_cfg"]))
    assert preparation_of(config.pretrained).mean == (0.1, 0.2, 0.3)


def test_unknown_keys_are_dropped_and_none_may_name_a_file_an_address_or_code(tmp_path: Path) -> None:
    evil = {
        "url": "http://localhost/evil.pth",
        "file": "/etc/passwd",
        "hf_hub_id": "somebody/else",
        "hf_hub_filename": "evil.bin",
        "source": "url",
        "state_dict": {},
        "custom_load": True,
        "trust_remote_code": True,
        "auto_map": {"AutoModel": "evil.Model"},
    }
    config = read_config(written(tmp_path, with_pretrained(**evil) | {"trust_remote_code": True, "custom": 1}))
    assert not evil.keys() & config.pretrained.keys()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", IntegrityError, "is not JSON"),
        ("<html>", IntegrityError, "is not JSON"),
        ("[]", IntegrityError, "it is a table, found []"),
        ("{}", IntegrityError, "architecture is text, found None"),
        (GOOD | {"architecture": 3}, IntegrityError, "architecture is text, found 3"),
        (GOOD | {"pretrained_cfg": 3}, IntegrityError, "pretrained_cfg is a table, found 3"),
        (GOOD | {"model_args": []}, None, ""),
        (GOOD | {"model_args": [1]}, IntegrityError, "model_args is a table, found [1]"),
        (GOOD | {"model_args": {"img_size": {"a": 1}}}, IntegrityError, "model_args.img_size is a number, text or"),
        (GOOD | {"model_args": {"pretrained": True}}, IncompatibleError, "model_args has 'pretrained'"),
        (GOOD | {"model_args": {"checkpoint_path": "x"}}, IncompatibleError, "model_args has 'checkpoint_path'"),
        (with_pretrained(input_size=[224, 224]), IntegrityError, "input_size is three whole numbers"),
        (with_pretrained(input_size=[3, 10**6, 10**6]), IntegrityError, "input_size is three whole numbers"),
        (with_pretrained(mean=[0.5]), IntegrityError, "mean is three numbers, found [0.5]"),
        (with_pretrained(std=[0.5, 0.5, 0]), IntegrityError, "std is three numbers above zero"),
        (with_pretrained(std=[0.5, 0.5, "a"]), IntegrityError, "std is three numbers above zero"),
        (with_pretrained(interpolation="magic"), IntegrityError, "interpolation is one of bilinear, bicubic"),
        (with_pretrained(crop_pct=0), IntegrityError, "crop_pct is a number"),
        (with_pretrained(crop_mode=[]), IntegrityError, "crop_mode is one of center, squash, border"),
        (with_pretrained(classifier={"a": 1}), IntegrityError, "classifier is the name of a layer"),
        (with_pretrained(fixed_input_size="yes"), IntegrityError, "fixed_input_size is true or false"),
        (with_pretrained(num_classes=-1), IntegrityError, "num_classes is a whole number"),
        (GOOD | {"architecture": "test_vip"}, IncompatibleError, "has no architecture 'test_vip'; did you mean"),
        (GOOD | {"architecture": "os.system"}, IncompatibleError, "has no architecture 'os.system'"),
        (GOOD | {"model_args": {"in_chans": 1}}, IncompatibleError, "model_args.in_chans is 1; pictures have 3"),
        (with_pretrained(input_size=[1, 96, 96]) | {"model_args": {}}, IncompatibleError, "read 1 channels"),
    ],
)
def test_a_wrong_description_is_told_in_one_line(
    content: Any, error: type[ZooError] | None, message: str, tmp_path: Path
) -> None:
    file = written(tmp_path, content)
    recipe = Timm(files=str(tmp_path))
    if error is None:
        recipe.build(tmp_path, "random")
        return
    with pytest.raises(error) as caught:
        recipe.build(tmp_path, "random")
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if error is IntegrityError:
        assert str(file) in str(caught.value)


def test_a_folder_without_a_description_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config.json is missing"):
        Timm(files=str(tmp_path)).build(tmp_path, "pretrained")


def test_a_value_that_a_model_refuses_is_not_run_as_code(tmp_path: Path) -> None:
    written(tmp_path, GOOD | {"model_args": {"act_layer": "__import__('os').system('true')"}})
    with pytest.raises(IncompatibleError, match="cannot build what it describes"):
        Timm(files=str(tmp_path)).build(tmp_path, "random")


def test_what_timm_saves_of_its_own_models_may_be_read() -> None:
    arguments = {"img_size", "global_pool", "patch_size", "window_size", "drop_path_rate"}
    assert arguments <= set(MODEL_ARGS)
    with torch.device("meta"):
        model = timm.create_model("test_vit", img_size=96, global_pool="avg")
    saved = vars(model)["_model_args"]
    assert saved.keys() <= set(MODEL_ARGS)
    assert saved


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [
        ("vit_base_patch16_sapiens2.fb", (1024, 768), "squash"),
        ("mobilenetv2_100", 224, "center"),
        ("beit_base_patch16_384", 384, "squash"),
    ],
)
def test_each_set_of_weights_has_its_own_preparation(name: str, size: Any, mode: str) -> None:
    described = timm.models.get_pretrained_cfg(name)
    assert described is not None
    preparation = preparation_of(registered(name).pretrained)
    assert preparation.size == size
    assert (preparation.mean, preparation.std) == (described.mean, described.std)
    assert preparation.crop_mode == described.crop_mode or mode


def test_a_description_of_transformers_is_told_with_how_to_write_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    with pytest.raises(IncompatibleError, match=r"in transformers' format \(bert\); write hf/ORG/REPO"):
        read_config(tmp_path / "config.json")
