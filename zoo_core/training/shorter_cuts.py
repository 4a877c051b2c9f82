"""The features of a cut of a backbone, made of the hidden state in which a pass of a longer cut leaves its last stage.

Nothing is taken on trust: the weights of both are compared, and the first batch is passed by both. If that gives other
features in a single bit, the shorter cut is passed on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from zoo_core.contracts import Features, as_backbone
from zoo_core.model.given_features import What, inputs_as, inputs_of
from zoo_core.model.truncation import Truncated
from zoo_core.toolkit.stages import dummy_inputs, resumed
from zoo_core.training.entering_states import differ_in_size

__all__ = ["ShorterCut"]


class ShorterCut:
    """A backbone that ends at an earlier stage than another one, which is the same up to there.

    refusal: why its features are not made of passes of the longer one; None as long as that has not been tried, and
    empty if they are.
    """

    def __init__(self, backbone: nn.Module, longer: nn.Module) -> None:
        """Parameters that are equal are in memory once from now on. Both are on the device of the passes."""
        self.backbone = backbone
        self.refusal: str | None = _lent(longer, backbone) or None

    @property
    def stage(self) -> int:
        """The last one, from 0, whose state `given` wants."""
        return len(as_backbone(self.backbone).stages) - 1

    def given(
        self, state: Tensor | None, inputs: Mapping[str, Tensor], whats: Iterable[What]
    ) -> dict[What, dict[str, Tensor]]:
        """The features of a batch, of each kind among these; none if the cut is to be passed on its own.

        state: what left the stage in a pass of the longer cut over these inputs, which goes on whatever happens here;
        None if that pass did not come to the stage.
        """
        if state is None:
            self.refusal = self.refusal or f"a pass of a longer cut ends before stage {self.stage + 1}"
            return {}
        try:
            dummy = dummy_inputs(self.backbone.eval(), 1)
            if self.refusal is None:
                self.refusal = self._tried(state, inputs, dummy)
            if self.refusal or differ_in_size(inputs, dummy):
                return {}
            return inputs_as(self._made(state, inputs, dummy), whats, as_backbone(self.backbone).pool)
        except Exception as error:  # noqa: BLE001, whatever a backbone raises when its stages are skipped
            said = str(error).strip().partition("\n")[0][:200]
            self.refusal = f"it cannot be entered after stage {self.stage + 1}: {said}"
            return {}

    def _made(self, state: Tensor, inputs: Mapping[str, Tensor], dummy: Mapping[str, Tensor]) -> Features:
        whole = {name: x for name, x in inputs.items() if not x.is_floating_point()}
        return resumed(self.backbone, {**dummy, **whole}, self.stage + 1, state)

    def _tried(self, state: Tensor, inputs: Mapping[str, Tensor], dummy: Mapping[str, Tensor]) -> str:
        """Why the features of a batch cannot be made of a state; empty if they are those of a pass of the cut."""
        if differ_in_size(inputs, dummy):
            return "its examples differ in size"
        found = inputs_of(self._made(state, inputs, dummy))  # first, so that it finds nothing that a pass has left
        wanted = inputs_of(self.backbone(inputs))
        if found.keys() == wanted.keys() and all(torch.equal(x, wanted[name]) for name, x in found.items()):
            return ""
        return f"of what leaves stage {self.stage + 1} of a longer cut it makes other features than in its own pass"


def _lent(longer: nn.Module, shorter: nn.Module) -> str:
    """Gives a cut the memory of the equal parameters of a longer one; says what differs, empty if nothing does."""
    lent, differs = _tensors(longer), ""
    for name, x in _tensors(shorter).items():
        if name not in lent or not torch.equal(x, lent[name]):
            differs = differs or f"{name} is not that of the longer cut"
        elif isinstance(x, nn.Parameter):
            x.data = lent[name].data
    return differs


def _tensors(backbone: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names that they have in the backbone before it is cut."""
    whole = backbone.whole if isinstance(backbone, Truncated) else backbone
    return dict([*whole.named_parameters(), *whole.named_buffers()])
