"""A path where a task is expected: when a text is one, and which recipe reads what lies there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from zoo_core.cli.health import check_up
from zoo_core.errors import AmbiguousError, NotFoundError, PluginError, UsageError
from zoo_core.plan.resolve import resolve
from zoo_core.registry.index import Index, read_folders
from zoo_core.registry.local_plugins import add_plugin
from zoo_core.registry.readers import is_path, task_part
from zoo_core.registry.registry import Registry
from zoo_core.testing.distributions import index_of, make_distribution


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_a_folder_never_hides_a_task_of_its_name(here: Path) -> None:
    touch(here, "digits/a/1.png", "data/a/1.png", "reviews.csv")
    assert not is_path("digits")
    assert is_path("./digits")
    assert is_path("data/a")
    assert is_path("reviews.csv")
    assert not is_path("reviews.tsv")  # a name with a dot, of a file that is not there
    assert not is_path('csv(path="data/reviews.csv")')
    assert str(task_part("digits(shots=5)")) == "digits(shots=5)"


@pytest.mark.parametrize(
    ("files", "path", "part"),
    [
        (("a/1.JPG", "b/2.png", "notes.txt"), ".", "image-folder(path=.)"),
        (("train/a/1.jpg",), "./train", 'image-folder(path="./train")'),
        (("x/1.wav", "x/2.wav", "y/cover.png"), ".", "audio-folder(path=.)"),
        (("x/1.FLAC", "x/2.mp3", "y/3.ogg"), ".", "audio-folder(path=.)"),
        (("train.tsv", "dev.tsv", "SOURCE.txt"), ".", "tsv(path=.)"),
        (("table.csv", "pictures/1.png", "pictures/2.png"), ".", "csv(path=.)"),
        (("t.parquet",), "./t.parquet", 'parquet(path="./t.parquet")'),
        (("t.ndjson",), "./t.ndjson", 'jsonl(path="./t.ndjson")'),
        (("train.npz", "test.npz"), ".", "npz(path=.)"),
        (("train.txt", "valid.txt", "test.txt"), ".", "conll(path=.)"),
        (("ner.conll",), "./ner.conll", 'conll(path="./ner.conll")'),
    ],
)
def test_what_lies_there_decides_the_recipe(here: Path, files: tuple[str, ...], path: str, part: str) -> None:
    touch(here, *files)
    assert str(task_part(path)) == part


@pytest.mark.parametrize(
    ("files", "path", "line"),
    [
        ((), ".", ". is an empty folder; a task needs files"),
        (("notes.txt",), ".", "holds no file whose suffix tells how to read it; read are .aif, .aiff, .bio, .bmp"),
        (("a.xlsx",), "./a.xlsx", "write the recipe, as 'NAME(path=\"./a.xlsx\")': `zoo list task`"),
    ],
)
def test_what_cannot_be_read_is_told(here: Path, files: tuple[str, ...], path: str, line: str) -> None:
    touch(here, *files)
    with pytest.raises(UsageError, match=r"^[^\n]*$") as error:
        task_part(path)
    assert line in str(error.value)


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match=r"no file or folder \./gone"):
        task_part("./gone")


def test_without_the_plugin_the_error_says_what_to_install(here: Path) -> None:
    touch(here, "a/1.png", "b/1.png")
    make_distribution(here / "site", "acme")
    with pytest.raises(
        NotFoundError, match=r"no plugin that is installed reads paths: pip install zoo-tasks; \. was to be read"
    ):
        resolve("x", task=".", registry=Registry(index_of(here / "site")))


def test_what_was_inferred_of_a_path_is_told_on_standard_error(zoo: Any) -> None:
    from PIL import Image

    for number in range(10):
        for label in ("dark", "light"):
            path = zoo.cwd / "set" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), number if label == "dark" else 255 - number).save(path)
    done = zoo("plan", "starter/convnet-nano+probe", "--task", "./set", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["plans"][0]["target"]["names"] == ["dark", "light"]
    assert done.err.splitlines()[0] == ("./set is read as 'image-folder(path=\"./set\")': image, 2 classes, accuracy")
    assert "20 pictures of 2 classes" in done.err

    done = zoo("data", "set", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["task"] == 'image-folder(path="./set")'
    assert found["splits"] == {"train": 12, "val": 4, "test": 4}
    shown = zoo("data", "./set").out
    assert "proposed: train 12, val 4, test 4" in shown
    assert found["split_digest"] in shown

    (zoo.cwd / "set" / "dark" / "1.png").write_bytes(b"")
    done = zoo("data", "./set")
    assert done.code == 2
    assert "a fit would stop\n  1 of 20 pictures cannot be read: dark/1.png (has no bytes)" in done.out

    done = zoo("plan", "starter/convnet-nano+probe", "--task", "set")
    assert done.code == 3
    assert done.line.endswith("; what is here under that name is written ./set")

    (zoo.cwd / "semi.csv").write_text("age;side\n1;low\n2;high\n")
    assert 'separator=";" may be what parts its cells' in zoo("data", "./semi.csv").line

    done = zoo("data", "digits")
    assert (done.code, done.line) == (
        2,
        "zoo: digits does not read files of yours; `zoo show digits` tells of it",
    )


# --- readers of other plugins ----------------------------------------------------------------------------------------

TOY = """
    from __future__ import annotations
    from dataclasses import dataclass
    from typing import ClassVar

    @dataclass(frozen=True, kw_only=True)
    class Toys:
        '''A .toy file whose name begins with a letter, or a folder of them.'''
        version: ClassVar[int] = 1
        suffixes: ClassVar[frozenset[str]] = frozenset({".toy", ".csv"})
        below: ClassVar[frozenset[str]] = frozenset()
        names: ClassVar[frozenset[str]] = frozenset()
        def task(self, path, files):
            if path.name == "bad.toy":
                raise KeyError("toy")
            if path.name == "odd.toy":
                return "a+b"
            return f"toys(num={len(files)})" if files[0][0].isalpha() else None

    @dataclass(frozen=True, kw_only=True)
    class Loud:
        version: ClassVar[int] = 1
        suffixes: ClassVar[frozenset[str]] = frozenset({".TOY"})
        below: ClassVar[frozenset[str]] = frozenset()
        names: ClassVar[frozenset[str]] = frozenset()
        def task(self, path, files): ...
"""


@pytest.fixture
def registry_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A registry of what is installed and of the plugin acme, whose settings give names to owners."""
    make_distribution(
        here / "site",
        "acme",
        entry_points="[zoo.readers]\ntoys = acme_toys:Toys\nloud = acme_toys:Loud\n",
        files={"acme_toys.py": TOY},
    )
    monkeypatch.syspath_prepend(here / "site")

    def read(**owners: str) -> Registry:
        named = {name.replace("__", ":."): owner for name, owner in owners.items()}
        return Registry(Index(read_folders(list(dict.fromkeys(sys.path))), owners=named))

    return read


def test_a_reader_of_a_plugin_says_what_a_file_or_folder_is(here: Path, registry_with: Any) -> None:
    touch(here, "a.toy", "set/b.toy", "set/c.toy", "set/d.parquet", "9.toy")
    known = registry_with()
    assert str(task_part("a.toy", known)) == "toys(num=1,path=a.toy)"
    assert str(task_part("./set", known)) == 'toys(num=2,path="./set")'
    with pytest.raises(UsageError, match=r"9.toy: nothing tells how to read a file .toy; read are .*\.toy"):
        task_part("9.toy", known)
    assert not is_path("a.toy"), "without the plugin it is a name"


def test_two_readers_of_one_suffix_are_both_told_and_the_settings_decide(here: Path, registry_with: Any) -> None:
    touch(here, "a.csv", "set/a.csv")
    for path in ("a.csv", "./set"):
        with pytest.raises(AmbiguousError) as caught:
            task_part(path, registry_with())
        assert "files .csv are read by tables of zoo-tasks" in str(caught.value)
        assert "and toys of acme 1.0, so none is used" in str(caught.value)
        assert '`"reader:.csv" = "zoo-tasks"` below [names] in' in str(caught.value)
        assert task_part(path, registry_with(reader__csv="acme")).name == "toys"
        assert task_part(path, registry_with(reader__csv="zoo-tasks")).name == "csv"
    touch(here, "t.tsv")
    assert task_part("t.tsv", registry_with()).name == "tsv", "what only one reads is read"


def test_a_reader_that_goes_wrong_is_told_as_its_plugins_fault(here: Path, registry_with: Any) -> None:
    touch(here, "bad.toy", "odd.toy")
    with pytest.raises(PluginError, match=r"reader 'toys' of acme 1.0 raised KeyError: 'toy' at .*acme_toys.py:"):
        task_part("bad.toy", registry_with())
    with pytest.raises(PluginError, match=r"reader 'toys' of acme 1.0 breaks .*task gave 'a\+b'"):
        task_part("odd.toy", registry_with())


def test_the_doctor_tells_of_a_reader_that_no_file_has(here: Path, registry_with: Any) -> None:
    (found,) = (each for each in check_up(registry_with().index).distributions if each.name == "acme")
    assert found.names == ("reader:loud", "reader:toys")
    assert [problem for problem in found.problems if "'.TOY' is no suffix; allowed: a dot and lower case" in problem]


def test_a_plugin_file_may_have_a_reader(here: Path) -> None:
    (here / "mine.py").write_text(
        dedent(TOY).replace(', ".csv"', "").partition("@dataclass(frozen=True, kw_only=True)\nclass Loud")[0]
    )
    touch(here, "a.toy")
    known = Registry(Index(read_folders(list(dict.fromkeys(sys.path)))))
    assert add_plugin(here / "mine.py", registry=known) == ("toys",)
    assert str(task_part("a.toy", known)) == "toys(num=1,path=a.toy)"
