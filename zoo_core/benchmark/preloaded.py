"""Imports, once for all workers, what each of them needs. Only the process that workers are forked from imports this.

What is made here stays, so no garbage is looked for meanwhile: it would take a fifth of the time. A worker begins to.
"""

from __future__ import annotations

import atexit
import gc
import os

gc.disable()

# Over a second, which each worker would spend: torch imports it for the mode of data/randomness.py and for optimisers.
import torch._dynamo  # noqa: E402, F401 - not before garbage is left alone

import zoo_core.benchmark.pool  # noqa: E402 - as above
import zoo_core.benchmark.workers  # noqa: E402, F401 - as above

__all__: list[str] = []

# That process has nothing to put in order, and taking its modules down would hold the terminal for another second.
atexit.register(os._exit, 0)
