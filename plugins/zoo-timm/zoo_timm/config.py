"""What describes a set of timm weights: from a repository's config.json by our own schema, or from timm's registry.

Nothing of a config.json reaches timm but what this schema names: how pictures are prepared, and the arguments of a
model that change its layers. A key of the former that is not known is dropped; one of the latter is refused, since
without it another model would be built.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg

from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError
from zoo_core.toolkit.preparations import ImagePreparation

__all__ = ["Config", "preparation_of", "read_config", "registered"]

INTERPOLATIONS = ("bilinear", "bicubic")
CROPS = ("center", "squash", "border")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One set of weights. pretrained: as timm's own PretrainedCfg names it. model_args: of the model's constructor.

    registered: the name under which timm itself lists them; None for a repository's or folder's.
    """

    architecture: str
    pretrained: Mapping[str, Any]
    model_args: Mapping[str, Any] = field(default_factory=dict)
    registered: str | None = None


def read_config(file: Path) -> Config:
    """The description in a config.json, in timm's present or older layout.

    Raises NotFoundError, IntegrityError (no JSON, wrong types), IncompatibleError (a model that cannot be built).
    """
    if not file.is_file():
        raise NotFoundError(f"{file} is missing; a folder or repository of timm has a config.json beside its weights")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{file} is not JSON: {error}") from error
    content = _checked(content, "it", dict, file)
    if "architecture" not in content and isinstance(content.get("model_type"), str):
        raise IncompatibleError(
            f"{file} is in transformers' format ({content['model_type']}); write hf/ORG/REPO or 'hf(files=\"DIR\")'"
        )
    architecture = _checked(content.get("architecture"), "architecture", str, file)
    described = _checked(content.get("pretrained_cfg", content), "pretrained_cfg", dict, file)  # older: all in one
    pretrained = {key: _value(key, described[key], file) for key in _SCHEMA if described.get(key) is not None}
    if content.get("num_classes") is not None:
        pretrained["num_classes"] = _value("num_classes", content["num_classes"], file)
    arguments = _checked(content.get("model_args") or {}, "model_args", dict, file)
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}  # of the classifier, left out
    if arguments.pop("in_chans", 3) != 3:
        raise IncompatibleError(f"{file}: model_args.in_chans is {content['model_args']['in_chans']}; pictures have 3")
    for key, value in arguments.items():
        if key not in MODEL_ARGS:
            raise IncompatibleError(
                f"{file}: model_args has {key!r}, which zoo-timm does not hand on; known are {', '.join(MODEL_ARGS)}"
            )
        if not _is_plain(value):
            raise IntegrityError(f"{file}: model_args.{key} is a number, text or a short list, found {value!r:.80}")
    return Config(architecture=architecture, pretrained=_sized(pretrained, arguments), model_args=arguments)


def registered(name: str) -> Config:
    """The description of one of timm's own sets of weights, or of an architecture without any."""
    described = get_pretrained_cfg(name)
    assert described is not None, "tags.json lists what timm has"
    told = {key: getattr(described, key) for key in _SCHEMA if getattr(described, key) is not None}
    return Config(architecture=name.partition(".")[0], pretrained=told, registered=name)


def preparation_of(pretrained: Mapping[str, Any]) -> ImagePreparation:
    """How pictures are prepared for a set of weights. pretrained: timm's PretrainedCfg as a table."""
    channels, height, width = pretrained.get("input_size", (3, 224, 224))
    if channels != 3:
        raise IncompatibleError(f"the weights read {channels} channels; pictures have 3")
    mean, std = pretrained.get("mean", (0.485, 0.456, 0.406)), pretrained.get("std", (0.229, 0.224, 0.225))
    return ImagePreparation(
        size=height if height == width else (height, width),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        interpolation=pretrained.get("interpolation", "bicubic"),
        crop_pct=pretrained.get("crop_pct", 0.875),
        crop_mode=pretrained.get("crop_mode", "center"),
    )


def _sized(pretrained: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As timm reads it: a model that was saved at another size than its metadata says is of the size it was saved at.

    Source: timm 1.0.31, timm/models/_hub.py, _parse_model_cfg.
    """
    if arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False:
        pretrained["fixed_input_size"] = False
    if arguments.get("img_size") is not None:
        size = arguments["img_size"]
        height, width = (size, size) if isinstance(size, int) else size
        pretrained["input_size"] = (3, height, width)
    return pretrained


def _checked(value: Any, name: str, wanted: type, file: Path) -> Any:
    if not isinstance(value, wanted):
        raise IntegrityError(f"{file}: {name} is {'text' if wanted is str else 'a table'}, found {value!r:.80}")
    return value


def _value(key: str, value: Any, file: Path) -> Any:
    check, allowed = _SCHEMA[key]
    found = check(value)
    if found is None:
        raise IntegrityError(f"{file}: {key} is {allowed}, found {value!r:.80}")
    return found


def _size(value: Any) -> tuple[int, ...] | None:
    fits = isinstance(value, list) and len(value) == 3 and all(type(x) is int and 0 < x <= 8192 for x in value)
    return tuple(value) if fits else None


def _three(least: float) -> Callable[[Any], tuple[float, ...] | None]:
    def check(value: Any) -> tuple[float, ...] | None:
        fits = isinstance(value, list) and len(value) == 3 and all(_is_number(x) and x >= least for x in value)
        return tuple(map(float, value)) if fits else None

    return check


def _share(value: Any) -> float | None:
    return float(value) if _is_number(value) and 0.01 <= value <= 10 else None


def _word(*allowed: str) -> Callable[[Any], str | None]:
    return lambda value: value if isinstance(value, str) and value in allowed else None


def _names(value: Any) -> str | tuple[str, ...] | None:
    if isinstance(value, str):
        return value
    fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return tuple(value) if fits else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 64 and all(_is_plain(item) and not isinstance(item, list) for item in value)
    return value is None or isinstance(value, bool | str) or _is_number(value)


# What a config.json may say of its weights, with the check of each; every other key is dropped.
_SCHEMA: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "input_size": (_size, "three whole numbers, [channels, height, width]"),
    "fixed_input_size": (lambda value: value if isinstance(value, bool) else None, "true or false"),
    "interpolation": (_word(*INTERPOLATIONS), f"one of {', '.join(INTERPOLATIONS)}"),
    "crop_pct": (_share, "a number, 0.01 to 10"),
    "crop_mode": (_word(*CROPS), f"one of {', '.join(CROPS)}"),
    "mean": (_three(-1e3), "three numbers"),
    "std": (_three(1e-6), "three numbers above zero"),
    "num_classes": (lambda value: value if type(value) is int and value >= 0 else None, "a whole number"),
    "first_conv": (_names, "the name of a layer, or several"),
    "classifier": (_names, "the name of a layer, or several"),
}

MODEL_ARGS = (
    *("act_layer", "block_size", "class_token", "depth", "depths", "dims", "drop_path_rate", "drop_rate"),
    *("attn_drop_rate", "dynamic_img_pad", "dynamic_img_size", "patch_drop_rate", "pos_drop_rate", "proj_drop_rate"),
    *("embed_dim", "embed_dims", "fc_norm", "final_norm", "global_pool", "img_size", "init_values"),
    *("mlp_ratio", "no_embed_class", "norm_layer", "num_heads", "output_stride", "pad_type", "patch_size"),
    *("pos_embed", "pre_norm", "proj_bias", "qk_norm", "qkv_bias", "qkv_fused", "reg_tokens", "stem_type"),
    *("strict_img_size", "swiglu_align_to", "use_rot_pos_emb", "window_size"),
)
