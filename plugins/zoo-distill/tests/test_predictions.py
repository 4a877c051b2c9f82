"""distill: each distance against numpy's, what becomes of labels that are missing, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo_core.contracts import AdapterFacts, Batch, Context, Features, Learner, Output, Target, TeacherOutput, fact
from zoo_core.errors import RefusedError, UsageError
from zoo_distill.logit_losses import (
    binary_kl,
    correlation_distance,
    decoupled,
    decoupled_kl,
    softmax_kl,
    squared_distance,
    standardised,
)
from zoo_distill.prediction_modules import Distillation
from zoo_distill.predictions import Distill

Array = np.ndarray[Any, Any]
Make = Callable[..., Learner]

TEACHER = "runs/teacher"
CLASSES = Target(kind="classes", names=("a", "b", "c", "d"))

B, C = 6, 4
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def close(found: Tensor, expected: float) -> None:
    """Equal but for another order of a few sums in float64."""
    assert float(found) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def student(seed: int = 0, rows: int = B) -> Tensor:
    return 3 * drawn(rows, C, seed=seed)


def teacher(seed: int = 1, rows: int = B) -> Tensor:
    return 3 * drawn(rows, C, seed=seed)


# -- by hand ----------------------------------------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def output_of(predictions: Tensor, **parts: Any) -> Output:
    features = parts.pop("features", Features(kind="pooled", x=predictions.new_zeros(len(predictions), 1)))
    return Output(predictions=predictions, features=features, **parts)


def batch_of(target: Tensor, given: TeacherOutput | None = None) -> Batch:
    return Batch(inputs={}, target=target, teachers={} if given is None else {TEACHER: given})


class Labelled(nn.Module):
    """A loss of labels as the core's are: over those that are known, 0 where none is, and it counts its calls."""

    stages: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        known = self._known(batch)
        logits, labels = output.predictions[known], batch.target[known]
        if labels.is_floating_point():
            return {"labels": (logits - labels).square().sum() / max(labels.numel(), 1)}
        return {"labels": nn.functional.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)}

    def num_items(self, batch: Batch) -> Tensor:
        return self._known(batch).sum()

    def _known(self, batch: Batch) -> Tensor:
        return ~batch.target.isnan() if batch.target.is_floating_point() else batch.target != -100


# -- numpy ------------------------------------------------------------------------------------------------------------


def np_softmax(z: Array) -> Array:
    raised = np.exp(z - z.max(axis=-1, keepdims=True))
    found: Array = raised / raised.sum(axis=-1, keepdims=True)
    return found


def np_kl(p: Array, q: Array) -> Array:
    found: Array = (p * np.log(p / q)).sum(axis=-1)
    return found


def np_kd(s: Array, t: Array, T: float) -> float:
    return float(T**2 * np_kl(np_softmax(t / T), np_softmax(s / T)).mean())


def np_dkd(s: Array, t: Array, labels: Array, T: float, weight: float, rest: float) -> float:
    total = 0.0
    for own, theirs, label in zip(s, t, labels, strict=True):
        p, q = np_softmax(theirs / T), np_softmax(own / T)
        two = [np.array([x[label], 1 - x[label]]) for x in (p, q)]
        others = [np_softmax(np.delete(x / T, label)) for x in (theirs, own)]
        total += float(T**2 * (weight * np_kl(*two) + rest * np_kl(*others)))
    return total / len(s)


def np_dist(s: Array, t: Array, T: float, beta: float, gamma: float) -> float:
    p, q = np_softmax(t / T), np_softmax(s / T)
    rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    columns = [np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return float(T**2 * (beta * (1 - np.mean(rows)) + gamma * (1 - np.mean(columns))))


def np_bernoulli(s: Array, t: Array, T: float) -> float:
    p, q = (1 / (1 + np.exp(-x / T)) for x in (t, s))
    return float(T**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())


def np_standard(z: Array) -> Array:
    found: Array = (z - z.mean(-1, keepdims=True)) / (z.std(-1, ddof=1, keepdims=True) + 1e-7)
    return found


# -- the objective ----------------------------------------------------------------------------------------------------


def objective(recipe: Distill, target: Target = CLASSES, inner: nn.Module | None = None) -> Distillation:
    """The objective of a recipe around the test's loss of labels, on a learner that is only a head."""
    learner: Any = nn.Module()
    learner.objective = inner or Labelled()
    learner.head = nn.Linear(2, 2)
    learner.head.register_buffer("scale", torch.tensor([2.0, 4.0, 1.0, 10.0], dtype=torch.float64))
    learner.trainable = learner.head.named_parameters
    context = Context(target=target, purpose="train", generator=torch.Generator())
    made = recipe.apply(learner, context).objective
    assert isinstance(made, Distillation)
    return made


def term(
    recipe: Distill, s: Tensor, t: Tensor, labels: Tensor = LABELS, *, kind: Any = "classes", **given: Any
) -> Tensor:
    """The distance alone, of alpha=1."""
    made = objective(recipe, Target(kind=kind, size=C))
    found = made(output_of(s), batch_of(labels, TeacherOutput(predictions=t, **given)))
    assert found.keys() == {"distill"}
    distance: Tensor = found["distill"]
    return distance


def only(form: Any = "kd", **fields: Any) -> Distill:
    return Distill(teacher=TEACHER, form=form, alpha=1, **fields)


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("T", [1.0, 2.5])
def test_each_form_is_numpys(T: float, standard: bool) -> None:
    s, t = student(), teacher()
    one, other = (np_standard(x.numpy()) if standard else x.numpy() for x in (s, t))
    more = {"T": T, "standardise": standard}
    close(term(only(**more), s, t), np_kd(one, other, T))
    close(
        term(only("dkd", **more, target_weight=1.5, rest_weight=3), s, t), np_dkd(one, other, LABELS.numpy(), T, 1.5, 3)
    )
    close(term(only("dist", **more, beta=2, gamma=0.5), s, t), np_dist(one, other, T, 2, 0.5))
    close(term(only("mse", standardise=standard), s, t), ((one - other) ** 2).mean())


@pytest.mark.parametrize(("form", "T"), [("kd", 2), ("dkd", 4), ("dist", 1)])
def test_a_form_has_the_temperature_that_its_docstring_says(form: Any, T: float) -> None:
    s, t = student(), teacher()
    assert torch.equal(term(only(form), s, t), term(only(form, T=T), s, t))
    assert not torch.equal(term(only(form), s, t), term(only(form, T=T + 1), s, t))


def test_other_targets_are_numpys() -> None:
    s, t = student(), teacher()
    labels = (drawn(B, C, seed=3) > 0).double()
    close(term(only(T=3), s, t, labels, kind="multilabel"), np_bernoulli(s.numpy(), t.numpy(), 3))
    unit = np.array([2.0, 4.0, 1.0, 10.0])  # of the head
    expected = (((s.numpy() - t.numpy()) / unit) ** 2).mean()
    for form in ("kd", "mse"):
        close(term(only(form), s, t, labels, kind="regression"), expected)


def test_token_classes_count_the_tokens_that_the_teacher_reads() -> None:
    s, t = drawn(2, 3, C), drawn(2, 3, C, seed=1)
    t[0, 2] = t[1, 0] = float("nan")
    labels = torch.full((2, 3), -100)
    rows = [(0, 0), (0, 1), (1, 1), (1, 2)]
    expected = np_kd(np.stack([s[at] for at in rows]), np.stack([t[at] for at in rows]), 2)
    close(term(only(), s, t, labels, kind="token_classes"), expected)
    batch = batch_of(labels, TeacherOutput(predictions=t))
    made = objective(Distill(teacher=TEACHER), Target(kind="token_classes", size=C))
    assert made.num_items(batch) == {"": 0, "distill": 4}
    assert float(term(only(), s, torch.full_like(t, float("nan")), labels, kind="token_classes")) == 0


def test_the_whole_is_the_stated_sum() -> None:
    s, t = student(), teacher()
    batch = batch_of(LABELS, TeacherOutput(predictions=t))
    found = objective(Distill(teacher=TEACHER, alpha=0.3, T=2))(output_of(s), batch)
    p = np_softmax(s.numpy())[np.arange(B), LABELS]
    close(found["labels"], 0.7 * -np.log(p).mean())
    close(found["distill"], 0.3 * np_kd(s.numpy(), t.numpy(), 2))


# -- identities -------------------------------------------------------------------------------------------------------

logits = st.lists(st.floats(-30, 30), min_size=C, max_size=C)


@settings(max_examples=100, deadline=None)
@given(s=logits, t=logits, label=st.integers(0, C - 1), T=st.floats(0.5, 8))
def test_kd_is_tckd_and_the_weighted_nckd(s: list[float], t: list[float], label: int, T: float) -> None:
    one, other = (torch.tensor([z], dtype=torch.float64) for z in (s, t))
    target, rest = decoupled(one, other, torch.tensor([label]), T)
    p = torch.softmax(other / T, dim=-1)[:, label]
    scale = max(1.0, float(softmax_kl(one, other, 1)))
    torch.testing.assert_close(
        T**2 * (target + (1 - p) * rest), softmax_kl(one, other, T), rtol=1e-9, atol=1e-12 * scale * T**2
    )


@settings(max_examples=50, deadline=None)
@given(a=st.floats(0.1, 10), b=st.floats(-20, 20), form=st.sampled_from(["kd", "mse", "dkd", "dist"]))
def test_standardised_losses_do_not_see_a_positive_affine_map(a: float, b: float, form: Any) -> None:
    recipe = only(form, standardise=True)
    found, moved = (term(recipe, z, teacher()) for z in (student(), a * student() + b))
    torch.testing.assert_close(moved, found, rtol=2e-5, atol=0)  # 1e-7 is added to a deviation of 0.1 times 3


def test_without_it_they_do() -> None:
    assert not torch.isclose(term(only(), 2 * student(), teacher()), term(only(), student(), teacher()), rtol=0.1)


@pytest.mark.parametrize("form", ["kd", "mse", "dkd", "dist"])
def test_a_student_that_predicts_what_its_teacher_does_has_nothing_to_learn(form: Any) -> None:
    z = student().float().requires_grad_()
    recipe = only(form) if form == "mse" else only(form, T=1)
    found = term(recipe, z, z.detach().clone())
    (gradient,) = torch.autograd.grad(found, z)
    # Of logarithms of equal bits the difference is 0; the probabilities in the gradient sum to 1 within rounding, and
    # so does a correlation.
    bound = 1e-6 if form == "dist" else 0
    assert abs(float(found.detach())) <= bound
    assert float(gradient.abs().max()) <= 1e-6


def test_other_predictions_are_something_to_learn() -> None:
    z = student().float().requires_grad_()
    (gradient,) = torch.autograd.grad(term(only(T=1), z, teacher().float()), z)
    assert float(gradient.abs().max()) > 1e-2


@pytest.mark.parametrize("form", ["kd", "mse", "dkd"])
def test_a_batch_twice_as_long_has_the_same_mean(form: Any) -> None:
    s, t = student(), teacher()
    found = term(only(form), torch.cat([s, s]), torch.cat([t, t]), torch.cat([LABELS, LABELS]))
    torch.testing.assert_close(found, term(only(form), s, t, LABELS))


def test_a_divergence_is_summed_over_classes_and_not_averaged() -> None:
    s, t = student(), teacher()
    wider = [torch.cat([z, torch.full((B, C), -200.0, dtype=z.dtype)], dim=1) for z in (s, t)]  # classes nobody expects
    torch.testing.assert_close(softmax_kl(wider[0], wider[1], 2).mean(), softmax_kl(s, t, 2).mean())


def test_hot_kd_pulls_centred_logits_together() -> None:
    s, t = student().requires_grad_(), teacher()
    (gradient,) = torch.autograd.grad(term(only(T=1e4), s, t), s)
    away = s.detach() - t
    torch.testing.assert_close(gradient, (away - away.mean(1, keepdim=True)) / (C * B), rtol=1e-2, atol=1e-5)
    assert term(only(T=1e12), s, t).isfinite()


@pytest.mark.parametrize("T", [1.0, 3.0])
def test_correlation_of_a_thing_with_itself_is_no_distance(T: float) -> None:
    z = student()
    assert abs(float(correlation_distance(z, z.clone(), T, rows=1, columns=1))) < 1e-12
    assert float(correlation_distance(z, -z, T, rows=1, columns=1)) > 0.5


def test_a_batch_of_one_has_no_columns() -> None:
    s, t = student(rows=1), teacher(rows=1)
    found = term(only("dist", gamma=7), s, t, LABELS[:1])
    close(found, 1 - np.corrcoef(np_softmax(s.numpy())[0], np_softmax(t.numpy())[0])[0, 1])
    for form in ("kd", "mse", "dkd"):
        assert term(only(form), s, t, LABELS[:1]).isfinite()


def test_constant_predictions_are_no_nan() -> None:
    flat = torch.zeros(B, C, dtype=torch.float64, requires_grad=True)
    for recipe in (only("dist"), only("dist", standardise=True), only(standardise=True)):
        found = term(recipe, flat, teacher())
        (gradient,) = torch.autograd.grad(found, flat)
        assert found.isfinite()
        assert gradient.isfinite().all()


def test_gradients_are_those_of_finite_differences() -> None:
    t = teacher(rows=3)
    label = LABELS[:3]
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda s: softmax_kl(s, t, 2).sum(),
        lambda s: binary_kl(s, t, 2).sum(),
        lambda s: squared_distance(s, t).sum(),
        lambda s: decoupled_kl(s, t, label, 2, target_weight=1, rest_weight=3).sum(),
        lambda s: correlation_distance(s, t, 2, rows=1, columns=2),
        lambda s: softmax_kl(standardised(s), standardised(t), 2).sum(),
    ]
    for loss in losses:
        assert torch.autograd.gradcheck(loss, (student(rows=3).requires_grad_(),))


# -- labels that are missing, classes that the teacher does not know --------------------------------------------------


@pytest.mark.parametrize("form", ["kd", "mse", "dkd", "dist"])
@pytest.mark.parametrize("labels", [[0, -100, 2, -100, 0, 1], [-100] * B], ids=["partly", "all"])
@pytest.mark.parametrize("alpha", [0.5, 1])
def test_missing_labels_are_no_nan(form: Any, labels: list[int], alpha: float) -> None:
    z = student().requires_grad_()
    batch = batch_of(torch.tensor(labels), TeacherOutput(predictions=teacher()))
    terms = objective(Distill(teacher=TEACHER, form=form, alpha=alpha))(output_of(z), batch)
    loss = torch.stack(list(terms.values())).sum()
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert bool(gradient.any()) == (form != "dkd" or max(labels) >= 0)


class Exploding(Labelled):
    """The loss of a third party that divides by the number of labels."""

    def forward(self, output: Any, batch: Any) -> dict[str, Tensor]:
        return {"labels": super().forward(output, batch)["labels"] * float("nan")}


def test_the_loss_of_labels_is_not_called_where_it_counts_nothing() -> None:
    inner = Exploding()
    batch = batch_of(LABELS, TeacherOutput(predictions=teacher()))
    assert objective(only(), inner=inner)(output_of(student()), batch)["distill"].isfinite()
    assert inner.calls == 0
    found = objective(Distill(teacher=TEACHER, alpha=0.9), inner=inner)(output_of(student()), batch)
    assert (found["labels"].isnan().item(), inner.calls) == (True, 1)  # it would have been seen


def test_labels_that_are_known_alone_are_learned_and_counted() -> None:
    labels = torch.tensor([0, -100, 2, -100, -100, -100])
    batch = batch_of(labels, TeacherOutput(predictions=teacher()))
    z = student()
    found = objective(Distill(teacher=TEACHER, alpha=0.5))(output_of(z), batch)
    torch.testing.assert_close(found["labels"], 0.5 * nn.functional.cross_entropy(z[[0, 2]], labels[[0, 2]]))
    assert objective(Distill(teacher=TEACHER)).num_items(batch) == {"": 2, "distill": B}
    assert objective(Distill(teacher=TEACHER, form="dkd")).num_items(batch) == {"": 2, "distill": 2}
    assert objective(only()).num_items(batch) == {"distill": B}
    assert objective(only("dist")).num_items(batch) is None


@pytest.mark.parametrize("form", ["kd", "dkd"])
def test_micro_batches_weighted_by_the_counts_are_the_batch(form: Any) -> None:
    labels = torch.tensor([0, -100, 2, -100, -100, 3])
    batch = batch_of(labels, TeacherOutput(predictions=teacher()))
    z, made = student(), objective(Distill(teacher=TEACHER, form=form))
    whole = made(output_of(z), batch)
    counts = [made.num_items(batch[rows]) for rows in (slice(0, 2), slice(2, 6))]
    for name in ("labels", "distill"):
        shares = [each.get(name, each.get("")) for each in counts if each is not None]
        parts = [made(output_of(z[rows]), batch[rows])[name] for rows in (slice(0, 2), slice(2, 6))]
        mean = sum(part * share for part, share in zip(parts, shares, strict=True)) / sum(shares)  # type: ignore[arg-type]
        torch.testing.assert_close(mean, whole[name])


def test_a_loss_that_sees_a_batch_as_a_whole_keeps_it_whole() -> None:
    class Whole(nn.Module):
        stages = ()

    assert objective(Distill(teacher=TEACHER), inner=Whole()).num_items(batch_of(LABELS)) is None


def test_only_the_classes_that_both_know_are_compared() -> None:
    s, t = student(), teacher()[:, :3]
    columns = (3, 0, 2)
    found = term(only(T=2), s, t, columns=columns)
    close(found, np_kd(s.numpy()[:, list(columns)], t.numpy(), 2))
    # Label 1 is not among them: rows 1 and 5 are left out, and the others have their place in the teacher's order.
    rows, places = [0, 2, 3, 4], np.array([1, 2, 0, 1])
    found = term(only("dkd", T=2), s, t, columns=columns)
    close(found, np_dkd(s.numpy()[rows][:, list(columns)], t.numpy()[rows], places, 2, 1, 2))
    unknown = term(only("dkd"), s, t[:, :2], torch.full((B,), 3), columns=(0, 1))
    assert float(unknown) == 0
    unit = np.array([10.0, 2.0, 1.0])
    found = term(only(), s, t, s, kind="regression", columns=columns)
    close(found, (((s.numpy()[:, list(columns)] - t.numpy()) / unit) ** 2).mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_numbers_are_compared_in_float32(dtype: torch.dtype) -> None:
    s, t = (10 * z.to(dtype) for z in (student(), teacher()))
    found = term(only(), s, t.to(torch.float16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, term(only(), s.float(), t.to(torch.float16).float()))


# -- warm-up ----------------------------------------------------------------------------------------------------------


class Counting:
    """An objective with a warm-up of four updates, and one parameter that an optimiser moves."""

    def __init__(self, *, fused: bool = True) -> None:
        self.weight = nn.Parameter(torch.zeros(C))
        learner: Any = nn.Module()
        learner.objective, learner.head = Labelled(), nn.ParameterList([self.weight])
        learner.start_of = lambda parameter: 0.0
        context = Context(target=CLASSES, purpose="train", generator=torch.Generator())
        made: Any = only(warmup=4).apply(learner, context).objective
        self.objective = made
        self.optimiser = torch.optim.AdamW([self.weight], lr=1e-3, fused=fused)

    def inputs(self) -> Any:
        return output_of(student() + self.weight.detach()), batch_of(LABELS, TeacherOutput(predictions=teacher()))

    def passed(self) -> float:
        """The share of the weight in one pass."""
        inputs = self.inputs()
        return float(self.objective(*inputs)["distill"] / self.objective.distance(*inputs))

    def update(self) -> None:
        self.weight.grad = torch.ones(C)
        self.optimiser.step()


@pytest.mark.parametrize("fused", [True, False])
def test_the_weight_rises_with_updates(fused: bool) -> None:
    made = Counting(fused=fused)
    shares = []
    for _ in range(6):
        shares.append(made.passed())
        made.update()
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-6)


def test_passes_between_two_updates_count_once_and_evaluation_never() -> None:
    made = Counting()
    assert [made.passed() for _ in range(3)] == pytest.approx([0.25] * 3, rel=1e-6)
    made.update()
    with torch.no_grad():
        assert made.passed() == pytest.approx(0.25, rel=1e-6)
    assert [made.passed() for _ in range(2)] == pytest.approx([0.5] * 2, rel=1e-6)


def test_a_killed_warm_up_goes_on_where_it_was() -> None:
    made, again = Counting(), Counting()
    for _ in range(2):
        made.passed()
        made.update()
    again.objective.load_state_dict(made.objective.state_dict())
    assert list(made.objective.state_dict()) == ["warmup.updates"]
    assert again.passed() == made.passed() == pytest.approx(0.75, rel=1e-6)


def test_a_trial_pass_that_puts_buffers_back_counts_nothing() -> None:
    made = Counting()
    before = {name: x.clone() for name, x in made.objective.named_buffers()}
    made.passed()
    for name, x in made.objective.named_buffers():
        x.copy_(before[name])
    assert made.passed() == pytest.approx(0.25, rel=1e-6)


def test_without_a_warm_up_nothing_is_counted_or_stored() -> None:
    assert not objective(only()).state_dict()


# -- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -0.1}, "distill(alpha=-0.1): allowed: 0 to 1"),
        ({"alpha": 1.1}, "distill(alpha=1.1): allowed: 0 to 1"),
        ({"T": 0.0}, "distill(T=0): allowed: above 0"),
        ({"T": -1.0}, "distill(T=-1): allowed: above 0"),
        ({"form": "mse", "T": 2.0}, "distill(form=mse,T=2): logits are compared as they are; leave T out, or form=kd"),
        ({"warmup": -1}, "distill(warmup=-1): allowed: 0 or more, a number of updates"),
        ({"form": "dist", "beta": -1.0}, "distill(beta=-1): allowed: 0 or more"),
        ({"form": "dkd", "rest_weight": float("inf")}, "distill(rest_weight=inf): allowed: 0 or more"),
        ({"rest_weight": 8.0}, "distill(rest_weight=8): rest_weight is a weight of form=dkd, not of kd"),
        ({"form": "dkd", "gamma": 2.0}, "distill(gamma=2): gamma is a weight of form=dist, not of dkd"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(fields: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Distill(teacher=TEACHER, **fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({}, {"classes", "multilabel", "regression", "token_classes"}),
        ({"T": 2.0}, {"classes", "multilabel", "token_classes"}),
        ({"form": "mse"}, {"classes", "multilabel", "regression", "token_classes"}),
        ({"form": "dkd"}, {"classes", "token_classes"}),
        ({"form": "dist"}, {"classes"}),
        ({"standardise": True}, {"classes", "token_classes"}),
    ],
)
def test_a_form_says_what_it_is_for(fields: Any, targets: set[str]) -> None:
    assert fact("adapter", Distill(teacher=TEACHER, **fields), "targets") == targets


def test_alpha_0_is_plain_training_and_asks_for_no_teacher(taught: Make) -> None:
    recipe = Distill(teacher=TEACHER, alpha=0)
    assert recipe.teachers() == ()
    assert isinstance(taught(recipe, inner=Labelled()).objective, Labelled)
    assert not fact("adapter", recipe, "unlabelled")
    assert fact("adapter", Distill(teacher=TEACHER), "unlabelled")
    assert not fact("adapter", Distill(teacher=TEACHER, form="dkd"), "unlabelled")
    assert len(Distill(teacher=TEACHER, keep="float16").teachers()) == 1


def test_a_small_alpha_is_near_plain_training() -> None:
    batch = batch_of(LABELS, TeacherOutput(predictions=teacher()))
    plain = Labelled()(output_of(student()), batch)["labels"]
    found = objective(Distill(teacher=TEACHER, alpha=1e-9))(output_of(student()), batch)
    torch.testing.assert_close(found["labels"] + found["distill"], plain, rtol=1e-6, atol=0)


def test_only_the_objective_changes(taught: Make) -> None:
    recipe = Distill(teacher=TEACHER)
    assert recipe.first_stage(3) == 3
    assert isinstance(taught(recipe, purpose="use", inner=Labelled()).objective, Labelled)
    learner = taught(recipe)
    assert isinstance(learner.objective, Distillation)
    assert learner.objective.taught
    assert not learner.objective.state_dict()
    assert fact("adapter", recipe, "exact_at_start") is AdapterFacts.exact_at_start is True


def test_two_teachers_have_terms_of_their_own(taught: Make) -> None:
    learner = taught(Distill(teacher=TEACHER), inner=Labelled())
    for teacher_of in ("runs/other", TEACHER):
        learner = taught(Distill(teacher=teacher_of), learner)
    batch = batch_of(LABELS, TeacherOutput(predictions=teacher()))
    given = {TEACHER: batch.teachers[TEACHER], "runs/other": TeacherOutput(predictions=teacher(2))}
    batch = type(batch)(inputs={}, target=LABELS, teachers=given)
    assert learner.objective is not None
    terms = learner.objective(output_of(student()), batch)
    assert list(terms) == ["labels", "distill", "distill_2", "distill_3"]
    torch.testing.assert_close(terms["distill"] * 4, terms["distill_3"])  # each halves what stands before it
    assert learner.objective.num_items(batch) == {"": B, "distill": B, "distill_2": B, "distill_3": B}  # type: ignore[operator]


def test_a_batch_without_the_teacher_says_what_to_call() -> None:
    with pytest.raises(UsageError, match=r"the batch holds nothing of the teacher 'runs/teacher'.*learner\.taught"):
        objective(only())(output_of(student()), batch_of(LABELS))


def test_one_class_in_common_is_refused(taught: Make) -> None:
    with pytest.raises(RefusedError, match="teacher and student share 1 class"):
        taught(only(), given=TeacherOutput(predictions=teacher()[:, :1], columns=(2,)))


def test_the_unit_of_a_regression_is_the_heads_as_it_is_fitted(taught: Make) -> None:
    target = Target(kind="regression", size=2)
    learner = taught(only(), target=target)
    learner.fit_scale(torch.tensor([[0.0, 0.0], [2.0, 20.0]]))  # type: ignore[attr-defined]
    for each in (learner, copy.deepcopy(learner)):
        assert each.objective is not None
        predictions = torch.tensor([[1.0, 10.0]])
        batch = batch_of(predictions, TeacherOutput(predictions=torch.zeros(1, 2)))
        assert float(each.objective(output_of(predictions), batch)["distill"]) == pytest.approx(1)
