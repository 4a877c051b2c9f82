"""A tiny BERT as transformers saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel

SENTENCES = ("the cat sat on the mat and looked at the moon", "a film that is neither long nor short, but warm")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SPREAD = 0.2  # of the weights: with the usual 0.02 attention is even, and what rotates queries changes nothing


def save_bert(folder: Path) -> Path:
    """Two layers of width 64 with their tokeniser, laid out as a repository is."""
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=200, max_position_embeddings=40, initializer_range=SPREAD, **SIZES)
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}))
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The backbone of a spec: the tiny BERT, with its weights."""
    return f'hf(files="{save_bert(tmp_path_factory.mktemp("bert"))}")'
