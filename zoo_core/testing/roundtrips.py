"""Checks that a learner stays the same when it is stored, loaded, copied and built again.

Each check returns None, or why there was nothing to check, and raises ConformanceError for a broken promise.
"""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import pickle
import random
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack

from zoo_core.contracts import as_backbone
from zoo_core.lock import lock_of, write_lock
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.run_layout import LOCK, RUN
from zoo_core.runs.stored_run import read_run, save_run
from zoo_core.testing.comparing import (
    ConformanceError,
    changed,
    equal,
    expect_refusal,
    expect_same,
    num_hooks,
    outputs_of,
    plain_name,
    train,
)
from zoo_core.testing.subject import Subject, perturb

__all__ = [
    "copies",
    "holds_its_delta",
    "leaves_no_hooks",
    "loads_in_a_new_process",
    "refuses_other_deltas",
    "repeats",
    "switches",
]

# -- the delta -------------------------------------------------------------------------------------------------------


def holds_its_delta(subject: Subject) -> str | None:
    """The delta holds what trains and what was added, and no copy of the base. A learner built for use accepts it."""
    learner = changed(subject)
    delta = learner.delta()
    names = delta.keys() - learner.frozen().keys()
    trained = {name for name, _ in learner.trainable() if not name.startswith("objective.")}
    if trained - names:
        raise ConformanceError(f"the delta lacks {min(trained - names)}, which trains")
    base = subject.plain.backbone.state_dict()
    own = {
        name for name in delta if plain_name(name).removeprefix("backbone.") in base
    }  # a random backbone's are in it
    for name in sorted(delta.keys() - own - trained):
        twin = next((known for known, tensor in base.items() if _is_copy(delta[name], tensor)), None)
        if twin is not None:
            raise ConformanceError(f"the delta holds {name}, a copy of the base's {twin}; its files hold that already")
    if subject.plan.weights == "pretrained":
        frozen = {f"backbone.{name}" for name in base} & learner.frozen().keys() & delta.keys()
        if frozen:
            raise ConformanceError(f"the delta holds {min(frozen)}, which the base's files determine")
    inputs = subject.batch().inputs
    used = build(subject.plan, purpose="use")
    if used.delta().keys() != delta.keys():
        raise ConformanceError(f"built for use, its delta has other names: {min(used.delta().keys() ^ delta.keys())}")
    used.load_delta({name: tensor.clone() for name, tensor in delta.items()})
    expect_same(outputs_of(learner, inputs), outputs_of(used, inputs), "built for use and given the delta, it differs")
    return None


def _is_copy(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors with their own memory have the same values."""
    return tensor.numel() > 1 and len(tensor.unique()) > 1 and equal(tensor, other)


def refuses_other_deltas(subject: Subject) -> str | None:
    """A delta with a wrong name or shape, or of another base, is refused in one line and changes nothing."""
    learner = subject.learner()
    own = {name: tensor.clone() for name, tensor in learner.delta().items()}
    last = max(name for name, tensor in own.items() if tensor.numel())
    other = {name: tensor + 1 for name, tensor in own.items()}
    for wrong in (
        {name: tensor for name, tensor in other.items() if name != last},
        other | {"backbone.of_another": torch.zeros(1)},
        other | {last: torch.zeros(*other[last].shape, 2)},
    ):
        expect_refusal(partial(learner.load_delta, wrong), "a delta of another learner")
        expect_same(own, learner.delta(), "a refused delta changed what the learner holds")
    with TemporaryDirectory() as folder:
        file = _saved(learner, Path(folder)) / RUN
        table = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(table | {"base_digest": "0" * 32}), encoding="utf-8")
        expect_refusal(lambda: read_run(file.parent, needs_task=False), "a run of another base")
    return None


def _saved(learner: Learner, folder: Path) -> Path:
    plan = learner.plan
    assert plan is not None, "a subject's learner has one"
    save_run(learner, plan, folder)
    write_lock(folder / LOCK, lock_of(plan.parts, plan.pins))
    return folder


_LOAD = """
import sys, torch, zoo_core
from safetensors.torch import load_file, save_file
torch.set_num_threads(int(sys.argv[2]))
learner = zoo_core.load_run(sys.argv[1] + "/run")
with torch.no_grad():
    output = learner(load_file(sys.argv[1] + "/inputs.safetensors"))
save_file({"predictions": output.predictions, "features": output.features.x.contiguous()}, sys.argv[1] + "/outputs")
"""


def loads_in_a_new_process(subject: Subject) -> str | None:
    """Trained, saved, and loaded by another process, it predicts the same bits."""
    learner, batch = subject.learner(), subject.batch()
    train(learner, batch, torch.optim.AdamW(learner.parameter_groups(1e-2)), 2)
    learner.eval()
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run").mkdir()
        _saved(learner, folder / "run")
        save_file({key: x.contiguous() for key, x in batch.inputs.items()}, folder / "inputs.safetensors")
        done = subprocess.run(
            [sys.executable, "-P", "-c", _LOAD, name, str(torch.get_num_threads())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ConformanceError(f"a new process does not load it: {done.stderr.strip().splitlines()[-1]}")
        found = load_file(folder / "outputs")
    expect_same(outputs_of(learner, batch.inputs), found, "loaded by a new process it differs")
    return None


def switches(subject: Subject) -> str | None:
    """Deltas can be exchanged in place: after A, B and A again, the outputs are bit for bit those of A."""
    learner, inputs = subject.learner(), subject.batch().inputs
    one, other = (
        {name: tensor.clone() for name, tensor in changed(subject, seed=seed).delta().items()} for seed in (1, 2)
    )
    found = []
    for delta in (one, other, one):
        learner.load_delta(delta)
        found.append(outputs_of(learner, inputs))
    expect_same(found[0], found[2], "after the deltas A, B, A the outputs are not those of A")
    for seed, outputs in zip((1, 2), found, strict=False):
        made = outputs_of(changed(subject, seed=seed), inputs)
        expect_same(made, outputs, "given a delta in place of another, it is not the learner that made it")
    if subject.changes & {"base", "added"} and equal(found[0]["features"], found[1]["features"]):
        raise ConformanceError("two deltas give the same features, so what they hold does not act")
    return None


# -- copies ----------------------------------------------------------------------------------------------------------


def copies(subject: Subject) -> str | None:
    """A deep copy, a pickle and a state_dict give the same outputs, and changing one does not affect another."""
    learner, batch = build(subject.plan), subject.batch()  # built anew: a copy might already share what it should not
    perturb(parameter for _, parameter in learner.trainable())
    before = outputs_of(learner, batch.inputs)
    twin = copy.deepcopy(learner)
    expect_same(before, outputs_of(twin, batch.inputs), "a deep copy differs")
    train(twin, batch, torch.optim.AdamW(twin.parameter_groups(1e-2)), 1)
    expect_same(before, outputs_of(learner, batch.inputs), "training a deep copy changes the original")
    moved = outputs_of(twin.eval(), batch.inputs)
    for parameter in learner.parameters():
        parameter.data.fill_(torch.nan)
    expect_same(moved, outputs_of(twin, batch.inputs), "changing the original changes its deep copy")
    fresh = subject.learner()
    stored = io.BytesIO()
    torch.save(twin.state_dict(), stored)
    stored.seek(0)
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    expect_same(moved, outputs_of(fresh, batch.inputs), "given another's state_dict, it differs")
    if any(parametrize.is_parametrized(module) for module in twin.modules()):
        return None  # torch pickles no parametrised module
    again = pickle.loads(pickle.dumps(twin))  # noqa: S301, made here
    expect_same(moved, outputs_of(again, batch.inputs), "a pickle differs")
    return None


def repeats(subject: Subject) -> str | None:
    """One seed gives one learner, whatever the global generators hold, and they hold the same afterwards."""
    found = []
    for seed in (1, 2):
        with _global_draws(seed) as states:
            built = build(subject.plan)
            after = _global_states()
        if list(map(_as_text, states)) != list(map(_as_text, after)):
            raise ConformanceError("building it moves a global random generator; Context.generator is its own")
        found.append(built.state_dict())
    names = [name for name in found[0] if not equal(found[0][name], found[1][name])]
    if names:
        raise ConformanceError(f"{len(names)} tensors depend on a global random generator, {names[0]} first")
    return None


@contextmanager
def _global_draws(seed: int) -> Iterator[list[Any]]:
    """Seeds the global generators of torch, numpy and Python, and restores them. Yields their states."""
    held = _global_states()
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002, the global one is what is looked at
    random.seed(seed)
    try:
        yield _global_states()
    finally:
        torch.set_rng_state(held[0])
        np.random.set_state(held[1])  # noqa: NPY002
        random.setstate(held[2])


def _global_states() -> list[Any]:
    return [torch.get_rng_state(), np.random.get_state(), random.getstate()]  # noqa: NPY002


def _as_text(state: Any) -> str:
    return repr(state.tolist() if isinstance(state, Tensor) else [getattr(x, "tolist", lambda x=x: x)() for x in state])


def leaves_no_hooks(subject: Subject) -> str | None:
    """No pass adds a hook, even if it fails. A merged copy has the base's hooks, and nothing keeps a learner alive."""
    outside = _global_hooks()
    learner, inputs = build(subject.plan), subject.batch().inputs
    before = num_hooks(learner)
    outputs_of(learner, inputs)
    _fails(learner, inputs)
    expect_same(outputs_of(subject.built, inputs), outputs_of(learner, inputs), "after a pass that failed it differs")
    if num_hooks(learner) != before:
        raise ConformanceError(f"it has {before} hooks, and {num_hooks(learner)} after three passes")
    if _global_hooks() != outside:
        raise ConformanceError("it leaves a hook or a function mode that is not a module's")
    dead = weakref.ref(learner)
    del learner
    gc.collect()
    if dead() is not None:
        raise ConformanceError("something keeps a learner alive that nobody holds any more")
    return None


class _Broken(Exception):
    """Ends a pass in the middle."""


def _fails(learner: Learner, inputs: Mapping[str, Tensor]) -> None:
    """A pass that ends inside its last stage."""

    def stop(module: nn.Module, args: Any) -> None:
        raise _Broken

    source = as_backbone(learner.backbone)
    *_, inner = learner.backbone.get_submodule(source.stages[-1]).modules()
    handle = inner.register_forward_pre_hook(stop)
    try:
        outputs_of(learner, inputs)
    except _Broken:
        pass
    finally:
        handle.remove()


def _global_hooks() -> tuple[int, ...]:
    registered = [
        hooks
        for name, hooks in vars(nn.modules.module).items()
        if name.startswith("_global_") and isinstance(hooks, dict)
    ]
    return (*map(len, registered), len(_get_current_function_mode_stack()))
