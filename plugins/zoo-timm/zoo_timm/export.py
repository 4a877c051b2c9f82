"""A backbone as a folder in timm's own format: config.json as timm describes a model, and model.safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from zoo_core.contracts import Target, as_backbone

__all__ = ["Build", "write"]

Build = Callable[[int], nn.Module]  # the same model with so many classes, its parameters on the meta device

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of outputs, relative
ROUGH = 5e-2  # of half precision


@torch.no_grad()
def write(
    backbone: nn.Module, network: nn.Module, whole: Build | None, folder: Path, head: nn.Linear | None, target: Target
) -> str:
    """Writes a model with its linear head as the classifier, or without a classifier; one line that says which.

    network: the timm model inside the backbone, without a classifier; what it holds is written as it stands.
    whole: None for a model that timm builds without a classifier. head: None where it is no linear layer.
    """
    model, reason = network, "it is not one linear layer on pooled features"
    if head is not None:
        with_head, reason = _with_classifier(backbone, network, whole, head)
        model = with_head or network
    save_file(_apart(model), folder / "model.safetensors", metadata={"format": "pt"})
    names = list(target.names) if model is not network and target.kind == "classes" else []
    save_config_for_hf(model, str(folder / "config.json"), {"label_names": names} if names else {})
    what = f"features, and {target.size} outputs as its classifier"
    if model is network:
        what = f"features; the head is left out: {reason}"
    return f'timm.create_model("local-dir:{folder}", pretrained=True) loads it: {what}'


def _with_classifier(
    backbone: nn.Module, network: nn.Module, whole: Build | None, head: nn.Linear
) -> tuple[nn.Module | None, str]:
    """The network with the head as its classifier; None, and why, where that would be another model."""
    if whole is None:
        return None, "timm builds this model without a classifier"
    model = whole(head.out_features).eval()
    classifier = model.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear) or classifier.in_features != head.in_features or classifier.bias is None:
        return None, f"timm's classifier of this model is a {type(classifier).__name__} of another shape"
    name = next(name for name, module in model.named_modules() if module is classifier)
    dtype = next(network.parameters()).dtype
    state: dict[str, Tensor] = dict(network.state_dict())
    state |= {f"{name}.weight": head.weight.to(dtype), f"{name}.bias": head.bias.to(dtype)}
    other = sorted(model.state_dict().keys() ^ state.keys())
    if other:
        return None, f"timm builds other layers along with a classifier, {other[0]} first"
    model.load_state_dict(state, assign=True)
    model.to(dtype)  # buffers that no file holds
    inputs = as_backbone(backbone).preparation.dummy(2)
    expected = head(as_backbone(backbone).pool(as_backbone(backbone)(inputs)))
    if not _agree(model(inputs["pixel_values"].to(dtype)), expected):
        return None, "timm does more between its pooled features and its classifier"
    return model, ""


def _apart(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model, each in memory of its own and in the order that the format knows."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        whole = tensor.is_contiguous() and tensor.data_ptr() not in seen
        found[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.data_ptr())
    return found


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs are the same up to rounding."""
    close = CLOSE.get(found.dtype, ROUGH)
    return torch.allclose(found.float(), expected.float(), rtol=close, atol=close * float(expected.abs().max()))
