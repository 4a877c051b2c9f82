from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo_core.contracts import FileHash
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, PluginError
from zoo_core.files.hashing import sha256_of, verify
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.weights import assign, blank, load_verified, open_pickle, open_tensors, read_tensors


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


def test_tensors_are_cast_to_the_modules_own_type() -> None:
    backbone = ToyBackbone("map").double()
    tensors = state(ToyBackbone("map"))
    assign(backbone, tensors, source="toy")
    assert {x.dtype for x in backbone.parameters()} == {torch.float64}
    assert all(torch.equal(x, tensors[name].to(x.dtype)) for name, x in backbone.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_type_that_is_asked_for_is_as_if_the_module_were_cast(dtype: torch.dtype) -> None:
    tensors = state(ToyBackbone("map"))
    with blank():
        backbone = ToyBackbone("map")
    assign(backbone, tensors, source="toy", dtype=dtype)
    plain = ToyBackbone("map")
    plain.load_state_dict(tensors)
    assert same(state(backbone), state(plain.to(dtype)))
    assert backbone.get_buffer("norm.num_batches_tracked").dtype == torch.int64


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
        assign(backbone, tensors, source="toy.safetensors")
    assert "toy.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(state(backbone), before)


# -- blank modules ----------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's, as in a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.out(self.embed(ids))
        return x


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written to holds NaN, as torch's deterministic mode has it."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["map", "tokens"])
def test_a_blank_module_filled_from_a_file_computes_what_a_plain_one_does(kind: Literal["map", "tokens"]) -> None:
    plain = ToyBackbone(kind).eval()
    with poisoned():
        with blank():
            backbone = ToyBackbone(kind).eval()
        assert all(x.is_meta for x in backbone.parameters())
        assert not any(x.is_meta for x in backbone.buffers())
        assign(backbone, state(plain), source="toy")
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8)}
    assert torch.equal(backbone(inputs).x, plain(inputs).x)


def test_what_the_file_lacks_is_never_left_without_a_value() -> None:
    tensors = state(ToyBackbone("map"))
    for missing in sorted(tensors):
        with blank():
            backbone = ToyBackbone("map")
        with pytest.raises(IntegrityError, match=f"1 of .* missing .*{missing}"):
            assign(backbone, {name: x for name, x in tensors.items() if name != missing}, source="toy")
        assert all(x.is_meta for x in backbone.parameters()), "half assigned"


def test_a_buffer_that_no_file_holds_and_nobody_made_is_told() -> None:
    with torch.device("meta"):
        backbone = ToyBackbone("map")
    with pytest.raises(PluginError, match=r"blocks.0.one is built on the meta device"):
        assign(backbone, state(ToyBackbone("map")), source="toy")


def test_only_the_building_thread_is_blank_and_only_while_it_builds() -> None:
    made: list[nn.Module] = []
    with blank():
        thread = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        inside = nn.Linear(2, 2)
    assert inside.weight.is_meta
    assert not made[0].get_parameter("weight").is_meta
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("held", [["embed.weight"], ["out.weight"], ["embed.weight", "out.weight"]])
def test_tied_parameters_stay_one_whichever_names_the_file_has(held: list[str]) -> None:
    with blank():
        module = Tied()
    value = torch.randn(5, 4)
    assign(module, {"out.bias": torch.zeros(5)} | {name: value.clone() for name in held}, source="toy")
    assert module.out.weight is module.embed.weight
    assert torch.equal(module.out.weight, value)


def test_a_parameter_made_before_it_is_shared_stays_one() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.zeros(2))
            self.one, self.other = nn.Module(), nn.Module()
            self.one.weight = weight
            self.other.weight = weight

    with blank():
        module = Shared()
    assert module.one.weight is module.other.weight


def test_tied_names_with_different_values_are_refused() -> None:
    tensors = {"out.bias": torch.zeros(5), "embed.weight": torch.zeros(5, 4), "out.weight": torch.ones(5, 4)}
    with pytest.raises(IntegrityError, match=r"embed.weight and out.weight are one tensor of the model and differ"):
        assign(Tied(), tensors, source="toy")


def test_requires_grad_is_kept() -> None:
    backbone = ToyBackbone("map")
    backbone.norm.requires_grad_(False)
    wanted = {name: x.requires_grad for name, x in backbone.named_parameters()}
    assign(backbone, state(ToyBackbone("map")), source="toy")
    assert {name: x.requires_grad for name, x in backbone.named_parameters()} == wanted


# -- names ------------------------------------------------------------------------------------------------------------


def test_keys_are_renamed_and_dropped_on_purpose() -> None:
    tensors = {f"model.{name}": x for name, x in state(ToyBackbone("map")).items()} | {"ema.step": torch.ones(())}
    backbone = ToyBackbone("map")
    assign(backbone, tensors, source="toy", rename=lambda key: key[6:] if key.startswith("model.") else None)
    assert all(torch.equal(x, tensors[f"model.{name}"]) for name, x in backbone.state_dict().items())


def test_two_keys_that_become_one_are_refused() -> None:
    with pytest.raises(IntegrityError, match="two of its tensors, b among them, would both become w"):
        assign(nn.Linear(1, 1), {"a": torch.zeros(1), "b": torch.zeros(1)}, source="toy", rename=lambda key: "w")


def test_keys_that_a_glob_declares_unused_may_be_there() -> None:
    tensors = state(ToyBackbone("map")) | {"head.weight": torch.zeros(2), "head_dist.bias": torch.zeros(2)}
    assign(ToyBackbone("map"), tensors, source="toy", unused=("head.*", "head_dist.*"))
    with pytest.raises(IntegrityError, match=r"1 unknown \(head_dist.bias\)"):
        assign(ToyBackbone("map"), tensors, source="toy", unused=("head.*",))


def test_a_file_older_than_counts_of_batches_is_taken_with_all_counts_zero() -> None:
    tensors = state(ToyBackbone("map"))
    counts = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert len(counts) > 1
    backbone = ToyBackbone("map")
    assign(backbone, {name: x for name, x in tensors.items() if name not in counts}, source="toy")
    assert all(backbone.get_buffer(name).item() == 0 for name in counts)


@pytest.mark.parametrize(
    ("name", "found", "wanted", "cause"),
    [
        ("pos_embed", (1, 577, 8), (1, 197, 8), "another image size or text length"),
        ("attn.relative_position_bias_table", (529, 3), (169, 3), "another image size"),
        ("stem.weight", (8, 1, 4, 4), (8, 3, 4, 4), "another number of input channels"),
        ("stem.weight", (8, 3, 14, 14), (8, 3, 16, 16), "another patch or kernel size"),
        ("head.weight", (1000, 8), (10, 8), "another number of classes"),
        ("blocks.0.weight", (8, 8), (16, 16), "another architecture"),
    ],
)
def test_shapes_that_differ_are_told_with_their_likely_cause(
    name: str, found: tuple[int, ...], wanted: tuple[int, ...], cause: str
) -> None:
    module = nn.Module()
    owner = module
    *path, leaf = name.split(".")
    for part in path:
        owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.register_parameter(leaf, nn.Parameter(torch.zeros(wanted)))
    with pytest.raises(IntegrityError, match=cause) as caught:
        assign(module, {name: torch.zeros(found)}, source="toy")
    assert f"{name} has shape {found}, the backbone wants {wanted}" in str(caught.value)


def test_many_shapes_that_differ_are_counted() -> None:
    tensors = {name: x.expand(2, *x.shape) for name, x in state(ToyBackbone("map")).items()}
    with pytest.raises(IntegrityError, match=r"; and \d+ more$"):
        assign(ToyBackbone("map"), tensors, source="toy")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_sum_that_overflows_is_no_reason_to_refuse(dtype: torch.dtype) -> None:
    module = nn.Linear(1000, 1, bias=False)
    assign(module, {"weight": torch.full((1, 1000), torch.finfo(dtype).max, dtype=dtype)}, source="toy")
    spoilt = torch.full((1, 1000), torch.finfo(dtype).max, dtype=dtype)
    spoilt[0, 500] = math.inf
    with pytest.raises(IntegrityError, match="not finite"):
        assign(module, {"weight": spoilt}, source="toy")


def test_infinity_may_stay_where_the_model_has_it_too() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("low", torch.tensor([-math.inf, 0.0]))

    with blank():
        module = Bounded()
    assign(module, {"low": torch.tensor([-math.inf, 1.0])}, source="toy")
    assign(module, {"low": torch.tensor([-2.0, 1.0])}, source="toy")
    for value in ([0.0, math.inf], [math.nan, 0.0]):
        with pytest.raises(IntegrityError, match="low holds values that are not finite"):
            assign(module, {"low": torch.tensor(value)}, source="toy")


# -- files ------------------------------------------------------------------------------------------------------------


def test_tensors_are_mapped_and_not_copied(written: tuple[Path, FileHash, dict[str, Tensor]]) -> None:
    path, expected, _ = written
    with blank():
        backbone = ToyBackbone("map")
    tensors = open_tensors([path])
    assign(backbone, tensors, source="toy")
    assert all(x.data_ptr() == tensors[name].data_ptr() for name, x in backbone.state_dict().items())
    places = [x.data_ptr() for x in tensors.values()]
    assert max(places) - min(places) < expected.size, "all lie in one mapping of the file"


def test_training_an_assigned_model_never_writes_to_the_file(
    written: tuple[Path, FileHash, dict[str, Tensor]],
) -> None:
    path, expected, tensors = written
    with blank():
        backbone = ToyBackbone("map")
    assign(backbone, open_tensors([path]), source="toy")
    optimiser = torch.optim.SGD(backbone.parameters(), lr=1.0)
    backbone.train()
    backbone({"pixel_values": torch.randn(4, 3, 8, 8)}).x.square().sum().backward()
    optimiser.step()
    trained = state(backbone)
    assert not any(torch.equal(trained[name], tensors[name]) for name, _ in backbone.named_parameters())
    assert sha256_of(path) == expected.sha256
    assert same(open_tensors([path]), tensors)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two shards and their index."""
    tensors = state(ToyBackbone("map"))
    names = sorted(tensors)
    placed = {name: f"model-0000{1 + (names.index(name) > 3)}-of-00002.safetensors" for name in names}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}), encoding="utf-8")
    return [tmp_path / file for file in sorted(set(placed.values()))] + [index]


def test_shards_are_opened_as_one_file(shards: list[Path]) -> None:
    assign(ToyBackbone("map"), open_tensors(shards), source="toy")
    assign(ToyBackbone("map"), open_tensors(shards[:2]), source="toy")


def test_a_shard_that_is_missing_is_told(shards: list[Path]) -> None:
    with pytest.raises(IntegrityError, match=r"1 shards missing \(model-00002-of-00002.safetensors\), 0 extra"):
        open_tensors([shards[0], shards[2]])
    with pytest.raises(NotFoundError):
        open_tensors([shards[2]][:0])


def test_a_tensor_in_the_wrong_shard_is_told(shards: list[Path]) -> None:
    content = json.loads(shards[2].read_text(encoding="utf-8"))
    name = min(content["weight_map"])
    content["weight_map"][name] = shards[1].name
    shards[2].write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(IntegrityError, match=f"1 tensors are not in the shard that the index names .{name}"):
        open_tensors(shards)


def test_a_tensor_in_two_shards_is_told(shards: list[Path]) -> None:
    save_file(state(ToyBackbone("map")), shards[1])
    with pytest.raises(IntegrityError, match="both hold"):
        open_tensors(shards[:2])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_an_index_that_is_none_is_told(shards: list[Path], content: str) -> None:
    shards[2].write_text(content, encoding="utf-8")
    with pytest.raises(IntegrityError, match="is not an index of shards"):
        open_tensors(shards)


# -- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "state_dict", "model"])
def test_a_pickle_of_tensors_is_opened_when_asked_for(tmp_path: Path, zipped: bool, below: str) -> None:
    path, tensors = tmp_path / "pytorch_model.bin", state(ToyBackbone("map"))
    torch.save({below: tensors} if below else tensors, path, _use_new_zipfile_serialization=zipped)
    before = sha256_of(path)
    with blank():
        backbone = ToyBackbone("map")
    assign(backbone, open_pickle([path]), source="toy")
    assert same(state(backbone), tensors)
    with torch.no_grad():
        backbone.norm.weight.fill_(3)
    assert sha256_of(path) == before


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (touched,)

    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(2), "evil": Evil()}, path)
    with pytest.raises(IntegrityError, match="cannot be read as tensors alone"):
        open_pickle([path])
    assert not touched.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 no zip"])
def test_a_damaged_pickle_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=str(path)) as caught:
        open_pickle([path])
    assert "\n" not in str(caught.value)


def test_a_pickle_of_something_else_is_told(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    with pytest.raises(IntegrityError, match="holds no table of tensors"):
        open_pickle([tmp_path / "list.bin"])


def test_pickles_need_a_torch_that_reads_them_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "a.bin")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(IncompatibleError, match=r"need torch 2\.10 or newer, this is 2\.9\.1"):
        open_pickle([tmp_path / "a.bin"])


def test_values_of_a_file_are_looked_at_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    path = tmp_path / "toy.safetensors"
    tensors = state(ToyBackbone("map"))
    save_file(tensors, path)
    time.sleep(0.05)  # longer than RACY_NS
    poisoned = {**tensors, "norm.bias": torch.full_like(tensors["norm.bias"], math.nan)}

    def load(values: dict[str, Tensor]) -> None:
        assign(ToyBackbone("map"), values, source="toy", paths=[path])

    with pytest.raises(IntegrityError, match="not finite"):
        load(poisoned)
    load(tensors)
    load(poisoned)  # was not looked at: the file is known to hold other values
    save_file(poisoned, path)
    with pytest.raises(IntegrityError, match="not finite"):
        load(read_tensors(path))
