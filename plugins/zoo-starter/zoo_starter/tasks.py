"""Real tasks inside scikit-learn: handwritten digits (classes, multilabel) and diabetes progression (regression)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Modality, Target, TaskData

if TYPE_CHECKING:
    import numpy as np

    from zoo_starter.arrays import ArrayData

__all__ = ["Diabetes", "Digits", "DigitsAttributes"]

ATTRIBUTES: Mapping[str, frozenset[int]] = {
    "even": frozenset({0, 2, 4, 6, 8}),
    "prime": frozenset({2, 3, 5, 7}),
    "above four": frozenset({5, 6, 7, 8, 9}),
    "closed loop": frozenset({0, 6, 8, 9}),
}


@dataclass(frozen=True, kw_only=True)
class Digits:
    """1,797 handwritten digits of 8 x 8 pixels; fixed splits of 897, 300 and 600, each class in proportion.

    Source: Alpaydin & Kaynak 1998, UCI "Optical recognition of handwritten digits", the test part, as in scikit-learn.
    """

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "image"
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target] = Target(kind="classes", names=tuple("0123456789"))

    def open(self, files: Path | None) -> TaskData:
        from zoo_starter.arrays import digits

        return digits(self.target, lambda labels: labels)


@dataclass(frozen=True, kw_only=True)
class DigitsAttributes:
    """The same images and splits as `digits`, with four yes-or-no attributes: even, prime, above four, closed loop.

    The attributes follow from the digit by a stated rule; a four written closed still counts as open.
    """

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "image"
    metric: ClassVar[str] = "average_precision"
    target: ClassVar[Target] = Target(kind="multilabel", names=tuple(ATTRIBUTES))

    def open(self, files: Path | None) -> TaskData:
        from zoo_starter.arrays import digits

        return digits(self.target, attributes)


@dataclass(frozen=True, kw_only=True)
class Diabetes:
    """442 patients, ten standardised numbers each; the target is a measure of disease progression after a year.

    Fixed splits of 266, 88 and 88. Columns are standardised by mean and deviation of the training rows.
    Source: Efron et al. 2004, "Least angle regression", section 1.
    """

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "table"
    metric: ClassVar[str] = "mean_absolute_error"
    target: ClassVar[Target] = Target(kind="regression", names=("progression",))

    def open(self, files: Path | None) -> TaskData:
        from zoo_starter.arrays import diabetes

        data: ArrayData = diabetes(self.target)
        return data


def attributes(labels: np.ndarray) -> np.ndarray:
    """float32 [N, 4] in {0, 1} from digits int64 [N], columns in the order of ATTRIBUTES."""
    import numpy as np

    columns = [np.isin(labels, sorted(members)) for members in ATTRIBUTES.values()]
    return np.stack(columns, axis=1).astype(np.float32)
