"""The columns of a table: which command judges a row, with which words, and what is taken of what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from manifests.config import Settings

TASK_FLAGS = {  # of `probe`, with how many words: each task has its own, and `--also` names a further one
    "--classifier": 1,
    "--C": 1,
    "--standardise": 0,
    "--ways": 1,
    "--shots": 1,
    "--queries": 1,
    "--episodes": 1,
    "--retrieval": 0,
}


class Column(Settings):
    """What a row is judged by. head: as printed. command: that judges. arguments: words as a person types them.

    value: a dotted path in what the command prints with `--json`, such as `accuracy`, `student.points` or `rows.1.mean`
    (a number counts the items of a list). shards: name of the build that is judged on, by default the row's.
    """

    head: str
    command: Literal["evaluate", "probe"] = "evaluate"
    arguments: tuple[str, ...] = ()
    value: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]
    shards: str = ""

    @property
    def task(self) -> tuple[str, ...]:
        """Of a probe's arguments, those of its task."""
        return _parted(self.arguments)[0] if self.command == "probe" else ()

    @property
    def shared(self) -> tuple[str, ...]:
        """The arguments that another column must have as well, so that one command serves both."""
        return _parted(self.arguments)[1] if self.command == "probe" else self.arguments


def _parted(arguments: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(words of the probe's task, all others), in their order."""
    task: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag not in TASK_FLAGS:
            others.append(word)
            continue
        task.append(word)
        task += [next(words, "") for _ in range(0 if equals else TASK_FLAGS[flag])]
    return tuple(task), tuple(others)


EVALUATED = {  # the columns of Cross-MoST's tables
    "image": Column(head="Image", value="student.image"),
    "image_star": Column(head="Image*", value="student.image_star"),
    "points": Column(head="Point cloud", value="student.points"),
}


def named_columns(given: Any) -> Any:
    """Columns of a file: a list of names of EVALUATED becomes their columns. Raises ValueError for another name."""
    if isinstance(given, Mapping | str) or not isinstance(given, Sequence):
        return given
    unknown = [name for name in given if name not in EVALUATED]
    if unknown:
        raise ValueError(f"a list of columns names {', '.join(EVALUATED)}; others are tables, [columns.{unknown[0]}]")
    return {name: EVALUATED[name] for name in given}


def taken(result: Any, path: str) -> float:
    """The number at a dotted path of what a command printed. Raises ValueError naming the part that is not there."""
    value = result
    for part in path.split("."):
        inside = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        key = int(part) if isinstance(value, list) and part.isdigit() else part
        if key not in inside:
            raise ValueError(f"value = {path}: no {part} in what it printed ({', '.join(map(str, inside)) or value})")
        value = inside[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"value = {path}: {value} is no number")
    return float(value)
