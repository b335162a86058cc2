"""Papers' demonstrations: files that fit together, claims by hand, and, slow, one that runs, goes on and reports."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from builders import REPOSITORY

from manifests.config import parse_changes
from manifests.errors import Refused
from pipeline.plan import build_recipe
from training.paper_demo import DEMOS, Claim, demo_names, judge, main, read_demo
from training.paper_tables.judged_rows import resolve
from training.paper_tables.table_builds import Builds
from training.paper_tables.table_rows import chosen, read_table
from training.reports import demo_page


@pytest.mark.parametrize("name", demo_names())
def test_a_shipped_demonstration_fits_together(name: str) -> None:
    """Its builds, its rows with its keys, and those of --quick resolve; make has a target of its name."""
    demo, rows = read_demo(name)
    table = read_table(str(rows))
    for build in demo.builds:
        keys = [*build.keys, *demo.quick.builds.get(build.name, ())]
        build_recipe.read_recipe(build.recipe, parse_changes(keys))
    for changes, some in ((demo.changes, ""), ((*demo.changes, *demo.quick.changes), demo.quick.rows)):
        found = resolve(
            chosen(table, some), Builds({}, (), None), parse_changes(changes), seeds=(0, 1), columns=table.columns
        )
        assert found
    assert f"{name}-demo" in (REPOSITORY / "Makefile").read_text().partition(".PHONY: ")[2].partition("\n")[0].split()


def comparison(**values: list[float | None]) -> dict:
    rows = [
        {"name": name, "seeds": [{"seed": seed, "values": {"svm": value}} for seed, value in enumerate(each)]}
        for name, each in values.items()
    ]
    return {"heads": {"svm": "SVM"}, "rows": rows}


@pytest.mark.parametrize(
    ("ours", "bar", "verdict"),
    [
        ([75.0, 76.0, 75.0], 3.0, "holds"),  # 4, 6, 5: 5 [2.5, 7.5]
        ([75.0, 76.0, 75.0], 6.0, "undecided"),  # below what is asked, but the interval reaches it
        ([75.0, 76.0, 75.0], 8.0, "does not hold"),  # the whole interval is below
        ([71.0, 79.0, 75.0], 3.0, "undecided"),  # 0, 9, 5: the interval reaches below 0
        ([67.0, 66.0, 65.0], 0.0, "does not hold"),
        ([75.0, None, None], 3.0, "undecided"),  # one seed
        ([None, None, None], 3.0, "undecided"),
    ],
)
def test_what_becomes_of_a_claim(ours: list[float | None], bar: float, verdict: str) -> None:
    claim = Claim(text="Ours is better", row="ours", against="random", bars={"svm": bar})
    found = judge(claim, comparison(ours=ours, random=[71.0, 70.0, 70.0]))
    assert found["verdict"] == verdict
    assert found["line"].startswith(f"Ours is better: {verdict} (")
    if ours == [75.0, 76.0, 75.0]:
        assert (found["figures"]["svm"]["mean"], found["figures"]["svm"]["interval"]) == (5.0, [2.52, 7.48])
        assert f"SVM +5.0 [+2.5, +7.5], asked +{bar:g}" in found["line"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('row = "pointnet-joint"', 'row = "pointnet-join"', "unknown row of a claim pointnet-join; did you mean"),
        ("bars = { svm = 3.0", "bars = { svn = 3.0", "unknown column of a claim svn; did you mean svm"),
        ('name = "scanned"', 'name = "scaned"', "its table needs a build scanned"),
        ("[quick.builds]\nscanned", "[quick.builds]\nscan", "quick.builds.scan is none of its builds (scanned)"),
        (
            'recipe = "parametric_target"',
            'recipe = "a"\nkey = []',
            "unknown key builds.0.key; did you mean builds.0.keys",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (DEMOS / "crosspoint.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(Refused, match=r"no file .*mine_rows\.toml"):
        read_demo(str(tmp_path / "mine.toml"))
    (tmp_path / "mine_rows.toml").write_text((DEMOS / "crosspoint_rows.toml").read_text())
    with pytest.raises(Refused) as error:
        read_demo(str(tmp_path / "mine.toml"))
    assert words in str(error.value)


def test_another_demonstration_in_the_same_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["crospoint", "--out", str(tmp_path)]) == 2
    assert "did you mean crosspoint" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "demo.json").write_text(json.dumps({"settings": {"seed": 0}, "seconds": 1.0, "max_rss_mb": 1.0}))
    assert main(["crosspoint", "--out", str(tmp_path)]) == 2
    assert "holds a demonstration of other settings" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_quick_one_runs_reports_and_is_not_run_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [
        sys.executable,
        "-m",
        "training.paper_demo",
        "crosspoint",
        "--quick",
        "--out",
        str(out),
        "--workers",
        "2",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[0].startswith("PointNet: joint pre-training beats a random network: undecided (SVM, standardised +")
    found = json.loads((out / "report.json").read_text())
    rows = {row["name"]: row for row in found["table"]["rows"]}
    gain = rows["pointnet-joint"]["figures"]["svm"]["gain"]["mean"]
    assert gain == found["claims"][0]["figures"]["svm"]["mean"] > 3
    assert (rows["pointnet-joint"]["step"], rows["pointnet-random"]["step"]) == (40, 0)
    assert found["cpu_seconds"] > 10
    commands = [shlex.split(line) for line in (out / "commands.txt").read_text().splitlines()]
    assert [line[3:5] for line in commands][:2] == [["pipeline", "build"], ["training", "table"]]
    assert [line[4] for line in commands[2:]] == ["fit", "probe", "probe"]
    page = (out / "report.md").read_text()
    assert f"PointNet, joint | {rows['pointnet-joint']['figures']['svm']['ours']:.1f} |" in page
    assert "<h2>Claims</h2>" in (out / "report.html").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (out / "runs/results").iterdir()}
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "runs/results").iterdir()}


def test_a_report_says_what_it_costs_and_shows_every_seed() -> None:
    row = {
        "label": "a|b",
        "figures": {"svm": {"ours": 70.0, "interval": [68.0, 72.0]}},
        "seeds": [{"seed": 0, "values": {"svm": 69.0}}, {"seed": 1, "values": {"svm": 71.0}}],
    }
    claims = [{"text": "c", "verdict": "holds", "line": "c: holds", "figures": {}}]
    values = {"title": "T", "about": ["why"], "claims": claims, "table": {"heads": {"svm": "SVM"}, "rows": [row]}}
    page = demo_page.page_of(values | {"seconds": 61.0, "cpu_seconds": 100.0, "max_rss_mb": 5.0}, ["a note"])
    assert page.verdict == "c: holds."
    text = demo_page.to_markdown(page)
    for words in (
        "| a\\|b | 70.0 [68.0, 72.0] |",
        "| a\\|b, seed 1 | 71.0 |",
        "why",
        "a note",
        "61 s, 100 CPU seconds",
    ):
        assert words in text
