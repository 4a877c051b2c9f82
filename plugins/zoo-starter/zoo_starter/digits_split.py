"""The one split of scikit-learn's 1,797 digits: 897 to train, 300 to validate, 600 to test, classes in proportion."""

from collections.abc import Mapping
from typing import Final

import numpy as np

__all__ = ["SPLIT_SIZES", "split_digits"]

SPLIT_SIZES: Final[Mapping[str, int]] = {"test": 600, "validation": 300, "train": 897}
SPLIT_SEED: Final = 20261121


def split_digits(targets: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of each split, ascending.

    targets: int [1797], the classes in the order of `sklearn.datasets.load_digits`.
    Every class is shuffled, its members are spread evenly over 0 to 1, and the splits are cut from that order: so each
    split holds each class in proportion, within one image. Writers are not kept apart: the copy in scikit-learn does
    not name them.
    """
    rng = np.random.RandomState(SPLIT_SEED)
    place = np.empty(len(targets))
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        place[members] = (np.arange(len(members)) + rng.rand()) / len(members)
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(list(SPLIT_SIZES.values()))
    parts = np.split(order, ends[:-1])
    return {name: np.sort(part) for name, part in zip(SPLIT_SIZES, parts, strict=True)}
