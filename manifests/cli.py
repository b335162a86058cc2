"""What the command lines of both programs share: where `key=value` may stand, and the list of shipped recipes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from manifests.config import find_recipe, names_in


def parse_arguments(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Options; `key=value` may stand anywhere (argparse alone wants them in one place)."""
    options, rest = parser.parse_known_args(arguments)
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and not hasattr(options, "changes")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.changes += rest
    return options


def recipe_titles(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, first line of its header) of every shipped recipe."""
    for name in names_in(folder):
        yield name, find_recipe(name, folder).read_text().splitlines()[0].lstrip("# ")
