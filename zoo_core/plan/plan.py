"""Describes what is run, as values: a budget, a trial, and the plan of a trial with every part resolved. No torch.

Digests are computed here. A digest is a hash of JSON with everything that influences the results of a trial: argument
values and the sha256 of files, but never the text of a spec. So a plan has no digest before its files are pinned.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase, translate
from pathlib import Path
from typing import Any, Literal

from zoo_core.contracts import AugmentationRecipe, Source, Target, Teacher, Weights
from zoo_core.contracts.old_words import digest_word
from zoo_core.errors import SpecError, UsageError, nearest
from zoo_core.lock import Pinned, content_key, part_key
from zoo_core.plan.extensions import is_own
from zoo_core.registry.bind import Bound
from zoo_core.registry.catalog import Entry
from zoo_core.registry.local_plugins import part_of
from zoo_core.registry.recipe_checks import MAX_RATES
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import Part, Spec, parse_part

__all__ = [
    "Budget",
    "Plan",
    "Trial",
    "budget_from",
    "fits_weights",
    "identity_of",
    "literal",
    "needed",
    "pinned",
    "reseeded",
]

DIGEST_FORMAT = 1  # raised when the digest of an unchanged trial would change


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How a trial trains and for how long. Every field is part of the trial's identity.

    epochs: passes over the training split. num_rates: number of learning rates tried, 1 to 5, from the middle of the
    grid. warmup: share of all steps during which the rate rises, 0 to 1. clip: largest gradient norm. patience: epochs
    without a better validation score before training stops early; None never stops early. precision: "auto" means
    bfloat16 on a GPU, else float32.
    keep: "best" keeps the weights of the (earliest) epoch with the best validation score, "last" those of the last
    epoch. None means last in a bench, and best in `zoo fit` and `zoo_core.fit`.
    augment: the text of an augmentation, such as word-dropout(p=0.2). A recipe object is converted to its text.
    views: the number of different draws of the augmentation: epoch e, counted from 0, has the draw e mod views. None:
    every epoch draws anew.
    halving: stop learning rates, and in a bench combinations, by validation before their last epoch; see `rungs`.
    """

    epochs: int = 20
    batch_size: int = 32
    num_rates: int = 3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    augment: str | AugmentationRecipe = "none"
    patience: int | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    keep: Literal["best", "last"] | None = None
    views: int | None = None
    halving: bool = False

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int | kind) or isinstance(value, bool):
                wanted = "a whole number" if kind is int else "a number"
                raise UsageError(f"budget: {name}={value!r} should be {wanted}, {low:g} to {high:g}")
            if not low <= value <= high:
                raise UsageError(f"budget: {name}={value} is out of range; allowed: {low:g} to {high:g}")
            object.__setattr__(self, name, kind(value))  # 1 and 1.0 are one budget, with one digest
        object.__setattr__(self, "augment", _augment_text(self.augment))
        if not isinstance(self.halving, bool):
            raise UsageError(f"budget: halving={self.halving!r} should be true or false")
        for name, words in _WORDS.items():
            found = getattr(self, name)
            if found not in words and not (found is None and name == "keep"):
                raise UsageError(
                    f"budget: {name}={found!r} is not one of {', '.join(words)}{nearest(str(found), words)}"
                )

    def for_fit(self) -> Budget:
        """The budget that `fit` uses: it keeps the best epoch if `keep` is None."""
        return replace(self, keep="best") if self.keep is None else self

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which halving compares: an eighth, a quarter and half of all, rounded up, those that differ.

        There are none without halving, and none in one epoch.
        """
        found = {-(-self.epochs // share) for share in (8, 4, 2)} if self.halving else set()
        return tuple(sorted(found - {self.epochs}))

    def identity(self) -> dict[str, object]:
        """The fields as they enter a digest: `keep` only if it is best, as None equals last, `views` and `halving` only
        if given.
        """
        silent = {"keep": ("last", None), "views": (None,), "halving": (False,)}
        return {name: value for name, value in asdict(self).items() if value not in silent.get(name, ())}


_RANGES: Mapping[str, tuple[type[int] | type[float], float, float]] = {
    "epochs": (int, 1, 1_000_000),
    "batch_size": (int, 2, 1_000_000),
    "num_rates": (int, 1, MAX_RATES),
    "weight_decay": (float, 0, 10),
    "warmup": (float, 0, 1),
    "clip": (float, 1e-9, 1e9),
    "patience": (int, 1, 1_000_000),
    "views": (int, 1, 1_000_000),
}
_OPTIONAL = ("patience", "views")  # None says something of its own
_WORDS: Mapping[str, tuple[str, ...]] = {
    "precision": ("auto", "float32", "bfloat16"),
    "keep": ("best", "last"),
}


def _augment_text(given: str | AugmentationRecipe) -> str:
    """The canonical text of an augmentation. Resolving a trial checks that it exists and suits the task."""
    try:
        return str(parse_part(given) if isinstance(given, str) else part_of(given, registry()))
    except SpecError as error:
        raise UsageError(f"budget: augment={given!r} names no augmentation: {error.reason}") from error
    except UsageError as error:
        raise UsageError(f"budget: augment={given!r:.60}: {error}") from error


def budget_from(values: Mapping[str, Any]) -> Budget:
    """A Budget from a table of a suite file or a stored plan. Raises UsageError for a wrong key or type."""
    known = [field.name for field in fields(Budget)]
    for name in values:
        if name not in known:
            raise UsageError(f"budget has no key {name!r}; it has {', '.join(known)}{nearest(name, known)}")
    return Budget(**values)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What to run: a spec on a task with a budget and a seed. str() gives its canonical text, for people."""

    spec: Spec
    task: Part
    budget: Budget
    seed: int = 0

    def __str__(self) -> str:
        usual = asdict(Budget())
        changed = [f"{name}={value}" for name, value in self.budget.identity().items() if value != usual[name]]
        return " ".join([f"{self.spec}", f"task={self.task}", *changed, f"seed={self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A trial with every part resolved and checked.

    task: None if a model is loaded only for a target. adapters: those that change something. entry: what the catalogue
    says about the backbone, None if it has no entry. learning_rates: those to try; none for a head in closed form.
    first_stage: the earliest stage that an adapter changes, None if the number of stages is not known.
    deferred: the facts to check once the backbone is built. inner: the parts that arguments name by specs.
    teachers: by Teacher.of, what the adapters ask of each, and the backbone that it is. places: the places that the
    adapters had in the chain that was trained, on which random draws depend; None: they stand as they stood.
    augmentation: that of the budget, None for none. metric: that of the task, None without a task.
    sources: where the files of the parts come from, by lock key. pins: the files whose sha256 is known, by lock key.
    locked: what the user's lock states about local folders. Their files are hashed again and compared with it.
    digest: the identity of the trial; None until its files are pinned. combination: the same without the seed.
    base_digest: the identity of the backbone without adapters, which all trials on that backbone share.
    """

    spec: Spec
    backbone: Bound
    adapters: tuple[Bound, ...]
    head: Bound
    task: Bound | None
    target: Target
    entry: Entry | None
    budget: Budget
    seed: int
    weights: Weights
    learning_rates: tuple[float, ...]
    num_stages: int | None
    first_stage: int | None
    deferred: tuple[str, ...] = ()
    inner: tuple[Bound, ...] = ()
    teachers: Mapping[str, tuple[Teacher, Bound]] = field(default_factory=dict)
    places: tuple[int, ...] | None = None
    augmentation: Bound | None = None
    metric: Bound | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    pins: Mapping[str, Pinned] = field(default_factory=dict)
    locked: Mapping[str, Pinned] = field(default_factory=dict)
    digest: str | None = None
    base_digest: str | None = None
    combination: str | None = None

    @property
    def trial(self) -> Trial:
        assert self.task is not None, "a plan without a task is no trial"
        return Trial(spec=self.spec, task=self.task.canonical(), budget=self.budget, seed=self.seed)

    @property
    def parts(self) -> tuple[Bound, ...]:
        """Every bound part: backbone, adapters, head, task, the parts that arguments name, teachers, `extensions`."""
        task = (self.task,) if self.task else ()
        teachers = (part for _, part in self.teachers.values())
        return (self.backbone, *self.adapters, self.head, *task, *self.inner, *teachers, *self.extensions)

    def weights_of(self, part: Bound) -> Weights:
        """Where the numbers of a part come from."""
        weights: Weights = self.weights if part is self.backbone else part.common.get("weights", "pretrained")
        return weights

    @property
    def extensions(self) -> tuple[Bound, ...]:
        """The metric and the augmentation, if from a plugin. The version of zoo-core already identifies its own."""
        return tuple(part for part in (self.metric, self.augmentation) if part is not None and not is_own(part))

    @property
    def contents(self) -> dict[str, str]:
        """A digest of the files of each pinned part from a local folder, by key.

        A backbone with random weights reads fewer files, so its key says that its weights are random.
        """
        found: dict[str, str] = {}
        for part in self.parts:
            key = part_key(part)
            pin = self.pins.get(key)
            if pin is not None and pin.folder is not None:
                weights = self.weights_of(part)
                names = needed(self.sources[key], weights, pin.files)
                found[content_key(key, weights)] = pin.content_of(names)
        return found

    @property
    def metric_name(self) -> str:
        """The name of the metric in results: its text in a spec. Empty without a metric."""
        return "" if self.metric is None else str(self.metric.canonical())

    @property
    def until(self) -> int | None:
        """The stage, counted from 1, after which the backbone is cut; None if it is not cut."""
        until: int | None = self.backbone.common["until"]
        return until

    @property
    def unpinned(self) -> tuple[str, ...]:
        """The keys of the parts whose files are not pinned yet."""
        return tuple(key for key in self.sources if key not in self.pins)


def reseeded(plan: Plan, seed: int) -> Plan:
    """The plan of the same trial with another seed, without resolving anything again."""
    return replace(plan, seed=seed, digest=_seeded(plan.combination, seed))


def pinned(plan: Plan, pins: Mapping[str, Pinned]) -> Plan:
    """The plan with these pins added. Once all its files are pinned, it also has its digests."""
    plan = replace(plan, pins={**plan.pins, **pins})
    if plan.unpinned:
        return plan
    base = identity_of(plan, plan.backbone)
    identity = {
        "format": DIGEST_FORMAT,
        "base": base,
        "adapters": [_adapter_identity(plan, part) for part in plan.adapters],
        "head": identity_of(plan, plan.head),
        "task": identity_of(plan, plan.task) if plan.task else None,
        "target": asdict(plan.target) | {"kind": digest_word(plan.target.kind)},
        "budget": _budget(plan),
        **({"metric": plan.metric.identity()} if plan.metric is not None and not _as_before(plan.metric) else {}),
        **({"inner": [identity_of(plan, part) for part in plan.inner]} if plan.inner else {}),
    }
    combination = _digest(identity)
    return replace(plan, combination=combination, digest=_seeded(combination, plan.seed), base_digest=_digest(base))


def needed(source: Source | None, weights: Weights, files: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the files that a build with these weights reads.

    source: None for files inside a package. Then pre-trained weights need all files, and random ones none.
    """
    if source is None:
        return tuple(sorted(files)) if weights == "pretrained" else ()
    wanted = _fitting(source.patterns, files)
    for pattern in source.weights if weights == "pretrained" else ():
        fitting = {name for name in files if fits_weights(name, pattern)}
        if fitting:
            wanted |= fitting
            break
    return tuple(sorted(wanted))


def fits_weights(name: str, pattern: str) -> bool:
    """Whether a pattern for weights matches the name of a file. As in loading, no wildcard matches a slash."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def literal(pattern: str) -> str | None:
    """The one name that a pattern of a source matches; None for a pattern with wildcards."""
    name = re.sub(r"\[([*?[])\]", r"\1", pattern)
    return name if glob.escape(name) == pattern else None


def _fitting(patterns: Sequence[str], files: Mapping[str, Any]) -> set[str]:
    """The names that match any of the patterns. It is fast for 100,000 names and 100,000 patterns without wildcards."""
    names = {literal(pattern) for pattern in patterns}
    globs = [translate(pattern) for pattern in patterns if literal(pattern) is None]
    fits = re.compile("|".join(globs)).match if globs else None
    return {name for name in files if name in names or (fits is not None and fits(name))}


def identity_of(plan: Plan, part: Bound) -> dict[str, object]:
    """What enters a digest for a part: its own identity, and the sha256 of each file that it is built from.

    The location of a local folder is not included, so the folder may be moved.
    """
    key = part_key(part)
    identity, source, pin = part.identity(), plan.sources.get(key), plan.pins.get(key)
    if source is not None and source.folder is not None:
        fields = identity["fields"]
        assert isinstance(fields, dict)
        placed = [name for name, value in fields.items() if _is_place(value, source)]
        if len(placed) == 1:  # of several, one may mean something else, such as a column of that name
            identity["fields"] = {name: value for name, value in fields.items() if name not in placed}
    if pin is None:
        return identity
    weights = plan.weights_of(part)
    return identity | {"files": {name: pin.files[name].sha256 for name in needed(source, weights, pin.files)}}


def contents_of(plan: Plan) -> dict[str, str]:
    """A hash of what each part of a plan is made from, by its text: it tells which one has changed."""
    return {part_key(part): _digest(identity_of(plan, part)) for part in plan.parts}


_TEXTS = (str, str | None, tuple[str, ...], tuple[str, ...] | None)  # the types of arguments that may name teachers


def _adapter_identity(plan: Plan, adapter: Bound) -> dict[str, object]:
    """What enters a digest for an adapter: in place of each argument that names a teacher, what that is made from.

    What a teacher that no argument names is made from stands beside them.
    """
    identity = identity_of(plan, adapter)
    if not plan.teachers:
        return identity
    fields = identity["fields"]
    assert isinstance(fields, dict)
    asked: tuple[Teacher, ...] = adapter.fact("teachers")()
    known = {each.of: identity_of(plan, plan.teachers[each.of][1]) for each in asked if each.of in plan.teachers}
    texts = {name for name, hint in adapter.types.items() if name in fields and hint in _TEXTS}
    given = {name: fields[name] if isinstance(fields[name], list) else [fields[name]] for name in texts}
    named = {name: [known.get(each, each) for each in values] for name, values in given.items()}
    taught = {name: values if isinstance(fields[name], list) else values[0] for name, values in named.items()}
    unnamed = [found for of, found in known.items() if not any(of in values for values in given.values())]
    return identity | {"fields": fields | taught} | ({"teachers": unnamed} if unnamed else {})


def _budget(plan: Plan) -> dict[str, object]:
    """What enters a digest for a budget. An augmentation of zoo-core enters as its text, as in old digests."""
    part = plan.augmentation
    if part is None or _as_before(part):
        return plan.budget.identity()
    return plan.budget.identity() | {"augment": part.identity()}


def _as_before(part: Bound) -> bool:
    """Whether a metric or augmentation enters a digest by its text, as it did before plugins could provide them."""
    return is_own(part) and part.recipe.version == 1


def _is_place(value: object, source: Source) -> bool:
    """Whether an argument is the path of a local source: of its folder, or of its only file with that suffix."""
    if not isinstance(value, str) or not value or source.folder is None:
        return False
    path, folder = Path(value).expanduser(), Path(source.folder).expanduser()
    if path == folder:
        return True
    named = [name for each in (*source.patterns, *source.weights) if (name := literal(each)) is not None]
    alike = [name for name in named if Path(name).suffix == path.suffix]  # of two, the argument may choose one
    return path.parent == folder and alike == [path.name]


def _seeded(combination: str | None, seed: int) -> str | None:
    return None if combination is None else _digest({"combination": combination, "seed": seed})


def _digest(identity: object) -> str:
    """The first 16 bytes, in hex, of the sha256 of the identity as JSON with sorted keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
