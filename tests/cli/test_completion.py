"""Completion by click's own protocol, as a shell asks: in a process of its own, through environment variables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from zoo_core.cli.group import COMMANDS
from zoo_core.registry.index import load_index

ZOO = Path(sys.executable).with_name("zoo")


def asked(words: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    """What bash is told at a TAB after the last of the words."""
    environment = {
        "COMP_WORDS": "\n".join(["zoo", *words]),
        "COMP_CWORD": str(len(words)),
        "_ZOO_COMPLETE": "bash_complete",
    }
    return subprocess.run(
        [str(ZOO)], env={**os.environ, **environment, **more}, text=True, capture_output=True, check=False
    )


def completed(*words: str) -> list[str]:
    done = asked(words)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.partition(",") for line in done.stdout.splitlines() if line]  # click ends no rows too
    assert {kind for kind, _, _ in rows} <= {"plain"}
    return [value for _, _, value in rows]


def test_commands_and_options_are_completed() -> None:
    assert completed("") == list(COMMANDS)
    assert completed("pre") == ["predict"]
    assert completed("fit", "--ba") == ["--batch-size"]
    assert completed("bench", "--format", "c") == ["csv"]


def test_names_are_completed_from_the_index() -> None:
    names = [provider.name for provider in load_index().providers if provider.name.startswith("timm/vit_t")]
    assert len(names) > 5
    assert completed("show", "timm/vit_t") == names
    assert completed("list", "adap") == ["adapter"]


def test_a_completion_of_thousands_of_names_imports_nothing_heavy() -> None:
    done = asked(["show", "timm/vit_t"], PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert imported & {"torch", "numpy", "pydantic", "huggingface_hub", "timm", "zoo_timm", "rich"} == set()


@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        (("fit", "starter/vit"), ["starter/vit-nano"], ["lora"]),
        (("fit", "starter/vit-nano+lo"), ["starter/vit-nano+lora"], ["lora"]),
        (("plan", "starter/vit-nano+lora(r=4)+li"), ["starter/vit-nano+lora(r=4)+linear"], []),
        (("fit", "starter/vit-nano", "--task", "digi"), ["digits", "digits-attributes"], ["linear"]),
        (("bench", "--adapters", "probe,full+lp"), ["probe,full+lp-ft"], []),
        (("bench", "--adapters", "probe,lin"), [], ["probe,linear"]),
        (("bench", "--heads", "linear,n"), ["linear,ncm"], ["linear,norm"]),
        (("bench", "--backbones", "starter/vit-nano,starter/c"), ["starter/vit-nano,starter/convnet-nano"], []),
        (("lock", "resnet18", "resnet5"), ["resnet50"], []),
        (("fit", ""), ["run", "timm/"], ["timm/resnet18", "lora"]),
    ],
)
def test_a_spec_is_completed_part_by_part(words: Sequence[str], some: list[str], none: list[str]) -> None:
    found = completed(*words)
    assert set(some) <= set(found)
    assert not set(none) & set(found)


def test_arguments_of_a_part_are_left_alone_and_a_path_is_the_shells() -> None:
    assert completed("plan", "starter/vit-nano+partial(n") == []
    for words in (("plan", "./my-su"), ("fit", "starter/vit-nano", "--task", "/data/fl")):
        assert asked(words).stdout == f"file,{words[-1]}\n"


def test_a_tab_says_nothing_where_there_is_nothing_to_say(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("nonsense = 1\n", encoding="utf-8")
    done = asked(["show", "lo"], ZOO_CONFIG=str(broken))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    assert asked(["nonsense", "lo"]).stderr == ""


def test_a_tab_runs_no_plugin_file(tmp_path: Path) -> None:
    file = tmp_path / "idea.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    done = asked(["list", "--plugin", str(file), "ad"])
    assert "plain,adapter" in done.stdout
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_zoo(shell: str) -> None:
    done = subprocess.run([str(ZOO), "completion", shell], text=True, capture_output=True, check=True)
    assert f"_ZOO_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself_completes_a_name() -> None:
    script = """
eval "$(zoo completion bash)"
COMP_WORDS=(zoo show starter/v) COMP_CWORD=2
_zoo_completion zoo
echo "${COMPREPLY[@]}"
complete -p zoo
"""
    path = f"{ZOO.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env={**os.environ, "PATH": path}, text=True, capture_output=True, check=False
    )
    assert done.stdout.splitlines()[0] == "starter/vit-nano", done.stderr
    assert "_zoo_completion zoo" in done.stdout
