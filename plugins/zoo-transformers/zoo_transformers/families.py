"""What is known of each model type: its class, its stages, its sites, how it pools, and what of its file is not used.

A family costs one entry of FAMILIES. Paths in `stages` and `embeds` start at the model, paths in `roles` at a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from zoo_core.contracts import Kind, Modality

__all__ = ["FAMILIES", "Family", "Part", "Pool"]

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


Roles = Mapping[str, tuple[Part, ...]]


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
)
ROBERTA = replace(BERT, model="roberta.modeling_roberta:RobertaModel", prefixes=("roberta.",))

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

FAMILIES: Mapping[str, Family] = {  # by the `model_type` of config.json
    "bert": BERT,
    "camembert": replace(ROBERTA, model="camembert.modeling_camembert:CamembertModel"),
    "roberta": ROBERTA,
    "xlm-roberta": replace(ROBERTA, model="xlm_roberta.modeling_xlm_roberta:XLMRobertaModel"),
}
