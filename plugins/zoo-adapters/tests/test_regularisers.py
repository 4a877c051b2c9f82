"""l2sp, bss and wise: their formulas against numpy's, what they hold, and where they are refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo_core
from zoo_adapters.regulariser_modules import Interpolation, SpectralShrinkage, StartingPoint
from zoo_adapters.regularisers import Bss, L2sp, Wise
from zoo_core.benchmark.loaders import open_task
from zoo_core.benchmark.trial import choose
from zoo_core.contracts import Batch, Features, Output
from zoo_core.data.loader import Loader
from zoo_core.data.splits import Subset, carve
from zoo_core.errors import DivergedError, RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import CrossEntropy
from zoo_core.plan.plan import Budget, Plan
from zoo_core.training.fit import fit
from zoo_core.training.micro_batches import check_divides, num_items, pieces

Resolve = Callable[..., Plan]
Build = Callable[..., Learner]

EACH = ("l2sp", "bss", "wise")
SHORT = Budget(epochs=3, batch_size=25)


def loaded(adapters: str, backbone: str = "starter/vit-nano") -> Learner:
    return zoo_core.load(f"{backbone}+{adapters}", num_classes=10)


def fitted(learner: Learner, *, budget: Budget = SHORT, rate: float = 1e-3) -> Learner:
    """Trained on five digits of each class."""
    plan = zoo_core.resolve("starter/vit-nano", task="digits(shots=5)")
    splits = carve(open_task(plan), seed=0, shots=5)
    loader = Loader(
        splits.train,
        modality="image",
        target=splits.target,
        preparation=learner.source.preparation,
        batch_size=budget.batch_size,
        shuffled=True,
    )
    fit(learner, loader, budget=budget, learning_rate=rate, seed=0)
    return learner


def batch_of(num: int = 6) -> Batch:
    x = torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(inputs={"pixel_values": x}, target=torch.arange(num) % 3, ids=tuple(map(str, range(num))))


def terms_of(learner: Learner, batch: Batch | None = None) -> dict[str, Tensor]:
    batch = batch or batch_of()
    assert learner.objective is not None
    found: dict[str, Tensor] = learner.objective(learner(batch.inputs), batch)
    return found


def state(learner: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name, x in one.items() if not torch.equal(x, other[name])}


def opened(learner: Learner) -> dict[str, nn.Parameter]:
    return {name: x for name, x in learner.base().items() if x.requires_grad}


@torch.no_grad()
def stir(learner: Learner) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, parameter in learner.trainable():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


# -- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regulariser", EACH)
@pytest.mark.parametrize("chain", ["partial(n=2)", "bitfit", "partial+lora(r=2)"])
def test_a_regulariser_changes_neither_what_trains_nor_the_delta_nor_a_value(chain: str, regulariser: str) -> None:
    plain, held = loaded(chain), loaded(f"{chain}+{regulariser}")
    assert {name for name, _ in held.trainable()} == {name for name, _ in plain.trainable()}
    assert held.delta().keys() == plain.delta().keys()
    assert not differing(state(plain), state(held))
    assert state(held).keys() == state(plain).keys()  # where it started is stored by nobody


@pytest.mark.parametrize("regulariser", EACH)
@pytest.mark.parametrize("chain", ["{0}", "probe+{0}", "{0}+full"])
def test_a_regulariser_before_which_nothing_trains_is_refused_with_its_place(
    build_toy: Build, regulariser: str, chain: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        build_toy(f"toy/tokens+{chain.format(regulariser)}")
    assert str(caught.value) == (
        f"{regulariser}: nothing of the backbone trains yet; it acts on what adapters before it opened or added: "
        f"write full+{regulariser}, or lora+{regulariser}"
    )


@pytest.mark.parametrize("regulariser", ["l2sp", "wise"])
def test_what_started_from_nothing_is_pulled_nowhere(regulariser: str) -> None:
    with pytest.raises(RefusedError, match=f"^{regulariser}: of the backbone only added tensors train") as caught:
        loaded(f"lora(r=2)+{regulariser}")
    assert f"write full+{regulariser}, or partial+{regulariser}" in str(caught.value)
    assert loaded("lora(r=2)+bss").objective is not None  # the features move all the same


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("l2sp(alpha=-1)", "l2sp(alpha=-1): allowed: 0 or more"),
        ("l2sp(beta=-0.1)", "l2sp(beta=-0.1): allowed: 0 or more"),
        ("bss(eta=-1)", "bss(eta=-1): allowed: 0 or more"),
        ("bss(k=0)", "bss(k=0): allowed: 1 or more"),
        ("bss(k=1.5)", "k is a whole number"),
        ("wise(alpha=1.1)", "wise(alpha=1.1): allowed: 0 to 1"),
        ("wise(alpha=-0.1)", "wise(alpha=-0.1): allowed: 0 to 1"),
        ("wise(beta=1)", "beta"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(resolve_toy: Resolve, adapter: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_toy(f"toy/tokens+full+{adapter}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_from_python_too(number: float) -> None:
    for make in (lambda: L2sp(alpha=number), lambda: Bss(eta=number), lambda: Wise(alpha=number)):
        with pytest.raises(UsageError, match="allowed"):
            make()


@pytest.mark.parametrize("regulariser", EACH)
def test_a_fitted_model_loads_bit_equal_and_without_it(regulariser: str, tmp_path: Path) -> None:
    learner = fitted(loaded(f"partial+{regulariser}"))
    zoo_core.save(learner, tmp_path / "run")
    again = zoo_core.load_run(tmp_path / "run")
    assert again.objective is None
    assert again.finishers == []
    inputs = batch_of().inputs
    with torch.no_grad():
        assert torch.equal(again(inputs).predictions, learner(inputs).predictions)


@pytest.mark.parametrize("regulariser", EACH)
def test_one_forward_pass_for_each_step(regulariser: str) -> None:
    learner = loaded(f"partial+{regulariser}")
    calls: list[int] = []
    learner.backbone.register_forward_hook(lambda *_: calls.append(1))
    fitted(learner)
    assert len(calls) == 6


# -- l2sp -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["starter/vit-nano", "starter/convnet-nano"])
def test_l2sp_is_zero_at_the_start_and_pulls_on_nothing_but_the_head(backbone: str) -> None:
    learner = loaded("full+l2sp(alpha=0.3, beta=0.2)", backbone)
    terms = terms_of(learner)
    assert terms.keys() == {"cross_entropy", "l2sp", "l2"}
    assert float(terms["l2sp"].detach()) == 0.0
    size = sum(float(x.detach().square().sum()) for x in learner.head.parameters())
    assert float(terms["l2"].detach()) == pytest.approx(0.1 * size, rel=1e-6)
    (terms["l2sp"] + terms["l2"]).backward()
    for name, parameter in learner.trainable():
        assert parameter.grad is not None
        wanted = 0.2 * parameter if name.startswith("heads.") else torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-6, atol=0)  # one rounding of float32


def test_l2sp_pulls_in_proportion_to_the_distance() -> None:
    learner = loaded("partial(n=2)+l2sp(alpha=0.3)").double()
    base = {name: x.detach().clone() for name, x in opened(learner).items()}
    stir(learner)
    term = terms_of_double(learner)["l2sp"]
    away = sum(float((x.detach() - base[name]).square().sum()) for name, x in opened(learner).items())
    assert float(term.detach()) == pytest.approx(0.15 * away, rel=1e-12)
    term.backward()
    for name, parameter in opened(learner).items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 0.3 * (parameter.detach() - base[name]), rtol=1e-12, atol=1e-15)
    assert all(x.grad is None for x in learner.head.parameters())


def terms_of_double(learner: Learner) -> dict[str, Tensor]:
    batch = batch_of()
    inputs = {name: x.double() for name, x in batch.inputs.items()}
    return terms_of(learner, Batch(inputs=inputs, target=batch.target, ids=batch.ids))


def test_l2sp_leaves_out_what_adapters_added() -> None:
    learner = loaded("partial+lora(r=2)+l2sp")
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.add_(1)
    terms = terms_of(learner)
    assert float(terms["l2sp"].detach()) == 0.0
    plain = terms_of(loaded("partial+l2sp"))
    assert torch.equal(terms["l2"], plain["l2"])


def test_l2sp_twice_pulls_twice() -> None:
    learner = loaded("partial+l2sp(alpha=0.1, beta=0)+l2sp(alpha=0.2, beta=0)")
    once = loaded("partial+l2sp(alpha=0.3, beta=0)")
    stir(learner)
    stir(once)
    assert float(terms_of(learner)["l2sp"].detach()) == pytest.approx(float(terms_of(once)["l2sp"].detach()), rel=1e-6)


def through_pickle(learner: Learner) -> Learner:
    twin: Learner = pickle.loads(pickle.dumps(learner))
    return twin


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_copys_l2sp_looks_at_the_copys_weights(copied: Callable[[Learner], Learner]) -> None:
    learner = loaded("partial+l2sp")
    twin = copied(learner)
    stir(twin)
    assert float(terms_of(learner)["l2sp"].detach()) == 0.0
    assert float(terms_of(twin)["l2sp"].detach()) > 0.1
    terms_of(twin)["l2sp"].backward()
    assert all(x.grad is None for x in learner.parameters())
    assert all(x.grad is not None for x in opened(twin).values())


def test_a_copy_of_a_copy_starts_where_the_first_did() -> None:
    learner = loaded("partial+l2sp")
    stir(learner)
    assert torch.equal(terms_of(copy.deepcopy(learner))["l2sp"], terms_of(learner)["l2sp"])


def test_l2sp_looks_at_parameters_and_owns_none() -> None:
    learner = loaded("partial+l2sp")
    assert isinstance(learner.objective, StartingPoint)
    assert not list(learner.objective.parameters())
    assert not learner.objective.state_dict()
    assert len(list(learner.objective.buffers())) == len(opened(learner))


@pytest.mark.slow
def test_the_more_l2sp_the_nearer_the_weights_stay() -> None:
    base = {name: x.detach().clone() for name, x in opened(loaded("partial")).items()}
    away = []
    for alpha in (0, 1, 100):
        learner = fitted(loaded(f"partial+l2sp(alpha={alpha})"), budget=Budget(epochs=8, batch_size=25, weight_decay=0))
        away.append(sum(float((x.detach() - base[name]).square().sum()) for name, x in opened(learner).items()))
    assert away[0] > 1.1 * away[1] > 1.1 * 2 * away[2]


# -- bss ------------------------------------------------------------------------------------------------------------


def shrinkage(x: Tensor, *, k: int = 1, eta: float = 1.0) -> Tensor:
    """The term alone, of pooled features."""
    features = Features(kind="pooled", x=x)
    output = Output(predictions=torch.zeros(len(x), 2, dtype=x.dtype), features=features)
    batch = Batch(inputs={}, target=torch.zeros(len(x), dtype=torch.int64), ids=())
    found: Tensor = SpectralShrinkage(CrossEntropy(), eta=eta, k=k)(output, batch)["bss"]
    return found


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (1, 5), (5, 1)])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_bss_is_the_sum_of_the_smallest_squared_singular_values(shape: tuple[int, int], k: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    squared = np.linalg.eigvalsh((wide @ wide.T).numpy())  # ascending
    assert float(shrinkage(x, k=k, eta=0.5)) == pytest.approx(0.5 * squared[:k].sum(), rel=1e-10)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_its_gradient_is_that_of_finite_differences(k: int) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: shrinkage(x, k=k), (x,))


@pytest.mark.parametrize(
    "x",
    [
        torch.eye(5),
        torch.zeros(4, 7),
        torch.ones(6, 6),
        torch.eye(3).repeat(3, 2),
        torch.diag(torch.tensor([2.0, 1, 1])),
    ],
    ids=["all equal", "zero", "rank one", "repeated rows", "two equal"],
)
@pytest.mark.parametrize("k", [1, 2, 9])
def test_its_gradient_is_finite_where_singular_values_are_equal_or_zero(x: Tensor, k: int) -> None:
    x = x.clone().requires_grad_(True)
    shrinkage(x, k=k).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_of_equal_singular_values_all_k_shrink() -> None:
    x = torch.eye(4, dtype=torch.float64, requires_grad=True)
    shrinkage(x, k=4).backward()
    torch.testing.assert_close(x.grad, 2 * torch.eye(4, dtype=torch.float64))  # of |x|**2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bss_takes_features_of_any_precision(dtype: torch.dtype) -> None:
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_(True)
    found = shrinkage(x)
    found.backward()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_features_that_are_not_finite_are_left_to_the_loss() -> None:
    x = torch.full((3, 4), float("nan"), requires_grad=True)
    shrinkage(x).backward()
    learner = loaded("full+bss")
    learner.backbone.register_forward_hook(lambda module, args, found: Features(kind=found.kind, x=found.x * torch.nan))
    with pytest.raises(DivergedError, match="the loss is nan in epoch 1"):
        fitted(learner)


@pytest.mark.parametrize("backbone", ["starter/vit-nano", "starter/convnet-nano"])
def test_tokens_and_maps_are_averaged(backbone: str) -> None:
    learner = loaded("full+bss(eta=2, k=2)", backbone)
    batch = batch_of()
    features = learner(batch.inputs).features.x.detach()
    pooled = features.mean(1) if "vit" in backbone else features.mean((2, 3))
    sigma = np.linalg.svd(pooled.numpy(), compute_uv=False)
    assert float(terms_of(learner)["bss"].detach()) == pytest.approx(2 * float((sigma[-2:] ** 2).sum()), rel=1e-3)


def test_tokens_that_are_padding_count_for_nothing() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    output = Output(predictions=torch.zeros(3, 2), features=Features(kind="tokens", x=x, mask=mask))
    batch = Batch(inputs={}, target=torch.zeros(3, dtype=torch.int64), ids=())
    found = SpectralShrinkage(CrossEntropy(), eta=1, k=1)(output, batch)["bss"]
    means = torch.stack([x[0].mean(0), x[1, :2].mean(0), x[2, 0]])
    torch.testing.assert_close(found, shrinkage(means))


@pytest.mark.slow
def test_bss_shrinks_what_it_is_about() -> None:
    values = []
    for eta in (0, 10):
        learner = fitted(loaded(f"full+bss(eta={eta}, k=3)"), budget=Budget(epochs=8, batch_size=25))
        with torch.no_grad():
            pooled = learner(batch_of(12).inputs).features.x.mean(1)
        values.append(float(torch.linalg.svdvals(pooled)[-3:].square().sum()))
    assert values[1] < 0.8 * values[0]


# -- wise -----------------------------------------------------------------------------------------------------------


def same_bits(one: Tensor, other: Tensor) -> bool:
    """0 and -0 differ."""
    return one.detach().numpy().tobytes() == other.detach().numpy().tobytes()


@pytest.mark.slow
def test_wise_ends_between_the_base_and_the_trained_weights() -> None:
    base, plain = loaded("partial(n=2)"), fitted(loaded("partial(n=2)"))
    open_names = opened(base).keys()
    theta0, theta1 = state(base), state(plain)
    assert open_names <= differing(theta0, theta1)
    for alpha in (0.0, 0.25, 0.5, 1.0):
        found = state(fitted(loaded(f"partial(n=2)+wise(alpha={alpha})")))
        for name, x in found.items():
            if alpha in (0, 1) or name not in open_names:
                wanted = theta0 if alpha == 0 and name in open_names else theta1
                assert same_bits(x, wanted[name]), name
            else:
                mean = (1 - alpha) * theta0[name].double() + alpha * theta1[name].double()
                torch.testing.assert_close(x.double(), mean, rtol=1e-6, atol=1e-7)  # roundings of float32


def test_a_base_of_negative_zeros_comes_back_as_it_was() -> None:
    parameter = nn.Parameter(torch.tensor([-0.0, 0.0, 1e-30, 3.0]))
    start = parameter.detach().clone()
    back = Interpolation([parameter], alpha=0)
    with torch.no_grad():
        parameter.add_(1)
    back(loaded("probe"))
    assert same_bits(parameter, start)


def test_wise_leaves_heads_and_what_was_added_as_trained() -> None:
    plain, found = (fitted(loaded(f"partial+lora(r=2){more}")) for more in ("", "+wise"))
    assert differing(state(plain), state(found)) == opened(plain).keys()
    assert found.added()


def test_every_candidate_is_scored_on_its_way_back_to_the_same_base() -> None:
    plan = zoo_core.resolve(
        "starter/vit-nano+partial+wise(alpha=0.3)", task="digits(shots=5)", budget=replace(SHORT, num_rates=2)
    )
    splits = carve(open_task(plan), seed=0, shots=5)
    val = Subset(splits.val, np.arange(60))
    chosen = [
        choose(replace(plan, learning_rates=rates), splits.train, val, splits.target, device=torch.device("cpu"))
        for rates in ((1e-2, 1e-3), (1e-3, 1e-2))  # the second of a pair is fitted first
    ]
    assert not differing(state(chosen[0].learner), state(chosen[1].learner))
    said = zoo_core.predict(chosen[0].learner, [val.raw(index) for index in range(val.num)])
    right = [int(one.labels[0]) == label for one, label in zip(said, val.targets, strict=True)]
    assert chosen[0].candidates[chosen[0].best]["validation_score"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize(
    ("toy", "chain", "name"),
    [("map", "full", "blocks.0.bn"), ("map", "partial", "blocks.2.bn"), ("map", "norm", "blocks.0.bn")],
)
def test_wise_is_refused_where_statistics_of_batch_norms_move(
    build_toy: Build, toy: str, chain: str, name: str
) -> None:
    with pytest.raises(RefusedError, match=rf"^wise: \d batch norms move their statistics in training, {name} first"):
        build_toy(f"toy/{toy}+{chain}+wise")


@pytest.mark.parametrize(("toy", "chain"), [("map", "bitfit"), ("tokens", "full"), ("tokens", "norm")])
def test_wise_is_taken_where_they_stay(build_toy: Build, toy: str, chain: str) -> None:
    learner = build_toy(f"toy/{toy}+{chain}+wise")
    assert len(learner.finishers) == 1
    assert not any(module.training for module in learner.modules())


def test_batch_norms_that_a_later_adapter_opens_are_told(build_toy: Build) -> None:
    learner = build_toy("toy/map+bitfit+wise+norm")
    (finish,) = learner.finishers
    with pytest.raises(RefusedError, match=r"^wise: 4 batch norms move their statistics"):
        finish(learner)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_copy_is_finished_without_the_original(copied: Callable[[Learner], Learner]) -> None:
    learner = loaded("partial+wise(alpha=0)")
    before = state(learner)
    twin = copied(learner)
    stir(twin)
    stir(learner)
    stirred = state(learner)
    for finish in twin.finishers:
        finish(twin)
    assert not differing(state(learner), stirred)
    assert not {name for name in opened(twin) if not torch.equal(state(twin)[name], before[name])}


def test_they_compose(tmp_path: Path) -> None:
    chain = "partial(n=3)+layer-decay+lp-ft+l2sp+bss+wise"
    found: list[Any] = []
    for _ in range(2):
        learner = fitted(loaded(chain))
        assert terms_of(learner).keys() == {"cross_entropy", "l2sp", "l2", "bss"}
        found.append(state(learner))
    assert not differing(*found)


# -- steps in pieces ------------------------------------------------------------------------------------------------


def gradient_of(adapters: str, size: int) -> Tensor:
    """Of a batch in pieces of so many examples, each weighted by what the objective counts; in float64."""
    learner = loaded(adapters).double()
    whole = batch_of(6)
    whole = Batch(inputs={name: x.double() for name, x in whole.inputs.items()}, target=whole.target, ids=whole.ids)
    learner.eval()
    for part in pieces(whole, size):
        share = num_items(learner, part)[""] / num_items(learner, whole)[""]
        (learner.loss(learner(part.inputs), part) * share).backward()
    return torch.cat([x.grad.flatten() for _, x in learner.trainable() if x.grad is not None])


def test_pieces_of_a_batch_have_the_gradient_of_l2sp() -> None:
    whole, parted = gradient_of("full+l2sp", 6), gradient_of("full+l2sp", 4)
    assert float((whole - parted).abs().max()) <= 1e-12 * max(1.0, float(whole.abs().max()))  # float64, another order


@pytest.mark.parametrize("adapters", ["full+bss", "full+bss+l2sp"])
def test_singular_values_of_a_batch_cannot_be_had_in_pieces(adapters: str) -> None:
    with pytest.raises(RefusedError, match=r"that loss sees a batch as a whole; leave --micro-batch out"):
        check_divides(loaded(adapters), batch_of(), 2)
    check_divides(loaded("bitfit+l2sp"), batch_of(), 2)
