"""Random numbers with a seed of their own for each part, example and fit, whatever else draws at the same time.

Building and preparing do not touch torch's global generator. While `seeded` or `private_rng` is open, every operation
of this thread draws from a private generator, and torch.manual_seed, fork_rng and the like act on that generator.
This would slow training down, so `forked_rng` seeds the global generator instead, for one fit at a time, and restores
it. Locks are always taken in one order, training before building, so no deadlock is possible.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.data import get_worker_info

from zoo_core._process.singletons import Lock

__all__ = ["derive_seed", "example_rng", "forked_rng", "private_rng", "seeded"]


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits that depends on every part, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(*parts: object) -> Iterator[torch.Generator]:
    """Random draws of a part while it is built. Only one part is built at a time, because libraries change globals.

    Draws are made as in `private_rng`. Yields a second generator with the same seed, for parts that take one.
    """
    with _building.held, private_rng(*parts):
        yield torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def private_rng(*parts: object) -> Iterator[None]:
    """Makes this thread draw from a private generator, seeded from the parts; other threads are not affected.

    The numbers are those that torch's global generator would give with that seed. Calls inside that seed or set the
    CPU's generator, such as torch.manual_seed, act on the private one. A GPU generator that is seeded inside is
    restored afterwards. Threads that are started inside, and methods of `torch.default_generator` itself, still use
    the global generator. numpy and `random` are not covered: parts draw by torch, which the conformance kit checks.
    """
    with _gpus_kept(), _redirected():
        opened, before = _here.source is None, _here.source
        _here.source = _Source(derive_seed(*parts))
        try:
            if opened:
                with _Private():  # type: ignore[no-untyped-call]
                    yield
            else:
                yield  # the mode that is open reads the source that is current
        finally:
            _here.source = before


@contextmanager
def forked_rng(device: torch.device, *parts: object) -> Iterator[None]:
    """Seeds torch's global generator from the parts, for training, and restores the caller's random state afterwards.

    Only one thread may be inside at a time; others wait. A thread that draws from the global generator without this
    changes what training draws. Within `seeded` or `private_rng` their private generator is used, without waiting.
    """
    if _here.source is not None:
        with private_rng(*parts):
            yield
        return
    devices = [device] if device.type == "cuda" else []
    with _training.held, torch.random.fork_rng(devices=devices):
        before = _here.trains
        try:
            _here.trains = True
            seed = derive_seed(*parts)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU
            if devices:
                _default_generator(device).manual_seed(seed)
            yield
        finally:
            _here.trains = before


@contextmanager
def example_rng(*parts: object) -> Iterator[None]:
    """The numbers of `private_rng`, for augmenting one example, faster where nobody else uses the global generator.

    That is the case in the thread that trains and in a loader's process; each operation takes half the time there.
    """
    if _here.source is None and (_here.trains or get_worker_info() is not None):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(*parts))
            yield
    else:
        with private_rng(*parts):
            yield


# -- the private generators of a thread -------------------------------------------------------------------------------


class _Source:
    """The private generators of one seed, one for each device that is drawn on."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[str, torch.Generator] = {}

    def at(self, device: torch.device) -> torch.Generator:
        index = torch.get_device_module(device).current_device() if _lacks_index(device) else device.index
        key = device.type if device.type in ONLY_ONE else f"{device.type}:{index}"
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[key]

    def manual_seed(self, seed: int) -> torch.Generator:
        """As torch.manual_seed: all devices; the generator of the CPU."""
        self._generators.clear()
        found = torch.Generator().manual_seed(seed)
        self._seed = found.initial_seed()  # a negative one is another number
        self._generators["cpu"] = found
        return found

    def seed(self) -> int:
        """As torch.seed: a seed that nobody knows beforehand."""
        return self.manual_seed(torch.Generator().seed()).initial_seed()


class _Here(threading.local):
    """What the current thread draws from; None: torch's global generators. trains: whether those are its own now."""

    source: _Source | None = None
    trains: bool = False


_here = _Here()
_building, _training, _redirecting = Lock(), Lock(), Lock()
CPU = torch.device("cpu")
ONLY_ONE = ("cpu", "mps")  # of these devices there is one, whatever its index


class _Private(TorchDispatchMode):
    """Hands the private generator to every operation of this thread that draws."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = _here.source
        if source is None or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        device = _device_of(args, kwargs)
        given: Any = _value_of("generator", func, args, kwargs)
        if device.type == "meta" or (given is not None and given._cdata != _default_generator(device)._cdata):
            return func(*args, **kwargs)  # no numbers, or those of another generator
        taking = _taking_generator(func)
        if taking is not None:
            place = _place_of("generator", taking)
            if place < len(args):
                args = (*args[:place], source.at(device), *args[place + 1 :])
            else:
                kwargs = kwargs | {"generator": source.at(device)}
            return taking(*args, **kwargs)
        if not any(_value_of(name, func, args, kwargs) for name in ("dropout_p", "dropout", "p")):
            return func(*args, **kwargs)  # attention without dropout
        return _in_place_of_global(source.at(device), device, func, args, kwargs)


def _in_place_of_global(own: torch.Generator, device: torch.device, func: Any, args: Any, kwargs: Any) -> Any:
    """One operation that knows no generator but the global one, which has the private state for as long as it takes."""
    general = _default_generator(device)
    held = general.get_state()
    general.set_state(own.get_state())
    try:
        with _disable_current_modes():
            return func(*args, **kwargs)
    finally:
        own.set_state(general.get_state())
        general.set_state(held)


@cache
def _taking_generator(func: OpOverload[Any, Any]) -> OpOverload[Any, Any] | None:
    """The operation itself, or its overload with the same arguments and a generator; None where there is none."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        return func
    packet = func.overloadpacket
    overloads: list[OpOverload[Any, Any]] = [getattr(packet, name) for name in packet.overloads()]
    for other in overloads:
        own = [argument.name for argument in other._schema.arguments]
        if "generator" in own and [name for name in own if name != "generator"] == names:
            return other
    return None


def _place_of(name: str, func: OpOverload[Any, Any]) -> int:
    """Where an argument stands among those that may be given without their names; beyond all, where it may not."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name and not argument.kwarg_only:
            return place
    return len(func._schema.arguments)


def _value_of(name: str, func: OpOverload[Any, Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """What an operation was given under a name; None for nothing."""
    place = _place_of(name, func)
    return args[place] if place < len(args) else kwargs.get(name)


def _device_of(args: Any, kwargs: Mapping[str, Any]) -> torch.device:
    """Where an operation draws: on the device that it names, else where its first tensor is."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    for value in (*args, *kwargs.values()):
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, Tensor):
                return each.device
    return CPU


def _lacks_index(device: torch.device) -> bool:
    return device.type not in ONLY_ONE and device.index is None


def _default_generator(device: torch.device) -> Any:
    """torch's global generator of a device."""
    if device.type == "cpu":
        return torch.default_generator
    module = torch.get_device_module(device)
    if device.type == "mps":
        return module._get_default_mps_generator()
    return module.default_generators[module.current_device() if _lacks_index(device) else device.index]


# -- what seeds and sets torch's generators ---------------------------------------------------------------------------

_redirections = 0
_usual: dict[str, Callable[..., Any]] = {}  # torch's own functions, while others stand in their place


@contextmanager
def _redirected() -> Iterator[None]:
    """torch.manual_seed, fork_rng and the like mean this thread's source; in other threads they are what they were."""
    _redirect(1)
    try:
        yield
    finally:
        _redirect(-1)


def _redirect(change: int) -> None:
    global _redirections
    with _redirecting.held:
        if _redirections == 0:
            _usual.update({name: getattr(torch.random, name) for name in STANDS_IN})
        _redirections += change
        for name, stand_in in STANDS_IN.items():
            function = partial(stand_in, _usual[name]) if _redirections else _usual[name]
            for module in (torch, torch.random):
                setattr(module, name, function)


def _manual_seed(usual: Callable[..., Any], seed: int) -> Any:
    return usual(seed) if _here.source is None else _here.source.manual_seed(int(seed))


def _seed(usual: Callable[..., Any]) -> Any:
    return usual() if _here.source is None else _here.source.seed()


def _initial_seed(usual: Callable[..., Any]) -> Any:
    return usual() if _here.source is None else _here.source.at(CPU).initial_seed()


def _get_rng_state(usual: Callable[..., Any]) -> Any:
    return usual() if _here.source is None else _here.source.at(CPU).get_state()


def _set_rng_state(usual: Callable[..., Any], new_state: Tensor) -> Any:
    return usual(new_state) if _here.source is None else _here.source.at(CPU).set_state(new_state)


STANDS_IN: Mapping[str, Callable[..., Any]] = {
    "get_rng_state": _get_rng_state,
    "initial_seed": _initial_seed,
    "manual_seed": _manual_seed,
    "seed": _seed,
    "set_rng_state": _set_rng_state,
}


@contextmanager
def _gpus_kept() -> Iterator[None]:
    """A GPU's global generator that is seeded inside has its state again; one that is drawn from goes on."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        yield
        return
    before = [(each, each.initial_seed(), each.get_state()) for each in torch.cuda.default_generators]
    try:
        yield
    finally:
        for each, seed, state in before:
            if each.initial_seed() != seed:
                each.set_state(state)
