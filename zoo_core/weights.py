"""Files -> state dict -> module: each file checked by size and sha256, each tensor of the backbone accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo_core.contracts import FileHash
from zoo_core.errors import IntegrityError, NotFoundError

__all__ = ["fill", "load_verified", "read_tensors", "sha256_of", "verify"]


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hex, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path, expected: FileHash) -> None:
    """Raises IntegrityError unless the file has the size and the sha256 expected, NotFoundError if it is missing."""
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; install its package again")
    size = path.stat().st_size
    if size != expected.size:
        raise IntegrityError(f"{path} has {size} bytes, expected {expected.size}: truncated; get it again")
    found = sha256_of(path)
    if found != expected.sha256:
        raise IntegrityError(f"{path} has sha256 {found[:12]}..., expected {expected.sha256[:12]}...; get it again")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises IntegrityError naming the file when it cannot be read."""
    if not path.is_file():
        raise NotFoundError(f"{path} is missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is not a whole safetensors file: {error}") from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copies every parameter and persistent buffer of a module from a file's tensors, cast to the module's dtype.

    source: what to call the file in an error. Nothing is copied unless everything fits.
    Raises IntegrityError: coverage (a tensor that the file lacks or has too much), shapes, values that are not finite.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        share = sum(wanted[name].numel() for name in missing) / max(1, sum(t.numel() for t in wanted.values()))
        raise IntegrityError(
            f"{source} does not cover the backbone: {len(missing)} of {len(wanted)} tensors missing "
            f"({share:.1%} of the values){_some(missing)}, {len(unknown)} unknown{_some(unknown)}"
        )
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise IntegrityError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, the backbone wants {tuple(tensor.shape)}"
            )
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise IntegrityError(f"{source}: {name} holds values that are not finite")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def load_verified(module: nn.Module, path: Path, expected: FileHash) -> None:
    """Fills a module from a safetensors file whose size and sha256 were checked first."""
    verify(path, expected)
    fill(module, read_tensors(path), source=str(path))


def _some(names: list[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
