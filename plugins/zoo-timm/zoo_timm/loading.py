"""A timm model built without initial values, and filled from files of a folder by timm's own renaming of old keys."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import config as timm_layers
from timm.models import _builder as timm_builder
from timm.models import is_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoo_core.contracts import Weights
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, nearest
from zoo_core.toolkit.locks import Lock
from zoo_core.toolkit.weights import assign, blank, open_pickle, open_tensors
from zoo_timm.config import Config, preparation_of, read_config, registered
from zoo_timm.network import TimmBackbone

__all__ = ["from_config", "from_description", "from_registry"]

_one_build = Lock()  # timm's loader and its switch for fused attention are the whole process's


def from_registry(
    name: str, files: Path | None, weights: Weights, *, dtype: str, patterns: Sequence[str]
) -> TimmBackbone:
    """A backbone of timm's own list. name: with its tag. patterns: globs of weights among the files, best first."""
    return from_description(registered(name), files, weights, dtype=dtype, patterns=patterns)


def from_config(files: Path, weights: Weights, *, dtype: str, patterns: Sequence[str]) -> TimmBackbone:
    """A backbone as the config.json among the files describes it."""
    file = files / "config.json"
    config = read_config(file)
    if not is_model(config.architecture):
        raise IncompatibleError(
            f"{file}: timm {timm.__version__} has no architecture {config.architecture!r}"
            f"{nearest(config.architecture, timm.list_models())}"
        )
    try:
        return from_description(config, files, weights, dtype=dtype, patterns=patterns)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise IncompatibleError(
            f"{file}: timm {timm.__version__} cannot build what it describes: {said:.200}"
        ) from error


def from_description(
    config: Config, files: Path | None, weights: Weights, *, dtype: str, patterns: Sequence[str]
) -> TimmBackbone:
    """A backbone as described; a random one needs no files."""
    preparation = preparation_of(config.pretrained)
    wanted: torch.dtype = getattr(torch, dtype)
    if weights == "random":
        network, _ = _create(config, pretrained=False)
        return TimmBackbone(network.to(wanted), config.architecture, preparation, partial(_whole, config))
    assert files is not None, "pre-trained weights are read from files"
    paths = _weights_among(files, patterns)
    with blank():
        network, loader = _create(config, pretrained=True)
    pickled = any(path.suffix in (".bin", ".pth") for path in paths)
    tensors = open_pickle(paths) if pickled else open_tensors(paths)
    source = str(paths[0]) if len(paths) == 1 else str(files)
    named = loader.named_for(network, tensors, source)
    unused = _unused(config, network, named, loader)
    assign(network, named, source=source, unused=unused, dtype=wanted, paths=paths)
    if wanted != torch.float32:
        network.to(wanted)  # buffers that no file holds
    return TimmBackbone(network, config.architecture, preparation, partial(_whole, config))


def _whole(config: Config, num_classes: int) -> nn.Module:
    """The model with so many classes, its parameters on the meta device."""
    with blank():
        network, _ = _create(config, pretrained=False, num_classes=num_classes)
    return network


def _unused(config: Config, network: nn.Module, named: Mapping[str, Tensor], loader: _Loader) -> tuple[str, ...]:
    """Globs of what a file may hold besides the backbone: its classifier, with what timm builds only along with it."""
    surplus = named.keys() - network.state_dict().keys()
    if all(any(fnmatchcase(name, glob) for glob in loader.unused) for name in surplus):
        return loader.unused
    with blank():
        whole, _ = _create(config, pretrained=False, num_classes=config.pretrained.get("num_classes", 1000))
    return (*loader.unused, *whole.state_dict())


def _weights_among(files: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that fits any."""
    for pattern in patterns:
        found = sorted(path for path in files.glob(pattern) if path.is_file())
        if found:
            return found
    raise NotFoundError(f"{files} holds no weights; looked for {', '.join(patterns)}")


@dataclass(frozen=True)
class _Loader:
    """How timm would load a model's weights: its filter of keys, and which keys may be left over."""

    filter: Callable[..., Mapping[str, Tensor]] | None
    unused: tuple[str, ...]

    def named_for(self, network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """The tensors by the names of the model, as timm's filter renames and reshapes them.

        Raises IncompatibleError where it would resample one: weights made for another image size or patch size.
        Raises IntegrityError where it cannot make sense of the names.
        """
        if self.filter is None:
            return tensors
        models = [network] if len(inspect.signature(self.filter).parameters) > 1 else []
        try:
            with torch.no_grad(), _NoResampling(source):
                return self.filter(dict(tensors), *models)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise IntegrityError(f"{source} does not hold the tensors of this architecture: {said}") from error


def _create(config: Config, *, pretrained: bool, num_classes: int = 0) -> tuple[nn.Module, _Loader]:
    """A timm model, with fused attention on, and what would load it (only if pretrained)."""
    loaders: list[_Loader] = []

    def note(model: nn.Module, **told: Any) -> None:
        """In the place of timm's load_pretrained, which alone is told the filter of a model."""
        classifiers = told["pretrained_cfg"].get("classifier") or ()
        names = (classifiers,) if isinstance(classifiers, str) else classifiers
        unused = ("*",) if not told["strict"] else tuple(f"{name}.*" for name in names)
        loaders.append(_Loader(told["filter_fn"], unused))

    with _one_build.held, _loader_replaced(note) if pretrained else nullcontext(), _fused_attention():
        network = timm.create_model(
            config.registered or config.architecture,
            pretrained=pretrained,
            pretrained_cfg=None if config.registered else dict(config.pretrained),
            num_classes=num_classes,
            scriptable=False,
            exportable=False,
            **config.model_args,
        )
    return network, loaders[0] if loaders else _Loader(None, ())


@contextmanager
def _loader_replaced(stand_in: Callable[..., None]) -> Iterator[None]:
    """In this thread alone: another one may build a model of its own by timm meanwhile."""
    own, here = timm_builder.load_pretrained, threading.get_ident()

    def replaced(*arguments: Any, **told: Any) -> Any:
        return (stand_in if threading.get_ident() == here else own)(*arguments, **told)

    timm_builder.load_pretrained = replaced
    try:
        yield
    finally:
        timm_builder.load_pretrained = own


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Models call scaled_dot_product_attention, whatever the environment asks of timm: the attention seam needs it."""
    own = timm_layers._USE_FUSED_ATTN
    timm_layers.set_fused_attn(True)
    try:
        yield
    finally:
        timm_layers._USE_FUSED_ATTN = own


class _NoResampling(TorchDispatchMode):
    """Refuses interpolation, by which timm's filters would fit position embeddings and patches to another size."""

    def __init__(self, source: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source = source

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in func.__name__ for word in ("upsample", "grid_sampler")):
            raise IncompatibleError(
                f"{self.source} was made for another image size or patch size than its description says, and timm "
                "would resample its position embeddings or patches; correct config.json"
            )
        return func(*args, **(kwargs or {}))
