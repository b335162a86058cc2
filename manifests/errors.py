"""The two errors that a command turns into an exit code; everything else is a bug and shows its traceback."""

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


def first_problem(error: ValidationError) -> str:
    """`where: what` of the first thing that is wrong with plain values, in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))[-100:]
    return " ".join(f"{where}: {first['msg']}".split())
