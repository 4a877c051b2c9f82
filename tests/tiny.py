"""Small random backbones of every kind that matters to an adapter, as folders that the Hub plugins read.

The sizes are such that a pass takes some milliseconds: three blocks where a family has blocks, widths of 16 to 100.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "beit": ("beit_base_patch16_224", VIT),  # reads the weight of its qkv without calling the layer
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
    ),
    "resnet": ("test_resnet", {}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}),
    "efficientnet": ("test_efficientnet", {}),
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = SIZES | {"vocab_size": 200, "max_position_embeddings": 40}
MARKS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", TEXT),
    "modernbert": ("ModernBertModel", TEXT | MARKS | {"local_attention": 8}),
    "gpt2": (
        "GPT2Model",
        {"vocab_size": 200, "n_positions": 40, "n_embd": 16, "n_layer": 3, "n_head": 2}
        | {"bos_token_id": 2, "eos_token_id": 3},
    ),
    "wav2vec2": (
        "Wav2Vec2Model",
        SIZES
        | {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
    ),
}
STARTER = {
    "vit-nano": "starter/vit-nano",
    "convnet-nano": "starter/convnet-nano",
    "mlp-nano": "starter/mlp-nano(weights=random)",
}
NAMES = (*STARTER, *TIMM, *TRANSFORMERS)


def save_timm(name: str, folder: Path) -> str:
    """The spec of a timm network of that size."""
    architecture, sizes = TIMM[name]
    told = {"input_size": [3, 32, 32], "fixed_input_size": "img_size" in sizes, "num_classes": 0}
    table = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": told, "model_args": sizes}
    (folder / "config.json").write_text(json.dumps(table), encoding="utf-8")
    return f'timm(files="{folder}", weights=random)'


def save_transformers(name: str, folder: Path) -> str:
    """The spec of a network of transformers, with weights in its folder that count as pre-trained."""
    import torch
    import transformers

    model, sizes = TRANSFORMERS[name]
    plain: Any = getattr(transformers, model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain(plain.config_class(**sizes)).save_pretrained(folder)
    if name == "wav2vec2":
        preprocessor = {"sampling_rate": 16000, "do_normalize": True}
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    else:
        _save_tokenizer(folder)
    return f'hf(files="{folder}")'


def _save_tokenizer(folder: Path) -> None:
    """One piece for each letter at a word's start and within it, so that no two of the kit's texts are the same."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The spec of a backbone of NAMES, its folder made once."""
    made = dict(STARTER)

    def spec(name: str) -> str:
        if name not in made:
            save = save_timm if name in TIMM else save_transformers
            made[name] = save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return spec
