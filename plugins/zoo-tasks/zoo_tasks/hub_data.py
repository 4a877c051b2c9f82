"""`hub-data/ORG/SET@revision`: a data set of the Hub, pinned by commit and hashed, its files read as your own are.

Files alone are read: Parquet, CSV, TSV, JSON lines, pictures or sounds in class folders. No code of a repository is
ever downloaded or run. What the columns hold is inferred from the first file, so that a look at a large set is cheap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from zoo_core.contracts import SUFFIXES, Modality, Source, Survey, Target, TaskData
from zoo_core.errors import UsageError
from zoo_core.toolkit.files import cache_path, fresh_name
from zoo_tasks.chosen import Chosen, choose
from zoo_tasks.columns import Given
from zoo_tasks.folders import AudioFolder, ImageFolder
from zoo_tasks.reading import File, Form
from zoo_tasks.store import key_of
from zoo_tasks.tables import Copies, Kind, Layout, Reads, Unreadable

if TYPE_CHECKING:
    from zoo_tasks.rows import Rows

__all__ = ["HubData"]

LOOKED_AT_BYTES = 32_000_000  # a set of no more is looked at whole, so that its classes are known beforehand
SEPARATORS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True, kw_only=True)
class HubData(Reads):
    """A data set of the Hub: `hub-data/ORG/SET`, with `@revision` a branch, a tag or a commit.

    config: one of the configurations that its card lists, or a folder of that name. pattern: of the files to read, as
    "data/{split}-*.parquet" or "images/*". Without them: every table, or else every picture or sound; names that say
    train, val (validation, dev) or test tell the split. target, text, tokens, image, audio, features, kind, names,
    header, separator, encoding, strip, group, split, test, val, seed, duplicates, unreadable: as those of `csv`,
    `jsonl` and `image-folder`. Pictures and sounds inside Parquet files are read, and classes get the names that
    `datasets` noted there.
    """

    name: str
    config: str | None = None
    pattern: str | None = None
    target_column: str | tuple[str, ...] | None = field(default=None, metadata={"argument": "target"})
    text: str | None = None
    tokens: str | None = None
    image: str | None = None
    audio: str | None = None
    features: tuple[str, ...] = ()
    kind: Kind = "auto"
    names: tuple[str, ...] = ()
    header: Literal["auto", "yes", "no"] = "auto"
    separator: str | None = None
    encoding: str = "utf-8"
    strip: str = ""
    group: str | None = None
    split: str | None = None
    test: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    seed: int = 0
    duplicates: Copies = "auto"
    unreadable: Unreadable = "stop"
    where: tuple[str | None, bool] = field(init=False, default=(None, False), repr=False)

    version: ClassVar[int] = 1

    def at(self, revision: str | None, *, offline: bool) -> HubData:
        """Itself at a revision. offline: only what is on this machine is looked at."""
        found = replace(self)
        object.__setattr__(found, "where", (revision, offline))
        return found

    @property
    def path(self) -> str:
        """What errors call it, and locks."""
        return f"hub-data/{self.name}"

    @property
    def repository(self) -> str:
        """As in its address."""
        return f"datasets/{self.name}"

    # --- what is in the repository -----------------------------------------------------------------------------------

    @cached_property
    def chosen(self) -> Chosen:
        """The files that are read, and how."""
        if not re.fullmatch(r"[^/]+/[^/]+", self.name):
            raise UsageError(f"{self.path} is no data set of the Hub; write hub-data/ORG/SET")
        from zoo_core.toolkit.repositories import commit_of  # the Hub's client

        revision, offline = self.where
        found = commit_of(self.repository, revision, offline=offline)
        return choose(
            found.names,
            found.card,
            called=self.path,
            config=self.config,
            pattern=self.pattern,
            commit=found.revision,
        )

    def _of(self, names: Sequence[str]) -> Source:
        """These files, by their whole names."""
        return Source(repository=self.repository, revision=self.chosen.commit, patterns=tuple(map(escape, names)))

    def _fetched(self, names: Sequence[str]) -> Path:
        """The folder with these files, each downloaded unless it is here, and verified."""
        from zoo_core.toolkit.repositories import folder_of

        return folder_of(self._of(names), offline=self.where[1])

    # --- a recipe ----------------------------------------------------------------------------------------------------

    @property
    def modality(self) -> Modality:
        if self.chosen.reader in MODALITIES:
            return MODALITIES[self.chosen.reader]
        return self.layout().columns().modality

    @property
    def metric(self) -> str:
        return "accuracy" if self.chosen.reader in MODALITIES else super().metric

    @property
    def target(self) -> Target:
        return self._folder().target if self.chosen.reader in MODALITIES else super().target

    def source(self) -> Source:
        """Its files at one commit."""
        return self._of((*self.chosen.names, *self._media()))

    def open(self, files: Path | None) -> TaskData:
        if self.chosen.reader in MODALITIES:
            return self._folder(files).open(None)
        return self._rows(files).open()

    def inferred(self) -> tuple[str, ...]:
        lines = self._folder().inferred() if self.chosen.reader in MODALITIES else super().inferred()
        return (f"{self.repository} at {self.chosen.commit[:12]}: {self.chosen.told()}", *lines)

    def survey(self, files: Path) -> Survey:
        root = self._fetched((*self.chosen.names, *self._media()))
        if self.chosen.reader in MODALITIES:
            return self._folder(root).survey(root)
        return self._rows(root).survey(self.inferred())

    # --- tables ------------------------------------------------------------------------------------------------------

    def layout(self) -> Layout:
        """Its tables for a look: all of them if they are small, else the first."""
        from zoo_core.toolkit.repositories import hashes_of

        names, splits = self.chosen.names, self.chosen.splits
        hashes = hashes_of(self._of(names), offline=self.where[1])
        looked_at = names if sum(hashes[name].size for name in names) <= LOOKED_AT_BYTES else names[:1]
        root = self._fetched(looked_at)
        files = tuple(File(path=root / name, split=split) for name, split in zip(names, splits, strict=True))
        reader = cast(Literal["csv", "tsv", "jsonl", "parquet"], self.chosen.reader)
        form = Form(
            kind=reader,
            separator=self.separator or SEPARATORS.get(reader, ","),
            encoding=self.encoding,
            names=self.names,
            header=None if self.header == "auto" else self.header == "yes",
        )
        given = Given(
            target=(self.target_column,) if isinstance(self.target_column, str) else self.target_column or (),
            text=self.text,
            tokens=self.tokens,
            image=self.image,
            audio=self.audio,
            features=self.features,
            kind=None if self.kind == "auto" else self.kind,
            group=self.group,
            split=self.split,
            strip=self.strip,
        )
        return Layout(
            path=root, files=files, form=form, given=given, called=self.path, looked_at=files[: len(looked_at)]
        )

    def _rows(self, files: Path | None) -> Rows:
        from zoo_tasks.rows import Rows  # numpy and pyarrow

        layout = self.layout()
        if files is not None:
            assert files == layout.path, "one commit has one folder"
        return Rows(recipe=self, layout=layout, columns=layout.columns())

    def _media(self) -> tuple[str, ...]:
        """Pictures or sounds that the rows of a table name."""
        if self.chosen.reader in MODALITIES:
            return ()
        columns = self.layout().columns()
        suffixes = SUFFIXES.get(columns.form, ())
        if columns.inline or not suffixes:
            return ()
        return tuple(name for name in self.chosen.others if name.lower().endswith(tuple(suffixes)))

    # --- folders -----------------------------------------------------------------------------------------------------

    def _folder(self, files: Path | None = None) -> ImageFolder | AudioFolder:
        """The recipe of a folder with links to its files, and nothing beside them. files: None for names alone."""
        names = self.chosen.names
        root = cache_path("hub-data", f"{key_of(self.repository, self.chosen.commit, names, str(files))}/x").parent
        start = len(self.chosen.prefix)
        for name in names:
            link = root / name[start:]
            if link.is_symlink() or link.exists():
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(fresh_name(link))  # another process may make it too
            if files is None:
                fresh.touch()
            else:
                fresh.symlink_to(files / name)
            fresh.replace(link)
        make = ImageFolder if self.chosen.reader == "image-folder" else AudioFolder
        return make(
            path=str(root),
            group=self.group,
            test=self.test,
            val=self.val,
            seed=self.seed,
            duplicates="keep" if self.duplicates == "keep" else "leave-out",
            unreadable=self.unreadable,
        )


MODALITIES: dict[str, Modality] = {"image-folder": "image", "audio-folder": "audio"}
