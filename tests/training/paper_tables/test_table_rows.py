"""The paper's tables: every shipped row resolves, subsets are what is read, and a small table runs end to end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import torch
from builders import REPOSITORY, stored

from manifests.config import load_toml, names_in
from manifests.dataset_info import load_table
from manifests.errors import Refused
from manifests.presets import load_preset
from manifests.samples import split_view_member
from training.__main__ import main
from training.data import loader, subsets, whole_split
from training.data.dataset import open_source
from training.data.labels import labelled
from training.data.loader import Form
from training.evaluation.evaluate import Options, examine
from training.paper_tables import runner
from training.paper_tables.columns import EVALUATED
from training.paper_tables.compare_with_paper import cells, compare, write
from training.paper_tables.judged_rows import Judged, resolve
from training.paper_tables.place import Place
from training.paper_tables.results import Outcome, known_outcome
from training.paper_tables.table_builds import Builds, builds_of
from training.paper_tables.table_rows import Row, Table, chosen, read_table, table_names
from training.settings import data
from training.settings.data import DataSettings
from training.settings.fit_recipe import RECIPES, read_recipe
from training.weights.checkpoint import open_checkpoint

VARIANTS = {  # of table 1: build recipe, view set, channel, points
    "modelnet10": ("modelnet10", "rgb12", "rgb", 8192),
    "modelnet40": ("modelnet40", "rgb12", "rgb", 8192),
    "modelnet40_d": ("modelnet40_d", "realistic10", "gray", 2048),
    "redwood": ("redwood", "frames20", "rgb", 8192),
    "co3d": ("co3d_v1", "frames20", "rgb", 8192),
    "scanobjectnn_obj": ("scanobjectnn_obj", "realistic10", "gray", 2048),
    "scanobjectnn_bg": ("scanobjectnn_bg", "realistic10", "gray", 2048),
    "scanobjectnn_hardest": ("scanobjectnn_hardest", "realistic10", "gray", 2048),
}
NOWHERE = Builds({}, (), None)
TABLES_OF_CROSS_MOST = [name for name in table_names() if name.isdigit() or name == "columns"]
FEW = (
    "data.num_points=64",
    "optimizer.batch_size=4",
    "optimizer.steps=2",
    "log_every=1",
    "save_every=1",
    "points.depth=1",
    "tensorboard=false",
)


def resolved() -> list[tuple[str, Judged]]:
    return [(name, each) for name in TABLES_OF_CROSS_MOST for each in resolve(read_table(name).rows, NOWHERE, {})]


def test_every_shipped_row_resolves_and_shares_its_run() -> None:
    assert {name: len(read_table(name).rows) for name in TABLES_OF_CROSS_MOST} == {
        "1": 24,
        "2": 24,
        "3": 6,
        "4": 5,
        "5": 5,
        "6": 7,
        "7": 19,
        "columns": 24,
    }
    of_run: dict[str, dict] = {}
    for name, judged in resolved():
        recipe = judged.recipe.model_dump(mode="json") | {"from": (judged.row.recipe, judged.row.points_from_scratch)}
        assert of_run.setdefault(judged.row.run, recipe) == recipe, (name, judged.row.name)
    assert len({json.dumps(recipe, sort_keys=True) for recipe in of_run.values()}) == len(of_run) == 62


def changed(table: str, row: str) -> dict:
    return next(each.recipe for name, each in resolved() if (name, each.row.name) == (table, row)).model_dump()


def test_the_ablations_change_what_they_say_alone() -> None:
    ours = changed("1", "cross_most-modelnet40")
    for row, table, key, value in (
        ("without_align", "weights", "align", 0.0),
        ("without_comb", "labels", "mode", "none"),
    ):
        assert changed("3", row) == ours | {table: ours[table] | {key: value}}
    assert changed("3", "without_mm") == ours | {"weights": ours["weights"] | {"mim": 0.0, "mpm": 0.0}}
    own = changed("3", "self_training")
    assert own["weights"] == {name: value for name, value in ours["weights"].items() if name != "align"}
    assert own["labels"] == {name: value for name, value in ours["labels"].items() if name != "mode"}
    alike = {name: value for name, value in ours.items() if name not in ("align", "weights", "labels")}
    assert own == alike | {"method": "self_training", "classifier": "own"} | {n: own[n] for n in ("weights", "labels")}
    modes = {row.name: changed("4", row.name)["labels"]["mode"] for row in read_table("4").rows}
    assert list(modes.values()) == ["none", "image", "points", "random", "joint"]
    views = [changed("5", row.name)["data"]["num_views"] for row in read_table("5").rows]
    assert views == [1, 2, 4, 8, 0]


def test_points_from_scratch_lose_their_weights_alone() -> None:
    row = next(row for row in read_table("3").rows if row.name == "without_init")
    given = {"init": {"points": "ulip.pt"}}
    (judged,) = resolve([row], NOWHERE, given)
    assert (judged.recipe.init.image, judged.recipe.init.points) == ("openai", "")
    (other,) = resolve([row], NOWHERE, {"init": {"all": "runs/pretrain"}}, "small_cross_most")
    assert other.recipe.init.model_dump() | {"image": "runs/pretrain", "all": "", "points": ""} == (
        other.recipe.init.model_dump()
    )
    ours = next(row for row in read_table("3").rows if row.name == "cross_most")
    assert resolve([ours], NOWHERE, given)[0].recipe.init.points == "ulip.pt"


@pytest.mark.parametrize("name", VARIANTS)
def test_recipes_of_the_variants_read_what_their_builds_have(name: str) -> None:
    build, views, channel, points = VARIANTS[name]
    recipe, built = read_recipe(name, {}), load_toml(REPOSITORY / f"pipeline/recipes/{build}.toml")
    assert (recipe.data.views, recipe.data.channel, recipe.data.num_points) == (views, channel, points)
    assert recipe.data.views in built["views"]
    assert channel in load_preset(views)[1].channels
    assert built.get("num_points", 8192) == points
    depth_like = name.startswith("scanobjectnn") or name == "redwood"
    assert recipe.labels.threshold == (0.82 if depth_like else 0.84)
    assert recipe.optimizer.batch_size == (256 if name == "redwood" else 512)
    assert recipe.optimizer.epochs == (150 if name == "co3d" else 200)
    head = [line for line in (RECIPES / f"{name}.toml").read_text().splitlines() if line.startswith("#")]
    assert f"python -m training fit {name} " in "\n".join(head)
    assert any("not measured" in line for line in head)
    assert max(map(len, head)) <= 124


def test_names_of_recipes_do_not_clash() -> None:
    assert set(VARIANTS) < set(names_in(RECIPES))


def test_paper_figures_are_those_that_it_prints(shared: Path) -> None:
    paper = (shared / "papers/cross_most.txt").read_text()
    lines = [line.split("\t") for line in paper.splitlines() if "\t" in line]
    block = [[cell for cell in line if cell.replace(".", "").isdigit()] for line in lines]
    eight = [list(map(float, line)) for line in block if len(line) == 8]
    assert len(eight) == 18
    columns = ("image", "image_star", "points")
    for table, rows in (("1", eight[:9]), ("2", eight[9:])):
        printed = [[row.paper[column] for row in read_table(table).rows] for column in columns]
        for method in range(3):
            for column in range(3):
                assert printed[column][8 * method : 8 * method + 8] == rows[3 * method + column]
    for name in ("3", "4", "5", "6", "7"):
        for row in read_table(name).rows:
            for figure in row.paper.values():
                assert f"{figure:.2f}" in paper or f"{figure:.1f}" in paper, (name, row.name)
    hard = {row.name: row.paper for row in read_table("7").rows}
    assert hard["cross_most-hard-filter"] == {"image": 72.65, "image_star": 77.65, "points": 76.47}
    assert hard["zero_shot-medium-candidates"] == {"image": 47.50, "image_star": 49.55, "points": 42.73}


# --- subsets


def test_medium_and_hard_classes() -> None:
    table = load_table("modelnet40")
    medium, hard = table.subsets["medium"], table.subsets["hard"]
    assert (len(medium), len(hard)) == (22, 17)
    assert set(medium) - set(hard) == {"cup", "monitor", "stool", "vase", "wardrobe"}
    others = "airplane bathtub bed bench bookshelf bottle bowl car chair desk flower_pot guitar keyboard lamp laptop"
    assert sorted(set(table.classes) - set(medium)) == [*others.split(), "piano", "sofa", "table"]
    assert load_table("modelnet40_d").subsets == load_table("modelnet40_aligned").subsets == table.subsets


@pytest.mark.parametrize(
    ("arguments", "used"),
    [
        ((12, 0, "even"), list(range(12))),
        ((12, 1, "even"), [0]),
        ((12, 2, "even"), [0, 6]),
        ((12, 4, "even"), [0, 3, 6, 9]),
        ((12, 8, "even"), [0, 1, 3, 4, 6, 7, 9, 10]),
        ((12, 12, "even"), list(range(12))),
        ((12, 4, "first"), [0, 1, 2, 3]),
        ((3, 8, "even"), [0, 1, 2]),
    ],
)
def test_which_views(arguments: tuple, used: list[int]) -> None:
    assert list(data.views_of(*arguments)) == used


def spied(monkeypatch: pytest.MonkeyPatch, module: object) -> Counter:
    """Counts the views of which a member was read."""
    read: Counter = Counter()
    whole = module.read_pieces

    def read_pieces(*arguments, **options):
        for shape, views in whole(*arguments, **options):
            read.update(found[0] for name in views.members if (found := split_view_member(name)))
            yield shape, views

    monkeypatch.setattr(module, "read_pieces", read_pieces)
    return read


def samples(shards: Path, settings: DataSettings):
    source = open_source(str(shards), settings)
    augment = read_recipe("small_cross_most", {}).augment
    return loader.UnlabelledSamples(source, settings, augment, Form(32, 8, 16, 0.3), 4, 0)


@pytest.mark.parametrize(("choice", "used"), [("even", {0, 5}), ("first", {0, 1})])
def test_training_reads_the_views_in_use_alone(shards, monkeypatch, choice: str, used: set[int]) -> None:
    read = spied(monkeypatch, loader)
    settings = DataSettings(views="depth10", channel="depth", num_points=64, num_views=2, view_choice=choice)
    each = samples(shards, settings)
    for epoch in range(2):
        each.set_epoch(epoch)
        assert len(list(each)) == 38 // 4
    assert set(read) == used
    assert min(read.values()) > 15


def first_batch(shards: Path, settings: DataSettings, view_of=None) -> whole_split.WholeBatch:
    return next(iter(labelled(open_source(str(shards), settings), settings, 32, [0], 8, view_of)))


def test_evaluation_averages_exactly_the_views_in_use(shards, monkeypatch) -> None:
    read = spied(monkeypatch, whole_split)
    settings = DataSettings(views="depth10", channel="depth", split="test", num_points=64)
    every = first_batch(shards, settings)
    assert set(read) == set(range(10))
    read.clear()
    some = first_batch(shards, settings.model_copy(update={"num_views": 4}))
    assert set(read) == {0, 2, 5, 7}
    assert torch.equal(some.pictures, every.pictures[:, [0, 2, 5, 7]])
    asked = []

    def view_of(key: str, count: int) -> int:
        asked.append(count)
        return 3

    one = first_batch(shards, settings.model_copy(update={"num_views": 4}), view_of)
    assert torch.equal(one.pictures[:, 0], every.pictures[:, 7])
    assert set(asked) == {4}


def test_more_views_than_there_are_is_refused(shards) -> None:
    with pytest.raises(Refused, match=r"data.num_views=8: view set rgb12 has 3 views"):
        open_source(str(shards), DataSettings(num_points=64, num_views=8))
    every = DataSettings(num_points=64, num_views=3)  # as many as there are
    assert open_source(str(shards), every).total == open_source(str(shards), DataSettings(num_points=64)).total


def classes_of(shards: Path) -> dict[str, str]:
    return {key: sample.json["class"] for key, sample in stored(shards).items()}


def test_objects_of_some_classes_alone(shards) -> None:
    of_key, everything = classes_of(shards), open_source(str(shards), DataSettings(num_points=64))
    names = everything.manifest.classes
    some = (names[9], names[3], names[14])
    settings = DataSettings(num_points=64, classes=some)
    source = open_source(str(shards), settings)
    assert source.manifest.classes == (names[3], names[9], names[14])
    assert source.manifest.prompt_names == tuple(everything.manifest.prompt_names[n] for n in (3, 9, 14))
    keys = {key for shard in source.shards for key in shard.keys}
    assert keys == {key for shard in everything.shards for key in shard.keys if of_key[key] in some}
    assert 0 < source.total == len(keys) < everything.total
    assert {key for batch in samples(shards, settings) for key in batch.keys} <= keys
    for candidates, number in (("subset", source.manifest.classes.index), ("all", names.index)):
        chosen_settings = settings.model_copy(update={"split": "test", "candidates": candidates})
        opened = open_source(str(shards), chosen_settings)
        batches = labelled(opened, chosen_settings, 32, range(10), 8)
        assert len(opened.manifest.classes) == (3 if candidates == "subset" else 19)
        found = {key: label for each in batches for key, label in zip(each.keys, each.labels, strict=True)}
        assert found == {key: number(of_key[key]) for key in found}
        assert set(map(of_key.get, found)) <= set(some)
        assert len(found) == opened.total > 0


def test_the_first_objects_of_each_class_or_a_list(shards, tmp_path, monkeypatch) -> None:
    from pipeline.datasets import modelnet

    assert (subsets.MVCNN, subsets.FIRST) == ("mvcnn80_20", modelnet.FIRST)
    of_key = classes_of(shards)
    total = open_source(str(shards), DataSettings(num_points=64)).total
    assert open_source(str(shards), DataSettings(num_points=64, objects="mvcnn80_20")).total == total
    monkeypatch.setattr(subsets, "FIRST", {"train": 1})
    source = open_source(str(shards), DataSettings(num_points=64, objects="mvcnn80_20"))
    keys = sorted(key for shard in source.shards for key in shard.keys)
    everything = sorted(
        key for shard in open_source(str(shards), DataSettings(num_points=64)).shards for key in shard.keys
    )
    assert keys == sorted({of_key[key]: key for key in reversed(everything)}.values())
    (tmp_path / "list.txt").write_text(f"# two\n{everything[4]}\n{everything[7]}\nnot_there\n")
    listed = open_source(str(shards), DataSettings(num_points=64, objects=str(tmp_path / "list.txt")))
    assert sorted(key for shard in listed.shards for key in shard.keys) == [everything[4], everything[7]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": "medium"}, ["data.classes of parametric", "medium"]),
        ({"classes": ("spaceship",)}, ["spaceship"]),
        ({"objects": "/nowhere.txt"}, ["data.objects=/nowhere.txt", "mvcnn80_20"]),
    ],
)
def test_what_is_no_subset_is_refused(shards, settings: dict, words: list[str]) -> None:
    with pytest.raises(Refused) as error:
        open_source(str(shards), DataSettings(num_points=64, **settings))
    assert all(word in str(error.value) for word in words), error.value


# --- choosing rows and builds


def a_build(folder: Path, dataset: str) -> str:
    folder.mkdir(parents=True)
    values = {"dataset": dataset, "classes": [], "prompt_names": [], "splits": {}, "shapes_hash": "", "assets_hash": ""}
    rest = {"format": 1, "recipe": {}, "complete": True, "versions": {}}
    (folder / "manifest.json").write_text(json.dumps(values | rest))
    return str(folder)


def test_where_the_builds_of_variants_lie(tmp_path) -> None:
    rows = read_table("1").variants
    ten = a_build(tmp_path / "all/modelnet10", "modelnet10")
    d = a_build(tmp_path / "all/modelnet40_d", "modelnet40_d")
    old = a_build(tmp_path / "all/co3d_v2", "co3d_v2")
    other = a_build(tmp_path / "other", "meshes")
    every = builds_of([str(tmp_path / "all")], rows)
    assert {v: every.find(v) for v in VARIANTS if every.find(v)} == {"modelnet10": ten, "modelnet40_d": d, "co3d": old}
    assert builds_of([f"redwood={other}"], rows).find("redwood") == other
    assert builds_of([ten], rows).find("modelnet10") == ten
    assert builds_of([ten], rows).find("modelnet40") is None
    assert builds_of([old], rows).find("co3d") == old
    assert builds_of([other], rows).find("redwood") == other
    for given, words in (
        ([f"redwod={other}"], "did you mean redwood"),
        ([str(tmp_path / "nothing")], "no build"),
        ([f"redwood={tmp_path}"], "no manifest.json"),
    ):
        with pytest.raises(Refused, match=words):
            builds_of(given, rows)
    a_build(tmp_path / "all/co3d_v1", "co3d_v1")
    with pytest.raises(Refused, match="co3d=DIR"):
        every.find("co3d")


def test_rows_by_name() -> None:
    table = read_table("1")
    assert [row.name for row in chosen(table, "zero*40,cross_most-co3d")] == ["zero_shot-modelnet40", "cross_most-co3d"]
    assert len(chosen(table, "")) == 24
    with pytest.raises(Refused, match="zero_shot-redwood"):
        chosen(table, "zero_shot-redwod")


def judged(shards: object, of_all: dict | None = None, **row: object) -> Judged:
    """A row of a small recipe, judged on some shards. of_all: keys of every row."""
    given = {"name": "a", "label": "a", "recipe": "small_cross_most", "run": "a"} | row
    (found,) = resolve([Row(**given)], Builds({"small_cross_most": str(shards)}, (), None), of_all or {})
    return found


def test_a_rows_own_keys_go_over_those_of_all(shards) -> None:
    """Or an ablation would train what the others do."""
    changes = {"seed": 3, "optimizer": {"batch_size": 16}}
    found = judged(shards, changes, changes={"seed": 5, "weights": {"align": 0.0}}).recipe
    assert (found.seed, found.optimizer.batch_size, found.weights.align) == (5, 16, 0.0)


def test_a_key_of_one_method_leaves_rows_of_another_alone(shards) -> None:
    """Typed for a whole table, whose rows are of several methods; a key that no row reads is refused."""
    rows = [
        Row(name=name, label=name, recipe=f"small_{name}", run=name, shards="parametric")
        for name in ("cross_most", "self_training")
    ]
    builds = Builds({"parametric": str(shards)}, (), None)
    ours, base = resolve(rows, builds, {"align": {"temperature": 0.5}, "log_every": 3})
    assert (ours.recipe.align.temperature, ours.recipe.log_every) == (0.5, 3)
    assert (base.recipe.method, base.recipe.log_every) == ("self_training", 3)
    with pytest.raises(Refused, match=r"pretrain\.image: no row of this table reads it"):
        resolve(rows, builds, {"pretrain": {"image": "frozen"}})


def test_a_row_may_need_what_is_typed_for_all(shards) -> None:
    """Frozen towers need weights, which are given with the command."""
    row = Row(name="a", label="a", recipe="small_pretrain", run="a", changes={"pretrain": {"image": "frozen"}})
    (found,) = resolve([row], Builds({"small_pretrain": str(shards)}, (), None), {"init": {"all": "runs/a"}})
    assert (found.recipe.init.all, found.recipe.pretrain.image) == ("runs/a", "frozen")


def test_figures_are_of_what_they_follow_from(shards, tmp_path) -> None:
    """Of another step, judgement, recipe or build they are not taken for a row's own; nor is a zero-shot row's run."""
    copy = tmp_path / "copy"
    (copy / "views/rgb12").mkdir(parents=True)
    shutil.copy(shards / "views/rgb12/manifest.json", copy / "views/rgb12/manifest.json")
    manifest = json.loads((shards / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"assets_hash": "0" * len(manifest["assets_hash"])}))
    rows = [judged(shards), judged(shards, step="first"), judged(shards, evaluate={"num_views": 1}), judged(copy)]
    rows.append(judged(shards, {"seed": 3}))
    assert len({row.identity for row in rows}) == 5
    assert judged(shards).identity == rows[0].identity
    place = Place(tmp_path)
    result = {"identity": rows[0].identity, "n": 22, "step": 2}
    result["student"] = {"image": 1.0, "image_star": 2.0, "points": 3.0}
    path = place.result_path(rows[0])
    path.parent.mkdir()
    path.write_text(json.dumps(result))
    assert known_outcome(rows[0], place).values == result["student"]
    path.write_text(json.dumps(result | {"identity": rows[0].identity[:8] + "0" * 24}))
    assert known_outcome(rows[0], place).status == "not run"
    assert str(tmp_path / "a/checkpoints/step-00000000") in place.judge_commands(rows[1])[0].line
    assert str(tmp_path / "a") in place.judge_commands(rows[0])[0].line


def test_a_row_shows_the_student(shards, tmp_path, monkeypatch) -> None:
    """Both models are kept; the paper's figures are of the student."""
    columns = ("image", "image_star", "points")
    figures = {"student": dict.fromkeys(columns, 61.0), "teacher": dict.fromkeys(columns, 7.0)}
    said = {"dataset": "parametric", "split": "test", "n": 22, "step": 2, **figures}
    monkeypatch.setattr(runner, "_command", lambda *given: (0, "", json.dumps(said)))
    row = judged(shards)
    assert runner._judge(row, Place(tmp_path)).values == figures["student"]
    assert json.loads(Path(Place(tmp_path).result_path(row)).read_text())["teacher"] == figures["teacher"]
    assert known_outcome(row, Place(tmp_path)).values == figures["student"]


def test_a_comparison_is_ours_less_the_papers(tmp_path) -> None:
    rows = (
        Row(name="ours", label="ours", recipe="modelnet40", run="a", paper={"points": 80.0}),
        Row(name="other", label="a | b*", paper={"points": 70.3}, note="of others"),
        Row(name="broken", label="broken", recipe="modelnet40", run="b"),
    )
    table = Table(title="T", columns={"points": EVALUATED["points"]}, rows=rows)
    outcomes = {
        "ours": Outcome("done", {"image": 1.0, "image_star": 2.0, "points": 81.25}, 800, 1200),
        "broken": Outcome("failed", error="fit, exit 2: why"),
    }
    comparison = compare("x", table, {name: {0: outcome} for name, outcome in outcomes.items()})
    figure = {"ours": 81.25, "deviation": None, "interval": None, "paper": 80.0, "difference": 1.25, "gain": None}
    assert comparison["rows"][0]["figures"] == {"points": figure}
    assert cells(comparison) == [
        ["ours", "800", "81.25", "80.00", "+1.25"],
        ["a | b*", "", "", "70.30", ""],
        ["broken", "failed", "", "", ""],
    ]
    write(comparison, tmp_path)
    assert json.loads((tmp_path / "table_x.json").read_text()) == comparison
    with open(tmp_path / "table_x.csv") as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["points_difference"] == "1.25"
    assert [line["status"] for line in lines] == ["done", "paper", "failed"]
    page = (tmp_path / "table_x.md").read_text()
    assert "| a \\| b\\* |  |  | 70.30 |  |" in page
    assert "- broken: failed, fit, exit 2: why" in page


# --- a small table end to end

SMALL = """
title = "Small"
notes = ["a note"]
[[rows]]
name = "others"
label = "others"
paper = { points = 70.3 }
[[rows]]
name = "missing"
label = "missing"
recipe = "modelnet10"
run = "missing"
[[rows]]
name = "zero_shot"
label = "zero-shot"
recipe = "modelnet40"
run = "ours"
step = "first"
paper = { image = 54.00, image_star = 56.25, points = 58.75 }
[[rows]]
name = "broken"
label = "broken"
recipe = "modelnet40"
run = "broken"
changes = { data = { views = "rgb99" } }
[[rows]]
name = "ours"
label = "ours"
recipe = "modelnet40"
run = "ours"
paper = { points = 83.13 }
[[rows]]
name = "one_view"
label = "one view"
recipe = "modelnet40"
run = "ours"
evaluate = { num_views = 1 }
"""


@pytest.fixture(scope="module")
def small(shards, tmp_path_factory):
    """The command without --rows, and its folder, where only the zero-shot row was run so far."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "small.toml").write_text(SMALL)
    given = ["table", str(folder / "small.toml"), "--shards", f"modelnet40={shards}", "--run", str(folder / "run")]
    return [*given, "--device", "cpu", "--recipe", "small_cross_most", "--json", *FEW], folder / "run"


def test_a_table_is_run_and_goes_on(small, shards, capfd) -> None:
    command, run = small
    assert main([*command, "--dry-run"]) == 2
    told = capfd.readouterr().out
    assert "one_view: would be run" in told
    assert (  # what stops rows, with what makes up for it
        "missing:\n"
        "  no build of modelnet10 (missing): python -m pipeline build modelnet10 --source ModelNet10 --out "
        "shards/modelnet10 --workers 8\n"
        f"  {shards} has no view set rgb99 (broken): data.views=depth10|rgb12\n"
    ) in told
    assert main([*command, "--dry-run", "--rows", "ours"]) == 0
    assert "missing" not in capfd.readouterr().out
    assert main([*command, "init.all=gone.pt", "--rows", "ours,one_view"]) == 2
    assert capfd.readouterr().err.strip().splitlines()[-1].startswith("init.all=gone.pt: no such file (ours, one_view)")
    assert not run.exists()
    assert main([*command, "--rows", "zero_shot"]) == 0
    told = capfd.readouterr()
    first = {row["name"]: row for row in json.loads(told.out)["rows"]}
    assert (first["zero_shot"]["status"], first["zero_shot"]["step"], first["ours"]["status"]) == ("done", 0, "not run")
    assert (run / "ours/checkpoints/step-00000000").is_dir()
    results = {path: path.stat().st_mtime_ns for path in (run / "results").iterdir()}
    assert main(command) == 1
    told = capfd.readouterr()
    comparison = json.loads(told.out)
    rows = {row["name"]: row for row in comparison["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "others": "paper",
        "missing": "no shards",
        "zero_shot": "done",
        "broken": "failed",
        "ours": "done",
        "one_view": "done",
    }
    assert "data.views=rgb99" in rows["broken"]["error"]
    assert "missing: skipped, no shards of modelnet10" in told.err
    assert (rows["ours"]["n"], rows["ours"]["step"]) == (22, 2)
    assert rows["zero_shot"] == first["zero_shot"]
    for row in comparison["rows"]:
        for figure in row["figures"].values():
            both = None not in (figure["ours"], figure["paper"])
            assert figure["difference"] == (round(figure["ours"] - figure["paper"], 2) if both else None)
    alone = examine([open_checkpoint(str(run / "ours"))], str(shards))[0].result()["student"]
    assert {name: figure["ours"] for name, figure in rows["ours"]["figures"].items()} == {
        name: alone[name] for name in ("image", "image_star", "points")
    }
    one = {name: figure["ours"] for name, figure in rows["one_view"]["figures"].items()}
    assert one["image"] == one["image_star"]
    assert all(path.stat().st_mtime_ns == when for path, when in results.items())
    log = (run / "logs/ours.txt").read_text()
    assert log.count(" fit ") == 2  # begun for zero-shot, then to its end
    assert log.count("step 1/2 ") in (1, 2)  # one that was not kept when the run was stopped is made again
    before = (run / "logs").stat().st_mtime_ns, log
    assert main([*command, "--rows", "ours,one_view,zero_shot"]) == 0
    assert before == ((run / "logs").stat().st_mtime_ns, (run / "logs/ours.txt").read_text())
    assert json.loads((run / "table_small.json").read_text())["rows"][4]["figures"] == rows["ours"]["figures"]
    assert tomllib.loads((run / "recipes/ours.toml").read_text())["optimizer"]["steps"] == 2


def test_both_readings_of_a_subset(small, shards) -> None:
    """Objects of some classes among all candidates, and among these classes: from the logits of one evaluation."""
    checkpoint = open_checkpoint(str(small[1] / "ours"))
    whole = examine([checkpoint], str(shards))[0]
    some = [whole.classes[number] for number in sorted(set(whole.student.label.tolist()))[:6]]
    numbers = torch.tensor([whole.classes.index(name) for name in some])
    inside = torch.isin(whole.student.label, numbers)
    for candidates, columns in (("all", torch.arange(19)), ("subset", numbers)):
        changes = {"classes": some, "candidates": candidates}
        found = examine([checkpoint], str(shards), options=Options(changes=changes))[0]
        assert len(found.keys) == int(inside.sum()) > 5
        assert len(found.classes) == len(columns)
        for column in ("image", "image_star", "points"):
            logits = whole.student.logits[column][inside][:, columns]
            torch.testing.assert_close(found.student.logits[column], logits, atol=1e-4, rtol=1e-4)
            right = columns[logits.argmax(dim=1)] == whole.student.label[inside]
            assert found.student.percent()[column] == pytest.approx(100 * float(right.float().mean()), abs=0.01)


@pytest.mark.slow
def test_a_table_that_was_killed_goes_on(training, shards, tmp_path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    run = tmp_path / "run"
    steps = [change for change in FEW if not change.startswith("optimizer.steps")] + ["optimizer.steps=40"]
    command = ["table", tmp_path / "small.toml", "--shards", f"modelnet40={shards}", "--run", run, "--device", "cpu"]
    command += ["--recipe", "small_cross_most", "--rows", "ours,zero_shot", *steps]
    process = training.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "ours/checkpoints/step-00000005").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    reached = -1
    while reached != (reached := len((run / "ours/log.csv").read_text().splitlines())):
        time.sleep(2)  # the fit below it has ended with it, or it would go on
    assert reached < 40
    result = json.loads(training(*command, "--json").stdout)
    assert [row["status"] for row in result["rows"]] == ["paper", "no shards", "done", "not run", "done", "not run"]
    steps_logged = [line.partition(",")[0] for line in (run / "ours/log.csv").read_text().splitlines()[1:]]
    assert steps_logged == [str(step) for step in range(1, 41)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3", "4"])
def test_a_shipped_table_end_to_end(training, shards, tmp_path, name: str) -> None:
    command = ("table", name, "--shards", shards, "--run", tmp_path, "--recipe", "small_cross_most", "--json", *FEW)
    rows = json.loads(training(*command).stdout)["rows"]
    assert {row["status"] for row in rows} == {"done"}
    for row in rows:
        for figure in row["figures"].values():
            assert 0 <= figure["ours"] <= 100
            assert figure["difference"] == round(figure["ours"] - figure["paper"], 2)


@pytest.mark.slow
def test_rows_are_trained_by_several_processes(training, shards, tmp_path) -> None:
    """Begun for zero-shot, stopped, and gone on with; a refusal is our line, not torchrun's."""
    command = ("table", "6", "--shards", shards, "--run", tmp_path, "--recipe", "small_cross_most", "--device", "cpu")
    several = (*command, "--processes", 2, "--json", *FEW)
    for row, step in (("zero_shot-800", 0), ("cross_most-800", 2)):
        rows = json.loads(training(*several, "--rows", row).stdout)["rows"]
        assert [(each["name"], each["step"]) for each in rows if each["status"] == "done"][-1] == (row, step)
    assert (tmp_path / "logs/modelnet40-cross_most.txt").read_text().count("torch.distributed.run") >= 2
    other = (*several, "data.views=rgb99", "--rows", "cross_most_all-2468")
    told = json.loads(training(*other, code=1).stdout)["rows"][-1]
    assert "data.views=rgb99" in told["error"]
