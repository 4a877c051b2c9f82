"""What run.json of a stored run says of the model in the folder, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo_core.contracts import MODALITIES, TARGET_KINDS, Modality, Target
from zoo_core.contracts.old_words import current_word
from zoo_core.errors import AccessError, IntegrityError, NotFoundError
from zoo_core.registry.catalog import Catalog
from zoo_core.run_layout import RESULTS, RUN
from zoo_core.spec.parser import parse

__all__ = ["damaged", "described_in", "run_table", "target_in", "text_in"]


def run_table(file: Path) -> dict[str, Any]:
    """What the file holds. Raises NotFoundError (no run there), AccessError, IntegrityError (damaged)."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        made_by = "`zoo fit SPEC --task T --out DIR` makes one"
        if (file.parent / RESULTS).exists():
            raise NotFoundError(
                f"{file.parent} is the folder of a bench, which stores results and not models; {made_by}"
            ) from None
        raise NotFoundError(f"{file.parent} holds no fitted model ({RUN} is missing); {made_by}") from None
    except OSError as error:
        raise AccessError(f"{file} cannot be read ({error.strerror}); mend its rights") from error
    except (ValueError, RecursionError) as error:
        raise damaged(file, error) from error
    if not isinstance(table, dict):
        raise IntegrityError(f"{file} is damaged (no JSON object); copy it again, or fit the model again")
    return table


def target_in(table: Mapping[str, Any]) -> Target:
    """The target that a table holds. Raises ValueError, KeyError or TypeError for what is none."""
    kind, size, names = current_word(text_in(table["kind"])), table["size"], tuple(map(text_in, table["names"]))
    found = [known for known in TARGET_KINDS if known == kind]
    if not found:
        raise ValueError(f"unknown target kind {kind!r}")
    if type(size) is not int or size < 1 or (names and len(names) != size):
        raise ValueError(f"a target of size {size!r} with {len(names)} names")
    return Target(kind=found[0], size=size, names=names)


def text_in(value: object) -> str:
    """The value, which is text. Raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def damaged(file: Path, error: Exception) -> IntegrityError:
    """The error of a run.json that cannot be read."""
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return IntegrityError(f"{file} is damaged ({said}); copy it again, or fit the model again")


def described_in(file: Path, catalog: Catalog) -> tuple[Modality | None, Target]:
    """What the model of a run reads, None if only building it tells, and what it predicts.

    Raises what `run_table` raises.
    """
    table = run_table(file)
    try:
        target, told = target_in(table["target"]), table.get("modality")
        backbone = parse(text_in(table["spec"])).parts[0].name
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, error) from error
    entry = catalog.find(backbone, "backbone")
    known = [modality for modality in MODALITIES if modality == told]
    return known[0] if known else None if entry is None else entry.modality, target
