"""Tokens [B, T, D] -> one vector [B, D]: the rules of the families, and those that sentence-transformers names."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from torch import Tensor
from transformers import PreTrainedModel

from zoo_core.contracts import Features
from zoo_core.errors import IncompatibleError, IntegrityError
from zoo_core.toolkit.features import masked_mean
from zoo_transformers.configuration import read_json
from zoo_transformers.families import Pool

__all__ = ["pooled", "stated_pool"]

MODES = {  # keys of 1_Pooling/config.json
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
WORDS = {"weightedmean": "weighted_mean", "mean_sqrt_len_tokens": "mean_sqrt_len", "lasttoken": "last"}


def pooled(model: PreTrainedModel, rule: Pool, features: Features) -> Tensor:
    """One vector for each example by a rule, float [B, D], same dtype as x.

    features: tokens, mask true = real, real ones first; or a map, for the mean.
    Source: Reimers & Gurevych 2019, section 3 (cls, mean, max); sentence-transformers, models/Pooling.py (the rest).
    """
    if rule == "mean":
        return masked_mean(features)
    x_BTD = features.x
    mask_BT = features.mask if features.mask is not None else x_BTD.new_ones(x_BTD.shape[:2]).bool()
    if rule == "cls":
        return x_BTD[:, 0]
    if rule == "cls_and_distillation":  # AST and DeiT have two tokens that sum an example up
        return (x_BTD[:, 0] + x_BTD[:, 1]) / 2
    if rule == "normed_cls":  # CLIP norms the one token that it uses, after the last hidden state
        found: Tensor = model.post_layernorm(x_BTD[:, 0].to(model.dtype))  # type: ignore[operator]
        return found.to(x_BTD.dtype)
    if rule == "head":  # SigLIP's attention pool
        attended: Tensor = model.head(x_BTD.to(model.dtype))  # type: ignore[operator]
        return attended.to(x_BTD.dtype)
    if rule == "last":
        last_B = mask_BT.sum(dim=1) - 1
        return x_BTD.gather(1, last_B.view(-1, 1, 1).expand(-1, 1, x_BTD.shape[-1])).squeeze(1)
    if rule == "max":
        return x_BTD.masked_fill(~mask_BT.unsqueeze(-1), float("-inf")).amax(dim=1)
    weights_BT = mask_BT.to(x_BTD.dtype)
    if rule == "weighted_mean":
        weights_BT = weights_BT.cumsum(dim=1) * weights_BT
        return (x_BTD * weights_BT.unsqueeze(-1)).sum(dim=1) / weights_BT.sum(dim=1, keepdim=True)
    assert rule == "mean_sqrt_len", rule
    return (x_BTD * weights_BT.unsqueeze(-1)).sum(dim=1) / weights_BT.sum(dim=1, keepdim=True).sqrt()


def stated_pool(files: Path) -> Pool | None:
    """The rule that sentence-transformers' files state, None where there are none.

    Raises IncompatibleError where they join several, which would be another width.
    """
    paths = sorted(files.glob("*_Pooling/config.json"))
    if not paths:
        return None
    table = read_json(paths[0])
    word = table.get("pooling_mode")
    rules = [rule for key, rule in MODES.items() if table.get(key) is True]
    if isinstance(word, str):
        rules = [WORDS.get(word, word)]
    if len(rules) != 1:
        raise IncompatibleError(f"{paths[0]} names {len(rules)} ways of pooling; hf reads exactly one")
    if rules[0] not in get_args(Pool):
        raise IntegrityError(f"{paths[0]} has pooling_mode {word!r}; hf reads {', '.join(MODES.values())}")
    rule: Pool = rules[0]  # type: ignore[assignment]
    return rule
