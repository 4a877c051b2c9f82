"""What a user may set: the cache folder and what outputs take there, the plugins allowed, who owns a contested name.

Variables take precedence over the settings file:

ZOO_CACHE          the cache folder; if unset, `cache` in the settings, or else $XDG_CACHE_HOME/zoo or ~/.cache/zoo
ZOO_OUTPUTS_BYTES  what stored outputs of models may take there, 0 for none; if unset, the settings, or else 10 GiB
ZOO_PLUGINS        the distributions that may be used besides zoo-core, separated by commas; if unset, [plugins] or all
ZOO_CONFIG         the settings file; if unset, $XDG_CONFIG_HOME/zoo/config.toml or ~/.config/zoo/config.toml

The settings file looks like this:

cache = "/big/disk/zoo"      # like ZOO_CACHE
outputs_bytes = 50_000_000_000
[plugins]
allow = ["zoo-adapters"]     # like ZOO_PLUGINS
[names]
lora = "acme-adapters"       # the owner of a name that several claim; "adapter:lora" for one kind alone

The same file may hold defaults for the command line: the keys in OPTIONS and the table [budget]. Only cli/config.py
reads those; calls from Python ignore them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from zoo_core.errors import UsageError, nearest
from zoo_core.registry.scan import read_text

__all__ = [
    "OPTIONS",
    "Settings",
    "cache_folder",
    "outputs_bytes",
    "read_settings",
    "read_toml",
    "settings_file",
]

OPTIONS = ("device", "lock", "num_workers", "runs", "seeds", "threads", "workers")  # defaults of the command line
OWN = ("cache", "outputs_bytes")  # keys that concern the user's disk, so only the user's file has them
TABLES = ("budget", "plugins", "names")
OUTPUTS_BYTES = 10 * 2**30


class Settings(NamedTuple):
    """The settings of a user.

    allow: the distributions that may be used, None for all. owners: the owner of each contested name, or of
    `kind:name`. cache: the cache folder, None if it is not set. outputs_bytes: what stored outputs of models may take.
    """

    allow: list[str] | None
    owners: dict[str, str]
    cache: str | None = None
    outputs_bytes: int = OUTPUTS_BYTES


def cache_folder() -> str:
    """The folder of the index and of all notes of zoo; it need not exist. Raises UsageError for unusable settings."""
    return os.environ.get("ZOO_CACHE") or _read_file().cache or f"{_home('XDG_CACHE_HOME', '~/.cache')}/zoo"


def outputs_bytes() -> int:
    """What the stored outputs of models may take in the cache folder, in bytes; 0 means that none are stored.

    Raises UsageError for unusable settings.
    """
    variable = os.environ.get("ZOO_OUTPUTS_BYTES")
    if not variable:
        return _read_file().outputs_bytes
    if not (variable.isascii() and variable.isdigit()):
        raise UsageError(f"ZOO_OUTPUTS_BYTES is a whole number of bytes, 0 for none, found {variable!r}")
    return int(variable)


def settings_file() -> str:
    """The path of the user's settings file; it need not exist."""
    return os.environ.get("ZOO_CONFIG") or f"{_home('XDG_CONFIG_HOME', '~/.config')}/zoo/config.toml"


def _home(variable: str, usual: str) -> str:
    return os.environ.get(variable) or os.path.expanduser(usual)  # noqa: PTH111 - pathlib takes longer than all of this


def read_settings() -> Settings:
    """The settings of the environment and of the file. Raises UsageError if the file cannot be used."""
    settings = _read_file()
    if "ZOO_PLUGINS" in os.environ:
        allow = [name.strip() for name in os.environ["ZOO_PLUGINS"].split(",") if name.strip()]
        return settings._replace(allow=allow)
    return settings


def read_toml(path: str) -> Mapping[str, Any]:
    """The tables of a settings file, empty if there is none. Raises UsageError if it cannot be read."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"the settings {path} cannot be read: {error}") from None
    import tomllib  # costs time, so it is imported only if there is a settings file

    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"the settings {path} are not TOML: {error}") from None


def _read_file() -> Settings:
    path = settings_file()
    content = read_toml(path)
    for key, value in content.items():
        if key in OPTIONS or key in OWN:
            continue
        if key not in TABLES or not isinstance(value, dict):
            known = ", ".join((*OPTIONS, *OWN, *(f"[{table}]" for table in TABLES)))
            close = nearest(key, (*OPTIONS, *OWN, *TABLES))
            raise UsageError(f"the settings {path} have tables and keys {known}, found {key!r}{close}")
    plugins, owners = content.get("plugins", {}), content.get("names", {})
    for key in plugins.keys() - {"allow"}:
        raise UsageError(f"the settings {path} have [plugins] allow, found {key!r}{nearest(key, ['allow'])}")
    allow = plugins.get("allow")
    if allow is not None and not (isinstance(allow, list) and all(isinstance(name, str) for name in allow)):
        raise UsageError(f"the settings {path}: [plugins] allow is a list of distributions, found {allow!r}")
    for name, owner in owners.items():
        if not isinstance(owner, str):
            raise UsageError(f"the settings {path}: [names] {name!r} is the name of a distribution, found {owner!r}")
    cache = content.get("cache")
    if cache is not None and not (isinstance(cache, str) and cache):
        raise UsageError(f"the settings {path}: cache is the path of a folder, found {cache!r}")
    limit = content.get("outputs_bytes", OUTPUTS_BYTES)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise UsageError(f"the settings {path}: outputs_bytes is a whole number of bytes, 0 for none, found {limit!r}")
    return Settings(allow, owners, cache and os.path.expanduser(cache), limit)  # noqa: PTH111 - as above
