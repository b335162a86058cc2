"""PointCMT's three stages: the released steps on golden data, and the chain of runs by the real commands."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_backbones import filled, with_weights
from pointcmt_stages import SHORT, STUDENT, VIEWS
from safetensors.torch import load_file
from tiny_towers import tiny
from torch import Tensor, nn
from training_runs import evaluated, typed

from training import load
from training.data.batch import normalized
from training.data.dataset import open_source
from training.data.whole_split import SplitReader
from training.evaluation.evaluate import examine
from training.models.clip import pixel_statistics
from training.models.cross_modal import CrossModalModel
from training.models.resnet import ResNetTower
from training.networks.cloud_generator import CloudGenerator, SharedSpaceHead
from training.networks.pointnet2 import PointCmtPointNet2
from training.objectives.distillation import divergence, normalised_feature_error
from training.objectives.pointcmt import transfer
from training.objectives.transport import earth_movers_distance
from training.settings.objective import GeneratorSettings, TransferSettings
from training.settings.point_set_networks import PointCmtSettings
from training.weights.checkpoint import open_checkpoint
from training.weights.run_folder import step_folders

RELEASED = TransferSettings(box_scale="released", detach_target=False)


def case(golden: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    folder = golden / "method" / "pointcmt_stages"
    arrays = {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}.npz").items()}
    return arrays, json.loads((folder / "meta.json").read_text())["cases"][name]


def linear_generator(points: int) -> CloudGenerator:
    made = CloudGenerator(512, points, GeneratorSettings(form="linear")).double()
    weight = filled("fc_l.1.weight", [3 * points, 512], 0, 4)
    made.load_state_dict({"fc_l.1.weight": weight.double()})
    return made


def test_the_released_teacher(golden: Path) -> None:
    """Upstream's `net` is a list of torchvision's modules: 0 the convolution, 1 its norm, 4 to 7 the stages."""
    arrays, meta = case(golden, "mvcnn_resnet18")
    shapes = json.loads((golden / "method" / "pointcmt_stages" / "mvcnn_resnet18.keys.json").read_text())
    gain = (meta["gain"] / 6) ** 0.5  # of the filling rule, for weights of more than one axis
    weights = {name: filled(name, shapes[name], j, meta["salt"]) for j, name in enumerate(sorted(shapes))}
    weights = {name: value * gain if value.ndim > 1 else value for name, value in weights.items()}
    places = {"net.0": "conv1", "net.1": "bn1", **{f"net.{4 + stage}": f"layer{1 + stage}" for stage in range(4)}}
    tower, head = ResNetTower("resnet18", 8, 64).eval(), nn.Linear(512, 40)
    named = {}
    for name, value in weights.items():
        place = next((ours for theirs, ours in places.items() if name.startswith(f"{theirs}.")), None)
        if place is not None:
            named[f"{place}.{name.split('.', 2)[2]}"] = value
    tower.visual.load_state_dict(named)
    head.load_state_dict({name: weights[f"fc.0.{name}"] for name in ("weight", "bias")})
    views = arrays["multiview"]
    with torch.inference_mode():
        feature = tower(views.flatten(0, 1)).cls.unflatten(0, views.shape[:2]).amax(dim=1)
        logits = head(feature)
    for value, name in ((feature, "feature_f32"), (logits, "logits_f32")):
        torch.testing.assert_close(value, arrays[name], rtol=2e-5, atol=2e-5 * float(arrays[name].abs().max()))
    assert sum(p.numel() for p in (*tower.visual.parameters(), *head.parameters())) == meta["parameters"]


def test_the_released_steps_of_the_generator(golden: Path) -> None:
    arrays, meta = case(golden, "generator_steps")
    generator = linear_generator(64)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3, weight_decay=1e-4)
    for number, expected in enumerate(meta["steps"]):
        made = generator(arrays[f"step{number}.image_feature"])
        distance = earth_movers_distance(made, arrays[f"step{number}.cloud"].double(), "mean", "released").mean()
        assert distance.item() == pytest.approx(expected["emd"], rel=1e-9)
        optimizer.zero_grad()
        (30 * distance).backward()
        assert generator.fc_l[1].weight.grad.norm().item() == pytest.approx(expected["grad_norm"], rel=1e-7)
        optimizer.step()
    torch.testing.assert_close(generator.fc_l[1].weight[:12].detach(), arrays["after3.weight"], rtol=1e-7, atol=1e-9)


def test_the_rows_of_the_tables(golden: Path) -> None:
    """Hinton's, PointCMT's as printed and as released, both normalisations; what teaches gets no gradient."""
    arrays, meta = case(golden, "kd_rows")
    points, image = (arrays[f"{name}_feature"].requires_grad_() for name in ("point", "image"))
    answers = {
        of: lambda feature, of=of: feature @ arrays[f"{of}_cls_weight"].T + arrays[f"{of}_cls_bias"]
        for of in ("point", "image")
    }
    own = answers["point"](points)
    found = {
        "hinton_eq6_batchmean": divergence(own, answers["image"](image)),
        "classifier_eq7_batchmean": divergence(own, answers["point"](image)),
        "classifier_released_sum": divergence(own, answers["point"](image), "sum"),
        "normalize1_eq11_per_dim_ddof0": normalised_feature_error(points, image, "moments"),
        "normalize2_eq12": normalised_feature_error(points, image, "norm"),
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: meta["values"][name] for name in found}, rel=1e-9
    )
    sum(found.values()).backward()
    assert image.grad is None
    assert points.grad.norm() > 0
    divergence(own.detach(), answers["point"](image), detach=False).backward()
    assert image.grad.norm() > 0  # released: the target learns, too


def test_the_released_losses_and_their_gradients(golden: Path) -> None:
    """The batch of `pointcmt`: the released target learns, the printed one does not."""
    folder = golden / "method" / "pointcmt"
    stored = {name: torch.from_numpy(value) for name, value in np.load(folder / "losses.npz").items()}
    expected = json.loads((folder / "expected.json").read_text())["results"]["f64"]
    generator = CloudGenerator(512, 128, GeneratorSettings(form="linear")).double()
    generator.load_state_dict({"fc_l.1.weight": stored["decoder_weight"].double()})
    head = SharedSpaceHead(512, 512, 40, ready=True).double()
    head.load_state_dict({f"classify.{of}": stored[f"cls_{of}"].double() for of in ("weight", "bias")})
    own = stored["pc_feature"].double().requires_grad_()
    model, picture = SimpleNamespace(generated=generator), stored["mv_feature"].double()
    found = transfer(model, head, own, picture, torch.zeros(6, 40), stored["label"], RELEASED)
    names = {"classifier": "cle_kl_sum", "feature": "fe_emd", "points": "ce_smooth"}
    values = {names[name]: value.item() for name, value in found.terms.items()} | {"total": found.total.item()}
    assert values == pytest.approx(expected, rel=1e-9)
    found.total.backward()
    for value, name in ((own, "pc_feature"), (head.classify.weight, "cls_weight"), (head.classify.bias, "cls_bias")):
        torch.testing.assert_close(value.grad, stored[f"grad_{name}_f64"], rtol=1e-7, atol=1e-9)
    printed = TransferSettings(box_scale="released")
    still = transfer(model, head, own, picture, torch.zeros(6, 40), stored["label"], printed)
    assert still.total.item() == pytest.approx(found.total.item())
    (gradient,) = torch.autograd.grad(still.total, head.classify.weight)
    assert not torch.allclose(gradient, stored["grad_cls_weight_f64"])


@pytest.mark.slow
def test_the_released_steps_of_a_student(golden: Path) -> None:
    """Two steps of PointNet++ on one batch, its released optimiser, in float64."""
    arrays, meta = case(golden, "student_steps")
    shapes = json.loads((golden / "method" / "backbones" / "pointnet2_msg_pointcmt.keys.json").read_text())
    weights = {n: filled(n, shapes[n], j, meta["salt_student"]) for j, n in enumerate(sorted(shapes))}
    tower = PointCmtPointNet2(PointCmtSettings(), 8)
    tower, own_head = with_weights(tower, tower.classification_head(40), weights)
    head = SharedSpaceHead(512, 512, 40, ready=True)
    head.classify.load_state_dict(own_head.model["fc_layer2"][0].state_dict())
    tower.double().train()
    head.double().train()
    generator = linear_generator(64).requires_grad_(False)
    trained = [p for name, p in tower.named_parameters() if name != "projection"] + list(head.parameters())
    optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=0.05)
    model, picture = SimpleNamespace(generated=generator), arrays["image_feature"]
    for number, expected in enumerate(meta["steps"]):
        own = head.feature(tower.represent(arrays["points"].double()))
        found = transfer(model, head, own, picture, torch.zeros(4, 40), arrays["label"], RELEASED)
        if not number:
            torch.testing.assert_close(own, arrays["step0.point_feature"], rtol=1e-8, atol=1e-8)
        values = {n: found.terms[k].item() for n, k in (("ce", "points"), ("kl_sum", "classifier"), ("emd", "feature"))}
        tolerance = 1e-6 if number else 1e-9
        assert values | {"total": found.total.item()} == pytest.approx(
            {name: expected[name] for name in (*values, "total")}, rel=tolerance
        )
        optimizer.zero_grad()
        found.total.backward()
        norms = {f"{n}": p.grad.norm().item() for n, p in tower.named_parameters() if n != "projection"}
        assert norms == pytest.approx({name: expected["grad_norms"][name] for name in norms}, rel=1e-5, abs=1e-6)
        optimizer.step()


@pytest.fixture(scope="module", autouse=True)
def small_towers():
    with tiny():
        yield


def state(run: Path) -> dict[str, Tensor]:
    return load_file(step_folders(run)[-1] / "model.safetensors")


def test_three_runs_in_a_row(shards: Path, stages: dict[str, Path]) -> None:
    """Teacher and generator come from their runs and stay as they are; the student answers by points alone."""
    first, second, third = (state(run) for run in stages.values())
    for name in (name for name in first if name.startswith(("image.visual.", "image_head."))):
        assert first[name].equal(second[name]), name
        assert first[name].equal(third[name]), name
    assert all(second[name].equal(third[name]) for name in second if name.startswith("generator."))
    begun = load_file(step_folders(stages["pointcmt"])[0] / "model.safetensors")
    changed = {name.partition(".")[0] for name in third if not third[name].equal(begun[name])}
    assert changed == {"points", "points_head"}


@pytest.mark.slow
def test_each_stage_is_judged_by_what_it_trained(shards: Path, stages: dict[str, Path]) -> None:
    found = {method: evaluated(run, shards)["student"] for method, run in stages.items()}
    assert found["multiview"]["points"] is None
    assert found["multiview"]["image_star"] == found["cross_modal_generator"]["image_star"]
    assert found["pointcmt"]["image"] is None
    assert found["pointcmt"]["points"] >= 0


def test_a_teacher_answers_by_the_largest_of_its_views(shards: Path, stages: dict[str, Path]) -> None:
    model, checkpoint = load(stages["multiview"]), open_checkpoint(str(stages["multiview"]))
    settings = checkpoint.recipe.data.model_copy(update={"split": "test"})
    source = open_source(str(shards), settings, tower=pixel_statistics(checkpoint.recipe))
    (batch, *_) = SplitReader(source, settings, 32, range(1)).batches()
    (found,) = examine([checkpoint], str(shards))
    tower, head = model.model.image, model.model.image_head
    with torch.inference_mode():
        each = [tower(normalized(views, batch.mean, batch.deviation)).cls.amax(dim=0) for views in batch.pictures]
        expected = head(torch.stack(each))
    torch.testing.assert_close(found.student.logits["image_star"][: len(expected)], expected, rtol=1e-4, atol=1e-4)
    pictures = [[picture.permute(1, 2, 0).numpy() for picture in views] for views in batch.pictures[:2]]
    asked = model.classify(views=pictures)
    torch.testing.assert_close(asked.probabilities, expected[:2].softmax(dim=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("cross_modal_generator", (), "method=cross_modal_generator needs init.teacher=RUN, a run of method=multiview"),
        ("pointcmt", ("init.teacher={multiview}", *STUDENT), "needs init.generator=RUN"),
        (
            "pointcmt",
            ("init.teacher={pointcmt}", "init.generator={cross_modal_generator}", *STUDENT),
            "is a run of method=pointcmt: it wants one of method=multiview",
        ),
        (
            "cross_modal_generator",
            ("init.teacher={multiview}", "generator.points=32"),
            "data.num_points=64 must be",
        ),
        (
            "cross_modal_generator",
            ("init.teacher={multiview}", "image.backbone=resnet50"),
            "has image.backbone=resnet18, this",
        ),
        ("multiview", ("data.num_views=4",), "data.num_views=4"),
        ("multiview", ("image.backbone=clip",), "wants resnet18 or resnet50"),
        (
            "pointcmt",
            ("init.teacher={multiview}", "init.generator={cross_modal_generator}", *STUDENT, "generator.hidden=8"),
            "has generator.hidden=1024, this recipe 8",
        ),
    ],
)
def test_runs_that_do_not_fit(shards: Path, stages: dict[str, Path], tmp_path: Path, method, changes, words) -> None:
    given = [change.format(**stages) if change.startswith("init.") else change for change in changes]
    run = tmp_path / "run"
    said = typed("fit", method, "--shards", shards, "--run", run, *VIEWS, *SHORT, *given, code=2)[1]
    assert words in " ".join(said.split())
    assert not run.exists()


def test_a_student_without_a_teacher_looks_at_no_picture(shards: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(CrossModalModel, "object_features", lambda self, images: pytest.fail("a picture was looked at"))
    keys = (*VIEWS, *SHORT, *STUDENT, "pointcmt.feature=0", "pointcmt.classifier=0", "log_every=1")
    typed("fit", "pointcmt", "--shards", shards, "--run", tmp_path / "run", *keys)
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert [row["loss"] == row["loss_points"] for row in rows] == [True, True]
    assert "right_teacher" not in rows[0]


def test_a_teacher_of_other_classes(shards: Path, stages: dict[str, Path], tmp_path: Path) -> None:
    about = json.loads((stages["multiview"] / "run.json").read_text())
    other = tmp_path / "teacher"
    shutil.copytree(stages["multiview"], other)
    (other / "run.json").write_text(json.dumps(about | {"prompt_names": ["yurt", *about["prompt_names"][1:]]}))
    keys = (*VIEWS, *SHORT, f"init.teacher={other}")
    said = typed("fit", "cross_modal_generator", "--shards", shards, "--run", tmp_path / "run", *keys, code=2)[1]
    assert "yurt" in said or about["prompt_names"][0] in said


def test_a_stage_goes_on_without_the_runs_before(shards: Path, stages: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stages["pointcmt"], copy)
    last = state(copy)
    shutil.rmtree(step_folders(copy)[-1])
    recipe = open_checkpoint(str(stages["pointcmt"])).recipe
    keys = (f"init.teacher={recipe.init.teacher}", f"init.generator={recipe.init.generator}", *STUDENT)
    typed("fit", "pointcmt", "--shards", shards, "--run", copy, *VIEWS, *SHORT, *keys)
    assert all(value.equal(last[name]) for name, value in state(copy).items())
