"""Imports, once for all workers, what each of them needs. Only the process that workers are forked from imports this.

The first step of any optimiser imports torch._dynamo, which takes a second and a half that each worker would spend.
"""

from __future__ import annotations

import atexit
import os

import torch._dynamo  # noqa: F401 - imported to be there

import zoo_core.benchmark.pool
import zoo_core.benchmark.workers  # noqa: F401

__all__: list[str] = []

# That process has nothing to put in order, and taking its modules down would hold the terminal for another second.
atexit.register(os._exit, 0)
