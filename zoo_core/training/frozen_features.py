"""What a frozen backbone gives for the examples of a task: computed once, and read for everything that comes after.

All before the head of a learner whose backbone does not train is a function of the example. So the same features serve
every epoch, learning rate, seed and head. A loader of features stands in for the loader of a split: its batches hold
features where those of the split hold inputs, in the same order, and the learner takes either.

Features are kept in memory up to a limit, and those of one shape are stored on disk as well. Tokens of texts and of
sounds, as many as an example has, are kept in memory alone. What is kept nowhere is computed each time it is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from zoo_core.contracts import Batch, Kind, as_backbone
from zoo_core.data.loader import Loader
from zoo_core.data.model_outputs import ModelOutputs
from zoo_core.model.given_features import MASK, X, inputs_of
from zoo_core.toolkit.features import convert
from zoo_core.training.progress import FitProgress
from zoo_core.training.timing import INFERENCE_BATCH, Stopwatch, autocast

__all__ = ["FeatureMemory", "FeaturePass", "FrozenFeatures"]

MEMORY_BYTES = 2**30  # of features that the trials of one process keep
WORDS = "word_ids"  # an input that targets and scores of words need beside features
PADDING: Mapping[str, float] = {X: 0.0, MASK: False, WORDS: -1}
AS_BFLOAT16 = " as bfloat16"  # of a stored array's name: its values are in float32, which holds them exactly

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(kw_only=True)
class FeaturePass:
    """What a backbone was asked for. made: examples computed. read: those found in a store. seconds: of wall time spent
    on computing, loading included. watch: of full batches through the backbone; None before the first.
    """

    made: int = 0
    read: int = 0
    seconds: float = 0.0
    watch: Stopwatch | None = None


@dataclass(kw_only=True)
class FeatureMemory:
    """The features that the trials of one process keep, by what they are features of. max_bytes: of all of them."""

    max_bytes: int = MEMORY_BYTES
    num_bytes: int = 0
    _kept: dict[tuple[str, str], _Kept] = field(default_factory=dict)

    def of(self, key: str, view: str) -> _Kept:
        return self._kept.setdefault((key, view), _Kept())

    def add(self, kept: _Kept, rows: Rows, batch: Mapping[str, Tensor]) -> bool:
        """Keeps the features of rows, if there is room for them."""
        num_bytes = sum(x.nbytes for x in batch.values())
        if self.num_bytes + num_bytes > self.max_bytes:
            return False
        self.num_bytes += num_bytes
        kept.add(rows, batch)
        return True


class _Kept:
    """Features by row. Batches are held as they came; those of one shape are joined when they are first read."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._batches: list[Mapping[str, Tensor]] = []
        self._starts: list[int] = [0]

    def add(self, rows: Rows, batch: Mapping[str, Tensor]) -> None:
        """Adds rows that are not held. batch: each [num, ...]."""
        start = self._starts[-1]
        self._place.update(zip(rows.tolist(), range(start, start + len(rows)), strict=True))
        self._batches.append(batch)
        self._starts.append(start + len(rows))

    def held(self, rows: Rows) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.asarray([row in self._place for row in rows.tolist()], dtype=bool)

    def at(self, rows: Rows) -> dict[str, Tensor]:
        """The features of held rows, tokens padded to the longest of these."""
        places = [self._place[row] for row in rows.tolist()]
        if len({tuple((name, x.shape[1:]) for name, x in batch.items()) for batch in self._batches}) == 1:
            whole = self._joined()
            index = torch.as_tensor(places, device=next(iter(whole.values())).device)
            return {name: x.index_select(0, index) for name, x in whole.items()}
        batch_of = np.searchsorted(self._starts, places, side="right") - 1
        found = [
            {name: x[place - self._starts[at]] for name, x in self._batches[at].items()}
            for place, at in zip(places, batch_of.tolist(), strict=True)
        ]
        return _padded(found)

    def _joined(self) -> Mapping[str, Tensor]:
        if len(self._batches) > 1:
            self._batches = [{name: torch.cat([batch[name] for batch in self._batches]) for name in self._batches[0]}]
            self._starts = [0, self._starts[-1]]
        return self._batches[0]


def _padded(examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of examples whose tokens are padded on the right, as long as the longest has real ones."""
    masks = [example.get(MASK, example[X].new_ones(len(example[X]), dtype=torch.bool)) for example in examples]
    lengths = [int(mask.nonzero()[-1]) + 1 for mask in masks]
    whole = [{**example, MASK: mask} for example, mask in zip(examples, masks, strict=True)]
    found = {}
    for name in whole[0]:
        parts = [example[name][:length] for example, length in zip(whole, lengths, strict=True)]
        found[name] = pad_sequence(parts, batch_first=True, padding_value=PADDING[name])
    return found


def _to_store(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{name}{AS_BFLOAT16}" if x.dtype == torch.bfloat16 else name: x.float() if x.dtype == torch.bfloat16 else x
        for name, x in inputs.items()
    }


def _from_store(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removesuffix(AS_BFLOAT16): x.bfloat16() if name.endswith(AS_BFLOAT16) else x for name, x in outputs.items()
    }


class FrozenFeatures:
    """The features of one split, which a loader of features reads and, where they are missing, computes."""

    def __init__(
        self,
        backbone: nn.Module,
        loader: Loader,
        *,
        kind: Kind,
        rows: Rows,
        stores: Mapping[Kind, ModelOutputs],
        memory: FeatureMemory,
        passed: FeaturePass,
        precision: str = "float32",
    ) -> None:
        """loader: of the split itself. kind: what this loader's learner reads. rows: of the split's examples in the
        stores, int64 [num]. stores: by the kinds that somebody reads, this one among them: a pass fills all of them.
        """
        self._backbone, self._loader, self._kind, self._rows = backbone, loader, kind, rows
        self._stores, self._memory, self._pass, self._precision = stores, memory, passed, precision

    def fill(self, report: Callable[[FitProgress], None] = lambda _: None) -> None:
        """Computes now what the epochs of the loader will show and nobody has computed before."""
        for draw in self._loader.draws:
            self._fill(draw, report)

    def loader(self) -> Loader:
        """The loader of the split with features for inputs."""
        return self._loader.of_stored(self._inputs)

    def _inputs(self, draw: int, positions: Sequence[int]) -> dict[str, Tensor]:
        rows = self._rows[list(positions)]
        kept = self._kept(self._kind, draw)
        held = kept.held(rows)
        if not held.all():
            missing = [position for position, known in zip(positions, held.tolist(), strict=True) if not known]
            found = self._brought(draw, missing)
            if not kept.held(rows).all():  # there was no room for them
                some = _Kept()
                some.add(self._rows[missing], found)
                if held.any():
                    some.add(rows[held], kept.at(rows[held]))
                return some.at(rows)
        return kept.at(rows)

    def _fill(self, draw: int, report: Callable[[FitProgress], None]) -> None:
        """Brings what is missing into memory, or into the store where memory is full, a batch at a time."""
        kept, store, view = self._kept(self._kind, draw), self._stores[self._kind], self._loader.view(draw)
        missing, began = np.flatnonzero(~kept.held(self._rows)).tolist(), time.perf_counter()
        for start in range(0, len(missing), INFERENCE_BATCH):
            positions = missing[start : start + INFERENCE_BATCH]
            self._brought(draw, positions)
            rows, done = self._rows[positions], start + len(positions)
            rate = done / (time.perf_counter() - began)
            report(FitProgress(step=done, num_steps=len(missing), loss=0.0, examples_per_second=rate))
            if not (kept.held(rows).all() or store.held(view, rows).all()):
                break  # they are kept nowhere, so whoever reads them has them computed

    def _brought(self, draw: int, positions: list[int]) -> dict[str, Tensor]:
        """The features of examples that memory lacks, from the store or from the backbone; kept where there is room."""
        view, rows = self._loader.view(draw), self._rows[positions]
        stored, some = self._stores[self._kind].read(view, rows), _Kept()
        if stored.is_held.any():
            device = self._loader.device
            some.add(rows[stored.is_held], {name: x.to(device) for name, x in _from_store(stored.outputs).items()})
            self._pass.read += int(stored.is_held.sum())
        if len(stored.missing):
            missing = [positions[place] for place in stored.missing.tolist()]
            some.add(self._rows[missing], self._computed(draw, missing))
        found = some.at(rows)
        self._memory.add(self._kept(self._kind, draw), rows, found)
        return found

    def _computed(self, draw: int, positions: list[int]) -> dict[str, Tensor]:
        """One pass over some examples. It fills the stores of all kinds, and gives what this loader reads."""
        started = time.perf_counter()
        view, some, at = self._loader.view(draw), _Kept(), 0
        for batch in self._loader.seen(draw, positions, INFERENCE_BATCH):
            rows = self._rows[positions[at : at + len(batch)]]
            at += len(batch)
            for kind, inputs in self._given(batch).items():
                if MASK not in inputs:
                    self._stores[kind].write(view, rows, _to_store(inputs))
                if kind == self._kind:
                    some.add(rows, inputs)
                elif not (kept := self._kept(kind, draw)).held(rows).any():
                    self._memory.add(kept, rows, inputs)
        self._pass.made += len(positions)
        self._pass.seconds += time.perf_counter() - started
        return some.at(self._rows[positions])

    def _given(self, batch: Batch) -> dict[Kind, dict[str, Tensor]]:
        """The features of a batch, of each kind that somebody reads. The watch looks at full batches alone."""
        backbone, device = as_backbone(self._backbone.to(self._loader.device).eval()), self._loader.device
        is_full = len(batch) == INFERENCE_BATCH
        if self._pass.watch is None:
            self._pass.watch = Stopwatch(device, warmup=1)
        with torch.no_grad(), autocast(device, self._precision):
            if is_full:
                self._pass.watch.start()
            features = backbone(batch.inputs)
            found = {kind: inputs_of(convert(features, kind, backbone.pool)) for kind in self._stores}
            if is_full:
                self._pass.watch.stop(len(batch))
        words = {name: batch.inputs[name] for name in (WORDS,) if name in batch.inputs}
        for kind, inputs in found.items():
            inputs |= {name: x.clone() for name, x in inputs.items()}  # a view would keep all of its pass in memory
            inputs |= words if kind == "tokens" else {}
        return found

    def _kept(self, kind: Kind, draw: int) -> _Kept:
        return self._memory.of(str(self._stores[kind].folder), self._loader.view(draw))
