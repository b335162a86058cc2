"""The verdict of a report by hand, the names of its rows, and a page for phones, dark windows and screen readers."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from training.reports import report
from training.reports.page import Page, PageTable, Picture, Section, to_html, to_markdown, verdict
from training.settings.fit_recipe import saved_recipe
from training.weights.checkpoint import Checkpoint


def found(gain: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    """Of report.json what the verdict reads: 40 percent of zero-shot and a gain."""
    gains = {"zero_shot": {"gain": gain, "interval": [low, high]}}
    names = {"zero_shot": "zero-shot", "self_training": "self-training", "cross_most": "Cross-MoST"}
    table = {"zero_shot": {"mean": 40.0}, "self_training": {"mean": 41.0}, "cross_most": {"mean": 40.0 + gain}}
    other = {"zero_shot": {"gain": 1.0, "interval": [0.5, 1.5]}}
    values = {"n": 627, "names": names, "table": table, "seeds": {}, "deviation": {}}
    return values | {"gains": {"self_training": other, "cross_most": gains}} | more


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            found(15.24, 12.96, 17.44),
            "Cross-MoST: 55.2% right without labels, +15.2 points over zero-shot "
            "(95% interval +13.0 to +17.4), n = 627 objects.",
        ),
        (
            found(-2.25, -4.0, -0.5, n=1),
            "Cross-MoST: 37.8% right without labels, worse than zero-shot by 2.2 points "
            "(95% interval -4.0 to -0.5), n = 1 object.",
        ),
        (
            found(0.8, -1.0, 2.6),
            "Cross-MoST: 40.8% right without labels, not told apart from zero-shot: +0.8 points "
            "(95% interval -1.0 to +2.6), n = 627 objects.",
        ),
        (
            found(3.0, 0.0, 6.0),
            "Cross-MoST: 43.0% right without labels, not told apart from zero-shot: +3.0 points "
            "(95% interval +0.0 to +6.0), n = 627 objects.",
        ),
        (
            found(15.0, 13.0, 17.0, seeds={"cross_most": [{}] * 3}, deviation={"cross_most": {"mean": 1.24}}),
            "Cross-MoST: 55.0 +- 1.2% right without labels (3 seeds), +15.0 points over zero-shot "
            "(95% interval +13.0 to +17.0), n = 627 objects.",
        ),
    ],
    ids=["gain", "loss", "within", "touches zero", "seeds"],
)
def test_the_verdict_by_hand(values: dict[str, Any], words: str) -> None:
    assert verdict(values) == words


def test_without_cross_most_the_verdict_is_of_the_first_run() -> None:
    values = found(1.0, 0.5, 1.5)
    del values["gains"]["cross_most"]
    assert verdict(values).startswith("self-training: 41.0% right")


def opened(path: str, method: str = "cross_most", **changes: Any) -> report._OpenRun:
    recipe = saved_recipe({"method": method} | changes, "a run")
    last = Checkpoint(Path(path), 4, recipe, (), (), "d")
    return report._OpenRun("", "", "", path, {}, last, last, {})


def test_a_row_has_its_folder_and_the_keys_that_differ_from_the_first() -> None:
    runs = report._named(
        [
            opened("runs/alone", "self_training"),
            opened("runs/base"),
            opened("runs/align", weights={"align": 2.0}, logit_scale="frozen", save_every=7),
            opened("runs/none-0", weights={"align": 0.0}),
            opened("runs/none-1", weights={"align": 0.0}, seed=1),
            opened("other/base", save_every=7),
        ]
    )
    assert {run.row: run.shown for run in runs} == {
        "self_training": "self-training",
        "cross_most": "Cross-MoST, base",
        "cross_most_2": "Cross-MoST, align (logit_scale=frozen, weights.align=2.0)",
        "cross_most_3": "Cross-MoST, none (weights.align=0.0)",
        "cross_most_4": "Cross-MoST, base 4",
    }


class _Outline(HTMLParser):
    """The elements of a page, each with the classes of those that hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: list[tuple[str, str | None]] = []
        self.found: list[tuple[str, dict[str, str | None], list[str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), [name for _, name in self.holders]))
        if tag not in ("meta", "img"):
            self.holders.append((tag, dict(attrs).get("class")))

    def handle_endtag(self, tag: str) -> None:
        assert self.holders.pop()[0] == tag


def test_tables_and_pictures_scroll_inside_the_page() -> None:
    picture = Picture("report_losses.png", b"png", "What it means.", "Line charts.")
    page = Page("title", "the verdict", (Section("s", (PageTable(("x", "y"), (("1", "2"),)), picture, "text")),))
    html, outline = to_html(page), _Outline()
    outline.feed(html)
    assert outline.holders == []
    shown = [each for each in outline.found if each[0] in ("table", "img")]
    assert [tag for tag, _, _ in shown] == ["table", "img"]
    assert all("scroll" in holders for _, _, holders in shown)
    assert shown[1][1]["alt"] == "Line charts."
    assert ".scroll { overflow-x: auto; }" in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport" content="width=device-width' in html
    assert html.index("the verdict") < html.index("<h2>")
    assert to_markdown(page).splitlines()[2] == "**the verdict**"
    assert "![Line charts.](report_losses.png)" in to_markdown(page)
