"""The namespace `hf`: a repository or folder in transformers' format, as a backbone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_core.contracts import Source, Weights
from zoo_core.errors import UsageError
from zoo_transformers.families import INPUT_FILES, SHORTEST

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Transformers"]

PATTERNS = ("config.json", "model.safetensors.index.json", *INPUT_FILES)
SAFE_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Transformers:
    """An encoder of the transformers library, without its head: `hf/ORG/REPO`, or a folder: `hf(files="DIR")`.

    name: repository on the Hub. files: a folder laid out like one. Exactly one of the two is given.
    dtype: of the weights; inputs are cast to it and features come out in float32.
    max_length: tokens a text is cut to, special ones included; none: the most that the repository allows.
    allow_pickle: whether weights may be read from a pickle where there are no safetensors; never a fallback.
    """

    name: str = ""
    files: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_length: int | None = None
    allow_pickle: bool = field(default=False, metadata={"trust": "pickle"})

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if bool(self.name) == (self.files is not None):
            given = "both" if self.name else "neither"
            raise UsageError(f"""hf takes a repository or a folder, found {given}: hf/ORG/REPO or 'hf(files="DIR")'""")
        if self.name and not REPOSITORY.fullmatch(self.name):
            raise UsageError(f"hf/{self.name} is no repository of the Hub; write hf/ORG/REPO")
        if self.max_length is not None and self.max_length < SHORTEST:
            raise UsageError(f"hf: max_length={self.max_length}; allowed: {SHORTEST} or more")

    def source(self) -> Source | None:
        weights = SAFE_WEIGHTS + (PICKLES if self.allow_pickle else ())
        if self.files is not None:
            return Source(folder=self.files, patterns=PATTERNS, weights=weights)
        return Source(repository=self.name, patterns=PATTERNS, weights=weights)

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        from zoo_transformers.contract import backbone

        assert files is not None, "core hands over the folder that `source` names"
        source = self.source()
        assert source is not None
        return backbone(
            files,
            globs=source.weights if weights == "pretrained" else (),
            dtype=self.dtype,
            max_length=self.max_length,
        )
