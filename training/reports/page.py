"""Writes the report as a page of paragraphs, tables and pictures, in Markdown or as one HTML file."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.plain_text import for_markdown, html_page, number_of
from training.settings.row_terms import term_lines

COLUMNS = {"image": "Image", "image_star": "Image*", "points": "Point cloud", "mean": "Mean"}
ZERO_SHOT, ORACLE = "zero_shot", "oracle"
OURS = "cross_most"  # the method whose gains over all others are reported
NAMES = {
    ZERO_SHOT: "zero-shot",
    "self_training": "self-training",
    "cross_most": "Cross-MoST",
    ORACLE: "oracle (labels known: an upper bound)",
}
CAPTIONS = {
    "losses": "Losses as they were weighted, means over the steps between two rows of the log. Lower is better.",
    "pseudo_labels": "Share of a training batch with a pseudo-label above the threshold, by the modality that gave it.",
    "analysis": "The teachers' predictions on training batches. Entropy, as the paper names it: more is surer. "
    "Biasedness: less is more even; of the few hundred predictions of a row, a little more than of a whole split.",
    "labelled": "Percent of the labelled test split, measured while the runs trained (eval_every). It chose nothing, "
    "but a run that looked is no label-free result.",
    "target": "Objects of the evaluated split: views, the cloud, and what students answered, with their probability. "
    "A tick on green is right, a cross on red is wrong.",
    "source": "Objects of the labelled source domain, on which the towers were pre-trained.",
}
ALTERNATIVES = {  # what a picture shows, for those who do not see it
    "losses": "Line charts of the total loss and of each of its terms by step, a line for each run.",
    "pseudo_labels": "Line charts of the share of a batch with a pseudo-label by step, a chart for each run.",
    "analysis": "Line charts of entropy and biasedness of the teachers' predictions by step, a line for each run.",
    "labelled": "Line charts of the percent right of student and teacher by step, a line for each run.",
    "target": "Objects of the target domain in rows: views, the cloud, and each model's answers.",
    "source": "Objects of the source domain: views and the cloud of each.",
}
TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class PageTable:
    """A table of texts; the first column names the rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG; name: of its file beside the Markdown; alternative: its words for those who do not see it."""

    name: str
    png: bytes
    caption: str
    alternative: str

    @property
    def uri(self) -> str:
        """The picture itself as the address of an image."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading, then paragraphs, tables and pictures in this order."""

    title: str
    parts: tuple[str | PageTable | Picture, ...]


@dataclass(frozen=True)
class Page:
    """A title, the verdict and sections."""

    title: str
    verdict: str
    sections: tuple[Section, ...]


def picture_file(name: str) -> str:
    """The file of a picture of the report."""
    return f"report_{name}.png"


def page_of(values: dict[str, Any], pictures: dict[str, bytes]) -> Page:
    """The page about the object of report.json. pictures: PNG by name."""
    shown = {
        name: Picture(picture_file(name), png, CAPTIONS[name], ALTERNATIVES[name]) for name, png in pictures.items()
    }
    sections = [
        Section("Accuracy", _accuracy(values)),
        Section("Pseudo-labels", _pseudo_labels(values, shown)),
        Section("Analysis", _analysis(values, shown)),
    ]
    if "losses" in shown:
        sections.append(Section("Losses", (shown["losses"],)))
    if "labelled" in shown:
        sections.append(Section("Accuracy while training", (shown["labelled"],)))
    sections.append(Section("Target domain", (shown["target"],)))
    if "source" in shown:
        sections.append(Section("Source domain", (shown["source"],)))
    sections.append(Section("Runs", _runs(values)))
    title = f"{values['dataset']}: self-training without labels of the target domain"
    return Page(title, verdict(values), tuple(sections))


def accuracy_table(values: dict[str, Any]) -> PageTable:
    """Percent right of the students, with 95% intervals; of several seeds the mean and its deviation."""
    rows = {row: (cells, values["interval"][row]) for row, cells in values["table"].items()}
    if values["oracle"]:
        rows[ORACLE] = values["oracle"], values["oracle"]["interval"]

    def cell(row: str, name: str) -> str:
        found, (low, high) = rows[row][0][name], rows[row][1][name]
        deviation = values["deviation"].get(row)
        return f"{found:.1f} +- {deviation[name]:.1f}" if deviation else f"{found:.1f} [{low:.1f}, {high:.1f}]"

    def label(row: str) -> str:
        return values["names"][row] + (f" (n={len(values['seeds'][row])})" if row in values["seeds"] else "")

    lines = ((label(row), *(cell(row, name) for name in COLUMNS)) for row in rows)
    return PageTable(("percent right", *COLUMNS.values()), tuple(lines))


def verdict(values: dict[str, Any]) -> str:
    """What the report found, in a sentence: the first run of Cross-MoST, or the first of all, against zero-shot.

    A gain or a loss is said only where the whole interval is on its side of 0.
    """
    row = next((row for row in values["gains"] if row.startswith(OURS)), next(iter(values["gains"])))
    found, right = values["gains"][row][ZERO_SHOT], f"{values['table'][row]['mean']:.1f}"
    gain, (low, high) = found["gain"], found["interval"]
    if row in values["seeds"]:
        right = f"{right} +- {values['deviation'][row]['mean']:.1f}"
    if low > 0:
        told = f"{gain:+.1f} points over zero-shot"
    elif high < 0:
        told = f"worse than zero-shot by {-gain:.1f} points"
    else:
        told = f"not told apart from zero-shot: {gain:+.1f} points"
    seeds = f" ({len(values['seeds'][row])} seeds)" if row in values["seeds"] else ""
    return (
        f"{values['names'][row]}: {right}% right without labels{seeds}, {told} "
        f"(95% interval {low:+.1f} to {high:+.1f}), n = {number_of(values['n'], 'object')}."
    )


def gain_lines(values: dict[str, Any]) -> list[str]:
    """The signed gain of each run over others in the mean column."""
    names, lines = values["names"], []
    for row, others in values["gains"].items():
        told: list[str] = []
        for other, found in others.items():
            low, high = found["interval"]
            told.append(f"minus {names[other]}: {found['gain']:+.1f} points [{low:+.1f}, {high:+.1f}]")
        lines.append(f"{names[row]} {'; '.join(told)} (mean of the three columns).")
    return lines


def _accuracy(values: dict[str, Any]) -> tuple[str | PageTable, ...]:
    n, split = values["n"], values["split"]
    parts: list[str | PageTable] = [
        f"Percent of the {n:,} objects of the {split} split that the student of the last step names right. Image: one "
        "view an object; Image*: features of all views averaged; Point cloud: the cloud alone; Mean: of the three. "
        "No label of this domain was used in training, except by an oracle.",
        accuracy_table(values),
        " ".join(term_lines(values)),
        *gain_lines(values),
        "Brackets: 95% intervals over objects, Wilson's for accuracies (for the mean, rather too wide), of paired "
        "differences for gains. They do not hold what another seed of training would change.",
    ]
    if values["teacher"]:
        rows = (
            (values["names"][row], *(f"{cells[name]:.1f}" for name in COLUMNS))
            for row, cells in values["teacher"].items()
        )
        parts += ["The same of the teachers:", PageTable(("percent right", *COLUMNS.values()), tuple(rows))]
    if values["seeds"]:
        parts.append(
            "+-: sample deviation (n - 1) of n runs that differ in nothing but the seed, after their mean. Gains are "
            "of means; of curves the mean is drawn thick, each run thin. Each run by itself:"
        )
        single = (
            (values["names"][seed["run"]], *(f"{seed[name]:.1f}" for name in COLUMNS))
            for seeds in values["seeds"].values()
            for seed in seeds
        )
        parts.append(PageTable(("percent right", *COLUMNS.values()), tuple(single)))
    return tuple(parts)


def _pseudo_labels(values: dict[str, Any], shown: dict[str, Picture]) -> tuple[str | PageTable | Picture, ...]:
    parts: list[str | PageTable | Picture] = [shown["pseudo_labels"]] if "pseudo_labels" in shown else []
    if values["pseudo_labels"] is None:
        return (*parts, "The training split has no labels: how many pseudo-labels are right is not known.")
    rows = []
    for row, found in values["pseudo_labels"].items():
        for step in (found["first"], found["last"]):
            cells = (f"{step[mode][name]:.1f}" if step[mode][name] is not None else "none" for mode, name in _QUALITY)
            rows.append((values["names"][row], str(step["step"]), *cells))
    by_row = {values["names"][row]: f"{found['threshold']:g}" for row, found in values["pseudo_labels"].items()}
    same = set(by_row.values())
    thresholds = min(same) if len(same) == 1 else ", ".join(f"{name} {each}" for name, each in by_row.items())
    told = {"image": "image", "points": "cloud", "joint": "joint"}
    head = (f"{told[mode]}: {'selected' if name == 'selected' else 'right'} %" for mode, name in _QUALITY)
    return (
        "What the teachers' pseudo-labels are worth on the training split, by labels that training never saw: percent "
        f"of objects above the threshold ({thresholds}), and percent of those that are right. Joint: the surer of "
        "image and cloud gives the label, as in Cross-MoST; self-training takes each branch's own.",
        PageTable(("run", "step", *head), tuple(rows)),
        *parts,
    )


_QUALITY = [(mode, name) for mode in ("image", "points", "joint") for name in ("selected", "precision")]


def _analysis(values: dict[str, Any], shown: dict[str, Picture]) -> tuple[str | PageTable | Picture, ...]:
    figures = [(modality, name) for name in ("biasedness", "entropy") for modality in ("image", "points")]
    rows = tuple(
        (values["names"][row], *(f"{found['student'][modality][name]:.3f}" for modality, name in figures))
        for row, found in values["analysis"].items()
    )
    told = {"image": "image", "points": "cloud"}
    head = ("students", *(f"{name}: {told[modality]}" for modality, name in figures))
    return (
        f"On the {values['split']} split, in nats. Biasedness: KL between how often each class is predicted and a "
        f"uniform distribution (0 is even; the labels themselves have {values['labels_biasedness']:.3f}). Entropy, as "
        "the paper names it: mean KL between a prediction and a uniform distribution (more is surer).",
        PageTable(head, rows),
        *([shown["analysis"]] if "analysis" in shown else []),
    )


def _runs(values: dict[str, Any]) -> tuple[str | PageTable, ...]:
    def told(value: float | None) -> str:
        return f"{value:,.0f}" if value else "-"

    rows = tuple(
        (
            values["names"][row],
            found["path"],
            found["init"] or "-",
            f"{found['step']:,}",
            *(told(found[name]) for name in _COST),
        )
        for row, found in values["runs"].items()
    )
    parts: list[str | PageTable] = [PageTable(("run", "folder", "began with", "steps", *_COST.values()), rows)]
    if values["seconds"] is not None or values["max_rss_mb"] is not None:
        parts.append(f"In all: {told(values['seconds'])} s, {told(values['max_rss_mb'])} MB of memory at most.")
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    seeds = sorted({seed["seed"] for each in values["seeds"].values() for seed in each} | {values["seed"]})
    return (*parts, f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}. {versions}.")


_COST = {"seconds": "seconds", "max_rss_mb": "memory, MB", "ms_per_step": "ms a step"}


def to_markdown(page: Page) -> str:
    """The page as Markdown; pictures are files beside it."""
    lines = [f"# {for_markdown(page.title)}", "", f"**{for_markdown(page.verdict)}**", ""]
    for section in page.sections:
        lines += [f"## {section.title}", ""]
        for part in section.parts:
            if isinstance(part, PageTable):
                lines += _markdown_table(part)
            elif isinstance(part, Picture):
                lines += [f"![{for_markdown(part.alternative)}]({part.name})", "", for_markdown(part.caption)]
            else:
                lines.append(for_markdown(part))
            lines.append("")
    return "\n".join(lines)


def _markdown_table(table: PageTable) -> list[str]:
    head, *rows = ([for_markdown(cell) for cell in row] for row in (table.head, *table.rows))
    rows = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return ["| " + " | ".join(row) + " |" for row in rows]


def to_html(page: Page) -> str:
    """The page as one HTML file, with its pictures inside."""
    return html_page(TEMPLATE, page=page)
