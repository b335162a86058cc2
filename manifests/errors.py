"""The errors that a command turns into an exit code; everything else is a bug and shows its traceback."""

from __future__ import annotations

from pydantic import ValidationError


class Refused(Exception):
    """Work was refused before it began (exit code 2): a recipe, key, path, library or hash is wrong.

    The message is one line that names the key, the path or the command that mends it. Nothing has been written.
    """


class Stopped(Exception):
    """The machine stopped the work midway (exit code 3): disk full, store down.

    What is finished stays valid, and the same command run again resumes.
    """


class OutputClosed(Exception):
    """Nobody reads what a command prints any more, as after `| head`: it ends without a word (exit code 141)."""


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error says, in one line of at most `most` characters; its type where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def with_type(error: BaseException, most: int = 300) -> str:
    """`Type: what it says` in one line; a plain ValueError, which our own readers raise, without its type."""
    text = " ".join(str(error).split())[:most]
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}".rstrip(": ")


def first_problem(error: ValidationError) -> str:
    """`where: what` of the first thing that is wrong with plain values, in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))[-100:]
    return " ".join(f"{where}: {first['msg']}".split())
