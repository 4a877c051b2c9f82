"""`python -m zoo_core.cli` is `zoo`, which imports nothing from the working directory; Python puts that first."""

from __future__ import annotations

import sys

if not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/zoo_core/"):
    del sys.path[0]

from zoo_core.cli import main

sys.exit(main())
