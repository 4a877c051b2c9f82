"""An adapter that keeps every promise, and others that each break one; on a toy with batch norms."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo_core.contracts import Change, Context, Kind, Learner, Source, Weights
from zoo_core.errors import RefusedError

if TYPE_CHECKING:
    from torch import nn


ADDED: frozenset[Change] = frozenset({"added"})


def _changes() -> Any:
    """The modules, which need torch."""
    return importlib.import_module("zoo_crooked.changes")  # no path that a type checker knows leads there


@dataclass(frozen=True, kw_only=True)
class Toy:
    """ToyBackbone with a map; its weights count as pre-trained."""

    version: ClassVar[int] = 1

    def source(self) -> Source | None:
        return None

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        import torch

        from zoo_core.testing.toys import ToyBackbone

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return ToyBackbone("map")


@dataclass(frozen=True, kw_only=True)
class Straight:
    """Scales and shifts the outputs of each convolution: y * scale + shift, with ones and zeros at the start."""

    version: ClassVar[int] = 1
    accepts: ClassVar[frozenset[Kind]] = frozenset({"map"})
    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"conv"}),)
    changes: ClassVar[frozenset[Change]] = ADDED
    mergeable: ClassVar[bool] = False  # a convolution of the toy has no bias to fold a shift into
    learning_rates: ClassVar[tuple[float, ...]] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    change: ClassVar[str] = "Affine"  # the class in changes.py

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_core.toolkit.sites import attach, sites_for

        for site in sites_for(learner.backbone, self.needs):
            owner = learner.backbone.get_submodule(site.path)
            attach(learner.backbone, site, getattr(_changes(), self.change)(owner), "straight")
        return learner


@dataclass(frozen=True, kw_only=True)
class NoBfloat16(Straight):
    """Mixes types that torch does not mix."""

    change: ClassVar[str] = "NoBfloat16"


@dataclass(frozen=True, kw_only=True)
class Busy(Straight):
    """Adds another hook at each pass."""

    change: ClassVar[str] = "Busy"


@dataclass(frozen=True, kw_only=True)
class Cached(Straight):
    """Keeps the values that it had at its first pass in evaluation mode."""

    change: ClassVar[str] = "Cached"


@dataclass(frozen=True, kw_only=True)
class Closed(Straight):
    """Its hook is a closure, which a deep copy shares with the original."""

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_core.toolkit.sites import sites_for

        for site in sites_for(learner.backbone, self.needs):
            owner = learner.backbone.get_submodule(site.path)
            change = _changes().Affine(owner)
            owner.add_module("straight", change)
            owner.register_forward_hook(lambda module, args, y, change=change: change(args[0], y))
        return learner


@dataclass(frozen=True, kw_only=True)
class Counting(Straight):
    """Its outputs depend on how often it was called."""

    change: ClassVar[str] = "Counting"


@dataclass(frozen=True, kw_only=True)
class Deaf(Straight):
    """The product of two values that both start at zero."""

    change: ClassVar[str] = "Deaf"


@dataclass(frozen=True, kw_only=True)
class Drawn(Straight):
    """Draws a value from numpy's global generator."""

    change: ClassVar[str] = "Drawn"


@dataclass(frozen=True, kw_only=True)
class Early(Straight):
    """Changes the outputs before the first step."""

    change: ClassVar[str] = "Early"


@dataclass(frozen=True, kw_only=True)
class Declared(Early):
    """Changes the outputs before the first step, and says so."""

    exact_at_start: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Eager(Straight):
    """Looks at values while it runs."""

    change: ClassVar[str] = "Eager"


@dataclass(frozen=True, kw_only=True)
class Hoarding(Straight):
    """Keeps every learner that it was applied to."""

    def apply(self, learner: Learner, context: Context) -> Learner:
        _changes().HOARD.append(learner)
        return Straight.apply(self, learner, context)


@dataclass(frozen=True, kw_only=True)
class Copying(Straight):
    """Keeps a copy of the weight beside it."""

    change: ClassVar[str] = "Copying"


@dataclass(frozen=True, kw_only=True)
class Late(Straight):
    """Says that it begins at the last stage."""

    def first_stage(self, num_stages: int) -> int:
        return num_stages - 1


@dataclass(frozen=True, kw_only=True)
class Lenient(Straight):
    """Takes of a delta what fits."""

    def apply(self, learner: Learner, context: Context) -> Learner:
        adapted = Straight.apply(self, learner, context)
        adapted.__class__ = _changes().LenientLearner
        return adapted


@dataclass(frozen=True, kw_only=True)
class Misfolded(Straight):
    """Folds its scale in single precision."""

    mergeable: ClassVar[bool] = True
    change: ClassVar[str] = "Misfolded"


@dataclass(frozen=True, kw_only=True)
class Moving(Straight):
    """Moves the frozen weight a little while it trains."""

    change: ClassVar[str] = "Moving"


@dataclass(frozen=True, kw_only=True)
class Noisy(Straight):
    """Drops values in evaluation mode too."""

    change: ClassVar[str] = "Noisy"


@dataclass(frozen=True, kw_only=True)
class Refusing(Straight):
    """Makes no sense on any backbone."""

    def apply(self, learner: Learner, context: Context) -> Learner:
        raise RefusedError("the toy has nothing to refuse with")


@dataclass(frozen=True, kw_only=True)
class Remembering(Straight):
    """Learns something that is in no tensor of its state."""

    change: ClassVar[str] = "Remembering"


@dataclass(frozen=True, kw_only=True)
class Understated(Straight):
    """Says that it opens the base, and adds."""

    changes: ClassVar[frozenset[Change]] = frozenset({"base"})


@dataclass(frozen=True, kw_only=True)
class Unfolded(Straight):
    """Says that it folds into weights, and does not."""

    mergeable: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Vain(Straight):
    """Scales the features themselves, as any linear head can."""

    def apply(self, learner: Learner, context: Context) -> Learner:
        backbone: Any = learner.backbone
        backbone.norm.add_module("straight", _changes().Affine(backbone.stem))
        backbone.norm.register_forward_hook(lambda module, args, y: module.straight(args[0], y))
        return learner


@dataclass(frozen=True, kw_only=True)
class Wakeful(Straight):
    """Puts all of the learner into training mode."""

    def apply(self, learner: Learner, context: Context) -> Learner:
        adapted = Straight.apply(self, learner, context)
        adapted.__class__ = _changes().WakefulLearner
        return adapted
