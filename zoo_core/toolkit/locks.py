"""A lock for what a process has one of, such as a switch of a library. Light.

Re-exported: the rooms below this one hold their own state with it.
"""

from __future__ import annotations

from zoo_core._process.singletons import Lock

__all__ = ["Lock"]
