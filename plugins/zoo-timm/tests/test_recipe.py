"""Names, arguments and sources: what a user may write, without torch."""

from __future__ import annotations

import pytest

from zoo_core.contracts import Source, Target
from zoo_core.errors import NotFoundError, UsageError, ZooError
from zoo_core.plan.resolve import resolve
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import parse_part
from zoo_timm.backbones import PICKLED, SAFE, Timm, known_tags

CLASSES = Target(kind="classes", size=3)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("resnet18", "resnet18.a1_in1k"),
        ("resnet18.tv_in1k", "resnet18.tv_in1k"),
        ("flexivit_base", "flexivit_base.1200ep_in1k"),
        ("flexivit_base.300ep_in1k", "flexivit_base.300ep_in1k"),
        ("dla34", "dla34.in1k"),
        ("convnext_atto_rms", "convnext_atto_rms"),  # nobody published weights of it
        ("somebody/model", "somebody/model"),
    ],
)
def test_a_name_is_completed_by_its_default_tag(name: str, full: str) -> None:
    assert Timm(name=name).name == full
    assert Timm(name=name) == Timm(name=full)


def test_both_ways_to_write_a_name_are_one_identity() -> None:
    short, full = (registry().bind(parse_part(f"timm/{name}")) for name in ("resnet18", "resnet18.a1_in1k"))
    assert short.identity() == full.identity()
    plans = [resolve(f"timm/{name}(weights=random)", target=CLASSES) for name in ("resnet18", "resnet18.a1_in1k")]
    assert plans[0].base_digest == plans[1].base_digest


@pytest.mark.parametrize(
    ("recipe", "source"),
    [
        (Timm(name="resnet18"), Source(repository="timm/resnet18.a1_in1k", weights=SAFE)),
        (Timm(name="rdnet_base"), Source(repository="naver-ai/rdnet_base.nv_in1k", weights=SAFE)),
        (Timm(name="convnext_atto_rms"), None),
        (Timm(name="gcvit_tiny.in1k"), None),  # its weights are on no Hub
        (Timm(name="somebody/model"), Source(repository="somebody/model", patterns=("config.json",), weights=SAFE)),
        (Timm(files="a/folder"), Source(folder="a/folder", patterns=("config.json",), weights=SAFE)),
        (
            Timm(name="resnet18", allow_pickle=True),
            Source(repository="timm/resnet18.a1_in1k", weights=(*SAFE, *PICKLED)),
        ),
    ],
)
def test_a_source_says_where_files_are_and_which(recipe: Timm, source: Source | None) -> None:
    assert recipe.source() == source


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("timm/resnet81", NotFoundError, "did you mean"),
        ("timm/vit_base_patch16_22", NotFoundError, "timm/vit_base_patch16_224"),
        ("timm/resnet18.nope", NotFoundError, "it has a1_in1k (default), "),
        ("timm/resnet18.a1_in1", NotFoundError, "did you mean resnet18.a1_in1k"),
        ("timm/convnext_atto_rms.in1k", NotFoundError, "it has none"),
        ("timm", UsageError, "write timm/NAME or 'timm(files=\"DIR\")'"),
        ('timm/resnet18(files="here")', UsageError, "timm/resnet18 takes no files"),
        ("timm/a/b/c", UsageError, "write timm/ARCHITECTURE.TAG or timm/ORG/REPO"),
        ("timm/resnet18(dtype=float64)", UsageError, "float32, bfloat16, float16"),
        ("timm/resnet18(weight=random)", UsageError, "weights"),
    ],
)
def test_a_wrong_name_or_argument_is_told_in_one_line(spec: str, error: type[ZooError], message: str) -> None:
    with pytest.raises(error) as caught:
        resolve(spec, target=CLASSES)
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_architecture_without_weights_says_what_to_write() -> None:
    with pytest.raises(ZooError, match=r"write 'timm/convnext_atto_rms\(weights=random\)'"):
        resolve("timm/convnext_atto_rms", target=CLASSES)
    assert resolve("timm/convnext_atto_rms(weights=random)", target=CLASSES).num_stages == 12


def test_the_default_tag_comes_first() -> None:
    assert next(iter(known_tags()["resnet50"])) == "a1_in1k"
    assert "tv_in1k" in known_tags()["resnet50"]
