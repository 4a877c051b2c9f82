"""The Python calls: load, save, fit, load_run, evaluate, predict, bench; a stored run that was changed is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import zoo_core
from zoo_core import api
from zoo_core.errors import (
    AccessError,
    IncompatibleError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    UsageError,
    ZooError,
)
from zoo_core.results.store import RunLock

SPEC = "starter/convnet-nano+norm"
TASK = "digits(shots=2)"
BUDGET = zoo_core.Budget(epochs=2, num_rates=1)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored run. Copy it before writing to it."""
    out = tmp_path_factory.mktemp("run") / "digits"
    zoo_core.fit(SPEC, task=TASK, out=out, budget=BUDGET)
    return out


@pytest.fixture
def copy(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "copy"))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, size=(8, 8)).astype(np.uint8) for _ in range(70)]  # more than one batch


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- fit -------------------------------------------------------------------------------------------------------------


def test_a_fit_gives_its_learner_its_result_and_a_folder(tmp_path: Path) -> None:
    learner, result = zoo_core.fit("starter/vit-nano+ncm", task=TASK, out=tmp_path / "a" / "b")
    assert not learner.training
    assert (result.status, result.split, result.num_examples) == ("ok", "test", 600)
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()} - {".lock"}
    assert names == {"delta.safetensors", "run.json", "results.jsonl", "zoo.lock"}
    assert json.loads((tmp_path / "a" / "b" / "results.jsonl").read_text())["score"] == result.score


def test_a_plan_is_fetched_and_fitted_as_it_was_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = zoo_core.resolve("starter/convnet-nano+ncm", task=TASK, seed=3, budget=zoo_core.Budget().for_fit())
    monkeypatch.setattr(api, "resolve", lambda *_, **__: pytest.fail("it was resolved already"))
    assert zoo_core.fetch(plan) == {}
    learner, result = zoo_core.fit(plan)
    assert (result.digest, result.seed, result.trial) == (plan.digest, 3, str(plan.trial))
    assert learner.plan is not None
    assert learner.plan.spec == plan.spec


@pytest.mark.parametrize(
    ("beside", "name"), [({"task": TASK}, "task"), ({"budget": BUDGET}, "budget"), ({"seed": 0}, "seed")]
)
def test_what_a_plan_says_already_is_not_said_again(beside: dict[str, Any], name: str) -> None:
    plan = zoo_core.resolve(SPEC, task=TASK)
    with pytest.raises(UsageError, match=f"a plan has its {name} already; leave {name} out"):
        zoo_core.fit(plan, **beside)


def test_a_fit_without_a_task_is_told() -> None:
    plan = zoo_core.resolve(SPEC, target=zoo_core.Target(kind="classes", size=2))
    for spec in (SPEC, plan):
        with pytest.raises(UsageError, match="give a task, or a plan that has one"):
            zoo_core.fit(spec)


@pytest.mark.parametrize("name", ["run.json", "results.jsonl", "zoo.lock"])
def test_a_fit_into_an_existing_run_is_refused_and_nothing_is_lost(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=r"already holds a run .*give --out a new folder"):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=BUDGET)
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom zoo_core.results.store import RunLock\n"
        "with RunLock(Path(sys.argv[1])):\n    print(flush=True)\n    sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(AccessError, match=f"is being written by process {other.pid}"):
            zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=BUDGET)
        other.communicate(b"")
    with RunLock(tmp_path):
        pass


def test_a_fit_that_fails_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="shots=500"):
        zoo_core.fit(SPEC, task="digits(shots=500)", out=tmp_path, budget=BUDGET)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    with pytest.raises(NotFoundError, match="holds no fitted model"):
        zoo_core.load_run(tmp_path)


def test_what_an_interrupted_fit_leaves_does_not_bar_the_next_one(tmp_path: Path) -> None:
    """Its lock file alone; a delta that somebody has put there is not zoo's to replace."""
    with pytest.raises(KeyboardInterrupt):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=BUDGET, report=_interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    (tmp_path / "delta.safetensors").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"already holds a run .delta\.safetensors."):
        zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=BUDGET)
    assert (tmp_path / "delta.safetensors").read_bytes() == b"mine"
    (tmp_path / "delta.safetensors").unlink()
    zoo_core.fit(SPEC, task=TASK, out=tmp_path, budget=BUDGET)
    zoo_core.load_run(tmp_path)


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_two_fits_with_one_seed_give_the_same_bits(fitted: Path) -> None:
    learner, result = zoo_core.fit(SPEC, task=TASK, budget=BUDGET)
    stored = load_file(fitted / "delta.safetensors")
    assert stored.keys() == learner.delta().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in learner.delta().items())
    assert result.score == json.loads((fitted / "results.jsonl").read_text())["score"]


# --- load_run --------------------------------------------------------------------------------------------------------


def refused(folder: Path, error: type[ZooError], *reasons: str) -> None:
    with pytest.raises(ZooError) as caught:
        zoo_core.load_run(folder)
    assert type(caught.value) is error, caught.value
    assert "\n" not in str(caught.value)
    for reason in reasons:
        assert reason in str(caught.value)


@pytest.mark.slow
def test_a_loaded_run_predicts_the_same_bits_in_a_fresh_process(fitted: Path, pictures: list[Any]) -> None:
    here = zoo_core.predict(zoo_core.load_run(fitted), pictures)
    program = (
        "import json, sys, numpy as np, torch, zoo_core\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "rng = np.random.default_rng(0)\n"
        "pictures = [rng.integers(0, 255, size=(8, 8)).astype(np.uint8) for _ in range(70)]\n"
        "found = zoo_core.predict(zoo_core.load_run(sys.argv[1]), pictures)\n"
        "print(json.dumps([[one.item, one.labels, one.scores] for one in found]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, fitted], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[one.item, list(one.labels), list(one.scores)] for one in here]


def test_a_loaded_run_knows_its_target_and_has_no_objective(fitted: Path) -> None:
    learner = zoo_core.load_run(fitted)
    assert learner.target.names == tuple("0123456789")
    assert learner.objective is None
    assert not learner.training


def test_a_folder_without_a_run_is_not_found(tmp_path: Path) -> None:
    refused(tmp_path, NotFoundError, "holds no fitted model (run.json is missing)", "`zoo fit SPEC")
    refused(tmp_path / "nothing", NotFoundError, "holds no fitted model")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", NotFoundError, "holds no fitted model")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'],
    ids=["empty", "cut", "list", "number", "no text", "deep", "nothing in it"],
)
def test_a_damaged_run_file_is_told(copy: Path, content: bytes) -> None:
    (copy / "run.json").write_bytes(content)
    refused(copy, IntegrityError, "run.json is damaged", "fit the model again") if content != b"[]" else refused(
        copy, IntegrityError, "no JSON object"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": 3},
        {"spec": "starter/("},
        {"task": 3},
        {"task": "("},
        {"seed": "x"},
        {"seed": None},
        {"budget": {"epoch": 3}},
        {"budget": {"epochs": "many"}},
        {"budget": 3},
        {"target": {"kind": "colours", "size": 10, "names": []}},
        {"target": {"kind": "classes", "size": 3, "names": ["a"]}},
        {"target": {"kind": "classes", "size": "3", "names": []}},
        {"target": {"kind": "classes", "size": 0, "names": []}},
        {"target": {"kind": "classes", "size": 3, "names": None}},
        {"target": None},
        {"delta": {"sha256": 3, "size": 3}},
        {"delta": {"sha256": "3", "size": None}},
        {"delta": []},
        {"parts": 3},
        {"num_columns": "many"},
    ],
    ids=str,
)
def test_a_run_file_with_a_wrong_value_is_damaged(copy: Path, changes: dict[str, Any]) -> None:
    edit(copy, **changes)
    refused(copy, IntegrityError, "run.json is damaged", "fit the model again")


def test_a_run_of_a_later_format_is_incompatible(copy: Path) -> None:
    edit(copy, format=2)
    refused(copy, IncompatibleError, "has format 2, this zoo-core reads 1; upgrade it")


def test_a_truncated_or_flipped_delta_is_told_and_a_missing_one_too(copy: Path) -> None:
    path = copy / "delta.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(copy, IntegrityError, "delta.safetensors has", "truncated")
    for place in (0, 9, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(bytes(flipped))
        refused(copy, IntegrityError, "delta.safetensors has sha256")
    path.unlink()
    refused(copy, NotFoundError, "delta.safetensors is missing; copy the whole folder")
    path.write_bytes(content)
    zoo_core.load_run(copy)


def test_a_delta_of_another_learner_is_refused_even_with_its_own_hash(copy: Path, tmp_path: Path) -> None:
    from zoo_core.files.hashing import sha256_of

    path = copy / "delta.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    for changed in (
        {key: tensor for key, tensor in tensors.items() if key != name},
        tensors | {name: torch.zeros(7)},
        tensors | {"backbone.nothing": torch.zeros(1)},
    ):
        save_file(changed, path)
        edit(copy, delta={"sha256": sha256_of(path), "size": path.stat().st_size})
        refused(copy, IncompatibleError, "this delta is of another learner")


def test_a_delta_of_another_base_is_refused(copy: Path) -> None:
    edit(copy, base_digest="0" * 32)
    refused(copy, IncompatibleError, "was fitted on another base: 000000000000 then", "zoo-starter")
    edit(copy, base_digest=None)
    refused(copy, IncompatibleError, "was fitted on another base")


def test_a_recipe_of_another_version_is_refused(copy: Path) -> None:
    parts = json.loads((copy / "run.json").read_text())["parts"]
    for position, what in enumerate(("adapter norm", "head linear")):
        changed = [dict(part) for part in parts]
        changed[position]["version"] = 7
        edit(copy, parts=changed)
        refused(copy, IncompatibleError, f"was fitted with another {what} (version 7 then, 1 now)", "zoo-adapters")
    edit(copy, parts=parts[:1])
    refused(copy, IncompatibleError, "another head linear (version None then, 1 now)")


def test_a_run_whose_plugin_is_not_installed_says_which(copy: Path) -> None:
    edit(copy, spec="starter/convnet-nano+vanished+linear")
    path = copy / "zoo.lock"
    lock = json.loads(path.read_text())
    lock["parts"]["adapter:vanished"] = {"distribution": "zoo-vanished", "version": "1.2"}
    path.write_text(json.dumps(lock))
    refused(copy, NotFoundError, "needs a part that is not installed", "zoo-vanished 1.2", "'vanished'")
    path.write_text("{")
    refused(copy, IntegrityError, "zoo.lock is damaged")


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluation_repeats_the_score_and_counts_every_example(fitted: Path) -> None:
    found = zoo_core.evaluate(fitted)
    assert found.score == json.loads((fitted / "results.jsonl").read_text())["score"]
    counts = np.array(found.confusion)
    assert counts.sum() == found.num_examples == 600
    assert np.trace(counts) / 600 == pytest.approx(found.score, abs=1e-12)  # the same division, perhaps in float32
    assert [row["num"] for row in found.per_class] == counts.sum(1).tolist()


def test_evaluation_sees_the_split_that_the_fit_saw(fitted: Path) -> None:
    result = json.loads((fitted / "results.jsonl").read_text())
    assert zoo_core.evaluate(fitted, split="train").num_examples == 20
    assert zoo_core.evaluate(fitted, split="val").score == result["chosen"]["validation_score"]
    with pytest.raises(UsageError, match="unknown split 'tests'; there are train, val, test"):
        zoo_core.evaluate(fitted, split="tests")


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predictions_keep_the_order_of_their_items(fitted: Path, pictures: list[Any]) -> None:
    learner = zoo_core.load_run(fitted)
    forward = zoo_core.predict(learner, pictures, names=[f"p{index}" for index in range(70)])
    backward = zoo_core.predict(learner, pictures[::-1])
    assert [one.item for one in forward] == [f"p{index}" for index in range(70)]
    assert [one.item for one in backward] == [str(index) for index in range(70)]
    for one, other in zip(forward, backward[::-1], strict=True):
        # Another place in the batch, so another order of sums: a few bits of float32.
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    assert len({one.labels for one in forward}) > 1


def test_probabilities_sum_to_one_and_the_label_is_the_likeliest(fitted: Path, pictures: list[Any]) -> None:
    for one in zoo_core.predict(zoo_core.load_run(fitted), pictures[:5]):
        assert sum(one.scores) == pytest.approx(1, abs=1e-5)  # float32
        assert one.labels == (str(int(np.argmax(one.scores))),)


def test_nothing_gives_no_predictions_and_a_wrong_array_is_told(fitted: Path) -> None:
    learner = zoo_core.load_run(fitted)
    assert zoo_core.predict(learner, []) == []
    with pytest.raises(UsageError, match="an image is uint8"):
        zoo_core.predict(learner, [np.zeros((8, 8), dtype=np.float32)])


def test_pictures_may_be_paths_and_are_called_by_them(fitted: Path, tmp_path: Path, pictures: list[Any]) -> None:
    learner = zoo_core.load_run(fitted)
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, picture in zip(files, pictures, strict=False):
        Image.fromarray(picture).save(file)
    found = zoo_core.predict(learner, [files[0], str(files[1]), Image.open(files[2])])
    assert [one.item for one in found] == [str(files[0]), str(files[1]), "2"]
    assert [one.scores for one in found] == [one.scores for one in zoo_core.predict(learner, pictures[:3])]
    with pytest.raises(NotFoundError, match="no file"):
        zoo_core.predict(learner, [tmp_path / "gone.png"])


def test_one_item_instead_of_a_list_is_told(fitted: Path, pictures: list[Any]) -> None:
    learner = zoo_core.load_run(fitted)
    colour = np.zeros((8, 8, 3), dtype=np.uint8)
    for one in (pictures[0], colour, torch.from_numpy(colour), "x.png", Path("x.png"), Image.fromarray(colour)):
        with pytest.raises(UsageError, match=r"predict takes a list of items, found one \w+; write \[item\]"):
            zoo_core.predict(learner, one)  # type: ignore[arg-type]
    many = np.stack([colour, colour])
    assert zoo_core.predict(learner, many) == zoo_core.predict(learner, list(many))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="1 names for 2 items"):
        zoo_core.predict(learner, pictures[:2], names=["a"])
    with pytest.raises(UsageError, match=r"takes a learner, found a path; write zoo_core\.load_run"):
        zoo_core.predict(fitted, pictures)  # type: ignore[arg-type]


# --- load ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "exactly one of num_classes"),
        ({"num_classes": 3, "classes": ["a"]}, "exactly one of num_classes"),
        ({"num_classes": 0}, "the number of outputs is 0"),
        ({"num_classes": -3}, "the number of outputs is -3"),
        ({"num_classes": 1}, "a classifier has 2 classes or more, found 1"),
        ({"num_classes": "3"}, "num_classes is a whole number, 2 or more, found '3'"),
        ({"num_classes": 3.0}, "num_classes is a whole number, 2 or more, found 3.0"),
        ({"num_classes": True}, "num_classes is a whole number, 2 or more, found True"),
        ({"classes": []}, r"a classifier has 2 classes or more, found \[\]"),
        ({"classes": ["cat"]}, r"a classifier has 2 classes or more, found \['cat'\]"),
        ({"classes": "cat"}, "classes is a list of names, as .*, found 'cat'"),
        ({"classes": 3}, "classes is a list of names, as .*, found 3"),
        ({"classes": [1, 2]}, "a class's name is text, found 1; write '1'"),
        ({"classes": ["cat", "dog", "cat"]}, "classes has 'cat' twice"),
        ({"target": zoo_core.Target(kind="regression")}, "the number of outputs is None"),
        ({"target": zoo_core.Target(kind="classes", size=1)}, "a classifier has 2 classes or more"),
        ({"target": 3}, "target is a zoo_core.Target, .*, found 3"),
    ],
)
def test_load_takes_one_thing_that_says_what_is_predicted(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        zoo_core.load("starter/vit-nano", **arguments)
    assert "\n" not in str(caught.value)


def test_load_takes_numpys_numbers_any_iterable_of_names_and_one_value() -> None:
    for arguments, size in (
        ({"num_classes": np.int64(3)}, 3),
        ({"classes": np.array(["cat", "dog"])}, 2),
        ({"target": zoo_core.Target(kind="regression", size=1)}, 1),
        ({"target": zoo_core.Target(kind="multilabel", size=1)}, 1),
    ):
        assert zoo_core.load("starter/convnet-nano", **arguments).target.size == size


def test_a_head_that_must_be_fitted_first_says_so() -> None:
    for head in ("ncm", "knn"):
        learner = zoo_core.load(f"starter/convnet-nano+{head}", num_classes=3)
        with pytest.raises(UsageError, match=r"nothing has fitted it: use zoo_core\.fit"):
            zoo_core.predict(learner, [np.zeros((8, 8), dtype=np.uint8)])


# --- save ------------------------------------------------------------------------------------------------------------

OWN_LOOP = """
import json, sys, numpy as np, torch, zoo_core
torch.set_num_threads(2)
learner = zoo_core.load("starter/convnet-nano+norm", classes=["cat", "dog", "owl"], seed=3)
prepare = learner.source.preparation
rng = np.random.default_rng(0)
pictures = [rng.integers(0, 255, size=(32, 32)).astype(np.uint8) for _ in range(9)]
x = torch.from_numpy(np.stack(pictures)[:, None])
batch = zoo_core.Batch(
    inputs=prepare.normalise({"pixel_values": x}), target=torch.arange(9) % 3, ids=tuple("abcdefghi")
)
optimiser = torch.optim.AdamW(learner.parameter_groups(lr=1e-2))
before = zoo_core.predict(learner, pictures)
for _ in range(3):
    learner.train()
    optimiser.zero_grad()
    learner.loss(learner(batch.inputs), batch).backward()
    optimiser.step()
zoo_core.save(learner, sys.argv[1])
after = zoo_core.predict(learner, pictures)
assert before != after
print(json.dumps([[one.labels, one.scores] for one in after]))
"""


@pytest.mark.slow
def test_what_a_loop_of_ones_own_trained_is_loaded_with_the_same_bits_in_another_process(tmp_path: Path) -> None:
    out = tmp_path / "a" / "own"
    done = subprocess.run(
        [sys.executable, "-c", OWN_LOOP, out], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    learner = zoo_core.load_run(out)
    assert learner.target.names == ("cat", "dog", "owl")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, size=(32, 32)).astype(np.uint8) for _ in range(9)]
    found = [[list(one.labels), list(one.scores)] for one in zoo_core.predict(learner, pictures)]
    assert json.loads(done.stdout) == found
    assert {path.name for path in out.iterdir()} == {".lock", "delta.safetensors", "run.json", "zoo.lock"}


def test_a_fitted_or_loaded_learner_can_be_saved_again_but_never_over_a_run(fitted: Path, tmp_path: Path) -> None:
    learner, _ = zoo_core.fit("starter/convnet-nano+ncm", task=TASK)
    for number, one in enumerate((learner, zoo_core.load_run(fitted))):
        zoo_core.save(one, tmp_path / str(number))
        same = zoo_core.load_run(tmp_path / str(number)).delta()
        assert all(torch.equal(tensor, same[name]) for name, tensor in one.delta().items())
        with pytest.raises(UsageError, match="already holds a run"):
            zoo_core.save(learner, tmp_path / str(number))
    assert zoo_core.evaluate(tmp_path / "1").score == zoo_core.evaluate(fitted).score


def test_a_learner_without_a_plan_cannot_be_saved(tmp_path: Path) -> None:
    learner = zoo_core.load("starter/convnet-nano", num_classes=2)
    learner.plan = None
    with pytest.raises(UsageError, match=r"put together by hand, .* zoo_core\.load makes one"):
        zoo_core.save(learner, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- bench -----------------------------------------------------------------------------------------------------------


def test_a_bench_into_the_folder_of_a_fitted_model_is_refused(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(UsageError, match=r"holds a fitted model .* give --out another folder"):
        zoo_core.bench(out=copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_time_limit_of_a_trial_is_above_0(tmp_path: Path) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text("tasks = ['digits(shots=1)']\nbackbones = ['starter/convnet-nano']\nseeds = 1\n")
    with pytest.raises(UsageError, match=r"^trial_time_limit=0: allowed: a number of seconds above 0$"):
        zoo_core.bench(suite, out=tmp_path / "out", trial_time_limit=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_bench_runs_a_file_and_a_second_call_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        "tasks = ['digits(shots=1)']\nbackbones = ['starter/convnet-nano']\nadapters = ['probe+ncm']\nseeds = [3]\n"
    )
    monkeypatch.chdir(tmp_path)
    first = zoo_core.bench(suite)
    assert [(result.status, result.seed) for result in first] == [("ok", 3)]
    assert (tmp_path / "runs" / "tiny" / "results.jsonl").is_file()
    import zoo_core.benchmark.runner as runner

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(runner, "run_all", never)
    assert zoo_core.bench(str(suite)) == first


@pytest.mark.slow
def test_a_script_that_calls_bench_is_not_run_again_by_its_workers(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(
        "tasks = ['digits(shots=1)']\nbackbones = ['starter/convnet-nano']\nadapters = ['probe+ncm']\nseeds = 1\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import zoo_core\nprint('once')\nprint([result.status for result in zoo_core.bench('tiny.toml', out='out')])\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["once", "['ok']"]
    assert done.stderr == ""


def test_names_that_need_torch_are_found_and_others_are_not() -> None:
    for name in ("bench", "evaluate", "fit", "load", "load_backbone", "load_run", "predict", "save"):
        assert isinstance(getattr(zoo_core, name), Callable)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="no attribute 'benhc'"):
        zoo_core.benhc  # noqa: B018
