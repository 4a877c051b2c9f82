"""Weights from a folder: every tensor accounted for, renamed as timm does, resampled never, the file never written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zoo_core
from zoo_core.contracts import as_backbone
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, RefusedError
from zoo_core.files.hashing import sha256_of
from zoo_core.toolkit.weights import assign, blank, open_pickle
from zoo_timm.backbones import Timm
from zoo_timm.config import registered
from zoo_timm.loading import _create, _loader_replaced
from zoo_timm.network import TimmBackbone

TINY = list(timm.list_models("test_*"))
REAL = Path(__file__).parents[4] / "shared" / "data" / "weights" / "mobilenetv2_100.coral_in1k"


def built(recipe: Timm, folder: Path) -> TimmBackbone:
    backbone = recipe.build(folder, "pretrained").eval()
    assert isinstance(backbone, TimmBackbone)
    return backbone


def saved(architecture: str, folder: Path, **arguments: object) -> nn.Module:
    """A timm model, written into a folder as timm writes it: model.safetensors and config.json."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **arguments).eval()  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return model


def same_features(backbone: TimmBackbone, plain: nn.Module) -> bool:
    pixels = torch.randn(backbone.preparation.dummy(2)["pixel_values"].shape)
    if backbone.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    state = {name: x.clone() for name, x in backbone.state_dict().items()}  # kernels heed where weights lie
    backbone.load_state_dict(state, assign=True)
    with torch.no_grad():
        features = backbone({"pixel_values": pixels})
        theirs = plain.forward_features(pixels)  # type: ignore[operator]
        if backbone.layout == "map, channels last":
            theirs = theirs.permute(0, 3, 1, 2)
        return torch.equal(features.x, theirs)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("test_vit", "test_resnet") else pytest.mark.exhaustive)
        for name in TINY
    ],
)
def test_a_checkpoint_that_lacks_any_single_tensor_of_the_backbone_is_refused(
    architecture: str, tmp_path: Path
) -> None:
    saved(architecture, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for missing in backbone_names(architecture, tensors):
        save_file({name: x for name, x in tensors.items() if name != missing}, file)
        with pytest.raises(IntegrityError) as caught:
            built(Timm(name=architecture), tmp_path)
        assert str(file) in str(caught.value)


@pytest.mark.parametrize("architecture", TINY)
def test_tensors_of_which_any_single_one_is_missing_are_refused(architecture: str, tmp_path: Path) -> None:
    """The same without writing and building for each of them."""
    saved(architecture, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    with blank():
        network, loader = _create(registered(architecture), pretrained=True)
    for missing in backbone_names(architecture, tensors):
        left = {name: x for name, x in tensors.items() if name != missing}
        with pytest.raises(IntegrityError, match="file"):
            assign(network, loader.named_for(network, left, "file"), source="file", unused=loader.unused)
    assert all(x.is_meta for x in network.parameters())
    assign(network, loader.named_for(network, tensors, "file"), source="file", unused=loader.unused)


def backbone_names(architecture: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """What of a file is the backbone's; the rest is the classifier."""
    names = timm.create_model(architecture, num_classes=0).state_dict().keys()
    assert names < tensors.keys()
    return sorted(names)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=[] if name in ("test_vit", "test_resnet", "test_mambaout") else [pytest.mark.slow])
        for name in TINY
    ],
)
def test_a_folder_as_timm_writes_it_gives_the_same_model(architecture: str, tmp_path: Path) -> None:
    plain = saved(architecture, tmp_path, num_classes=7)
    backbone = built(Timm(files=str(tmp_path)), tmp_path)
    assert same_features(backbone, plain)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    assert same_features(backbone, theirs)
    wanted = theirs.pretrained_cfg
    assert backbone.preparation.mean == tuple(wanted["mean"])  # type: ignore[index]
    assert backbone.preparation.crop_pct == wanted["crop_pct"]  # type: ignore[index]


@pytest.mark.parametrize("architecture", [pytest.param("efficientvit_m0", marks=pytest.mark.slow), "levit_128s"])
def test_all_that_timm_builds_only_with_a_classifier_may_be_in_the_file(architecture: str, tmp_path: Path) -> None:
    """efficientvit_m0 has a batch norm before its classifier, levit two classifiers."""
    plain = saved(architecture, tmp_path)
    assert same_features(built(Timm(name=architecture), tmp_path), plain)


def test_a_file_that_holds_more_than_a_classifier_is_refused(tmp_path: Path) -> None:
    saved("test_vit", tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"blocks.6.norm1.weight": torch.zeros(64)}, file)
    with pytest.raises(IntegrityError, match=r"1 unknown \(blocks.6.norm1.weight\)"):
        built(Timm(name="test_vit"), tmp_path)


@pytest.mark.parametrize(("name", "cause"), [("pos_embed", "image size"), ("norm.weight", "another architecture")])
def test_a_tensor_of_another_shape_is_refused_and_not_resampled(name: str, cause: str, tmp_path: Path) -> None:
    saved("test_vit", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = torch.zeros(1, 26, 64) if name == "pos_embed" else torch.zeros(65)
    save_file(tensors, file)
    with pytest.raises((IntegrityError, IncompatibleError), match=cause):
        built(Timm(name="test_vit"), tmp_path)


def test_a_size_that_the_description_states_is_taken(tmp_path: Path) -> None:
    plain = saved("test_vit", tmp_path, img_size=96)
    backbone = built(Timm(files=str(tmp_path)), tmp_path)
    assert backbone.preparation.size == 96
    assert same_features(backbone, plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext"])
def test_a_type_is_as_if_the_whole_model_were_cast(architecture: str, dtype: str, tmp_path: Path) -> None:
    plain = saved(architecture, tmp_path).to(getattr(torch, dtype))
    backbone = built(Timm(name=architecture, dtype=dtype), tmp_path)  # type: ignore[arg-type]
    ours, theirs = backbone.network.state_dict(), plain.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert {x.dtype for x in backbone.parameters()} == {getattr(torch, dtype)}


def test_training_never_writes_to_the_file(tmp_path: Path) -> None:
    saved("test_resnet", tmp_path)
    before = sha256_of(tmp_path / "model.safetensors")
    backbone = built(Timm(name="test_resnet"), tmp_path).train()
    optimiser = torch.optim.SGD(backbone.parameters(), lr=0.1)
    backbone({"pixel_values": torch.randn(2, 3, 64, 64)}).x.square().mean().backward()
    optimiser.step()
    assert sha256_of(tmp_path / "model.safetensors") == before


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext", "eva02_tiny_patch14_224"])
def test_what_no_file_holds_is_never_left_uninitialised(architecture: str, tmp_path: Path) -> None:
    plain = saved(architecture, tmp_path)
    torch.use_deterministic_algorithms(True)  # memory that nobody has written to holds NaN
    try:
        backbone = built(Timm(name=architecture), tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(x.is_meta for x in (*backbone.parameters(), *backbone.buffers()))
    theirs = dict(plain.named_buffers())
    assert all(torch.equal(x, theirs[name]) for name, x in backbone.network.named_buffers())
    assert same_features(backbone, plain)


def test_a_pickle_is_read_only_if_asked_for(tmp_path: Path) -> None:
    plain = saved("test_resnet", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(plain.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(NotFoundError, match=r"holds no weights; looked for model\.safetensors"):
        built(Timm(files=str(tmp_path)), tmp_path)
    assert same_features(built(Timm(files=str(tmp_path), allow_pickle=True), tmp_path), plain)


def test_a_pickle_is_never_preferred(tmp_path: Path) -> None:
    plain = saved("test_resnet", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be opened")
    assert same_features(built(Timm(files=str(tmp_path), allow_pickle=True), tmp_path), plain)


def test_shards_are_read_as_one_file(tmp_path: Path) -> None:
    plain = saved("test_vit", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    placed = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(names)}
    for shard in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}), encoding="utf-8")
    assert same_features(built(Timm(name="test_vit"), tmp_path), plain)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(IntegrityError, match="1 shards missing"):
        built(Timm(name="test_vit"), tmp_path)


@pytest.mark.slow
def test_old_names_are_renamed_as_timm_does(tmp_path: Path) -> None:
    """torchvision's VGG has its classifier as `classifier.0`, `.3`; timm's filter turns that into `pre_logits`."""
    torch.manual_seed(0)
    plain = timm.create_model("vgg11").eval()
    renames = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
    old: dict[str, Tensor] = {}
    for name, tensor in plain.state_dict().items():
        prefix = next((new for new in renames if name.startswith(new)), None)
        flat = tensor.flatten(1) if prefix and tensor.ndim == 4 else tensor
        old[name.replace(prefix, renames[prefix]) if prefix else name] = flat.contiguous()
    save_file(old, tmp_path / "model.safetensors")
    assert same_features(built(Timm(name="vgg11"), tmp_path), plain)


def test_random_weights_need_no_file_and_follow_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(Timm(name="test_vit").build(None, "random").state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", num_classes=0).state_dict()
    assert all(torch.equal(states[0][f"model.{name}"], tensor) for name, tensor in plain.items())


def test_a_repository_can_be_looked_at_without_its_weights(tmp_path: Path) -> None:
    saved("test_convnext", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with torch.device("meta"):
        backbone = Timm(name="somebody/model").build(tmp_path, "random")
    assert isinstance(backbone, TimmBackbone)
    assert (backbone.features.kind, len(backbone.stages)) == ("map", 9)
    with pytest.raises(NotFoundError, match="holds no weights"):
        built(Timm(name="somebody/model"), tmp_path)


def test_pre_trained_weights_without_files_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"write 'timm/resnet18d.ra2_in1k\(weights=random\)'"):
        Timm(name="resnet18d").build(None, "pretrained")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real weights are not at {REAL}")
def test_real_weights_are_what_timm_loads(tmp_path: Path) -> None:
    backbone = built(Timm(files=str(REAL)), REAL)
    plain = timm.create_model(f"local-dir:{REAL}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = backbone({"pixel_values": pixels})
        theirs = plain.forward_features(pixels)  # type: ignore[operator]
        assert torch.equal(features.x, theirs)
        pooled = plain.forward_head(theirs, pre_logits=True)  # type: ignore[operator]
        assert torch.equal(backbone.pool(features), pooled)
    assert backbone.preparation.mean == backbone.preparation.std == (0.5, 0.5, 0.5)
    assert (backbone.preparation.interpolation, backbone.preparation.crop_pct) == ("bilinear", 0.875)
    assert (backbone.features.dim, len(backbone.stages)) == (1280, 17)
    shutil.copytree(REAL, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").chmod(0o644)
    content = bytearray((REAL / "model.safetensors").read_bytes())
    (tmp_path / "copy" / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        built(Timm(files=str(tmp_path / "copy")), tmp_path / "copy")


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext", "mobilenetv3_small_050"])
def test_half_precision_takes_the_pictures_of_float32_and_gives_its_features(architecture: str) -> None:
    torch.manual_seed(0)
    whole, half = (
        Timm(name=architecture, dtype=dtype).build(None, "random").eval() for dtype in ("float32", "bfloat16")
    )
    half.load_state_dict(whole.state_dict())
    inputs = {"pixel_values": torch.randn_like(as_backbone(whole).preparation.dummy(2)["pixel_values"])}
    with torch.no_grad():
        expected, found = as_backbone(whole)(inputs), as_backbone(half)(inputs)
        pooled = as_backbone(half).pool(found)
    assert found.x.dtype == pooled.dtype == torch.float32
    assert torch.allclose(found.x, expected.x, rtol=0.1, atol=0.1 * float(expected.x.abs().max()))


def test_a_stored_run_reads_a_pickle_only_where_its_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = saved("test_resnet", tmp_path / "files")
    (tmp_path / "files" / "model.safetensors").unlink()
    torch.save(plain.state_dict(), tmp_path / "files" / "pytorch_model.bin")
    zoo_core.save(zoo_core.load("timm(files=files,allow_pickle=true)", num_classes=3), "run")
    opened: list[Path] = []

    def noted(paths: Iterable[Path]) -> dict[str, Tensor]:
        opened.extend(paths)
        return open_pickle(paths)

    monkeypatch.setattr("zoo_timm.loading.open_pickle", noted)
    for spec in ("run(path=run)", "run(path=run)+full"):
        with pytest.raises(RefusedError, match="--trust pickle"):
            zoo_core.load(spec, num_classes=3)
    with pytest.raises(RefusedError, match="--trust pickle"):
        zoo_core.load_run("run")
    assert not opened
    with zoo_core.trusting("pickle"):
        zoo_core.load_run("run")
    assert opened


def test_another_thread_builds_by_timm_as_ever_while_a_backbone_is_built() -> None:
    own: list[str] = []
    with _loader_replaced(lambda model, **told: own.append("ours")):
        timm.models._builder.load_pretrained(nn.Identity())
        assert own == ["ours"]
        with ThreadPoolExecutor(1) as threads, pytest.raises(RuntimeError):  # timm's own, which has nothing to load
            threads.submit(timm.models._builder.load_pretrained, nn.Identity(), pretrained_cfg={}).result()
    assert own == ["ours"]
