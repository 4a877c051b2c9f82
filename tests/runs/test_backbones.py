"""A stored run as the backbone of another fit: its delta is applied, its head dropped, its files are the base."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo_core
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError
from zoo_core.files.hashing import sha256_of
from zoo_core.model.learner import Learner

BUDGET = zoo_core.Budget(epochs=1, num_rates=1)
TASK = "digits(shots=3)"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    zoo_core.fit("starter/vit-nano+partial(n=2)", task=TASK, out=folder, budget=BUDGET)
    return folder


@pytest.fixture(scope="module")
def second(first: Path) -> Path:
    folder = first.parent / "second"
    zoo_core.fit(f'run(path="{first}")+norm', task=TASK, out=folder, budget=BUDGET)
    return folder


def test_it_is_the_fitted_backbone_without_its_head(first: Path) -> None:
    fitted = zoo_core.load_run(first)
    start = zoo_core.load(f'run(path="{first}")+probe', num_classes=7)
    inputs = fitted.source.preparation.dummy(2)
    assert torch.equal(start.backbone(inputs).x, fitted.backbone(inputs).x)
    assert start(inputs).predictions.shape == (2, 7)
    assert not torch.equal(zoo_core.load_backbone("starter/vit-nano")(inputs).x, fitted.backbone(inputs).x)


def test_the_delta_of_a_fit_on_it_holds_only_what_differs_from_it(first: Path, second: Path) -> None:
    learner = zoo_core.load_run(second)
    names = {name for name in learner.delta() if name.startswith("backbone.")}
    paths = {site.path for site in learner.source.sites("norm")}
    assert {name.removeprefix("backbone.").rpartition(".")[0] for name in names} == paths
    assert not names >= {name for name in zoo_core.load_run(first).delta() if name.startswith("backbone.")}


def test_a_chain_of_three_loads_with_the_bits_it_was_saved_with(second: Path, tmp_path: Path) -> None:
    spec = f'run(path="{second}")+bitfit'
    learner, _ = zoo_core.fit(spec, task=TASK, out=tmp_path / "third", budget=BUDGET)
    inputs = learner.source.preparation.dummy(2)
    again = zoo_core.load_run(tmp_path / "third")
    assert torch.equal(again(inputs).predictions, learner(inputs).predictions)


def test_the_bases_identity_is_its_content_and_not_its_place(first: Path, second: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(first, moved)

    def digest(path: Path) -> str | None:
        from zoo_core.files.fetch import pin_plan

        return pin_plan(zoo_core.resolve(f'run(path="{path}")', task=TASK)).base_digest

    assert digest(first) == digest(moved) != digest(second)


def test_random_weights_are_the_same_network_never_trained(first: Path) -> None:
    fitted = zoo_core.load_backbone(f'run(path="{first}")')
    random = zoo_core.load_backbone(f'run(path="{first}",weights=random)')
    assert fitted.state_dict().keys() == random.state_dict().keys()
    inputs = fitted.preparation.dummy(2)
    assert not torch.equal(fitted(inputs).x, random(inputs).x)


def test_a_base_that_is_gone_or_changed_is_told(first: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"delta\.safetensors"):
        zoo_core.load_backbone(f'run(path="{tmp_path}")')
    broken = tmp_path / "broken"
    shutil.copytree(first, broken)
    file = broken / "delta.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        zoo_core.load_backbone(f'run(path="{broken}")')


# -- chains -----------------------------------------------------------------------------------------------------------


def trained(spec: str, path: Path) -> Learner:
    """A run after a step of a loop of its own, which takes less time than a fit that is scored."""
    learner = zoo_core.load(spec, num_classes=4).train()
    torch.manual_seed(len(spec))
    batch = zoo_core.Batch(inputs={"pixel_values": torch.randn(4, 3, 32, 32)}, target=torch.arange(4))
    learner.loss(learner(batch.inputs), batch).backward()
    torch.optim.SGD(learner.parameter_groups(0.1)).step()
    zoo_core.save(learner.eval(), path)
    return learner


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/0 to runs/3: one model, fine-tuned again and again on the newest data."""
    runs = tmp_path_factory.mktemp("tree") / "runs"
    spec = "starter/vit-nano+partial(n=2)"
    for period in range(4):
        trained(spec, runs / str(period))
        spec = f'run(path="{runs / str(period)}")+partial(n=2)'
    return runs


@pytest.fixture
def copied(tree: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tree, tmp_path / "copied")


def table_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def outputs(run: Path) -> Tensor:
    learner = zoo_core.load_run(run)
    torch.manual_seed(0)
    with torch.no_grad():
        found: Tensor = learner({"pixel_values": torch.randn(2, 3, 32, 32)}).predictions
    return found


def test_a_delta_names_the_whole_chain_of_digests_that_it_stands_on(tree: Path) -> None:
    for period in range(4):
        links = table_of(tree / str(period))["chain"]
        below = [tree / str(number) for number in reversed(range(period))]
        assert [link["digest"] for link in links] == [table_of(run)["digest"] for run in below]
        assert [link["base_digest"] for link in links] == [table_of(run)["base_digest"] for run in below]
        assert [link["delta"] for link in links] == [sha256_of(run / "delta.safetensors") for run in below]
    assert len({table_of(tree / str(period))["base_digest"] for period in range(4)}) == 4


@pytest.mark.slow
def test_periodic_fine_tuning_goes_on_from_the_last_weights(tree: Path) -> None:
    weights = "network.blocks.3.mlp.fc1.weight"
    seen = [zoo_core.load_backbone("starter/vit-nano").get_parameter(weights)]
    for period in range(4):
        path = tree / str(period)
        seen.append(zoo_core.load_run(path).backbone.get_parameter(weights))
        names = set(zoo_core.load_run(path).delta())
        assert names == set(zoo_core.load_run(tree / "0").delta()), "a delta does not grow with the chain"
        assert torch.equal(zoo_core.load_backbone(f'run(path="{path}")').get_parameter(weights), seen[-1])
    assert not any(torch.equal(before, after) for before, after in pairwise(seen))


@pytest.mark.slow
def test_a_tree_of_runs_is_copied_or_moved_as_a_whole(
    tree: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs(tree / "3")
    assert torch.equal(outputs(copied / "3"), expected)
    moved = copied.rename(tmp_path / "moved")
    hidden = tree.rename(tree.with_name("hidden"))  # so that nothing lies where it was written
    try:
        assert torch.equal(outputs(moved / "3"), expected)
        monkeypatch.chdir(moved)
        assert torch.equal(outputs(Path("3")), expected)
        trained('run(path="3")+norm', Path("more/4"))
        monkeypatch.chdir(tmp_path)
        assert outputs(Path("moved/more/4")).isfinite().all()
        assert len(table_of(Path("moved/more/4"))["chain"]) == 4
        (moved / "1").rename(moved / "elsewhere")
        with pytest.raises(NotFoundError) as caught:
            zoo_core.load_run(moved / "3")
        assert f"was fitted on {tree / '1'}, which is not there, and not at {moved / '1'}" in str(caught.value)
        assert "\n" not in str(caught.value)
    finally:
        hidden.rename(tree)


def test_a_copy_uses_its_own_links_and_not_those_it_was_copied_from(tree: Path, copied: Path) -> None:
    delta = copied / "0" / "delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(IntegrityError, match=str(delta)):
        zoo_core.load_run(copied / "3")
    assert outputs(tree / "3").isfinite().all()


def test_every_changed_link_is_refused_by_its_name(copied: Path) -> None:
    for number in range(3):
        for name in ("delta.safetensors", "run.json"):
            file = copied / str(number) / name
            before = file.read_bytes()
            file.write_bytes(before + b" ")
            with pytest.raises(IntegrityError, match=str(file)):
                zoo_core.load_run(copied / "3")
            file.write_bytes(before)
    assert outputs(copied / "3").isfinite().all()


def test_another_run_at_the_place_of_a_link_is_refused_without_a_lock_too(first: Path, copied: Path) -> None:
    (copied / "3" / "zoo.lock").unlink()
    shutil.rmtree(copied / "2")
    shutil.copytree(first, copied / "2")
    told = r"was fitted on another run\(path=.*\), link 1 of 3 below it: digest [0-9a-f]{12} then, [0-9a-f]{12} now"
    with pytest.raises(IncompatibleError, match=told):
        zoo_core.load_run(copied / "3")


def test_a_run_from_before_chains_were_named_is_loaded(copied: Path) -> None:
    expected = outputs(copied / "0")
    table = table_of(copied / "0")
    del table["chain"], table["places"]
    (copied / "0" / "run.json").write_text(json.dumps(table))
    assert torch.equal(outputs(copied / "0"), expected)


def test_a_published_run_on_a_local_run_is_refused_until_that_is_published(tree: Path) -> None:
    from zoo_core.runs.card import push_run

    with pytest.raises(zoo_core.ZooError, match=r"zoo push .*/runs/0 ORG/NAME"):
        push_run(tree / "1", "me/one")


# -- what adapters leave in a chain -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora(r=2)", "bottleneck", "prefix(length=2)", "prompt", "ssf", "full"])
def test_a_run_with_any_adapter_is_the_base_of_another(adapter: str, tmp_path: Path) -> None:
    trained(f"starter/vit-nano+{adapter}", tmp_path / "one")
    learner = trained(f'run(path="{tmp_path / "one"}")+{adapter}', tmp_path / "two")
    below = zoo_core.load_run(tmp_path / "one").source
    torch.manual_seed(0)
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    with torch.no_grad():
        start = zoo_core.load(f'run(path="{tmp_path / "one"}")', num_classes=2)
        assert torch.equal(start.backbone(inputs).x, below(inputs).x)
        assert torch.equal(zoo_core.load_run(tmp_path / "two")(inputs).predictions, learner(inputs).predictions)
