"""A repository's tensors under the names of the model that is built: renamed and converted as transformers does it.

The tables are transformers' own (older ViT names, BERT's gamma and beta, weight norms), so they are right for the
version that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from zoo_core.errors import IntegrityError, NotFoundError
from zoo_transformers.families import Family

__all__ = ["converted", "weight_files"]


def weight_files(files: Path, globs: Sequence[str]) -> list[Path]:
    """The files of the first glob that any file fits, with the index of shards. Raises NotFoundError without any."""
    for glob in globs:
        found = sorted(files.glob(glob))
        index = files / "model.safetensors.index.json"
        if found:
            return [*found, index] if "-of-" in glob and index.is_file() else found
    pickles = sorted(path.name for path in files.glob("*.bin"))
    hint = f"; it has {pickles[0]}, a pickle: allow_pickle=true reads it" if pickles else ""
    raise NotFoundError(f"{files} has no weights: {' or '.join(globs)}{hint}")


def converted(model: PreTrainedModel, family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the model's names; those that it lacks keep the file's, without the family's prefix.

    Nothing is copied unless a conversion must (none of a split into views). Raises IntegrityError where two tensors
    of the file are one of the model.
    """
    wanted = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    waiting: dict[str, WeightConverter] = {}
    for key, tensor in sorted(tensors.items()):
        name, pattern = _name(key, family, renamings, converters, wanted)
        if pattern is not None and name in wanted:
            converter = waiting.setdefault(name, deepcopy(by_pattern[pattern]))
            converter.collected_tensors[pattern].append(tensor)  # type: ignore[arg-type]
            continue
        if name in origin and not torch.equal(found[name], tensor):
            raise IntegrityError(f"the file holds {name} twice, as {origin[name]} and as {key}, and they differ")
        found[name], origin[name] = tensor, key
    for name, converter in waiting.items():
        for target, value in converter.convert(name, model=model, config=model.config).items():
            found[target] = value[0] if isinstance(value, list) else value
    return found


def _name(
    key: str,
    family: Family,
    renamings: Sequence[WeightRenaming],
    converters: Sequence[WeightConverter],
    wanted: Mapping[str, Tensor],
) -> tuple[str, str | None]:
    """The model's name of a key of the file, and the pattern of the conversion it needs."""
    candidates = list(_candidates(key, family))
    for candidate in candidates:
        if candidate in wanted:
            return candidate, None
        name, pattern = rename_source_key(candidate, list(renamings), list(converters))
        if name in wanted:
            return name, pattern
    return candidates[-1], None


def _candidates(key: str, family: Family) -> Iterator[str]:
    """The key as it is, then without the first prefix of the family that it has; both by the family's own renames."""
    yield family.renames.get(key, key)
    for prefix in family.prefixes:
        if key.startswith(prefix):
            short = key.removeprefix(prefix)
            yield family.renames.get(short, short)
            return
