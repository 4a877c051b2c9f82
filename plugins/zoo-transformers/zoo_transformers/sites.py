"""The weights of a model that play a role, found by the family's paths, and by what they are for norms and the like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from zoo_core.contracts import Site
from zoo_transformers.families import Family, Part

__all__ = ["find_sites", "stage_paths", "width"]

WITH_HEADS = ("attn.q", "attn.k", "attn.v", "attn.out")


def width(config: PreTrainedConfig) -> int:
    """D, the width of the last hidden state."""
    if config.model_type == "mobilenet_v1":
        return int(max(int(1024 * config.depth_multiplier), config.min_depth))
    return int(config.hidden_size)


def stage_paths(model: PreTrainedModel, family: Family) -> tuple[str, ...]:
    """Paths of the stages, from the model, in the order they are called."""
    lists = [(name, module) for name, module in model.named_modules() if _fits(name, family.stages)]
    return tuple(f"{name}.{index}" for name, module in lists for index, _ in enumerate(module.children()))


def find_sites(model: PreTrainedModel, family: Family, *, prefix: str) -> dict[str, tuple[Site, ...]]:
    """Sites by role; `prefix` is put before each path. Norms, convolutions and embeddings stand in module order."""
    inside = {stage: dict(model.get_submodule(stage).named_modules()) for stage in stage_paths(model, family)}
    dim = head_dim(model.config) if family.roles else 0
    found = {
        role: tuple(
            _site(f"{stage}.{name}", module, part, dim if role in WITH_HEADS else 0, role == "attn.out")
            for stage, modules in inside.items()
            for part in parts
            for name, module in _fitting(modules, part.path)
        )
        for role, parts in family.roles.items()
    }
    found |= {"norm": (), "conv": (), "embed": ()}
    for name, module in model.named_modules():
        role_site = _by_what_it_is(name, module)
        if role_site is not None:
            role, site = role_site
            found[role] += (site,)
    return {role: tuple(replace(site, path=f"{prefix}{site.path}") for site in sites) for role, sites in found.items()}


def _fitting(modules: Mapping[str, nn.Module], pattern: str) -> list[tuple[str, nn.Module]]:
    """The modules of a stage that a path fits; it may be none. A `*` stands for one step."""
    if "*" in pattern:
        return [(name, module) for name, module in modules.items() if _fits(name, pattern)]
    return [(pattern, modules[pattern])] if pattern in modules else []


def _site(path: str, module: nn.Module, part: Part, head: int, is_output: bool) -> Site:
    """head: width of one attention head, 0 where there are none; is_output: whether the heads are its inputs."""
    weight = module.get_parameter("weight")
    out_axis = 1 if part.transposed else 0
    rows = weight.shape[out_axis] // part.count
    outputs = None if part.count == 1 else (part.share * rows, (part.share + 1) * rows)
    site = Site(path=path, out_axis=out_axis, outputs=outputs)
    if not head:
        return site
    size = weight.shape[1 - out_axis] if is_output else rows
    return replace(site, num_heads=size // head, head_dim=head)


def _fits(name: str, pattern: str) -> bool:
    steps, wanted = name.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(want in ("*", step) for step, want in zip(steps, wanted, strict=True))


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head; the same in every stage."""
    stated = getattr(config, "head_dim", None)
    if isinstance(stated, int):
        return stated
    if config.model_type == "swin":  # width and heads double together
        return int(config.embed_dim // config.num_heads[0])
    return int(config.hidden_size // config.num_attention_heads)


def _by_what_it_is(name: str, module: nn.Module) -> tuple[str, Site] | None:
    weight = module._parameters.get("weight")
    if weight is None:  # a weight that is computed from others is no site: a change of it would be lost
        return None
    if weight.ndim == 1:  # every family's norms, whatever they are called
        return "norm", Site(path=name, kind="norm")
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return "conv", Site(path=name, kind="conv")
    if isinstance(module, nn.Embedding):
        return "embed", Site(path=name, kind="embedding", out_axis=1)
    return None
