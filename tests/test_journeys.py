"""The roads from a raw dataset to a row of Table 1, walked by the commands that the README and the headers tell.

A header's and the README's command is typed as it stands, with the miniature changes of tests/support/journeys.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from builders import REPOSITORY
from journeys import Journey, of_header, of_readme, parsed, write_weights

from manifests.config import names_in
from pipeline.plan.build_recipe import RECIPES as BUILDS
from training.settings.fit_recipe import RECIPES, read_recipe

FULL_SIZE = [name for name in names_in(RECIPES) if not name.startswith("small_") and name != "pretrain"]
TABLE_1 = of_header(RECIPES / "tables" / "table_1.toml")


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
        if not (journey.folder / "runs/pretrain").exists():
            journey.type(command)
    return journey


def figures(journey: Journey, evaluate: str) -> dict[str, float]:
    """What `evaluate` says of the student, as the person reads it and as a program does; n is all test objects."""
    n = journey.objects(parsed(evaluate)[1]["--shards"], "test")
    assert f"n={n}" in re.sub(r"\s", "", journey.type(evaluate)) and n > 0
    found = json.loads(journey.type(evaluate, "--json"))
    assert (found["n"], found["step"]) == (n, 2)
    return {name: found["student"][name] for name in ("image", "image_star", "points")}


def row_of_table(journey: Journey, table: str, name: str) -> dict[str, float | None]:
    """The figures in the row of a table that is run for this row alone."""
    printed = journey.type(table, "--rows", name)
    written = json.loads((journey.folder / parsed(table)[1]["--run"] / "table_1.json").read_text())
    (row,) = [row for row in written["rows"] if row["name"] == name]
    assert (row["status"], row["step"]) == ("done", 2), row
    for figure in row["figures"].values():
        assert f"{figure['ours']:.2f}" in printed and f"{figure['paper']:.2f}" in printed
    return {column: figure["ours"] for column, figure in row["figures"].items()}


def test_the_road_of_the_readme(journey: Journey) -> None:
    """At full size: pre-training, a variant, its evaluation, and the same figures in its row of Table 1."""
    *road, table = of_readme("At full size")
    for command in road[:-1]:
        journey.type(command)
    assert [row["step"] for run in ("runs/pretrain", "runs/mn40") for row in journey.log(run)] == ["2", "2"]
    assert journey.next_command(road[-2]) == road[-1]
    assert row_of_table(journey, table, "cross_most-modelnet40") == figures(journey, road[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_road_of_a_header(pretrained: Journey, name: str) -> None:
    """Build, training, the evaluation that it tells, and the row of Table 1 by that table's own command."""
    build, fit = of_header(RECIPES / f"{name}.toml")
    pretrained.type(build)
    pretrained.type(fit)
    assert [row["step"] for row in pretrained.log(parsed(fit)[1]["--run"])] == ["2"]
    regrouped = " groups of " in pretrained.said[fit]
    assert regrouped == (read_recipe(name, {}).data.num_points != read_recipe("pretrain", {}).data.num_points)
    found = figures(pretrained, pretrained.next_command(fit))
    assert row_of_table(pretrained, *TABLE_1, f"cross_most-{name}") == found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names_in(BUILDS) if "parametric" not in name])
def test_the_build_of_a_header(journey: Journey, name: str) -> None:
    """Every dataset's own command, and the check of what it made."""
    if name in ("meshes", "points"):
        pytest.skip("files of one's own: tests/test_end_to_end.py")
    build, *_ = of_header(BUILDS / f"{name}.toml")
    out = parsed(build)[1]["--out"]
    if not (journey.folder / out).exists():
        journey.type(build)
    found = json.loads(journey.type(f"python -m pipeline check {out} --json"))
    assert (found["ok"], found["complete"], found["failures"]) == (True, True, [])
    assert all(views["samples"] == found["samples"] > 2 for views in found["view_sets"].values())
