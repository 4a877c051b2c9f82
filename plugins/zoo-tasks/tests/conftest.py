"""Small folders of pictures, and the real sets of ../shared/data where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[4] / "shared" / "data"

Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Writes a picture of noise of its own below the folder `pictures`, and gives that folder."""
    drawn = 0

    def one(*names: str, seed: int | None = None, size: int = 12) -> Path:
        nonlocal drawn
        for name in names:
            drawn += 1
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(drawn if seed is None else 1000 + seed)
            Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
        return tmp_path / "pictures"

    return one


@pytest.fixture
def two_classes(draw: Draw) -> Path:
    """Ten pictures of each of two classes."""
    return draw(*(f"{label}/{number}.png" for label in ("rose", "daisy") for number in range(10)))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The folder of a real set; skips the test where it is not there."""

    def folder(name: str) -> Path:
        path = SHARED / name
        if not path.is_dir():
            pytest.skip(f"{path} is not there; it is data for measuring that the repository does not ship")
        return path

    return folder
