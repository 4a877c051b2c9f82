"""`zoo rank`: its table, its JSON, what it tells before it begins, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, told

TASK = ("--task", "digits(limit=60)", "--device", "cpu")
ALL = ("rank", *TASK, "--backbones", "starter/*nano,starter/vit-nano(until=1)")
KEYS = {
    *("schema", "task", "target", "num_examples", "num_outputs", "seed", "by", "scores", "rows", "left_out", "bench"),
}
ROW_KEYS = {
    *("place", "name", "status", "reason", "scores", "unscored", "num_parameters", "feature_dim", "licence"),
    *("size_place", "num_made", "seconds"),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_the_table_has_scores_intervals_and_the_order_by_size(zoo_here: Run) -> None:
    code, out, err = zoo_here(*ALL)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "digits(limit=60): 60 training examples, 10 classes"
    assert lines[1].split() == ["backbone", "knn", "ridge", "logme", "parameters", "by", "size"]
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
    assert lines[2].split()[2].startswith("~")
    assert "ordered by knn, with 95 % intervals" in lines[5]
    assert lines[-1] == "by size alone starter/convnet-nano would come first"
    assert err[0].startswith("left out: starter/mlp-nano: ")
    assert err[1] == "3 backbones to compare"
    assert err[2].startswith("[1/3] starter/convnet-nano: 60 examples in ")


def test_the_json_has_a_stable_schema_and_a_second_call_reads_what_was_stored(zoo_here: Run) -> None:
    first, second = (_json(zoo_here(*ALL, "--json")) for _ in range(2))
    assert set(first) == KEYS
    assert first["schema"] == 1
    for row in first["rows"]:
        assert set(row) == ROW_KEYS
        assert set(row["scores"]) == {"knn", "ridge", "logme"}
        assert all(set(score) == {"value", "low", "high", "is_apart"} for score in row["scores"].values())
    assert [row["num_made"] for row in first["rows"]] == [60] * 3
    assert [row["num_made"] for row in second["rows"]] == [0] * 3
    assert [row["scores"] for row in first["rows"]] == [row["scores"] for row in second["rows"]]
    assert first["left_out"][0]["name"] == "starter/mlp-nano"


def _json(shown: tuple[int, str, list[str]]) -> dict[str, Any]:
    assert shown[0] == 0, shown
    return json.loads(shown[1])  # type: ignore[no-any-return]


def test_a_backbone_that_fails_is_told_below_the_table_and_in_the_exit_code(
    zoo_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo_core.model.build import build_backbone as build
    from zoo_core.selection import pooled

    def broken(plan: Any) -> Any:
        if plan.until is not None:
            raise RuntimeError("no kernel")
        return build(plan)

    monkeypatch.setattr(pooled, "build_backbone", broken)
    code, out, _ = zoo_here(*ALL)
    assert code == 1
    assert "failed: starter/vit-nano(until=1): RuntimeError: no kernel" in out
    assert "1  starter/" in out


def test_downloads_are_told_before_anything_is_fetched(zoo_here: Run, tmp_path: Path) -> None:
    sizes = {"config.json": 1_000, "model.safetensors": 46_799_000}
    part = {
        "distribution": "zoo-timm",
        "version": "0.1.0",
        "repository": "timm/resnet18.a1_in1k",
        "revision": "a" * 40,
        "files": {name: {"sha256": "b" * 64, "size": size} for name, size in sizes.items()},
    }
    lock = {"format": 1, "parts": {"backbone:timm/resnet18.a1_in1k": part}}
    (tmp_path / "zoo.lock").write_text(json.dumps(lock), encoding="utf-8")
    words = ("--backbones", "timm/resnet18.a1_in1k,starter/vit-nano")
    before = ["2 backbones to compare", "46.8 MB to download", "  backbone:timm/resnet18.a1_in1k  46.8 MB"]
    assert zoo_here("rank", *TASK, *words, "--dry-run") == (0, "", before)
    planned = _json(zoo_here("rank", *TASK, *words, "--dry-run", "--json"))
    assert planned["downloads"] == {"backbone:timm/resnet18.a1_in1k": 46_799_000}
    assert planned["candidates"] == ["timm/resnet18.a1_in1k", "starter/vit-nano"]
    code, out, err = zoo_here("rank", *TASK, *words)  # which fails, as tests have no network
    assert err[:3] == before
    assert code == 1
    assert "failed: timm/resnet18.a1_in1k: timm/resnet18.a1_in1k at aaaaaaaaaaaa" in out


def test_then_bench_goes_on_with_the_first(zoo_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo_core.benchmark import runner

    ran: list[str] = []

    def run_grid(grid: Any, folder: Path, **given: Any) -> list[Any]:
        assert given["trial_time_limit"] == 90
        ran.extend(sorted({f"{plan.spec} {plan.seed}" for plan in grid.plans}))
        assert folder == tmp_path / "runs" / "on"
        assert all(plan.budget.halving for plan in grid.plans)
        return []

    monkeypatch.setattr(runner, "run_grid", run_grid)
    limit = ("--trial-time-limit", "1.5m")
    found = _json(zoo_here(*ALL, "--json", "--then", "bench", "--out", tmp_path / "runs" / "on", *limit))
    first = [row["name"] for row in found["rows"][:2]]
    assert found["bench"] == []
    assert ran == sorted(f"{name}+linear {seed}" for name in first for seed in range(3))


def test_a_score_of_a_plugin_file_is_computed_and_orders(zoo_here: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Width:\n"
        "    scale: float = 1.0\n    version: ClassVar[int] = 1\n"
        '    targets: ClassVar[frozenset[str]] = frozenset({"classes"})\n\n'
        "    def judge(self, features, truth, target):\n"
        "        return features.new_tensor(self.scale * features.shape[1])\n",
        encoding="utf-8",
    )
    words = ("--plugin", tmp_path / "mine.py", "--scores", "knn,width(scale=2)", "--by", "width(scale=2.0)", "--json")
    found = _json(zoo_here(*ALL, *words))
    values = [row["scores"]["width(scale=2.0)"]["value"] for row in found["rows"]]
    assert values == sorted(values, reverse=True)
    assert values[0] == 256


@pytest.mark.parametrize(
    ("words", "code", "reasons"),
    [
        (("--backbones", "starter/vit-nan"), 3, ("did you mean",)),
        (("--backbones", "starter/vit-nano", "--scores", "knm"), 3, ("knm", "did you mean knn")),
        (("--backbones", "starter/vit-nano", "--time-limit", "soon"), 2, ("'soon' is no time", "s, m, h")),
        (("--backbones", "starter/vit-nano", "--max-parameters", "0"), 2, ("'0' is no count",)),
        (("--backbones", "starter/vit-nano", "--out", "x"), 2, ("add --then bench",)),
        (("--backbones", "starter/vit-nano", "--trial-time-limit", "9"), 2, ("of a bench; add --then bench",)),
        (("--backbones", "starter/vit-nano+norm"), 2, ("more than a backbone", "zoo bench")),
        (
            ("--backbones", "starter/vit-nano", "--max-parameters", "1k"),
            6,
            ("448,632 parameters; allowed: up to 1,000",),
        ),
        (("--backbones", "starter/vit-nano", "--frozen", "--examples", "3"), 2, ("allowed: 20 or more",)),
    ],
)
def test_a_mistake_is_one_line(zoo_here: Run, words: tuple[str, ...], code: int, reasons: tuple[str, ...]) -> None:
    shown = zoo_here("rank", *TASK, *words)
    told((shown[0], shown[1], shown[2][-1:]), code, *reasons)
    assert len(shown[2]) == (2 if "--frozen" in words else 1)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("1.5m", 90.0), ("2h", 7200.0)])
def test_a_time_has_a_unit(text: str, seconds: float) -> None:
    from zoo_core.cli.options import DURATION

    assert DURATION.convert(text, None, None) == seconds
