"""A fitted model as a plain checkpoint: timm and transformers load it by themselves and give what the learner gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import tokenizers
import torch
import transformers
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

import zoo_core
from zoo_core.cli import main
from zoo_core.contracts import Target, Weights
from zoo_core.errors import AccessError, RefusedError, UsageError
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.runs.export import write_plain
from zoo_core.testing.recipes import ToyBackbones, toy_plan
from zoo_core.testing.toys import ToyBackbone

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SMALL = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}


def timm_spec(folder: Path, architecture: str, **model_args: Any) -> str:
    """A small version of an architecture, with random weights."""
    folder.mkdir()
    described = {"architecture": architecture, "model_args": model_args, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (folder / "config.json").write_text(json.dumps(described))
    return f'timm(files="{folder}",weights=random)'


def bert_spec(folder: Path) -> str:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, vocab_size=90, max_position_embeddings=40)
    transformers.BertModel(config).save_pretrained(folder)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "b"])}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 12}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    return f'hf(files="{folder}")'


def stirred(spec: str, **target: Any) -> Learner:
    """A learner whose adapters and head are no longer what they were at the start."""
    learner = zoo_core.load(spec, **(target or {"classes": ["ape", "bee", "cat"]}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in learner.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return learner.eval()


def pictures() -> dict[str, Tensor]:
    return {"pixel_values": torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).sin()}


def close(found: Tensor, expected: Tensor) -> None:
    """Up to what float32 leaves of values of order one."""
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# --- timm ------------------------------------------------------------------------------------------------------------

TIMM: Mapping[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", SMALL),
    "beit": ("beit_base_patch16_224", SMALL),
    "convnext": ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
    ),
    "siglip": ("vit_base_patch16_siglip_224", SMALL),
}


@pytest.mark.parametrize("kind", TIMM)
def test_timm_alone_gives_the_features_and_the_predictions_of_the_merged_learner(tmp_path: Path, kind: str) -> None:
    architecture, arguments = TIMM[kind]
    learner = stirred(timm_spec(tmp_path / "base", architecture, **arguments) + "+lora(r=2)+norm")
    told = zoo_core.export(learner, tmp_path / "plain")
    assert told == (
        f'timm.create_model("local-dir:{tmp_path}/plain", pretrained=True) loads it: '
        f"features, and 3 outputs as its classifier"
    )
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["config.json", "model.safetensors"]
    plain = timm.create_model(f"local-dir:{tmp_path}/plain", pretrained=True).eval()
    inputs = pictures()
    with torch.no_grad():
        expected = learner.merge()(inputs)
        features = plain.forward_features(inputs["pixel_values"])  # type: ignore[operator]
        close(features.permute(0, 3, 1, 2) if kind == "swin" else features, expected.features.x)
        close(plain(inputs["pixel_values"]), expected.predictions)
        base = zoo_core.load(f'timm(files="{tmp_path}/base",weights=random)', num_classes=3)
        assert not torch.allclose(base(inputs).features.x, expected.features.x, atol=1e-3)
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["label_names"] == ["ape", "bee", "cat"]


ALONE = """
import json, sys, timm, torch
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
pixels = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).sin()
with torch.no_grad():
    print(json.dumps(model(pixels).tolist()))
assert not any(name.startswith("zoo") for name in sys.modules)
"""


@pytest.mark.slow
def test_a_process_without_zoo_predicts_the_same_from_a_stored_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = stirred(timm_spec(tmp_path / "base", "vit_tiny_patch16_224", **SMALL) + "+lora(r=2)")
    zoo_core.save(learner, tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "plain")]) == 0
    assert capsys.readouterr().out.startswith(f'timm.create_model("local-dir:{tmp_path}/plain", pretrained=True)')
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "plain")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        close(torch.tensor(json.loads(done.stdout)), learner.merge()(pictures()).predictions)


def test_zoo_reads_it_again_as_a_backbone_that_prepares_the_same(tmp_path: Path) -> None:
    learner = stirred(timm_spec(tmp_path / "base", "vit_tiny_patch16_224", **SMALL) + "+full")
    zoo_core.export(learner, tmp_path / "plain")
    again = zoo_core.load(f'timm(files="{tmp_path}/plain")', num_classes=3)
    with torch.no_grad():
        assert torch.equal(again(pictures()).features.x, learner(pictures()).features.x)
    assert again.source.preparation.digest == learner.source.preparation.digest


def test_values_leave_a_classifier_in_their_own_units(tmp_path: Path) -> None:
    spec = timm_spec(tmp_path / "base", "vit_tiny_patch16_224", **SMALL) + "+lora(r=2)"
    learner = stirred(spec, target=Target(kind="regression", size=2))
    learner.fit_scale(torch.tensor([[100.0, -3.0], [300.0, -1.0], [800.0, 4.0]]))
    zoo_core.export(learner, tmp_path / "plain")
    plain = timm.create_model(f"local-dir:{tmp_path}/plain", pretrained=True).eval()
    with torch.no_grad():
        expected = learner.merge()(pictures()).predictions
        assert float(expected[:, 0].mean()) > 100
        torch.testing.assert_close(plain(pictures()["pixel_values"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "head", "reason"),
    [
        ("vit_tiny_patch16_224", "mlp", "it is not one linear layer on pooled features"),
        ("vit_tiny_patch16_224", "ncm", "it is not one linear layer on pooled features"),
        ("vit_tiny_patch16_224", "attention-pool(num_heads=2)", "it is not one linear layer on pooled features"),
        ("deit_tiny_distilled_patch16_224", "linear", "timm's classifier of this model is a tuple of another shape"),
    ],
)
def test_a_head_that_timm_has_no_place_for_is_left_out_and_that_is_said(
    tmp_path: Path, architecture: str, head: str, reason: str
) -> None:
    learner = stirred(timm_spec(tmp_path / "base", architecture, **SMALL) + f"+probe+{head}")
    told = zoo_core.export(learner, tmp_path / "plain")
    assert told.endswith(f"loads it: features; the head is left out: {reason}")
    plain = timm.create_model(f"local-dir:{tmp_path}/plain", pretrained=True).eval()
    assert plain.num_classes == 0
    with torch.no_grad():
        features = learner.backbone(pictures())
        close(plain.forward_features(pictures()["pixel_values"]), features.x)  # type: ignore[operator]
        close(plain(pictures()["pixel_values"]), learner.source.pool(features))
    assert "label_names" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_tensors_that_a_model_shares_are_written_for_each_name(tmp_path: Path) -> None:
    """CoaT uses one position encoding in several blocks; the format knows no shared memory."""
    spec = timm_spec(tmp_path / "base", "coat_lite_tiny", img_size=32)
    learner = stirred(f"{spec}+probe")
    zoo_core.export(learner, tmp_path / "plain")
    plain = timm.create_model(f"local-dir:{tmp_path}/plain", pretrained=True).eval()
    with torch.no_grad():
        close(plain(pictures()["pixel_values"]), learner(pictures()).predictions)


# --- transformers ----------------------------------------------------------------------------------------------------


def test_transformers_alone_gives_the_features_of_the_merged_learner(tmp_path: Path) -> None:
    learner = stirred(bert_spec(tmp_path / "base") + "+lora(r=2)+norm")
    told = zoo_core.export(learner, tmp_path / "plain")
    assert told.startswith(f'transformers.AutoModel.from_pretrained("{tmp_path}/plain") loads it: features; the head')
    plain = transformers.AutoModel.from_pretrained(tmp_path / "plain").eval()
    inputs = {"input_ids": torch.tensor([[2, 3, 3, 2]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    with torch.no_grad():
        close(plain(**inputs).last_hidden_state, learner.merge()(inputs).features.x)
    for name in ("tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    again = zoo_core.load(f'hf(files="{tmp_path}/plain")', num_classes=3)
    assert again.source.preparation.digest == learner.source.preparation.digest
    with torch.no_grad():
        assert torch.equal(again(inputs).features.x, learner.merge()(inputs).features.x)


def test_an_encoder_without_its_decoder_is_loaded_by_its_own_class(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(
        vocab_size=200,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    transformers.WhisperModel(config).save_pretrained(tmp_path / "base")
    features = {"feature_size": 8, "chunk_length": 1, "sampling_rate": 16000}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(features))
    learner = stirred(f'hf(files="{tmp_path}/base")+lora(r=2)')
    told = zoo_core.export(learner, tmp_path / "plain")
    assert told.startswith("transformers.models.whisper.modeling_whisper.WhisperEncoder.from_pretrained(")
    plain: Any = WhisperEncoder.from_pretrained(tmp_path / "plain")
    inputs = learner.source.preparation.dummy(2)
    with torch.no_grad():
        found = plain.eval()(inputs["input_features"]).last_hidden_state
        close(found, learner.merge()(inputs).features.x)


# --- what is not exported --------------------------------------------------------------------------------------------


def test_a_backbone_of_no_library_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo_core.save(zoo_core.load("starter/vit-nano+norm", num_classes=3), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "plain")]) == 6
    assert capsys.readouterr().err.startswith("zoo: starter/vit-nano is of no library that loads plain checkpoints")
    assert not (tmp_path / "plain").exists()


def test_an_adapter_that_does_not_fold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    spec = timm_spec(tmp_path / "base", "vit_tiny_patch16_224", **SMALL)
    with pytest.raises(RefusedError, match=r"^bottleneck does not fold into plain weights"):
        zoo_core.export(zoo_core.load(f"{spec}+bottleneck", num_classes=3), tmp_path / "plain" / "model")
    assert not (tmp_path / "plain").exists()


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learner = stirred(timm_spec(tmp_path / "base", "vit_tiny_patch16_224", **SMALL) + "+probe")
    zoo_core.save(learner, tmp_path / "run")
    before = (tmp_path / "base" / "config.json").read_bytes()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "base")]) == 2
    assert capsys.readouterr().err == f"zoo: {tmp_path}/base is there already; name a new folder\n"
    assert (tmp_path / "base" / "config.json").read_bytes() == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is there already"):
        zoo_core.export(learner, tmp_path / "link")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    learner = stirred(timm_spec(tmp_path / "base", "vit_tiny_patch16_224", **SMALL) + "+probe")
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessError, match=r"cannot be made \(Not a directory\)"):
        zoo_core.export(learner, tmp_path / "file" / "plain")


def test_a_run_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "plain")]) == 3
    assert str(tmp_path / "run") in capsys.readouterr().err


class _FullDisk(ToyBackbone):
    """Its library finds no room for the second file."""

    def export(self, folder: Path, head: nn.Linear | None, target: Target) -> str:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")


@dataclass(frozen=True, kw_only=True)
class _FullDisks(ToyBackbones):
    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        return _FullDisk(self.kind)


def test_half_a_checkpoint_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="No space left on device"):
        write_plain(build(toy_plan(backbone=_FullDisks())), tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
