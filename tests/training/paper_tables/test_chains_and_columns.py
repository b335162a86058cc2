"""Tables whose rows begin with others and whose columns are judged by several commands and builds."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from scipy.stats import t as student_t
from tiny_towers import tiny
from training_runs import typed

from manifests.errors import Refused
from training.__main__ import main
from training.command_line import add_probe_tasks
from training.paper_tables import missing, runner, seed_statistics
from training.paper_tables.columns import TASK_FLAGS, taken
from training.paper_tables.judged_rows import resolve
from training.paper_tables.place import Place
from training.paper_tables.results import known_outcome
from training.paper_tables.runner import with_beginnings
from training.paper_tables.table_builds import Builds
from training.paper_tables.table_rows import chosen, read_table, short_name

TABLE = """
# python -m pipeline build parametric --out shards/elsewhere --workers 2
title = "Small chain"
baseline = "random"

[columns.raw]
head = "SVM raw"
command = "probe"
arguments = ["--classifier", "svm", "--C", "0.01"]
value = "accuracy"

[columns.standardised]
head = "SVM"
command = "probe"
arguments = ["--classifier", "svm", "--C", "0.01", "--standardise"]
value = "accuracy"

[columns.shot]
head = "3-way"
command = "probe"
arguments = ["--ways", "3", "--shots", "1", "--queries", "1", "--episodes", "4"]
value = "mean"

[columns.text]
head = "text"
arguments = ["data.views=rgb12"]
value = "student.points"
shards = "parametric"

[columns.elsewhere]
head = "another build"
command = "probe"
value = "rows.1.accuracy"
shards = "elsewhere"

[[rows]]
name = "others"
label = "others"
paper = { raw = 70.3 }
[[rows]]
name = "random"
label = "random"
recipe = "small_crosspoint"
run = "pre"
shards = "parametric"
step = "first"
judge = ["raw", "standardised", "shot"]
[[rows]]
name = "pre"
label = "CrossPoint"
recipe = "small_crosspoint"
run = "pre"
shards = "parametric"
judge = ["raw", "standardised", "shot", "elsewhere"]
paper = { raw = 60.0 }
[[rows]]
name = "stage"
label = "a stage"
recipe = "small_crosspoint"
run = "stage"
shards = "parametric"
judge = []
begins = { "init.points" = "pre" }
[[rows]]
name = "last"
label = "after a stage"
recipe = "small_cross_most"
run = "last"
shards = "parametric"
begins = { "init.points" = "stage" }
judge = ["text"]
changes = { weights = { mpm = 0.0, lg_align = 0.0 } }
"""
FEW = (
    *("data.num_points=64", "optimizer.batch_size=8", "optimizer.steps=2", "log_every=1", "save_every=1"),
    *("points.backbone=pointnet", "tensorboard=false", "data.workers=0"),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("table") / "chain.toml"
    path.write_text(TABLE)
    return path


def told(capfd: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capfd.readouterr().out)


def builds(shards: Path) -> Builds:
    return Builds({"parametric": str(shards)}, (), None)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The commands that a table runs, each in this process: starting one takes seconds."""
    seen: list[list[str]] = []

    def command(words: list[str], name: str, place: Place, until: Path | None = None) -> tuple[int, str, str]:
        seen.append(words[3:])
        return 0, "", typed(*words[3:])[0]

    monkeypatch.setattr(runner, "_command", command)
    with tiny():
        yield seen


def test_a_chain_is_run_and_nothing_of_it_again(shards, table, tmp_path, commands, capfd) -> None:
    run = tmp_path / "run"
    words = ["table", str(table), "--shards", f"parametric={shards}", "--run", str(run), "--device", "cpu", "--json"]
    words += FEW
    assert main([*words, "--rows", "last"]) == 0
    assert [(line[0], Path(line[1]).stem) for line in commands] == [
        ("fit", "pre"),
        ("probe", "pre"),
        ("fit", "stage"),
        ("fit", "last"),
        ("evaluate", "last"),
    ]
    assert tomllib.loads((run / "last/recipe.toml").read_text())["init"]["points"] == str(run / "stage")
    assert tomllib.loads((run / "stage/recipe.toml").read_text())["init"]["points"] == str(run / "pre")
    capfd.readouterr()
    commands.clear()
    assert main(words) == 0
    assert [line[0] for line in commands] == ["probe"]  # the first checkpoint is there, and left to be judged
    assert commands[0][1] == str(run / "pre/checkpoints/step-00000000")
    comparison = told(capfd)
    rows = {row["name"]: row for row in comparison["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "others": "paper",
        "random": "done",
        "pre": "done",
        "stage": "done",
        "last": "done",
    }
    flags = ("--shards", shards, "--without-random", "--json")
    probed = json.loads(typed("probe", run / "pre", *flags, "--C", "0.01")[0])
    episodes = ("--ways", 3, "--shots", 1, "--queries", 1, "--episodes", 4)
    shot = json.loads(typed("probe", run / "pre", *flags, *episodes)[0])
    figures = {name: figure["ours"] for name, figure in rows["pre"]["figures"].items()}
    assert figures == {
        "raw": probed["rows"][0]["accuracy"],
        "standardised": probed["rows"][1]["accuracy"],
        "shot": shot["mean"],
        "text": None,
        "elsewhere": None,
    }
    raw = rows["pre"]["figures"]["raw"]
    assert raw["difference"] == round(raw["ours"] - 60.0, 2)
    assert raw["gain"]["mean"] == round(raw["ours"] - rows["random"]["figures"]["raw"]["ours"], 2)
    judged = json.loads(typed("evaluate", run / "last", "--shards", shards, "--json", "data.views=rgb12")[0])
    assert rows["last"]["figures"]["text"]["ours"] == judged["student"]["points"]
    assert rows["pre"]["lacks"] == {"elsewhere": "no build of elsewhere"}
    page = (run / "table_chain.md").read_text()
    assert "- another build: no build of elsewhere, so no figure of CrossPoint." in page
    assert "- SVM: svm, C 0.01, standardised features, parametric (train, test)." in page
    assert "- 3-way: 3-way 1-shot, 1 queries, 4 episodes, svm" in page
    assert "- Every row of ours: pointnet, 1 vote." in page
    assert "- random: first checkpoint." in page
    assert "- CrossPoint minus random, seed by seed: SVM raw" in page
    assert rows["pre"]["terms"]["columns"]["raw"]["C"] == 0.01
    commands.clear()
    assert main(words) == 0
    assert commands == []
    assert told(capfd) == comparison


def test_columns_of_one_probe_are_one_command(shards, table) -> None:
    """Their tasks by --also; a column on another build is a command of its own."""
    read = read_table(str(table))
    both = Builds({"parametric": str(shards), "elsewhere": str(shards) + "/."}, (), None)
    (pre,) = [each for each in resolve(read.rows, both, {}, columns=read.columns) if each.row.name == "pre"]
    first, other = Place(Path("run")).judge_commands(pre)
    assert [figure.column.head for figure, _ in first.figures] == ["SVM raw", "SVM", "3-way"]
    assert first.line.count("--also") == 2
    assert first.line[first.line.index("--also") + 1] == "--classifier svm --C 0.01 --standardise"
    assert [task for _, task in first.figures] == [0, 1, 2]
    assert other.line[6] == str(shards) + "/."


def test_further_probes_are_those_that_they_would_be_alone(shards, tmp_path) -> None:
    with tiny():
        typed("fit", "small_crosspoint", "--shards", shards, "--run", tmp_path / "run", *FEW)
        words = ("probe", tmp_path / "run", "--shards", shards)
        tasks = ("--ways 3 --shots 1 --queries 1 --episodes 2", "--standardise --C 0.1")
        both = json.loads(typed(*words, "--json", "--also", tasks[0], "--also", tasks[1])[0])
        assert both.pop("also") == [json.loads(typed(*words, "--json", *task.split())[0]) for task in tasks]
        assert both == json.loads(typed(*words, "--json")[0])
        for flags, reason in (
            ("--features points", "--features is no flag of a further probe (--classifier, "),
            ("--ways three", "argument --ways"),
            ("--shots 2", "--shots is of episodes, which --ways N asks for"),
        ):
            assert reason in typed(*words, "--also", flags, code=2)[1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'value = "mean"',
            'value = "mean"\nvalu = 3',
            "unknown key columns.shot.valu; did you mean columns.shot.value?",
        ),
        ('run = "stage"', 'run = "stage"\nbegin = {}', "unknown key rows.3.begin; did you mean rows.3.begins?"),
        ('judge = ["text"]', 'judge = ["txt"]', "row last: no column txt (raw, standardised, shot, "),
        ('= "stage" }', '= "stag" }', "row last: it begins with stag, which is no row that trains"),
        ('= "stage" }', '= "last" }', "row last: it begins with itself"),
        ('baseline = "random"', 'baseline = "rand"', "the baseline rand is no row"),
        ("paper = { raw = 70.3 }", "judge = []", "row others: a method of others has figures alone"),
        ('"init.points" = "pre"', '"points" = "pre"', "begins.points"),
        ('command = "probe"', 'command = "prob"', "columns.raw.command"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path, old: str, new: str, words: str) -> None:
    assert old in TABLE
    (tmp_path / "wrong.toml").write_text(TABLE.replace(old, new, 1))
    with pytest.raises(Refused) as error:
        read_table(str(tmp_path / "wrong.toml"))
    assert words in str(error.value)


def test_figures_are_of_every_row_before_them(shards, table) -> None:
    """Of another stage they are others; of another column too, and of a stage in another folder they are the same."""
    read = read_table(str(table))

    def figure(name: str, changes: dict, column: int = 0, folder: str = "run") -> str:
        rows = resolve(read.rows, builds(shards), changes, folder=Path(folder), columns=read.columns)
        return next(each for each in rows if each.row.name == name).figures[column].identity

    assert figure("last", {}) == figure("last", {}, folder="elsewhere")
    assert figure("last", {}) != figure("last", {"crosspoint": {"temperature": 0.2}})  # of pre and stage alone
    assert len({figure("pre", {}, column) for column in range(3)} | {figure("random", {})}) == 4


def test_rows_bring_those_that_they_begin_with(shards, table, tmp_path) -> None:
    """Of each seed its own."""
    read = read_table(str(table))
    assert [row.name for row in chosen(read, "last")] == ["pre", "stage", "last"]
    rows = resolve(read.rows, builds(shards), {}, seeds=(0, 2), folder=tmp_path, columns=read.columns)
    last = [each for each in rows if each.row.name == "last"]
    assert [each.recipe.init.points for each in last] == [str(tmp_path / "stage"), str(tmp_path / "stage-seed_2")]
    needed = [each.row.run for each in with_beginnings(last[1:], Place(tmp_path))]
    assert needed == ["pre-seed_2", "stage-seed_2", "last-seed_2"]


def test_a_missing_build_is_named_with_its_command(shards, table, tmp_path) -> None:
    read = read_table(str(table))
    rows = resolve(read.rows, builds(shards), {"data": {"num_points": 64}}, columns=read.columns)
    (found,) = missing.missing(rows, Place(tmp_path), TABLE)
    told = "no build of elsewhere (pre): python -m pipeline build parametric --out shards/elsewhere --workers 2"
    assert (found.line(), found.stops) == (told, False)
    (pre,) = [each for each in rows if each.row.name == "pre"]
    assert known_outcome(pre, Place(tmp_path)).lacks == {"elsewhere": "no build of elsewhere"}


def test_a_columns_flags_are_those_of_a_further_probe() -> None:
    program = argparse.ArgumentParser(add_help=False)
    add_probe_tasks(program)
    words = {action.option_strings[0]: int(action.nargs != 0) for action in program._actions}
    assert words == TASK_FLAGS


def test_what_a_value_is_taken_from() -> None:
    result = {"rows": [{"mean": 1}, {"mean": 2.5}], "name": "a"}
    assert taken(result, "rows.1.mean") == 2.5
    for path, words in (("rows.2.mean", "no 2 in"), ("rows.1.men", "no men in"), ("name", "a is no number")):
        with pytest.raises(ValueError, match=words):
            taken(result, path)


def test_intervals_are_of_students_t() -> None:
    for degrees in range(1, 40):
        assert seed_statistics.quantile(degrees) == pytest.approx(student_t.ppf(0.975, degrees), abs=5e-4)
    values = {0: 70.0, 1: 74.0, 2: 75.0}
    half = student_t.ppf(0.975, 2) * statistics.stdev(values.values()) / 3**0.5
    assert seed_statistics.interval(list(values.values())) == pytest.approx([73 - half, 73 + half], abs=0.01)
    found = seed_statistics.gain(values, {0: 69.0, 2: 71.0, 5: 0.0})
    assert (found["mean"], found["seeds"]) == (2.5, 2)
    assert seed_statistics.gain(values, {}) is None


def test_names_of_tables() -> None:
    assert [short_name(name) for name in ("cross_most-1", "1", "crosspoint-2", "a/mine.toml")] == [
        *("1", "1", "crosspoint-2", "mine"),
    ]
    assert read_table("cross_most-1") == read_table("1")
    with pytest.raises(Refused, match="did you mean crosspoint-"):
        read_table("crospoint-1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_chain_that_was_killed_goes_on_with_the_stage_that_is_left(training, shards, table, tmp_path) -> None:
    steps = [key for key in FEW if not key.startswith(("optimizer.steps", "points."))]
    command = ("table", table, "--shards", f"parametric={shards}", "--run", tmp_path, "--device", "cpu")
    command += ("--rows", "last", "points.backbone=pointnet", "optimizer.steps=16", *steps)
    process = training.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (tmp_path / "stage/checkpoints/step-00000003").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    reached = -1
    while reached != (reached := len((tmp_path / "stage/log.csv").read_text().splitlines())):
        time.sleep(2)  # the fit below it has ended with it
    assert reached < 16
    before = (tmp_path / "logs/pre.txt").read_text()
    rows = {row["name"]: row for row in json.loads(training(*command, "--json").stdout)["rows"]}
    assert rows["last"]["status"] == "done"
    assert (tmp_path / "logs/pre.txt").read_text() == before
    logged = [line.partition(",")[0] for line in (tmp_path / "stage/log.csv").read_text().splitlines()[1:]]
    assert logged == [str(step) for step in range(1, 17)]


def test_a_row_with_one_tower_is_asked_about_that_one() -> None:
    """`points` of a table that lists its columns is EVALUATED's; those of pictures are no number of such a run."""
    table = read_table("clip2point-2")
    found = {each.row.name: each for each in resolve(table.rows, Builds({}, (), None), {}, columns=table.columns)}
    alone = [each for each in found.values() if each.recipe.towers == ("points",) and each.row.judge != ()]
    assert alone
    assert all([list(figure.values) for figure in each.figures] == [["points"]] for each in alone)
    both = read_table("6")
    (row, *_) = resolve(both.rows, Builds({}, (), None), {}, columns=both.columns)
    assert list(row.figures[0].values) == ["image", "image_star", "points"]
