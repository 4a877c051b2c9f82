"""Plugin files and recipe objects: usable by name at once, marked, and never mistaken for what is published."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from PIL import Image

import zoo_core
from zoo_adapters.heads import Linear
from zoo_adapters.lora import Lora
from zoo_core.benchmark.grid import Suite, expand
from zoo_core.benchmark.provenance import provenance
from zoo_core.cli import main
from zoo_core.errors import AmbiguousError, IncompatibleError, NotFoundError, UsageError
from zoo_core.plan.plan import Budget
from zoo_core.plan.resolve import resolve
from zoo_core.registry.local_plugins import add_plugin, part_of
from zoo_core.registry.registry import registry
from zoo_core.results.report import render
from zoo_core.results.store import read
from zoo_core.spec.parser import parse_part
from zoo_peft.recipes import Peft
from zoo_timm.backbones import Timm

HADA = '''"""An idea of this morning: a factor after each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from zoo_core.contracts import Context, Learner


@dataclass(frozen=True, kw_only=True)
class Hada:
    """A factor after each block, of so much at the start."""

    start: float = 1.0

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[str]] = frozenset({"added"})
    learning_rates: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

    def apply(self, learner: Learner, context: Context) -> Learner:
        import torch
        from torch import nn

        class Scaled(nn.Module):
            def __init__(self, inner: nn.Module, start: float) -> None:
                super().__init__()
                self.inner, self.factor = inner, nn.Parameter(torch.tensor(start))

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return self.inner(*args, **kwargs) * self.factor

        for path in learner.backbone.stages:
            parent, _, name = path.rpartition(".")
            block = Scaled(learner.backbone.get_submodule(path), self.start)
            setattr(learner.backbone.get_submodule(parent), name, block)
        return learner


def helper() -> int:
    return 1
'''
SPEC = "starter/vit-nano+hada(start=0.9)"
BUDGET = Budget(epochs=1, num_rates=1)
FLAGS = ("--task", "digits(shots=2)", "--epochs", "1", "--num-rates", "1")


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """What a test adds is forgotten after it."""
    registry.cache_clear()
    yield
    registry.cache_clear()


@pytest.fixture
def hada(tmp_path: Path) -> Path:
    file = tmp_path / "hada.py"
    file.write_text(HADA, encoding="utf-8")
    return file


def imported(file: Path) -> ModuleType:
    """The file as a module of the user's own, as `import hada` makes it."""
    spec = importlib.util.spec_from_file_location("hada_of_mine", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hada_of_mine"] = module
    spec.loader.exec_module(module)
    return module


def run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def anew(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`zoo` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "zoo_core.cli", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        check=False,
    )


# --- files -----------------------------------------------------------------------------------------------------------


def test_recipe_of_a_file_is_listed_shown_and_planned(hada: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "list", "adapter", "hada", "--plugin", str(hada), "--json")
    assert code == 0
    [row] = json.loads(out)
    assert (row["distribution"], row["version"], row["state"]) == ("hada.py", "unpublished", "ok")
    assert row["summary"] == "A factor after each block, of so much at the start."
    code, out, _ = run(capfd, "--plugin", str(hada), "show", "hada")
    assert code == 0
    assert "start  1.0  a number" in out
    code, out, _ = run(capfd, "plan", SPEC, "--task", "digits", "--plugin", str(hada))
    assert code == 0
    assert re.search(r"unpublished: +hada\.py \(sha256 [0-9a-f]{12}\)", out)


def test_kind_of_a_recipe_is_that_of_its_verb(tmp_path: Path) -> None:
    text = "from dataclasses import dataclass\nfrom typing import ClassVar\n"
    for name, verbs in (("Net", "source build"), ("Top", "build"), ("Cats", "source open"), ("Trick", "source apply")):
        methods = "".join(f"    def {verb}(self, *given): ...\n" for verb in verbs.split())
        text += f"@dataclass(frozen=True, kw_only=True)\nclass {name}:\n    version: ClassVar[int] = 1\n{methods}"
    text += "class NoRecipe:\n    def apply(self): ...\n@dataclass\nclass _Hidden:\n    def open(self): ...\n"
    (tmp_path / "four.py").write_text(text, encoding="utf-8")
    assert add_plugin(tmp_path / "four.py") == ("net", "top", "cats", "trick")
    kinds = {row["name"]: row["kind"] for row in zoo_core.list_names() if row["distribution"] == "four.py"}
    assert kinds == {"net": "backbone", "top": "head", "cats": "task", "trick": "adapter"}


def test_file_in_the_working_directory_is_not_found_by_itself(hada: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hada.parent)
    with pytest.raises(NotFoundError, match="no plugin provides a part 'hada'"):
        resolve(SPEC, task="digits")


def test_digest_covers_the_file(hada: Path) -> None:
    assert add_plugin(hada) == ("hada",)
    before = resolve(SPEC, task="digits")
    assert add_plugin(hada) == ("hada",)
    assert resolve(SPEC, task="digits").digest == before.digest
    copy = hada.parent / "elsewhere"
    copy.mkdir()
    (copy / "hada.py").write_text(HADA, encoding="utf-8")
    assert add_plugin(copy / "hada.py") == ("hada",), "the same bytes are the same plugin"
    assert resolve(SPEC, task="digits").digest == before.digest
    hada.write_text(HADA + "# another thought\n", encoding="utf-8")
    add_plugin(hada)
    after = resolve(SPEC, task="digits")
    assert after.digest != before.digest
    assert after.base_digest == before.base_digest


def test_file_that_changed_is_read_again_and_forgets_what_it_gave(hada: Path) -> None:
    add_plugin(hada)
    hada.write_text(HADA.replace("class Hada", "class GatedLoRA"), encoding="utf-8")
    assert add_plugin(hada) == ("gated-lo-ra",)
    with pytest.raises(NotFoundError):
        registry().find("hada")
    named = HADA.replace("class Hada:", 'class Hada:\n    name: ClassVar[str] = "gated-lora"')
    hada.write_text(named, encoding="utf-8")
    assert add_plugin(hada) == ("gated-lora",)
    assert zoo_core.show("gated-lora")["distribution"] == "hada.py"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_like_this\n", "ModuleNotFoundError: No module named 'nothing_like_this' in line 1"),
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax in line 2"),
        ("x = 1\n\n1 / 0\n", "ZeroDivisionError: division by zero in line 3"),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0 in line 2"),
        ("from hada import Hada\n", "ModuleNotFoundError: No module named 'hada' in line 1"),
        ("x = 1\n", "has no recipe: a public frozen dataclass with apply"),
        (HADA.replace("frozen=True, ", ""), "Hada is not frozen"),
        (HADA.replace("    version: ClassVar[int] = 1\n", ""), "Hada has no `version: ClassVar\\[int\\]`"),
    ],
)
def test_broken_file_is_one_line_and_exit_code_2(
    text: str, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(text, encoding="utf-8")
    (tmp_path / "hada.py").write_text(HADA, encoding="utf-8")
    code, out, err = run(capfd, "list", "adapter", "--plugin", str(tmp_path / "broken.py"))
    assert code == 2
    assert not out
    assert len(err.splitlines()) == 1
    assert re.search(told, err)


def test_missing_file_is_not_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "list", "--plugin", str(tmp_path / "none.py"))
    assert code == 3
    assert "no plugin file" in err


def test_name_that_has_an_owner_is_refused_naming_both(hada: Path, tmp_path: Path) -> None:
    hada.write_text(HADA.replace("class Hada", "class Lora"), encoding="utf-8")
    with pytest.raises(AmbiguousError, match=r"adapter 'lora' is claimed by .*hada\.py and by zoo-adapters "):
        add_plugin(hada)
    assert registry().find("lora").distribution == "zoo-adapters"
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(HADA, encoding="utf-8")
    second.write_text(HADA + "# other bytes\n", encoding="utf-8")
    add_plugin(first)
    with pytest.raises(AmbiguousError, match=r"second\.py and by .*first\.py"):
        add_plugin(second)
    twin = '\n\n@dataclass(frozen=True, kw_only=True)\nclass Twin(Hada):\n    name: ClassVar[str] = "hada"\n'
    hada.write_text(HADA + twin, encoding="utf-8")
    with pytest.raises(UsageError, match="names the adapter 'hada' twice"):
        add_plugin(hada)


def test_mistake_while_applying_names_the_file(hada: Path) -> None:
    hada.write_text(HADA.replace("        import torch\n", "        raise KeyError('oh')\n"), encoding="utf-8")
    add_plugin(hada)
    with pytest.raises(IncompatibleError, match=r"'hada' of hada\.py unpublished raised KeyError: 'oh'.*mend hada\.py"):
        zoo_core.load(SPEC, num_classes=2)


# --- stored runs -----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # two processes
def test_fit_is_stored_with_the_hash_and_used_in_another_process(
    hada: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code, _, err = run(capfd, "fit", SPEC, *FLAGS, "--out", str(out), "--plugin", str(hada))
    assert code == 0, err
    row = json.loads((out / "zoo.lock").read_text(encoding="utf-8"))["parts"]["adapter:hada"]
    assert row["distribution"] == "hada.py"
    assert read(out / "results.jsonl")[0].unpublished == {"hada.py": row["sha256"]}

    further = ("fit", f'run(path="{out}")', *FLAGS, "--out", str(tmp_path / "further"))
    code, _, err = run(capfd, *further)
    assert code == 0, err
    assert read(tmp_path / "further" / "results.jsonl")[0].unpublished == {"hada.py": row["sha256"]}

    Image.new("L", (16, 16), 99).save(tmp_path / "a.png")
    used = anew("predict", "run", "a.png", "--plugin", "hada.py", "--format", "csv", cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    assert "a.png" in used.stdout

    registry.cache_clear()
    code, _, err = run(capfd, "predict", str(out), str(tmp_path / "a.png"))
    assert code == 3
    assert "needs adapter:hada of the plugin file hada.py (sha256 " in err
    assert '--plugin hada.py, or zoo_core.add_plugin("hada.py")' in err

    code, _, err = run(capfd, "push", str(out), "me/idea")
    assert code == 2
    assert "adapter:hada of the file hada.py, which nobody else has; publish it as a package" in err

    hada.write_text(HADA + "# changed\n", encoding="utf-8")
    add_plugin(hada)
    with pytest.raises(IncompatibleError, match=r"another adapter hada: of hada\.py .* then, of hada\.py .* now"):
        zoo_core.load_run(out)
    code, _, err = run(capfd, "lock", "--check", "--lock", str(out / "zoo.lock"))
    assert code == 6
    assert "no --plugin gives it" in err


@pytest.mark.slow  # worker processes
def test_bench_with_two_workers_marks_rows_and_resumes(
    hada: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = ("--backbones", "starter/vit-nano", "--adapters", "hada,probe", "--seeds", "2", "--workers", "2")
    words = ("bench", *FLAGS, *grid, "--out", str(tmp_path / "run"), "--plugin", str(hada))
    code, out, err = run(capfd, *words)
    assert code == 0, out + err
    assert "starter/vit-nano+hada+linear (unpublished: hada.py)" in out
    assert "starter/vit-nano+linear  " in out
    results = read(tmp_path / "run" / "results.jsonl")
    assert [result.status for result in results] == ["ok"] * 4
    assert sum(bool(result.unpublished) for result in results) == 2

    code, _, err = run(capfd, *words)
    assert code == 0
    assert "4 of 4 trials are done already" in err
    code, csv, _ = run(capfd, "report", str(tmp_path / "run"), "--format", "csv")
    assert code == 0
    header, *marks = [line.rpartition(",")[2] for line in csv.splitlines()]
    assert (header, sorted(marks)) == ("unpublished", ["", "hada.py"])

    hada.write_text(HADA + "# changed\n", encoding="utf-8")
    code, _, err = run(capfd, *words)
    assert code == 0, err
    assert "2 stored results are superseded" in err, "rows of two states of a file are not one table"
    assert "2 of 4 trials are done already" in err
    results = read(tmp_path / "run" / "results.jsonl")
    assert len(results) == 6
    assert [bool(result.superseded) for result in results if result.unpublished] == [True, True, False, False]
    assert not any(result.superseded for result in results if not result.unpublished)


# --- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Lora(r=4), "adapter:lora(r=4)"),
        (Linear(), "head:linear"),
        (Timm(name="resnet18.a1_in1k"), "backbone:timm/resnet18.a1_in1k"),
        (Timm(files="a b"), 'backbone:timm(files="a b")'),
    ],
)
def test_object_of_an_installed_recipe_is_its_name(recipe: Any, text: str) -> None:
    part = part_of(recipe, registry())
    assert str(part) == text
    assert registry().bind(part).recipe == recipe


def test_object_of_a_namespace_that_has_recipes_of_its_own() -> None:
    oft = registry().bind(parse_part("peft/oft(r=2)")).recipe
    assert type(oft) is not Peft
    assert str(part_of(oft, registry())) == "adapter:peft/oft(r=2)"


def test_list_of_text_and_objects_is_the_spec_of_text() -> None:
    by_text = resolve("starter/vit-nano+partial(n=2)+lora(r=4)+linear", task="digits(shots=5)")
    by_list = resolve(["starter/vit-nano+partial(n=2)", Lora(r=4), Linear()], task="digits(shots=5)")
    assert by_list.digest == by_text.digest
    learner = zoo_core.load(["starter/vit-nano", Lora(r=4)], num_classes=2)
    assert learner.plan is not None
    assert str(learner.plan.spec) == "starter/vit-nano+lora(r=4)+linear"


def test_object_of_a_class_of_a_file_is_the_same_trial_as_the_plugin(hada: Path) -> None:
    module = imported(hada)
    by_object = resolve(["starter/vit-nano", module.Hada(start=0.9)], task="digits")
    assert str(by_object.spec) == "starter/vit-nano+hada(start=0.9)+linear"
    registry.cache_clear()
    add_plugin(hada)
    assert resolve(SPEC, task="digits").digest == by_object.digest
    again = resolve(["starter/vit-nano", module.Hada(start=0.9)], task="digits")
    assert again.digest == by_object.digest


def test_class_whose_file_has_changed_is_refused(hada: Path) -> None:
    module = imported(hada)
    hada.write_text(HADA.replace("return learner", "return None"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"hada\.py has changed since Hada was imported"):
        resolve(["starter/vit-nano", module.Hada()], task="digits")


def test_class_without_a_file_is_built_and_never_stored(tmp_path: Path, hada: Path) -> None:
    module = ModuleType("typed_by_hand")
    sys.modules["typed_by_hand"] = module
    source = hada.read_text(encoding="utf-8")
    exec(compile(source, "<input>", "exec"), vars(module))
    learner = zoo_core.load(["starter/vit-nano", module.Hada()], num_classes=2)
    assert learner.plan is not None
    with pytest.raises(UsageError, match="Hada has no file, so a stored result could not say what it was"):
        zoo_core.save(learner, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="Hada has no file"):
        zoo_core.fit(["starter/vit-nano", module.Hada()], task="digits", out=tmp_path / "run", budget=BUDGET)


@pytest.mark.slow  # a process of its own, since this one's script is pytest
def test_class_of_the_script_does_not_reach_worker_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    call = """

import zoo_core
from zoo_core.benchmark.grid import Suite

print(zoo_core.resolve(["starter/vit-nano", Hada()], task="digits").spec)
suite = Suite(name="s", tasks=("digits(shots=2)",), backbones=("starter/vit-nano",), adapters=(Hada(),))
zoo_core.bench(suite, out="run")
"""
    script.write_text(HADA + call, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.stdout == "starter/vit-nano+hada+linear\n"
    assert "Hada is of the script that runs, and worker processes do not run that again" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_no_recipe_is_refused() -> None:
    for wrong in (Lora, 3, {"r": 4}, lambda: None):
        with pytest.raises(UsageError, match="a part of a spec is text or a recipe"):
            resolve(["starter/vit-nano", wrong], task="digits")  # type: ignore[list-item]


@dataclass(frozen=True, kw_only=True)
class Careless:
    """A head with a value that no spec can hold."""

    widths: Any = None

    version: ClassVar[int] = 1
    predicts: ClassVar[frozenset[str]] = frozenset({"classes"})
    learning_rates: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

    def build(self, features: Any, target: Any) -> Any: ...


def test_value_that_no_spec_can_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="a spec cannot hold one of its values"):
        resolve(["starter/vit-nano", Careless(widths={"a": 1})], task="digits")


def test_suite_takes_objects_and_its_report_is_marked(hada: Path, tmp_path: Path) -> None:
    module = imported(hada)
    suite = Suite(
        name="s",
        tasks=("digits(shots=2)",),
        backbones=("starter/vit-nano",),
        adapters=(module.Hada(start=0.9), "probe", [Lora(r=2)]),
        heads=(Linear(),),
        seeds=(0,),
        budget=BUDGET,
    )
    grid = expand(suite)
    assert [str(plan.spec) for plan in grid.plans] == [
        "starter/vit-nano+hada(start=0.9)+linear",
        "starter/vit-nano+linear",
        "starter/vit-nano+lora(r=2)+linear",
    ]
    results = [
        replace(provenance(plan, device="cpu", threads=1), status="ok", metric="accuracy", score=score)
        for plan, score in zip(grid.plans, (0.5, 0.6, 0.7), strict=True)
    ]
    table = render(results, form="md")
    assert "starter/vit-nano+hada(start=0.9)+linear (unpublished: hada.py) |" in table
    assert "starter/vit-nano+lora(r=2)+linear |" in table


def test_a_module_beside_a_plugin_file_is_imported_from_the_python_path_alone(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("START = 0.5\n", encoding="utf-8")
    text = HADA.replace("start: float = 1.0", "start: float = START").replace(
        "from dataclasses import dataclass\n", "from dataclasses import dataclass\n\nfrom beside import START\n"
    )
    (tmp_path / "hada.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "zoo_core.cli", "show", "hada", "--json", "--plugin", "hada.py"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    core = str(Path(zoo_core.__file__).parents[1])
    both = [
        subprocess.run(
            command,
            cwd=tmp_path,
            env={**alone, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        for path in (core, os.pathsep.join((".", core)))
    ]
    assert [done.returncode for done in both] == [2, 0], both
    assert "No module named 'beside'" in both[0].stderr
    assert json.loads(both[1].stdout)["arguments"][0]["default"] == "0.5"
