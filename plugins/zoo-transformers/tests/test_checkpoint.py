"""Files: older names, shards, pickles; a file that does not fill the backbone is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo_core.errors import IntegrityError, NotFoundError
from zoo_transformers.backbones import Transformers

Tiny = Callable[[str], Path]
Plain = Callable[[str, Path], Any]


def built(folder: Path, **arguments: Any) -> Any:
    return Transformers(files=str(folder), **arguments).build(folder, "pretrained")


def copied(folder: Path, to: Path, tensors: dict[str, Tensor]) -> Path:
    """The folder with other tensors in its file."""
    for path in folder.iterdir():
        if path.suffix == ".json":
            (to / path.name).write_bytes(path.read_bytes())
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, to / "model.safetensors", {"format": "pt"})
    return to


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Any, other: Any) -> bool:
    """Whether two backbones hold the same tensors; an older file gives the same model."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


OLDER: dict[str, list[tuple[str, str]]] = {  # the names that files on the Hub carry: (now, then)
    "bert": [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")],
    "vit": [
        (r"layers\.(\d+)\.attention\.q_proj", r"encoder.layer.\1.attention.attention.query"),
        (r"layers\.(\d+)\.attention\.k_proj", r"encoder.layer.\1.attention.attention.key"),
        (r"layers\.(\d+)\.attention\.v_proj", r"encoder.layer.\1.attention.attention.value"),
        (r"layers\.(\d+)\.attention\.o_proj", r"encoder.layer.\1.attention.output.dense"),
        (r"layers\.(\d+)\.mlp\.fc1", r"encoder.layer.\1.intermediate.dense"),
        (r"layers\.(\d+)\.mlp\.fc2", r"encoder.layer.\1.output.dense"),
        (r"vit\.layers\.(\d+)\.", r"vit.encoder.layer.\1."),
    ],
    "wav2vec2": [("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v")],
    "dinov2": [
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
    ],
    "swin": [
        (r"attention\.q_proj", "attention.self.query"),
        (r"attention\.k_proj", "attention.self.key"),
        (r"attention\.v_proj", "attention.self.value"),
        (r"attention\.relative_position_bias\.relative", "attention.self.relative"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ],
}


@pytest.mark.parametrize("model_type", OLDER)
def test_older_names_fill_the_same_model(model_type: str, tiny: Tiny, plain: Plain, tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    saved = tensors_of(tiny(model_type))
    for name, tensor in saved.items():
        older = name
        for now, then in OLDER[model_type]:
            older = re.sub(now, then, older)
        tensors[older] = tensor
    already = model_type in ("vit", "dinov2", "swin", "wav2vec2")  # transformers itself saves under the older ones
    assert already or tensors.keys() != saved.keys()
    folder = copied(tiny(model_type), tmp_path, tensors)
    found = built(folder)
    assert same(found, built(tiny(model_type)))
    state = plain(model_type, folder).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.model.state_dict().items())


@pytest.mark.parametrize("model_type", ["vit", "wav2vec2", "dinov2", "swin"])
def test_todays_names_fill_the_same_model(model_type: str, tiny: Tiny, tmp_path: Path) -> None:
    """A file under the names of the modules themselves."""
    found = built(tiny(model_type))
    assert same(built(copied(tiny(model_type), tmp_path, found.model.state_dict())), found)


@pytest.mark.parametrize("held", ["shared", "encoder.embed_tokens", "both"])
def test_t5s_shared_embedding_is_found_under_either_name(held: str, tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(tiny("t5"))
    shared = tensors.pop("shared.weight")
    names = ["shared", "encoder.embed_tokens"] if held == "both" else [held]
    folder = copied(tiny("t5"), tmp_path, tensors | {f"{name}.weight": shared for name in names})
    assert same(built(folder), built(tiny("t5")))


def test_two_embeddings_that_differ_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(tiny("t5"))
    folder = copied(tiny("t5"), tmp_path, tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"] + 1})
    with pytest.raises(IntegrityError, match=r"embed_tokens\.weight twice, .* and they differ"):
        built(folder)


def test_a_gated_mlp_in_one_matrix_is_divided(tmp_path: Path) -> None:
    """DINOv2 giant's: older files hold both halves of its gated layer in one."""
    config = transformers.Dinov2Config(
        image_size=8, patch_size=4, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, use_swiglu_ffn=True
    )
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    table = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(table))
    found: Any = built(tmp_path)
    assert any("mlp.weights_in" in name for name in tensors_of(tmp_path))
    plain: Any = transformers.Dinov2Model.from_pretrained(tmp_path)
    plain.eval()
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(found({"pixel_values": pixels}).x, plain(pixels).last_hidden_state)
    assert [len(found.sites(role)) for role in ("mlp.in", "mlp.gate", "mlp.out")] == [2, 2, 2]


def test_shards_fill_the_same_model(tiny: Tiny, tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(tiny("bert"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny("bert") / name).read_bytes())
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert same(built(tmp_path), built(tiny("bert")))
    shards[1].unlink()
    with pytest.raises(IntegrityError, match="1 shards missing"):
        built(tmp_path)


def test_a_pickle_is_read_only_where_it_is_allowed(tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(tiny("bert"))
    folder = copied(tiny("bert"), tmp_path, tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(NotFoundError, match=r"has no weights: .*; it has pytorch_model\.bin, a pickle: allow_pickle"):
        built(folder)
    assert same(built(folder, allow_pickle=True), built(tiny("bert")))


class Evil:
    def __reduce__(self) -> Any:
        return (Path("/nowhere/pickle-ran").touch, ())


def test_a_pickle_that_runs_code_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny("bert"), tmp_path, tensors_of(tiny("bert")))
    (folder / "model.safetensors").unlink()
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(IntegrityError, match="cannot be read as tensors alone"):
        built(folder, allow_pickle=True)


@pytest.mark.parametrize(
    "model_type",
    ["bert", "vit", "gpt2", *(pytest.param(each, marks=pytest.mark.slow) for each in ("wav2vec2", "t5", "clip"))],
)
def test_a_file_that_lacks_any_one_tensor_is_refused(model_type: str, tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(tiny(model_type))
    folder = copied(tiny(model_type), tmp_path, tensors)
    before = built(tiny(model_type))
    unused = set()
    for name in tensors:
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / "model.safetensors")
        with suppress(IntegrityError):
            assert same(built(folder), before), name
            unused.add(name)
    assert len(tensors) - len(unused) == len(before.state_dict())


@pytest.mark.parametrize("model_type", ["bert", "llama", "whisper"])
def test_a_tensor_that_nobody_declared_is_refused(model_type: str, tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(tiny(model_type)) | {"encoder.extra.weight": torch.ones(2)}
    with pytest.raises(IntegrityError, match=r"1 unknown \((encoder\.)?extra\.weight\)"):
        built(copied(tiny(model_type), tmp_path, tensors))


def test_one_tensor_under_two_names_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(tiny("bert"))
    name = "bert.embeddings.LayerNorm"
    folder = copied(tiny("bert"), tmp_path, tensors | {f"{name}.gamma": tensors[f"{name}.weight"] + 1})
    with pytest.raises(IntegrityError, match=r"twice, as .*gamma and as .*weight, and they differ"):
        built(folder)


def test_positions_of_another_length_are_told_with_their_cause(tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(tiny("bert"))
    tensors["bert.embeddings.position_embeddings.weight"] = torch.zeros(39, 16)
    with pytest.raises(IntegrityError, match="made for another image size or text length"):
        built(copied(tiny("bert"), tmp_path, tensors))


def test_values_that_are_not_finite_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(tiny("bert"))
    tensors["bert.encoder.layer.1.output.dense.bias"][3] = torch.nan
    with pytest.raises(IntegrityError, match=r"layer\.1\.output\.dense\.bias holds values that are not finite"):
        built(copied(tiny("bert"), tmp_path, tensors))


def test_writing_to_the_weights_changes_no_file(tiny: Tiny) -> None:
    before = (tiny("bert") / "model.safetensors").read_bytes()
    backbone = built(tiny("bert"))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    assert (tiny("bert") / "model.safetensors").read_bytes() == before


def test_building_takes_no_function_of_torch_away_from_other_threads(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own way to leave initial values out does, and modules that another thread made stayed unset."""
    seen: list[bool] = []
    usual = nn.init.kaiming_uniform_
    made = nn.Module.__init__

    def noted(self: nn.Module, *arguments: object, **named: object) -> None:
        seen.append(nn.init.kaiming_uniform_ is usual)
        made(self, *arguments, **named)

    folder = tiny("bert")
    monkeypatch.setattr(nn.Module, "__init__", noted)
    backbone = built(folder)
    assert seen
    assert all(seen)
    assert type(backbone.model) is transformers.BertModel
