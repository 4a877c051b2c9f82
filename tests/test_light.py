"""No light command loads what is heavy, and a listing loads next to nothing; each probe is shown to notice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from zoo_core.results.store import Result, append, read

HEAVY = frozenset({"torch", "numpy", "pydantic", "huggingface_hub", "torchvision", "sklearn", "scipy"})
SLOW = frozenset({"click", "rich", "importlib.metadata", "pydantic", "asyncio", "tempfile"})

PROBE = """
import json, sys
{before}
from zoo_core.cli import main
code = main({words!r})
print("MODULES", json.dumps([code, sorted(sys.modules)]))
"""

COMMANDS = [
    ["--help"],
    ["--version"],
    ["list"],
    ["list", "--json"],
    ["list", "backbone", "starter/*"],
    ["list", "--help"],
    ["rank", "--help"],
    ["show", "starter/vit-nano"],
    ["show", "digits", "--json"],
    ["show", "linear"],
    ["config", "--show-origin"],
    ["completion", "zsh"],
    ["doctor"],
    ["doctor", "--json"],
    ["plan", "starter/vit-nano+full", "--task", "digits"],
    ["plan", "starter/vit-nano+partial(n=2)+mlp", "--task", "digits(shots=5)", "--json"],
]


RESULT = Result(
    trial="a+b task=t seed=0",
    digest="d",
    record=None,
    status="ok",
    reason=None,
    metric="accuracy",
    score=0.5,
    split="test",
    num_examples=1,
    chosen=None,
    num_trainable=1,
    num_parameters=1,
    train_seconds=1.0,
    training=None,
    inference=None,
    peak_memory_bytes=1,
    coverage=None,
    versions={},
    device="cpu",
    threads=1,
    created_at="",
    backbone="a",
    adapters="b",
    head="",
    task="t",
    seed=0,
    weights="pretrained",
)


def loaded(words: Sequence[str], before: str = "") -> tuple[int, set[str]]:
    """Exit code of `zoo WORDS` in a fresh process, and the modules it has loaded in the end."""
    code = PROBE.format(words=list(words), before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout.rpartition("MODULES ")[2])
    assert isinstance(code, int)
    return code, set(modules)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_light_command_loads_nothing_heavy(words: list[str]) -> None:
    code, modules = loaded(words)
    assert (code, modules & HEAVY) == (0, set())


@pytest.mark.parametrize("form", ["table", "md", "csv"])
def test_a_report_loads_nothing_heavy(tmp_path: Path, form: str) -> None:
    append(tmp_path / "results.jsonl", RESULT)
    code, modules = loaded(["report", str(tmp_path), "--format", form])
    assert (code, modules & HEAVY) == (0, set())


@pytest.mark.slow
def test_the_main_process_of_a_bench_loads_no_torch(tmp_path: Path) -> None:
    """Its workers do, and what they say of their trials is read here."""
    grid = ["--task", "digits(shots=5)", "--backbones", "starter/convnet-nano", "--adapters", "full", "--epochs", "10"]
    code, modules = loaded(["bench", *grid, "--seeds", "1", "--device", "cpu", "--out", str(tmp_path / "run")])
    (row,) = read(tmp_path / "run" / "results.jsonl")
    assert (code, row.status, modules & {"torch", "numpy"}) == (0, "ok", set())


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["list", "head"]], ids=" ".join)
def test_a_plain_listing_loads_nothing_slow(words: list[str]) -> None:
    loaded(words)  # fills the cache, for which records are read with tomllib
    code, modules = loaded(words)
    assert (code, modules & SLOW) == (0, set())


@pytest.mark.parametrize("name", sorted(HEAVY & {"torch", "numpy"}))
def test_the_probe_notices_a_heavy_module(name: str) -> None:
    """As if a module of the light half imported it."""
    _, modules = loaded(["list"], before=f"import {name}")
    assert name in modules & HEAVY


def test_the_probe_notices_a_slow_module() -> None:
    _, modules = loaded(["list", "--help"])
    assert "click" in modules & SLOW
