"""The teachers of a learner: frozen models that are loaded when they are first needed and are no part of its state.

A teacher sees the examples that the student sees, decoded and augmented alike, through a preparation of its own. Its
pass draws nothing from the generators of training and knows no autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.contracts import Backbone, Batch, Features, Kind, Preparation, Target, Teacher, TeacherOutput, as_backbone
from zoo_core.errors import RefusedError, UsageError
from zoo_core.plan.teachers import common_outputs
from zoo_core.toolkit.features import channels_first, convert
from zoo_core.toolkit.sites import capture_sites
from zoo_core.toolkit.stages import capture, dummy_inputs, stage_index, stage_modules

__all__ = ["Taught", "TeacherModel", "Teachers"]


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A loaded teacher: its backbone and, if it predicts, its head with the kind of features that that consumes."""

    backbone: nn.Module
    head: nn.Module | None = None
    consumes: Kind = "pooled"
    target: Target | None = None


class Teachers:
    """The teachers of one learner, by Teacher.of. A copy of the learner shares them.

    asked: what is read of each. told: what each predicts, where that is known before it is loaded. load: builds the
    model of one, for use. target: the student's, with its size known.
    """

    def __init__(
        self,
        asked: Mapping[str, Teacher],
        told: Mapping[str, Target],
        load: Callable[[str], TeacherModel],
        target: Target,
    ) -> None:
        self.asked = dict(asked)
        self._told = dict(told)
        self._load = load
        self._target = target
        self._models: dict[str, TeacherModel] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Teachers:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_models": {}}

    def model(self, of: str) -> TeacherModel:
        """The teacher itself, in evaluation mode with nothing that trains. Raises RefusedError if it does not fit."""
        if of not in self._models:
            model = self._load(of)
            for module in (model.backbone, *([model.head] if model.head is not None else [])):
                module.requires_grad_(False)
                module.eval()
            self._models[of] = model
        return self._models[of]

    def preparation(self, of: str) -> Preparation:
        """What turns decoded examples into this teacher's inputs."""
        return as_backbone(self.model(of).backbone).preparation

    def taught(self, batch: Batch) -> Batch:
        """The batch with what every teacher gives for it. What it holds already stays.

        Raises UsageError if it has nothing that a teacher could read.
        """
        lacking = [of for of in self.asked if of not in batch.teachers]
        found = {of: self.output(of, self._inputs(of, batch), batch.inputs.get("word_ids")) for of in lacking}
        return replace(batch, teachers={**batch.teachers, **found}) if found else batch

    def _inputs(self, of: str, batch: Batch) -> Mapping[str, Tensor]:
        if of in batch.beside:
            return batch.beside[of]
        raise UsageError(
            f"the batch holds nothing that teacher {of} reads: make examples with learner.transform(train=True) and "
            f"batches with learner.collate, which prepare them for teachers too"
        )

    def output(self, of: str, inputs: Mapping[str, Tensor], word_ids_BT: Tensor | None = None) -> TeacherOutput:
        """What a teacher gives for its own inputs, as the student's objective reads it.

        word_ids_BT: of the student's tokens, for predictions of words. Raises what `raw` and `for_student` raise.
        """
        with torch.inference_mode(False):  # what it gives may be trained on
            return self.for_student(of, self.raw(of, inputs), inputs, word_ids_BT)

    def raw(self, of: str, inputs: Mapping[str, Tensor]) -> TeacherOutput:
        """What a teacher gives for its own inputs, in its own order of outputs, as precise as was asked for.

        Raises RefusedError for values that are not finite, and for a stage or a projection that it does not have.
        """
        asked, model = self.asked[of], self.model(of)
        device = next(iter(inputs.values())).device
        for module in (model.backbone, model.head):
            if module is not None:
                module.to(device)
        try:
            with _apart(device):
                found = _pass(model, asked, inputs)
        except RefusedError as error:
            raise RefusedError(f"teacher {of}: {error}") from error
        with torch.inference_mode(False):
            return found.each(lambda x: _held(of, x, asked.keep))

    def for_student(
        self, of: str, found: TeacherOutput, inputs: Mapping[str, Tensor], word_ids_BT: Tensor | None
    ) -> TeacherOutput:
        """Predictions in the student's order of outputs; of words at the student's own tokens.

        inputs: the teacher's. Raises RefusedError if too few outputs are shared, or if one of both knows no words.
        """
        if found.predictions is None:
            return found
        theirs, own = self._shared(of, found.predictions.shape[-1])
        predictions = found.predictions
        if theirs != tuple(range(predictions.shape[-1])):
            predictions = predictions[..., list(theirs)]
        if self._target.kind == "token_classes":
            predictions = _at_tokens(of, predictions, inputs.get("word_ids"), word_ids_BT)
        size = self._target.size or 0
        return replace(found, predictions=predictions, columns=None if own == tuple(range(size)) else own)

    def _shared(self, of: str, num_outputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        target = self._told.get(of)
        if target is None:
            target = self.model(of).target
        assert target is not None, "a teacher that predicts has a target"
        assert target.size == num_outputs, "a stored run says what it predicts"
        return common_outputs(of, target, self._target)

    def dummy(self, of: str, size: int) -> TeacherOutput:
        """Something of the shapes of what a teacher gives for `size` examples; it is loaded only for its features."""
        asked = self.asked[of]
        if asked.pooled or asked.stages or asked.sites:
            return self.output(of, dummy_inputs(self.model(of).backbone, size))
        assert self._target.size is not None, "a learner knows its outputs"
        return TeacherOutput(predictions=torch.zeros(size, self._target.size))


class Taught(Mapping[str, TeacherOutput]):
    """What an adapter's teachers give for two examples, by Teacher.of: each is asked when somebody looks."""

    def __init__(self, teachers: Teachers, named: tuple[str, ...]) -> None:
        self._teachers = teachers
        self._named = named

    def __getitem__(self, of: str) -> TeacherOutput:
        if of not in self._named:
            raise KeyError(of)
        return self._teachers.dummy(of, 2)

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


def _pass(model: TeacherModel, asked: Teacher, inputs: Mapping[str, Tensor]) -> TeacherOutput:
    """One pass through a teacher."""
    source: Backbone = as_backbone(model.backbone)
    stages = {stage: stage_index(model.backbone, stage) for stage in asked.stages}
    with (
        capture(model.backbone, sorted(set(stages.values()))) as states,
        capture_sites(model.backbone, asked.sites) as outputs,
    ):
        features: Features = source(inputs)
        pooled = features if features.kind == "pooled" else None
        if asked.pooled or (asked.predictions and model.consumes == "pooled"):
            pooled = pooled or Features(kind="pooled", x=source.pool(features))
        predictions = None
        if asked.predictions:
            assert model.head is not None, "resolve has refused a teacher without a head"
            predictions = model.head(_consumed(features, pooled, model, source))
    return TeacherOutput(
        predictions=predictions,
        pooled=pooled.x if asked.pooled and pooled is not None else None,
        stages={stage: _axes_first(states[index], model.backbone, index) for stage, index in stages.items()},
        sites=dict(outputs),
        mask=features.mask if asked.stages or asked.sites else None,
    )


def _axes_first(state: Tensor, backbone: nn.Module, index: int) -> Tensor:
    """A map with its channels first; any other state as it is."""
    if state.ndim != 4 or channels_first(state, stage_modules(backbone)[index]):
        return state
    return state.permute(0, 3, 1, 2)


def _consumed(features: Features, pooled: Features | None, model: TeacherModel, source: Backbone) -> Features:
    """The features as the teacher's head takes them; pooled ones are not pooled a second time."""
    return pooled if model.consumes == "pooled" and pooled else convert(features, model.consumes, source.pool)


@contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """Leaves the generators of training where they are, and autocast and inference mode outside."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.autocast(device.type, enabled=False),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        yield


def _held(of: str, x: Tensor, keep: str) -> Tensor:
    """What a teacher gave, in float32, after rounding to the precision in which it is kept.

    A plain tensor in any case: one of inference mode could not be used in training.
    """
    x = x.clone() if x.is_inference() else x
    if not x.is_floating_point():
        return x
    found = x.half().float() if keep == "float16" else x.float()
    if not bool(found.isfinite().all()):
        wrong = int((~found.flatten(1).isfinite()).any(dim=1).sum())
        if keep == "float16" and bool(x.isfinite().all()):
            raise RefusedError(f"teacher {of} gives values that float16 cannot hold; keep=float32 can")
        raise RefusedError(
            f"teacher {of} gives values that are not finite for {wrong} of {len(x)} examples; nothing can be learned "
            f"from them: look at what it predicts with zoo predict, or take another teacher"
        )
    return found


def _at_tokens(of: str, predictions_BTC: Tensor, theirs_BT: Tensor | None, own_BT: Tensor | None) -> Tensor:
    """Predictions of words, read at the teacher's first tokens and put at the student's; NaN at every other token."""
    if theirs_BT is None or own_BT is None:
        raise RefusedError(
            f"teacher {of} and the student are matched word by word, and one of them tells no words apart"
        )
    num_words = int(max(theirs_BT.max(), own_BT.max())) + 1
    words_BWC = predictions_BTC.new_full((len(predictions_BTC), num_words, predictions_BTC.shape[-1]), torch.nan)
    rows, places = (theirs_BT >= 0).nonzero(as_tuple=True)
    words_BWC[rows, theirs_BT[rows, places]] = predictions_BTC[rows, places]
    index = own_BT.clamp(min=0).unsqueeze(-1).expand(-1, -1, words_BWC.shape[-1])
    return words_BWC.gather(1, index).masked_fill((own_BT < 0).unsqueeze(-1), torch.nan)
