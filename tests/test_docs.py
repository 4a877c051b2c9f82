"""What README and docs tell a user to type works as written: every block runs, every link leads somewhere.

A block's language says what it is:
- `sh`: lines that run anywhere.
- `bash`: lines that need the Hub, which here is a server with random weights under the real names.
- `python`: a script, or, if its first line is `# NAME.py`, a file that lies there when the others of its page run.
- `toml`: can be read, and may be such a file too.
- `console`: a command after `$ `, and what it prints.
- none: output, or commands with names of your own, which nothing can run.
The blocks of a page run in its order, in one folder and in this process.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import methods, tasks
from docs import check, generate, picture
from tests.hub_server import HubServer
from zoo_core import errors, list_names, show
from zoo_core.benchmark.grid import load_suite
from zoo_core.cli import main
from zoo_core.registry.catalog import catalog
from zoo_core.registry.registry import registry
from zoo_core.results.store import Result

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LANGUAGES = {"sh", "bash", "python", "toml", "console", ""}


def is_generated(path: Path) -> bool:
    """Whether docs/generate.py writes a file; those that it wrote last may be there or not."""
    return path.is_relative_to(DOCS) and path.relative_to(DOCS).parts[0] in generate.GENERATED


PAGES = [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if not is_generated(path))]
READMES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("plugins/*/README.md"),
    *ROOT.glob("examples/*/README.md"),
    *ROOT.glob("registry/*.md"),
    *ROOT.glob("benchmarks/*.md"),
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. line: of its first line of content, from 1."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file name in the first line, `# name.py`, or None."""
        found = re.match(r"# ([\w.-]+\.(?:py|toml))\n", self.text)
        return found[1] if found else None

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line and not line.startswith("#")]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order. Raises AssertionError for a fence that nothing closes."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    content: list[str] = []
    for number, line in enumerate((text or page.read_text(encoding="utf-8")).splitlines(), start=1):
        fence = re.match(r"\s*(?:```|~~~)\s*(.*)$", line)
        if fence is None:
            content.append(line)
        elif opened is None:
            opened, content = (number + 1, fence[1]), []
        else:
            found.append(Block(page, *opened, "".join(f"{each}\n" for each in content)))
            opened = None
    assert opened is None, f"{page}: a block is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SUITE = "my-suite.toml"


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the commands of this interpreter first on PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **more}


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and a registry that forgets the plugin files of the test."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    registry.cache_clear()
    catalog.cache_clear()
    yield folder
    registry.cache_clear()
    catalog.cache_clear()


def run_line(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and output of a line of a shell block; a lone `zoo` or `python -c` runs in this process."""
    words = shlex.split(line)
    capfd.readouterr()
    if set(shlex.shlex(line, punctuation_chars=True)) & {"|", "||", "&", "&&", ";", ">", ">>", "<"}:
        words = ["sh"]
    if words[0] == "zoo":
        code = main(words[1:])
        return code, "".join(capfd.readouterr())
    if words[:2] == ["python", "-c"]:
        exec(compile(words[2], line, "exec"), {"__name__": "__main__"})
        return 0, ""
    done = run(["sh", "-c", line], Path.cwd())
    return done.returncode, done.stdout + done.stderr


def run_blocks(page: Path, languages: set[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> int:
    """Runs the blocks of a page in its order, beside the files that it holds; how many lines and scripts ran."""
    torch.set_num_threads(1)  # networks this small gain nothing from a second one, and wait for it
    found = blocks_of(page)
    for block in found:
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    ran = 0
    for block in found:
        if block.language not in languages or block.file:
            continue
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # as in an interpreter of a user's
                exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
            ran += 1
            continue
        for line in block.lines:
            code, output = run_line(line, capfd)
            assert code == 0, f"{block}: {line}\n{output}"
            ran += 1
    return ran


# -- what blocks there are --------------------------------------------------------------------------------------------


def test_every_block_has_a_language_that_says_how_it_runs() -> None:
    unknown = [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES]
    assert unknown == []
    assert {block.language for block in BLOCKS} == LANGUAGES


def test_a_misspelt_language_and_an_open_block_are_seen() -> None:
    (block,) = blocks_of(ROOT / "x.md", "```pyhton\nx\n```\n")
    assert block.language not in LANGUAGES
    with pytest.raises(AssertionError, match="not closed"):
        blocks_of(ROOT / "x.md", "```python\nx\n")


def test_no_command_hides_in_an_indented_block() -> None:
    found = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        for line in page.read_text().splitlines()
        if re.match(r" {4,}(zoo|python|pip|make) ", line)
    ]
    assert found == []


def test_every_block_that_can_run_is_run_by_a_test() -> None:
    """A page with `sh` or `python` is in RUN, one with `bash` in HUB; named files are beside them."""
    assert {block.page for block in BLOCKS if block.language == "bash"} == set(HUB)
    assert {block.page for block in BLOCKS if block.language == "sh"} <= set(RUN)
    assert {block.page for block in BLOCKS if block.language == "python" and not block.file} <= set(RUN)


RUN = list(dict.fromkeys(block.page for block in BLOCKS if block.language in ("sh", "python")))
HUB = list(dict.fromkeys(block.page for block in BLOCKS if block.language == "bash"))


def test_every_toml_block_can_be_read() -> None:
    for block in blocks("toml"):
        assert tomllib.loads(block.text), str(block)


def test_every_spec_is_quoted_where_a_shell_would_trip() -> None:
    lines = [line for kind in ("sh", "bash") for block in blocks(kind) for line in block.lines]
    bare = [line for line in lines if re.search(r"(?<!')\b\w[\w/.-]*\(", line) and not line.startswith("python -c")]
    assert [line for line in bare if not re.search(r"'[^']*\([^']*'", line)] == []


def test_the_commands_of_the_readmes_table_are_among_those_that_run() -> None:
    told = re.findall(r"^\| [^|`]+ \| `(zoo .*)` \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(told) == 7
    assert set(told) <= {line for block in blocks("sh") for line in block.lines}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


# -- what runs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_as_written(page: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_blocks(page, {"sh", "python"}, here, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("page", HUB, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_need_the_hub_run_as_written(
    page: Path,
    here: Path,
    hub_server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With weights drawn at random under the real names."""
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
    monkeypatch.setenv("HF_TOKEN", hub_server.token("me", read=("*/*",), write=("me/*",)))
    assert run_blocks(page, {"bash"}, here, capfd) > 5
    weights = [request for request in hub_server.requests(method="GET") if request.path.endswith("model.safetensors")]
    assert len({request.path for request in weights}) == 2
    assert len([request for request in weights if request.origin == "cdn"]) == 2  # each came once


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_a_command_prints_what_the_page_shows(block: Block, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command, _, shown = block.text.partition("\n")
    code, output = run_line(command.removeprefix("$ "), capfd)
    assert output == shown
    assert code > 1, "a page of errors"


def test_the_suite_of_the_docs_is_what_its_page_plans(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (suite,) = (block for block in blocks("toml") if block.file == SUITE)
    (here / SUITE).write_text(suite.text, encoding="utf-8")
    code, output = run_line(f"zoo plan {SUITE}", capfd)
    assert (code, "30 trials" in output) == (0, True), output


# -- plugins ----------------------------------------------------------------------------------------------------------

ENTRY_POINTS = """
[zoo.adapters]
surgical = zoo_surgical:Surgical
shift = zoo_shift:Shift
calm = zoo_calm:Calm
echo = zoo_echo:Echo
[zoo.backbones]
tiny = zoo_mean:Tiny
packed = zoo_packed:Packed
[zoo.heads]
cosine = zoo_cosine:Cosine
[zoo.tasks]
stripes = zoo_stripes:Stripes
[zoo.metrics]
within = zoo_small:Within
[zoo.augmentations]
shift-right = zoo_small:Shift
[zoo.readers]
toy-files = zoo_small:ToyFiles
[zoo.scores]
nearest-mean = zoo_small:Nearest
"""
RECIPES = re.findall(r"^([\w-]+) = (\w+):", ENTRY_POINTS, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds the plugins of the docs as if they were installed."""
    folder = tmp_path_factory.mktemp("plugins")
    for block in blocks("python"):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    metadata = folder / "zoo_docs-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-docs\nVersion: 0.1\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return folder


def test_every_plugin_of_the_docs_is_installed_here(plugin_folder: Path) -> None:
    recipes = {path.stem for path in plugin_folder.glob("zoo_*.py") if "frozen=True, kw_only=True" in path.read_text()}
    assert recipes == {module for _, module in RECIPES}


def test_the_plugins_are_described_like_any_other(plugin_folder: Path, tmp_path: Path) -> None:
    code = "import sys; from zoo_core.cli import main; sys.exit(max(main(['show', name]) for name in sys.argv[1:]))"
    names = [name for name, _ in RECIPES]
    done = run([sys.executable, "-c", code, *names], tmp_path, PYTHONPATH=str(plugin_folder))
    assert done.returncode == 0, done.stderr
    assert all(f"{name}  " in done.stdout or name in done.stdout for name in names)


@pytest.mark.slow
def test_the_plugins_run_together_in_a_bench(plugin_folder: Path, tmp_path: Path) -> None:
    command = [
        *("zoo", "bench", "--task", "stripes(shots=5)", "--backbones", "tiny(weights=random)"),
        *("--adapters", "probe,surgical(n=1),full+calm", "--heads", "linear,cosine"),
        *("--seeds", "1", "--epochs", "2", "--num-rates", "1", "--out", "run"),
    ]
    done = run(command, tmp_path, PYTHONPATH=str(plugin_folder))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.jsonl").read_text().count('"status":"ok"') == 6


def test_without_its_package_a_name_of_the_docs_is_unknown(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, output = run_line("zoo show surgical", capfd)
    assert code == 3
    assert "surgical" in output


# -- links and figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*READMES, *PAGES[1:]], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    missing = [link for link in links_of(page) if not leads_somewhere(page, link)]
    assert missing == []


def links_of(page: Path) -> list[str]:
    """The relative links of a page, without their anchors, outside its blocks."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [
        link for link in re.findall(r"\]\(([^)#\s]+)", prose) if "://" not in link and not link.startswith("mailto:")
    ]


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a file is there, or docs/generate.py writes it. Pages of docs link to nothing outside it."""
    path = (page.parent / link).resolve()
    if is_generated(path):
        names = {*generate.own_names("adapter"), *generate.own_names("head"), "index"}
        return path == DOCS / "catalogue.md" or path.stem in names
    return path.exists() and (not page.is_relative_to(DOCS) or path.is_relative_to(DOCS))


def test_a_link_to_nothing_is_seen() -> None:
    assert not leads_somewhere(DOCS / "index.md", "nothing.md")
    assert not leads_somewhere(DOCS / "index.md", "../README.md"), "the site has no such page"
    assert not leads_somewhere(DOCS / "index.md", "methods/lorra.md")
    assert leads_somewhere(DOCS / "index.md", "methods/lora.md")
    assert leads_somewhere(ROOT / "README.md", "docs/index.md")


def test_the_pages_count_the_names_of_timm() -> None:
    names = [row["name"] for row in list_names("backbone", "timm/*")]
    told = [page for page in PAGES if f"{len(names):,}" in page.read_text(encoding="utf-8")]
    assert set(told) == {ROOT / "README.md", DOCS / "how-to" / "weights.md"}


def test_the_page_of_measurements_shows_what_the_benchmark_of_methods_prints() -> None:
    page = (DOCS / "measured.md").read_text(encoding="utf-8")
    tables = methods.summary().strip().replace("+-", "\N{PLUS-MINUS SIGN}").split("\n\n")
    assert len(tables) == 2
    for table in tables:
        assert table.count("\n") > 15
        assert table in page


def test_the_page_of_measurements_shows_what_the_benchmark_of_real_sets_prints() -> None:
    printed = tasks.summary().strip().replace("+-", "\N{PLUS-MINUS SIGN}")
    assert printed.count("\n") > 5
    assert printed in (DOCS / "measured.md").read_text(encoding="utf-8")


def test_the_picture_shows_what_is_stored() -> None:
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.drawn()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "suites").glob("*.toml")), ids=lambda path: path.stem)
def test_every_suite_of_the_benchmarks_can_be_read(path: Path) -> None:
    suite = load_suite(path)
    assert suite.name == path.stem
    assert len(suite.seeds) >= 3


def test_the_page_of_results_names_every_field() -> None:
    told = re.findall(r"`(\w+)`", (DOCS / "results.md").read_text(encoding="utf-8"))
    assert {field.name for field in fields(Result)} <= set(told)


def test_the_page_of_errors_has_each_with_its_exit_code() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    told = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, flags=re.MULTILINE)}
    classes = [getattr(errors, name) for name in errors.__all__ if name[0].isupper()]
    assert told == {each.__name__: each.exit_code for each in classes}


# -- the pages that are generated, and the look at the site -----------------------------------------------------------


def test_a_docstring_is_taken_apart_by_its_conventions() -> None:
    found = generate.read_documentation(
        "Adds a * b.\n\nA [r, I].\nr: rank. alpha, beta: two\nnumbers. more: r: 2 is fine.\n"
        "At the start it does nothing.\n"
        'Source: Somebody 2021, "A\ntitle", equation 3.',
        ["r", "alpha", "beta", "more", "unsaid"],
    )
    assert found.summary == "Adds a * b."
    assert found.body == ["A [r, I]."]
    assert found.arguments == {"r": "rank.", "alpha": "two numbers.", "beta": "two numbers.", "more": "r: 2 is fine."}
    assert found.after == ["At the start it does nothing."]
    assert found.source == 'Somebody 2021, "A title", equation 3.'


def test_nothing_of_a_docstring_is_lost_or_read_as_markdown() -> None:
    for kind in ("adapter", "head"):
        for name in generate.own_names(kind):
            shown = show(f"{kind}:{name}")
            found = generate.read_documentation(shown["documentation"], [a["name"] for a in shown["arguments"]])
            words = " ".join([found.summary, *found.body, *found.arguments.values(), *found.after, found.source])
            lost = set(shown["documentation"].split()) - set(words.split())
            names = {word for a in shown["arguments"] for word in (f"{a['name']}:", f"{a['name']},")}
            assert lost <= {*names, "Source:"}, f"{name}: {lost}"
    assert generate.plain("a * b, `c * d`, [e]_f") == r"a \* b, `c * d`, \[e\]\_f"


def test_the_page_of_a_method_is_made_of_what_it_says_of_itself() -> None:
    page = generate.method_page("adapter", "ssf", generate.measured_rows())
    for told in (
        "# `ssf`",
        r"gamma \* y + beta",
        "| `init` | `identity` | one of identity, paper |",
        "205,824 parameters",
        "It folds into plain weights.",
        "a convolutional network (features: map) | works",
        "| `digits(shots=10)` | `starter/vit-nano`, pretrained | `ssf+linear` | 97.2",
        "Lian et al. 2022",
    ):
        assert told in page


def test_a_refusal_is_told_as_the_product_tells_it() -> None:
    shown = show("adapter:prompt")
    page = generate.refusals("adapter", "prompt", shown["arguments"])
    assert "adapter prompt works on tokens and starter/convnet-nano gives map" in page
    assert "`prompt(length=-1): allowed: 1 or more; probe trains the head alone`" in page


def test_every_name_has_a_row_in_the_catalogue() -> None:
    page = generate.catalogue()
    assert "| `timm` | zoo-timm | 3,197 |" in page
    for row in list_names():
        if row["kind"] != "backbone" or row["distribution"] == "zoo-registry":
            assert f"`{row['name']}`" in page


@pytest.mark.parametrize(("link", "code"), [("[x](b.md)", 0), ("[x](c.md)", 1), ("[x](b.md#nowhere)", 1)])
def test_the_strict_build_fails_on_a_broken_link(tmp_path: Path, link: str, code: int) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A\n\n{link}\n")
    (tmp_path / "docs" / "b.md").write_text("# B\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\ntheme:\n  font: false\n")
    done = run(["zensical", "build", "--strict"], tmp_path)
    assert done.returncode == code, done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of two pages without a fault."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text('<h1 id="top">x</h1><a href="..">back</a>')
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "index.html").write_text(
        '<a href="other/#top">x</a><img src="a.svg"><a href="https://example.org/">out</a>'
    )
    return tmp_path


def test_a_good_site_has_no_faults(site: Path) -> None:
    assert check.faults_of(site) == []
    assert check.main(str(site)) == 0


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ('<a href="missing/">x</a>', "missing/ leads to no file"),
        ('<a href="other/#bottom">x</a>', "other/#bottom leads to no anchor"),
        ('<a href="#here">x</a>', "#here leads to no anchor"),
        ('<img src="b.svg">', "b.svg leads to no file"),
        ('<script src="https://example.org/x.js"></script>', "loads https://example.org/x.js from elsewhere"),
        ('<pre class="mermaid">a --> b</pre>', "an element of class mermaid loads a library from elsewhere"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "loads //example.org/x.css from elsewhere"),
    ],
)
def test_a_fault_of_the_site_is_seen(site: Path, added: str, told: str) -> None:
    index = site / "index.html"
    index.write_text(index.read_text() + added)
    (fault,) = check.faults_of(site)
    assert told in fault
    assert check.main(str(site)) == 1


def test_an_empty_site_is_a_fault(tmp_path: Path) -> None:
    assert check.faults_of(tmp_path) == [f"{tmp_path} holds no page"]


def test_the_pages_of_the_navigation_are_those_that_there_are() -> None:
    told = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    there = {str(page.relative_to(DOCS)) for page in PAGES[1:]} | {"catalogue.md"}
    assert told == there
