"""predict as a person types it: files that the pipeline draws, clouds, bad files, other classes, shards."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from builders import REPOSITORY, Commands
from training_runs import ONE_STEP, typed

import training
from manifests.install import install_command
from manifests.layout import read_view_set
from manifests.presets import load_preset, preset_names
from manifests.samples import read_samples
from pipeline.formats.mesh import MESH_SUFFIXES
from pipeline.formats.point_cloud import CLOUD_SUFFIXES
from training.evaluation import predict
from training.evaluation.evaluate import examine
from training.evaluation.predict import BuildKeys
from training.weights.checkpoint import open_checkpoint
from training.weights.open_models import warn_of_new_words

KEYS = {"file", "label", "confidence", "surer", "towers", "top5", "error"}


def rows(*arguments: object, code: int = 0) -> list[dict]:
    return json.loads(typed("predict", *arguments, "--json", code=code)[0])


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "rgb"
    typed("fit", "small_cross_most", "--shards", shards, "--run", folder, *ONE_STEP)
    return folder


@pytest.fixture(scope="module")
def of_points(shards, tmp_path_factory) -> Path:
    """A run on depth pictures of points, which clouds can be drawn like."""
    folder = tmp_path_factory.mktemp("runs") / "depth"
    changes = ("data.views=depth10", "data.channel=depth")
    typed("fit", "small_cross_most", "--shards", shards, "--run", folder, *ONE_STEP, *changes)
    return folder


@pytest.fixture(scope="module")
def files(shards, tmp_path_factory) -> Path:
    """A mesh of the shards as they store it, and other people's files."""
    folder = tmp_path_factory.mktemp("files")
    tar = sorted((shards / "meshes").glob("test-*.tar"))[0]
    with open(tar, "rb") as file:
        _, sample = next(read_samples(file))
    (folder / f"{sample.key}.glb").write_bytes(sample.members["mesh.glb"])
    trimesh.creation.box((1, 2, 3)).export(folder / "a box.off")
    (folder / "bad.stl").write_bytes(b"solid nothing\nendsolid")
    np.save(folder / "cloud.npy", np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
    return folder


def test_files_are_drawn_as_in_training_and_bad_ones_say_why(run, files, shards) -> None:
    """An object of the shards, given as a file, gets the answers that it gets from its shard."""
    (mesh,) = files.glob("*.glb")
    given = [mesh, files / "a box.off", files / "bad.stl", files / "cloud.npy", files / "none.obj"]
    typed_order = given[::-1]  # those without an answer come first: each answer has its own file
    found = rows(run, *typed_order, code=1)
    assert [row["file"] for row in found] == [str(path) for path in typed_order]
    found.reverse()
    assert all(set(row) == KEYS for row in found)
    assert [row["error"] is None for row in found] == [True, True, False, True, False]
    assert [row["towers"] for row in found] == [["image", "points"]] * 2 + [[], ["points"], []]
    assert "bad.stl" not in found[2]["error"]
    assert found[4]["error"] == "no such file"
    assert found[2]["label"] is found[2]["confidence"] is found[2]["surer"] is None
    for row in found[:2]:
        confidences = [each["confidence"] for each in row["top5"]]
        assert len(confidences) == 5
        assert confidences == sorted(confidences, reverse=True)
        assert {name: row[name] for name in ("label", "confidence")} == row["top5"][0]
        assert row["surer"] in ("image", "points")
    stored = {row["file"]: row for row in rows(run, "--shards", shards)}[mesh.stem]
    mine = {each["label"]: each["confidence"] for each in found[0]["top5"]}
    theirs = {each["label"]: each["confidence"] for each in stored["top5"]}
    assert found[0]["surer"] == stored["surer"]
    for label in set(mine) & set(theirs):
        assert mine[label] == pytest.approx(theirs[label], abs=0.02)  # the surface is sampled anew
    assert len(set(mine) & set(theirs)) >= 3


def test_shards_without_labels_being_read(run, shards, tmp_path) -> None:
    found = rows(run, "--shards", shards)
    examined = examine([open_checkpoint(str(run))], str(shards))[0]
    assert [row["file"] for row in found] == list(examined.keys)
    logits = examined.student.logits
    image, points = (logits[name].softmax(dim=1).max(dim=1) for name in ("image_star", "points"))
    for number, row in enumerate(found):
        surer = image if image.values[number] >= points.values[number] else points
        assert row["surer"] == ("image" if surer is image else "points")
        assert row["label"] == examined.classes[int(surer.indices[number])]
        assert row["confidence"] == pytest.approx(float(surer.values[number]), abs=1e-4)
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    for tar in (out / "shapes").glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b'"label"', b'"lebal"'))
        record = json.loads(tar.with_suffix(".json").read_text())
        older = {name: value for name, value in record.items() if name not in ("sizes", "checks")}
        tar.with_suffix(".json").write_text(json.dumps(older))
    assert [row["label"] for row in rows(run, "--shards", out)] == [row["label"] for row in found]
    table, _ = typed("predict", run, "--shards", shards, "--who", "teacher")
    assert "next best" in table


def test_the_surer_modality_answers() -> None:
    """With its own label and confidence, sorted; a tie is the image's."""
    names = ("mug", "bowl", "chair")
    image, sure = torch.tensor([0.2, 0.7, 0.1]), torch.tensor([0.05, 0.05, 0.9])
    found = predict._row({"image": image, "points": sure}, names)
    assert (found["label"], found["confidence"], found["surer"]) == ("chair", 0.9, "points")
    found = predict._row({"image": sure, "points": image}, names)
    assert (found["label"], found["confidence"], found["surer"]) == ("chair", 0.9, "image")
    found = predict._row({"image": image, "points": image.flip(0)}, names)
    assert (found["label"], found["surer"], found["error"]) == ("bowl", "image", None)
    top = [("bowl", 0.7), ("mug", 0.2), ("chair", 0.1)]
    assert [(each["label"], each["confidence"]) for each in found["top5"]] == top


def test_other_classes_come_from_text(run, shards) -> None:
    names = ["coffee_mug", "spaceship"]
    found = rows(run, "--shards", shards, "--classes", ",".join(names))
    assert {each["label"] for row in found for each in row["top5"]} == set(names)
    assert all(len(row["top5"]) == 2 for row in found)
    assert all(abs(sum(each["confidence"] for each in row["top5"]) - 1) < 1e-3 for row in found)
    assert "comes twice" in typed("predict", run, "--shards", shards, "--classes", "a,a", code=2)[1]


def test_clouds_where_the_preset_draws_points(of_points, files) -> None:
    (row,) = rows(of_points, files / "cloud.npy")
    assert (row["error"], row["towers"]) == (None, ["image", "points"])
    assert row["label"] in open_checkpoint(str(of_points)).classes


def test_clouds_where_the_preset_draws_meshes_are_the_point_towers(run, shards, files, tmp_path) -> None:
    """In every format, and a mesh's file without faces, beside a mesh: as the points of the object's own shard."""
    tar = sorted((shards / "shapes").glob("test-*.tar"))[0]
    with open(tar, "rb") as file:
        _, sample = next(read_samples(file))
    points = np.load(io.BytesIO(sample.members["points.npy"]))
    np.save(tmp_path / "a.npy", points)
    np.savetxt(tmp_path / "a.xyz", points)
    np.savetxt(tmp_path / "a.txt", points)
    head = f"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {len(points)}\nHEIGHT 1\n"
    (tmp_path / "a.pcd").write_bytes(f"{head}POINTS {len(points)}\nDATA binary\n".encode() + points.tobytes())
    trimesh.PointCloud(points).export(tmp_path / "scan.ply")
    (tmp_path / "a.obj").write_text("".join(f"v {x} {y} {z}\n" for x, y, z in points))
    clouds = sorted(tmp_path.iterdir())
    found = rows(run, *clouds, files / "a box.off")
    assert [(row["towers"], row["error"]) for row in found[:-1]] == [(["points"], None)] * len(clouds)
    assert {row["surer"] for row in found[:-1]} == {"points"}
    assert found[-1]["towers"] == ["image", "points"]
    model = training.load(run)
    answers = model.classify(points=points)
    for row in found[:-1]:
        assert (row["label"], row["confidence"]) == (
            answers.names[0],
            pytest.approx(float(answers.confidence), abs=0.02),
        )
    table, _ = typed("predict", run, clouds[0])
    assert "towers" in table
    assert f" {answers.names[0]} " in table


def test_objects_of_shards_without_a_mesh_are_the_point_towers(run, tmp_path) -> None:
    """`predict --shards` of a build of clouds, whose mesh preset skipped every object."""
    for name in ("one", "two"):
        (tmp_path / "in").mkdir(exist_ok=True)
        np.save(tmp_path / "in" / f"{name}.npy", np.random.default_rng(len(name)).normal(size=(300, 3)))
    keys = ("num_points=256", "fps_prefix=128", "views={rgb12={image_size=32, name='rgb12'}}")
    Commands(REPOSITORY)(
        "build", "points", "--source", tmp_path / "in", "--out", tmp_path / "out", "--workers", 0, *keys
    )
    found = rows(run, "--shards", tmp_path / "out", "--split", "all")
    assert sorted(row["file"] for row in found) == ["one_npy", "two_npy"]
    assert [(row["towers"], row["error"]) for row in found] == [(["points"], None)] * 2


def test_a_link_is_read_by_its_own_name(run, files, tmp_path) -> None:
    """As in a hub's cache, where the file behind it has no suffix; other links in its folder do not matter."""
    (tmp_path / "snap").mkdir()
    (tmp_path / "blobs").mkdir()
    shutil.copy(files / "a box.off", tmp_path / "blobs" / "0a")
    (tmp_path / "snap" / "box.off").symlink_to("../blobs/0a")
    (tmp_path / "snap" / "other.off").symlink_to(files / "a box.off")
    (row,) = rows(run, tmp_path / "snap" / "box.off")
    assert (row["error"], row["towers"]) == (None, ["image", "points"])


def test_the_preset_and_shapes_of_the_checkpoint_are_built(run, shards, files, tmp_path) -> None:
    drawn = BuildKeys.of(open_checkpoint(str(run)))
    assert drawn.shape_keys == {"seed": 0, "num_points": 256, "fps_prefix": 128, "normalize": "sphere_mean_points"}
    out = predict._build(tmp_path, drawn, "meshes", ("y", "z", "x"), {"box": str(files / "a box.off")}, 0)
    mine, trained = (read_view_set(str(each), "rgb12") for each in (out, shards))
    assert mine.preset == trained.preset != load_preset("rgb12")[1]
    (record,) = (out / "shapes").glob("*.json")
    assert json.loads(record.read_text())["keys"] == ["box"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["axes"] == ["y", "z", "x"]
    assert manifest["recipe"]["num_points"] == 256


def test_a_folder_is_all_files_in_it_and_a_page_shows_them(run, files, tmp_path) -> None:
    """At any depth, in any letter case, sorted; the page has pictures and three answers of each, or what is wrong."""
    inside = tmp_path / "mine" / "deep"
    inside.mkdir(parents=True)
    shutil.copy(files / "a box.off", inside / "BOX.OFF")
    shutil.copy(files / "cloud.npy", tmp_path / "mine" / "a&<b>.npy")
    shutil.copy(files / "bad.stl", tmp_path / "mine" / "bad.stl")
    for name in ("notes.md", "more.md", "LICENSE", ".hidden.off"):
        (tmp_path / "mine" / name).write_text("no shape")
    page = tmp_path / "page.html"
    told, said = typed("predict", run, tmp_path / "mine", "--html", page, "--json", code=1)
    found = json.loads(told)
    names = ["a&<b>.npy", "bad.stl", "deep/BOX.OFF"]
    assert [row["file"] for row in found] == [f"{tmp_path / 'mine'}/{name}" for name in names]
    assert f"{tmp_path / 'mine'}: 3 files, 3 others passed over (.md 2, no suffix 1)" in said
    text = page.read_text()
    cloud, bad, box = text.split("<article>")[1:]
    assert "a&amp;&lt;b&gt;.npy" in cloud
    assert [part.count('src="data:image/jpeg;base64,') for part in (cloud, bad, box)] == [1, 0, 4]
    assert found[1]["error"] in bad
    for part, row in ((cloud, found[0]), (box, found[2])):
        shown = [f"<span>{each['label']}</span><span>{100 * each['confidence']:.1f} %" for each in row["top5"]]
        assert [line in part for line in shown] == [True] * 3 + [False] * 2
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.md").write_text("")
    words = f"{tmp_path / 'none'}: no mesh or cloud in it, 1 other passed over (.md 1)"
    assert typed("predict", run, tmp_path / "none", code=2)[1] == words


def test_the_formats_of_a_folder_are_those_that_a_build_reads() -> None:
    assert {*predict.MESHES, *predict.CLOUDS} == {*MESH_SUFFIXES, *CLOUD_SUFFIXES}
    assert set(predict.CLOUDS) == set(CLOUD_SUFFIXES) - set(MESH_SUFFIXES)


def test_a_page_of_shards(run, shards, tmp_path) -> None:
    typed("predict", run, "--shards", shards, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    count = text.count("<article>")
    assert f"<p>{count} objects, 0 without an answer." in text
    assert count > 20
    assert text.count('src="data:image/jpeg;base64,') == count * 4  # three views and the cloud


def test_words_that_a_small_text_tower_never_saw(run, shards, caplog) -> None:
    """A warning names them and what it knows; CLIP's tower, which saw most words, is asked without."""
    asked = ("predict", run, "--shards", shards, "--classes")
    assert (
        "never saw spaceship, coffee, so what it says of such classes is chance; it knows airplane, "
        in (typed(*asked, "mug,spaceship,coffee_mug")[1])
    )
    assert "never saw" not in typed(*asked, "Mug,chair")[1]
    checkpoint = open_checkpoint(str(run))
    clips = checkpoint.recipe.image.model_copy(update={"model": "ViT-B-32"})
    recipe = checkpoint.recipe.model_copy(update={"image": clips})
    caplog.clear()
    warn_of_new_words(replace(checkpoint, recipe=recipe), ["spaceship"])
    assert not caplog.records
    warn_of_new_words(checkpoint, ["spaceship"])
    assert len(caplog.records) == 1


def test_a_build_without_classes_is_embedded_and_predicted_and_evaluate_says_so(run, files, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("one.off", "two.off"):
        shutil.copy(files / "a box.off", tmp_path / "in" / name)
    keys = ("num_points=256", "fps_prefix=128", "views={rgb12={image_size=32, name='rgb12'}}")
    out = tmp_path / "out"
    Commands(REPOSITORY)("build", "meshes", "--source", tmp_path / "in", "--out", out, "--workers", 0, *keys)
    told = typed("embed", run, "--shards", out, "--split", "all", "--out", tmp_path / "f.npz")[1]
    assert "2 objects, 128 features each" in told
    asked = ("--shards", out, "--split", "all")
    assert {row["label"] for row in rows(run, *asked, "--classes", "mug,chair")} <= {"mug", "chair"}
    named = ("--classes", "mug,chair")
    assert "--without-labels gives what can be said" in typed("evaluate", run, *asked, *named, code=2)[1]
    assert "n=2" in typed("evaluate", run, *asked, *named, "--classes-from-text", "--without-labels")[0]
    for more in ((), ("--classes-from-text",), ("--without-labels",)):
        assert (
            "names no class to be right about: `predict --classes A,B` and `embed`"
            in (typed("evaluate", run, *asked, *more, code=2)[1])
        )


def test_which_way_is_up(files) -> None:
    there = [str(files / "a box.off"), str(next(files.glob("*.glb"))), str(files / "cloud.npy"), "/nowhere"]
    turned, plain = ("y", "z", "x"), ("x", "y", "z")
    assert predict._groups(there, turned, "") == {
        ("meshes", turned): [0],
        ("meshes", plain): [1],
        ("points", turned): [2],
    }
    assert predict._groups(there, plain, "y,z,x") == {("meshes", turned): [0, 1], ("points", turned): [2]}


def test_every_preset_that_is_drawn_survives_the_recipe_of_a_build() -> None:
    for name in preset_names():
        preset = load_preset(name)[1]
        if preset.reads:
            continue
        changed = preset.model_copy(update={"image_size": 96})
        keys = {"seed": 3, "num_points": 64, "fps_prefix": 8, "normalize": "none"}
        text = BuildKeys("mine", changed, keys, ()).recipe("meshes", Path("list.jsonl"), ("y", "z", "x"))
        ((base, changes),) = tomllib.loads(text)["views"].items()
        assert load_preset(base, changes) == ("mine", changed), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "FILEs or --shards"),
        (("a.off", "--shards", "b"), "one of the two"),
        (("a.off", "--axes", "y,z"), "three signed axes"),
        (("a.off", "--axes", "y,x,z"), "mirror"),
    ],
)
def test_refusals_are_one_line(run, arguments: tuple, words: str) -> None:
    _, message = typed("predict", run, *arguments, code=2)
    assert words in message
    assert "\n" not in message


def test_a_run_that_does_not_say_how_to_draw(run, files, tmp_path) -> None:
    old = tmp_path / "run"
    shutil.copytree(run, old)
    about = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({name: about[name] for name in about if name != "preset"}))
    _, message = typed("predict", old, files / "a box.off", code=2)
    assert "predict with --shards" in message
    frames = load_preset("frames20")[1].model_dump(mode="json")
    (old / "run.json").write_text(json.dumps(about | {"preset": frames, "view_set": "frames20"}))
    assert "not drawn: predict --shards" in typed("predict", old, files / "a box.off", code=2)[1]


def test_a_machine_without_the_pipelines_libraries_is_told_what_to_type(run, files, tmp_path, monkeypatch) -> None:
    (tmp_path / "trimesh.py").write_text("raise ModuleNotFoundError(\"No module named 'trimesh'\", name='trimesh')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    _, message = typed("predict", run, files / "a box.off", code=2)
    assert install_command("build") in message
    assert "\n" not in message


def test_a_file_that_takes_the_process_with_it_is_tried_in_a_child(run, files, tmp_path, monkeypatch) -> None:
    """The build in one process dies by a signal; the second one isolates its objects."""
    calls = tmp_path / "calls"
    wrapper = tmp_path / "python"
    wrapper.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n'
        f'case "$@" in *"--workers 0"*) kill -SEGV $$;; esac\nexec {sys.executable} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setattr(predict.sys, "executable", str(wrapper))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (row,) = rows(run, files / "a box.off")
    assert row["error"] is None
    assert [line.split("--workers ")[1] for line in calls.read_text().splitlines()] == ["0", "1"]


def test_the_exit_code_of_a_build_counts_and_not_its_words(run, files, tmp_path, monkeypatch) -> None:
    """A build that the machine stopped may say anything; the same command goes on later."""
    wrapper = tmp_path / "python"
    wrapper.write_text("#!/bin/sh\necho 'disk full: No module named store; is missing: pip install' >&2\nexit 3\n")
    wrapper.chmod(0o755)
    monkeypatch.setattr(predict.sys, "executable", str(wrapper))
    assert typed("predict", run, files / "a box.off", code=3)[1].startswith("disk full")
    wrapper.write_text("#!/bin/sh\necho 'views: refused' >&2\nexit 2\n")
    assert typed("predict", run, files / "a box.off", code=2)[1] == "python -m pipeline build: views: refused"


def test_objects_without_views_are_rows_and_no_warning(run, shards, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    path = out / "views/rgb12/test-00000.json"
    record = json.loads(path.read_text())
    gone = record["keys"].pop(0)
    record["offsets"].pop(0)
    for name in ("sizes", "checks"):
        record[name] = {suffix: numbers[1:] for suffix, numbers in record[name].items()}
    record["failures"] = [{"key": gone, "id": gone, "stage": "render", "reason": "planted"}]
    path.write_text(json.dumps(record))
    told, warned = typed("predict", run, "--shards", out, "--json", code=1)
    assert [row["error"] for row in json.loads(told) if row["file"] == gone] == ["render: planted"]
    assert warned == ""
    assert "1 object left out" in typed("evaluate", run, "--shards", out, "--json")[1]
