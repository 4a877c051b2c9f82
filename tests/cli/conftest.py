"""What the tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo_core.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Fitted models for each kind of target."""
    base = tmp_path_factory.mktemp("models")
    specs = {
        "classes": ("starter/convnet-nano+probe+ncm", "digits(shots=3)"),
        "multilabel": ("starter/convnet-nano", "digits-attributes(limit=30)"),
        "regression": ("starter/mlp-nano(weights=random)+full", "diabetes"),
    }
    for name, (spec, task) in specs.items():
        words = ("--task", task, "--out", str(base / name), "--epochs", "1", "--num-rates", "1", "--device", "cpu")
        assert main(["fit", spec, *words]) == 0
    return {name: base / name for name in specs}
