"""Relational distillation as a third party writes it, in tests/taught: its loss, its promises, its students."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo_core
from tests.taught.fixture import DIGITS, TAUGHT, Taught
from zoo_core.contracts import Target
from zoo_core.testing.conformance import CHECKS, QUICK, Check, Subject

pytest.importorskip("zoo_starter")
pytest.importorskip("zoo_distill")

BUDGET = zoo_core.Budget(epochs=1, num_rates=1, batch_size=8, augment="strong", views=1)


@pytest.fixture(scope="module")
def modules(taught: Taught) -> Any:
    return importlib.import_module("zoo_taught.modules")


def drawn(num: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(x_BD: Tensor) -> Tensor:
    """Scaled, turned and moved."""
    rotation: Tensor = torch.linalg.qr(drawn(x_BD.shape[1], x_BD.shape[1], seed=9))[0]
    return 3.7 * x_BD @ rotation + 5


def huber(found: np.ndarray[Any, Any]) -> float:
    return float(np.where(abs(found) <= 1, found**2 / 2, abs(found) - 0.5).mean())


def test_the_relations_are_those_of_the_paper(modules: Any) -> None:
    own, theirs = drawn(5, 4).numpy(), drawn(5, 7, seed=1).numpy()
    apart, corners = [], []
    for x in (own, theirs):
        pairs = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        apart.append(pairs / pairs[~np.eye(5, dtype=bool)].mean())
        cosines = np.zeros((5, 5, 5))
        for j, i, k in np.ndindex(5, 5, 5):
            if i != j != k:
                one, other = x[i] - x[j], x[k] - x[j]
                cosines[j, i, k] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        corners.append(cosines)
    mine, teachers = torch.from_numpy(own), torch.from_numpy(theirs)
    found = [float(modules.huber(of(mine), of(teachers))) for of in (modules.distances, modules.angles)]
    assert found == pytest.approx([huber(apart[0] - apart[1]), huber(corners[0] - corners[1])], rel=1e-9)


@pytest.mark.parametrize("relation", ["distances", "angles"])
def test_scale_rotation_and_place_do_not_matter(modules: Any, relation: str) -> None:
    of = getattr(modules, relation)
    x = drawn(6, 5)
    assert float(modules.huber(of(x), of(turned(x)))) < 1e-20
    assert float(modules.huber(of(x), of(drawn(6, 5, seed=1)))) > 1e-3, "others are apart"
    x.requires_grad_(True)
    modules.huber(of(x[[0, 0, 1]]), of(drawn(3, 2))).backward()  # two that are equal
    assert x.grad is not None
    assert x.grad.isfinite().all()
    one = x[:1].detach()
    assert float(modules.huber(of(one), of(one))) == 0, "a batch of one has no relations"


# -- the promises of every adapter ------------------------------------------------------------------------------------

THREE = Target(kind="classes", names=("0", "1", "2"))
CHAINS = {
    "relational": 'pyramid+full+relational(teacher="starter/vit-nano")',
    "relational of a run": 'starter/vit-nano+lora+relational(teacher="{run}")',
    "distill": 'starter/vit-nano+partial(n=1)+distill(teacher="{run}",warmup=3)',
    "distill-features": 'pyramid+full+distill-features(teacher="starter/vit-nano")',
    "stages": 'starter/convnet-nano+partial(n=1)+distill-features(teacher="pyramid",stages=[[-1,-1]])',
    "minilm": 'starter/vit-nano+lora+distill-features(teacher="starter/vit-nano",loss=minilm)',
    "distill-token": 'starter/vit-nano+distill-token(teacher="{run}")',
}
subjects: dict[str, Subject] = {}


@pytest.mark.parametrize(
    "check", [pytest.param(check, marks=[] if check in QUICK else pytest.mark.slow) for check in CHECKS], ids=str
)
@pytest.mark.parametrize(
    "chain",
    [pytest.param(name, marks=[] if name in ("relational", "distill") else pytest.mark.slow) for name in CHAINS],
)
def test_adapters_with_a_teacher_keep_every_promise(chain: str, check: Check, taught: Taught) -> None:
    if chain not in subjects:
        subjects[chain] = Subject(CHAINS[chain].format(run=taught.run), target=THREE)
    if chain == "distill" and str(check) == "loads-in-a-new-process":
        pytest.skip("its stored run is loaded without the plugin below")
    check(subjects[chain])


def test_the_kit_shows_teachers_what_the_student_sees(taught: Taught) -> None:
    subject = Subject(CHAINS["distill"].format(run=taught.run), target=THREE)
    batch = subject.batch()
    assert batch.beside[str(taught.run)]["pixel_values"].shape == (4, 3, 20, 20)
    assert subject.built.terms(subject.built(batch.inputs), batch)["distill"] > 0
    assert subject.plain.teachers is None


# -- a student without its teacher ------------------------------------------------------------------------------------

USE = """
import json, sys
import numpy as np
import zoo_core
from zoo_core.registry.registry import registry

learner = zoo_core.load_run(sys.argv[1])
pictures = [np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)]
scores = zoo_core.predict(learner, pictures)[0].scores
distributions = sorted({provider.distribution for provider in registry().providers() if provider.state == "ok"})
print(json.dumps([scores, zoo_core.evaluate(sys.argv[1]).score, distributions]))
"""


@pytest.mark.parametrize("chain", ["relational of a run", "distill", "distill-token"])
def test_a_stored_student_needs_no_teacher(chain: str, taught: Taught, tmp_path: Path) -> None:
    """Neither where its adapter is left out, nor where a part of it stays in the model."""
    teacher, run = tmp_path / "teacher", tmp_path / "student"
    shutil.copytree(taught.run, teacher)
    learner = zoo_core.load(CHAINS[chain].format(run=teacher), target=THREE)
    zoo_core.save(learner, run)
    shutil.rmtree(teacher)
    used = zoo_core.load_run(run)
    inputs = learner.source.preparation.dummy(2)
    with torch.no_grad():
        assert torch.equal(used(inputs).predictions, learner(inputs).predictions)
    assert used.plan is not None
    assert not used.plan.teachers
    assert ("distill-token" in str(used.plan.spec)) == (chain == "distill-token")


@pytest.mark.slow
def test_it_trains_with_a_teacher_of_another_family_and_is_used_without(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    teacher, run = tmp_path / "teacher", tmp_path / "student"
    zoo_core.save(zoo_core.load_run(taught.run), teacher)
    spec = f'starter/vit-nano+lora(r=2)+relational(teacher="{teacher}")+distill(teacher="{teacher}")'
    learner, result = zoo_core.fit(spec, task="digits(limit=24)", out=run, budget=BUDGET)
    plain, _ = zoo_core.fit("starter/vit-nano+lora(r=2)", task="digits(limit=24)", budget=BUDGET)
    assert result.teachers is not None
    assert result.teachers["made"] == 24, "one pass for two adapters"
    assert any(not torch.equal(x, plain.delta()[name]) for name, x in learner.delta().items()), "it learned from it"
    pictures = [np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)]
    expected = list(zoo_core.predict(learner, pictures)[0].scores)
    for file in teacher.iterdir():
        file.unlink()
    teacher.rmdir()
    done = subprocess.run(
        [sys.executable, "-c", USE, str(run)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ZOO_PLUGINS": "zoo-starter,zoo-adapters"},
    )
    assert not done.returncode, done.stderr
    scores, found, distributions = json.loads(done.stdout)
    assert "zoo-distill" not in distributions
    assert "zoo-taught" not in distributions
    assert scores == expected
    assert found == result.score
    assert str(TAUGHT) not in done.stderr
    with pytest.raises(zoo_core.ZooError, match=r"the teacher .* is not there"):
        zoo_core.load(spec, classes=DIGITS)
