"""Keys that a command other than `fit` takes as key=value, and the flags that say the same."""

from __future__ import annotations

import argparse
import os

from manifests.config import Value, parse_changes
from manifests.errors import Refused


def typed_changes(options: argparse.Namespace, keys: tuple[str, ...] = ("data",)) -> dict[str, Value]:
    """What is given as key=value; `data` is always there. Raises Refused for a key that the command does not take."""
    changes: dict[str, Value] = {"data": {}} | parse_changes(options.changes)
    if other := set(changes) - set(keys):
        taken = "keys of data alone" if keys == ("data",) else f"keys of {', '.join(keys)}"
        raise Refused(f"{options.command} takes {taken}, not {min(other)}")
    data = changes["data"]
    for table in set(keys) & {"data", "image", "init", "points"}:
        if not isinstance(changes.get(table, {}), dict):
            raise Refused(f"{table}=...: name a key of {table}, such as data.classes=medium or init.image=openai")
    for name in ("split", "workers", "classes", "candidates"):  # keys that a flag of the same command sets
        flag = getattr(options, name, None)
        if name in data and (name == "split" or flag is not None):
            said = data[name] if name == "split" else flag
            own = name if hasattr(options, name) else f"test-{name}"  # of probe, which reads two splits
            raise Refused(f"data.{name}={data[name]}: of {options.command} the flag says it: --{own} {said}")
    return changes


def typed_source(options: argparse.Namespace) -> str:
    """What is to be judged; empty where `init.*` says all: then the first word was such a key."""
    source = options.checkpoint
    if "=" in source and not os.path.exists(source):  # init.image=... init.points=...
        source, options.changes = "", [source, *options.changes]
    return source


def typed_weights(options: argparse.Namespace, changes: dict[str, Value]) -> tuple[float, ...]:
    """The numbers of `views_weight`; empty where it is not given."""
    given = changes.get("views_weight")
    if given is None:
        return ()
    if getattr(options, "search_view_weights", ""):
        raise Refused("views_weight and --search-view-weights both say the weights of views")
    numbers = given if isinstance(given, list) else [given]
    if any(isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each < 1e6 for each in numbers):
        raise Refused(f"views_weight={given}: numbers from 0 on, one a view, such as [0.25,1,1,0.5]")
    if not any(numbers):
        raise Refused(f"views_weight={given}: one of them must be above 0")
    return tuple(map(float, numbers))


def typed_candidates(options: argparse.Namespace, changes: dict[str, Value]) -> dict[str, Value]:
    """Keys of data that --classes (or `classes=`) and --candidates set."""
    keys: dict[str, Value] = {}
    if "classes" in changes and (options.classes or "classes" in changes["data"]):
        raise Refused(f"classes={changes['classes']}: --classes or data.classes says it already")
    classes = changes.get("classes", options.classes)
    if classes:
        names = classes.split(",") if isinstance(classes, str) else classes
        keys["classes"] = names[0] if len(names) == 1 else names
    if options.candidates:
        keys["candidates"] = options.candidates
    return keys
