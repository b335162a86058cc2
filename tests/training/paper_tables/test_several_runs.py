"""Tables with several seeds, several runs at once, presets and a pre-training: figures, order, refusals."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import threading
import time
import tomllib
from pathlib import Path

import pytest
from builders import REPOSITORY

from manifests.cli import parse_arguments
from manifests.config import parse_changes
from manifests.errors import Refused
from training import distributed
from training.__main__ import main
from training.command_line import parser
from training.paper_tables import missing, runner
from training.paper_tables.columns import EVALUATED
from training.paper_tables.compare_with_paper import cells, compare, heads, write
from training.paper_tables.judged_rows import pretraining, resolve
from training.paper_tables.place import Place, slots_of
from training.paper_tables.results import Outcome
from training.paper_tables.runner import plan_lines, run_rows
from training.paper_tables.table_builds import Builds
from training.paper_tables.table_notes import remarks
from training.paper_tables.table_rows import TABLES, Row, Table, chosen, read_table, with_preset

FEW = ("data.num_points=64", "optimizer.batch_size=8", "optimizer.steps=2", "log_every=1", "points.depth=1")
FEW += ("tensorboard=false", "save_every=1")
TABLE = """
title = "Small"
columns = ["image", "points"]
pretrain = { name = "pretrain", label = "p", recipe = "small_pretrain", run = "pretrain", shards = "source" }
[[rows]]
name = "zero_shot"
label = "zero-shot"
recipe = "small_cross_most"
run = "ours"
step = "first"
[[rows]]
name = "ours"
label = "ours"
recipe = "small_cross_most"
run = "ours"
paper = { points = 50.0 }
[[rows]]
name = "scratch"
label = "points from scratch"
recipe = "small_cross_most"
run = "scratch"
points_from_scratch = true
"""


def outcome(image: float, points: float) -> Outcome:
    return Outcome("done", {"image": image, "image_star": image, "points": points}, 22, 2)


def test_figures_of_several_seeds_by_hand(tmp_path) -> None:
    """Mean, sample deviation, number of seeds; a seed that is missing is said; one seed has no deviation."""
    rows = tuple(
        Row(name=n, label=n, recipe="modelnet40", run=n, paper={"points": 60.0}) for n in ("all", "some", "one")
    )
    table = Table(title="T", columns={name: EVALUATED[name] for name in ("image", "points")}, rows=rows)
    failed = Outcome("failed", error="fit, exit 3: disk full")
    found = {
        "all": {0: outcome(10, 61.5), 1: outcome(20, 62.0), 2: outcome(60, 66.5)},
        "some": {0: outcome(10, 61.5), 1: Outcome("not run"), 2: failed},
        "one": {0: outcome(10, 61.5)},
    }
    comparison = compare("x", table, found)
    values = [61.5, 62.0, 66.5]
    deviation = round(statistics.stdev(values), 2)
    assert (round(statistics.mean(values), 2), deviation) == (63.33, 2.75)
    every, some, one = comparison["rows"]
    assert every["figures"]["points"] == {
        "ours": 63.33,
        "deviation": 2.75,
        "interval": [56.49, 70.17],
        "paper": 60.0,
        "difference": 3.33,
        "gain": None,
    }
    assert every["figures"]["image"]["deviation"] == 26.46  # of 10, 20, 60: sqrt(700)
    assert [(seed["seed"], seed["values"]["points"]) for seed in every["seeds"]] == list(enumerate(values))
    assert (some["status"], some["figures"]["points"]["ours"], some["n"]) == ("failed", 61.5, 22)
    assert (one["status"], one["figures"]["points"]["deviation"]) == ("done", None)
    assert heads(comparison) == ["row", "n", "seeds", "Image", "paper", "+-", "Point cloud", "paper", "+-"]
    assert cells(comparison) == [
        ["all", "22", "3", "30.00 +- 26.46", "", "", "63.33 +- 2.75", "60.00", "+3.33"],
        ["some", "22", "1 of 3", "10.00", "", "", "61.50", "60.00", "+1.50"],
        ["one", "22", "1", "10.00", "", "", "61.50", "60.00", "+1.50"],
    ]
    assert {"some, seed 1: not run", "some, seed 2: failed, fit, exit 3: disk full"} <= set(remarks(comparison))
    write(comparison, tmp_path)
    with open(tmp_path / "table_x.csv") as file:
        first, second, _ = csv.DictReader(file)
    assert (first["points"], first["points_deviation"], first["seeds"]) == ("63.33", "2.75", "3")
    assert (second["points_deviation"], second["seeds"]) == ("", "1")


def test_a_slot_has_gpus_of_its_own() -> None:
    """Or its share of the cores; too few GPUs are refused."""
    assert slots_of(1, 4, ("0", "1", "2", "3"), 8) == ({},)
    groups = [slot["CUDA_VISIBLE_DEVICES"] for slot in slots_of(2, 2, ("4", "5", "6", "7", "8"), 8)]
    assert groups == ["4,5", "6,7"]
    assert slots_of(3, 1, None, 8) == ({"OMP_NUM_THREADS": "2"},) * 3
    assert slots_of(4, 2, None, 4)[0] == {"OMP_NUM_THREADS": "1"}
    with pytest.raises(Refused, match=r"--parallel 2 --processes 2 needs 4 GPUs, and 3 are visible"):
        slots_of(2, 2, ("0", "1", "2"), 8)


def test_visible_gpus_are_named_as_the_environment_names_them(monkeypatch) -> None:
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert distributed.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7,-1")
    assert distributed.visible_gpus() == ["5", "GPU-7"]


def small_table(tmp_path: Path) -> Table:
    path = tmp_path / "small.toml"
    path.write_text(TABLE)
    return read_table(str(path))


def test_runs_of_seeds_and_presets_are_others(shards, tmp_path) -> None:
    """A row's own seed keeps its run and its figures, so that results from before are found."""
    row = Row(name="a", label="a", recipe="modelnet40", run="a")
    builds = Builds({"modelnet40": str(shards)}, (), None)
    (plain,) = resolve([row], builds, {})
    zero, three = resolve([row], builds, {}, seeds=(0, 3))
    assert (zero.row.run, zero.identity, zero.title) == ("a", plain.identity, "a, seed 0")
    assert (three.row.run, three.recipe.seed) == ("a-seed_3", 3)
    assert three.identity != plain.identity
    with pytest.raises(Refused, match=r"seed=3: --seeds 0,1 says it"):
        resolve([row], builds, {"seed": 3}, seeds=(0, 1))
    table = with_preset(
        Table(title="T", rows=(row, row.model_copy(update={"name": "b", "preset": "paper"}))), "released"
    )
    assert [(each.preset, each.run) for each in table.rows] == [("released", "a-released"), ("paper", "a")]
    (released,) = resolve(table.rows[:1], builds, {"labels": {"points_weight": 0.8}})
    assert (released.recipe.weights.align, released.recipe.labels.points_weight) == (2.0, 0.8)


def test_rows_begin_with_the_pretraining_where_nothing_else_is_given(shards, tmp_path) -> None:
    """By the key for their towers; their identity is of how it was trained, not of where it lies."""
    table, builds = small_table(tmp_path), Builds({"source": str(shards), "small_cross_most": str(shards)}, (), None)

    def rows(changes: dict, folder: str = "run") -> list:
        return resolve(table.rows, builds, changes, after=pretraining(table, builds, changes), folder=Path(folder))

    zero, ours, scratch = rows({})
    assert (ours.recipe.init.all, ours.recipe.init.points) == ("run/pretrain", "")
    assert zero.after == ours.after
    assert (scratch.after, scratch.recipe.init.all) == (None, "")
    assert rows({}, "elsewhere")[1].identity == ours.identity != rows({"log_every": 3})[1].identity
    longer = {"pretrain": {"image_text": 0.5}}  # a key that the pre-training alone reads
    assert rows(longer)[1].recipe == ours.recipe
    assert rows(longer)[1].identity != ours.identity
    for given in ({"points": "file.pt"}, {"all": "run"}):
        assert rows({"init": given})[1].after is None
    assert (
        pretraining(table, Builds({"small_cross_most": str(shards)}, (), str(shards)), {}) is None
    )  # no build of its own
    full = read_table("1")
    builds = Builds({name: str(shards) for name in ("modelnet40", "shapenet")}, (), None)
    after = pretraining(full, builds, {})
    row = next(row for row in full.rows if row.name == "cross_most-modelnet40")
    (judged,) = resolve([row], builds, {}, after=after, folder=Path("run"))
    assert (judged.recipe.init.points, judged.recipe.init.image) == ("run/pretrain", "openai")
    scratch_row = next(row for row in read_table("3").rows if row.points_from_scratch)
    assert resolve([scratch_row], builds, {}, after=after, folder=Path("run"))[0].recipe.init.points == ""


def test_columns_are_the_papers_the_released_and_ours() -> None:
    """On each variant, beside the figures of table 1, whose runs ours are."""
    rows = {row.name: row for row in read_table("columns").rows}
    for row in read_table("1").rows:
        method, _, variant = row.name.partition("-")
        if method == "cross_most":
            for column, preset in (("paper", "paper"), ("released", "released"), ("ours", "")):
                found = rows[f"{column}-{variant}"]
                assert (found.preset, found.recipe, found.paper) == (preset, variant, row.paper)
            assert rows[f"ours-{variant}"].run == row.run
    assert len(rows) == 24


def test_commands_that_are_shown_are_commands() -> None:
    """Of README, docs/tables.md and the tables' headers: the table, its rows, preset, seeds and keys are there."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "docs/tables.md", *TABLES.glob("*/*.toml")]
    line_of = re.compile(r"^(?:    |# )python -m (training table .*)$", re.MULTILINE)
    shown = [line for page in pages for line in line_of.findall(page.read_text())]
    assert len(shown) >= len(pages)
    for line in shown:
        options = parse_arguments(parser("training"), shlex.split(line)[1:])
        table = with_preset(read_table(options.table), options.preset)
        builds, changes = Builds({}, (), None), parse_changes(options.changes)
        assert resolve(chosen(table, options.rows), builds, changes, seeds=options.seeds, columns=table.columns), line


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float, float]]:
    """Commands that take 0.2 s in place of trainings: (run, command, begun, ended) of each."""
    seen = []

    def command(words: list[str], name: str, place: Place, until: Path | None = None) -> tuple[int, str, str]:
        begun = time.monotonic()
        place.status(f"{name}: working")
        if place.stopping.wait(0.2):
            raise KeyboardInterrupt
        (place.folder / name).mkdir(parents=True, exist_ok=True)
        kind = "fit" if "fit" in words else "evaluate"
        seen.append((name, kind, begun, time.monotonic(), place.slots[0].get("CUDA_VISIBLE_DEVICES")))
        said = {"dataset": "d", "split": "test", "n": 22, "step": 2, "teacher": None}
        figures = {"image": 1.0, "image_star": 2.0, "points": 3.0}
        failed = kind == "fit" and name == "b"
        return (3, "disk full", "") if failed else (0, "", json.dumps(said | {"student": figures}))

    monkeypatch.setattr(runner, "_command", command)
    return seen


def many(shards: Path, folder: Path) -> list:
    """Three runs after a pre-training, one of them of two rows and one (b) that fails, and one from scratch."""
    given = [("a", "a", "first"), ("a_last", "a", "last"), ("b", "b", "last"), ("c", "c", "last"), ("s", "s", "last")]
    rows = [
        Row(name=n, label=n, recipe="small_cross_most", run=run, step=step, points_from_scratch=n == "s")
        for n, run, step in given
    ]
    before = Row(name="pretrain", label="p", recipe="small_pretrain", run="pretrain", shards="source")
    builds = Builds({"source": str(shards), "small_cross_most": str(shards)}, (), None)
    after = pretraining(Table(title="T", pretrain=before, rows=tuple(rows)), builds, {})
    return resolve(rows, builds, {}, after=after, folder=folder)


def test_runs_at_once_share_what_they_begin_with(shards, tmp_path, watched) -> None:
    """Each run is trained once, two at a time on GPUs of their own; those that need the pre-training wait for it."""
    rows, shown, said = many(shards, tmp_path), [], []
    slots = slots_of(2, 1, ("0", "1"), 2)
    place = Place(tmp_path, say=said.append, status=shown.append, slots=slots)
    outcomes = run_rows(rows, rows, place)
    fits = {name: (begun, ended) for name, kind, begun, ended, _ in watched if kind == "fit"}
    assert len([kind for _, kind, *_ in watched if kind == "fit"]) == len(fits) == 5
    assert all(fits[name][0] >= fits["pretrain"][1] for name in "abc")
    assert fits["s"][0] < fits["pretrain"][1]  # it needs none
    moments = sorted([(begun, 1) for _, _, begun, _, _ in watched] + [(ended, -1) for _, _, _, ended, _ in watched])
    assert max(sum(change for _, change in moments[: n + 1]) for n in range(len(moments))) == 2
    for first in watched:  # no two commands on one GPU at once
        others = [each for each in watched if each is not first and each[4] == first[4]]
        assert all(each[3] <= first[2] or each[2] >= first[3] for each in others)
    assert {each[4] for each in watched} == {"0", "1"}
    states = {name: found[0].status for name, found in outcomes.items()}
    assert states == {"pretrain": "done", "a": "done", "a_last": "done", "b": "failed", "c": "done", "s": "done"}
    assert outcomes["b"][0].error == "fit, exit 3: disk full"
    assert any(line.count("\n") == 1 and "pretrain: working" in line and "s: working" in line for line in shown)
    assert "run 3 of 5: a (a, a_last)" in said
    watched.clear()
    run_rows(rows, rows, place)  # what is done is not done again, the pre-training neither
    assert [(name, kind) for name, kind, *_ in watched] == [("b", "fit")]
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "results").mkdir()
    assert [line.split(":")[0] for line in plan_lines(rows, place) if not line.startswith(" ")][:2] == ["pretrain", "a"]


def test_what_a_pretraining_that_fails_leaves(shards, tmp_path, watched) -> None:
    rows = [each for each in many(shards, tmp_path) if each.row.name in ("c", "s")]
    failing = [
        runner.replace(each, after=runner.replace(each.after, row=each.after.row.model_copy(update={"run": "b"})))
        if each.after
        else each
        for each in rows
    ]
    outcomes = run_rows(failing, failing, Place(tmp_path))
    assert outcomes["c"][0].error == "pretrain: fit, exit 3: disk full"
    assert outcomes["s"][0].status == "done"


def test_ctrl_c_ends_all_that_runs(shards, tmp_path, watched, monkeypatch) -> None:
    rows = many(shards, tmp_path)
    whole = runner.wait

    def interrupted(*arguments, **options):
        time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "wait", interrupted)
    place = Place(tmp_path, slots=({}, {}))
    with pytest.raises(KeyboardInterrupt):
        run_rows(rows, rows, place)
    assert watched == []
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool") and thread.is_alive()
    ]
    monkeypatch.setattr(runner, "wait", whole)


def test_what_is_missing_is_said_at_once(shards, tmp_path, monkeypatch) -> None:
    """Builds, view sets, channels, splits, few points, weights: each thing once, with the rows that need it."""
    settings = {
        "gone": {"data": {"views": "rgb12", "split": "val"}},
        "depth": {"data": {"views": "frames20"}},
        "channel": {"data": {"views": "depth10", "channel": "rgb"}},
        "points": {"data": {"num_points": 4096}, "init": {"points": "POINTS.pt"}},
        "tag": {"init": {"points": "POINTS.pt"}},
    }
    rows = [Row(name=name, label=name, recipe="modelnet40", run=name, changes=each) for name, each in settings.items()]
    rows.append(Row(name="other", label="o", recipe="redwood", run="other"))
    depth = {"clip2point": {"depth": "depth10_release", "points": 64}}
    rows.append(Row(name="judged", label="j", recipe="small_clip2point", run="j", shards="modelnet40", changes=depth))
    few = {"data": {"num_points": 64}}
    found = missing.missing(resolve(rows, Builds({"modelnet40": str(shards)}, (), None), few), Place(tmp_path))
    told = {each.what: each for each in found}
    build = "python -m pipeline build redwood --source redwood-3dscan --out shards/redwood --workers 8"
    assert (told["no build of redwood"].remedy, told["no build of redwood"].rows) == (build, ("other",))
    assert told[f"{shards} has no split val"].stops
    assert told[f"{shards} has no view set frames20"].remedy == f"python -m pipeline views frames20 --shards {shards}"
    release = told[f"{shards} has no view set depth10_release"]
    assert (release.remedy, release.rows, release.stops) == (
        f"python -m pipeline views depth10_release --shards {shards}",
        ("judged",),
        True,
    )
    assert told[f"view set depth10 of {shards} has no channel rgb"].remedy == "data.channel=depth"
    few_points = told[f"{shards} has clouds of 256 points, fewer than the 4096 of the recipe"]
    assert not few_points.stops
    assert "num_points=4096" in few_points.remedy
    weights = told["init.points=POINTS.pt: no such file"]
    assert weights.rows == ("points", "tag")
    assert "python -m training fit pretrain --shards shards/shapenet" in weights.remedy
    monkeypatch.setattr(missing, "is_cached", lambda model, tag: tag == "openai")
    assert (
        "no such file, and no open_clip tag"
        in missing.missing(
            resolve(rows[:1], Builds({"modelnet40": str(shards)}, (), None), {"init": {"image": "opena"}}),
            Place(tmp_path),
        )[-1].what
    )


@pytest.mark.parametrize("cached", [True, False])
def test_weights_in_the_cache(shards, tmp_path, monkeypatch, cached: bool) -> None:
    """As the hub's cache has them."""
    from training.models import clip

    monkeypatch.setattr(clip, "cached", lambda repository, files: Path("/x") if cached else None)
    row = Row(name="a", label="a", recipe="modelnet40", run="a")
    judged = resolve([row], Builds({"modelnet40": str(shards)}, (), None), {"data": {"num_points": 64}})
    found = [each for each in missing.missing(judged, Place(tmp_path)) if each.what.startswith("weights")]
    assert [each.what for each in found] == (
        [] if cached else ["weights openai of ViT-B-16-quickgelu are not in the cache"]
    )
    assert not any(each.stops for each in found)


@pytest.mark.slow
def test_a_table_with_seeds_and_its_pretraining(shards, tmp_path, capfd) -> None:
    """The real commands, two at once: one pre-training, a run of each seed, and mean and deviation of their figures."""
    small_table(tmp_path)
    command = ["table", str(tmp_path / "small.toml"), "--shards", f"source={shards}", "--shards"]
    command += [f"small_cross_most={shards}", "--run", str(tmp_path / "run"), "--device", "cpu", *FEW, "--json"]
    assert main([*command, "--seeds", "0,4", "--parallel", "2", "--rows", "ours"]) == 0
    told = capfd.readouterr()
    comparison = json.loads(told.out)
    assert comparison["pretrain"] == {"run": "pretrain", "status": "done", "error": None}
    row = comparison["rows"][1]
    assert [(seed["seed"], seed["status"], seed["step"]) for seed in row["seeds"]] == [(0, "done", 2), (4, "done", 2)]
    for column, figure in row["figures"].items():
        values = [seed["values"][column] for seed in row["seeds"]]
        assert figure["ours"] == round(statistics.mean(values), 2)
        assert figure["deviation"] == round(statistics.stdev(values), 2)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *("pretrain", "ours", "ours-seed_4"),
        *("recipes", "logs", "results"),
    }
    for run, seed in (("ours", 0), ("ours-seed_4", 4)):
        recipe = tomllib.loads((folder / run / "recipe.toml").read_text())
        assert (recipe["seed"], recipe["init"]["all"]) == (seed, str(folder / "pretrain"))
    logs = {path.name: path.stat().st_mtime_ns for path in (folder / "logs").iterdir()}
    assert main([*command, "--rows", "ours"]) == 0  # seed 0, and nothing new
    assert (
        json.loads(capfd.readouterr().out)["rows"][1]["figures"]["points"]["ours"]
        == row["seeds"][0]["values"]["points"]
    )
    assert logs == {path.name: path.stat().st_mtime_ns for path in (folder / "logs").iterdir()}


def test_too_few_gpus_are_refused_before_anything_is_written(shards, tmp_path, monkeypatch, capsys) -> None:
    small_table(tmp_path)
    monkeypatch.setattr(distributed, "visible_gpus", lambda: ["0"])
    command = ["table", str(tmp_path / "small.toml"), "--shards", str(shards), "--run", str(tmp_path / "run")]
    assert main([*command, "--parallel", "2"]) == 2
    assert capsys.readouterr().err.strip() == "--parallel 2 --processes 1 needs 2 GPUs, and 1 are visible"
    assert not (tmp_path / "run").exists()


def steps_of(run: Path) -> int:
    """How many steps are in a run's log so far."""
    return len((run / "log.csv").read_text().splitlines()[1:]) if (run / "log.csv").exists() else 0


@pytest.mark.slow
def test_two_trainings_that_ctrl_c_ended_go_on(training, shards, tmp_path) -> None:
    """A signal to the command alone: both end with a checkpoint, none lives on, and the same command ends them well."""
    small_table(tmp_path)
    steps = [key for key in FEW if not key.startswith("optimizer.steps")] + ["optimizer.steps=60", "init.all="]
    command = ("table", tmp_path / "small.toml", "--shards", f"small_cross_most={shards}", "--run", tmp_path / "run")
    command += ("--device", "cpu", "--seeds", "0,1", "--parallel", 2, "--rows", "ours", *steps)
    process = training.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    runs = [tmp_path / "run" / name for name in ("ours", "ours-seed_1")]
    deadline = time.monotonic() + 240
    while not all(steps_of(run) for run in runs) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    held = [steps_of(run) for run in runs]
    time.sleep(3)
    assert held == [steps_of(run) for run in runs]
    assert all(0 < count < 60 for count in held)
    rows = json.loads(training(*command, "--json").stdout)["rows"]
    assert [(seed["status"], seed["step"]) for seed in rows[1]["seeds"]] == [("done", 60), ("done", 60)]


@pytest.mark.slow
def test_groups_of_processes_at_once(training, shards, tmp_path) -> None:
    """Two runs at once, each of two processes, which meet only each other."""
    small_table(tmp_path)
    command = ("table", tmp_path / "small.toml", "--shards", f"small_cross_most={shards}", "--run", tmp_path / "run")
    command += ("--device", "cpu", "--seeds", "0,1", "--parallel", 2, "--processes", 2, "--rows", "ours", *FEW)
    rows = json.loads(training(*command, "--json").stdout)["rows"]
    assert [(seed["status"], seed["step"]) for seed in rows[1]["seeds"]] == [("done", 2), ("done", 2)]
