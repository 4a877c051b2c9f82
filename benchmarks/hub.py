"""What verified downloads cost and catch, against a Hub on this machine.

    python benchmarks/hub.py [--positions 1000] [--runs 9]

Three figures: a load whose files were verified before, against one without any check (a file of 100 MB, pairs in
turn); the downloads of eight processes that ask for it at once; and bytes flipped on the way and in the cache at random
positions of a small file, each of which must be found and downloaded once more. Exits with 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the Hub of the tests

from tests.hub_server import Flip, HubServer  # noqa: E402 -- after the line above

REPO = "org/name"
GATE_MS = 20.0
SIZE = 100_000_000
SMALL = 4096
PROCESSES = 8


def main() -> int:
    """Prints the figures; 0 if every gate holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, HubServer() as server:
        home = Path(name)
        # the client reads its addresses when it is imported, which is below
        os.environ.update(
            server.environment(home / "hf") | {"ZOO_CACHE": str(home / "zoo"), "HF_HUB_VERBOSITY": "error"}
        )
        missed = [
            hashing_once(server, arguments.runs),
            at_once(server, home),
            flipped(server, arguments.positions),
        ]
    return int(any(missed))


def took_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def hashing_once(server: HubServer, runs: int) -> bool:
    """A load of 100 MB that was verified before, against the reading alone of a path that is known."""
    from zoo_core.contracts import Source
    from zoo_core.files.fetch import folder, pin

    server.add(REPO, {"model.safetensors": random.Random(0).randbytes(SIZE)})
    found = pin(Source(repository=REPO, weights=("model.safetensors",)))
    names = list(found.files)
    path = Path()

    def verify() -> None:
        nonlocal path
        path = folder(found, names) / "model.safetensors"

    first = took_ms(verify)
    path.touch()
    hashed = took_ms(verify)
    time.sleep(0.1)  # a file that changed a moment ago is not remembered
    took_ms(verify)
    pairs = [
        (took_ms(verify) + took_ms(lambda: path.read_bytes()), took_ms(lambda: path.read_bytes())) for _ in range(runs)
    ]
    verified, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
    extra = statistics.median(took_ms(verify) for _ in range(runs))
    print(f"a file of {SIZE / 1e6:.0f} MB: downloaded and verified {first:.0f} ms, hashed {hashed:.0f} ms")
    print(
        f"loaded again: verified {verified:.1f} ms, unverified {plain:.1f} ms (medians of {runs} pairs); "
        f"the check alone {extra:.2f} ms (gate {GATE_MS:.0f})"
    )
    return bool(max(verified - plain, extra) >= GATE_MS)


def at_once(server: HubServer, home: Path) -> bool:
    """Eight processes with one empty cache."""
    program = (
        "import sys\n"
        "from zoo_core.contracts import Source\n"
        "from zoo_core.files.fetch import folder, pin\n"
        f"found = pin(Source(repository={REPO!r}, weights=('model.safetensors',)))\n"
        "folder(found, list(found.files))\n"
    )
    environment = os.environ | server.environment(home / "shared") | {"ZOO_CACHE": str(home / "shared-zoo")}
    environment["PYTHONPATH"] = str(ROOT)
    server.clear_log()
    started = time.perf_counter()
    processes = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(PROCESSES)]
    codes = [process.wait() for process in processes]
    downloads = len(server.requests(origin="cdn", method="GET"))
    print(
        f"{PROCESSES} processes at once: {downloads} GET of the file, {codes.count(0)} have it, "
        f"{time.perf_counter() - started:.1f} s"
    )
    return downloads != 1 or any(codes)


def flipped(server: HubServer, positions: int) -> bool:
    """One bit of a byte flipped on the way, then one in the cache, at each position."""
    from zoo_core.contracts import Source
    from zoo_core.files.fetch import folder, pin

    content = random.Random(1).randbytes(SMALL)
    server.add("org/small", {"model.safetensors": content})
    found = pin(Source(repository="org/small", weights=("model.safetensors",)))
    names = list(found.files)
    draw = random.Random(2)
    num_found = {"on the way": 0, "in the cache": 0}
    for _ in range(positions):
        place, bit = draw.randrange(SMALL), 1 << draw.randrange(8)
        rule = server.fault(Flip(at=place), "*/org/small/*", origin="cdn", times=1)
        server.clear_log()
        path = folder(found, names) / "model.safetensors"
        asked = len(server.requests(origin="cdn"))
        num_found["on the way"] += path.read_bytes() == content and asked == 2 and rule.fired == 1
        server.clear_faults()
        damaged = bytearray(content)
        damaged[place] ^= bit
        path.write_bytes(damaged)  # as in a cache whose disk forgets; the time it was changed is that of this moment
        server.clear_log()
        path = folder(found, names) / "model.safetensors"
        asked = len(server.requests(origin="cdn"))
        num_found["in the cache"] += path.read_bytes() == content and asked == 1
        path.resolve().unlink()  # so that the next one is downloaded again
        path.unlink()
    for where, count in num_found.items():
        print(f"bytes flipped {where}: {count} of {positions} found, downloaded once more, never given out")
    return any(count != positions for count in num_found.values())


if __name__ == "__main__":
    sys.exit(main())
