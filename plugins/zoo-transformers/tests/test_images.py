"""preprocessor_config.json against transformers' own image processors, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from zoo_core.data.decoding import decode
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError
from zoo_transformers.images import image_preparation

PLAIN = {
    "do_resize": True,
    "size": {"height": 24, "width": 24},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
SHORTEST = {"size": {"shortest_edge": 29}, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}}


def pictures() -> list[Image.Image]:
    """Smooth ones, as photos are: of noise, two ways of resizing differ by more than rounding."""
    generator = np.random.default_rng(0)
    found = []
    for height, width in ((40, 60), (60, 40), (33, 33), (20, 50)):
        coarse = generator.integers(0, 256, (5, 7, 3)).astype("uint8")
        found.append(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return found


@pytest.mark.parametrize(
    ("processor", "table"),
    [
        ("ViTImageProcessor", PLAIN),
        ("ViTImageProcessor", PLAIN | {"resample": 3}),
        ("ViTImageProcessor", PLAIN | {"size": 24}),
        ("ViTImageProcessor", PLAIN | {"do_normalize": False}),
        ("ViTImageProcessor", {key: value for key, value in PLAIN.items() if key != "do_rescale"}),
        ("SiglipImageProcessor", PLAIN | {"resample": 3}),
        ("CLIPImageProcessor", PLAIN | SHORTEST | {"resample": 3}),
        ("CLIPImageProcessor", PLAIN | SHORTEST | {"size": 29, "crop_size": 24}),
        ("BitImageProcessor", PLAIN | SHORTEST | {"resample": 3}),
        ("MobileNetV1ImageProcessor", PLAIN | SHORTEST),
    ],
)
def test_pixels_are_those_of_the_librarys_processor(processor: str, table: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(table))
    made = image_preparation(path)
    inputs = made.normalise(made.collate(made.prepare([decode("image", picture) for picture in pictures()])))
    expected = getattr(transformers, processor)(**table)(pictures(), return_tensors="pt")["pixel_values"]
    assert inputs["pixel_values"].shape == expected.shape
    std = torch.tensor(made.std).view(3, 1, 1)
    steps = ((inputs["pixel_values"] - expected).abs() * std * 255).round()
    assert steps.max() <= (2 if made.interpolation == "bicubic" else 1)  # torchvision rounds bytes after each axis
    assert (steps > 1).double().mean() < 0.001


def test_the_real_one_crops_128_of_146(real: Any) -> None:
    path = real("mobilenet_v1_0.25_128-hf") / "preprocessor_config.json"
    made = image_preparation(path)
    assert made.size == 128
    assert made._resized_size(300, 400)[0] == 146
    processor = transformers.MobileNetV1ImageProcessor.from_pretrained(path.parent)
    photos = [picture.resize((300, 220), Image.Resampling.BICUBIC) for picture in pictures()]
    expected = processor(photos, return_tensors="pt")["pixel_values"]
    inputs = made.normalise(made.collate(made.prepare([decode("image", photo) for photo in photos])))
    assert ((inputs["pixel_values"] - expected).abs() * 0.5).max() <= 1.01 / 255


@pytest.mark.parametrize("resized", [25, 146, 232, 248, 256, 257, 341])
@pytest.mark.parametrize("kept", [24, 128, 224])
def test_the_share_that_a_crop_keeps_gives_the_resized_side_back(resized: int, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PLAIN | SHORTEST | {"size": {"shortest_edge": resized}, "crop_size": kept}))
    assert image_preparation(path)._resized_size(500, 500) == (resized, resized)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"resample": 1}, IncompatibleError, "filter 1; hf reads 2 (bilinear) and 3 (bicubic)"),
        ({"resample": [2]}, IncompatibleError, "filter [2]"),
        ({"rescale_factor": 1 / 127}, IncompatibleError, "does not scale pixels to 0 to 1"),
        ({"rescale_factor": "no"}, IncompatibleError, "does not scale pixels to 0 to 1"),
        ({"do_rescale": False}, IncompatibleError, "does not scale pixels to 0 to 1"),
        ({"do_resize": False}, IncompatibleError, "names no size"),
        ({"size": {"shortest_edge": 24}}, IncompatibleError, "hf needs a fixed size"),
        ({"size": None}, IncompatibleError, "names no size"),
        ({"size": {"height": 24, "width": "24"}}, IntegrityError, "a side is a whole number of pixels, found '24'"),
        ({"size": {"height": 24, "width": -1}}, IntegrityError, "a side is a whole number of pixels, found -1"),
        ({"image_mean": [0.5]}, IntegrityError, "image_mean is a list of three numbers"),
        ({"image_std": None}, IntegrityError, "image_std is a list of three numbers"),
        (SHORTEST | {"crop_size": None}, IntegrityError, "a size is a table of height and width"),
    ],
)
def test_what_cannot_be_read_is_told(change: dict[str, Any], kind: type[Exception], told: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PLAIN | change))
    with pytest.raises(kind, match=re.escape(told)) as caught:
        image_preparation(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"preprocessor_config\.json is missing"):
        image_preparation(tmp_path / "preprocessor_config.json")
