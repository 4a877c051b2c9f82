"""Inference: order, failures in place, worker processes, words; pooled features; pictures and sounds as files."""

from __future__ import annotations

import io
import struct
import warnings
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor, nn

import zoo_core
from zoo_core.cli.inputs import Inputs
from zoo_core.contracts import Features, FeatureSpec, Kind, Modality, Target
from zoo_core.data.decoding import decode
from zoo_core.errors import IncompatibleError, NotFoundError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import ScaledHead, default_objective
from zoo_core.runs.inference import Item, Prediction, SkippedItem, embedded, predicted, split_words
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.pictures import open_picture, pixels
from zoo_core.toolkit.preparations import TablePreparation
from zoo_core.toolkit.sounds import open_sound
from zoo_core.toolkit.stages import capture

CLASSES = Target(kind="classes", names=("a", "b", "c"))


class Sum(nn.Module):
    """Rows of numbers; the feature is the row itself."""

    modality: Modality = "table"
    features = FeatureSpec(kind="pooled", dim=2)
    preparation = TablePreparation(max_columns=2)
    stages = ("stage",)

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="pooled", x=self.stage(inputs["numeric"]))

    def pool(self, features: Features) -> Tensor:
        return features.x

    def sites(self, role: str) -> tuple[()]:
        return ()


def learner_of(backbone: nn.Module, dim: int, target: Target) -> Learner:
    """A learner with a linear head on pooled features, or on each token for token classes."""
    torch.manual_seed(0)
    head: nn.Module = Head(dim, target.size or 0)
    if target.kind == "regression":
        head = ScaledHead(head, target.size or 0)
    kind: Kind = "tokens" if target.kind == "token_classes" else "pooled"
    return Learner(backbone, head, kind, default_objective(target, head), target)


class Head(nn.Module):
    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, size)

    def forward(self, features: Features) -> Tensor:
        found: Tensor = self.out(features.x)
        return found


def rows(num: int) -> Iterator[Item | SkippedItem]:
    """Every fifth is not finite, every seventh has failed before."""
    for number in range(num):
        if number % 7 == 6:
            yield SkippedItem(item=str(number), error=UsageError("before"))
        else:
            yield Item(name=str(number), raw=[float("nan") if number % 5 == 4 else float(number), 1.0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_item_has_its_place_and_only_bad_ones_fail(num_workers: int) -> None:
    learner = learner_of(Sum(), 2, CLASSES)
    found = list(predicted(learner, rows(23), batch_size=4, num_workers=num_workers))
    assert [one.item for one in found] == [str(number) for number in range(23)]
    for number, one in enumerate(found):
        if number % 7 == 6 or number % 5 == 4:
            assert isinstance(one, SkippedItem)
            assert ("before" if number % 7 == 6 else "not finite") in str(one.error)
        else:
            assert isinstance(one, Prediction)
            logits = learner.head(Features(kind="pooled", x=torch.tensor([[float(number), 1.0]])))
            assert one.scores == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-6)  # float32


def test_items_are_drawn_as_they_are_needed() -> None:
    drawn = 0

    def endless() -> Iterator[Item]:
        nonlocal drawn
        while True:
            drawn += 1
            yield Item(name=str(drawn), raw=[1.0, 2.0])

    for num_workers, most in ((0, 4), (2, 4 * 6)):
        drawn = 0
        found = predicted(learner_of(Sum(), 2, CLASSES), endless(), batch_size=4, num_workers=num_workers)
        next(found)
        found.close()
        assert 4 <= drawn <= most


def test_rows_of_two_widths_in_a_batch_fail_together_and_no_others() -> None:
    items = [Item(name=str(number), raw=[1.0] * width) for number, width in enumerate((2, 2, 2, 1, 2, 2))]
    found = list(predicted(learner_of(Sum(), 2, CLASSES), items, batch_size=2))
    assert [isinstance(one, SkippedItem) for one in found] == [False, False, True, True, False, False]


def test_a_batch_of_failures_alone_is_no_pass() -> None:
    items = [SkippedItem(item="x", error=UsageError("no"))] * 3
    assert list(predicted(learner_of(Sum(), 2, CLASSES), items, batch_size=2)) == items


def test_labels_are_those_above_one_half_and_values_have_their_names() -> None:
    item = Item(name="x", raw=[1.0, 2.0])
    (labels,) = predicted(learner_of(Sum(), 2, Target(kind="multilabel", names=("p", "q"))), [item])
    assert isinstance(labels, Prediction)
    assert labels.labels == tuple(name for name, score in zip("pq", labels.scores, strict=True) if score > 0.5)
    (values,) = predicted(learner_of(Sum(), 2, Target(kind="regression", names=("p", "q"))), [item])
    assert isinstance(values, Prediction)
    assert values.labels == ("p", "q")


# --- words -----------------------------------------------------------------------------------------------------------


class Letters:
    """One token for each letter, of at most 8; the first of a word is its first piece."""

    digest, random = "letters", False

    def prepare(self, examples: Sequence[Any]) -> list[Mapping[str, Tensor]]:
        found: list[Mapping[str, Tensor]] = []
        for words in examples:
            letters = torch.tensor([ord(letter) % 26 for letter in "".join(words)])
            firsts = [place if not index else -1 for place, word in enumerate(words) for index, _ in enumerate(word)]
            found.append({"input_ids": letters[:8], "word_ids": torch.tensor(firsts[:8])})
        return found

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        pad = nn.utils.rnn.pad_sequence
        return {
            name: pad([row[name] for row in prepared], batch_first=True, padding_value=fill)
            for name, fill in (("input_ids", 0), ("word_ids", -1))
        }

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(batch_size, 3, dtype=torch.int64)}


class OneHot(nn.Module):
    """Each letter is its own feature; padding is the letter 0."""

    modality: Modality = "text"
    features = FeatureSpec(kind="tokens", dim=26)
    preparation = Letters()
    stages = ("stage",)

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        x_BTD = self.stage(nn.functional.one_hot(inputs["input_ids"], 26).float())
        return Features(kind="tokens", x=x_BTD, mask=inputs["input_ids"] > 0)

    def pool(self, features: Features) -> Tensor:
        return features.x[:, 0]

    def sites(self, role: str) -> tuple[()]:
        return ()


def test_words_are_predicted_one_by_one_and_say_where_they_stand() -> None:
    learner = learner_of(OneHot(), 26, Target(kind="token_classes", names=("O", "P")))
    words = split_words("Anna,  Bo.")
    items = [
        Item(name="x", raw=[word.text for word in words], words=words),
        Item(name="y", raw=["is", "Bo"]),
        Item(name="z", raw="no words"),
    ]
    first, second, third = predicted(learner, items)
    assert isinstance(first, Prediction)
    assert isinstance(second, Prediction)
    assert [("Anna,  Bo."[word.start : word.end], word.text) for word in first.words] == [
        (text, text) for text in ("Anna", ",", "Bo", ".")
    ]
    assert len(first.labels) == len(first.scores) == 4
    assert [(word.text, word.start, word.end) for word in second.words] == [("is", 0, 2), ("Bo", 3, 5)]
    assert isinstance(third, SkippedItem)
    assert "lists of words" in str(third.error)
    (alone,) = zoo_core.predict(learner, [["is", "Bo"]])
    assert alone.scores == pytest.approx(second.scores, abs=1e-6)  # float32
    with pytest.raises(UsageError, match="lists of words"):
        zoo_core.predict(learner, ["no words"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna sleeps.", ["Anna", "sleeps", "."]),
        (
            "U.N. official (3.5 %) isn't first-round!",
            ["U.N.", "official", "(", "3.5", "%", ")", "isn't", "first-round", "!"],
        ),
        ("\u4f60\u597d, world", ["\u4f60", "\u597d", ",", "world"]),
        ("  ", []),
    ],
)
def test_signs_are_words_of_their_own_unless_they_join(text: str, words: list[str]) -> None:
    found = split_words(text)
    assert [word.text for word in found] == words
    assert [text[word.start : word.end] for word in found] == words


# --- features --------------------------------------------------------------------------------------------------------


def pictures(num: int) -> list[np.ndarray[Any, Any]]:
    return list(np.random.default_rng(0).integers(0, 255, size=(num, 8, 8, 3)).astype(np.uint8))


@pytest.mark.parametrize("kind", ["tokens", "map"])
def test_features_are_those_of_the_backbone_and_of_its_stages(kind: Any) -> None:
    torch.manual_seed(0)
    backbone = ToyBackbone(kind).eval()
    given = pictures(5)
    examples = backbone.preparation.prepare([decode("image", picture) for picture in given])
    inputs = backbone.preparation.normalise(backbone.preparation.collate(examples))
    axes = (1,) if kind == "tokens" else (2, 3)
    with torch.no_grad(), capture(backbone, [1]) as states:
        pooled = backbone.pool(backbone(inputs))
    assert torch.equal(zoo_core.embed(backbone, given), pooled)
    assert torch.equal(zoo_core.embed(backbone, given, stage=2), states[1].mean(dim=axes))
    assert zoo_core.embed(backbone, []).shape == (0, 12)
    learner = learner_of(backbone, 12, CLASSES)
    assert torch.equal(zoo_core.embed(learner, given), pooled)


def test_a_mean_is_over_real_tokens_alone() -> None:
    items = [["ab"], ["abcd", "ef"]]
    own = zoo_core.embed(OneHot(), items)
    mean = zoo_core.embed(OneHot(), items, pool="mean")
    stage = zoo_core.embed(OneHot(), items, stage=1)
    letters = [torch.tensor([ord(letter) % 26 for letter in "".join(words)]) for words in items]
    expected = torch.stack([nn.functional.one_hot(row, 26).float().mean(0) for row in letters])
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(stage, expected)
    assert torch.equal(own, torch.stack([nn.functional.one_hot(row[0], 26).float() for row in letters]))


class Last(nn.Module):
    """A stage that gives its map with the channels last."""

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return x_BDHW.permute(0, 2, 3, 1)


class ChannelsLast(ToyBackbone):
    def __init__(self) -> None:
        super().__init__("map")
        self.blocks = nn.Sequential(Last())
        self.stages = ("blocks.0",)

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="map", x=self.blocks(self.stem(inputs["pixel_values"])).permute(0, 3, 1, 2))


def test_a_stage_with_its_channels_last_is_told_from_one_with_them_first() -> None:
    backbone = ChannelsLast()
    assert torch.equal(zoo_core.embed(backbone, pictures(2), stage=1), zoo_core.embed(backbone, pictures(2)))


class Longer(OneHot):
    """More tokens leave its stage than the backbone."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        found = super().forward(inputs)
        self.stage(torch.cat([found.x, found.x], dim=1))
        return found


def test_what_no_stage_gives_is_told() -> None:
    with pytest.raises(UsageError, match="stage 0: the backbone has 3 stages"):
        zoo_core.embed(ToyBackbone(), pictures(1), stage=0)
    with pytest.raises(UsageError, match="unknown pool 'max'; there are own, mean"):
        zoo_core.embed(ToyBackbone(), pictures(1), pool="max")  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError, match="it is not known which are real"):
        zoo_core.embed(Longer(), [["ab"]], stage=1)


def test_embed_tells_what_predict_tells() -> None:
    with pytest.raises(UsageError, match=r"embed takes a learner or a backbone, .* zoo_core\.load_backbone"):
        zoo_core.embed("starter/vit-nano", pictures(1))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"embed takes a list of items, found one ndarray; write \[item\]"):
        zoo_core.embed(ToyBackbone(), pictures(1)[0])  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match=r"no file gone\.png"):
        zoo_core.embed(ToyBackbone(), ["gone.png"])


def test_features_come_in_order_from_worker_processes() -> None:
    backbone, given = ToyBackbone(), pictures(9)
    items = [Item(name=str(number), raw=picture) for number, picture in enumerate(given)]
    alone = list(embedded(backbone, items, batch_size=2))
    shared = list(embedded(backbone, items, batch_size=2, num_workers=2))
    assert [one.item for one in shared] == [one.item for one in alone] == [item.name for item in items]
    for one, other in zip(alone, shared, strict=True):
        assert not isinstance(one, SkippedItem)
        assert not isinstance(other, SkippedItem)
        assert torch.equal(one.features, other.features)


# --- pictures --------------------------------------------------------------------------------------------------------


def upright() -> np.ndarray[Any, Any]:
    picture = np.zeros((16, 24, 3), dtype=np.uint8)
    picture[:8, :8] = 255  # the corner above, on the left
    return picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path: Path, orientation: int) -> None:
    turned = {
        1: upright(),
        2: upright()[:, ::-1],
        3: upright()[::-1, ::-1],
        4: upright()[::-1],
        5: upright().transpose(1, 0, 2),
        6: np.rot90(upright(), 1),
        8: np.rot90(upright(), -1),
        7: upright()[::-1, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.png", "x.jpg"):
        Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / name, exif=exif, quality=95)
        found = open_picture(tmp_path / name)
        assert found.shape == (16, 24, 3)
        assert np.abs(found.astype(int) - upright()).max() < 60  # blocks of 8 x 8 are of one colour: JPEG is near
        with Image.open(tmp_path / name) as opened:
            np.testing.assert_array_equal(pixels(opened), found)


def test_exif_data_that_cannot_be_read_turn_nothing(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(upright()).save(buffer, "JPEG", exif=exif)
    content = buffer.getvalue()
    start = content.index(b"Exif\0\0") + 6
    (tmp_path / "x.jpg").write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of corrupt EXIF data
        assert open_picture(tmp_path / "x.jpg").shape == (16, 24, 3)


def test_a_truncated_picture_is_damaged_whatever_its_exif_data(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, size=(64, 64, 3)).astype(np.uint8)
    for form in ("PNG", "JPEG", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, form)
        for share in (0.3, 0.6, 0.9):
            (tmp_path / "x").write_bytes(buffer.getvalue()[: int(share * buffer.tell())])
            with pytest.raises(UsageError, match="is not a picture that can be read"):
                open_picture(tmp_path / "x")


def test_pictures_of_print_and_with_a_transparent_palette_are_read(tmp_path: Path) -> None:
    Image.fromarray(upright()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(open_picture(tmp_path / "cmyk.jpg").astype(int) - upright()).max() < 60  # JPEG
    palette = Image.fromarray(upright()).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(open_picture(tmp_path / "palette.png"), upright())
    palette.save(tmp_path / "palette.gif", transparency=0)
    np.testing.assert_array_equal(open_picture(tmp_path / "palette.gif"), upright())


# --- sounds ----------------------------------------------------------------------------------------------------------

TONE = np.sin(np.arange(400) / 8) * 0.5
GUID = bytes.fromhex("000000001000800000aa00389b71")  # after the number of a form in the extensible one


def riff(form: int, channels: int, bits: int, data: bytes, *, extra: bytes = b"") -> bytes:
    """A WAV file; with a chunk of odd length before its samples."""
    head = struct.pack("<HHIIHH", form, channels, 8000, 8000 * channels * bits // 8, channels * bits // 8, bits) + extra
    chunks = b"fmt " + struct.pack("<I", len(head)) + head + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def of_bits(bits: int) -> bytes:
    if bits == 8:
        return (TONE * 127 + 128).round().astype(np.uint8).tobytes()
    whole = (TONE * (2 ** (bits - 1) - 1)).round().astype("<i4")
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in whole)


@pytest.mark.parametrize(
    ("content", "step"),
    [(riff(1, 1, bits, of_bits(bits)), 2.0 ** (2 - bits)) for bits in (8, 16, 24, 32)]
    + [(riff(3, 1, bits, TONE.astype(f"<f{bits // 8}").tobytes()), 1e-7) for bits in (32, 64)]
    + [(riff(0xFFFE, 1, 24, of_bits(24), extra=struct.pack("<HHIH", 22, 24, 4, 1) + GUID), 2.0**-22)],
    ids=["8", "16", "24", "32", "float32", "float64", "extensible"],
)
def test_a_sound_is_the_same_in_every_form(tmp_path: Path, content: bytes, step: float) -> None:
    (tmp_path / "x.wav").write_bytes(content)
    found = open_sound(tmp_path / "x.wav")
    assert (found["sampling_rate"], found["array"].dtype) == (8000, np.float32)
    np.testing.assert_allclose(found["array"], TONE, atol=max(step, 1e-7))  # a step of that form, or of float32
    assert decode("audio", tmp_path / "x.wav")["array"].tolist() == found["array"].tolist()


def test_a_sound_of_the_standard_library_is_read_and_channels_become_their_mean(tmp_path: Path) -> None:
    left = (TONE * 2**14).astype("<i2")
    with wave.open(str(tmp_path / "x.wav"), "wb") as sound:
        sound.setparams((2, 2, 16000, 0, "NONE", "not compressed"))
        sound.writeframes(np.stack([left, -left // 2], axis=1).tobytes())
    found = open_sound(tmp_path / "x.wav")
    assert found["sampling_rate"] == 16000
    np.testing.assert_allclose(found["array"], (left.astype(float) + -left // 2) / 2 / 2**15, atol=1e-7)  # float32


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "other formats are to be converted, as with `ffmpeg -i FILE FILE.flac`"),
        (b"ID3\x03 an mp3", "AIFF, FLAC, MP3, OGG and WAV are read"),
        (riff(1, 1, 16, of_bits(16))[:-100], "truncated, 700 of 800 bytes"),
        (riff(1, 1, 16, b""), "without samples"),
        (riff(85, 1, 16, of_bits(16)), "Malformed 'fmt ' chunk"),
        (riff(1, 0, 16, of_bits(16)), "Channel count is zero"),
        (riff(1, 1, 16, of_bits(16))[:30], "No 'data' chunk"),
        (riff(3, 1, 32, np.full(8, np.nan, "<f4").tobytes()), "not finite"),
    ],
    ids=["empty", "mp3", "truncated", "silent", "mp3 in wav", "no channel", "header", "nan"],
)
def test_what_is_no_sound_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(UsageError, match="not finite" if reason == "not finite" else "is not a sound") as caught:
        decode("audio", tmp_path / "x.wav")
    assert reason in str(caught.value)
    with pytest.raises(NotFoundError, match="no file"):
        open_sound(tmp_path / "gone.wav")
    with pytest.raises(UsageError, match="is not a sound that can be read"):
        open_sound(tmp_path)


NOISE = np.concatenate([np.sin(np.arange(48000) / 8), np.random.default_rng(0).uniform(-1, 1, 48000)]) * 0.5


def coded(form: str, coding: str, **given: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, NOISE, 48000, format=form, subtype=coding, **given)
    return stream.getvalue()


FORMS = [("AIFF", "PCM_16"), ("FLAC", "PCM_16"), ("WAV", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
FORMS += [("MP3", "MPEG_LAYER_III")]


class Lengths:
    """A sound as its seconds, and one."""

    digest, random = "lengths", False
    collate, normalise, dummy = TablePreparation.collate, TablePreparation.normalise, TablePreparation.dummy
    max_columns = 2

    def prepare(self, examples: Sequence[Any]) -> list[Mapping[str, Tensor]]:
        return [{"numeric": torch.tensor([len(one["array"]) / one["sampling_rate"], 1.0])} for one in examples]


class Timed(Sum):
    """A sound's feature is its length."""

    modality: Modality = "audio"
    preparation = Lengths()  # type: ignore[assignment]


def test_sounds_of_a_folder_are_embedded_and_predicted_in_every_format(tmp_path: Path) -> None:
    for form, coding in FORMS:
        (tmp_path / f"{coding}.{'opus' if coding == 'OPUS' else form.lower()}").write_bytes(coded(form, coding))
    (tmp_path / "cut.flac").write_bytes(coded("FLAC", "PCM_16")[:5000])
    items = list(Inputs([str(tmp_path)], "audio").items())
    assert len(items) == len(FORMS) + 1
    found = list(embedded(Timed(), items))
    assert [one.item for one in found if isinstance(one, SkippedItem)] == [str(tmp_path / "cut.flac")]
    assert all(one.features.tolist() == [2.0, 1.0] for one in found if not isinstance(one, SkippedItem))
    predictions = predicted(learner_of(Timed(), 2, CLASSES), items)
    assert [one.item for one in predictions if isinstance(one, SkippedItem)] == [str(tmp_path / "cut.flac")]


@pytest.mark.parametrize(("form", "coding"), FORMS)
def test_a_sound_of_another_format_is_read_whole_or_not_at_all(tmp_path: Path, form: str, coding: str) -> None:
    content, file = coded(form, coding), tmp_path / "x"  # without a suffix, as those of tables are kept
    file.write_bytes(content)
    found = open_sound(file)
    assert (found["sampling_rate"], found["array"].shape) == (48000, NOISE.shape)
    off = np.abs(found["array"] - NOISE)[2000:46000].max()  # of the tone, which is what lossy codings keep
    assert off < (0.05 if form in ("MP3", "OGG") else 2.0**-15)  # one step of 16 bits
    for part in (0.9, 0.5, 0.1, 0.01):
        file.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(UsageError, match="x is not a sound that can be read: "):
            open_sound(file)
    if form in ("FLAC", "OGG"):  # those with checksums
        half = len(content) // 2
        file.write_bytes(content[:half] + bytes(200) + content[half + 200 :])
        with pytest.raises(UsageError, match="x is not a sound that can be read: "):
            open_sound(file)


def test_a_wav_file_of_16_bits_gives_its_numbers_over_half_their_range(tmp_path: Path) -> None:
    both = np.random.default_rng(0).integers(-(2**15), 2**15, (1000, 2)).astype("<i2")
    (tmp_path / "x.wav").write_bytes(riff(1, 2, 16, both.tobytes()))
    mean = (both.astype(np.float64) / 2**15).mean(axis=1).astype(np.float32)
    assert np.array_equal(open_sound(tmp_path / "x.wav")["array"], mean)
    unknown = riff(1, 2, 16, both.tobytes()).replace(struct.pack("<I", 4000), b"\xff" * 4)
    (tmp_path / "y.wav").write_bytes(unknown)  # as a program writes that cannot go back to its header
    assert np.array_equal(open_sound(tmp_path / "y.wav")["array"], mean)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
def test_an_mp3_that_does_not_tell_its_length_is_read_whole_or_refused(tmp_path: Path, mode: str) -> None:
    content = coded("MP3", "MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.5)
    second = content.index(content[:2], 2)  # the first frame holds nothing but the length
    (tmp_path / "x.mp3").write_bytes(content[second:] + b"TAG" + bytes(125))
    if mode == "CONSTANT":
        assert len(open_sound(tmp_path / "x.mp3")["array"]) >= len(NOISE)  # the encoder's own padding is left
    else:
        with pytest.raises(UsageError, match="an MP3 of variable bit rate that does not tell its length"):
            open_sound(tmp_path / "x.mp3")


def test_what_libsndfile_reads_besides_sounds_of_people_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(coded("MAT5", "PCM_16"))
    with pytest.raises(UsageError, match=r"it holds MAT5 .* AIFF, FLAC, MP3, OGG and WAV are read"):
        open_sound(tmp_path / "x.wav")
