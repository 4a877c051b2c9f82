"""Features of a cut that are made of passes of a longer one are those of its own passes, or are not made so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny  # noqa: F401 -- a fixture
from zoo_core.contracts import Features, Target, as_backbone
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build_backbone
from zoo_core.model.given_features import MASK, inputs_of
from zoo_core.model.truncation import truncated
from zoo_core.plan.resolve import resolve
from zoo_core.testing.recipes import ToyBackbones
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.stages import capture
from zoo_core.training.shorter_cuts import ShorterCut


def toy(until: int | None = None, kind: Literal["tokens", "map"] = "tokens") -> nn.Module:
    backbone = ToyBackbones(kind=kind).build(None, "pretrained").eval()
    return backbone if until is None else truncated(backbone, until)


def pictures(num: int, size: int = 8) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(0))}


@torch.no_grad()
def made(
    cut: ShorterCut, longer: nn.Module, inputs: Mapping[str, Tensor], kind: Literal["tokens", "map"] = "tokens"
) -> Any:
    """What a batch holds in place of its inputs: empty where nothing is made of the pass of the longer one."""
    with capture(longer, [cut.stage]) as states:
        longer(inputs)
    return cut.given(states[cut.stage], inputs, (kind,)).get(kind)


@torch.no_grad()
def equal(found: Any, shorter: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    wanted = inputs_of(shorter(inputs))
    return found.keys() == wanted.keys() and all(torch.equal(found[name], x) for name, x in wanted.items())


@pytest.mark.parametrize("kind", ["tokens", "map"])
@pytest.mark.parametrize("until", [None, 3])
def test_features_are_those_of_a_pass_of_the_cut_to_the_bit(kind: Literal["tokens", "map"], until: int | None) -> None:
    longer, shorter = toy(until, kind), toy(2, kind)
    cut = ShorterCut(shorter, longer)
    for inputs in (pictures(5), pictures(3)):
        assert equal(made(cut, longer, inputs, kind), shorter, inputs)
    assert cut.refusal == ""


def test_texts_of_several_lengths_keep_their_masks(tiny: Callable[[str], str]) -> None:  # noqa: F811
    specs = [tiny("bert"), tiny("bert").replace(")", ",until=2)")]
    target = Target(kind="classes", size=2)
    longer, shorter = (build_backbone(pin_plan(resolve(spec, target=target))) for spec in specs)
    preparation = as_backbone(longer).preparation
    texts = preparation.collate(preparation.prepare(["one", "two words", "a few more words than these"]))
    found = made(ShorterCut(shorter, longer), longer, texts)
    assert MASK in found
    assert equal(found, shorter, texts)


def test_equal_parameters_of_two_cuts_are_in_memory_once() -> None:
    longer, shorter = toy(), toy(1)
    ShorterCut(shorter, longer)
    assert {x.data_ptr() for x in shorter.parameters()} <= {x.data_ptr() for x in longer.parameters()}


def test_a_cut_with_other_weights_is_refused() -> None:
    longer, shorter = toy(), toy(2)
    with torch.no_grad():
        longer.get_parameter("blocks.1.qkv.bias")[0] += 1
    cut = ShorterCut(shorter, longer)
    assert made(cut, longer, pictures(2)) is None
    assert cut.refusal == "blocks.1.qkv.bias is not that of the longer cut"
    assert not torch.equal(shorter.get_parameter("whole.blocks.1.qkv.bias"), longer.get_parameter("blocks.1.qkv.bias"))


def test_a_cut_of_whose_features_one_bit_differs_is_refused() -> None:
    longer, shorter = toy(), toy(2)
    longer.get_submodule("blocks.0").register_forward_hook(lambda module, args, output: output.nextafter(output + 1))
    cut = ShorterCut(shorter, longer)
    assert made(cut, longer, pictures(2)) is None
    assert cut.refusal == "of what leaves stage 2 of a longer cut it makes other features than in its own pass"


def test_of_a_batch_whose_pictures_have_another_size_nothing_is_made() -> None:
    longer, shorter = toy(), toy(2)
    cut = ShorterCut(shorter, longer)
    assert made(cut, longer, pictures(2)) is not None
    assert made(cut, longer, pictures(2, size=16)) is None
    assert made(cut, longer, pictures(2)) is not None


class Counting(ToyBackbone):
    """Looks at its inputs once more behind its stages."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        found = super().forward(inputs)
        if len(found.x) != len(inputs["pixel_values"]):
            raise ValueError("features of other pictures")
        return found


def test_a_cut_that_cannot_be_entered_after_its_stages_is_refused() -> None:
    longer, shorter = Counting().eval(), Counting()
    shorter.load_state_dict(longer.state_dict())
    cut = ShorterCut(truncated(shorter.eval(), 2), longer)
    assert made(cut, longer, pictures(2)) is None
    assert cut.refusal == "it cannot be entered after stage 2: features of other pictures"


class Marking(nn.Module):
    """A stage that leaves in an attribute which tokens are real."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage, self.kept = stage, torch.tensor(False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        norms_BT = x_BTD.norm(dim=-1)
        self.kept = norms_BT >= norms_BT.median(1, keepdim=True).values
        found: Tensor = self.stage(x_BTD)
        return found


class Leaving(ToyBackbone):
    """Reads behind its stages what the first of them has left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.blocks[0] = Marking(self.blocks[0])

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="tokens", x=super().forward(inputs).x, mask=self.first.kept)


def test_a_cut_that_reads_what_a_skipped_stage_leaves_behind_is_refused() -> None:
    longer, shorter = Leaving().eval(), Leaving().eval()
    shorter.load_state_dict(longer.state_dict())
    cut = ShorterCut(truncated(shorter, 2), longer)
    assert made(cut, longer, {"pixel_values": pictures(4)["pixel_values"][2:]}) is None  # not the dummies again
    assert cut.refusal == "of what leaves stage 2 of a longer cut it makes other features than in its own pass"


def test_of_a_pass_that_ends_before_the_last_stage_of_a_cut_nothing_is_made() -> None:
    cut = ShorterCut(toy(2), toy())
    assert cut.given(None, pictures(2), ("tokens",)) == {}
    assert cut.refusal == "a pass of a longer cut ends before stage 2"


def test_what_fails_in_a_shorter_cut_does_not_stop_the_pass_of_the_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    longer, shorter = toy(), toy(2)
    cut = ShorterCut(shorter, longer)
    state, inputs = torch.zeros(2, 16, 12), pictures(2)
    with torch.no_grad(), capture(longer, [1]) as states:
        longer(inputs)
        assert cut.given(states[1], inputs, ("pooled", "tokens")).keys() == {"pooled", "tokens"}
        monkeypatch.setattr(shorter, "pool", lambda features: state[100])
        assert cut.given(states[1], inputs, ("pooled",)) == {}
    assert (cut.refusal or "").startswith("it cannot be entered after stage 2: index 100")
