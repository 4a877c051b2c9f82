"""What adapters put among the tokens and the keys of each model type: learned tokens by `extend`, and prefixes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo_core
from zoo_core.contracts import as_backbone
from zoo_core.errors import RefusedError
from zoo_core.toolkit.stages import boundary, stage_modules
from zoo_transformers.backbones import Transformers
from zoo_transformers.families import FAMILIES

Tiny = Callable[[str], Path]
TAKES = sorted(name for name, family in FAMILIES.items() if family.prompts is not None)
REFUSES = sorted(FAMILIES.keys() - set(TAKES))
FUSED = sorted(name for name, family in FAMILIES.items() if family.fused)
TEXTS = sorted(name for name, family in FAMILIES.items() if family.modality == "text")
SENTENCES = ["the cat sat on the mat", "no one", "a film that is neither long nor short, but warm"]
LENGTH = 3


class Learned(nn.Module):
    """Learned tokens float [LENGTH, D], large enough to be noticed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(LENGTH, dim, generator=torch.Generator().manual_seed(5)))

    def forward(self) -> Tensor:
        return self.tokens


def built(folder: Path) -> Any:
    return as_backbone(Transformers(files=str(folder)).build(folder, "pretrained"))


def prepared(backbone: Any, num: int = 3) -> dict[str, Tensor]:
    """Inputs of examples that differ in length or content."""
    generator = np.random.default_rng(0)
    raw: list[Any] = SENTENCES
    if backbone.modality == "image":
        raw = [torch.from_numpy(generator.integers(0, 256, (3, 20, 30)).astype("uint8")) for _ in range(3)]
    elif backbone.modality == "audio":
        raw = [
            {"array": generator.standard_normal(length).astype("float32") / 10, "sampling_rate": 16000}
            for length in (1600, 900, 1100)
        ]
    inputs: dict[str, Tensor] = backbone.preparation.normalise(
        backbone.preparation.collate(backbone.preparation.prepare(raw[:num]))
    )
    return inputs


def extended(folder: Path) -> tuple[Any, Any, Learned]:
    """The backbone of a folder without learned tokens and with them, and these."""
    bare, backbone = built(folder), built(folder)
    prompt = Learned(backbone.features.dim)
    backbone.add_module("prompt", prompt)
    start = backbone.extend(prompt, LENGTH)
    assert start == FAMILIES[backbone.model.config.model_type].prompts.start  # type: ignore[union-attr]
    return bare, backbone, prompt


def entering(backbone: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    return [boundary(backbone, inputs, stage) for stage in range(len(backbone.stages))]


@pytest.mark.parametrize("model_type", TAKES)
def test_learned_tokens_stand_among_those_that_enter_each_stage(model_type: str, tiny: Tiny) -> None:
    bare, backbone, prompt = extended(tiny(model_type))
    inputs = prepared(backbone)
    with torch.no_grad():
        before, after = entering(bare, inputs), entering(backbone, inputs)
    start = backbone._prompts.start
    for one, other in zip(before, after, strict=True):
        assert other.shape[1] == one.shape[1] + LENGTH
    assert torch.equal(after[0][:, start : start + LENGTH], prompt.tokens.expand(3, -1, -1))
    own = torch.cat([after[0][:, :start], after[0][:, start + LENGTH :]], dim=1)
    assert torch.equal(own, before[0]), "the model's own tokens keep their positions"


@pytest.mark.parametrize("model_type", TAKES)
def test_features_come_without_them_and_every_real_token_sees_every_one(model_type: str, tiny: Tiny) -> None:
    bare, backbone, prompt = extended(tiny(model_type))
    inputs = prepared(backbone)
    with torch.no_grad():
        before, after = bare(inputs), backbone(inputs)
    assert after.x.shape == before.x.shape
    assert (after.mask is None) == (before.mask is None)
    assert after.mask is None or torch.equal(after.mask, before.mask)
    assert backbone.pool(after).shape == bare.pool(before).shape
    for slot in range(LENGTH):
        with torch.no_grad():
            prompt.tokens[slot] *= -1
            moved = (backbone(inputs).x - after.x).abs().amax(dim=-1)
            prompt.tokens[slot] *= -1
        assert (moved > 0).all(), "also where the input is padding"


@pytest.mark.parametrize("model_type", [name for name in TEXTS if name in TAKES])
def test_padding_beside_learned_tokens_does_not_matter(model_type: str, tiny: Tiny) -> None:
    _, backbone, _ = extended(tiny(model_type))
    inputs = prepared(backbone)
    with torch.no_grad():
        together = backbone(inputs)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            alone = backbone({name: x[row : row + 1, mask] for name, x in inputs.items()})
            # float32: masked sums run over more zeros
            torch.testing.assert_close(together.x[row : row + 1, mask], alone.x, rtol=1e-4, atol=1e-4)


def test_bert_equals_a_forward_pass_written_by_hand(tiny: Tiny) -> None:
    bare, backbone, prompt = extended(tiny("bert"))
    inputs, model = prepared(backbone), bare.model
    with torch.no_grad():
        x = torch.cat([prompt.tokens.expand(3, -1, -1), model.embeddings(inputs["input_ids"])], dim=1)
        mask = torch.cat([torch.ones(3, LENGTH, dtype=torch.long), inputs["attention_mask"]], dim=1).bool()
        for layer in model.encoder.layer:
            x = layer(x, mask[:, None, None])
        real = inputs["attention_mask"].bool()
        found = backbone(inputs).x
        torch.testing.assert_close(found[real], x[:, LENGTH:][real], rtol=1e-5, atol=1e-5)  # float32


def test_vit_equals_a_forward_pass_written_by_hand(tiny: Tiny) -> None:
    bare, backbone, prompt = extended(tiny("vit"))
    inputs, model = prepared(backbone), bare.model
    with torch.no_grad():
        x = model.embeddings(inputs["pixel_values"])
        x = torch.cat([x[:, :1], prompt.tokens.expand(3, -1, -1), x[:, 1:]], dim=1)
        for layer in model.layers:
            x = layer(x)
        x = model.layernorm(torch.cat([x[:, :1], x[:, 1 + LENGTH :]], dim=1))
        torch.testing.assert_close(backbone(inputs).x, x, rtol=1e-5, atol=1e-5)  # float32


@pytest.mark.parametrize("model_type", TAKES)
def test_a_copy_has_learned_tokens_of_its_own(model_type: str, tiny: Tiny) -> None:
    _, backbone, _ = extended(tiny(model_type))
    inputs = prepared(backbone)
    with torch.no_grad():
        whole = backbone(inputs).x
        twin = copy.deepcopy(backbone)
        twin.prompt.tokens.mul_(-1)
        assert torch.equal(backbone(inputs).x, whole)
        assert not torch.equal(twin(inputs).x, whole)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "vit"])
def test_half_precision_weights_take_learned_tokens(model_type: str, tiny: Tiny) -> None:
    folder = tiny(model_type)
    backbone: Any = as_backbone(Transformers(files=str(folder), dtype="bfloat16").build(folder, "pretrained"))
    backbone.extend(Learned(backbone.features.dim), LENGTH)
    with torch.no_grad():
        found = backbone(prepared(backbone)).x
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


def test_a_second_prompt_stands_behind_the_first(tiny: Tiny) -> None:
    _, backbone, first = extended(tiny("bert"))
    second = Learned(backbone.features.dim)
    assert backbone.extend(second, LENGTH) == LENGTH
    with torch.no_grad():
        second.tokens.mul_(2)
        found = boundary(backbone, prepared(backbone), 0)
    assert torch.equal(found[0, : 2 * LENGTH], torch.cat([first.tokens, second.tokens]))


@pytest.mark.parametrize("model_type", REFUSES)
def test_a_family_without_room_for_them_says_why(model_type: str, tiny: Tiny) -> None:
    backbone = built(tiny(model_type))
    with pytest.raises(RefusedError, match="not every token would see the learned ones"):
        backbone.extend(Learned(backbone.features.dim), LENGTH)


def test_local_attention_by_configuration_is_refused_too(tiny: Tiny) -> None:
    backbone = built(tiny("qwen2"))
    backbone.model.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(RefusedError, match="qwen2 attends within windows or near each token"):
        backbone.extend(Learned(backbone.features.dim), LENGTH)


# -- the adapters that use it, and prefixes ---------------------------------------------------------------------------


def adapted(folder: Path, adapter: str) -> Any:
    pytest.importorskip("zoo_adapters")
    return zoo_core.load(f'hf(files="{folder}")+{adapter}', num_classes=3).eval()


@pytest.mark.parametrize("model_type", FUSED)
def test_a_prefix_is_seen_by_every_token_of_every_fused_family(model_type: str, tiny: Tiny) -> None:
    bare, learner = adapted(tiny(model_type), "probe"), adapted(tiny(model_type), "prefix(length=3)")
    inputs = prepared(learner.source)
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.mul_(50)  # keys and values of norm 1, as the others have
        before, after = bare(inputs).features, learner(inputs).features
    moved = (after.x - before.x).abs().amax(dim=-1)
    real = torch.ones_like(moved, dtype=torch.bool) if before.mask is None else before.mask
    assert (moved[real] > 0).all()
    learner(inputs).features.x.square().sum().backward()
    for name, parameter in learner.added().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().amax(dim=(0, 2)).min() > 0, f"a slot of {name} is not seen"


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "qwen3", "t5", "vit", "wav2vec2"])
def test_a_gated_prefix_changes_nothing_at_the_start(model_type: str, tiny: Tiny) -> None:
    bare, learner = adapted(tiny(model_type), "probe"), adapted(tiny(model_type), "prefix(length=3,form=gated)")
    inputs = prepared(learner.source)
    with torch.no_grad():
        assert torch.equal(bare(inputs).features.x, learner(inputs).features.x)
        for name, parameter in learner.added().items():
            if name.endswith("gate"):
                parameter.fill_(1)
        assert not torch.equal(bare(inputs).features.x, learner(inputs).features.x)


@pytest.mark.parametrize(
    ("model_type", "form"),
    [
        *((name, "flat") for name in TEXTS if name in FUSED),
        *((name, form) for name in ("bert", "gpt2", "qwen3") for form in ("gated", "mlp")),
    ],
)
def test_padding_beside_a_prefix_does_not_matter(model_type: str, form: str, tiny: Tiny) -> None:
    learner = adapted(tiny(model_type), f"prefix(length=3,form={form})")
    inputs = prepared(learner.source)
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.add_(0.1)
        together = learner(inputs).features.x
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            alone = learner({name: x[row : row + 1, mask] for name, x in inputs.items()}).features.x
            # float32: masked sums run over more zeros
            torch.testing.assert_close(together[row : row + 1, mask], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ["prefix(length=3)", "prefix(length=3,form=gated)", "prompt(length=3,deep=true)"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "qwen3"])
def test_a_causal_model_stays_causal(model_type: str, adapter: str, tiny: Tiny) -> None:
    learner = adapted(tiny(model_type), adapter)
    inputs = prepared(learner.source, 1)
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.add_(0.1)
        before = learner(inputs).features.x
        other = inputs["input_ids"].clone()
        other[:, 4] += 1
        after = learner(inputs | {"input_ids": other}).features.x
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - set(FUSED)))
def test_a_prefix_where_attention_is_not_fused_is_refused_with_the_reason(model_type: str, tiny: Tiny) -> None:
    with pytest.raises(RefusedError, match=r"fused attention .* 0 times in a pass|works on attn.k and attn.v"):
        adapted(tiny(model_type), "prefix")


@pytest.mark.parametrize("model_type", TAKES)
def test_prompts_train_on_every_family_that_takes_them(model_type: str, tiny: Tiny) -> None:
    learner = adapted(tiny(model_type), "prompt(length=4,deep=true)")
    dim, num_stages = learner.source.features.dim, len(learner.source.stages)
    assert sum(x.numel() for x in learner.added().values()) == num_stages * 4 * dim
    inputs = prepared(learner.source)
    learner.train()
    learner(inputs).features.x.square().sum().backward()
    for name, parameter in learner.added().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().amax(dim=-1).min() > 0, f"a token of {name} is not seen"


@pytest.mark.parametrize("model_type", [name for name in TEXTS if name in TAKES])
def test_prompts_of_texts_start_as_random_words_do(model_type: str, tiny: Tiny) -> None:
    learner = adapted(tiny(model_type), "prompt(length=4,deep=true)")
    bare = adapted(tiny(model_type), "probe").backbone
    site = bare.sites("embed")[0]
    num_words = len(bare.get_submodule(site.path).weight)
    ids = torch.arange(num_words).unsqueeze(1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        for state, tokens in zip(entering(bare, inputs), learner.added().values(), strict=True):
            far = torch.cdist(tokens, state[:, 0], compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
            assert (far < 1e-4 * tokens.norm(dim=1)).all()  # float32, of batches of other sizes


def test_deep_prompts_take_the_place_of_what_a_stage_made_of_them(tiny: Tiny) -> None:
    learner = adapted(tiny("bert"), "prompt(length=4,deep=true)")
    with torch.no_grad():
        learner(prepared(learner.source))
        seen = entering(learner.backbone, prepared(learner.source))
    for state, tokens in zip(seen, learner.added().values(), strict=True):
        assert torch.equal(state[:, :4], tokens.expand(3, -1, -1))
    assert len(stage_modules(learner.backbone)) == len(seen)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # the name in all of version 5
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("adapter", ["prefix(length=3)", "prompt(length=3,deep=true,dropout=0.0)"])
def test_checkpointed_stages_have_the_same_gradients(model_type: str, adapter: str, tiny: Tiny) -> None:
    learner = adapted(tiny(model_type), f"full+{adapter}")
    inputs = prepared(learner.source)
    grads: list[dict[str, Tensor]] = []
    for enabled in (False, True):
        for module in learner.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if enabled:
            learner.backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        learner.train()
        learner.zero_grad(set_to_none=True)
        learner(inputs).predictions.square().sum().backward()
        grads.append({name: x.grad for name, x in learner.added().items() if x.grad is not None})
    assert grads[0].keys() == learner.added().keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-6)  # float32


@pytest.mark.slow  # the compiler's import alone takes seconds
@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "vit"])
@pytest.mark.parametrize("adapter", ["prefix(length=3)", "prompt(length=3,deep=true)"])
def test_an_extended_model_may_be_compiled_as_one_graph(model_type: str, adapter: str, tiny: Tiny) -> None:
    learner = adapted(tiny(model_type), adapter)
    inputs = prepared(learner.source)
    torch.compiler.reset()
    compiled: Callable[..., Any] = torch.compile(learner, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        # float32, decomposed kernels
        torch.testing.assert_close(compiled(inputs).predictions, learner(inputs).predictions, rtol=1e-4, atol=1e-4)
