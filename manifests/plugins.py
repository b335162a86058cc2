"""Plugins: a person's own datasets, view presets, loss terms, methods and backbones, from outside the package.

`--plugin FILE.py` loads a file, `--plugin NAME` an entry point of the group `cross_most.plugins` of an installed
package. What a plugin offers stands in a table of the name of its kind, such as `PRESETS = {name: keys}`
(docs/extending.md). A plugin runs as a program does: only the command line and Python load one, no recipe and no
manifest. Processes that a build starts get the text of a file along, so that all make objects by the same code.
"""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from manifests.errors import Refused, one_line, with_type

GROUP = "cross_most.plugins"
KINDS = ("DATASETS", "PRESETS", "TERMS", "METHODS", "BACKBONES")


@dataclass(frozen=True)
class Plugin:
    """One plugin: a file's name and text, or an entry point's name without a text."""

    name: str
    text: str | None


_LOADED: dict[Plugin, ModuleType] = {}


@contextmanager
def using(named: Iterable[str]) -> Iterator[None]:
    """Loads what `--plugin` names for the block. Raises Refused, in one line, where one cannot be loaded."""
    before = dict(_LOADED)
    try:
        load(map(_named, named))
        yield
    finally:
        _LOADED.clear()
        _LOADED.update(before)


def load(plugins: Iterable[Plugin]) -> None:
    """Loads plugins that are not loaded yet, to stay so: in a process that works for another."""
    for plugin in plugins:
        if plugin not in _LOADED:
            _LOADED[plugin] = _module(plugin)


def loaded() -> tuple[Plugin, ...]:
    """All that are loaded now."""
    return tuple(_LOADED)


def versions() -> dict[str, str]:
    """name -> what tells one version of it from another, for the manifest: 12 hex digits, or that of its package."""
    return {plugin.name: _version(plugin) for plugin in _LOADED}


def _version(plugin: Plugin) -> str:
    if plugin.text is not None:
        return hashlib.sha256(plugin.text.encode()).hexdigest()[:12]
    package = next(iter(entry_points(group=GROUP, name=plugin.name))).dist
    return f"{package.name} {package.version}" if package else "unknown"


def offered(kind: str, shipped: Collection[str] = ()) -> dict[str, tuple[str, ModuleType, Any]]:
    """name -> (its plugin, that one's module, what it says) of all that the loaded plugins offer of a kind.

    Raises Refused where a name is taken: by one of `shipped`, or by another plugin.
    """
    found: dict[str, tuple[str, ModuleType, Any]] = {}
    for plugin, module in _LOADED.items():
        for name, value in getattr(module, kind, {}).items():
            if name in shipped or name in found:
                other = found[name][0] if name in found else "this package"
                raise Refused(f"plugin {plugin.name}: {kind} holds {name}, and so does {other}: choose another name")
            found[name] = plugin.name, module, value
    return found


def _named(given: str) -> Plugin:
    """A plugin as `--plugin` names it. Raises Refused where there is no such file or entry point."""
    if given.endswith(".py"):
        try:
            return Plugin(Path(given).name, Path(given).read_text())
        except (OSError, ValueError) as error:
            raise Refused(f"--plugin {given}: it cannot be read ({one_line(error)})") from error
    known = sorted(entry.name for entry in entry_points(group=GROUP))
    if given not in known:
        raise Refused(
            f"--plugin {given}: give FILE.py, or a plugin that is installed ({', '.join(known) or 'none is'})"
        )
    return Plugin(given, None)


def _module(plugin: Plugin) -> ModuleType:
    """Runs a plugin. Raises Refused with the line where it fails, and where it offers no table of `KINDS`."""
    try:
        module = next(iter(entry_points(group=GROUP, name=plugin.name))).load() if plugin.text is None else _run(plugin)
    except Exception as error:  # whatever a person's own code raises
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == plugin.name]
        where = f", line {lines[-1]}" if lines else ""
        raise Refused(f"--plugin {plugin.name}{where}: {with_type(error)}") from error
    if not any(isinstance(getattr(module, kind, None), dict) for kind in KINDS):
        raise Refused(
            f"--plugin {plugin.name}: it has no table {', '.join(KINDS[:-1])} or {KINDS[-1]} (docs/extending.md)"
        )
    return module


def _run(plugin: Plugin) -> ModuleType:
    """The module of a file, under a name that no import finds by chance; pydantic looks up types by it."""
    text = plugin.text or ""
    stem = re.sub(r"\W", "_", plugin.name.removesuffix(".py"))
    module = ModuleType(f"cross_most_plugin_{stem}_{hashlib.sha256(text.encode()).hexdigest()[:8]}")
    module.__file__ = plugin.name
    sys.modules[module.__name__] = module
    exec(compile(text, plugin.name, "exec"), vars(module))
    return module
