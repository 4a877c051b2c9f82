"""Sounds against transformers' own feature extractors, resampling, padding, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from zoo_core.errors import IncompatibleError, IntegrityError
from zoo_transformers.audio import audio_preparation, resampled
from zoo_transformers.backbones import Transformers
from zoo_transformers.configuration import describe

Tiny = Callable[[str], Path]
EXTRACTORS = {
    "wav2vec2": "Wav2Vec2FeatureExtractor",
    "hubert": "Wav2Vec2FeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
}


def sound(num: int, rate: int, seed: int = 0) -> dict[str, Any]:
    array = np.random.default_rng(seed).standard_normal(num).astype("float32") / 10
    return {"array": array, "sampling_rate": rate}


def preparation(folder: Path) -> Any:
    return audio_preparation(describe(folder))


@pytest.mark.parametrize("model_type", EXTRACTORS)
def test_inputs_are_those_of_the_librarys_extractor(model_type: str, tiny: Tiny) -> None:
    made = preparation(tiny(model_type))
    extractor: Any = getattr(transformers, EXTRACTORS[model_type]).from_pretrained(tiny(model_type))
    rate = extractor.sampling_rate
    for num in (900, 2500):
        found = made.prepare([sound(num, rate)])[0]
        expected = extractor(sound(num, rate)["array"], sampling_rate=rate, return_tensors="pt")
        name = "input_features" if model_type == "whisper" else "input_values"
        assert torch.equal(found[name], expected[name][0])


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int) -> None:
    seconds = 0.5
    tone = {
        "array": np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate).astype("float32"),
        "sampling_rate": rate,
    }
    found = resampled(tone, 16000)
    assert found.dtype == np.float32
    assert abs(len(found) - 16000 * seconds) <= 1
    expected = np.sin(2 * np.pi * 440 * np.arange(len(found)) / 16000)
    assert np.abs(found - expected)[500:-500].max() < 0.01  # the filter rings at the ends


def test_a_sound_at_the_right_rate_is_left_as_it_is() -> None:
    given = sound(100, 16000)
    assert np.array_equal(resampled(given, 16000), given["array"])


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert"])
def test_pooling_leaves_padding_out(model_type: str, tiny: Tiny) -> None:
    """HuBERT's tiny one is told of padding, wav2vec2's is not, as their files say; neither pools over it."""
    backbone: Any = Transformers(files=str(tiny(model_type))).build(tiny(model_type), "pretrained")
    made = backbone.preparation
    assert made.attends == (model_type == "hubert")
    prepared = made.prepare([sound(400, 16000), sound(2000, 16000, seed=1)])
    with torch.no_grad():
        both, alone = backbone(made.collate(prepared)), backbone(made.collate(prepared[:1]))
    assert both.mask is not None
    assert alone.mask is not None
    assert both.mask[0].sum() == alone.x.shape[1]
    assert both.mask[1].all()
    assert alone.mask.all()
    if made.attends:
        torch.testing.assert_close(backbone.pool(both)[0], backbone.pool(alone)[0], rtol=1e-4, atol=1e-4)
    else:
        filled = both.x.clone()
        filled[0, both.mask[0].logical_not()] = 1e6
        assert torch.equal(backbone.pool(type(both)(kind="tokens", x=filled, mask=both.mask)), backbone.pool(both))


def test_the_mask_is_the_one_that_the_model_makes_itself(tiny: Tiny) -> None:
    backbone: Any = Transformers(files=str(tiny("hubert"))).build(tiny("hubert"), "pretrained")
    prepared = backbone.preparation.prepare([sound(num, 16000) for num in (30, 31, 399, 400, 1234)])
    inputs = backbone.preparation.collate(prepared)
    with torch.no_grad():
        features = backbone(inputs)
    expected = backbone.model._get_feature_vector_attention_mask(features.x.shape[1], inputs["attention_mask"])
    assert torch.equal(features.mask, expected)


def test_whispers_mask_counts_what_was_heard(tiny: Tiny) -> None:
    backbone: Any = Transformers(files=str(tiny("whisper"))).build(tiny("whisper"), "pretrained")
    inputs = backbone.preparation.collate(backbone.preparation.prepare([sound(8000, 16000), sound(99999, 16000)]))
    features = backbone(inputs)
    assert features.mask.sum(1).tolist() == [25, 50]  # half a second, and all of the one that it hears


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert"])
def test_the_shortest_sound_has_a_token(model_type: str, tiny: Tiny) -> None:
    backbone: Any = Transformers(files=str(tiny(model_type))).build(tiny(model_type), "pretrained")
    made = backbone.preparation
    assert made.shortest == 20  # kernel 3 at a stride of 5, of kernels of 10
    for num in (1, made.shortest):
        features = backbone(made.collate(made.prepare([sound(num, 16000)])))
        assert features.x.shape[1] == 1
        assert features.mask.all()
    with pytest.raises(RuntimeError, match="Kernel size"):  # one sample fewer would be too short for the model
        backbone.model(torch.zeros(1, made.shortest - 1))


@pytest.mark.parametrize("model_type", EXTRACTORS)
def test_it_is_small_in_a_worker_process_and_does_the_same_there(model_type: str, tiny: Tiny) -> None:
    made = preparation(tiny(model_type))
    before = made.prepare([sound(1000, 8000)])[0]
    sent = pickle.dumps(made)
    assert len(sent) < 2_000
    again = pickle.loads(sent)
    assert again.digest == made.digest
    after = again.prepare([sound(1000, 8000)])[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_digest_follows_what_decides(tiny: Tiny, tmp_path: Path) -> None:
    digests = {preparation(tiny(model_type)).digest for model_type in EXTRACTORS}
    assert len(digests) == len(EXTRACTORS)
    folder = changed(tiny("wav2vec2"), tmp_path, {"do_normalize": False, "processor_class": "X"})
    assert preparation(folder).digest != preparation(tiny("wav2vec2")).digest


def changed(folder: Path, to: Path, change: dict[str, Any]) -> Path:
    table = json.loads((folder / "preprocessor_config.json").read_text())
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    (to / "preprocessor_config.json").write_text(json.dumps(table | change))
    return to


@pytest.mark.parametrize(
    ("model_type", "change", "kind", "told"),
    [
        ("wav2vec2", {"sampling_rate": "16000"}, IntegrityError, "sampling_rate is '16000'; allowed: a value like"),
        ("wav2vec2", {"sampling_rate": 0}, IntegrityError, "sampling_rate is 0"),
        ("wav2vec2", {"do_normalize": 1}, IntegrityError, "do_normalize is 1"),
        ("whisper", {"feature_size": 80}, IncompatibleError, "spectra of shape [80, 100], the model reads [8, 100]"),
        ("audio-spectrogram-transformer", {"max_length": 50}, IncompatibleError, "[50, 16], the model reads [48, 16]"),
    ],
)
def test_what_cannot_be_read_is_told(
    model_type: str, change: dict[str, Any], kind: type[Exception], told: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=re.escape(told)):
        preparation(changed(tiny(model_type), tmp_path, change))
