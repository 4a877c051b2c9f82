"""Files that a plugin keeps for itself, or looks at more than once. Light: a recipe's module may import it.

All but `cache_path` is re-exported: rooms below this one hash and write with the same functions.
"""

from __future__ import annotations

from pathlib import Path

from zoo_core._process.atomic_files import fresh_name, replacing
from zoo_core.errors import AccessError
from zoo_core.files.hashing import hash_of, is_settled, read_memory, write_memory
from zoo_core.registry.settings import cache_folder

__all__ = ["cache_path", "fresh_name", "hash_of", "is_settled", "read_memory", "replacing", "write_memory"]


def cache_path(room: str, name: str) -> Path:
    """A path below the cache folder; its folder is made. room: the plugin's own folder there.

    Whatever lies there may be gone at the next look, since users clear caches. Write it with `replacing`, as other
    processes may write it at the same moment. Raises AccessError where the folder cannot be made.
    """
    path = Path(cache_folder(), room, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AccessError(
            f"{path.parent} cannot be made ({error.strerror}); set ZOO_CACHE to another folder"
        ) from error
    return path
