"""evaluate as a person types it: classes and candidates, without labels, its folder, several processes; and by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import REPOSITORY
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import relabelled, typed

from training.data.whole_split import batch_numbers
from training.evaluation.evaluate import Options, examine, one_view, teacher_labels
from training.evaluation.metrics import Examined, SplitAnswers, pseudo_label_quality, wilson
from training.objectives.pseudo_labels import pseudo_labels
from training.plots.confusion import confusion_picture, histogram_picture
from training.settings.objective import LabelSettings
from training.weights.checkpoint import open_checkpoint
from training.weights.open_models import open_models

FEW = (
    "data.num_points=64",
    "optimizer.batch_size=8",
    "optimizer.steps=2",
    "optimizer.lr=0.02",
    "log_every=2",
    "points.depth=1",
    "labels.threshold=0.06",  # of 19 classes: an untrained model gives some pseudo-labels
    "tensorboard=false",
)


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    typed("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    return folder


@pytest.fixture(scope="module")
def found(training, shards, run, tmp_path_factory) -> tuple[dict, Path]:
    """What evaluate printed about the train split, and the folder that it wrote."""
    out = tmp_path_factory.mktemp("found") / "inside" / "folder"
    options = ("--shards", shards, "--split", "train", "--json", "--out", out)
    return json.loads(training("evaluate", run, *options).stdout), out


def logits_of(*confidence: float, classes: tuple[int, ...], number: int = 3) -> torch.Tensor:
    """Logits whose softmax gives class `c` this confidence, and the rest to the others."""
    probability = torch.zeros(len(classes), number)
    for row, (share, label) in enumerate(zip(confidence, classes, strict=True)):
        probability[row] = (1 - share) / (number - 1)
        probability[row, label] = share
    return probability.log()


@pytest.fixture(scope="module")
def half(shards, tmp_path_factory) -> Path:
    """The same shards: in train every other object has no label, in test none has."""
    keys = [k for tar in sorted((shards / "shapes").glob("train-*.json")) for k in json.loads(tar.read_text())["keys"]]
    known = set(keys[::2])
    out = tmp_path_factory.mktemp("half") / "out"
    return relabelled(shards, out, lambda key, label: label if key in known else None)


def answers_by_hand() -> SplitAnswers:
    """Four objects of classes 0, 0, 0, 1 of three; the image says 0, 0, 1, 1, the points 0, 1, 1, 0."""
    image = logits_of(0.9, 0.6, 0.8, 0.4, classes=(0, 0, 1, 1))
    points = logits_of(0.8, 0.9, 0.95, 0.4, classes=(0, 1, 1, 0))
    views_right = torch.tensor([1.0, 0.5, 0.0, 1.0])
    return SplitAnswers(
        torch.tensor([0, 0, 0, 1]), {"image": image, "image_star": image, "points": points}, views_right
    )


def test_figures_with_labels_by_hand() -> None:
    answers = answers_by_hand()
    assert answers.confusion("image").tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert answers.confusion("points").tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert answers.percent()["image"] == 75.0
    assert answers.percent()["mean_per_class"]["image"] == pytest.approx((200 / 3 + 100) / 2, abs=0.01)
    assert answers.per_class()["points"] == [pytest.approx(33.33), 0.0, None]
    assert answers.per_class()["image_mean"] == [50.0, 100.0, None]
    # if both classes weighed the same, the image would say 0 in 2/3 and 1 in 1/3 + 1 of two
    share = np.array([1 / 3, 2 / 3])
    assert answers.balanced_biasedness()["image"] == pytest.approx(float((share * np.log(3 * share)).sum()), abs=1e-4)


def score_test_ends(right: int, count: int) -> list[float]:
    """Wilson's interval, found as it is defined: the shares p that |right/n - p| = 1.959964 sqrt(p (1 - p) / n) bounds,
    by halving."""
    share, ends = right / count, []
    for out in (0.0, 1.0):
        inside, outside = share, out
        for _ in range(80):
            p = (inside + outside) / 2
            far = abs(share - p) > 1.959964 * math.sqrt(p * (1 - p) / count)
            inside, outside = (inside, p) if far else (p, outside)
        ends.append(inside)
    return ends


def test_top_3_and_5_and_their_intervals_by_another_way() -> None:
    """Seven classes, forty objects, ties among the logits; three classes have no top 5."""
    torch.manual_seed(0)
    logits = {name: torch.randint(0, 5, (40, 7)).float() for name in ("image", "image_star", "points")}
    label = torch.randint(0, 7, (40,))
    answers = SplitAnswers(label, logits, torch.rand(40))
    found = answers.percent()
    for name, each in logits.items():
        order = each.argsort(dim=1, descending=True, stable=True).tolist()
        for top in (1, 3, 5):
            right = sum(own in row[:top] for own, row in zip(label.tolist(), order, strict=True))
            assert (found[f"top{top}"] if top > 1 else found)[name] == pytest.approx(100 * right / 40, abs=0.01)
            ends = [100 * end for end in score_test_ends(right, 40)]
            assert found["interval"][f"top{top}"][name] == pytest.approx(ends, abs=0.01)
    assert found["image"] == pytest.approx(100 * float((logits["image"].argmax(1) == label).float().mean()), abs=0.01)
    assert found["interval"]["top1"]["image_mean"] is not None
    few = answers_by_hand().percent()
    assert few["top3"]["image"] == 100.0
    assert "top5" not in few
    assert "top5" not in few["interval"]


@pytest.mark.parametrize(("right", "count"), [(0, 22), (22, 22), (1, 2), (37, 400), (1100, 2468)])
def test_intervals_are_those_of_the_score_test(right: int, count: int) -> None:
    assert wilson(right / count, count) == pytest.approx(score_test_ends(right, count), abs=1e-9)


def test_figures_without_labels_by_hand() -> None:
    found = answers_by_hand().analysis(LabelSettings(threshold=0.7, points_weight=0.9))
    assert found["image"]["histogram"] == [2, 2, 0]
    assert found["image"]["confident"] == 50.0
    assert found["points"]["confident"] == 75.0  # 0.72, 0.81 and 0.855 once weighted
    assert found["points"]["biasedness"] == pytest.approx(math.log(3 / 2), abs=1e-4)
    assert found["agreement"] == 50.0  # objects 0 and 2
    joint = {"selected": 75.0, "from_image": 33.33, "from_points": 66.67, "histogram": [1, 2, 0]}
    assert found["joint"] == joint
    nothing = answers_by_hand().analysis(LabelSettings(threshold=0.99))["joint"]
    assert nothing == {"selected": 0.0, "from_image": None, "from_points": None, "histogram": [0, 0, 0]}


def test_without_labels_nothing_that_needs_them_is_there() -> None:
    answers = answers_by_hand()
    unseen = SplitAnswers(torch.full((4,), -1), answers.logits, torch.zeros(4))
    result = Examined("d", "test", ("a", "b", "c"), 1, ("w", "x", "y", "z"), unseen, None, labelled=False).result()
    assert result["student"] is result["teacher"] is result["pseudo_labels"] is result["per_class"] is None
    assert "biasedness_balanced" not in result["analysis"]["student"]["image"]
    assert result["analysis"]["teacher"] is None


@pytest.mark.parametrize(("total", "size", "world"), [(100, 32, 3), (5, 32, 4), (0, 32, 2), (96, 32, 3), (97, 32, 8)])
def test_processes_share_every_batch_once_in_order(total: int, size: int, world: int) -> None:
    parts = [batch_numbers(total, size, rank, world) for rank in range(world)]
    assert [number for part in parts for number in part] == list(range(math.ceil(total / size)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_histograms_of_a_run(run) -> None:
    """Two steps of eight objects: what was predicted and taught since the last row of the log, by class."""
    head, *rows = csv.reader((run / "histograms.csv").read_text().splitlines())
    assert len(head) == 2 + 19
    counts = {name: np.array(values, int) for step, name, *values in rows}
    assert [step for step, *_ in rows] == ["2"] * 4
    assert set(counts) == {"image", "points", "labels_image", "labels_points"}
    assert counts["image"].sum() == counts["points"].sum() == 16
    (logged,) = csv.DictReader((run / "log.csv").read_text().splitlines())
    taught = counts["labels_image"].sum() + counts["labels_points"].sum()
    assert taught == round(16 * float(logged["confident_image"])) > 0
    share = counts["points"][counts["points"] > 0] / 16
    assert float(logged["biasedness_points"]) == pytest.approx(float((share * np.log(19 * share)).sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "image", "points"),
    [("joint", [1, 0, 0, 0], [0, 1, 1, 0]), ("own", [1, 0, 1, 0], [1, 1, 1, 0]), ("image", [1, 0, 1, 0], [0, 0, 0, 0])],
)
def test_which_modality_gave_a_label(mode: str, image: list[int], points: list[int]) -> None:
    both = (answers_by_hand().logits[name] for name in ("image", "points"))
    labels = pseudo_labels(*both, LabelSettings(mode=mode, threshold=0.7))
    assert [each.int().tolist() for each in labels.by_modality()] == [image, points]


def test_what_is_printed_and_written_agrees(found) -> None:
    result, out = found
    assert {p.name for p in out.iterdir()} == {
        "evaluate.json",
        "per_class.csv",
        "accuracies.csv",
        *(f"histogram_{who}.{kind}" for who in ("student", "teacher") for kind in ("csv", "png")),
        *(
            f"confusion_{who}_{column}.{kind}"
            for who in ("student", "teacher")
            for column in ("image", "image_star", "points")
            for kind in ("csv", "png")
        ),
    }
    assert json.loads((out / "evaluate.json").read_text()) == result
    for who in ("student", "teacher"):
        for column in ("image", "image_star", "points"):
            head, *rows = csv.reader((out / f"confusion_{who}_{column}.csv").read_text().splitlines())
            assert head[1:] == [row[0] for row in rows] == result["classes"]
            counts = np.array([row[1:] for row in rows], int)
            assert counts.sum(axis=1).tolist() == result["per_class"]["objects"]
            assert 100 * counts.trace() / 38 == pytest.approx(result[who][column], abs=0.01)
            each = [None if not n else 100 * counts[c, c] / n for c, n in enumerate(counts.sum(axis=1))]
            assert result["per_class"][who][column] == pytest.approx(each, abs=0.01)
            known = [value for value in each if value is not None]
            assert result[who]["mean_per_class"][column] == pytest.approx(np.mean(known), abs=0.01)
        analysis = result["analysis"][who]
        for modality in ("image", "points"):
            assert sum(analysis[modality]["histogram"]) == 38
        _, *rows = csv.reader((out / f"histogram_{who}.csv").read_text().splitlines())
        for column, name in enumerate(("image", "points", "joint"), 1):
            assert [int(row[column]) for row in rows] == analysis[name]["histogram"]
        share = np.array(analysis["image"]["histogram"]) / 38
        share = share[share > 0]
        assert analysis["image"]["biasedness"] == pytest.approx(float((share * np.log(19 * share)).sum()), abs=1e-3)
        assert result["pseudo_labels"][who]["joint"]["selected"] == analysis["joint"]["selected"]
    shares = list(csv.DictReader((out / "accuracies.csv").read_text().splitlines()))
    assert len(shares) == 2 * (4 + 3 + 3)
    for row in shares:
        figures, top = result[row["model"]], f"top{row['top']}"
        assert float(row["percent"]) == figures.get(top, figures)[row["column"]]
        assert [float(row["low"]), float(row["high"])] == figures["interval"][top][row["column"]]
        assert float(row["low"]) <= float(row["percent"]) <= float(row["high"])
        assert row["n"] == "38"
    head, *rows = csv.DictReader((out / "per_class.csv").read_text().splitlines()), *()
    table = list(head)
    assert [int(row["objects"]) for row in table] == result["per_class"]["objects"]
    assert len(table[0]) == 2 + 2 * 4
    with Image.open(out / "confusion_student_points.png") as picture:
        assert min(picture.size) > 700
        assert len(picture.convert("RGB").getcolors(2**24)) > 20


def dark_cells(counts: np.ndarray) -> np.ndarray:
    """How dark the cells of a picture of a confusion matrix are, 0 to 1, by row and column as they are seen."""
    with Image.open(io.BytesIO(confusion_picture(counts, [" "] * len(counts), ""))) as picture:
        dark = 1 - np.asarray(picture.convert("RGB"))[..., 0] / 255
    frame = [np.flatnonzero((dark > 0.5).mean(axis=axis) > 0.75) for axis in (1, 0)]
    edges = [np.linspace(found.min(), found.max(), len(counts) + 1) for found in frame]
    rows, columns = ([slice(int(a + (b - a) / 8), int(a + (b - a) / 4)) for a, b in pairwise(edge)] for edge in edges)
    return np.array([[dark[row, column].mean() for column in columns] for row in rows])


def test_a_confusion_picture_has_a_row_a_true_class() -> None:
    """Coloured by the share of the row: of class 0 all are taken for class 2, of class 1 a quarter for class 0."""
    found = dark_cells(np.array([[0, 0, 7], [10, 30, 0], [0, 0, 0]]))
    assert found[0, 2] > 0.9
    assert 0.6 < found[1, 1] < 0.95
    assert 0.15 < found[1, 0] < 0.4
    assert found[[0, 0, 1, 2, 2, 2], [0, 1, 2, 0, 1, 2]].max() < 0.05


def test_pictures_of_forty_classes_stay_readable() -> None:
    names = [f"class_{n:02d}" for n in range(40)]
    with Image.open(io.BytesIO(confusion_picture(np.eye(40, dtype=int) * 3, names, "forty"))) as picture:
        assert picture.width >= 40 * 30  # pixels a class
    with Image.open(io.BytesIO(histogram_picture({"image": [3] * 40}, names, "forty"))) as picture:
        assert picture.width >= 40 * 30


def test_labels_are_asked_for_in_one_line_or_done_without(training, run, shards, half) -> None:
    message = training("evaluate", run, "--shards", half, code=2).stderr.strip()
    assert "\n" not in message
    assert "no object of test has a label" in message
    assert "--without-labels" in message
    options = ("--without-labels", "--json")
    blind = json.loads(typed("evaluate", run, "--shards", half, *options)[0])
    assert blind["n"] == 22
    assert blind["student"] is None
    with_labels = json.loads(typed("evaluate", run, "--shards", shards, "--json")[0])["analysis"]
    for who in ("student", "teacher"):
        for modality in ("image", "points"):
            with_labels[who][modality].pop("biasedness_balanced")
    assert blind["analysis"] == with_labels
    assert "agreement" in typed("evaluate", run, "--shards", half, "--without-labels")[0]


def test_classes_and_candidates(run, shards, found) -> None:
    everything, _ = found
    three = ["bottle", "chair", "mug"]
    options = ("--shards", shards, "--split", "train", "--json", "--classes", ",".join(three))
    among_all = json.loads(typed("evaluate", run, *options, "--candidates", "all")[0])
    assert len(among_all["classes"]) == 19
    expected = dict(zip(everything["classes"], everything["per_class"]["objects"], strict=True))
    assert among_all["n"] == sum(expected[name] for name in three)
    for column in ("image", "image_star", "points"):
        for number, name in enumerate(everything["classes"]):
            share = among_all["per_class"]["student"][column][number]
            assert share == (everything["per_class"]["student"][column][number] if name in three else None)
    among_three = json.loads(typed("evaluate", run, *options, "--candidates", "subset")[0])
    assert among_three["classes"] == three
    assert among_three["n"] == among_all["n"]
    assert among_three["student"]["points"] >= among_all["student"]["points"]
    message = typed("evaluate", run, "--shards", shards, "--classes", "medium", code=2)[1]
    assert "data.classes" in message
    assert "\n" not in message


def test_one_view_of_each_object_by_key(run, shards) -> None:
    options = ("--shards", shards, "--json", "data.num_views=1")
    result = json.loads(typed("evaluate", run, *options)[0])["student"]
    assert result["image"] == result["image_mean"] == result["image_star"]


def test_reader_processes_change_nothing(run, half) -> None:
    options = ("--shards", half, "--split", "train", "--json")
    alone, _ = typed("evaluate", run, *options)
    assert json.loads(alone)["n"] == 19
    assert typed("evaluate", run, *options, "--workers", 2)[0] == alone


def test_each_checkpoint_is_judged_by_the_views_of_its_own_seed(run, shards, tmp_path) -> None:
    """And its teacher by the teacher's weights: the student's, less sure, with columns moved by one."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    last = other / "checkpoints/step-00000002"
    recipe = (last / "recipe.toml").read_text()
    (last / "recipe.toml").write_text(recipe.replace("seed = 0\n", "seed = 5\n", 1))
    weights = load_file(last / "model.safetensors")
    changed = {"classifier": weights["classifier"].roll(1, 1), "logit_scale": weights["logit_scale"] - 3}
    save_file(weights | changed, last / "teacher.safetensors")
    checkpoints = [open_checkpoint(str(folder)) for folder in (run, other)]
    assert [checkpoint.recipe.seed for checkpoint in checkpoints] == [0, 5]
    first, second = examine(checkpoints, str(shards))
    same = torch.tensor([one_view(0, key, 3) == one_view(5, key, 3) for key in first.keys])
    assert 3 < same.sum() < len(same) - 3
    alike = (first.student.logits["image"] == second.student.logits["image"]).all(dim=1)
    assert torch.equal(alike, same)
    for name in ("image_star", "points"):
        torch.testing.assert_close(first.student.logits[name], second.student.logits[name])
    for name, logits in second.student.logits.items():
        torch.testing.assert_close(second.teacher.logits[name], logits.roll(1, 1) * math.exp(-3))
    single = examine(checkpoints, str(shards), options=Options(every_view=False))
    for one, every in zip(single, (first, second), strict=True):
        torch.testing.assert_close(one.student.logits["image"], every.student.logits["image"])
    both = [second.teacher.logits[name] for name in ("image", "points")]
    quality = pseudo_label_quality(*both, second.teacher.label, checkpoints[1].recipe.labels)
    (found,) = teacher_labels(checkpoints[1:], str(shards), "test")
    assert {name: found[name] for name in quality} == quality
    of_student = [second.student.logits[name] for name in ("image", "points")]
    assert pseudo_label_quality(*of_student, second.student.label, checkpoints[1].recipe.labels) != quality


def test_models_that_are_asked_rest(run) -> None:
    """No drop path, no batch norm that moves: the same question gets the same answer."""
    opened = open_models(open_checkpoint(str(run)))
    assert set(opened.models) == {"student", "teacher"}
    for model in opened.models.values():
        assert not any(module.training for module in model.modules())


def test_bfloat16_is_asked_for_and_near(run, shards) -> None:
    exact, near = (
        examine([open_checkpoint(str(run))], str(shards), options=Options(precision=precision))[0].student.logits
        for precision in ("fp32", "bf16")
    )
    for column, logits in exact.items():
        assert not torch.equal(near[column], logits)
        assert near[column].dtype == torch.float32
        torch.testing.assert_close(near[column], logits, atol=0.5, rtol=0.05)
    assert typed("evaluate", run, "--shards", shards, "--precision", "bf16")[0]
    examine([open_checkpoint(str(run))], str(shards))  # float32 again for the tests that follow


SHARED = """
import sys, torch
sys.path.insert(0, sys.argv[4])
from test_evaluate import examined
from training import distributed
distributed.start()
torch.save(examined(*sys.argv[1:3]), f"{sys.argv[3]}/{distributed.rank()}.pt")
distributed.finish()
"""


def examined(run: str, shards: str) -> dict:
    """Everything that both splits were answered."""
    found = {}
    for split in ("train", "test"):
        each = examine([open_checkpoint(run)], shards, split)[0]
        found[split] = {"keys": list(each.keys), "label": each.student.label.tolist(), "result": each.result()}
        for who, answers in each.models.items():
            found[split][who] = {**answers.logits, "views_right": answers.views_right}
    return found


def test_two_processes_answer_what_one_does(run, half, tmp_path) -> None:
    """To the last bit, with one batch for two processes (test) and objects without labels (train)."""
    out = relabelled(half, tmp_path / "out", lambda key, label: 0 if key.endswith("3") else label)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started, path = [], {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests/support'}", "OMP_NUM_THREADS": "1"}
    for rank in range(2):
        own = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        values = os.environ | path | {name: str(value) for name, value in own.items()}
        command = [sys.executable, "-c", SHARED, *map(str, (run, out, tmp_path, Path(__file__).parent))]
        started.append(subprocess.Popen(command, env=values, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = examined(str(run), str(out))
    torch.set_num_threads(threads)
    for process in started:
        _, words = process.communicate(timeout=200)
        assert process.returncode == 0, words
    for rank in range(2):
        other = torch.load(tmp_path / f"{rank}.pt")
        for split in ("train", "test"):
            assert other[split]["keys"] == one[split]["keys"]
            assert other[split]["label"] == one[split]["label"]
            assert other[split]["result"] == one[split]["result"]
            for who in ("student", "teacher"):
                for name, value in one[split][who].items():
                    assert torch.equal(other[split][who][name], value), (split, who, name)
    assert len(one["train"]["keys"]) >= 19
    assert len(one["test"]["keys"]) >= 1


@pytest.mark.slow
def test_torchrun_prints_what_one_process_prints(training, run, shards) -> None:
    options = ("evaluate", str(run), "--shards", str(shards), "--split", "train", "--json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "training", *options]
    several = subprocess.run(command, env=training.environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert several.returncode == 0, several.stderr
    assert json.loads(several.stdout) == json.loads(training(*options).stdout)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("data.split=train",), "data.split=train: of {command} the flag says it: --split train"),
        (("data.workers=1", "--workers", "0"), "data.workers=1: of {command} the flag says it: --workers 0"),
        (("data.classes=[mug]", "--classes", "mug"), "data.classes"),
        (("data.candidates=all", "--candidates", "subset", "--classes", "mug"), "data.candidates=all"),
    ],
)
def test_what_a_flag_says_is_said_once(shards, run, tmp_path, changes, words) -> None:
    """A key that a flag of the same command sets was read, and the flag's own value printed."""
    for command, more in (("evaluate", ("--json",)), ("embed", ("--out", tmp_path / "f.npz"))):
        if command == "evaluate" or not {"--classes", "--candidates"} & set(changes):
            _, line = typed(command, run, "--shards", shards, *more, *changes, code=2)
            assert words.format(command=command) in line
