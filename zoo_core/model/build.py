"""Builds a learner from a plan: the frozen backbone, the head, the objective, then the adapters in order.

Law: an adapter may only add. After every step, what was trainable must still be trainable, every tensor of the base
must still be there, and no frozen value may have changed; in the end, a loss must reach every tensor that was added and
trains. The error names the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from zoo_core.contracts import (
    ROLES,
    AdapterRecipe,
    Backbone,
    Change,
    ClosedForm,
    Context,
    FeatureSpec,
    LoadsFiles,
    Predicts,
    Target,
    TeacherOutput,
    Weights,
    as_backbone,
)
from zoo_core.data.randomness import seeded
from zoo_core.errors import LawError, PluginError, RefusedError
from zoo_core.lock import part_key
from zoo_core.model.backbone_checks import check_backbone, check_head_module
from zoo_core.model.learner import MAIN, Learner
from zoo_core.model.objective import ScaledHead, default_objective, needs_of
from zoo_core.model.reachability import unreached
from zoo_core.model.teachers import Taught, TeacherModel, Teachers
from zoo_core.model.transforms import with_transforms
from zoo_core.model.truncation import truncated
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import check_built, check_until, consumed
from zoo_core.plan.teachers import asked_of, check_teachers, described
from zoo_core.registry.catalog import catalog as default_catalog
from zoo_core.registry.recipe_checks import broken, plugin_call
from zoo_core.registry.registry import Bound
from zoo_core.run_layout import RUN

__all__ = ["PROVENANCE", "build", "build_backbone", "check_outline", "checksum", "outline"]


PROVENANCE: frozenset[Change] = frozenset({"objective", "schedule"})  # what is over once a model is trained
CHECKED_AT_ONCE = 2**20  # values; all of a large tensor would show in a trial's peak memory


def build(
    plan: Plan,
    *,
    target: Target | None = None,
    purpose: Literal["train", "use"] = "train",
    backbone: nn.Module | None = None,
    class_weights: Tensor | None = None,
) -> Learner:
    """The learner of a plan, in evaluation mode on the CPU; for use it has no objective.

    target: with its size known, where the plan's is not.
    backbone: what `build_backbone` gives for this plan, or a copy of that; None: it is called.
    class_weights: float [C], for the default loss of classes and multilabel.
    Raises PluginError when a part breaks its contract, LawError when an adapter breaks its law.
    """
    target = target or plan.target
    if target.size is None and target.kind != "unlabelled":
        raise RefusedError("the number of outputs is not known before the data is read; open the task first")
    if backbone is None:
        backbone = build_backbone(plan)
    if target.kind == "unlabelled":
        target = replace(target, size=as_backbone(backbone).features.width("pooled"))
    base = [*backbone.parameters(), *backbone.buffers()]
    head = _build_head(plan, backbone, target)
    objective = default_objective(target, head, class_weights)
    learner = Learner(backbone, head, consumed(plan.head, target), objective, target)
    if plan.teachers and purpose == "train":
        learner.teachers = _teachers(plan, target)
    known = set(learner.parameters())
    added: dict[nn.Parameter, Bound] = {}
    places = plan.places or range(len(plan.adapters))
    for position, adapter in zip(places, plan.adapters, strict=True):
        with seeded(plan.seed, "adapter", position, adapter.name) as generator:
            context = Context(
                target=target,
                purpose=purpose,
                generator=generator,
                files=_files(plan, adapter),
                base=_base(plan),
                teachers=_shown(learner, adapter),
            )
            learner = _apply(adapter, learner, context)
        added |= dict.fromkeys(set(learner.parameters()) - known - added.keys(), adapter)
    if purpose == "use":
        learner.objective = None
    learner.seal(base, determined=plan.weights == "pretrained")
    learner.eval()
    if purpose == "train" and plan.head.fact("fit") == "gradient":
        _check_reached(learner, added)
    return learner


def build_backbone(plan: Plan) -> nn.Module:
    """The frozen backbone of a pinned plan, after checking its contract against what the catalogue promised.

    What resolve could not know is checked on the meta device, before the weights are fetched.
    """
    if plan.unpinned:
        raise RefusedError(f"{plan.unpinned[0]} is not pinned; `zoo_core.files.fetch.pin_plan(plan)` does it")
    check_outline(plan)
    backbone = _frozen(plan)
    if plan.deferred or plan.until is not None:
        _check_deferred(plan, as_backbone(backbone))
    return with_transforms(backbone)


def _frozen(plan: Plan) -> nn.Module:
    """The backbone of a plan, cut where the plan says, frozen, with its contract checked."""
    part = plan.backbone
    backbone = _built(plan, plan.weights)
    if plan.until is not None:
        check_until(part.name, plan.until, len(as_backbone(backbone).stages))
        backbone = truncated(backbone, plan.until)
    _check_promise(part, plan, as_backbone(backbone))
    backbone.requires_grad_(False)
    backbone.eval()
    check_backbone(part, backbone, sites=not _is_stored_run(part))
    return backbone


def _teachers(plan: Plan, target: Target) -> Teachers:
    """The teachers of a plan, none of them loaded. Raises RefusedError for one that cannot teach this target."""
    told = {
        of: described(part, _files(plan, part, "random"), default_catalog()) for of, (_, part) in plan.teachers.items()
    }
    check_teachers(plan.teachers, told, None if plan.task is None else plan.task.recipe.modality, target)
    asked = {of: each for of, (each, _) in plan.teachers.items()}
    predicted = {of: predicts for of, (_, predicts) in told.items() if predicts is not None}
    return Teachers(asked, predicted, partial(_teacher, plan), target)


def _teacher(plan: Plan, of: str) -> TeacherModel:
    """The model of a teacher of a plan. Raises RefusedError if it turns out to read or to predict something else."""
    asked, part = plan.teachers[of]
    recipe: object = part.recipe
    modality = None if plan.task is None else plan.task.recipe.modality
    if asked.predictions and isinstance(recipe, Predicts):
        files = _files(plan, part)
        if files is None:
            raise broken(part, "it predicts, and its source() names no files of the fitted model")
        with plugin_call(part):
            learner: object = recipe.learner(files)
        if not isinstance(learner, Learner):
            raise broken(part, f"learner() gave {type(learner).__name__}; allowed: what zoo_core.load_run gives")
        reads, target = learner.source.modality, learner.target
        check_teachers({of: (asked, part)}, {of: (reads, target)}, modality, plan.target)
        return TeacherModel(backbone=learner.backbone, head=learner.head, consumes=learner.consumes, target=target)
    alone = replace(plan, backbone=part, entry=None, weights=plan.weights_of(part), adapters=(), teachers={})
    backbone = _frozen(alone)
    check_teachers({of: (asked, part)}, {of: (as_backbone(backbone).modality, None)}, modality, plan.target)
    return TeacherModel(backbone=backbone)


def _shown(learner: Learner, adapter: Bound) -> Mapping[str, TeacherOutput]:
    """What the teachers of one adapter give, for its Context; nothing where the learner is for use."""
    if learner.teachers is None:
        return {}
    return Taught(learner.teachers, tuple(asked.of for asked in asked_of(adapter)))


def outline(plan: Plan) -> nn.Module:
    """The backbone of a pinned plan on the meta device, cut where the plan says, with none of its checks.

    No weights are read. Raises whatever a model raises that looks at values.
    """
    with torch.device("meta"):
        backbone = _built(plan, "random")
        return backbone if plan.until is None else truncated(backbone, plan.until)


def check_outline(plan: Plan) -> None:
    """If the weights are still to be fetched, makes the checks that resolve deferred, on the meta device.

    Raises RefusedError if parts do not fit together.
    """
    if plan.deferred and plan.weights == "pretrained" and part_key(plan.backbone) in plan.sources:
        with torch.device("meta"):
            found = as_backbone(_built(plan, "random"))
        if plan.until is not None:  # neither the kind of its features nor its roles depend on it
            check_until(plan.backbone.name, plan.until, len(found.stages))
        _check_deferred(plan, found, plan.until)


def _built(plan: Plan, weights: Weights) -> nn.Module:
    part = plan.backbone
    files = _files(plan, part, weights)
    with seeded(plan.seed, "backbone", part.name), plugin_call(part):
        backbone = part.recipe.build(files, weights)
    if not isinstance(backbone, nn.Module) or not isinstance(backbone, Backbone):
        raise PluginError(f"{part.name} did not build a backbone: see zoo_core.contracts.Backbone")
    return backbone


def _is_stored_run(part: Bound) -> bool:
    """Whether it was built before: its sites were checked then, and its adapters may have wrapped what they name."""
    return part.source is not None and RUN in part.source.patterns


def _files(plan: Plan, part: Bound, weights: Weights = "pretrained") -> Path | None:
    """The folder with the verified files of a part; None if the part has no files."""
    if part_key(part) not in plan.sources:
        return None
    from zoo_core.files.fetch import files_of  # a quarter of a second, for plans that need it

    return files_of(plan, part, weights=weights)


def _base(plan: Plan) -> str | None:
    """The repository or folder that the backbone's files come from."""
    source = plan.sources.get(part_key(plan.backbone))
    return None if source is None else source.repository or source.folder


def _check_deferred(plan: Plan, backbone: Backbone, until: int | None = None) -> None:
    roles = [role for role in ROLES if backbone.sites(role)]
    stages = until or len(backbone.stages)
    check_built(plan, modality=backbone.modality, features=backbone.features, num_stages=stages, roles=roles)


def _check_promise(part: Bound, plan: Plan, backbone: Backbone) -> None:
    entry = plan.entry
    if entry is None:
        return
    promised = {"modality": entry.modality, "features": entry.features, "stages": entry.num_stages}
    built = {"modality": backbone.modality, "features": backbone.features, "stages": len(backbone.stages)}
    for name, value in promised.items():
        if value is not None and value != built[name]:
            raise PluginError(f"{part.name}: its catalogue says {name} {value}, it has {built[name]}")


def _build_head(plan: Plan, backbone: nn.Module, target: Target) -> nn.Module:
    recipe = plan.head.recipe
    kind = consumed(plan.head, target)
    features = FeatureSpec(kind=kind, dim=as_backbone(backbone).features.width(kind))
    with seeded(plan.seed, "head", plan.head.name), plugin_call(plan.head):
        head: object = recipe.build(features, target)
    if not isinstance(head, nn.Module):
        raise broken(plan.head, f"build gave {type(head).__name__}; a head is a torch.nn.Module")
    files = _files(plan, plan.head)
    if files is not None and isinstance(recipe, LoadsFiles):
        with plugin_call(plan.head):
            recipe.fill(head, files, target)
    if plan.head.fact("fit") == "closed_form":
        if not isinstance(head, ClosedForm):
            raise broken(plan.head, "it is fitted in closed form, and its module has no fit(features, target)")
        head.requires_grad_(False)
    else:
        check_head_module(plan.head, head, features, target)
    if target.kind == "regression":
        assert target.size is not None
        head = ScaledHead(head, target.size)
    return head


def _apply(adapter: Bound, learner: Learner, context: Context) -> Learner:
    held = list(_tensors(learner))  # kept until the check is over, so that no new tensor has the identity of an old one
    trainable = {id(parameter): name for name, parameter in learner.trainable()}
    before = {id(tensor): (name, checksum(tensor)) for name, tensor in held if id(tensor) not in trainable}
    modules, built = list(learner.modules()), _in_use(learner)  # kept too
    with plugin_call(adapter):
        recipe: AdapterRecipe = adapter.recipe  # where mypy sees that the learner keeps its contract
        adapted = recipe.apply(learner, context)
    if not isinstance(adapted, Learner):
        raise LawError(f"adapter {adapter.name} gave {type(adapted).__name__}; apply returns a learner")
    others = [name for name in adapted.heads if name != MAIN]
    if others:
        raise LawError(f"adapter {adapter.name} added a head {others[0]!r}; a learner has one, learner.head")
    after = {id(parameter): parameter for parameter in adapted.parameters()}
    kept = {id(tensor): tensor for _, tensor in _tensors(adapted)}
    for key, name in trainable.items():
        if key not in after or not after[key].requires_grad:
            raise LawError(f"adapter {adapter.name} froze or removed {name}; an adapter may only add")
    for key, (name, total) in before.items():
        if key not in kept:
            raise LawError(f"adapter {adapter.name} removed {name}; an adapter may wrap a part and keeps its tensors")
        if checksum(kept[key]) != total:
            raise LawError(f"adapter {adapter.name} changed the values of {name}; an adapter may only add")
    _check_taught(adapter, adapted)
    if adapter.fact("changes") <= PROVENANCE:
        _check_is_over(adapter, built, _in_use(adapted))
    del modules
    return adapted


def _check_taught(adapter: Bound, learner: Learner) -> None:
    """Raises LawError unless teachers are declared by the recipe and `taught` is said by the objective, or neither."""
    if learner.objective is None or (learner.teachers is None and not needs_of(learner.objective).taught):
        return
    if learner.teachers is None:
        raise LawError(
            f"adapter {adapter.name} put in an objective that reads batch.teachers, and no recipe of the chain "
            f"declares any; its teachers() names what it reads"
        )
    if asked_of(adapter) and not needs_of(learner.objective).taught:
        raise LawError(
            f"adapter {adapter.name} declares a teacher, and no module of the objective says that it reads any; "
            f"give the one that does `taught = True`"
        )


def _in_use(learner: Learner) -> dict[str, str]:
    """By name, what an adapter can change of backbone and head: modules, hooks, tensors, and whether these train."""
    found: dict[str, str] = {}
    for part, root in (("backbone", learner.backbone), ("head", learner.head)):
        for path, module in root.named_modules(prefix=part):
            hooks = [len(each) for name, each in vars(module).items() if name.endswith("_hooks") and each]
            found[path] = f"module {id(module)} with hooks {hooks}"
        tensors = (*root.named_parameters(prefix=part), *root.named_buffers(prefix=part))
        found |= {name: f"tensor {id(x)} that {'trains' if x.requires_grad else 'stays'}" for name, x in tensors}
    return found


def _check_is_over(adapter: Bound, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raises LawError if an adapter that stored runs are used without has changed what they are used with."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        said = ", ".join(sorted(adapter.fact("changes"))) or "nothing"
        raise LawError(
            f"adapter {adapter.name} says that it changes {said}, so stored runs are used without it, and it changed "
            f"{changed[0]}; it names what it opens base, and what it adds or wraps added"
        )


def _check_reached(learner: Learner, added: Mapping[nn.Parameter, Bound]) -> None:
    """Raises LawError, naming its adapter, for what was added and trains where no loss sees it."""
    trained = {parameter: name for name, parameter in learner.trainable() if parameter in added}
    if not trained:
        return
    with plugin_call(added[next(iter(trained))]):
        dead = unreached(learner, trained)
    if dead:
        adapter = added[dead[0]]
        names = [trained[parameter] for parameter in dead if added[parameter] is adapter]
        raise LawError(
            f"adapter {adapter.name} added {len(names)} tensors that take no part in a forward pass or a loss, "
            f"{names[0]} first; it put them where nothing looks"
        )


def _tensors(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    yield from learner.named_parameters()
    yield from learner.named_buffers()


def checksum(tensor: Tensor) -> int:
    """A sum over the bits of a tensor, weighted by position, modulo 2**64. Equal tensors have equal sums."""
    flat = tensor.detach().contiguous().view(-1)
    if not flat.numel() or flat.is_meta:
        return 0
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    bits = flat.view(torch.uint8 if flat.element_size() < 4 else torch.int32)
    for start, run in enumerate(bits.split(CHECKED_AT_ONCE)):
        place = torch.arange(1, len(run) + 1, device=run.device) + start * CHECKED_AT_ONCE
        total += (run.to(torch.int64) * place).sum()
    return int(total)
