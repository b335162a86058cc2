"""Text from outside, made harmless where it is shown: on a terminal, in Markdown, in HTML, in a spreadsheet.

Class names, ids, paths, reasons of failures and versions come from other people's files. Our files and JSON keep them
as they are; code that shows them does so through this module, the only one that prints, makes a console or writes csv.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from manifests.errors import OutputClosed

# Controls (C0, DEL, C1), line separators, halves of characters, and what shows nothing or turns the text around.
_HIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    r"\ufffe\uffff\U000e0000-\U000e007f]"
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_MARKS = re.compile(  # what Markdown and its dialects read inside a line; a_b, [1, 2] and a lone & mean nothing to them
    r"[\\`*<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|\](?=[(\[:])|(?:(?<=http)|(?<=https)|(?<=ftp)):(?=//)"
    r"|(?<=www)\.",
    re.IGNORECASE,
)
_BLOCK = re.compile(  # and at its beginning: headings, lists, quotes, rules; -0.5 stays as it is
    r"^(\d{1,9}(?=[.)](?:\s|$))|)([-+](?=\s|$)|#(?=#*(?:\s|$))|>|[-=](?=[-=]*\s*$)|\[(?=[ xX]\])|[.)])"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def for_terminal(text: str) -> str:
    r"""One line that shows every character: control characters and those that reorder text are written as escapes.

    `\n`, `\t`, `\u001b`: the escapes that JSON, TOML, YAML and Python read, so a quoted string stays the same string.
    """
    return _HIDDEN.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _SHORT.get(match[0]) or (f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}")


def number_of(count: int, what: str) -> str:
    """`1 object`, `1,234 objects`, `2 classes`: a count of things by the English word for one."""
    return f"{count:,} {what}" + ("" if count == 1 else "es" if what.endswith(("s", "x")) else "s")


def for_markdown(text: str) -> str:
    """Text that Markdown shows letter by letter: in a paragraph, a list item, a heading or a cell of a table."""
    return _BLOCK.sub(r"\1\\\2", _MARKS.sub(r"\\\g<0>", for_terminal(text).strip()))


def code_span(text: str) -> str:
    """A plain name in backticks; any other text as `for_markdown` gives it, since code has no escapes."""
    return f"`{text}`" if re.fullmatch(r"[A-Za-z0-9_./+-]+", text) else for_markdown(text)


def html_page(template: Path, **values: object) -> str:
    """A page from a Jinja template, in which every text among the values is shown letter by letter."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, finalize=_visible, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def _visible(value: object) -> object:
    return for_terminal(value) if isinstance(value, str) else value


def for_csv(value: Any) -> Any:
    """A cell that no spreadsheet runs: text that begins as a formula does gets an apostrophe; numbers stay as they are.

    https://owasp.org/www-community/attacks/CSV_Injection
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def csv_text(rows: Iterable[Sequence[Any]], end: str = "\n") -> str:
    """Rows as lines of csv; end: of each line."""
    lines = []
    for row in rows:
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\r\n").writerow(map(for_csv, row))  # else a cell's own \r would end the row
        lines.append(file.getvalue().removesuffix("\r\n") + end)
    return "".join(lines)


def tell(*lines: str, flush: bool = False) -> None:
    """Lines on stdout. Raises OutputClosed where nobody reads them any more."""
    try:
        for line in lines:
            print(for_terminal(line), flush=flush)
    except BrokenPipeError as error:
        raise OutputClosed from error


class PlainConsole(Console):
    """A console that shows each text (also a table's cells and a status) as one line, letter by letter.

    Markup, names of emoji and guessed colours are off; a `rich.text.Text` has a style.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text that a string is shown as."""
        return super().render_str(for_terminal(text), **options)

    def on_broken_pipe(self) -> None:
        """What rich calls where nobody reads: raises OutputClosed."""
        raise OutputClosed

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A line that changes while something goes on, on a terminal."""
        return _PlainStatus(_plain(status), console=self, **options)


class _PlainStatus(Status):
    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        """Changes the line."""
        super().update(None if status is None else _plain(status), **options)


def _plain(shown: RenderableType) -> RenderableType:
    return Text(for_terminal(shown)) if isinstance(shown, str) else shown


class _PlainFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message in one line."""
        return for_terminal(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """A traceback in its own lines."""
        return "\n".join(map(for_terminal, super().formatException(ei).split("\n")))


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Shows what is logged, libraries' words too, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
