"""Files in a plan: which of a source's a build reads, when a digest is known, and what it depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zoo_core.contracts import FileHash, Source, Weights
from zoo_core.errors import IncompatibleError, UsageError
from zoo_core.lock import Pinned
from zoo_core.plan.plan import Plan, needed, pinned, reseeded

FAR = "backbone:nasty/far"
COMMIT = "c0ffee" * 6 + "abcd"
FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-1.safetensors", "pytorch_model.bin")


def pin(**hashes: str) -> Pinned:
    files = {f"{name}.safetensors": FileHash(sha256=sha * 32, size=1) for name, sha in hashes.items()}
    return Pinned(repository="org/far", revision=COMMIT, files=files)


@pytest.mark.parametrize(
    ("weights", "globs", "expected"),
    [
        ("random", ("model.safetensors",), ("config.json",)),
        ("pretrained", ("model.safetensors", "pytorch_model.bin"), ("config.json", "model.safetensors")),
        ("pretrained", ("none.*", "model-*.safetensors"), ("config.json", "model-1.safetensors")),
        ("pretrained", ("pytorch_model.bin",), ("config.json", "pytorch_model.bin")),
        ("pretrained", (), ("config.json",)),
    ],
)
def test_of_the_first_glob_that_fits_all_files_are_read(
    weights: Weights, globs: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    source = Source(repository="org/name", patterns=("config.json", "absent.json"), weights=globs)
    assert needed(source, weights, dict.fromkeys(FILES)) == expected


def test_a_plan_has_no_digest_before_its_files_are_pinned(nasty: Any) -> None:
    plan: Plan = nasty.resolve("nasty/far")
    assert (plan.unpinned, plan.digest, plan.base_digest, plan.combination) == ((FAR,), None, None, None)
    assert reseeded(plan, 1).digest is None
    done = pinned(plan, {FAR: pin(model="ab")})
    assert done.unpinned == ()
    assert None not in (done.digest, done.base_digest)
    assert reseeded(done, 1).digest not in (None, done.digest)


def test_a_lock_pins_what_resolve_is_given(nasty: Any) -> None:
    pins = {FAR: pin(model="ab")}
    assert nasty.resolve("nasty/far", pins=pins) == pinned(nasty.resolve("nasty/far"), pins)


def test_a_digest_follows_the_bytes_of_the_files(nasty: Any) -> None:
    digests = {nasty.resolve("nasty/far", pins={FAR: pin(model=sha)}).digest for sha in ("ab", "ab", "cd")}
    assert len(digests) == 2


def test_a_lock_of_another_repository_is_refused(nasty: Any) -> None:
    elsewhere = replace(pin(model="ab"), repository="org/near")
    with pytest.raises(IncompatibleError, match=f"pins {FAR} to org/near, and it comes from org/far now.*zoo lock"):
        nasty.resolve("nasty/far", pins={FAR: elsewhere})


def test_a_revision_goes_with_a_repository(nasty: Any) -> None:
    plan: Plan = nasty.resolve("nasty/far@v2")
    assert plan.sources == {f"{FAR}@v2": Source(repository="org/far", revision="v2", weights=("*.safetensors",))}
    with pytest.raises(UsageError, match=r"nothing of nasty/tokens comes from a repository; leave @v2 out"):
        nasty.resolve("nasty/tokens@v2")


def test_where_a_folder_lies_is_no_part_of_a_trial(nasty: Any) -> None:
    """The same bytes in two places are one trial; other bytes in one place are two."""

    def planned(folder: str, sha: str) -> Plan:
        key = f'task:boxes(files="{folder}")'
        files = {"rows.csv": FileHash(sha256=sha * 32, size=1)}
        plan: Plan = nasty.resolve("nasty/tokens", task=f'boxes(files="{folder}")')
        assert plan.unpinned == (key,)
        return pinned(plan, {key: Pinned(folder=folder, files=files)})

    assert planned("/here", "ab").digest == planned("/there", "ab").digest != planned("/here", "cd").digest
