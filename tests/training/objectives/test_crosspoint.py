"""CrossPoint: golden values and gradients, and a run that teaches points the space of a frozen image tower."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_runs import evaluated

from manifests.config import parse_changes
from training.data.batch import Batch
from training.loop.fit import fit
from training.objectives.crosspoint import step, terms_of
from training.objectives.losses import nt_xent
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


@pytest.mark.parametrize("image", ["trained", "frozen"])
def test_a_step_takes_both_clouds_and_the_strong_picture(image: str) -> None:
    """A change of the weak cloud, of the strong one or of the picture is seen; the weights are each term's own."""
    keys = ("crosspoint.intra=2", "crosspoint.cross=5", f"crosspoint.image={image}", "data.num_points=64")
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
    assert model.image.visual.proj.requires_grad is (image == "trained")
    begun.total.backward()
    assert (model.image.visual.proj.grad is not None) is (image == "trained")
    assert model.points.projection.grad.any()


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
