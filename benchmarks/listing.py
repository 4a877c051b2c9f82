"""CPU time of `zoo list`, cold and warm, in this environment and with 1,000 more plugins that carry 5,000 names.

    python benchmarks/listing.py [--runs 15]

User plus system time of the whole process, median over runs; wall time would measure whoever else uses the machine.
Cold: no index in the cache folder; bytecode of zoo_core is there, as after any installation. Exits with 1 when a gate
is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUM_PLUGINS = 1000
NAMES_OF_EACH = 5  # one entry point and four names of its catalogue
GATES_MS = {"here, cold": 150, "here, warm": 80, "1,000 plugins, cold": 300, "1,000 plugins, warm": 120}
LIST = ("-m", "zoo_core.cli", "list")


def main() -> int:
    """Prints the table; 0 if every gate holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="runs of each case, at least 9")
    runs = max(9, parser.parse_args().runs)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        plugins = home / "plugins"
        make_plugins(plugins)
        here, many = environment(home), environment(home, plugins)
        check_counts(here, many)
        floor = cpu_ms(("-c", "pass"), here, runs, cold=False)
        print(f"Python {sys.version.split()[0]}, median of {runs} runs; an empty process takes {floor:.0f} ms\n")
        print(f"{'zoo list':22}{'CPU ms':>8}{'fastest':>9}{'gate':>6}")
        missed = 0
        for name, env in (("here", here), ("1,000 plugins", many)):
            for state in ("cold", "warm"):
                case = f"{name}, {state}"
                times = all_cpu_ms(LIST, env, runs, cold=state == "cold")
                median = statistics.median(times)
                missed += median >= GATES_MS[case]
                verdict = "" if median < GATES_MS[case] else "  missed"
                print(f"{case:22}{median:8.0f}{min(times):9.0f}{GATES_MS[case]:6}{verdict}")
    return 1 if missed else 0


def make_plugins(folder: Path) -> None:
    """Distributions as pip leaves them, each with its metadata, a package and a catalogue; none can be imported."""
    for number in range(NUM_PLUGINS):
        name = f"fake{number:04}"
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: zoo-core>=0.1,<0.2\n"
        (metadata / "METADATA").write_text(f"{head}\n{'Words. ' * 300}\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text(f"[zoo.backbones]\n{name} = {name}.recipes:Fake\n", encoding="utf-8")
        package = folder / name
        package.mkdir()
        (package / "__init__.py").touch()
        facts = {"summary": "a backbone of a plugin that is not there", "modality": "image", "num_stages": 12}
        names = {f"{name}/model{index}": facts for index in range(NAMES_OF_EACH - 1)}
        (package / "catalogue.json").write_text(json.dumps({"backbone": names}), encoding="utf-8")


def environment(home: Path, plugins: Path | None = None) -> dict[str, str]:
    """The user's environment without their settings and caches; writing bytecode is allowed, as it is by default."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZOO_", "XDG_", "PYTHON"))}
    paths = [str(ROOT), *([str(plugins)] if plugins is not None else [])]
    cache = home / ("cache-many" if plugins is not None else "cache-here")
    return kept | {"HOME": str(home), "ZOO_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(paths)}


def check_counts(here: Mapping[str, str], many: Mapping[str, str]) -> None:
    """So that a fast answer is also the right one; this also warms bytecode and the disk cache."""
    counts = []
    for env in (here, many):
        found = subprocess.run([sys.executable, *LIST, "--json"], env=env, cwd=ROOT, capture_output=True, check=True)
        rows = json.loads(found.stdout)
        assert all(row["state"] == "ok" for row in rows if row["name"].startswith("fake"))
        counts.append(len(rows))
    assert counts[1] - counts[0] == NUM_PLUGINS * NAMES_OF_EACH, counts


def cpu_ms(arguments: Sequence[str], env: Mapping[str, str], runs: int, *, cold: bool) -> float:
    """Median of all_cpu_ms."""
    return statistics.median(all_cpu_ms(arguments, env, runs, cold=cold))


def all_cpu_ms(arguments: Sequence[str], env: Mapping[str, str], runs: int, *, cold: bool) -> list[float]:
    """Milliseconds of CPU of each run of `python ARGUMENTS`, after one that does not count."""
    times: list[float] = []
    for _ in range(runs + 1):
        if cold:
            shutil.rmtree(env["ZOO_CACHE"], ignore_errors=True)
        with measured(times):
            subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return times[1:]


@contextmanager
def measured(times: list[float]) -> Iterator[None]:
    """Adds the CPU time that child processes used inside."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    times.append(1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


if __name__ == "__main__":
    sys.exit(main())
