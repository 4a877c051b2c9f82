"""The Python calls, which the commands use too.

load, load_backbone, load_run, load_runs, save, fetch, fit, distill, evaluate, predict, embed, rank, bench.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo_core.benchmark.distilling import plan_distillation, unlabelled_part
from zoo_core.benchmark.evaluation import Evaluation, evaluate
from zoo_core.benchmark.grid import Suite, load_suite, starter_suite
from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.runner import RunEvent, open_grid, prepare_folder, run_grid
from zoo_core.benchmark.trial import run_on_features, run_trial
from zoo_core.contracts import BackboneRecipe, Modality, Target, TaskRecipe, as_backbone
from zoo_core.data.splits import Splits, rows_of
from zoo_core.errors import UsageError
from zoo_core.files.fetch import DownloadProgress, fetch_run, files_of, pin_plan
from zoo_core.lock import lock_of, part_key, read_pins, write_lock
from zoo_core.model.build import build, build_backbone, check_outline
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget, Plan, contents_of
from zoo_core.plan.resolve import resolve
from zoo_core.registry.local_plugins import SpecLike, check_files
from zoo_core.results.store import Result, RunLock, append
from zoo_core.run_layout import DELTA, LOCK, RESULTS, RUN_FILES, UNFINISHED, refuse_held
from zoo_core.runs.backbones import plans_below
from zoo_core.runs.export import exporter, write_plain
from zoo_core.runs.inference import Item, Pool, Prediction, SkippedItem, embedded, predicted
from zoo_core.runs.stored_run import StoredRun, load_stored, load_together, read_run, save_run
from zoo_core.selection.candidates import Filters
from zoo_core.selection.rank import SCORES, RankEvent, Ranking, run_shortlist, shortlisted
from zoo_core.spec.parser import Spec, parse_part
from zoo_core.toolkit.table_encoding import Encoding, encoding_of
from zoo_core.training.gradient_trainer import MemoryOptions
from zoo_core.training.snapshots import UnfinishedFit

if TYPE_CHECKING:
    from zoo_core.contracts import LoadedBackbone

__all__ = [
    "Evaluation",
    "Prediction",
    "bench",
    "distill",
    "embed",
    "evaluate",
    "export",
    "fetch",
    "fit",
    "load",
    "load_backbone",
    "load_run",
    "load_runs",
    "predict",
    "rank",
    "save",
]

Found = TypeVar("Found")

PUBLISHED = "hub/"  # before the names of fitted models on the Hub


def load(
    spec: SpecLike,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    target: Target | None = None,
    class_weights: Sequence[float] | None = None,
    seed: int = 0,
    lock: str | Path | None = None,
    frozen: bool = False,
) -> Learner:
    """Builds a learner that is ready to train: a pre-trained backbone, adapters and a new head.

    spec: text, recipe objects or a list of both, such as "starter/vit-nano+lora(r=4)" or ["starter/vit-nano",
    Lora(r=4)].
    num_classes, classes, target: give exactly one of them; it says what is predicted.
    class_weights: the weight of each class or label in the loss, in their order.
    seed: decides every new weight.
    lock: a file that pins commits and hashes, as `zoo lock` writes it.
    frozen: use no network, and nothing that the lock does not pin.
    `hub/ORG/NAME` alone, without a target, loads the fitted model that `zoo push` published.
    Example: `zoo_core.load("starter/vit-nano+partial(n=2)", num_classes=3)`.
    """
    if all(given is None for given in (num_classes, classes, target)) and _is_published(spec):
        return load_run(str(spec))
    plan = _pinned(spec, lock, frozen, target=_wanted(num_classes, classes, target), seed=seed)
    learner = build(plan, class_weights=_weights(class_weights, plan.target))
    learner.plan = plan
    return learner


def _pinned(spec: SpecLike | Plan, lock: str | Path | None, frozen: bool, **trial: Any) -> Plan:
    """The plan of a trial with its files pinned: by the lock, a catalogue or a record, or else by asking their source.

    A plan is used as it was resolved. trial: the arguments for `resolve` beside the spec; None for those not given.
    """
    given = {name: value for name, value in trial.items() if value is not None}
    if isinstance(spec, Plan):
        for name in (*given, *(["lock"] if lock else [])):
            raise UsageError(f"a plan has its {name} already; leave {name} out, or resolve another plan with it")
        plan = pin_plan(spec, frozen=frozen)
    else:
        pins = read_pins(Path(lock) if lock else None)
        plan = pin_plan(resolve(spec, pins=pins, offline=frozen, **given), frozen=frozen)
    if frozen:
        _files(plan, offline=True)  # so that nothing is left to download
    return plan


def _is_published(spec: object) -> bool:
    """Whether this is only the name of a model on the Hub."""
    return isinstance(spec, str | Spec) and str(spec).startswith(PUBLISHED) and not {*"+("} & {*str(spec)}


def _files(
    plan: Plan, *, offline: bool = False, progress: Callable[[DownloadProgress], None] | None = None
) -> dict[str, Path]:
    """The folder of each part that has files, by its key in a lock, including the runs below."""
    found: dict[str, Path] = {}
    for each in itertools.chain([plan], plans_below(plan, offline=offline)):
        for part in each.parts:
            folder = files_of(each, part, offline=offline, progress=progress)
            if folder is not None:
                found[part_key(part)] = folder
    return found


def fetch(
    spec: SpecLike | Plan,
    *,
    task: str | TaskRecipe | None = None,
    lock: str | Path | None = None,
    frozen: bool = False,
    progress: Callable[[DownloadProgress], None] | None = None,
) -> dict[str, Path]:
    """Downloads and verifies everything that a spec needs. Returns the folder of each part.

    Afterwards the spec can be built without a network.
    spec: or a plan from `resolve`, with its task. task: also fetch the files of this task. lock, frozen: as for `load`.
    progress: called for each piece that arrives.
    If a backbone is described only by its configuration, that is checked before the weights are fetched.
    """
    target = Target(kind="classes", size=2) if task is None and not isinstance(spec, Plan) else None
    plan = _pinned(spec, lock, frozen, task=task, target=target)
    check_outline(plan)
    return _files(plan, offline=frozen, progress=progress)


def _wanted(num_classes: object, classes: object, target: object) -> Target:
    """The target that `load` was asked for. Raises UsageError if there is none."""
    if sum(given is not None for given in (num_classes, classes, target)) != 1:
        raise UsageError("load takes exactly one of num_classes=N, classes=[...] and target=Target(...)")
    if classes is not None:
        target = Target(kind="classes", names=_names(classes))
    elif num_classes is not None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, Integral):  # numpy's whole numbers are fine
            raise UsageError(f"num_classes is a whole number, 2 or more, found {num_classes!r:.60}")
        target = Target(kind="classes", size=int(num_classes))
    if not isinstance(target, Target):
        raise UsageError(f'target is a zoo_core.Target, as Target(kind="regression", size=1), found {target!r:.60}')
    if type(target.size) is not int or target.size < 1:
        raise UsageError(f"the number of outputs is {target.size}; allowed: 1 or more")
    if target.kind == "classes" and target.size < 2:
        raise UsageError(
            'a classifier has 2 classes or more, found 1; for one yes or no: Target(kind="multilabel", size=1)'
        )
    return target


def _weights(given: Sequence[float] | None, target: Target) -> Tensor | None:
    """float [C]. Raises UsageError unless there is one number for each class or label, and none is negative."""
    if given is None:
        return None
    if target.kind == "regression":
        raise UsageError("class_weights are for classes and multilabel, and the target is regression")
    try:
        weights = torch.tensor([float(weight) for weight in given])
    except (TypeError, ValueError) as error:
        raise UsageError(f"class_weights are numbers, one for each class: {error}") from error
    if len(weights) != target.size or not bool((weights >= 0).all() and weights.isfinite().all() and weights.any()):
        raise UsageError(f"class_weights are {target.size} numbers, 0 or more and not all 0, found {list(given)!r:.60}")
    return weights


def _names(classes: object) -> tuple[str, ...]:
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise UsageError(f"classes is a list of names, as ['cat', 'dog'], found {classes!r:.60}")
    names = tuple(classes)
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise UsageError(f"a class's name is text, found {wrong!r:.60}; write {str(wrong)[:60]!r}")
    twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if twice is not None:
        raise UsageError(f"classes has {twice!r} twice; each class has a name of its own")
    if len(names) < 2:
        raise UsageError(f"a classifier has 2 classes or more, found {list(names)}")
    return names


def load_backbone(
    name: str | BackboneRecipe, *, lock: str | Path | None = None, frozen: bool = False
) -> LoadedBackbone:
    """Loads a frozen backbone by name, in evaluation mode. See zoo_core.contracts.LoadedBackbone.

    lock, frozen: as for `load`.
    Example: `backbone = zoo_core.load_backbone("starter/vit-nano")`, then
    `DataLoader(ImageFolder("pictures", transform=backbone.transform()), collate_fn=backbone.collate)`.
    """
    return cast("LoadedBackbone", build_backbone(_pinned(name, lock, frozen, target=Target(kind="classes", size=1))))


def load_run(path: str | Path) -> Learner:
    """Loads the fitted learner that `fit` stored in a folder, for use. Its target holds the ordered class names.

    path: the folder, or `hub/ORG/NAME` for one that `zoo push` published, optionally with `@revision`.
    """
    return load_stored(_read(path))


def load_runs(paths: Mapping[str, str | Path]) -> dict[str, Learner]:
    """Loads several fitted learners with one backbone, whose frozen tensors are then in memory only once.

    paths: what `load_run` takes, by names of your own. Each learner is as `load_run` returns it, and changing one does
    not affect another. To exchange in place what two learners of one spec have learned:
    `learner.load_delta(other.delta())`.
    Example: `zoo_core.load_runs({"digits": "runs/digits", "letters": "hub/me/letters"})["digits"]`.
    Raises IncompatibleError for runs with different bases.
    """
    if not isinstance(paths, Mapping):
        raise UsageError(
            f'load_runs takes a mapping of names to runs, as {{"a": "runs/a"}}, found {type(paths).__name__}'
        )
    return load_together({name: _read(path) for name, path in paths.items()})


def _read(path: str | Path) -> StoredRun:
    """A stored run. One on the Hub is fetched first."""
    if isinstance(path, str) and path.startswith(PUBLISHED):
        part = parse_part(path)
        path = fetch_run(part.name.removeprefix(PUBLISHED), part.revision)
    return read_run(Path(path), needs_task=False)


def save(learner: Learner, path: str | Path) -> None:
    """Stores a learner that your own loop trained, as `fit` does. `load_run` loads it, in any process.

    learner: from `load`, `fit` or `load_run`. The folder gets everything that differs from the base, run.json and
    zoo.lock. The objective is not stored.
    Raises UsageError for a folder that already holds a run, and for a learner without a plan.
    """
    plan = learner.plan
    if plan is None:
        raise UsageError(
            "this learner was put together by hand, so nothing says how to build it again; zoo_core.load makes one"
        )
    check_files(plan.parts)
    folder = Path(path)
    prepare_folder(folder)
    _refuse_a_run(folder)
    with RunLock(folder):
        _refuse_a_run(folder)
        save_run(learner, plan, folder)
        _write_lock(plan, folder)


def export(model: Learner | str | Path, folder: str | Path, *, form: str = "plain") -> str:
    """Writes a fitted model as a plain checkpoint that the backbone's own library, timm or transformers, loads.

    model: a learner, or what `load_run` takes. folder: a new one. A `linear` head on pooled features becomes the
    classifier of a timm model. Any other head is left out.
    form: `plain`, or the name of a library such as `peft`, whose format is used for the adapters alone. The names of
    its adapters begin with it.
    Returns one line that says what loads the folder, and what happened to the head.
    Raises RefusedError if an adapter cannot be folded into plain weights, or if no such library has the backbone.
    """
    write = write_plain if form == "plain" else exporter(form)
    learner = model if isinstance(model, Learner) else load_run(model)
    return write(learner, Path(folder))


def fit(
    spec: SpecLike | Plan,
    *,
    task: str | TaskRecipe | None = None,
    out: str | Path | None = None,
    budget: Budget | None = None,
    seed: int | None = None,
    device: str = "cpu",
    num_workers: int = 0,
    lock: str | Path | None = None,
    frozen: bool = False,
    micro_batch: int | str | None = None,
    checkpoint_activations: bool = False,
    share: bool = True,
    report: Callable[[TrialProgress], None] = lambda _: None,
) -> tuple[Learner, Result]:
    """Fits one model, with a learning rate that validation chooses, and stores it if `out` names a folder.

    spec: or a plan from `resolve`. A plan already has its task, budget, seed and lock, and is run as it is.
    budget: if it does not say which weights to keep, those of the epoch that is best on validation are kept. seed: 0
    unless given. lock, frozen: as for `load`.
    micro_batch: the number of examples in one pass. The gradients of the passes add up to that of the batch. "auto"
    takes as many as fit into memory.
    checkpoint_activations: stages keep only their inputs and are computed twice, which needs less memory. Neither
    option is part of the trial's identity, and a head that is fitted in closed form needs neither.
    share: whether the features of a backbone that stays frozen are computed once for all epochs and learning rates.
    After an interruption or a kill, the same call continues after the last epoch that was stored below `out`. On a CPU
    it ends with the same bits as an uninterrupted fit.
    Returns the learner, in evaluation mode, and its result on the test split. Raises UsageError for a folder that
    already holds a run or the beginning of another fit, and leaves the folder as it is.
    """
    if task is None and not (isinstance(spec, Plan) and spec.task is not None):
        raise UsageError("nothing says what to fit on; give a task, or a plan that has one")
    if not isinstance(spec, Plan):
        budget = (budget or Budget()).for_fit()
    plan = _pinned(spec, lock, frozen, task=task, budget=budget, seed=seed)
    memory = MemoryOptions(micro_batch=micro_batch, checkpoint_activations=checkpoint_activations)
    run = run_on_features if share else run_trial
    trial = partial(run, plan, device=device, num_workers=num_workers, report=report, memory=memory)
    if out is not None:
        return _fit_into(Path(out), plan, device, trial)
    result, learner, splits = trial()
    _tell_origin(learner, plan, splits)
    return learner, result


def distill(
    teacher: str | Path,
    student: SpecLike,
    *,
    data: str | TaskRecipe,
    out: str | Path | None = None,
    budget: Budget | None = None,
    seed: int | None = None,
    device: str = "cpu",
    num_workers: int = 0,
    lock: str | Path | None = None,
    frozen: bool = False,
    micro_batch: int | str | None = None,
    checkpoint_activations: bool = False,
    share: bool = True,
    report: Callable[[TrialProgress], None] = lambda _: None,
) -> tuple[Learner, Result]:
    """Fits a student that learns from a teacher on examples without labels, as `fit` does.

    teacher: the folder of a stored run, `hub/ORG/NAME`, or the name of a backbone. From a run that predicts comes a
    model that predicts the same; from a backbone one whose run is a backbone too, `run(path="DIR")`.
    student: a spec whose chain opens something of its backbone, as "starter/convnet-nano+full". Where it names an
    adapter with this teacher that one is taken, else the installed one that says so: see zoo_core.contracts.Distils.
    data: a folder or file of pictures, sounds, texts or arrays, or a task, of whose labels nothing is looked at.
    Rate and epoch are chosen by agreement with the teacher on held-out examples. All else as for `fit`.
    Example: `zoo_core.distill("runs/big", "starter/convnet-nano+full", data="./photos", out="runs/small")`.
    """
    plan = plan_distillation(
        str(teacher),
        student,
        task=unlabelled_part(data),
        budget=budget,
        seed=seed or 0,
        pins=read_pins(Path(lock) if lock else None),
        offline=frozen,
    )
    return fit(
        plan,
        out=out,
        device=device,
        num_workers=num_workers,
        frozen=frozen,
        micro_batch=micro_batch,
        checkpoint_activations=checkpoint_activations,
        share=share,
        report=report,
    )


def _fit_into(
    folder: Path, plan: Plan, device: str, trial: Callable[..., tuple[Result, Learner, Splits]]
) -> tuple[Learner, Result]:
    """Runs a trial and stores its snapshots and its model in a folder, or continues the one that the folder holds."""
    check_files(plan.parts)
    prepare_folder(folder)
    unfinished = UnfinishedFit(folder / UNFINISHED, _identity(plan, device))
    if not unfinished.folder.is_dir():
        refuse_held(folder)  # before the lock too, which would mend a torn line of that run
    with RunLock(folder):
        _refuse_another(folder, plan, unfinished)
        unfinished.begin()
        try:
            result, learner, splits = trial(unfinished=unfinished)
            _refuse_another(folder, plan, unfinished)
            for name in RUN_FILES:  # of the same fit, killed while it was stored
                (folder / name).unlink(missing_ok=True)
            _tell_origin(learner, plan, splits)
            save_run(learner, plan, folder)
            append(folder / RESULTS, result)
            _write_lock(plan, folder)
            unfinished.finish()
        finally:
            if not any((folder / name).exists() for name in RUN_FILES):
                unfinished.leave()
    return learner, result


def _tell_origin(learner: Learner, plan: Plan, splits: Splits) -> None:
    """Stores in the learner what it was built from, and how its input rows were made from a table."""
    assert plan.task is not None, "fit has a task"
    learner.plan, learner.encoding = plan, encoding_of(rows_of(splits.test)[0])
    if plan.task.recipe.modality == "table":
        learner.num_columns = len(splits.train.raw(0))


def _write_lock(plan: Plan, folder: Path) -> None:
    write_lock(folder / LOCK, lock_of(plan.parts, plan.pins))


def _identity(plan: Plan, device: str) -> dict[str, object]:
    """What must be equal for a fit to be continued: its digest, and in words what the digest is made from."""
    trial = plan.trial
    named = {"spec": str(trial.spec), "task": str(trial.task), "seed": plan.seed}
    made = {"digest": plan.digest, "device": torch.device(device).type, "contents": contents_of(plan)}
    return {**made, **named, **plan.budget.identity()}


def _refuse_a_run(folder: Path) -> None:
    refuse_held(folder, (*RUN_FILES, UNFINISHED))


def _refuse_another(folder: Path, plan: Plan, unfinished: UnfinishedFit) -> None:
    """Raises UsageError if a folder holds a run, unless it is clearly this fit, killed while it was being stored."""
    held = [name for name in RUN_FILES if (folder / name).exists()]
    told = any(name != DELTA and (folder / name).stat().st_size and _is_of(folder / name, plan) for name in held)
    is_this = unfinished.holds_states() or (unfinished.folder.is_dir() and told and len(held) < len(RUN_FILES))
    refuse_held(folder, [name for name in RUN_FILES if not (is_this and _is_of(folder / name, plan))])


def _is_of(file: Path, plan: Plan) -> bool:
    """Whether a file of a run has the plan's digest, in every row of results. For a lock, whether all of it agrees.

    A delta does not name its fit; the files beside it do. Results whose only row was torn and set aside do not either.
    """
    if file.name == DELTA:
        return True
    try:
        text = file.read_text(encoding="utf-8")
        if file.name == LOCK:
            return bool(json.loads(text) == json.loads(json.dumps(lock_of(plan.parts, plan.pins))))
        rows = [json.loads(row) for row in (text.splitlines() if file.suffix == ".jsonl" else [text])]
        return all(row["digest"] == plan.digest for row in rows)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def predict(
    learner: Learner, items: Sequence[Any], *, names: Sequence[str] | None = None, device: str = "cpu"
) -> list[Prediction]:
    """Predicts raw items, in their order.

    learner: from `fit` or `load_run`.
    items: a list of pictures (paths, PIL pictures, uint8 arrays), of texts, of sounds (paths, or {"array": float [N],
    "sampling_rate": Hz}), or of rows of a table. A row is either the numbers that the model gets, or {"column": value}
    as in the table, which is then encoded as it was for the fit.
    names: what to call each item; otherwise its path or its position.
    A prediction has one score for each output, in the order of the target. For token classes, it has one label and one
    score for each word: the likeliest class and its probability.
    Example: `zoo_core.predict(zoo_core.load_run("runs/my-digits"), ["scan1.png", "scan2.png"])`.
    Raises UsageError for items that cannot be read as such, NotFoundError for a path that does not exist.
    """
    _check_model("predict", learner, "zoo_core.load_run")
    if learner.target.kind == "unlabelled":
        raise UsageError("this learner predicts nothing: it is a backbone; zoo_core.embed gives its features")
    given = _items("predict", items, learner.source.modality, names, learner.encoding)
    found = predicted(learner, given, device=device)
    return [_raised(one) for one in found]


def embed(
    model: Learner | nn.Module,
    items: Sequence[Any],
    *,
    pool: Pool = "own",
    stage: int | None = None,
    device: str = "cpu",
) -> Tensor:
    """The pooled features of raw items, float32 [N, D] on the CPU, in their order.

    model: from `load_backbone`, or a learner, whose backbone is used as its adapters changed it. items: as for
    `predict`.
    pool: `own` for the backbone's own pooling, or the mean over real tokens or positions.
    stage: return the mean of the output of this stage, counted from 1, in place of the backbone's features.
    Example: `zoo_core.embed(zoo_core.load_backbone("starter/vit-nano"), ["scan1.png", "scan2.png"])`.
    Raises UsageError for wrong items or a stage that does not exist, NotFoundError for a path that does not exist.
    """
    _check_model("embed", model, "zoo_core.load_backbone")
    backbone = as_backbone(model.backbone if isinstance(model, Learner) else model)
    given = _items("embed", items, backbone.modality, None, model.encoding if isinstance(model, Learner) else None)
    rows = [_raised(one).features for one in embedded(model, given, pool=pool, stage=stage, device=device)]
    return torch.stack(rows) if rows else torch.empty(0, backbone.features.width("pooled"))


def _check_model(call: str, model: object, loader: str) -> None:
    if isinstance(model, str | Path):
        wanted = "a learner" if call == "predict" else "a learner or a backbone"
        raise UsageError(f"{call} takes {wanted}, found a path; write {loader}({str(model)!r})")


def _items(
    call: str, items: Sequence[Any], modality: Modality, names: Sequence[str] | None, encoding: Encoding | None
) -> list[Item]:
    _check_items(call, items, modality)
    called = list(names) if names is not None else [_called(item, position) for position, item in enumerate(items)]
    if len(called) != len(items):
        raise UsageError(f"{len(called)} names for {len(items)} items; each item has one")
    raws = (_encoded(item, encoding) for item in items) if modality == "table" else items
    return [Item(name=name, raw=raw) for name, raw in zip(called, raws, strict=True)]


def _encoded(row: Any, encoding: Encoding | None) -> Any:
    """A row of a table as the model gets it. Numbers stay as they are."""
    if not isinstance(row, Mapping):
        return row
    if encoding is None:
        raise UsageError(
            "a row with the names of its columns is for a model that was fitted on a table of files; give its numbers"
        )
    return encoding.encode(row)


def _raised(found: Found | SkippedItem) -> Found:
    if isinstance(found, SkippedItem):
        raise found.error
    return found


def _check_items(call: str, items: object, modality: Modality) -> None:
    """Raises UsageError for one item in place of a list. An array counts as a list along its first axis."""
    num_axes = {"image": 4, "table": 2}.get(modality, 1)
    if isinstance(items, np.ndarray | Tensor):
        alone = items.ndim < num_axes
    else:
        alone = isinstance(items, str) or not isinstance(items, Sequence)
    if alone:
        raise UsageError(f"{call} takes a list of items, found one {type(items).__name__}; write [item]")


def _called(item: object, position: int) -> str:
    return str(item) if isinstance(item, str | Path) else str(position)


def rank(
    backbones: str | Sequence[SpecLike],
    *,
    task: str | TaskRecipe,
    scores: str = SCORES,
    by: str | None = None,
    licences: Sequence[str] = (),
    max_parameters: int | None = None,
    input_size: int | None = None,
    num_examples: int = 1000,
    seed: int = 0,
    time_limit: float | None = None,
    device: str = "cpu",
    num_workers: int = 0,
    lock: str | Path | None = None,
    frozen: bool = False,
    watch: Callable[[RankEvent], None] = lambda _: None,
) -> Ranking:
    """Ranks backbones for a task without training, by scores of their features; its rows are in the order of `by`.

    backbones: names and patterns, as "starter/*,timm/*tiny*", or a list of them; with `until=N` each depth is one.
    Each passes once over at most num_examples training examples, and a second call reads what was stored. The test
    split is not looked at.
    scores: their names with commas between. by: the one that orders; None: the first.
    licences, max_parameters, input_size: only backbones of which the catalogue knows that they are such.
    time_limit: in seconds; when it is over no backbone is begun. lock, frozen: as for `load`.
    A backbone that fails is a row with its reason. Raises RefusedError for token classes and if nothing is left.
    Example: `zoo_core.rank("starter/*", task="digits").rows[0].name`.
    """
    filters = Filters(licences=tuple(licences), max_parameters=max_parameters, input_size=input_size)
    pins = read_pins(Path(lock) if lock else None)
    shortlist = shortlisted(backbones, task=task, filters=filters, scores=scores, by=by, pins=pins, frozen=frozen)
    return run_shortlist(
        shortlist,
        num_examples=num_examples,
        seed=seed,
        time_limit=time_limit,
        device=device,
        num_workers=num_workers,
        frozen=frozen,
        watch=watch,
    )


def bench(
    suite: Suite | str | Path | None = None,
    *,
    out: str | Path | None = None,
    num_workers: int = 1,
    threads: int = 1,
    device: str = "cpu",
    retry: bool = False,
    share: bool = True,
    trial_time_limit: float | None = None,
    lock: str | Path | None = None,
    frozen: bool = False,
    watch: Callable[[RunEvent], None] = lambda _: None,
) -> list[Result]:
    """Runs a suite and returns its results. A second call runs only what is missing.

    suite: the path of a suite file, or None for the starter suite. out: the folder of the run; None means `runs/NAME`.
    num_workers: the number of processes; threads: of each. Scores do not depend on the number of processes.
    share: whether trials share work, such as the features of a frozen backbone; False runs each trial by itself.
    trial_time_limit: in s of wall time; a trial that takes longer is ended, and a failure. None: no limit.
    lock, frozen: as for `load`. What the run's own lock pins takes precedence.
    """
    if not isinstance(suite, Suite):
        suite = load_suite(Path(suite) if suite is not None else starter_suite())
    folder = Path(out) if out is not None else Path("runs") / suite.name
    grid = open_grid(suite, folder, lock=Path(lock) if lock else None, frozen=frozen)
    return run_grid(
        grid,
        folder,
        num_workers=num_workers,
        threads=threads,
        device=device,
        retry=retry,
        share=share,
        trial_time_limit=trial_time_limit,
        watch=watch,
    )
