"""Adapters of the Hub in peft's format: fetched like weights, checked like them, and put on their own base alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save

import zoo_core
from tests.far.fixture import BASE, Far
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError

pytest.importorskip("zoo_peft")

ADAPTER = "org/adapter"
SPEC = f"far/{BASE}+hub/{ADAPTER}"
BLOCK = "base_model.model.blocks.1.0"


def adapter_files(base: str = BASE, seed: int = 0) -> dict[str, bytes]:
    """A LoRA of rank 2 on the second convolution, as peft stores it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{BLOCK}.lora_A.weight": torch.randn(2, 8, 3, 3, generator=generator),
        f"{BLOCK}.lora_B.weight": torch.randn(8, 2, 1, 1, generator=generator),
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": base}
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(tensors)}


@pytest.fixture
def published(far: Far) -> Far:
    far.server.add(ADAPTER, adapter_files())
    return far


def test_an_adapter_of_the_hub_is_put_on_its_base(published: Far) -> None:
    learner = zoo_core.load(SPEC, num_classes=3)
    assert {name.rpartition("blocks.1.0.")[2] for name in learner.added()} == {
        "lora_A.default.weight",
        "lora_B.default.weight",
    }
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, 3, 3, generator=generator), torch.randn(8, 2, 1, 1, generator=generator)
    plain = zoo_core.load_backbone(f"far/{BASE}").get_parameter("blocks.1.0.weight")
    merged = learner.merge().backbone.get_parameter("blocks.1.0.weight")
    expected = plain + 3 * torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    assert torch.allclose(merged, expected, rtol=0, atol=1e-5)


def test_it_is_fetched_once_locked_and_verified(published: Far) -> None:
    assert published.zoo("lock", SPEC)[0] == 0
    locked = json.loads((published.folder / "zoo.lock").read_text())
    assert f"adapter:hub/{ADAPTER}" in json.dumps(locked)
    first = zoo_core.load(SPEC, num_classes=3, lock="zoo.lock").added()
    published.server.commit(ADAPTER, adapter_files(seed=1))
    again = zoo_core.load(SPEC, num_classes=3, lock="zoo.lock").added()
    newer = zoo_core.load(SPEC, num_classes=3).added()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], newer[name]) for name in first)
    published.server.clear_log()
    zoo_core.load(SPEC, num_classes=3, lock="zoo.lock", frozen=True)
    assert published.server.log == []


def test_a_run_on_it_keeps_its_commit(published: Far) -> None:
    budget = zoo_core.Budget(epochs=1, num_rates=1)
    learner, _ = zoo_core.fit(SPEC, task="digits(shots=2)", out="run", budget=budget)
    published.server.commit(ADAPTER, adapter_files(seed=1))
    stored = zoo_core.load_run("run")
    assert all(torch.equal(stored.added()[name], tensor) for name, tensor in learner.added().items())


def test_a_wrong_base_is_refused(far: Far) -> None:
    far.server.add(ADAPTER, adapter_files(base="org/other"))
    with pytest.raises(
        IncompatibleError, match=f"hub/{ADAPTER} was trained on org/other, and the backbone here is {BASE}"
    ):
        zoo_core.load(SPEC, num_classes=3)
    assert zoo_core.load(f"{SPEC}(any_base=true)", num_classes=3).added()


def test_what_is_no_adapter_is_refused(far: Far) -> None:
    with pytest.raises(NotFoundError, match="org/adapter"):
        zoo_core.load(SPEC, num_classes=3)
    files = adapter_files()
    far.server.add(ADAPTER, {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"pickle"})
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors is missing"):
        zoo_core.load(SPEC, num_classes=3)
