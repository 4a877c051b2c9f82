"""Makes zoo_timm/catalogue.json and zoo_timm/tags.json from the installed timm.

    python plugins/zoo-timm/catalogue.py [--processes 4]

Builds every architecture on the meta device and runs one pass to see that its stages keep the law: some ten minutes of
one processor. No network. The facts of an architecture are the same for all its weights, unless these fix another
image size or timm builds other layers for them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg, list_models, model_entrypoint
from timm.models._pretrained import PretrainedCfg
from timm.models._registry import _model_default_cfgs
from torch import Tensor

from zoo_core.contracts import ROLES
from zoo_core.errors import LawError
from zoo_core.toolkit.attention import attend_to, attention_calls
from zoo_core.toolkit.stages import groups, stage_modules
from zoo_timm.config import preparation_of, registered
from zoo_timm.loading import from_description
from zoo_timm.network import TimmBackbone

__all__ = ["catalogue", "entry", "facts", "shortened", "tags"]

PACKAGE = Path(__file__).parent / "zoo_timm"
# timm builds other layers for other weights of the same architecture: projections as wide as their language model.
SHAPED_BY_TAG = frozenset({"timm.models.deepseek_vit", "timm.models.inception_v3", "timm.models.qwen3_vit"})


def main() -> int:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    processes = parser.parse_args().processes
    known = tags()
    names = every_name(known)
    jobs = {_job(name): name for name in names}
    with ProcessPoolExecutor(max_workers=processes, initializer=_one_thread) as pool:
        made = dict(zip(jobs, pool.map(_facts_or_problem, jobs.values(), chunksize=4), strict=True))
    problems = [f"{jobs[job]}: {result}" for job, result in made.items() if isinstance(result, str)]
    if problems:
        sys.stderr.write("\n".join([*problems, f"{len(problems)} architectures need a line in families.py\n"]))
        return 1
    found = {job: result for job, result in made.items() if not isinstance(result, str)}
    entries = {f"timm/{name}": entry(name, found[_job(name)], known) for name in names}
    _write(PACKAGE / "tags.json", known)
    _write(PACKAGE / "catalogue.json", {"backbone": shortened(entries)})
    sys.stdout.write(f"{len(entries)} names of {len(known)} architectures\n")
    return 0


def tags() -> dict[str, dict[str, str | None]]:
    """Of each architecture, its tags with weights, the default first, and the Hub repository of each.

    Empty where it is the usual one, `timm/ARCHITECTURE.TAG`; None where the weights are on no Hub.
    """
    known: dict[str, dict[str, str | None]] = {}
    for architecture in list_models():
        configs: Any = _model_default_cfgs[architecture]
        known[architecture] = {
            tag: _repository(f"{architecture}.{tag}") for tag in configs.tags if configs.cfgs[tag].has_weights
        }
    return known


def every_name(known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every architecture, and every architecture with each of its tags."""
    return sorted([*known, *(f"{architecture}.{tag}" for architecture, found in known.items() for tag in found)])


def facts(name: str) -> dict[str, Any]:
    """What building an architecture tells; name: with or without a tag, whose image size it takes."""
    with torch.device("meta"):
        backbone = from_description(registered(name), None, "random", dtype="float32", patterns=()).eval()
    groups(backbone)  # raises LawError if the stages are wrong
    features: dict[str, Any] = {"kind": backbone.features.kind, "dim": backbone.features.dim}
    if backbone.features.pooled_dim is not None:
        features["pooled_dim"] = backbone.features.pooled_dim
    return {
        "features": features,
        "num_stages": len(backbone.stages),
        "roles": sorted(role for role in ROLES if backbone.sites(role)),
        "seams": [
            *(["attention"] if takes_prefixes(backbone) else []),
            *(["prompt"] if backbone.takes_prompts else []),
            "stage",
        ],
        "num_parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "taken_apart": backbone.stages != ("model",),
    }


def _facts_or_problem(name: str) -> dict[str, Any] | str:
    """So that one run tells of every architecture that needs attention."""
    try:
        return facts(name)
    except (LawError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def takes_prefixes(backbone: TimmBackbone) -> bool:
    """Whether each stage calls attention once, has one site of keys, and takes more keys and values of its width."""
    keys = backbone.sites("attn.k")
    inside = [[site for site in keys if site.path.startswith(f"{stage}.")] for stage in backbone.stages]
    if attention_calls(backbone) != [1] * len(backbone.stages) or any(len(found) != 1 for found in inside):
        return False
    removers = []
    for stage, (site,) in zip(stage_modules(backbone), inside, strict=True):
        prefix = torch.empty(site.num_heads or 0, 2, site.head_dim or 0, device="meta")

        def keys_values(prefix: Tensor = prefix) -> tuple[Tensor, Tensor]:
            return prefix, prefix

        removers.append(attend_to(stage, keys_values))
    try:
        attention_calls(backbone)
    except (RuntimeError, LawError):
        return False
    finally:
        for remove in removers:
            remove()
    return True


def entry(name: str, found: Mapping[str, Any], known: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
    """The catalogue's entry of a name, in the format of zoo_core.registry.catalog."""
    architecture, _, tag = name.partition(".")
    tag = tag or next(iter(known[architecture]), "")
    config = registered(name)
    described = _described(name)
    preparation = preparation_of(config.pretrained)
    size = config.pretrained["input_size"]
    repository = known[architecture].get(tag)
    pixels = f"{size[1]}" if size[1] == size[2] else f"{size[1]} x {size[2]}"
    licence = described.license if described.license not in (None, "unknown") and described.has_weights else None
    notes = [f"{found['num_parameters'] / 1e6:.1f} M parameters", f"{pixels} px"]
    notes += [] if repository is not None else ["no weights on the Hub"]
    notes += [] if found["taken_apart"] else ["not taken apart: one stage"]
    told: dict[str, Any] = {
        "summary": ", ".join(notes),
        "modality": "image",
        **{key: value for key, value in found.items() if key != "taken_apart"},
        "weights": ["random"] if repository is None else ["pretrained", "random"],
        "input": {
            "size": list(size),
            "mean": list(preparation.mean),
            "std": list(preparation.std),
            "interpolation": preparation.interpolation,
            "crop_pct": preparation.crop_pct,
            "crop_mode": preparation.crop_mode,
        },
    }
    if repository is not None:
        told["repository"] = repository or f"timm/{architecture}.{tag}"
    return told | ({"licence": licence} if licence else {})


def catalogue(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The entries of some names, made anew."""
    known = tags()
    return {f"timm/{name}": entry(name, facts(name), known) for name in names}


def shortened(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The entries as they are written: of weights with a tag, what the architecture without one does not say."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, told in entries.items():
        architecture, _, tag = name.partition(".")
        usual = entries.get(architecture, {}) if tag else {}
        is_like = usual and usual.keys() <= told.keys()
        own = {key: value for key, value in told.items() if usual.get(key) != value}
        found[name] = {"like": architecture, **own} if is_like else told
    return found


def _described(name: str) -> PretrainedCfg:
    described = get_pretrained_cfg(name)
    assert described is not None
    return described


def _repository(name: str) -> str | None:
    described = _described(name)
    repository = described.hf_hub_id
    return None if not repository else "" if repository == f"timm/{name}" else repository


def _job(name: str) -> tuple[str, tuple[int, ...], str]:
    """What decides the facts of a name: the architecture, the image size where it is fixed, the tag where that is."""
    architecture, _, tag = name.partition(".")
    pretrained = registered(name).pretrained
    size = tuple(pretrained["input_size"]) if pretrained.get("fixed_input_size") else ()
    return architecture, size, tag if model_entrypoint(architecture).__module__ in SHAPED_BY_TAG else ""


def _one_thread() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
