"""`unlabelled(path="./photos")`: your examples of which nobody has said anything, for what learns without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_core.contracts import SUFFIXES, Modality, Source, Survey, Target, TaskData
from zoo_core.errors import NotFoundError, UsageError
from zoo_tasks.arrays import Npz
from zoo_tasks.class_folders import ClassFolders, files_below, is_split, some
from zoo_tasks.columns import Given
from zoo_tasks.folders import globs
from zoo_tasks.layout import Layout
from zoo_tasks.readers import TABLES
from zoo_tasks.reading import File, Form, table_files
from zoo_tasks.tables import Csv, Jsonl, Parquet, Tsv, source_of

if TYPE_CHECKING:
    from zoo_tasks.matrices import Matrices
    from zoo_tasks.media import Media
    from zoo_tasks.rows import Rows

__all__ = ["Unlabelled"]

Held = Literal["pictures", "sounds", "lines", "tables", "arrays"]
FORMS: Mapping[Held, tuple[str, ...]] = {
    "pictures": SUFFIXES["image"],
    "sounds": SUFFIXES["audio"],
    "lines": (".txt",),
    "tables": tuple(TABLES),
    "arrays": (".npz",),
}
MEANT: Mapping[str, tuple[Held, ...]] = {
    "auto": tuple(FORMS),
    "image": ("pictures", "tables", "arrays"),
    "audio": ("sounds", "tables"),
    "text": ("lines", "tables"),
    "table": ("arrays", "tables"),
}
READERS: Mapping[str, type[Csv] | type[Jsonl]] = {"csv": Csv, "jsonl": Jsonl, "parquet": Parquet, "tsv": Tsv}


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Your pictures, sounds, texts or arrays without labels; names of folders and all other columns mean nothing.

    path: a folder of pictures or of sounds, flat or nested; a .txt file, a text on each line, or a folder of them; a
    table with texts, or with paths of pictures or sounds; arrays as for `npz`. Of several kinds those that are most.
    modality: what is meant, where a folder holds several. column: of a table the one that is read, of arrays the array.
    Files or folders named train, val and test say the split; else one in ten is held out for test, drawn by its name or
    row and the seed, so that files that are added move no others; validation is carved from train. What is in test is
    left out of train, copies too.
    unreadable: stop names what cannot be read, skip leaves it out.
    """

    path: str
    meant: Literal["auto", "image", "audio", "text", "table"] = field(default="auto", metadata={"argument": "modality"})
    column: str | None = None
    encoding: str = "utf-8"
    seed: int = 0
    unreadable: Literal["stop", "skip"] = "stop"

    version: ClassVar[int] = 1
    metric: ClassVar[str] = "agreement"
    target: ClassVar[Target] = Target(kind="unlabelled")
    duplicates: ClassVar[Literal["leave-out"]] = "leave-out"
    group: ClassVar[None] = None
    split: ClassVar[None] = None
    test: ClassVar[tuple[str, ...]] = ()
    val: ClassVar[tuple[str, ...]] = ()

    @property
    def modality(self) -> Modality:
        if self._held == "arrays":
            return self._npz().modality
        if self._held == "tables":
            return self.layout().columns().modality
        known: Mapping[str, Modality] = {"pictures": "image", "sounds": "audio", "lines": "text"}
        return known[self._held]

    def source(self) -> Source | None:
        if self._held in ("pictures", "sounds"):
            return Source(folder=self.path, patterns=globs(FORMS[self._held]))
        if self._held == "arrays":
            npz = self._npz()
            return Source(folder=str(npz.folder()), patterns=tuple(escape(file.path.name) for file in npz.files()))
        return source_of(self)

    def open(self, files: Path | None) -> TaskData:
        return self._opened().open()

    def inferred(self) -> tuple[str, ...]:
        split = "split: one in ten is held out for test, by name or row; seed= changes it"
        if self._held in ("pictures", "sounds"):
            found = self._found
            told = f"split: the folders {', '.join(sorted(set(found.splits)))}" if found.splits else split
            return f"{len(found.names)} {self._held}, whatever their folders are called", told
        if self._held == "arrays":
            return f"input: array {self.arrays()[0]}; column= names another", split
        layout = self.layout()
        named = [file.split for file in layout.files if file.split]
        lines = layout.columns().lines if self._held == "tables" else ("a text on each line",)
        told = f"split: the files {', '.join(named)}" if named else split
        return (*lines, *([] if layout.columns().split else [told]))

    def survey(self, files: Path) -> Survey:
        return self._opened().survey(self.inferred())

    def layout(self) -> Layout:
        """Of texts and tables the files, and what is said of them."""
        where = self._where
        if self._held == "lines":
            return Layout(
                path=where,
                files=self._texts(),
                form=Form(kind="tsv", separator=" ", encoding=self.encoding, names=("text",)),
                given=Given(kind="unlabelled", text="text"),
            )
        kinds = Counter(TABLES[PurePosixPath(name).suffix.lower()] for name in self._names if _is(name, "tables"))
        reader = READERS[kinds.most_common(1)[0][0]]
        given = Given(kind="unlabelled", column=self.column)
        return replace(reader(path=self.path, encoding=self.encoding).layout(), given=given)

    def files(self) -> tuple[File, ...]:
        """Of arrays the files, and the split of each."""
        return self._npz().files()

    def arrays(self) -> tuple[str, str]:
        """The name of the array of inputs; there is none of targets."""
        return self._npz().inputs(), ""

    @property
    def _where(self) -> Path:
        return Path(self.path).expanduser()

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The files, by their names below the folder, or the one file."""
        if self._where.is_file():
            return (self._where.name,)
        if not self._where.is_dir():
            raise NotFoundError(f"no file or folder {self.path}; path= is a folder of your examples, or a file of them")
        return tuple(sorted(files_below(self._where)))

    @cached_property
    def _held(self) -> Held:
        """What the examples are: of what is meant, that of which there are most files."""
        meant = MEANT[self.meant]
        counts = {form: sum(_is(name, form) for name in self._names) for form in meant}
        form = max(meant, key=lambda each: counts[each])
        if not counts[form]:
            holds = f"holds {some(self._names)}" if self._names else "is an empty folder"
            read = ", ".join(suffix for each in meant for suffix in FORMS[each])
            raise UsageError(f"{self.path} {holds}; read without labels are {read}")
        if form in ("pictures", "sounds") and self._where.is_file():
            raise UsageError(f"{self.path} is one file of {form}; path= is the folder of them")
        return form

    @cached_property
    def _found(self) -> ClassFolders:
        """The files of media, all of one kind, and their splits if the uppermost folders are named after those."""
        names = tuple(name for name in self._names if _is(name, self._held))
        tops = [is_split(name.partition("/")[0]) if "/" in name else None for name in names]
        splits = tuple(top for top in tops if top is not None)
        return ClassFolders(
            names=names,
            labels=("",) * len(names),
            splits=splits if len(splits) == len(names) and "train" in splits else (),
            fields={},
            ignored=tuple(name for name in self._names if not _is(name, self._held)),
        )

    def _texts(self) -> tuple[File, ...]:
        """The files of lines: those whose names say train, val or test, if they do, else all."""
        if self._where.is_file():
            return (File(path=self._where, split=""),)
        names = [name for name in self._names if _is(name, "lines")]
        if any(is_split(PurePosixPath(name).stem) for name in names):
            return table_files(self._where, FORMS["lines"], None)
        return tuple(File(path=self._where / name, split="") for name in names)

    def _npz(self) -> Npz:
        return Npz(path=self.path, x=self.column)

    def _opened(self) -> Media | Rows | Matrices:
        """What reads the examples, by libraries that a look does without."""
        if self._held in ("pictures", "sounds"):
            from zoo_tasks.media import Media

            form: Literal["pictures", "sounds"] = "pictures" if self._held == "pictures" else "sounds"
            return Media(recipe=self, found=self._found, target=self.target, form=form, one_rate=False)
        if self._held == "arrays":
            from zoo_tasks.matrices import Matrices

            return Matrices(recipe=self)
        from zoo_tasks.rows import Rows

        layout = self.layout()
        return Rows(recipe=self, layout=layout, columns=layout.columns())


def _is(name: str, form: Held) -> bool:
    return name.lower().endswith(FORMS[form])
