"""Recipes: one TOML file and `key=value` changes become one frozen typed object, or one line that says why not.

A value on the command line is TOML and a bare word is a string; dots reach inside (`views.rgb12.image_size=128`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from manifests import store
from manifests.errors import Refused

Value = Any  # what TOML holds: str, int, float, bool, list or dict of these
Recipe = TypeVar("Recipe", bound=BaseModel)
_DEPTH = 12  # of tables and lists inside each other
BACKENDS = ("raycast", "rasterize", "depth", "pointclip", "realistic", "files", "frames")  # parts of a key to pydantic


class Chosen(dict[str, Value]):
    """A list of names that was given with keys inside some of them, as a table: it replaces what it is laid over."""


class Settings(BaseModel):
    """A table of a recipe: it never changes, and a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def load_toml(path: Path) -> dict[str, Value]:
    """The values of a TOML file. Raises Refused naming the file when it is missing or does not parse."""
    try:
        return parse_toml(store.read_text(path))
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {path}: {_one_line(str(error))}") from error


def parse_toml(text: str) -> dict[str, Value]:
    """The values of a text in TOML. Raises ValueError in one line when it does not parse or is nested too deep.

    No key means anything at inf or nan, which TOML has.
    """
    try:
        values = tomllib.loads(text, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    level: list[Value] = [values]
    for _ in range(_DEPTH):
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [v for each in inner for v in each]
        if any(isinstance(v, int) and abs(v) >= 1 << 63 for v in level):
            raise ValueError("an integer of more than 64 bits, which TOML has not")
    if level:
        raise ValueError(f"nested deeper than {_DEPTH} tables and lists")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def names_in(folder: Path) -> list[str]:
    """Names (without .toml) of the files in a folder, sorted."""
    return sorted(p.stem for p in folder.glob("*.toml"))


def unknown_name(what: str, name: str, known: Sequence[str], hint: str = "") -> Refused:
    """A Refused for a name that is not in a list, naming the nearest one that is."""
    name = _one_line(name[:100])
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    guess = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    return Refused(f"unknown {what} {name}{guess}" + (f" ({hint})" if hint else ""))


def find_recipe(name: str, folder: Path) -> Path:
    """The file of a recipe: a path ending in .toml, or the name of one shipped in `folder`."""
    if name.endswith(".toml"):
        if not os.path.isfile(name):
            raise Refused(f"no recipe file {name}")
        return Path(name)
    path = folder / f"{name}.toml"
    if not os.path.isfile(path):
        raise unknown_name("recipe", name, names_in(folder))
    return path


def parse_changes(assignments: Iterable[str]) -> dict[str, Value]:
    """Nested values from `key=value` arguments, of which the later go before the earlier.

    A list of names and keys inside one of them (`views=["rgb12"] views.rgb12.image_size=64`) go together, in either
    order. Raises Refused naming an argument of another form.
    """
    changes: dict[str, Value] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key) or key.count(".") > _DEPTH:
            raise Refused(f"{_short(assignment)} is not key=value")
        *path, last = key.split(".")
        table = changes
        for part in path:
            inside = table.setdefault(part, {})
            if isinstance(inside, list) and inside and all(isinstance(name, str) for name in inside):
                inside = table[part] = Chosen((name, {}) for name in inside)
            if not isinstance(inside, dict):
                raise Refused(f"{key}: {part} was already given a value")
            table = inside
        table[last] = _laid_over(table.get(last), _parse_value(text))
    return changes


def _laid_over(before: Value, value: Value) -> Value:
    """A value of a key that keys inside it were given before."""
    if not isinstance(before, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return Chosen({name: {} for name in value} | before)
    return merge(before, value) if isinstance(value, dict) else value


def _parse_value(text: str) -> Value:
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def merge(values: dict[str, Value], changes: dict[str, Value]) -> dict[str, Value]:
    """`values` with `changes` laid over it, table by table; neither argument is changed."""
    merged = dict(values)
    for key, change in changes.items():
        inside = {} if isinstance(change, Chosen) else merged.get(key)
        merged[key] = merge(inside, change) if isinstance(inside, dict) and isinstance(change, dict) else change
    return merged


def parse_recipe(kind: type[Recipe], values: dict[str, Value], where: str, reads: str = "") -> Recipe:
    """A typed recipe from plain values. Raises Refused naming `where`, the key and the nearest valid one.

    reads: which keys there are, for a person who gave one that does not exist.
    """
    with refuse_invalid(where, [kind], reads):
        return kind.model_validate(values)


@contextmanager
def refuse_invalid(where: str, kinds: Sequence[type[BaseModel]], reads: str = "") -> Iterator[None]:
    """Turns pydantic's report into one line: the first key that is wrong, why, and the nearest key that exists.

    The report itself, of many lines, is left out of tracebacks.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in BACKENDS)
        if first["type"] == "extra_forbidden":
            near = nearest_key(key, _all_keys(kinds))
            hint = (f"; did you mean {near}?" if near else "") + (f" ({reads})" if reads else "")
            raise Refused(_one_line(f"{where}: unknown key {key[-100:]}{hint}")) from None
        got = "" if first["type"] in ("missing", "value_error") else f", got {_short(first['input'])}"
        message = first["msg"].removeprefix("Value error, ")
        raise Refused(_one_line(f"{where}: {key[-100:] + ': ' if key else ''}{message}{got}")) from None


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The dotted key whose last part is most like that of `key`, in the most similar table, or None.

    A `*` in a known key stands for any name or number, and becomes that of `key`.
    """
    by_name: dict[str, list[str]] = {}
    for each in sorted(known):
        by_name.setdefault(each.rpartition(".")[2], []).append(each)
    given = key.split(".")
    names = difflib.get_close_matches(given[-1], by_name, n=1, cutoff=0.5)
    if not names:
        return None
    nearest = max(by_name[names[0]], key=lambda each: difflib.SequenceMatcher(None, each, key).ratio()).split(".")
    return ".".join(given[n] if part == "*" and n < len(given) else part for n, part in enumerate(nearest))


def _all_keys(kinds: Iterable[Any], prefix: str = "") -> set[str]:
    """Dotted keys of all fields of the models, those of their nested models included; `*` for a key of a dict."""
    keys: set[str] = set()
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, field in kind.model_fields.items():
                keys |= {prefix + name} | _all_keys([field.annotation], f"{prefix}{name}.")
        else:
            several = get_origin(kind) in (dict, list, tuple)
            keys |= _all_keys(get_args(kind), f"{prefix}*." if several else prefix)
    return keys


def _short(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def digest(value: Value) -> str:
    """sha256 of plain values, the same for equal values in any order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def first_difference(old: dict[str, Value], new: dict[str, Value], prefix: str = "") -> str | None:
    """`key: old value -> new value` of the first key (sorted, dotted) in which two recipes differ, or None."""
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inside = first_difference(a, b, f"{prefix}{key}.")
            if inside:
                return inside
        elif a != b:
            return f"{prefix}{key}: {_short(a)} -> {_short(b)}"
    return None


def to_toml(values: dict[str, Value]) -> str:
    """Plain values as TOML, keys in order, tables last. None is left out, as TOML has no word for it."""
    return "\n".join(_toml_lines(values, ())) + "\n"


def _toml_lines(table: dict[str, Value], path: tuple[str, ...]) -> Iterator[str]:
    plain = {k: v for k, v in table.items() if not isinstance(v, dict) and v is not None}
    if path and (plain or not table):
        yield f"\n[{'.'.join(map(_toml_key, path))}]"
    for key, value in plain.items():
        yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _toml_lines(value, (*path, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(repr(value), repr(value))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")
