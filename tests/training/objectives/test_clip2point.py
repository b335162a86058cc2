"""CLIP2Point: golden values, six LAMB steps through the towers, live depth pairs, and what a run keeps."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from builders import stored
from golden_backbones import filled
from safetensors.torch import load_file
from torch import nn
from training_runs import typed

from manifests.config import parse_changes
from manifests.picture_mapping import NORMALIZE
from manifests.presets import load_preset
from renderers.point_depth_torch import turned_pictures
from training.data.decode import picture_of
from training.data.depth_pairs import DISTANCE, PairBatch, PairSamples
from training.data.point_augment import random_part, uniforms
from training.loop.fit import prepare
from training.loop.lamb import Lamb
from training.loop.schedule import Schedule
from training.loop.update import optimizer_of
from training.models.backbones import point_tower
from training.models.clip import ImageTower
from training.models.cross_modal import CrossModalModel
from training.objectives.clip2point import best_sigma, freeze, step, total_of
from training.settings.backbone_rows import BACKBONE_SETTINGS
from training.settings.clip2point_recipe import Clip2PointSettings
from training.settings.fit_recipe import read_recipe
from training.weights.checkpoint import build_model

FEW = (
    *("optimizer.batch_size=8", "optimizer.steps=2", "log_every=1", "tensorboard=false"),
    *("data.num_points=128", "clip2point.points=64"),
)


@pytest.mark.parametrize("sigma", [1.0, 0.6, 1.7])
def test_the_losses_and_gradients_equal_golden(golden, sigma: float) -> None:
    folder = golden / "method" / "clip2point"
    stored, about = np.load(folder / "losses.npz"), json.loads((folder / "expected.json").read_text())["results"]
    first, second, image = (torch.from_numpy(stored[name]).double() for name in ("depth1", "depth2", "image"))
    depth, balance = torch.stack([first, second], dim=1).requires_grad_(), nn.Parameter(torch.tensor(sigma).double())
    found, expected = total_of(depth, image, balance, Clip2PointSettings()), about[f"sigma{sigma}_f64"]
    found.total.backward()
    assert found.total.item() == pytest.approx(expected["total"], rel=1e-7)  # upstream's sigma is float32
    assert found.terms["cross"].item() == pytest.approx(expected["cross_image_loss"], rel=1e-10)
    assert found.terms["intra"].item() == pytest.approx(expected["intra_depth_loss"], rel=1e-10)
    assert balance.grad.item() == pytest.approx(expected["grad_sigma"], rel=1e-6)
    for number, name in enumerate(("depth1", "depth2")):
        np.testing.assert_allclose(depth.grad[:, number], stored[f"sigma{sigma}.grad_{name}_f64"], atol=1e-8)


def test_lamb_equals_golden_over_its_steps(golden) -> None:
    data = np.load(golden / "method" / "clip2point_training" / "lamb.npz")
    weights = [nn.Parameter(torch.from_numpy(data[f"start{number}"]).clone()) for number in range(5)]
    lamb = Lamb([{"params": weights, "lr": 0.006, "weight_decay": 1e-4}], (0.9, 0.999))
    steps = {int(name[5:].partition(".")[0]) for name in data.files if name.startswith("value")}
    for number in sorted(steps):
        for place, weight in enumerate(weights):
            weight.grad = torch.from_numpy(np.asarray(data[f"grad{number}.{place}"]))
        lamb.found_inf = torch.ones(())
        lamb.step()  # of a loss that was not finite
        lamb.found_inf = torch.zeros(())
        lamb.step()
        for place, weight in enumerate(weights):
            np.testing.assert_allclose(weight.detach(), data[f"value{number}.{place}"], rtol=0, atol=1e-12)
    assert len(steps) > 2


def golden_model(folder: Path, about: dict) -> CrossModalModel:
    """Both towers filled as upstream's, in float64."""
    size = about["visual"]
    visual = open_clip.transformer.VisionTransformer(
        image_size=size["input_resolution"],
        patch_size=size["patch_size"],
        width=size["width"],
        layers=size["layers"],
        heads=size["heads"],
        mlp_ratio=4,
        output_dim=size["output_dim"],
        act_layer=open_clip.transformer.QuickGELU,
    )
    shapes = json.loads((folder / "pretrain_steps.keys.json").read_text())["visual"]
    weights = {name: filled(name, shapes[name], j, about["salt"]) for j, name in enumerate(sorted(shapes))}
    image = ImageTower(visual)
    assert set(weights) == set(visual.state_dict())
    visual.load_state_dict(weights)
    points = point_tower(BACKBONE_SETTINGS["pointnet"](backbone="pointnet"), size["output_dim"])
    model = CrossModalModel(image, points, torch.zeros(size["output_dim"], 2), 1.0)
    model.add_depth_tower()
    freeze(model, read_recipe("clip2point", {}))
    model.freeze_scale()
    return model.double()


def test_six_lamb_steps_through_the_towers_equal_golden(golden) -> None:
    """Losses, sigma's gradient, every gradient's norm, and weights after a restart of the rate."""
    folder = golden / "method" / "clip2point_training"
    data, about = np.load(folder / "pretrain_steps.npz"), json.loads((folder / "meta.json").read_text())["cases"]
    about = about["pretrain_steps"]
    model = golden_model(folder, about).train()
    keys = ("optimizer.batch_size=6", "optimizer.epochs=2", "optimizer.restart_epochs=1")
    recipe = read_recipe("clip2point", parse_changes(keys))
    optimizer, schedule = optimizer_of(model, recipe.optimizer), Schedule.of(recipe.optimizer, 4)
    for number, expected in enumerate(about["steps"]):
        depth, image = (torch.from_numpy(data[f"step{number % 3}.{name}"]).double() for name in ("depth", "image"))
        rate = schedule.learning_rate(number)
        assert rate == pytest.approx(expected["lr"], rel=1e-12)
        assert model.balance.item() == pytest.approx(expected["sigma"], rel=1e-7)
        for group in optimizer.param_groups:
            group["lr"] = rate
        found = step(model, None, PairBatch(tuple("abcdef"), image[:, 0], depth), recipe)
        optimizer.zero_grad()
        found.total.backward()
        assert found.total.item() == pytest.approx(expected["total"], rel=1e-7), number
        assert found.terms["cross"].item() == pytest.approx(expected["cross"], rel=1e-7)
        assert found.terms["intra"].item() == pytest.approx(expected["intra"], rel=1e-7)
        learned = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert {our_name(name) for name in expected["grad_norms"]} == set(learned)
        for name, norm in expected["grad_norms"].items():
            assert learned[our_name(name)].norm().item() == pytest.approx(norm, rel=1e-6), name
        optimizer.step()
    after = model.state_dict()
    for name in (name for name in data.files if name.startswith("after6.")):
        np.testing.assert_allclose(after[our_name(name[7:])], data[name], rtol=0, atol=1e-7)


def our_name(name: str) -> str:
    """What a model of ours calls a weight of upstream's."""
    return "balance" if name == "weights" else name.replace("point_model.", "depth.visual.")


@pytest.mark.parametrize(("intra", "sigma"), [(0.6, 1.43), (0.1, 0.70), (0.01, 0.30)])
def test_the_best_sigma_is_where_the_loss_is_lowest(intra: float, sigma: float) -> None:
    found = best_sigma(torch.tensor(intra, dtype=torch.float64))
    assert found.item() == pytest.approx(sigma, abs=5e-3)
    assert 2 * intra * (found.item() + 1) == pytest.approx(found.item() ** 3, rel=1e-9)


def test_without_intra_the_loss_is_the_cross_term_alone() -> None:
    depth, image = torch.randn(2, 4, 1, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    sigma = nn.Parameter(torch.ones(()))
    found = total_of(depth.requires_grad_(), image[:, 0], sigma, Clip2PointSettings(intra=0))
    found.total.backward()
    assert found.total == found.terms["cross"]
    assert list(found.terms) == ["cross"]
    assert sigma.grad is None


def test_a_live_map_is_the_map_that_the_pipeline_draws(depth_shards) -> None:
    """At distance 1 a map of the stored cloud is the stored picture, view by view, within the 16 bits of its depth."""
    whole = ("data.num_points=256", "clip2point.points=256")
    samples = pair_samples(depth_shards, *whole, 'clip2point.maps=["depth10_release"]', "clip2point.intra=0")
    live = pair_samples(depth_shards, *whole)
    for raw, drawn in zip(samples, live, strict=True):
        assert raw.keys == drawn.keys
        assert torch.equal(raw.image, drawn.image)
        ones = torch.ones(len(raw.keys), 1)
        maps = turned_pictures(drawn.points, drawn.rotation, ones, 48, 1.0, 0.02)
        off = (maps[:, 0] - raw.maps[:, 0, 0].float() / 255).abs() > 1.5 / 255
        assert off.sum() <= 2  # of a point on the edge of a pixel


def test_two_live_maps_are_two_distances_drawn_by_the_seed(depth_shards) -> None:
    (first, *_), (again, *_) = (list(pair_samples(depth_shards)) for _ in range(2))
    pairs = [raw.to(torch.device("cpu")).depth for raw in (first, again)]
    assert pairs[0].shape == (8, 2, 3, 48, 48)
    assert torch.equal(*pairs)
    assert ((pairs[0][:, 0] != pairs[0][:, 1]).flatten(1).any(dim=1)).all()
    distances = 1 + (uniforms(first.seed, DISTANCE, 2) - 0.5) / 5
    assert 0.9 <= distances.min() < 0.95 < 1.05 < distances.max() <= 1.1
    at_them = turned_pictures(first.points, first.rotation, distances, 48)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in NORMALIZE["clip"])
    torch.testing.assert_close(pairs[0], (at_them[:, :, None] - mean) / deviation)


def test_random_points_are_other_points_of_the_same_cloud(depth_shards) -> None:
    (raw, *_) = pair_samples(depth_shards, "clip2point.sampling=random", "data.num_points=256")
    chosen = random_part(raw.points, raw.seed, 64)
    assert raw.points.shape == (8, 256, 3)
    assert not torch.equal(chosen, raw.points[:, :64])
    for part, whole in zip(chosen, raw.points, strict=True):
        assert set(map(tuple, part.tolist())) <= set(map(tuple, whole.tolist()))


def test_stored_pairs_are_the_maps_of_the_drawn_view(depth_shards) -> None:
    """Of two view sets, map by map, and only objects that both have."""
    samples = pair_samples(depth_shards, 'clip2point.maps=["near","far"]')
    sets = {name: stored(depth_shards, name) for name in ("near", "far")}
    for raw in samples:
        batch = raw.to(torch.device("cpu"))
        assert batch.depth.shape == (8, 2, 3, 48, 48)
        assert not raw.points.numel()
        for key, maps in zip(raw.keys, raw.maps, strict=True):
            views = [
                [picture_of(sets[name][key], v, "depth", load_preset("depth10_release")[1]) for v in range(3)]
                for name in ("near", "far")
            ]
            pictures = [np.moveaxis(each.numpy(), 0, 2) for each in maps]
            seen = [[np.array_equal(own, view) for view in of] for own, of in zip(pictures, views, strict=True)]
            assert any(near and far for near, far in zip(*seen, strict=True)), key


def pair_samples(shards: Path, *changes: str) -> PairSamples:
    keys = (*FEW, *changes)
    state = prepare(read_recipe("small_clip2point", parse_changes(keys)), str(shards), "none", torch.device("cpu"))
    return state.samples


@pytest.fixture(scope="module")
def run(depth_shards, tmp_path_factory) -> tuple[Path, Path]:
    """A pre-training on RGB and CLIP2Point after it, of six steps."""
    folder = tmp_path_factory.mktemp("runs")
    typed("fit", "small_pretrain", "--shards", depth_shards, "--run", folder / "rgb", *FEW[:-1])
    after = (*FEW, "optimizer.steps=6", "save_every=3", "optimizer.lr=2e-2", f"init.image={folder / 'rgb'}")
    typed("fit", "small_clip2point", "--shards", depth_shards, "--run", folder / "run", *after)
    return folder / "rgb", folder / "run"


def test_a_run_teaches_the_depth_tower_alone_and_logs_sigma(run) -> None:
    _, folder = run
    with open(folder / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.startswith("loss_")] == ["loss_intra", "loss_cross", "loss_balance"]
    for row in rows:
        sigma, intra = float(row["sigma"]), float(row["loss_intra"])
        assert float(row["intra_weight"]) == pytest.approx(1 / sigma**2, rel=1e-5)
        assert 2 * intra * (float(row["best_sigma"]) + 1) == pytest.approx(float(row["best_sigma"]) ** 3, rel=1e-5)
    assert float(rows[0]["sigma"]) == 1.0 != float(rows[-1]["sigma"])
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    first, last = (load_file(folder / f"checkpoints/step-{n:08d}/model.safetensors") for n in (0, 6))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert {name.split(".")[0] for name in changed} == {"depth", "balance"}
    assert all(torch.equal(first[name], first[f"image.{name[6:]}"]) for name in first if name.startswith("depth."))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(run, depth_shards, tmp_path) -> None:
    """The draws of distances and the moments of LAMB go on."""
    shutil.copytree(run[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    after = (*FEW, "optimizer.steps=6", "save_every=3", "optimizer.lr=2e-2", f"init.image={run[0]}")
    typed("fit", "small_clip2point", "--shards", depth_shards, "--run", tmp_path / "run", *after)
    once, again = (
        load_file(folder / "checkpoints/step-00000006/model.safetensors") for folder in (run[1], tmp_path / "run")
    )
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_cross_most_begins_with_the_depth_tower_as_its_image_tower(run, depth_shards) -> None:
    """Where it sees depth pictures; of RGB and of a tower of another size it is refused."""
    keys = ("data.num_points=128", f"init.image={run[1]}", "points.depth=1", "data.views=depth10_release")
    model, _ = build_model(
        read_recipe("small_cross_most", parse_changes((*keys, "data.channel=depth"))), ("mug", "cup")
    )
    tensors = load_file(run[1] / "checkpoints/step-00000006/model.safetensors")
    own = model.image.state_dict()
    assert all(torch.equal(own[name[6:]], value) for name, value in tensors.items() if name.startswith("depth."))
    assert model.depth is None
    again, _ = build_model(
        read_recipe("small_clip2point", parse_changes((*FEW, f"init.image={run[1]}"))), ("mug", "cup")
    )
    for part in ("depth", "image"):
        found = getattr(again, part).state_dict()
        assert all(torch.equal(found[n.partition(".")[2]], tensors[n]) for n in tensors if n.startswith(f"{part}."))


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("small_clip2point", ("data.views=rgb10",), "data.views=rgb10: .* has no such view set"),
        ("small_clip2point", ("data.channel=depth", "data.views=near"), "the pictures beside depth maps are rgb"),
        ("small_clip2point", ("clip2point.depth=depth10",), "drawn by merge=disc and mapping=clip2point alone"),
        ("small_clip2point", ("clip2point.depth=dept10",), "dept10"),
        ("small_clip2point", ("clip2point.points=256",), "data.num_points=128 is fewer than clip2point.points=256"),
        ("small_clip2point", ("optimizer.batch_size=1",), "an object is told apart from others"),
        ("small_clip2point", ("clip2point.cross=0",), "leaves nothing that knows the picture"),
        ("small_clip2point", ('clip2point.maps=["near"]',), "which has no pair: intra=0"),
        ("small_clip2point", ('clip2point.maps=["near","depth10"]',), "have different numbers of views"),
        ("small_clip2point", ('clip2point.maps=["near","fare"]',), "data.views=fare: .* has no such view set"),
        ("small_clip2point", ("init.image=RUN", "image.image_size=32"), "image.image_size=0, this recipe 32"),
        ("small_cross_most", ("init.image=RUN",), "which this run would show RGB: data.views=NAME data.channel=depth"),
    ],
)
def test_refusals_say_what_to_do(
    run, depth_shards, tmp_path, recipe: str, changes: tuple[str, ...], words: str
) -> None:
    few = FEW if recipe == "small_clip2point" else FEW[:-1]
    keys = [change.replace("RUN", str(run[1])) for change in (*few, *changes)]
    said = typed("fit", recipe, "--shards", depth_shards, "--run", tmp_path / "run", *keys, code=2)[1]
    assert re.search(words, said.splitlines()[-1]), said
    assert not (tmp_path / "run").exists()
