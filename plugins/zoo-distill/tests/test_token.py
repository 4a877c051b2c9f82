"""distill-token: what the token and its head add, what each of both heads learns, and where it is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo_core
from zoo_core.contracts import Batch, Learner, Output, Target, Teacher, TeacherOutput, fact
from zoo_core.errors import RefusedError, UsageError
from zoo_core.toolkit.stages import capture
from zoo_distill.distillation_token import DistillToken
from zoo_distill.logit_losses import softmax_kl
from zoo_distill.token_modules import TokenDistillation, TwoHeads

Make = Callable[..., Learner]

TEACHER = "runs/big"
VIT = "starter/vit-nano+full"
LABELS = torch.tensor([0, 1, 2, 3, -100, 1])
GIVEN = TeacherOutput(predictions=3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))


def pictures() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def batch_of(given: TeacherOutput = GIVEN) -> Batch:
    return Batch(inputs=pictures(), target=LABELS, teachers={TEACHER: given})


def made(taught: Make, spec: str = VIT, **fields: Any) -> tuple[Learner, TwoHeads, TokenDistillation]:
    learner = taught(DistillToken(teacher=TEACHER, **fields), spec)
    assert isinstance(learner.head, TwoHeads)
    assert isinstance(learner.objective, TokenDistillation)
    return learner, learner.head, learner.objective


def in_training(learner: Learner) -> Output:
    """One pass, with the stage that the objective asks for, by a learner without randomness."""
    learner.train()
    assert learner.objective is not None
    wanted: Any = learner.objective.stages
    with capture(learner.backbone, wanted) as states:
        output = learner(pictures())
    return Output(predictions=output.predictions, features=output.features, stages=states)


def test_the_token_and_its_head_are_all_that_is_added(taught: Make) -> None:
    plain = zoo_core.load(VIT, target=Target(kind="classes", names=("a", "b", "c", "d")))
    learner, head, _ = made(taught)
    before, after = (sum(x.numel() for _, x in each.trainable()) for each in (plain, learner))
    width, classes = 96, 4
    assert after - before == width + 2 * width + (width + 1) * classes
    names = {name for name, _ in learner.trainable()}
    assert "backbone.distill_token.token" in names
    assert {name for name in names if name.startswith("heads.main.token_head.")} != set()
    assert head.head is not head.token_head
    assert {learner.scale_of(x) for x in head.token_head.parameters()} == {10}, "the rate of full's head"


def test_each_head_learns_its_own(taught: Make) -> None:
    learner, head, objective = made(taught, alpha=0.3, T=2.0)
    output = in_training(learner)
    own = output.predictions
    token = head.of_token(learner.backbone.distill_token.read(output.stages[objective.stages[0]]))  # type: ignore[operator, union-attr]
    terms = objective(output, batch_of())
    assert GIVEN.predictions is not None
    torch.testing.assert_close(terms["distill_token"], 0.3 * softmax_kl(token, GIVEN.predictions, 2).mean())
    torch.testing.assert_close(terms["cross_entropy"], 0.7 * nn.functional.cross_entropy(own, LABELS))
    terms["distill_token"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in head.head.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.token_head.parameters())
    assert learner.backbone.distill_token.token.grad.any()  # type: ignore[operator, union-attr]
    assert objective.num_items(batch_of()) == {"": 5, "distill_token": 6}


def test_hard_predictions_are_the_teachers_likeliest_classes(taught: Make) -> None:
    learner, head, objective = made(taught, hard=True)
    output = in_training(learner)
    token = head.of_token(learner.backbone.distill_token.read(output.stages[objective.stages[0]]))  # type: ignore[operator, union-attr]
    assert GIVEN.predictions is not None
    likeliest = GIVEN.predictions.argmax(dim=1)
    found = objective(output, batch_of())["distill_token"]
    torch.testing.assert_close(found, 0.5 * nn.functional.cross_entropy(token, likeliest))
    columns = (3, 1)
    some = TeacherOutput(predictions=GIVEN.predictions[:, :2], columns=columns)
    labels = torch.tensor(columns)[GIVEN.predictions[:, :2].argmax(dim=1)]
    torch.testing.assert_close(
        objective(output, batch_of(some))["distill_token"], 0.5 * nn.functional.cross_entropy(token, labels)
    )
    _, _, soft = made(taught)
    assert soft(output, batch_of(some))["distill_token"].isfinite()


def test_in_use_the_mean_of_both_heads_is_predicted(taught: Make) -> None:
    learner, head, objective = made(taught)
    learner.train(False)
    with torch.no_grad(), capture(learner.backbone, objective.stages) as states:
        output = learner(pictures())
        token = head.of_token(learner.backbone.distill_token.read(states[objective.stages[0]]))  # type: ignore[operator, union-attr]
        pooled = learner.source.pool(output.features)
        own = head.head(type(output.features)(kind="pooled", x=pooled))
    assert torch.equal(output.predictions, (own + token) / 2)
    assert not torch.allclose(token, own)


def test_the_token_sees_the_picture_and_the_picture_sees_it(taught: Make) -> None:
    learner, _, objective = made(taught)
    learner.train(False)
    last = objective.stages
    with torch.no_grad(), capture(learner.backbone, last) as states:
        learner(pictures())
    found = states[last[0]]
    assert found.shape[1] == 17
    assert not torch.allclose(found[0, 0], found[1, 0])
    plain = zoo_core.load(VIT, num_classes=4)
    with torch.no_grad(), capture(plain.backbone, last) as states:
        plain(pictures())
    assert not torch.allclose(found[:, 1:], states[last[0]])


def test_copies_and_pickles_predict_the_same_whenever_they_are_made(taught: Make) -> None:
    learner, _, _ = made(taught)
    learner.train(False)
    expected = learner(pictures()).predictions  # with a graph
    learner.backbone(pictures())  # without its head: what it leaves must be in nobody's way
    copied = copy.deepcopy(learner)
    assert torch.equal(copied(pictures()).predictions, expected)
    backbone = copy.deepcopy(learner.backbone)
    backbone(pictures())
    loaded = pickle.loads(pickle.dumps(learner.backbone.distill_token))
    assert loaded.last_pass.state is None
    assert torch.equal(learner(pictures()).predictions, expected)
    with torch.no_grad():
        copied.backbone.distill_token.token.add_(1)  # type: ignore[operator, union-attr]
    assert not torch.equal(copied(pictures()).predictions, expected)
    assert torch.equal(learner(pictures()).predictions, expected), "a copy has its own token"


@pytest.mark.slow
def test_compiled_it_predicts_the_same(taught: Make) -> None:
    learner, _, _ = made(taught)
    learner.train(False)
    module: Any = learner
    with torch.no_grad():
        expected = learner(pictures()).predictions
        compiled: Any = torch.compile(module)
        torch.testing.assert_close(compiled(pictures()).predictions, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(pictures()).predictions, expected, rtol=1e-4, atol=1e-5)


def test_it_learns_from_teacher_and_labels(taught: Make) -> None:
    learner, _, objective = made(taught)
    optimiser = torch.optim.AdamW(learner.parameter_groups(5e-4))
    losses = []
    for _ in range(40):
        terms = objective(in_training(learner), batch_of())
        loss = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append({name: float(x.detach()) for name, x in terms.items()})
    assert all(losses[-1][name] < losses[0][name] / 2 for name in ("cross_entropy", "distill_token")), losses[::39]


def test_for_use_it_is_the_same_model_without_an_objective(taught: Make) -> None:
    trained, _, _ = made(taught)
    plain = zoo_core.load(VIT, target=trained.target)
    used = taught(DistillToken(teacher=TEACHER), plain, target=trained.target, purpose="use")
    assert not isinstance(used.objective, TokenDistillation)
    assert {n for n, _ in used.trainable()} == {n for n, _ in trained.trainable()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0.0}, "distill-token(alpha=0): allowed: above 0 and below 1, both heads must learn"),
        ({"alpha": 1.0}, "distill-token(alpha=1): allowed: above 0 and below 1, both heads must learn"),
        ({"T": 0.0}, "distill-token(T=0): allowed: above 0"),
        (
            {"hard": True, "T": 2.0},
            "distill-token(hard=true,T=2): hard predictions have no temperature; leave T out",
        ),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(fields: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        DistillToken(teacher=TEACHER, **fields)
    assert str(caught.value) == message


def test_a_backbone_or_head_that_cannot_take_it_is_refused(taught: Make) -> None:
    with pytest.raises(RefusedError, match=r"^distill-token: its stages work on map features"):
        taught(DistillToken(teacher=TEACHER), "starter/convnet-nano+full")
    with pytest.raises(RefusedError, match="fitted in closed form"):
        taught(DistillToken(teacher=TEACHER), "starter/vit-nano+ncm")


def test_it_says_what_it_is() -> None:
    recipe = DistillToken(teacher=TEACHER, keep="float16")
    assert recipe.teachers() == (Teacher(of=TEACHER, keep="float16"),)
    facts = {name: fact("adapter", recipe, name) for name in ("mergeable", "exact_at_start", "unlabelled", "targets")}
    assert facts == {"mergeable": False, "exact_at_start": False, "unlabelled": False, "targets": {"classes"}}
    assert fact("adapter", recipe, "first_stage")(4) == 0
