"""Sound at any rate -> samples at the repository's rate, or the spectrum that its feature extractor makes of them."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor
from transformers import PreTrainedConfig

from zoo_core.errors import IncompatibleError, IntegrityError
from zoo_transformers.configuration import Described, read_json

__all__ = ["AudioPreparation", "SpectrumPreparation", "WavePreparation", "audio_preparation", "resampled"]

Samples = np.ndarray[Any, np.dtype[np.float32]]


def resampled(sound: Mapping[str, Any], rate: int) -> Samples:
    """The samples of a decoded sound at a rate in Hz: float32 [N]."""
    array, given = sound["array"], int(sound["sampling_rate"])
    if given != rate:
        shared = math.gcd(given, rate)
        array = resample_poly(array.astype(np.float64), rate // shared, given // shared)
    return np.asarray(array, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class WavePreparation:
    """A sound -> `input_values` float32 [N] and `attention_mask` int64 [N], padded by the batch.

    rate: in Hz. normed: whether each sound has mean 0 and variance 1, before it is padded. attends: whether the model
    is told what is padding; those trained without are not. shortest: samples that give one token; zeros fill it up.
    Source: transformers, Wav2Vec2FeatureExtractor, of one sound at a time.
    """

    rate: int
    normed: bool
    attends: bool
    shortest: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def random(self) -> bool:
        return False

    def prepare(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Tensor]]:
        return [self._one(resampled(example, self.rate)) for example in examples]

    def _one(self, sound_N: Samples) -> dict[str, Tensor]:
        if self.normed:
            sound_N = (sound_N - sound_N.mean()) / np.sqrt(sound_N.var() + 1e-7)
        values = torch.from_numpy(np.pad(sound_N, (0, max(0, self.shortest - len(sound_N)))))
        return {"input_values": values, "attention_mask": torch.ones(len(values), dtype=torch.int64)}

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: torch.nn.utils.rnn.pad_sequence([example[name] for example in prepared], batch_first=True)
            for name in prepared[0]
        }

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        values = torch.zeros(batch_size, 4 * self.shortest)
        return {"input_values": values, "attention_mask": torch.ones(values.shape, dtype=torch.int64)}


@dataclass(frozen=True, kw_only=True)
class SpectrumPreparation:
    """A sound -> what the repository's feature extractor makes of it: always the same number of frames.

    extractor: module and class in transformers. settings: of it. name: `input_features` or `input_values`.
    shape: of one example's. masked: whether `attention_mask` int64 [frames] says which frames are not padding.
    """

    extractor: str
    settings: tuple[tuple[str, Any], ...]
    name: str
    shape: tuple[int, int]
    masked: bool
    _made: list[Any] = field(default_factory=list, repr=False, compare=False)

    attends = False  # neither Whisper's encoder nor AST is told what is padding

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def random(self) -> bool:
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Without the extractor, whose filters are some 100 kB."""
        return self.__dict__ | {"_made": []}

    def prepare(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Tensor]]:
        if not self._made:
            module, _, name = self.extractor.partition(":")
            kind = getattr(importlib.import_module(f"transformers.models.{module}"), name)
            self._made.append(kind(**dict(self.settings)))
        extractor = self._made[0]
        rate = extractor.sampling_rate
        options = {"return_attention_mask": True} if self.masked else {}
        found: list[Mapping[str, Tensor]] = []
        for example in examples:
            made = extractor(resampled(example, rate), sampling_rate=rate, return_tensors="np", **options)
            found.append({name: _tensor(made[name][0]) for name in (self.name, "attention_mask") if name in made})
        return found

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([example[name] for example in prepared]) for name in prepared[0]}

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        found = {self.name: torch.zeros(batch_size, *self.shape)}
        if self.masked:
            found["attention_mask"] = torch.ones(batch_size, self.shape[1], dtype=torch.int64)
        return found


AudioPreparation = WavePreparation | SpectrumPreparation


def _tensor(values: Any) -> Tensor:
    tensor = torch.from_numpy(np.asarray(values))
    return tensor.float() if tensor.is_floating_point() else tensor.long()


# What a repository may say of its feature extractor, and what holds where it says nothing: the classes' own defaults.
WAVE = {"sampling_rate": 16000, "do_normalize": True, "return_attention_mask": False}
WHISPER = {"sampling_rate": 16000, "feature_size": 80, "n_fft": 400, "hop_length": 160, "chunk_length": 30}
AST = {
    "sampling_rate": 16000,
    "num_mel_bins": 128,
    "max_length": 1024,
    "do_normalize": True,
    "mean": -4.2677393,
    "std": 4.5689974,
}


def audio_preparation(described: Described) -> AudioPreparation:
    """How a repository prepares sounds, by its preprocessor_config.json.

    Raises IntegrityError for values of the wrong kind, IncompatibleError where model and extractor do not fit.
    """
    path, config = described.path.with_name("preprocessor_config.json"), described.config
    if described.model_type == "whisper":
        found = _stated(path, WHISPER)
        frames = found["chunk_length"] * found["sampling_rate"] // found["hop_length"]
        shape = (found["feature_size"], frames)
        wanted = (config.num_mel_bins, 2 * config.max_source_positions)
        return _spectrum(path, "whisper.feature_extraction_whisper:WhisperFeatureExtractor", found, shape, wanted)
    if described.model_type == "audio-spectrogram-transformer":
        found = _stated(path, AST)
        shape, wanted = (found["max_length"], found["num_mel_bins"]), (config.max_length, config.num_mel_bins)
        module = "audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer"
        return _spectrum(path, f"{module}:ASTFeatureExtractor", found, shape, wanted)
    found = _stated(path, WAVE)
    return WavePreparation(
        rate=found["sampling_rate"],
        normed=found["do_normalize"],
        attends=found["return_attention_mask"],
        shortest=_receptive_field(config),
    )


def _spectrum(
    path: Path, extractor: str, settings: dict[str, Any], shape: tuple[int, int], wanted: tuple[int, int]
) -> SpectrumPreparation:
    if shape != wanted:
        raise IncompatibleError(f"{path} makes spectra of shape {list(shape)}, the model reads {list(wanted)}")
    whisper = "Whisper" in extractor
    return SpectrumPreparation(
        extractor=extractor,
        settings=tuple(sorted(settings.items())),
        name="input_features" if whisper else "input_values",
        shape=shape,
        masked=whisper,
    )


def _stated(path: Path, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file for the keys of `defaults`, each of its default's type; other keys are not looked at."""
    table = read_json(path)
    found = dict(defaults)
    for key, default in defaults.items():
        value = table.get(key, default)
        fits = type(value) in (int, float) if isinstance(default, float) else type(value) is type(default)
        if not fits or (type(value) is int and value <= 0):
            raise IntegrityError(f"{path}: {key} is {value!r:.60}; allowed: a value like {default}")
        found[key] = value
    return found


def _receptive_field(config: PreTrainedConfig) -> int:
    """Samples that the convolutions of wav2vec2's kind turn into one token."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return int(samples)
