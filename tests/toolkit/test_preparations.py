from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zoo_core.errors import UsageError
from zoo_core.toolkit.preparations import ImagePreparation, TablePreparation

IMAGE = ImagePreparation(size=6, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.2))
TABLE = TablePreparation(max_columns=4)


def picture(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "changed",
    [
        *({"size": 7}, {"size": (6, 7)}, {"mean": (0.1, 0.2, 0.4)}, {"std": (0.5, 0.4, 0.3)}),
        *({"interpolation": "bicubic"}, {"crop_pct": 0.9}, {"crop_mode": "center"}),
        {"crop_offset": "first"},
    ],
)
def test_a_digest_changes_with_the_numbers(changed: dict[str, Any]) -> None:
    assert replace(IMAGE, **changed).digest != IMAGE.digest == replace(IMAGE).digest


def test_preparations_of_different_kinds_have_different_digests() -> None:
    assert TABLE.digest not in (IMAGE.digest, TablePreparation(max_columns=5).digest)


def test_pictures_are_normalised_by_channel() -> None:
    raw = picture(0, 3, 6, 6)
    found = IMAGE.normalise(IMAGE.collate(IMAGE.prepare([raw])))["pixel_values"]
    assert found.dtype == torch.float32
    for channel in range(3):
        wanted = (raw[channel].double() / 255 - IMAGE.mean[channel]) / IMAGE.std[channel]
        torch.testing.assert_close(found[0, channel].double(), wanted, rtol=1e-6, atol=1e-6)  # float32


def test_one_channel_is_repeated() -> None:
    raw = picture(0, 1, 6, 6)
    grey = IMAGE.normalise(IMAGE.collate(IMAGE.prepare([raw])))["pixel_values"]
    coloured = IMAGE.normalise(IMAGE.collate(IMAGE.prepare([raw.expand(3, -1, -1)])))["pixel_values"]
    assert torch.equal(grey, coloured)


def test_grey_and_coloured_pictures_share_a_batch() -> None:
    grey, coloured = picture(0, 1, 6, 6), picture(1, 3, 6, 6)
    found = IMAGE.collate(IMAGE.prepare([grey, coloured]))["pixel_values"]
    assert torch.equal(found, torch.stack([grey.expand(3, -1, -1), coloured]))


@given(
    shapes=st.lists(st.tuples(st.sampled_from([1, 3]), st.integers(2, 9), st.integers(2, 9)), min_size=1, max_size=6)
)
def test_a_picture_is_prepared_the_same_alone_and_among_others(shapes: list[tuple[int, int, int]]) -> None:
    pictures = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    together = IMAGE.prepare(pictures)
    for one, among in zip(pictures, together, strict=True):
        assert torch.equal(IMAGE.prepare([one])[0]["pixel_values"], among["pixel_values"])
        assert among["pixel_values"].shape == (len(one), 6, 6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_stays_within_bytes(interpolation: Any) -> None:
    edge = torch.zeros(1, 12, 12, dtype=torch.uint8)
    edge[:, :, 6:] = 255  # bicubic overshoots here
    found = replace(IMAGE, interpolation=interpolation, size=9).prepare([edge])[0]["pixel_values"]
    assert found.dtype == torch.uint8
    assert found[0, :, 0].unique().tolist() == [0]
    assert found[0, :, -1].unique().tolist() == [255]


def photo(height: int, width: int) -> torch.Tensor:
    """Smooth colours: uint8 [3, height, width]."""
    rows, columns = torch.linspace(0, 3, height).view(-1, 1), torch.linspace(0, 5, width).view(1, -1)
    waves = [torch.sin(rows * k + columns) * 100 + 128 for k in (1, 2, 3)]
    return torch.stack(waves).to(torch.uint8)


CROPS: list[dict[str, Any]] = [
    {"size": 24, "crop_pct": 0.875, "crop_mode": "center"},
    {"size": 24, "crop_pct": 1.0, "crop_mode": "center"},
    {"size": 25, "crop_pct": 0.9, "crop_mode": "squash"},
    {"size": 24, "crop_pct": 0.95, "crop_mode": "border"},
    {"size": 24, "crop_pct": 1.0, "crop_mode": "border"},
    {"size": (32, 24), "crop_pct": 0.875, "crop_mode": "center"},
    {"size": (32, 24), "crop_pct": 1.0, "crop_mode": "squash"},
    {"size": (24, 33), "crop_pct": 0.9, "crop_mode": "border"},
    {"size": 24, "crop_pct": 1.2, "crop_mode": "center"},
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", CROPS, ids=lambda crop: "-".join(map(str, crop.values())))
@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (17, 17), (24, 24)])
def test_a_crop_is_what_timm_makes_of_the_same_picture(shape: Any, crop: Any, interpolation: Any) -> None:
    transforms = pytest.importorskip("timm.data.transforms_factory", reason="needs timm")
    preparation = replace(IMAGE, **crop, interpolation=interpolation)
    picture = photo(*shape)
    theirs = transforms.transforms_imagenet_eval(
        img_size=crop["size"],
        crop_pct=crop["crop_pct"],
        crop_mode=crop["crop_mode"],
        interpolation=interpolation,
        mean=IMAGE.mean,
        normalize=False,
    )(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    ours = preparation.prepare([picture])[0]["pixel_values"]
    assert ours.shape == theirs.shape
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 2, "Pillow resizes rows and columns one after the other and rounds in between"
    assert difference.float().mean() < 0.5  # a shift by one pixel gives more than 1


def test_one_channel_is_surrounded_by_the_mean_of_each() -> None:
    found = replace(IMAGE, size=6, crop_mode="border").prepare([picture(0, 1, 3, 6)])[0]["pixel_values"]
    assert found.shape == (3, 6, 6)
    assert found[:, 0, 0].tolist() == [round(255 * mean) for mean in IMAGE.mean]
    assert torch.equal(found[0, 1:4], picture(0, 1, 3, 6)[0])


def test_a_dummy_has_the_height_and_width_asked_for() -> None:
    assert replace(IMAGE, size=(4, 6)).dummy(2)["pixel_values"].shape == (2, 3, 4, 6)


@pytest.mark.parametrize(
    "row", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5]), np.array([1, 2.5], np.float32)]
)
def test_a_row_becomes_float32(row: Any) -> None:
    found = TABLE.collate(TABLE.prepare([row]))["numeric"]
    assert found.dtype == torch.float32
    assert found.tolist() == [[1.0, 2.5]]


def test_a_read_only_row_is_copied() -> None:
    row = np.array([1.0, 2.0], np.float32)
    row.flags.writeable = False
    TABLE.prepare([row])[0]["numeric"].fill_(9)
    assert row.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([[1.0] * 5], r"shape \[5\]; allowed: \[N\] with N up to 4"),
        ([[]], r"shape \[0\]"),
        ([3.0], r"shape \[\]"),
        ([[[1.0]]], r"shape \[1, 1\]"),
        ([["a", "b"]], "a row holds numbers"),
        ([[None, 1.0]], "column 0 of a row is not finite"),
        ([[1.0, float("nan")]], "column 1 of a row is not finite"),
        ([[1.0], [1.0, 2.0, 3.0]], "rows have 1 and 3 columns"),
    ],
)
def test_rows_that_cannot_be_used_are_told(rows: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        TABLE.collate(TABLE.prepare(rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preparation", [IMAGE, TABLE])
def test_dummies_have_the_shape_of_inputs(preparation: Any) -> None:
    example = picture(0, 3, 6, 6) if preparation is IMAGE else [0.0] * 4
    real = preparation.normalise(preparation.collate(preparation.prepare([example] * 2)))
    dummy = preparation.dummy(2)
    assert {name: (x.shape, x.dtype) for name, x in dummy.items()} == {
        name: (x.shape, x.dtype) for name, x in real.items()
    }
    assert not preparation.random


@pytest.mark.parametrize(
    ("offset", "starts"),
    [("even", [2, 8, 6]), ("first", [2, 7, 5])],  # the halves of what is over are 2.5, 7.5 and 5.5
)
def test_a_crop_between_two_pixels_begins_where_its_library_does(offset: Any, starts: list[int]) -> None:
    made = replace(IMAGE, size=4, crop_offset=offset)
    for height, start in zip((9, 19, 15), starts, strict=True):
        rows = torch.arange(height, dtype=torch.uint8).view(1, 1, height, 1).expand(1, 1, height, 4)
        assert made._cropped(rows)[0, 0, :, 0].tolist() == list(range(start, start + 4))


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (torch.rand(3, 8, 8), r"torch.float32 \[3, 8, 8\]"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"torch.uint8 \[4, 8, 8\]"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"torch.uint8 \[8, 8\]"),
        (np.zeros((8, 8, 3), np.uint8), "ndarray"),
    ],
)
def test_what_is_no_decoded_picture_is_told(example: object, found: str) -> None:
    preparation = ImagePreparation(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    with pytest.raises(UsageError, match=rf"uint8 tensors \[1 or 3, H, W\], found {found}"):
        preparation.prepare([example])  # type: ignore[list-item]
