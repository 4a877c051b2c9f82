"""Publishes a stored run on the Hub: its model card, and the upload in one commit. `fetch_run` is the reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from zoo_core.errors import AccessError, IncompatibleError, IntegrityError, UsageError, ZooError
from zoo_core.files import hub
from zoo_core.files.hashing import verify
from zoo_core.lock import part_key, pins_of, read_lock, unpublished_in
from zoo_core.plan.plan import Plan
from zoo_core.registry.catalog import catalog
from zoo_core.results.store import Result, read
from zoo_core.run_layout import DELTA, LOCK, RESULTS, RUN, RUN_FILES
from zoo_core.runs.run_table import run_table, text_in
from zoo_core.runs.stored_run import StoredRun, read_run
from zoo_core.spec.parser import parse

__all__ = ["card_of", "push_run"]

# What the Hub calls a task, by modality and kind of target; where it has no name for it, none is given.
PIPELINES: Mapping[tuple[str | None, str], str] = {
    ("image", "classes"): "image-classification",
    ("image", "multilabel"): "image-classification",
    ("text", "classes"): "text-classification",
    ("text", "multilabel"): "text-classification",
    ("text", "token_classes"): "token-classification",
    ("audio", "classes"): "audio-classification",
    ("audio", "multilabel"): "audio-classification",
    ("table", "classes"): "tabular-classification",
    ("table", "multilabel"): "tabular-classification",
    ("table", "regression"): "tabular-regression",
}
METRICS = {"macro_f1": "f1", "mean_absolute_error": "mae", "r2": "r_squared"}  # the Hub's names, where it has others
# Licences that the Hub knows by the lower case of their SPDX name; any other is "other" with a name of its own.
LICENCES = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "gpl-2.0", "gpl-3.0", "lgpl-2.1"}
    | {"lgpl-3.0", "agpl-3.0", "mpl-2.0", "isc", "unlicense", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-3.0"}
    | {"cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "openrail", "llama2"}
    | {"llama3", "llama3.1", "llama3.2", "gemma", "creativeml-openrail-m", "bigscience-openrail-m"}
)


def push_run(path: Path, repository: str, *, private: bool = False) -> str:
    """Uploads a stored run with a model card in one commit. Returns the address of the commit.

    repository: `ORG/NAME`, created if it does not exist. private: whether a new one is private; an existing one stays
    as it is.
    Raises NotFoundError for a folder without a fitted model, UsageError if nobody else could load it, IntegrityError if
    it is damaged, AccessError if the Hub refuses.
    """
    _refuse_unpublished(path)
    run = read_run(path)
    verify(path / DELTA, run.delta)
    _refuse_what_only_this_machine_has(run)
    forbidden = hub.offline_by()
    if forbidden:
        raise AccessError(f"{repository} cannot be written, since requests are forbidden ({forbidden}); unset that")
    results = _results(path)
    base = _base(run.plan)
    licence = _licence(run.plan, base)
    card = card_of(run, results, repository=repository, base=base, licence=licence)
    names = [name for name in RUN_FILES if (path / name).is_file()]
    files: list[tuple[str, Path | bytes]] = [*((name, path / name) for name in names), ("README.md", card.encode())]
    api = HfApi(endpoint=hub.endpoint())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(
            repository,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files],
            commit_message=f"zoo push: {run.spec}"[:200],
        )
    except (hub.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _not_uploaded(error, repository) from error
    return str(done.commit_url)


def card_of(
    run: StoredRun, results: Sequence[Result], *, repository: str, base: str | None, licence: str | None
) -> str:
    """The text of a model card: metadata for the Hub, what the model is, how to load it, its results.

    base: the repository of the backbone, None if it comes from a package. licence: of the base, None if unknown.
    """
    plan = run.plan
    known = (licence or "").lower() in LICENCES
    pipeline = PIPELINES.get((_modality(plan), run.target.kind))
    changes = {change for part in plan.adapters for change in part.fact("changes")}
    scored = [result for result in results if result.status == "ok" and result.score is not None]
    data = ModelCardData(
        base_model=base,
        license=(licence.lower() if known else "other") if licence else None,
        license_name=licence.lower().replace(" ", "-") if licence and not known else None,
        library_name="zoo",
        pipeline_tag=pipeline,
        tags=["zoo", "transfer-learning"],
        metrics=sorted({METRICS.get(result.metric, result.metric) for result in scored}) or None,
        model_name=repository.rpartition("/")[2],
        eval_results=[_evaluation(result, pipeline, plan) for result in scored] or None,
        base_model_relation=("finetune" if "base" in changes else "adapter") if base else None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(run, scored, repository, base, licence)}"))


def _evaluation(result: Result, pipeline: str | None, plan: Plan) -> EvalResult:
    name = plan.task.name if plan.task is not None else result.task
    return EvalResult(
        task_type=pipeline or "other",
        dataset_type=name,
        dataset_name=result.task,
        dataset_split=result.split,
        metric_type=METRICS.get(result.metric, result.metric),
        metric_name=result.metric,
        metric_value=result.score,
    )


def _body(run: StoredRun, results: Sequence[Result], repository: str, base: str | None, licence: str | None) -> str:
    plan = run.plan
    task = f" for the task `{plan.task.canonical()}`" if plan.task is not None else ""
    packages = sorted({part.provider.distribution for part in plan.parts} | {"zoo-core"})
    pin = plan.pins.get(part_key(plan.backbone))
    origin = f"[{base}](https://huggingface.co/{base}) at `{pin.revision}`" if base and pin else "inside its package"
    names = ", ".join(f"`{name}`" for name in run.target.names) or f"{run.target.size} outputs"
    what = (
        f"`{run.spec}`, fitted with zoo{task}. This repository holds what fitting changed or added; the rest comes "
        f"from the base when the model is loaded, at the commit and with the sha256 that `zoo.lock` names."
    )
    facts = [
        f"- Base: `{plan.backbone.name}`, {origin}; licence: {licence or 'not known, ask its authors'}.",
        f"- Target, {run.target.kind}: {names}.",
        f"- Seed {plan.seed}; {', '.join(f'{key} {value}' for key, value in vars(plan.budget).items())}.",
    ]
    lines = [
        f"# {repository.rpartition('/')[2]}",
        what,
        "## Use",
        f"```sh\npip install {' '.join(packages)}\n```",
        f'```python\nimport zoo_core\n\nmodel = zoo_core.load_run("hub/{repository}")\n```',
        "## What it is",
        "\n".join(facts),
    ]
    if results:
        lines += ["## Results", _table(results)]
    return "\n\n".join(lines) + "\n"


def _table(results: Sequence[Result]) -> str:
    rows = [
        f"| {result.task} | {result.split} | {result.num_examples} | {result.metric} | {result.score:.4f} "
        f"| {result.num_trainable:,} of {result.num_parameters:,} |"
        for result in results
    ]
    head = "| task | split | examples | metric | score | trained parameters |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows]) + "\n\nThe learning rate was chosen on validation; this split was scored once."


def _refuse_unpublished(path: Path) -> None:
    """Raises UsageError for a run that is used with parts that only a file on this machine provides."""
    table = run_table(path / RUN)
    backbone, *adapters, head = parse(text_in(table["spec"])).parts
    taken = table.get("used", range(len(adapters)))  # the others are over once the model is trained
    used = {part.name for part in (backbone, *(adapters[position] for position in taken), head)}
    for key, row in unpublished_in(read_lock(path / LOCK)).items():
        if key.partition(":")[2].partition("(")[0].partition("@")[0] in used:
            raise UsageError(
                f"{path} was fitted with {key} of the file {row['distribution']}, which nobody else has; publish it as "
                f"a package with an entry point, and fit again with that"
            )


def _refuse_what_only_this_machine_has(run: StoredRun) -> None:
    lock = read_lock(run.path / LOCK)
    if lock is None:
        raise IntegrityError(f"{run.path} lacks its {LOCK}; copy the whole folder, or fit the model again")
    used = {part_key(part) for part in run.plan.parts}  # a teacher is not
    for key, pin in pins_of(lock).items():
        if pin.folder is not None and not key.startswith("task:") and key in used:
            published = f"zoo push {pin.folder} ORG/NAME, and fit on hub/ORG/NAME"
            raise UsageError(
                f"{run.path} was fitted on files of the local folder {pin.folder} ({key}), which nobody else has; "
                f"publish them first{f': {published}' if DELTA in pin.files else ', and fit on hf/ORG/NAME'}"
            )


def _results(path: Path) -> list[Result]:
    file = path / RESULTS
    return read(file) if file.is_file() else []


def _base(plan: Plan) -> str | None:
    pin = plan.pins.get(part_key(plan.backbone))
    return pin.repository if pin is not None else None


def _licence(plan: Plan, base: str | None) -> str | None:
    """The licence of the base, from a record or catalogue, or else from the base's own card on the Hub."""
    entry = plan.entry or catalog().find(plan.backbone.name, "backbone")
    if entry is not None and entry.licence is not None:
        return entry.licence
    if base is None:
        return None
    try:
        data = HfApi(endpoint=hub.endpoint()).model_info(base).card_data
    except (hub.HTTPError, OSError, ValueError, KeyError, TypeError):
        return None
    found = data.get("license") if data is not None else None
    if found == "other":
        found = data.get("license_name") if data is not None else None
    return found if isinstance(found, str) else None


def _modality(plan: Plan) -> str | None:
    if plan.entry is not None and plan.entry.modality is not None:
        return plan.entry.modality
    return str(plan.task.recipe.modality) if plan.task is not None else None


def _not_uploaded(error: Exception, repository: str) -> ZooError:
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 403:
        return AccessError(
            f"your token may not write to {repository}; make one that may at {hub.endpoint()}/settings/tokens, "
            f"then log in: hf auth login"
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 400:
        said = " ".join(str(error.server_message or error).split())
        return IncompatibleError(f"{hub.endpoint()} does not take {repository} as it is ({said:.120})")
    if isinstance(error, hub.HTTPError | OSError | HFValidationError):
        return hub.told(error, repository)
    cause = error.__cause__ or error
    return AccessError(f"{repository} was not uploaded ({' '.join(str(cause).split()):.120}); nothing of it is there")
