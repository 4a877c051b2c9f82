"""What teachers give for the examples of one split: read where it is stored, else computed and stored.

Augmentation is a function of (seed, draw, id), so an example of one view is the same whenever it is seen, and so is
what a teacher gives for it. Raw outputs are stored, before they are put into the student's order, so that all students
of a teacher share them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from zoo_core.contracts import Preparation, TeacherOutput
from zoo_core.data.loader import AS_IT_IS
from zoo_core.data.model_outputs import ModelOutputs
from zoo_core.model.teachers import Teachers

__all__ = ["Passes", "Replay"]


@dataclass(kw_only=True)
class Passes:
    """What the teachers of a fit were asked for. made: outputs computed. saved: outputs read. seconds: of computing."""

    made: int = 0
    saved: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Replay:
    """The teachers of a learner beside the loader of one split, see zoo_core.data.loader.Beside.

    stores: where outputs are kept, of those teachers whose outputs can be. rows: of the split's examples in them,
    int64 [num].
    """

    teachers: Teachers
    stores: Mapping[str, ModelOutputs]
    rows: np.ndarray[Any, np.dtype[np.int64]]
    passes: Passes = field(default_factory=Passes)
    _preparations: dict[str, Preparation] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.teachers.asked)

    def begin(self, view: str) -> None:
        for of in self.names:
            if of not in self.stores or not self.stores[of].held(view, self.rows).all():
                self.preparation(of)

    def lacking(self, of: str, view: str, positions: Sequence[int]) -> list[int]:
        if of not in self.stores:
            return list(positions)
        held = self.stores[of].held(view, self.rows[list(positions)])
        return [position for position, known in zip(positions, held.tolist(), strict=True) if not known]

    def preparation(self, of: str) -> Preparation:
        if of not in self._preparations:
            self._preparations[of] = self.teachers.preparation(of)
        return self._preparations[of]

    def output(
        self,
        of: str,
        view: str,
        positions: Sequence[int],
        inputs: Callable[[Sequence[int]], Mapping[str, Tensor]],
        word_ids: Tensor | None,
    ) -> TeacherOutput:
        store = self.stores.get(of)
        if store is None:
            return self._computed(of, inputs(positions), word_ids)
        rows = self.rows[list(positions)]
        stored = store.read(view, rows)
        self.passes.saved += len(rows) - len(stored.missing)
        if not len(stored.missing):
            return self.teachers.for_student(of, _whole(stored.outputs), {}, None)
        missing = [positions[place] for place in stored.missing.tolist()]
        started = time.perf_counter()
        read = inputs(missing)
        fresh = _parts(self.teachers.raw(of, read), self.teachers.asked[of].keep)
        self.passes.made += len(missing)
        if view != AS_IT_IS or not self.preparation(of).random:  # else the next epoch sees another example
            store.write(view, rows[stored.missing], fresh)
        device = next(iter(read.values())).device
        whole = {name: x.to(device) for name, x in stored.completed(fresh).items()}
        self.passes.seconds += time.perf_counter() - started
        return self.teachers.for_student(of, _whole(whole), read, word_ids)

    def _computed(self, of: str, inputs: Mapping[str, Tensor], word_ids: Tensor | None) -> TeacherOutput:
        started = time.perf_counter()
        found = self.teachers.output(of, inputs, word_ids)
        self.passes.made += len(next(iter(inputs.values())))
        self.passes.seconds += time.perf_counter() - started
        return found


def _parts(output: TeacherOutput, keep: str) -> dict[str, Tensor]:
    """The tensors of an output by name, as they are stored."""
    named = {"predictions": output.predictions, "pooled": output.pooled, "mask": output.mask}
    found = {name: x for name, x in named.items() if x is not None}
    found |= {f"stage {stage}": x for stage, x in output.stages.items()}
    found |= {f"site {stage} {role}": x for (stage, role), x in output.sites.items()}
    return {name: x.half() if keep == "float16" and x.is_floating_point() else x for name, x in found.items()}


def _whole(parts: Mapping[str, Tensor]) -> TeacherOutput:
    """What `_parts` took apart."""
    parts = {name: x.float() if x.is_floating_point() else x for name, x in parts.items()}
    sites = {tuple(name.split(" ")[1:]): x for name, x in parts.items() if name.startswith("site ")}
    return TeacherOutput(
        predictions=parts.get("predictions"),
        pooled=parts.get("pooled"),
        mask=parts.get("mask"),
        stages={int(name.split(" ")[1]): x for name, x in parts.items() if name.startswith("stage ")},
        sites={(int(stage), role): x for (stage, role), x in sites.items()},
    )
