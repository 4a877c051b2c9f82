"""audio-folder and npz: what is inferred, what is read, and the one line for what cannot be."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from zoo_core.data.decoding import decode
from zoo_core.errors import ZooError
from zoo_core.files.pins import pin
from zoo_tasks.arrays import Npz
from zoo_tasks.folders import AudioFolder


def speak(path: Path, *, seed: int, rate: int = 8000, num: int = 400) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-3000, 3000, num).astype("<i2")
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(noise.tobytes())


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two digits by four speakers, three takes of each."""
    for number, name in enumerate(f"{d}_{s}_{take}" for d in (0, 1) for s in "abcd" for take in range(3)):
        speak(tmp_path / "recordings" / f"{name}.wav", seed=number)
    return tmp_path / "recordings"


def said(recipe: Any) -> str:
    with pytest.raises(ZooError) as error:
        assert recipe.target is recipe.source() is recipe.open(None)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- sounds -----------------------------------------------------------------------------------------------------------


def test_a_speaker_is_left_out_by_a_pattern_of_names(recordings: Path) -> None:
    recipe = AudioFolder(path=str(recordings), pattern="{label}_{speaker}_*", group="speaker", test=("c",))
    assert recipe.target.names == ("0", "1")
    data = recipe.open(None)
    assert set(data.splits) == {"train", "test"}
    groups = {name: set(split.groups.tolist()) for name, split in data.splits.items() if split.groups is not None}
    assert groups == {"train": {"a", "b", "d"}, "test": {"c"}}
    sound = decode("audio", data.splits["test"].raw(0))
    assert (sound["sampling_rate"], sound["array"].shape, sound["array"].dtype) == (8000, (400,), np.float32)


def test_sounds_in_class_folders(tmp_path: Path) -> None:
    for number in range(12):
        speak(tmp_path / "set" / "ab"[number % 2] / f"{number}.wav", seed=number)
    recipe = AudioFolder(path=str(tmp_path / "set"))
    assert recipe.target.names == ("a", "b")
    assert recipe.survey(tmp_path / "set").sizes == "all 0.05 s at 8000 Hz"


def test_every_format_of_sounds_is_read_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 4000))
    for number, suffix in enumerate(("flac", "MP3", "ogg", "wav", "aiff") * 4):
        path = tmp_path / "set" / "ab"[number // 5 % 2] / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise[number], 16000)
    recipe = AudioFolder(path=str(tmp_path / "set"))
    survey = recipe.survey(tmp_path / "set")
    assert (survey.sizes, survey.num_items, dict(survey.classes)) == ("all 0.25 s at 16000 Hz", 20, {"a": 10, "b": 10})
    splits = recipe.open(None).splits.values()
    assert {split.raw(i)["array"].shape for split in splits for i in range(split.num)} == {(4000,)}
    for name in ("a/0.flac", "a/1.MP3", "a/2.ogg"):
        file = tmp_path / "set" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    line = said(AudioFolder(path=str(tmp_path / "set")))
    assert "3 of 20 sounds cannot be read: a/0.flac (" in line


def test_mixed_rates_are_refused_unless_they_are_meant(recordings: Path) -> None:
    speak(recordings / "0_a_9.wav", seed=99, rate=16000)
    arguments: dict[str, Any] = {"path": str(recordings), "pattern": "{label}_*"}
    line = said(AudioFolder(**arguments))
    assert "has mixed sampling rates (24 at 8000 Hz, 1 at 16000 Hz)" in line
    assert "rates=mixed" in line
    data = AudioFolder(**arguments, rates="mixed").open(None)
    rates = {split.raw(i)["sampling_rate"] for split in data.splits.values() for i in range(split.num)}
    assert rates == {8000, 16000}


def test_damaged_sounds_are_listed_counted_and_stop(recordings: Path) -> None:
    whole = (recordings / "0_a_0.wav").read_bytes()
    (recordings / "0_a_0.wav").write_bytes(whole[:300])
    (recordings / "0_a_1.wav").write_bytes(b"")
    (recordings / "0_a_2.wav").write_bytes(b"ID3 this is an mp3")
    line = said(AudioFolder(path=str(recordings), pattern="{label}_*"))
    assert "3 of 24 sounds cannot be read: 0_a_0.wav (" in line
    assert "0_a_1.wav (has no bytes)" in line


def test_sounds_without_class_folders_say_what_helps(recordings: Path) -> None:
    assert 'say where their names hold it: pattern="{label}_*"' in said(AudioFolder(path=str(recordings)))


def test_spoken_digits_with_a_speaker_left_out(shared: Callable[[str], Path]) -> None:
    folder = shared("fsdd") / "recordings"
    recipe = AudioFolder(path=str(folder), pattern="{label}_{speaker}_*", group="speaker", test=("theo",))
    found = recipe.survey(folder)
    assert found.splits == {"train": 2500, "test": 500}
    assert found.target.names == tuple("0123456789")
    assert not found.problems


# -- arrays -----------------------------------------------------------------------------------------------------------


def pictures(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 6, 5), dtype=np.uint8)


def test_pictures_with_named_classes(tmp_path: Path) -> None:
    for split, num in (("train", 20), ("test", 10)):
        np.savez(tmp_path / f"{split}_small.npz", x=pictures(num, num), y=np.arange(num) % 2)
    (tmp_path / "classes.json").write_text(json.dumps(["dark", "light"]))
    recipe = Npz(path=str(tmp_path), pattern="{split}_small.npz")
    assert (recipe.modality, recipe.metric, recipe.target.names) == ("image", "accuracy", ("dark", "light"))
    data = recipe.open(None)
    assert {name: split.num for name, split in data.splits.items()} == {"train": 20, "test": 10}
    assert np.array_equal(data.splits["test"].raw(3), pictures(10, 10)[3])
    source = recipe.source()
    assert source is not None
    assert sorted(pin(source).files) == ["classes.json", "test_small.npz", "train_small.npz"]


def test_rows_of_numbers_with_a_value(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(5, 3, (50, 4))
    np.savez(tmp_path / "t.npz", x=x, y=x.sum(1))
    recipe = Npz(path=str(tmp_path / "t.npz"))
    assert (recipe.modality, recipe.target.kind, recipe.target.size) == ("table", "regression", 1)
    train = recipe.open(None).splits["train"]
    rows = np.stack([train.raw(i) for i in range(train.num)])
    assert np.abs(rows.mean(0)).max() < 1e-6  # float32 of order one


def test_classes_that_nobody_named_are_their_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", images=pictures(30), labels=np.arange(30) % 3 * 7)
    data = Npz(path=str(tmp_path / "t.npz")).open(None)
    assert data.target.names == ("0", "7", "14")
    assert set(data.splits["train"].targets) == {0, 1, 2}


@pytest.mark.parametrize(
    ("arrays", "arguments", "line"),
    [
        ({"x": pictures(6), "z": np.arange(6)}, {}, "has arrays x, z; which holds y? y=NAME says it"),
        ({"x": pictures(6), "y": np.arange(6)}, {"y": "label"}, "has no array 'label'; it has x, y"),
        ({"x": pictures(6), "y": np.arange(5)}, {}, "6 rows of x and 5 of y"),
        ({"x": pictures(6), "y": np.zeros(6, int)}, {}, "has one class, 0"),
        ({"x": pictures(6) / 255, "y": np.arange(6) % 2}, {}, "pictures are uint8 [N, H, W]"),
        ({"x": pictures(0), "y": np.arange(0)}, {}, "has no rows"),
        ({"x": pictures(6), "y": np.array([1, 2, 3, 4, 5, np.nan])}, {}, "row 5 has a target that is NaN"),
        ({"x": pictures(6), "y": np.array(list("abcdef"), dtype=object)}, {}, "array y holds Python objects"),
        ({"x": pictures(6), "y": np.arange(6)}, {"classes": ("a", "b")}, "classes are 0 to 1 by their names, found 5"),
    ],
)
def test_arrays_that_cannot_be_used(
    tmp_path: Path, arrays: dict[str, np.ndarray], arguments: dict[str, Any], line: str
) -> None:
    np.savez(tmp_path / "t.npz", **arrays)  # type: ignore[arg-type]
    assert line in said(Npz(path=str(tmp_path / "t.npz"), **arguments))


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(b"zip?")
    assert "t.npz is not a file of numpy's savez" in said(Npz(path=str(tmp_path / "t.npz")))


def test_mnist(shared: Callable[[str], Path]) -> None:
    data = Npz(path=str(shared("mnist")), pattern="{split}_small.npz").open(None)
    assert {name: split.num for name, split in data.splits.items()} == {"train": 5000, "test": 2000}
    assert data.splits["train"].raw(0).shape == (28, 28)
