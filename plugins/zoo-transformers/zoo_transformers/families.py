"""What is known of each model type: its class, its stages, its sites, how it pools, and what of its file is not used.

A family costs one entry of FAMILIES. Paths in `stages` start at the model, paths in `roles` at a stage; a `*`
stands for one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from zoo_core.contracts import Kind, Modality

__all__ = ["FAMILIES", "INPUT_FILES", "SHORTEST", "Family", "Part", "Pool", "Prompts"]

SHORTEST = 8  # tokens that a text may be cut to; a tokeniser's own special tokens need up to 4

INPUT_FILES = (  # of a repository, what prepares inputs and pools; globs
    "preprocessor_config.json",
    # tokenisers, new and old: the first alone is enough where it is there
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
    # sentence-transformers: how its tokens become one vector
    *("modules.json", "sentence_bert_config.json", "*_Pooling/config.json"),
)

Pool = Literal[
    "cls", "mean", "max", "last", "mean_sqrt_len", "weighted_mean", "cls_and_distillation", "normed_cls", "head"
]
Mask = Literal["tokens", "convolutions", "halved", "none"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A weight below a stage, or one of `count` equal shares of it along its outputs.

    transposed: stored as [inputs, outputs], as GPT-2's Conv1D.
    """

    path: str
    share: int = 0
    count: int = 1
    transposed: bool = False


Roles = dict[str, tuple[Part, ...]]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """How learned tokens come among those that enter the first stage.

    at: `words` keeps places for them before the words that are embedded, so that the model makes masks and biases for
    all; `tokens` puts them among what enters the first stage, where nothing is made for each place. start: tokens of
    the model's own that stand before them.
    positions: of the words, whose numbers must not change where there is an embedding of each: `counted` from 0,
    `unpadded` from behind the padding's number as in RoBERTa; `own` where only distances between tokens matter.
    """

    at: Literal["words", "tokens"]
    start: int = 0
    positions: Literal["own", "counted", "unpadded"] = "own"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model type of transformers.

    model: module and class. config_key: the key of config.json that holds its configuration, where the repository has
    more towers than this one. settings: what is set on the configuration, whatever the file says, so that parts that
    nobody uses are not built. arguments: of the class besides the configuration.
    legacy: keys of older config.json files that the configuration class still reads.
    pool: how tokens become one vector where sentence-transformers' files do not say. inputs: what the model is given.
    mask: how the mask of the inputs becomes one of the features. prefixes: of keys of the file that are left out.
    renames: whole keys. unused: globs of keys of the file, after that, that no part built here wants.
    fused: whether each stage calls scaled_dot_product_attention once; else the attention seam does not see it.
    prompts: how learned tokens come among its own; None where attention is local or made for what it was given.
    """

    model: str
    modality: Modality
    stages: str
    pool: Pool
    roles: Roles = field(default_factory=dict)
    kind: Kind = "tokens"
    config_key: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    legacy: frozenset[str] = frozenset()
    inputs: tuple[str, ...] = ()
    mask: Mask = "none"
    prefixes: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    fused: bool = True
    prompts: Prompts | None = None


def _roles(**paths: str) -> Roles:
    """Roles by keyword: `attn_q="path"`, several paths separated by a space, of which those that exist count."""
    return {role.replace("_", "."): tuple(Part(path=path) for path in text.split()) for role, text in paths.items()}


TEXT_INPUTS = ("input_ids", "attention_mask")
HEADS = ("classifier.*", "qa_outputs.*", "score.*", "lm_head.*", "pooler.*", "cls.*", "*.position_ids")

BERT = Family(
    model="bert.modeling_bert:BertModel",
    modality="text",
    stages="encoder.layer",
    pool="mean",
    roles=_roles(
        attn_q="attention.self.query",
        attn_k="attention.self.key",
        attn_v="attention.self.value",
        attn_out="attention.output.dense",
        mlp_in="intermediate.dense",
        mlp_out="output.dense",
    ),
    settings={"use_cache": False},
    arguments={"add_pooling_layer": False},
    inputs=TEXT_INPUTS,
    mask="tokens",
    prefixes=("bert.",),
    unused=HEADS,
    prompts=Prompts(at="words", positions="counted"),
)
UNPADDED = Prompts(at="words", positions="unpadded")
ROBERTA = replace(BERT, model="roberta.modeling_roberta:RobertaModel", prefixes=("roberta.",), prompts=UNPADDED)

VIT = Family(
    model="vit.modeling_vit:ViTModel",
    modality="image",
    stages="layers",
    pool="cls",
    roles=_roles(
        attn_q="attention.q_proj",
        attn_k="attention.k_proj",
        attn_v="attention.v_proj",
        attn_out="attention.o_proj",
        mlp_in="mlp.fc1",
        mlp_out="mlp.fc2",
    ),
    arguments={"add_pooling_layer": False},
    inputs=("pixel_values",),
    prefixes=("vit.",),
    unused=("classifier.*", "pooler.*", "decoder.*", "embeddings.mask_token"),
    prompts=Prompts(at="tokens", start=1),
)

WAV2VEC2 = Family(
    model="wav2vec2.modeling_wav2vec2:Wav2Vec2Model",
    modality="audio",
    stages="encoder.layers",
    pool="mean",
    roles=_roles(
        attn_q="attention.q_proj",
        attn_k="attention.k_proj",
        attn_v="attention.v_proj",
        attn_out="attention.out_proj",
        mlp_in="feed_forward.intermediate_dense",
        mlp_out="feed_forward.output_dense",
    ),
    # SpecAugment masks with an embedding and draws from numpy's global generator
    settings={"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "add_adapter": False},
    inputs=("input_values", "attention_mask"),
    mask="convolutions",
    prefixes=("wav2vec2.",),
    unused=(
        *("masked_spec_embed", "lm_head.*", "classifier.*", "projector.*", "layer_weights"),
        *("quantizer.*", "project_hid.*", "project_q.*"),
    ),
)

CLIP = Family(
    model="clip.modeling_clip:CLIPVisionModel",
    modality="image",
    stages="encoder.layers",
    pool="normed_cls",
    roles=_roles(
        attn_q="self_attn.q_proj",
        attn_k="self_attn.k_proj",
        attn_v="self_attn.v_proj",
        attn_out="self_attn.out_proj",
        mlp_in="mlp.fc1",
        mlp_out="mlp.fc2",
    ),
    inputs=("pixel_values",),
    prefixes=("vision_model.",),
    unused=("text_model.*", "text_projection.*", "visual_projection.*", "logit_scale", "logit_bias", "*.position_ids"),
    prompts=Prompts(at="tokens", start=1),
)
SIGLIP = replace(CLIP, model="siglip.modeling_siglip:SiglipVisionModel", pool="head", prompts=Prompts(at="tokens"))

LLAMA = Family(
    model="llama.modeling_llama:LlamaModel",
    modality="text",
    stages="layers",
    pool="last",
    roles=_roles(
        attn_q="self_attn.q_proj",
        attn_k="self_attn.k_proj",
        attn_v="self_attn.v_proj",
        attn_out="self_attn.o_proj",
        mlp_in="mlp.up_proj",
        mlp_gate="mlp.gate_proj",
        mlp_out="mlp.down_proj",
    ),
    settings={"use_cache": False},
    legacy=frozenset({"rope_theta", "rope_scaling", "partial_rotary_factor"}),
    inputs=TEXT_INPUTS,
    mask="tokens",
    prefixes=("model.",),
    unused=("lm_head.*", "score.*", "classifier.*", "qa_outputs.*", "*rotary_emb.inv_freq"),
    prompts=Prompts(at="words"),
)

FAMILIES: Mapping[str, Family] = {  # by the `model_type` of config.json
    "audio-spectrogram-transformer": replace(
        VIT,
        model="audio_spectrogram_transformer.modeling_audio_spectrogram_transformer:ASTModel",
        modality="audio",
        pool="cls_and_distillation",
        arguments={},
        inputs=("input_values",),
        prefixes=("audio_spectrogram_transformer.",),
        unused=("classifier.*",),
        prompts=Prompts(at="tokens", start=2),
    ),
    "bert": BERT,
    "camembert": replace(ROBERTA, model="camembert.modeling_camembert:CamembertModel"),
    "clip": replace(CLIP, config_key="vision_config"),
    "clip_vision_model": CLIP,
    "deberta-v2": replace(
        BERT,
        model="deberta_v2.modeling_deberta_v2:DebertaV2Model",
        roles=BERT.roles
        | _roles(
            attn_q="attention.self.query_proj", attn_k="attention.self.key_proj", attn_v="attention.self.value_proj"
        ),
        settings={},
        legacy=frozenset({"share_att_key", "position_buckets", "norm_rel_ebd", "attention_head_size"})
        | {"conv_kernel_size", "conv_groups", "conv_act"},
        arguments={},
        prefixes=("deberta.",),
        unused=(*HEADS, "lm_predictions.*", "mask_predictions.*"),
        fused=False,
    ),
    "dinov2": replace(
        VIT,
        model="dinov2.modeling_dinov2:Dinov2Model",
        stages="encoder.layer",
        roles=_roles(
            attn_q="attention.q_proj attention.attention.query",
            attn_k="attention.k_proj attention.attention.key",
            attn_v="attention.v_proj attention.attention.value",
            attn_out="attention.o_proj attention.output.dense",
            mlp_out="mlp.fc2 mlp.down_proj mlp.weights_out",
        )
        | {  # of the gated ones, in one matrix or two
            "mlp.in": (Part(path="mlp.fc1"), Part(path="mlp.up_proj"), Part(path="mlp.weights_in", share=1, count=2)),
            "mlp.gate": (Part(path="mlp.gate_proj"), Part(path="mlp.weights_in", share=0, count=2)),
        },
        settings={"use_mask_token": False},
        arguments={},
        prefixes=("dinov2.",),
    ),
    "distilbert": replace(
        BERT,
        model="distilbert.modeling_distilbert:DistilBertModel",
        stages="transformer.layer",
        roles=_roles(
            attn_q="attention.q_lin",
            attn_k="attention.k_lin",
            attn_v="attention.v_lin",
            attn_out="attention.out_lin",
            mlp_in="ffn.lin1",
            mlp_out="ffn.lin2",
        ),
        settings={},
        arguments={},
        prefixes=("distilbert.",),
        unused=(*HEADS, "vocab_*", "pre_classifier.*"),
    ),
    "electra": replace(
        BERT,
        model="electra.modeling_electra:ElectraModel",
        arguments={},
        prefixes=("electra.",),
        unused=(*HEADS, "discriminator_predictions.*", "generator_*"),
    ),
    "gpt2": replace(
        LLAMA,
        model="gpt2.modeling_gpt2:GPT2Model",
        stages="h",
        roles={
            "attn.q": (Part(path="attn.c_attn", share=0, count=3, transposed=True),),
            "attn.k": (Part(path="attn.c_attn", share=1, count=3, transposed=True),),
            "attn.v": (Part(path="attn.c_attn", share=2, count=3, transposed=True),),
            "attn.out": (Part(path="attn.c_proj", transposed=True),),
            "mlp.in": (Part(path="mlp.c_fc", transposed=True),),
            "mlp.out": (Part(path="mlp.c_proj", transposed=True),),
        },
        legacy=frozenset(),
        prefixes=("transformer.",),
        unused=("lm_head.*", "score.*", "classifier.*", "multiple_choice_head.*", "*.attn.bias", "*.attn.masked_bias"),
        prompts=BERT.prompts,
    ),
    "hubert": replace(WAV2VEC2, model="hubert.modeling_hubert:HubertModel", prefixes=("hubert.",)),
    "llama": LLAMA,
    "mobilenet_v1": Family(
        model="mobilenet_v1.modeling_mobilenet_v1:MobileNetV1Model",
        modality="image",
        kind="map",
        stages="layer",
        pool="mean",
        arguments={"add_pooling_layer": False},
        inputs=("pixel_values",),
        prefixes=("mobilenet_v1.",),
        unused=("classifier.*",),
        fused=False,
    ),
    "modernbert": replace(
        BERT,
        model="modernbert.modeling_modernbert:ModernBertModel",
        stages="layers",
        roles={
            "attn.q": (Part(path="attn.Wqkv", share=0, count=3),),
            "attn.k": (Part(path="attn.Wqkv", share=1, count=3),),
            "attn.v": (Part(path="attn.Wqkv", share=2, count=3),),
            "attn.out": (Part(path="attn.Wo"),),
            "mlp.gate": (Part(path="mlp.Wi", share=0, count=2),),
            "mlp.in": (Part(path="mlp.Wi", share=1, count=2),),
            "mlp.out": (Part(path="mlp.Wo"),),
        },
        settings={},
        arguments={},
        legacy=frozenset({"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "rope_scaling"}),
        prefixes=("model.",),
        unused=("head.*", "decoder.*", "classifier.*", "qa_outputs.*"),
        prompts=None,  # most of its layers see 128 tokens around each
    ),
    "mpnet": replace(
        BERT,
        model="mpnet.modeling_mpnet:MPNetModel",
        roles=_roles(
            attn_q="attention.attn.q",
            attn_k="attention.attn.k",
            attn_v="attention.attn.v",
            attn_out="attention.attn.o",
            mlp_in="intermediate.dense",
            mlp_out="output.dense",
        ),
        settings={},
        prefixes=("mpnet.",),
        fused=False,
        prompts=UNPADDED,
    ),
    "qwen2": replace(LLAMA, model="qwen2.modeling_qwen2:Qwen2Model"),
    "qwen3": replace(LLAMA, model="qwen3.modeling_qwen3:Qwen3Model"),
    "roberta": ROBERTA,
    "siglip": replace(SIGLIP, config_key="vision_config"),
    "siglip_vision_model": SIGLIP,
    "swin": replace(
        VIT,
        model="swin.modeling_swin:SwinModel",
        kind="map",
        stages="encoder.layers.*.blocks",
        pool="mean",
        prefixes=("swin.",),
        unused=(*VIT.unused, "*.relative_position_index"),
        prompts=None,
    ),
    "t5": replace(
        BERT,
        model="t5.modeling_t5:T5Stack",
        stages="block",
        roles=_roles(
            attn_q="layer.*.SelfAttention.q",
            attn_k="layer.*.SelfAttention.k",
            attn_v="layer.*.SelfAttention.v",
            attn_out="layer.*.SelfAttention.o",
            mlp_in="layer.*.DenseReluDense.wi layer.*.DenseReluDense.wi_1",
            mlp_gate="layer.*.DenseReluDense.wi_0",
            mlp_out="layer.*.DenseReluDense.wo",
        ),
        settings={"use_cache": False, "is_encoder_decoder": False, "is_decoder": False},
        arguments={},
        prefixes=("encoder.", "transformer.encoder."),
        renames={"shared.weight": "embed_tokens.weight"},
        unused=("decoder.*", "lm_head.*", "classification_head.*"),
        prompts=LLAMA.prompts,
    ),
    "vit": VIT,
    "wav2vec2": WAV2VEC2,
    "whisper": replace(
        WAV2VEC2,
        model="whisper.modeling_whisper:WhisperEncoder",
        stages="layers",
        roles=CLIP.roles | _roles(mlp_in="fc1", mlp_out="fc2"),
        settings={},
        inputs=("input_features", "attention_mask"),
        mask="halved",
        prefixes=("model.encoder.", "encoder."),
        unused=("model.decoder.*", "decoder.*", "proj_out.*", "projector.*", "classifier.*", "layer_weights"),
        prompts=Prompts(at="tokens"),
    ),
    "xlm-roberta": replace(ROBERTA, model="xlm_roberta.modeling_xlm_roberta:XLMRobertaModel"),
}
