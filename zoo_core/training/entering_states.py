"""Whether a learner may train from the hidden states that enter one of its stages, computed once, and whether it pays.

Nothing is taken on trust: an adapter says which stages it changes, but only values tell whether a state is the same in
training, and whether the features after it are those of a whole pass. So one batch is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from zoo_core.data.loader import Loader
from zoo_core.data.randomness import forked_rng
from zoo_core.model.given_features import inputs_at
from zoo_core.model.learner import Learner
from zoo_core.toolkit.stages import boundary, dummy_inputs

__all__ = ["differ_in_size", "states_refusal"]

TOLERANCE = 1e-4  # of features after a state against those of a whole pass, as a share of the largest value
REPEATS = 3  # of which the fastest counts


def states_refusal(
    learner: Learner, backbone: nn.Module, stage: int, loader: Loader, stored: Callable[[], Loader]
) -> str:
    """Why a learner cannot, or had better not, train from states that enter a stage; empty if it may.

    backbone: the one of whose states it would be, without adapters. stored: gives the loader of states.
    """
    if stage < 1:
        return "no stage before those that train is left to compute once"
    if not learner.reads_states(stage):
        return f"something that stage {stage + 1} begins with trains, or its objective looks at an earlier stage"
    loader = loader.without_beside()  # what teachers are asked for is counted
    batch = next(iter(loader.epoch()))
    mode = learner.training
    try:
        with forked_rng(loader.device, "states"), torch.no_grad():
            differs = _differs(learner, backbone, stage, batch.inputs)
            return differs or _dear(learner, stage, batch.inputs, stored().without_beside())
    except Exception as error:  # noqa: BLE001, whatever a backbone raises when it is entered in its midst
        return f"its backbone cannot be entered at stage {stage + 1}: {str(error).strip().partition(chr(10))[0][:200]}"
    finally:
        learner.train(mode)


def differ_in_size(inputs: Mapping[str, Tensor], dummy: Mapping[str, Tensor]) -> bool:
    """Whether dummy inputs cannot stand for these, such as sounds, of which each example is as long as it is.

    What is computed around the stages takes one example, whose size is that of the backbone's dummy inputs.
    """
    shown = any(x.is_floating_point() for x in inputs.values())
    return shown and any(name not in dummy or dummy[name].shape[1:] != x.shape[1:] for name, x in inputs.items())


def _differs(learner: Learner, backbone: nn.Module, stage: int, inputs: Mapping[str, Tensor]) -> str:
    """What is not the same for one batch; empty if all is."""
    if differ_in_size(inputs, dummy_inputs(backbone, 1)):
        return "its examples differ in size"
    backbone.eval()
    wanted = boundary(backbone, inputs, stage)
    for training in (True, False):
        learner.train(training)
        if not torch.equal(boundary(learner.backbone, inputs, stage), wanted):
            return f"the state that enters stage {stage + 1} is not that of the base"
    whole = learner.features(inputs)
    found = learner.features(inputs_at(stage, wanted, inputs))
    limit = TOLERANCE * float(whole.x.abs().max())
    same = found.kind == whole.kind and found.x.shape == whole.x.shape and (found.mask is None) == (whole.mask is None)
    if not same or not torch.allclose(found.x, whole.x, rtol=TOLERANCE, atol=limit):
        return f"entered at stage {stage + 1} its backbone gives other features than after a whole pass"
    return ""


def _dear(learner: Learner, stage: int, inputs: Mapping[str, Tensor], stored: Loader) -> str:
    """Why reading states does not pay, with what both take; empty if it does."""
    next(iter(stored.epoch()))  # those of the first batch are joined, or read from the disk, once
    reading = _seconds(lambda: next(iter(stored.epoch())), stored)
    computing = _seconds(lambda: boundary(learner.backbone, inputs, stage), stored)
    if reading < computing:
        return ""
    what = f"the states of a batch that enter stage {stage + 1}"
    return f"reading {what} takes {1e3 * reading:.2g} ms, and computing them {1e3 * computing:.2g} ms"


def _seconds(call: Callable[[], object], loader: Loader) -> float:
    least = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        if loader.device.type == "cuda":
            torch.cuda.synchronize(loader.device)
        least = min(least, time.perf_counter() - started)
    return least
