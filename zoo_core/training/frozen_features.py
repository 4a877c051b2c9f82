"""What a frozen backbone gives for the examples of a task: computed once, and read for everything that comes after.

All before the head of a learner whose backbone does not train is a function of the example. So the same features serve
every epoch, learning rate, seed and head. A loader of features stands in for the loader of a split: its batches hold
features where those of the split hold inputs, in the same order, and the learner takes either.

A pass fills more than the loader reads: the features of other kinds, and those of shorter cuts of the same backbone.
Features are kept in memory up to a limit, and those of one shape are stored on disk as well. Tokens of texts and of
sounds, as many as an example has, are kept in memory alone. What is kept nowhere is computed each time it is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from zoo_core.contracts import Batch, as_backbone
from zoo_core.data.loader import Loader
from zoo_core.data.model_outputs import ModelOutputs
from zoo_core.errors import RefusedError
from zoo_core.model.given_features import ATTENDED, MASK, What, inputs_as, inputs_at
from zoo_core.toolkit.stages import boundary, capture
from zoo_core.training.progress import FitProgress
from zoo_core.training.shorter_cuts import ShorterCut
from zoo_core.training.timing import INFERENCE_BATCH, Stopwatch, autocast

__all__ = ["FeatureMemory", "FeaturePass", "FrozenFeatures"]

MEMORY_BYTES = 2**30  # of features that the trials of one process keep
WORDS = "word_ids"  # an input that targets and scores of words need beside features
PADDING: Mapping[str, float] = {MASK: False, WORDS: -1}  # 0 of everything else
AS_BFLOAT16 = " as bfloat16"  # of a stored array's name: its values are in float32, which holds them exactly

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Stores: TypeAlias = Mapping[What, ModelOutputs]  # by what somebody reads: a pass fills all of them
Shorter: TypeAlias = Sequence[tuple[ShorterCut, Stores]]  # cuts of the backbone, and the stores of their features


@dataclass(kw_only=True)
class FeaturePass:
    """What backbones were asked for. made: examples passed, once for all cuts that a pass serves. read: those found in
    a store. seconds: of wall time spent on computing, loading included. watches: by backbone, of full batches.
    """

    made: int = 0
    read: int = 0
    seconds: float = 0.0
    watches: dict[nn.Module, Stopwatch] = field(default_factory=dict)


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
            return _trimmed({name: x.index_select(0, index) for name, x in whole.items()})
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


def _trimmed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without the tokens after the last that is real in any example, as a loader of inputs pads it."""
    mask = _mask_of(batch)
    if mask is None:
        return dict(batch)
    length = int(mask.any(0).nonzero()[-1]) + 1
    return {name: x[:, :length] for name, x in batch.items()}


def _padded(examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of examples whose tokens are padded on the right, as long as the longest has real ones."""
    lengths, whole = [], []
    for example in examples:
        mask = _mask_of(example)
        if mask is None:
            x = next(iter(example.values()))
            mask = x.new_ones(len(x), dtype=torch.bool)
            example = {**example, MASK: mask}
        lengths.append(int(mask.nonzero()[-1]) + 1)
        whole.append(example)
    found = {}
    for name in whole[0]:
        parts = [example[name][:length] for example, length in zip(whole, lengths, strict=True)]
        found[name] = pad_sequence(parts, batch_first=True, padding_value=PADDING.get(name, 0.0))
    return found


def _mask_of(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Which tokens are real; None where all examples have as many."""
    return inputs.get(MASK, inputs.get(ATTENDED))


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
        what: What,
        rows: Rows,
        stores: Stores,
        memory: FeatureMemory,
        passed: FeaturePass,
        precision: str = "float32",
    ) -> None:
        """loader: of the split itself. what: this loader's learner reads, one of `stores`. rows: of the split's
        examples in the stores, int64 [num].
        """
        self._backbone, self._loader, self._what, self._rows = backbone, loader, what, rows
        self._stores, self._memory, self._pass, self._precision = stores, memory, passed, precision

    def fill(self, report: Callable[[FitProgress], None] = lambda _: None, shorter: Shorter = ()) -> None:
        """Computes now what the epochs of the loader will show and nobody has computed before.

        shorter: what is filled too by the passes that this takes.
        """
        for draw in self._loader.draws:
            self._fill(draw, report, shorter)

    def loader(self) -> Loader:
        """The loader of the split with features for inputs."""
        return self._loader.of_stored(self.inputs)

    def inputs(self, draw: int, positions: Sequence[int]) -> dict[str, Tensor]:
        """What a batch of these examples holds in place of their inputs, as a draw shows them."""
        rows = self._rows[list(positions)]
        kept = self._kept(self._store, draw)
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

    def _fill(self, draw: int, report: Callable[[FitProgress], None], shorter: Shorter) -> None:
        """Brings what is missing into memory, or into the store where memory is full, a batch at a time."""
        kept, view = self._kept(self._store, draw), self._loader.view(draw)
        missing, began = np.flatnonzero(~kept.held(self._rows)).tolist(), time.perf_counter()
        for start in range(0, len(missing), INFERENCE_BATCH):
            positions = missing[start : start + INFERENCE_BATCH]
            self._brought(draw, positions, shorter)
            rows, done = self._rows[positions], start + len(positions)
            rate = done / (time.perf_counter() - began)
            report(FitProgress(step=done, num_steps=len(missing), loss=0.0, examples_per_second=rate))
            if not (kept.held(rows).all() or self._store.held(view, rows).all()):
                break  # they are kept nowhere, so whoever reads them has them computed

    def _brought(self, draw: int, positions: list[int], shorter: Shorter = ()) -> dict[str, Tensor]:
        """The features of examples that memory lacks, from the store or from the backbone; kept where there is room."""
        view, rows = self._loader.view(draw), self._rows[positions]
        stored, some = self._store.read(view, rows), _Kept()
        if stored.is_held.any():
            device = self._loader.device
            some.add(rows[stored.is_held], {name: x.to(device) for name, x in _from_store(stored.outputs).items()})
            self._pass.read += int(stored.is_held.sum())
        if len(stored.missing):
            missing = [positions[place] for place in stored.missing.tolist()]
            some.add(self._rows[missing], self._computed(draw, missing, shorter))
        found = some.at(rows)
        self._memory.add(self._kept(self._store, draw), rows, found)
        return found

    def _computed(self, draw: int, positions: list[int], shorter: Shorter) -> dict[str, Tensor]:
        """One pass over some examples. It fills all stores, and gives what this loader reads."""
        started = time.perf_counter()
        view, some, at = self._loader.view(draw), _Kept(), 0
        for batch in self._loader.seen(draw, positions, INFERENCE_BATCH):
            rows = self._rows[positions[at : at + len(batch)]]
            at += len(batch)
            wanted = [(cut, stores) for cut, stores in shorter if not cut.refusal and self._lacks(stores, draw, rows)]
            for store, inputs in self._given(batch, wanted):
                if _mask_of(inputs) is None:
                    store.write(view, rows, _to_store(inputs))
                if store is self._store:
                    some.add(rows, inputs)
                elif not (kept := self._kept(store, draw)).held(rows).any():
                    self._memory.add(kept, rows, inputs)
        self._pass.made += len(positions)
        self._pass.seconds += time.perf_counter() - started
        return some.at(self._rows[positions])

    def _given(self, batch: Batch, shorter: Shorter) -> Iterator[tuple[ModelOutputs, dict[str, Tensor]]]:
        """The features of a batch with the store of each.

        The watch looks at full batches of the backbone alone: to copy states for shorter cuts takes time too.
        """
        device = self._loader.device
        self._backbone.to(device).eval()
        watch: Stopwatch | None = None
        if len(batch) == INFERENCE_BATCH and not shorter:
            watch = self._pass.watches.setdefault(self._backbone, Stopwatch(device, warmup=1))
        found: list[tuple[Stores, Mapping[What, dict[str, Tensor]]]] = []
        with (
            torch.no_grad(),
            autocast(device, self._precision),
            capture(self._backbone, [cut.stage for cut, _ in shorter]) as states,
        ):
            if watch is not None:
                watch.start()
            found.append((self._stores, self._found(batch)))
            if watch is not None:
                watch.stop(len(batch))
            for cut, stores in shorter:
                found.append((stores, cut.given(states.pop(cut.stage, None), batch.inputs, stores)))
        words = {name: batch.inputs[name] for name in (WORDS,) if name in batch.inputs}
        for stores, of in found:
            for what, inputs in of.items():
                inputs |= {name: x.clone() for name, x in inputs.items()}  # a view would keep its whole pass in memory
                yield stores[what], inputs | (words if what == "tokens" else {})

    def _found(self, batch: Batch) -> dict[What, dict[str, Tensor]]:
        backbone, found = as_backbone(self._backbone), dict[What, dict[str, Tensor]]()
        for what in self._stores:
            if isinstance(what, int):
                state = boundary(self._backbone, batch.inputs, what)
                if len(state) != len(batch):  # as of parts of pictures
                    raise RefusedError(
                        f"what enters stage {what + 1} is of {len(state)} rows for {len(batch)} examples"
                    )
                found[what] = inputs_at(what, state, batch.inputs)
        if len(found) < len(self._stores):
            found |= inputs_as(backbone(batch.inputs), self._stores, backbone.pool)
        return found

    def _lacks(self, stores: Stores, draw: int, rows: Rows) -> bool:
        """Whether some features of these rows are neither in memory nor in their store."""
        view = self._loader.view(draw)
        return not all(
            self._kept(store, draw).held(rows).all() or store.held(view, rows).all() for store in stores.values()
        )

    @property
    def _store(self) -> ModelOutputs:
        return self._stores[self._what]

    def _kept(self, store: ModelOutputs, draw: int) -> _Kept:
        return self._memory.of(str(store.folder), self._loader.view(draw))
