"""config.json -> family, model class and configuration: parsed here, and cleaned before transformers sees it.

Nothing that a repository says can make code run or change how much it is trusted: only the fields that the
configuration class of a known model type declares are handed on; `auto_map`, `trust_remote_code`, the choice of an
attention implementation and every key that starts with `_` are not among them.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, nearest
from zoo_transformers.families import FAMILIES, Family

__all__ = ["Described", "describe", "read_json"]

LARGEST = 2**26  # bytes of a JSON file; a tokeniser's, the largest, has some 20 MB

# Of all configurations alike; those that decide outputs are set here, the others are not ours to read.
GENERAL = frozenset(field.name for field in dataclasses.fields(PreTrainedConfig)) - {"is_encoder_decoder"}
NEVER = frozenset({"auto_map", "trust_remote_code", "quantization_config", "attn_implementation"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """What a repository holds: its family, the class of its model, and the cleaned configuration."""

    model_type: str
    family: Family
    model: type[PreTrainedModel]
    config: PreTrainedConfig
    path: Path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises NotFoundError without the file, IntegrityError for anything else in it."""
    try:
        if path.stat().st_size > LARGEST:
            raise IntegrityError(f"{path} has {path.stat().st_size} bytes; allowed: up to {LARGEST}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is missing; a folder for hf is laid out like a repository of the Hub") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{path} holds {type(found).__name__}; allowed: an object")
    return found


def describe(files: Path) -> Described:
    """What the folder of a repository describes.

    Raises IncompatibleError for a model type that is not in FAMILIES, IntegrityError for a damaged file.
    """
    path = files / "config.json"
    table = read_json(path)
    model_type = table.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        close = nearest(str(model_type), FAMILIES)
        if model_type is None and isinstance(table.get("architecture"), str):
            close = "; this one is in timm's format: write timm/ORG/REPO or 'timm(files=\"DIR\")'"
        elif "auto_map" in table:
            close = "; this one needs code of its own repository, which is never run"
        raise IncompatibleError(f"{path} has model_type {model_type!r}; hf reads {', '.join(sorted(FAMILIES))}{close}")
    family = FAMILIES[model_type]
    if family.config_key is not None:
        table = table.get(family.config_key)  # type: ignore[assignment]
        if not isinstance(table, dict):
            raise IntegrityError(f"{path} has no {family.config_key}; download it again")
    model = _model_class(family)
    kind = model.config_class
    assert kind is not None, "every class in FAMILIES has a configuration"
    try:
        config = kind(**_cleaned(table, kind, family), **family.settings)
    except Exception as error:  # a configuration class raises whatever its fields' checks raise
        raise IntegrityError(f"{path} is no configuration of {model_type}: {_first_line(error)}") from error
    config._attn_implementation = "sdpa" if model._supports_sdpa else "eager"
    return Described(model_type=model_type, family=family, model=model, config=config, path=path)


def _model_class(family: Family) -> type[PreTrainedModel]:
    module, _, name = family.model.partition(":")
    found: type[PreTrainedModel] = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    return found


def _cleaned(table: Mapping[str, Any], config: type[PreTrainedConfig], family: Family) -> dict[str, Any]:
    """What the configuration class may see of a table: fields that it declares itself, under any name it knows."""
    declared = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map) | family.legacy
    allowed = declared - GENERAL - NEVER - set(family.settings)
    return {key: _inner(value) for key, value in table.items() if key in allowed and not key.startswith("_")}


def _inner(value: Any) -> Any:
    """A value without dangerous keys at any depth."""
    if isinstance(value, dict):
        return {k: _inner(v) for k, v in value.items() if not str(k).startswith("_") and k not in NEVER}
    return value


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:300]
