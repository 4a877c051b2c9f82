"""Metrics and augmentations of plugins: bound, held against the task, part of the digest, and at work in a fit."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.tiny import tiny  # noqa: F401 -- a fixture
from zoo_core.benchmark.trial import run_trial
from zoo_core.contracts import Target, TargetKind
from zoo_core.data.augmentation import Augment, Flip, Light, WordDropout
from zoo_core.errors import AmbiguousError, NotFoundError, PluginError, RefusedError, UsageError, ZooError
from zoo_core.files.fetch import pin_plan
from zoo_core.plan.extensions import augmentation_of, metric_of
from zoo_core.plan.plan import Budget, Plan
from zoo_core.plan.resolve import resolve
from zoo_core.registry.index import Index, read_folders
from zoo_core.registry.registry import Registry, registry
from zoo_core.spec.parser import Part, parse_part
from zoo_core.testing.distributions import make_distribution
from zoo_core.testing.recipes import ToyTasks, bound

ACME = """
    from __future__ import annotations
    from dataclasses import dataclass
    from typing import ClassVar

    @dataclass(frozen=True, kw_only=True)
    class Within:
        '''Share of values that are at most `far` from the true one.'''
        far: float = 1.0
        version: ClassVar[int] = 1
        targets: ClassVar[frozenset[str]] = frozenset({"classes", "regression"})
        higher_is_better: ClassVar[bool] = True
        def score(self, predictions, truth, target):
            if target.kind == "classes":
                return float((predictions.argmax(1) - truth).abs().le(self.far).double().mean())
            return float((predictions - truth).abs().le(self.far).double().mean())

    @dataclass(frozen=True, kw_only=True)
    class Fails:
        version: ClassVar[int] = 1
        targets: ClassVar[frozenset[str]] = frozenset({"classes"})
        higher_is_better: ClassVar[bool] = False
        def score(self, predictions, truth, target):
            raise KeyError("nothing")

    @dataclass(frozen=True, kw_only=True)
    class Vague:
        version: ClassVar[int] = 1
        targets: ClassVar[frozenset[str]] = frozenset({"clases"})
        higher_is_better: ClassVar[bool] = False
        def score(self, predictions, truth, target): ...

    @dataclass(frozen=True, kw_only=True)
    class Shift:
        '''A picture moved to the right by up to `most` columns.'''
        most: int = 2
        version: ClassVar[int] = 1
        modalities: ClassVar[frozenset[str]] = frozenset({"image"})
        targets: ClassVar[frozenset[str]] = frozenset({"classes"})
        def augment(self, example):
            import torch
            return example.roll(int(torch.randint(1, self.most + 1, ())), -1)

    @dataclass(frozen=True, kw_only=True)
    class Loses:
        version: ClassVar[int] = 1
        modalities: ClassVar[frozenset[str]] = frozenset({"image"})
        targets: ClassVar[frozenset[str]] = frozenset({"classes"})
        def augment(self, example):
            return None
"""
POINTS = """
    [zoo.metrics]
    within = acme:Within
    fails = acme:Fails
    vague = acme:Vague
    [zoo.augmentations]
    shift = acme:Shift
    loses = acme:Loses
"""
CLASSES = Target(kind="classes", size=3)


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Registry]:
    """A registry of all that is installed and a plugin `acme`, read anew at each call."""
    site = tmp_path / "site"
    make_distribution(site, "acme", entry_points=POINTS, files={"acme.py": ACME})
    monkeypatch.syspath_prepend(site)

    def read() -> Registry:
        sys.modules.pop("acme", None)
        return Registry(Index(read_folders(list(dict.fromkeys(sys.path)))))

    return read


def task(metric: Any = "accuracy", **more: Any) -> Any:
    """A toy task that names a metric."""

    class Named(ToyTasks):
        metric: ClassVar[Any]

    Named.metric = metric
    return bound("task", "toy-task", Named(**more))


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_a_task_names_a_metric_of_a_plugin_with_arguments(acme: Callable[[], Registry]) -> None:
    found = metric_of(task("within(far=2)"), acme())
    assert (found.provider.distribution, found.recipe.far, str(found.canonical())) == ("acme", 2.0, "within(far=2.0)")


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        ("acuracy", r"metric is 'acuracy'; allowed: accuracy, .*within; did you mean accuracy"),
        ("r2", r"metric is 'r2'; allowed: accuracy, average_precision, fails, macro_f1"),
        ("vague", "targets is 'clases'; allowed: classes.*did you mean classes"),
        (3, "task 'toy-task' of zoo-toys 1 breaks its contract: metric: a part of a spec is text or a recipe"),
        ("with in", "metric is 'with in'; allowed"),
    ],
)
def test_a_metric_that_is_none_or_not_for_the_target_is_told(
    acme: Callable[[], Registry], metric: Any, problem: str
) -> None:
    with pytest.raises(ZooError, match=problem):
        metric_of(task(metric), acme())


def test_a_metric_that_fails_is_told_as_its_plugins_fault(acme: Callable[[], Registry]) -> None:
    from zoo_core.training.metrics import score

    metric = metric_of(task("fails"), acme())
    with pytest.raises(PluginError, match=r"metric 'fails' of acme 1.0 raised KeyError: 'nothing' at .*acme.py:"):
        score(metric, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), CLASSES)


def test_two_plugins_that_claim_a_metric_are_both_told(acme: Callable[[], Registry], tmp_path: Path) -> None:
    make_distribution(tmp_path / "site", "bmce", entry_points="[zoo.metrics]\nwithin = acme:Within\n")
    with pytest.raises(AmbiguousError, match=r"metric 'within' is claimed by acme 1.0 and bmce 1.0"):
        metric_of(task("within"), acme())


def test_the_names_of_zoo_core_are_its_own(acme: Callable[[], Registry], tmp_path: Path) -> None:
    make_distribution(
        tmp_path / "site",
        "bmce",
        entry_points="[zoo.metrics]\naccuracy = acme:Within\n"
        "[zoo.augmentations]\nnone = acme:Shift\nlight = acme:Shift\n",
    )
    found = acme()
    assert metric_of(task("accuracy"), found).provider.distribution == "zoo-core"
    states = {each.name: each.state for each in found.providers() if each.distribution == "bmce"}
    assert states == dict.fromkeys(("accuracy", "none", "light"), "disallowed")


# --- augmentations ---------------------------------------------------------------------------------------------------


def named(text: str, **task_facts: Any) -> Any:
    return augmentation_of(text, task(), CLASSES, registry())


def test_an_augmentation_for_other_examples_is_refused_with_those_that_fit() -> None:
    with pytest.raises(RefusedError) as caught:
        named("word-dropout")
    assert str(caught.value) == (
        "augment=word-dropout is for text, and task toy-task is image; allowed here: none, flip, light, strong"
    )


def test_words_are_not_dropped_where_each_has_a_class() -> None:
    kind: TargetKind = "token_classes"
    sentences = task()
    object.__setattr__(sentences.recipe, "modality", "text")
    with pytest.raises(RefusedError, match=r"augment=word-dropout is not for token_classes.*allowed here: none$"):
        augmentation_of("word-dropout", sentences, Target(kind=kind, size=2), registry())


def test_a_misspelt_augmentation_comes_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="no plugin provides an augmentation 'lihgt'; did you mean light"):
        named("lihgt")
    with pytest.raises(UsageError, match="flip has no argument 'q'; it takes p"):
        named("flip(q=1)")
    with pytest.raises(UsageError, match="flip: p is a share, 0 to 1, found 2"):
        named("flip(p=2)")


def test_what_an_augmentation_loses_is_its_plugins_fault(acme: Callable[[], Registry]) -> None:
    part = augmentation_of("loses", task(), CLASSES, acme())
    assert part is not None
    with pytest.raises(PluginError, match=r"augmentation 'loses' of acme 1.0 .*turned Tensor into NoneType"):
        Augment(part)(torch.zeros(1, 2, 2, dtype=torch.uint8))


def test_flip_mirrors_its_share_of_pictures_and_leaves_the_original() -> None:
    picture = torch.arange(6, dtype=torch.uint8).view(1, 2, 3)
    assert Flip(p=1.0).augment(picture).tolist() == [[[2, 1, 0], [5, 4, 3]]]
    assert Flip(p=0.0).augment(picture).equal(picture)
    mirrored = sum(not Flip().augment(picture).equal(picture) for _ in range(400))
    assert 160 < mirrored < 240  # four standard deviations
    assert picture.flatten().tolist() == list(range(6))


def test_word_dropout_leaves_out_its_share_and_never_all() -> None:
    words = [f"w{i}" for i in range(2000)]
    kept = WordDropout(p=0.2).augment(words)
    assert isinstance(kept, list)
    assert 1500 < len(kept) < 1700  # more than five standard deviations
    assert kept == [word for word in words if word in set(kept)], "in their order"
    assert WordDropout(p=0.999).augment("a b c") in ("a", "b", "c")
    assert WordDropout(p=0.0).augment(" as  it is ") == " as  it is "
    assert [WordDropout(p=0.9).augment(text) for text in ("", "one")] == ["", "one"]
    assert len(words) == 2000
    with pytest.raises(ValueError, match="p is a share"):
        WordDropout(p=1.0)


def test_an_augmentation_draws_by_torch_alone() -> None:
    for augment, example in ((WordDropout(p=0.5), "a b c d e f g h"), (Light(), torch.rand(3, 8, 8).mul(255).byte())):
        found: list[Any] = []
        for _ in range(2):
            torch.manual_seed(3)
            found.append(augment.augment(example))  # type: ignore[arg-type]
            random.random()
        assert found[0] == found[1] if isinstance(found[0], str) else torch.equal(found[0], found[1])


# --- digests ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(nasty: Any) -> Callable[..., Plan]:
    return nasty.resolve  # type: ignore[no-any-return]


def test_digests_of_zoo_cores_own_metrics_and_augmentations_are_as_before_there_were_others() -> None:

    found = [
        resolve("starter/vit-nano+full", task="digits", budget=Budget(augment=name)).digest
        for name in ("none", "light", "strong")
    ]
    assert found == [  # as commit 3659ddd gave them
        "b624ba83c02e804469246b94c780359b",
        "8c7e4321438be0d09729ed6a662da3f8",
        "1a7ec3f674ad12156185fdf3254fa31e",
    ]


def test_an_argument_of_an_augmentation_changes_the_digest_and_its_spelling_does_not(plan: Callable[..., Plan]) -> None:
    def digest(augment: Any) -> str | None:
        found = plan("nasty/tokens+full", budget=Budget(augment=augment))
        return found.digest

    assert digest("flip") == digest("flip(p=0.5)") == digest(" flip( p = 0.50 )") == digest(Flip())
    assert len({digest("flip"), digest("flip(p=0.4)"), digest("none"), digest("light")}) == 4
    assert str(plan("nasty/tokens", budget=Budget(augment="flip( p=0.50 )")).trial).split()[2] == "augment=flip"


@pytest.mark.parametrize("what", ["metric", "augmentation"])
def test_the_version_of_a_plugins_recipe_is_in_the_digest_and_its_distributions_is_not(
    what: str, acme: Callable[[], Registry], tmp_path: Path, nasty: Any
) -> None:

    def planned() -> Plan:
        known = acme()
        named = task("within" if what == "metric" else "accuracy")
        budget = Budget(augment="none" if what == "metric" else "shift")
        return resolve("nasty/tokens+full", task=named, budget=budget, registry=known, catalog=nasty.catalog)

    sys.path.insert(0, str(Path(__file__).parents[1] / "nasty"))
    try:
        first = planned()
        assert {part.provider.distribution for part in first.extensions} == {"acme"}
        file, metadata = tmp_path / "site" / "acme.py", tmp_path / "site" / "acme-1.0.dist-info"
        head = (metadata / "METADATA").read_text()
        (metadata / "METADATA").write_text(head.replace("Version: 1.0", "Version: 1.1"))
        assert planned().digest == first.digest
        file.write_text(file.read_text().replace("version: ClassVar[int] = 1", "version: ClassVar[int] = 2"))
        assert planned().digest != first.digest
        assert planned().base_digest == first.base_digest
    finally:
        sys.path.remove(str(Path(__file__).parents[1] / "nasty"))


# --- from end to end -------------------------------------------------------------------------------------------------


def test_a_fit_is_augmented_and_scored_by_a_plugins(acme: Callable[[], Registry], plan: Callable[..., Plan]) -> None:
    known = acme()
    base = plan("nasty/tokens+full", budget=Budget(epochs=1, num_rates=1))
    far = replace(base, metric=known.bind(parse_part("within(far=2)"), "metric"))
    result, _, _ = run_trial(far)
    assert (result.metric, result.score, result.higher_is_better) == ("within(far=2.0)", 1.0, True)
    assert result.versions["acme"] == "1.0"
    shifted = replace(base, augmentation=known.bind(Part("shift"), "augmentation"))
    losses = [run_trial(each)[0].chosen for each in (base, shifted, shifted)]
    assert losses[1] == losses[2] != losses[0]


def test_words_of_a_text_task_are_dropped_in_training_as_the_seed_says(
    acme: Callable[[], Registry],
    tiny: Callable[[str], str],  # noqa: F811 -- the fixture
    tmp_path: Path,
) -> None:
    rows = [f"{label} film number {i % 7} that was {label},{label}" for i in range(40) for label in ("good", "bad")]
    file = tmp_path / "films.csv"
    file.write_text("\n".join(["text,label", *rows]))
    known = acme()
    chosen = []
    for augment in ("none", "word-dropout(p=0.5)", "word-dropout(p=0.50)"):
        budget = Budget(epochs=1, num_rates=1, augment=augment)
        plan = pin_plan(resolve(f"{tiny('bert')}+full", task=f'csv(path="{file}")', budget=budget))
        result = run_trial(replace(plan, metric=known.bind(parse_part("within(far=0)"), "metric")))[0]
        assert (result.metric, result.higher_is_better) == ("within(far=0.0)", True)
        chosen.append((plan.digest, result.chosen, result.score))
    assert chosen[1] == chosen[2] != chosen[0]
