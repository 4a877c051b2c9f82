"""What zoo's kit checks of adapters holds on this backbone, with a head of any kind and with its own classifier."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from zoo_cifar_resnet.network import Network
from zoo_core.testing.conformance import CHECKS, QUICK, Check, Subject

SLOW = [check for check in CHECKS if check not in QUICK]


@pytest.fixture(scope="module", params=["linear", "cifar-resnet-classifier"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Full training from a file, of a small network of the family."""
    folder = tmp_path_factory.mktemp("weights")
    tensors = Network(8).state_dict() | {"linear.weight": torch.randn(3, 64), "linear.bias": torch.zeros(3)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"depth": 8}))
    head = request.param if request.param == "linear" else f'{request.param}(files="{folder}")'
    return Subject(f'cifar-resnet(files="{folder}")+partial(n=2)+{head}')


@pytest.mark.parametrize("check", QUICK, ids=str)
def test_it_conforms(check: Check, subject: Subject) -> None:
    check(subject)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["cifar-resnet-classifier"], indirect=True)
@pytest.mark.parametrize("check", SLOW, ids=str)
def test_it_conforms_where_that_takes_seconds(check: Check, subject: Subject) -> None:
    check(subject)


@pytest.mark.parametrize("check", QUICK, ids=str)
def test_random_weights_conform(check: Check, random_subject: Subject) -> None:
    check(random_subject)


@pytest.fixture(scope="module")
def random_subject() -> Subject:
    """Full training of the network by its name."""
    return Subject("cifar-resnet/resnet20(weights=random)+full")
