"""`python -m zoo_core.cli` is `zoo`, but for what Python imports from the working directory before we are asked."""

from __future__ import annotations

import sys

if not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/zoo_core/"):
    del sys.path[0]

from zoo_core.cli import main

sys.exit(main())
