"""The backbone `run(path="DIR")`: a fitted model as the start of another one. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zoo_core.contracts import Source, Weights

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Run"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The backbone of a stored run, with the delta of its adapters applied; its head is dropped.

    path: the folder that `zoo fit` or `zoo_core.save` wrote. What is fitted on top of it holds only what differs from
    it, and names it by the hashes of its files. With weights=random it is the same network, never trained.
    """

    path: str

    version: ClassVar[int] = 1

    def source(self) -> Source | None:
        return Source(folder=self.path, patterns=("run.json", "zoo.lock"), weights=("delta.safetensors",))

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        from dataclasses import replace

        from zoo_core.build import build
        from zoo_core.runs import load_stored, read_run

        assert files is not None, "a stored run has files"
        run = read_run(files, needs_task=False)
        if weights == "pretrained":
            return load_stored(run).backbone
        return build(replace(run.plan, weights="random"), target=run.target, purpose="use").backbone
