"""Freed memory is kept by processes that train, counted in page faults, and given back where it would be measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told")

# Passes of convolutions, as they fill and free memory: the pages that the kernel gave for the last ten.
FAULTS = """
import os, resource
from dataclasses import dataclass
from typing import ClassVar

import torch

def faults(batch_size=16):
    with torch.device("cpu"):
        network = torch.nn.Sequential(*(torch.nn.Conv2d(32, 32, 1) for _ in range(6)))
        x = torch.randn(batch_size, 32, 64, 64)
    with torch.no_grad():
        for step in range(13):
            if step == 3:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            network(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""
SCRIPT = f"""{FAULTS}
import json, sys
from pathlib import Path
from contextlib import nullcontext
from zoo_core._process.malloc import give_back_freed, keep_freed, keeping_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

how, batch_size = sys.argv[1:]
kept = None if how == "leave" else keep_freed()
torch.set_num_threads(1)
with keeping_large_blocks() if how == "pass" else nullcontext():
    found, held = faults(int(batch_size)), resident()
if how != "pass":
    give_back_freed()
print(json.dumps({{"kept": kept, "faults": found, "given_back": held - resident()}}))
"""
COUNTING = f"""{FAULTS}
@dataclass(frozen=True, kw_only=True)
class Counting:
    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[str]] = frozenset({{"added"}})
    learning_rates: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

    def apply(self, learner, context):
        with open(os.environ["COUNTED"], "a") as file:
            print(faults(), file=file)
        backbone = learner.backbone
        backbone.register_parameter("counting", torch.nn.Parameter(torch.zeros(1)))
        last = backbone.get_submodule(backbone.stages[-1])
        last.register_forward_hook(lambda module, given, found: found + backbone.counting)
        return learner
"""
BLOCK = 1 << 23  # bytes of one result
PAGES = BLOCK // os.sysconf("SC_PAGE_SIZE")


def measured(how: str, *, batch_size: int = 16, **environment: str) -> dict[str, int]:
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    words = [sys.executable, "-c", SCRIPT, how, str(batch_size)]
    printed = subprocess.run(words, env={**usual, **environment}, capture_output=True, check=True, text=True).stdout
    found: dict[str, int] = json.loads(printed)
    return found


@pytest.mark.slow
def test_kept_memory_is_mapped_once_and_given_back_when_asked() -> None:
    usual, kept = measured("leave"), measured("keep")
    assert kept["kept"] is True
    if usual["faults"] < 10 * PAGES:
        pytest.skip("glibc gives nothing back here, or the kernel's pages are huge")
    assert kept["faults"] < usual["faults"] / 10
    assert kept["given_back"] >= BLOCK


@pytest.mark.slow
def test_a_pass_keeps_blocks_that_malloc_would_map() -> None:
    usual, kept = measured("keep", batch_size=80), measured("pass", batch_size=80)
    if usual["faults"] < 50 * PAGES:
        pytest.skip("the kernel's pages are huge")
    assert kept["faults"] < usual["faults"] / 10
    assert kept["given_back"] >= 5 * BLOCK


def test_what_the_environment_says_of_malloc_holds() -> None:
    assert measured("keep", MALLOC_TRIM_THRESHOLD_="131072")["kept"] is False


@pytest.mark.slow
def test_a_fit_and_a_worker_keep_freed_memory(tmp_path: Path) -> None:
    """Counted in the process that builds the model, by a plugin file; against what the same passes cost elsewhere."""
    (tmp_path / "counting.py").write_text(COUNTING, encoding="utf-8")
    common = ["--task", "digits(shots=2)", "--epochs", "1", "--num-rates", "1", "--threads", "1"]
    commands = {
        "fit": ["fit", "starter/convnet-nano+counting+linear"],
        "bench": ["bench", "--backbones", "starter/convnet-nano", "--adapters", "counting", "--seeds", "1"],
    }
    usual = measured("leave")["faults"]
    if usual < 10 * PAGES:
        pytest.skip("glibc gives nothing back here, or the kernel's pages are huge")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    for name, words in commands.items():
        counted = tmp_path / f"{name}.txt"
        command = [sys.executable, "-m", "zoo_core.cli", *words, *common, "--plugin", str(tmp_path / "counting.py")]
        environment["COUNTED"] = str(counted)
        subprocess.run([*command, "--out", str(tmp_path / name)], env=environment, capture_output=True, check=True)
        assert min(map(int, counted.read_text().split())) < usual / 10, name
