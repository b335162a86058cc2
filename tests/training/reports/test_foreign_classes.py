"""Class names, labels and paths of others through every command that shows them: nothing is obeyed, nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from foreign_text import FOLDER, HOSTILE, Page, hidden
from markdown_it import MarkdownIt
from PIL import Image

from manifests.config import to_toml
from manifests.plain_text import for_csv, for_terminal
from training import demo, oracle
from training.__main__ import main
from training.loop.metric_log import append_histograms, cut_rows
from training.paper_tables.judged_rows import resolve
from training.paper_tables.table_builds import builds_of
from training.paper_tables.table_rows import read_table
from training.plots.scatter import scatter_picture

SMALL = (
    "data.num_points=64",
    "optimizer.batch_size=8",
    "optimizer.steps=2",
    "log_every=2",
    "points.depth=1",
    "tensorboard=false",
)
FEW = (*SMALL, "labels.threshold=0.06")  # of 19 classes: an untrained model gives some pseudo-labels
DATASET = "---\nfoo: bar\x85| `a` | [red]x[/nope]"


def typed(*arguments: object, code: int = 0) -> str:
    """What a command shows, without a control character in it."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main([str(argument) for argument in arguments]) == code, err.getvalue()
    told = out.getvalue() + err.getvalue()
    assert hidden(told) == ""
    return told


@pytest.fixture(scope="module")
def named(shards, tmp_path_factory) -> Path:
    """The shards as a stranger hands them out: other names for the classes and the dataset, a path that is markup."""
    out = tmp_path_factory.mktemp("named") / FOLDER / "out"
    shutil.copytree(shards, out)
    manifest = json.loads((out / "manifest.json").read_text())
    names = [*HOSTILE, *(f"class {number}" for number in range(100))][: len(manifest["classes"])]
    manifest |= {"classes": names, "prompt_names": [f"thing {n}" for n in range(len(names))], "dataset": DATASET}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture(scope="module")
def classes(named) -> list[str]:
    return json.loads((named / "manifest.json").read_text())["classes"]


@pytest.fixture(scope="module")
def run(named, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / FOLDER / "run"
    told = typed("fit", "small_cross_most", "--shards", named, "--run", folder, *FEW)
    assert f"python -m training evaluate {for_terminal(str(folder))}" in told
    assert "loss" in told
    return folder


def cells(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_a_run_logs_names_that_no_spreadsheet_runs(run, classes) -> None:
    head, *rows = cells(run / "histograms.csv")
    assert head[2:] == [for_csv(" ".join(name.split())) for name in classes]
    assert '\'=HYPERLINK("https://evil.example")' in head
    assert all(len(row) == len(head) for row in rows)
    assert json.loads((run / "run.json").read_text())["classes"] == classes


def test_histograms_are_cut_where_names_end_lines(tmp_path, classes) -> None:
    path = tmp_path / "histograms.csv"
    for step in (1, 2):
        append_histograms(path, step, {"image": [1] * len(classes)}, classes)
    whole = path.read_text()
    append_histograms(path, 3, {"image": [1] * len(classes)}, classes)
    cut_rows(path, 2)
    assert path.read_text() == whole


def test_evaluate_shows_and_writes_names(run, named, classes, tmp_path) -> None:
    out = tmp_path / FOLDER
    told = typed("evaluate", run, "--shards", named, "--out", out)
    assert for_terminal(str(out)) in told
    assert for_terminal(DATASET)[:20] in told
    head, *rows = cells(out / "per_class.csv")
    assert [row[0] for row in rows] == [for_csv(name) for name in classes]
    assert {len(row) for row in rows} == {len(head)}
    head, *rows = cells(out / "confusion_student_points.csv")
    assert head[1:] == [row[0] for row in rows] == [for_csv(name) for name in classes]
    assert json.loads((out / "evaluate.json").read_text())["dataset"] == DATASET
    assert json.loads(typed("evaluate", run, "--shards", named, "--json"))["dataset"] == DATASET


def test_predict_shows_labels_and_files(run, named, classes, tmp_path) -> None:
    told = typed("predict", run, "--shards", named)
    shown = [for_terminal(name)[:12] for name in classes]
    assert any(name in told for name in shown)
    values = json.loads(typed("predict", run, "--shards", named, "--json"))
    assert {row["label"] for row in values} <= set(classes)
    names = [name for name in HOSTILE if "," not in name]
    assert {
        row["label"]
        for row in json.loads(typed(*("predict", run, "--shards", named, "--json", "--classes"), ",".join(names)))
    } <= {name.strip() for name in names}
    told = typed("predict", run, tmp_path / FOLDER / "none.off", "\x1b[2J[/nope]", code=1)
    assert "no such file" in told
    assert r"\u001b[2J[/nope]" in told


def test_a_terminal_obeys_no_label(run, named, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich writes colours and bars, as to a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    commands = (
        ("predict", run, "--shards", named),
        ("predict", run, "\x1b[2J[/nope]\u202e"),
        ("evaluate", run, "--shards", named, "--out", tmp_path / FOLDER),
        ("evaluate", "[red]x[/nope]\x1b[2J", "--shards", named),
    )
    for command, code in zip(commands, (0, 1, 0, 2), strict=True):
        err, out = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            assert main([str(argument) for argument in command]) == code
        told = out.getvalue() + err.getvalue()
        assert "\x1b[" in told
        assert not re.search("\x1b\\[2J|\x1b\\]|[\x07\x9b\x7f\u202e\u2066\u200b]", told)


def test_the_oracle_and_the_demonstration_show_paths(named, tmp_path, capsys) -> None:
    folder = tmp_path / FOLDER / "oracle"
    assert oracle.main(["small_cross_most", "--shards", str(named), "--run", str(folder), *SMALL]) == 0
    assert demo.main(["--out", str(folder)]) == 2
    told = capsys.readouterr()
    assert hidden(told.out + told.err) == ""
    assert f"{for_terminal(str(folder))}/checkpoints" in told.err
    assert f"--out {for_terminal(str(folder))} is not empty and no demo" in told.err


def test_a_report_shows_names_and_no_more(run, named, tmp_path) -> None:
    out = tmp_path / FOLDER
    assert for_terminal(str(out / "report.html")) in typed("report", run, "--shards", named, "--out", out)
    text = (out / "report.md").read_text()
    assert hidden(text) == ""
    shown = Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    assert not {"a", "script", "b", "hr", "em", "code", "del"} & set(shown.tags)
    assert shown.tags.count("h1") == 1
    for words in (shown.words, Page((out / "report.html").read_text()).words):
        assert f"{for_terminal(DATASET)}: self-training" in words
        assert for_terminal(str(run)) in words
    assert json.loads((out / "report.json").read_text())["dataset"] == DATASET


def test_other_commands_show_paths(run, named, tmp_path) -> None:
    out = tmp_path / FOLDER / "a.npz"
    assert for_terminal(str(out)) in typed("embed", run, "--shards", named, "--out", out)
    assert np.load(out)["classes"].tolist() == json.loads((named / "manifest.json").read_text())["classes"]
    saved = tmp_path / FOLDER / "a.safetensors"
    typed("weights", run, "--out", saved)
    assert for_terminal(str(saved)) in typed("weights", saved)
    for name in ("[red]x[/nope]", "\x1b[2J\udcff"):
        assert "".join(for_terminal(name).split()) in "".join(
            typed("evaluate", name, "--shards", named, code=2).split()
        )
    assert "nothing written" in typed(
        *("fit", "small_cross_most", "--dry-run", "--run", tmp_path / FOLDER / "r"), *("--shards", named), *FEW
    )


TABLE = {
    "title": "\x1b[2J[/nope] | <script>",
    "notes": ["- # x\n| a |", "=1+1"],
    "rows": [
        {"name": "others", "label": "=HYPERLINK(1) | [x](https://y) [/nope]\x1b[2J", "paper": {"points": 70.3}},
        {
            "name": "ours",
            "label": "- <b>\u202e",
            "recipe": "modelnet40",
            "run": "ours",
            "note": "[red]x[/nope]",
            "paper": {"points": 83.1},
        },
    ],
}


def test_a_table_shows_labels_and_no_more(named, tmp_path) -> None:
    folder, file = tmp_path / FOLDER, tmp_path / "[b]x.toml"
    rows = "".join(f"[[rows]]\n{to_toml(row).replace('[paper]', '[rows.paper]')}\n" for row in TABLE["rows"])
    file.write_text(to_toml({"title": TABLE["title"], "notes": TABLE["notes"]}) + rows)
    given = ("--shards", f"modelnet40={named}", "--recipe", "small_cross_most", "--run", folder)
    table = read_table(str(file))
    (judged,) = resolve(table.rows, builds_of([f"modelnet40={named}"], table.variants), {}, "small_cross_most")
    result = {"identity": judged.identity, "student": {"image": 1, "image_star": 2, "points": 80}, "n": 9, "step": 1}
    (folder / "results").mkdir(parents=True)
    (folder / f"results/ours-{judged.identity[:8]}.json").write_text(json.dumps(result))
    assert "ours: done" in typed("table", file, *given, "--dry-run")
    told = typed("table", file, *given)
    for row in TABLE["rows"]:
        assert for_terminal(row["label"])[:8] in told
    text = (folder / "table_[b]x.md").read_text()
    assert hidden(text) == ""
    shown = Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    assert set(shown.tags) == {"h1", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert (shown.tags.count("th"), shown.tags.count("td")) == (11, 22)
    head, *lines = cells(folder / "table_[b]x.csv")
    assert [line[head.index("label")] for line in lines] == [for_csv(row["label"]) for row in TABLE["rows"]]
    assert lines[1][head.index("points_difference")] == "-3.1"
    assert json.loads((folder / "table_[b]x.json").read_text())["title"] == TABLE["title"]


def test_pictures_take_any_name(classes) -> None:
    plane, label = np.random.default_rng(0).normal(size=(len(classes), 2)), np.arange(len(classes))
    data = scatter_picture({"image": plane, "points": plane}, label, classes, " ".join(HOSTILE))
    Image.open(io.BytesIO(data)).verify()
