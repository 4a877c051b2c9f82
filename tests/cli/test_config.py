"""Settings: a flag goes before ZOO_*, that before zoo.toml, that before the user's file, that before the default."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import zoo_core
from zoo_core.cli import main
from zoo_core.cli.config import KEYS, READS, SETTINGS, defaults, effective
from zoo_core.cli.group import COMMANDS, LazyGroup
from zoo_core.errors import UsageError
from zoo_core.registry.settings import OPTIONS, cache_folder, outputs_bytes

Written = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Writes zoo.toml of the working directory, and the user's file."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("ZOO_CONFIG", str(tmp_path / "config.toml"))

    def write(*, project: str | None = None, user: str | None = None) -> None:
        for file, text in ((here / "zoo.toml", project), (tmp_path / "config.toml", user)):
            if text is not None:
                file.write_text(text, encoding="utf-8")

    return write


def run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_each_source_goes_before_the_next(write: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    assert effective()["device"] == ("auto", "default")
    write(user='device = "cpu"\nthreads = 1\n[budget]\nepochs = 5\nclip = 2\n')
    assert effective()["device"].value == "cpu"
    write(project='device = "cuda:1"\n[budget]\nepochs = 6\n')
    assert effective()["device"] == ("cuda:1", "file:zoo.toml")
    assert effective()["threads"].value == 1
    assert effective()["budget.epochs"].value == 6
    assert (effective()["budget.clip"].value, effective()["budget.clip"].origin[:5]) == (2, "file:")
    monkeypatch.setenv("ZOO_DEVICE", "cuda")
    monkeypatch.setenv("ZOO_BUDGET_EPOCHS", "7")
    assert effective()["device"] == ("cuda", "environment:ZOO_DEVICE")
    assert effective()["budget.epochs"] == (7, "environment:ZOO_BUDGET_EPOCHS")


@pytest.mark.slow  # two fits
def test_a_command_takes_what_is_set_and_its_flag_goes_first(
    write: Written, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(project="[budget]\nepochs = 2\nnum_rates = 1\n")
    words = ("fit", "starter/vit-nano", "--task", "digits(shots=2)", "--out")
    assert run(capfd, *words, str(tmp_path / "set"))[0] == 0
    stored = json.loads((tmp_path / "set" / "run.json").read_text(encoding="utf-8"))
    assert (stored["budget"]["epochs"], stored["budget"]["num_rates"]) == (2, 1)
    assert run(capfd, *words, str(tmp_path / "typed"), "--epochs", "1")[0] == 0
    stored = json.loads((tmp_path / "typed" / "run.json").read_text(encoding="utf-8"))
    assert (stored["budget"]["epochs"], stored["budget"]["num_rates"]) == (1, 1)


def test_the_budget_of_a_suite_is_its_own(
    write: Written, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project='runs = "results"\nseeds = 1\n[budget]\nepochs = 2\n')
    file = tmp_path / "small.toml"
    suite = 'tasks = ["digits(shots=2)"]\nbackbones = ["starter/vit-nano"]\nadapters = ["full"]\n'
    file.write_text(f"{suite}[budget]\nnum_rates = 1\n", encoding="utf-8")
    budgets: list[Any] = []

    def watch(suite: Any, folder: Path, **_: Any) -> None:
        budgets.append((suite.budget.epochs, suite.budget.num_rates, suite.seeds, folder))
        raise UsageError("seen")

    monkeypatch.setattr("zoo_core.benchmark.runner.open_grid", watch)
    run(capfd, "bench", str(file))
    run(capfd, "bench", str(file), "--epochs", "3", "--seeds", "2")
    run(capfd, "bench", "--task", "digits", "--backbones", "starter/vit-nano")
    assert budgets == [
        (20, 1, (0, 1, 2), Path("results/small")),
        (3, 1, (0, 1), Path("results/small")),
        (2, 3, (0,), Path("results/bench")),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("devise = 'cpu'\n", "zoo.toml: unknown key 'devise'.*did you mean device"),
        ("[budget]\nepoch = 1\n", r"zoo.toml: \[budget\] has .*found 'epoch'; did you mean epochs"),
        ("[budget]\nepochs = 0\n", "zoo.toml: budget: epochs=0 is out of range; allowed: 1"),
        ("[budget]\nepochs = 2.5\n", "zoo.toml: budget.epochs: found 2.5"),
        ("[budget]\naugment = 'light('\n", r"zoo.toml: budget: augment='light\(' names no"),
        ("budget = 3\n", "budget is a table"),
        ("threads = true\n", "zoo.toml: threads: found True; allowed: a whole number from 1 to 1024"),
        ("threads = 'x'\n", "zoo.toml: threads: found 'x'; allowed: a whole number from 1 to 1024"),
        ("device = 'gpu'\n", "zoo.toml: device: found 'gpu'; allowed: auto, cpu, cuda, cuda:N"),
        ("plugins = {allow = []}\n", "plugins is for the user to say, not for a folder.*ZOO_PLUGINS"),
        ("cache = '/tmp'\n", "cache is for the user to say, not for a folder.*ZOO_CACHE"),
        ("outputs_bytes = 1\n", "outputs_bytes is for the user to say, not for a folder.*ZOO_OUTPUTS_BYTES"),
        ("[names\n", "zoo.toml are not TOML"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_file(
    write: Written, capfd: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    write(project=text)
    for words in (("config",), ("plan", "starter/vit-nano", "--task", "digits")):
        code, out, err = run(capfd, *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert re.search(told, err)
    assert run(capfd, "plan", "--help")[0] == 0, "help works with settings that do not"
    assert run(capfd, "report", "nowhere")[0] == 3, "a command that reads none of them does not mind"


def test_a_variable_that_cannot_be_used_is_named(
    write: Written, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_NUM_WORKERS", "-1")
    code, _, err = run(capfd, "config")
    assert code == 2
    assert "ZOO_NUM_WORKERS: num_workers: found '-1'; allowed: a whole number from 0 to 1024" in err


def test_config_shows_values_and_where_they_come_from(
    write: Written, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project="threads = 2\n", user='[names]\nlora = "zoo-adapters"\n')
    monkeypatch.setenv("ZOO_BUDGET_CLIP", "0.5")
    monkeypatch.setenv("ZOO_DEVISE", "cpu")
    code, out, err = run(capfd, "config", "--show-origin")
    assert code == 0
    lines = out.splitlines()
    assert "file:zoo.toml\tthreads=2" in lines
    assert f"file:{tmp_path / 'config.toml'}\tnames.lora=zoo-adapters" in lines
    assert "environment:ZOO_BUDGET_CLIP\tbudget.clip=0.5" in lines
    assert "environment:ZOO_CACHE\t" in out
    assert "default\tdevice=auto" in lines
    assert "nothing reads ZOO_DEVISE; did you mean ZOO_DEVICE" in err
    code, plain, _ = run(capfd, "config")
    assert plain.splitlines() == [line.partition("\t")[2] for line in lines]
    code, out, _ = run(capfd, "config", "--json")
    found = json.loads(out)
    assert found["threads"] == {"value": 2, "origin": "file:zoo.toml"}
    assert found["plugins.allow"] == {"value": None, "origin": "default"}
    assert set(SETTINGS) < set(found)


def test_cache_of_the_users_file_is_used_where_no_variable_says_otherwise(
    write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(user='cache = "/big/zoo"\n')
    assert cache_folder() != "/big/zoo"
    monkeypatch.delenv("ZOO_CACHE")
    assert cache_folder() == "/big/zoo"


def test_what_outputs_may_take_is_said_by_the_user(
    write: Written, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outputs_bytes() == 10 * 2**30
    assert "default\toutputs_bytes=10737418240" in run(capfd, "config", "--show-origin")[1]
    write(user="outputs_bytes = 50_000\n")
    assert outputs_bytes() == 50_000
    assert f"file:{tmp_path / 'config.toml'}\toutputs_bytes=50000" in run(capfd, "config", "--show-origin")[1]
    monkeypatch.setenv("ZOO_OUTPUTS_BYTES", "0")
    assert outputs_bytes() == 0
    code, out, err = run(capfd, "config", "--show-origin")
    assert (code, err) == (0, "")
    assert "environment:ZOO_OUTPUTS_BYTES\toutputs_bytes=0" in out
    for wrong in ("10GB", "-1", "1.5"):
        monkeypatch.setenv("ZOO_OUTPUTS_BYTES", wrong)
        assert f"ZOO_OUTPUTS_BYTES is a whole number of bytes, 0 for none, found '{wrong}'" in run(capfd, "config")[2]


def test_python_reads_neither_the_folder_nor_options(write: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project="[budget]\nepochs = 2\n", user="[budget]\nepochs = 3\n")
    monkeypatch.setenv("ZOO_BUDGET_EPOCHS", "4")
    assert zoo_core.resolve("starter/vit-nano", task="digits").budget == zoo_core.Budget()
    write(project="nonsense\n")
    zoo_core.resolve("starter/vit-nano", task="digits")


def test_every_key_is_an_option_of_the_commands_that_read_it() -> None:
    group = LazyGroup()
    with click.Context(group) as context:
        for name, parameters in READS.items():
            command = group.get_command(context, name)
            assert command is not None
            assert set(parameters) <= {parameter.name for parameter in command.params}, name
    assert set(READS) < set(COMMANDS)
    assert {KEYS.get(name, name) for names in READS.values() for name in names} == set(SETTINGS) - {"runs"}
    assert set(OPTIONS) == {key for key in SETTINGS if "." not in key}
    assert defaults("report") == {}
