"""The store of decoded pictures: its version rises whenever the same file would give other pixels."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo_core.toolkit import pictures
from zoo_core.toolkit.pictures import open_picture
from zoo_tasks import task_data
from zoo_tasks.folders import ImageFolder

ODD = Path(__file__).parent / "odd_pictures.json"  # files of every mode, in base64, so that no encoder has a say
# What those files decoded to, by version. Who changes pixels raises PIXELS in zoo_tasks/task_data.py and adds a line:
# stores that were written before are then not read any more. No line is ever changed.
DECODED: Mapping[int, str] = {
    1: "0138bacbffdb4096fa9632e518a64720",
}


def digest(folder: Path) -> str:
    """128 bits of the sizes and pixels of all odd pictures."""
    found = hashlib.sha256()
    for name, text in sorted(json.loads(ODD.read_text()).items()):
        (folder / name).write_bytes(base64.b64decode(text))
        read = open_picture(folder / name)
        found.update(f"{name} {read.dtype} {read.shape}".encode() + np.ascontiguousarray(read).tobytes())
    return found.hexdigest()[:32]


def test_other_pixels_need_another_version(tmp_path: Path) -> None:
    assert max(DECODED) == task_data.PIXELS
    assert digest(tmp_path) == DECODED[task_data.PIXELS], (
        "files decode to other pixels than before: raise PIXELS in zoo_tasks/task_data.py, and enter its digest here"
    )
    assert len(set(DECODED.values())) == len(DECODED)


@pytest.mark.parametrize("change", ["turned no more", "16 bits cut off", "print in grey"])
def test_the_digest_sees_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    own = pictures.pixels

    def other(picture: Any, **options: Any) -> Any:
        if change == "turned no more":
            monkeypatch.setattr(pictures, "_upright", lambda picture: picture)
        elif change == "16 bits cut off" and picture.mode.startswith("I;16"):
            return (np.asarray(picture) >> 8).astype(np.uint8)
        elif change == "print in grey" and picture.mode == "CMYK":
            return np.asarray(picture.convert("L"))
        return own(picture, **options)

    monkeypatch.setattr(pictures, "pixels", other)
    assert digest(tmp_path) != DECODED[task_data.PIXELS]


def test_a_raised_version_decodes_anew(two_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ImageFolder(path=str(two_classes)).open(None).splits["train"]
    with monkeypatch.context() as patch:
        patch.setattr(task_data, "PIXELS", task_data.PIXELS + 1)
        patch.setattr(task_data, "open_picture", lambda file: 255 - np.asarray(Image.open(file)))
        after = ImageFolder(path=str(two_classes)).open(None).splits["train"]
    assert np.array_equal(after.raw(0), 255 - before.raw(0))


AT_ONCE = """
import os, sys
from pathlib import Path
from zoo_core.registry.readers import task_part
from zoo_core.registry.registry import registry

bound = registry().bind(task_part(sys.argv[1]), "task")
bound.recipe.source(), bound.recipe.target
import zoo_tasks.rows, zoo_tasks.matrices, zoo_tasks.media, datasets.arrow_writer  # so that all begin together
children = []
for _ in range(8):
    if child := os.fork():
        children.append(child)
    else:
        while not Path(sys.argv[2]).exists():
            pass
        try:
            data = bound.recipe.open(None)
            found = [str(data.splits[name].raw(0)) for name in data.splits]
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
Path(sys.argv[2]).touch()
sys.exit(sum(bool(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "matrix", "pictures in npz", "pictures", "texts"])
def test_eight_processes_may_be_the_first_to_read_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_classes: Path, kind: str
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cold"))
    noise, y = np.random.default_rng(0), np.arange(60) % 2
    path = tmp_path / {"table": "t.csv", "texts": "t.jsonl"}.get(kind, "t.npz")
    if kind == "table":
        rows = [f"{a},{b},{label}" for (a, b), label in zip(noise.normal(size=(60, 2)), y, strict=True)]
        path.write_text("\n".join(["a,b,label", *rows]))
    elif kind == "texts":
        rows = [json.dumps({"text": f"the number {i} is written here", "label": "ab"[i % 2]}) for i in range(60)]
        path.write_text("\n".join(rows))
    elif kind == "matrix":
        np.savez(path, x=noise.normal(size=(60, 3)), y=y)
    else:
        np.savez(path, x=noise.integers(0, 256, (60, 8, 8), dtype=np.uint8), y=y)
    chosen = two_classes if kind == "pictures" else path
    command = [sys.executable, "-c", AT_ONCE, str(chosen), str(tmp_path / "go")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    left = [file for file in (tmp_path / "cold").rglob("*") if re.fullmatch(r".+\.[0-9a-f]{8}", file.name)]
    assert not left
