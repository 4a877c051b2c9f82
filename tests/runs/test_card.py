"""`zoo push`: a stored run as a repository, and its way back: the same predictions, whatever the base does since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import zoo_core
from tests.far.fixture import BASE, Far
from tests.hub_server import Status
from zoo_core.errors import NotFoundError
from zoo_core.files.fetch import fetch_run

FIT = ("--task", "digits(shots=3)", "--epochs", "2", "--num-rates", "1", "--device", "cpu")
FILES = {".gitattributes", "README.md", "delta.safetensors", "results.jsonl", "run.json", "zoo.lock"}


@pytest.fixture
def fitted(far: Far, monkeypatch: pytest.MonkeyPatch) -> Far:
    """A model fitted on the repository BASE in the folder `run`, and a token that may write ann/*."""
    monkeypatch.setenv("HF_TOKEN", far.server.token("ann", write=("ann/*",)))
    code, _, err = far.zoo("fit", f"far/{BASE}+full", "--out", "run", *FIT)
    assert code == 0, err
    far.server.clear_log()
    return far


def predicted(path: str | Path) -> torch.Tensor:
    """Of the stored run in a folder, on fixed pictures."""
    learner = zoo_core.load_run(path)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found: torch.Tensor = learner(learner.source.preparation.normalise({"pixel_values": pixels})).predictions
    return found


def test_a_pushed_run_comes_back_with_the_same_predictions(fitted: Far) -> None:
    code, out, err = fitted.zoo("push", "run", "ann/digits")
    assert code == 0, err
    assert out.startswith(f"{fitted.server.endpoint}/ann/digits/commit/{fitted.server.head('ann/digits')}")
    assert 'load_run("hub/ann/digits")' in err
    contents = fitted.server.contents("ann/digits")
    assert set(contents) == FILES
    for name in FILES - {".gitattributes", "README.md"}:
        assert contents[name] == Path("run", name).read_bytes()
    assert len(fitted.server.requests("*/commit/main", method="POST")) == 1
    fitted.server.commit(BASE, {"config.json": b'{"dim": 9}'})  # the base moves on; the lock holds its commit
    folder = fetch_run("ann/digits")
    assert torch.equal(predicted(folder), predicted("run"))


def test_the_card_holds_base_licence_metrics_and_how_to_load_it(fitted: Far) -> None:
    fitted.zoo("push", "run", "ann/digits")
    card = ModelCard(fitted.server.contents("ann/digits")["README.md"].decode())
    data = card.data.to_dict()  # type: ignore[no-untyped-call]
    (row,) = [json.loads(line) for line in Path("run", "results.jsonl").read_text().splitlines()]
    assert data["base_model"] == BASE
    assert data["base_model_relation"] == "finetune"
    assert data["license"] == "cc-by-4.0"  # as the base's own card says
    assert data["library_name"] == "zoo"
    assert data["pipeline_tag"] == "image-classification"
    (index,) = data["model-index"]
    (entry,) = index["results"]
    assert index["name"] == "digits"
    assert entry["dataset"] == {"name": "digits(shots=3)", "type": "digits", "split": "test"}
    assert entry["task"] == {"type": "image-classification"}
    assert entry["metrics"] == [{"type": "accuracy", "value": row["score"], "name": "accuracy"}]
    text = card.text
    assert 'zoo_core.load_run("hub/ann/digits")' in text
    assert f"at `{fitted.server.head(BASE)}`" in text
    assert "pip install zoo-adapters zoo-core zoo-far zoo-starter" in text
    assert f"{row['score']:.4f}" in text


def test_a_base_in_a_package_and_an_unknown_licence_say_so(fitted: Far) -> None:
    assert fitted.zoo("fit", "starter/convnet-nano+probe+ncm", "--out", "own", *FIT)[0] == 0
    assert fitted.zoo("push", "own", "ann/own")[0] == 0
    assert "base_model:" not in fitted.server.contents("ann/own")["README.md"].decode()
    fitted.server.add("org/bare", {**fitted.make_files(), "README.md": b"# no metadata\n"})
    assert fitted.zoo("fit", "far/org/bare+probe+ncm", "--out", "bare", *FIT)[0] == 0
    assert fitted.zoo("push", "bare", "ann/bare")[0] == 0
    readme = fitted.server.contents("ann/bare")["README.md"].decode()
    assert "license:" not in readme
    assert "licence: not known" in readme


def test_a_private_push_is_seen_by_its_owner_alone(fitted: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted.zoo("push", "run", "hub/ann/secret", "--private")[0] == 0
    assert fitted.server.repository("ann/secret").private
    fetch_run("ann/secret")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(NotFoundError, match="no public"):
        fetch_run("ann/secret")


def test_a_second_push_is_one_more_commit(fitted: Far) -> None:
    fitted.zoo("push", "run", "ann/digits")
    first = fitted.server.head("ann/digits")
    assert fitted.zoo("fit", f"far/{BASE}+probe", "--out", "other", *FIT)[0] == 0
    assert fitted.zoo("push", "other", "ann/digits")[0] == 0
    assert fitted.server.head("ann/digits") != first
    assert json.loads((fetch_run("ann/digits") / "run.json").read_text())["spec"].endswith("linear")
    assert json.loads((fetch_run("ann/digits", first) / "run.json").read_text())["spec"] == f"far/{BASE}+full+linear"


def test_what_is_no_fitted_model_is_refused_before_anything_is_asked(fitted: Far) -> None:
    Path("empty").mkdir()
    Path("bench").mkdir()
    Path("bench", "results.jsonl").touch()
    assert "no fitted model" in fitted.refused(3, "push", "empty", "ann/x")
    assert "folder of a bench" in fitted.refused(3, "push", "bench", "ann/x")
    delta = Path("run", "delta.safetensors")
    delta.write_bytes(delta.read_bytes()[:-1] + b"?")
    assert "delta.safetensors" in fitted.refused(5, "push", "run", "ann/x")
    assert fitted.server.requests(method="POST") == []


def test_a_model_on_a_local_folder_is_refused(fitted: Far) -> None:
    Path("mine").mkdir()
    for name, content in fitted.files.items():
        Path("mine", name).write_bytes(content)
    assert fitted.zoo("fit", 'far(files="mine")+probe+ncm', "--out", "local", *FIT)[0] == 0
    line = fitted.refused(2, "push", "local", "ann/x")
    assert "local folder mine" in line
    assert "publish them first" in line
    assert fitted.server.requests(method="POST") == []


def test_who_may_not_write_is_told(fitted: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "may not write to bob/x" in fitted.refused(4, "push", "run", "bob/x")
    assert "ORG/NAME" in fitted.refused(2, "push", "run", "a/b/c")
    fitted.server.fault(Status(403), "/upload/*", method="PUT")
    assert "ann/digits" in fitted.refused(4, "push", "run", "ann/digits")
    assert set(fitted.server.contents("ann/digits")) <= {".gitattributes"}
    monkeypatch.setenv("HF_TOKEN", "")
    assert "hf auth login" in fitted.refused(4, "push", "run", "ann/digits")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE=1" in fitted.refused(4, "push", "run", "ann/digits")


def test_a_repository_that_holds_no_run_is_told(far: Far) -> None:
    with pytest.raises(NotFoundError, match=r"holds no fitted model \(run.json is missing\)"):
        fetch_run(BASE)
