"""What the command lines of both programs share: exit codes, where `key=value` may stand, the list of recipes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from manifests.config import find_recipe, names_in
from manifests.errors import OutputClosed, Refused, Stopped
from manifests.install import missing

UNREAD = 128 + signal.SIGPIPE
_OURS = ("manifests", "renderers", "pipeline", "training")


def exit_code(work: Callable[[], int], console: Console, role: str, interrupted: str) -> int:
    """Runs a command and turns what ends it into an exit code and one red line on the console.

    Exit codes: what `work` returns; 2 for Refused and for a missing library, with the `pip install` of its role; 3 for
    Stopped; 128 and the signal's number for a signal (Ctrl-C: 130), with the line `interrupted`; 141, as of a program
    that SIGPIPE ends, where nobody reads its output any more (`| head`).
    """
    try:
        code = _code(work, console, role, interrupted)
    except OutputClosed:
        code = UNREAD
    return _written_out(code)


def _code(work: Callable[[], int], console: Console, role: str, interrupted: str) -> int:
    try:
        return work()
    except Refused as error:
        console.print(str(error), style="red")
        return 2
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if not library or library in _OURS:
            raise
        console.print(str(missing(library, role)), style="red")
        return 2
    except Stopped as error:
        console.print(str(error), style="red")
        return 3
    except KeyboardInterrupt as error:
        console.print(interrupted)
        return 128 + getattr(error, "number", signal.SIGINT)


def _written_out(code: int) -> int:
    """The exit code, UNREAD where nobody reads what is yet to be written: it goes nowhere, or Python would complain."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the shell has closed it
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = UNREAD
    return code


def parse_arguments(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Options; `key=value` may stand anywhere (argparse alone wants them in one place)."""
    try:
        options, rest = parser.parse_known_args(arguments)
    except SystemExit as end:  # --help
        raise SystemExit(_written_out(end.code if isinstance(end.code, int) else 0)) from end
    except BrokenPipeError as error:
        raise SystemExit(_written_out(UNREAD)) from error
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and not hasattr(options, "changes")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.changes += rest
    return options


def recipe_titles(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, first line of its header) of every shipped recipe."""
    for name in names_in(folder):
        yield name, find_recipe(name, folder).read_text().splitlines()[0].lstrip("# ")
