"""The namespace `timm`: an architecture with a tag of weights, a community repository, or a local folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_core.contracts import Source, Weights
from zoo_core.errors import NotFoundError, RefusedError, UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Timm", "known_tags"]

CONFIG = "config.json"
# Best first: what timm writes, its shards, what open_clip writes, and whatever else a community repository holds.
SAFE = ("model.safetensors", "model*.safetensors*", "open_clip_model.safetensors", "*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model*.bin*", "open_clip_pytorch_model.bin", "*.pth", "*.bin")


@cache
def known_tags() -> Mapping[str, Mapping[str, str | None]]:
    """Of each architecture of timm, its tags of weights, the default first, and the repository of each.

    The repository is empty where it is `timm/ARCHITECTURE.TAG`, and None where the weights are on no Hub.
    """
    found: Mapping[str, Mapping[str, str | None]] = json.loads((Path(__file__).parent / "tags.json").read_bytes())
    return found


@dataclass(frozen=True, kw_only=True)
class Timm:
    """A backbone of timm: `timm/ARCHITECTURE.TAG`, `timm/ARCHITECTURE` (its default tag) or `timm/ORG/REPO`.

    files: a local folder laid out like a repository, with config.json: `timm(files="DIR")`.
    dtype: of the weights once loaded. allow_pickle: also takes a repository's pickled weights, if there are no others;
    nothing but tensors is unpickled.
    """

    name: str = ""
    files: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    allow_pickle: bool = field(default=False, metadata={"trust": "pickle"})

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if bool(self.name) == (self.files is not None):
            both = f"timm/{self.name} takes no files" if self.name else "timm is a namespace"
            raise UsageError(f"{both}: write timm/NAME or 'timm(files=\"DIR\")'; `zoo list 'timm/*'` shows the names")
        if self.name and "/" not in self.name:
            object.__setattr__(self, "name", _full_name(self.name))  # so that both ways to write it are one identity
        elif self.name.count("/") > 1:
            raise UsageError(f"timm/{self.name} has too many parts: write timm/ARCHITECTURE.TAG or timm/ORG/REPO")

    def source(self) -> Source | None:
        weights = SAFE + (PICKLED if self.allow_pickle else ())
        if self.files is not None:
            return Source(folder=self.files, patterns=(CONFIG,), weights=weights)
        if "/" in self.name:
            return Source(repository=self.name, patterns=(CONFIG,), weights=weights)
        architecture, _, tag = self.name.partition(".")
        repository = known_tags()[architecture].get(tag)
        return None if repository is None else Source(repository=repository or f"timm/{self.name}", weights=weights)

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        from zoo_timm.loading import from_config, from_registry

        if not self.name or "/" in self.name:
            if files is None:
                raise UsageError(f"timm/{self.name} is described by the config.json of its repository; none was given")
            return from_config(files, weights, dtype=self.dtype, patterns=self._patterns())
        if weights == "pretrained" and files is None:
            raise RefusedError(
                f"timm/{self.name} has no pre-trained weights on the Hub: write 'timm/{self.name}(weights=random)'"
            )
        return from_registry(self.name, files, weights, dtype=self.dtype, patterns=self._patterns())

    def _patterns(self) -> tuple[str, ...]:
        return SAFE + (PICKLED if self.allow_pickle else ())


def _full_name(name: str) -> str:
    """The name with its tag; an architecture that nobody published weights of has none."""
    architecture, dot, tag = name.partition(".")
    tags = known_tags().get(architecture)
    if tags is None:
        names = [f"timm/{known}" for known in known_tags()]
        raise NotFoundError(
            f"timm has no architecture {architecture!r}{nearest(f'timm/{architecture}', names)}; "
            f"`zoo list 'timm/*'` shows the names"
        )
    if dot and tag not in tags:
        listed = ", ".join(f"{known} (default)" if not place else known for place, known in enumerate(tags))
        close = nearest(name, [f"{architecture}.{known}" for known in tags])
        raise NotFoundError(f"timm/{architecture} has no weights {tag!r}; it has {listed or 'none'}{close}")
    return name if dot or not tags else f"{architecture}.{next(iter(tags))}"
