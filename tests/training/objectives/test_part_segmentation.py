"""Part segmentation: networks and metric equal upstream's, labels stay with their points, and the commands say so."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from builders import REPOSITORY, Commands, stored
from golden_backbones import filled
from PIL import Image
from pointcmt_stages import SHORT, VIEWS, begun
from releases import shapenetpart_of_boxes
from safetensors.torch import load_file, save_file
from tiny_towers import tiny
from training_runs import typed

from manifests.config import parse_changes
from manifests.dataset_info import load_table
from manifests.errors import Refused
from manifests.picture_mapping import part_colors
from manifests.samples import decode_array
from pipeline.inspect.view_sheet import contact_sheet
from training.data.batch import PartLabelledBatch
from training.data.dataset import open_source
from training.data.image_augment import normalize_cloud
from training.data.loader import Form
from training.data.part_samples import PartSamples, whole_parts
from training.evaluation.part_iou import means, object_iou
from training.models.part_model import PartModel
from training.objectives.part_segmentation import step
from training.settings.fit_recipe import PartsRecipe, read_recipe
from training.settings.part_backbones import DGCNNPartSettings, PointNet2PartSettings, PointNet2SSGPartSettings
from training.settings.part_settings import PartAugmentSettings
from training.weights.part_weights import new_part_model

CASES = {
    "dgcnn_partseg": DGCNNPartSettings(),
    "pointnet2_partseg_msg": PointNet2PartSettings(),
    "pointnet2_partseg_ssg": PointNet2SSGPartSettings(),
}
PARTS = load_table("shapenetpart").parts
FEW = ("data.num_points=64", "points.k=4", "optimizer.batch_size=3", "log_every=1", "tensorboard=false")
FORM = Form(0, 0, 0, 0.0)


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of 6, 1 and 3 labelled objects of 128 points."""
    return built(tmp_path_factory.mktemp("parts"), train=6, val=1, test=3)


def built(folder: Path, **objects: int) -> Path:
    source = shapenetpart_of_boxes(folder, **objects)
    small = ("num_points=128", "fps_prefix=16", "views.depth10.image_size=16", "views.depth10.name=depth10")
    build = ("build", "shapenetpart", "--source", source, "--out", folder / "out", "--workers", 0)
    Commands(REPOSITORY)(*build, "allow_partial=true", *small)
    return folder / "out"


def golden_part_weights(golden: Path, case: str, form: str = "finetune") -> dict[str, torch.Tensor]:
    shapes = json.loads((golden / "method" / "part_segmentation" / f"{case}.keys.json").read_text())
    shapes = shapes.get(form, shapes)
    return {name: filled(name, shapes[name], number, 1) for number, name in enumerate(sorted(shapes))}


@pytest.mark.parametrize("case", CASES)
def test_networks_equal_upstream(golden: Path, case: str) -> None:
    """Names and shapes are upstream's, and so are the logits of each point, in both precisions."""
    weights, model = golden_part_weights(golden, case), PartModel(CASES[case], 16, 50, 0.5)
    own = {name: name.partition(".")[2] for name in model.state_dict()}
    model.load_state_dict({name: weights[short] for name, short in own.items()})
    twice = {name for name in weights if name.removeprefix("transform_net.").startswith("bn")}
    assert {name for name in weights if name not in own.values()} <= twice | {n for n in weights if "inv_head" in n}
    arrays = dict(np.load(golden / "method" / "part_segmentation" / f"{case}.npz"))
    expected = torch.from_numpy(arrays.get("logits_f64", arrays.get("logp_f64")))
    category = torch.from_numpy(arrays["label_one_hot"]).argmax(dim=1)
    for kind, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        with torch.no_grad():
            found = model.to(kind).eval()(torch.from_numpy(arrays["points"]).to(kind), category).double()
        found = found if "logits_f64" in arrays else found.log_softmax(dim=1).transpose(1, 2)
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_every_weight_learns(settings) -> None:
    """In training mode; DGCNN's transform, which begins as the identity of every cloud, away from there."""
    torch.manual_seed(0)
    model = PartModel(settings, 16, 50, 0.5).train()
    if isinstance(settings, DGCNNPartSettings):
        torch.nn.init.normal_(model.points.transform_net.transform.weight, std=0.01)
    logits = model(torch.rand(3, max(64, settings.fewest_points), 3), torch.tensor([0, 15, 4]))
    logits.square().mean().backward()
    for name, each in model.named_parameters():
        assert each.grad is not None, name
        assert each.grad.isfinite().all(), name
        assert each.grad.any(), name


def test_the_measure_is_upstreams(golden: Path) -> None:
    arrays = dict(np.load(golden / "method" / "part_segmentation" / "iou.npz"))
    meta = json.loads((golden / "method" / "part_segmentation" / "meta.json").read_text())["cases"]["iou"]
    table = load_table("shapenetpart")
    assert table.parts == tuple(arrays["seg_num"].tolist())
    assert [table.parts_of(label).start for label in range(16)] == arrays["index_start"].tolist()
    for rule in ("free", "restricted"):
        rows = zip(arrays[f"pred_{rule}"], arrays["target"], arrays["category"], strict=True)
        ious = [object_iou(found, true, table.parts_of(int(label))) for found, true, label in rows]
        assert ious == pytest.approx(arrays[f"shape_iou_{rule}"].tolist(), abs=1e-12)
        instance, by_class, _ = means(ious, arrays["category"].tolist())
        assert instance == pytest.approx(meta[f"instance_miou_{rule}"], abs=1e-12)
        assert by_class == pytest.approx(meta[f"class_miou_{rule}"], abs=1e-12)


def test_a_part_that_neither_has_counts_as_found() -> None:
    zero, one = np.zeros(4, int), np.array([0, 0, 1, 1])
    assert object_iou(zero, zero, range(2)) == 1.0
    assert object_iou(zero, one, range(2)) == pytest.approx((2 / 4 + 0) / 2)
    assert means([1.0, 0.0, 0.5], [3, 3, 5]) == (0.5, 0.5, {3: 0.5, 5: 0.5})


def test_the_loss_by_hand() -> None:
    """Smoothed as upstream writes it: 1 - s for the true part, s / (K - 1) for every other."""
    recipe = read_recipe("parts_dgcnn", parse_changes(["points.k=4", "data.num_points=8"]))
    assert isinstance(recipe, PartsRecipe)
    model = PartModel(recipe.points, 16, 50, 0.0).eval()
    g = torch.Generator().manual_seed(0)
    points, category = torch.rand(2, 8, 3, generator=g), torch.tensor([0, 15])
    parts = torch.stack([torch.arange(8) % 4, 47 + torch.arange(8) % 3])
    found = step(model, None, PartLabelledBatch(("a", "b"), points, parts, category), recipe)
    share = model(points, category).log_softmax(dim=1)
    target = torch.full_like(share, 0.2 / 49).scatter(1, parts[:, None], 0.8)
    assert found.total.item() == pytest.approx(-(target * share).sum(dim=1).mean().item(), rel=1e-5)
    assert found.figures["right_points"].item() == pytest.approx((share.argmax(dim=1) == parts).float().mean().item())


@pytest.mark.parametrize("order", ["stored", "shuffled", "resampled"])
@pytest.mark.parametrize("count", [100, 128, 150])
def test_a_point_keeps_its_part(boxes: Path, order: str, count: int) -> None:
    """Through prefix, repeats, every order and the augmentation, whose scale and shift are undone here."""
    recipe = read_recipe("parts_dgcnn", parse_changes([f"data.num_points={count}"]))
    source, shapes = open_source(str(boxes), recipe.data, warn=False, pictures=False), stored(boxes)
    augment = PartAugmentSettings(cloud_order=order, cloud_scale=1.5, cloud_shift=0.1)
    samples = PartSamples(source, recipe.data, augment, FORM, 3, 0)
    seen = 0
    for raw in samples:
        batch = raw.to(torch.device("cpu"))
        for key, before, points, parts, label in zip(
            raw.keys, raw.points, batch.points, batch.parts, batch.category, strict=True
        ):
            places, labels = (decode_array(shapes[key].members[name]).tolist() for name in ("points.npy", "parts.npy"))
            told = {tuple(place): part for place, part in zip(places, labels, strict=True)}
            assert [told[tuple(place)] for place in before.tolist()] == parts.tolist()
            assert load_table("shapenetpart").classes[int(label)] == shapes[key].json["class"]
            plain = torch.from_numpy(normalize_cloud(before.numpy()))
            ratio = (points - points.mean(dim=0)).norm(dim=1) / plain.norm(dim=1)
            assert ratio.std() < 1e-3 * ratio.mean()
            assert 1 / 1.5 <= ratio.mean() <= 1.5
            seen += 1
    assert seen == 6


def test_a_whole_split_has_every_object_and_no_repeat_counts(boxes: Path) -> None:
    recipe = read_recipe("parts_dgcnn", parse_changes(["data.num_points=150"]))
    source = open_source(str(boxes), recipe.data, warn=False, pictures=False)
    (batch,) = whole_parts(source, 150, load_table("shapenetpart"))
    assert len(batch.keys) == 6
    assert batch.stored == (128,) * 6
    assert batch.parts is not None
    assert batch.parts.shape == (6, 150)


def test_a_run_from_fit_to_picture(boxes: Path, tmp_path: Path) -> None:
    """Two steps and their continuation; both mIoUs by both rules; parts of every object, and a sheet of them."""
    run, png = tmp_path / "run", tmp_path / "parts.png"
    fit = ("fit", "parts_dgcnn", "--shards", boxes, "--run", run, *FEW, "save_every=1")
    typed(*fit, "optimizer.steps=2")
    out, _ = typed("evaluate", run, "--shards", boxes, "--json")
    found = json.loads(out)
    assert (found["n"], found["seed"], found["k"], found["step"], found["last_step"]) == (3, 0, 4, 2, True)
    assert found["objects"] == {"Airplane": 1, "Mug": 1, "Table": 1}
    for each in found["miou"].values():
        assert each["instance"] == pytest.approx(np.mean(list(each["per_class"].values())), abs=1e-3)
    assert found["miou"]["class"]["instance"] > 0
    table, _ = typed("evaluate", run, "--shards", boxes, "data.num_points=32")
    assert "arg-max: all parts" in table
    assert "seed 0, dgcnn_parts, k 4, 32 points" in " ".join(table.split())
    rows = json.loads(typed("predict", run, "--shards", boxes, "--json", "--png", png)[0])
    assert [set(row["parts"]) for row in rows if row["class"] == "Mug"] == [{"36", "37"}]
    assert all(sum(row["parts"].values()) == pytest.approx(1, abs=1e-3) for row in rows)
    assert np.mean([row["iou"] for row in rows]) == pytest.approx(found["miou"]["class"]["instance"], abs=25)
    colors = {tuple(pixel) for pixel in np.asarray(Image.open(png)).reshape(-1, 3).tolist()}
    assert colors & {tuple(color) for color in part_colors(np.arange(50)).tolist()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("optimizer.batch_size=1",), "optimizer.batch_size=1: batch norms need two objects"),
        (("points.k=65",), "data.num_points=64 is fewer than the 65 that points.* needs"),
        (("points.backbone=point_bert", "points.groups=4"), "points.backbone=point_bert labels no points"),
        (("task=labels",), "task=labels is none of classes, parts"),
        (("prompts=ulip64",), "prompts is a key of"),
        (("init.points=no.pt",), "init.points=no.pt: no such file"),
        (("optimizer.accumulate=3",), "optimizer.accumulate=3"),
    ],
)
def test_what_cannot_be_is_one_line(boxes: Path, tmp_path: Path, changes: tuple[str, ...], words: str) -> None:
    few = [each for each in FEW if each.partition("=")[0] not in {c.partition("=")[0] for c in changes}]
    few = [each for each in few if "point_bert" not in "".join(changes) or "points.k" not in each]
    _, err = typed("fit", "parts_dgcnn", "--shards", boxes, "--run", tmp_path / "run", *few, *changes, code=2)
    assert words in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_a_build_without_parts_is_one_line(shards: Path, tmp_path: Path) -> None:
    fit = (
        "fit",
        "parts_dgcnn",
        "--shards",
        shards,
        "--run",
        tmp_path / "run",
        *FEW,
        "data.views=rgb12",
        "data.channel=rgb",
    )
    assert "dataset parametric has no part labels: build one that has (shapenetpart)" in typed(*fit, code=2)[1]


def test_other_commands_say_what_a_run_of_parts_is_for(boxes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    typed("fit", "parts_dgcnn", "--shards", boxes, "--run", run, *FEW, "optimizer.steps=1", "task=parts")
    said = partial(typed, code=2)
    assert "classifies no object" in said("embed", run, "--shards", boxes, "--out", tmp_path / "x.npz")[1]
    assert "--out is for runs that classify" in said("evaluate", run, "--shards", boxes, "--out", tmp_path / "x")[1]
    assert "--classes NAME" in said("predict", run, tmp_path / "a.off")[1]
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "a.off")
    (tmp_path / "b.off").write_text("OFF 1")
    asked = ("predict", run, *(tmp_path / f"{name}.off" for name in "abc"), "--classes", "Mug")
    rows = json.loads(typed(*asked, "--json", "--png", tmp_path / "parts.png", code=1)[0])
    assert [set(row["parts"]) for row in rows] == [{"36", "37"}, set(), set()]
    assert sum(rows[0]["parts"].values()) == pytest.approx(1)
    assert [row["error"] for row in rows] == [None, "load: no vertex and face counts after OFF", "no such file"]
    assert (tmp_path / "parts.png").is_file()
    assert "one of all objects" in said("predict", run, "--shards", boxes, "--classes", "Mugs")[1]
    rows = json.loads(typed("predict", run, "--shards", boxes, "--classes", "Mug", "--json")[0])
    assert {(row["class"], row["iou"]) for row in rows} == {("Mug", None)}


def test_task_parts_takes_the_backbone_that_labels_points() -> None:
    recipe = read_recipe("parts_pointnet2", parse_changes(["task=parts", "points.backbone=dgcnn", "points.k=7"]))
    assert (recipe.method, recipe.points.backbone, recipe.points.model_dump()["k"]) == ("parts", "dgcnn_parts", 7)
    other = read_recipe("small_crosspoint", parse_changes(["task=parts", "points.backbone=pointnet2_ssg"]))
    assert (other.method, other.points.backbone, other.data.num_points) == ("parts", "pointnet2_ssg_parts", 512)


def test_a_pre_trained_trunk_fills_what_agrees(golden: Path, tmp_path: Path) -> None:
    """CrossPoint's file of the pre-trained form: the trunk whole; its projection head is left over, ours is random."""
    weights = golden_part_weights(golden, "dgcnn_partseg", "pretrain")
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "best.pth")
    loaded = []
    recipe = read_recipe("parts_dgcnn", parse_changes([f"init.points={tmp_path / 'best.pth'}"]))
    assert isinstance(recipe, PartsRecipe)
    model = new_part_model(recipe, PARTS, loaded.append)
    (found,) = loaded
    assert {name for name in model.state_dict() if name.startswith("points.")} == set(found.loaded)
    assert {name.partition(".")[0] for name in found.missing} == {"head"}
    assert {name.partition(".")[0] for name in found.left_over} == {"inv_head", "bn7", "bn8", "bn9", "bn10"}
    assert torch.equal(model.points.conv6[0].weight, weights["conv6.0.weight"])
    arrays = dict(np.load(golden / "method" / "part_segmentation" / "dgcnn_partseg.npz"))
    model.points.k = 15  # that of the golden pass
    with torch.no_grad():
        feature = model.double().eval().points.represent(torch.from_numpy(arrays["points"]).double())
    expected = torch.from_numpy(arrays["pretrain_k15_feat_f64"])
    assert (feature - expected).abs().max() <= 1e-10 * expected.abs().max()
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    stranger = read_recipe("parts_dgcnn", parse_changes([f"init.points={tmp_path / 'other.safetensors'}"]))
    assert isinstance(stranger, PartsRecipe)
    with pytest.raises(Refused, match="no layer of it has the name and the shapes"):
        new_part_model(stranger, PARTS)


def test_a_trunk_that_crosspoint_taught_begins_part_segmentation(shards: Path, boxes: Path, tmp_path: Path) -> None:
    """The whole trunk of its run is taken; its heads are left behind, and that of parts is new."""
    before, run = tmp_path / "crosspoint", tmp_path / "run"
    trunk = ("points.backbone=dgcnn_parts", "points.k=4", "data.num_points=64", "optimizer.batch_size=4")
    typed(
        "fit", "small_crosspoint", "--shards", shards, "--run", before, *trunk, "optimizer.steps=1", "tensorboard=false"
    )
    typed("fit", "parts_dgcnn", "--shards", boxes, "--run", run, *FEW, "optimizer.steps=1", f"init.points={before}")
    taught = load_file(before / "checkpoints/step-00000001/model.safetensors")
    begun = load_file(run / "checkpoints/step-00000000/model.safetensors")
    names = [name for name in taught if name.startswith("points.") and name != "points.projection"]
    assert {name for name in begun if name.startswith("points.")} == set(names)
    assert all(torch.equal(begun[name], taught[name]) for name in names)
    assert any(name.startswith("contrast.points.") for name in taught)


@pytest.mark.slow
def test_a_trunk_that_pointcmt_taught_begins_part_segmentation(shards: Path, boxes: Path, stages, tmp_path) -> None:
    """PointCMT's table 11: the student has the trunk of the network for parts, and all of it is taken."""
    trunk = ("points.backbone=dgcnn_parts", "points.k=4")
    keys = {key.partition("=")[0]: key for key in (*VIEWS, *SHORT, *begun("pointcmt", stages))}
    keys = [key for name, key in keys.items() if not name.startswith("points.")]
    with tiny():
        typed("fit", "pointcmt", "--shards", shards, "--run", tmp_path / "pointcmt", *keys, *trunk)
    run, before = tmp_path / "run", tmp_path / "pointcmt"
    typed("fit", "parts_dgcnn", "--shards", boxes, "--run", run, *FEW, "optimizer.steps=1", f"init.points={before}")
    taught = load_file(before / "checkpoints/step-00000002/model.safetensors")
    begins = load_file(run / "checkpoints/step-00000000/model.safetensors")
    names = [name for name in begins if name.startswith("points.")]
    assert names
    assert all(torch.equal(begins[name], taught[name]) for name in names)


def test_a_build_shows_parts_in_colours(boxes: Path) -> None:
    sheet = np.asarray(contact_sheet(str(boxes), num_objects=2, num_views=1))
    there = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
    assert len(there & {tuple(color) for color in part_colors(np.arange(8)).tolist()}) >= 2


@pytest.mark.slow
def test_a_short_training_learns_parts(tmp_path: Path, training: Commands) -> None:
    """Boxes at places of their own: far above what the most frequent part of each class reaches."""
    shards, run = built(tmp_path, train=36, val=1, test=12), tmp_path / "run"
    fit = ("fit", "parts_dgcnn", "--shards", shards, "--run", run, "tensorboard=false", "points.k=8")
    training(*fit, "data.num_points=64", "optimizer.batch_size=6", "optimizer.steps=40", "optimizer.lr=0.1")
    found = {}
    for checkpoint in (run / "checkpoints" / "step-00000000", run):
        found[checkpoint] = json.loads(typed("evaluate", checkpoint, "--shards", shards, "--json")[0])["miou"]
    first, last = found.values()
    assert first["class"]["instance"] < 40
    assert last["class"]["instance"] > 75
    assert last["all"]["class"] > 70
