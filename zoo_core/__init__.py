"""zoo turns a name into a transfer-learning model and measures which combination is best for a task.

Light at import: torch is loaded by the first call that builds or trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo_core.contracts import Batch, Target
from zoo_core.errors import ZooError
from zoo_core.registry import list_names, show
from zoo_core.resolve import Budget, Plan, Trial, resolve
from zoo_core.spec import Spec, parse
from zoo_core.store import Result

if TYPE_CHECKING:
    from zoo_core.api import bench, evaluate, fit, load, load_backbone, load_run, predict

__all__ = [
    "Batch",
    "Budget",
    "Plan",
    "Result",
    "Spec",
    "Target",
    "Trial",
    "ZooError",
    "bench",
    "evaluate",
    "fit",
    "list_names",
    "load",
    "load_backbone",
    "load_run",
    "parse",
    "predict",
    "resolve",
    "show",
]

__version__ = "0.1.0"

_HEAVY = frozenset({"bench", "evaluate", "fit", "load", "load_backbone", "load_run", "predict"})


def __getattr__(name: str) -> Any:
    """The calls that need torch, from zoo_core.api."""
    if name not in _HEAVY:
        raise AttributeError(f"module 'zoo_core' has no attribute {name!r}")
    from zoo_core import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
