"""Writes the pages that are made of what the product says of itself: a page for each method, and the catalogue.

    python docs/generate.py

Names, arguments and documentation come from `zoo_core.show`, counts and refusals from building each method, measured
rows from benchmarks/results. The pages are docs/methods/*.md and docs/catalogue.md. They are made before each build of
the site and are not committed: a docstring, a new plugin or one more result changes them, so a committed copy would
have to be renewed with almost every change. `zoo show NAME` says the same without a site.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

import zoo_core
from zoo_core.contracts import fact
from zoo_core.errors import ZooError

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
GENERATED = ("methods", "catalogue.md")

Json = Mapping[str, Any]
Method = Literal["adapter", "head"]

VIT = "timm/vit_base_patch16_224(weights=random)"  # ViT-B/16; a count of parameters needs no values
TRIED_ON = {  # where each method is built, to see what refuses it
    "starter/vit-nano": "a vision transformer (features: tokens)",
    "starter/convnet-nano": "a convolutional network (features: map)",
    "starter/mlp-nano(weights=random)": "a network for tables (features: pooled)",
}
TEACHER = "runs/teacher"  # a stored run, made for adapters that must be given one
WRONG_VALUES = {"a whole number": ("-1", "0"), "a number": ("-1", "0", "2")}  # tried on every argument of such a type


def main() -> int:
    """Writes all generated pages and says how many there are."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        zoo_core.save(zoo_core.load("starter/vit-nano", num_classes=10), TEACHER)
        pages = method_pages()
    shutil.rmtree(DOCS / "methods", ignore_errors=True)
    (DOCS / "methods").mkdir()
    for name, text in pages.items():
        (DOCS / "methods" / name).write_text(text, encoding="utf-8")
    (DOCS / "catalogue.md").write_text(catalogue(), encoding="utf-8")
    print(f"docs/methods: {len(pages)} files; docs/catalogue.md")
    return 0


# -- methods ----------------------------------------------------------------------------------------------------------


def method_pages() -> dict[str, str]:
    """The files of docs/methods by name: a page for each adapter and head, their index, and their navigation."""
    rows = measured_rows()
    kinds: tuple[Method, ...] = ("adapter", "head")
    names = {kind: own_names(kind) for kind in kinds}
    pages = {f"{name}.md": method_page(kind, name, rows) for kind in kinds for name in names[kind]}
    pages["index.md"] = methods_index(names)
    navigation = ["* [All methods](index.md)"]
    for kind in kinds:
        navigation += [f"* {kind.capitalize()}s", *(f"    * [{name}]({name}.md)" for name in names[kind])]
    pages["SUMMARY.md"] = "\n".join(navigation) + "\n"
    return pages


def own_names(kind: Method) -> list[str]:
    """The names of a kind that stand alone; those inside a namespace are on its own page."""
    return [row["name"] for row in zoo_core.list_names(kind) if "/" not in row["name"]]


def methods_index(names: Mapping[Method, list[str]]) -> str:
    """The tables of all methods: what each does, how much it trains, and a fact that its recipe declares."""
    text = "# Methods\n\nAn adapter decides what of a backbone trains, and how; a head makes predictions.\n"
    for kind, found in names.items():
        rows = []
        for name in found:
            shown, number = zoo_core.show(name_of(kind, name)), trained(kind, name)
            count = f"{number:,}" if isinstance(number, int) else ""
            rows.append((f"[`{name}`]({name}.md)", plain(shown["summary"]), count, fourth_of(kind, shown["recipe"])))
        fourth = "folds into plain weights" if kind == "adapter" else "is fitted"
        text += f"\n## {kind.capitalize()}s\n\n{table(('name', 'what it does', 'trains', fourth), rows)}"
    return text + (
        "\n*trains*: parameters on ViT-B/16 with every argument at its default; of an adapter those of the backbone, "
        "of a head its own for ten classes. It is empty where a method acts on what others train.\n"
    )


def fourth_of(kind: Method, recipe: str) -> str:
    """Of an adapter whether it folds into plain weights, of a head how it is fitted; nothing where that depends."""
    made = recipe_of(recipe)
    if made is None:
        return ""
    if kind == "head":
        return "by gradient" if fact(kind, made, "fit") == "gradient" else "in closed form"
    return "yes" if fact(kind, made, "mergeable") else "no"


def name_of(kind: Method, name: str) -> str:
    """A name with its kind, since one name may be claimed by two kinds."""
    return f"{kind}:{name}"


def written(kind: Method, name: str, **more: Any) -> str:
    """A method as a spec has it, with an example of each argument that must be given."""
    needed = {
        field["name"]: json.dumps(TEACHER)
        for field in zoo_core.show(name_of(kind, name))["arguments"]
        if field["name"] == "teacher"
    }
    given = ",".join(f"{key}={value}" for key, value in (needed | more).items())
    return f"{name_of(kind, name)}({given})" if given else name_of(kind, name)


def method_page(kind: Method, name: str, rows: list[Row]) -> str:
    """One method in full: what it does, its arguments, what it trains, what refuses it, what was measured."""
    shown = zoo_core.show(name_of(kind, name))
    documentation = read_documentation(shown["documentation"], [a["name"] for a in shown["arguments"]])
    below = [row for row in zoo_core.list_names(kind, f"{name}/*") if row["name"].startswith(f"{name}/")]
    text = f"# `{name}`\n\n{plain(documentation.summary)}\n\n"
    text += f"*{kind.capitalize()} of `{shown['distribution']}`, recipe `{shown['recipe']}`.*\n"
    text += "".join(f"\n{plain(paragraph)}\n" for paragraph in documentation.body)
    text += f"\n## Arguments\n\n{arguments(shown['arguments'], documentation.arguments)}"
    text += "".join(f"\n{plain(paragraph)}\n" for paragraph in documentation.after)
    text += f"\n## What it trains\n\n{counted(kind, name)}\n"
    text += f"\n## What it needs\n\n{declared(kind, shown['recipe'])}"
    text += f"\n## What it refuses\n\n{refusals(kind, name, shown['arguments'])}"
    if below:
        text += f"\n## Names below `{name}/`\n\n{namespace(below)}"
    text += f"\n## Measured\n\n{measured(kind, name, rows)}"
    text += f"\n## Source\n\n{plain(documentation.source) or 'None named.'}\n"
    return text


@dataclass(frozen=True, kw_only=True)
class Documentation:
    """A docstring taken apart. arguments: what it says of each field; after: what follows those, before the source."""

    summary: str
    body: list[str]
    arguments: Mapping[str, str]
    after: list[str]
    source: str


def read_documentation(docstring: str, names: list[str]) -> Documentation:
    """Takes a docstring apart by its conventions: `field: what it is.` and `Source: where it is from` begin a line.

    What is said of an argument ends with the line that ends with a full stop; several may share a line, and a name.
    """
    head, _, source = docstring.partition("\nSource: ")
    summary, _, rest = head.partition("\n")
    field = "|".join(map(re.escape, names)) or "(?!)"
    starts = re.compile(rf"(?:^|(?<=[.;] ))((?:{field})(?:, (?:{field}))*): ")
    body, after, described = list[str](), list[str](), dict[str, str]()
    open_names: list[str] = []
    for line in [*rest.split("\n"), ""]:
        pieces = starts.split(line)
        if not line:
            (after if described else body).append("")
        elif open_names:
            for name in open_names:
                described[name] += " " + pieces[0].strip()
        elif pieces[0]:
            paragraphs = after if described else body
            paragraphs[-1:] = [f"{paragraphs[-1]} {pieces[0]}".strip()] if paragraphs else [pieces[0]]
        for together, said in zip(pieces[1::2], pieces[2::2], strict=True):
            open_names = together.split(", ")
            described |= dict.fromkeys(open_names, said.strip())
        if line.endswith(".") or not line:
            open_names = []
    return Documentation(
        summary=summary,
        body=[paragraph for paragraph in body if paragraph],
        arguments=described,
        after=[paragraph for paragraph in after if paragraph],
        source=" ".join(source.split()),
    )


def arguments(fields: list[Json], described: Mapping[str, str]) -> str:
    """The table of a recipe's arguments, or a sentence that there are none."""
    own = [field for field in fields if not field["common"]]
    if not own:
        return "It has none.\n"
    rows = [
        (
            f"`{field['name']}`",
            f"`{field['default']}`" if field["default"] is not None else "must be given",
            plain(field["type"]),
            plain(described.get(field["name"], "")),
        )
        for field in own
    ]
    return table(("name", "default", "type", "what it is"), rows)


def counted(kind: Method, name: str) -> str:
    """What a method trains on ViT-B/16 with every argument at its default, as a sentence."""
    number = trained(kind, name)
    if isinstance(number, str) and kind == "adapter" and (opener := opener_for("starter/vit-nano", name)):
        return (
            "Nothing by itself: it acts on what adapters before it open or add, as in "
            f"`{opener}+{written(kind, name).removeprefix(f'{kind}:')}`."
        )
    if isinstance(number, str):
        return f"On ViT-B/16 it cannot be counted: {plain(number)}."
    if kind == "adapter":
        return f"On ViT-B/16, with the defaults, {number:,} parameters of the backbone besides the head."
    if not number:
        return "Nothing by gradient: it is fitted in closed form."
    return f"On the features of ViT-B/16 (width 768), for ten classes: {number:,} parameters."


def trained(kind: Method, name: str) -> int | str:
    """How many parameters of the backbone an adapter trains on ViT-B/16, or how many a head has; or a refusal."""
    found = built(f"{VIT}+{written(kind, name)}")
    if isinstance(found, str):
        return found
    owner = "backbone." if kind == "adapter" else "heads."
    number: int = sum(parameter.numel() for name, parameter in found.trainable() if name.startswith(owner))
    return number


def opener_for(backbone: str, name: str) -> str | None:
    """The first of some adapters after which this one can be built; None: it is refused after each of them too."""
    return next(
        (
            first
            for first in ("full", "bitfit")
            if not isinstance(built(f"{backbone}+{first}+{written('adapter', name)}"), str)
        ),
        None,
    )


@cache
def built(spec: str) -> Any:
    """The learner of a spec, or why it is refused. ViT-B/16 is built without values."""
    try:
        if not spec.startswith(VIT):
            return zoo_core.load(spec, num_classes=10)
        with torch.device("meta"):
            return zoo_core.load(spec, num_classes=10)
    except ZooError as error:
        return str(error).partition("\n")[0]


def declared(kind: Method, recipe: str) -> str:
    """What a recipe with its defaults declares of itself: features, roles, targets, whether it folds, its rates."""
    made = recipe_of(recipe)
    if made is None:
        return "That depends on its arguments: `zoo plan` says it.\n"
    says = partial(fact, kind, made)
    rates = ", ".join(f"{rate:g}" for rate in says("learning_rates"))
    said = [f"Learning rates to choose from: {rates}; the middle one is the default."] if rates else []
    targets = f"Targets: {', '.join(sorted(says('predicts' if kind == 'head' else 'targets')))}."
    if kind == "head":
        said.insert(0, f"Features: {says('consumes')}, or what becomes them. {targets}")
        said.append(f"It is fitted {fourth_of(kind, recipe)}.")
    else:
        roles = " or else ".join(", ".join(sorted(alternative)) for alternative in says("needs"))
        said.insert(0, f"Features of the backbone: {', '.join(sorted(says('accepts')))}. {targets}")
        said.insert(1, f"Roles: {roles or 'none'}. Seams: {', '.join(sorted(says('seams'))) or 'none'}.")
        said.append("It folds into plain weights." if says("mergeable") else "It does not fold into plain weights.")
    return "".join(f"- {line}\n" for line in said)


def recipe_of(recipe: str) -> Any:
    """The recipe with its defaults, and an example teacher if it needs one; None where other arguments must be given.

    recipe: `module:class`.
    """
    module, _, attribute = recipe.partition(":")
    made = getattr(import_module(module), attribute)
    for given in ({}, {"teacher": TEACHER}):
        with contextlib.suppress(TypeError, ZooError):
            return made(**given)
    return None


def refusals(kind: Method, name: str, fields: list[Json]) -> str:
    """What building it on one backbone of each kind of features says, and what values its arguments refuse."""
    rows = []
    for backbone, described in TRIED_ON.items():
        found = built(f"{backbone}+{written(kind, name)}")
        if isinstance(found, str) and kind == "adapter" and (opener := opener_for(backbone, name)):
            found = f"after {opener} it works; alone: {found}"
        rows.append((described, plain(found) if isinstance(found, str) else "works"))
    text = table(("on", "what is said"), rows)
    if len({said for _, said in rows}) == 1 and rows[0][1] != "works":
        text = f"{rows[0][1]}.\n"
    said = wrong_values(kind, name, fields)
    if said:
        text += "\nValues that are refused say what is allowed:\n\n" + "".join(f"- `{line}`\n" for line in said)
    return text


def wrong_values(kind: Method, name: str, fields: list[Json]) -> list[str]:
    """One refusal for each numeric argument that has any, found by giving it values that are hardly meant."""
    said = []
    for field in fields:
        values = () if field["common"] else WRONG_VALUES.get(field["type"].removesuffix(" or none"), ())
        for value in values:
            try:
                zoo_core.resolve(f"starter/vit-nano+{written(kind, name, **{field['name']: value})}", task="digits")
            except ZooError as error:
                if "allowed: " in str(error):
                    said.append(str(error).partition("\n")[0])
                    break
    return said


def namespace(rows: list[dict[str, str]]) -> str:
    """The names of a namespace: what each does, or why it is refused."""
    return table(("name", "what it does"), [(f"`{row['name']}`", plain(row["summary"])) for row in rows])


# -- measured rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The results of one combination over its seeds."""

    task: str
    backbone: str
    weights: str
    adapters: str
    head: str
    results: list[Json]
    file: str

    def uses(self, kind: Method, name: str) -> bool:
        """Whether the combination has an adapter or head of this name, or one below it."""
        parts = self.adapters.split("+") if kind == "adapter" else [self.head]
        found = [part.partition("(")[0] for part in parts]
        return any(part == name or part.startswith(f"{name}/") for part in found)


def measured_rows() -> list[Row]:
    """Every combination of benchmarks/results, in the order of the files."""
    rows = []
    for path in sorted(RESULTS.glob("*.jsonl")):
        seeds: dict[tuple[str, ...], list[Json]] = defaultdict(list)
        for line in path.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            key = tuple(str(result[field]) for field in ("task", "backbone", "weights", "adapters", "head"))
            seeds[key].append(result)
        for (task, backbone, weights, adapters, head), found in seeds.items():
            rows.append(Row(task, backbone, weights, adapters, head, found, path.name))
    return rows


def measured(kind: Method, name: str, rows: list[Row]) -> str:
    """The table of what was measured with a method, or a sentence that nothing was."""
    used = [row for row in rows if row.uses(kind, name)]
    if not used:
        return "No benchmark in the repository has it yet.\n"
    cells = [
        (f"`{row.task}`", f"`{row.backbone}`, {row.weights}", f"`{row.adapters}+{row.head}`", *figures(row.results))
        for row in used
    ]
    names = ", ".join(sorted({row.file for row in used}))
    header = ("task", "backbone, weights", "adapters and head", "test score", "trained", "train ex/s", "MiB")
    return (
        f"{table(header, cells)}\nMean and standard deviation over seeds; *trained* counts the head too; rates and "
        f"memory are medians, on one thread of a CPU. Each row is in `benchmarks/results` ({names}); what the columns "
        "mean stands in [Results](../results.md).\n"
    )


def figures(results: list[Json]) -> tuple[str, str, str, str]:
    """Score with its deviation and metric, trained parameters, training rate, memory; a refusal says why."""
    if any(result["status"] != "ok" for result in results):
        reason = next(result["reason"] for result in results if result["status"] != "ok")
        return (plain(f"{results[0]['status']}: {reason}"), "", "", "")
    scores = [100 * result["score"] for result in results]
    spread = f" \N{PLUS-MINUS SIGN} {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    training = [result["training"]["examples_per_second"] for result in results if result["training"]]
    return (
        f"{statistics.mean(scores):.1f}{spread} {results[0]['metric'].replace('_', ' ')}",
        f"{results[0]['num_trainable']:,}",
        f"{statistics.median(training):,.0f}" if training else "",
        f"{statistics.median(result['peak_memory_bytes'] for result in results) / 2**20:,.0f}",
    )


# -- catalogue --------------------------------------------------------------------------------------------------------


def catalogue() -> str:
    """The page of all that can be named: backbones by namespace, records in full, then every other kind of part."""
    rows = zoo_core.list_names()
    counts = Counter(row["kind"] for row in rows)
    text = "# Catalogue\n\nWhat an installation with every first-party plugin can name: "
    text += ", ".join(f"{count:,} {kind}s" for kind, count in sorted(counts.items())) + ". "
    text += (
        "`zoo list` prints them, `zoo list 'timm/*dinov2*'` those that fit a pattern, `zoo show NAME` one in full.\n"
    )
    text += f"\n## Backbones by namespace\n\n{backbones(rows)}"
    text += f"\n## Recorded backbones\n\n{recorded(rows, 'backbone')}"
    text += f"\n## Recorded data sets\n\n{recorded(rows, 'task')}"
    for kind in ("adapter", "head", "task", "metric", "augmentation", "reader", "score"):
        named = [row for row in rows if row["kind"] == kind and row["distribution"] != "zoo-registry"]
        text += f"\n## {kind.capitalize()}s\n\n"
        text += table(
            ("name", "of", "what it is"), [(cell(row), row["distribution"], plain(row["summary"])) for row in named]
        )
    return text


def cell(row: Mapping[str, str]) -> str:
    """A name, with a link where it has a page."""
    name = row["name"]
    return f"[`{name}`](methods/{name}.md)" if row["kind"] in ("adapter", "head") and "/" not in name else f"`{name}`"


def backbones(rows: list[dict[str, str]]) -> str:
    """How many names each namespace has, and an example of each."""
    by_namespace: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "backbone" and row["distribution"] != "zoo-registry":
            by_namespace[row["name"].partition("/")[0]].append(row["name"])
    providers = {row["name"].partition("/")[0]: row["distribution"] for row in rows if row["kind"] == "backbone"}
    cells = []
    for namespace, names in by_namespace.items():
        listed = [name for name in names if "/" in name]
        number = f"{len(listed):,}" if listed else "any"
        about = zoo_core.show(f"backbone:{namespace}")["documentation"].partition("\n")[0]
        example = f"`{listed[len(listed) // 2]}`" if listed else plain(about)
        cells.append((f"`{namespace}`", providers[namespace], number, example))
    return table(("namespace", "of", "listed names", "for example"), cells)


def recorded(rows: list[dict[str, str]], kind: str) -> str:
    """The records of a kind, with what each says of its input, size and licence."""
    cells = []
    for row in rows:
        if row["kind"] != kind or row["distribution"] != "zoo-registry":
            continue
        facts = zoo_core.show(f"{kind}:{row['name']}")["facts"]
        millions = f"{facts['num_parameters'] / 1e6:,.1f} M" if facts.get("num_parameters") else ""
        cells.append(
            (
                f"`{row['name']}`",
                f"`{facts['describes']}`",
                str(facts.get("modality") or ""),
                *((millions,) if kind == "backbone" else ()),
                plain(row["summary"]),
                plain(str(facts.get("licence") or "")),
            )
        )
    parameters = ("parameters",) if kind == "backbone" else ()
    return table(("name", "stands for", "modality", *parameters, "what it is", "licence"), cells)


# -- Markdown ---------------------------------------------------------------------------------------------------------


def table(header: tuple[str, ...], rows: list[Any]) -> str:
    """A Markdown table; cells are Markdown already, but for the bar that would end them."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text of a docstring as Markdown: what stands between backticks is code, all else is meant as it is written."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([\\*_\[\]<>#])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


if __name__ == "__main__":
    sys.exit(main())
