"""The published checkpoints, where they are: every tensor is used, and CIFAR-10's pictures are told as published."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo_core

DATA = Path(__file__).parents[4] / "shared" / "data"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PUBLISHED = {"resnet20": 0.9173, "resnet56": 0.9339}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the checkpoints of {DATA} are not here")


def spec(name: str) -> str:
    files = DATA / "weights" / f"cifar10_{name}"
    return f'cifar10-{name}(files="{files}")+cifar-resnet-classifier(files="{files}",fixed=true)'


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_is_that_of_its_record_and_its_first_pictures_are_told(name: str) -> None:
    assert share_right(name, 100) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_the_accuracy_is_as_published(name: str, published: float) -> None:
    """Within three standard errors of 1,000 pictures; published is the share of all 10,000."""
    assert share_right(name, 1000) == pytest.approx(published, abs=3 * math.sqrt(published * (1 - published) / 1000))


def share_right(name: str, num: int) -> float:
    learner = zoo_core.load(spec(name), classes=CLASSES)
    with np.load(DATA / "cifar10" / "test_small.npz") as arrays:
        pictures, truth = torch.from_numpy(arrays["x"][:num]), arrays["y"][:num]
    found = zoo_core.predict(learner, list(pictures))
    return float(np.mean([each.labels == (CLASSES[label],) for each, label in zip(found, truth, strict=True)]))
