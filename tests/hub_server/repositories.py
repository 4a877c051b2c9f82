"""What the server keeps: repositories with their commits, branches and tags, uploaded objects, and who may do what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal

RepoType = Literal["model", "dataset"]
DATE = "2024-01-01T00:00:00.000Z"  # of every commit: what the server says depends on contents alone

# A new repository on the Hub starts with a .gitattributes that sends these suffixes to LFS, among others.
LFS_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".gguf", ".gz", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".parquet", ".pkl", ".pt", ".pth"}
    | {".safetensors", ".tar", ".tflite", ".wasm", ".zip"}
)
LFS_BYTES = 10_000_000  # larger files go to LFS whatever they are called
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES)).encode()


def git_sha1(content: bytes) -> str:
    """The name that git gives a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return Path(path).suffix in LFS_SUFFIXES or size > LFS_BYTES


@dataclass(frozen=True)
class Blob:
    """The content of one file, and whether it is kept in git or in LFS."""

    content: bytes
    lfs: bool

    @classmethod
    def of(cls, path: str, content: bytes) -> Blob:
        return cls(content, is_lfs(path, len(content)))

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git keeps of a file in LFS."""
        lines = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return lines.encode()

    @cached_property
    def git_oid(self) -> str:
        return git_sha1(self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        """The name of the file in a client's cache: its sha256 in LFS, else its git sha1."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """One state of a repository. oid: 40 hex digits that depend on parent, title and files, not on the time."""

    parent: str
    title: str
    files: Mapping[str, Blob]

    @cached_property
    def oid(self) -> str:
        lines = [f"{path}\0{blob.git_oid}\n" for path, blob in sorted(self.files.items())]
        text = f"{self.parent}\n{self.title}\n{''.join(lines)}"
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """A repository; the three flags may be changed while it is served.

    gated: everybody sees it, and only tokens that may read it get its files.
    private: only tokens that may read it see it.
    disabled: nobody gets anything.
    """

    repo_id: str
    repo_type: RepoType = "model"
    gated: bool = False
    private: bool = False
    disabled: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, changes: Mapping[str, Blob | None], *, title: str, branch: str = "main") -> Commit:
        """A new commit at the head of the branch; None deletes a file. Older commits stay."""
        parent = self.commits.get(self.branches.get(branch, ""))
        files = dict(parent.files) if parent else {}
        for path, blob in changes.items():
            if blob is None:
                del files[path]
            else:
                files[path] = blob
        new = Commit(parent.oid if parent else "", title, files)
        self.commits[new.oid] = new
        self.branches[branch] = new.oid
        return new

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or 40 hex digits name."""
        name = revision.removeprefix("refs/heads/")
        return self.commits.get(self.branches.get(name) or self.tags.get(name) or revision)


@dataclass(frozen=True)
class Token:
    """Whom a token stands for and, as patterns of repository ids, what it opens beyond what is public."""

    user: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()

    def reads(self, repo_id: str) -> bool:
        return any(fnmatchcase(repo_id, pattern) for pattern in self.read + self.write)

    def writes(self, repo_id: str) -> bool:
        return any(fnmatchcase(repo_id, pattern) for pattern in self.write)


@dataclass
class Hub:
    """All that the server knows. repositories: by type and id. objects: uploaded to LFS, by sha256."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def find_object(self, sha256: str, *repositories: Repository) -> bytes | None:
        """An object that was uploaded, committed or not, or in one of the repositories (none named: any)."""
        if sha256 in self.objects:
            return self.objects[sha256]
        commits = (commit for r in repositories or self.repositories.values() for commit in r.commits.values())
        blobs = (blob for commit in commits for blob in commit.files.values() if blob.lfs)
        return next((blob.content for blob in blobs if blob.sha256 == sha256), None)
