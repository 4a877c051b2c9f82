from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo_core.contracts import FileHash
from zoo_core.errors import IntegrityError, NotFoundError
from zoo_core.testing.toys import ToyBackbone
from zoo_core.weights import fill, load_verified, read_tensors, sha256_of, verify


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FileHash, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    torch.manual_seed(1)  # other numbers than a test's own backbone
    tensors = state(ToyBackbone("map"))
    save_file(tensors, path)
    return path, FileHash(sha256=sha256_of(path), size=path.stat().st_size), tensors


def test_a_file_fills_a_backbone_bit_for_bit(written: tuple[Path, FileHash, dict[str, Tensor]]) -> None:
    path, expected, tensors = written
    backbone = ToyBackbone("map")
    assert not same(state(backbone), tensors)
    load_verified(backbone, path, expected)
    assert same(state(backbone), tensors)


def test_filling_casts_to_the_modules_own_type() -> None:
    backbone = ToyBackbone("map").double()
    fill(backbone, state(ToyBackbone("map")), source="toy")
    assert {x.dtype for x in backbone.parameters()} == {torch.float64}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_byte_anywhere_is_found_and_nothing_is_copied(
    written: tuple[Path, FileHash, dict[str, Tensor]], tmp_path: Path, data: st.DataObject
) -> None:
    path, expected, _ = written
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    backbone = ToyBackbone("map")
    before = state(backbone)
    with pytest.raises(IntegrityError, match="sha256"):
        load_verified(backbone, damaged, expected)
    assert same(state(backbone), before)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_found_with_and_without_a_hash(
    written: tuple[Path, FileHash, dict[str, Tensor]], tmp_path: Path, kept: int
) -> None:
    path, expected, _ = written
    short = tmp_path / "short.safetensors"
    short.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(IntegrityError, match="bytes, expected"):
        verify(short, expected)
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        read_tensors(short)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        verify(tmp_path / "none", FileHash(sha256="0" * 64, size=1))
    with pytest.raises(NotFoundError):
        read_tensors(tmp_path / "none")


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["blocks.1.conv.weight"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"] = torch.zeros(2)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["norm.weight"] = tensors["norm.weight"][:-1]


def transpose(tensors: dict[str, Tensor]) -> None:
    tensors["stem.weight"] = tensors["stem.weight"].transpose(0, 1).contiguous()


def spoil(tensors: dict[str, Tensor]) -> None:
    tensors["norm.bias"][3] = math.nan


def overflow(tensors: dict[str, Tensor]) -> None:
    tensors["norm.running_var"][0] = math.inf


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (drop, r"1 of \d+ tensors missing \(.*%.*blocks.1.conv.weight"),
        (add, "1 unknown .*fc.weight"),
        (reshape, r"norm.weight has shape \(11,\), the backbone wants \(12,\)"),
        (transpose, "stem.weight has shape"),
        (spoil, "norm.bias holds values that are not finite"),
        (overflow, "norm.running_var holds values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_copied(mistake: object, told: str) -> None:
    assert callable(mistake)
    tensors = state(ToyBackbone("map"))
    mistake(tensors)
    backbone = ToyBackbone("map")
    before = state(backbone)
    with pytest.raises(IntegrityError, match=told) as caught:
        fill(backbone, tensors, source="toy.safetensors")
    assert "toy.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(state(backbone), before)
