"""zoo turns a name into a transfer-learning model and measures which combination is best for a task.

Importing zoo_core is fast. Each public name is loaded when it is first used, and the first call that builds or trains a
model imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_core.api import (
        bench,
        distill,
        embed,
        evaluate,
        export,
        fetch,
        fit,
        load,
        load_backbone,
        load_run,
        load_runs,
        predict,
        rank,
        save,
    )
    from zoo_core.contracts import Batch, Target
    from zoo_core.errors import ZooError
    from zoo_core.plan.plan import Budget, Plan, Trial
    from zoo_core.plan.resolve import resolve
    from zoo_core.registry.local_plugins import add_plugin
    from zoo_core.registry.registry import list_names, show
    from zoo_core.registry.trust import trusting
    from zoo_core.results.store import Result
    from zoo_core.spec.parser import Spec, parse

__all__ = [
    "Batch",
    "Budget",
    "Plan",
    "Result",
    "Spec",
    "Target",
    "Trial",
    "ZooError",
    "add_plugin",
    "bench",
    "distill",
    "embed",
    "evaluate",
    "export",
    "fetch",
    "fit",
    "list_names",
    "load",
    "load_backbone",
    "load_run",
    "load_runs",
    "parse",
    "predict",
    "rank",
    "resolve",
    "save",
    "show",
    "trusting",
]

__version__ = "0.1.0"

_MODULES = {
    **dict.fromkeys(("bench", "distill", "embed", "evaluate", "export", "fetch", "fit"), "api"),
    **dict.fromkeys(("load", "load_backbone", "load_run", "load_runs", "predict", "rank", "save"), "api"),
    **dict.fromkeys(("Batch", "Target"), "contracts"),
    "ZooError": "errors",
    **dict.fromkeys(("list_names", "show"), "registry.registry"),
    **dict.fromkeys(("Budget", "Plan", "Trial"), "plan.plan"),
    **dict.fromkeys(("Spec", "parse"), "spec.parser"),
    "Result": "results.store",
    "add_plugin": "registry.local_plugins",
    "resolve": "plan.resolve",
    "trusting": "registry.trust",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'zoo_core' has no attribute {name!r}")
    return getattr(import_module(f"zoo_core.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
