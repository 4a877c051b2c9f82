"""LoRA in peft's own format: what is written plain peft loads, what peft writes is loaded, and a wrong base refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zoo_core
from zoo_core.cli import main
from zoo_core.errors import IncompatibleError, IntegrityError, RefusedError, UsageError
from zoo_core.model.learner import Learner

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
GPT2 = {"vocab_size": 200, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 2}
CLOSE = 1e-6  # relative: the same products, added in another order


def save_timm(folder: Path, architecture: str, **arguments: Any) -> str:
    """A timm model with its weights in a folder, and the spec of it."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0, **arguments)
    described = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return f'timm(files="{folder}")'


def plain_timm(folder: Path, architecture: str, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model(architecture, num_classes=0, **arguments)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def changed(spec: str, seed: int = 1) -> Learner:
    """A learner whose added tensors are no longer those of the start."""
    learner = zoo_core.load(spec, num_classes=3).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.added().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return learner


def write(learner: Learner, folder: Path) -> str:
    return zoo_core.export(learner, folder, form="peft")


@torch.no_grad()
def features(learner: Learner, inputs: dict[str, Tensor]) -> Tensor:
    found: Tensor = learner.backbone(inputs).x
    return found


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= CLOSE * float(expected.abs().max())


def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def texts() -> dict[str, Tensor]:
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapters", "rank"),
    [
        ("lora(r=4)", 8),  # q and v of the fused weight, block by block
        ("lora(r=4,roles=[attn.out,mlp.in],alpha=3,rslora=true)", 4),
        ("lora(r=2)+lora(r=3,alpha=5,roles=[attn.v,mlp.out])", 3),
        ("lora(r=3,init=pissa,roles=[mlp.out])", 6),
        ("peft/lora(r=4)", 4),
        ("lora(r=2)+peft/lora(r=4,lora_alpha=2)", 8),
    ],
)
def test_plain_peft_loads_what_is_written_onto_timms_own_model(adapters: str, rank: int, tmp_path: Path) -> None:
    base = tmp_path / "base"
    learner = changed(f"{save_timm(base, 'vit_tiny_patch16_224', **VIT)}+{adapters}")
    assert "peft.PeftModel.from_pretrained" in write(learner, tmp_path / "adapter")
    model = plain_timm(base, "vit_tiny_patch16_224", **VIT)
    before = model.forward_features(pictures())  # type: ignore[operator]
    tuned = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = tuned.base_model.model.forward_features(pictures())  # type: ignore[operator, union-attr]
    assert_close(found, features(learner, {"pixel_values": pictures()}))
    assert not torch.allclose(found, before)
    shapes = {tensor.shape[0] for name, tensor in load_file(tmp_path / "adapter" / peft_file()).items() if "_A" in name}
    assert rank in shapes


def peft_file() -> str:
    return "adapter_model.safetensors"


@pytest.mark.parametrize("adapters", ["lora(r=4)", "lora(r=4,roles=[mlp.in,mlp.out,attn.k])", "peft/lora"])
def test_plain_peft_loads_what_is_written_onto_transformers_own_model(adapters: str, bert: str, tmp_path: Path) -> None:
    learner = changed(f"{bert}+{adapters}")
    write(learner, tmp_path / "adapter")
    model = transformers.AutoModel.from_pretrained(bert.split('"')[1]).eval()
    tuned = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = tuned(**texts()).last_hidden_state
    assert_close(found, features(learner, texts()))


def test_transposed_weights_are_written_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(**GPT2, bos_token_id=2, eos_token_id=3)  # type: ignore[arg-type]
    transformers.GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer.json").write_bytes(tokenizer())
    learner = changed(f'hf(files="{tmp_path / "gpt2"}")+lora(r=4)')
    write(learner, tmp_path / "adapter")
    model = transformers.AutoModel.from_pretrained(tmp_path / "gpt2").eval()
    tuned = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    inputs = {name: x for name, x in texts().items() if name != "token_type_ids"}
    with torch.no_grad():
        assert_close(tuned(**inputs).last_hidden_state, features(learner, inputs))


def tokenizer() -> bytes:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str().encode()


def test_convolutions_are_written_too(tmp_path: Path) -> None:
    base = tmp_path / "base"
    learner = changed(f"{save_timm(base, 'test_resnet')}+lora(r=3,alpha=1)")
    write(learner, tmp_path / "adapter")
    model = plain_timm(base, "test_resnet")
    tuned = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = tuned.base_model.model.forward_features(pictures())  # type: ignore[operator, union-attr]
    assert_close(found, features(learner, {"pixel_values": pictures()}))


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ("norm+lora", r"norm1\.\w+ is part of what was trained, and no LoRA"),
        ("partial(n=1)+lora", "is part of what was trained, and no LoRA"),
        ("dora", "dora at .* is no sum of products"),
        ("ia3+lora", "ia3 at .* is no sum of products"),
        ("lora+bottleneck", "bottleneck at .* is no sum of products"),
        ("lora+prefix", "is part of what was trained, and no LoRA"),
        ("peft/lora(use_dora=true)", "holds more than LoRA"),
        ("peft/oft(r=4)", "holds more than LoRA"),
        ("probe", r"the learner has no LoRA; \+lora"),
    ],
)
def test_what_is_more_than_lora_is_not_written(adapters: str, told: str, tmp_path: Path) -> None:
    learner = zoo_core.load(f"{save_timm(tmp_path / 'base', 'vit_tiny_patch16_224', **VIT)}+{adapters}", num_classes=3)
    with pytest.raises(RefusedError, match=told):
        write(learner, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_of_no_base_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="of no library that plain peft"):
        write(zoo_core.load("starter/vit-nano+lora", num_classes=3), tmp_path / "adapter")
    spec = save_timm(tmp_path / "base", "vit_tiny_patch16_224", **VIT).replace(")", ",weights=random)")
    with pytest.raises(RefusedError, match="no weights that others can load"):
        write(zoo_core.load(f"{spec}+lora", num_classes=3), tmp_path / "adapter")
    beit = save_timm(tmp_path / "beit", "beit_base_patch16_224", **VIT)
    with pytest.raises(RefusedError, match="read without being called"):
        write(zoo_core.load(f"{beit}+lora", num_classes=3), tmp_path / "adapter")


def test_the_command_writes_it(bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo_core.save(changed(f"{bert}+lora"), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--format", "peft"]) == 0
    assert "4 weights, no head" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--format", "peft"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "other"), "--format", "lora"]) == 2
    assert "has no format of its own" in capsys.readouterr().err


# --- in --------------------------------------------------------------------------------------------------------------


def trained_by_peft(bert: str, folder: Path, **arguments: Any) -> nn.Module:
    """A classifier that plain peft tuned, as people publish it, and its adapter in a folder."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert.split('"')[1], num_labels=3)
    settings = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "r": 4, **arguments}
    tuned = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tuned.save_pretrained(str(folder))
    return tuned.eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3, "lora_dropout": 0.1},
        {"use_dora": True},
        {"rank_pattern": {"layer.0.attention.self.query": 2}, "alpha_pattern": {"value": 5}},
        {"target_modules": ["key", "dense"], "exclude_modules": ["pooler.dense"], "r": 2},
    ],
)
def test_an_adapter_that_peft_published_gives_the_same_features(
    arguments: dict[str, Any], bert: str, tmp_path: Path
) -> None:
    tuned = trained_by_peft(bert, tmp_path / "adapter", **arguments)
    spec = f'{bert}+peft(files="{tmp_path / "adapter"}")'
    learner = zoo_core.load(spec, num_classes=3)
    with torch.no_grad():
        expected = tuned.base_model.model.bert(**texts()).last_hidden_state  # type: ignore[union-attr, operator]
    assert_close(features(learner, texts()), expected)
    assert all(parameter.requires_grad for parameter in learner.added().values())
    merged = learner.merge()
    assert torch.allclose(features(merged, texts()), expected, atol=1e-5)


def test_what_is_written_is_loaded_again_and_a_run_of_it_stands_alone(bert: str, tmp_path: Path) -> None:
    learner = changed(f"{bert}+lora(r=4,roles=[attn.q,mlp.out])")
    write(learner, tmp_path / "adapter")
    again = zoo_core.load(f'{bert}+peft(files="{tmp_path / "adapter"}")', num_classes=3)
    assert_close(features(again, texts()), features(learner, texts()))
    zoo_core.save(again, tmp_path / "run")
    stored = zoo_core.load_run(tmp_path / "run")
    assert torch.equal(features(stored, texts()), features(again, texts()))


def damaged(change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Callable[[Path], None]:
    """What changes the configuration and the tensors of an adapter's folder."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / peft_file())
        change(config, tensors)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / peft_file())

    return apply


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("harm", "error", "told"),
    [
        (
            damaged(lambda config, _: config.update(base_model_name_or_path="org/other")),
            IncompatibleError,
            "was trained on org/other, and the backbone here is .*any_base=true",
        ),
        (
            damaged(lambda config, _: config.update(base_model_name_or_path=None)),
            IncompatibleError,
            "does not say what it was trained on",
        ),
        (damaged(lambda config, _: config.update(peft_type="LOHA")), RefusedError, "of the type LOHA; LORA is what is"),
        (damaged(lambda config, _: config.update(bias="all")), RefusedError, "has bias='all', which goes beyond LoRA"),
        (
            damaged(lambda _, tensors: rename(tensors, "layer.1", "layer.7")),
            IncompatibleError,
            r"changes .*layer\.7.*, which the backbone does not have; it is of another base",
        ),
        (
            damaged(lambda _, tensors: tensors.update({k: v[:, :9].clone() for k, v in tensors.items() if "_A" in k})),
            IncompatibleError,
            r"lora_A\.weight of .* is \[4, 9\], and the backbone takes \[4, 64\]; it is of another base",
        ),
        (
            damaged(lambda _, tensors: [tensors.pop(min(tensors))].clear()),
            IntegrityError,
            "holds half of the LoRA of",
        ),
        (
            damaged(lambda _, tensors: rename(tensors, "lora_A.weight", "lora_embedding_A")),
            RefusedError,
            "only linear layers and convolutions are loaded",
        ),
        (lambda folder: (folder / peft_file()).write_bytes(b"torn"), IntegrityError, "is not a whole safetensors file"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), IntegrityError, "adapter_config.json is dam"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    harm: Callable[[Path], None], error: type[Exception], told: str, bert: str, tmp_path: Path
) -> None:
    trained_by_peft(bert, tmp_path / "adapter")
    harm(tmp_path / "adapter")
    with pytest.raises(error, match=told) as caught:
        zoo_core.load(f'{bert}+peft(files="{tmp_path / "adapter"}")', num_classes=3)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_a_base_by_another_name_is_taken_on_demand(bert: str, tmp_path: Path) -> None:
    tuned = trained_by_peft(bert, tmp_path / "adapter")
    damaged(lambda config, _: config.update(base_model_name_or_path="org/same"))(tmp_path / "adapter")
    learner = zoo_core.load(f'{bert}+peft(files="{tmp_path / "adapter"}",any_base=true)', num_classes=3)
    with torch.no_grad():
        expected = tuned.base_model.model.bert(**texts()).last_hidden_state  # type: ignore[union-attr, operator]
    assert_close(features(learner, texts()), expected)


@pytest.mark.parametrize(
    ("part", "told"),
    [("hub", "write hub/ORG/NAME"), ("hub/only", "write hub/ORG/NAME"), ("hub/a/b/c", "write hub/ORG/NAME")],
)
def test_a_repository_has_an_owner_and_a_name(part: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        zoo_core.load(f"starter/vit-nano+{part}", num_classes=3)
