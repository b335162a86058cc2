"""training.load: a checkpoint from Python gives the features and answers that evaluation gives."""

from __future__ import annotations

import doctest
import json
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from builders import REPOSITORY, stored
from PIL import Image

import renderers
import training as program
from manifests.errors import Refused
from manifests.samples import decode_array, decode_picture
from training.evaluation import classifier
from training.evaluation.evaluate import examine
from training.weights.checkpoint import open_checkpoint

METHODS = ("preprocess", "fit_cloud", "encode_image", "encode_points", "encode_text", "classify", "state_dict", "save")
FEW = ("data.num_points=128", "optimizer.batch_size=4", "optimizer.steps=2", "points.depth=1", "tensorboard=false")


@pytest.fixture(scope="module")
def run(training, shards: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    training("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW)
    return folder


@pytest.fixture(scope="module")
def examined(run: Path, shards: Path):
    return examine([open_checkpoint(str(run))], str(shards), "test")[0]


@pytest.fixture(scope="module")
def objects(shards: Path, examined):
    """The test objects' first clouds and views, in the order of the examination."""
    shapes, views = stored(shards), stored(shards, "rgb12")
    clouds = [decode_array(shapes[key].members["points.npy"]) for key in examined.keys]
    pictures = [decode_picture(views[key].members["v00.rgb.jpg"]) for key in examined.keys]
    return clouds, pictures


def test_clouds_are_answered_as_evaluation_answers_them(run, examined, objects) -> None:
    for who, answers in (("student", examined.student), ("teacher", examined.teacher)):
        model = program.load(run, who=who)
        assert model.classes == examined.classes
        found = model.classify(points=objects[0])
        torch.testing.assert_close(found.probabilities, answers.logits["points"].softmax(dim=1), atol=1e-5, rtol=0)
        assert found.names == tuple(model.classes[i] for i in found.label.tolist())
        assert not found.from_image.any()


def test_pictures_of_every_form_give_the_same_features(run, objects) -> None:
    model, arrays = program.load(run), objects[1][:3]
    features = model.encode_image(np.stack(arrays))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    for form in ([Image.fromarray(a) for a in arrays], arrays, torch.stack([model.preprocess(a) for a in arrays])):
        torch.testing.assert_close(model.encode_image(form), features)
    torch.testing.assert_close(model.encode_image(Image.fromarray(arrays[1])), features[1:2])
    clear = Image.fromarray(arrays[1]).convert("RGBA")
    torch.testing.assert_close(model.encode_image(clear), features[1:2])


def test_pictures_are_answered_as_evaluation_answers_them(run, examined, objects) -> None:
    """One view of the evaluation's own choice for each object."""
    from training.evaluation.evaluate import one_view

    model, seed = program.load(run), open_checkpoint(str(run)).recipe.seed
    numbers = [i for i, key in enumerate(examined.keys) if one_view(seed, key, 3) == 0]
    assert len(numbers) > 3
    found = model.classify([objects[1][i] for i in numbers])
    wanted = examined.student.logits["image"][numbers].softmax(dim=1)
    torch.testing.assert_close(found.probabilities, wanted, atol=1e-5, rtol=0)


def test_of_both_the_surer_answers(run, objects) -> None:
    model = program.load(run)
    image, points = model.classify(objects[1]), model.classify(points=objects[0])
    both = model.classify(objects[1], objects[0])
    surer = image.confidence >= points.confidence
    assert torch.equal(both.from_image, surer)
    assert torch.equal(both.confidence, torch.maximum(image.confidence, points.confidence))
    assert torch.equal(both.label, torch.where(surer, image.label, points.label))
    with pytest.raises(ValueError, match="pictures and 2 clouds"):
        model.classify(objects[1], objects[0][:2])
    for wrong in ({}, {"pictures": objects[1], "image": objects[1]}, {"image": objects[1], "views": objects[1]}):
        with pytest.raises(ValueError, match="needs image"):
            model.classify(**wrong)


def test_views_are_answered_as_evaluation_answers_them(run, examined, shards) -> None:
    """Of all objects at once, and of one; drawn views and stored ones; clouds beside them."""
    model, stored_views = program.load(run), stored(shards, "rgb12")
    views = [[decode_picture(stored_views[key].members[f"v{i:02}.rgb.jpg"]) for i in range(3)] for key in examined.keys]
    wanted = examined.student.logits["image_star"].softmax(dim=1)
    found = model.classify(views=views).probabilities
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    for one in (views[0], np.stack(views[0]), [Image.fromarray(each) for each in views[0]]):
        torch.testing.assert_close(model.classify(views=one).probabilities, wanted[:1], atol=1e-5, rtol=0)
    clouds = [decode_array(stored(shards)[key].members["points.npy"]) for key in examined.keys[:2]]
    both = model.classify(views=views[:2], points=clouds)
    torch.testing.assert_close(
        both.confidence, torch.maximum(found[:2].amax(1), model.classify(points=clouds).confidence)
    )
    with pytest.raises(ValueError, match="2 objects and 1 cloud: as many"):
        model.classify(views=views[:2], points=clouds[0])


def test_drawn_views_are_pictures(run) -> None:
    """As their RGB is; depth by its mapping, that of world depth as a share of the camera's range."""
    model, box = program.load(run), trimesh.creation.box((1, 0.7, 0.4))
    drawn, turned = (renderers.draw(box, "rgb12", image_size=64, azimuth_deg=[at, at + 90]) for at in (0, 30))
    features = model.encode_image(list(drawn.rgb))
    torch.testing.assert_close(model.encode_image(drawn), features)
    torch.testing.assert_close(model.encode_image(torch.from_numpy(drawn.pictures)), features)
    torch.testing.assert_close(model.encode_image(drawn.pictures[0]), features[:1])
    assert model.encode_image([drawn, turned, drawn.rgb[0]]).shape == (5, 128)
    answers = model.classify(views=[drawn, turned])
    torch.testing.assert_close(answers.probabilities[1:], model.classify(views=turned).probabilities)
    points = np.random.default_rng(0).normal(size=(200, 3)) / 4
    world = renderers.draw(points, "pointclip10", image_size=32)
    codes = [np.rint(each.transpose(1, 2, 0) / world.cameras[0].far * 255).astype(np.uint8) for each in world.pictures]
    assert world.pictures.max() > 1
    torch.testing.assert_close(model.encode_image(world), model.encode_image(codes))


def test_files_are_pictures(run, objects, tmp_path) -> None:
    model, picture = program.load(run), Image.fromarray(objects[1][0])
    picture.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    feature = model.encode_image(picture)
    torch.testing.assert_close(model.encode_image(tmp_path / "a.png"), feature)
    torch.testing.assert_close(model.encode_image([str(tmp_path / "a.png"), picture]), feature.repeat(2, 1))
    for name, words in (("b.png", "no picture, or a damaged one"), ("c.png", "no such file")):
        with pytest.raises(ValueError, match=f"{name}: {words}") as caught:
            model.encode_image(tmp_path / name)
        assert caught.value.__suppress_context__


def test_what_is_normalised_already_stays_as_it_is(run, objects) -> None:
    """Also a picture whose numbers all happen to be those of a picture that is not."""
    model = program.load(run)
    grey = model.preprocess(np.full((64, 64, 3), 160, np.uint8))
    assert 0 <= grey.min() <= grey.max() <= 1
    wanted = model.encode_image(np.full((64, 64, 3), 160, np.uint8))
    torch.testing.assert_close(model.encode_image(torch.stack([grey, grey])), wanted.repeat(2, 1))
    plain = torch.from_numpy(model.preprocess(objects[1][0]).numpy().copy())
    torch.testing.assert_close(model.encode_image(plain[None]), model.encode_image(objects[1][0]))


def test_answers_and_models_show_themselves_in_one_line(run, objects) -> None:
    model = program.load(run)
    answers = model.classify(points=objects[0][:5])
    first = f"{answers.names[0]} {float(answers.confidence[0]):.0%} by points"
    assert repr(answers).startswith(f"Answers({first}, ")
    assert repr(answers).endswith(", ... 5 in all)")
    assert repr(model).startswith("Classifier(cross_most, step 2 of parametric, 19 classes, pictures of 48 x 48, ")


@pytest.mark.parametrize("name", ["load", "Answers", "Classifier", *METHODS])
def test_every_public_name_has_an_example_that_works(run, tmp_path, monkeypatch, name: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    found = {"load": program.load}.get(name) or getattr(classifier.Classifier, name, None) or getattr(classifier, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(found, name, classifier, globs={})
    assert test.examples
    assert doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test).failed == 0


def test_other_names_are_answered_by_the_text_tower(run, objects) -> None:
    model = program.load(run / "checkpoints" / "step-00000000")
    wanted = model.classify(points=objects[0]).probabilities  # of an untrained run the classifier is the text's
    names = tuple(model.checkpoint.prompt_names)
    assert torch.allclose(model.classify(points=objects[0], classes=names).probabilities, wanted, atol=1e-5)
    text = model.encode_text(["a photo of a mug.", "a 3D model of a mug."])
    assert text.shape == (2, 128)
    assert not torch.allclose(text[0], text[1])


def test_clouds_of_any_size_and_unit(run, objects) -> None:
    model, cloud = program.load(run), objects[0][0]
    feature = model.encode_points(cloud)
    torch.testing.assert_close(model.encode_points(cloud * 37 + 5), feature, atol=2e-4, rtol=0)
    assert model.encode_points([cloud[:40], cloud, torch.from_numpy(cloud[:200])]).shape == (3, 128)
    assert model.fit_cloud(np.random.default_rng(0).normal(size=(5000, 3))).shape == (128, 3)
    for wrong in (cloud[:, :2], np.full((9, 3), np.nan), np.zeros((0, 3))):
        with pytest.raises(ValueError, match="a cloud is"):
            model.encode_points([wrong])
    nan = np.full((3, 8, 8), np.nan, np.float32)
    for wrong in ([np.zeros((8, 8), np.uint8)], np.zeros((8, 8, 3), np.float32), nan, [], 7, "", np.float64(3)):
        with pytest.raises(ValueError, match=r"a picture is uint8|no picture is given|no such file") as caught:
            model.encode_image(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="float pictures outside 0 to 1"):
        model.encode_image(torch.full((1, 3, 8, 8), 2.0))


def test_one_file_holds_everything(run, objects, tmp_path, training, shards) -> None:
    model = program.load(run, who="teacher")
    model.save(tmp_path / "model.safetensors")
    again = program.load(tmp_path / "model.safetensors")
    assert again.classes == model.classes
    assert torch.equal(
        again.classify(points=objects[0][:4]).probabilities, model.classify(points=objects[0][:4]).probabilities
    )
    assert torch.equal(again.encode_image(objects[1][:2]), model.encode_image(objects[1][:2]))
    assert torch.equal(again.encode_text("a mug"), model.encode_text("a mug"))
    begun = f"init.all={tmp_path / 'model.safetensors'}"
    out = training("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", *FEW, begun)
    assert f"{begun}: a checkpoint of this program, " in out.stderr
    (told,) = json.loads((tmp_path / "run" / "run.json").read_text())["weights"]
    assert (told["key"], told["kind"], told["missing"], told["left_over"]) == ("init.all", "ours", [], ["classifier"])
    assert told["loaded"] > 100
    next_run = program.load(tmp_path / "run" / "checkpoints" / "step-00000000")
    assert torch.equal(next_run.encode_points(objects[0][:2]), model.encode_points(objects[0][:2]))


def test_a_run_of_before_there_were_other_weights_is_loaded(run, objects, tmp_path) -> None:
    """Its recipe has the one key init.all, and run.json says nothing of weights or of how pictures are normalised."""
    old = tmp_path / "old"
    shutil.copytree(run, old)
    last = sorted((old / "checkpoints").iterdir())[-1]
    text = (last / "recipe.toml").read_text()
    (last / "recipe.toml").write_text(re.sub(r"\[init\]\n(.+\n)+", '[init]\nall = ""\n', text))
    about = json.loads((old / "run.json").read_text())
    about = {name: value for name, value in about.items() if name not in ("weights", "pixel_mean", "pixel_deviation")}
    (old / "run.json").write_text(json.dumps(about))
    model, now = program.load(old), program.load(run)
    assert torch.equal(model.encode_image(objects[1][:2]), now.encode_image(objects[1][:2]))
    assert torch.equal(model.encode_points(objects[0][:2]), now.encode_points(objects[0][:2]))


def test_what_is_no_checkpoint_is_one_line(run, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    for path, words in ((tmp_path / "none", "is no checkpoint"), (tmp_path / "notes.txt", "is no run, no checkpoint")):
        with pytest.raises(Refused, match=words):
            program.load(path)
    with pytest.raises(Refused, match="has no recipe in it"):
        program.load(run / "text" / "text.safetensors")


def test_a_refusal_has_no_other_traceback_above_it(run, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/run.json").write_text("{")
    with pytest.raises(Refused, match=r"run\.json is damaged") as caught:
        program.load(tmp_path / "run")
    assert "direct cause" not in "".join(traceback.format_exception(caught.value))


def test_importing_the_program_is_light() -> None:
    code = "import training, sys; assert not {'torch', 'numpy', 'open_clip'} & set(sys.modules); training.load"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
