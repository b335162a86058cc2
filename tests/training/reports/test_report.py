"""The report of runs: its figures by hand and as `evaluate` gives them, its files, its refusals."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import statistics
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import evaluated

from manifests.config import to_toml
from training.__main__ import main
from training.evaluation.evaluate import Unlabelled
from training.evaluation.metrics import COLUMNS, SplitAnswers, pseudo_label_quality, wilson
from training.plots.curves import Curves, losses, mean_of_seeds, selected_by_modality
from training.reports import report
from training.reports.page import Page, PageTable, Section, gain_lines, page_of, to_html, to_markdown
from training.reports.prediction_sheet import RIGHT, WRONG, Answer, Shown, sheet, spread
from training.reports.report import collect, paired_gain, write
from training.settings.fit_recipe import saved_recipe
from training.settings.objective import LabelSettings
from training.weights.checkpoint import Checkpoint

FEW = (
    "data.num_points=64",
    "optimizer.batch_size=8",
    "optimizer.steps=4",
    "optimizer.lr=0.02",
    "log_every=2",
    "points.depth=1",
    "tensorboard=false",
)
ROWS = ["zero_shot", "self_training", "cross_most"]


@pytest.fixture(scope="module")
def runs(training, shards, tmp_path_factory) -> dict[str, Path]:
    """Two methods and, as an oracle, pre-training with the labels of the same shards."""
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe in (("one", "small_self_training"), ("two", "small_cross_most"), ("known", "small_pretrain")):
        training("fit", recipe, "--shards", shards, "--run", folder / name, *FEW)
    return {name: folder / name for name in ("one", "two", "known")}


@pytest.fixture(scope="module")
def collected(runs, shards) -> report.Report:
    return collect([runs["one"], runs["two"]], str(shards), source=str(shards), oracle=runs["known"])


def test_wilson_by_hand() -> None:
    half = 2 * math.sqrt(0.25 / 100 + 4 / 40_000)
    assert wilson(0.5, 100, z=2) == pytest.approx(((0.52 - half) / 1.04, (0.52 + half) / 1.04))
    assert wilson(0.0, 10, z=2) == pytest.approx((0.0, 4 / 14))
    assert wilson(1.0, 10, z=2) == pytest.approx((10 / 14, 1.0))
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)  # a textbook's


def test_a_paired_gain_by_hand() -> None:
    new, old = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert paired_gain(new, old, z=2) == pytest.approx((0.5, 0.0, 1.0))  # differences 1, 0, 0, 1: sd 1/2, of 4 objects
    assert paired_gain(old, new, z=2)[0] == -0.5


@pytest.mark.parametrize(
    ("method", "mode", "own"),
    [("self_training", "joint", True), ("cross_most", "own", True), ("cross_most", "joint", False)],
)
def test_curves_know_whose_labels_a_run_has(method: str, mode: str, own: bool) -> None:
    """Figure 4: each branch's own share, or the shares of one label that both learn."""
    values = {"labels": {"mode": mode}} if method == "cross_most" else {}
    recipe = saved_recipe({"method": method} | values, "a run")
    last = Checkpoint(Path("run"), 4, recipe, (), (), "d")
    values = {"confident_image": [0.5], "confident_points": [0.3], "from_image": [0.2]}
    curves = report._OpenRun(method, method, method, "run", {}, last, last, values).loss_curves
    image, points = selected_by_modality(curves)
    assert (image[0], points[0]) == pytest.approx((0.5, 0.3) if own else (0.1, 0.4))


def logits_of(*confidence: float, classes: tuple[int, ...]) -> torch.Tensor:
    """Logits whose softmax gives class `c` this confidence, and the rest to two others."""
    probability = torch.zeros(len(classes), 3)
    for row, (share, label) in enumerate(zip(confidence, classes, strict=True)):
        probability[row] = (1 - share) / 2
        probability[row, label] = share
    return probability.log()


def test_precision_of_pseudo_labels_by_hand() -> None:
    """Five objects at threshold 0.7; true classes 0, 1, 2, 0, 1."""
    image = logits_of(0.9, 0.8, 0.6, 0.75, 0.5, classes=(0, 0, 2, 0, 1))
    points = logits_of(0.8, 0.9, 0.95, 0.4, 0.6, classes=(1, 1, 2, 2, 0))
    label = torch.tensor([0, 1, 2, 0, 1])
    assert pseudo_label_quality(image, points, label, LabelSettings(threshold=0.7, mode="own")) == {
        "image": {"selected": 60.0, "precision": 66.67},  # objects 0, 1 (wrong) and 3
        "points": {"selected": 60.0, "precision": 66.67},  # objects 0 (wrong), 1 and 2
        "joint": {"selected": 80.0, "precision": 100.0},  # 0 and 3 by the image, 1 and 2 by the points
    }
    nothing = pseudo_label_quality(image, points, label, LabelSettings(threshold=0.99))
    assert nothing["joint"] == {"selected": 0.0, "precision": None}
    weighted = pseudo_label_quality(image, points, label, LabelSettings(threshold=0.7, points_weight=0.75))
    assert weighted["points"] == {"selected": 20.0, "precision": 100.0}


def test_answers_by_hand() -> None:
    """Three objects of classes 0, 0, 1 (of 3): the image says 0 each time, the points 0, 1, 1."""
    image, points = logits_of(0.8, 0.8, 0.8, classes=(0, 0, 0)), logits_of(1 / 3, 0.5, 0.5, classes=(0, 1, 1))
    answers = SplitAnswers(
        torch.tensor([0, 0, 1]), {"image": image, "image_star": image, "points": points}, torch.tensor([1.0, 0.5, 0.0])
    )
    found = answers.percent()
    assert {name: found[name] for name in COLUMNS} == {
        "image": 66.67,
        "image_mean": 50.0,
        "image_star": 66.67,
        "points": 66.67,
    }
    assert found["mean_per_class"] == {"image": 50.0, "image_mean": 37.5, "image_star": 50.0, "points": 75.0}
    analysis = answers.analysis()
    assert analysis["image"]["biasedness"] == pytest.approx(math.log(3), abs=1e-4)  # one class alone
    sure = math.log(3) + 0.8 * math.log(0.8) + 0.2 * math.log(0.1)
    assert analysis["image"]["entropy"] == pytest.approx(sure, abs=1e-4)
    assert answers.guess("points", 1) == (1, pytest.approx(0.5))


def test_modalities_of_pseudo_labels() -> None:
    columns = {"confident_image": [0.5], "confident_points": [0.5], "from_image": [0.2]}
    assert [float(x[0]) for x in selected_by_modality(Curves("joint", columns, False))] == pytest.approx([0.1, 0.4])
    own = columns | {"confident_points": [0.7], "from_image": [1.0]}
    assert [float(x[0]) for x in selected_by_modality(Curves("own", own, True))] == pytest.approx([0.5, 0.7])


def test_shown_objects_are_spread_over_the_classes() -> None:
    keys, labels = [f"k{number}" for number in range(40)], [number % 4 for number in range(40)]
    chosen = spread(keys, labels, 6, seed=0)
    assert sorted(labels[number] for number in chosen[:4]) == [0, 1, 2, 3]
    assert len(set(chosen)) == 6
    assert chosen == spread(keys, labels, 6, seed=0) != spread(keys, labels, 6, seed=1)
    assert len(spread(keys, labels, 99, seed=0)) == 40


def test_right_is_green_and_wrong_is_red() -> None:
    def colours(right: bool) -> set[str]:
        picture = np.full((8, 8, 3), 128, np.uint8)
        answers = (("zero-shot", (Answer("Image*", "mug", 0.5, right),)),)
        page = sheet([Shown("mug", (picture,), np.zeros((4, 3), np.float32), answers)])
        pixels = np.asarray(Image.open(io.BytesIO(page))).reshape(-1, 3)
        return {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(pixels, axis=0)} & {RIGHT, WRONG}

    assert colours(True) == {RIGHT}
    assert colours(False) == {WRONG}


def test_values_are_those_of_evaluate(training, collected, runs, shards) -> None:
    values = collected.values
    assert list(values["table"]) == list(values["interval"]) == list(values["teacher"]) == ROWS
    assert (values["n"], values["split"], values["seed"]) == (22, "test", 0)
    typed = json.loads(training("evaluate", runs["two"], "--shards", shards, "--json").stdout)
    for row, path in (
        ("zero_shot", runs["one"] / "checkpoints/step-00000000"),
        ("self_training", runs["one"]),
        ("cross_most", runs["two"]),
    ):
        found = evaluated(path, shards)
        assert row != "cross_most" or found == typed
        for key, who in (("table", "student"), ("teacher", "teacher")):
            three = {name: found[who][name] for name in ("image", "image_star", "points")}
            assert values[key][row] == three | {"mean": pytest.approx(sum(three.values()) / 3, abs=0.01)}
        assert values["analysis"][row] == found["analysis"]
        for name, (low, high) in values["interval"][row].items():
            assert 0 <= low < values["table"][row][name] < high <= 100 or values["table"][row][name] in (0, 100)
    known = evaluated(runs["known"], shards)
    assert (values["oracle"]["image"], known["teacher"]) == (known["student"]["image"], None)
    table = values["table"]
    assert any(table["cross_most"] != table[row] for row in ("zero_shot", "self_training"))


def test_what_else_report_json_holds(collected, runs) -> None:
    values = collected.values
    for row, name, step in (("self_training", "one", 4), ("cross_most", "two", 4), ("oracle", "known", 4)):
        found = values["runs"][row]
        assert (found["path"], found["step"]) == (str(runs[name]), step)
        assert found["seconds"] > 0
        assert found["max_rss_mb"] > 100
        assert found["ms_per_step"] > 0
    for row in ROWS[1:]:
        found = values["pseudo_labels"][row]
        assert (found["threshold"], found["first"]["step"], found["last"]["step"]) == (0.7, 0, 4)
        assert found["first"]["n"] == 38  # the train split
        assert all(0 <= found["last"][mode]["selected"] <= 100 for mode in ("image", "points", "joint"))
    assert values["pseudo_labels"]["self_training"]["first"] == values["pseudo_labels"]["cross_most"]["first"]
    gain = values["gains"]["cross_most"]["self_training"]
    difference = values["table"]["cross_most"]["mean"] - values["table"]["self_training"]["mean"]
    assert gain["gain"] == pytest.approx(difference, abs=0.02)
    assert gain["interval"][0] <= gain["gain"] <= gain["interval"][1]
    assert set(values["gains"]["self_training"]) == {"zero_shot"}


def test_files_of_a_report(collected, tmp_path) -> None:
    path = write(collected, tmp_path / "out", seconds=61.5, max_rss_mb=900.0)
    names = {"losses", "pseudo_labels", "analysis", "target", "source"}
    files = {"report.html", "report.md", "report.json"} | {f"report_{name}.png" for name in names}
    assert {p.name for p in path.parent.iterdir()} == files
    values = json.loads((path.parent / "report.json").read_text())
    assert values == collected.values | {"seconds": 61.5, "max_rss_mb": 900.0}
    html = path.read_text()
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == html.count("src=") == 5
    for data in sources:
        kind, _, encoded = data.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).width >= 900
    assert not re.search(r"https?:|<link|<script|url\(|@import", html)
    markdown = (path.parent / "report.md").read_text()
    shown = re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown)
    assert {f"report_{name}.png" for name in names} == set(shown)
    for text in (html, markdown):
        assert "oracle (labels known: an upper bound)" in text
        assert f"{values['table']['cross_most']['points']:.1f} [" in text
        assert "In all: 62 s, 900 MB" in text


def test_losing_is_said_as_it_is() -> None:
    gains = {"cross_most": {"zero_shot": {"gain": -2.25, "interval": [-4.0, -0.5]}}}
    names = {"zero_shot": "zero-shot", "cross_most": "Cross-MoST"}
    assert gain_lines({"gains": gains, "names": names}) == [
        "Cross-MoST minus zero-shot: -2.2 points [-4.0, -0.5] (mean of the three columns)."
    ]


def test_a_second_run_of_a_method_and_no_labels(runs, shards, monkeypatch) -> None:
    """A training split without labels has no precision, and all else."""

    def unlabelled(*arguments: object) -> None:
        raise Unlabelled("no object of train has a label")

    monkeypatch.setattr(report, "teacher_labels", unlabelled)
    found = collect([runs["two"], runs["two"]], str(shards))
    assert list(found.values["table"]) == ["zero_shot", "cross_most", "cross_most_2"]
    assert [found.values["names"][row] for row in ("cross_most", "cross_most_2")] == [
        "Cross-MoST, two",
        "Cross-MoST, two 2",
    ]
    assert (found.values["pseudo_labels"], found.values["oracle"]) == (None, None)
    assert set(found.pictures) == {"losses", "pseudo_labels", "analysis", "target"}
    assert "is not known" in to_markdown(page_of(found.values | {"seconds": None, "max_rss_mb": None}, found.pictures))


@pytest.fixture(scope="module")
def seeds(training, shards, runs, tmp_path_factory) -> list[Path]:
    """Cross-MoST with seeds 0, 1 and 2."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed in (1, 2):
        command = ("fit", "small_cross_most", "--shards", shards, "--run", folder / str(seed), f"seed={seed}")
        training(*command, *FEW)
    return [runs["two"], folder / "1", folder / "2"]


def test_runs_of_several_seeds_are_one_method(runs, seeds, shards, tmp_path, capsys) -> None:
    """As a person types it: mean, sample deviation and n; each run by itself; a line of the mean with thin ones."""
    out = ("--out", tmp_path / "out")
    typed = ["report", runs["one"], *seeds, "--shards", shards, "--json", *out]
    assert main([str(word) for word in typed]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values["table"]) == ["zero_shot", "self_training", "cross_most"]
    names = ["cross_most_seed_0", "cross_most_seed_1", "cross_most_seed_2"]
    assert list(values["runs"]) == ["self_training", *names]
    assert set(names) < set(values["analysis"])
    assert set(names) < set(values["pseudo_labels"])
    each = [evaluated(path, shards) for path in seeds]
    single = values["seeds"]["cross_most"]
    assert [(seed["seed"], seed["run"]) for seed in single] == list(enumerate(names))
    for column in ("image", "image_star", "points"):
        figures = [found["student"][column] for found in each]
        assert [seed[column] for seed in single] == figures
        assert values["table"]["cross_most"][column] == pytest.approx(statistics.mean(figures), abs=0.006)
        assert values["deviation"]["cross_most"][column] == round(statistics.stdev(figures), 2)
        teachers = statistics.mean(found["teacher"][column] for found in each)
        assert values["teacher"]["cross_most"][column] == pytest.approx(teachers, abs=0.006)
    assert any(values["deviation"]["cross_most"].values())
    assert set(values["seeds"]) == set(values["deviation"]) == {"cross_most"}
    gain = values["gains"]["cross_most"]["self_training"]["gain"]
    difference = values["table"]["cross_most"]["mean"] - values["table"]["self_training"]["mean"]
    assert gain == pytest.approx(difference, abs=0.011)
    page = (tmp_path / "out/report.md").read_text()
    found = values["table"]["cross_most"]["points"], values["deviation"]["cross_most"]["points"]
    assert "| Cross-MoST (n=3) | " in page
    assert f"{found[0]:.1f} +- {found[1]:.1f} |" in page
    assert "| Cross-MoST, seed 2 | " in page
    assert "Seeds 0, 1, 2." in page


def test_the_same_seed_or_another_key_is_another_method(seeds, runs, shards) -> None:
    manifest = report.require_manifest(str(shards), "")
    opened = report._open_runs([runs["two"], seeds[1], runs["two"]], str(shards), manifest)
    assert [(run.row, run.name) for run in opened] == [
        ("cross_most", "cross_most_seed_0"),
        ("cross_most", "cross_most_seed_1"),
        ("cross_most_2", "cross_most_2"),
    ]
    other = opened[1].last.recipe.model_copy(update={"logit_scale": "frozen"})
    assert not report._differ_in_the_seed_alone(
        opened[0], replace(opened[1], last=replace(opened[1].last, recipe=other))
    )


def test_the_mean_of_curves_by_hand() -> None:
    """Over the rows that all have; the seeds' own lines are drawn as well."""
    one, two = (
        Curves("a", {"step": [1, 2], "loss": [1.0, 3.0]}, False),
        Curves("a", {"step": [1], "loss": [2.0]}, False),
    )
    found = mean_of_seeds("both", [one, two])
    assert (found.name, found.columns) == ("both", {"step": [1], "loss": [1.5]})
    assert found.seeds == (one.columns, two.columns)
    thin, plain = losses([found]), losses([replace(found, seeds=())])
    assert thin != plain


def test_what_is_shown_is_escaped() -> None:
    page = Page("a < b", "<b>", (Section("s", (PageTable(("x", "*"), (("<i>|", "1"),)), "5 * 3\u202e")),))
    assert "<title>a &lt; b</title>" in to_html(page)
    assert r"<p>5 * 3\u202e</p>" in to_html(page)
    assert "<td>&lt;i&gt;|</td>" in to_html(page)
    assert r"| \<i>\| | 1 |" in to_markdown(page)
    assert r"5 \* 3" in to_markdown(page)


@pytest.mark.slow
def test_report_as_a_person_types_it(training, runs, shards, tmp_path) -> None:
    for name in ("one", "two"):
        shutil.copytree(runs[name], tmp_path / name)
    result = training("report", tmp_path / "one", tmp_path / "two", "--shards", shards, "--split", "train")
    assert "Cross-MoST minus zero-shot: " in result.stdout
    assert "zero-shot" in result.stdout
    assert "oracle" not in result.stdout
    values = json.loads((tmp_path / "report.json").read_text())
    assert (values["split"], values["n"]) == ("train", 38)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no_run", "is no checkpoint and no run"),
        ("a_step", "is no run"),
        ("labels_known", "was trained with labels"),
        ("no_oracle", "nowhere is no checkpoint and no run"),
        ("oracle_without_labels", "was trained without labels (method=cross_most)"),
        ("other_classes", "20 classes"),
        ("other_shards", "was trained on other shards"),
        ("part_of_the_classes", "knows a part of the classes (data.classes)"),
        ("no_split", "data.split=val2"),
        ("damaged_log", "log.csv is damaged"),
    ],
)
def test_refusals_write_nothing(runs, shards, tmp_path, capsys, change: str, words: str) -> None:
    run, two, target, more = runs["one"], runs["two"], shards, ()
    if change == "no_run":
        run = tmp_path
    elif change == "a_step":
        run = run / "checkpoints/step-00000000"
    elif change == "labels_known":
        run = runs["known"]
    elif change == "no_oracle":
        more = ("--oracle", tmp_path / "nowhere")
    elif change == "oracle_without_labels":
        more = ("--oracle", two)
    elif change == "no_split":
        more = ("--split", "val2")
    elif change == "damaged_log":
        two = shutil.copytree(two, tmp_path / "two")
        (two / "log.csv").write_text("step,loss\n2,x\n")
    elif change == "part_of_the_classes":
        two = shutil.copytree(two, tmp_path / "two")
        for path in two.rglob("recipe.toml"):
            table = tomllib.loads(path.read_text())
            table["data"]["classes"] = ["mug", "laptop"]
            path.write_text(to_toml(table))
    elif change == "other_shards":
        two = shutil.copytree(two, tmp_path / "two")
        about = json.loads((two / "run.json").read_text())
        (two / "run.json").write_text(json.dumps(about | {"assets_hash": "0"}))
    else:
        target = shutil.copytree(shards, tmp_path / "shards")
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["classes"].append("spaceship")
        manifest["prompt_names"].append("spaceship")
        (target / "manifest.json").write_text(json.dumps(manifest))
    out = tmp_path / "out"
    assert main([str(word) for word in ("report", run, two, "--shards", target, "--out", out, *more)]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert "\n" not in message
    assert not out.exists()
