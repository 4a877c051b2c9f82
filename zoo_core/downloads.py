"""One file of a commit, with the right content: found in the Hugging Face cache, or downloaded; a wrong one is removed.

Any number of processes may ask for a file at once; the client's lock lets one of them download it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from zoo_core import remote
from zoo_core.errors import AccessError, IntegrityError

__all__ = ["right_file"]


def right_file(
    repository: str,
    commit: str,
    name: str,
    check: Callable[[Path], object],
    report: Callable[[int], None] | None = None,
) -> Path:
    """The path of a file that is right. check: raises IntegrityError for one that is not.

    A wrong one, whether it lay there or has just come, is removed and downloaded once more; if that is wrong too,
    IntegrityError. report: is told how many bytes have come.
    """
    wrong = None
    for _ in range(2):
        num_removed = _remove_if_wrong(remote.cached(repository, commit, name), check)
        try:
            path = remote.download(repository, commit, name, report, force=num_removed == 1)
            check(path)
            return path
        except IntegrityError as error:
            wrong = error
            if num_removed:
                break
    _remove_if_wrong(remote.cached(repository, commit, name), check)
    raise IntegrityError(
        f"{repository} at {commit[:12]}: {name} was downloaded again and is still wrong ({wrong}); nothing of it is "
        f"kept; look for a proxy that changes files, or try later"
    ) from wrong


def _remove_if_wrong(path: Path | None, check: Callable[[Path], object]) -> int:
    """Removes a file from the cache, if it is there and wrong: the link, and what it leads to.

    The answer is how many names that were; of 1, the cache may hold a copy under another name. What another process
    has put there in the meantime stays.
    """
    if path is None:
        return 0
    try:
        before = path.stat()
    except FileNotFoundError:
        return 0
    try:
        check(path)
        return 0
    except IntegrityError:
        pass
    chain = [path]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / chain[-1].readlink())
    try:
        if not os.path.samestat(before, path.stat()):
            return 0
        for link in chain:
            link.unlink(missing_ok=True)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise AccessError(f"{path} is damaged and cannot be removed ({error.strerror}); mend its rights") from error
    return len(chain)
