"""Files -> tensors -> module: memory-mapped, nothing copied, and each tensor of the backbone accounted for.

A plugin builds its model inside `blank()`, opens the files with `open_tensors` and hands both to `assign`, which puts
the tensors in place or refuses the file. What was never initialised is on the meta device until then, so that it
cannot be used by mistake.
"""

from __future__ import annotations

import json
import pickle
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from zoo_core.contracts import FileHash
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, PluginError
from zoo_core.files.hashing import is_noted, note, verify
from zoo_core.registry.versions import in_range

__all__ = [
    "assign",
    "blank",
    "load_verified",
    "open_pickle",
    "open_tensors",
    "read_tensors",
]

_PICKLES_FROM = "2.10"  # below it weights_only can be tricked: CVE-2025-32434, CVE-2026-24747
_SHOWN = 3  # names in a message
_NUM_THREADS = 4  # that look for values which are not finite; more are not faster than memory


# -- building without initial values ----------------------------------------------------------------------------------


@contextmanager
def blank() -> Iterator[None]:
    """While open, no time is spent on the initial values of parameters of modules built in this thread.

    When it closes, those parameters go to the meta device, so that nobody uses them before `assign`. Buffers keep
    their real values, since no file holds those that are not persistent. Tied parameters stay tied.
    """
    thread = threading.get_ident()
    modules: list[nn.Module] = []

    def note(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if threading.get_ident() == thread:
            modules.append(module)

    handle = register_module_parameter_registration_hook(note)
    try:
        with _NoValues():
            yield
    finally:
        handle.remove()
        made: dict[int, nn.Parameter] = {}
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is not None and not parameter.is_meta:
                    if id(parameter) not in made:
                        made[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                    module._parameters[name] = made[id(parameter)]


class _NoValues(TorchFunctionMode):
    """Leaves out what only sets the values of parameters."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _SETS_VALUES:
            target = args[0] if args else kwargs.get("tensor")  # as torch.nn.init hands it on
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **kwargs)


_SETS_VALUES = frozenset(
    {
        *("add_", "clamp_", "copy_", "div_", "erfinv_", "exponential_", "fill_", "mul_", "normal_", "sub_", "uniform_"),
        *("zero_", "constant_", "kaiming_normal_", "kaiming_uniform_", "ones_", "orthogonal_", "trunc_normal_"),
        *("xavier_normal_", "xavier_uniform_", "zeros_"),
    }
)


# -- files ------------------------------------------------------------------------------------------------------------


def open_tensors(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of one safetensors file, or of all shards of one, memory-mapped; writing to them changes no file.

    An index among the paths (`*.index.json`) is held against the shards. Raises NotFoundError, and IntegrityError
    naming the file: damaged, a shard missing or too many, a tensor twice.
    """
    paths = sorted(paths)
    files = [path for path in paths if path.suffix != ".json"]
    tensors: dict[str, Tensor] = {}
    home: dict[str, str] = {}
    for path in files:
        for name, tensor in read_tensors(path).items():
            if name in tensors:
                raise IntegrityError(f"{path} and {home[name]} both hold {name}; a tensor lies in one shard")
            tensors[name] = tensor
            home[name] = path.name
    for path in paths:
        if path.suffix == ".json":
            _check_index(path, home, {path.name for path in files})
    if not files:
        raise NotFoundError("there is no safetensors file to open")
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, memory-mapped."""
    if not path.is_file():
        raise NotFoundError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} is not a whole safetensors file: {error}") from error


def _check_index(path: Path, home: Mapping[str, str], files: set[str]) -> None:
    """Raises IntegrityError unless the shards are those that the index names, and hold what it says."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = set(listed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is not an index of shards with a weight_map: {error!r}") from error
    if shards != files:
        lacking, extra = sorted(shards - files), sorted(files - shards)
        raise IntegrityError(f"{path}: {len(lacking)} shards missing{_some(lacking)}, {len(extra)} extra{_some(extra)}")
    wrong = sorted(name for name in listed.keys() | home.keys() if listed.get(name) != home.get(name))
    if wrong:
        raise IntegrityError(f"{path}: {len(wrong)} tensors are not in the shard that the index names{_some(wrong)}")


def open_pickle(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of torch's pickled files, memory-mapped where the format allows; only for a user who asked for it.

    Nothing but tensors and plain containers is unpickled. A file that holds them under `state_dict` or `model` is
    taken for that. Raises IncompatibleError if this torch is too old to do so safely, else as `open_tensors`.
    """
    if not in_range(torch.__version__.partition("+")[0], f">={_PICKLES_FROM}"):
        raise IncompatibleError(
            f"pickled weights need torch {_PICKLES_FROM} or newer, this is {torch.__version__}: pip install -U torch"
        )
    files = sorted(path for path in paths if path.suffix != ".json")
    tensors: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in _unpickled(path).items():
            if name in tensors:
                raise IntegrityError(f"{path} and another shard both hold {name}; a tensor lies in one shard")
            tensors[name] = tensor
    if not files:
        raise NotFoundError("there is no pickled file to open")
    return tensors


def _unpickled(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise NotFoundError(f"{path} is missing")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise IntegrityError(f"{path} cannot be read as tensors alone: {reason:.200}") from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(item, Tensor) for item in found.values()):
        raise IntegrityError(f"{path} holds no table of tensors")
    return {str(name): tensor for name, tensor in found.items()}


# -- tensors into a module --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # one is itself: tensors do not compare
class _Slot:
    """One parameter or persistent buffer of a module, with every name it goes by; tied ones have several."""

    tensor: Tensor
    places: tuple[tuple[str, nn.Module, str], ...]  # state dict's name, module, the attribute's name there

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.places)


def assign(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    rename: Callable[[str], str | None] | None = None,
    unused: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    paths: Sequence[Path] = (),
) -> None:
    """Puts a file's tensors in the place of every parameter and persistent buffer of a module, without copying them.

    source: what to call the file in an error. rename: the module's name for a key of the file, None drops the key on
    purpose. unused: globs of keys, renamed, that the file may hold and the module lacks (heads, poolers).
    dtype: of floating-point tensors, None for the module's own; only those that differ are copied. Tied parameters
    stay tied, and the file may hold them under any or all of their names. A file of many batch norms without a single
    count of batches is older than torch 0.4.1: the counts are zero then.
    paths: the files that the tensors are of. Looking for values that are not finite takes as long as all the rest, so
    it is done once for as long as these files do not change; without paths, every time.
    Raises IntegrityError, and changes nothing: coverage (a tensor that the file lacks or has too much), shapes, values
    that are not finite. Raises PluginError if the module was built with values that no file holds.
    """
    slots = _slots(module)
    named = _renamed(tensors, rename, source)
    chosen = _covered(slots, named, unused, source)
    _check_shapes(slots, chosen, source)
    fact = f"finite {zlib.crc32(repr([slot.names for slot in slots]).encode()):x}"
    if not paths or not is_noted(paths, fact):
        _check_finite(slots, chosen, source)
        note(paths, fact)
    for name, buffer in module.named_buffers():
        if buffer.is_meta and not any(name in slot.names for slot in slots):
            raise PluginError(f"buffer {name} is built on the meta device and lies in no file: build it inside blank()")
    fitted = [_fitted(tensor, slot.tensor, dtype) for slot, tensor in zip(slots, chosen, strict=True)]
    for slot, tensor in zip(slots, fitted, strict=True):
        value = nn.Parameter(tensor, slot.tensor.requires_grad) if isinstance(slot.tensor, nn.Parameter) else tensor
        for _, owner, attribute in slot.places:
            if isinstance(value, nn.Parameter):
                owner._parameters[attribute] = value
            else:
                owner._buffers[attribute] = value


def load_verified(module: nn.Module, path: Path, expected: FileHash) -> None:
    """Assigns a safetensors file whose size and sha256 were checked first."""
    verify(path, expected)
    assign(module, read_tensors(path), source=str(path), paths=[path])


def _slots(module: nn.Module) -> list[_Slot]:
    places: dict[int, tuple[Tensor, list[tuple[str, nn.Module, str]]]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        transient = owner._non_persistent_buffers_set
        own = [*owner._parameters.items(), *(item for item in owner._buffers.items() if item[0] not in transient)]
        for attribute, tensor in own:
            if tensor is not None:
                place = (f"{prefix}.{attribute}" if prefix else attribute, owner, attribute)
                places.setdefault(id(tensor), (tensor, []))[1].append(place)
    return [_Slot(tensor, tuple(found)) for tensor, found in places.values()]


def _renamed(
    tensors: Mapping[str, Tensor], rename: Callable[[str], str | None] | None, source: str
) -> dict[str, Tensor]:
    if rename is None:
        return dict(tensors)
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = rename(key)
        if name in named:
            raise IntegrityError(f"{source}: two of its tensors, {key} among them, would both become {name}")
        if name is not None:
            named[name] = tensor
    return named


def _covered(slots: Sequence[_Slot], named: Mapping[str, Tensor], unused: Sequence[str], source: str) -> list[Tensor]:
    """The file's tensor for each slot."""
    wanted = {name for slot in slots for name in slot.names}
    unknown = sorted(name for name in named.keys() - wanted if not any(fnmatchcase(name, glob) for glob in unused))
    missing = [slot for slot in slots if not any(name in named for name in slot.names)]
    counts = [slot for slot in slots if slot.names[0].rpartition(".")[2] == "num_batches_tracked"]
    old = len(counts) > 1 and all(slot in missing for slot in counts)
    if old:
        missing = [slot for slot in missing if slot not in counts]
    if missing or unknown:
        share = sum(slot.tensor.numel() for slot in missing) / max(1, sum(slot.tensor.numel() for slot in slots))
        raise IntegrityError(
            f"{source} does not cover the backbone: {len(missing)} of {len(slots)} tensors missing "
            f"({share:.1%} of the values){_some([slot.names[0] for slot in missing])}, "
            f"{len(unknown)} unknown{_some(unknown)}"
        )
    chosen: list[Tensor] = []
    for slot in slots:
        held = [named[name] for name in slot.names if name in named]
        if any(other.shape != held[0].shape or not torch.equal(other, held[0]) for other in held[1:]):
            raise IntegrityError(f"{source}: {' and '.join(slot.names)} are one tensor of the model and differ there")
        chosen.append(held[0] if held else torch.zeros(slot.tensor.shape, dtype=slot.tensor.dtype))
    return chosen


def _check_shapes(slots: Sequence[_Slot], chosen: Sequence[Tensor], source: str) -> None:
    wrong = [
        (slot.names[0], tuple(tensor.shape), tuple(slot.tensor.shape))
        for slot, tensor in zip(slots, chosen, strict=True)
        if tensor.shape != slot.tensor.shape
    ]
    if wrong:
        rows = "; ".join(
            f"{name} has shape {found}, the backbone wants {wanted} ({_likely_cause(name, found, wanted)})"
            for name, found, wanted in wrong[:_SHOWN]
        )
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise IntegrityError(f"{source}: {rows}{more}")


def _likely_cause(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """A guess for people at why two shapes differ."""
    if "pos" in name.lower() or "rope" in name.lower():  # pos_embed, position_embeddings, relative_position_bias_table
        return "made for another image size or text length"
    if len(found) == len(wanted) > 2 and found[0] == wanted[0] and found[2:] == wanted[2:]:
        return "made for another number of input channels"
    if len(found) == len(wanted) > 2 and found[:2] == wanted[:2]:
        return "made with another patch or kernel size"
    if any(word in name for word in ("head", "classifier", "fc")) and found[1:] == wanted[1:]:
        return "made for another number of classes"
    return "the weights of another architecture"


def _check_finite(slots: Sequence[_Slot], chosen: Sequence[Tensor], source: str) -> None:
    """One sum of each tensor tells, at the speed of memory; only a sum that is not finite asks for a closer look.

    Infinite is allowed where the module as built is infinite too: a bound that stands for none.
    """
    floats = [(slot, tensor) for slot, tensor in zip(slots, chosen, strict=True) if tensor.is_floating_point()]
    if not floats:
        return
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        sums = torch.tensor(list(pool.map(_sum, [tensor for _, tensor in floats])), dtype=torch.float64)
    suspect = sums.isfinite().logical_not()
    for place in suspect.nonzero().flatten().tolist():
        slot, tensor = floats[place]
        unbounded = slot.tensor.isinf() if not slot.tensor.is_meta else torch.zeros(tensor.shape, dtype=torch.bool)
        if (tensor.isnan() | tensor.isinf() & ~unbounded.to(tensor.device)).any():
            raise IntegrityError(f"{source}: {slot.names[0]} holds values that are not finite")


def _sum(tensor: Tensor) -> float:
    """A sum that is not finite if any value is not; numpy's needs no threads of torch's, which wait for each other."""
    if tensor.dtype in (torch.float32, torch.float64) and tensor.device.type == "cpu":
        with np.errstate(all="ignore"):
            return float(tensor.detach().numpy().sum())
    return float(tensor.sum(dtype=torch.float32))


def _fitted(tensor: Tensor, own: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor on the module's device and in the type asked for; the same one where nothing differs."""
    wanted = dtype if dtype is not None and own.is_floating_point() else own.dtype
    return tensor.to(device="cpu" if own.is_meta else own.device, dtype=wanted)


def _some(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
