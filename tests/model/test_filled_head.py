"""A head whose weights lie in files: filled when built, known by their content, loaded again wherever they lie."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo_core
from zoo_core.contracts import LoadsFiles, Target
from zoo_core.errors import IntegrityError, NotFoundError, PluginError, UsageError
from zoo_core.files.fetch import pin_plan
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import resolve
from zoo_core.registry.catalog import catalog
from zoo_core.registry.registry import registry

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from zoo_core.contracts import Source

@dataclass(frozen=True, kw_only=True)
class Shipped:
    files: str | None = None
    broken: bool = False
    version: ClassVar[int] = 1

    def source(self):
        return None if self.files is None else Source(folder=self.files, weights=("head.safetensors",))

    def build(self, features, target):
        from zoo_adapters.head_modules import LinearHead
        return LinearHead(features.dim, target.size, dropout=0.0)

    def fill(self, head, files, target):
        from zoo_core.toolkit.weights import assign, read_tensors
        if self.broken:
            raise ZeroDivisionError
        assign(head.out, read_tensors(files / "head.safetensors"), source=str(files))
"""
TARGET = Target(kind="classes", names=("a", "b", "c"))


def weights(seed: int) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 128, generator=drawn), "bias": torch.randn(3, generator=drawn)}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the weights of a head; `shipped(files=...)` is known while a test runs."""
    registry.cache_clear()
    catalog.cache_clear()
    (tmp_path / "shipped_head.py").write_text(PLUGIN)
    zoo_core.add_plugin(tmp_path / "shipped_head.py")
    made = tmp_path / "weights"
    made.mkdir()
    save_file(weights(0), made / "head.safetensors")
    yield made
    registry.cache_clear()
    catalog.cache_clear()


def spec(folder: Path, more: str = "") -> str:
    return f'starter/convnet-nano+shipped(files="{folder}"{more})'


def planned(text: str, **more: Any) -> Plan:
    return pin_plan(resolve(text, target=TARGET, **more))


def test_a_class_that_fills_is_a_head_although_it_has_a_source(folder: Path) -> None:
    part = planned(spec(folder)).head
    assert (part.kind, part.name) == ("head", "shipped")
    assert isinstance(part.recipe, LoadsFiles)


def test_a_built_head_holds_the_files_and_trains(folder: Path) -> None:
    learner = zoo_core.load(spec(folder), target=TARGET, seed=3)
    held = {name.rpartition(".")[2]: x for name, x in learner.head.named_parameters()}
    assert all(torch.equal(held[name], x) for name, x in weights(0).items())
    assert all(x.requires_grad for x in held.values())


def test_without_files_it_begins_like_any_other(folder: Path) -> None:
    learner = zoo_core.load("starter/convnet-nano+shipped", target=TARGET)
    assert not dict(learner.head.named_parameters())["out.bias"].any()


def test_a_digest_knows_the_content_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    before = planned(spec(folder))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    assert planned(spec(elsewhere)).digest == before.digest
    save_file(weights(1), elsewhere / "head.safetensors")
    changed = planned(spec(elsewhere))
    assert changed.digest != before.digest
    assert changed.base_digest == before.base_digest


def test_the_content_of_a_head_is_among_what_a_row_was_made_from(folder: Path) -> None:
    (key,) = planned(spec(folder)).contents
    assert key == f'head:shipped(files="{folder}")'


def test_a_digest_without_files_has_nothing_new(folder: Path) -> None:
    plan = planned("starter/convnet-nano+linear")
    assert "head:linear" not in plan.sources
    assert plan.head.source is None


def test_a_stored_run_is_loaded_where_it_was_moved_to_and_refuses_other_files(folder: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(folder, tree / "weights")
    learner = zoo_core.load(spec(tree / "weights"), target=TARGET)
    with torch.no_grad():
        next(learner.head.parameters()).add_(1.0)
    zoo_core.save(learner, tree / "run")
    moved = tree.rename(tmp_path / "moved")
    again = zoo_core.load_run(moved / "run")
    assert torch.equal(next(again.head.parameters()), next(learner.head.parameters()))
    save_file(weights(1), moved / "weights" / "head.safetensors")
    with pytest.raises(IntegrityError, match=r"head\.safetensors"):
        zoo_core.load_run(moved / "run")


def test_filling_changes_no_file(folder: Path) -> None:
    learner = zoo_core.load(spec(folder), target=TARGET)
    with torch.no_grad():
        next(learner.head.parameters()).zero_()
    assert torch.equal(load_file(folder / "head.safetensors")["weight"], weights(0)["weight"])


def test_missing_files_and_what_a_plugin_raises_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        planned(spec(tmp_path / "nowhere"))
    with pytest.raises(PluginError, match=r"head 'shipped' of shipped_head\.py .* raised ZeroDivisionError"):
        zoo_core.load(spec(folder, ",broken=true"), target=TARGET)


def test_a_revision_of_a_head_without_a_repository_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="nothing of linear comes from a repository"):
        resolve("starter/convnet-nano+linear@main", target=TARGET)
