"""What widens trust is said by the user of this call; a spec that was stored is refused if it asks for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import zoo_core
from tests.conftest import Zoo
from zoo_core.benchmark.grid import expand, load_suite, suite_from
from zoo_core.contracts import TRUSTS, Target
from zoo_core.errors import PluginError, RefusedError, SuiteError, UsageError
from zoo_core.plan.resolve import inner_parts, resolve
from zoo_core.registry.local_plugins import add_plugin
from zoo_core.registry.registry import registry
from zoo_core.registry.trust import speaking_for, trusted, trusting

PLUGIN = '''
    from dataclasses import dataclass, field
    from typing import ClassVar

    from zoo_core import Spec
    from zoo_core.contracts import Source


    @dataclass(frozen=True, kw_only=True)
    class Loose:
        """A backbone that may read a pickle and run what lies beside it."""

        unsafe: bool = field(default=False, metadata={"trust": "pickle"})
        remote: str = field(default="none", metadata={"trust": "code"})
        teacher: Spec | None = None

        version: ClassVar[int] = 1

        def source(self):
            return None

        def build(self, files, weights):
            import torch

            from zoo_core.testing.toys import ToyBackbone

            torch.manual_seed(0)
            return ToyBackbone("tokens")
'''
MANY = '''
    from dataclasses import dataclass
    from typing import ClassVar

    import zoo_core
    from zoo_core import Spec


    @dataclass(frozen=True, kw_only=True)
    class Many:
        """A backbone that names others in every way."""

        teachers: tuple[Spec, ...] = ()
        pair: tuple[Spec, Spec] | None = None
        text: str = ""

        version: ClassVar[int] = 1

        def source(self):
            return None

        def build(self, files, weights):
            from zoo_core.testing.toys import ToyBackbone

            if self.text:
                zoo_core.load_backbone(self.text)
            return ToyBackbone("tokens")
'''
RISKY = '''
    from dataclasses import dataclass, field
    from pathlib import Path
    from typing import ClassVar

    from zoo_core import Target


    @dataclass(frozen=True, kw_only=True)
    class Risky:
        """A task that looks into a pickle for its classes."""

        unsafe: bool = field(default=False, metadata={"trust": "pickle"})

        version: ClassVar[int] = 1
        modality: ClassVar[str] = "image"
        metric: ClassVar[str] = "accuracy"

        @property
        def target(self):
            Path("ran").touch()
            return Target(kind="classes", size=3)

        def __post_init__(self):
            if self.unsafe:
                Path("ran").touch()

        def source(self):
            Path("ran").touch()

        def open(self, files):
            raise NotImplementedError
'''
TARGET = Target(kind="classes", size=3)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loose.py").write_text(dedent(PLUGIN))
    registry.cache_clear()
    add_plugin("loose.py")
    yield tmp_path
    registry.cache_clear()


def saved(spec: str, folder: str = "run") -> str:
    """A run that a user made, who typed the spec."""
    zoo_core.save(zoo_core.load(spec, num_classes=3), folder)
    return folder


@pytest.mark.parametrize(
    ("spec", "word"), [("loose(unsafe=true)", "pickle"), ("loose(remote=all)", "code"), ("loose", None)]
)
def test_a_run_asks_and_the_call_must_say_so(spec: str, word: str | None) -> None:
    run = saved(spec)
    if word is None:
        assert zoo_core.load_run(run).target.size == 3
        return
    with pytest.raises(RefusedError, match=rf"the run run asks for loose\(.*--trust {word}, .*trusting\(\"{word}\"\)"):
        zoo_core.load_run(run)
    other = next(each for each in TRUSTS if each != word)
    with pytest.raises(RefusedError), trusting(other):
        zoo_core.load_run(run)
    with zoo_core.trusting(word):
        assert zoo_core.load_run(run).target.size == 3
    with pytest.raises(RefusedError):  # it was said for that call alone
        zoo_core.load_run(run)


def test_a_chain_asks_at_each_link() -> None:
    saved("loose(unsafe=true)", "first")
    with trusting("pickle"):
        saved("run(path=first)", "second")
    calls: list[Callable[[], Any]] = [
        lambda: zoo_core.load("run(path=first)", num_classes=3),
        lambda: zoo_core.load_backbone("run(path=first)"),
        lambda: zoo_core.load_run("second"),
        lambda: zoo_core.load_runs({"a": "second"}),
        lambda: zoo_core.export("second", "plain"),
        lambda: zoo_core.fetch("run(path=second)"),
    ]
    for call in calls:
        with pytest.raises(RefusedError, match="first asks for loose"):
            call()
    with trusting("pickle"):
        assert zoo_core.load_run("second").target.size == 3


def test_what_an_argument_names_by_a_spec_asks_too() -> None:
    with pytest.raises(RefusedError, match="the suite x asks for loose"):
        resolve('loose(teacher="loose(unsafe=true)")', target=TARGET, stored="the suite x")
    assert len(resolve('loose(teacher="loose(unsafe=true)")', target=TARGET).inner) == 1  # its user typed it


def test_whatever_holds_a_spec_asks_too(here: Path) -> None:
    """In lists, behind records, and made up by a plugin's own code."""
    (here / "many.py").write_text(dedent(MANY))
    add_plugin("many.py")
    for spec in ('many(teachers=["loose(unsafe=true)"])', 'many(pair=["loose","loose(unsafe=true)"])'):
        assert len(resolve(spec, target=TARGET).inner) >= 1  # its user typed it
        with pytest.raises(RefusedError, match="the run x asks for loose"):
            resolve(spec, target=TARGET, stored="the run x")
    with pytest.raises(RefusedError, match="the code of backbone many asks for loose"):
        zoo_core.load('many(text="loose(unsafe=true)")', num_classes=3)
    with trusting("pickle"):
        assert zoo_core.load('many(text="loose(unsafe=true)")', num_classes=3).target.size == 3
    nested = registry().bind(zoo_core.parse('many(teachers=["loose(unsafe=true)"])').parts[0])
    object.__setattr__(nested, "written", zoo_core.parse("small").parts[0])
    object.__setattr__(nested, "implied", {"teachers": ("loose(unsafe=true)",)})
    with pytest.raises(RefusedError, match="the record small asks for loose"):
        inner_parts(nested, registry())


def test_nothing_of_a_task_runs_before_it_is_trusted(here: Path, zoo: Zoo) -> None:
    (here / "risky.py").write_text(dedent(RISKY))
    add_plugin("risky.py")
    suite = here / "s.toml"
    suite.write_text('tasks = ["risky(unsafe=true)", "digits"]\nbackbones = ["starter/vit-nano"]\nseeds = 1\n')
    saved("starter/vit-nano")
    table = json.loads((here / "run" / "run.json").read_text()) | {"task": "risky(unsafe=true)"}
    (here / "run" / "run.json").write_text(json.dumps(table))
    assert [refusal.trial.task.name for refusal in expand(load_suite(suite)).refusals] == ["risky"]
    assert zoo_core.load_run("run").target.size == 3  # a model does without its task
    with pytest.raises(RefusedError, match="the run run asks for risky"):
        zoo_core.evaluate("run")
    assert not (here / "ran").exists()
    resolve("starter/vit-nano", task="risky(unsafe=true)")
    assert (here / "ran").exists()  # the check can fail


def test_a_suite_file_asks_and_flags_are_the_users(here: Path) -> None:
    grid = {"tasks": ["digits"], "backbones": ["loose(unsafe=true)", "starter/vit-nano"], "seeds": 1}
    assert not expand(suite_from(grid, name="x")).refusals
    file = here / "mine.toml"
    file.write_text('tasks = ["digits"]\nseeds = 1\nbackbones = ["loose(unsafe=true)", "starter/vit-nano"]\n')
    (refusal,) = expand(load_suite(file)).refusals
    assert refusal.reason.startswith(f"the suite {file} asks for loose(unsafe=true)")
    with trusting("pickle"):
        assert not expand(load_suite(file)).refusals
    file.write_text('tasks = ["digits"]\nbackbones = ["loose(unsafe=true)"]\n')
    with pytest.raises(SuiteError, match="--trust pickle"):
        expand(load_suite(file))


def test_a_record_asks_unless_its_user_writes_the_argument_too(here: Path) -> None:
    known = registry()
    record = known.find("loose")._replace(
        name="small", origin="record", value="small.toml", describes="loose(unsafe=true)", sha256=""
    )
    known.index.put([record])
    known._by_name["small"] = [record]
    with pytest.raises(RefusedError, match="the record small asks for small"):
        known.bind(zoo_core.parse("small").parts[0])
    known.bind(zoo_core.parse("small(unsafe=true)").parts[0])
    with trusting("pickle"):
        known.bind(zoo_core.parse("small").parts[0])


@pytest.mark.slow
def test_the_command_line_says_it_with_a_flag(zoo: Zoo) -> None:
    saved("loose(unsafe=true)+linear")
    words = ("export", "run", "out", "--plugin", "loose.py")
    done = zoo(*words)
    assert (done.code, "--trust pickle" in done.line) == (6, True)
    assert "is of no library that loads plain checkpoints" in zoo(*words, "--trust", "pickle").line  # it was built
    done = zoo("predict", "run", "x.png", "--trust", "pickel")
    assert (done.code, "did you mean pickle" in done.line) == (2, True)


def test_words_hold_in_their_block_and_thread_alone() -> None:
    with trusting("pickle"), trusting("code"):
        assert trusted() == {"pickle", "code"}
        found: list[frozenset[str]] = []
        thread = threading.Thread(target=lambda: found.append(trusted()))
        thread.start()
        thread.join()
        assert found == [frozenset()]
    assert trusted() == frozenset()
    with pytest.raises(UsageError, match="did you mean pickle"), trusting("pickles"):
        pass


def test_an_argument_says_a_word_that_there_is(here: Path) -> None:
    (here / "wrong.py").write_text(dedent(PLUGIN).replace('"pickle"', '"everything"').replace("Loose", "Wrong"))
    add_plugin("wrong.py")
    with pytest.raises(PluginError, match="widens the trust 'everything'; allowed: pickle, code"):
        resolve("wrong", target=TARGET)


def test_the_first_party_arguments_that_read_pickles_say_so() -> None:
    for name in ("timm/resnet18.a1_in1k", "hf/org/name"):
        (part,) = zoo_core.parse(f"{name}(allow_pickle=true)").parts
        assert registry().bind(part).recipe.allow_pickle
        with speaking_for("a run"), pytest.raises(RefusedError, match="--trust pickle"):
            registry().bind(part)
