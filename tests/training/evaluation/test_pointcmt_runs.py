"""Runs of PointCMT's stages in every command: what it answers of them, or the line in which it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_backbones import filled
from pointcmt_stages import SHORT, STUDENT, VIEWS, begun
from safetensors.torch import load_file
from tiny_towers import tiny
from torch import Tensor
from training_runs import typed

from training import load
from training.data.point_augment import scaled_clouds
from training.evaluation import evaluate
from training.weights.checkpoint import open_checkpoint
from training.weights.run_folder import step_folders


@pytest.fixture(scope="module", autouse=True)
def small_towers() -> Iterator[None]:
    with tiny():
        yield


def embedded(run: Path, shards: Path, out: Path, *more: object) -> dict[str, np.ndarray]:
    typed("embed", run, "--shards", shards, "--out", out, *more)
    with np.load(out) as file:
        return {name: file[name] for name in file}


def test_votes_scale_the_stored_cloud_each_time_anew(shards: Path, stages: dict[str, Path], monkeypatch) -> None:
    """U(0.85, 1.15) an axis: the released range, without its product over votes."""
    factors: list[Tensor] = []

    def watched(clouds: Tensor, *how: object) -> Tensor:
        found = scaled_clouds(clouds, *how)
        factors.append((found / clouds).nanmedian(dim=1).values)
        return found

    monkeypatch.setattr(evaluate, "scaled_clouds", watched)
    (found,) = evaluate.examine(
        [open_checkpoint(str(stages["pointcmt"]))], str(shards), options=evaluate.Options(votes=9)
    )
    drawn = torch.stack(factors)  # (votes but the first, objects, axes)
    assert drawn.shape == (8, 22, 3)
    assert 0.85 < float(drawn.min()) < 0.86
    assert 1.14 < float(drawn.max()) < 1.15
    assert float(drawn.std(dim=0).min()) > 0.02
    assert found.votes == 9


@pytest.mark.slow
def test_what_embed_and_probe_read_of_each_stage(shards: Path, stages: dict[str, Path], tmp_path: Path) -> None:
    """Of stage I and II the largest feature over views, of stage III the points' own; no tower that was not trained."""
    pictures = embedded(stages["multiview"], shards, tmp_path / "pictures.npz", "--per-view")
    assert pictures["points"].shape == (0, pictures["points"].shape[1])
    np.testing.assert_array_equal(pictures["image"], pictures["views"].max(axis=1))
    np.testing.assert_array_equal(
        embedded(stages["cross_modal_generator"], shards, tmp_path / "generator.npz")["image"], pictures["image"]
    )
    clouds = embedded(stages["pointcmt"], shards, tmp_path / "clouds.npz", "--picture", "tsne")
    assert len(clouds["image"]) == 0
    head = load(stages["pointcmt"]).model.points_head
    (found,) = evaluate.examine([open_checkpoint(str(stages["pointcmt"]))], str(shards))
    with torch.inference_mode():
        logits = head(torch.from_numpy(clouds["points"]))
    torch.testing.assert_close(logits, found.student.logits["points"], rtol=1e-4, atol=1e-4)
    for method, features, width in (("multiview", "image", 512), ("pointcmt", "points", 64)):
        asked = ("--shards", shards, "--features", features, "--without-random", "--json")
        assert json.loads(typed("probe", stages[method], *asked)[0])["width"] == width


@pytest.mark.parametrize(
    ("method", "command", "words"),
    [
        ("multiview", ("evaluate", "--votes", 3), "--votes 3 are of clouds, and"),
        pytest.param(
            "multiview", ("evaluate", "--classes-from-text"), "answers by heads of its own", marks=pytest.mark.slow
        ),
        pytest.param(
            "pointcmt", ("evaluate", "--classes-from-text"), "answers by heads of its own", marks=pytest.mark.slow
        ),
        ("multiview", ("probe",), "a run of method=multiview trains no points: --features image"),
        pytest.param(
            "cross_modal_generator",
            ("probe",),
            "method=cross_modal_generator trains no points: --features image",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "multiview",
            ("probe", "--features", "image", "--space", "clip"),
            "no shared space: --space own",
            marks=pytest.mark.slow,
        ),
        pytest.param("pointcmt", ("probe", "--space", "clip"), "no shared space: --space own", marks=pytest.mark.slow),
        ("pointcmt", ("probe", "--retrieval"), "a run of method=pointcmt trains no image: --features points"),
        ("pointcmt", ("predict", "--classes", "mug,bowl"), "answers by heads of its own"),
        pytest.param(
            "pointcmt", ("report",), "was trained with labels: it can be the --oracle alone", marks=pytest.mark.slow
        ),
    ],
)
def test_what_a_stage_cannot_answer_is_one_line(shards: Path, stages, tmp_path: Path, method, command, words) -> None:
    name, *flags = command
    said = typed(name, stages[method], "--shards", shards, *flags, code=2)[1]
    assert words in said
    assert "\n" not in said


@pytest.mark.slow
def test_predictions_are_by_the_tower_that_a_stage_trains(shards: Path, stages: dict[str, Path]) -> None:
    for method, tower in (("multiview", "image"), ("pointcmt", "points")):
        rows = json.loads(typed("predict", stages[method], "--shards", shards, "--json")[0])
        assert {tuple(row["towers"]) for row in rows} == {(tower,)}
    with pytest.raises(ValueError, match="method=pointcmt did not train its image tower"):
        load(stages["pointcmt"]).classify(image=[np.zeros((40, 40, 3), np.uint8)])


def released(golden: Path, folder: Path, classes: int) -> dict[str, Path]:
    """PointCMT's mvcnn.t7 and cmpg.pth: the names of its state dicts, one of them through DataParallel."""
    shapes = json.loads((golden / "method" / "pointcmt_stages" / "mvcnn_resnet18.keys.json").read_text())
    shapes |= {"fc.0.weight": [classes, 512], "fc.0.bias": [classes]}
    teacher = {f"module.{name}": filled(name, shapes[name], j, 3) for j, name in enumerate(sorted(shapes))}
    files = {"teacher": folder / "mvcnn.t7", "generator": folder / "cmpg.pth"}
    torch.save(teacher, files["teacher"])
    torch.save({"fc_l.1.weight": filled("fc_l.1.weight", [192, 512], 0, 4)}, files["generator"])
    return files


def test_a_student_learns_from_the_released_files(golden: Path, shards: Path, tmp_path: Path) -> None:
    files = released(golden, tmp_path, 19)
    keys = (*VIEWS, *SHORT, *STUDENT, *(f"init.{key}={file}" for key, file in files.items()))
    said = typed("fit", "pointcmt", "--shards", shards, "--run", tmp_path / "run", *keys, "generator.form=linear")[1]
    assert "mvcnn.t7: PointCMT's picture network or its generator, 122 tensors loaded" in said
    state = load_file(step_folders(tmp_path / "run")[-1] / "model.safetensors")
    given = {name.removeprefix("module."): value for name, value in torch.load(files["teacher"]).items()}
    assert state["image.visual.layer4.1.conv2.weight"].equal(given["net.7.1.conv2.weight"].float())
    assert state["image.visual.bn1.running_var"].equal(given["net.1.running_var"].float())
    assert state["image_head.weight"].equal(given["fc.0.weight"].float())
    assert state["generator.fc_l.1.weight"].equal(torch.load(files["generator"])["fc_l.1.weight"].float())
    for file in files.values():
        assert "not usable here: init.teacher takes mvcnn.t7 and init.generator cmpg.pth" in typed("weights", file)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "changes", "words"),
    [
        (40, ("generator.form=linear",), "image_head.weight is (40, 512), this recipe's (19, 512)"),
        (19, (), "cmpg.pth: generator.fc_l.0.weight is missing"),
        (19, ("generator.form=linear", "data.num_points=128"), "fc_l.1.weight is (192, 512), this recipe's (384, 512)"),
    ],
)
def test_released_files_that_do_not_fit(golden: Path, shards: Path, tmp_path: Path, classes, changes, words) -> None:
    files = released(golden, tmp_path, classes)
    keys = (*VIEWS, *SHORT, *STUDENT, *(f"init.{key}={file}" for key, file in files.items()))
    said = typed("fit", "pointcmt", "--shards", shards, "--run", tmp_path / "run", *keys, *changes, code=2)[1]
    assert words in said
    assert not (tmp_path / "run").exists()
    typed("fit", "pointcmt", "--shards", shards, "--run", tmp_path / "run", *keys, "init.teacher=nowhere", code=2)


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("multiview", ("optimizer.accumulate=2",), "image.backbone=resnet18 learns batch norms, which need the whole"),
        pytest.param(
            "multiview",
            ("optimizer.batch_size=1",),
            "image.backbone=resnet18 learns batch norms, which need two",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "multiview", ("data.views=rgb20",), "has no such view set (it has: depth10, rgb12)", marks=pytest.mark.slow
        ),
        ("pointcmt", ("optimizer.accumulate=2",), "points.backbone=pointnet need the whole batch"),
        pytest.param(
            "pointcmt",
            ("optimizer.batch_size=1",),
            "points.backbone=pointnet learns batch norms, which need two",
            marks=pytest.mark.slow,
        ),
        ("pointcmt", ("init.teacher=nowhere",), "init.teacher=nowhere is no checkpoint and no run with one"),
        ("pointcmt", ("data.num_points=128",), "generator.fc_l.5.weight is (192, 1024), this recipe's (384, 1024)"),
    ],
)
def test_stages_that_cannot_be_trained_so(shards: Path, stages, tmp_path: Path, method, changes, words) -> None:
    given = {change.partition("=")[0]: change for change in (*VIEWS, *SHORT, *begun(method, stages), *changes)}
    said = typed("fit", method, "--shards", shards, "--run", tmp_path / "run", *given.values(), code=2)[1]
    assert words in said
    assert "\n" not in said


@pytest.mark.slow
def test_a_generator_takes_a_batch_in_parts_and_a_batch_of_one(shards: Path, stages, tmp_path: Path) -> None:
    """Nothing in it knows another object: the teacher rests."""
    whole = load_file(step_folders(stages["cross_modal_generator"])[-1] / "model.safetensors")
    keys = (*VIEWS, *SHORT, f"init.teacher={stages['multiview']}")
    run = "fit", "cross_modal_generator", "--shards", shards, "--run"
    typed(*run, tmp_path / "parts", *keys, "optimizer.accumulate=2")
    parts = load_file(step_folders(tmp_path / "parts")[-1] / "model.safetensors")
    for name in (name for name in whole if name.startswith("generator.")):
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-5)
    typed(*run, tmp_path / "one", *(key for key in keys if "batch_size" not in key), "optimizer.batch_size=1")


@pytest.mark.slow
def test_a_share_of_each_class_and_the_cost_of_a_sample(shards: Path, stages, tmp_path: Path) -> None:
    keys = (*VIEWS, *(key for key in SHORT if "steps" not in key), *begun("pointcmt", stages), "optimizer.epochs=1")
    run = "fit", "pointcmt", "--shards", shards, "--run"
    typed(*run, tmp_path / "few", *keys, "data.fraction=0.5", "optimizer.batch_size=4")
    assert json.loads((tmp_path / "few" / "run.json").read_text())["objects"] == 19
    assert evaluated_accuracies(tmp_path / "few", shards).keys() == {"points", "mean_per_class"}
    cost = json.loads(typed(*run, tmp_path / "dry", *keys, "--dry-run", "--json")[0])
    assert cost["ms_per_sample"] == pytest.approx(1000 * cost["step_seconds"] / 8, rel=0.01, abs=0.01)


def evaluated_accuracies(run: Path, shards: Path) -> dict[str, float]:
    """Overall and mean per class, of the points."""
    found = json.loads(typed("evaluate", run, "--shards", shards, "--json")[0])["student"]
    return {"points": found["points"], "mean_per_class": found["mean_per_class"]["points"]}
