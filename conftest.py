"""What every test of the repository stands on, whichever distribution it belongs to.

No test sees the user's settings or caches, uses more than two threads, or draws numbers from a seed it did not set.
It lies here, not in tests/, so that `pytest plugins/zoo-starter` has it too. It imports nothing heavy: torch is
configured only where a test has brought it in.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("zoo", deadline=None)  # how busy a machine is fails no test
settings.load_profile("zoo")

SCRUBBED = ("ZOO_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TORCH_HOME", "TRANSFORMERS_", "XDG_")
# Two processors are what continuous integration has: two threads, or two workers (`-n 2`) of one. What depends on the
# number of threads shows up on every machine.
SHORT_SECONDS = {"MIN_WINDOW_SECONDS": 0.01, "INFERENCE_SECONDS": 0.02}  # of zoo_core.training.timing
_WHOLE_SECONDS: dict[str, float] = {}  # what a user's run takes, which the marker `rates` asks for
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
SEED = 0


def isolated_environment(environment: dict[str, str], home: Path) -> dict[str, str]:
    """`environment` without the user's settings, and with every cache under `home`."""
    kept = {name: value for name, value in environment.items() if not name.startswith(SCRUBBED)}
    return kept | {
        "HOME": str(home),
        "USERPROFILE": str(home),  # what Path.home() reads on Windows
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "ZOO_CACHE": str(home / ".cache" / "zoo"),
        "HF_HOME": str(home / ".cache" / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",  # the tests of downloads have a Hub of their own
        "TORCH_HOME": str(home / ".cache" / "torch"),
        "OMP_NUM_THREADS": str(NUM_THREADS),
        "NO_COLOR": "1",  # expected output is compared as text
        "COLUMNS": "120",
    }


def pytest_configure() -> None:
    """Ctrl-C interrupts here and in child processes, also where a shell that runs this in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def isolation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home folder of this run of pytest, which child processes inherit.

    Set once for the session: the index of plugins, say, is then built once and not for each test. A test that needs a
    cache of its own sets ZOO_CACHE with monkeypatch.
    """
    home = tmp_path_factory.mktemp("home")
    before = dict(os.environ)
    after = isolated_environment(before, home)
    os.environ.clear()
    os.environ.update(after)
    yield home
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test imported from a temporary folder is gone after it; the next test has an `acme` of its own."""
    before = set(sys.modules)
    yield
    temporary = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(temporary):
            del sys.modules[name]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What holds before the fixtures of a module too: the number of threads, and how long rates are measured.

    Sums in another order end in other bits. A rate that nobody looks at takes a tenth of a second in place of one.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(NUM_THREADS)
    if timing := sys.modules.get("zoo_core.training.timing"):
        for name, short in SHORT_SECONDS.items():
            whole = _WHOLE_SECONDS.setdefault(name, getattr(timing, name))
            setattr(timing, name, whole if item.get_closest_marker("rates") else short)


@pytest.fixture(autouse=True)
def _no_server_left() -> Iterator[None]:
    """The server that a bench forks workers from ends with the test: it keeps the environment that it began with."""
    yield
    forkserver = sys.modules.get("multiprocessing.forkserver")
    if forkserver is not None:
        forkserver._forkserver._stop()  # does nothing where none runs


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Fixed seeds, for the libraries that this process has imported so far."""
    random.seed(SEED)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)
