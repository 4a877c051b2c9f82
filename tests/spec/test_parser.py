"""Text that names a composition: everything reads back, and nothing but a SpecError leaves the parser."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zoo_core.contracts import PART_KINDS
from zoo_core.errors import SpecError
from zoo_core.spec.parser import MAX_DEPTH, MAX_LENGTH, Part, Spec, Value, parse, parse_part, parse_parts, parse_specs

EXAMPLES = {
    "timm/vit_tiny_patch16_224.augreg_in21k+lora(r=8)+linear": None,
    "hf/sentence-transformers/all-MiniLM-L6-v2@1a2b3c4+prefix(length=16)": None,
    "starter/vit-nano+full": None,
    "timm/resnet50(weights=random)+peft/oft(r=8)": None,
    'run(path="runs/source")+full': None,
    "head:linear": None,
    "a@v1/branch": None,
    " a ( b = 1 , c = [ 2 , 3 ] ) + d ": "a(b=1,c=[2,3])+d",
    "a\n\t@ r\n+b": "a@r+b",
    "a()": "a",
    "a(z=1,b=2)": "a(b=2,z=1)",
    "a(b=1e3)": "a(b=1000.0)",
    "a(b=1E+20)": "a(b=1e+20)",
    "a(b=.5)": "a(b=0.5)",
    "a(b=5.)": "a(b=5.0)",
    "a(b=007)": "a(b=7)",
    'a(b="word")': "a(b=word)",
    'a(b="true")': None,
    'a(b="none")': None,
    'a(b="-1.5e3")': None,
    'a(b="")': None,
    'a(b="two words")': None,
    'a(b="\\"\\\\")': None,
    'a(b="caf\u00e9")': None,
    "a(b=nan)": None,  # a word; no number of that name exists here
    "a(b=True)": None,  # a word as well: constants are in lower case
    "a(b=8x)": None,
    "a(b=1.2.3)": None,
    "a(b=[])": None,
    "a(b=none,c=true,d=false)": None,
}

BAD = {  # text -> column of the mistake and a word of the reason
    "": (0, "a name"),
    "   ": (3, "a name"),
    "+": (0, "a name"),
    "a+": (2, "a name"),
    "a++b": (2, "a name"),
    "a b": (2, "'+' or the end"),
    "a,b": (1, "'+' or the end"),
    "a/": (2, "a name"),
    "/a": (0, "a name"),
    "a/../b": (2, "'..'"),
    ".": (0, "'.'"),
    "a@": (2, "a revision"),
    "a@..": (2, "'..'"),
    "hed:linear": (0, "did you mean head?"),
    "head:": (5, "a name"),
    "head :linear": (5, "'+' or the end"),
    "a(": (2, "the name of an argument"),
    "a(b": (3, "'='"),
    "a(b=": (4, "a number"),
    "a(b=)": (4, "a number"),
    "a(b=1": (5, "')'"),
    "a(b=1,)": (6, "the name of an argument"),
    "a(b=1 c=2)": (6, "','"),
    "a(1b=2)": (2, "the name of an argument"),
    "a(b=1,b=2)": (6, "twice"),
    "a(b=[1": (6, "']'"),
    "a(b=[1,])": (7, "a number"),
    'a(b="x': (4, "closing quote"),
    'a(b="\\"': (4, "closing quote"),
    'a(b="x\\n")': (6, "escapes"),
    'a(b="x\ny")': (6, "control character"),
    'a(b="\ud800")': (5, "control character"),
    "a(b=1e999)": (4, "finite"),
    "a(b=-1e999)": (4, "finite"),
    f"a(b={'1' * 31})": (4, "at most 30"),
    f"a(b={'[' * 9}": (12, "8 deep"),
    "caf\u00e9": (3, "'+' or the end"),
    "\uff11": (0, "a name"),
    "a(b=\u0661)": (4, "a number"),
    "a(b=1)(c=2)": (6, "'+' or the end"),
    "a(b=1)@r": (6, "'+' or the end"),
}

segments = st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True).filter(lambda text: text not in (".", ".."))
paths = st.lists(segments, min_size=1, max_size=3).map("/".join)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)
scalars = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    texts,
    segments,
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
parts = st.builds(
    Part,
    name=paths,
    kind=st.none() | st.sampled_from(PART_KINDS),
    revision=st.none() | paths,
    arguments=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), values, max_size=3).map(
        lambda found: tuple(found.items())
    ),
)
specs = st.lists(parts, min_size=1, max_size=4).map(lambda found: Spec(tuple(found)))


def typed(value: object) -> object:
    """The value with its types, since 1, 1.0 and true are equal in Python."""
    if isinstance(value, tuple):
        return tuple(map(typed, value))
    return type(value), repr(value)


def nested(depth: int) -> Value:
    return (nested(depth - 1),) if depth > 1 else ()


@pytest.mark.parametrize(("text", "canonical"), EXAMPLES.items())
def test_a_good_text_has_one_canonical_form(text: str, canonical: str | None) -> None:
    assert (canonical or text) == str(parse(text))


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_canonical_text_reads_back(text: str) -> None:
    spec = parse(text)
    assert spec == parse(str(spec))


@pytest.mark.parametrize(("text", "column", "reason"), [(text, *rest) for text, rest in BAD.items()])
def test_a_bad_text_is_refused_at_its_column(text: str, column: int, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert (column, True) == (caught.value.column, reason in caught.value.reason), caught.value.reason


@given(specs)
@example(Spec((Part("a", arguments=(("b", -0.0),)),)))
def test_every_spec_reads_back_with_its_types(spec: Spec) -> None:
    if len(str(spec)) > MAX_LENGTH:
        return
    again = parse(str(spec))
    assert spec == again
    for ours, theirs in zip(spec.parts, again.parts, strict=True):
        assert typed(tuple(ours.arguments)) == typed(tuple(theirs.arguments))


@given(st.text(max_size=60) | st.text(alphabet='ab1.-/+@:()=,[]"\\ \n', max_size=60))
def test_any_text_gives_a_spec_or_a_spec_error(text: str) -> None:
    for reader in (parse, parse_part, parse_parts, parse_specs):
        column, shown = 0, "^"
        try:
            reader(text)
        except SpecError as error:
            column, shown = error.column, str(error)
        assert (0 <= column <= len(text), "^" in shown) == (True, True)


@given(parts)
def test_a_part_reads_back_alone(part: Part) -> None:
    if len(str(part)) <= MAX_LENGTH:
        assert part == parse_part(str(part))


def test_the_caret_stands_under_the_mistake() -> None:
    with pytest.raises(SpecError) as caught:
        parse("starter/vit-nano+lora(r==8)")
    _, line, caret = str(caught.value).splitlines()
    assert line.index("==") + 1 == caret.index("^")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("-3", -3),
        ("4.0", 4.0),
        ("1e-4", 1e-4),
        ("true", True),
        ("none", None),
        ("attn.q", "attn.q"),
        ('"4"', "4"),
        ("[1,[true,x]]", (1, (True, "x"))),
    ],
)
def test_a_value_has_the_type_it_is_written_in(text: str, value: Value) -> None:
    ((_, found),) = parse_part(f"a(b={text})").arguments
    assert typed(value) == typed(found)


def test_lists_nest_to_the_limit_and_not_beyond() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert f"a(b={deep})" == str(parse(f"a(b={deep})"))
    with pytest.raises(SpecError, match="nested"):
        parse(f"a(b=[{deep}])")


def test_a_text_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(SpecError, match="4097 characters"):
        parse("a" * (MAX_LENGTH + 1))


def test_a_text_whose_canonical_form_would_be_too_long_is_refused() -> None:
    text = f"a(b=[{','.join(['1e15'] * 800)}])"
    assert len(text) < MAX_LENGTH
    with pytest.raises(SpecError, match="canonical"):
        parse(text)


def test_commas_separate_parts_outside_brackets_only() -> None:
    assert [str(part) for part in parse_parts("probe, lora(r=8, roles=[attn.q, attn.v])")] == [
        "probe",
        "lora(r=8,roles=[attn.q,attn.v])",
    ]
    with pytest.raises(SpecError, match="',' or the end"):
        parse_parts("probe+full")


def test_commas_separate_chains() -> None:
    assert [str(spec) for spec in parse_specs("probe,partial(n=2)+norm")] == ["probe", "partial(n=2)+norm"]
    for bad in ("", "probe,", ",probe", "probe,,full"):
        with pytest.raises(SpecError):
            parse_specs(bad)


def test_a_part_is_one_part() -> None:
    with pytest.raises(SpecError, match="one part"):
        parse_part("a+b")


def test_arguments_are_sorted_however_a_part_is_made() -> None:
    assert Part("a", arguments=(("c", 1), ("b", 2))) == Part("a", arguments=(("b", 2), ("c", 1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Part("a b"),
        lambda: Part(""),
        lambda: Part("../etc"),
        lambda: Part("a", revision="x y"),
        lambda: Part("a", arguments=(("b c", 1),)),
        lambda: Part("a", arguments=(("b", 1), ("b", 2))),
        lambda: Part("a", arguments=(("b", math.nan),)),
        lambda: Part("a", arguments=(("b", math.inf),)),
        lambda: Part("a", arguments=(("b", 10**40),)),
        lambda: Part("a", arguments=(("b", "line\nline"),)),
        lambda: Part("a", arguments=(("b", nested(9)),)),
        lambda: Part("a", arguments=(("b", {}),)),  # type: ignore[arg-type]
        lambda: Spec(()),
    ],
)
def test_what_no_text_can_say_cannot_be_made(make: object) -> None:
    assert callable(make)
    with pytest.raises(SpecError):
        make()
