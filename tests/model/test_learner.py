from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo_core import contracts
from zoo_core.contracts import Batch, Context, Features, Target
from zoo_core.errors import IncompatibleError, LawError, UsageError
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.testing.recipes import ToyAdapter, ToyBackbones, ToyHeads, ToyHint, ToyMemory, ToyOpen, ToyTasks, toy_plan


def learner_of(*adapters: ToyAdapter, kind: Any = "map", layer_drop: bool = False, **more: Any) -> Learner:
    return build(toy_plan(*adapters, backbone=ToyBackbones(kind=kind, layer_drop=layer_drop), **more))


def batch_of(learner: Learner, num: int = 6, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    target = {
        "classes": torch.arange(num) % 3,
        "multilabel": torch.eye(3)[torch.arange(num) % 3],
        "regression": torch.randn(num, 3, generator=generator),
    }[learner.target.kind]
    dtype = next(learner.parameters()).dtype
    x = torch.randn(num, 3, 8, 8, generator=generator).to(dtype)
    return Batch(inputs={"pixel_values": x}, target=target, ids=tuple(map(str, range(num))))


def step(learner: Learner, seed: int = 1) -> None:
    """One step of plain gradient descent in training mode."""
    learner.train()
    batch = batch_of(learner, seed=seed)
    learner.zero_grad()
    learner.loss(learner(batch.inputs), batch).backward()
    with torch.no_grad():
        for _, parameter in learner.trainable():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
    learner.eval()


def predictions(learner: Learner) -> Tensor:
    learner.eval()
    with torch.no_grad():
        found: Tensor = learner(batch_of(learner, seed=2).inputs).predictions
    return found


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def breaches(learner: Learner, mode: bool) -> list[str]:
    """Modules whose mode is not the one that the law says: all parameters train, or without any like the parent."""
    found = []

    def look(name: str, module: nn.Module, parent: bool) -> None:
        parameters = list(module.parameters())
        lawful = mode and all(parameter.requires_grad for parameter in parameters) if parameters else parent
        if module.training != lawful:
            found.append(name)
        for child_name, child in module.named_children():
            look(f"{name}.{child_name}", child, lawful)

    for name, child in learner.named_children():
        look(name, child, mode)
    return found


# -- law: what is frozen does not move ------------------------------------------------------------------------------

EVERY = ("none", "all", "last", "biases", "norms")


def opening(what: str) -> tuple[ToyAdapter, ...]:
    return () if what == "none" else (ToyOpen(what=what),)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", EVERY)
@pytest.mark.parametrize("kind", ["tokens", "map"])
def test_a_module_trains_if_and_only_if_all_beneath_it_trains(what: str, kind: str) -> None:
    learner = learner_of(*opening(what), kind=kind, head=ToyHeads(norm=True))
    for mode in (True, False, True):
        learner.train(mode)
        assert breaches(learner, mode) == []
        assert learner.training == mode


def test_a_mode_that_ignores_the_law_is_found() -> None:
    learner = learner_of(ToyOpen(what="last"))
    nn.Module.train(learner, True)
    for child in learner.children():
        child.train()
    assert "backbone.blocks.0.bn" in breaches(learner, True)


@pytest.mark.parametrize(
    ("what", "on"),
    [
        ("all", [True, True, True]),
        ("last", [False, False, True]),
        ("biases", [False, False, False]),
        ("norms", [False, False, False]),
        ("none", [False, False, False]),
    ],
)
def test_dropout_is_on_where_a_whole_block_trains(what: str, on: list[bool]) -> None:
    learner = learner_of(*opening(what), kind="tokens").train()
    blocks = learner.backbone.get_submodule("blocks")
    assert [block.get_submodule("drop").training for block in blocks.children()] == on
    inputs = batch_of(learner).inputs
    assert torch.equal(learner(inputs).predictions, learner(inputs).predictions) != any(on)


@pytest.mark.parametrize(("what", "skips"), [("all", True), ("last", False), ("biases", False), ("none", False)])
def test_layer_drop_of_a_container_is_on_under_full_training_alone(what: str, skips: bool) -> None:
    learner = learner_of(*opening(what), layer_drop=True).train()
    assert learner.backbone.get_submodule("blocks").training == skips
    called: list[int] = []
    learner.backbone.get_submodule("blocks.0").register_forward_hook(lambda *_: called.append(1))
    learner(batch_of(learner).inputs)
    assert bool(called) != skips


def moved_statistics(what: str) -> set[str]:
    learner = learner_of(*opening(what))
    before = state(learner.backbone)
    learner.train()
    with torch.no_grad():
        learner(batch_of(learner).inputs)
    return {name.removesuffix(".running_mean") for name in moved(before, learner.backbone) if "running_mean" in name}


@pytest.mark.parametrize(
    ("what", "norms"),
    [
        ("none", set()),
        ("biases", set()),  # partly frozen is frozen
        ("last", {"blocks.2.bn", "norm"}),
        ("norms", {"blocks.0.bn", "blocks.1.bn", "blocks.2.bn", "norm"}),
        ("all", {"blocks.0.bn", "blocks.1.bn", "blocks.2.bn", "norm"}),
    ],
)
def test_batch_norms_keep_statistics_unless_they_train(what: str, norms: set[str]) -> None:
    assert moved_statistics(what) == norms


@pytest.mark.parametrize("what", ["none", "last", "all"])
def test_an_affine_free_batch_norm_in_a_head_updates(what: str) -> None:
    learner = learner_of(*opening(what), head=ToyHeads(norm=True))
    before = state(learner.head)
    learner.train()
    learner(batch_of(learner).inputs)
    assert {"layers.0.running_mean", "layers.0.running_var"} <= moved(before, learner.head)
    learner.eval()
    before = state(learner.head)
    learner(batch_of(learner).inputs)
    assert not moved(before, learner.head)


def inside_a_parent(learner: Learner) -> tuple[nn.Module, Learner]:
    parent = nn.ModuleDict({"inner": nn.Sequential(learner)})
    return parent, learner


def deep_copied(learner: Learner) -> tuple[nn.Module, Learner]:
    twin = copy.deepcopy(learner)
    return twin, twin


def pickled(learner: Learner) -> tuple[nn.Module, Learner]:
    twin: Learner = pickle.loads(pickle.dumps(learner))
    return twin, twin


def compiled(learner: Learner) -> tuple[nn.Module, Learner]:
    outer = torch.compile(learner, backend="eager")
    assert isinstance(outer, nn.Module)
    return outer, learner


@pytest.mark.parametrize(
    "wrap", [inside_a_parent, deep_copied, pickled, pytest.param(compiled, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("what", EVERY)
def test_the_law_holds_wherever_a_learner_lives(
    wrap: Callable[[Learner], tuple[nn.Module, Learner]], what: str
) -> None:
    outer, learner = wrap(learner_of(*opening(what), head=ToyHeads(norm=True)))
    for mode in (True, False, True):
        outer.train(mode)
        assert breaches(learner, mode) == []
    outer.eval()
    assert breaches(learner, False) == []


@pytest.mark.slow  # the compiler's import alone takes seconds
def test_a_compiled_learner_keeps_frozen_statistics() -> None:
    learner = learner_of(ToyOpen(what="last"))
    torch.compiler.reset()
    outer = torch.compile(learner, backend="aot_eager")
    assert isinstance(outer, nn.Module)
    outer.train()
    before = state(learner.backbone)
    batch = batch_of(learner)
    learner.loss(outer(batch.inputs), batch).backward()
    statistics = {name for name in moved(before, learner.backbone) if "running" in name}
    assert {name.rpartition(".")[0] for name in statistics} == {"blocks.2.bn", "norm"}


def test_an_objectives_projector_trains_and_its_teacher_stays() -> None:
    learner = learner_of(ToyHint(), kind="tokens")
    assert learner.objective is not None
    before = state(learner.objective)
    step(learner)
    assert moved(before, learner.objective) == {"projector.weight", "projector.bias"}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["tokens", "map"]))
def test_whatever_is_opened_the_rest_stays_and_the_delta_holds_what_moved(seed: int, kind: Any) -> None:
    class OpenSome(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            chosen = random.Random(seed)
            share = chosen.random()
            for module in learner.backbone.modules():
                whole = chosen.random() < share
                for parameter in module.parameters(recurse=False):
                    if whole or chosen.random() < share / 4:
                        parameter.requires_grad_(True)
            return learner

    learner = learner_of(OpenSome(), kind=kind, head=ToyHeads(norm=True))
    opened = {f"backbone.{name}" for name, x in learner.backbone.named_parameters() if x.requires_grad}
    before = state(learner)
    for index in range(3):
        step(learner, seed=index)
        assert breaches(learner, False) == []
    assert moved(before, learner) <= set(learner.delta())
    assert opened <= set(learner.delta())
    twin = learner_of(OpenSome(), kind=kind, head=ToyHeads(norm=True))
    assert not torch.equal(predictions(twin), predictions(learner))
    twin.load_delta(learner.delta())
    assert torch.equal(predictions(twin), predictions(learner))


# -- law: the delta -------------------------------------------------------------------------------------------------

HEAD = {"heads.main.layers.0.weight", "heads.main.layers.0.bias"}


def statistics(path: str) -> set[str]:
    return {f"backbone.{path}.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def affine(path: str) -> set[str]:
    return {f"backbone.{path}.{name}" for name in ("weight", "bias")}


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("none", set()),
        ("biases", {"backbone.stem.bias", "backbone.norm.bias", *(f"backbone.blocks.{i}.bn.bias" for i in range(3))}),
        (
            "last",
            {"backbone.blocks.2.conv.weight"}
            | affine("blocks.2.bn")
            | statistics("blocks.2.bn")
            | affine("norm")
            | statistics("norm"),
        ),
        (
            "norms",
            {
                name
                for path in ("blocks.0.bn", "blocks.1.bn", "blocks.2.bn", "norm")
                for name in affine(path) | statistics(path)
            },
        ),
    ],
)
def test_the_delta_holds_what_is_open_and_the_head(what: str, names: set[str]) -> None:
    assert set(learner_of(*opening(what)).delta()) == names | HEAD


def test_the_delta_of_full_training_is_all_but_what_no_file_keeps() -> None:
    learner = learner_of(*opening("all"))
    kept = {f"backbone.{name}" for name in learner.backbone.state_dict()} | HEAD
    assert set(learner.delta()) == kept
    assert "one" in {name.rpartition(".")[2] for name, _ in learner.named_buffers()}
    assert not any(name.endswith(".one") for name in kept), "a buffer that is not persistent is in no file"


def test_the_delta_of_a_random_backbone_holds_all_of_it() -> None:
    learner = learner_of(weights="random")
    assert set(learner.delta()) == {f"backbone.{name}" for name in learner.backbone.state_dict()} | HEAD
    step(learner)
    assert breaches(learner.train(), True) == []


@pytest.mark.parametrize("what", EVERY)
def test_the_names_of_the_delta_do_not_depend_on_the_mode(what: str) -> None:
    learner = learner_of(*opening(what), head=ToyHeads(norm=True))
    names = set(learner.delta())
    for mode in (True, False):
        assert set(learner.train(mode).delta()) == names
    step(learner)
    assert set(learner.delta()) == names
    assert set(copy.deepcopy(learner).delta()) == names


def test_the_delta_does_not_know_the_objective() -> None:
    learner = learner_of(ToyHint(), kind="tokens")
    assert set(learner.delta()) == set(learner_of(kind="tokens").delta())
    assert any(name.startswith("objective.projector") for name, _ in learner.trainable())


def test_the_delta_is_the_learners_own_state() -> None:
    learner = learner_of()
    name = "heads.main.layers.0.bias"
    learner.delta()[name].fill_(7)
    assert learner.head.state_dict()["layers.0.bias"].tolist() == [7.0] * 3
    assert not learner.delta()[name].requires_grad


def test_a_learner_that_was_not_built_has_no_delta() -> None:
    built = learner_of()
    assert built.objective is not None
    loose = Learner(built.backbone, built.head, "pooled", built.objective, built.target)
    with pytest.raises(LawError, match="known once building is over"):
        loose.delta()


class LateBuffer(ToyAdapter):
    """Counts passes in a buffer that it registers at the first one."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(getattr(module, "passes", None), Tensor):
                module.register_buffer("passes", torch.zeros(()))

        learner.head.register_forward_hook(count)
        return learner


class LateWrapper(ToyAdapter):
    """Wraps the head at the first pass, so that its names change."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        def wrap(module: nn.Module, args: Any) -> None:
            if not isinstance(learner.head, nn.Sequential):
                learner.head = nn.Sequential(learner.head)

        assert isinstance(learner, nn.Module)
        learner.register_forward_pre_hook(wrap)
        return learner


@pytest.mark.parametrize("adapter", [LateBuffer(), LateWrapper()])
def test_state_that_appears_after_building_breaks_the_law(adapter: ToyAdapter) -> None:
    learner = learner_of(adapter)
    assert set(learner.delta()) == HEAD
    learner(batch_of(learner).inputs)
    with pytest.raises(LawError, match="appeared or vanished after building"):
        learner.delta()
    with pytest.raises(LawError, match="appeared or vanished after building"):
        learner.load_delta({})


@pytest.mark.parametrize("name", ["backbone.stem.weight", "backbone.norm.running_mean", "heads.main.layers.0.bias"])
def test_state_that_vanishes_after_building_breaks_the_law(name: str) -> None:
    learner = learner_of()
    path, _, leaf = name.rpartition(".")
    delattr(learner.get_submodule(path), leaf)
    with pytest.raises(LawError, match=f"vanished after building: {name}"):
        learner.delta()
    if name.startswith("backbone."):
        with pytest.raises(LawError, match=f"vanished after building: {name}"):
            learner.frozen()


def test_what_is_frozen_and_the_delta_make_up_a_learner() -> None:
    for what in EVERY:
        learner = learner_of(*opening(what))
        held = {name for name in learner.state_dict() if not name.startswith("objective.")}
        assert set(learner.frozen()) | set(learner.delta()) == held
        assert not set(learner.frozen()) & set(learner.delta())


# -- loading a delta ------------------------------------------------------------------------------------------------


def lose(tensors: dict[str, Tensor]) -> None:
    del tensors["backbone.norm.weight"]


def gain(tensors: dict[str, Tensor]) -> None:
    tensors["backbone.stem.weight"] = torch.zeros(1)


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["backbone.norm.gamma"] = tensors.pop("backbone.norm.weight")


def shorten(tensors: dict[str, Tensor]) -> None:
    tensors["heads.main.layers.1.bias"] = torch.zeros(2)


def shorten_a_buffer(tensors: dict[str, Tensor]) -> None:
    tensors["heads.main.layers.0.running_mean"] = torch.zeros(2)


def flatten(tensors: dict[str, Tensor]) -> None:
    tensors["heads.main.layers.1.weight"] = tensors["heads.main.layers.1.weight"].flatten()


def round_off(tensors: dict[str, Tensor]) -> None:
    tensors["heads.main.layers.1.weight"] = tensors["heads.main.layers.1.weight"].long()


@pytest.mark.parametrize("mistake", [lose, gain, rename, shorten, shorten_a_buffer, flatten, round_off])
def test_a_delta_of_another_learner_is_refused_and_changes_nothing(mistake: Callable[..., None]) -> None:
    trained = learner_of(ToyOpen(what="last"), head=ToyHeads(norm=True))
    step(trained)
    tensors = {name: tensor.clone() for name, tensor in trained.delta().items()}
    learner = learner_of(ToyOpen(what="last"), head=ToyHeads(norm=True))
    before = state(learner)
    mistake(tensors)
    with pytest.raises(IncompatibleError, match="this delta is of another learner") as caught:
        learner.load_delta(tensors)
    assert "\n" not in str(caught.value)
    assert not moved(before, learner)


def fitted_memory(num: int) -> Learner:
    learner = learner_of(head=ToyMemory(), kind="tokens")
    head = learner.head
    head.fit(Features(kind="pooled", x=torch.randn(num, 12)), torch.arange(num) % 3)  # type: ignore[operator]
    return learner


@pytest.mark.parametrize(("num", "before"), [(5, 0), (5, 7), (1, 0)])
def test_a_closed_form_head_takes_a_delta_of_any_length(num: int, before: int) -> None:
    learner = fitted_memory(num)
    assert set(learner.delta()) == {"heads.main.bank", "heads.main.answers"}
    twin = fitted_memory(before) if before else learner_of(head=ToyMemory(), kind="tokens")
    twin.load_delta(learner.delta())
    assert torch.equal(predictions(twin), predictions(learner))
    twin.delta()["heads.main.bank"].fill_(9)
    assert learner.delta()["heads.main.bank"].max() < 9, "a loaded delta is a copy"


@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_a_closed_form_head_that_nothing_has_fitted_gives_no_predictions(kind: Any) -> None:
    """The units of values are known before the head is fitted, and do not make it fitted."""
    learner = learner_of(head=ToyMemory(), kind="tokens", target=Target(kind=kind, size=3))
    batch = batch_of(learner)
    if kind == "regression":
        learner.fit_scale(batch.target)
    twin = copy.deepcopy(learner)
    for unfitted in (learner, twin):
        for _ in range(2):
            with pytest.raises(UsageError, match=r"in closed form, and nothing has fitted it: use zoo_core\.fit"):
                unfitted(batch.inputs)
    twin.load_delta(learner.delta())
    with pytest.raises(UsageError, match="nothing has fitted it"):
        twin(batch.inputs)
    learner.head.fit(Features(kind="pooled", x=torch.randn(6, 12)), batch.target)  # type: ignore[operator]
    twin.load_delta(learner.delta())
    assert torch.equal(predictions(learner), predictions(twin))


@pytest.mark.parametrize("shape", [(5, 11), (5,), (5, 12, 1)])
def test_a_closed_form_heads_other_sizes_are_fixed(shape: tuple[int, ...]) -> None:
    learner = learner_of(head=ToyMemory(), kind="tokens")
    tensors = learner.delta() | {"heads.main.bank": torch.zeros(shape)}
    with pytest.raises(IncompatibleError, match=r"heads.main.bank is .* expected torch.float32 \['any', 12\]"):
        learner.load_delta(tensors)


# -- one pass -------------------------------------------------------------------------------------------------------


def test_inputs_that_are_none_are_told_with_what_the_backbone_reads() -> None:
    learner = learner_of()
    batch = batch_of(learner)
    x = batch.inputs["pixel_values"]
    for wrong, told in (
        (x, "takes a mapping of inputs, found Tensor; this one reads 'pixel_values': batch.inputs"),
        (batch, "takes a mapping of inputs, found Batch"),
        ({"image": x, "mask": x}, "inputs lack 'pixel_values', they hold image, mask; this one reads"),
        ({}, "inputs lack 'pixel_values', they hold nothing"),
    ):
        with pytest.raises(UsageError, match=told):
            learner(wrong)


def test_a_backbones_own_missing_key_is_not_blamed_on_the_inputs() -> None:
    learner = learner_of()
    table: dict[str, int] = {}
    learner.backbone.register_forward_pre_hook(lambda *_: table["pixel_values"])
    with pytest.raises(KeyError):
        learner(batch_of(learner).inputs)


def test_one_pass_gives_predictions_features_and_the_stages_asked_for() -> None:
    learner = learner_of(ToyHint(), kind="tokens")
    called: list[int] = []
    learner.backbone.register_forward_hook(lambda *_: called.append(1))
    output = learner(batch_of(learner).inputs)
    assert output.predictions.shape == (6, 3)
    assert output.features.kind == "tokens"
    assert {stage: x.shape for stage, x in output.stages.items()} == {1: (6, 16, 12)}
    assert learner.loss(output, batch_of(learner)).ndim == 0
    assert called == [1]


def test_the_loss_is_the_sum_of_the_objectives_terms() -> None:
    learner = learner_of(ToyHint(), kind="tokens")
    batch = batch_of(learner)
    output = learner(batch.inputs)
    assert learner.objective is not None
    terms = learner.objective(output, batch)
    assert set(terms) == {"cross_entropy", "hint"}
    assert torch.equal(learner.loss(output, batch), terms["cross_entropy"] + terms["hint"])


def test_a_learner_for_use_has_no_loss() -> None:
    learner = build(toy_plan(ToyHint()), purpose="use")
    batch = batch_of(learner)
    output = learner(batch.inputs)
    assert output.stages == {}
    with pytest.raises(IncompatibleError, match="loaded for use"):
        learner.loss(output, batch)
    assert breaches(learner.train(), True) == []


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_float64_learner_stays_float64(kind: Any, size: int) -> None:
    learner = learner_of(ToyOpen(), task=ToyTasks(kind=kind, size=size)).double()
    batch = batch_of(learner)
    target = batch.target % size if kind == "classes" else batch.target[:, :size]
    batch = Batch(inputs=batch.inputs, target=target, ids=batch.ids)
    output = learner(batch.inputs)
    loss = learner.loss(output, batch)
    assert output.predictions.dtype == loss.dtype == torch.float64
    loss.backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float64 for _, x in learner.trainable())


# -- rates ----------------------------------------------------------------------------------------------------------


def rates(learner: Learner) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in learner.parameter_groups(0.5, weight_decay=0.25)
        for parameter in group["params"]
    }


def test_groups_hold_each_trainable_parameter_once() -> None:
    learner = learner_of(ToyOpen(what="last"), ToyHint(), kind="tokens")
    parameters = [x for group in learner.parameter_groups(0.1) for x in group["params"]]
    assert len(parameters) == len({id(x) for x in parameters}) == len(list(learner.trainable()))


def test_vectors_do_not_decay() -> None:
    for name, (_, decay) in rates(learner_of(ToyOpen())).items():
        assert decay == (0.25 if name.endswith(("conv.weight", "stem.weight", "layers.0.weight")) else 0.0), name


class Faster(ToyAdapter):
    """Trains the head four times as fast."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        learner.set_scale(learner.head.parameters(), 4.0)
        return learner


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x)


class WrapHead(ToyAdapter):
    """Puts the head into a module, which renames its parameters."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        learner.head = Wrapped(learner.head)
        return learner


def test_a_later_adapters_scale_replaces_an_earlier_ones() -> None:
    found = rates(learner_of(Faster(), ToyOpen(), Faster()))
    assert found["heads.main.layers.0.weight"] == (2.0, 0.25)
    assert found["backbone.stem.weight"] == (0.5, 0.25)


@pytest.mark.parametrize("wrap", [lambda learner: learner, deep_copied, pickled, lambda learner: learner.double()])
def test_a_scale_follows_its_parameter_through_wrapping_and_copies(wrap: Callable[[Learner], Any]) -> None:
    found = wrap(learner_of(Faster(), WrapHead()))
    learner = found[1] if isinstance(found, tuple) else found
    assert rates(learner)["heads.main.inner.layers.0.weight"] == (2.0, 0.25)


# -- units of values ------------------------------------------------------------------------------------------------


def values_learner(size: int = 2) -> Learner:
    return learner_of(task=ToyTasks(kind="regression", size=size))


def test_values_are_in_units_of_the_training_targets() -> None:
    learner = values_learner()
    targets = torch.tensor([[100.0, -1.0], [300.0, 1.0]])
    learner.fit_scale(targets)
    assert learner.delta()["heads.main.shift"].tolist() == [200.0, 0.0]
    assert learner.delta()["heads.main.scale"].tolist() == [100.0, 1.0]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e5])
@pytest.mark.parametrize("num", [1, 60])
def test_values_that_do_not_vary_keep_their_unit(value: float, num: int) -> None:
    learner = values_learner()
    learner.fit_scale(torch.cat([torch.full((num, 1), value), torch.randn(num, 1)], dim=1))
    assert learner.delta()["heads.main.scale"][0] == 1.0
    assert learner.delta()["heads.main.shift"][0] == torch.tensor(value)


def test_the_unit_of_values_is_in_the_delta() -> None:
    learner = values_learner()
    learner.fit_scale(torch.tensor([[100.0, -1.0], [300.0, 1.0]]))
    twin = values_learner()
    twin.load_delta(learner.delta())
    assert torch.equal(predictions(twin), predictions(learner))


# -- phases ---------------------------------------------------------------------------------------------------------


class DelayNorm(ToyAdapter):
    """Delays the norm after the stages by half of all steps; a second one has it join at a quarter."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        norm = list(learner.backbone.get_submodule("norm").parameters())
        learner.delay(norm, 0.25 if learner.start_of(norm[0]) else 0.5)
        return learner


def starts(learner: Learner) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    groups = learner.parameter_groups(0.5)
    return {names[id(parameter)]: group["start"] for group in groups for parameter in group["params"]}


def test_a_later_adapters_start_replaces_an_earlier_ones() -> None:
    for adapters, start in (((DelayNorm(),), 0.5), ((DelayNorm(), DelayNorm()), 0.25)):
        found = starts(learner_of(ToyOpen(what="last"), *adapters))
        assert {name for name, each in found.items() if each} == {"backbone.norm.weight", "backbone.norm.bias"}
        assert found["backbone.norm.weight"] == start


def test_a_delay_opens_nothing() -> None:
    assert set(starts(learner_of(DelayNorm()))) == HEAD


@pytest.mark.parametrize("wrap", [lambda learner: learner, deep_copied, pickled, lambda learner: learner.double()])
def test_a_start_follows_its_parameter_through_copies(wrap: Callable[[Learner], Any]) -> None:
    found = wrap(learner_of(ToyOpen(what="last"), DelayNorm()))
    learner = found[1] if isinstance(found, tuple) else found
    assert starts(learner)["backbone.norm.weight"] == 0.5


@pytest.mark.parametrize("start", [-0.1, 1.0, float("nan"), float("inf")])
def test_a_start_that_is_no_share_is_refused(start: float) -> None:
    learner = learner_of()
    with pytest.raises(UsageError, match="a phase starts at a share of the steps, 0 to below 1, found"):
        learner.delay(learner.head.parameters(), start)


# -- what is the base's and what was added --------------------------------------------------------------------------


class Shifted(Wrapped):
    """What a stage gives, and a learned shift of its channels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.shift = nn.Parameter(torch.zeros(12))

    def forward(self, x: Any) -> Any:
        return self.inner(x) + self.shift[:, None, None]


class AddShift(ToyAdapter):
    """Adds a parameter, and wraps a stage, which renames its parameters."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        blocks = learner.backbone.get_submodule("blocks")
        assert isinstance(blocks, nn.Sequential)
        blocks[1] = Shifted(blocks[1])
        return learner


@pytest.mark.parametrize("wrap", [lambda learner: learner, deep_copied, pickled, lambda learner: learner.double()])
def test_base_and_added_make_up_the_backbone(wrap: Callable[[Learner], Any]) -> None:
    found = wrap(learner_of(AddShift()))
    learner = found[1] if isinstance(found, tuple) else found
    assert set(learner.added()) == {"backbone.blocks.1.shift"}
    assert "backbone.blocks.1.inner.conv.weight" in learner.base()
    names = {f"backbone.{name}" for name, _ in learner.backbone.named_parameters()}
    assert set(learner.base()) == names - set(learner.added())


class Twice(nn.Module):
    """Two modules that share a third one, which is registered under the first and under the second."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(shared, nn.Dropout())
        self.second = nn.Sequential(nn.Linear(2, 2), shared, nn.Dropout())


@pytest.mark.parametrize("frozen", ["second.0", "first.0"])
def test_a_module_in_two_places_is_in_one_mode(frozen: str) -> None:
    built = learner_of(kind="tokens")
    assert built.objective is not None
    network = Twice(nn.Linear(2, 2))
    network.get_submodule(frozen).requires_grad_(False)
    learner = Learner(network, built.head, "pooled", built.objective, built.target).train()
    assert breaches(learner, True) == []
    assert network.first.training == (frozen == "second.0")
    assert network.second.training is False
