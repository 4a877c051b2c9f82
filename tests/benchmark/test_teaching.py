"""What a teacher gives is stored apart for each split of a trial, whatever its examples are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.taught.fixture import Taught
from zoo_core.benchmark.teaching import replay_of
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build
from zoo_core.model.replay import Passes
from zoo_core.plan.resolve import resolve
from zoo_core.testing.toys import ToySplit

pytest.importorskip("zoo_starter")
pytest.importorskip("zoo_distill")


def test_examples_of_two_splits_with_equal_ids_are_told_apart(taught: Taught) -> None:
    plan = pin_plan(resolve(f'starter/vit-nano+full+distill(teacher="{taught.run}")', task="digits(limit=9)"))
    learner, device = build(plan), torch.device("cpu")
    pictures = [np.full((3, 8, 8), shade, dtype=np.uint8) for shade in (0, 255)]
    train, val = (ToySplit(x, np.zeros(3, dtype=np.int64)) for x in pictures)
    assert train.ids == val.ids
    folders = []
    for split, role in ((train, "train"), (val, "val"), (train, "train")):
        replay = replay_of(plan, learner, split, device, Passes(), role=role)
        assert replay is not None
        folders.append(replay.stores[str(taught.run)].folder)
    assert folders[0] == folders[2]
    assert folders[0] != folders[1]
