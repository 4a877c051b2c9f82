from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo_core import contracts
from zoo_core.contracts import Context
from zoo_core.data.loader import Loader
from zoo_core.data.splits import carve
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, ZooError
from zoo_core.files.hashing import sha256_of
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget, Plan
from zoo_core.plan.resolve import resolve
from zoo_core.runs.stored_run import load_stored, read_run, save_run
from zoo_core.testing.recipes import ToyAdapter, ToyBackbones, ToyHint, ToyOpen, toy_plan
from zoo_core.training.fit import fit

pytest.importorskip("zoo_starter")
pytest.importorskip("zoo_adapters")

SPECS = (
    ("starter/vit-nano(weights=random)+full", "digits(limit=70)"),
    ("starter/vit-nano(dropout=0.1)+partial(n=2)+attention-pool", "digits(limit=70)"),
    ("starter/vit-nano+ncm", "digits(limit=70)"),
    ("starter/convnet-nano(weights=random)+bitfit", "digits-attributes(limit=70)"),
    ("starter/convnet-nano+norm+mlp", "digits(limit=70)"),
    ("starter/convnet-nano+knn(k=3)", "digits(shots=3)"),
    ("starter/mlp-nano(weights=random)+full", "diabetes(limit=70)"),
)


def fitted(spec: str, task: str) -> tuple[Learner, Plan, Loader]:
    plan = resolve(spec, task=task, budget=Budget(epochs=1, batch_size=16))
    assert plan.task is not None
    splits = carve(plan.task.recipe.open(None), seed=plan.seed, **plan.task.common)
    learner = build(plan, target=splits.target)
    loaders = [
        Loader(
            split,
            modality=plan.task.recipe.modality,
            target=splits.target,
            preparation=learner.source.preparation,
            batch_size=16,
        )
        for split in (splits.train, splits.val)
    ]
    rate = plan.learning_rates[-1] if plan.learning_rates else None
    fit(learner, loaders[0], budget=plan.budget, learning_rate=rate, seed=0)
    return learner, plan, loaders[1]


def predictions(learner: Learner, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = learner(inputs).predictions
    return found


LOAD = """
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from zoo_core import load_run

torch.set_num_threads(int(sys.argv[3]))  # sums in another order end in other bits
folder = Path(sys.argv[1])
found = {}
for path in sorted(folder.iterdir()):
    learner = load_run(path)
    assert learner.objective is None and not learner.training
    with torch.no_grad():
        found[path.name] = learner(load_file(path / "inputs.safetensors")).predictions
save_file(found, sys.argv[2])
"""


@pytest.mark.slow
def test_a_new_process_loads_a_run_and_predicts_the_same_bits(tmp_path: Path) -> None:
    expected = {}
    for index, (spec, task) in enumerate(SPECS):
        folder = tmp_path / "runs" / str(index)
        folder.mkdir(parents=True)
        learner, plan, loader = fitted(spec, task)
        inputs = dict(next(iter(loader.epoch())).inputs)
        expected[str(index)] = predictions(learner, inputs)
        if plan.learning_rates:  # without its delta it would not do
            assert not torch.equal(predictions(build(plan, target=learner.target), inputs), expected[str(index)])
        save_run(learner, plan, folder)
        save_file({name: x.contiguous() for name, x in inputs.items()}, folder / "inputs.safetensors")
    found = tmp_path / "found.safetensors"
    words = [sys.executable, "-c", LOAD, str(tmp_path / "runs"), str(found), str(torch.get_num_threads())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    for name, rows in load_file(found).items():
        assert torch.equal(rows, expected[name]), SPECS[int(name)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder; tests copy it."""
    folder = tmp_path_factory.mktemp("run")
    learner, plan, _ = fitted("starter/convnet-nano+norm", "digits(limit=40)")
    save_run(learner, plan, folder)
    return folder


@pytest.fixture
def run(stored: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stored, tmp_path / "run")


def test_a_run_is_two_files(run: Path) -> None:
    assert sorted(file.name for file in run.iterdir()) == ["delta.safetensors", "run.json"]


def test_a_run_says_what_it_was_built_from(run: Path) -> None:
    found = read_run(run)
    assert str(found.plan.spec) == "starter/convnet-nano+norm+linear"
    assert found.target.names == tuple("0123456789")
    assert found.plan.budget == Budget(epochs=1, batch_size=16)


def test_a_run_holds_what_the_base_does_not_determine(run: Path) -> None:
    names = set(load_file(run / "delta.safetensors"))
    assert names == set(build(read_run(run).plan).delta())
    assert not any("conv1.weight" in name for name in names)
    assert any(name.endswith("running_mean") for name in names)


def test_loading_gives_back_every_bit(run: Path) -> None:
    learner = load_stored(read_run(run))
    delta = load_file(run / "delta.safetensors")
    assert all(torch.equal(x, delta[name]) for name, x in learner.delta().items())
    assert not any(module.training for module in learner.modules())
    assert learner.objective is None


def test_an_objective_is_not_stored(tmp_path: Path) -> None:
    plan = toy_plan(ToyOpen(), ToyHint())
    save_run(build(plan), plan, tmp_path)
    assert not [
        name for name in load_file(tmp_path / "delta.safetensors") if not name.startswith(("backbone", "heads"))
    ]


def test_tied_weights_are_stored_and_loaded(tmp_path: Path) -> None:
    class Ties(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            one, other = nn.Linear(2, 2), nn.Linear(2, 2)
            other.weight = one.weight
            learner.backbone.add_module("one", one)
            learner.backbone.add_module("other", other)
            learner.head.register_forward_hook(lambda head, args, x: x + other(one(x.new_ones(2))).sum())
            return learner

    plan = toy_plan(Ties(), backbone=ToyBackbones(kind="map"))
    learner = build(plan)
    with torch.no_grad():
        learner.backbone.get_parameter("one.weight").fill_(3)
    save_run(learner, plan, tmp_path)
    twin = build(plan)
    twin.load_delta(load_file(tmp_path / "delta.safetensors"))
    assert twin.backbone.get_parameter("other.weight") is twin.backbone.get_parameter("one.weight")
    assert twin.backbone.get_parameter("other.weight").unique().tolist() == [3.0]


def test_saving_again_replaces_the_run(run: Path) -> None:
    learner, plan, loader = fitted("starter/convnet-nano+norm", "digits(limit=20)")
    save_run(learner, plan, run)
    inputs = dict(next(iter(loader.epoch())).inputs)
    assert torch.equal(predictions(load_stored(read_run(run)), inputs), predictions(learner, inputs))


# -- damaged runs ---------------------------------------------------------------------------------------------------


def rewrite(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    table = json.loads((run / "run.json").read_text())
    change(table)
    (run / "run.json").write_text(json.dumps(table))


def told(run: Path, error: type[ZooError]) -> str:
    with pytest.raises(error) as caught:
        load_stored(read_run(run))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value) or "delta" in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_run_is_not_found(tmp_path: Path) -> None:
    assert "zoo fit" in told(tmp_path, NotFoundError)
    assert "zoo fit" in told(tmp_path / "none", NotFoundError)


def test_a_save_that_was_cut_short_is_no_run(run: Path) -> None:
    (run / "run.json").unlink()
    assert "holds no fitted model" in told(run, NotFoundError)


def test_a_save_cut_short_over_another_run_is_told(run: Path, tmp_path: Path) -> None:
    learner, plan, _ = fitted("starter/convnet-nano+norm", "digits(limit=20)")
    other = tmp_path / "other"
    other.mkdir()
    save_run(learner, plan, other)
    shutil.copy(other / "delta.safetensors", run)  # the delta is written first
    told(run, IntegrityError)


@pytest.mark.parametrize("place", [0, 9, 3000, -1])
def test_one_flipped_byte_of_the_delta_is_found(run: Path, place: int) -> None:
    content = bytearray((run / "delta.safetensors").read_bytes())
    content[place] ^= 1
    (run / "delta.safetensors").write_bytes(content)
    assert "sha256" in told(run, IntegrityError)


def test_a_truncated_delta_is_found(run: Path) -> None:
    content = (run / "delta.safetensors").read_bytes()
    (run / "delta.safetensors").write_bytes(content[:-1])
    assert "bytes, expected" in told(run, IntegrityError)


def test_a_missing_delta_is_told(run: Path) -> None:
    (run / "delta.safetensors").unlink()
    told(run, NotFoundError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "\xff", "[" * 100_000])
def test_what_is_no_run_json_is_damaged(run: Path, text: str) -> None:
    (run / "run.json").write_text(text, encoding="latin-1")
    told(run, IntegrityError)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spec", 3),
        ("spec", "starter/convnet-nano+"),
        ("task", ["digits"]),
        ("target", {"kind": "classes", "size": 3, "names": ["a"]}),
        ("target", {"kind": "colours", "size": 3, "names": []}),
        ("target", {"kind": "classes", "size": None, "names": []}),
        ("budget", {"epoch": 3}),
        ("budget", None),
        ("seed", "one"),
        ("delta", {}),
        ("delta", {"sha256": 3, "size": 3}),
        ("parts", None),
    ],
)
def test_a_wrong_value_in_run_json_is_damage(run: Path, key: str, value: Any) -> None:
    rewrite(run, lambda table: table.update({key: value}))
    assert "run.json" in told(run, IntegrityError)


def test_another_format_is_told(run: Path) -> None:
    rewrite(run, lambda table: table.update(format=2))
    assert "format 2" in told(run, IncompatibleError)


def test_another_base_is_refused(run: Path) -> None:
    rewrite(run, lambda table: table.update(base_digest="0" * 32))
    assert "fitted on another base: 000000000000 then" in told(run, IncompatibleError)


def test_random_weights_are_another_base(run: Path) -> None:
    rewrite(run, lambda table: table.update(spec="starter/convnet-nano(weights=random)+norm+linear"))
    assert "fitted on another base" in told(run, IncompatibleError)


def test_a_recipe_of_another_version_is_refused(run: Path) -> None:
    rewrite(run, lambda table: table["parts"][0].update(version=99))
    assert "another adapter norm (version 99 then, 1 now)" in told(run, IncompatibleError)


def test_a_recipe_with_other_arguments_is_refused(run: Path) -> None:
    rewrite(run, lambda table: table.update(spec="starter/convnet-nano+norm+linear(dropout=0.5)"))
    told(run, IncompatibleError)


def test_a_plugin_that_is_not_installed_is_told(run: Path) -> None:
    rewrite(run, lambda table: table.update(spec="starter/convnet-nano+nrm+linear"))
    assert "nrm" in told(run, NotFoundError)


def test_a_delta_of_another_learner_is_refused(run: Path) -> None:
    tensors = load_file(run / "delta.safetensors")
    tensors["backbone.extra"] = tensors.pop("heads.main.out.bias")
    save_file(tensors, run / "delta.safetensors")
    delta = run / "delta.safetensors"
    rewrite(run, lambda table: table.update(delta={"sha256": sha256_of(delta), "size": delta.stat().st_size}))
    assert "delta is of another learner" in told(run, IncompatibleError)


def test_a_whole_run_is_loaded(run: Path) -> None:
    assert load_stored(read_run(run)).target.size == 10, "what the tests above damage can be read"
