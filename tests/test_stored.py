"""A stored run as the backbone of another fit: its delta is applied, its head dropped, its files are the base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import zoo_core
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError

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
        from zoo_core.hub import pin_plan

        return pin_plan(zoo_core.resolve(f'run(path="{path}")', task=TASK)).base_digest

    assert digest(first) == digest(moved) != digest(second)


def test_random_weights_are_the_same_network_never_trained(first: Path) -> None:
    fitted = zoo_core.load_backbone(f'run(path="{first}")')
    random = zoo_core.load_backbone(f'run(path="{first}",weights=random)')
    assert fitted.state_dict().keys() == random.state_dict().keys()
    inputs = fitted.preparation.dummy(2)  # type: ignore[operator, union-attr]
    assert not torch.equal(fitted(inputs).x, random(inputs).x)


def test_a_base_that_is_gone_or_changed_is_told(first: Path, second: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"delta\.safetensors"):
        zoo_core.load_backbone(f'run(path="{tmp_path}")')
    broken = tmp_path / "broken"
    shutil.copytree(first, broken)
    file = broken / "delta.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        zoo_core.load_backbone(f'run(path="{broken}")')
    other = tmp_path / "other"
    shutil.copytree(second, other)
    shutil.copytree(first, tmp_path / "kept")
    table = (other / "run.json").read_text().replace(str(first), str(broken))
    (other / "run.json").write_text(table)
    with pytest.raises((IncompatibleError, IntegrityError)):
        zoo_core.load_run(other)
