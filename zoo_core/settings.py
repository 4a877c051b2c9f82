"""What a user may set: the cache folder, the plugins that may be used, who owns a contested name.

ZOO_CACHE    the cache folder; else $XDG_CACHE_HOME/zoo or ~/.cache/zoo
ZOO_PLUGINS  distributions that may be used, separated by commas; else all; zoo-core always may
ZOO_CONFIG   the settings file; else $XDG_CONFIG_HOME/zoo/config.toml or ~/.config/zoo/config.toml:

[plugins]
allow = ["zoo-adapters"]     # as ZOO_PLUGINS, which goes first
[names]
lora = "acme-adapters"       # who owns a name that several claim; "adapter:lora" where kinds differ
"""

from __future__ import annotations

import os
from typing import NamedTuple

from zoo_core.errors import UsageError, nearest
from zoo_core.scan import read_text

__all__ = ["Settings", "cache_folder", "read_settings", "settings_file"]

TABLES = ("plugins", "names")


class Settings(NamedTuple):
    """allow: names of distributions, None for all. owners: distribution by name, or by `kind:name`."""

    allow: list[str] | None
    owners: dict[str, str]


def cache_folder() -> str:
    """Where the index and downloads are kept; it need not exist."""
    return os.environ.get("ZOO_CACHE") or f"{_home('XDG_CACHE_HOME', '~/.cache')}/zoo"


def settings_file() -> str:
    """Where the user's settings are read from; it need not exist."""
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


def _read_file() -> Settings:
    path = settings_file()
    try:
        text = read_text(path)
    except FileNotFoundError:
        return Settings(None, {})
    except (OSError, ValueError) as error:
        raise UsageError(f"the settings {path} cannot be read: {error}") from None
    import tomllib  # only those who have settings pay for it

    try:
        content = tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"the settings {path} are not TOML: {error}") from None
    for table, keys in content.items():
        if table not in TABLES or not isinstance(keys, dict):
            known = " and ".join(TABLES)
            raise UsageError(f"the settings {path} have tables {known}, found {table!r}{nearest(table, TABLES)}")
    plugins, owners = content.get("plugins", {}), content.get("names", {})
    for key in plugins.keys() - {"allow"}:
        raise UsageError(f"the settings {path} have [plugins] allow, found {key!r}{nearest(key, ['allow'])}")
    allow = plugins.get("allow")
    if allow is not None and not (isinstance(allow, list) and all(isinstance(name, str) for name in allow)):
        raise UsageError(f"the settings {path}: [plugins] allow is a list of distributions, found {allow!r}")
    for name, owner in owners.items():
        if not isinstance(owner, str):
            raise UsageError(f"the settings {path}: [names] {name!r} is the name of a distribution, found {owner!r}")
    return Settings(allow, owners)
