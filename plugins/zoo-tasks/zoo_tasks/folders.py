"""`image-folder(path="./flowers")` and `audio-folder`: a folder for each class, or the class in names of files."""

from __future__ import annotations

from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_core.contracts import SUFFIXES, Modality, Source, Survey, Target, TaskData
from zoo_core.errors import UsageError
from zoo_tasks.found import Found, find

if TYPE_CHECKING:
    from zoo_tasks.media import Media

__all__ = ["AudioFolder", "ImageFolder", "globs"]


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Pictures in a folder for each class; the names of the folders, sorted, are the classes.

    path: the folder of the class folders, or of train, val and test with class folders in each. Without those, 60 % of
    each class train, 20 % validate and 20 % test; with train and val alone, val is the test split and validation is
    carved from train.
    pattern: where names of files tell something: "{patient}_*", or "{label}_{patient}_*" in place of class folders.
    group: a field of it; pictures with the same text there stay together. test, val: such texts to hold out.
    split: a CSV file of `item,split` in the folder, in place of drawing; `zoo data` tells where it stores one.
    seed: of a drawn split; it is part of the task, so all trials of it see the same test split.
    duplicates: copies are left out but for one, and all of those that lie in several classes; keep takes them all.
    unreadable: stop names what cannot be read, skip leaves it out.
    """

    path: str
    pattern: str | None = None
    group: str | None = None
    test: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    split: str | None = None
    seed: int = 0
    duplicates: Literal["leave-out", "keep"] = "leave-out"
    unreadable: Literal["stop", "skip"] = "stop"

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "image"
    metric: ClassVar[str] = "accuracy"

    @property
    def target(self) -> Target:
        return classes_of(self._found(), self.path)

    def source(self) -> Source | None:
        return Source(
            folder=self.path, patterns=(*globs(SUFFIXES["image"]), *((escape(self.split),) if self.split else ()))
        )

    def open(self, files: Path | None) -> TaskData:
        return self._media().open()

    def inferred(self) -> tuple[str, ...]:
        return told(self._found(), "pictures", self)

    def survey(self, files: Path) -> Survey:
        return self._media().survey(self.inferred())

    def _found(self) -> Found:
        return find(Path(self.path).expanduser(), SUFFIXES["image"], what="pictures", pattern=self.pattern)

    def _media(self) -> Media:
        from zoo_tasks.media import Media  # numpy and pyarrow

        return Media(recipe=self, found=self._found(), target=self.target, form="pictures")


@dataclass(frozen=True, kw_only=True)
class AudioFolder:
    """Sounds in a folder for each class, or with the class in their names; arguments as those of `image-folder`.

    Spoken digits with one speaker left out:
    audio-folder(path="recordings",pattern="{label}_{speaker}_*",group=speaker,test=[theo])
    rates: one, all sounds have one sampling rate; mixed, each backbone resamples what it is given.
    """

    path: str
    pattern: str | None = None
    group: str | None = None
    test: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    split: str | None = None
    seed: int = 0
    rates: Literal["one", "mixed"] = "one"
    duplicates: Literal["leave-out", "keep"] = "leave-out"
    unreadable: Literal["stop", "skip"] = "stop"

    version: ClassVar[int] = 1
    modality: ClassVar[Modality] = "audio"
    metric: ClassVar[str] = "accuracy"

    @property
    def target(self) -> Target:
        return classes_of(self._found(), self.path)

    def source(self) -> Source | None:
        return Source(
            folder=self.path, patterns=(*globs(SUFFIXES["audio"]), *((escape(self.split),) if self.split else ()))
        )

    def open(self, files: Path | None) -> TaskData:
        return self._media().open()

    def inferred(self) -> tuple[str, ...]:
        return told(self._found(), "sounds", self)

    def survey(self, files: Path) -> Survey:
        return self._media().survey(self.inferred())

    def _found(self) -> Found:
        return find(Path(self.path).expanduser(), SUFFIXES["audio"], what="sounds", pattern=self.pattern)

    def _media(self) -> Media:
        from zoo_tasks.media import Media  # numpy and pyarrow

        return Media(recipe=self, found=self._found(), target=self.target, form="sounds", one_rate=self.rates == "one")


def classes_of(found: Found, path: str) -> Target:
    """The classes that folders are named after. Raises UsageError where there is one."""
    if len(found.classes) < 2:
        raise UsageError(
            f"{path} has one class, {found.classes[0]}; a classifier needs a folder for each of two or more "
            f"(if its subfolders are the classes, give {path}/{found.classes[0]})"
        )
    return Target(kind="classes", names=found.classes)


def told(found: Found, what: str, recipe: ImageFolder | AudioFolder) -> tuple[str, ...]:
    """What folders and names were taken to say."""
    classes = found.classes
    shown = ", ".join(classes) if len(classes) <= 6 else f"{', '.join(classes[:3])}, ... {classes[-1]}"
    where = "in their names" if "label" in found.fields else "named after their folders"
    lines = [f"{len(found.names)} {what} of {len(classes)} classes, {where}: {shown}"]
    if recipe.group in found.fields:
        groups = sorted(set(found.fields[recipe.group or ""]))
        lines.append(f"group: {recipe.group}, {len(groups)} of them, never divided")
    if recipe.split:
        lines.append(f"split: as {recipe.split} says")
    elif recipe.test:
        lines.append(f"split: test holds {', '.join(recipe.test)}")
    elif not found.splits or set(found.splits) == {"train"}:
        lines.append("split: none is given, so 60/20/20 % of each class, drawn by content; seed=, split=FILE change it")
    elif "test" not in found.splits:
        lines.append("split: train and val folders; val is the test split, and validation is carved from train")
    else:
        lines.append(f"split: the folders {', '.join(sorted(set(found.splits)))}; split=FILE changes it")
    return tuple(lines)


def globs(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """A pattern for each suffix, in small and capital letters."""
    return tuple("*." + "".join(f"[{a}{a.upper()}]" if a.isalpha() else a for a in each[1:]) for each in suffixes)
