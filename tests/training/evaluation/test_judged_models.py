"""What evaluate takes: a pre-trained run, weights without a run, other prompts; and what it refuses in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_towers import tiny
from training_runs import ONE_STEP, typed
from weight_files import register, save_ulip

import training
from training.settings.fit_recipe import CrossMostRecipe
from training.weights.open_models import as_trained

CAPTIONS = 'prompts=["{}"]'
SIZES = ("--recipe", "small_cross_most", "points.depth=1", "data.num_points=64")


@pytest.fixture(scope="module", autouse=True)
def tiny_towers() -> Iterator[None]:
    with tiny():
        yield


def judged(source: object, shards: Path, *more: object) -> dict[str, Any]:
    return json.loads(typed("evaluate", source, "--shards", shards, "--json", *more)[0])


def probed(source: object, shards: Path, *more: object) -> dict[str, Any]:
    return json.loads(typed("probe", source, "--shards", shards, "--json", *more)[0])


@pytest.fixture(scope="module")
def pretrained(shards, tmp_path_factory) -> Path:
    """Two steps of pre-training, whose captions are the bare class names."""
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    typed("fit", "small_pretrain", "--shards", shards, "--run", folder, *ONE_STEP, "optimizer.steps=2", CAPTIONS)
    return folder


@pytest.fixture(scope="module")
def adapted(shards, pretrained, tmp_path_factory) -> Path:
    """A step of Cross-MoST after it; step 0 is zero-shot."""
    folder = tmp_path_factory.mktemp("runs") / "cross_most"
    typed("fit", "small_cross_most", "--shards", shards, "--run", folder, *ONE_STEP, f"init.all={pretrained}")
    return folder


@pytest.fixture(scope="module")
def zero_shot(shards, adapted) -> dict[str, Any]:
    return judged(adapted / "checkpoints/step-00000000", shards)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[str, Path]:
    """A small CLIP: its name and a file of its weights."""
    folder = tmp_path_factory.mktemp("clip")
    name = register(folder, "judged-small", 64, text={"vocab_size": 49408})
    torch.manual_seed(0)
    state = open_clip.create_model(name).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "clip.safetensors")
    return name, folder / "clip.safetensors"


def test_a_pretrained_run_is_judged_as_cross_most_begins(shards, pretrained, zero_shot) -> None:
    """By the default prompts, not by its captions; `prompts=` says others, and captions give other answers."""
    found = judged(pretrained, shards)
    assert found["student"] == zero_shot["student"]
    assert found["analysis"]["student"] == zero_shot["analysis"]["student"]
    assert found["prompts"] == ["a photo of a {}.", "a 3D model of a {}."]
    captions = judged(pretrained, shards, CAPTIONS)
    assert captions["prompts"] == ["{}"]
    assert captions["analysis"] != found["analysis"]
    assert zero_shot["prompts"] is None


@pytest.mark.slow
def test_predict_and_load_ask_a_pretrained_run_by_the_same_prompts(shards, pretrained, adapted) -> None:
    rows = [
        json.loads(typed("predict", run, "--shards", shards, "--json")[0])
        for run in (pretrained, adapted / "checkpoints/step-00000000")
    ]
    assert rows[0] == rows[1]
    cloud = torch.rand(64, 3)
    names = training.load(adapted).classes
    before, after = (
        training.load(path).classify(points=cloud, classes=names).probabilities
        for path in (pretrained, adapted / "checkpoints/step-00000000")
    )
    torch.testing.assert_close(before, after)


def test_weights_without_a_run_are_judged_as_a_run_that_begins_with_them(
    shards, pretrained, zero_shot, tmp_path
) -> None:
    file = pretrained / "checkpoints/step-00000002/model.safetensors"
    views = "data.views=rgb12"
    for source, keys in (
        (file, ()),
        (f"init.all={pretrained}", ()),
        (f"init.points={pretrained}", (f"init.image={file}", views)),
    ):
        found = judged(source, shards, *keys, *SIZES)
        assert found["student"] == zero_shot["student"], source
        assert found["teacher"] is None
    training.load(pretrained).save(tmp_path / "saved.safetensors")
    assert judged(tmp_path / "saved.safetensors", shards)["student"] == zero_shot["student"]
    wrong = typed("evaluate", tmp_path / "saved.safetensors", "--shards", shards, "init.image=openai", code=2)[1]
    assert "init=... is for weights without a run" in wrong


def test_a_bare_clip_is_judged_by_its_pictures_alone(shards, clip, tmp_path) -> None:
    """Its point tower is random: no figure is told of it. The pictures' are those of a run that begins with it."""
    name, file = clip
    keys = (f"image.model={name}", "data.num_points=64")
    run = tmp_path / "run"
    more = (f"init.image={file}", "mask.image_cell=16")
    typed("fit", "small_cross_most", "--shards", shards, "--run", run, *ONE_STEP, *keys, "image.stem=patch", *more)
    expected = judged(run / "checkpoints/step-00000000", shards)
    options = ("evaluate", file, "--shards", shards, "data.views=rgb12", *keys, "--out", tmp_path / "out")
    shown, said = typed(*options)
    assert "points are not judged: no weights give their tower and its projection (init.points=FILE)" in said
    assert "an open_clip model" in said
    rows = {line.split("│")[1].strip(): line.split("│")[2:6] for line in shown.splitlines() if line.startswith("│")}
    assert rows["student, top 1"][3].strip() == "-"
    assert float(rows["student, top 1"][0]) == round(expected["student"]["image"], 1)
    assert max(map(len, shown.splitlines())) <= 100
    found = json.loads((tmp_path / "out/evaluate.json").read_text())
    for column in ("image", "image_mean", "image_star"):
        assert found["student"][column] == expected["student"][column]
        assert found["student"]["interval"]["top1"][column] == expected["student"]["interval"]["top1"][column]
    assert found["student"]["points"] is found["student"]["top3"]["points"] is None
    assert found["analysis"]["student"]["image"] == expected["analysis"]["student"]["image"]
    assert found["analysis"]["student"]["points"] is found["analysis"]["student"]["joint"] is None
    assert found["pseudo_labels"] is None
    assert set(found["per_class"]["student"]["points"]) == {None}
    assert not (tmp_path / "out/confusion_student_points.csv").exists()
    assert (tmp_path / "out/histogram_student.png").stat().st_size > 1000
    asked = ("--features", "image", "--without-random")
    bare = probed(file, shards, "data.views=rgb12", *keys, *asked)
    assert bare["rows"] == probed(run / "checkpoints/step-00000000", shards, *asked)["rows"]
    assert (bare["width"], bare["n_train"]) == (64, 38)


def test_a_points_file_and_a_clip_are_judged_together(shards, clip, golden, tmp_path) -> None:
    """A point tower that is aligned to another picture tower is refused, taken as it is, or left out."""
    name, file = clip
    state = load_file(golden / "method" / "crossmost_small" / "state_dict.safetensors")
    ours = {key: value for key, value in state.items() if key.startswith(("point_encoder.", "pc_projection"))}
    ulip = save_ulip(tmp_path / "ulip.pt", ours | {"visual.cls_token": torch.zeros(1, 1, 96)})
    sizes = ("groups=16", "group_size=8", "tokenizer_width=64", "width=96", "depth=2", "heads=3")
    keys = (f"image.model={name}", *(f"points.{size}" for size in sizes), "data.views=rgb12", "data.num_points=64")
    options = ("evaluate", ulip, "--shards", shards, f"init.image={file}", *keys)
    assert "init.other_space=drop" in typed(*options, code=2)[1]
    kept = json.loads(typed(*options, "--json", "init.other_space=keep")[0])
    assert kept["student"]["points"] is not None
    dropped, said = typed(*options, "--json", "init.other_space=drop")
    assert json.loads(dropped)["student"]["points"] is None
    assert "points are not judged" in said
    own = "module.transformer_q."
    tower = {name.replace("point_encoder.", own): value for name, value in ours.items() if "encoder" in name}
    torch.save({"base_model": tower}, tmp_path / "point_bert.pth")
    asked = (*keys, "--space", "own", "--features", "points", "--without-random")
    assert probed(ulip, shards, *asked)["rows"] == probed(tmp_path / "point_bert.pth", shards, *asked)["rows"]
    alone = typed("evaluate", ulip, "--shards", shards, *keys, code=2)[1]
    assert alone.endswith(
        "ulip.pt holds no image tower, and no text tower to make the classifier from: init.image=TAG or FILE"
    )


def test_other_prompts_of_a_checkpoint(shards, pretrained, adapted, tmp_path) -> None:
    """They are those that a run with the key begins with. Without the text tower it is refused, naming the file."""
    other, first = "prompts=a blurred {} on a table", "checkpoints/step-00000000"
    run = tmp_path / "run"
    typed("fit", "small_cross_most", "--shards", shards, "--run", run, *ONE_STEP, f"init.all={pretrained}", other)
    expected = judged(run / first, shards)
    found = judged(adapted / first, shards, other)
    assert found["student"] == expected["student"]
    assert found["analysis"] == expected["analysis"] != judged(adapted / first, shards)["analysis"]
    assert found["prompts"] == ["a blurred {} on a table"]
    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy)
    (copy / "text/text.safetensors").unlink()
    assert judged(copy, shards)["prompts"] is None
    message = typed("evaluate", copy, "--shards", shards, other, code=2)[1]
    assert message == (
        f"{copy}/text/text.safetensors is missing, which prompts need: `fit` wrote this text tower beside the "
        "checkpoints; copy it from there"
    )


def test_classes_by_a_key_as_by_the_flag(shards, adapted) -> None:
    flag = judged(adapted, shards, "--classes", "bottle,chair,mug")
    assert judged(adapted, shards, "classes=bottle,chair,mug") == flag
    assert flag["classes"] == ["bottle", "chair", "mug"]


@pytest.mark.parametrize(
    ("source", "more", "words"),
    [
        ("RUN", ("image.model=ViT-B-16",), "image=... is for weights without a run: RUN brings its own towers"),
        ("RUN", ("--recipe", "modelnet40"), "--recipe is for weights without a run"),
        (
            "RUN",
            ("seed=1",),
            "evaluate takes keys of data, prompts, classes, views_weight, image, init, points, not seed",
        ),
        ("RUN", ("prompts=no_such_set",), "no_such_set is no prompt with {}, no shipped set"),
        ("RUN", ("classes=mug", "--classes", "mug"), "classes=mug: --classes or data.classes says it already"),
        ("RUN", ("init=openai",), "init=...: name a key of init"),
        ("CLIP", (), "data.views=NAME is needed: "),
        ("CLIP", ("init.image=x", "data.views=rgb12"), "init.image=x: CLIP says it already"),
        ("CLIP", ("points.size=2", "data.views=rgb12"), "unknown key points.size"),
        ("ViT-B-16:openai", ("data.views=rgb12",), "needs QuickGELU: image.model=ViT-B-16-quickgelu"),
        ("openai", (), "data.views=NAME is needed: "),
        ("nobody", (), "nobody is no checkpoint and no run with one (no model.safetensors), no file"),
    ],
)
def test_what_does_not_fit_is_one_line(shards, adapted, clip, source: str, more: tuple[str, ...], words: str) -> None:
    paths = {"RUN": str(adapted), "CLIP": str(clip[1])}
    _, message = typed("evaluate", paths.get(source, source), "--shards", shards, *more, code=2)
    assert "\n" not in message
    for name, path in paths.items():
        words = words.replace(name, path)
    assert words in message


def test_towers_answer_as_they_were_trained_on_a_gpu_alone(shards, adapted) -> None:
    cuda, cpu, recipe = torch.device("cuda"), torch.device("cpu"), CrossMostRecipe(precision="bf16")
    assert [as_trained(recipe, device) for device in (cuda, cpu)] == ["bf16", "fp32"]
    assert as_trained(CrossMostRecipe(), cuda) == "fp32"
    assert as_trained(recipe, cuda, "fp32") == "fp32"
    assert as_trained(recipe, cpu, "bf16") == "bf16"
    assert judged(adapted, shards, "--precision", "bf16")["precision"] == "bf16"
    assert "step 1, fp32" in typed("evaluate", adapted, "--shards", shards)[0]
