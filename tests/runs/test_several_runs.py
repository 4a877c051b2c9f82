"""Several fitted learners on one backbone: its frozen tensors are in memory once; each predicts as it does alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zoo_core
from tests.tiny import tiny  # noqa: F401 -- a fixture
from zoo_core.errors import IncompatibleError, NotFoundError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.testing.subject import Subject, perturb

BACKBONE = "starter/convnet-nano"
WORDS = "model.embeddings.word_embeddings.weight"
CHAINS = {"lora": "lora(r=2)", "other": "lora(r=2)", "norm": "norm", "full": "full", "probe": "probe"}


def stored(spec: str, folder: Path, *, seed: int) -> Path:
    """A run whose trained values, and the statistics that move with them, are not those of the start."""
    learner = zoo_core.load(spec, num_classes=3)
    perturb((parameter for _, parameter in learner.trainable()), seed=seed)
    learner.train()
    with torch.no_grad():
        learner(inputs())
    zoo_core.save(learner.eval(), folder)
    return folder


def inputs() -> Mapping[str, Tensor]:
    return Subject(f"{BACKBONE}+probe").batch().inputs


@torch.no_grad()
def predictions(learner: Learner, given: Mapping[str, Tensor]) -> Tensor:
    predicted: Tensor = learner(given).predictions
    return predicted


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = enumerate(CHAINS.items())
    return {name: stored(f"{BACKBONE}+{chain}", folder / name, seed=seed) for seed, (name, chain) in made}


def test_each_predicts_as_it_does_alone(runs: dict[str, Path]) -> None:
    given = inputs()
    together = zoo_core.load_runs(runs)
    assert list(together) == list(CHAINS)
    for name, learner in together.items():
        assert torch.equal(predictions(learner, given), predictions(zoo_core.load_run(runs[name]), given)), name
        assert not learner.training
        assert learner.plan is not None


def test_frozen_tensors_are_in_memory_once(runs: dict[str, Path]) -> None:
    together = zoo_core.load_runs(runs)
    held = {name: learner.backbone.state_dict() for name, learner in together.items()}
    for name, learner in together.items():
        frozen = {key.removeprefix("backbone.") for key in learner.frozen()} & held["probe"].keys()
        assert frozen or name == "full"
        for key, tensor in held["probe"].items():
            shared = tensor.data_ptr() == held[name][key].data_ptr()
            assert shared == (key in frozen), (name, key)
    assert len({held[name]["network.stem.0.weight"].data_ptr() for name in held}) == 2  # the base's, and that of full


def test_what_one_trains_no_other_has(runs: dict[str, Path]) -> None:
    given = inputs()
    together = zoo_core.load_runs(runs)
    before = {name: predictions(learner, given) for name, learner in together.items()}
    for name in ("lora", "norm", "full"):
        perturb(parameter for _, parameter in together[name].trainable())
        together[name].train()
        with torch.no_grad():
            together[name](given)  # batch norms that are open move their statistics
        together[name].eval()
    for name, learner in together.items():
        same = torch.equal(predictions(learner, given), before[name])
        assert same == (name in ("other", "probe")), name


def test_one_learner_takes_the_delta_of_another_and_its_own_again_exactly(runs: dict[str, Path]) -> None:
    given = inputs()
    together = zoo_core.load_runs({name: runs[name] for name in ("lora", "other")})
    learner, other = together["lora"], together["other"]
    one = {name: tensor.clone() for name, tensor in learner.delta().items()}
    first, second = predictions(learner, given), predictions(other, given)
    learner.load_delta(other.delta())
    assert torch.equal(predictions(learner, given), second)
    learner.load_delta(one)
    assert torch.equal(predictions(learner, given), first)
    assert torch.equal(predictions(other, given), second)
    assert not torch.equal(first, second)


def test_a_delta_of_other_sites_changes_nothing(runs: dict[str, Path]) -> None:
    given = inputs()
    together = zoo_core.load_runs({name: runs[name] for name in ("lora", "norm")})
    before = predictions(together["lora"], given)
    with pytest.raises(IncompatibleError, match=r"^this delta is of another learner: \d+ names missing"):
        together["lora"].load_delta(together["norm"].delta())
    assert torch.equal(predictions(together["lora"], given), before)


def test_a_merged_copy_leaves_the_others_alone(runs: dict[str, Path]) -> None:
    given = inputs()
    together = zoo_core.load_runs({name: runs[name] for name in ("lora", "probe")})
    before = {name: predictions(learner, given) for name, learner in together.items()}
    merged = together["lora"].merge()
    torch.testing.assert_close(predictions(merged, given), before["lora"], rtol=0, atol=1e-5)
    for name, learner in together.items():
        assert torch.equal(predictions(learner, given), before[name])


def test_another_base_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    other = stored("starter/vit-nano+lora(r=2)", tmp_path / "other", seed=0)
    with pytest.raises(IncompatibleError) as caught:
        zoo_core.load_runs({"a": runs["lora"], "b": other})
    assert str(caught.value) == (
        "b was fitted on another base than a: starter/vit-nano there, starter/convnet-nano here; "
        "load_run loads each by itself"
    )


def test_adapters_of_every_kind_share_a_transformer(tiny: Callable[[str], str], tmp_path: Path) -> None:  # noqa: F811
    spec = tiny("bert")
    given = Subject(f"{spec}+probe").batch().inputs
    chains = ("lora(r=2)", "bottleneck(r=2)", "prefix(length=2)", "prompt(length=2)", "bitfit")
    paths = {chain: tmp_path / str(number) for number, chain in enumerate(chains)}
    for chain, path in paths.items():
        learner = zoo_core.load(f"{spec}+{chain}", num_classes=3)
        perturb(parameter for _, parameter in learner.trainable())
        zoo_core.save(learner, path)
    together = zoo_core.load_runs(paths)
    for chain, learner in together.items():
        assert torch.equal(predictions(learner, given), predictions(zoo_core.load_run(paths[chain]), given)), chain
    words = {learner.backbone.get_parameter(WORDS).data_ptr() for learner in together.values()}
    assert len(words) == 1


def test_a_random_backbone_is_part_of_each_run(tmp_path: Path) -> None:
    given = inputs()
    spec = f"{BACKBONE}(weights=random)+lora(r=2)"
    paths = {}
    for seed in (0, 1):
        zoo_core.save(zoo_core.load(spec, num_classes=3, seed=seed), tmp_path / str(seed))
        paths[str(seed)] = tmp_path / str(seed)
    together = zoo_core.load_runs(paths)
    for name, learner in together.items():
        assert torch.equal(predictions(learner, given), predictions(zoo_core.load_run(paths[name]), given))


def test_what_is_no_mapping_of_runs_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    assert zoo_core.load_runs({}) == {}
    with pytest.raises(UsageError, match="load_runs takes a mapping of names to runs"):
        zoo_core.load_runs([runs["lora"]])  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="holds no fitted model"):
        zoo_core.load_runs({"a": runs["lora"], "b": tmp_path})


def test_a_damaged_delta_of_one_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    torn = stored(f"{BACKBONE}+norm", tmp_path / "torn", seed=0)
    file = torn / "delta.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(zoo_core.ZooError) as caught:
        zoo_core.load_runs({"a": runs["lora"], "b": torn})
    assert caught.value.exit_code == 5
    assert json.loads((torn / "run.json").read_text())["format"] == 1
