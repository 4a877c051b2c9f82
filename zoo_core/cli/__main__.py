"""`python -m zoo_core.cli` does what `zoo` does.

Python puts the working directory on sys.path. It is removed here before zoo imports anything, unless zoo_core itself
lies there. What Python imports from that directory before this module runs cannot be prevented.
"""

from __future__ import annotations

import sys

if not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/zoo_core/"):
    del sys.path[0]

from zoo_core.cli import main

sys.exit(main())
