"""Learners of the starter backbones, with a recipe of this plugin applied by hand as build does it for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import zoo_core
from zoo_core.contracts import AdapterRecipe, Context, Learner, Target, TeacherOutput, fact

Make = Callable[..., Learner]

CLASSES = Target(kind="classes", names=("a", "b", "c", "d"))


def apply(
    recipe: AdapterRecipe,
    learner: Learner | str = "starter/vit-nano+full",
    *,
    target: Target = CLASSES,
    given: TeacherOutput | None = None,
    inner: nn.Module | None = None,
    purpose: Any = "train",
) -> Learner:
    """given: what each teacher of the recipe gives. inner: the objective before it, by default the core's."""
    built: Any = zoo_core.load(learner, target=target) if isinstance(learner, str) else learner
    built.objective = inner or built.objective
    names = [teacher.of for teacher in fact("adapter", recipe, "teachers")()]
    teachers = {} if given is None else dict.fromkeys(names, given)
    context = Context(target=target, purpose=purpose, generator=torch.Generator(), teachers=teachers)
    applied: Learner = recipe.apply(built, context)
    return applied


@pytest.fixture
def taught() -> Make:
    return apply
