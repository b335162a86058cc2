"""What the command lines of both programs share: exit codes, where `key=value` may stand, help, version, recipes."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from manifests.config import find_recipe, names_in, to_toml
from manifests.errors import OutputClosed, Refused, Stopped
from manifests.install import CHECKOUT, missing
from manifests.plain_text import tell

UNREAD = 128 + signal.SIGPIPE
_WIDTH = 110  # of a key with its meaning
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
    """Options; `key=value` may stand anywhere (argparse alone wants them in one place).

    Where a shell asks what may stand next, argcomplete answers it, if that is installed (docs/datasets.md).
    """
    if "_ARGCOMPLETE" in os.environ:
        with suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)
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


def recipe_lines(path: Path, recipe: BaseModel) -> Iterator[str]:
    """A recipe for a person: the header of its file, then each key with its value and its meaning, as TOML."""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        yield line
    yield from key_lines(recipe)


def key_lines(settings: BaseModel, table: str = "") -> Iterator[str]:
    """`key = value  # meaning` of each key of a recipe or preset, tables last; a key that is not set as a comment.

    The meanings are those of the docstrings of its class and its bases (`key: meaning.`).
    """
    known, inner = meanings(type(settings)), dict[str, Any]()
    values = settings.model_dump(mode="json")
    if table:
        yield from ("", f"[{table}]")
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, (BaseModel, dict)):
            inner[name] = value
            continue
        line = f"# {name} is not set" if value is None else to_toml({name: values[name]}).strip()
        told = f"{line}  # {known[name]}" if name in known else line
        yield from [told] if len(told) <= _WIDTH or name not in known else [*_comment(known[name]), line]
    for name, value in inner.items():
        place = f"{table}.{name}" if table else name
        if isinstance(value, BaseModel):
            yield from key_lines(value, place)
            continue
        if name in known:
            yield from ("", *_comment(f"{place}: {known[name]}"))
        yield from to_toml({name: values[name]}).strip().split("\n") if value else ()


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def meanings(kind: type[BaseModel]) -> dict[str, str]:
    """key -> its meaning, from sentences `key: meaning.` and `key, other: meaning.` in docstrings."""
    found: dict[str, str] = {}
    names = r"[a-z]\w*(?:, [a-z]\w*)*"
    for each in kind.__mro__:
        text = " ".join((vars(each).get("__doc__") or "").split())
        for keys, meaning in re.findall(rf"(?:^|(?<=\. ))({names}): (.+?)\.(?= {names}: |$| [A-Z])", text):
            for key in keys.split(", "):
                if key in kind.model_fields:
                    found.setdefault(key, meaning)
    return found


class ShowVersion(argparse.Action):
    """`--version`: that of the package, and the commit where it runs from a checkout."""

    def __init__(self, option_strings: list[str], dest: str = argparse.SUPPRESS, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="show the version and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        tell(version_words())
        parser.exit()


def version_words() -> str:
    """`cross-most 0.1.0`, from a checkout with ` (commit 0123456789ab)`, `-dirty` where files of it are changed."""
    try:
        words = f"cross-most {version('cross-most')}"
    except PackageNotFoundError:
        words = "cross-most, not installed"
    if not (CHECKOUT / ".git").exists():
        return words
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or not ours to read
        return words
    return f"{words} (commit {commit})"


def add_plugin(command: argparse.ArgumentParser, what: str) -> None:
    """`--plugin`, which runs something of one's own in a command (manifests/plugins.py)."""
    command.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help=f"run {what} of your own (docs/extending.md), or NAME of an installed one; again for more",
    )


def completed_by(action: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Lets a shell offer names for an argument; they are looked up only then."""
    action.completer = lambda **_: names()  # type: ignore[attr-defined]  # where argcomplete looks


def with_examples(command: argparse.ArgumentParser, *examples: str) -> None:
    """Lets `--help` of a command end with examples, given without the program's name."""
    program = command.prog.removesuffix(command.prog.split()[-1])
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "examples:\n" + "\n".join(f"  {program}{example}" for example in examples)
