"""What text from outside may hold to mislead a terminal, Markdown, HTML, YAML, Rich or a spreadsheet."""

from __future__ import annotations

import unicodedata
from html.parser import HTMLParser

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07",
    "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x9b2J\x7f",
    "two\nlines\r\nand\ta tab",
    "chair\u202egnp.exe",
    "\u2066a\u2069\u200b\ufeff",
    "[red]x[/nope]",
    ":warning: [/] \\[bold]",
    '=HYPERLINK("https://evil.example")',
    "-2+3+cmd|' /C calc'!A0",
    "| a | b",
    "<script>alert(1)</script>",
    "![x](https://evil.example/x.png)",
    "---\nfoo: bar",
    "```\n# `x`",
    r"$\nope{$ and $x$",
    "Stuhl 椅子 👩‍🚀",
)
FOLDER = "[red]x[/nope]\x1b[2J\u202e:x:"  # two folders, one in the other; as one text, wrong markup
JOINERS = "\u200c\u200d"  # letters of some scripts, and emoji, need them


def hidden(text: str) -> str:
    """The characters of an output that a terminal may obey or not show, but for line ends."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(c for c in text if unicodedata.category(c) in kinds and c not in "\n" + JOINERS)


class Page(HTMLParser):
    """What a reader of HTML sees: its words, and its elements in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags = "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data
