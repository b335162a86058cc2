"""embed as a person types it: the arrays of a file, both models, every view, objects without labels, pictures."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import REPOSITORY
from PIL import Image
from training_runs import typed

from training.evaluation import embed as embedding
from training.evaluation.evaluate import examine
from training.evaluation.features import gathered
from training.plots.scatter import class_colours, scatter_picture
from training.weights.checkpoint import open_checkpoint
from training.weights.open_models import open_models

FEW = (
    "data.num_points=64",
    "optimizer.batch_size=8",
    "optimizer.steps=2",
    "optimizer.lr=0.02",
    "log_every=2",
    "points.depth=1",
    "tensorboard=false",
)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file}


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    typed("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    return folder


@pytest.fixture(scope="module")
def found(training, shards, run, tmp_path_factory) -> dict[str, np.ndarray]:
    """What the command wrote about the train split, every view of it."""
    out = tmp_path_factory.mktemp("embedded") / "inside" / "train.npz"
    training("embed", run, "--shards", shards, "--out", out, "--split", "train", "--per-view")
    return arrays(out)


def test_arrays(found) -> None:
    shapes = {
        "keys": (38,),
        "image": (38, 128),
        "points": (38, 128),
        "views": (38, 3, 128),
        "num_views": (38,),
        "label": (38,),
        "classes": (19,),
    }
    about = {"dataset": "parametric", "split": "train", "who": "student", "step": 2, "precision": "fp32"}
    assert {name: value.shape for name, value in found.items()} == shapes | dict.fromkeys(about, ())
    assert {name: found[name].item() for name in about} == about
    assert all(found[name].dtype == np.float32 for name in ("image", "points", "views"))
    named = [str(found["classes"][label]) for label in found["label"]]
    assert named == [str(key).rpartition("_")[0] for key in found["keys"]]
    for name in ("points", "views"):
        np.testing.assert_allclose(np.linalg.norm(found[name], axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found["image"], found["views"].mean(axis=1), atol=1e-6)
    assert np.linalg.norm(found["image"], axis=1).max() < 1 + 1e-5


def test_features_give_the_logits_of_evaluate(found, run, shards) -> None:
    """The classifier of the checkpoint times these features is what evaluate answers."""
    checkpoint = open_checkpoint(str(run))
    model = open_models(checkpoint, "student").models["student"]
    examined = examine([checkpoint], str(shards), "train")[0]
    assert list(found["keys"]) == list(examined.keys)
    points = model.points_logits(torch.from_numpy(found["points"]))
    image = model.image_logits(torch.nn.functional.normalize(torch.from_numpy(found["image"]), dim=1))
    torch.testing.assert_close(points.detach(), examined.student.logits["points"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(image.detach(), examined.student.logits["image_star"], atol=1e-4, rtol=1e-4)


def test_the_teacher_is_another_and_a_step_0_has_the_same(found, run, shards, tmp_path) -> None:
    out = tmp_path / "teacher.npz"
    typed("embed", run, "--shards", shards, "--out", out, "--split", "train", "--who", "teacher")
    teacher = arrays(out)
    assert "views" not in teacher
    assert np.abs(teacher["points"] - found["points"]).max() > 1e-4
    first = run / "checkpoints/step-00000000"
    for who in ("student", "teacher"):
        typed("embed", first, "--shards", shards, "--out", tmp_path / f"{who}.npz", "--who", who)
    both = [arrays(tmp_path / f"{who}.npz") for who in ("student", "teacher")]
    np.testing.assert_array_equal(both[0]["image"], both[1]["image"])


def test_objects_without_labels_are_kept(run, tmp_path) -> None:
    from builders import Commands, write_off

    for number in range(4):
        write_off(tmp_path / "source" / f"thing_{number}.off", size=1 + number)
    out = tmp_path / "out"
    changes = ("num_points=64", "fps_prefix=32", 'views={rgb12={image_size=32, name="rgb12", azimuth_deg=[0, 90]}}')
    Commands(REPOSITORY)("build", "meshes", "--source", tmp_path / "source", "--out", out, "--workers", 0, *changes)
    typed("embed", run, "--shards", out, "--split", "all", "--out", tmp_path / "f.npz", "--picture", "tsne")
    found = arrays(tmp_path / "f.npz")
    assert found["label"].tolist() == [-1] * 4
    assert found["label"].dtype == np.int64
    assert found["classes"].shape == (0,)
    assert found["num_views"].tolist() == [2] * 4
    with Image.open(tmp_path / "f.tsne.png") as picture:
        assert picture.width > 1000


def test_a_picture_is_the_same_again_and_shows_both_modalities(run, shards, tmp_path) -> None:
    pictures = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.npz"
        typed("embed", run, "--shards", shards, "--out", out, "--picture", "tsne")
        pictures.append((tmp_path / f"{name}.tsne.png").read_bytes())
    assert pictures[0] == pictures[1]
    with Image.open(io.BytesIO(pictures[0])) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    label = arrays(tmp_path / "a.npz")["label"]
    squares = {tuple(round(255 * part) for part in class_colours(19)[number]) for number in set(label.tolist())}
    assert squares <= colours  # of the legend


def test_a_picture_of_many_objects_draws_some_of_all(monkeypatch) -> None:
    """Not the first ones, which are of the first shards: the legend has the class of the others, too."""
    monkeypatch.setattr(embedding, "DRAWN", 8)
    rng, label = np.random.default_rng(0), np.array([0] * 8 + [1] * 40)
    features = rng.normal(size=(2, 48, 16)).astype(np.float32)
    keys, about = tuple(f"k{n}" for n in range(48)), {"dataset": "d", "split": "s", "step": 1, "who": "student"}
    given = embedding.Embedding(keys, *features, np.ones(48, np.int64), label, ("a", "b"), None, about)
    with Image.open(io.BytesIO(embedding.picture(given, "tsne"))) as page:
        colours = {colour for _, colour in page.convert("RGB").getcolors(2**24)}
    assert tuple(round(255 * part) for part in class_colours(2)[1]) in colours


def test_views_that_are_not_there_are_zero() -> None:
    """In a file of objects with different numbers of views, also where whole batches have fewer."""
    found = gathered([torch.ones(2, 3, 4), torch.ones(1, 2, 4)], 3, 4)
    assert (found[:2] == 1).all()
    assert (found[2, :2] == 1).all()
    assert (found[2, 2] == 0).all()


def test_a_legend_of_forty_classes_fits() -> None:
    rng = np.random.default_rng(0)
    label, names = np.arange(80) % 40, [f"class_{number:02d}" for number in range(40)]
    page = scatter_picture({name: rng.normal(size=(80, 2)) for name in ("image", "points")}, label, names, "forty")
    with Image.open(io.BytesIO(page)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for edge in (pixels[:, -4:], pixels[-4:], pixels[:2]):
        assert (edge == 255).all()  # nothing is cut off
    assert len({tuple(colour) for colour in class_colours(40)}) == 40


def test_what_is_refused_is_one_line_before_any_work(run, shards, tmp_path, monkeypatch) -> None:
    options = ("embed", run, "--shards", shards, "--out")
    _, words = typed(*options, tmp_path / "f.npy", code=2)
    assert "must end in .npz" in words
    there = importlib.util.find_spec
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: None if name == "umap" else there(name))
    _, words = typed(*options, tmp_path / "f.npz", "--picture", "umap", code=2)
    assert words == "--picture umap needs umap-learn: pip install umap-learn"
    assert not list(tmp_path.iterdir())
    assert "data.split=tset" in typed(*options, tmp_path / "f.npz", "--split", "tset", code=2)[1]
    assert "embed takes keys of data, points, not seed" in typed(*options, tmp_path / "f.npz", "seed=1", code=2)[1]
    assert "name a key of data" in typed(*options, tmp_path / "f.npz", "data=5", code=2)[1]


@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(20, 8)) + 9, rng.normal(size=(20, 8)) - 9])
    plane = embedding.in_plane(features / np.linalg.norm(features, axis=1, keepdims=True), "umap", 0)
    assert plane.shape == (40, 2)


def test_tsne_keeps_what_is_near_together() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(20, 8)) + 9, rng.normal(size=(20, 8)) - 9])
    plane = embedding.in_plane(features / np.linalg.norm(features, axis=1, keepdims=True), "tsne", 0)
    middles = plane[:20].mean(axis=0), plane[20:].mean(axis=0)
    spread = np.linalg.norm(plane[:20] - middles[0], axis=1).max()
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * spread


@pytest.mark.slow
def test_two_processes_write_what_one_does(run, shards, found, tmp_path) -> None:
    out = tmp_path / "two.npz"
    options = ("embed", run, "--shards", shards, "--out", out, "--split", "train", "--per-view")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "training"]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*command, *map(str, options)], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, value in arrays(out).items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
