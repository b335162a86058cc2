"""Text from outside as it is shown: read back by a Markdown parser, a YAML parser, an HTML parser and csv."""

from __future__ import annotations

import csv
import html
import io
import json
import logging
import re

import pytest
import yaml
from foreign_text import HOSTILE, Page, hidden
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from rich.table import Table

from manifests.plain_text import (
    PlainConsole,
    code_span,
    csv_text,
    for_csv,
    for_markdown,
    for_terminal,
    html_page,
    log_to_stderr,
    tell,
)

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SPECIAL = st.text(alphabet="ab1 .)-+=#>*_`~[](){}!|\\<&;:/\"'$\n\r\t\x1b\x9b\u202e", max_size=30)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_gets_one_line_without_controls(text: str) -> None:
    shown = for_terminal(text)
    assert hidden(shown) == ""
    assert "\n" not in shown
    assert for_terminal(shown) == shown


def test_what_people_write_is_shown_as_it_is() -> None:
    for text in ("Stuhl, grün", "椅子　机", "نمی‌خواهم", "👩‍🚀", "s3://bucket/a b", "C:\\data", "a\xa0b"):
        assert for_terminal(text) == text
    for text in ("81.0 [79.1, 83.0]", "-0.30", "+1.25", "small_cross_most", "R&D", "runs/a-b_c.d (x)", "7"):
        assert for_markdown(text) == text


@given(st.text())
def test_a_quoted_string_that_is_shown_is_still_the_same_string(text: str) -> None:
    assert json.loads(for_terminal(json.dumps(text))) == text
    if all(ord(letter) < 0xE0000 or ord(letter) > 0xE007F for letter in text):  # JSON has no \U
        assert json.loads(for_terminal(json.dumps(text, ensure_ascii=False))) == text
    assert yaml.safe_load(for_terminal(json.dumps(text, ensure_ascii=False))) == text


def read_markdown(page: str) -> tuple[str, list[str]]:
    """What a reader of a Markdown page sees, and its elements."""
    found = Page(MARKDOWN.render(page))
    return found.words.strip(), found.tags


@given(SPECIAL | st.sampled_from(HOSTILE))
def test_markdown_shows_it_letter_by_letter(text: str) -> None:
    shown = for_terminal(text).strip()
    assert read_markdown(for_markdown(text)) == (shown, ["p"] if shown else [])
    assert read_markdown(f"- {for_markdown(text)}") == (shown, ["ul", "li"])
    assert read_markdown(f"## x {for_markdown(text)} x") == (f"x {shown} x", ["h2"])
    words, tags = read_markdown(f"| a | b |\n|---|---|\n| {for_markdown(text)} | 1 |\n")
    assert tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    assert "".join(words.split()) == "".join(f"ab{shown}1".split())
    words, tags = read_markdown(f"| {code_span(text)} | 1 |\n|---|---|\n")
    assert set(tags) <= {"table", "thead", "tr", "th", "code"}
    assert "".join(words.split()) == "".join(f"{shown}1".split())


@pytest.mark.parametrize("text", [*HOSTILE, "{{ 1 + 1 }}", "{% if %}"])
def test_a_page_of_a_template_shows_it_letter_by_letter(tmp_path, text: str) -> None:
    template = tmp_path / "page.j2"
    template.write_text('<p title="{{ words }}">{{ words }}</p>')
    page = html_page(template, words=text)
    assert (Page(page).words, Page(page).tags) == (for_terminal(text), ["p"])
    assert html.unescape(page) == f'<p title="{for_terminal(text)}">{for_terminal(text)}</p>'
    template.write_text("{{ word }}")
    with pytest.raises(UndefinedError):
        html_page(template, words=text)


def test_a_spreadsheet_runs_no_cell() -> None:
    for text in ("=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"):
        assert for_csv(text) == f"'{text}"
    for value in ("chair", "a=b", "", "-0.5", "+1", "-1.5e-07", "-inf", "nan", -0.5, 3, None):
        assert for_csv(value) == value or value != value


@given(st.lists(st.lists(st.text(), min_size=1, max_size=4), min_size=1, max_size=4))
def test_csv_is_read_back(rows: list[list[str]]) -> None:
    text = csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == [[for_csv(cell) for cell in row] for row in rows]
    assert csv_text([[1, "a,b"], ["-0.5", None]], end="\r\n") == '1,"a,b"\r\n-0.5,\r\n'


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_shows_texts_cells_and_titles_as_they_are(text: str, terminal: bool) -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=terminal, color_system=None, width=200)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    console.print(text, text, sep="\n")
    with console.status(text) as status:
        status.update(text + "2")
        status._live.refresh()
    shown = file.getvalue()
    assert "\x1b[2J" not in shown
    assert hidden(re.sub("\x1b\\[[?0-9]*[A-Zhl]|\r", "", shown)) == ""  # what moves the cursor of the status
    assert shown.count(for_terminal(text)) >= 6 + terminal


def test_stdout_and_the_log_get_a_line_each(capsys, monkeypatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    tell(*HOSTILE)
    shown = capsys.readouterr().out
    assert shown.splitlines() == [for_terminal(text) for text in HOSTILE]
    log_to_stderr()
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logging.getLogger("a library").warning("%s", "a\x1b]52;c;x\x07\nb", exc_info=True)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == r"a\u001b]52;c;x\u0007\nb"
    assert rest[0].startswith("Traceback")
    assert rest[-1] == r"ValueError: \u001b[2J"
