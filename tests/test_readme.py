"""What the README tells a user to type works as written: its shell and Python blocks, its plugins, its links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import zoo_core
from tests.hub_server import HubServer
from zoo_core import list_names
from zoo_core.benchmark.grid import load_suite

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the commands of this interpreter first on PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **more}


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


def named(block: str) -> str | None:
    """The file name in a block's first line, `# name.py`, or None."""
    found = re.match(r"# ([\w.-]+\.(?:py|toml))\n", block)
    return found[1] if found else None


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds the README's plugins as if they were installed."""
    folder = tmp_path_factory.mktemp("plugins")
    for block in blocks("python"):
        if name := named(block):
            (folder / name).write_text(block, encoding="utf-8")
    metadata = folder / "zoo_readme-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-readme\nVersion: 0.1\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(
        "[zoo.adapters]\nsurgical = zoo_surgical:Surgical\n"
        "[zoo.backbones]\ntiny = zoo_mean:Tiny\n"
        "[zoo.tasks]\nstripes = zoo_stripes:Stripes\n",
        encoding="utf-8",
    )
    return folder


def test_the_adapter_works_from_its_file_alone(plugin_folder: Path, tmp_path: Path) -> None:
    spec = ["starter/vit-nano+surgical(n=2)", "--task", "digits", "--plugin", str(plugin_folder / "zoo_surgical.py")]
    planned = run(["zoo", "plan", *spec], tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "surgical (adapter, zoo_surgical.py unpublished)" in planned.stdout


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links
    assert missing == []


def test_the_readme_counts_the_names_of_timm() -> None:
    names = [row["name"] for row in list_names("backbone", "timm/*")]
    assert f"{len(names):,} of timm" in README


def test_the_readme_shows_what_the_benchmark_of_methods_prints() -> None:
    printed = run([sys.executable, "benchmarks/methods.py", "--summary"], ROOT).stdout
    assert printed.count("\n") > 30
    for table in printed.strip().replace("+-", "\N{PLUS-MINUS SIGN}").split("\n\n"):
        assert table in README


def test_the_readme_shows_what_the_benchmark_of_real_sets_prints() -> None:
    printed = run([sys.executable, "benchmarks/tasks.py", "--summary"], ROOT).stdout
    assert printed.count("\n") > 5
    assert printed.strip().replace("+-", "\N{PLUS-MINUS SIGN}") in README


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "suites").glob("*.toml")), ids=lambda path: path.stem)
def test_every_suite_of_the_benchmarks_can_be_read(path: Path) -> None:
    suite = load_suite(path)
    assert suite.name == path.stem
    assert len(suite.seeds) == 3


@pytest.mark.slow
def test_the_readmes_counts_of_what_adapters_train_are_right() -> None:
    rows = re.findall(r"^\| (`.*?) \| .* \| ([\d,]+(?: and [\d,]+)?)(?: with pfeiffer)? \|", README, flags=re.MULTILINE)
    counted = 0
    for names, numbers in rows:
        adapters = re.findall(r"`(.*?)`", names)
        for adapter, number in zip(adapters, numbers.split(" and "), strict=True):
            learner = zoo_core.load(f"timm/vit_base_patch16_224(weights=random)+{adapter}", num_classes=2)
            trained = [parameter for name, parameter in learner.trainable() if name.startswith("backbone.")]
            assert f"{sum(parameter.numel() for parameter in trained):,}" == number, adapter
            counted += 1
    assert counted == 12


def test_every_flag_in_the_readme_is_quoted_where_a_shell_would_trip() -> None:
    lines = [line for kind in ("sh", "bash") for block in blocks(kind) for line in block.splitlines()]
    bare = [line for line in lines if re.search(r"(?<!')\b\w[\w/.-]*\(", line) and not line.startswith("python -c")]
    assert [line for line in bare if not re.search(r"'[^']*\([^']*'", line)] == []


@pytest.mark.slow
def test_shell_commands_run_as_written(tmp_path: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 10
    for line in lines:
        done = run(["sh", "-c", line], tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_readmes_suite_can_be_planned(tmp_path: Path) -> None:
    (suite,) = (block for block in blocks("toml") if named(block) == "my-suite.toml")
    (tmp_path / "my-suite.toml").write_text(suite, encoding="utf-8")
    done = run(["zoo", "plan", "my-suite.toml"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "30 trials" in done.stdout


@pytest.mark.slow
def test_commands_that_need_the_hub_run_as_written(hub_server: HubServer, tmp_path: Path) -> None:
    """With weights drawn at random under the real names; blocks of `bash` share one folder."""
    import timm
    from transformers import BertConfig, BertModel

    pictures, texts = tmp_path / "pictures", tmp_path / "texts"
    pictures.mkdir()
    save_file(timm.create_model("mobilenetv3_small_050.lamb_in1k").state_dict(), pictures / "model.safetensors")
    sizes: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "vocab_size": 7}
    BertModel(BertConfig(**sizes)).save_pretrained(texts)
    (texts / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    hub_server.add("timm/mobilenetv3_small_050.lamb_in1k", pictures)
    hub_server.add("sentence-transformers/all-MiniLM-L6-v2", texts)
    token = hub_server.token("me", read=("*/*",), write=("me/*",))
    lines = [line for block in blocks("bash") for line in block.splitlines() if line]
    assert len(lines) > 5
    (tmp_path / "here").mkdir()
    for line in lines:
        done = run(["sh", "-c", line], tmp_path / "here", HF_TOKEN=token)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    weights = [request for request in hub_server.requests(method="GET") if request.path.endswith("model.safetensors")]
    assert len({request.path for request in weights}) == 2
    assert len([request for request in weights if request.origin == "cdn"]) == 2  # each came once


@pytest.mark.slow
def test_python_blocks_run_as_written(tmp_path: Path) -> None:
    scripts = [block for block in blocks("python") if named(block) is None]
    assert len(scripts) >= 3
    for script in scripts:
        done = run([sys.executable, "-c", script], tmp_path)
        assert done.returncode == 0, f"{script}\n{done.stderr}"


def test_the_readmes_plugins_are_described_like_any_other(plugin_folder: Path, tmp_path: Path) -> None:
    for name in ("surgical", "tiny", "stripes"):
        done = run(["zoo", "show", name], tmp_path, PYTHONPATH=str(plugin_folder))
        assert done.returncode == 0, done.stderr
        assert name in done.stdout


@pytest.mark.slow
def test_the_readmes_plugins_run_together_in_a_bench(plugin_folder: Path, tmp_path: Path) -> None:
    command = [
        *("zoo", "bench", "--task", "stripes(shots=5)", "--backbones", "tiny(weights=random)"),
        *("--adapters", "probe,surgical(n=1)", "--seeds", "1", "--epochs", "2", "--out", "run"),
    ]
    done = run(command, tmp_path, PYTHONPATH=str(plugin_folder))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.jsonl").read_text().count('"status":"ok"') == 2


def test_without_its_package_a_name_of_the_readme_is_unknown(tmp_path: Path) -> None:
    done = run(["zoo", "show", "surgical"], tmp_path)
    assert done.returncode == 3
    assert "surgical" in done.stderr
