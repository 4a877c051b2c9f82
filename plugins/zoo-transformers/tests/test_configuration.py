"""config.json: what a repository may say, what is dropped, what is refused; nothing of it runs or decides on trust."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, UsageError
from zoo_transformers.backbones import Transformers
from zoo_transformers.configuration import describe
from zoo_transformers.families import FAMILIES

Tiny = Callable[[str], Path]


def changed(folder: Path, to: Path, **change: Any) -> Path:
    """The folder's files without its weights, with other values in config.json."""
    for path in folder.iterdir():
        if path.suffix == ".json":
            (to / path.name).write_bytes(path.read_bytes())
    (to / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    return to


def built(folder: Path, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return Transformers(files=str(folder), **arguments).build(folder, "random")


def test_keys_that_could_make_code_run_or_change_trust_are_dropped(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code ran')")
    evil = {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        "trust_remote_code": True,
        "_attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
        "attn_implementation": "evil/kernel",
        "_name_or_path": "evil/repository",
        "_experts_implementation": "evil/kernel",
        "quantization_config": {"quant_method": "evil"},
        "torch_dtype": "float16",
        "dtype": "float16",
        "output_hidden_states": True,
        "output_attentions": True,
        "return_dict": False,
        "use_cache": True,
        "chunk_size_feed_forward": 2,
        "never_heard_of": {"_x": 1},
    }
    folder = changed(tiny("bert"), tmp_path, **evil)
    config, plain = describe(folder).config, describe(tiny("bert")).config
    assert config.to_dict() == plain.to_dict()
    assert config._attn_implementation == "sdpa"
    assert not hasattr(config, "never_heard_of")
    assert not hasattr(config, "auto_map")
    assert {parameter.dtype for parameter in built(folder).parameters()} == {torch.float32}


def test_nested_keys_are_cleaned_too(tiny: Tiny, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 500.0, "_evil": 1, "trust_remote_code": True}
    config = describe(changed(tiny("llama"), tmp_path, rope_parameters=rope)).config
    assert config.rope_parameters["rope_theta"] == 500.0
    assert not {"_evil", "trust_remote_code"} & set(config.rope_parameters)


@pytest.mark.parametrize("key", ["rope_theta", "rope_scaling"])
def test_older_names_are_read_as_transformers_reads_them(key: str, tiny: Tiny, tmp_path: Path) -> None:
    table = json.loads((tiny("llama") / "config.json").read_text())
    del table["rope_parameters"]
    older = {"rope_theta": 1234.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0}}[key]
    folder = changed(tiny("llama"), tmp_path)
    (folder / "config.json").write_text(json.dumps(table | {key: older}))
    config = describe(folder).config
    assert config.rope_parameters["rope_theta"] == (1234.0 if key == "rope_theta" else 77.0)


def test_nothing_is_asked_of_the_network(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for model_type in ("bert", "vit", "whisper"):
        folder = tiny(model_type)
        Transformers(files=str(folder)).build(folder, "pretrained")


@pytest.mark.parametrize("model_type", ["resnt", "bart", None, 7, ["bert"]])
def test_a_model_type_that_is_not_read_is_told_with_those_that_are(model_type: Any, tiny: Tiny, tmp_path: Path) -> None:
    folder = changed(tiny("bert"), tmp_path, model_type=model_type)
    with pytest.raises(IncompatibleError, match=re.escape(f"has model_type {model_type!r}; hf reads")) as caught:
        describe(folder)
    assert "camembert" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_type_with_a_typo_is_told_with_the_nearest(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="did you mean deberta-v2"):
        describe(changed(tiny("bert"), tmp_path, model_type="deberta_v2"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds list; allowed: an object"),
        ("<html>Sign in</html>", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_a_damaged_config_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(IntegrityError, match=told) as caught:
        describe(tmp_path)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json is missing; a folder for hf is laid out like a repository"):
        describe(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "16"},
        {"num_hidden_layers": -1.5},
        {"hidden_act": "no such function"},
        {"num_attention_heads": 3},
        {"hidden_size": None},
        {"layer_norm_eps": [1]},
        {"vocab_size": -4},
    ],
)
def test_values_that_make_no_model_are_told(change: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    folder = changed(tiny("bert"), tmp_path, **change)
    with pytest.raises(IntegrityError) as caught:
        built(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_clip_without_its_vision_part_is_told(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="has no vision_config"):
        describe(changed(tiny("clip"), tmp_path, vision_config=None))


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_a_recipe_takes_a_repository_or_a_folder() -> None:
    assert Transformers(name="ORG/some.repo-1").source().repository == "ORG/some.repo-1"  # type: ignore[union-attr]
    assert Transformers(files="DIR").source().folder == "DIR"  # type: ignore[union-attr]
    for arguments, told in (
        ({}, "found neither"),
        ({"name": "a/b", "files": "DIR"}, "found both"),
        ({"name": "bert-base-uncased"}, "no repository of the Hub; write hf/ORG/REPO"),
        ({"name": "a/b/c"}, "no repository"),
        ({"name": "a/../b"}, "no repository"),
        ({"name": "a/b", "max_length": 7}, "max_length=7; allowed: 8 or more"),
    ):
        with pytest.raises(UsageError, match=told):
            Transformers(**arguments)


def test_pickles_are_only_named_where_they_are_allowed() -> None:
    for allowed in (False, True):
        source = Transformers(name="a/b", allow_pickle=allowed).source()
        assert source is not None
        assert any(".bin" in glob for glob in source.weights) == allowed
        assert not any(".bin" in glob or ".py" in glob for glob in source.patterns)
        assert source.weights[0] == "model.safetensors"


def test_max_length_is_for_texts(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=r"max_length is for texts, and .* reads image"):
        built(tiny("vit"), max_length=16)
    assert built(tiny("bert"), max_length=16).preparation.max_length == 16


def test_every_family_is_told_apart_by_the_model_type_of_its_class() -> None:
    for model_type, family in FAMILIES.items():
        assert family.prefixes, model_type
        assert family.inputs[0] in ("input_ids", "pixel_values", "input_values", "input_features")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"architecture": "resnet18", "num_classes": 1000}, "in timm's format: write timm/ORG/REPO"),
        ({"model_type": "flurb", "auto_map": {"AutoModel": "modeling.Flurb"}}, "code of its own repository.*never run"),
    ],
)
def test_what_hf_does_not_read_is_told_with_what_it_is(table: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(table))
    with pytest.raises(IncompatibleError, match=told):
        describe(tmp_path)
