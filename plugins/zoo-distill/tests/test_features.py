"""distill-features: each distance against numpy's, how hidden states are laid over, the maps, what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Features, Learner, Output, Target, Teacher, TeacherOutput, fact
from zoo_core.errors import RefusedError, UsageError
from zoo_core.toolkit.stages import capture, dummy_inputs
from zoo_distill.feature_losses import (
    attention_distance,
    cosine_distance,
    laid_over,
    relation_distance,
    squared_distance,
)
from zoo_distill.feature_modules import PooledDistillation, RelationDistillation, StageDistillation
from zoo_distill.features import DistillFeatures

Array = np.ndarray[Any, Any]
Make = Callable[..., Learner]

TEACHER = "dinov2-small"
VIT, CONVNET, MLP = "starter/vit-nano+full", "starter/convnet-nano+full", "starter/mlp-nano(weights=random)+full"
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Array) -> None:
    """Equal but for another order of a few sums in float64."""
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


# -- numpy ------------------------------------------------------------------------------------------------------------


def np_relations(x: Array, heads: int) -> list[Array]:
    """Of one example [T, D], for each head."""
    found = []
    for piece in np.split(x, heads, axis=1):
        raised = np.exp(piece @ piece.T / math.sqrt(piece.shape[1]))
        found.append(raised / raised.sum(axis=1, keepdims=True))
    return found


def per_example(each: Callable[[Array, Array], float], s: Tensor, t: Tensor, mask: Tensor | None) -> Array:
    real = torch.ones(s.shape[:2], dtype=torch.bool) if mask is None else mask
    rows = zip(s, t, real, strict=True)
    return np.array([each(one[keep].numpy(), other[keep].numpy()) for one, other, keep in rows])


def np_cosine(s: Array, t: Array) -> float:
    return float(np.mean([1 - a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(s, t, strict=True)]))


def np_attention(s: Array, t: Array) -> float:
    maps = [(x**2).mean(axis=1) for x in (s, t)]
    one, other = (x / np.sqrt((x**2).sum()) for x in maps)
    return float(((one - other) ** 2).mean())


def np_minilm(s: Array, t: Array) -> float:
    pairs = zip(np_relations(s, 2), np_relations(t, 2), strict=True)
    return float(np.mean([(p * np.log(p / q)).sum(axis=1).mean() for q, p in pairs]))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "padded"])
def test_each_distance_is_numpys(mask: Tensor | None) -> None:
    s, t, wide = drawn(2, 4, 6), drawn(2, 4, 6, seed=1), drawn(2, 4, 10, seed=2)
    close(cosine_distance(s, t, mask), per_example(np_cosine, s, t, mask))
    close(squared_distance(s, t, mask), per_example(lambda a, b: float(((a - b) ** 2).mean()), s, t, mask))
    close(attention_distance(s, wide, mask), per_example(np_attention, s, wide, mask))
    close(relation_distance(s, wide, mask, 2), per_example(np_minilm, s, wide, mask))


def test_padding_is_not_looked_at() -> None:
    s, t = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    worse = s.masked_fill(~MASK.unsqueeze(-1), 1e6)
    for distance in (cosine_distance, squared_distance, attention_distance):
        assert torch.equal(distance(worse, t, MASK), distance(s, t, MASK))
    assert torch.equal(relation_distance(worse, t, MASK, 3), relation_distance(s, t, MASK, 3))
    assert not torch.allclose(squared_distance(worse, t, None), squared_distance(s, t, None))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "padded"])
def test_features_of_the_teacher_are_no_distance(mask: Tensor | None) -> None:
    x = drawn(2, 4, 6)
    zero = torch.zeros(2, dtype=x.dtype)
    assert torch.equal(squared_distance(x, x.clone(), mask), zero)
    assert torch.equal(attention_distance(x, x.clone(), mask), zero)
    assert torch.equal(relation_distance(x, x.clone(), mask, 2), zero)
    torch.testing.assert_close(cosine_distance(x, x.clone(), mask), zero, rtol=0, atol=1e-15)  # a quotient rounds


def test_what_a_scale_changes() -> None:
    s, t = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    for distance in (attention_distance, cosine_distance):
        torch.testing.assert_close(distance(7 * s, t, None), distance(s, t, None))
    assert not torch.allclose(squared_distance(7 * s, t, None), squared_distance(s, t, None))
    assert not torch.allclose(relation_distance(7 * s, t, None, 2), relation_distance(s, t, None, 2))


def test_gradients_are_those_of_finite_differences() -> None:
    t = drawn(2, 4, 6, seed=1)
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda s: cosine_distance(s, t, MASK),
        lambda s: squared_distance(s, t, MASK),
        lambda s: attention_distance(s, t, MASK),
        lambda s: relation_distance(s, t, MASK, 3),
    ]
    for loss in losses:
        assert torch.autograd.gradcheck(loss, (drawn(2, 4, 6).requires_grad_(),))


# -- hidden states of two networks ------------------------------------------------------------------------------------


def over(student: Tensor, teacher: Tensor, first: bool = True, modality: Any = "image") -> Any:
    return laid_over(student, teacher, channels_first=first, modality=modality)


def test_maps_and_tokens_meet_at_the_same_places() -> None:
    grid = drawn(2, 5, 4, 4)
    tokens = grid.flatten(2).transpose(1, 2)
    for other in (tokens, torch.cat([drawn(2, 1, 5, seed=3), tokens], dim=1), grid.permute(0, 2, 3, 1)):
        student, teacher = over(other, grid, other.ndim == 3)
        assert torch.equal(student, tokens)
        assert torch.equal(teacher, tokens)


def test_the_larger_map_is_averaged_down() -> None:
    small, large = drawn(2, 3, 2, 2), drawn(2, 5, 4, 4)
    student, teacher = over(large, small)
    blocks = large.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(student, blocks.flatten(2).transpose(1, 2))
    assert torch.equal(teacher, small.flatten(2).transpose(1, 2))
    mirrored, _ = over(small, large)
    assert torch.equal(mirrored, teacher)
    wide, narrow = over(drawn(1, 3, 2, 8), drawn(1, 3, 4, 4))
    assert wide.shape == narrow.shape == (1, 8, 3)


def test_a_batch_without_examples_that_match_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"has 3 tokens and the teacher's 16, and one of them is no map of places"):
        over(drawn(1, 3, 5), drawn(1, 5, 4, 4))
    with pytest.raises(RefusedError, match=r"has 7 tokens and the teacher's 9, so they cut the same example"):
        over(drawn(1, 7, 5), drawn(1, 9, 5), modality="text")
    with pytest.raises(RefusedError, match=r"has 1 tokens and the teacher's 16"):
        over(drawn(2, 5), drawn(2, 16, 5))
    student, teacher = over(drawn(2, 5), drawn(2, 5, seed=1), modality="table")
    assert student.shape == teacher.shape == (2, 1, 5)


# -- the objective ----------------------------------------------------------------------------------------------------


def seen(learner: Learner, size: int = 3) -> Output:
    """What the learner's objective reads of a batch of dummies; sites by hooks on fused projections are not needed."""
    assert learner.objective is not None
    stages = tuple({index for module in learner.objective.modules() for index in getattr(module, "stages", ())})
    inputs = {name: drawn(*x.shape).to(x) for name, x in dummy_inputs(learner.backbone, size).items()}
    with capture(learner.backbone, stages) as states:
        features: Features = learner.backbone(inputs)
    source = learner.source
    pooled = features.x if features.kind == "pooled" else source.pool(features)
    return Output(predictions=learner(inputs).predictions, features=features, pooled=pooled, stages=states)


def batch_of(given: TeacherOutput, size: int = 3) -> Batch:
    return Batch(inputs={}, target=torch.arange(size) % 4, teachers={TEACHER: given})


def features(**fields: Any) -> DistillFeatures:
    return DistillFeatures(teacher=TEACHER, **fields)


def own_term(learner: Learner, given: TeacherOutput, output: Output | None = None) -> Tensor:
    assert learner.objective is not None
    terms: dict[str, Tensor] = learner.objective(output or seen(learner), batch_of(given))
    assert list(terms) == ["cross_entropy", "distill_features"]
    return terms["distill_features"]


@pytest.mark.parametrize("width", [96, 20], ids=["equal", "mapped"])
@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_pooled_features_are_mapped_to_the_teachers_width(taught: Make, loss: Any, width: int) -> None:
    given = TeacherOutput(pooled=drawn(3, width).float())
    learner = taught(features(loss=loss, weight=3.0), VIT, given=given)
    made = learner.objective
    assert isinstance(made, PooledDistillation)
    assert made.pooled
    assert [tuple(x.shape) for x in made.parameters()] == ([] if width == 96 else [(20, 96), (20,)])
    output = seen(learner)
    assert output.pooled is not None
    mapped = made.maps(output.pooled).double()
    distance = {"cosine": cosine_distance, "mse": squared_distance}[loss]
    expected = 3 * distance(mapped[:, None], given.pooled.double()[:, None], None).mean()  # type: ignore[union-attr]
    torch.testing.assert_close(own_term(learner, given, output).double(), expected, rtol=1e-5, atol=1e-6)
    assert made.num_items(batch_of(given)) == {"": 3, "distill_features": 3}


def test_a_map_trains_at_the_heads_rate_and_stays_out_of_the_delta(taught: Make) -> None:
    given = TeacherOutput(pooled=drawn(3, 20).float())
    plain = taught(features(weight=0.0), VIT)
    learner = taught(features(), VIT, given=given)
    assert learner.objective is not None
    parameters = list(learner.objective.parameters())
    assert [learner.scale_of(each) for each in parameters] == [10, 10]  # full's head_scale
    assert {id(each) for each in parameters} < {id(each) for _, each in learner.trainable()}
    assert learner.delta().keys() == plain.delta().keys()
    own_term(learner, given).backward()
    assert all(each.grad is not None and each.grad.any() for each in parameters)
    assert next(iter(learner.base().values())).grad is not None
    copied = copy.deepcopy(learner)
    assert torch.equal(own_term(copied, given), own_term(learner, given))


def test_stages_are_compared_by_pairs(taught: Make) -> None:
    states = {0: drawn(3, 7, 5, 5).float(), -1: drawn(3, 96, 2, 2).float()}
    given = TeacherOutput(stages=states)
    learner = taught(features(loss="hint", stages=((1, 1), (-1, -1))), VIT, given=given)
    made = learner.objective
    assert isinstance(made, StageDistillation)
    last = len(learner.source.stages) - 1
    assert (made.stages, [pair.teacher for pair in made.pairs]) == ((0, last), [0, -1])
    assert [type(each) for each in made.maps] == [nn.Linear, nn.Identity]
    output = seen(learner)
    total = torch.zeros(())
    for own, theirs, to in ((0, 0, made.maps[0]), (last, -1, made.maps[1])):
        one, other = over(output.stages[own], states[theirs])
        total = total + ((to(one) - other) ** 2).mean()
    torch.testing.assert_close(own_term(learner, given, output), 100 * total)


@pytest.mark.parametrize("student", [VIT, CONVNET])
@pytest.mark.parametrize("shape", [(16, 30), (17, 30), (9, 4, 4), (9, 7, 7)], ids=str)
def test_attention_transfer_takes_what_has_places(taught: Make, student: str, shape: tuple[int, ...]) -> None:
    given = TeacherOutput(stages={-1: drawn(3, *shape).float()})
    learner = taught(features(loss="at"), student, given=given)
    assert learner.objective is not None
    assert not list(learner.objective.parameters())
    found = own_term(learner, given)
    assert float(found.detach()) > 0
    louder = TeacherOutput(stages={-1: 5 * given.stages[-1]})
    torch.testing.assert_close(own_term(learner, louder), found, rtol=1e-4, atol=0)


def test_pictures_that_do_not_go_together_are_refused_before_a_step(taught: Make) -> None:
    for student, given in ((VIT, drawn(2, 3, 30)), (CONVNET, drawn(2, 30))):
        with pytest.raises(RefusedError, match="no map of places; name other stages, or compare pooled features"):
            taught(features(loss="at"), student, given=TeacherOutput(stages={-1: given}))


def test_rows_of_tables_are_compared_too(taught: Make) -> None:
    given = TeacherOutput(stages={-1: drawn(3, 11).float()})
    learner = taught(features(loss="mse", stages=((-1, -1),)), MLP, given=given)
    assert own_term(learner, given).isfinite()


# -- relations --------------------------------------------------------------------------------------------------------


def sites_of(width: int, tokens: int = 16, stage: int = -1, seed: int = 0) -> dict[tuple[int, str], Tensor]:
    roles = ("attn.q", "attn.k", "attn.v")
    return {(stage, role): drawn(3, tokens, width, seed=seed + place) for place, role in enumerate(roles)}


def with_sites(output: Output, sites: dict[tuple[int, str], Tensor], mask: Tensor | None = None) -> Output:
    shown = Features(kind="tokens", x=output.features.x, mask=mask)
    return Output(predictions=output.predictions, features=shown, sites=sites)


def test_relations_sum_over_queries_keys_and_values(taught: Make) -> None:
    given = TeacherOutput(sites=sites_of(40, seed=7))
    learner = taught(features(loss="minilm", heads=8), VIT, given=given)
    made, last = learner.objective, len(learner.source.stages) - 1
    assert isinstance(made, RelationDistillation)
    assert made.sites == ((last, "attn.q"), (last, "attn.k"), (last, "attn.v"))
    own = sites_of(96, stage=last)
    expected = sum(
        relation_distance(own[last, role], given.sites[-1, role], None, 8).mean()
        for role in ("attn.q", "attn.k", "attn.v")
    )
    found = own_term(learner, given, with_sites(seen(learner), own))
    torch.testing.assert_close(found, expected)


def test_relation_heads_divide_the_widths_of_both(taught: Make) -> None:
    learner = taught(features(loss="minilm"), VIT, given=TeacherOutput(sites=sites_of(48)))
    assert isinstance(learner.objective, RelationDistillation)
    site = learner.source.sites("attn.q")[-1]
    assert learner.objective.heads == site.num_heads
    with pytest.raises(RefusedError) as caught:
        taught(features(loss="minilm", heads=5), VIT, given=TeacherOutput(sites=sites_of(40)))
    assert str(caught.value) == (
        "distill-features: 5 relation heads do not divide the widths 40, 96 of queries, keys and values; "
        "allowed: heads=1, 2, 4, 8"
    )


def test_tokens_that_are_cut_otherwise_are_refused(taught: Make) -> None:
    given = TeacherOutput(sites=sites_of(96))
    learner = taught(features(loss="minilm"), VIT, given=given)
    last, output = len(learner.source.stages) - 1, seen(learner)
    own = sites_of(96, stage=last, seed=5)
    half = torch.arange(16).expand(3, 16) < 8
    masked = TeacherOutput(sites=given.sites, mask=half)
    same = own_term(learner, masked, with_sites(output, own, half))
    assert not torch.equal(same, own_term(learner, given, with_sites(output, own)))
    for teacher, mask in ((masked, ~half), (TeacherOutput(sites=sites_of(96, tokens=9)), None)):
        with pytest.raises(RefusedError, match="do not cut an example into the same tokens"):
            own_term(learner, teacher, with_sites(output, own, mask))


def test_a_student_without_these_roles_is_refused(taught: Make) -> None:
    with pytest.raises(RefusedError, match=r"stage \d of the student has 0 projections attn\.q"):
        taught(features(loss="minilm"), CONVNET, given=TeacherOutput(sites=sites_of(96)))
    assert fact("adapter", features(loss="minilm"), "needs") == (frozenset({"attn.q", "attn.k", "attn.v"}),)
    assert fact("adapter", features(), "needs") == ()


# -- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, "distill-features(weight=-1): allowed: 0 or more"),
        ({"weight": float("nan")}, "distill-features(weight=nan): allowed: 0 or more"),
        ({"heads": 4}, "distill-features(heads=4): heads are of loss=minilm, not of cosine"),
        ({"loss": "minilm", "heads": 0}, "distill-features(heads=0): allowed: 1 or more"),
        (
            {"stages": ((0, 1),)},
            "distill-features(stages=[[0, 1]]): stages are counted from 1, or from the end with -1 the last",
        ),
        (
            {"loss": "hint"},
            "distill-features(loss=hint): a hint is of stages that you name, usually the middle ones: stages=[[2, 2]]",
        ),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(fields: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        features(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize("number", [4, -4])
def test_a_stage_that_the_student_lacks_is_refused_with_the_number_there_are(number: int) -> None:
    recipe = features(loss="at", stages=((number, 1),))
    assert recipe.first_stage(4) == 4
    with pytest.raises(UsageError) as caught:
        recipe.first_stage(3)
    assert f"the student has 3 stages, found {number}; allowed: 1 to 3, or -1 to -3 from the end" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, {"pooled": True}),
        ({"loss": "mse", "stages": ((1, 2), (3, 2), (2, -1))}, {"stages": (1, -1)}),
        ({"loss": "at", "keep": "float16"}, {"stages": (-1,), "keep": "float16"}),
        ({"loss": "minilm"}, {"sites": ((-1, "attn.q"), (-1, "attn.k"), (-1, "attn.v"))}),
        ({"loss": "minilm", "stages": ((1, 21),)}, {"sites": ((20, "attn.q"), (20, "attn.k"), (20, "attn.v"))}),
    ],
)
def test_a_recipe_asks_for_what_its_loss_reads(fields: Any, asked: Any) -> None:
    assert features(**fields).teachers() == (Teacher(of=TEACHER, predictions=False, **asked),)
    assert fact("adapter", features(**fields), "unlabelled")


def test_weight_0_is_plain_training_and_asks_for_no_teacher(taught: Make) -> None:
    recipe = features(weight=0.0)
    assert recipe.teachers() == ()
    assert type(taught(recipe, VIT).objective).__name__ == "CrossEntropy"
    assert not fact("adapter", recipe, "unlabelled")


@pytest.mark.parametrize("chain", ["", "+probe"])
def test_a_backbone_that_does_not_train_is_refused_with_the_place(taught: Make, chain: str) -> None:
    with pytest.raises(RefusedError, match=r"write full\+distill-features, or lora\+distill-features"):
        taught(features(), f"starter/vit-nano{chain}", given=TeacherOutput(pooled=drawn(2, 4)))
    assert taught(features(), "starter/vit-nano+lora(r=2)", given=TeacherOutput(pooled=drawn(2, 4))).objective


def test_two_terms_of_one_teacher_stay_apart(taught: Make) -> None:
    given = TeacherOutput(pooled=drawn(3, 96).float())
    learner = taught(features(), taught(features(loss="mse"), VIT, given=given), given=given)
    assert learner.objective is not None
    terms = learner.objective(seen(learner), batch_of(given))
    assert list(terms) == ["cross_entropy", "distill_features", "distill_features_2"]


def test_the_default_weights_are_those_that_the_docstring_says() -> None:
    usual = {"cosine": 1, "mse": 1, "at": 1000, "hint": 100, "minilm": 1}
    for loss, weight in usual.items():
        assert features(loss=loss, stages=((1, 1),)).strength == weight
        assert features(loss=loss, stages=((1, 1),), weight=2.5).strength == 2.5
    assert Target(kind="classes", size=2).kind in fact("adapter", features(), "targets")
