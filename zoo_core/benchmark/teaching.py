"""Where a trial's teachers come in: beside the loaders of its splits, and as the truth of examples without labels."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, requires, version

import torch
from torch import Tensor

from zoo_core.contracts import Split, Target, TeacherOutput
from zoo_core.data.loader import Loader
from zoo_core.data.model_outputs import ModelOutputs, outputs_room
from zoo_core.data.splits import num_unknown, rows_of
from zoo_core.data.token_labels import IGNORED, by_word
from zoo_core.errors import RefusedError
from zoo_core.model.learner import Learner
from zoo_core.model.replay import Passes, Replay
from zoo_core.plan.plan import Plan, identity_of
from zoo_core.plan.resolve import check_learns_unlabelled
from zoo_core.registry.registry import registry
from zoo_core.registry.scan import normalise
from zoo_core.registry.settings import outputs_bytes
from zoo_core.run_layout import RUN
from zoo_core.runs.run_table import run_table
from zoo_core.toolkit.table_encoding import encoding_from, encoding_of

__all__ = ["check_columns", "check_enough", "check_labels", "is_unlabelled", "replay_of", "split_key", "with_truth"]

_log = logging.getLogger(__name__)


def is_unlabelled(plan: Plan) -> bool:
    """Whether the task of a trial has no labels at all, so that its teacher is what scores compare with."""
    return plan.task is not None and plan.task.target.kind == "unlabelled"


def check_labels(plan: Plan, train: Split, target: Target) -> None:
    """Raises RefusedError where labels of training examples are missing and somebody needs them."""
    if is_unlabelled(plan):
        check_learns_unlabelled(plan.task, plan.adapters)
        return
    missing = num_unknown(train.targets, target)
    if missing and not any(adapter.fact("unlabelled") for adapter in plan.adapters):
        raise RefusedError(
            f"{missing} of {train.num} training examples have no label, and nothing here learns without them; add "
            f'+distill(teacher="RUN"), or leave them out'
        )
    if missing and plan.head.fact("fit") == "closed_form":
        raise RefusedError(f"head {plan.head.name} is fitted from labels, and {missing} of {train.num} are missing")


def check_enough(val: Split, test: Split, target: Target) -> None:
    """Raises RefusedError where too few examples are held out for the agreement of features to be defined."""
    if target.kind == "unlabelled" and min(val.num, test.num) < 4:
        raise RefusedError(
            f"{val.num} examples are held out for validation and {test.num} for test, and agreement of features needs "
            f"4 of each; give more examples"
        )


def check_columns(plan: Plan, split: Split) -> None:
    """Raises RefusedError where a table is not made of columns as that of a teacher was.

    A stored run reads numbers as they were scaled by the rows of its own table.
    """
    if plan.task is None or plan.task.recipe.modality != "table":
        return
    own = encoding_of(rows_of(split)[0])
    for of, (_, part) in plan.teachers.items():
        if part.source is None or RUN not in part.source.patterns:
            continue
        from zoo_core.files.fetch import files_of  # a quarter of a second, for plans that need it

        files = files_of(plan, part, weights="random")
        assert files is not None, "a stored run has files"
        table = run_table(files / RUN)
        num, width = table.get("num_columns"), len(split.raw(0))
        if num is not None and num != width:
            raise RefusedError(
                f"teacher {of} reads rows of {num} numbers, and those of task {plan.task.name} have {width}"
            )
        if own is None or "encoding" not in table:
            continue
        if own.columns != encoding_from(table["encoding"]).columns:
            raise RefusedError(
                f"teacher {of} reads columns as they were scaled for its own table, and those of {plan.task.name} are "
                f"scaled by other rows; learn from it on the table that it was fitted on, as "
                f"csv(path=..., labels=drop)"
            )


def replay_of(
    plan: Plan, learner: Learner, split: Split, device: torch.device, passes: Passes, *, role: str
) -> Replay | None:
    """The teachers of a learner beside the examples of a split; None for a learner without any.

    role: train, val or test. Examples of two of them may have the same ids, and what they draw does not differ then.
    """
    if learner.teachers is None:
        return None
    root, rows = rows_of(split)
    stores = {
        of: ModelOutputs(
            outputs_room(),
            _key(plan, of, root, role, device),
            root.num,
            max_bytes=outputs_bytes(),
            on_full=_log.warning,
        )
        for of in learner.teachers.asked
        if _have_one_shape(plan, of)
    }
    return Replay(learner.teachers, stores, rows, passes)


def _have_one_shape(plan: Plan, of: str) -> bool:
    """Whether what a teacher gives has one shape for all examples, so that it can be stored in rows."""
    asked, _ = plan.teachers[of]
    assert plan.task is not None, "a trial has a task"
    if asked.predictions and plan.target.kind == "token_classes":
        return False
    return not (asked.stages or asked.sites) or plan.task.recipe.modality in ("image", "table")


def _key(plan: Plan, of: str, root: Split, role: str, device: torch.device) -> dict[str, object]:
    """All that a teacher's outputs for a split depend on, besides the view and the row."""
    asked, part = plan.teachers[of]
    return {
        "teacher": identity_of(plan, part),
        "asked": {name: value for name, value in asdict(asked).items() if name != "of"},
        **split_key(plan, root, role, device),
    }


def split_key(plan: Plan, root: Split, role: str, device: torch.device) -> dict[str, object]:
    """All that the outputs of any model for a split depend on, besides the model, the view and the row."""
    assert plan.task is not None, "a trial has a task"
    task = {name: value for name, value in identity_of(plan, plan.task).items() if name != "common"}
    return {
        "task": task,
        "split": role,
        "ids": hashlib.sha256("\0".join(root.ids).encode()).hexdigest(),
        "augmentation": None if plan.augmentation is None else plan.augmentation.identity(),
        "device": device.type,
        "versions": _versions(),
    }


@cache
def _versions() -> dict[str, str]:
    """The versions of all distributions with plugins and of what those require: any of them may prepare or compute."""
    providers = {provider.distribution for provider in registry().providers()}
    installed = {normalise(found.name): found.version for found in distributions() if found.name}
    names = set(providers)
    for provider in providers:
        try:
            names |= {_name_in(text) for text in requires(provider) or () if "extra ==" not in text}
        except PackageNotFoundError:  # of a plugin file, whose hash is in the identity of its parts
            continue
    found = {normalise(name): installed.get(normalise(name)) for name in names}
    return {name: number for name, number in sorted(found.items()) if number is not None} | {"torch": version("torch")}


def _name_in(requirement: str) -> str:
    """The name of the distribution in the text of a requirement: all before a range, an extra or a marker."""
    for place, letter in enumerate(requirement):
        if not (letter.isalnum() or letter in "-_."):
            return requirement[:place]
    return requirement


def with_truth(loader: Loader, plan: Plan, target: Target) -> Loader:
    """The loader of a split without labels whose targets are what the teacher says of each example.

    int64 [N] or [N, W] of what it thinks likeliest, float32 [N, C] of labels and values; where nothing is predicted its
    pooled features, float32 [N, D].
    """
    of = next(of for of, (asked, _) in plan.teachers.items() if asked.predictions or target.kind == "unlabelled")
    said = [_said(batch.teachers[of], batch.inputs.get("word_ids"), loader, target).cpu() for batch in loader.epoch()]
    told = loader.without_beside()
    told.targets = torch.cat(said)
    if target.kind == "classes" and len(told.targets) > 1 and len(told.targets.unique()) == 1:
        name = target.names[int(told.targets[0])] if target.names else int(told.targets[0])
        _log.warning("teacher %s says %s of all %d held-out examples, so agreement tells little", of, name, loader.num)
    return told


def _said(output: TeacherOutput, word_ids: Tensor | None, loader: Loader, target: Target) -> Tensor:
    if target.kind == "unlabelled":
        assert output.pooled is not None, "resolve has asked for it"
        return output.pooled.float()
    assert output.predictions is not None, "it is a teacher that predicts"
    predictions = output.predictions.float()
    if target.kind == "multilabel":
        return (predictions > 0).float()
    if target.kind == "regression":
        return predictions
    if target.kind == "classes":
        return predictions.argmax(-1)
    assert word_ids is not None, "token classes are of words"
    words = by_word(predictions, word_ids, loader.targets.shape[1], target)
    likeliest = words.nan_to_num(nan=-torch.inf).argmax(-1)
    return likeliest.masked_fill(words.isnan().any(-1), IGNORED)
