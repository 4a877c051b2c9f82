"""bottleneck: each preset against a block written by hand, an exact no-op, its counts, and where it does not stand."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import zoo_core
from zoo_adapters.bottleneck import Bottleneck
from zoo_adapters.bottleneck_modules import AfterLayer, AfterStage, after_layers, after_stages, beside_mlps
from zoo_adapters.bottleneck_shape import Shape
from zoo_core.contracts import Batch, Features, FeatureSpec, Modality, Site, as_backbone
from zoo_core.errors import LawError, RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.toolkit.preparations import TablePreparation

PRESETS = ("pfeiffer", "houlsby", "parallel", "adapter-plus")
EXACT = 1e-12  # float64, sums of a few hundred terms of order one in another order
WIDTH, BLOCKS = 96, 4  # of starter/vit-nano
SHAPE = Shape(r=3, scale=1.0, act="gelu", init="houlsby", dropout=0.0, drop_path=0.0)


def loaded(adapters: str, backbone: str = "starter/vit-nano", *, seed: int = 0) -> Learner:
    return zoo_core.load(f"{backbone}+{adapters}", num_classes=3, seed=seed)


def inputs_of(learner: Learner, num: int = 4, *, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of the kind that the backbone reads; all but one of a text's tokens are real."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(learner.source.preparation.dummy(num))
    for name, x in found.items():
        if x.is_floating_point():
            found[name] = torch.randn(x.shape, generator=generator)
        elif name == "input_ids":
            found[name] = torch.randint(5, 60, x.shape, generator=generator)
    return found


def batch_of(learner: Learner, num: int = 6, *, seed: int = 0) -> Batch:
    inputs = inputs_of(learner, num, seed=seed)
    return Batch(inputs=inputs, target=torch.arange(num) % 3, ids=tuple(map(str, range(num))))


def stirred(learner: Learner) -> Learner:
    """In float64, with values of order one tenth in all that was added, so that every term of a formula counts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return learner.double()


def num_added(learner: Learner) -> int:
    return sum(parameter.numel() for parameter in learner.added().values())


def close(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def by_hand(module: nn.Module, h: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """Up act(Down h) from the tensors alone."""
    state = dict(module.named_parameters())
    hidden = act(h @ state["layers.down.weight"].T + state["layers.down.bias"])
    return hidden @ state["layers.up.weight"].T + state["layers.up.bias"]


gelu, relu = nn.functional.gelu, nn.functional.relu


# -- against blocks written by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_pre_norm_block_is_the_one_written_by_hand(preset: str) -> None:
    learner = stirred(loaded(f"bottleneck(preset={preset},r=5,scale=0.7)"))
    stage = learner.backbone.get_submodule("network.blocks.1")
    x = torch.randn(2, 16, WIDTH, dtype=torch.float64)
    part = {name: stage.get_submodule(name) for name in ("norm1", "attn", "norm2", "mlp.fc1", "mlp.fc2")}
    plain = copy.deepcopy(stage)
    for name, module in plain.named_modules():
        if not name.endswith("bottleneck"):
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
    change = plain.get_submodule({"adapter-plus": "bottleneck"}.get(preset, "mlp.fc2.bottleneck"))

    attended = plain.get_submodule("attn")(part["norm1"](x))
    if preset == "houlsby":
        attended = attended + 0.7 * by_hand(plain.get_submodule("attn.proj.bottleneck"), attended, gelu)
    middle = x + attended
    entered = part["norm2"](middle)
    out = plain.get_submodule("mlp")(entered)
    if preset in ("pfeiffer", "houlsby"):
        out = out + 0.7 * by_hand(change, out, gelu)
    if preset == "parallel":
        out = out + 0.7 * by_hand(change, entered, relu)
    expected = middle + out
    if preset == "adapter-plus":
        assert isinstance(change, AfterStage)
        expected = expected + change.scale * by_hand(change, expected, gelu)
    close(stage(x), expected)
    assert not torch.allclose(expected, plain(x))  # without the hooks it is another block


BERT = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of a small random BERT in a folder laid out like a repository."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("zoo_transformers")
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**BERT, max_position_embeddings=40)).save_pretrained(folder)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "b"])}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 12}))
    return f'hf(files="{folder}")'


@pytest.mark.parametrize("preset", PRESETS)
def test_a_post_norm_block_is_the_one_written_by_hand(tiny_bert: str, preset: str) -> None:
    """BERT adds and then norms: what is inserted stands before the sum, and reads what the norm before it gave."""
    learner = stirred(loaded(f"bottleneck(preset={preset},r=5)", tiny_bert))
    layer = learner.backbone.get_submodule("model.encoder.layer.0")
    path = {"adapter-plus": "bottleneck"}.get(preset, "output.dense.bottleneck")
    change, x = layer.get_submodule(path), torch.randn(2, 7, 16, dtype=torch.float64)
    base = loaded("probe", tiny_bert).double().backbone.get_submodule("model.encoder.layer.0")
    part = dict(base.named_modules())

    context = part["attention.self"](x)[0]
    attended = part["attention.output.dense"](context)
    if preset == "houlsby":
        attended = attended + by_hand(layer.get_submodule("attention.output.dense.bottleneck"), attended, gelu)
    middle = part["attention.output.LayerNorm"](attended + x)
    out = part["output.dense"](gelu(part["intermediate.dense"](middle)))
    if preset in ("pfeiffer", "houlsby"):
        out = out + by_hand(change, out, gelu)
    if preset == "parallel":
        out = out + 0.1 * by_hand(change, middle, relu)
    expected = part["output.LayerNorm"](out + middle)
    if preset == "adapter-plus":
        assert isinstance(change, AfterStage)
        expected = expected + change.scale * by_hand(change, expected, gelu)
    found = layer(x)
    close(found[0] if isinstance(found, tuple) else found, expected)


def test_without_an_activation_and_with_all_of_the_width_it_is_any_linear_layer() -> None:
    """h + (W - 1) h + b = W h + b, with Down the identity."""
    learner = loaded(f"bottleneck(act=identity,r={WIDTH})").double()
    linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    layer = learner.backbone.get_submodule("network.blocks.0.mlp.fc2")
    change = layer.get_submodule("bottleneck")
    identity = torch.eye(WIDTH, dtype=torch.float64)
    with torch.no_grad():
        change.get_parameter("layers.down.weight").copy_(identity)
        change.get_parameter("layers.up.weight").copy_(linear.weight - identity)
        change.get_parameter("layers.up.bias").copy_(linear.bias)
    x = torch.randn(3, 3 * WIDTH, dtype=torch.float64)
    close(layer(x), linear(nn.functional.linear(x, layer.weight, layer.bias)))  # type: ignore[arg-type]


# -- nothing at the start -----------------------------------------------------------------------------------------

TIMM: Mapping[str, dict[str, Any]] = {  # small versions, channels last inside or throughout
    "convnext_tiny": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2]}
    | {"num_heads": [1, 2], "window_size": 4},
    "beit_base_patch16_224": {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2},
}


@pytest.fixture
def backbone_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """The spec of a backbone, random where it is not the starter's: small ones are made in a folder."""

    def spec(name: str) -> str:
        if name == "bert":
            return str(request.getfixturevalue("tiny_bert"))
        if name not in TIMM:
            return name
        pytest.importorskip("zoo_timm")
        described = {"architecture": name, "model_args": TIMM[name], "pretrained_cfg": {"input_size": [3, 32, 32]}}
        (tmp_path / "config.json").write_text(json.dumps(described))
        return f'timm(files="{tmp_path}",weights=random)'

    return spec


PLACES = [  # every preset that the kind of network has room for
    *(("starter/vit-nano", preset) for preset in PRESETS),
    *(("starter/mlp-nano(weights=random)", preset) for preset in ("pfeiffer", "parallel", "adapter-plus")),
    *(("bert", preset) for preset in PRESETS),
    *(("convnext_tiny", preset) for preset in ("pfeiffer", "parallel")),
    *(("swin_tiny_patch4_window7_224", preset) for preset in PRESETS),
    *(("beit_base_patch16_224", preset) for preset in PRESETS),
]


@pytest.mark.parametrize(("backbone", "preset"), PLACES)
def test_it_changes_nothing_at_the_start_and_something_once_up_is_not_zero(
    backbone_of: Callable[[str], str], backbone: str, preset: str
) -> None:
    spec = backbone_of(backbone)
    base, learner = loaded("probe", spec), loaded(f"bottleneck(preset={preset},r=8)", spec)
    inputs = inputs_of(base, 2)
    with torch.no_grad():
        expected = base(inputs)
        assert torch.equal(learner(inputs).features.x, expected.features.x)
        for name, parameter in learner.added().items():
            if name.endswith("up.bias"):
                parameter.copy_(torch.randn(parameter.shape))
        assert not torch.allclose(learner(inputs).features.x, expected.features.x)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_scale_of_zero_is_the_base_whatever_the_layers_hold(preset: str) -> None:
    base, learner = loaded("probe"), loaded(f"bottleneck(preset={preset},scale=0,init=houlsby)")
    inputs = inputs_of(base)
    with torch.no_grad():
        assert torch.equal(learner(inputs).features.x, base(inputs).features.x)


def test_the_papers_start_is_small_and_not_nothing() -> None:
    learner, base = loaded("bottleneck(init=houlsby)"), loaded("probe")
    weights = torch.cat([value.detach().flatten() for name, value in learner.added().items() if "weight" in name])
    assert float(weights.abs().max()) <= 0.02
    assert float(weights.std()) == pytest.approx(0.0088, rel=0.05)  # of a normal that is cut at two deviations
    assert not any(value.any() for name, value in learner.added().items() if "bias" in name)
    inputs = inputs_of(base)
    with torch.no_grad():
        change = (learner(inputs).features.x - base(inputs).features.x).abs().max()
    assert 0 < float(change) < 0.05
    assert Bottleneck().exact_at_start
    assert not Bottleneck(init="houlsby").exact_at_start


def test_one_seed_gives_one_start_and_another_seed_another() -> None:
    one, same, other = (loaded("bottleneck", seed=seed).added() for seed in (0, 0, 1))
    down = next(name for name in one if name.endswith("down.weight"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[down], other[down])


# -- how many -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "r", "count"),
    [("pfeiffer", 8, 156_768), ("houlsby", 8, 313_536), ("parallel", 64, 1_189_632), ("adapter-plus", 8, 165_984)],
)
def test_vit_b_16_has_the_published_counts(preset: str, r: int, count: int) -> None:
    """2 C r + r + C at each place, 12 or 24 of them, and C more for the scales of adapter-plus. On the meta device."""
    pytest.importorskip("zoo_timm")
    plan = zoo_core.resolve("timm/vit_base_patch16_224(weights=random)+probe", task="digits")
    with torch.device("meta"):
        backbone = plan.backbone.recipe.build(None, "random")
        before = sum(parameter.numel() for parameter in backbone.parameters())
        shape = Shape(r=r, scale=1.0, act="gelu", init="zero", dropout=0.0, drop_path=0.0)
        if preset == "parallel":
            beside_mlps(backbone, shape)
        elif preset == "adapter-plus":
            after_stages(backbone, shape)
        else:
            after_layers(backbone, Bottleneck(preset=preset).needs, shape)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in backbone.parameters()) - before == count
    places = 24 if preset == "houlsby" else 12
    assert count == places * (2 * 768 * r + r + 768 + 768 * (preset == "adapter-plus"))


def test_a_preset_decides_what_is_not_said() -> None:
    """The width r, the scale, the activation, and what is dropped while training."""
    found = {preset: loaded(f"bottleneck(preset={preset})").backbone for preset in PRESETS}
    widths = {preset: num_added(loaded(f"bottleneck(preset={preset})")) // BLOCKS for preset in PRESETS}
    per_place = {r: 2 * WIDTH * r + r + WIDTH for r in (8, 64)}
    assert widths == {
        "pfeiffer": per_place[8],
        "houlsby": 2 * per_place[8],
        "parallel": per_place[64],
        "adapter-plus": per_place[8] + WIDTH,
    }
    acts = {
        preset: next(m for n, m in net.named_modules() if n.endswith("layers.act")) for preset, net in found.items()
    }
    assert {preset: type(act).__name__ for preset, act in acts.items()} == {
        **dict.fromkeys(PRESETS, "GELU"),
        "parallel": "ReLU",
    }
    changes = {preset: changes_of(net) for preset, net in found.items()}
    assert [float(each.scale) for each in changes["parallel"]] == [0.1] * BLOCKS
    assert [float(each.scale) for each in changes["houlsby"]] == [1.0] * 2 * BLOCKS
    assert all(torch.equal(each.scale, torch.ones(WIDTH)) for each in changes["adapter-plus"])
    dropped = {
        preset: [m.p for m in net.modules() if isinstance(m, nn.Dropout) and m.p] for preset, net in found.items()
    }
    assert dropped == {preset: [0.1] * BLOCKS if preset == "parallel" else [] for preset in PRESETS}
    assert {each.drop_path for each in changes["adapter-plus"]} == {0.1}


def changes_of(network: nn.Module) -> list[Any]:
    return [module for name, module in network.named_modules() if name.endswith("bottleneck")]


# -- training -----------------------------------------------------------------------------------------------------


def train_steps(learner: Learner, num: int = 5) -> None:
    optimiser = torch.optim.AdamW(learner.parameter_groups(1e-2, weight_decay=0.1))
    learner.train()
    for step in range(num):
        batch = batch_of(learner, seed=step)
        optimiser.zero_grad()
        learner.loss(learner(batch.inputs), batch).backward()
        optimiser.step()
    learner.eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_all_that_is_added_trains_and_nothing_else_of_the_backbone_moves(preset: str) -> None:
    learner = loaded(
        f"bottleneck(preset={preset},drop_path=0)" if preset == PRESETS[3] else f"bottleneck(preset={preset})"
    )
    added = learner.added()
    before = {name: tensor.detach().clone() for name, tensor in learner.state_dict(keep_vars=True).items()}
    assert {name for name, _ in learner.trainable()} == set(added) | {"heads.main.out.weight", "heads.main.out.bias"}
    train_steps(learner)
    moved = {name for name, tensor in learner.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, _ in learner.trainable()}
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in added.values())


def test_it_trains_in_training_mode_inside_a_backbone_that_does_not() -> None:
    learner = loaded("bottleneck(preset=parallel,dropout=0.5,r=8)", "starter/vit-nano(dropout=0.3)").train()
    modes = {name: module.training for name, module in learner.backbone.named_modules()}
    assert modes["network.blocks.0.mlp.fc2.bottleneck.layers.dropout"]
    assert not modes["network.blocks.0.mlp.drop1"]
    stirred(learner)
    inputs = {name: x.double() for name, x in inputs_of(learner).items()}
    assert not torch.equal(learner(inputs).features.x, learner(inputs).features.x)
    learner.eval()
    assert torch.equal(learner(inputs).features.x, learner(inputs).features.x)


def test_drop_path_leaves_out_whole_examples_and_keeps_the_mean() -> None:
    layers = nn.Linear(1, 1)
    nn.init.zeros_(layers.weight)
    nn.init.ones_(layers.bias)
    change = AfterStage(layers, torch.ones(1), 0.25)
    found = change.train()(torch.zeros(20_000, 3, 1)).detach()
    assert (found == found[:, :1]).all()  # an example is kept with all its tokens
    assert set(found.flatten().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert float(found.mean()) == pytest.approx(1, abs=0.02)  # five deviations of 20,000 such draws
    assert (change.eval()(torch.zeros(8, 3, 1)) == 1).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_second_pass_for_the_gradient_gives_the_same_gradient(preset: str) -> None:
    """Gradient checkpointing of each stage, as libraries do it: around the call, so that its hooks run twice."""
    plain = loaded(f"bottleneck(preset={preset},init=houlsby,dropout=0)")
    wrapped = copy.deepcopy(plain)
    for index in range(BLOCKS):
        stage = wrapped.backbone.get_submodule(f"network.blocks.{index}")
        call = type(stage).__call__
        stage.__class__ = type(
            "Checkpointed",
            (type(stage),),
            {"__call__": lambda self, x, call=call: checkpoint(lambda x: call(self, x), x, use_reentrant=False)},
        )
    batch = batch_of(plain)
    for learner in (plain, wrapped):
        learner.loss(learner(batch.inputs), batch).backward()
    expected = {name: parameter.grad for name, parameter in plain.trainable()}
    for name, parameter in wrapped.trainable():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected[name]), name  # type: ignore[arg-type]


# -- kept, copied, compiled ---------------------------------------------------------------------------------------

LOAD = """
import json, sys, torch, zoo_core
pixels = torch.linspace(-2, 2, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32)
with torch.inference_mode():
    for path in sys.argv[1:]:
        print(json.dumps(zoo_core.load_run(path)({"pixel_values": pixels}).predictions.tolist()))
"""


@pytest.mark.slow
def test_a_trained_one_saved_and_loaded_in_a_new_process_predicts_bit_equally(tmp_path: Path) -> None:
    pixels, expected, folders = torch.linspace(-2, 2, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32), [], []
    for preset in ("parallel", "adapter-plus"):
        folders.append(str(tmp_path / preset))
        learner = loaded(f"bottleneck(preset={preset})")
        train_steps(learner, 2)
        zoo_core.save(learner, folders[-1])
        assert all(".bottleneck." in name or name.startswith("heads.") for name in learner.delta())
        with torch.inference_mode():
            expected.append(json.dumps(learner({"pixel_values": pixels}).predictions.tolist()))
    done = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_a_deep_copy_has_layers_of_its_own(preset: str) -> None:
    learner = loaded(f"bottleneck(preset={preset},init=houlsby)")
    inputs = inputs_of(learner)
    with torch.no_grad():
        expected = learner(inputs).features.x
        copied = copy.deepcopy(learner)
        assert torch.equal(copied(inputs).features.x, expected)
        for parameter in copied.added().values():
            parameter.fill_(0.1)
        assert not torch.allclose(copied(inputs).features.x, expected)
        assert torch.equal(learner(inputs).features.x, expected)


@pytest.mark.parametrize("preset", ["houlsby", "parallel", "adapter-plus"])  # pfeiffer is half of houlsby
@pytest.mark.slow
def test_compiled_it_is_one_graph_and_gives_the_same(preset: str) -> None:
    learner = loaded(f"bottleneck(preset={preset},init=houlsby)")
    inputs = inputs_of(learner)
    torch.compiler.reset()
    with torch.no_grad():
        expected = learner(inputs).predictions
        compiled = torch.compile(learner, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(inputs).predictions, expected, rtol=1e-5, atol=1e-5)


def test_two_threads_do_not_read_what_entered_the_others_mlp() -> None:
    learner = stirred(loaded("bottleneck(preset=parallel)"))
    stage = learner.backbone.get_submodule("network.blocks.0.mlp")
    one, other = (torch.randn(2, 16, WIDTH, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        expected = stage(one)
    between, gone = threading.Event(), threading.Event()

    def pause(module: nn.Module, args: Any, output: Any) -> None:
        if threading.current_thread() is slow:
            between.set()
            assert gone.wait(60)

    found: list[Tensor] = []
    slow = threading.Thread(target=lambda: found.append(stage(one)))
    handle = stage.get_submodule("fc1").register_forward_hook(pause)
    slow.start()
    assert between.wait(60)
    stage(other)
    gone.set()
    slow.join()
    handle.remove()
    assert torch.equal(found[0], expected)


def test_half_precision_runs_and_the_added_layers_have_it_too() -> None:
    learner = loaded("bottleneck(preset=adapter-plus,init=houlsby)")
    inputs = inputs_of(learner)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert learner(inputs).predictions.isfinite().all()
    plan = zoo_core.resolve("starter/vit-nano+probe", task="digits")
    backbone = plan.backbone.recipe.build(None, "pretrained").bfloat16()
    after_stages(backbone, SHAPE)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.bfloat16}


# -- with others --------------------------------------------------------------------------------------------------


def test_two_of_them_act_one_after_the_other() -> None:
    learner = stirred(loaded("bottleneck(r=3)+bottleneck(r=5)"))
    layer = learner.backbone.get_submodule("network.blocks.2.mlp.fc2")
    x = torch.randn(3, 3 * WIDTH, dtype=torch.float64)
    y = nn.functional.linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
    for name in ("bottleneck", "bottleneck_2"):
        y = y + by_hand(layer.get_submodule(name), y, gelu)
    close(layer(x), y)


@pytest.mark.parametrize("adapters", ["lora(roles=[mlp.out])+bottleneck", "bottleneck(preset=adapter-plus)+partial"])
def test_it_composes_with_other_adapters(adapters: str) -> None:
    learner, base = loaded(adapters), loaded("probe")
    inputs = inputs_of(base)
    with torch.no_grad():
        assert torch.equal(learner(inputs).features.x, base(inputs).features.x)
    train_steps(learner, 3)
    assert all(parameter.grad is not None for _, parameter in learner.trainable())


def test_it_does_not_fold_into_plain_weights_and_says_so() -> None:
    for preset in PRESETS:
        with pytest.raises(RefusedError, match=r"^bottleneck does not fold into plain weights"):
            loaded(f"bottleneck(preset={preset})").merge()


# -- where it does not stand --------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A backbone of one stage on rows, whose parts a test chooses; features are what leaves the stage."""

    modality: Modality = "table"
    features = FeatureSpec(kind="pooled", dim=6)
    preparation = TablePreparation(max_columns=6)
    stages = ("stage",)

    def __init__(self, stage: nn.Module, **sites: Site | tuple[Site, ...]) -> None:
        super().__init__()
        self.stage = stage
        self.found = {
            role.replace("_", "."): site if isinstance(site, tuple) else (site,) for role, site in sites.items()
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="pooled", x=self.stage(inputs["numeric"]))

    def pool(self, features: Features) -> Tensor:
        return features.x

    def sites(self, role: str) -> tuple[Site, ...]:
        return self.found.get(role, ())


class Stage(nn.Module):
    """last(first(x)) in a shape that a test chooses."""

    def __init__(self, shape: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.first, self.last, self.shape = nn.Linear(6, 6), nn.Linear(6, 6), shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.last(self.first(x)))


FIRST, LAST = Site(path="stage.first"), Site(path="stage.last")


def test_a_stage_that_gives_a_tuple_has_its_first_item_changed() -> None:
    backbone = Odd(Stage(lambda x: (x, "rest")), mlp_out=LAST)
    x = torch.randn(4, 6)
    before, _ = backbone.stage(x)
    after_stages(backbone, SHAPE)
    change = backbone.stage.get_submodule("bottleneck")
    state, rest = backbone.stage(x)
    assert rest == "rest"
    close(state, before + by_hand(change, before, gelu), 1e-6)  # float32
    assert not torch.equal(state, before)


def refusals() -> Iterator[Any]:
    def with_layers(**changes: Any) -> Callable[[nn.Module], None]:
        return lambda backbone: after_layers(backbone, (frozenset({"mlp.out"}),), SHAPE)

    def with_stages(backbone: nn.Module) -> None:
        after_stages(backbone, SHAPE)

    def with_mlps(backbone: nn.Module) -> None:
        beside_mlps(backbone, SHAPE)

    layers = with_layers()
    read = Site(path="stage.last", called=False)
    yield "read", Odd(Stage(), mlp_out=read), layers, "reads the weight of stage.last without calling it"
    columns = Site(path="stage.last", inputs=(0, 3))
    yield "one sum", Odd(Stage(), mlp_out=columns), layers, "what leaves attention and MLP as one sum"
    conv = Odd(nn.Conv2d(6, 6, 1), mlp_out=Site(path="stage"))
    yield "convolution", conv, layers, "stage is a Conv2d; it stands after linear layers"
    unseen = Odd(Stage(), mlp_in=Site(path="stage.first", called=False), mlp_out=LAST)
    yield "first read", unseen, with_mlps, "reads the weight of stage.first without calling it, so what enters"
    unpaired = Odd(Stage(), mlp_in=(FIRST, FIRST), mlp_out=LAST)
    yield "unpaired", unpaired, with_mlps, "2 weights of mlp.in and 1 of mlp.out"
    listed = Odd(Stage(lambda x: [x]), mlp_out=LAST)
    listed.forward = lambda inputs: Features(  # type: ignore[method-assign]
        kind="pooled", x=listed.stage(inputs["numeric"])[0]
    )
    yield "list", listed, with_stages, "stage gives list; use preset=pfeiffer"
    maps = Odd(Stage(lambda x: x.reshape(-1, 6, 1, 1)), mlp_out=LAST)
    yield "map", maps, with_stages, r"stage gives \[2, 6, 1, 1\], whose last axis is not known to be its width"
    square = Odd(Stage(lambda x: x.reshape(-1, 6, 1, 1).expand(-1, 6, 6, 6)), mlp_out=LAST)
    yield "square", square, with_stages, r"stage gives \[2, 6, 6, 6\], whose last axis is not known"
    sequence = Odd(nn.Sequential(nn.Linear(6, 6)), mlp_out=Site(path="stage.0"))
    yield "sequence", sequence, with_stages, "stage is a sequence of layers"


@pytest.mark.parametrize(("backbone", "put", "message"), [pytest.param(*case[1:], id=case[0]) for case in refusals()])
def test_where_it_does_not_stand_it_says_why(
    backbone: nn.Module, put: Callable[[nn.Module], None], message: str
) -> None:
    modules = len(list(backbone.modules()))
    with pytest.raises(RefusedError, match=message) as caught:
        put(backbone)
    assert "\n" not in str(caught.value)
    assert len(list(backbone.modules())) == modules


def test_an_mlp_whose_last_layer_is_called_first_is_told() -> None:
    backbone = Odd(Stage(), mlp_in=LAST, mlp_out=FIRST)
    beside_mlps(backbone, SHAPE)
    with pytest.raises(LawError, match=r"stage\.first was called before stage\.last"):
        backbone(as_backbone(backbone).preparation.dummy(2))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_convnet_without_mlps_is_refused_before_anything_is_built(preset: str) -> None:
    with pytest.raises(RefusedError, match=r"adapter bottleneck works on .*; starter/convnet-nano has conv, norm"):
        zoo_core.resolve(f"starter/convnet-nano+bottleneck(preset={preset})", task="digits")


def test_a_stage_of_maps_is_refused_by_adapter_plus(backbone_of: Callable[[str], str]) -> None:
    with pytest.raises(RefusedError, match=r"stages\.0\.blocks\.0 gives \[2, 8, 8, 8\].*use preset=pfeiffer$"):
        loaded("bottleneck(preset=adapter-plus)", backbone_of("convnext_tiny"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ("r=0", UsageError, "bottleneck(r=0): allowed: 1 or more"),
        ("r=-3", UsageError, "bottleneck(r=-3): allowed: 1 or more"),
        (
            "r=97",
            RefusedError,
            "bottleneck(r=97): what leaves network.blocks.0.mlp.fc2 is 96 wide; allowed there: 1 to 96",
        ),
        ("r=97,preset=parallel", RefusedError, "bottleneck(r=97): the MLP of network.blocks.0.mlp.fc2 is 96 wide"),
        ("r=97,preset=adapter-plus", RefusedError, "the state that leaves network.blocks.0 is 96 wide"),
        ("r=1.5", UsageError, "r is a whole number or none, found the number 1.5"),
        ("dropout=1", UsageError, "bottleneck(dropout=1): allowed: 0 to below 1"),
        ("preset=adapter-plus,drop_path=-0.1", UsageError, "bottleneck(drop_path=-0.1): allowed: 0 to below 1"),
        ("drop_path=0.1", UsageError, "bottleneck(preset=pfeiffer) has no drop_path; preset adapter-plus has"),
        ("preset=compacter", UsageError, "preset is one of pfeiffer, houlsby, parallel, adapter-plus"),
        ("act=tanh", UsageError, "act is one of gelu, relu, silu, identity"),
        ("init=bert", UsageError, "init is one of zero, houlsby"),
        ("reduction=16", UsageError, "reduction"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(arguments: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        loaded(f"bottleneck({arguments})")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_says_what_it_needs_of_its_preset() -> None:
    needs = {preset: Bottleneck(preset=preset).needs for preset in PRESETS}  # type: ignore[arg-type]
    assert needs == {
        "pfeiffer": (frozenset({"mlp.out"}),),
        "houlsby": (frozenset({"attn.out", "mlp.out"}),),
        "parallel": (frozenset({"mlp.in", "mlp.out"}),),
        "adapter-plus": (frozenset({"mlp.out"}), frozenset({"attn.out"})),
    }
    assert not AfterLayer.mergeable
