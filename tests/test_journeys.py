"""The roads from a raw dataset to a row of Table 1, walked by the commands that the README and the headers tell.

A header's and the README's command is typed as it stands, with the miniature changes of tests/support/journeys.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import REPOSITORY
from journeys import Journey, of_header, of_readme, parsed, write_own, write_weights

from manifests.config import names_in
from pipeline.plan.build_recipe import RECIPES as BUILDS
from training.settings.fit_recipe import RECIPES, read_recipe

LARGE = [name for name in names_in(RECIPES) if not name.startswith("small_")]
FULL_SIZE = [name for name in LARGE if read_recipe(name, {}).method == "cross_most"]
OWN = ("meshes", "points")  # anyone's files
LAST = "checkpoints/step-00000002/model.safetensors"
TABLES = RECIPES / "tables" / "cross_most"
TABLE_1 = of_header(TABLES / "table_1.toml")


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """A folder with nothing but weights; its training commands, too, find this repository's code."""
    folder = tmp_path_factory.mktemp("journey")
    write_weights(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(REPOSITORY))
        yield Journey(folder)


@pytest.fixture(scope="module")
def pretrained(journey: Journey) -> Journey:
    """After the first two commands of the pre-training's header."""
    build, fit, _ = of_header(RECIPES / "pretrain.toml")
    for command in (build, fit):
        journey.type(command)
    return journey


def figures(journey: Journey, evaluate: str) -> dict[str, float]:
    """What `evaluate` says of the student, as the person reads it and as a program does, over all objects."""
    options = parsed(evaluate)[1]
    n = journey.objects(options["--shards"], options.get("--split", "test"))
    assert n > 0
    assert f"n={n}, step 2" in journey.type(evaluate)
    found = json.loads(journey.type(evaluate, "--json"))
    assert (found["n"], found["step"]) == (n, 2)
    return {name: found["student"][name] for name in ("image", "image_star", "points")}


def hold_row(journey: Journey, table: str, variant: str, run: str, told: dict[str, float]) -> None:
    """Runs Cross-MoST's row of a variant: it trains the same weights as the run, and prints the same figures."""
    folder, name = journey.folder / parsed(table)[1]["--run"], f"cross_most-{variant}"
    printed = journey.type(table, "--rows", name)
    (row,) = [row for row in json.loads((folder / "table_1.json").read_text())["rows"] if row["name"] == name]
    assert (row["status"], row["step"]) == ("done", 2), row
    for figure in row["figures"].values():
        assert {f"{figure['ours']:.2f}", f"{figure['paper']:.2f}"} <= set(printed.split())
    assert {column: figure["ours"] for column, figure in row["figures"].items()} == told
    ours, its = (place / LAST for place in (journey.folder / run, folder / row["run"]))
    assert ours.read_bytes() == its.read_bytes()


@pytest.fixture(scope="module")
def walked(journey: Journey) -> Journey:
    """After the README's commands at full size, up to its tables."""
    for command in of_readme("At full size")[:-2]:
        journey.type(command)
    return journey


def test_the_road_of_the_readme(walked: Journey) -> None:
    """At full size: pre-training, a variant and its evaluation."""
    *road, evaluate, _ = of_readme("At full size")
    assert [row["step"] for run in ("runs/pretrain", "runs/mn40") for row in walked.log(run)] == ["2", "2"]
    assert walked.next_command(road[-1]) == evaluate
    assert set(figures(walked, evaluate).values()) <= {round(100 * right / 6, 2) for right in range(7)}
    figures(walked, walked.next_command(road[1]))  # ShapeNet without a list has no test objects


@pytest.mark.slow
def test_the_readmes_row_of_table_1(walked: Journey) -> None:
    *_, evaluate, table = of_readme("At full size")
    hold_row(walked, table, "modelnet40", "runs/mn40", figures(walked, evaluate))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name"),
    [(2, "without_align-modelnet40"), (5, "views_2"), (6, "zero_shot-2468"), (7, "self_training-all")],
)  # tables 3 and 4 are run whole: tests/training/paper_tables/test_table_rows.py
def test_a_row_of_a_tables_header(walked: Journey, number: int, name: str) -> None:
    """The table's own command after the README's road, for one of its rows."""
    (table,) = of_header(TABLES / f"table_{number}.toml")
    walked.type(table, "--rows", name)
    found = json.loads((walked.folder / parsed(table)[1]["--run"] / f"table_{number}.json").read_text())
    (row,) = [row for row in found["rows"] if row["name"] == name]
    assert (row["status"], row["n"]) == ("done", 6), row
    assert row["figures"]["points"]["ours"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_road_of_a_header(pretrained: Journey, name: str) -> None:
    """Build, training, the evaluation that it tells, and the row of Table 1 by that table's own command."""
    build, fit = of_header(RECIPES / f"{name}.toml")
    pretrained.type(build)
    pretrained.type(fit)
    run = parsed(fit)[1]["--run"]
    assert [row["step"] for row in pretrained.log(run)] == ["2"]
    regrouped = " groups of " in pretrained.said[fit]
    assert regrouped == (read_recipe(name, {}).data.num_points != read_recipe("pretrain", {}).data.num_points)
    hold_row(pretrained, *TABLE_1, name, run, figures(pretrained, pretrained.next_command(fit)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("listed", [False, True])
def test_the_build_of_files_of_ones_own(tmp_path: Path, name: str, listed: bool) -> None:
    """By the folders' names, or by a listing."""
    write_own(tmp_path / "FOLDER", name == "points", listed)
    own = Journey(tmp_path)
    own.type(of_header(BUILDS / f"{name}.toml")[listed])
    check_build(own, "shards/mine")
    expected = {"train": 2, "test": 2} if listed else {"all": 4}
    assert {split: own.objects("shards/mine", split) for split in expected} == expected


def check_build(journey: Journey, out: str) -> None:
    """By the command that a person types next."""
    found = json.loads(journey.type(f"python -m pipeline check {out} --json"))
    assert (found["ok"], found["complete"], found["failures"]) == (True, True, [])
    assert all(views["samples"] == found["samples"] > 2 for views in found["view_sets"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names_in(BUILDS) if "parametric" not in name and name not in OWN])
def test_the_build_of_a_header(journey: Journey, name: str) -> None:
    """Every dataset's own command, and the check of what it made."""
    build, *_ = of_header(BUILDS / f"{name}.toml")
    out = parsed(build)[1]["--out"]
    if not (journey.folder / out).exists():
        journey.type(build)
    check_build(journey, out)
