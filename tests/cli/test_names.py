"""`zoo list`, `zoo show`, `zoo doctor`, and how the command line tells of mistakes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from zoo_core.cli import main
from zoo_core.cli.group import COMMANDS
from zoo_core.registry.catalog import catalog
from zoo_core.registry.registry import registry
from zoo_core.testing.distributions import RECIPES, make_distribution

ENTRY_POINTS = """
    [zoo.backbones]
    space = acme.recipes:Space
    [zoo.adapters]
    mend = acme.recipes:Adapter
    [zoo.heads]
    crown = acme.recipes:Head
    [zoo.tasks]
    chore = acme.recipes:Task
"""
CATALOGUE = {
    "backbone": {"space/nano": {"summary": "a small one", "modality": "image", "num_parameters": 1234}},
    "adapter": {"mend": {"summary": "mends"}},
}


DECLARED = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True, kw_only=True)
class Hat:
    version: ClassVar[int] = 1
    predicts: ClassVar[frozenset[str]] = frozenset({"classes"})
    fit: ClassVar[str] = "gradiant"
    learning_rates: ClassVar[tuple[float, ...]] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

    def build(self, features, target): ...
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sys.path with nothing on it but the standard library, zoo-core 0.1.0 and the fake distribution acme."""
    folder = tmp_path / "site"
    make_distribution(folder, "zoo-core", version="0.1.0", requires=None)
    files = {"acme/__init__.py": "", "acme/recipes.py": RECIPES, "acme/catalogue.json": json.dumps(CATALOGUE)}
    make_distribution(folder, "acme", entry_points=ENTRY_POINTS, files=files)
    standard = [path for path in sys.path if "packages" not in path and Path(path) != Path(__file__).parents[2]]
    monkeypatch.setattr(sys, "path", [str(folder), *(path for path in standard if "plugins" not in path)])
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    modules = dict(sys.modules)
    for cached in (registry, catalog):
        cached.cache_clear()
    yield folder
    for cached in (registry, catalog):
        cached.cache_clear()
    for name in sys.modules.keys() - modules.keys():
        if name.partition(".")[0] in ("acme", "bolt"):
            del sys.modules[name]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `zoo WORDS`."""
    capsys.readouterr()
    code = main(words)
    output = capsys.readouterr()
    return code, output.out, output.err


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_shows_entry_points_and_catalogues(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (
        0,
        ["name", "space", "space/nano", "mend", "crown", "chore"],
    )


def test_list_as_json_has_the_published_schema(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "list", "--json")
    rows = json.loads(out)
    assert {tuple(row) for row in rows} == {("name", "kind", "distribution", "version", "state", "summary")}
    assert rows[1] == {
        "name": "space/nano",
        "kind": "backbone",
        "distribution": "acme",
        "version": "1.0",
        "state": "ok",
        "summary": "a small one",
    }


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["adapter"], ["mend"]),
        (["adapters"], ["mend"]),
        (["space/*"], ["space/nano"]),
        (["nan"], ["space/nano"]),
        (["backbone", "space"], ["space", "space/nano"]),
        (["head", "*o*"], ["crown"]),
        (["task", "nothing"], []),
    ],
)
def test_list_takes_a_kind_and_a_pattern(
    site: Path, capsys: pytest.CaptureFixture[str], words: list[str], names: list[str]
) -> None:
    _, out, _ = run(capsys, "list", *words, "--json")
    assert [row["name"] for row in json.loads(out)] == names


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["mned"], 3, "no name fits 'mned'; did you mean mend or head?; `zoo list` shows what there is"),
        (
            ["adaptr", "x"],
            2,
            "allowed are backbone, adapter, head, task, metric, augmentation, reader, score; did you mean adapter",
        ),
        (["a", "b", "c"], 2, "found 3 words, allowed are a kind and a pattern"),
        (["--jsn"], 2, "No such option"),
    ],
)
def test_list_tells_of_mistakes(
    site: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    found, out, err = run(capsys, "list", *words)
    assert (found, out, told in err) == (code, "", True), err


def test_a_namespace_with_many_names_is_one_line_of_a_whole_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {f"space/n{number}": {"summary": "one"} for number in range(1234)}
    content = json.dumps({"backbone": {**names, "space": {"summary": "all of them"}}})
    files = {"acme/__init__.py": "", "acme/recipes.py": "", "acme/catalogue.json": content}
    make_distribution(tmp_path, "acme", entry_points="[zoo.backbones]\nspace = acme.recipes:Space\n", files=files)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for words in (["list"], ["list", "backbone"]):
        code, out, _ = run(capsys, *words)
        assert (code, len(out.splitlines())) == (0, 2)
        assert "space/..." in out
        assert "1,234 names: zoo list 'space/*'" in out
    assert len(run(capsys, "list", "space/*")[1].splitlines()) == 1 + 1234
    assert len(json.loads(run(capsys, "list", "--json")[1])) == 1 + 1234


def test_list_without_any_plugin_says_what_to_install(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    code, _, err = run(capsys, "list")
    assert (code, "pip install zoo-starter zoo-adapters" in err) == (3, True)


@pytest.mark.parametrize("words", [[], ["--json"], ["adapter"], ["head", "cr*"]])
def test_click_lists_what_the_short_way_lists(site: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    from zoo_core.cli.group import run as run_click

    _, out, _ = run(capsys, "list", *words)
    assert run_click(["list", *words]) == 0
    assert capsys.readouterr().out == out


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_tells_arguments_facts_and_documentation(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "space/nano")
    assert code == 0
    for piece in ("backbone of acme 1.0", "A namespace of backbones.", "depth", "a whole number", "1,234", "weights"):
        assert piece in out


def test_show_as_json_holds_every_argument(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "mend", "--json")
    shown = json.loads(out)
    assert [(row["name"], row["type"], row["default"]) for row in shown["arguments"]] == [
        ("rank", "a whole number", "8"),
        ("scale", "a number", "1.0"),
        ("bias", "true or false", "false"),
        ("where", "one of all, none", "all"),
        ("roles", "[text, ...]", "[attn.q]"),
        ("size", "[a whole number, a whole number] or none", "none"),
        ("path", "a path or none", "none"),
    ]
    assert (shown["state"], shown["recipe"]) == ("ok", "acme.recipes:Adapter")


def test_show_marks_what_must_be_given(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "head:crown")
    assert "width  required  a whole number" in out


def test_show_writes_a_default_that_no_spec_can_hold_as_python_does(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "tsv")
    assert "  separator   '\\t' " in out


def test_show_says_everything_once_and_nothing_that_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "partial")
    assert out.count("Trains the last n stages of the backbone, what follows them, and the head.") == 1
    _, out, _ = run(capsys, "show", "digits")
    assert "  target         kind classes, size 10\n" in out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "space/nano+mend",
            "'space/nano+mend' is a spec, and one name is shown at a time; `zoo plan 'space/nano+mend'",
        ),
        ("mend(rank=4)", "has arguments, and a name is shown with those it may have: `zoo show mend`"),
    ],
)
def test_show_of_more_than_a_name_says_what_shows_it(
    site: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    code, out, err = run(capsys, "show", name)
    assert (code, out, told in err, err.count("\n")) == (2, "", True, 1), err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm/x", "'timm/x' is reserved for zoo-timm, which is not installed: pip install zoo-timm"),
        ("distill", "'distill' is reserved for zoo-distill, which is not installed: pip install zoo-distill"),
    ],
)
def test_a_name_of_a_distribution_that_is_not_there_says_whose_it_is(
    site: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    assert run(capsys, "show", name) == (3, "", f"zoo: {told}\n")


def test_show_of_an_unknown_name_exits_with_3(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "show", "mnd")
    assert (code, out, "did you mean mend?" in err) == (3, "", True)


def test_show_of_a_broken_part_shows_what_is_known(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"bolt/__init__.py": "1/0", "bolt/catalogue.json": '{"head": {"hat": {"summary": "a hat"}}}'}
    make_distribution(site, "bolt", entry_points="[zoo.heads]\nhat = bolt:Hat\n", files=files)
    code, out, err = run(capsys, "show", "hat", "--json")
    assert (code, json.loads(out)["state"], json.loads(out)["summary"]) == (6, "broken", "a hat")
    assert "ZeroDivisionError" in err
    _, out, _ = run(capsys, "list", "hat", "--json")
    assert json.loads(out)[0]["state"] == "broken", "a failure is remembered"


# --- doctor ----------------------------------------------------------------------------------------------------------


def with_metrics(site: Path) -> None:
    """Gives the zoo-core of the folder what the real one has, such as the metric that the plugin's task names."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    lines = [
        line
        for group, points in project["project"]["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (site / "zoo_core-0.1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines))


def test_doctor_finds_nothing_wrong_with_a_good_plugin(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_metrics(site)
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    assert "acme" in out
    assert "zoo-core >=0.1,<0.2" in out


def test_doctor_as_json_holds_every_distribution(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "doctor", "--json")
    found = {row["name"]: row for row in json.loads(out)["distributions"]}
    assert found["acme"]["names"] == [
        *("backbone:space", "backbone:space/nano", "adapter:mend"),
        *("head:crown", "task:chore"),
    ]
    assert found["acme"]["import_seconds"] > 0


def test_doctor_tells_of_everything_and_exits_with_6(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_distribution(site, "bolt", entry_points="[zoo.heads]\nhat = bolt.gone:Hat\n", files={"bolt/__init__.py": ""})
    make_distribution(site, "old", entry_points="[zoo.heads]\ncap = old:Cap\n", requires="zoo-core<0.1")
    make_distribution(site, "notes", entry_points="[zoo.records]\nx = notes\n", files={"notes/models/a.toml": "x ="})
    make_distribution(site, "stray", entry_points="[console_scripts]\nthis line has no value\n")
    (site / "~eft-1.0.dist-info").mkdir()
    code, out, err = run(capsys, "doctor")
    assert code == 6
    for piece in (
        "No module named 'bolt.gone'",
        "pip uninstall bolt",
        "pip install --upgrade zoo-core old",
        "a.toml",
        "stray-1.0.dist-info/entry_points.txt: line 2",
        "~eft-1.0.dist-info",
        "acme",
    ):
        assert piece in out, piece
    assert "problems, each shown above" in err


def test_doctor_checks_what_parts_say_of_themselves(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_distribution(site, "bolt", entry_points="[zoo.heads]\nhat = bolt:Hat\n", files={"bolt/__init__.py": DECLARED})
    code, out, _ = run(capsys, "doctor")
    assert code == 6
    assert "head 'hat' of bolt 1.0 breaks its contract: fit is 'gradiant'; allowed: gradient, closed_form" in out


@pytest.mark.parametrize("more", ["", "[zoo.heads]\ncap = bolt:Hat\n"], ids=["alone", "beside a good one"])
def test_doctor_tells_of_a_group_that_is_none_of_zoos(
    site: Path, capsys: pytest.CaptureFixture[str], more: str
) -> None:
    files = {"bolt/__init__.py": DECLARED.replace("gradiant", "gradient")}
    make_distribution(site, "bolt", entry_points=f"[zoo.head]\nhat = bolt:Hat\n{more}", files=files)
    code, out, _ = run(capsys, "doctor")
    assert code == 6
    (line,) = [line for line in out.splitlines() if "zoo.head]" in line]
    assert "entry_points.txt: zoo reads no group [zoo.head]; did you mean zoo.heads" in line


@pytest.mark.parametrize(
    ("group", "near"),
    [
        ("metric", "zoo.metrics"),
        ("augmentation", "zoo.augmentations"),
        ("reader", "zoo.readers"),
        ("score", "zoo.scores"),
    ],
)
def test_doctor_names_the_nearest_group_and_all_there_are(
    site: Path, capsys: pytest.CaptureFixture[str], group: str, near: str
) -> None:
    make_distribution(site, "bolt", entry_points=f"[zoo.{group}]\nhat = bolt:Hat\n")
    code, out, _ = run(capsys, "doctor")
    assert code == 6
    (line,) = [line for line in out.splitlines() if f"zoo.{group}]" in line]
    assert f"did you mean {near}" in line
    assert line.endswith(
        "there are zoo.backbones, zoo.adapters, zoo.heads, zoo.tasks, zoo.metrics, zoo.augmentations, zoo.readers, "
        "zoo.scores, zoo.records"
    )


def test_doctor_tells_of_files_that_two_readers_read(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = """
        from dataclasses import dataclass
        from typing import ClassVar

        @dataclass(frozen=True, kw_only=True)
        class Toys:
            version: ClassVar[int] = 1
            suffixes: ClassVar[frozenset[str]] = frozenset({".toy"})
            below: ClassVar[frozenset[str]] = frozenset()
            names: ClassVar[frozenset[str]] = frozenset()
            def task(self, path, files): ...
    """
    for name in ("bolt", "nut"):
        make_distribution(
            site, name, entry_points=f"[zoo.readers]\n{name}s = {name}:Toys\n", files={f"{name}.py": reader}
        )
    code, out, _ = run(capsys, "doctor")
    assert code == 6
    assert "files .toy are read by bolts of bolt 1.0 and nuts of nut 1.0, so none is used" in out


def test_doctor_does_not_mind_the_metadata_of_others(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_metrics(site)
    metadata = make_distribution(site, "stray")
    (metadata / "entry_points.txt").write_bytes(b"\xff\xfe")
    code, out, _ = run(capsys, "doctor")
    assert (code, "not zoo's" in out) == (0, True)


def test_doctor_tells_of_a_recipe_module_that_imports_torch(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.modules.pop("torch", None)
    try:
        heavy = "import sys\n    sys.modules['torch'] = sys\n    from dataclasses"
        files = {"bolt/__init__.py": RECIPES.replace("from dataclasses", heavy, 1)}
        make_distribution(site, "bolt", entry_points="[zoo.heads]\nhat = bolt:Head\n", files=files)
        code, out, _ = run(capsys, "doctor")
        assert (code, "imports torch" in out) == (6, True)
    finally:
        sys.modules.pop("torch", None)
        if before is not None:
            sys.modules["torch"] = before


# --- the command line itself -----------------------------------------------------------------------------------------


def test_help_names_every_command_and_imports_none(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert (code, f"Usage: zoo {name}" in out) == (0, True)


def test_an_unknown_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "lst")
    assert (code, err.count("\n"), "did you mean list" in err) == (2, 1, True)


def test_a_spec_error_shows_its_caret(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_metrics(site)
    code, _, err = run(capsys, "plan", "space/nano+mend(rank=", "--task", "chore")
    assert (code, err.rstrip().endswith("^"), err.startswith("zoo: ")) == (2, True, True)


def test_a_mistake_has_a_traceback_only_with_debug(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "show", "nothing")
    assert (code, "Traceback" in err) == (3, False)
    for words in (("show", "nothing", "--debug"), ("--debug", "show", "nothing")):
        debugged, _, shown = run(capsys, *words)
        assert (debugged, shown.startswith("Traceback"), shown.splitlines()[-1]) == (3, True, err.rstrip())


def test_an_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo_core.cli.names.show", stopped)
    code, _, err = run(capsys, "show")
    assert (code, err.strip()) == (130, "zoo: interrupted")


@pytest.mark.parametrize(("command", "told"), [("bench", "the same command runs the rest"), ("fit", "goes on after")])
def test_an_interrupted_command_says_what_it_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    @click.command()
    def stopped() -> None:
        raise KeyboardInterrupt

    module = {"bench": "bench", "fit": "models"}[command]
    monkeypatch.setattr(f"zoo_core.cli.{module}.{command}", stopped)
    code, _, err = run(capsys, command)
    assert (code, told in err, err.strip().count("\n")) == (130, True, 0)


INTERRUPTED_IMPORTS = {
    "as it is": "raise KeyboardInterrupt",
    "as a cause": "try:\n    raise KeyboardInterrupt\nexcept BaseException as e:\n    raise OSError from e",
    "as a context": "try:\n    raise KeyboardInterrupt\nfinally:\n    1 / 0",
}


@pytest.mark.parametrize("source", INTERRUPTED_IMPORTS.values(), ids=INTERRUPTED_IMPORTS)
def test_an_interrupt_while_a_plugin_is_imported_is_not_its_mistake(
    site: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    make_distribution(site, "bolt", entry_points="[zoo.heads]\nhat = bolt:Hat\n", files={"bolt/__init__.py": source})
    code, _, err = run(capsys, "show", "hat")
    assert (code, err.strip()) == (130, "zoo: interrupted")
    _, out, _ = run(capsys, "list", "hat", "--json")
    assert json.loads(out)[0]["state"] == "ok", "nothing is remembered of it"


def test_a_mistake_of_our_own_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def wrong() -> None:
        raise KeyError("oh\nno")

    monkeypatch.setattr("zoo_core.cli.names.show", wrong)
    code, _, err = run(capsys, "show")
    assert (code, err.count("\n"), "--debug" in err) == (1, 1, True)
    code, _, err = run(capsys, "show", "--debug")
    assert (code, "KeyError" in err, err.splitlines()[-1][:9]) == (1, True, "zoo: that")


def test_a_listing_where_torch_is_loaded_freezes_nothing(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What triton's bindings hold, frozen, would be reported as leaked when the interpreter ends."""
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert run(capsys, "list")[0] == 0
    assert frozen == []
    monkeypatch.delitem(sys.modules, "torch")
    assert run(capsys, "list")[0] == 0
    assert frozen == [True]


def test_a_reader_that_goes_away_is_no_mistake() -> None:
    command = f"{sys.executable} -m zoo_core.cli list | true; {sys.executable} -m zoo_core.cli show digits | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_summary_that_the_terminal_cannot_show_is_escaped(site: Path, tmp_path: Path) -> None:
    catalogue = {"head": {"hat": {"summary": "un café"}}}
    files = {"bolt/__init__.py": "", "bolt/catalogue.json": json.dumps(catalogue)}
    make_distribution(site, "bolt", entry_points="[zoo.heads]\nhat = bolt:Hat\n", files=files)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "zoo_core.cli", "list", "hat"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "un caf\\xe9" in done.stdout


def test_show_of_a_name_that_its_namespace_does_not_know_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "show", "timm/resnet81")
    assert code == 3
    assert "resnet18" in err
    assert run(capsys, "show", "timm/anybody/anything")[0] == 0  # a repository: nobody knows before it is asked
