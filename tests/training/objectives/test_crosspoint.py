"""CrossPoint: golden values and gradients, and a run that teaches points the space of a frozen image tower."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_backbones import filled
from torch import Tensor, nn
from training_runs import evaluated

from manifests.config import parse_changes
from manifests.errors import Refused
from training.data.batch import Batch
from training.loop.fit import fit, prepare
from training.loop.update import optimizer_of
from training.models.backbones import point_tower
from training.models.cross_modal import CrossModalModel
from training.models.image_backbone import ImageBackbone
from training.models.resnet import ResNetTower
from training.networks.point_backbone import PointBackbone, new_projection
from training.objectives.crosspoint import of_pictures, step, terms_of
from training.objectives.losses import nt_xent
from training.settings.backbone_rows import BACKBONE_SETTINGS
from training.settings.fit_recipe import read_recipe
from training.weights.checkpoint import build_model

FEW = ("data.num_points=128", "optimizer.batch_size=8", "points.depth=1", "log_every=5", "tensorboard=false")


def test_the_losses_equal_golden(golden) -> None:
    stored = np.load(golden / "method" / "crosspoint" / "ntxent.npz")
    given = [torch.from_numpy(stored[n]).double().requires_grad_() for n in ("point_t1", "point_t2", "image")]
    terms = terms_of(*given, float(stored["temperature"]))
    assert terms["intra"].item() == pytest.approx(float(stored["imid_f64"]), rel=1e-12)
    assert terms["cross"].item() == pytest.approx(float(stored["cmid_f64"]), rel=1e-12)
    total = terms["intra"] + terms["cross"]
    assert total.item() == pytest.approx(float(stored["total_f64"]), rel=1e-12)
    total.backward()
    for value, name in zip(given, ("grad_t1_f64", "grad_t2_f64", "grad_img_f64"), strict=True):
        np.testing.assert_allclose(value.grad, stored[name], atol=1e-12)


class Stand(ImageBackbone):
    """The image tower of the golden steps: two convolutions, whose mean is the feature."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.c1, self.visual.c2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.projection = new_projection(16, 8)
        self.image_size = self.patch = 16

    @property
    def blocks(self) -> list[nn.Module]:
        return []

    def represent(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        own = self.visual.c2(self.visual.c1(pictures).relu()).relu().mean(dim=(2, 3))
        return own, own @ self.projection


def our_name(name: str, part: str, twice: bool) -> str:
    """What a model of ours calls a weight of upstream's `point` or `image` model."""
    tower, head = {"point": ("points.", "contrast.points."), "image": ("image.visual.", "contrast.image.")}[part]
    name = name.removeprefix("resnet.").removeprefix("net.")
    if name.startswith("inv_head."):
        return head + name.removeprefix("inv_head.")
    return tower + (re.sub(r"^bn([1-5])\.", r"conv\1.1.", name) if twice else name)


def of_golden(folder: Path, case: str, part: str, salt: int, gain: float = 6.0) -> dict[str, Tensor]:
    """Weights of a case by our names, in float64. Of two names of DGCNN's norms the later one's weights count."""
    shapes = json.loads((folder / f"{case}.keys.json").read_text())
    shapes = shapes.get(part, shapes)
    weights = {name: filled(name, shapes[name], j, salt, gain) for j, name in enumerate(sorted(shapes))}
    return {our_name(name, part, "conv1.1.bias" in shapes): value.double() for name, value in weights.items()}


def golden_model(points: PointBackbone, image: ImageBackbone, weights: dict[str, Tensor]) -> CrossModalModel:
    """A model with heads, in float64; of its parts that the weights name, they are all."""
    model = CrossModalModel(image, points, torch.zeros(image.embed_dim, 2), 1.0)
    model.add_contrast_heads()
    missing, unexpected = model.double().load_state_dict(weights, strict=False)
    parts = {"points": "contrast.points.0.weight", "image": "contrast.image.0.weight"}
    for part in (part for part, head in parts.items() if head in weights):
        assert {n for n in missing if n.startswith((f"{part}.", f"contrast.{part}."))} <= {f"{part}.projection"}
    assert not unexpected
    return model


@pytest.mark.parametrize(("case", "k"), [("dgcnn", 15), ("dgcnn", 5), ("pointnet", 0)])
def test_the_point_networks_with_their_heads_equal_golden(golden, case: str, k: int) -> None:
    folder = golden / "method" / "crosspoint_models"
    data, prefix = np.load(folder / f"{case}_head.npz"), f"k{k}_" if k else ""
    settings = BACKBONE_SETTINGS[case](backbone=case, **({"k": k} if k else {}))
    model = golden_model(point_tower(settings, 8), Stand(), of_golden(folder, f"{case}_head", "point", 1)).eval()
    with torch.no_grad():
        own = model.points.represent(torch.from_numpy(data["points"]).double())
    for found, name in ((own, "feat"), (model.contrast["points"](own), "inv")):
        expected = torch.from_numpy(data[f"{prefix}{name}_f64"])
        assert (found - expected).abs().max() <= 1e-9 * expected.abs().max(), name


def test_the_resnet_50_with_its_head_equals_golden(golden) -> None:
    folder = golden / "method" / "crosspoint_models"
    data = np.load(folder / "resnet50_head.npz")
    settings = BACKBONE_SETTINGS["pointnet"](backbone="pointnet")
    model = golden_model(
        point_tower(settings, 8),
        ResNetTower("resnet50", 8, 64),
        of_golden(folder, "resnet50_head", "image", 1, gain=1.0),
    )
    with torch.no_grad():
        own = model.eval().image_tokens(torch.from_numpy(data["image"]).double()).cls
        found = model.contrast["image"](own)
    expected = torch.from_numpy(data["inv_f64"])
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_three_joint_steps_equal_golden(golden) -> None:
    """Losses, and weights and running statistics after three Adam steps of both towers and both heads."""
    folder = golden / "method" / "crosspoint_models"
    data, case = np.load(folder / "steps_small.npz"), "steps_small"
    about = json.loads((folder / "meta.json").read_text())["cases"][case]["steps"]
    settings = BACKBONE_SETTINGS["dgcnn"](backbone="dgcnn", k=5, emb_dims=16)
    weights = of_golden(folder, case, "point", 1) | of_golden(folder, case, "image", 2)
    model = golden_model(point_tower(settings, 8), Stand(), weights)
    keys = ("points.backbone=dgcnn", "optimizer.batch_size=6", "optimizer.weight_decay=1e-6", "data.num_points=48")
    recipe = read_recipe("crosspoint", parse_changes((*keys, "points.k=5", "points.emb_dims=16")))
    optimizer = optimizer_of(model.train(), recipe.optimizer)
    for number, expected in enumerate(about):
        first, second, image = (torch.from_numpy(data[f"step{number}.{n}"]).double() for n in ("t1", "t2", "image"))
        mask = torch.zeros(6, 1, 1, dtype=torch.bool)
        batch = Batch(tuple("abcdef"), image, image, first, second, mask, torch.zeros(6, 2), torch.zeros(6))
        found = step(model, None, batch, recipe)
        assert found.terms["intra"].item() == pytest.approx(expected["imid"], rel=1e-9)
        assert found.terms["cross"].item() == pytest.approx(expected["cmid"], rel=1e-9)
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
    after, compared = model.state_dict(), 0
    for name in (name for name in data.files if name.startswith("after.")):
        _, part, rest = name.split(".", 2)
        np.testing.assert_allclose(after[our_name(rest, part, part == "point")], data[name], rtol=0, atol=1e-6)
        compared += 1
    assert compared == 11


def test_nt_xent_by_hand() -> None:
    """Two objects: each of four features chooses among three, and its partner is the one that is parallel."""
    left = torch.eye(2)
    expected = -np.log(np.exp(2) / (np.exp(2) + 2))
    assert nt_xent(left, 3 * left, 0.5).item() == pytest.approx(expected)


def test_the_terms_by_hand() -> None:
    """Two augmentations learn from one another, and their mean from the picture."""
    first, second = torch.eye(3), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    image = 5 * torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])  # along the mean of each pair
    terms = terms_of(first, second, image, 0.5)
    # of the five others one is parallel, which is another object's; then the partner is, and four are at 60 degrees
    assert terms["intra"].item() == pytest.approx(np.log(4 + np.exp(2)))
    assert terms["cross"].item() == pytest.approx(-np.log(np.exp(2) / (np.exp(2) + 4 * np.exp(1))))


@pytest.mark.parametrize(("image", "heads"), [("trained", "own"), ("trained", "projection"), ("frozen", "own")])
def test_a_step_takes_both_clouds_and_the_strong_picture(image: str, heads: str) -> None:
    """A change of the weak cloud, of the strong one or of the picture is seen; the weights are each term's own."""
    keys = ("crosspoint.intra=2", "crosspoint.cross=5", f"crosspoint.image={image}", "data.num_points=64")
    keys = (*keys, f"crosspoint.heads={heads}")
    recipe = read_recipe("small_crosspoint", parse_changes((*FEW, *keys)))
    model = build_model(recipe, ("mug", "bowl"))[0].eval()
    g = torch.Generator().manual_seed(0)
    pictures, clouds = torch.randn(2, 4, 3, 48, 48, generator=g), torch.randn(2, 4, 64, 3, generator=g)
    mask = torch.zeros(4, 6, 6, dtype=torch.bool)
    batch = Batch(tuple("abcd"), *pictures, *clouds, mask, torch.rand(4, 2), torch.rand(4))
    begun = step(model, None, batch, recipe)
    terms = {name: value.item() for name, value in begun.terms.items()}
    assert begun.total.item() == pytest.approx(2 * terms["intra"] + 5 * terms["cross"], rel=1e-5)
    for name, changes in (
        ("weak_image", set()),
        ("strong_image", {"cross"}),
        ("weak_points", {"intra", "cross"}),
        ("strong_points", {"intra", "cross"}),
    ):
        other = replace(batch, **{name: torch.randn(getattr(batch, name).shape, generator=g)})
        found = step(model, None, other, recipe).terms
        assert {term for term in terms if found[term].item() != pytest.approx(terms[term], rel=1e-6)} == changes, name
    begun.total.backward()
    own = (image, heads) == ("trained", "own")
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert ("image.visual.conv1.0.weight" in learned) is (image == "trained")
    assert ("image.visual.proj" in learned) is ((image, heads) == ("trained", "projection"))
    assert ("points.projection" in learned) is not own
    assert {name.split(".")[1] for name in learned if name.startswith("contrast.")} == (
        {"points", "image"} if own else set()
    )


def test_several_pictures_are_averaged() -> None:
    """Their mean vector is h: the same picture thrice is one, and their order does not count."""
    keys = ("crosspoint.images=3", "data.num_points=64")
    model = build_model(read_recipe("small_crosspoint", parse_changes((*FEW, *keys))), ("mug", "bowl"))[0].eval()
    views = torch.randn(4, 3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    mean = of_pictures(model, views)
    each = torch.stack([of_pictures(model, views[:, view]) for view in range(3)])
    torch.testing.assert_close(mean, each.mean(dim=0))
    torch.testing.assert_close(of_pictures(model, views[:, :1].expand(-1, 3, -1, -1, -1)), each[0])


def test_a_run_with_several_pictures_draws_different_views(shards, tmp_path) -> None:
    """Three of each object, and two clouds that differ."""
    recipe = read_recipe("small_crosspoint", parse_changes((*FEW, "crosspoint.images=3", "augment.image_jitter=0.4")))
    state = prepare(recipe, str(shards), str(tmp_path / "none"), torch.device("cpu"))
    batch = next(iter(state.samples)).to(torch.device("cpu"))
    assert batch.strong_image.shape[:2] == (8, 3)
    assert (batch.strong_image[:, 0] - batch.strong_image[:, 1]).flatten(1).abs().amax(dim=1).min() > 0
    assert not torch.equal(batch.weak_points, batch.strong_points)


def test_one_object_a_batch_is_refused() -> None:
    with pytest.raises(Refused, match=r"batch_size=1: an object is told apart from others"):
        read_recipe("small_crosspoint", parse_changes(["optimizer.batch_size=1"]))


def run_of(recipe: str, shards, folder, *changes: str):
    fit(read_recipe(recipe, parse_changes((*FEW, *changes))), str(shards), str(folder), torch.device("cpu"))
    return folder


def test_points_learn_the_space_of_a_frozen_image_tower(shards, tmp_path) -> None:
    clip = run_of("small_pretrain", shards, tmp_path / "clip", "optimizer.steps=2")
    keys = ("optimizer.steps=20", "optimizer.lr=3e-2", f"init.image={clip}", "crosspoint.image=frozen")
    run = run_of("small_crosspoint", shards, tmp_path / "run", *keys)
    with open(run / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.startswith("loss_")] == ["loss_intra", "loss_cross"]
    assert float(rows[-1]["loss"]) < 0.95 * float(rows[0]["loss"])
    assert not (run / "checkpoints/step-00000020/teacher.safetensors").exists()
    first, last = (evaluated(run / f"checkpoints/step-{n:08d}", shards) for n in (0, 20))
    assert last["teacher"] is None
    assert first["student"]["image"] == last["student"]["image"]
