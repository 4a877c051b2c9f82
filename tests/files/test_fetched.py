"""From a name on the Hub to a learner, a fit and a bench: what is asked when, what is refused, what a lock decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

import zoo_core
from tests.far.fixture import BASE, FAR, Far
from tests.hub_server import Status
from zoo_core.errors import AccessError, IntegrityError, NotFoundError, RefusedError, UsageError

NAME = f"far/{BASE}"
GRID = ("--task", "digits(shots=2)", "--adapters", "probe,full", "--seeds", "1", "--epochs", "1")


def asked_for_weights(far: Far) -> int:
    return len(far.server.requests("*model.safetensors"))


def results(folder: Path) -> dict[str, dict[str, object]]:
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {row["trial"].partition(" ")[0]: row for row in rows}


def test_a_learner_holds_the_bits_of_the_file(far: Far) -> None:
    learner = zoo_core.load(f"{NAME}+full", num_classes=3)
    held = learner.backbone.state_dict()
    stored = load(far.files["model.safetensors"])
    assert held.keys() == stored.keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in stored.items())


def test_a_learner_tells_which_files_determine_its_weights(far: Far) -> None:
    found = zoo_core.load(f"{NAME}+full", num_classes=3).weights_source
    assert found is not None
    assert (found.repository, found.revision) == (BASE, far.server.head(BASE))
    for spec in (f"{NAME}(weights=random)+full", "starter/vit-nano+full"):
        assert zoo_core.load(spec, num_classes=3).weights_source is None


def test_a_second_load_asks_which_commit_and_an_offline_one_nothing(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo_core.load_backbone(NAME)
    far.server.clear_log()
    zoo_core.load_backbone(NAME)
    assert len(far.server.log) == 1
    far.server.clear_log()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    zoo_core.load_backbone(NAME)
    assert far.server.log == []


@pytest.mark.parametrize(
    ("spec", "task", "told"),
    [
        (NAME, "diabetes", f"{NAME} reads image and task diabetes is table"),
        (f"{NAME}+partial(n=3)", "digits", "n=3"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_weights_are_asked_for(
    far: Far, spec: str, task: str, told: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        zoo_core.fit(spec, task=task)
    assert told in str(caught.value)
    assert far.server.requests("*config.json")
    assert asked_for_weights(far) == 0


def test_a_random_backbone_needs_its_configuration_alone(far: Far) -> None:
    learner = zoo_core.load(f"{NAME}(weights=random)", num_classes=2)
    assert learner.source.features.dim == 8
    assert asked_for_weights(far) == 0


@pytest.mark.parametrize("name", ["blocks.0.0.weight", "blocks.1.0.bias"])
def test_a_file_that_lacks_one_tensor_is_refused_whatever_the_head(far: Far, name: str) -> None:
    tensors = load(far.files["model.safetensors"])
    del tensors[name]
    far.server.commit(BASE, {"model.safetensors": save(tensors)})
    with pytest.raises(IntegrityError, match=name):
        zoo_core.load(NAME, num_classes=7)


def test_a_revision_and_a_lock_decide_which_commit(far: Far) -> None:
    first = far.server.head(BASE)
    assert far.zoo("lock", NAME)[0] == 0
    second = far.server.commit(BASE, far.make_files(seed=1))

    def weight(spec: str, lock: str | None = None) -> torch.Tensor:
        backbone = zoo_core.load_backbone(spec, lock=lock)
        return backbone.get_parameter("blocks.0.0.weight").detach()

    old = load(far.files["model.safetensors"])["blocks.0.0.weight"]
    new = load(far.make_files(seed=1)["model.safetensors"])["blocks.0.0.weight"]
    assert torch.equal(weight(NAME), new)
    assert torch.equal(weight(NAME, lock="zoo.lock"), old)
    assert torch.equal(weight(f"{NAME}@{first}"), old)
    assert torch.equal(weight(f"{NAME}@{second}"), new)


def test_frozen_sends_nothing_and_takes_nothing_that_is_not_locked(far: Far) -> None:
    with pytest.raises(NotFoundError, match=f"not in the lock: backbone:{NAME}; write it with zoo lock"):
        zoo_core.load(NAME, num_classes=2, frozen=True)
    assert far.server.log == []
    assert far.zoo("lock", NAME)[0] == 0
    far.server.clear_log()
    with pytest.raises(NotFoundError, match=r"model\.safetensors.*not on this machine.*zoo fetch"):
        zoo_core.load(NAME, num_classes=2, lock="zoo.lock", frozen=True)
    assert far.server.log == []
    assert far.zoo("fetch")[0] == 0
    far.server.clear_log()
    zoo_core.load(NAME, num_classes=2, lock="zoo.lock", frozen=True)
    assert far.server.log == []


def test_a_lock_that_is_not_there_is_told(far: Far) -> None:
    with pytest.raises(NotFoundError, match=r"there is no lock none\.lock; `zoo lock SPEC --lock none\.lock`"):
        zoo_core.load(NAME, num_classes=2, lock="none.lock")


def test_a_stored_run_stays_with_its_commit(far: Far, tmp_path: Path) -> None:
    zoo_core.fit(f"{NAME}+full", task="digits(shots=2)", out="run", budget=zoo_core.Budget(epochs=1, num_rates=1))
    picture = torch.zeros(8, 8, dtype=torch.uint8)
    before = zoo_core.predict(zoo_core.load_run("run"), [picture])
    far.server.commit(BASE, far.make_files(seed=1))
    assert zoo_core.predict(zoo_core.load_run("run"), [picture]) == before
    (tmp_path / "run" / "zoo.lock").unlink()
    with pytest.raises(zoo_core.ZooError, match="was fitted on another base"):
        zoo_core.load_run("run")


@pytest.fixture
def published(far: Far, monkeypatch: pytest.MonkeyPatch) -> Far:
    """A model on the Hub, `hub/ann/first`, that was fitted on another one there."""
    monkeypatch.setenv("HF_TOKEN", far.server.token("ann", write=("ann/*",)))
    words = ("fit", f"{NAME}+full", "--task", "digits(shots=2)", "--out", "first", "--epochs", "1", "--device", "cpu")
    assert far.zoo(*words)[0] == 0
    assert far.zoo("push", "first", "ann/first")[0] == 0
    far.server.clear_log()
    return far


def test_a_published_model_is_a_backbone(published: Far) -> None:
    fitted = zoo_core.load("hub/ann/first")
    assert fitted.target.size == 10
    start = zoo_core.load("hub/ann/first", num_classes=3)  # with a target, its backbone and a new head
    inputs = fitted.source.preparation.dummy(2)
    assert torch.equal(start.backbone(inputs).x, fitted.backbone(inputs).x)
    assert not torch.equal(start.backbone(inputs).x, zoo_core.load_backbone(NAME)(inputs).x)
    assert start(inputs).predictions.shape == (2, 3)
    plan = zoo_core.resolve("hub/ann/first+partial(n=2)+linear", task="digits")
    assert str(plan.spec) == "hub/ann/first+partial(n=2)+linear"
    assert [part.kind for part in plan.parts] == ["backbone", "adapter", "head", "task"]
    with pytest.raises(UsageError, match="hub/first: write hub/ORG/NAME"):
        zoo_core.resolve("hub/first", task="digits")
    with pytest.raises(NotFoundError, match=r"org/base has no weights: no file fits delta\.safetensors"):
        zoo_core.load_backbone(f"hub/{BASE}")


def test_a_fit_on_a_published_model_is_pinned_and_names_its_chain(published: Far, tmp_path: Path) -> None:
    budget = zoo_core.Budget(epochs=1, num_rates=1)
    learner, _ = zoo_core.fit("hub/ann/first+partial(n=2)", task="digits(shots=2)", out="second", budget=budget)
    inputs = learner.source.preparation.dummy(2)
    (link,) = json.loads(Path("second/run.json").read_text())["chain"]
    below = json.loads(Path("first/run.json").read_text())
    assert link == {
        "name": "hub/ann/first",
        "digest": below["digest"],
        "base_digest": below["base_digest"],
        "delta": below["delta"]["sha256"],
    }
    locked = json.loads(Path("second/zoo.lock").read_text())["parts"]["backbone:hub/ann/first"]
    assert locked["revision"] == published.server.head("ann/first")
    assert locked["files"]["delta.safetensors"] == below["delta"]
    published.server.commit("ann/first", {"delta.safetensors": b"another"})
    assert torch.equal(zoo_core.load_run("second")(inputs).predictions, learner(inputs).predictions)
    assert published.zoo("push", "second", "ann/second")[0] == 0
    assert zoo_core.load("hub/ann/second").plan.spec == learner.plan.spec  # type: ignore[union-attr]


def test_what_a_published_model_was_fitted_on_is_fetched_with_it(
    published: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "another" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another" / "hub"))
    assert published.zoo("lock", "hub/ann/first+partial(n=2)")[0] == 0
    with pytest.raises(NotFoundError, match="requests are forbidden"):
        zoo_core.load("hub/ann/first+partial(n=2)", num_classes=2, lock="zoo.lock", frozen=True)
    found = zoo_core.fetch("hub/ann/first+partial(n=2)", lock="zoo.lock")
    assert found.keys() == {"backbone:hub/ann/first", f"backbone:{NAME}"}
    published.server.clear_log()
    zoo_core.load("hub/ann/first+partial(n=2)", num_classes=2, lock="zoo.lock", frozen=True)
    assert published.server.log == []


def test_the_command_fetches_the_whole_chain(published: Far) -> None:
    code, out, _ = published.zoo("fetch", "hub/ann/first+partial(n=2)", "--json")
    assert code == 0
    assert {row["part"] for row in json.loads(out)} == {"backbone:hub/ann/first", f"backbone:{NAME}"}
    code, out, _ = published.zoo("plan", "hub/ann/first+partial(n=2)", "--task", "digits")
    assert code == 0
    assert "hub/ann/first" in out


@pytest.mark.slow
def test_a_bench_goes_on_with_the_commit_it_began_with(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAR))
    command = ("bench", "--backbones", NAME, *GRID, "--out", "run")
    assert far.zoo(*command)[0] == 0
    before = results(far.folder / "run")
    assert {row["status"] for row in before.values()} == {"ok"}
    far.server.commit(BASE, far.make_files(seed=1))
    far.server.clear_log()
    assert far.zoo(*command)[0] == 0
    assert far.server.log == []
    assert results(far.folder / "run") == before


@pytest.mark.slow
def test_a_backbone_that_cannot_be_had_is_rows_and_the_others_run(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAR))
    far.server.add("org/gated", far.files, gated=True)
    far.server.fault(Status(503), "*model.safetensors", method="*")
    backbones = f"far/org/gated,far/org/none,{NAME},starter/convnet-nano"
    code, _, err = far.zoo("bench", "--backbones", backbones, *GRID, "--out", "run")
    rows = results(far.folder / "run")
    status = {spec.partition("+")[0]: row["status"] for spec, row in rows.items()}
    assert status == {
        "far/org/gated": "refused",  # its configuration cannot be read
        "far/org/none": "refused",
        NAME: "failed",  # its weights cannot
        "starter/convnet-nano": "ok",
    }, err
    assert code == 1
    assert all("zoo" in str(row["reason"]) or "http" in str(row["reason"]) for row in rows.values() if row["reason"])


def test_what_is_fetched_needs_no_network_afterwards(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    folders = zoo_core.fetch(f"{NAME}+full", progress=lambda event: told.append(event.done_bytes))
    assert folders.keys() == {f"backbone:{NAME}"}
    assert (folders[f"backbone:{NAME}"] / "model.safetensors").read_bytes() == far.files["model.safetensors"]
    assert told
    assert told[-1] == len(far.files["model.safetensors"])
    far.server.clear_log()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    zoo_core.load(f"{NAME}+full", num_classes=2)
    assert far.server.log == []


def test_a_fetch_of_what_does_not_fit_gets_no_weights(far: Far) -> None:
    with pytest.raises(RefusedError, match="n=3"):
        zoo_core.fetch(f"{NAME}+partial(n=3)")
    assert asked_for_weights(far) == 0


def test_who_may_not_read_is_told_by_load(far: Far) -> None:
    far.server.add("org/gated", far.files, gated=True)
    with pytest.raises(AccessError, match="org/gated"):
        zoo_core.load("far/org/gated", num_classes=2)
